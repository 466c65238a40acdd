//! Names of things, each its own type, so that a task cannot be passed for a node.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps a name that was minted elsewhere; nothing is checked.
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

string_id! {
    /// A task: `task-` and a ULID. Minted by the node that takes the submission.
    TaskId
}
string_id! {
    /// A node: the text form of its libp2p PeerId, that is its ed25519 public key.
    NodeId
}
string_id! {
    /// A mesh: random, minted once when it is founded.
    MeshId
}
string_id! {
    /// What a client calls one submission (`Idempotency-Key`), so that a retry makes one task.
    RequestId
}

impl TaskId {
    /// A fresh id from the moment and 80 random bits.
    pub fn mint(now: crate::time::Millis, random: u128) -> Self {
        Self(format!("task-{}", ulid::Ulid::from_parts(now.0, random)))
    }
}

/// One try at running one replica of a task: the fence. A later attempt has a higher number, and whatever an
/// earlier one says after that is stale.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// The task.
    pub task: TaskId,
    /// Which replica of it, from 0. Training tasks have one.
    pub replica: u32,
    /// Which try, from 1.
    pub attempt: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.task, self.replica, self.attempt)
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Text that is not `TASK.REPLICA.ATTEMPT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no attempt id: expected TASK.REPLICA.ATTEMPT")]
pub struct BadAttemptId(String);

impl FromStr for AttemptId {
    type Err = BadAttemptId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadAttemptId(text.to_owned());
        let mut parts = text.rsplitn(3, '.');
        let attempt = parts.next().and_then(|p| p.parse().ok()).ok_or_else(bad)?;
        let replica = parts.next().and_then(|p| p.parse().ok()).ok_or_else(bad)?;
        let task = parts.next().filter(|t| !t.is_empty()).ok_or_else(bad)?;
        Ok(Self { task: TaskId::new(task), replica, attempt })
    }
}

// As text, so that an attempt can be the key of a JSON object.
impl Serialize for AttemptId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AttemptId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_survives_its_text_form() {
        let id = AttemptId { task: TaskId::new("task-01ABC"), replica: 2, attempt: 7 };
        assert_eq!(id.to_string().parse::<AttemptId>().unwrap(), id);
        for bad in ["", "task", "task.1", ".1.2", "task.x.1", "task.1.-1"] {
            assert!(bad.parse::<AttemptId>().is_err(), "{bad} was taken");
        }
    }
}
