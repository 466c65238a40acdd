//! `attempt.log`: all that an attempt's processes print, and what the worker has to say about it. Bounded: of a flood
//! the beginning and the end are kept.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, stream};
use mloc_core::id::AttemptId;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::folders::Folders;

/// Enough for days of training; a flood must not fill the disk the journal lies on.
pub(crate) const LOG_BYTES_MAX: u64 = 32 << 20;
/// The end of a flood is where the error is.
const END_BYTES: usize = 64 << 10;
/// A follower sees a line within this.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const PIECE_BYTES: usize = 64 << 10;

/// Logs of the attempts that ran on this node.
#[derive(Debug)]
pub struct AttemptLogs {
    folders: Folders,
    /// Attempts whose log still grows.
    live: Mutex<BTreeSet<AttemptId>>,
}

impl AttemptLogs {
    /// Logs below a data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self { folders: Folders::new(data_dir), live: Mutex::default() }
    }

    /// Whether there is a log of this attempt here, or is about to be.
    pub fn has(&self, attempt: &AttemptId) -> bool {
        self.live().contains(attempt) || self.folders.log(attempt).is_file()
    }

    /// A log from its beginning; with `follow` also what is still to come, until the attempt's processes are gone.
    pub fn read(
        self: &std::sync::Arc<Self>,
        attempt: AttemptId,
        follow: bool,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        self.read_from(attempt, 0, follow)
    }

    /// The same from a byte of it on.
    pub fn read_from(
        self: &std::sync::Arc<Self>,
        attempt: AttemptId,
        offset: u64,
        follow: bool,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let start = Reader { logs: self.clone(), attempt, offset, follow, file: None };
        stream::try_unfold(start, |mut reader| async move { Ok(reader.piece().await?.map(|piece| (piece, reader))) })
    }

    pub(crate) fn set_live(&self, attempt: &AttemptId, live: bool) {
        let mut all = self.live();
        if live {
            all.insert(attempt.clone());
        } else {
            all.remove(attempt);
        }
    }

    fn live(&self) -> MutexGuard<'_, BTreeSet<AttemptId>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Reader {
    logs: std::sync::Arc<AttemptLogs>,
    attempt: AttemptId,
    offset: u64,
    follow: bool,
    file: Option<tokio::fs::File>,
}

impl Reader {
    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            // Asked before the read: what was written before it ended is read after.
            let more = self.follow && self.logs.live().contains(&self.attempt);
            let mut buffer = vec![0; PIECE_BYTES];
            match self.open(more).await? {
                Some(file) => {
                    let n = file.read(&mut buffer).await?;
                    if n > 0 {
                        buffer.truncate(n);
                        return Ok(Some(buffer.into()));
                    }
                }
                None if !more => return Ok(None),
                None => {}
            }
            if !more {
                return Ok(None);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn open(&mut self, may_come: bool) -> io::Result<Option<&mut tokio::fs::File>> {
        if self.file.is_none() {
            let path = self.logs.folders.log(&self.attempt);
            match tokio::fs::File::open(&path).await {
                Ok(mut file) => {
                    file.seek(io::SeekFrom::Start(self.offset)).await?;
                    self.file = Some(file);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound && may_come => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let said = format!("this node has no log of attempt {}", self.attempt);
                    return Err(io::Error::new(e.kind(), said));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(self.file.as_mut())
    }
}

/// The writing end. Errors of the disk end the writing, not the attempt.
#[derive(Debug)]
pub(crate) struct LogFile {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: Option<File>,
    bytes: u64,
    max: u64,
    left_out: u64,
    end: VecDeque<u8>,
}

impl LogFile {
    pub fn open(path: &Path, max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        let state = State { file: Some(file), bytes, max, left_out: 0, end: VecDeque::new() };
        Ok(Self { state: Mutex::new(state) })
    }

    /// One line of the worker's own or of an event.
    pub fn line(&self, text: &str) {
        self.write(format!("{}\n", text.trim_end()).as_bytes());
    }

    pub fn write(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let room = usize::try_from(state.max.saturating_sub(state.bytes)).unwrap_or(usize::MAX).min(bytes.len());
        state.append(&bytes[..room]);
        let rest = &bytes[room..];
        state.left_out += rest.len() as u64;
        state.end.extend(&rest[rest.len().saturating_sub(END_BYTES)..]);
        let over = state.end.len().saturating_sub(END_BYTES);
        state.end.drain(..over);
    }

    /// Writes the kept end of a flood. Call it when the processes are gone.
    pub fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let end: Vec<u8> = std::mem::take(&mut state.end).into();
        let between = std::mem::take(&mut state.left_out).saturating_sub(end.len() as u64);
        if !end.is_empty() {
            let max = state.max;
            state.append(format!("\n… {between} bytes left out: the log is bounded to {max} …\n").as_bytes());
            state.append(&end);
        }
    }
}

impl State {
    fn append(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match file.write_all(bytes) {
            Ok(()) => self.bytes += bytes.len() as u64,
            Err(error) => {
                tracing::warn!(%error, "an attempt's log cannot be written any more");
                self.file = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_beginning_and_end_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("attempt.log");
        let log = LogFile::open(&path, 100).unwrap();
        log.line("first");
        for i in 0..100_000 {
            log.line(&format!("line {i}"));
        }
        log.finish();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("first\nline 0\n"), "{}", &text[..40]);
        assert!(text.ends_with("line 99999\n"));
        assert!(text.contains("bytes left out"));
        assert!(text.len() < 100 + END_BYTES + 200, "{}", text.len());
    }
}
