//! The model that a task starts from, ready to be trained.

use burn::tensor::Device;
use mloc_burn::{formats::tokenizer::TextTokenizer, lora, model::Decoder};
use mloc_core::task::{settings::Training, spec::Adapter};
use mloc_exec::{ModuleError, RunContext};

use crate::{
    adapter,
    base_model::{self, BaseModel},
    fatal, memory,
};

/// Loads `model.source` onto a device, held and computed as the task says.
///
/// # Errors
/// A format that the device has not, a model that is not what it should be, and that it was asked to stop.
pub fn load(ctx: &mut RunContext, settings: &Training, device: &Device) -> Result<BaseModel, ModuleError> {
    let formats = adapter::formats(ctx, adapter_of(ctx).as_ref(), settings.precision, device)?;
    let path = ctx.run().inputs.model.clone();
    let path = path.ok_or_else(|| ModuleError::Fatal("model.source was not pulled".into()))?;
    memory::before_weights(ctx, &path)?;
    let mut base = memory::device::unless_full(ctx, |ctx| base_model::load_held(ctx, &path, formats.held, device))?;
    base.model.set_compute(formats.compute);
    base.model.checkpointing = settings.gradient_checkpointing;
    base.tokenizer = with_chat_template(ctx, base.tokenizer)?;
    Ok(base)
}

/// The tokenizer with the task's chat template, where it has one.
///
/// # Errors
/// A template that does not parse.
pub fn with_chat_template(ctx: &RunContext, tokenizer: TextTokenizer) -> Result<TextTokenizer, ModuleError> {
    match ctx.run().spec.dataset.as_ref().and_then(|d| d.chat_template.as_deref()) {
        Some(source) => tokenizer
            .with_chat_template(source)
            .map_err(|e| ModuleError::Fatal(format!("dataset.preprocessing.chat_template: {e}"))),
        None => Ok(tokenizer),
    }
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
            let asked = adapter::lora_config(&asked, model.score.is_some()).spelled_out(model);
            let differences = model.adapter.as_ref().map(|found| adapter::differences(found, &asked));
            if let Some(differences) = differences.filter(|d| !d.is_empty()) {
                ctx.warn(format!(
                    "model.adapter: the adapter that this starts from has settings of its own, and they hold: {}",
                    differences.join(", ")
                ));
            }
        }
        (Some(adapter), None) => {
            let config = adapter::lora_config(&adapter, model.score.is_some());
            lora::attach(model, &config, settings.seed).map_err(fatal)?;
        }
        (None, _) => model.train_all(),
    }
    Ok(())
}

/// Says where dropout that the task asks for is switched off by `disable_dropout`, which is on unless it says otherwise.
pub fn warn_of_dropout(ctx: &mut RunContext, model: &Decoder, disabled: bool) {
    if let Some(adapter) = model.adapter.as_ref().filter(|a| disabled && a.lora_dropout > 0.0) {
        ctx.warn(format!(
            "model.adapter.lora_dropout: {} has no effect: dropout is off in this task type, as in the reference (hint: \
             `disable_dropout: false` switches it on)",
            adapter.lora_dropout
        ));
    }
}

fn adapter_of(ctx: &RunContext) -> Option<Adapter> {
    ctx.run().spec.model.as_ref().and_then(|m| m.adapter.clone())
}
