//! Joining: a second protocol on the gossip endpoint. One request, one answer, one connection.
//!
//! The handshake proves that the asker holds the token and who it is; whether it may come in is for whoever receives the
//! [`JoinAsk`] to say (a member relays it to the leader).

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{Connection, VarInt};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tracing::{debug, info, warn};

use crate::{
    founding,
    members::MemberTable,
    names::{MeshId, NodeId},
};

/// Long enough for a seed to reach the leader over a WAN and for the leader to commit.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// A table of some 20,000 members.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a node says of itself when it asks to be let in. Its name is its certificate's key, not said here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The mesh it means; the token says which.
    pub mesh: MeshId,
    /// Name for people.
    pub name: String,
    /// Version of its binary.
    pub version: String,
    /// Its link addresses (multiaddr text).
    pub addresses: Vec<String>,
    /// What it asks of those that are to found the mesh with it, if the one asked has none yet.
    #[serde(default)]
    pub founding: Option<FoundingAsk>,
}

/// A question among nodes that found a mesh together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundingAsk {
    /// [`founding::Group::digest`].
    pub group: String,
    /// The question.
    pub ask: founding::Ask,
}

/// Who leads, as far as a node knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderHint {
    /// The raft term; of two hints the higher term is right.
    pub term: u64,
    /// The leader.
    pub node: NodeId,
}

/// Let in: what a new member needs first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Who leads, if known.
    pub leader: Option<LeaderHint>,
    /// Who may speak, the new member included.
    pub members: MemberTable,
}

/// Why a node is not let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum JoinRefusal {
    /// It asked for another mesh.
    #[error("this is mesh {ours}, not {asked}")]
    OtherMesh {
        /// The mesh that was asked.
        ours: MeshId,
        /// The mesh that was meant.
        asked: MeshId,
    },
    /// It was a member and is not to be spoken to again.
    #[error("node {0} was revoked from this mesh; an empty data directory makes it a new node")]
    Revoked(NodeId),
    /// Nobody can commit a new member now. Ask again.
    #[error("the mesh has no leader now; ask again in a moment")]
    NoLeader,
    /// The node that was asked is no member itself yet.
    #[error("this node has neither founded nor joined the mesh yet; ask again in a moment")]
    NotFounded,
    /// There is no mesh yet; this is the answer of one that is to found it too.
    #[error("there is no mesh yet; node {} waits to found it too", .0.node)]
    Founding(founding::Answer),
    /// Both are to found the mesh, but not with the same nodes. One of them is to be started with another configuration.
    #[error(
        "both nodes are to found the mesh, but with other seeds or another bootstrapExpect (hint: give all founding nodes \
         the same `seeds` and `bootstrapExpect`)"
    )]
    OtherGroup,
    /// The mesh says no.
    #[error("{0}")]
    Denied(String),
    /// The request cannot be understood: most likely other versions of MLOC.
    #[error("the join request cannot be read ({0}); are both nodes of the same version?")]
    Unreadable(String),
    /// The node that was asked is just starting or stopping.
    #[error("this node takes no joins now; ask again in a moment")]
    NotTaking,
}

impl JoinRefusal {
    /// Whether asking again may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NoLeader | Self::NotFounded | Self::Founding(_) | Self::OtherGroup | Self::NotTaking => true,
            Self::OtherMesh { .. } | Self::Revoked(_) | Self::Denied(_) | Self::Unreadable(_) => false,
        }
    }
}

/// A node that wants in. Answer on `reply`; dropping it says "not taking".
#[derive(Debug)]
pub struct JoinAsk {
    /// Who asks, proven by its certificate.
    pub peer: NodeId,
    /// From where.
    pub from: SocketAddr,
    /// What it says of itself.
    pub request: JoinRequest,
    /// The answer.
    pub reply: oneshot::Sender<Result<Welcome, JoinRefusal>>,
}

