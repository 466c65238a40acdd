//! One step as a job: its phases, and which chunks each has.
#![expect(unsafe_code, reason = "logits are written where the caller will read them")]

use std::sync::{Arc, OnceLock};

use crate::{
    adapter::Adapter,
    architecture::Architecture,
    buffer::Buffer,
    cache::Cache,
    decoder::{Decoder, Site},
    experts::Routes,
    kernels::{
        Kernels,
        product::{PANEL, Rows},
    },
    matrix::Format,
    plan::{Plan, SEGMENT},
    pool::Job,
    workspace::{Workspace, state_len},
};

/// Up to so many tokens, what lies between two products is computed by the thread that ended the first: sharing it
/// would cost more than it.
const ALONE: usize = 4;
/// Tokens of a chunk otherwise: a whole panel of cached keys, so that two threads seldom write to one cache line.
const TOGETHER: usize = PANEL;
/// Bytes of weights that a chunk reads at least: below, claiming would show.
const CHUNK_BYTES: usize = 24 << 10;

/// What lies between two products, token by token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Embeds and norms for the first layer.
    Begin,
    /// Turns queries and keys, writes the cache.
    Place(usize),
    /// Quantises what attention gave.
    Attended(usize),
    /// Ends attention, norms for the feed-forward layer.
    Between(usize),
    /// Chooses experts.
    Route(usize),
    /// Gives each of them its input.
    Gather(usize),
    /// Quantises what the gate gave, or the experts' gates.
    Gated(usize),
    /// Ends the layer, norms for the next one or for the head.
    End(usize),
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Tokens(Stage),
    /// The adapters' first product, into `low`.
    Low(usize, Site),
    Product(usize, Site),
    /// A product of experts, of which only those that have tokens are computed.
    Experts(usize, Site),
    Attend(usize),
}

#[derive(Clone, Copy)]
struct Phase {
    work: Work,
    chunks: usize,
    /// Panels a chunk.
    panels: usize,
    then: Option<Stage>,
}

/// Where logits go: the memory that `forward` returns.
pub(crate) struct Destination(pub *mut f32);

// SAFETY: chunks write different rows or columns, and `forward` holds the memory until all are done.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

/// A step under way.
pub(crate) struct Step {
    pub architecture: Arc<Architecture>,
    pub decoder: Arc<Decoder>,
    pub cache: Arc<Cache>,
    pub kernels: &'static Kernels,
    pub work: Arc<Workspace>,
    pub plan: Plan,
    pub logits: Destination,
    phases: Vec<Phase>,
    /// Of each layer, which expert computes what, once its router has spoken.
    pub routes: Vec<OnceLock<Routes>>,
    /// Parts of attention that is split: one state a unit.
    pub parts: Buffer<f32>,
    /// Values of `parts`.
    pub parts_len: usize,
    /// A · x of the adapters, `[tokens, low_stride]`.
    pub low: Buffer<f32>,
    pub low_stride: usize,
}

impl Step {
    pub(crate) fn new(
        architecture: Arc<Architecture>,
        decoder: Arc<Decoder>,
        cache: Arc<Cache>,
        kernels: &'static Kernels,
        work: Arc<Workspace>,
        plan: Plan,
        logits: Destination,
    ) -> Self {
        let group = architecture.heads / architecture.kv_heads;
        let width = architecture.head_dim.next_multiple_of(PANEL);
        let rows = plan.units.iter().map(|unit| unit.queries.len() * group).max().unwrap_or(0);
        let parts_len = if plan.split { plan.units.len() * state_len(rows, width) } else { 0 };
        let parts = Buffer::new(parts_len);
        let ranks = plan.sequences.iter().filter_map(|s| s.adapter.as_deref()).map(Adapter::ranks).max().unwrap_or(0);
        let low_stride = ranks.next_multiple_of(PANEL);
        let low = Buffer::new(plan.tokens.len() * low_stride);
        let phases = Vec::new();
        let routes = architecture.layers.iter().map(|_| OnceLock::new()).collect();
        let mut step = Self {
            architecture,
            decoder,
            cache,
            kernels,
            work,
            plan,
            logits,
            phases,
            routes,
            parts,
            parts_len,
            low,
            low_stride,
        };
        step.lay_out();
        step
    }

    fn lay_out(&mut self) {
        self.stage(Stage::Begin);
        for layer in 0..self.architecture.layers.len() {
            self.product(layer, Site::QueryKeyValue);
            self.stage(Stage::Place(layer));
            self.push(Work::Attend(layer), self.plan.units.len(), 1);
            self.stage(Stage::Attended(layer));
            self.product(layer, Site::Output);
            self.stage(Stage::Between(layer));
            if self.architecture.experts_of(layer).is_some() {
                self.product(layer, Site::Router);
                self.stage(Stage::Route(layer));
                if self.plan.tokens.len() > ALONE {
                    self.stage(Stage::Gather(layer));
                }
                self.experts(layer, Site::GateUp);
                self.stage(Stage::Gated(layer));
                self.experts(layer, Site::Down);
            } else {
                self.product(layer, Site::GateUp);
                self.stage(Stage::Gated(layer));
                self.product(layer, Site::Down);
            }
            self.stage(Stage::End(layer));
        }
        if self.plan.rows > 0 {
            self.product(0, Site::Head);
        }
    }

