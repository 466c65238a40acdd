//! Bytes of files from one member to another: `/mloc/files/1`.
//!
//! ```text
//! asker → FileRequest (what, from which byte, how many)      one frame: length, CBOR
//! owner → FileHead (bytes in all, digest) or FileRefusal      one frame
//! owner → the bytes, and nothing after them
//! ```
//!
//! A stream that breaks is asked for again from where it broke; nobody holds more of a file than a piece. What files
//! there are, and which of them a member may have, is the [`FileSource`]'s.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use mloc_core::files::PeerFile;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tracing::debug;

use super::{LinkError, LinkHandle, LinkStream, StreamKind};
use crate::names::NodeId;

/// Bytes of a request or of what comes before the bytes of a file.
const FRAME_BYTES_MAX: usize = 16 << 10;
/// Bytes of a reason that travels.
const REASON_BYTES_MAX: usize = 4 << 10;
/// Bytes read or written at once. A link that takes longer for one than the silence it is allowed counts as gone.
const PIECE_BYTES: usize = 64 << 10;
/// Files read for others at once; more wait. Chunks of one transfer are asked for side by side.
const READING_MAX: usize = 32;
/// Streams of others that are open at once, those that wait included.
const OPEN_MAX: usize = 256;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRequest {
    /// Which file.
    pub what: PeerFile,
    /// From which byte on.
    pub offset: u64,
    /// How many bytes; all that follow when absent.
    pub length: Option<u64>,
}

/// What is known of a file before its bytes come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHead {
    /// Bytes of the whole file.
    pub total: u64,
    /// SHA-256 of the whole file, hex, where its owner knows it.
    pub sha256: Option<String>,
}

/// Why a member gives no bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum FileRefusal {
    /// It has no such file.
    #[error("{0}")]
    Unknown(String),
    /// It does not give this: a path that leads out of its folder, a byte beyond the end.
    #[error("{0}")]
    Refused(String),
    /// It cannot just now.
    #[error("{0}")]
    Later(String),
}

/// Why a file cannot be had from a member.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be reached.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The stream broke, or fell silent, before the answer.
    #[error("node {node}: the stream broke before it answered: {why}")]
    Broken {
        /// Who.
        node: NodeId,
        /// How.
        why: io::Error,
    },
    /// It gives no bytes.
    #[error("node {node}: {why}")]
    Refused {
        /// Who.
        node: NodeId,
        /// Why.
        why: FileRefusal,
    },
}

/// A file on its way to this node.
pub struct IncomingFile {
    /// What its owner says of it.
    pub head: FileHead,
    /// Bytes that will come.
    pub length: u64,
    /// They. A stream that ends too early ends with an error.
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
}

/// A file on its way to another.
pub struct OutgoingFile {
    /// What is known of it.
    pub head: FileHead,
    /// Its bytes from the requested one on; what is beyond the requested length is not sent.
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
}

/// What this node gives others.
#[async_trait]
pub trait FileSource: Send + Sync + 'static {
    /// Opens a file for a member. An offset beyond the end is refused here.
    async fn open(&self, asker: &NodeId, request: &FileRequest) -> Result<OutgoingFile, FileRefusal>;
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Here(FileHead),
    No(FileRefusal),
}

impl LinkHandle {
    /// Opens a file that a member has.
    ///
    /// # Errors
    /// [`FileError`]
    pub async fn open_file(&self, node: &NodeId, request: &FileRequest) -> Result<IncomingFile, FileError> {
        let silence = self.inner.settings.silence;
        let mut stream = self.open_stream(node, StreamKind::Files).await?;
        let broken = |why| FileError::Broken { node: node.clone(), why };
        let asked = async {
            write_frame(&mut stream, request).await?;
            stream.flush().await?;
            read_frame::<Answer>(&mut stream).await
        };
        match within(silence, asked).await.map_err(broken)? {
            Answer::No(why) => Err(FileError::Refused { node: node.clone(), why }),
            Answer::Here(head) => {
                let rest = head.total.checked_sub(request.offset).ok_or_else(|| {
                    let said = format!("it says the file has {} bytes, before byte {}", head.total, request.offset);
                    broken(io::Error::new(io::ErrorKind::InvalidData, said))
                })?;
                let length = request.length.unwrap_or(rest).min(rest);
                let incoming = Incoming { stream, left: length, silence };
                let bytes = stream::try_unfold(incoming, Incoming::piece).boxed();
                Ok(IncomingFile { head, length, bytes })
            }
        }
    }

