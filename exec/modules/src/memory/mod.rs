//! What a training task will need of memory: said before its first step and at a dry run, and held against what there is.
//!
//! | file | holds |
//! |---|---|
//! | `sizes` | how large the task's batches are |
//! | `fitting` | which other settings would fit |
//! | `words` | the table in the log, and a refusal |
//! | `device` | what a device that runs out of memory means |
//!
//! The arithmetic is [`mloc_burn::memory`]'s; here stands what a task's settings mean for it.

pub mod device;
mod fitting;
pub mod sizes;
mod words;

use std::path::Path;

use mloc_burn::{
    lora::{LoraConfig, LoraError},
    memory::{self, Method, Plan, Reference, Rollout, Setup, Trained},
    model::{DecoderConfig, Held},
};
use mloc_core::task::{
    TaskSpec,
    kind::TaskType,
    settings::{self, Optimizer, Precision, Training},
    spec::{Adapter, AdapterKind},
};
use mloc_exec::{DeviceChoice, Inputs, ModuleError, RunContext};

use self::sizes::Sizes;
use crate::{adapter, base_model, fatal, steering};

/// The program itself: its code, threads, tokenizer, buffers of files.
pub const PROCESS_BYTES: u64 = 96 << 20;
/// CUDA's context, the kernels, and what pools of device memory hold beyond what is asked of them.
const CONTEXT_BYTES: u64 = 768 << 20;

/// Configs of a task's models.
#[derive(Clone, Debug)]
pub struct Models {
    /// What is trained.
    pub model: DecoderConfig,
    /// What it is held to, where that is a model of its own.
    pub reference: Option<DecoderConfig>,
    /// The reward model.
    pub reward: Option<DecoderConfig>,
    /// What values start from, where that is not the reward model.
    pub value: Option<DecoderConfig>,
}

impl Models {
    /// Those of what was pulled; the weights stay where they are.
    ///
    /// # Errors
    /// Configs that are none.
    pub fn read(model: DecoderConfig, inputs: &Inputs) -> Result<Self, ModuleError> {
        let of = |path: &Option<std::path::PathBuf>| path.as_deref().map(base_model::config_of).transpose();
        let (reference, reward, value) = (of(&inputs.reference)?, of(&inputs.reward)?, of(&inputs.value)?);
        Ok(Self { model, reference, reward, value })
    }
}

/// What a task computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whether these are GPUs, each with memory of its own; else all are in the host's.
    pub on_gpu: bool,
    /// How many share each step: every one has the model and micro-batches of its own, the first the optimizer too.
    pub devices: usize,
}

impl Place {
    fn of(ctx: &RunContext) -> Self {
        match ctx.device() {
            DeviceChoice::Cuda { count } => Self { on_gpu: true, devices: count.max(1) },
            DeviceChoice::Cpu { count } => Self { on_gpu: false, devices: count.max(1) },
            DeviceChoice::Simulated { .. } => Self { on_gpu: false, devices: 1 },
        }
    }

    /// As a task asks for it.
    fn asked(spec: &TaskSpec) -> Self {
        match &spec.request.gpu {
            Some(gpu) => Self { on_gpu: true, devices: (gpu.count as usize).max(1) },
            None => Self { on_gpu: false, devices: 1 },
        }
    }
}

/// A training task, as far as its memory depends on it.
#[derive(Clone, Debug)]
pub struct Task {
    spec: TaskSpec,
    training: Training,
    models: Models,
    place: Place,
}

/// The settings that decide, each of which could be another.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    batch: usize,
    accumulation: usize,
    checkpointing: bool,
    precision: Precision,
    adapter: Option<AdapterKind>,
    eight_bit: bool,
    /// Longer rows are cut.
    max_length: Option<usize>,
}

impl Task {
    /// A task with the configs of its models.
    pub fn new(spec: &TaskSpec, mut models: Models, place: Place) -> Self {
        if spec.task_type == TaskType::Rm && models.model.num_labels.is_none() {
            models.model = models.model.with_labels(1);
        }
        Self { training: Training::of(spec), spec: spec.clone(), models, place }
    }

    /// What its first device needs as it is, with batches of these sizes.
    ///
    /// # Errors
    /// Settings of an adapter that mean nothing on the model.
    pub fn plan(&self, sizes: &Sizes) -> Result<Plan, LoraError> {
        self.plan_of(self.choice(), sizes)
    }

