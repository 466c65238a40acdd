//! LoRA adapters in PEFT's layout: checked as where they are trained on, and for the processor's decoder.

use std::path::Path;

use mloc_burn::{
    lora::{self, is_adapter},
    model::{Decoder, DecoderConfig, linear::Linear, parameter::host_values},
};
use mloc_cpu::adapter::Adapted;
use mloc_engine::forward::AdapterId;

use crate::weights::matrix;

/// Where adapters are loaded to.
pub trait AdapterRoom: Send + Sync {
    /// Loads an adapter's folder for a model of this config.
    ///
    /// # Errors
    /// What is wrong with its files, what doesn't fit the model, and what of it changes more than a product of factors can.
    fn load(&self, folder: &Path, config: &DecoderConfig) -> Result<AdapterId, String>;

    /// Forgets one. One that is gone already is no error.
    fn unload(&self, id: AdapterId);
}

impl AdapterRoom for mloc_cpu::adapter::Adapters {
    fn load(&self, folder: &Path, config: &DecoderConfig) -> Result<AdapterId, String> {
        let model = checked(folder, config)?;
        let adapted: Result<Vec<Adapted>, String> =
            model.linears().filter(|linear| linear.lora.is_some()).map(adapted).collect();
        self.load(&adapted?).map_err(|error| error.to_string())
    }

    fn unload(&self, id: AdapterId) {
        self.unload(id);
    }
}

/// The model's outline with the factors of an adapter's folder: names, shapes, and no weights.
///
/// # Errors
/// As [`AdapterRoom::load`].
pub fn checked(folder: &Path, config: &DecoderConfig) -> Result<Decoder, String> {
    let settings = lora::LoraConfig::from_folder(folder).map_err(|error| error.to_string())?;
    if settings.use_dora {
        return Err(
            "adapter_config.json: use_dora: true: an adapter with magnitudes is served once it is merged: train with \
             `output.artifacts: [merged_model]`"
                .to_owned(),
        );
    }
    // Names and shapes of the model without its weights: the same checks as when it is trained on.
    let mut model = Decoder::outline(config.clone());
    lora::load(&mut model, folder).map_err(|error| error.to_string())?;
    if let Some(whole) = model.parameters().find(|parameter| parameter.trainable && !is_adapter(&parameter.name)) {
        return Err(format!(
            "adapter_config.json: {} was trained whole (modules_to_save or bias), and such an adapter is served once it is \
             merged: train with `output.artifacts: [merged_model]`",
            whole.name
        ));
    }
    Ok(model)
}

fn adapted(linear: &Linear) -> Result<Adapted, String> {
    let unknown = || match linear.module().contains(".experts.") {
        true => format!("{}: adapters of experts are not served on the processor", linear.module()),
        false => format!("{}: no matrix of a layer", linear.module()),
    };
    let place = linear.module().strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let (layer, name) = place.ok_or_else(unknown)?;
    let pair = linear.lora.as_ref().ok_or_else(unknown)?;
    Ok(Adapted {
        layer: layer.parse().map_err(|_| unknown())?,
        matrix: matrix(name).ok_or_else(unknown)?,
        rank: pair.a.shape[0],
        a: host_values(pair.a.value.clone()),
        b: host_values(pair.b.value.clone()),
        scale: pair.scale,
    })
}
