//! What can go wrong between a node and a place, said so that a user can act on it.

use std::{
    io,
    path::{Path, PathBuf},
};

use mloc_core::{
    ledger::entry::{Failure, FailureClass},
    task::spec::{Location, Pin},
};

/// A transfer that did not come off. The text says where, what was found, and what would work; it never holds
/// credentials.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nobody answers, or the line breaks again and again.
    #[error(
        "{place}: no answer from {endpoint} after {tries} tries: {found}\nhint: is the endpoint up, and can this node reach it? the task will be tried again"
    )]
    Unreachable {
        /// The place, as a URL.
        place: String,
        /// Whom was asked.
        endpoint: String,
        /// How often.
        tries: u32,
        /// What came back instead.
        found: String,
    },
    /// The server says no to these credentials, or there are none.
    #[error("{place}: access denied: {found}\nhint: {hint}")]
    Denied {
        /// The place, as a URL.
        place: String,
        /// The server's words.
        found: String,
        /// What would work.
        hint: &'static str,
        /// Whether this node's own credentials or clock are at fault: another node may be let in.
        here: bool,
    },
    /// The server answered and refuses the request itself.
    #[error("{place}: refused: {found}\nhint: check its address: endpoint, region and bucket, or URL")]
    Refused {
        /// The place, as a URL.
        place: String,
        /// The server's words.
        found: String,
    },
    /// The Hugging Face Hub does not give it, or does not take it.
    #[error("{place}: {found}\nhint: {hint}")]
    Hub {
        /// The place.
        place: String,
        /// Why.
        found: String,
        /// What would work.
        hint: String,
        /// Whether another node, with a token of its own, may be let in.
        here: bool,
    },
    /// The server answers, and has had enough of this node for now.
    #[error("{place}: the server limits how much this node may ask: {found}\nhint: {hint}")]
    Busy {
        /// The place.
        place: String,
        /// The server's words.
        found: String,
        /// What would work.
        hint: &'static str,
        /// When to come again, where it says so.
        wait: Option<std::time::Duration>,
    },
    /// There is no such thing.
    #[error("{place}: {found}\nhint: {hint}")]
    NotFound {
        /// The place.
        place: String,
        /// What is missing.
        found: String,
        /// What would work.
        hint: String,
    },
    /// The folder or prefix holds no files.
    #[error("{place}: nothing is there\nhint: name a folder that holds files, or one file")]
    Empty {
        /// The place.
        place: String,
    },
    /// A local path that no declared volume covers.
    #[error(
        "local path `{path}` is under no volume of this node; declared: {declared}\nhint: write VOLUME/relative/path; or declare the folder under `volumes` in node.yaml; or name the nodes that have it in placement.nodes"
    )]
    NoVolume {
        /// What was given.
        path: String,
        /// Names and folders of the volumes.
        declared: String,
    },
    /// A path that leaves its volume by `..` or a symbolic link.
    #[error(
        "local path `{path}` leaves its volume: {found}\nhint: name a path inside the volume, without `..` and without links that lead out"
    )]
    Escapes {
        /// What was given.
        path: String,
        /// How it leaves.
        found: String,
    },
    /// A declared volume that is not there.
    #[error("volume `{volume}` ({folder}) cannot be opened: {source}\nhint: is it mounted on this node?")]
    VolumeGone {
        /// Its name.
        volume: String,
        /// Its folder.
        folder: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A name that would be written somewhere else than below its folder.
    #[error(
        "{place}: file name `{name}` is refused\nhint: names are relative, with `/`, without `..`, empty or hidden parts of ours"
    )]
    BadName {
        /// Where the name comes from.
        place: String,
        /// The name.
        name: String,
    },
    /// A symbolic link of a repository that leads somewhere else.
    #[error(
        "{place}: the link `{name}` leads out of what is pulled, to `{target}`\nhint: remove the link from the repository, or name a `path` that holds its target or leaves the link out"
    )]
    LeavesTree {
        /// The repository.
        place: String,
        /// The link.
        name: String,
        /// What it says.
        target: String,
    },
    /// Not enough room, known before the transfer or found while writing.
    #[error(
        "{folder}: {needed} more bytes are needed and {free} are free\nhint: free some space, or ask for more `disk` in resources.hardware"
    )]
    NoSpace {
        /// The folder.
        folder: PathBuf,
        /// Bytes still to be written, reserve included.
        needed: u64,
        /// Bytes free for this process.
        free: u64,
    },
    /// The object changed again and again while it was read.
    #[error(
        "{place}: changed while it was read\nhint: publish to a new path instead of writing over one that tasks read"
    )]
    Changed {
        /// The object.
        place: String,
    },
    /// Bytes that are not those that were written.
    #[error(
        "{place}: damaged: {found}\nhint: the next try fetches it anew; if it stays so, the source is damaged, or the digest is another file's"
    )]
    Damaged {
        /// The file.
        place: String,
        /// What does not match.
        found: String,
    },
    /// Another task's result lies at the destination.
    #[error("{place}: destination holds the result of task {task}\nhint: choose another output.destination, or remove its {manifest} first", manifest = crate::manifest::MANIFEST)]
    Taken {
        /// The destination.
        place: String,
        /// Whose result it is.
        task: String,
    },
    /// It is another version than the task's first attempt met.
    #[error(
        "{place} has changed since this task's first attempt: then {}, now {}\nhint: put back what was there, or submit the task again to run on what is there now",
        shown(pinned),
        shown(found)
    )]
    OtherVersion {
        /// The place.
        place: String,
        /// What the first attempt met.
        pinned: Pin,
        /// What is there now.
        found: Pin,
    },
    /// The task's first attempt had it from a mirror of its own versions, or this node has it from one.
    #[error(
        "{place}: this task's first attempt got it from {first}, and this node gets it from {here}: nobody can tell whether they are the same\nhint: give the nodes that run such tasks the same store.mirrors, or name those that have them in placement.nodes"
    )]
    OtherWay {
        /// The place.
        place: String,
        /// Where the first attempt had it from.
        first: String,
        /// Where this node has it from.
        here: String,
    },
    /// The node may not ask anybody.
    #[error("{place}: this node is offline (store.offline in node.yaml){found}\nhint: {hint}")]
    Offline {
        /// The place.
        place: String,
        /// What else was looked at.
        found: &'static str,
        /// What would work.
        hint: &'static str,
    },
    /// A kind of place this build cannot reach.
    #[error("this build cannot reach places of type `{scheme}`")]
    Unsupported {
        /// The type.
        scheme: &'static str,
    },
    /// This machine's disk or its files.
    #[error("cannot {action} {path}: {source}")]
    Disk {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The node's own configuration.
    #[error("no way to other machines from this node: {found}\nhint: {hint}")]
    Unready {
        /// What is wrong.
        found: String,
        /// What would work.
        hint: &'static str,
    },
}

