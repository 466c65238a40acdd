//! The settings of an adapter, with PEFT's names, and its `adapter_config.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{LoraError, setting};

/// PEFT's word for every linear layer but the head.
pub const ALL_LINEAR: &str = "all-linear";

/// The settings of an adapter; names, meanings and defaults are those of PEFT 0.21's `LoraConfig`.
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
    /// Which linear layers get an adapter.
    pub target_modules: Modules,
    /// Which of them get none all the same.
    pub exclude_modules: Option<Modules>,
    /// Ranks of layers whose name ends in what the pattern, a regular expression, matches.
    pub rank_pattern: BTreeMap<String, usize>,
    /// As `rank_pattern`, for alpha.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Layers by number, if not all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// What stands before the number in a name, such as `layers`; anything when empty.
    pub layers_pattern: Vec<String>,
    /// Ends of names of modules that are trained whole and saved beside the adapter.
    pub modules_to_save: Vec<String>,
    /// Which biases are trained.
    pub bias: Bias,
    /// Whether there is a magnitude for each output (DoRA).
    pub use_dora: bool,
    /// What fresh factors are.
    pub init_lora_weights: Init,
}

/// Layers of a model, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Modules {
    /// Every linear layer but the head.
    AllLinear,
    /// Those whose name is one of these or ends in `.` and one of these.
    Named(Vec<String>),
    /// Those whose whole name this regular expression matches.
    Matching(String),
}

/// Which biases are trained beside the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// None.
    None,
    /// Every one of the model.
    All,
    /// Those of layers with an adapter.
    LoraOnly,
}

/// What the factors are before training. B is 0 in each, so that nothing changes until the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// A uniform in ±1/√in.
    Kaiming,
    /// A normal with standard deviation 1/r.
    Gaussian,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            use_rslora: false,
            // PEFT's own choice for these architectures.
            target_modules: Modules::Named(vec!["q_proj".into(), "v_proj".into()]),
            exclude_modules: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            bias: Bias::None,
            use_dora: false,
            init_lora_weights: Init::Kaiming,
        }
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Modules {
    fn from(names: [S; N]) -> Self {
        Self::Named(names.map(Into::into).to_vec())
    }
}

impl Modules {
    /// As PEFT's files have it: a text is a pattern, `all-linear` or, here, a single name; a list is of names.
    fn from_json(key: &'static str, value: &Value) -> Result<Self, LoraError> {
        match value {
            Value::String(text) => Ok(Self::from_text(text)),
            Value::Array(names) => Ok(Self::from_names(texts(key, names)?)),
            found => Err(setting(key, format!("expected a list of names or a pattern, found {found}"))),
        }
    }

    /// A text that stands alone. One of nothing but a name's characters could match as a pattern only where it is the
    /// whole name; it is read as the name that it looks like.
    pub fn from_text(text: &str) -> Self {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        match text {
            ALL_LINEAR => Self::AllLinear,
            _ if text.chars().all(name) => Self::Named(vec![text.to_owned()]),
            _ => Self::Matching(text.to_owned()),
        }
    }

    /// A list of names; one that is `all-linear` alone is what it says.
    pub fn from_names(names: Vec<String>) -> Self {
        match names.as_slice() {
            [one] if one == ALL_LINEAR => Self::AllLinear,
            _ => Self::Named(names),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::AllLinear => json!(ALL_LINEAR),
            Self::Named(names) => {
                let mut names = names.clone();
                names.sort();
                json!(names)
            }
            Self::Matching(pattern) => json!(pattern),
        }
    }
}

impl Bias {
    const WORDS: [(&'static str, Self); 3] = [("none", Self::None), ("all", Self::All), ("lora_only", Self::LoraOnly)];

    /// By PEFT's word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, bias)| *bias)
    }

    /// PEFT's word.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, bias)| *bias == self).map_or("none", |(word, _)| word)
    }
}

impl LoraConfig {
    /// What the product of the factors is multiplied by, where no pattern says otherwise.
    pub fn scale(&self) -> f64 {
        self.scale_of(self.lora_alpha, self.r)
    }

