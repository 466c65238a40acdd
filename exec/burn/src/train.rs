//! The training loop's one step, and its state on disk.
//!
//! [`Trainer::step_on`] is a plain function of the state, the [`Objective`] and the batches; saving after any step and
//! loading elsewhere continues bit for bit (on the same processor features and thread count).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::batch::Batch;
use crate::export::{Storage, Stored, write_json, write_safetensors};
use crate::lora;
use crate::model::parameter::{Parameters, host_values, matrix};
use crate::model::{Decoder, Gradients};
use crate::objective::{CrossEntropy, Figures, Objective, Pass};
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step's number, from 1.
    pub step: u64,
    /// The objective's mean over the step; cross-entropy in nats.
    pub loss: f64,
    /// The weights that this mean is over; for cross-entropy the number of targets.
    pub weight: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The rate used in this step.
    pub learning_rate: f64,
    /// Real tokens seen since the run began.
    pub num_tokens: u64,
    /// The objective's own figures, averaged over the micro-batches that had any; for cross-entropy
    /// `mean_token_accuracy` and `entropy`.
    pub figures: Figures,
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

/// A model in training: a [`Decoder`], or anything else made of named parameters. A clone is a way back: it shares all
/// values until a step replaces them.
#[derive(Clone)]
pub struct Trainer<M = Decoder> {
    model: M,
    settings: TrainSettings,
    optimizer: AdamW,
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
    random: Random,
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
    /// [`Self::step_on`] of [`CrossEntropy`].
    ///
    /// # Errors
    /// As there.
    pub fn step(&mut self, micro_batches: &[Batch]) -> Result<StepReport, TrainError> {
        self.step_unless(micro_batches, &|| false)
    }

    /// As [`Self::step`], asking before each layer of each pass whether to stop: then it is as if the step had not begun.
    ///
    /// # Errors
    /// As there, and [`TrainError::Interrupted`].
    pub fn step_unless(&mut self, micro_batches: &[Batch], stop: &dyn Fn() -> bool) -> Result<StepReport, TrainError> {
        self.step_on(&CrossEntropy, micro_batches, stop)
    }
}

impl<M: Parameters> Trainer<M> {
    /// A trainer at step 0. What is trained is what is marked trainable in the model: adapters after
    /// [`lora::attach`], everything after [`Decoder::train_all`].
    pub fn new(model: M, settings: TrainSettings) -> Self {
        Self {
            optimizer: AdamW::new(settings.adamw),
            random: Random::stream(settings.seed, "dropout"),
            model,
            settings,
            steps_done: 0,
            num_tokens: 0,
            data_position: 0,
        }
    }

    /// The model as it is now.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model, at the end of training.
    pub fn into_model(self) -> M {
        self.model
    }

    /// Real tokens seen since the run began.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Steps done since the run began, resumed ones included.
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// One optimizer step. The loss is the mean over all micro-batches, weighted as the objective says. A step without
    /// any weight counts, but moves nothing. Asks `stop` before each layer of each pass: then it is as if the step had not
    /// begun.
    ///
    /// # Errors
    /// A batch that does not fit, [`TrainError::Diverged`], [`TrainError::Interrupted`]; all leave the trainer as it was.
    pub fn step_on<O: Objective<Model = M>>(
        &mut self,
        objective: &O,
        micro_batches: &[O::Batch],
        stop: &dyn Fn() -> bool,
    ) -> Result<StepReport, TrainError> {
        self.step_at(self.steps_done, objective, micro_batches, stop)
    }

    /// As [`Self::step_on`] at the learning rate of another point of the schedule: for methods whose schedule counts
    /// something else than optimizer steps (PPO's counts rollouts, with several optimizer steps on each).
    ///
    /// # Errors
    /// As there.
    pub fn step_at<O: Objective<Model = M>>(
        &mut self,
        scheduled: u64,
        objective: &O,
        micro_batches: &[O::Batch],
        stop: &dyn Fn() -> bool,
    ) -> Result<StepReport, TrainError> {
        for batch in micro_batches {
            objective.check(&self.model, batch)?;
        }
        let step = self.steps_done + 1;
        let learning_rate = self.settings.schedule.rate(scheduled);
        // Folded from 0: std's sum of nothing is −0.
        let weight = micro_batches.iter().fold(0.0, |sum, batch| sum + objective.weight(batch));
        let scale = if weight > 0.0 { 1.0 / weight } else { 1.0 };
        let mut gradients = Gradients::default();
        let mut parts = Vec::with_capacity(micro_batches.len());
        let mut random = self.random.clone();
        for batch in micro_batches {
            let dropout_seed = random.next_u64();
            if objective.weight(batch) > 0.0 {
                let mut pass = Pass { scale, dropout_seed, gradients: &mut gradients, stop };
                parts.push(objective.accumulate(&self.model, batch, &mut pass)?);
            }
        }
        let (grad_norm, clip) = global_norm(&gradients, self.settings.max_grad_norm);
        let loss = parts.iter().fold(0.0, |sum, p| sum + p.loss) * scale;
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(TrainError::Diverged { step, loss, grad_norm });
        }
        if weight > 0.0 {
            let parameters = self.model.parameters_mut().filter(|p| p.trainable);
            self.optimizer.update(parameters, &mut gradients, clip, learning_rate);
        }
        self.random = random;
        self.steps_done = step;
        self.num_tokens += micro_batches.iter().map(|b| objective.tokens(b) as u64).sum::<u64>();
        let figures = means(parts.into_iter().map(|part| part.figures));
        Ok(StepReport { step, loss, weight, grad_norm, learning_rate, num_tokens: self.num_tokens, figures })
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
                Ok(Some(matrix(values, shape, &parameter.value.device())))
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

/// The mean of each figure over those that have it.
fn means(parts: impl Iterator<Item = Figures>) -> Figures {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (name, value) in parts.flatten() {
        let (sum, count) = sums.entry(name).or_default();
        *sum += value;
        *count += 1.0;
    }
    sums.into_iter().map(|(name, (sum, count))| (name, sum / count)).collect()
}
