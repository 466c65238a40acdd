//! Which layers see how far back: the ways in which families say it.

use serde_json::Value;

use super::super::config::{ConfigError, Keys};

type Windows = Vec<Option<usize>>;

/// In every layer, where `sliding_window` is a number.
pub(super) fn everywhere(layers: usize, keys: Keys<'_>) -> Result<Windows, ConfigError> {
    Ok(vec![keys.optional_size("sliding_window")?; layers])
}

/// Where `use_sliding_window` is true: in the layers that `layer_types` names, else in those from `max_window_layers` on.
pub(super) fn switched(layers: usize, keys: Keys<'_>) -> Result<Windows, ConfigError> {
    if !keys.flag("use_sliding_window") {
        return Ok(vec![None; layers]);
    }
    let first = keys.count("max_window_layers")?.unwrap_or(0);
    of_kinds(layers, keys, keys.optional_size("sliding_window")?, |layer| layer >= first)
}

/// `window` in the layers that `layer_types` calls `sliding_attention`, or without that key in those that `otherwise`
/// says.
pub(super) fn of_kinds(
    layers: usize,
    keys: Keys<'_>,
    window: Option<usize>,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Windows, ConfigError> {
    let Some(kinds) = keys.get("layer_types") else {
        return Ok((0..layers).map(|layer| window.filter(|_| otherwise(layer))).collect());
    };
    let wrong = |problem| ConfigError::Key { key: "layer_types", problem };
    let kinds = kinds.as_array().map(Vec::as_slice).unwrap_or_default();
    if kinds.len() != layers {
        return Err(wrong(format!("{} kinds of layers for num_hidden_layers {layers}", kinds.len())));
    }
    let window_of = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => Ok(window),
        _ => Err(wrong(format!("{kind}; known are full_attention, sliding_attention"))),
    };
    kinds.iter().map(window_of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_window_is_where_the_file_says() {
        let read = |extra: Value| {
            let mut keys = json!({"sliding_window": 8, "max_window_layers": 2});
            keys.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            switched(3, Keys(&keys)).map_err(|error| error.to_string())
        };
        let on = |extra: Value| {
            let mut extra = extra;
            extra["use_sliding_window"] = true.into();
            read(extra)
        };
        assert_eq!(read(json!({})), Ok(vec![None; 3]));
        assert_eq!(on(json!({})), Ok(vec![None, None, Some(8)]));
        let kinds = ["sliding_attention", "full_attention", "full_attention"];
        assert_eq!(on(json!({"layer_types": kinds})), Ok(vec![Some(8), None, None]));
        assert_eq!(read(json!({"layer_types": kinds})), Ok(vec![None; 3]));
        assert_eq!(
            on(json!({"layer_types": kinds[..2]})),
            Err("config.json: layer_types: 2 kinds of layers for num_hidden_layers 3".to_owned())
        );
        assert_eq!(
            on(json!({"layer_types": ["chunked_attention", "full_attention", "full_attention"]})),
            Err("config.json: layer_types: \"chunked_attention\"; known are full_attention, sliding_attention"
                .to_owned())
        );
        assert_eq!(everywhere(2, Keys(&json!({"sliding_window": null}))).unwrap(), [None, None]);
    }
}
