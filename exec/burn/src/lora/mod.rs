//! Low-rank adapters: attaching, merging, and PEFT's files.
//!
//! ```text
//! config    the settings with PEFT's names, and adapter_config.json
//! targets   which layers they mean, by PEFT's rules
//! files     adapter_model.safetensors, names as PEFT has them
//! ```

mod config;
mod files;
mod targets;
#[cfg(test)]
mod tests;

use burn::tensor::FloatDType;

pub use self::config::{ALL_LINEAR, Bias, Init, LoraConfig, Modules};
pub use self::files::{load, load_trainable, save};
pub(crate) use self::targets::plan;
use self::targets::{Planned, last_parts};
use crate::model::adapter::{Dora, LoraPair};
use crate::model::linear::Linear;
use crate::model::{Decoder, Parameter, Weight};
use crate::random::Random;
use crate::weights::WeightsError;

/// What PEFT calls the model inside its wrapper.
const PEFT_PREFIX: &str = "base_model.model.";

/// Why an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// A setting has no meaning here.
    #[error("adapter_config.json: {key}: {problem}")]
    Setting {
        /// The key concerned.
        key: &'static str,
        /// What was found and what would work.
        problem: String,
    },
    /// The settings file is not readable JSON.
    #[error("{path}: {detail}")]
    File {
        /// The file concerned.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The adapter's tensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

fn setting(key: &'static str, problem: impl Into<String>) -> LoraError {
    LoraError::Setting { key, problem: problem.into() }
}

/// Whether a parameter belongs to an adapter.
pub fn is_adapter(name: &str) -> bool {
    name.starts_with(PEFT_PREFIX)
}

impl LoraConfig {
    /// The same with `all-linear` replaced by the names of the model's linear layers, as PEFT writes it: readers need not
    /// know the word.
    pub fn spelled_out(mut self, model: &Decoder) -> Self {
        if self.target_modules == Modules::AllLinear {
            let modules: Vec<&str> = model.linears().map(Linear::module).collect();
            self.target_modules = Modules::Named(last_parts(&modules).into_iter().map(str::to_owned).collect());
        }
        self
    }
}

/// Freezes the model, puts fresh adapters on the targeted layers, and marks what is trained beside them. Nothing changes
/// until the first step: B is zero, and magnitudes are the norms of the weights.
///
/// # Errors
/// Settings that do not fit the model; it is then as it was.
pub fn attach(model: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<(), LoraError> {
    let plan = targets::plan(model, config)?;
    model.parameters_mut().for_each(|p| p.trainable = false);
    for linear in model.linears_mut() {
        linear.lora = plan.adapters.get(linear.module()).map(|planned| fresh(linear, *planned, config, seed));
    }
    // Trained by itself, one of two that shared their weights no longer does.
    let shared = |name: &String| name == "lm_head.weight" || *name == model.embedding.name;
    if model.score.is_none() && plan.saved.iter().any(shared) {
        model.untie();
    }
    for parameter in model.parameters_mut().filter(|p| plan.saved.contains(&p.name)) {
        // What is trained is f32, whatever the frozen rest is held in.
        parameter.value = parameter.value.clone().cast(FloatDType::F32);
        parameter.trainable = true;
    }
    for linear in model.linears_mut() {
        let trained = config.bias == Bias::All || config.bias == Bias::LoraOnly && linear.lora.is_some();
        if let Some(bias) = linear.bias.as_mut().filter(|_| trained) {
            bias.trainable = true;
        }
    }
    model.adapter = Some(config.clone().spelled_out(model));
    Ok(())
}

fn fresh(linear: &Linear, planned: Planned, config: &LoraConfig, seed: u64) -> LoraPair {
    let Planned { r, scale } = planned;
    let [out, input] = linear.weight.dims();
    let module = linear.module();
    let device = match &linear.weight {
        Weight::Plain(parameter) => parameter.value.device(),
        Weight::FourBit { matrix, .. } => matrix.device().clone(),
    };
    let name = |factor: &str| format!("{PEFT_PREFIX}{module}.{factor}.weight");
    let mut random = Random::stream(seed, &name("lora_A"));
    let mut draw = || match config.init_lora_weights {
        Init::Kaiming => (2.0 * random.uniform() - 1.0) / (input as f32).sqrt(),
        Init::Gaussian => random.normal() / r as f32,
    };
    let a = (0..r * input).map(|_| draw()).collect();
    let trainable = |factor, shape: [usize; 2], values| Parameter {
        trainable: true,
        ..Parameter::new(name(factor), &shape, values, &device)
    };
    let magnitude = || Dora::new(format!("{PEFT_PREFIX}{module}.lora_magnitude_vector"), &linear.weight);
    LoraPair {
        a: trainable("lora_A", [r, input], a),
        b: trainable("lora_B", [out, r], vec![0.0; out * r]),
        scale: scale as f32,
        dropout: config.lora_dropout as f32,
        dora: config.use_dora.then(magnitude),
    }
}

/// The model as it is without its adapter; weights are shared with it.
pub fn base_of(model: &Decoder) -> Decoder {
    let mut base = model.clone();
    base.linears_mut().for_each(|linear| linear.lora = None);
    base.adapter = None;
    base
}

/// Adds each adapter's delta to its weight, which is in f32 from then on, and removes the adapter.
pub fn merge(model: &mut Decoder) {
    for linear in model.linears_mut().filter(|linear| linear.lora.is_some()) {
        let value = linear.merged();
        let (name, shape) = (linear.weight.name().to_owned(), linear.weight.dims().to_vec());
        linear.weight = Weight::Plain(Parameter { name, shape, value, trainable: false });
        linear.lora = None;
    }
    model.adapter = None;
}
