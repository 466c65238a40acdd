//! From tensors to packed weights: what each is held in, and how much that takes.

use std::{borrow::Cow, collections::BTreeMap};

use half::bf16;

use crate::{
    architecture::Architecture,
    decoder::{Decoder, LayerWeights, Linear, Site, site_matrices, site_row},
    kernels::product::{BLOCK, PANEL},
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

/// What weights take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Bytes of all of them.
    pub bytes: usize,
    /// Bytes of matrices by what they are held in.
    pub formats: BTreeMap<Format, usize>,
    /// Products whose matrices come in several formats, and where not all are held as they come.
    pub rounded: usize,
}

impl Held {
    fn add(&mut self, format: Format, bytes: usize) {
        self.bytes += bytes;
        *self.formats.entry(format).or_default() += bytes;
    }
}

/// What matrices are to be held in; `None` = as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The layers'.
    pub layers: Option<Format>,
    /// The head's. A fifth of a small model's bytes, and what logits feel most.
    pub head: Option<Format>,
}

impl Keep {
    /// All in one format.
    pub fn all(format: Format) -> Self {
        Self { layers: Some(format), head: Some(format) }
    }
}

impl Decoder {
    pub(crate) fn load(a: &Architecture, weights: &dyn Weights, keep: Keep, threads: usize) -> Result<Self, LoadError> {
        let loader = Loader { a, weights, keep, threads };
        let embedding = loader.values(Role::Embedding, a.vocabulary, a.hidden)?;
        let own = if a.tied { None } else { Some(loader.values(Role::Head, a.vocabulary, a.hidden)?) };
        let rows = |row: usize| (row < a.vocabulary).then_some((0, row));
        let from = [own.as_ref().unwrap_or(&embedding)];
        let matrix = PackedMatrix::pack(loader.head(), a.vocabulary, a.hidden, threads, rows, &from);
        let matrix = matrix.map_err(LoadError::Memory)?;
        drop(own);
        let embedding = loader.rows().map(|format| kept(embedding, format));
        Ok(Self {
            layers: (0..a.layers.len()).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?,
            final_norm: loader.vector(Role::FinalNorm, a.hidden)?,
            head: Linear { matrix, bias: None },
            embedding,
        })
    }
}

/// What a model's weights will take, told without reading them.
pub fn held(a: &Architecture, weights: &dyn Weights, keep: Keep) -> Held {
    let loader = Loader { a, weights, keep, threads: 1 };
    let mut held = Held::default();
    for layer in 0..a.layers.len() {
        for site in Site::LAYER {
            let (block, copies) = loader.blocks(layer, site);
            let (given, format) = (loader.given(layer, site), loader.format(layer, site));
            held.add(format, copies * format.packed_bytes(site.packed_rows(&block), site.shape(&block).1));
            held.rounded += usize::from(keep.layers.is_none() && !given.iter().all(|given| format.holds(*given)));
        }
        // It is computed with in f32 whatever the rest is, and is small.
        held.bytes += a.experts_of(layer).map_or(0, |experts| Format::F32.packed_bytes(experts.count, a.hidden));
    }
    held.add(loader.head(), loader.head().packed_bytes(a.vocabulary, a.hidden));
    held.bytes += loader.rows().map_or(0, |format| format.bytes_of(a.vocabulary * a.hidden));
    held
}

/// Values of one's own, rounded to bf16 where that is asked for.
fn kept(values: Values<'_>, format: Format) -> Values<'static> {
    match (values, format) {
        (Values::F32(v), Format::Bf16) => Values::Bf16(v.iter().map(|v| bf16::from_f32(*v)).collect()),
        (Values::F16(v), Format::Bf16) => Values::Bf16(v.iter().map(|v| bf16::from_f32(v.to_f32())).collect()),
        (Values::F32(v), _) => Values::F32(v.into_owned().into()),
        (Values::Bf16(v), _) => Values::Bf16(v.into_owned().into()),
        (Values::F16(v), _) => Values::F16(v.into_owned().into()),
        (Values::Int8(v), _) => Values::Int8(v.into_owned().into()),
        (Values::Int4(v), _) => Values::Int4(v.into_owned().into()),
        (Values::Uint4(v), _) => Values::Uint4(v.into_owned().into()),
    }
}

struct Loader<'a> {
    a: &'a Architecture,
    weights: &'a dyn Weights,
    keep: Keep,
    threads: usize,
}

impl<'a> Loader<'a> {
    /// The format that a tensor comes in. One that is missing is told of when it is read.
    fn comes_in(&self, role: Role) -> Format {
        self.weights.format(role).unwrap_or(Format::F32)
    }

    /// The block that a site's matrices are of, by its shapes, and how many of them the layer has.
    fn blocks(&self, layer: usize, site: Site) -> (Cow<'a, Architecture>, usize) {
        match (self.a.experts_of(layer), site) {
            (Some(experts), Site::GateUp | Site::Down) => (Cow::Owned(self.a.of_expert(experts)), experts.count),
            _ => (Cow::Borrowed(self.a), 1),
        }
    }

    /// A matrix of one of those blocks.
    fn role(&self, layer: usize, site: Site, block: usize, matrix: Matrix) -> Role {
        match (self.a.experts_of(layer), site) {
            (Some(_), Site::GateUp | Site::Down) => Role::Layer(layer, Part::Expert(block, matrix)),
            _ => Role::Layer(layer, Part::Matrix(matrix)),
        }
    }