    /// Bytes of a plan with what is there beside its tensors: on the first of several GPUs, or in the host's memory.
    pub fn needs(&self, plan: &Plan) -> u64 {
        let others = if self.place.on_gpu { 0 } else { self.replica(plan) * (self.place.devices as u64 - 1) };
        plan.peak().saturating_add(others).saturating_add(self.beside())
    }

    /// Bytes on each further one of several GPUs: the optimizer is on the first.
    fn needs_of_others(&self, plan: &Plan) -> u64 {
        self.needs(plan).saturating_sub(plan.parts.optimizer)
    }

    /// What a further device takes in the same memory: what is not moved is shared.
    fn replica(&self, plan: &Plan) -> u64 {
        let parts = &plan.parts;
        // What is trained, and its gradient.
        let trained = 2 * 4 * plan.trainable;
        trained + parts.activations + parts.logits + parts.temporary
    }

    fn beside(&self) -> u64 {
        if self.place.on_gpu { CONTEXT_BYTES } else { PROCESS_BYTES }
    }

    fn adapter(&self) -> Option<&Adapter> {
        self.spec.model.as_ref().and_then(|model| model.adapter.as_ref())
    }

    fn choice(&self) -> Choice {
        Choice {
            batch: self.training.per_device_train_batch_size.max(1),
            accumulation: self.training.gradient_accumulation_steps.max(1),
            checkpointing: self.training.gradient_checkpointing,
            precision: self.training.precision,
            adapter: self.adapter().map(|adapter| adapter.kind),
            eight_bit: self.training.optimizer == Optimizer::AdamW8bit,
            max_length: None,
        }
    }

    fn plan_of(&self, choice: Choice, sizes: &Sizes) -> Result<Plan, LoraError> {
        let scores = self.models.model.num_labels.is_some();
        // A task without one might be given one: with its defaults.
        let lora = choice.adapter.map(|_| match self.adapter() {
            Some(adapter) => adapter::lora_config(adapter, scores),
            None => LoraConfig::default(),
        });
        let held = match (choice.adapter, self.adapter()) {
            (Some(AdapterKind::Qlora), adapter) => Held::FourBit(adapter::four_bit_of(adapter)),
            (Some(AdapterKind::Lora), _) => adapter::frozen(choice.precision),
            (None, _) => Held::F32,
        };
        let mut training = self.training.clone();
        if choice.eight_bit {
            training.optimizer = Optimizer::AdamW8bit;
        }
        let setup = Setup {
            model: &self.models.model,
            trained: lora.as_ref().map_or(Trained::All, Trained::Adapter),
            held,
            compute: adapter::computed_in(choice.precision, !self.place.on_gpu),
            optimizer: steering::optimizer(&training),
            checkpointing: choice.checkpointing,
            rows: sizes.rows(choice.batch, choice.max_length),
            // Gradients of all devices meet on the first.
            micro_batches: choice.accumulation.saturating_mul(self.place.devices),
            measured: sizes.measured(choice.max_length),
            method: self.method(sizes),
            on_gpu: self.place.on_gpu,
        };
        memory::plan(&setup)
    }

    fn method(&self, sizes: &Sizes) -> Method<'_> {
        let models = &self.models;
        let reference = match &models.reference {
            Some(config) => Reference::Model(config),
            None => Reference::Before,
        };
        let rollout = |at_once, scored_at_once, answer| Rollout {
            at_once,
            scored_at_once,
            prompt: sizes.prompt(),
            answer,
            reward: models.reward.as_ref(),
        };
        match self.spec.task_type {
            TaskType::Rm => Method::Rewards,
            TaskType::Dpo => {
                let dpo = settings::Dpo::of(&self.spec);
                let free = dpo.reference_free || dpo.precompute_ref_log_probs;
                Method::Preferences(if free { Reference::None } else { reference })
            }
            TaskType::Grpo => {
                let grpo = settings::Grpo::of(&self.spec);
                let reference = if grpo.beta == 0.0 { Reference::None } else { reference };
                let scored = self.training.per_device_train_batch_size;
                Method::Groups(reference, rollout(grpo.generation_batch_size, scored, grpo.max_completion_length))
            }
            TaskType::Ppo => {
                let ppo = settings::Ppo::of(&self.spec);
                let at_once = ppo.local_rollout_forward_batch_size;
                let critic = models.value.as_ref().or(models.reward.as_ref()).filter(|_| !ppo.value_head);
                Method::ActorCritic(reference, rollout(at_once, at_once, ppo.response_length), critic)
            }
            _ => Method::CrossEntropy,
        }
    }
}

