//! An adapter's tensors under the names that PEFT gives them.
//!
//! | here | in `adapter_model.safetensors` |
//! |---|---|
//! | `base_model.model.MODULE.lora_A.weight`, `lora_B.weight`, `lora_magnitude_vector` | the same |
//! | a bias of a layer with an adapter | `base_model.model.MODULE.base_layer.bias` |
//! | what is trained whole | `base_model.model.` and its own name |

use std::collections::BTreeMap;
use std::path::Path;

use super::{LoraConfig, LoraError, PEFT_PREFIX, attach, is_adapter};
use crate::export::{Storage, Stored, write_json, write_safetensors};
use crate::model::linear::Linear;
use crate::model::parameter::matrix;
use crate::model::{Decoder, Parameter, Parameters};
use crate::weights::{SafetensorsSource, TensorSource, WeightsError};

/// Attaches the adapter of a PEFT folder.
pub fn load(model: &mut Decoder, folder: &Path) -> Result<(), LoraError> {
    attach(model, &LoraConfig::from_folder(folder)?, 0)?;
    let source = SafetensorsSource::open_file(&folder.join("adapter_model.safetensors"))?;
    let names = source.names().into_iter().map(|name| (own_name(&name), name)).collect();
    load_trainable(model, &Renamed { source, names })?;
    Ok(())
}

/// What this crate calls a tensor of PEFT's file. Some versions leave `base_layer` out.
fn own_name(stored: &str) -> String {
    match stored.strip_prefix(PEFT_PREFIX) {
        Some(name) if ![".lora_A.", ".lora_B.", ".lora_magnitude_vector"].iter().any(|part| name.contains(part)) => {
            name.replace(".base_layer.", ".")
        }
        _ => stored.to_owned(),
    }
}

/// What PEFT calls a parameter.
fn stored_name(model: &Decoder, parameter: &Parameter) -> String {
    if is_adapter(&parameter.name) {
        return parameter.name.clone();
    }
    let adapted =
        |linear: &Linear| linear.lora.is_some() && linear.bias.as_ref().is_some_and(|b| b.name == parameter.name);
    match model.linears().find(|linear| adapted(linear)) {
        Some(linear) => format!("{PEFT_PREFIX}{}.base_layer.bias", linear.module()),
        None => format!("{PEFT_PREFIX}{}", parameter.name),
    }
}

/// A source whose tensors have other names here.
struct Renamed {
    source: SafetensorsSource,
    /// The source's name by ours.
    names: BTreeMap<String, String>,
}

impl TensorSource for Renamed {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(self.names.get(name)?)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let stored = self.names.get(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))?;
        self.source.read_f32(stored)
    }
}

/// Replaces the values of all trainable parameters by the source's tensors of the same names; neither may have more.
pub fn load_trainable(model: &mut impl Parameters, source: &dyn TensorSource) -> Result<(), WeightsError> {
    let mut problems = Vec::new();
    let mut known = Vec::new();
    for parameter in model.parameters().filter(|p| p.trainable) {
        let (name, shape) = (&parameter.name, &parameter.shape);
        match source.shape(name) {
            None => problems.push(format!("{name}: missing; expected shape {shape:?}")),
            Some(found) if found != *shape => {
                problems.push(format!("{name}: found shape {found:?}, expected {shape:?}"));
            }
            Some(_) => known.push(name.clone()),
        }
    }
    known.sort();
    for name in source.names() {
        let trainable = known.binary_search(&name).is_ok();
        if !trainable && problems.iter().all(|p| !p.starts_with(&format!("{name}:"))) {
            problems.push(format!("{name}: not a trainable tensor of this model"));
        }
    }
    if !problems.is_empty() {
        return Err(WeightsError::Mismatch(problems));
    }
    for parameter in model.parameters_mut().filter(|p| p.trainable) {
        let device = parameter.value.device();
        parameter.value = matrix(source.read_f32(&parameter.name)?, &parameter.shape, &device);
    }
    Ok(())
}

/// Writes the model's adapter as a PEFT folder: `adapter_model.safetensors` and `adapter_config.json`. Returns whether
/// there was one. `base_model` is what the config names as its base.
pub fn save(model: &Decoder, folder: &Path, base_model: &str) -> Result<bool, WeightsError> {
    let Some(config) = &model.adapter else {
        return Ok(false);
    };
    let ours = model.parameters().filter(|p| is_adapter(&p.name) || p.trainable);
    let tensors = ours.map(|p| Stored { name: stored_name(model, p), ..Stored::of(p) }).collect();
    write_safetensors(&folder.join("adapter_model.safetensors"), tensors, Storage::F32)?;
    let mut json = config.to_json(base_model);
    if model.score.is_some() {
        json["task_type"] = "SEQ_CLS".into();
    }
    write_json(&folder.join("adapter_config.json"), &json)?;
    Ok(true)
}
