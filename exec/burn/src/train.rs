//! The training loop's one step, and its state on disk.
//!
//! [`Trainer::step`] is a plain function of the state and the batches; saving after any step and loading elsewhere
//! continues bit for bit (on the same processor features and thread count).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::batch::{Batch, IGNORED};
use crate::export::{Storage, Stored, write_json, write_safetensors};
use crate::lora;
use crate::loss::{self, LossSums, Targets};
use crate::loss_scale::LossScale;
use crate::model::parameter::{host_values, matrix};
use crate::model::{Decoder, Gradients, Packed};
use crate::optim::{AdamW, AdamWSettings, global_norm};
use crate::random::Random;
use crate::schedule::Schedule;
use crate::weights::{SafetensorsSource, TensorSource, WeightsError};

/// What a run keeps the same from its first step to its last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainSettings {
    /// The learning rate over the run.
    pub schedule: Schedule,
    /// The optimizer's constants.
    pub adamw: AdamWSettings,
    /// Gradients are scaled down to this global norm; `None` = never.
    pub max_grad_norm: Option<f64>,
    /// Seeds dropout. (Fresh weights and the data order have seeds of their own.)
    pub seed: u64,
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
    optimizer: AdamW,
    random: Random,
    steps_done: u64,
    num_tokens: u64,
    /// Where products are computed in f16.
    loss_scale: Option<LossScale>,
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
    random: Random,
    #[serde(default)]
    loss_scale: Option<LossScale>,
    settings: TrainSettings,
}

const STATE_VERSION: u32 = 1;
const STATE: &str = "state.json";
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Prefixes of the two moments' names.
const FIRST: &str = "exp_avg.";
const SECOND: &str = "exp_avg_sq.";
/// The files of a saved state.
pub const STATE_FILES: [&str; 3] = [STATE, WEIGHTS, OPTIMIZER];

impl Trainer {
    /// A trainer at step 0. What is trained is what is marked trainable in the model: adapters after
    /// [`lora::attach`], everything after [`Decoder::train_all`].
    pub fn new(model: Decoder, settings: TrainSettings) -> Self {
        Self {
            optimizer: AdamW::new(settings.adamw),
            random: Random::stream(settings.seed, "dropout"),
            model,
            settings,
            steps_done: 0,
            num_tokens: 0,
            loss_scale: None,
            data_position: 0,
        }
    }

    /// Keeps gradients within f16's range from now on. Before a state is loaded: that one's scale goes on.
    pub fn scale_loss(&mut self, scale: LossScale) {
        self.loss_scale = Some(scale);
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
        let learning_rate = self.settings.schedule.rate(self.steps_done);
        let all: usize = micro_batches.iter().map(Batch::num_targets).sum();
        let weight = 1.0 / all.max(1) as f64;
        let scale = self.loss_scale.map_or(1.0, |scale| scale.factor);
        let mut gradients = Gradients::default();
        let mut parts = Vec::with_capacity(micro_batches.len());
        let mut random = self.random.clone();
        for batch in micro_batches {
            let dropout_seed = random.next_u64();
            if batch.num_targets() > 0 {
                parts.push(self.accumulate(batch, dropout_seed, weight * scale, &mut gradients, stop)?);
            }
        }
        let (scaled_norm, clip) = global_norm(&gradients, self.settings.max_grad_norm.map(|most| most * scale));
        let grad_norm = scaled_norm / scale;
        let loss = parts.iter().fold(0.0, |sum, p| sum + p.loss) * weight;
        // Out of f16's range: the same step again, a little lower.
        if loss.is_finite() && !grad_norm.is_finite() && self.loss_scale.as_mut().is_some_and(LossScale::lower) {
            return self.step_unless(micro_batches, stop);
        }
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(TrainError::Diverged { step, loss, grad_norm });
        }
        if all > 0 {
            let parameters = self.model.parameters_mut().filter(|p| p.trainable);
            self.optimizer.update(parameters, &mut gradients, clip / scale, learning_rate);
        }
        if let Some(scale) = &mut self.loss_scale {
            scale.step();
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
        let targets = Targets::of(batch, &packed);
        let (hidden, tape) = self.model.forward_unless(&packed, &mut go_on)?;
        let (sums, d_hidden) = loss::backward(&hidden, self.model.head(), &targets, weight, gradients);
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
        let mut moments = Vec::new();
        for parameter in trainable() {
            if let Some((m, v)) = self.optimizer.moments.get(&parameter.name) {
                for (part, tensor) in [(FIRST, m), (SECOND, v)] {
                    moments.push(Stored {
                        name: format!("{part}{}", parameter.name),
                        shape: parameter.shape.clone(),
                        values: Box::new(|| host_values(tensor.clone())),
                    });
                }
            }
        }
        write_safetensors(&folder.join(OPTIMIZER), moments, Storage::F32)?;
        let state = StateFile {
            version: STATE_VERSION,
            steps_done: self.steps_done,
            num_tokens: self.num_tokens,
            data_position: self.data_position,
            optimizer_updates: self.optimizer.updates,
            random: self.random.clone(),
            loss_scale: self.loss_scale,
            settings: self.settings,
        };
        let path = folder.join(STATE);
        let json = serde_json::to_value(&state)
            .map_err(|e| TrainError::State { path: path.clone(), detail: e.to_string() })?;
        write_json(&path, &json)?;
        Ok(())
    }

