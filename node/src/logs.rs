//! What attempts print: read here when the attempt ran here, over a mesh stream when it ran elsewhere.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use mloc_api::ControlError;
use mloc_core::id::{AttemptId, NodeId};
use mloc_mesh::{handle::MeshHandle, link::StreamKind};
use mloc_runtime::AttemptLogs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

/// A request line is an attempt id and a word.
const REQUEST_BYTES_MAX: usize = 256;

/// Logs of this node's attempts, and a way to those of others.
pub struct Logs {
    local: Arc<AttemptLogs>,
}

impl Logs {
    /// With the logs of this node.
    pub fn new(local: Arc<AttemptLogs>) -> Self {
        Self { local }
    }

    /// An attempt's log, wherever it ran.
    ///
    /// # Errors
    /// When its node can't be reached, or has no such log any more.
    pub async fn open(
        &self,
        mesh: &MeshHandle,
        attempt: AttemptId,
        node: NodeId,
        follow: bool,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, ControlError> {
        if node == *mesh.node() {
            return Ok(self.local.read(attempt, follow).boxed());
        }
        let unreachable = |e: io::Error| {
            ControlError::Unavailable(format!(
                "the log of {attempt} is on node {node}, which can't be reached just now: {e}"
            ))
        };
        let mut stream = mesh.open_stream(&node, StreamKind::Logs).await.map_err(unreachable)?;
        let line = format!("{attempt} {}\n", if follow { "follow" } else { "read" });
        stream.write_all(line.as_bytes()).await.map_err(unreachable)?;
        stream.flush().await.map_err(unreachable)?;
        Ok(ReaderStream::new(stream).boxed())
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
        let (attempt, how) =
            line.split_once(' ').ok_or_else(|| io::Error::other("no request: `ATTEMPT read|follow`"))?;
        let attempt: AttemptId = attempt.parse().map_err(io::Error::other)?;
        let mut log = Box::pin(self.local.read(attempt, how == "follow"));
        loop {
            let mut one = [0u8; 1];
            tokio::select! {
                // The asker says nothing more: that it reads on means it is still there.
                gone = reader.read(&mut one) => if gone? == 0 { return Ok(()) },
                piece = next(&mut log) => match piece {
                    Some(bytes) => writer.write_all(&bytes?).await?,
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