    /// The formats that a site's matrices come in.
    fn given(&self, layer: usize, site: Site) -> Vec<Format> {
        let of =
            |block: usize| site_matrices(site).iter().map(move |m| self.comes_in(self.role(layer, site, block, *m)));
        (0..self.blocks(layer, site).1).flat_map(of).collect()
    }

    /// What a site is held in.
    fn format(&self, layer: usize, site: Site) -> Format {
        self.keep.layers.unwrap_or_else(|| Format::holding(&self.given(layer, site)))
    }

    /// What the head is held in.
    fn head(&self) -> Format {
        let role = if self.a.tied { Role::Embedding } else { Role::Head };
        self.keep.head.unwrap_or_else(|| self.comes_in(role))
    }

    /// What rows for looking tokens up are held in, or `None` where the head has them: as they come, for a token's first
    /// state costs next to nothing to read, but for bf16, which is asked for where all is to be rounded to it.
    fn rows(&self) -> Option<Format> {
        let given = self.comes_in(Role::Embedding);
        let rounds = self.keep.head == Some(Format::Bf16) && matches!(given, Format::F32 | Format::F16);
        let rows = if rounds { Format::Bf16 } else { given };
        (!self.a.tied || !self.head().holds(rows)).then_some(rows)
    }

    fn values(&self, role: Role, rows: usize, columns: usize) -> Result<Values<'a>, LoadError> {
        let values = self.weights.get(role).ok_or(LoadError::Missing(role))?;
        let blocks = values.format().is_integer();
        if values.len() != rows * columns || blocks && !columns.is_multiple_of(BLOCK) {
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

    fn layer(&self, layer: usize) -> Result<LayerWeights, LoadError> {
        let a = self.a;
        let part = |part: Part, len: usize| self.vector(Role::Layer(layer, part), len);
        let pair = |first: Part, second: Part, len: usize| Ok::<_, LoadError>([part(first, len)?, part(second, len)?]);
        let [one, two, three, four] = Site::LAYER.map(|site| self.linear(layer, site));
        let post_norms = (Part::AttentionPostNorm, Part::FeedForwardPostNorm);
        Ok(LayerWeights {
            attention_norm: part(Part::AttentionNorm, a.hidden)?,
            feed_forward_norm: part(Part::FeedForwardNorm, a.hidden)?,
            post_norms: if a.post_norms { Some(pair(post_norms.0, post_norms.1, a.hidden)?) } else { None },
            qk_norms: if a.qk_norm { Some(pair(Part::QueryNorm, Part::KeyNorm, a.head_dim)?) } else { None },
            linears: [one?, two?, three?, four?],
            router: self.a.experts_of(layer).map(|experts| self.router(layer, experts.count)).transpose()?,
        })
    }

    fn router(&self, layer: usize, experts: usize) -> Result<Linear, LoadError> {
        let (hidden, role) = (self.a.hidden, Role::Layer(layer, Part::Router));
        let values = self.values(role, experts, hidden)?;
        let place = |row: usize| (row < experts).then_some((0, row));
        let matrix = PackedMatrix::pack(Format::F32, experts, hidden, self.threads, place, &[&values]);
        Ok(Linear { matrix: matrix.map_err(LoadError::Memory)?, bias: None })
    }

    fn linear(&self, layer: usize, site: Site) -> Result<Linear, LoadError> {
        let (block, blocks) = self.blocks(layer, site);
        let a = &*block;
        let (rows, columns) = (site.packed_rows(a).next_multiple_of(PANEL), site.shape(a).1);
        let matrix = PackedMatrix::zeros(self.format(layer, site), blocks * rows, columns);
        let mut matrix = matrix.map_err(LoadError::Memory)?;
        let place = |row: usize| site_row(a, site, row);
        for block in 0..blocks {
            let tensors = site_matrices(site).iter().map(|m| {
                let (rows, columns) = a.matrix_shape(*m);
                self.values(self.role(layer, site, block, *m), rows, columns)
            });
            let tensors: Vec<Values<'_>> = tensors.collect::<Result<_, _>>()?;
            let panels = block * rows / PANEL..(block + 1) * rows / PANEL;
            matrix.fill(panels, columns, self.threads, place, &tensors.iter().collect::<Vec<_>>());
        }
        Ok(Linear { matrix, bias: self.bias(layer, site, rows)? })
    }

    /// In the order of the panels; experts have none.
    fn bias(&self, layer: usize, site: Site, rows: usize) -> Result<Option<Vec<f32>>, LoadError> {
        let a = self.a;
        let mut bias = None;
        for (index, m) in site_matrices(site).iter().enumerate() {
            let role = Role::Layer(layer, Part::Bias(*m));
            if self.blocks(layer, site).1 == 1 && self.weights.get(role).is_some() {
                let values = self.vector(role, a.matrix_shape(*m).0)?;
                let all = bias.get_or_insert_with(|| vec![0.0; rows]);
                for (packed, to) in all.iter_mut().enumerate() {
                    if let Some((_, row)) = site_row(a, site, packed).filter(|(which, _)| *which == index) {
                        *to = values[row];
                    }
                }
            }
        }
        Ok(bias)
    }
}
