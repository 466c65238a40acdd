//! The model that a task starts from, ready to be trained.

use mloc_burn::{
    lora::{self, LoraConfig},
    model::Decoder,
};
use mloc_core::task::{
    settings::Training,
    spec::{Adapter, AdapterKind},
};
use mloc_exec::{ModuleError, RunContext};

use super::session;
use crate::{
    base_model::{self, BaseModel},
    fatal,
};

/// Loads `model.source` onto the granted device, after a look at settings that this build cannot follow.
///
/// # Errors
/// Those settings, a model that is not what it should be, and that it was asked to stop.
pub fn load(ctx: &RunContext, settings: &Training) -> Result<BaseModel, ModuleError> {
    session::check_settings(settings)?;
    if adapter_of(ctx).is_some_and(|a| a.kind == AdapterKind::Qlora) {
        return Err(ModuleError::Fatal("model.adapter.type: qlora is not in this build: ask for lora".into()));
    }
    let device = base_model::open_device(ctx)?;
    let path = ctx.run().inputs.model.clone();
    let path = path.ok_or_else(|| ModuleError::Fatal("model.source was not pulled".into()))?;
    base_model::load(ctx, &path, &device)
}

/// Marks what is trained: the task's adapter, which may start from one that was trained before, or else everything.
///
/// # Errors
/// An adapter that does not fit the model.
pub fn prepare(ctx: &mut RunContext, model: &mut Decoder, settings: &Training) -> Result<(), ModuleError> {
    let folder = ctx.run().inputs.adapter.clone();
    match (adapter_of(ctx), folder) {
        (Some(asked), Some(folder)) => {
            lora::load(model, &folder).map_err(fatal)?;
            let asked = lora_config(&asked, model).spelled_out(model);
            let differences = model.adapter.as_ref().map(|found| differences(found, &asked));
            if let Some(differences) = differences.filter(|d| !d.is_empty()) {
                ctx.warn(format!(
                    "model.adapter: the adapter that this starts from has settings of its own, and they hold: {}",
                    differences.join(", ")
                ));
            }
        }
        (Some(adapter), None) => {
            let config = lora_config(&adapter, model);
            lora::attach(model, &config, settings.seed).map_err(fatal)?;
        }
        (None, _) => model.train_all(),
    }
    Ok(())
}

fn adapter_of(ctx: &RunContext) -> Option<Adapter> {
    ctx.run().spec.model.as_ref().and_then(|m| m.adapter.clone())
}

fn lora_config(adapter: &Adapter, model: &Decoder) -> LoraConfig {
    // A head of few outputs is small, often fresh, and of no use frozen: PEFT saves it with the adapter of a classifier too.
    let modules_to_save = model.score.iter().map(|_| "score".to_owned()).collect();
    LoraConfig {
        r: adapter.r as usize,
        lora_alpha: adapter.lora_alpha_milli as f64 / 1e3,
        lora_dropout: f64::from(adapter.lora_dropout_micro) / 1e6,
        use_rslora: adapter.use_rslora,
        target_modules: adapter.target_modules.clone(),
        modules_to_save,
    }
}

/// What an adapter's own settings and the task's differ in, for people.
fn differences(found: &LoraConfig, asked: &LoraConfig) -> Vec<String> {
    let targets = |config: &LoraConfig| {
        let mut names = config.target_modules.clone();
        names.sort();
        names.join(" ")
    };
    let all = |config: &LoraConfig| {
        [
            ("r", config.r.to_string()),
            ("lora_alpha", config.lora_alpha.to_string()),
            ("lora_dropout", config.lora_dropout.to_string()),
            ("use_rslora", config.use_rslora.to_string()),
            ("target_modules", targets(config)),
        ]
    };
    let pairs = all(found).into_iter().zip(all(asked));
    let different = pairs.filter(|((_, found), (_, asked))| found != asked);
    different.map(|((name, found), (_, asked))| format!("{name} {found} (the task: {asked})")).collect()
}
