//! `taskType: sft`: supervised fine-tuning of a decoder, all weights or a LoRA adapter.

use mloc_burn::lora::{self, LoraConfig};
use mloc_core::task::{
    settings::Training,
    spec::{Adapter, AdapterKind},
};
use mloc_exec::{Module, ModuleError, ModuleOutput, RunContext};

use crate::{base_model, fatal, finetune};

/// Trains adapters on the weights as they are.
pub const LORA: &str = "adapter:lora";

/// The module.
pub struct Sft;

impl Module for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn features(&self) -> Vec<String> {
        vec![LORA.into()]
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let spec = ctx.run().spec.clone();
        let settings = Training::of(&spec);
        finetune::check_settings(&settings)?;
        let adapter = spec.model.as_ref().and_then(|m| m.adapter.as_ref());
        if adapter.is_some_and(|a| a.kind == AdapterKind::Qlora) {
            return Err(ModuleError::Fatal("model.adapter.type: qlora is not in this build: ask for lora".into()));
        }
        let device = base_model::open_device(ctx)?;
        let path = ctx.run().inputs.model.clone();
        let path = path.ok_or_else(|| ModuleError::Fatal("model.source was not pulled".into()))?;
        let mut base = base_model::load(ctx, &path, &device)?;
        match (adapter, ctx.run().inputs.adapter.as_deref()) {
            (Some(asked), Some(folder)) => {
                lora::load(&mut base.model, folder).map_err(fatal)?;
                let asked = lora_config(asked).spelled_out(&base.model);
                let differences = base.model.adapter.as_ref().map(|found| differences(found, &asked));
                if let Some(differences) = differences.filter(|d| !d.is_empty()) {
                    ctx.warn(format!(
                        "model.adapter: the adapter that this starts from has settings of its own, and they hold: {}",
                        differences.join(", ")
                    ));
                }
            }
            (Some(adapter), None) => {
                lora::attach(&mut base.model, &lora_config(adapter), settings.seed).map_err(fatal)?;
            }
            (None, _) => base.model.train_all(),
        }
        let rows = finetune::training_rows(ctx)?;
        let data = finetune::data(ctx, &rows, &base.tokenizer, &settings)?;
        drop(rows);
        finetune::run(ctx, base.model, &base.tokenizer, &data, &settings, |ctx, model| {
            let mut outputs = Vec::new();
            if adapter.is_some() {
                let base_name = spec.model.as_ref().map(|m| base_name(&m.source)).unwrap_or_default();
                lora::save(model, ctx.artifacts(), &base_name).map_err(|e| ModuleError::Retryable(e.to_string()))?;
                for path in ["adapter_model.safetensors", "adapter_config.json"] {
                    outputs.push(Output { path: path.into(), kind: "adapter_weights".into() });
                }
            } else {
                outputs.extend(finetune::save_model(ctx, model)?);
            }
            if adapter.is_some() && ctx.wants("merged_model") {
                outputs.extend(finetune::save_merged(ctx, model, &base.tokenizer)?);
            }
            outputs.extend(finetune::save_tokenizer(ctx, &base.tokenizer)?);
            Ok(outputs)
        })
    }
}

fn lora_config(adapter: &Adapter) -> LoraConfig {
    LoraConfig {
        r: adapter.r as usize,
        lora_alpha: adapter.lora_alpha_milli as f64 / 1e3,
        lora_dropout: f64::from(adapter.lora_dropout_micro) / 1e6,
        use_rslora: adapter.use_rslora,
        target_modules: adapter.target_modules.clone(),
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

/// What PEFT calls `base_model_name_or_path`.
fn base_name(source: &mloc_core::task::spec::Location) -> String {
    use mloc_core::task::spec::Location;
    match source {
        Location::Local { path } => path.clone(),
        Location::S3 { bucket, path, .. } => format!("s3://{bucket}/{path}"),
        Location::Gcs { bucket, path, .. } => format!("gs://{bucket}/{path}"),
        Location::Azblob { container, path, .. } => format!("az://{container}/{path}"),
        Location::Http { url, .. } | Location::Git { url, .. } => url.clone(),
        Location::HuggingFace { identifier, .. } | Location::Task { identifier, .. } => identifier.clone(),
        Location::Submitted { path, .. } => path.clone(),
        Location::Kept { attempt, .. } => attempt.task.to_string(),
    }
}
