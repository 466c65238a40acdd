//! One file to one key, in parts. Parts that nobody completes are paid for until somebody clears them away, so that an
//! upload which fails, or which nobody waits for any more, takes its own back.
//!
//! One that dies with its process cannot, and opendal lists no such uploads: a rule of the bucket clears those away
//! (AbortIncompleteMultipartUpload; Azure does it by itself).

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use mloc_exec::failpoint;
use opendal::Writer;
use sha2::{Digest, Sha256};
use tokio::{fs::File, io::AsyncReadExt, sync::oneshot, time::timeout};
use tracing::Instrument;

use super::Bucket;
use crate::{
    disk::{BLOCK, Stamp},
    error::StoreError,
    meter::Meter,
};

/// One part: S3 takes no smaller ones than 5 MiB, and 10,000 parts at most.
const PART: u64 = 8 << 20;
const PARTS_MAX: u64 = 9_000;
/// Parts on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// How long whoever stops an upload waits for it to take its parts back: opendal's writer can only be asked between two
/// writes.
const LET_GO_MAX: Duration = Duration::from_secs(10);

impl Bucket {
    /// Sends a file in a task of its own, which outlives this call by what it takes to take back its parts when this is
    /// dropped. It holds the meter until then, and gives no name after the drop.
    pub(super) async fn upload(&self, key: String, from: &Path, meter: &Meter) -> Result<Stamp, StoreError> {
        let (_waiting, dropped) = oneshot::channel();
        let (here, from, meter) = (self.clone(), from.to_owned(), meter.clone());
        let sent = async move { here.send(&key, from, &meter, dropped).await };
        match tokio::spawn(sent.in_current_span()).await {
            Ok(sent) => sent,
            Err(gone) if gone.is_panic() => std::panic::resume_unwind(gone.into_panic()),
            // Only at the runtime's shutdown: the caller is being dropped as well.
            Err(_) => std::future::pending().await,
        }
    }

    async fn send(
        &self,
        key: &str,
        from: PathBuf,
        meter: &Meter,
        mut dropped: oneshot::Receiver<()>,
    ) -> Result<Stamp, StoreError> {
        let unread = |e| StoreError::disk("read", &from, e);
        let failed = |e: opendal::Error| self.error(key, self.patience.tries, &e);
        let mut file = File::open(&from).await.map_err(unread)?;
        let size = file.metadata().await.map_err(unread)?.len();
        let part = PART.max(size.div_ceil(PARTS_MAX)) as usize;
        let mut writer = self.patient.writer_with(key).chunk(part).concurrent(PARTS_AT_ONCE).await.map_err(failed)?;
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        let ended = loop {
            let mut block = Vec::with_capacity(BLOCK);
            let n = match (&mut file).take(BLOCK as u64).read_to_end(&mut block).await {
                Ok(0) => break Ok(()),
                Ok(n) => n as u64,
                Err(e) => break Err(unread(e)),
            };
            hasher.update(&block);
            if let Err(error) = self.pass(key, &mut writer, block, meter, &mut dropped).await {
                break Err(error);
            }
            failpoint::reached("store.upload.part");
            bytes += n;
            meter.moved(n);
        };
        let ended = match ended {
            Ok(()) => {
                tokio::select! { biased;
                    // Its last parts stay behind then. To wait for them would be to give the name after all: whoever has
                    // the right now may be writing under it.
                    _ = &mut dropped => return Err(self.stopped(key)),
                    closed = writer.close() => closed.map(drop).map_err(failed),
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            let left = match timeout(LET_GO_MAX, writer.abort()).await {
                Ok(Ok(())) => return Err(error),
                Ok(Err(left)) => left.message().to_owned(),
                Err(_) => "no answer".to_owned(),
            };
            tracing::warn!(place = self.url_of(key), error = left, "parts of an upload stay behind");
            return Err(error);
        }
        failpoint::reached("store.upload.done");
        Ok(Stamp { bytes, sha256: hex::encode(hasher.finalize()) })
    }

    /// One block into the writer, at its time.
    async fn pass(
        &self,
        key: &str,
        writer: &mut Writer,
        block: Vec<u8>,
        meter: &Meter,
        dropped: &mut oneshot::Receiver<()>,
    ) -> Result<(), StoreError> {
        tokio::select! { biased;
            _ = &mut *dropped => return Err(self.stopped(key)),
            () = meter.pass(block.len() as u64) => {}
        }
        let mut write = pin!(writer.write(block));
        tokio::select! { biased;
            _ = &mut *dropped => {
                // Dropped in the middle, the writer could not be asked to take its parts back.
                timeout(LET_GO_MAX, write).await.ok();
                Err(self.stopped(key))
            }
            written = &mut write => written.map_err(|e| self.error(key, self.patience.tries, &e)),
        }
    }

    /// Heard by nobody.
    fn stopped(&self, key: &str) -> StoreError {
        self.broken(key, 1, "nobody waits for it any more".into())
    }
}
