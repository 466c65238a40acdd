//! The training loop's one step, and its state on disk.
//!
//! [`Trainer::step`] is a plain function of the state and the batches; saving after any step and loading elsewhere
//! continues bit for bit (on the same processor features and thread count).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::batch::{Batch, IGNORED};
use crate::export::{Storage, Stored, write_json, write_safetensors};
use crate::lora;
use crate::loss::{self, LossSums, Targets};
use crate::model::packed::EmbeddingNoise;
use crate::model::{Decoder, Gradients, Packed};
use crate::optim::{Optimizer, OptimizerSettings, global_norm};
use crate::random::Random;
use crate::schedule::{Plateau, Schedule, ScheduleKind};
use crate::weights::{SafetensorsSource, WeightsError};

/// What a run keeps the same from its first step to its last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// The optimizer and its constants.
    pub optimizer: OptimizerSettings,
    /// Gradients are scaled down to this global norm; `None` = never.
    pub max_grad_norm: Option<f64>,
    /// Seeds dropout and noise. (Fresh weights and the data order have seeds of their own.)
    pub seed: u64,
    /// Strength of the noise on embeddings ([`EmbeddingNoise`]); `None` = none.
    pub neftune_noise_alpha: Option<f64>,
    /// The share of the loss that is spread over the vocabulary ([`loss`]); 0 = none.
    pub label_smoothing_factor: f64,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step's number, from 1.
    pub step: u64,
    /// Mean cross-entropy over the step's targets, in nats.
    pub loss: f64,
    /// How many targets that mean is over.
    pub num_targets: usize,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The rate used in this step.
    pub learning_rate: f64,
    /// Real tokens seen since the run began.
    pub num_tokens: u64,
    /// Share of targets with the highest logit, averaged over micro-batches.
    pub mean_token_accuracy: f64,
    /// Mean entropy at target positions in nats, averaged over micro-batches.
    pub entropy: f64,
}

