//! The task types: one row each. A new type is a row here, a module file, its registration and its fixtures.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a task ends by itself or stays up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Runs to its end and leaves artifacts.
    TrainingTask,
    /// Stays up and answers requests.
    ServiceTask,
}

/// Which module a worker loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskType {
    /// Says back what it was given, step by step: the smallest module there is.
    Echo,
    /// Supervised fine-tuning.
    Sft,
    /// Reward model.
    Rm,
    /// Proximal policy optimisation.
    Ppo,
    /// Direct preference optimisation.
    Dpo,
    /// Group-relative policy optimisation.
    Grpo,
    /// Training from random weights, tokenizer included.
    Pretrain,
    /// The user's own program.
    Command,
    /// An OpenAI-compatible model server.
    Inference,
    /// Retrieval and generation.
    RagInference,
    /// A tool-calling loop.
    Agent,
}

/// What a task type asks of its file.
#[derive(Clone, Copy, Debug)]
pub struct TaskTypeRow {
    /// The type.
    pub task_type: TaskType,
    /// Its name in `spec.taskType`; also the feature a node offers when it has the module.
    pub name: &'static str,
    /// The kinds it may stand under.
    pub kinds: &'static [Kind],
    /// Whether `spec.model` is required.
    pub needs_model: bool,
    /// Whether `spec.dataset` is required.
    pub needs_dataset: bool,
    /// Whether it computes on the device it was granted, so that a simulated GPU cannot stand in for a real one.
    pub needs_real_device: bool,
}

const TRAINING: &[Kind] = &[Kind::TrainingTask];
const SERVICE: &[Kind] = &[Kind::ServiceTask];
const EITHER: &[Kind] = &[Kind::TrainingTask, Kind::ServiceTask];

/// Every task type of `mloc/v1`.
pub const TASK_TYPES: &[TaskTypeRow] = &[
    row(TaskType::Echo, "echo", TRAINING, false, false, false),
    row(TaskType::Sft, "sft", TRAINING, true, true, true),
    row(TaskType::Rm, "rm", TRAINING, true, true, true),
    row(TaskType::Ppo, "ppo", TRAINING, true, true, true),
    row(TaskType::Dpo, "dpo", TRAINING, true, true, true),
    row(TaskType::Grpo, "grpo", TRAINING, true, true, true),
    row(TaskType::Pretrain, "pretrain", TRAINING, false, true, true),
    row(TaskType::Command, "command", EITHER, false, false, false),
    row(TaskType::Inference, "inference", SERVICE, true, false, true),
    row(TaskType::RagInference, "rag_inference", SERVICE, true, false, true),
    row(TaskType::Agent, "agent", SERVICE, true, false, true),
];

const fn row(
    task_type: TaskType,
    name: &'static str,
    kinds: &'static [Kind],
    needs_model: bool,
    needs_dataset: bool,
    needs_real_device: bool,
) -> TaskTypeRow {
    TaskTypeRow { task_type, name, kinds, needs_model, needs_dataset, needs_real_device }
}

impl TaskType {
    /// Its row.
    pub fn row(self) -> &'static TaskTypeRow {
        // Total: a test holds that every variant has a row.
        TASK_TYPES.iter().find(|row| row.task_type == self).unwrap_or(&TASK_TYPES[0])
    }

    /// Its name in `spec.taskType`.
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

impl fmt::Display for TaskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
