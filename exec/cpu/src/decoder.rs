//! A model's weights, packed: what all steps share and none changes.

use crate::{
    architecture::Architecture,
    kernels::product::PANEL,
    matrix::{Format, PackedMatrix},
    weights::{Matrix, Part, Role, Values, Weights},
};

/// Why a model or an adapter can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Numbers that don't fit each other.
    #[error("architecture: {}", .0.join("; "))]
    Architecture(Vec<String>),
    /// Settings that don't fit.
    #[error("settings: {0}")]
    Settings(String),
    /// A tensor is missing.
    #[error("no weights for {0:?}")]
    Missing(Role),
    /// A tensor has another size.
    #[error("{role:?} has {found} values, [{rows}, {columns}] were expected")]
    Size {
        /// Which.
        role: Role,
        /// Rows expected.
        rows: usize,
        /// Columns expected.
        columns: usize,
        /// Values found.
        found: usize,
    },
    /// An adapter that doesn't fit the model.
    #[error("adapter: {0}")]
    Adapter(String),
    /// No memory.
    #[error("no memory for weights or cache: {0}")]
    Memory(#[source] std::io::Error),
    /// No threads.
    #[error("no threads to compute with: {0}")]
    Threads(#[source] std::io::Error),
}

/// A product of a layer, or the head. Matrices that take the same input are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    /// Query, key, value, one after the other.
    QueryKeyValue,
    Output,
    /// A panel has 16 rows of the gate and the same 16 of the other.
    GateUp,
    Down,
    Head,
}

impl Site {
    pub(crate) const LAYER: [Self; 4] = [Self::QueryKeyValue, Self::Output, Self::GateUp, Self::Down];

    pub(crate) fn of(matrix: Matrix) -> Self {
        match matrix {
            Matrix::Query | Matrix::Key | Matrix::Value => Self::QueryKeyValue,
            Matrix::Output => Self::Output,
            Matrix::Gate | Matrix::Up => Self::GateUp,
            Matrix::Down => Self::Down,
        }
    }

    /// Rows and columns of all its matrices together.
    pub(crate) fn shape(self, a: &Architecture) -> (usize, usize) {
        let shapes = site_matrices(self).iter().map(|m| a.matrix_shape(*m));
        shapes.fold((0, 0), |(rows, _), (more, columns)| (rows + more, columns))
    }

    /// Rows of its panels, with the gaps between gates and ups.
    pub(crate) fn packed_rows(self, a: &Architecture) -> usize {
        match self {
            Self::GateUp => a.intermediate.next_multiple_of(PANEL / 2) * 2,
            _ => self.shape(a).0,
        }
    }
}

/// The matrices of a site.
pub(crate) fn site_matrices(site: Site) -> &'static [Matrix] {
    match site {
        Site::QueryKeyValue => &[Matrix::Query, Matrix::Key, Matrix::Value],
        Site::Output => &[Matrix::Output],
        Site::GateUp => &[Matrix::Gate, Matrix::Up],
        Site::Down => &[Matrix::Down],
        Site::Head => &[],
    }
}

/// Which matrix's which row a packed row is.
pub(crate) fn site_row(a: &Architecture, site: Site, packed: usize) -> Option<(usize, usize)> {
    if site == Site::GateUp {
        let (panel, lane) = (packed / PANEL, packed % PANEL);
        let row = panel * (PANEL / 2) + lane % (PANEL / 2);
        return (row < a.intermediate).then_some((lane / (PANEL / 2), row));
    }
    let mut row = packed;
    for (index, matrix) in site_matrices(site).iter().enumerate() {
        let rows = a.matrix_shape(*matrix).0;
        if row < rows {
            return Some((index, row));
        }
        row -= rows;
    }
    None
}

impl Architecture {
    /// Rows and columns.
    pub(crate) fn matrix_shape(&self, matrix: Matrix) -> (usize, usize) {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match matrix {
            Matrix::Query => (queries, self.hidden),
            Matrix::Key | Matrix::Value => (keys, self.hidden),
            Matrix::Output => (self.hidden, queries),
            Matrix::Gate | Matrix::Up => (self.intermediate, self.hidden),
            Matrix::Down => (self.hidden, self.intermediate),
        }
    }
}

/// A product with its bias, in the order of the panels.
pub(crate) struct Linear {
    pub matrix: PackedMatrix,
    pub bias: Option<Vec<f32>>,
}

/// One layer. Norms are padded with zeros to whole panels.
pub(crate) struct LayerWeights {
    pub attention_norm: Vec<f32>,
    pub feed_forward_norm: Vec<f32>,
    pub post_norms: Option<[Vec<f32>; 2]>,
    pub qk_norms: Option<[Vec<f32>; 2]>,
    linears: [Linear; 4],
}

impl LayerWeights {
    pub(crate) fn linear(&self, site: Site) -> &Linear {
        &self.linears[Site::LAYER.iter().position(|s| *s == site).unwrap_or(0)]
    }
}

/// All weights.
pub(crate) struct Decoder {
    pub layers: Vec<LayerWeights>,
    pub final_norm: Vec<f32>,
    pub head: Linear,
    /// Apart from the head, or where the head's format would lose some of it.
    embedding: Option<Values<'static>>,
}