    /// Gives members what the source opens, until dropped.
    ///
    /// # Errors
    /// When files are being served already.
    pub fn serve_files(&self, source: Arc<dyn FileSource>) -> Result<impl Future<Output = ()> + use<>, LinkError> {
        let streams = self.accept(StreamKind::Files)?;
        Ok(serve(streams, source, self.inner.settings.silence))
    }
}

struct Incoming {
    stream: LinkStream,
    left: u64,
    silence: Duration,
}

impl Incoming {
    async fn piece(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let read = within(self.silence, (&mut self.stream).take(self.left).read_buf(&mut piece)).await?;
        if read == 0 {
            let said = format!("the stream ended {} bytes before its end", self.left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, said));
        }
        self.left -= read as u64;
        Ok(Some((piece.freeze(), self)))
    }
}

async fn serve(mut streams: mpsc::Receiver<(NodeId, LinkStream)>, source: Arc<dyn FileSource>, silence: Duration) {
    let reading = Arc::new(Semaphore::new(READING_MAX));
    // Ended with this.
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            taken = streams.recv() => {
                let Some((peer, stream)) = taken else { return };
                if open.len() >= OPEN_MAX {
                    debug!(%peer, "too many files are asked for: a stream is dropped");
                    continue;
                }
                let (source, reading) = (source.clone(), reading.clone());
                open.spawn(async move {
                    if let Err(error) = give(&peer, stream, source.as_ref(), &reading, silence).await {
                        debug!(%peer, %error, "a file was not sent to its end");
                    }
                });
            }
            Some(_) = open.join_next() => {}
        }
    }
}

/// One request. An error resets the stream: the asker sees that bytes are missing.
async fn give(
    peer: &NodeId,
    mut stream: LinkStream,
    source: &dyn FileSource,
    reading: &Semaphore,
    silence: Duration,
) -> io::Result<()> {
    let request: FileRequest = within(silence, read_frame(&mut stream)).await?;
    // Said while the asker still listens.
    let answered = timeout(silence / 2, async {
        let _reading = reading.acquire().await;
        Ok::<_, FileRefusal>((source.open(peer, &request).await?, _reading))
    });
    let busy = || FileRefusal::Later("it is busy with other files".to_owned());
    match answered.await.unwrap_or_else(|_| Err(busy())) {
        Err(why) => {
            within(silence, write_frame(&mut stream, &Answer::No(shortened(why)))).await?;
        }
        Ok((OutgoingFile { head, mut bytes }, _reading)) => {
            let rest = head.total.saturating_sub(request.offset);
            let mut left = request.length.unwrap_or(rest).min(rest);
            within(silence, write_frame(&mut stream, &Answer::Here(head))).await?;
            while left > 0 {
                let Some(piece) = within(silence, async { bytes.next().await.transpose() }).await? else {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{left} bytes are missing")));
                };
                let piece = piece.slice(..piece.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                for part in piece.chunks(PIECE_BYTES) {
                    within(silence, stream.write_all(part)).await?;
                }
                left -= piece.len() as u64;
            }
        }
    }
    within(silence, stream.shutdown()).await
}

fn shortened(why: FileRefusal) -> FileRefusal {
    let short = |mut text: String| {
        let cut = (0..=REASON_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        text
    };
    match why {
        FileRefusal::Unknown(text) => FileRefusal::Unknown(short(text)),
        FileRefusal::Refused(text) => FileRefusal::Refused(short(text)),
        FileRefusal::Later(text) => FileRefusal::Later(short(text)),
    }
}

/// A step of a stream; silence for so long is its end.
async fn within<T>(silence: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(silence, step).await {
        Ok(done) => done,
        Err(_) => {
            let said = format!("nothing moved for {} s", silence.as_secs_f32());
            Err(io::Error::new(io::ErrorKind::TimedOut, said))
        }
    }
}

async fn write_frame<T: Serialize>(stream: &mut LinkStream, value: &T) -> io::Result<()> {
    let mut frame = vec![0; 4];
    ciborium::into_writer(value, &mut frame).map_err(io::Error::other)?;
    let length = u32::try_from(frame.len() - 4).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&frame).await
}

async fn read_frame<T: DeserializeOwned>(stream: &mut LinkStream) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    let odd = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if length > FRAME_BYTES_MAX {
        return Err(odd(format!("a frame of {length} bytes, at most {FRAME_BYTES_MAX} are taken")));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    ciborium::from_reader(frame.as_slice()).map_err(|e| odd(format!("a frame that can't be read: {e}")))
}
