//! A model's weights, packed: what all steps share and none changes.

use crate::{
    architecture::Architecture,
    kernels::product::PANEL,
    matrix::PackedMatrix,
    weights::{Matrix, Values},
};

/// A product of a layer, or the head. Matrices that take the same input are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    /// Query, key, value, one after the other.
    QueryKeyValue,
    Output,
    /// A panel has 16 rows of the gate and the same 16 of the other.
    GateUp,
    Down,
    /// Which experts compute a token.
    Router,
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
        Site::Router | Site::Head => &[],
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
    /// Of experts all gates and ups one after the other, and all downs: each has the same number of whole panels.
    pub linears: [Linear; 4],
    pub router: Option<Linear>,
}

impl LayerWeights {
    pub(crate) fn linear(&self, site: Site) -> &Linear {
        match (site, &self.router) {
            (Site::Router, Some(router)) => router,
            _ => &self.linears[Site::LAYER.iter().position(|s| *s == site).unwrap_or(0)],
        }
    }
}

/// All weights.
pub(crate) struct Decoder {
    pub layers: Vec<LayerWeights>,
    pub final_norm: Vec<f32>,
    pub head: Linear,
    /// Where the head has not the same values.
    pub embedding: Option<Values<'static>>,
}

impl Decoder {
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

    /// Bytes of weights that a decode step reads: of experts those that compute one token.
    pub(crate) fn step_bytes(&self, a: &Architecture) -> usize {
        let of_layer = |(index, layer): (usize, &LayerWeights)| {
            let read = |site: Site| match (a.experts_of(index), site) {
                (Some(experts), Site::GateUp | Site::Down) => {
                    layer.linear(site).matrix.bytes() / experts.count * experts.per_token
                }
                _ => layer.linear(site).matrix.bytes(),
            };
            let router = layer.router.as_ref().map_or(0, |router| router.matrix.bytes());
            Site::LAYER.into_iter().map(read).sum::<usize>() + router
        };
        self.layers.iter().enumerate().map(of_layer).sum::<usize>() + self.head.matrix.bytes()
    }
}
