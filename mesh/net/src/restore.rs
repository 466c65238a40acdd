//! A mesh founded anew from a backup, and a backup taken from the files of a node that does not run.
//!
//! The restored mesh is another mesh: a new id, a new join token and with it a new certificate authority, a new raft id,
//! and every member of the old one revoked (`mloc_core::ledger::restore`). A node of the old mesh that comes back, with or
//! without others, cannot speak to the new one: its certificate is of another authority, its member table of another mesh,
//! its key revoked. Keeping the id under some higher epoch would have spared people the new token, and would have rested
//! the separation of two ledgers with one name on every single check of that epoch.
//!
//! Files are laid down in an order in which a start refuses every beginning of it: the raft log, which begins after a
//! snapshot, the key, the member table, the token, and the snapshot last. So no crash leaves a directory on which
//! `mloc up` would found an empty mesh.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use mloc_core::{
    id::{MeshId, NodeId},
    ledger::restore::Restore,
    time::Millis,
};

use crate::{
    identity::NodeIdentity,
    members::MemberTable,
    membership::table_of,
    raft::{self, Backup},
    start::TOKEN_FILE,
    token::JoinToken,
};

/// What every new ext4 file system holds: a volume with nothing else is empty.
const LOST_AND_FOUND: &str = "lost+found";

/// Where and how a backup is restored.
#[derive(Debug)]
pub struct RestoreSettings {
    /// The founding node's data directory: empty, or not there yet.
    pub data_dir: PathBuf,
    /// The founding node's name for people, until it gossips the one it is started with.
    pub name: String,
    /// The new mesh's token, where the platform minted it beforehand; of another mesh than the backup's.
    pub token: Option<JoinToken>,
    /// Now.
    pub at: Millis,
}

/// A mesh that is ready to be started.
#[derive(Debug)]
pub struct Restored {
    /// Its id.
    pub mesh: MeshId,
    /// The node that founds it.
    pub node: NodeId,
    /// The file that holds its join token.
    pub token_file: PathBuf,
    /// Attempts that ran at the backup: their replicas wait again.
    pub requeued: u64,
    /// The number of the first attempt of each replica from now on.
    pub first_attempt: u32,
}

/// Why a backup was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is something already.
    #[error(
        "{dir}: not empty (it holds {found}): a backup is restored into an empty data directory\n\
         hint: name another one by --data-dir, or move this one away; if a restore broke off here, remove what it left"
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One thing in it.
        found: String,
    },
    /// The given token is the old mesh's.
    #[error(
        "the join token is of mesh {0}, which is the one that was backed up: a restored mesh gets a new id, so that no \
         node of the old one is ever taken for one of its own\nhint: `mloc token --new-mesh` mints a token; or give none"
    )]
    SameMesh(MeshId),
    /// The disk or its permissions.
    #[error("{path}: {source}\nhint: the restore broke off; empty the data directory and restore again")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Lays down a data directory with which `mloc up` goes on as the one node of a new mesh that has this ledger.
///
/// # Errors
/// When the directory is not empty, the token is the old mesh's, or the disk does not take it.
pub fn restore(backup: &Backup, settings: RestoreSettings) -> Result<Restored, RestoreError> {
    let RestoreSettings { data_dir: dir, name, token, at } = settings;
    if let Some(found) = something_in(&dir).map_err(|source| RestoreError::Io { path: dir.clone(), source })? {
        return Err(RestoreError::NotEmpty { dir, found });
    }
    let token = token.unwrap_or_else(|| JoinToken::found(&mut rand::rng()));
    if *token.mesh() == backup.head.mesh {
        return Err(RestoreError::SameMesh(token.mesh().clone()));
    }
    let at_file = |file: &str| {
        let path = dir.join(file);
        move |source| RestoreError::Io { path, source }
    };
    let identity = NodeIdentity::from_seed(rand::random());
    let node = identity.node().clone();
    let restore = Restore { as_of: backup.head.as_of, at, founder: node.clone(), name };
    let requeued = backup.ledger.live_attempts().count() as u64;
    let ledger = backup.ledger.clone().restored(&restore);

    std::fs::create_dir_all(&dir).map_err(|source| RestoreError::Io { path: dir.clone(), source })?;
    let after = (backup.head.term, backup.head.index);
    let laid = raft::lay_down(&dir, &node, raft::mint(), after, &ledger).map_err(at_file("raft.redb"))?;
    identity.keep(&dir).map_err(at_file(crate::identity::KEY_FILE))?;
    let table = table_of(token.mesh(), &ledger);
    table.store(&dir).map_err(|error| at_file(crate::members::MEMBERS_FILE)(io::Error::other(error)))?;
    let token_file = dir.join(TOKEN_FILE);
    crate::durable_file::replace(&token_file, format!("{}\n", token.reveal()).as_bytes(), 0o600)
        .map_err(at_file(TOKEN_FILE))?;
    laid.finish().map_err(at_file("raft.snapshot"))?;
    let first_attempt = ledger.attempts_after.saturating_add(1);
    Ok(Restored { mesh: token.mesh().clone(), node, token_file, requeued, first_attempt })
}

/// The name of one thing in a folder; `None` when it is empty or not there.
fn something_in(dir: &Path) -> io::Result<Option<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        if name != LOST_AND_FOUND {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// A backup from the files of a node that does not run, and what is to be known of it.
#[derive(Debug)]
pub struct FromFiles {
    /// The backup: of every entry in the node's log.
    pub backup: Backup,
    /// How many of these the node did not know to be committed.
    pub uncertain: u64,
    /// Whether the node voted when it last heard of it. One that did not may lack the newest entries.
    pub votes: bool,
}

/// Takes a backup from the data directory of a node that does not run: the way out when the voters that are left are no
/// majority. It holds every committed entry that this node knows.
///
/// # Errors
/// When a daemon runs there, or the files are damaged, of no mesh, or hold no ledger.
pub fn from_data_dir(dir: &Path, mloc: &str) -> anyhow::Result<FromFiles> {
    let mesh = match MemberTable::load(dir)? {
        Some(table) => table.mesh,
        None => {
            let token = JoinToken::from_file(&dir.join(TOKEN_FILE));
            let context = || format!("{}: not the data directory of a member of a mesh", dir.display());
            token.with_context(context)?.mesh().clone()
        }
    };
    let found = raft::read_stopped(dir)?;
    anyhow::ensure!(
        found.index > 0,
        "{}: this node never voted and holds no ledger\nhint: use the data directory of a voter; `mloc nodes` showed them",
        dir.display()
    );
    let as_of = found.ledger.latest_moment();
    let backup = Backup::new(mesh, (found.term, found.index), as_of, mloc, found.ledger);
    Ok(FromFiles { backup, uncertain: found.uncertain, votes: found.votes })
}
