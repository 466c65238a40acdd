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
//! | `inference` | a model behind OpenAI's API |
//! | `rag_inference` | a model that answers from documents |
//! | `agent` | a model that calls tools |
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
//! Deliberately absent: async (but for what stands in front of a served model), the network, and anything about nodes or
//! the ledger.

mod adapter;
mod agent;
mod base_model;
pub mod bench;
mod command;
mod dpo;
mod echo;
mod finetune;
mod grpo;
mod inference;
mod measure;
mod memory;
mod model_card;
mod online;
mod origin;
mod plan;
mod ppo;
mod pretrain;
mod rag_inference;
mod reward;
mod rm;
mod sft;
mod steering;
mod tensorboard;
mod training_log;

use std::{collections::BTreeSet, fmt::Display};

use mloc_core::task::{
    TaskSpec,
    kind::TaskType,
    problem::{At, Problem},
    settings::{self, Quantization},
};
use mloc_exec::{Module, ModuleError, RunContext};

/// Server-sent events as they come, for whoever asks a service.
pub use mloc_agent::model::sse;
/// What `inference` serves with, for whoever measures it.
pub use mloc_serve as serve;

pub use self::{
    agent::AgentModule,
    command::{Command, sandbox::available as sandbox_available},
    dpo::Dpo,
    echo::Echo,
    grpo::Grpo,
    inference::Inference,
    measure::{GpuCheck, check_gpu, measure_matmul},
    memory::{foretell as foretell_memory, trains},
    ppo::Ppo,
    pretrain::Pretrain,
    rag_inference::{PARSE, RagInference, open_models, read_document},
    rm::Rm,
    sft::Sft,
};

/// Every module of this build.
pub fn registry() -> &'static [&'static dyn Module] {
    &[&Echo, &Sft, &Rm, &Dpo, &Ppo, &Grpo, &Pretrain, &Inference, &RagInference, &AgentModule, &Command]
}

/// What a node with this build offers: each module's name and what it adds.
pub fn features() -> BTreeSet<String> {
    registry().iter().flat_map(|m| m.features().into_iter().chain([m.name().to_owned()])).collect()
}

/// What is wrong with a task that only its module can tell, to be said before it is accepted.
pub fn check(spec: &TaskSpec) -> Vec<Problem> {
    let mut problems = match spec.task_type {
        TaskType::Agent => agent::settings(spec).err().unwrap_or_default(),
        _ => Vec::new(),
    };
    let gpus = spec.request.gpu.as_ref().map_or(0, |gpu| gpu.count);
    if spec.task_type.has_engine() && gpus > 1 {
        let problem = Problem::new("spec.resources.hardware.gpu.count", At::START, format!("`{gpus}`"), "1");
        problems.push(problem.hint(inference::ONE_GPU));
    }
    if spec.task_type.has_engine() && gpus > 0 && settings::Inference::of(spec).quantization == Quantization::Int8 {
        let path = "spec.hyperparameters.quantization";
        let problem = Problem::new(path, At::START, "`int8`, and a GPU", "int4, which is NF4 there, or none");
        problems.push(problem.hint("8 bits are of processors; on a GPU bf16 is what its products are made for"));
    }
    let most = spec.service.as_ref().map_or(1, |service| service.scale.max);
    if spec.task_type == TaskType::Agent && most > 1 {
        let problem = Problem::new("spec.resources.replicas", At::START, format!("`{most}`"), "1 in this build");
        let hint = "its runs are in the replica's own folder, and another replica would not know them";
        problems.push(problem.hint(hint));
    }
    problems
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

    fn spec(text: &str) -> TaskSpec {
        mloc_core::task::parse(text, "t").unwrap_or_else(|problems| panic!("{problems}")).spec
    }

    #[test]
    fn the_examples_are_what_their_modules_read() {
        for example in [
            include_str!("../../../configs/agent_research.yaml"),
            include_str!("../../../configs/rag_inference_service.yaml"),
            include_str!("../../../configs/inference_smollm2.yaml"),
            include_str!("../../../configs/inference_qwen3_8b_gpu.yaml"),
        ] {
            assert_eq!(check(&spec(example)), []);
        }
    }

    #[test]
    fn what_only_a_module_can_tell_is_told_at_once() {
        let text = include_str!("../../../configs/agent_research.yaml");
        let task = spec(text);
        let mut wrong = task.clone();
        let agent = wrong.agent.as_mut().expect("an agent");
        agent.insert("budgets".into(), serde_json::json!({"steps": 0}));
        agent.insert("sytem".into(), "You help.".into());
        wrong.service.as_mut().expect("a service").scale.max = 3;
        wrong.request.gpu = Some(mloc_core::capability::GpuRequest { kind: "any".into(), count: 2, memory_bytes: 0 });
        wrong.hyperparameters.insert("quantization".into(), "int8".into());
        let told: Vec<String> = check(&wrong).into_iter().map(|problem| problem.path).collect();
        let paths = [
            "spec.agent.budgets.steps",
            "spec.agent.sytem",
            "spec.resources.replicas",
            "spec.resources.hardware.gpu.count",
            "spec.hyperparameters.quantization",
        ];
        for path in paths {
            assert!(told.iter().any(|told| told == path), "{path} in {told:?}");
        }
    }

    #[test]
    fn what_is_offered_is_every_module_and_what_it_adds() {
        let names = registry().iter().map(|m| m.name().to_owned());
        let said: BTreeSet<String> = names.chain(adapter::features()).chain(["parallel:gpus".to_owned()]).collect();
        assert_eq!(features(), said);
        assert!(said.contains("adapter:lora") && said.contains("adapter:qlora") && said.contains("precision:bf16"));
        assert_eq!(said.contains("precision:fp16"), cfg!(feature = "cuda"));
    }
}
