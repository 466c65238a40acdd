//! What attempts print: read here when the attempt ran here, over a mesh stream when it ran elsewhere.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use mloc_core::id::{AttemptId, NodeId};
use mloc_mesh::{handle::MeshHandle, link::StreamKind};
use mloc_runtime::AttemptLogs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

/// A request line is an attempt id, an offset and a word.
const REQUEST_BYTES_MAX: usize = 256;
/// Why a log can't be had fits into this.
const WHY_BYTES_MAX: u64 = 1024;
/// First byte of an answer that goes on with the log.
const HERE: u8 = b'+';
/// First byte of an answer that goes on with why there is none.
const NONE: u8 = b'-';

/// Logs of this node's attempts, and a way to those of others.
pub struct Logs {
    local: Arc<AttemptLogs>,
}

impl Logs {
    /// With the logs of this node.
    pub fn new(local: Arc<AttemptLogs>) -> Self {
        Self { local }
    }

    /// An attempt's log from a byte on, wherever it ran.
    ///
    /// # Errors
    /// When its node can't be reached, or has no such log.
    pub async fn open(
        &self,
        mesh: &MeshHandle,
        attempt: &AttemptId,
        node: &NodeId,
        offset: u64,
        follow: bool,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        if node == mesh.node() {
            self.has(attempt)?;
            return Ok(self.local.read_from(attempt.clone(), offset, follow).boxed());
        }
        let mut stream = mesh.open_stream(node, StreamKind::Logs).await?;
        let line = format!("{attempt} {offset} {}\n", if follow { "follow" } else { "read" });
        stream.write_all(line.as_bytes()).await?;
        stream.flush().await?;
        if stream.read_u8().await? == HERE {
            return Ok(ReaderStream::new(stream).boxed());
        }
        let mut why = String::new();
        stream.take(WHY_BYTES_MAX).read_to_string(&mut why).await?;
        Err(io::Error::other(why))
    }

    fn has(&self, attempt: &AttemptId) -> io::Result<()> {
        if self.local.has(attempt) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("its node has no log of attempt {attempt}")))
    }

    /// Answers one member's request.
    ///
    /// # Errors
    /// When the stream breaks or the request is none.
    pub async fn serve<S>(&self, stream: S) -> io::Result<()>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            if line.len() == REQUEST_BYTES_MAX {
                return Err(io::Error::other("the request is too long"));
            }
            line.push(reader.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        let bad = || io::Error::other(format!("`{line}` is no request: `ATTEMPT OFFSET read|follow`"));
        let mut words = line.split(' ');
        let attempt: AttemptId = words.next().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
        let offset: u64 = words.next().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
        let follow = match words.next() {
            Some("follow") => true,
            Some("read") => false,
            _ => return Err(bad()),
        };
        if let Err(why) = self.has(&attempt) {
            writer.write_u8(NONE).await?;
            writer.write_all(why.to_string().as_bytes()).await?;
            return writer.shutdown().await;
        }
        writer.write_u8(HERE).await?;
        writer.flush().await?;
        let mut log = Box::pin(self.local.read_from(attempt, offset, follow));
        loop {
            let mut one = [0u8; 1];
            tokio::select! {
                // The asker says nothing more: that it reads on means it is still there.
                gone = reader.read(&mut one) => if gone? == 0 { return Ok(()) },
                piece = next(&mut log) => match piece {
                    Some(bytes) => {
                        writer.write_all(&bytes?).await?;
                        writer.flush().await?;
                    }
                    None => break,
                },
            }
        }
        writer.shutdown().await
    }
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    stream.next().await
}
