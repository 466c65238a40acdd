//! Rotary positions in config.json, of the older style (`rope_theta`, `rope_scaling`) and the newer (`rope_parameters`).

use serde_json::Value;

use super::{ConfigError, Keys};

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_length / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_length / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length of the first training, in tokens.
        original_length: f64,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): frequencies that turn less than `beta_slow` times in the first training's
    /// length are divided, those that turn more than `beta_fast` times kept, a ramp over the dimensions between.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// See above.
        beta_fast: f64,
        /// See above.
        beta_slow: f64,
        /// The context length of the first training, in tokens.
        original_length: f64,
        /// What cosines and sines are multiplied by, so that attention stays as sharp over more tokens.
        attention_factor: f64,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
    },
}

/// Rotary positions: the base of the frequencies and how they are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// The base.
    pub theta: f64,
    /// The stretching.
    pub scaling: RopeScaling,
}

/// Those of a model whose layers have all the same, with `default` as the base where the file has none.
pub fn rope(keys: Keys<'_>, default: f64) -> Result<Rope, ConfigError> {
    let parameters = keys.get("rope_parameters").filter(|v| v.is_object());
    let scaling = parameters.or_else(|| keys.get("rope_scaling").filter(|v| v.is_object()));
    let theta = parameters
        .and_then(|p| p.get("rope_theta"))
        .or_else(|| keys.get("rope_theta"))
        .and_then(Value::as_f64)
        .unwrap_or(default);
    scaled(keys, theta, scaling)
}

/// Those of layers of a kind (`full_attention`, `sliding_attention`), which in the newer style have an object each in
/// `rope_parameters`; `None` = it has none.
pub fn rope_of_kind(keys: Keys<'_>, kind: &str, default: f64) -> Result<Option<Rope>, ConfigError> {
    let Some(own) = keys.get("rope_parameters").and_then(|all| all.get(kind)).filter(|v| v.is_object()) else {
        return Ok(None);
    };
    let theta = Keys(own).number("rope_theta")?.unwrap_or(default);
    scaled(keys, theta, Some(own)).map(Some)
}

fn scaled(whole: Keys<'_>, theta: f64, scaling: Option<&Value>) -> Result<Rope, ConfigError> {
    let Some(scaling) = scaling else {
        return Ok(Rope { theta, scaling: RopeScaling::None });
    };
    let keys = Keys(scaling);
    let number = |key: &'static str| {
        keys.number(key)?.ok_or(ConfigError::Key { key, problem: "is missing beside rope_type".into() })
    };
    let kind = keys.text("rope_type").or_else(|| keys.text("type")).unwrap_or("default");
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_length: number("original_max_position_embeddings")?,
        },
        "yarn" => yarn(whole, keys)?,
        other => {
            return Err(ConfigError::Key {
                key: "rope_type",
                problem: format!("{other:?}; known are default, linear, llama3, yarn"),
            });
        }
    };
    Ok(Rope { theta, scaling })
}

/// Defaults are the reference's, and the paper's.
fn yarn(whole: Keys<'_>, keys: Keys<'_>) -> Result<RopeScaling, ConfigError> {
    // What the model was made for may stand beside the scaling or, in older files, as the length itself.
    let original = keys.number("original_max_position_embeddings")?;
    let longest = whole.number("max_position_embeddings")?;
    let missing = |key: &'static str| ConfigError::Key { key, problem: "is missing beside rope_type".into() };
    let original_length =
        original.or(longest).filter(|length| *length > 0.0).ok_or(missing("original_max_position_embeddings"))?;
    let factor = match keys.number("factor")? {
        Some(factor) => factor,
        None => original.and_then(|original| Some(longest? / original)).ok_or(missing("factor"))?,
    };
    let sharpness = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let set =
        |key: &'static str| -> Result<Option<f64>, ConfigError> { Ok(keys.number(key)?.filter(|value| *value != 0.0)) };
    let attention_factor = match (keys.number("attention_factor")?, set("mscale")?, set("mscale_all_dim")?) {
        (Some(factor), ..) => factor,
        (None, Some(scale), Some(all)) => sharpness(scale) / sharpness(all),
        (None, ..) => sharpness(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: set("beta_fast")?.unwrap_or(32.0),
        beta_slow: set("beta_slow")?.unwrap_or(1.0),
        original_length,
        attention_factor,
        truncate: keys.flag_or("truncate", true),
    })
}
