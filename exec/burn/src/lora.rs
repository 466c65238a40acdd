//! Low-rank adapters: attaching, merging, and PEFT's files.

use std::path::Path;

use serde_json::{Value, json};

use crate::export::{Storage, Stored, write_json, write_safetensors};
use crate::model::linear::{Linear, LoraPair};
use crate::model::parameter::{Parameters, matrix};
use crate::model::{Decoder, Parameter};
use crate::random::Random;
use crate::weights::{SafetensorsSource, TensorSource, WeightsError};

/// What PEFT calls the model inside its wrapper.
const PEFT_PREFIX: &str = "base_model.model.";

/// The settings of an adapter, with PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The delta is multiplied by alpha / r, or alpha / √r with `use_rslora`.
    pub lora_alpha: f64,
    /// The probability that an input element is left out in training, below 1.
    pub lora_dropout: f64,
    /// See `lora_alpha`.
    pub use_rslora: bool,
    /// Ends of the names of linear layers (`q_proj`, `self_attn.q_proj`), or `all-linear` alone.
    pub target_modules: Vec<String>,
    /// What is trained whole beside the adapters: `score`, the head of a classifier.
    pub modules_to_save: Vec<String>,
}

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
    /// What the product of the factors is multiplied by.
    pub fn scale(&self) -> f64 {
        match self.use_rslora {
            true => self.lora_alpha / (self.r as f64).sqrt(),
            false => self.lora_alpha / self.r as f64,
        }
    }

    /// Reads `adapter_config.json` of a PEFT folder. What PEFT can and this crate cannot is refused by name.
    pub fn from_folder(folder: &Path) -> Result<Self, LoraError> {
        let path = folder.join("adapter_config.json");
        let file_error = |detail: String| LoraError::File { path: path.display().to_string(), detail };
        let text = std::fs::read(&path).map_err(|e| file_error(e.to_string()))?;
        let raw: Value = serde_json::from_slice(&text).map_err(|e| file_error(e.to_string()))?;
        Self::from_json(&raw)
    }

    fn from_json(raw: &Value) -> Result<Self, LoraError> {
        let kind = raw.get("peft_type").and_then(Value::as_str);
        if kind != Some("LORA") {
            return Err(setting("peft_type", format!("{kind:?}; only \"LORA\" is supported")));
        }
        for key in [
            "use_dora",
            "fan_in_fan_out",
            "use_qalora",
            "lora_bias",
            "rank_pattern",
            "alpha_pattern",
            "layers_to_transform",
            "exclude_modules",
            "target_parameters",
            "trainable_token_indices",
            "layer_replication",
        ] {
            let value = raw.get(key).unwrap_or(&Value::Null);
            let unset = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(a) => a.is_empty(),
                Value::Object(o) => o.is_empty(),
                _ => false,
            };
            if !unset {
                return Err(setting(key, format!("{value} is not supported")));
            }
        }
        if let Some(bias) = raw.get("bias").and_then(Value::as_str)
            && bias != "none"
        {
            return Err(setting("bias", format!("{bias:?}; only \"none\" is supported")));
        }
        let target_modules = match raw.get("target_modules") {
            Some(Value::String(s)) if s == "all-linear" => vec![s.clone()],
            Some(Value::Array(names)) => names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect(),
            other => {
                let found = other.unwrap_or(&Value::Null);
                return Err(setting("target_modules", format!("expected a list of names, found {found}")));
            }
        };
        let modules_to_save = match raw.get("modules_to_save") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(names)) => names.iter().filter_map(|n| n.as_str().map(str::to_owned)).collect(),
            Some(other) => return Err(setting("modules_to_save", format!("expected a list of names, found {other}"))),
        };
        let r = raw.get("r").and_then(Value::as_u64).unwrap_or(0);
        Ok(Self {
            r: usize::try_from(r).map_err(|e| setting("r", e.to_string()))?,
            lora_alpha: raw.get("lora_alpha").and_then(Value::as_f64).unwrap_or(8.0),
            lora_dropout: raw.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
            use_rslora: raw.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            target_modules,
            modules_to_save,
        })
    }

    /// The settings as PEFT writes them.
    pub fn to_json(&self, base_model: &str) -> Value {
        let mut target_modules = self.target_modules.clone();
        target_modules.sort();
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "use_rslora": self.use_rslora,
            "target_modules": target_modules,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "inference_mode": true,
            "modules_to_save": Some(&self.modules_to_save).filter(|names| !names.is_empty()),
            "use_dora": false,
        })
    }

    /// The same with `all-linear` replaced by the names of the model's linear layers, as PEFT writes it: readers need not
    /// know the word.
    pub fn spelled_out(mut self, model: &Decoder) -> Self {
        if self.target_modules.iter().any(|target| target == "all-linear") {
            self.target_modules = linear_names(model);
        }
        self
    }

    fn check(&self) -> Result<(), LoraError> {
        if self.r == 0 || self.r > 1 << 16 {
            return Err(setting("r", format!("{}; expected 1 or more", self.r)));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            let found = self.lora_dropout;
            return Err(setting("lora_dropout", format!("{found}; expected 0 or more, below 1")));
        }
        Ok(())
    }

    fn matches(&self, module: &str) -> bool {
        self.target_modules.iter().any(|target| {
            target == "all-linear"
                || module == target
                || module.strip_suffix(target.as_str()).is_some_and(|rest| rest.ends_with('.'))
        })
    }
}

