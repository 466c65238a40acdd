//! How a model's makers would sample it: generation_config.json.

use std::path::Path;

use mloc_engine::request::Sampling;
use serde_json::Value;

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Defaults {
    /// Of each request that doesn't say itself.
    pub sampling: Sampling,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
}

impl Defaults {
    /// Of a model's folder; without the file nothing is said.
    ///
    /// # Errors
    /// A file that is none.
    pub fn from_folder(folder: &Path) -> Result<Self, String> {
        let path = folder.join("generation_config.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let json: Value = serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self::of(&json))
    }

    /// The values that vLLM's `--generation-config auto` takes. As there, `do_sample` is not among them.
    fn of(json: &Value) -> Self {
        let number = |key: &str| json.get(key).and_then(Value::as_f64).map(|number| number as f32);
        let neutral = Sampling::default();
        let sampling = Sampling {
            temperature: number("temperature").unwrap_or(neutral.temperature),
            top_p: number("top_p").unwrap_or(neutral.top_p),
            top_k: json.get("top_k").and_then(Value::as_u64).map_or(neutral.top_k, |k| k as usize),
            min_p: number("min_p").unwrap_or(neutral.min_p),
            repetition_penalty: number("repetition_penalty").unwrap_or(neutral.repetition_penalty),
            ..neutral
        };
        let ends = match json.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
            Some(id) => id.as_u64().map(|id| id as u32).into_iter().collect(),
            None => Vec::new(),
        };
        Self { sampling, ends }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_file_leaves_out_is_neutral() {
        let found = Defaults::of(&json!({"temperature": 0.6, "top_k": 20, "do_sample": true, "eos_token_id": [2, 7]}));
        let sampling = Sampling { temperature: 0.6, top_k: 20, ..Sampling::default() };
        assert_eq!(found, Defaults { sampling, ends: vec![2, 7] });
        assert_eq!(Defaults::of(&json!({"eos_token_id": 3})).ends, [3]);
    }
}
