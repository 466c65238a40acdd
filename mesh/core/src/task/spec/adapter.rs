//! The adapter that a task trains in place of a model's own weights, or that a service serves beside the model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Location;

/// A low-rank adapter's settings, named as in PEFT's LoraConfig and transformers' BitsAndBytesConfig. Of a service only
/// `source` and `name` count: the rest is as its adapter_config.json has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapter {
    /// LoRA over weights as they are, or over 4-bit ones.
    pub kind: AdapterKind,
    /// Rank.
    pub r: u32,
    /// Scale is `lora_alpha / r`, or over √r with `use_rslora`. In thousandths, so that the ledger has no floats.
    pub lora_alpha_milli: u64,
    /// Dropout before the A matrix, in millionths.
    pub lora_dropout_micro: u32,
    /// The linear layers that get an adapter.
    pub target_modules: Modules,
    /// Rank-stabilised scaling.
    pub use_rslora: bool,
    /// Those of them that get none.
    #[serde(default)]
    pub exclude_modules: Option<Modules>,
    /// Ranks of layers by regular expressions that the end of their name matches.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, u32>,
    /// As `rank_pattern`, for alpha; in thousandths.
    #[serde(default)]
    pub alpha_pattern_milli: BTreeMap<String, u64>,
    /// Layers by number; all of them when empty.
    #[serde(default)]
    pub layers_to_transform: Vec<u32>,
    /// What stands before the number in a layer's name; anything when empty.
    #[serde(default)]
    pub layers_pattern: Vec<String>,
    /// Modules that are trained whole.
    #[serde(default)]
    pub modules_to_save: Vec<String>,
    /// Biases that are trained.
    #[serde(default)]
    pub bias: AdapterBias,
    /// A magnitude for each output (DoRA).
    #[serde(default)]
    pub use_dora: bool,
    /// What A is drawn from.
    #[serde(default)]
    pub init: AdapterInit,
    /// How the weights beneath are held; counts with `qlora` only.
    #[serde(default)]
    pub four_bit: FourBit,
    /// An adapter to start from; of a service, always there: the one that is served.
    pub source: Option<Location>,
    /// What it is called at the API, after the service's own name and a colon; always there with an engine, and there
    /// only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Adapter {
    /// What a service calls its adapter when nobody says.
    pub const NAME: &str = "adapter";
}

/// Layers of a model, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Modules {
    /// Those whose whole name a regular expression matches.
    Matching(String),
    /// Those whose name is, or after a dot ends in, one of these; `all-linear` for every linear layer.
    Named(Vec<String>),
}

impl Default for Modules {
    /// PEFT's own choice for the families of this build.
    fn default() -> Self {
        Modules::Named(vec!["q_proj".to_owned(), "v_proj".to_owned()])
    }
}

/// Which biases are trained beside an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterBias {
    /// None.
    #[default]
    None,
    /// Every one of the model.
    All,
    /// Those of layers with an adapter.
    LoraOnly,
}

/// What an adapter's A is drawn from; B is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterInit {
    /// Kaiming's uniform.
    #[default]
    Kaiming,
    /// A normal with deviation 1/r.
    Gaussian,
}

/// How 4-bit weights are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FourBit {
    /// The 16 levels.
    pub quant_type: QuantType,
    /// Elements that share a scale.
    pub block_size: u32,
    /// Whether scales are quantised too.
    pub double_quant: bool,
}

impl Default for FourBit {
    /// As in TRL's ModelConfig.
    fn default() -> Self {
        FourBit { quant_type: QuantType::Nf4, block_size: 64, double_quant: false }
    }
}

/// The levels of 4-bit weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantType {
    /// Quantiles of a normal distribution.
    Nf4,
    /// A tiny float.
    Fp4,
}

/// Kinds of adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// Low-rank adapters on the weights as they are.
    #[default]
    Lora,
    /// Low-rank adapters on 4-bit weights.
    Qlora,
}

impl AdapterBias {
    /// The word in a file.
    pub fn word(self) -> &'static str {
        match self {
            AdapterBias::None => "none",
            AdapterBias::All => "all",
            AdapterBias::LoraOnly => "lora_only",
        }
    }
}

impl QuantType {
    /// The word in a file.
    pub fn word(self) -> &'static str {
        match self {
            QuantType::Nf4 => "nf4",
            QuantType::Fp4 => "fp4",
        }
    }
}

impl AdapterKind {
    /// The name in a file and in the feature `adapter:NAME`.
    pub fn name(self) -> &'static str {
        match self {
            AdapterKind::Lora => "lora",
            AdapterKind::Qlora => "qlora",
        }
    }
}