/// Freezes the model and puts fresh adapters on the targeted layers: A uniform in ±1/√in, B zero, so that nothing
/// changes until the first step.
pub fn attach(model: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<(), LoraError> {
    config.check()?;
    model.parameters_mut().for_each(|p| p.trainable = false);
    save_modules(model, config)?;
    let device = model.device().clone();
    let (scale, dropout) = (config.scale() as f32, config.lora_dropout as f32);
    let mut unmatched: Vec<&String> = config.target_modules.iter().collect();
    for linear in model.layers.iter_mut().flat_map(|l| l.linears_mut()) {
        let module = module_name(linear).to_owned();
        linear.lora = None;
        if config.matches(&module) {
            let [out, input] = linear.weight.value.dims();
            let name = |factor: &str| format!("{PEFT_PREFIX}{module}.{factor}.weight");
            let mut random = Random::stream(seed, &name("lora_A"));
            let bound = 1.0 / (input as f32).sqrt();
            let a = (0..config.r * input).map(|_| bound * (2.0 * random.uniform() - 1.0)).collect();
            let b = vec![0.0; out * config.r];
            let trainable = |factor, shape: [usize; 2], values| Parameter {
                trainable: true,
                ..Parameter::new(name(factor), &shape, values, &device)
            };
            linear.lora = Some(LoraPair {
                a: trainable("lora_A", [config.r, input], a),
                b: trainable("lora_B", [out, config.r], b),
                scale,
                dropout,
            });
            unmatched.retain(|target| {
                !LoraConfig { target_modules: vec![(*target).clone()], ..config.clone() }.matches(&module)
            });
        }
    }
    if config.target_modules.is_empty() || !unmatched.is_empty() {
        return Err(setting(
            "target_modules",
            format!("{unmatched:?} match no layer; known are {} and all-linear", linear_names(model).join(", ")),
        ));
    }
    model.adapter = Some(config.clone().spelled_out(model));
    Ok(())
}

/// Marks what is trained whole.
fn save_modules(model: &mut Decoder, config: &LoraConfig) -> Result<(), LoraError> {
    for module in &config.modules_to_save {
        match (module.as_str(), &mut model.score) {
            ("score", Some(head)) => head.weight.trainable = true,
            // PEFT names both heads that its classifiers may have.
            ("classifier", Some(_)) => {}
            _ => return Err(setting("modules_to_save", format!("{module:?}; known is \"score\", of a classifier"))),
        }
    }
    Ok(())
}

/// Attaches the adapter of a PEFT folder.
pub fn load(model: &mut Decoder, folder: &Path) -> Result<(), LoraError> {
    attach(model, &LoraConfig::from_folder(folder)?, 0)?;
    let source = SafetensorsSource::open_file(&folder.join("adapter_model.safetensors"))?;
    load_trainable(model, &PeftNames(source))?;
    Ok(())
}

/// A PEFT file as this crate names things: what is trained whole has PEFT's prefix there, and none here.
struct PeftNames(SafetensorsSource);

impl PeftNames {
    fn stored(&self, name: &str) -> String {
        if is_adapter(name) { name.to_owned() } else { format!("{PEFT_PREFIX}{name}") }
    }
}

impl TensorSource for PeftNames {
    fn names(&self) -> Vec<String> {
        let whole = |name: &String| !name.contains(".lora_");
        let own = |name: String| match name.strip_prefix(PEFT_PREFIX).filter(|_| whole(&name)) {
            Some(own) => own.to_owned(),
            None => name,
        };
        self.0.names().into_iter().map(own).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.shape(&self.stored(name))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        self.0.read_f32(&self.stored(name))
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
    let name = |name: &str| if is_adapter(name) { name.to_owned() } else { format!("{PEFT_PREFIX}{name}") };
    let tensors = ours.map(|p| Stored { name: name(&p.name), ..Stored::of(p) }).collect();
    write_safetensors(&folder.join("adapter_model.safetensors"), tensors, Storage::F32)?;
    let mut json = config.to_json(base_model);
    if model.score.is_some() {
        json["task_type"] = "SEQ_CLS".into();
    }
    write_json(&folder.join("adapter_config.json"), &json)?;
    Ok(true)
}

/// Adds each adapter's delta to its weight and removes the adapter. This is the one place where the delta is dense.
pub fn merge(model: &mut Decoder) {
    for linear in model.layers.iter_mut().flat_map(|l| l.linears_mut()) {
        if let Some(LoraPair { a, b, scale, .. }) = linear.lora.take() {
            let delta = b.value.matmul(a.value).mul_scalar(scale);
            linear.weight.value = linear.weight.value.clone() + delta;
        }
    }
    model.adapter = None;
}

/// The model as it is without its adapter; weights are shared with it.
pub fn base_of(model: &Decoder) -> Decoder {
    let mut base = model.clone();
    base.layers.iter_mut().flat_map(|l| l.linears_mut()).for_each(|linear| linear.lora = None);
    base.adapter = None;
    base
}

/// The last part of each linear layer's name, each once.
fn linear_names(model: &Decoder) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for linear in model.layers.iter().flat_map(|l| l.linears()) {
        let module = module_name(linear);
        let last = module.rsplit('.').next().unwrap_or(module);
        if names.iter().all(|name| name != last) {
            names.push(last.to_owned());
        }
    }
    names
}

fn module_name(linear: &Linear) -> &str {
    linear.weight.name.trim_end_matches(".weight")
}
