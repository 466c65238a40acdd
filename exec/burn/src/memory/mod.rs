//! What training will need of memory, before anything is there: a function of shapes and settings.
//!
//! ```text
//! models       weights, adapters, gradients and optimizer state, by parameter
//! activations  what a forward keeps, and what is there beside it for a moment
//! ```
//!
//! A run holds some things from its first step to its last (weights, the optimizer's state, models beside) and others
//! for a while. [`plan`] adds up what is there at each [`Moment`] when most of it is, and gives the fullest one. It counts
//! tensors; the process itself, its libraries and what an allocator wastes are the caller's to add. `tests/memory_plan.rs`
//! holds it against what an allocator counts.

mod activations;
mod models;

use self::activations::{Layers, Logits};
use self::models::Held as HeldModel;
use crate::lora::{LoraConfig, LoraError};
use crate::model::{Compute, DecoderConfig, Held};
use crate::optim::OptimizerSettings;

/// What of a model is trained.
#[derive(Debug, Clone, Copy)]
pub enum Trained<'a> {
    /// Everything, in f32.
    All,
    /// An adapter, and what its settings save beside it.
    Adapter(&'a LoraConfig),
}

/// Sizes of a micro-batch: sums over its rows, of real tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rows {
    /// Σ length.
    pub tokens: usize,
    /// Σ length².
    pub squares: usize,
}

impl Rows {
    /// So many rows of equal length.
    pub fn of(count: usize, length: usize) -> Self {
        let tokens = count.saturating_mul(length);
        Self { tokens, squares: tokens.saturating_mul(length) }
    }

    /// Rows of these lengths.
    pub fn lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        lengths.into_iter().fold(Self::default(), |sum, length| Self {
            tokens: sum.tokens.saturating_add(length),
            squares: sum.squares.saturating_add(length.saturating_mul(length)),
        })
    }

    /// The larger of each sum.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { tokens: self.tokens.max(other.tokens), squares: self.squares.max(other.squares) }
    }
}

/// What a trained model is held to.
#[derive(Debug, Clone, Copy)]
pub enum Reference<'a> {
    /// Nothing, or numbers that were computed before.
    None,
    /// The model as it was: it shares what is never trained.
    Before,
    /// A model of its own, frozen, in f32.
    Model(&'a DecoderConfig),
}

/// What a model itself writes, to learn from it.
#[derive(Debug, Clone, Copy)]
pub struct Rollout<'a> {
    /// Texts that are written together.
    pub at_once: usize,
    /// Texts in a forward pass that only looks at them.
    pub scored_at_once: usize,
    /// Tokens of the longest prompt.
    pub prompt: usize,
    /// Tokens of the longest answer.
    pub answer: usize,
    /// The model that rewards, in f32, where there is one.
    pub reward: Option<&'a DecoderConfig>,
}

/// How it is trained.
#[derive(Debug, Clone, Copy)]
pub enum Method<'a> {
    /// Cross-entropy over targets.
    CrossEntropy,
    /// Scores at the last tokens of pairs.
    Rewards,
    /// Preferences between two answers; rows are those of both.
    Preferences(Reference<'a>),
    /// GRPO.
    Groups(Reference<'a>, Rollout<'a>),
    /// PPO, with a model of values that is trained too unless they come from a head on the policy.
    ActorCritic(Reference<'a>, Rollout<'a>, Option<&'a DecoderConfig>),
}

/// A run, as far as its memory depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The trained model.
    pub model: &'a DecoderConfig,
    /// What of it is trained.
    pub trained: Trained<'a>,
    /// How frozen linear weights are held.
    pub held: Held,
    /// What products are computed in.
    pub compute: Compute,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
    /// Whether layers are computed anew in the backward pass.
    pub checkpointing: bool,
    /// The largest micro-batch.
    pub rows: Rows,
    /// Micro-batches in a step.
    pub micro_batches: usize,
    /// The largest batch that is only measured; empty where nothing is.
    pub measured: Rows,
    /// How it is trained.
    pub method: Method<'a>,
    /// Whether tensors are on a GPU: what is kept in the host's memory all the same does not count then.
    pub on_gpu: bool,
}

/// When most of something is there at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Weights are read.
    Loading,
    /// A batch is measured, or scored.
    Measuring,
    /// Texts are written.
    Writing,
    /// The last layer's forward pass.
    Forward,
    /// The forward pass is over, and the loss is computed.
    Loss,
    /// The first layer's backward pass, with all gradients but its own.
    Backward,
    /// Parameters are moved.
    Update,
}