/// Why a step or a state file failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The numbers left the range of floats; the weights are as before this step.
    #[error("step {step}: loss {loss}, gradient norm {grad_norm}: training diverged (hint: lower the learning rate)")]
    Diverged {
        /// The step's number, from 1.
        step: u64,
        /// The step's loss.
        loss: f64,
        /// The step's gradient norm.
        grad_norm: f64,
    },
    /// A batch does not fit the model.
    #[error("batch row {row}: {problem}")]
    Batch {
        /// The row within its micro-batch.
        row: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// Tensors could not be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// It was told to stop; the trainer is as before this step.
    #[error("stopped as asked")]
    Interrupted,
    /// state.json is damaged or does not belong to this run.
    #[error("{}: {detail}", path.display())]
    State {
        /// The file concerned.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

/// A model in training.
pub struct Trainer {
    model: Decoder,
    settings: TrainSettings,
    optimizer: Optimizer,
    /// Of a schedule that looks at a metric.
    plateau: Option<Plateau>,
    random: Random,
    steps_done: u64,
    num_tokens: u64,
    /// Where the caller's data stands; kept with the state, otherwise untouched.
    pub data_position: u64,
}

/// Everything of a trainer that is no tensor.
#[derive(Serialize, Deserialize)]
struct StateFile {
    version: u32,
    steps_done: u64,
    num_tokens: u64,
    data_position: u64,
    optimizer_updates: u64,
    plateau: Option<Plateau>,
    random: Random,
    settings: TrainSettings,
}

/// What every version of it has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

const STATE_VERSION: u32 = 2;
const STATE: &str = "state.json";
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// The files of a saved state.
pub const STATE_FILES: [&str; 3] = [STATE, WEIGHTS, OPTIMIZER];

impl Trainer {
    /// A trainer at step 0. What is trained is what is marked trainable in the model: adapters after
    /// [`lora::attach`], everything after [`Decoder::train_all`].
    pub fn new(model: Decoder, settings: TrainSettings) -> Self {
        Self {
            optimizer: Optimizer::new(settings.optimizer),
            plateau: matches!(settings.schedule.kind, ScheduleKind::ReduceLrOnPlateau(_))
                .then(|| Plateau::new(settings.schedule.peak)),
            random: Random::stream(settings.seed, "dropout"),
            model,
            settings,
            steps_done: 0,
            num_tokens: 0,
            data_position: 0,
        }
    }

    /// The model as it is now.
    pub fn model(&self) -> &Decoder {
        &self.model
    }

    /// The model, at the end of training.
    pub fn into_model(self) -> Decoder {
        self.model
    }

    /// Steps done since the run began, resumed ones included.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// Bytes of what the optimizer remembers.
    pub fn optimizer_bytes(&self) -> usize {
        self.optimizer.state_bytes()
    }

    /// Tells a schedule that looks at a metric what was measured; others do not care.
    pub fn observe(&mut self, metric: f64) {
        if let (Some(plateau), ScheduleKind::ReduceLrOnPlateau(settings)) =
            (&mut self.plateau, &self.settings.schedule.kind)
        {
            plateau.observe(metric, settings);
        }
    }

    /// The rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.plateau.map_or_else(|| self.settings.schedule.rate(self.steps_done), |plateau| plateau.rate)
    }

    /// One optimizer step. The loss is the sum over all micro-batches divided by all their targets. A step without a
    /// single target counts, but moves nothing.
    pub fn step(&mut self, micro_batches: &[Batch]) -> Result<StepReport, TrainError> {
        self.step_unless(micro_batches, &|| false)
    }

    /// As [`Self::step`], asking before each layer of each pass whether to stop: then it is as if the step had not begun.
    pub fn step_unless(&mut self, micro_batches: &[Batch], stop: &dyn Fn() -> bool) -> Result<StepReport, TrainError> {
        for batch in micro_batches {
            check(batch, self.model.config.vocab_size)?;
        }
        let step = self.steps_done + 1;
        let learning_rate = self.learning_rate();
        let all: usize = micro_batches.iter().map(Batch::num_targets).sum();
        let weight = 1.0 / all.max(1) as f64;
        let mut gradients = Gradients::default();
        let mut parts = Vec::with_capacity(micro_batches.len());
        let mut random = self.random.clone();
        for batch in micro_batches {
            let dropout_seed = random.next_u64();
            if batch.num_targets() > 0 {
                parts.push(self.accumulate(batch, dropout_seed, weight, &mut gradients, stop)?);
            }
        }
        let (grad_norm, clip) = global_norm(&gradients, self.settings.max_grad_norm);
        let loss = parts.iter().fold(0.0, |sum, p| sum + p.loss) * weight;
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(TrainError::Diverged { step, loss, grad_norm });
        }
        if all > 0 {
            let parameters = self.model.parameters_mut().filter(|p| p.trainable);
            self.optimizer.update(parameters, &mut gradients, clip, learning_rate);
        }
        self.random = random;
        self.steps_done = step;
        self.num_tokens += micro_batches.iter().map(|b| b.num_tokens() as u64).sum::<u64>();
        let mean = |of: fn(&LossSums) -> f64| {
            let sum = parts.iter().fold(0.0, |sum, p| sum + of(p) / p.targets as f64);
            sum / parts.len().max(1) as f64
        };
        Ok(StepReport {
            step,
            loss,
            num_targets: all,
            grad_norm,
            learning_rate,
            num_tokens: self.num_tokens,
            mean_token_accuracy: mean(|p| p.correct),
            entropy: mean(|p| p.entropy),
        })
    }

    fn accumulate(
        &self,
        batch: &Batch,
        dropout_seed: u64,
        weight: f64,
        gradients: &mut Gradients,
        stop: &dyn Fn() -> bool,
    ) -> Result<LossSums, TrainError> {
        let mut go_on = || if stop() { Err(TrainError::Interrupted) } else { Ok(()) };
        let mut packed = Packed::new(batch, &self.model.config, self.model.device());
        packed.dropout_seed = Some(dropout_seed);
        packed.embedding_noise = self.settings.neftune_noise_alpha.map(|alpha| {
            let length = batch.input_ids.first().map_or(0, Vec::len);
            EmbeddingNoise::new(alpha, length, self.model.config.hidden_size, dropout_seed)
        });
        let targets = Targets::of(batch, &packed);
        let (hidden, tape) = self.model.forward_unless(&packed, &mut go_on)?;
        let smoothing = self.settings.label_smoothing_factor;
        let (sums, d_hidden) = loss::backward(&hidden, self.model.head(), &targets, smoothing, weight, gradients);
        drop(hidden);
        self.model.backward_unless(&packed, tape, d_hidden, gradients, &mut go_on)?;
        Ok(sums)
    }

    /// Writes the state into an existing folder as [`STATE_FILES`]; the bytes depend on the state only. The caller
    /// syncs and hashes.
    pub fn save_state(&self, folder: &Path) -> Result<(), TrainError> {
        let trainable = || self.model.parameters().filter(|p| p.trainable);
        let weights = trainable().map(Stored::of).collect();
        write_safetensors(&folder.join(WEIGHTS), weights, Storage::F32)?;
        self.optimizer.save(&folder.join(OPTIMIZER), trainable())?;
        let state = StateFile {
            version: STATE_VERSION,
            steps_done: self.steps_done,
            num_tokens: self.num_tokens,
            data_position: self.data_position,
            optimizer_updates: self.optimizer.updates(),
            plateau: self.plateau,
            random: self.random.clone(),
            settings: self.settings,
        };
        let path = folder.join(STATE);
        let json = serde_json::to_value(&state)
            .map_err(|e| TrainError::State { path: path.clone(), detail: e.to_string() })?;
        write_json(&path, &json)?;
        Ok(())
    }

    /// Continues from a state that [`Self::save_state`] wrote for the same model and settings. After an error the trainer
    /// must not be used.
    pub fn load_state(&mut self, folder: &Path) -> Result<(), TrainError> {
        let path = folder.join(STATE);
        let wrong = |detail: String| TrainError::State { path: path.clone(), detail };
        let text = std::fs::read(&path).map_err(|source| WeightsError::Io { path: path.clone(), source })?;
        let Version { version } = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        if version != STATE_VERSION {
            return Err(wrong(format!("version {version}, this program reads {STATE_VERSION}")));
        }
        let state: StateFile = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        if state.settings != self.settings {
            let differences = differences(&state.settings, &self.settings).map_err(|e| wrong(e.to_string()))?;
            return Err(wrong(format!("made with other settings: {}", differences.join("; "))));
        }
        let weights = SafetensorsSource::open_file(&folder.join(WEIGHTS))?;
        let trained = self.model.parameters().filter(|p| p.trainable);
        self.optimizer.load(&folder.join(OPTIMIZER), trained, state.optimizer_updates)?;
        lora::load_trainable(&mut self.model, &weights)?;
        self.plateau = state.plateau;
        self.random = state.random;
        self.steps_done = state.steps_done;
        self.num_tokens = state.num_tokens;
        self.data_position = state.data_position;
        Ok(())
    }
}