/// Why joining through one seed failed.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The name has no address.
    #[error("seed {seed}: cannot be resolved: {reason}")]
    Unresolved {
        /// As given.
        seed: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nobody there, or the handshake failed; the reason says which (a wrong token shows here).
    #[error("seed {seed} ({address}): {reason}")]
    Unreachable {
        /// As given.
        seed: String,
        /// The address tried last.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// It takes longer than the asker waits.
    #[error("seed {seed} did not answer within {} s", after.as_secs())]
    Silent {
        /// As given.
        seed: String,
        /// The time given.
        after: Duration,
    },
    /// The mesh refused.
    #[error("seed {seed} refused: {refusal}")]
    Refused {
        /// As given.
        seed: String,
        /// Why.
        refusal: JoinRefusal,
    },
}

/// Asks over an open connection.
pub(crate) async fn ask(
    connection: &Connection,
    request: &JoinRequest,
) -> Result<Result<Welcome, JoinRefusal>, String> {
    let text = serde_json::to_vec(request).map_err(|e| e.to_string())?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
    send.write_all(&text).await.map_err(|e| e.to_string())?;
    send.finish().map_err(|e| e.to_string())?;
    // The certificate check of the other side may fail after ours passed: then the reason is in the closed connection.
    let answer = receive.read_to_end(ANSWER_BYTES_MAX).await.map_err(|e| match connection.close_reason() {
        Some(reason) => reason.to_string(),
        None => e.to_string(),
    })?;
    serde_json::from_slice(&answer).map_err(|e| format!("the answer cannot be read ({e}); are both of one version?"))
}

/// Serves one asker.
pub(crate) async fn serve(
    connection: Connection,
    peer: NodeId,
    ours: MeshId,
    revoked: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    asks: mpsc::Sender<JoinAsk>,
) {
    let from = connection.remote_address();
    let served = timeout(ANSWER_TIMEOUT, async {
        let (mut send, mut receive) = connection.accept_bi().await.map_err(|e| e.to_string())?;
        let text = receive.read_to_end(REQUEST_BYTES_MAX).await.map_err(|e| e.to_string())?;
        let answer = answer(&text, &peer, from, &ours, &revoked, &asks).await;
        let text = serde_json::to_vec(&answer).map_err(|e| e.to_string())?;
        send.write_all(&text).await.map_err(|e| e.to_string())?;
        send.finish().map_err(|e| e.to_string())?;
        // The asker closes once it has read: closing first could cut the answer.
        connection.closed().await;
        Ok::<_, String>(answer)
    });
    match served.await {
        Ok(Ok(Ok(_))) => info!(%peer, %from, "let a node join"),
        // Part of founding: it is said many times a second, and is no fault.
        Ok(Ok(Err(refusal @ JoinRefusal::Founding(_)))) => debug!(%peer, %from, answer = %refusal, "no mesh yet"),
        Ok(Ok(Err(refusal))) => warn!(%peer, %from, reason = %refusal, "refused a join"),
        Ok(Err(error)) => warn!(%peer, %from, error, "a join broke off"),
        Err(_) => connection.close(VarInt::from_u32(6), b"the join took too long"),
    }
}

async fn answer(
    text: &[u8],
    peer: &NodeId,
    from: SocketAddr,
    ours: &MeshId,
    revoked: &watch::Receiver<Arc<BTreeSet<NodeId>>>,
    asks: &mpsc::Sender<JoinAsk>,
) -> Result<Welcome, JoinRefusal> {
    let request: JoinRequest = serde_json::from_slice(text).map_err(|e| JoinRefusal::Unreadable(e.to_string()))?;
    if request.mesh != *ours {
        return Err(JoinRefusal::OtherMesh { ours: ours.clone(), asked: request.mesh });
    }
    if revoked.borrow().contains(peer) {
        return Err(JoinRefusal::Revoked(peer.clone()));
    }
    let (reply, replied) = oneshot::channel();
    let ask = JoinAsk { peer: peer.clone(), from, request, reply };
    asks.try_send(ask).map_err(|_| JoinRefusal::NotTaking)?;
    replied.await.map_err(|_| JoinRefusal::NotTaking)?
}
