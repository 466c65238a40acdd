//! LoRA adapters (Hu et al. 2021): y = W·x + scale · B·(A·x), each sequence of a step with its own or none.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use mloc_engine::forward::AdapterId;

use crate::{
    architecture::Architecture,
    decoder::{Site, site_matrices, site_row},
    load::LoadError,
    matrix::{Format, PackedMatrix},
    weights::{Matrix, Values},
};

/// One adapted matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapted {
    /// Layer, from 0.
    pub layer: usize,
    /// Which of its matrices.
    pub matrix: Matrix,
    /// `[rank, columns of the matrix]`.
    pub a: Vec<f32>,
    /// `[rows of the matrix, rank]`.
    pub b: Vec<f32>,
    /// Rank.
    pub rank: usize,
    /// alpha / rank, or alpha / √rank: folded into `b` at load.
    pub scale: f32,
}

/// An adapter as the kernels read it: for each product of a layer all As stacked, and all Bs side by side.
pub(crate) struct Adapter {
    sites: BTreeMap<(usize, Site), Low>,
}

/// The two thin matrices of one site.
pub(crate) struct Low {
    /// `[ranks, columns]`.
    pub down: PackedMatrix,
    /// `[rows of the site, ranks]`, in the order of the site's panels.
    pub up: PackedMatrix,
}

impl Adapter {
    pub(crate) fn new(architecture: &Architecture, adapted: &[Adapted]) -> Result<Self, LoadError> {
        let mut sites = BTreeMap::new();
        for layer in 0..architecture.layers.len() {
            for site in Site::LAYER {
                let parts: Vec<&Adapted> = site_matrices(site)
                    .iter()
                    .filter_map(|m| adapted.iter().find(|a| a.layer == layer && a.matrix == *m))
                    .collect();
                if !parts.is_empty() {
                    sites.insert((layer, site), Low::new(architecture, site, &parts)?);
                }
            }
        }
        let of_experts = |a: &&Adapted| {
            let feed_forward = matches!(Site::of(a.matrix), Site::GateUp | Site::Down);
            feed_forward && a.layer < architecture.layers.len() && architecture.experts_of(a.layer).is_some()
        };
        if let Some(a) = adapted.iter().find(of_experts) {
            let (layer, matrix) = (a.layer, a.matrix);
            return Err(LoadError::Adapter(format!("layer {layer} {matrix:?}: the layer has experts in its place")));
        }
        let known = |a: &Adapted| sites.contains_key(&(a.layer, Site::of(a.matrix)));
        match adapted.iter().find(|a| !known(a)) {
            Some(a) => Err(LoadError::Adapter(format!("layer {} of {}", a.layer, architecture.layers.len()))),
            None => Ok(Self { sites }),
        }
    }

    pub(crate) fn site(&self, layer: usize, site: Site) -> Option<&Low> {
        self.sites.get(&(layer, site))
    }

    /// The largest sum of ranks at any site.
    pub(crate) fn ranks(&self) -> usize {
        self.sites.values().map(|low| low.up.depth).max().unwrap_or(0)
    }
}

impl Low {
    fn new(architecture: &Architecture, site: Site, parts: &[&Adapted]) -> Result<Self, LoadError> {
        let ranks: usize = parts.iter().map(|part| part.rank).sum();
        let mut down = Vec::new();
        let (site_rows, columns) = site.shape(architecture);
        let mut up = vec![0.0; site_rows * ranks];
        let mut from = 0;
        for part in parts {
            let rows = architecture.matrix_shape(part.matrix).0;
            if part.rank == 0 || part.a.len() != part.rank * columns || part.b.len() != rows * part.rank {
                return Err(LoadError::Adapter(format!(
                    "layer {} {:?}: a has {} values, b {}, where rank {} of [{rows}, {columns}] needs {} and {}",
                    part.layer,
                    part.matrix,
                    part.a.len(),
                    part.b.len(),
                    part.rank,
                    part.rank * columns,
                    rows * part.rank
                )));
            }
            down.extend_from_slice(&part.a);
            let first = site_matrices(site).iter().take_while(|m| **m != part.matrix);
            let first: usize = first.map(|m| architecture.matrix_shape(*m).0).sum();
            for row in 0..rows {
                for r in 0..part.rank {
                    up[(first + row) * ranks + from + r] = part.b[row * part.rank + r] * part.scale;
                }
            }
            from += part.rank;
        }
        let (down, up) = (Values::F32(down.into()), Values::F32(up.into()));
        let stacked = |row: usize| (row < ranks).then_some((0, row));
        let packed_rows = site.packed_rows(architecture);
        let place = |row: usize| {
            let (matrix, row) = site_row(architecture, site, row)?;
            let before = site_matrices(site)[..matrix].iter().map(|m| architecture.matrix_shape(*m).0);
            Some((0, before.sum::<usize>() + row))
        };
        Ok(Self {
            down: PackedMatrix::pack(Format::F32, ranks, columns, 1, stacked, &[&down]).map_err(LoadError::Memory)?,
            up: PackedMatrix::pack(Format::F32, packed_rows, ranks, 1, place, &[&up]).map_err(LoadError::Memory)?,
        })
    }
}

/// The adapters of a model: loaded and unloaded from any thread while the model computes. A step under way keeps what it
/// began with.
#[derive(Clone)]
pub struct Adapters {
    architecture: Arc<Architecture>,
    state: Arc<RwLock<Loaded>>,
}

#[derive(Default)]
struct Loaded {
    next: u32,
    adapters: BTreeMap<AdapterId, Arc<Adapter>>,
}

impl Adapters {
    pub(crate) fn new(architecture: Arc<Architecture>) -> Self {
        Self { architecture, state: Arc::default() }
    }

    /// Loads an adapter. Steps may name it from now on.
    ///
    /// # Errors
    /// When a matrix doesn't fit the model.
    pub fn load(&self, adapted: &[Adapted]) -> Result<AdapterId, LoadError> {
        let adapter = Arc::new(Adapter::new(&self.architecture, adapted)?);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let id = AdapterId(state.next);
        state.next += 1;
        state.adapters.insert(id, adapter);
        Ok(id)
    }

    /// Unloads an adapter; says whether it was there. No step may name it any more.
    pub fn unload(&self, id: AdapterId) -> bool {
        self.state.write().unwrap_or_else(PoisonError::into_inner).adapters.remove(&id).is_some()
    }

    pub(crate) fn get(&self, id: AdapterId) -> Option<Arc<Adapter>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).adapters.get(&id).cloned()
    }
}
