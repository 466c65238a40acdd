//! An upload as it comes: block after block to the disk, its digest along with it.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::StreamExt;
use mloc_api::{
    ControlError,
    files::{FileBytes, Uploaded},
};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{Uploads, broken};

/// What is gathered before it is written.
const BLOCK: usize = 1 << 20;

/// A part being written, and the digest of what it has.
struct Part {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    bytes: u64,
}

impl Part {
    /// Opens a part to go on at a byte; what is beyond it is sent again. Blocks.
    fn open(path: PathBuf, offset: u64) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        file.set_len(offset)?;
        let mut hasher = Sha256::new();
        let mut block = vec![0; BLOCK];
        loop {
            match file.read(&mut block)? {
                0 => break,
                n => hasher.update(&block[..n]),
            }
        }
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self { file, path, hasher, bytes: offset })
    }

    fn write(&mut self, block: &[u8]) -> io::Result<()> {
        self.file.write_all(block)?;
        self.hasher.update(block);
        self.bytes += block.len() as u64;
        Ok(())
    }

    /// Gives it its name if its digest is right; `false` throws it away. Blocks.
    fn finish(self, sha256: &str, whole: &Path) -> io::Result<bool> {
        if hex::encode(self.hasher.finalize()) != sha256 {
            fs::remove_file(&self.path)?;
            return Ok(false);
        }
        self.file.sync_all()?;
        let shelf = whole.parent().unwrap_or(whole);
        fs::create_dir_all(shelf)?;
        fs::rename(&self.path, whole)?;
        for folder in [shelf, shelf.parent().unwrap_or(shelf)] {
            File::open(folder)?.sync_all()?;
        }
        Ok(true)
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ControlError> + Send + 'static,
) -> Result<T, ControlError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(ControlError::Internal(format!("an upload could not be written: {e}"))))
}

impl Uploads {
    /// Takes `length` bytes of a file from `offset` on, to its end, and holds the whole to its digest. What came before
    /// a break stays. Two uploads of one file come one after the other; the second finds it whole.
    ///
    /// # Errors
    /// When there is no room, the offset is beyond what is here, the body breaks off, or it is another file.
    pub async fn receive(
        self: &Arc<Self>,
        sha256: &str,
        offset: u64,
        length: u64,
        mut bytes: FileBytes,
    ) -> Result<Uploaded, ControlError> {
        let writer = self.writer(sha256);
        let _alone = writer.lock().await;
        let (uploads, name) = (self.clone(), sha256.to_owned());
        let opened = off_thread(move || {
            let have = uploads.have(&name)?;
            if have.whole {
                return Ok(Err(have));
            }
            if offset > have.bytes {
                return Err(ControlError::Conflict(format!(
                    "{} bytes of this file are here, and this body begins at byte {offset}: begin there",
                    have.bytes
                )));
            }
            uploads.room_for(length.saturating_sub(have.bytes - offset))?;
            let path = uploads.part(&name);
            uploads.changed(0, have.bytes - offset);
            Part::open(path.clone(), offset).map(Ok).map_err(|e| broken("write", &path, &e))
        });
        let mut part = match opened.await? {
            Ok(part) => part,
            Err(whole) => return Ok(whole),
        };
        let end = offset.saturating_add(length);
        let mut block = Vec::with_capacity(BLOCK);
        let mut broke = None;
        loop {
            match timeout(self.limits.silence, bytes.next()).await {
                Ok(Some(Ok(piece))) => block.extend_from_slice(&piece),
                Ok(Some(Err(error))) => broke = Some(error.to_string()),
                Ok(None) => broke = Some("it ended".to_owned()),
                Err(_) => broke = Some(format!("nothing came for {} s", self.limits.silence.as_secs_f32())),
            }
            let come = part.bytes + block.len() as u64;
            let over = broke.is_some() || come >= end;
            if block.len() >= BLOCK || (over && !block.is_empty()) {
                let full = std::mem::replace(&mut block, Vec::with_capacity(BLOCK));
                let uploads = self.clone();
                part = off_thread(move || {
                    // Others may have come since this one was let in.
                    uploads.room_for(full.len() as u64)?;
                    uploads.changed(full.len() as u64, 0);
                    part.write(&full).map_err(|e| broken("write", &part.path, &e))?;
                    Ok(part)
                })
                .await?;
            }
            if come > end {
                break;
            }
            if over && come < end {
                let why = broke.unwrap_or_default();
                return Err(ControlError::CutOff(format!(
                    "the upload broke off at byte {} of {end} ({why}): go on from there",
                    part.bytes
                )));
            }
            if over {
                break;
            }
        }
        let bytes = part.bytes;
        let (name, whole) = (sha256.to_owned(), self.whole(sha256));
        let right = off_thread(move || part.finish(&name, &whole).map_err(|e| broken("keep", &whole, &e))).await?;
        if !right {
            self.changed(0, bytes);
            let detail = format!("these {bytes} bytes are not those of {sha256}: begin again, at byte 0");
            return Err(ControlError::Invalid { detail, problems: Vec::new() });
        }
        Ok(Uploaded { bytes, whole: true })
    }
}