/// How much memory there is, and what says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In bytes.
    pub bytes: u64,
    /// For people: "… is 8.0 GiB".
    pub whose: &'static str,
}

const FREE_ON_GPU: &str = "free on the granted GPU";
const FREE_ON_GPUS: &str = "free on the granted GPU that has least";

/// What an attempt has where it computes; `None` where nobody looked.
fn room(ctx: &RunContext) -> Option<Room> {
    let (run, memory) = (ctx.run(), ctx.run().memory);
    let all = match ctx.device() {
        DeviceChoice::Cuda { count: 0 | 1 } => vec![Room { bytes: memory.gpu_free_bytes, whose: FREE_ON_GPU }],
        DeviceChoice::Cuda { .. } => vec![Room { bytes: memory.gpu_free_bytes, whose: FREE_ON_GPUS }],
        DeviceChoice::Cpu { .. } | DeviceChoice::Simulated { .. } => vec![
            Room { bytes: memory.host_bytes, whose: "what this node has" },
            Room { bytes: run.grant.memory_bytes, whose: "resources.hardware.memory" },
        ],
    };
    all.into_iter().filter(|room| room.bytes > 0).min_by_key(|room| room.bytes)
}

/// Refuses a task whose weights alone leave no room for a step, before they are read.
///
/// # Errors
/// That, with the numbers and with settings that would fit; models that have no config.
pub fn before_weights(ctx: &RunContext, model: &Path) -> Result<(), ModuleError> {
    let Some(room) = room(ctx) else { return Ok(()) };
    let config = base_model::config_of(model)?;
    let task = Task::new(&ctx.run().spec, Models::read(config, &ctx.run().inputs)?, Place::of(ctx));
    let sizes = Sizes::least();
    // What is wrong with an adapter is said where it is attached.
    let Ok(plan) = task.plan(&sizes) else { return Ok(()) };
    match task.needs(&plan) > room.bytes {
        true => Err(ModuleError::Fatal(words::refusal(&task, &plan, &sizes, room))),
        false => Ok(()),
    }
}

/// Says what the task will need, and refuses it where that is more than there is.
///
/// # Errors
/// That, with the numbers and with settings that would fit.
pub fn before_first_step(ctx: &mut RunContext, model: &DecoderConfig, sizes: &Sizes) -> Result<(), ModuleError> {
    let task = Task::new(&ctx.run().spec, Models::read(model.clone(), &ctx.run().inputs)?, Place::of(ctx));
    let plan = task.plan(sizes).map_err(fatal)?;
    let (room, needs) = (room(ctx), task.needs(&plan));
    if let Some(room) = room.filter(|room| needs > room.bytes) {
        return Err(ModuleError::Fatal(words::refusal(&task, &plan, sizes, room)));
    }
    ctx.log(words::table(&task, &plan, room));
    let free = ctx.run().memory.host_free_bytes;
    if !task.place.on_gpu && free > 0 && needs > free {
        ctx.warn(words::short_of_free(needs, free));
    }
    ctx.needs(needs, fitting::less(&task, sizes));
    Ok(())
}

/// Whether a task trains a model that it starts from.
pub fn trains(task_type: TaskType) -> bool {
    matches!(task_type, TaskType::Sft | TaskType::Rm | TaskType::Dpo | TaskType::Grpo | TaskType::Ppo)
}

/// What a dry run can say of a task without its data: rows are as long as they may be. `None` of a task that trains no
/// model of ours.
///
/// # Errors
/// For people: a model without a config that can be read, an adapter that does not fit it.
pub fn foretell(spec: &TaskSpec, model: Option<&Path>) -> Result<Option<String>, String> {
    let config = match (spec.task_type, model) {
        (TaskType::Pretrain, _) => crate::pretrain::config_of(spec),
        (of, Some(path)) if trains(of) => base_model::config_of(path),
        _ => return Ok(None),
    };
    let config = config.map_err(|e| e.to_string())?;
    // The others are most often made from the same model.
    let reward = spec.reward.as_ref().and_then(|reward| reward.model.as_ref()).map(|_| config.clone().with_labels(1));
    let models = Models { reference: None, reward, value: None, model: config };
    let task = Task::new(spec, models, Place::asked(spec));
    let sizes = Sizes::longest(&task);
    let plan = task.plan(&sizes).map_err(|e| e.to_string())?;
    Ok(Some(words::forecast(&task, &plan, &sizes)))
}

#[cfg(test)]
mod tests;
