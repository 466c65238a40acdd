//! What members ask of one another on the control channel, as bytes. Every call is idempotent.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use mloc_core::{
    id::NodeId,
    wire::{FromLeader, FromWorker, ToLeader, ToWorker, WIRE_VERSION},
};

use crate::{
    members::MemberTable,
    quic_transport::{JoinRefusal, JoinRequest},
};

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    /// A worker speaks to the leader.
    ToLeader(ToLeader),
    /// The leader speaks to a worker.
    ToWorker(ToWorker),
    /// A member passes on that a node wants in.
    Admit {
        /// The node, proven by the certificate the member saw.
        node: NodeId,
        /// What it says of itself.
        request: JoinRequest,
    },
    /// The member table, if it is newer than this version.
    Members {
        /// The version the asker has.
        have: u64,
    },
    /// Do you lead?
    Leader,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Of the leader to a worker.
    FromLeader(FromLeader),
    /// Of a worker to the leader.
    FromWorker(FromWorker),
    /// Whether the node is let in.
    Admitted(Result<MemberTable, JoinRefusal>),
    /// The newer table, or that the asker's is the newest; `Err` when the one asked does not lead.
    Members(Result<Option<MemberTable>, Option<NodeId>>),
    /// In which term the one asked leads, if it does.
    Leads(Option<u64>),
    /// The call can't be answered here, or not now: nothing was done, and it may be asked again.
    Refused(String),
}

/// Why bytes are no call or answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("it speaks version {theirs} of the wire, this node {WIRE_VERSION}: run the same version of mloc on both")]
    Version { theirs: u32 },
    #[error("it can't be read: {0}")]
    Unreadable(String),
}

/// Bytes of a call or an answer: the version, then CBOR.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = WIRE_VERSION.to_be_bytes().to_vec();
    // Writing to memory cannot fail, and these types have no maps with odd keys; a defect shows as unreadable there.
    let _ = ciborium::into_writer(value, &mut bytes);
    bytes
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CallError> {
    let (version, body) = bytes.split_first_chunk::<4>().ok_or_else(|| CallError::Unreadable("it is empty".into()))?;
    let theirs = u32::from_be_bytes(*version);
    if theirs != WIRE_VERSION {
        return Err(CallError::Version { theirs });
    }
    ciborium::from_reader(body).map_err(|e| CallError::Unreadable(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_survives_its_bytes_and_another_version_is_named() {
        let bytes = encode(&Call::Members { have: 7 });
        assert!(matches!(decode(&bytes), Ok(Call::Members { have: 7 })));
        let mut other = bytes.clone();
        other[3] = 9;
        assert!(matches!(decode::<Call>(&other), Err(CallError::Version { theirs: 9 })));
        for end in 0..bytes.len() {
            assert!(decode::<Call>(&bytes[..end]).is_err(), "{end} bytes were taken for a call");
        }
    }
}
