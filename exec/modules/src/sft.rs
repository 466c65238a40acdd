//! `taskType: sft`: supervised fine-tuning of a decoder, all weights or a LoRA adapter.

use mloc_burn::{
    export::{self, Storage},
    lora::{self, LoraConfig},
};
use mloc_core::task::{
    settings::Training,
    spec::{Adapter, AdapterKind},
};
use mloc_exec::{Module, ModuleError, ModuleOutput, Output, RunContext};

use crate::{base_model, fatal, finetune, training_log};

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
        let device = base_model::open_device(ctx)?;
        let path = ctx.run().inputs.model.clone();
        let path = path.ok_or_else(|| ModuleError::Fatal("model.source was not pulled".into()))?;
        let mut base = base_model::load(&path, &device)?;
        let adapter = spec.model.as_ref().and_then(|m| m.adapter.as_ref());
        if adapter.is_some_and(|a| a.kind == AdapterKind::Qlora) {
            return Err(ModuleError::Fatal("model.adapter.type: qlora is not in this build: ask for lora".into()));
        }
        match (adapter, ctx.run().inputs.adapter.as_deref()) {
            (Some(asked), Some(folder)) => {
                lora::load(&mut base.model, folder).map_err(fatal)?;
                let (asked, found) = (lora_config(asked), base.model.adapter.clone());
                if found.as_ref().is_some_and(|found| (found.r, found.scale()) != (asked.r, asked.scale())) {
                    ctx.warn("the adapter that this starts from has settings of its own, and they hold");
                }
            }
            (Some(adapter), None) => {
                lora::attach(&mut base.model, &lora_config(adapter), settings.seed).map_err(fatal)?;
            }
            (None, _) => base.model.train_all(),
        }
        let data = finetune::data(ctx, &base.tokenizer, &settings)?;
        let (model, summary) = finetune::run(ctx, base.model, &base.tokenizer, &data, &settings)?;

        let mut outputs = vec![Output { path: training_log::FILE.into(), kind: "training_logs".into() }];
        let written = |e: mloc_burn::weights::WeightsError| ModuleError::Retryable(e.to_string());
        if adapter.is_some() {
            let base_name = spec.model.as_ref().map(|m| base_name(&m.source)).unwrap_or_default();
            lora::save(&model, ctx.artifacts(), &base_name).map_err(written)?;
            for path in ["adapter_model.safetensors", "adapter_config.json"] {
                outputs.push(Output { path: path.into(), kind: "adapter_weights".into() });
            }
        } else {
            export::write_model(&model, ctx.artifacts(), Storage::F32).map_err(written)?;
            for path in ["model.safetensors", "config.json"] {
                outputs.push(Output { path: path.into(), kind: "full_model".into() });
            }
        }
        outputs.extend(finetune::save_tokenizer(ctx, &base.tokenizer)?);
        let wanted = &spec.output.artifacts;
        outputs.retain(|output| wanted.is_empty() || wanted.contains(&output.kind));
        Ok(ModuleOutput { outputs, summary })
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

/// What PEFT calls `base_model_name_or_path`.
fn base_name(source: &mloc_core::task::spec::Location) -> String {
    use mloc_core::task::spec::Location;
    match source {
        Location::Local { path } => path.clone(),
        Location::S3 { bucket, path, .. } => format!("s3://{bucket}/{path}"),
        Location::HuggingFace { identifier, .. }
        | Location::Task { identifier, .. }
        | Location::Other { identifier, .. } => identifier.clone(),
    }
}
