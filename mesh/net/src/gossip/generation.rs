//! The number of this start. It must rise with each: members tell a restarted node from its former self by it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::durable_file;

/// File in the data directory that holds the last number.
pub const GENERATION_FILE: &str = "generation";

/// Why there is no number for this start.
#[derive(Debug, Error)]
pub enum GenerationError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there but holds no number.
    #[error("{0}: not a number; remove it if this machine's clock is right, the next start then counts from the clock")]
    Unreadable(PathBuf),
}

/// One more than the last start's, or the clock (ms since 1970) when that is higher: a lost file does no harm with a clock,
/// a missing clock does none with the file. On disk before it is returned.
pub fn next_generation(data_dir: &Path, now_ms: u64) -> Result<u64, GenerationError> {
    let path = data_dir.join(GENERATION_FILE);
    let last = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<u64>().map_err(|_| GenerationError::Unreadable(path.clone()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(source) => return Err(GenerationError::File { path, source }),
    };
    let next = last.saturating_add(1).max(now_ms);
    durable_file::replace(&path, format!("{next}\n").as_bytes(), 0o600)
        .map_err(|source| GenerationError::File { path, source })?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_with_and_without_a_clock() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(next_generation(dir.path(), 1_000).unwrap(), 1_000);
        assert_eq!(next_generation(dir.path(), 1_000).unwrap(), 1_001);
        assert_eq!(next_generation(dir.path(), 5).unwrap(), 1_002);
        assert_eq!(next_generation(dir.path(), 9_000).unwrap(), 9_000);
        fs::write(dir.path().join(GENERATION_FILE), "x").unwrap();
        assert!(next_generation(dir.path(), 1).unwrap_err().to_string().contains("not a number"));
    }
}