impl Decoder {
    pub(crate) fn load(
        a: &Architecture,
        weights: &dyn Weights,
        format: Format,
        head: Format,
        threads: usize,
    ) -> Result<Self, LoadError> {
        let loader = Loader { a, weights, threads };
        let embedding = loader.values(Role::Embedding, a.vocabulary, a.hidden)?;
        let head_values = if a.tied { None } else { Some(loader.values(Role::Head, a.vocabulary, a.hidden)?) };
        let shared = head_values.is_none() && head.is_lossless(&embedding);
        let tensors = [head_values.unwrap_or_else(|| embedding.clone())];
        let rows = |row: usize| (row < a.vocabulary).then_some((0, row));
        let matrix =
            PackedMatrix::pack(head, a.vocabulary, a.hidden, threads, rows, &tensors).map_err(LoadError::Memory)?;
        Ok(Self {
            layers: (0..a.layers.len()).map(|layer| loader.layer(layer, format)).collect::<Result<_, _>>()?,
            final_norm: loader.vector(Role::FinalNorm, a.hidden)?,
            head: Linear { matrix, bias: None },
            embedding: (!shared).then(|| owned(embedding)),
        })
    }

    pub(crate) fn embed(&self, token: u32, out: &mut [f32]) {
        match &self.embedding {
            Some(values) => values.row(token as usize, out),
            None => self.head.matrix.row(token as usize, out),
        }
    }

    /// The product of a site.
    pub(crate) fn linear(&self, layer: usize, site: Site) -> &Linear {
        if site == Site::Head { &self.head } else { self.layers[layer].linear(site) }
    }

    /// Bytes of weights that a decode step reads.
    pub(crate) fn bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| &layer.linears).map(|linear| linear.matrix.bytes());
        layers.sum::<usize>() + self.head.matrix.bytes()
    }
}

fn owned(values: Values<'_>) -> Values<'static> {
    match values {
        Values::F32(v) => Values::F32(v.into_owned().into()),
        Values::Bf16(v) => Values::Bf16(v.into_owned().into()),
        Values::Int8(v) => Values::Int8(v.into_owned().into()),
        Values::Int4(v) => Values::Int4(v.into_owned().into()),
    }
}

struct Loader<'a> {
    a: &'a Architecture,
    weights: &'a dyn Weights,
    threads: usize,
}

impl<'a> Loader<'a> {
    fn values(&self, role: Role, rows: usize, columns: usize) -> Result<Values<'a>, LoadError> {
        let values = self.weights.get(role).ok_or(LoadError::Missing(role))?;
        let blocks = matches!(values, Values::Int8(_) | Values::Int4(_));
        if values.len() != rows * columns || blocks && !columns.is_multiple_of(32) {
            return Err(LoadError::Size { role, rows, columns, found: values.len() });
        }
        Ok(values)
    }

    /// Padded with zeros to whole panels.
    fn vector(&self, role: Role, len: usize) -> Result<Vec<f32>, LoadError> {
        let values = self.values(role, 1, len)?;
        let mut row = vec![0.0; len];
        values.row(0, &mut row);
        row.resize(len.next_multiple_of(PANEL), 0.0);
        Ok(row)
    }

    fn layer(&self, layer: usize, format: Format) -> Result<LayerWeights, LoadError> {
        let a = self.a;
        let part = |part: Part, len: usize| self.vector(Role::Layer(layer, part), len);
        let pair = |first: Part, second: Part, len: usize| Ok::<_, LoadError>([part(first, len)?, part(second, len)?]);
        let [one, two, three, four] = Site::LAYER.map(|site| self.linear(layer, site, format));
        let post_norms = (Part::AttentionPostNorm, Part::FeedForwardPostNorm);
        Ok(LayerWeights {
            attention_norm: part(Part::AttentionNorm, a.hidden)?,
            feed_forward_norm: part(Part::FeedForwardNorm, a.hidden)?,
            post_norms: if a.post_norms { Some(pair(post_norms.0, post_norms.1, a.hidden)?) } else { None },
            qk_norms: if a.qk_norm { Some(pair(Part::QueryNorm, Part::KeyNorm, a.head_dim)?) } else { None },
            linears: [one?, two?, three?, four?],
        })
    }

    fn linear(&self, layer: usize, site: Site, format: Format) -> Result<Linear, LoadError> {
        let a = self.a;
        let matrices = site_matrices(site);
        let tensors = matrices.iter().map(|m| {
            let (rows, columns) = a.matrix_shape(*m);
            self.values(Role::Layer(layer, Part::Matrix(*m)), rows, columns)
        });
        let tensors: Vec<Values<'_>> = tensors.collect::<Result<_, _>>()?;
        let (rows, columns) = (site.packed_rows(a), site.shape(a).1);
        let place = |row: usize| site_row(a, site, row);
        let matrix =
            PackedMatrix::pack(format, rows, columns, self.threads, place, &tensors).map_err(LoadError::Memory)?;
        let mut bias = None;
        for (index, m) in matrices.iter().enumerate() {
            let role = Role::Layer(layer, Part::Bias(*m));
            if self.weights.get(role).is_some() {
                let values = self.vector(role, a.matrix_shape(*m).0)?;
                let all = bias.get_or_insert_with(|| vec![0.0; rows.next_multiple_of(PANEL)]);
                for (packed, to) in all.iter_mut().enumerate() {
                    if let Some((_, row)) = place(packed).filter(|(which, _)| *which == index) {
                        *to = values[row];
                    }
                }
            }
        }
        Ok(Linear { matrix, bias })
    }
}
