//! The training loop's one step, and its state on disk.
//!
//! [`Trainer::step_on`] is a plain function of the state, the [`Objective`] and the batches; saving after any step and
//! loading elsewhere continues bit for bit (on the same processor features and thread count).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::batch::Batch;
use crate::export::{Storage, Stored, write_json, write_safetensors};
use crate::lora;
use crate::loss_scale::LossScale;
use crate::model::Decoder;
use crate::model::parameter::Parameters;
use crate::objective::{CrossEntropy, Figures, Objective};
use crate::optim::{Optimizer, OptimizerSettings, global_norm};
use crate::parallel::{Passes, Replica, Share};
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
    /// Strength of the noise on embeddings in training (NEFTune); `None` = none.
    pub neftune_noise_alpha: Option<f64>,
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
    #[error(
        "step {step}: loss {loss:.4}, gradient norm {grad_norm:.4}: training diverged (hint: lower the learning rate)"
    )]
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
    /// Of the model, each on a device of its own.
    replicas: Vec<Replica<M>>,
    settings: TrainSettings,
    optimizer: Optimizer,
    /// Of a schedule that looks at a metric.
    plateau: Option<Plateau>,
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
    plateau: Option<Plateau>,
    random: Random,
    #[serde(default)]
    loss_scale: Option<LossScale>,
    settings: TrainSettings,
}

/// What every version of it has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

const STATE_VERSION: u32 = 2;
const STATE: &str = "state.json";
/// What is trained, in a saved state.
pub const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
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
    pub fn step_unless(
        &mut self,
        micro_batches: &[Batch],
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<StepReport, TrainError> {
        self.step_on(&CrossEntropy::default(), micro_batches, stop)
    }
}

impl<M: Parameters> Trainer<M> {
    /// A trainer at step 0. What is trained is what is marked trainable in the model: adapters after
    /// [`lora::attach`], everything after [`Decoder::train_all`].
    pub fn new(model: M, settings: TrainSettings) -> Self {
        Self {
            optimizer: Optimizer::new(settings.optimizer),
            plateau: matches!(settings.schedule.kind, ScheduleKind::ReduceLrOnPlateau(_))
                .then(|| Plateau::new(settings.schedule.peak)),
            random: Random::stream(settings.seed, "dropout"),
            model,
            replicas: Vec::new(),
            settings,
            steps_done: 0,
            num_tokens: 0,
            loss_scale: None,
            data_position: 0,
        }
    }

    /// Computes on further devices from now on ([`crate::parallel`]): `replicas` are this model on each of them, with
    /// whatever values. The state is that of a trainer without.
    pub fn share_among(&mut self, replicas: Vec<M>) {
        self.replicas = replicas.into_iter().map(Replica::new).collect();
    }

    /// Devices that it computes on.
    pub fn devices(&self) -> usize {
        1 + self.replicas.len()
    }

    /// Keeps gradients within f16's range from now on. Before a state is loaded: that one's scale goes on.
    pub fn scale_loss(&mut self, scale: LossScale) {
        self.loss_scale = Some(scale);
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

    /// The rate at a point of the schedule.
    fn learning_rate(&self, scheduled: u64) -> f64 {
        self.plateau.map_or_else(|| self.settings.schedule.rate(scheduled), |plateau| plateau.rate)
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
        stop: &(dyn Fn() -> bool + Sync),
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
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<StepReport, TrainError> {
        for batch in micro_batches {
            objective.check(&self.model, batch)?;
        }
        let step = self.steps_done + 1;
        let learning_rate = self.learning_rate(scheduled);
        // Folded from 0: std's sum of nothing is −0.
        let weight = micro_batches.iter().fold(0.0, |sum, batch| sum + objective.weight(batch));
        let scale = if weight > 0.0 { 1.0 / weight } else { 1.0 };
        let loss_scale = self.loss_scale.map_or(1.0, |scale| scale.factor);
        let mut random = self.random.clone();
        let mut shares: Vec<Share<'_, O::Batch>> =
            micro_batches.iter().map(|batch| Share { batch, dropout_seed: random.next_u64() }).collect();
        shares.retain(|share| objective.weight(share.batch) > 0.0);
        let passes = Passes {
            objective,
            scale: scale * loss_scale,
            neftune_noise_alpha: self.settings.neftune_noise_alpha,
            stop,
        };
        let (mut gradients, parts) = passes.over(&shares, &self.model, &mut self.replicas)?;
        let most = self.settings.max_grad_norm.map(|most| most * loss_scale);
        let (scaled_norm, clip) = global_norm(&gradients, most);
        let grad_norm = scaled_norm / loss_scale;
        let loss = parts.iter().fold(0.0, |sum, p| sum + p.loss) * scale;
        // Out of f16's range: the same step again, a little lower.
        if loss.is_finite() && !grad_norm.is_finite() && self.loss_scale.as_mut().is_some_and(LossScale::lower) {
            // The next try makes its own: two sets of gradients may not fit.
            drop(gradients);
            return self.step_at(scheduled, objective, micro_batches, stop);
        }
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(TrainError::Diverged { step, loss, grad_norm });
        }
        if weight > 0.0 {
            let parameters = self.model.parameters_mut().filter(|p| p.trainable);
            self.optimizer.update(parameters, &mut gradients, clip / loss_scale, learning_rate);
        }
        if let Some(scale) = &mut self.loss_scale {
            scale.step();
        }
        self.random = random;
        self.steps_done = step;
        self.num_tokens += micro_batches.iter().map(|b| objective.tokens(b) as u64).sum::<u64>();
        let figures = means(parts.into_iter().map(|part| part.figures));
        Ok(StepReport { step, loss, weight, grad_norm, learning_rate, num_tokens: self.num_tokens, figures })
    }

    /// Writes what is trained as it is now, without the rest of the state, as a safetensors file.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn save_weights(&self, path: &Path) -> Result<(), TrainError> {
        let trainable = self.model.parameters().filter(|p| p.trainable);
        Ok(write_safetensors(path, trainable.map(Stored::of).collect(), Storage::F32)?)
    }

    /// Puts back what [`Self::save_weights`] wrote. The optimizer stays as it is.
    ///
    /// # Errors
    /// A file that is none, or of another model.
    pub fn load_weights(&mut self, path: &Path) -> Result<(), TrainError> {
        Ok(lora::load_trainable(&mut self.model, &SafetensorsSource::open_file(path)?)?)
    }

    /// Writes the state into an existing folder as [`STATE_FILES`]; the bytes depend on the state only. The caller
    /// syncs and hashes.
    pub fn save_state(&self, folder: &Path) -> Result<(), TrainError> {
        self.save_weights(&folder.join(WEIGHTS))?;
        self.optimizer.save(&folder.join(OPTIMIZER), self.model.parameters().filter(|p| p.trainable))?;
        let state = StateFile {
            version: STATE_VERSION,
            steps_done: self.steps_done,
            num_tokens: self.num_tokens,
            data_position: self.data_position,
            optimizer_updates: self.optimizer.updates(),
            plateau: self.plateau,
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
        let trained = self.model.parameters().filter(|p| p.trainable);
        self.optimizer.load(&folder.join(OPTIMIZER), trained, state.optimizer_updates)?;
        self.load_weights(&folder.join(WEIGHTS))?;
        self.plateau = state.plateau;
        self.random = state.random;
        self.loss_scale = state.loss_scale.or(self.loss_scale);
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