    fn push(&mut self, work: Work, chunks: usize, panels: usize) {
        self.phases.push(Phase { work, chunks, panels, then: None });
    }

    fn stage(&mut self, stage: Stage) {
        let needed = match stage {
            Stage::Attended(layer) => self.format(layer, Site::Output).is_integer(),
            Stage::Gated(layer) => self.format(layer, Site::Down).is_integer(),
            _ => true,
        };
        let tokens = self.plan.tokens.len();
        match self.phases.last_mut() {
            _ if !needed => {}
            Some(last) if tokens <= ALONE && last.then.is_none() => last.then = Some(stage),
            _ => self.push(Work::Tokens(stage), tokens.div_ceil(TOGETHER), 0),
        }
    }

    fn product(&mut self, layer: usize, site: Site) {
        let low = |(sequence, _): &(usize, _)| self.adapted(*sequence, layer, site).map_or(0, |low| low.down.panels);
        let panels = self.plan.adapted.iter().map(low).max().unwrap_or(0);
        if panels > 0 {
            self.push(Work::Low(layer, site), self.plan.adapted.len() * panels, panels);
        }
        let panels = self.panels(layer, site);
        let all = self.decoder.linear(layer, site).matrix.panels;
        let chunks = all.div_ceil(panels) * self.rows(site).div_ceil(SEGMENT);
        self.push(Work::Product(layer, site), chunks, panels);
    }

    fn experts(&mut self, layer: usize, site: Site) {
        // How many chunks there are, the router says.
        self.push(Work::Experts(layer, site), 0, self.panels(layer, site));
    }

    /// Panels of a chunk. Few tokens: memory is the limit, and claims should be rare; many: each panel is work enough.
    fn panels(&self, layer: usize, site: Site) -> usize {
        let matrix = &self.decoder.linear(layer, site).matrix;
        let panel_bytes = matrix.bytes() / matrix.panels.max(1);
        if self.rows(site) <= SEGMENT { (CHUNK_BYTES / panel_bytes.max(1)).clamp(1, 8) } else { 1 }
    }

    /// Rows that a product multiplies.
    pub(crate) fn rows(&self, site: Site) -> usize {
        if site == Site::Head { self.plan.rows } else { self.plan.tokens.len() }
    }

    pub(crate) fn format(&self, layer: usize, site: Site) -> Format {
        self.decoder.linear(layer, site).matrix.format
    }

    pub(crate) fn adapted(&self, sequence: usize, layer: usize, site: Site) -> Option<&crate::adapter::Low> {
        self.plan.sequences[sequence].adapter.as_deref()?.site(layer, site)
    }

    pub(crate) fn input(&self, site: Site) -> Rows {
        match site {
            Site::QueryKeyValue | Site::GateUp | Site::Router | Site::Head => self.work.normed.rows(),
            Site::Output => self.work.attended.rows(),
            Site::Down => self.work.gated.rows(),
        }
    }
}

impl Job for Step {
    fn phases(&self) -> usize {
        self.phases.len()
    }

    fn chunks(&self, phase: usize) -> usize {
        let Phase { work, chunks, panels, .. } = self.phases[phase];
        match work {
            Work::Experts(layer, site) => self.expert_chunks(layer, site, panels),
            _ => chunks,
        }
    }

    fn chunk(&self, phase: usize, chunk: usize, worker: usize) {
        let Phase { work, panels, .. } = self.phases[phase];
        match work {
            Work::Tokens(stage) => {
                let from = chunk * TOGETHER;
                self.run_stage(stage, from..(from + TOGETHER).min(self.plan.tokens.len()));
            }
            Work::Low(layer, site) => self.run_low(layer, site, chunk / panels, chunk % panels),
            Work::Product(layer, site) => self.run_product(layer, site, panels, chunk, worker),
            Work::Experts(layer, site) => self.run_experts(layer, site, panels, chunk, worker),
            Work::Attend(layer) => self.run_attend(layer, chunk, worker),
        }
    }

    fn finish(&self, phase: usize, worker: usize) {
        let Phase { work, then, .. } = self.phases[phase];
        if let Work::Attend(_) = work {
            self.merge_parts(worker);
        }
        let tokens = self.plan.tokens.len();
        if let Some(stage) = then {
            self.run_stage(stage, 0..tokens);
        }
        if let (Work::Tokens(Stage::Route(layer)), _) | (_, Some(Stage::Route(layer))) = (work, then) {
            self.group(layer);
            if tokens <= ALONE {
                self.run_stage(Stage::Gather(layer), 0..tokens);
            }
        }
    }
}