impl StoreError {
    /// What another try would come to. An error of this node alone is worth another try: the scheduler prefers a
    /// node where the task has not failed yet.
    pub fn class(&self) -> FailureClass {
        use StoreError::*;
        match self {
            Unreachable { .. } | Busy { .. } | NoSpace { .. } | Changed { .. } | Disk { .. } | Damaged { .. } => {
                FailureClass::Retryable
            }
            // Another node may have the volume, the certificates, the credentials, the way.
            NoVolume { .. }
            | VolumeGone { .. }
            | Unready { .. }
            | OtherWay { .. }
            | Offline { .. }
            | Hub { here: true, .. }
            | Denied { here: true, .. } => FailureClass::Retryable,
            // These would be the same everywhere.
            Denied { here: false, .. }
            | Hub { here: false, .. }
            | Refused { .. }
            | NotFound { .. }
            | Empty { .. }
            | Escapes { .. }
            | LeavesTree { .. }
            | BadName { .. }
            | Taken { .. }
            | OtherVersion { .. }
            | Unsupported { .. } => FailureClass::Fatal,
        }
    }

    /// For the ledger.
    pub fn failure(&self) -> Failure {
        Failure { class: self.class(), message: self.to_string() }
    }

    /// A source that an offline node has not.
    pub(crate) fn offline_source(place: String) -> Self {
        StoreError::Offline {
            place,
            found: ", and neither its cache nor a mirror in its volumes holds it",
            hint: "pull it once while the node is online, or declare a mirror in a volume (store.mirrors)",
        }
    }

    /// A destination that an offline node can neither write to nor read from.
    pub(crate) fn offline_destination(place: String) -> Self {
        let hint = "write to it and read from it through a node that is online (placement.nodes), or use a volume";
        StoreError::Offline { place, found: "", hint }
    }

    /// No way of this build leads there.
    pub(crate) fn unsupported(location: &Location) -> Self {
        StoreError::Unsupported { scheme: location.scheme() }
    }

    /// The same after so many tries.
    pub(crate) fn after(self, failures: u32) -> Self {
        match self {
            StoreError::Unreachable { place, endpoint, found, .. } => {
                StoreError::Unreachable { place, endpoint, tries: failures, found }
            }
            other => other,
        }
    }

    /// An error of this machine's disk; a full one is told apart.
    pub(crate) fn disk(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let folder = path.parent().unwrap_or(path).to_owned();
                let free = mloc_exec::disk::free_bytes(&folder).unwrap_or(0);
                StoreError::NoSpace { folder, needed: free.saturating_add(1), free }
            }
            _ => StoreError::Disk { action, path: path.to_owned(), source },
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        error.failure()
    }
}
/// A version, for people.
fn shown(pin: &Pin) -> String {
    format!("{} ({} files, {} bytes)", pin.version, pin.files, pin.bytes)
}
