//! Task modules: settings to loop to artifacts. A new one is a file here and a line in [`registry`].
//!
//! | module | holds |
//! |---|---|
//! | `echo` | `taskType: echo`, the line without a model |
//! | `sft` | supervised fine-tuning, all weights or a LoRA adapter |
//! | `rm` | a reward model from pairs of answers |
//! | `dpo` | direct preference optimisation from pairs of answers |
//! | `ppo` | proximal policy optimisation on a reward model's scores |
//! | `grpo` | group-relative policy optimisation on reward functions |
//! | `pretrain` | a tokenizer and a small Llama from nothing |
//! | `bench` | how fast and in how much memory this machine trains |
//! | `command` | a program of the user's own |
//! | `adapter` | what `model.adapter` and the precision come to: settings, how weights are held, what is computed in |
//! | `base_model` | what a task starts from: a folder in Hugging Face's layout or a GGUF file, on the granted device |
//! | `finetune` | what all training shares: data, the loop with its log and checkpoints, measurements, artifacts |
//! | `online` | what `ppo` and `grpo` share: prompts, and what the model itself writes |
//! | `reward` | reward functions: of texts, a reward model, a program of the user's own |
//! | `origin` | what a run began with: a resumed one must find the same data and models |
//! | `plan` | which samples make which step |
//! | `steering` | how a task's settings move the weights: schedule, optimizer, noise, smoothing |
//! | `training_log` | `training_log.jsonl` |
//! | `tensorboard` | its figures as a TensorBoard event file |
//! | `memory` | what a task will need of memory, and what would fit |
//! | `model_card` | `README.md` beside the weights |
//! | `measure` | how fast this machine multiplies, and whether a GPU multiplies right |
//!
//! Deliberately absent: async, the network, and anything about nodes or the ledger.

mod adapter;
mod base_model;
pub mod bench;
mod command;
mod dpo;
mod echo;
mod finetune;
mod grpo;
mod measure;
mod memory;
mod model_card;
mod online;
mod origin;
mod plan;
mod ppo;
mod pretrain;
mod reward;
mod rm;
mod sft;
mod steering;
mod tensorboard;
mod training_log;

use std::{collections::BTreeSet, fmt::Display};

use mloc_exec::{Module, ModuleError, RunContext};

pub use self::{
    command::{Command, sandbox::available as sandbox_available},
    dpo::Dpo,
    echo::Echo,
    grpo::Grpo,
    measure::{GpuCheck, check_gpu, measure_matmul},
    memory::{foretell as foretell_memory, trains},
    ppo::Ppo,
    pretrain::Pretrain,
    rm::Rm,
    sft::Sft,
};

/// Every module of this build.
pub fn registry() -> &'static [&'static dyn Module] {
    &[&Echo, &Sft, &Rm, &Dpo, &Ppo, &Grpo, &Pretrain, &Command]
}

/// What a node with this build offers: each module's name and what it adds.
pub fn features() -> BTreeSet<String> {
    registry().iter().flat_map(|m| m.features().into_iter().chain([m.name().to_owned()])).collect()
}

/// An error that another try would meet again.
fn fatal(error: impl Display) -> ModuleError {
    ModuleError::Fatal(error.to_string())
}

/// As [`fatal`], of what also ends when the task is asked to stop.
fn unless_stopping(ctx: &RunContext, error: impl Display) -> ModuleError {
    ctx.check().err().unwrap_or_else(|| fatal(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_is_every_module_and_what_it_adds() {
        let names = registry().iter().map(|m| m.name().to_owned());
        let said: BTreeSet<String> = names.chain(adapter::features()).chain(["parallel:gpus".to_owned()]).collect();
        assert_eq!(features(), said);
        assert!(said.contains("adapter:lora") && said.contains("adapter:qlora") && said.contains("precision:bf16"));
        assert_eq!(said.contains("precision:fp16"), cfg!(feature = "cuda"));
    }
}
