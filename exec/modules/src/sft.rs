//! `taskType: sft`: supervised fine-tuning of a decoder, all weights or an adapter, on weights as they are or in 4 bits.

use mloc_burn::lora;
use mloc_core::task::settings::Training;
use mloc_exec::{Module, ModuleError, ModuleOutput, Output, RunContext};

use crate::{adapter, base_model, fatal, finetune};

/// The module.
pub struct Sft;

impl Module for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn features(&self) -> Vec<String> {
        adapter::features()
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let spec = ctx.run().spec.clone();
        let settings = Training::of(&spec);
        let adapter = spec.model.as_ref().and_then(|m| m.adapter.as_ref());
        let device = base_model::open_device(ctx)?;
        let formats = adapter::formats(ctx, adapter, settings.precision, &device)?;
        let path = ctx.run().inputs.model.clone();
        let path = path.ok_or_else(|| ModuleError::Fatal("model.source was not pulled".into()))?;
        let mut base = base_model::load_held(ctx, &path, formats.held, &device)?;
        base.model.set_compute(formats.compute);
        base.model.checkpointing = settings.gradient_checkpointing;
        match (adapter, ctx.run().inputs.adapter.as_deref()) {
            (Some(asked), Some(folder)) => {
                lora::load(&mut base.model, folder).map_err(fatal)?;
                let asked = adapter::lora_config(asked).spelled_out(&base.model);
                let differences = base.model.adapter.as_ref().map(|found| adapter::differences(found, &asked));
                if let Some(differences) = differences.filter(|d| !d.is_empty()) {
                    ctx.warn(format!(
                        "model.adapter: the adapter that this starts from has settings of its own, and they hold: {}",
                        differences.join(", ")
                    ));
                }
            }
            (Some(asked), None) => {
                lora::attach(&mut base.model, &adapter::lora_config(asked), settings.seed).map_err(fatal)?;
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
                if model.four_bit().next().is_some() {
                    ctx.log(
                        "merged_model: the adapter is added to the weights as they come out of 4 bits, which it was trained \
                         on, and the sum is stored in f32",
                    );
                }
                outputs.extend(finetune::save_merged(ctx, model, &base.tokenizer)?);
            }
            outputs.extend(finetune::save_tokenizer(ctx, &base.tokenizer)?);
            Ok(outputs)
        })
    }
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