    pub(super) fn scale_of(&self, alpha: f64, r: usize) -> f64 {
        match self.use_rslora {
            true => alpha / (r as f64).sqrt(),
            false => alpha / r as f64,
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

    pub(super) fn from_json(raw: &Value) -> Result<Self, LoraError> {
        let kind = raw.get("peft_type").and_then(Value::as_str);
        if kind != Some("LORA") {
            return Err(setting("peft_type", format!("{kind:?}; only \"LORA\" is supported")));
        }
        if let Some(key) = UNSUPPORTED.into_iter().find(|key| !is_unset(raw.get(*key))) {
            return Err(setting(key, format!("{} is not supported", raw[key])));
        }
        let given = |key: &'static str| raw.get(key).filter(|value| !is_unset(Some(value))).map(|value| (key, value));
        let default = Self::default();
        Ok(Self {
            r: given("r").map_or(Ok(0), |(key, value)| size(key, value))?,
            lora_alpha: given("lora_alpha").map_or(Ok(default.lora_alpha), |(key, value)| number(key, value))?,
            lora_dropout: given("lora_dropout").map_or(Ok(0.0), |(key, value)| number(key, value))?,
            use_rslora: given("use_rslora").is_some(),
            target_modules: match raw.get("target_modules") {
                Some(value) => Modules::from_json("target_modules", value)?,
                None => return Err(setting("target_modules", "expected a list of names, found nothing")),
            },
            exclude_modules: given("exclude_modules").map(|(key, value)| Modules::from_json(key, value)).transpose()?,
            rank_pattern: given("rank_pattern").map_or(Ok(BTreeMap::new()), |(key, value)| map(key, value, size))?,
            alpha_pattern: given("alpha_pattern")
                .map_or(Ok(BTreeMap::new()), |(key, value)| map(key, value, number))?,
            layers_to_transform: match raw.get("layers_to_transform") {
                Some(one @ Value::Number(_)) => Some(vec![size("layers_to_transform", one)?]),
                Some(Value::Array(layers)) if !layers.is_empty() => {
                    Some(layers.iter().map(|layer| size("layers_to_transform", layer)).collect::<Result<_, _>>()?)
                }
                _ => None,
            },
            layers_pattern: given("layers_pattern").map_or(Ok(Vec::new()), |(key, value)| one_or_more(key, value))?,
            modules_to_save: given("modules_to_save").map_or(Ok(Vec::new()), |(key, value)| one_or_more(key, value))?,
            bias: match given("bias") {
                None => Bias::None,
                Some((key, value)) => value
                    .as_str()
                    .and_then(Bias::from_word)
                    .ok_or_else(|| setting(key, format!("{value}; known are none, all, lora_only")))?,
            },
            use_dora: given("use_dora").is_some(),
            init_lora_weights: match raw.get("init_lora_weights").and_then(Value::as_str) {
                Some(way) if OF_ANOTHER_BASE.iter().any(|known| way.starts_with(known)) => {
                    let problem =
                        format!("{way:?} changes the base model too; convert the adapter to plain LoRA in PEFT");
                    return Err(setting("init_lora_weights", problem));
                }
                Some("gaussian") => Init::Gaussian,
                _ => Init::Kaiming,
            },
        })
    }

    /// The settings as PEFT writes them.
    pub fn to_json(&self, base_model: &str) -> Value {
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "use_rslora": self.use_rslora,
            "target_modules": self.target_modules.to_json(),
            "exclude_modules": self.exclude_modules.as_ref().map(Modules::to_json),
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "layers_to_transform": self.layers_to_transform,
            "layers_pattern": unless_empty(&self.layers_pattern),
            "modules_to_save": unless_empty(&self.modules_to_save),
            "bias": self.bias.word(),
            "use_dora": self.use_dora,
            "init_lora_weights": match self.init_lora_weights {
                Init::Kaiming => json!(true),
                Init::Gaussian => json!("gaussian"),
            },
            "fan_in_fan_out": false,
            "inference_mode": true,
        })
    }
}

/// What PEFT can and this crate cannot.
const UNSUPPORTED: [&str; 16] = [
    "fan_in_fan_out",
    "use_qalora",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "megatron_config",
    "ensure_weight_tying",
    "lora_ga_config",
    "corda_config",
];

/// Ways to begin that change the base as well: without that base the factors mean nothing.
const OF_ANOTHER_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

fn is_unset(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Bool(true) | Value::Number(_) | Value::String(_)) => false,
    }
}

fn unless_empty(names: &[String]) -> Option<&[String]> {
    Some(names).filter(|names| !names.is_empty())
}

fn size(key: &'static str, value: &Value) -> Result<usize, LoraError> {
    let size = value.as_u64().and_then(|v| usize::try_from(v).ok());
    size.ok_or_else(|| setting(key, format!("expected a whole number, found {value}")))
}

fn number(key: &'static str, value: &Value) -> Result<f64, LoraError> {
    value.as_f64().ok_or_else(|| setting(key, format!("expected a number, found {value}")))
}

fn texts(key: &'static str, values: &[Value]) -> Result<Vec<String>, LoraError> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        found => Err(setting(key, format!("expected names, found {found}"))),
    };
    values.iter().map(text).collect()
}

fn one_or_more(key: &'static str, value: &Value) -> Result<Vec<String>, LoraError> {
    match value {
        Value::Array(values) => texts(key, values),
        one => texts(key, std::slice::from_ref(one)),
    }
}

fn map<T>(
    key: &'static str,
    value: &Value,
    read: fn(&'static str, &Value) -> Result<T, LoraError>,
) -> Result<BTreeMap<String, T>, LoraError> {
    let empty = Map::new();
    let pairs = value.as_object().unwrap_or(&empty);
    pairs.iter().map(|(pattern, value)| Ok((pattern.clone(), read(key, value)?))).collect()
}
