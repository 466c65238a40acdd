//! In which files a model is: a folder in Hugging Face's layout, or a GGUF file.

use std::io;
use std::path::{Path, PathBuf};

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// A folder with config.json.
    Folder(PathBuf),
    /// One file.
    Gguf(PathBuf),
}

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The folder could not be listed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error("{0}")]
    NoModel(String),
}

impl Layout {
    /// Looks at a path: a .gguf file, a folder with config.json, or a folder with one .gguf file and none.
    ///
    /// # Errors
    /// What is neither.
    pub fn of(path: &Path) -> Result<Self, LayoutError> {
        let is_gguf = |p: &Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let shown = path.display();
        if path.is_file() {
            return if is_gguf(path) {
                Ok(Self::Gguf(path.to_owned()))
            } else {
                Err(LayoutError::NoModel(format!(
                    "{shown} is neither a .gguf file nor a folder with config.json, *.safetensors and tokenizer.json"
                )))
            };
        }
        if path.join("config.json").is_file() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let entries = std::fs::read_dir(path).map_err(|source| LayoutError::Io { path: path.to_owned(), source })?;
        let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_gguf(p)).collect();
        files.sort();
        match files.as_slice() {
            [one] => Ok(Self::Gguf(one.clone())),
            [] => Err(LayoutError::NoModel(format!(
                "{shown} has no config.json and no .gguf file: is it a model's folder?"
            ))),
            several => {
                Err(LayoutError::NoModel(format!("{shown} has {} .gguf files: name one of them", several.len())))
            }
        }
    }
}
