//! Streams between members, and how many bytes went over them by what they were about: who carried which data is a
//! figure, not a belief.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use libp2p::StreamProtocol;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::compat::Compat;

/// What streams are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// HTTP/1 of a call forwarded to another node.
    Http,
    /// What an attempt prints.
    Logs,
    /// Bytes of files: what came with a submission, artifacts. See [`super::files`].
    Files,
    /// HTTP/1 of requests to replicas of services.
    Services,
}

impl StreamKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Http, Self::Logs, Self::Files, Self::Services];

    /// For figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Logs => "logs",
            Self::Files => "files",
            Self::Services => "services",
        }
    }

    pub(super) fn protocol(self) -> StreamProtocol {
        match self {
            Self::Http => StreamProtocol::new("/mloc/http/1"),
            Self::Logs => StreamProtocol::new("/mloc/logs/1"),
            Self::Files => StreamProtocol::new("/mloc/files/1"),
            Self::Services => StreamProtocol::new("/mloc/services/1"),
        }
    }
}

/// Bytes of one kind of stream since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From others.
    pub received: u64,
    /// To others.
    pub sent: u64,
}

#[derive(Debug, Default)]
struct Counter {
    received: AtomicU64,
    sent: AtomicU64,
}

/// The counters of all kinds. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters(Arc<[Counter; StreamKind::ALL.len()]>);

impl Counters {
    pub(super) fn read(&self) -> Vec<(StreamKind, Traffic)> {
        let one = |kind: StreamKind| {
            let counter = &self.0[kind as usize];
            let read = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
            (kind, Traffic { received: read(&counter.received), sent: read(&counter.sent) })
        };
        StreamKind::ALL.into_iter().map(one).collect()
    }

    pub(super) fn count(&self, kind: StreamKind, inner: Compat<libp2p::Stream>) -> LinkStream {
        LinkStream { inner, counters: self.clone(), kind }
    }
}

/// A stream to or from a member; reads and writes as tokio's do.
#[derive(Debug)]
pub struct LinkStream {
    inner: Compat<libp2p::Stream>,
    counters: Counters,
    kind: StreamKind,
}

impl LinkStream {
    fn counter(&self) -> &Counter {
        &self.counters.0[self.kind as usize]
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, into))?;
        self.counter().received.fetch_add((into.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.counter().sent.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
