//! One gossip connection: greeting, one uni stream per message, and how it ends.

use std::{net::SocketAddr, time::Duration};

use chitchat::{ChitchatMessage, Deserializable};
use quinn::{Connection, ConnectionError, VarInt};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::debug;

use super::peer_table::Why;
use crate::{
    names::{MeshId, NodeId},
    tls,
};

/// chitchat cuts its messages to the largest UDP payload.
pub(crate) const MESSAGE_BYTES_MAX: usize = 65_507;
const HELLO_BYTES_MAX: usize = 4096;
/// A peer that takes longer than this to read one message has stopped; the connection goes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// A message that takes longer than this to arrive is stale.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The first stream in each direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub mesh: MeshId,
    /// The sender's start; the same number chitchat carries.
    pub generation: u64,
    /// Where the sender says it is. Messages to that address take this connection.
    pub advertised: SocketAddr,
}

/// A message and the advertised address of who sent it.
pub(crate) type Received = (SocketAddr, ChitchatMessage);
/// Where received messages go; empty while no chitchat server is attached.
pub(crate) type Inbox = watch::Receiver<Option<mpsc::Sender<Received>>>;

/// Why a connection is closed, for both sides' logs.
pub(crate) fn reason(why: Why) -> &'static str {
    match why {
        Why::Ourselves => "this is the dialling node itself",
        Why::Revoked => "this node was revoked from the mesh",
        Why::Duplicate => "there is another connection between these nodes",
        Why::StaleProcess => "a later start of this node is connected",
    }
}

/// Closes with the reason: the other side's log shows it.
pub(crate) fn close(connection: &Connection, why: Why) {
    let code: u32 = match why {
        Why::Ourselves => 1,
        Why::Revoked => 2,
        Why::Duplicate => 3,
        Why::StaleProcess => 4,
    };
    connection.close(VarInt::from_u32(code), reason(why).as_bytes());
}

/// Closed because both sides found a better one: nothing is wrong.
pub(crate) fn is_duplicate(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(3))
}

/// Closed because the other side holds us for revoked.
pub(crate) fn says_revoked(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(2))
}

/// The name behind a connection whose handshake is done.
pub(crate) fn peer_of(connection: &Connection) -> Option<NodeId> {
    let chain = connection.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    tls::node_of_leaf(chain.first()?)
}

/// Says who we are, on a stream of its own: the first we open.
pub(crate) async fn say_hello(connection: &Connection, hello: &Hello) -> Result<(), String> {
    let text = serde_json::to_vec(hello).map_err(|e| e.to_string())?;
    write_stream(connection, &text).await
}

/// Waits for the peer's first stream.
pub(crate) async fn hear_hello(connection: &Connection, mesh: &MeshId) -> Result<Hello, HelloFailed> {
    let mut stream = connection.accept_uni().await.map_err(HelloFailed::Closed)?;
    let text = stream.read_to_end(HELLO_BYTES_MAX).await.map_err(|e| HelloFailed::Unfit(e.to_string()))?;
    let hello: Hello = serde_json::from_slice(&text).map_err(|e| HelloFailed::Unfit(e.to_string()))?;
    if hello.mesh != *mesh {
        return Err(HelloFailed::Unfit(format!("the peer is in mesh {}, this node in {mesh}", hello.mesh)));
    }
    Ok(hello)
}

/// Why a greeting came to nothing.
#[derive(Debug)]
pub(crate) enum HelloFailed {
    Closed(ConnectionError),
    Unfit(String),
}

/// Writes queued messages until the connection or the queue ends. `hello` goes first when the peer waits for ours.
pub(crate) async fn write_messages(connection: Connection, hello: Option<Hello>, mut queue: mpsc::Receiver<Vec<u8>>) {
    if let Some(hello) = hello
        && let Err(error) = say_hello(&connection, &hello).await
    {
        debug!(error, "greeting not delivered");
        return;
    }
    while let Some(message) = queue.recv().await {
        match timeout(WRITE_TIMEOUT, write_stream(&connection, &message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return debug!(error, "gossip connection ended while writing"),
            Err(_) => return connection.close(VarInt::from_u32(5), b"the peer does not read"),
        }
    }
}

async fn write_stream(connection: &Connection, bytes: &[u8]) -> Result<(), String> {
    let mut stream = connection.open_uni().await.map_err(|e| e.to_string())?;
    stream.write_all(bytes).await.map_err(|e| e.to_string())?;
    stream.finish().map_err(|e| e.to_string())
}

/// Reads messages until the connection ends, and says why it did.
pub(crate) async fn read_messages(connection: Connection, from: SocketAddr, inbox: Inbox) -> ConnectionError {
    loop {
        let mut stream = match connection.accept_uni().await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let bytes = match timeout(READ_TIMEOUT, stream.read_to_end(MESSAGE_BYTES_MAX)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                debug!(%from, %error, "gossip message lost");
                continue;
            }
            Err(_) => continue,
        };
        let message = match ChitchatMessage::deserialize(&mut &bytes[..]) {
            Ok(message) => message,
            Err(error) => {
                debug!(%from, %error, bytes = bytes.len(), "not a gossip message");
                continue;
            }
        };
        let server = inbox.borrow().clone();
        // Full: chitchat is behind and the sender will say it again. Absent: gossip has not started yet.
        if let Some(Err(error)) = server.map(|server| server.try_send((from, message))) {
            debug!(%from, %error, "gossip message dropped");
        }
    }
}