impl Moment {
    /// For people: "the peak is …".
    pub fn words(self) -> &'static str {
        match self {
            Self::Loading => "while weights are read",
            Self::Measuring => "while batches are measured",
            Self::Writing => "while answers are written",
            Self::Forward => "at the end of the forward pass",
            Self::Loss => "at the loss, between forward and backward",
            Self::Backward => "in the backward pass",
            Self::Update => "while the optimizer moves the weights",
        }
    }
}

/// What there is at a moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    /// Of the trained model, its adapter included.
    pub weights: u64,
    /// Of what is trained.
    pub gradients: u64,
    /// What the optimizer remembers.
    pub optimizer: u64,
    /// What the model is held to.
    pub reference: u64,
    /// The model that rewards.
    pub reward: u64,
    /// The model of values.
    pub values: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// Keys and values of texts that are written.
    pub cache: u64,
    /// Logits and what is made of them.
    pub logits: u64,
    /// What is there for the length of an operation.
    pub temporary: u64,
}

impl Parts {
    /// Each with its name.
    pub fn each(&self) -> [(&'static str, u64); 10] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("reference model", self.reference),
            ("reward model", self.reward),
            ("value model", self.values),
            ("activations", self.activations),
            ("key-value cache", self.cache),
            ("logits", self.logits),
            ("temporary", self.temporary),
        ]
    }

    /// All together.
    pub fn sum(&self) -> u64 {
        self.each().iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

/// What a run will need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The fullest moment.
    pub moment: Moment,
    /// What is there then.
    pub parts: Parts,
    /// Elements of what is trained.
    pub trainable: u64,
}

impl Plan {
    /// Bytes of the fullest moment.
    pub fn peak(&self) -> u64 {
        self.parts.sum()
    }
}

/// The fullest moment of a run.
///
/// # Errors
/// Settings of an adapter that mean nothing on this model.
pub fn plan(setup: &Setup<'_>) -> Result<Plan, LoraError> {
    let policy = HeldModel::of(setup.model, setup.trained, setup.held)?;
    let layers = Layers::of(setup.model, setup.on_gpu);
    let (reference, rollout, critic) = match setup.method {
        Method::CrossEntropy | Method::Rewards => (Reference::None, None, None),
        Method::Preferences(reference) => (reference, None, None),
        Method::Groups(reference, rollout) => (reference, Some(rollout), None),
        Method::ActorCritic(reference, rollout, critic) => (reference, Some(rollout), critic),
    };
    let frozen = |config| HeldModel::of(config, Trained::All, Held::F32).map(|model| model.weights);
    let critic = critic.map(|config| HeldModel::of(config, Trained::All, Held::F32).map(|model| (model, config)));
    let critic = critic.transpose()?;
    let both = |of: &dyn Fn(&HeldModel) -> u64| of(&policy) + critic.as_ref().map_or(0, |(model, _)| of(model));
    let resident = Parts {
        weights: policy.weights,
        optimizer: both(&|model| model.optimizer(&setup.optimizer, setup.on_gpu)),
        reference: match reference {
            Reference::None => 0,
            // What is moved is replaced, and the reference keeps what was.
            Reference::Before => policy.moved(),
            Reference::Model(config) => frozen(config)?,
        },
        reward: rollout.and_then(|rollout| rollout.reward).map(frozen).transpose()?.unwrap_or(0),
        values: critic.as_ref().map_or(0, |(model, _)| model.weights),
        ..Parts::default()
    };
    let work = Work { setup, layers: &layers, policy: &policy };
    let all_gradients = both(&HeldModel::gradients);
    // With several micro-batches the second meets the gradients of the first; so does a critic those of its policy.
    let early = match setup.micro_batches > 1 || critic.is_some() {
        true => all_gradients,
        false => policy.head_gradient(),
    };
    let rows = setup.rows;
    let logits = match setup.method {
        Method::Rewards => Logits::NONE,
        Method::CrossEntropy | Method::Preferences(_) => Logits::of(setup.model, rows.tokens, setup.on_gpu),
        Method::Groups(..) | Method::ActorCritic(..) => Logits::with_entropies(setup.model, rows.tokens),
    };
    let hidden = layers.hidden(rows);
    let mut moments = vec![
        (Moment::Loading, Parts { optimizer: 0, temporary: policy.reading, ..resident }),
        (
            Moment::Forward,
            Parts {
                gradients: early,
                activations: work.kept(rows) + work.anew(rows),
                temporary: work.forward(rows),
                ..resident
            },
        ),
        (
            Moment::Loss,
            Parts {
                gradients: early,
                activations: work.kept(rows),
                logits: logits.peak,
                // Those before and after the norm, their gradient, and of each what a chunk looks at.
                temporary: 4 * hidden + policy.head_copy(),
                ..resident
            },
        ),
        (
            // The last layer first: everything is kept, and the gradients are only beginning.
            Moment::Backward,
            Parts {
                gradients: early,
                activations: work.kept(rows) + work.anew(rows),
                temporary: work.backward(rows),
                ..resident
            },
        ),
        (
            Moment::Backward,
            Parts {
                gradients: all_gradients,
                activations: layers.tape(rows),
                temporary: work.backward(rows).max(policy.embedding_scatter(setup.on_gpu)),
                ..resident
            },
        ),
        (
            Moment::Update,
            Parts {
                gradients: all_gradients,
                temporary: both(&|model| model.update(&setup.optimizer, setup.on_gpu)),
                ..resident
            },
        ),
    ];
    let mut measured = setup.measured;
    if matches!(reference, Reference::Before | Reference::Model(_)) && rollout.is_none() {
        measured = measured.max(rows);
    }
    if let Some(rollout) = rollout {
        measured = measured.max(Rows::of(rollout.scored_at_once, rollout.prompt.saturating_add(rollout.answer)));
        moments.extend(work.writing(&rollout, resident).map(|parts| (Moment::Writing, parts)));
    }
    if measured.tokens > 0 {
        let logits = match setup.method {
            Method::Rewards => Logits::NONE,
            _ => Logits::of(setup.model, measured.tokens, setup.on_gpu),
        };
        moments.push((
            Moment::Measuring,
            Parts {
                activations: layers.tape(measured),
                logits: logits.peak,
                temporary: work.forward(measured),
                ..resident
            },
        ));
    }
    // Of equals the first: the others only repeat it.
    let fullest = moments.into_iter().reduce(|most, next| if next.1.sum() > most.1.sum() { next } else { most });
    let (moment, parts) = fullest.unwrap_or((Moment::Loading, resident));
    Ok(Plan { moment, parts, trainable: both(&|model| model.trainable) })
}

/// A model at work.
struct Work<'a> {
    setup: &'a Setup<'a>,
    layers: &'a Layers,
    policy: &'a HeldModel,
}