    /// Continues from a state that [`Self::save_state`] wrote for the same model and settings. On an error the trainer
    /// is unchanged in all but, perhaps, weights, and must not be used.
    pub fn load_state(&mut self, folder: &Path) -> Result<(), TrainError> {
        let path = folder.join(STATE);
        let wrong = |detail: String| TrainError::State { path: path.clone(), detail };
        let text = std::fs::read(&path).map_err(|source| WeightsError::Io { path: path.clone(), source })?;
        let state: StateFile = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        if state.version != STATE_VERSION {
            return Err(wrong(format!("version {}, this program reads {STATE_VERSION}", state.version)));
        }
        if state.settings != self.settings {
            let differences = differences(&state.settings, &self.settings).map_err(|e| wrong(e.to_string()))?;
            return Err(wrong(format!("made with other settings: {}", differences.join("; "))));
        }
        let weights = SafetensorsSource::open_file(&folder.join(WEIGHTS))?;
        let optimizer = SafetensorsSource::open_file(&folder.join(OPTIMIZER))?;
        let moments = self.read_moments(&optimizer, state.optimizer_updates > 0)?;
        lora::load_trainable(&mut self.model, &weights)?;
        self.optimizer.moments = moments;
        self.optimizer.updates = state.optimizer_updates;
        self.random = state.random;
        self.loss_scale = state.loss_scale.or(self.loss_scale);
        self.steps_done = state.steps_done;
        self.num_tokens = state.num_tokens;
        self.data_position = state.data_position;
        Ok(())
    }

    fn read_moments(&self, source: &SafetensorsSource, updated: bool) -> Result<Moments, WeightsError> {
        let mut moments = Moments::new();
        let mut problems = Vec::new();
        for parameter in self.model.parameters().filter(|p| p.trainable && updated) {
            let mut read = |part: &str| -> Result<Option<Tensor<2>>, WeightsError> {
                let name = format!("{part}{}", parameter.name);
                let (found, shape) = (source.shape(&name), &parameter.shape);
                if found.as_ref() != Some(shape) {
                    problems.push(format!("{name}: found shape {found:?}, expected {shape:?}"));
                    return Ok(None);
                }
                let values = source.read_f32(&name)?;
                Ok(Some(matrix(values, shape, self.model.device())))
            };
            if let (Some(m), Some(v)) = (read(FIRST)?, read(SECOND)?) {
                moments.insert(parameter.name.clone(), (m, v));
            }
        }
        match problems.is_empty() {
            true => Ok(moments),
            false => Err(WeightsError::Mismatch(problems)),
        }
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

type Moments = BTreeMap<String, (Tensor<2>, Tensor<2>)>;

/// Sums over held-out batches, without gradients.
pub fn evaluate(model: &Decoder, batches: &[Batch]) -> Result<LossSums, TrainError> {
    let mut sums = LossSums::default();
    for batch in batches {
        check(batch, model.config.vocab_size)?;
        if batch.num_targets() > 0 {
            let packed = Packed::new(batch, &model.config, model.device());
            let targets = Targets::of(batch, &packed);
            sums += loss::evaluate(&model.hidden(&packed), model.head(), &targets);
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
