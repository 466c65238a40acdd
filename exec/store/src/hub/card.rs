//! What the head of a data set's README.md says of its files.

use serde::Deserialize;

/// A configuration as the card declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    /// Its name.
    pub name: String,
    /// Whether it is the one that is meant when nobody names one.
    pub default: bool,
    /// The folder that its patterns are relative to.
    pub folder: Option<String>,
    /// Patterns of the files of each split. Empty: found by their layout.
    pub splits: Vec<(String, Vec<String>)>,
}

#[derive(Deserialize)]
struct Head {
    configs: Option<Vec<RawConfig>>,
}

#[derive(Deserialize)]
struct RawConfig {
    config_name: Option<String>,
    #[serde(default)]
    default: bool,
    data_dir: Option<String>,
    data_files: Option<serde_json::Value>,
}

/// The configurations that a card declares; none where it says nothing of files.
///
/// # Errors
/// What is wrong with its head.
pub(super) fn configs(readme: &str) -> Result<Vec<Config>, String> {
    let Some(block) = head(readme).and_then(block) else { return Ok(Vec::new()) };
    let head: Head = mloc_core::task::yaml::read(block)?;
    head.configs.unwrap_or_default().into_iter().map(config).collect()
}

/// The lines of `configs` alone: what cards say of features and sizes may be megabytes, and need not even be right.
fn block(head: &str) -> Option<&str> {
    let from = if head.starts_with("configs:") { 0 } else { head.find("\nconfigs:")? + 1 };
    let rest = head.get(from..)?;
    let is_next = |line: &str| !line.starts_with([' ', '\t', '-', '#', '\r', '\n']);
    let mut to = 0;
    for (index, line) in rest.split_inclusive('\n').enumerate() {
        if index > 0 && is_next(line) {
            break;
        }
        to += line.len();
    }
    rest.get(..to)
}

/// The YAML between the lines of dashes that a card begins with.
fn head(readme: &str) -> Option<&str> {
    let text = readme.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let text = text.strip_prefix("\r\n").or_else(|| text.strip_prefix('\n'))?;
    let end = text.find("\n---")?;
    text.get(..end + 1)
}

fn config(raw: RawConfig) -> Result<Config, String> {
    let name = raw.config_name.unwrap_or_else(|| "default".to_owned());
    let splits = match raw.data_files {
        None => Vec::new(),
        Some(files) => splits(&files).map_err(|problem| format!("configs: {name}: data_files: {problem}"))?,
    };
    let folder = raw.data_dir.map(|dir| dir.trim_start_matches("./").trim_matches('/').to_owned());
    Ok(Config { name, default: raw.default, folder: folder.filter(|dir| !dir.is_empty() && dir != "."), splits })
}

/// A pattern, patterns, or a list of splits with theirs.
fn splits(files: &serde_json::Value) -> Result<Vec<(String, Vec<String>)>, String> {
    use serde_json::Value;
    match files {
        Value::String(_) => Ok(vec![("train".to_owned(), patterns(files)?)]),
        Value::Array(all) if all.iter().all(Value::is_string) => Ok(vec![("train".to_owned(), patterns(files)?)]),
        Value::Array(all) => all
            .iter()
            .map(|item| match (item["split"].as_str(), &item["path"]) {
                (Some(split), path) => Ok((split.to_owned(), patterns(path)?)),
                (None, _) => Err(format!("`{item}` has no `split`")),
            })
            .collect(),
        Value::Object(all) => all.iter().map(|(split, path)| Ok((split.clone(), patterns(path)?))).collect(),
        other => Err(format!("`{other}` names no files")),
    }
}

fn patterns(value: &serde_json::Value) -> Result<Vec<String>, String> {
    let text = |value: &serde_json::Value| match value.as_str() {
        Some(text) => Ok(text.trim_start_matches("./").trim_start_matches('/').to_owned()),
        None => Err(format!("`{value}` is no path")),
    };
    match value {
        serde_json::Value::Array(all) => all.iter().map(text).collect(),
        one => Ok(vec![text(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_data_files_are_read() {
        let readme = "---\nlicense: mit\nconfigs:\n- config_name: en\n  default: true\n  data_files:\n  - split: train\n    \
                      path: [en/a.jsonl, ./en/b-*.jsonl]\n  - split: test\n    path: en/t.jsonl\n- config_name: de\n  data_files: \
                      \"de/*.parquet\"\n- config_name: fr\n  data_dir: ./fr/\ndataset_info: {never: [closed\n---\n# A card\n---\n";
        let all = configs(readme).unwrap();
        let shown: Vec<_> = all.iter().map(|c| (c.name.as_str(), c.default, c.folder.as_deref())).collect();
        assert_eq!(shown, [("en", true, None), ("de", false, None), ("fr", false, Some("fr"))]);
        let files = |paths: &[&str]| paths.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            all[0].splits,
            [("train".to_owned(), files(&["en/a.jsonl", "en/b-*.jsonl"])), ("test".to_owned(), files(&["en/t.jsonl"]))]
        );
        assert_eq!(all[1].splits, [("train".to_owned(), files(&["de/*.parquet"]))]);
        for silent in ["", "# no head", "---\nlicense: mit\n---\n", "---\nnever closed: 1\n"] {
            assert_eq!(configs(silent).unwrap(), [], "{silent}");
        }
        assert!(
            configs("---\nconfigs: [{data_files: 3}]\n---\n").unwrap_err().contains("configs: default: data_files")
        );
    }
}