impl Work<'_> {
    /// What a forward pass leaves.
    fn kept(&self, rows: Rows) -> u64 {
        let layers = self.layers.count
            * if self.setup.checkpointing { self.layers.hidden(rows) } else { self.layers.tape(rows) };
        layers + self.layers.packed(rows)
    }

    /// The tape of a layer that is computed anew.
    fn anew(&self, rows: Rows) -> u64 {
        if self.setup.checkpointing { self.layers.tape(rows) } else { 0 }
    }

    /// Beside the tape, while a layer is computed.
    fn forward(&self, rows: Rows) -> u64 {
        self.layers.forward(rows) + self.policy.unpacked(self.setup.compute)
    }

    /// Beside the tape, while gradients pass a layer.
    fn backward(&self, rows: Rows) -> u64 {
        self.layers.backward(rows) + self.policy.dropout(rows) + self.policy.unpacked(self.setup.compute)
    }

    /// While prompts are read, and at the last tokens of answers.
    fn writing(&self, rollout: &Rollout<'_>, resident: Parts) -> [Parts; 2] {
        let Rollout { at_once, prompt, answer, .. } = *rollout;
        let (prompts, texts) = (Rows::of(at_once, prompt), Rows::of(at_once, prompt.saturating_add(answer)));
        // On the device and on the host, and the probabilities that tokens are drawn by.
        let logits = 3 * 4 * (at_once * self.setup.model.vocab_size) as u64;
        let cache = self.layers.cache(texts);
        let reading = Parts {
            cache: self.layers.cache(prompts),
            activations: self.layers.tape(prompts),
            temporary: self.forward(prompts),
            ..resident
        };
        // A layer's keys and values are copied where a token is added to them.
        [reading, Parts { cache, logits, temporary: cache / self.layers.count.max(1), ..resident }]
    }
}
