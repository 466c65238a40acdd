//! A run's records on disk: a file each, a line of JSON per record, only ever appended to. What a kill leaves behind is whole
//! lines and at most one torn one, at the end; nothing was done yet for that one.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use tokio::{fs::File, io::AsyncWriteExt};

use crate::event::{Record, VERSION};

/// Names of logs end so.
const EXTENSION: &str = "jsonl";

/// A log that is written.
#[derive(Debug)]
pub struct Log {
    file: File,
}

/// What a log holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its records, in order.
    pub records: Vec<Record>,
    /// Bytes of whole records: what is behind them is torn.
    pub whole_bytes: u64,
    /// Bytes of the torn one.
    pub torn_bytes: u64,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The bytes are not what was written.
    #[error("{}: damaged: line {line}: {found}\nhint: move the file away; its run is lost", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What was found.
        found: String,
    },
    /// The disk or its permissions.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// The log of a run, by its name.
pub fn path(folder: &Path, run: &str) -> PathBuf {
    folder.join(format!("{run}.{EXTENSION}"))
}

/// The runs in a folder, by name, which is by age.
///
/// # Errors
/// When it cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<String>> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if let Some(run) = name.to_str().and_then(|name| name.strip_suffix(&format!(".{EXTENSION}"))) {
            runs.push(run.to_owned());
        }
    }
    runs.sort();
    Ok(runs)
}

/// Reads a log as it is.
///
/// # Errors
/// When it is not there, or damaged before its last line.
pub fn read(path: &Path) -> Result<Contents, LogError> {
    let bytes = fs::read(path).map_err(|source| LogError::Io { path: path.to_owned(), source })?;
    let mut contents = Contents::default();
    let mut rest = &bytes[..];
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        match serde_json::from_slice(line) {
            Ok(record) => contents.records.push(record),
            // A machine that lost power may have kept the length of a line and not its bytes.
            Err(_) if after.is_empty() => break,
            Err(e) => {
                let (line, found) = (contents.records.len() + 1, what_is_wrong(line, &e));
                return Err(LogError::Damaged { path: path.to_owned(), line, found });
            }
        }
        contents.whole_bytes += end as u64 + 1;
        rest = after;
    }
    contents.torn_bytes = bytes.len() as u64 - contents.whole_bytes;
    Ok(contents)
}

/// An event this build does not know is of a later one.
fn what_is_wrong(line: &[u8], error: &serde_json::Error) -> String {
    let version = serde_json::from_slice(line).ok().and_then(|record: serde_json::Value| record["v"].as_u64());
    match version {
        Some(found) if found > u64::from(VERSION) => {
            format!("written by a later build (version {found}, this one reads {VERSION})")
        }
        Some(_) | None => error.to_string(),
    }
}

impl Log {
    /// Makes a log, which is not there yet.
    ///
    /// # Errors
    /// The disk's.
    pub async fn create(folder: &Path, run: &str) -> io::Result<Self> {
        let file = File::options().append(true).create_new(true).open(path(folder, run)).await?;
        File::open(folder).await?.sync_all().await?;
        Ok(Self { file })
    }

    /// Opens a log to go on with it: what is torn is cut off.
    ///
    /// # Errors
    /// [`LogError`]
    pub async fn resume(folder: &Path, run: &str) -> Result<(Self, Contents), LogError> {
        let path = path(folder, run);
        let io = |source| LogError::Io { path: path.clone(), source };
        let place = path.clone();
        let contents = tokio::task::spawn_blocking(move || read(&place)).await;
        let contents = contents.unwrap_or_else(|e| Err(io(io::Error::other(e))))?;
        let file = File::options().append(true).open(&path).await.map_err(io)?;
        if contents.torn_bytes > 0 {
            file.set_len(contents.whole_bytes).await.map_err(io)?;
            file.sync_data().await.map_err(io)?;
        }
        Ok((Self { file }, contents))
    }

    /// Appends a record, and waits for the disk where what comes next needs it.
    ///
    /// # Errors
    /// The disk's: then nothing more may be appended, as half of it may be there.
    pub async fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line).await?;
        self.file.flush().await?;
        if record.event.must_last() {
            self.file.sync_data().await?;
        }
        Ok(())
    }
}

/// Forgets a run.
///
/// # Errors
/// The disk's.
pub fn remove(folder: &Path, run: &str) -> io::Result<()> {
    match fs::remove_file(path(folder, run)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn record(n: u64) -> Record {
        Record { v: VERSION, n, at: 1000 + n, event: Event::Warned { message: format!("word {n}\n\"ü\"") } }
    }

    #[tokio::test]
    async fn a_torn_last_line_is_cut_off_wherever_it_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path(), "r").await.unwrap();
        for n in 0..3 {
            log.append(&record(n)).await.unwrap();
        }
        let file = path(folder.path(), "r");
        let whole = fs::read(&file).unwrap();
        let two = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0 + 1;
        for cut in two..=whole.len() {
            fs::write(&file, &whole[..cut]).unwrap();
            let (mut log, contents) = Log::resume(folder.path(), "r").await.unwrap();
            let kept = if cut == whole.len() { 3 } else { 2 };
            assert_eq!(contents.records, (0..kept).map(record).collect::<Vec<_>>(), "cut at {cut}");
            log.append(&record(kept)).await.unwrap();
            assert_eq!(read(&file).unwrap().records.len() as u64, kept + 1);
        }
    }

    #[test]
    fn damage_before_the_end_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = path(folder.path(), "r");
        let line = |n| serde_json::to_string(&record(n)).unwrap();
        fs::write(&file, format!("{}\n{{\"v\":9}}\n{}\n", line(0), line(2))).unwrap();
        let said = read(&file).unwrap_err().to_string();
        assert!(said.contains("line 2") && said.contains("later build (version 9"), "{said}");
        // Bytes of a line that never came, after a loss of power.
        fs::write(&file, format!("{}\n\0\0\0\0\n", line(0))).unwrap();
        assert_eq!(read(&file).unwrap().torn_bytes, 5);
    }
}