/// What two runs' settings differ in, for people.
fn differences(saved: &TrainSettings, mine: &TrainSettings) -> Result<Vec<String>, serde_json::Error> {
    fn walk(at: &str, saved: &Value, mine: &Value, out: &mut Vec<String>) {
        match (saved, mine) {
            (Value::Object(saved), Value::Object(mine)) => {
                for (key, value) in saved {
                    let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                    walk(&at, value, mine.get(key).unwrap_or(&Value::Null), out);
                }
            }
            _ if saved != mine => out.push(format!("{at} was {saved}, is now {mine}")),
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk("", &serde_json::to_value(saved)?, &serde_json::to_value(mine)?, &mut out);
    Ok(out)
}

/// Sums over held-out batches, without gradients; the loss with a label smoothing (0 for none).
pub fn evaluate(model: &Decoder, batches: &[Batch], smoothing: f64) -> Result<LossSums, TrainError> {
    let mut sums = LossSums::default();
    for batch in batches {
        check(batch, model.config.vocab_size)?;
        if batch.num_targets() > 0 {
            let packed = Packed::new(batch, &model.config, model.device());
            let targets = Targets::of(batch, &packed);
            sums += loss::evaluate(&model.hidden(&packed), model.head(), &targets, smoothing);
        }
    }
    Ok(sums)
}

/// A token outside the vocabulary would be an out-of-bounds read on a device; it is an error here.
fn check(batch: &Batch, vocab_size: usize) -> Result<(), TrainError> {
    let wrong = |row, problem| Err(TrainError::Batch { row, problem });
    let known = |id: &i64| (0..vocab_size as i64).contains(id);
    for (row, ids) in batch.input_ids.iter().enumerate() {
        let (mask, labels) = match (batch.attention_mask.get(row), batch.labels.get(row)) {
            (Some(m), Some(l)) if m.len() == ids.len() && l.len() == ids.len() => (m, l),
            _ => return wrong(row, "ids, mask and labels differ in length".into()),
        };
        for (id, (mask, label)) in ids.iter().zip(mask.iter().zip(labels)) {
            if *mask != 0 && !known(id) {
                return wrong(row, format!("token id {id}, the vocabulary has {vocab_size}"));
            }
            if *label != IGNORED && (*mask == 0 || !known(label)) {
                return wrong(row, format!("label {label} at padding or outside the vocabulary"));
            }
        }
    }
    Ok(())
}
