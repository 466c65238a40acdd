//! The member table as it travels: what the leader serves by version, what gossip carries the digest of, and what each
//! node keeps on disk so that it knows whom it may speak to before any peer answers.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    durable_file,
    names::{MeshId, NodeId},
};

/// File in the data directory that holds the last table.
pub const MEMBERS_FILE: &str = "members.json";
/// A stored or received table of another format is refused rather than guessed at.
const FORMAT: u32 = 1;

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    /// Name for people.
    pub name: String,
    /// Link addresses (multiaddr text) as last known to the ledger; gossip has newer ones.
    pub addresses: Vec<String>,
    /// A revoked member stays in the table, so that it can be told why.
    pub revoked: bool,
}

/// Who may speak in a mesh, at one version of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberTable {
    format: u32,
    /// The mesh.
    pub mesh: MeshId,
    /// Rises with each change; the ledger's index of the change will do.
    pub version: u64,
    /// All members ever, by name.
    pub members: BTreeMap<NodeId, MemberRow>,
}

/// Why a stored table could not be read or written.
#[derive(Debug, Error)]
pub enum MemberTableError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no member table.
    #[error("{path}: not a member table ({reason}); remove it and the node asks a seed for the current one")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl MemberTable {
    /// A table of that version.
    pub fn new(mesh: MeshId, version: u64, members: BTreeMap<NodeId, MemberRow>) -> Self {
        Self { format: FORMAT, mesh, version, members }
    }

    /// Those who may open links.
    pub fn allowed(&self) -> impl Iterator<Item = &NodeId> {
        self.members.iter().filter(|(_, row)| !row.revoked).map(|(node, _)| node)
    }

    /// Those who may not even gossip.
    pub fn revoked(&self) -> impl Iterator<Item = &NodeId> {
        self.members.iter().filter(|(_, row)| row.revoked).map(|(node, _)| node)
    }

    /// SHA-256 (hex) of mesh and members: equal for equal tables, whatever their version.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        part(self.mesh.as_str());
        for (node, row) in &self.members {
            part(node.as_str());
            part(&row.name);
            part(if row.revoked { "revoked" } else { "member" });
            part(&row.addresses.len().to_string());
            row.addresses.iter().for_each(|address| part(address));
        }
        hex::encode(hash.finalize())
    }

    /// The table of an earlier run, if there is one.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, MemberTableError> {
        let path = data_dir.join(MEMBERS_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(MemberTableError::File { path, source }),
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(table) if table.format == FORMAT => Ok(Some(table)),
            Ok(table) => Err(MemberTableError::Unreadable { path, reason: format!("format {}", table.format) }),
            Err(error) => Err(MemberTableError::Unreadable { path, reason: error.to_string() }),
        }
    }

    /// Keeps the table for the next start.
    pub fn store(&self, data_dir: &Path) -> Result<(), MemberTableError> {
        let path = data_dir.join(MEMBERS_FILE);
        serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|bytes| durable_file::replace(&path, &bytes, 0o600))
            .map_err(|source| MemberTableError::File { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(revoked: bool) -> MemberTable {
        let row = MemberRow { name: "a".into(), addresses: vec!["/ip4/127.0.0.1/tcp/1".into()], revoked };
        MemberTable::new(MeshId::new("m"), 3, BTreeMap::from([(NodeId::new("n"), row)]))
    }

    #[test]
    fn kept_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(MemberTable::load(dir.path()).unwrap(), None);
        table(false).store(dir.path()).unwrap();
        table(true).store(dir.path()).unwrap();
        assert_eq!(MemberTable::load(dir.path()).unwrap(), Some(table(true)));
        fs::write(dir.path().join(MEMBERS_FILE), "{").unwrap();
        assert!(MemberTable::load(dir.path()).unwrap_err().to_string().contains("not a member table"));
    }

    #[test]
    fn the_digest_is_of_who_may_speak() {
        assert_ne!(table(false).digest(), table(true).digest());
        let later = MemberTable { version: 9, ..table(false) };
        assert_eq!(later.digest(), table(false).digest());
        assert_eq!((table(false).allowed().count(), table(true).allowed().count()), (1, 0));
    }
}
