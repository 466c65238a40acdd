//! How bytes come from another node, as whoever pulls needs it. Behind it stand the mesh's links and, in tests, folders.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use mloc_core::{files::PeerFile, id::NodeId};

/// A file of another node, opened.
pub struct PeerBytes {
    /// Bytes of the whole file.
    pub total: u64,
    /// SHA-256 of the whole file, hex, where its owner knows it.
    pub sha256: Option<String>,
    /// Bytes that will come.
    pub length: u64,
    /// They, in pieces. A stream that breaks ends with an error; ask again for the rest.
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
}

/// Why there are no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The node cannot be reached, or not now: worth another try.
    #[error("{0}")]
    Unreachable(String),
    /// The node has no such file.
    #[error("{0}")]
    Unknown(String),
    /// The node does not give it.
    #[error("{0}")]
    Refused(String),
}

/// A node's way to the files of others. Its own are among them.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Opens a node's file from a byte on, for at most so many bytes. Every call may be dropped and made again.
    async fn open(
        &self,
        node: &NodeId,
        what: &PeerFile,
        offset: u64,
        length: Option<u64>,
    ) -> Result<PeerBytes, PeerError>;
}
