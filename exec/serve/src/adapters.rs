//! LoRA adapters in PEFT's layout, for the processor's decoder.

use std::path::Path;

use mloc_burn::{
    lora::{self, is_adapter},
    model::{Decoder, DecoderConfig, linear::Linear, parameter::host_values},
};
use mloc_cpu::adapter::Adapted;

use crate::weights::matrix;

/// Reads an adapter's folder for a model.
///
/// # Errors
/// What is wrong with its files, what doesn't fit the model, and what of it changes more than a product of factors can.
pub fn read(folder: &Path, config: &DecoderConfig) -> Result<Vec<Adapted>, String> {
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
    model.linears().filter(|linear| linear.lora.is_some()).map(adapted).collect()
}

fn adapted(linear: &Linear) -> Result<Adapted, String> {
    let unknown = || format!("{}: no matrix of a layer", linear.module());
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
