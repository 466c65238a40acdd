//! Git repositories as sources: the files of one commit, without its history, large files (LFS) among them.
//!
//! ```text
//! url, revision → tips → a commit            (revision; a pinned commit is asked for as it is)
//!   → a pack of that commit alone            (fetch, wire, inflow; with `path`, only the files below it where the server can)
//!   → a plan: files, links, pointers         (tree; pointer)
//!   → large files                            (lfs, through transfer)
//!   → .mloc-pull/tree → tree-COMMIT          (checkout: whole or not there)
//! ```
//!
//! Spoken with gitoxide's plumbing crates and not with the `git` program: a node needs nothing installed (but `ssh` for
//! such URLs), nothing of the machine's configuration, hooks or filters has a say, and shallow fetches of any commit work
//! the same. They are some fifty small crates, the one HTTP client and the one TLS of the tree; the library's porcelain,
//! its work trees and its configuration are left out.
//!
//! Deliberately absent: submodules (said in the log), filters and line ends, SHA-256 repositories, the old "dumb" HTTP.

mod address;
mod checkout;
mod fetch;
mod inflow;
mod lfs;
mod objects;
mod pointer;
mod revision;
mod tree;
mod trouble;
mod wire;

use std::{fs::File, path::Path, sync::Arc};

use gix_hash::ObjectId;
use mloc_core::{
    ledger::entry::FailureClass,
    task::spec::{Location, Pin},
};
use mloc_exec::{MakeRoom, OnMoved};
use serde::{Deserialize, Serialize};

use self::{
    address::Address,
    checkout::Record,
    inflow::enough_room,
    lfs::Lfs,
    objects::Objects,
    tree::{Plan, Shape},
    wire::Peer,
};
use crate::{
    Store,
    config::Patience,
    disk::{self, Halt, off_thread, until_dropped},
    error::StoreError,
    meter::Meter,
    place::Source,
    pull::{Pulled, alone},
    transfer::{self, UNDER_WAY},
};

/// A source.
pub(crate) fn source(store: &Store, location: &Location) -> Result<Source, StoreError> {
    match location {
        Location::Git { url, revision, path } => {
            Ok(Source::Git(Git::open(store, url, revision.as_deref(), path.as_deref())?))
        }
        other => Err(StoreError::unsupported(other)),
    }
}

/// A repository, or a part of it, in one revision.
#[derive(Clone, Debug)]
pub(crate) struct Git {
    peer: Peer,
    http: reqwest::Client,
    revision: Option<String>,
    path: Option<String>,
    reserve: u64,
}

/// How a pull is followed and helped.
#[derive(Clone)]
struct Company {
    room: MakeRoom,
    tell: OnMoved,
    /// Keeps other pulls out of the folder until the last thread that writes there has ended.
    _alone: Arc<File>,
}

/// Packs that are there whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Received {
    /// The commit's name in full.
    commit: String,
    /// Names of the packs' indices.
    packs: Vec<String>,
    /// Bytes that came for them.
    bytes: u64,
}

impl Git {
    /// Opens a repository. No request is sent.
    fn open(store: &Store, url: &str, revision: Option<&str>, path: Option<&str>) -> Result<Self, StoreError> {
        let (config, client) = (&store.config, &store.client);
        let address = Address::of(url).ok_or_else(|| StoreError::NotFound {
            place: url.to_owned(),
            found: "no URL of a git repository".into(),
            hint: "write https://…, ssh://…, git://… or git@host:path".into(),
        })?;
        if address.way == address::Way::Https {
            client.speaks(url)?;
        }
        let peer = Peer {
            address,
            accounts: config.git.clone(),
            ssh: config.ssh.clone(),
            patience: config.patience,
            tls: client.speaks("https://").is_ok(),
        };
        let (revision, path) = (revision.map(str::to_owned), path.map(str::to_owned));
        Ok(Self { peer, http: client.http.clone(), revision, path, reserve: config.reserve_bytes })
    }

    /// The repository and the revision as text for people.
    fn place(&self) -> String {
        match &self.revision {
            Some(revision) => format!("{} at {revision}", self.peer.address.url),
            None => self.peer.address.url.clone(),
        }
    }

    /// Brings the files below `folder`; as [`crate::Store::pull`].
    pub async fn pull(
        &self,
        pin: Option<&Pin>,
        folder: &Path,
        room: MakeRoom,
        tell: OnMoved,
    ) -> Result<Pulled, StoreError> {
        let company = Company { room, tell, _alone: Arc::new(alone(folder).await?) };
        let way = folder.join(UNDER_WAY);
        let asked = match pin {
            Some(pin) => {
                revision::full(&pin.version).ok_or_else(|| self.no_commit(&pin.version, "no commit's name"))?
            }
            None => self.resolve(&way, &company).await?,
        };
        if let Some(record) = self.there(folder, &asked.to_string()).await {
            Meter::new(record.bytes(), company.tell.clone()).found(record.bytes());
            return self.done(folder, &record, 0, pin);
        }
        let received = self.receive(asked, pin.is_some(), &way, &company).await?;
        let packs = way.join(PACKS);
        let (plan, configured) = self.plan(&received, &packs, &company).await?;
        let large: Vec<_> = plan.files.iter().filter(|file| file.pointer.is_some()).collect();
        let meter = Meter::new(received.bytes + plan.large_bytes(), company.tell.clone());
        meter.moved(received.bytes);
        if !large.is_empty() {
            let mut lfs = Lfs::of(self.peer.clone(), self.http.clone(), configured).await;
            let objects = lfs.find(&large).await?;
            let (known, into, reserve, room) = (objects.clone(), way.join(LARGE), self.reserve, company.room.clone());
            let unpacked = plan.bytes() - plan.large_bytes();
            off_thread(move || {
                disk::make_folder(&into.join(UNDER_WAY))?;
                transfer::remove_others(&known, &into)?;
                enough_room(transfer::missing_bytes(&known, &into)?.saturating_add(unpacked), &into, reserve, &room)
            })
            .await?;
            transfer::fetch(&lfs, &objects, &way.join(LARGE), &meter).await?;
        }
        let record = self.check_out(&received, plan, folder, &company).await?;
        self.done(folder, &record, meter.fetched(), pin)
    }

    /// What will be written, and the repository's word on its large files.
    async fn plan(
        &self,
        received: &Received,
        packs: &Path,
        company: &Company,
    ) -> Result<(Plan, Option<String>), StoreError> {
        let (here, received, packs, company) = (self.clone(), received.clone(), packs.to_owned(), company.clone());
        self.blocking(move |_| {
            let place = here.place();
            let (mut objects, commit) = here.objects(&received, &packs)?;
            let tree = objects.tree_of(&commit)?;
            let shape = Shape::of(&mut objects, tree, here.path.as_deref(), &place)?;
            if !shape.modules.is_empty() {
                let modules = shape.modules.join(", ");
                tracing::warn!(
                    repository = here.peer.address.url,
                    modules,
                    "submodules are not fetched: their folders are absent"
                );
            }
            let mut plan = shape.plan(&mut objects, &place)?;
            if plan.files.is_empty() {
                return Err(StoreError::Empty { place });
            }
            if let (true, Some(file), Some(path)) = (plan.one, plan.files.first_mut(), &here.path) {
                file.path = path.rsplit('/').next().unwrap_or(path).to_owned();
            }
            let mut config = Vec::new();
            let configured = match shape.lfsconfig {
                Some(id) if plan.large_bytes() > 0 => {
                    objects.get(&id, &mut config)?;
                    pointer::lfs_url(&String::from_utf8_lossy(&config))
                }
                _ => None,
            };
            let unpacked = plan.bytes() - plan.large_bytes();
            enough_room(unpacked, &packs, here.reserve, &company.room)?;
            Ok((plan, configured))
        })
        .await
    }

    /// Writes the files, gives them their place, and clears away what led there.
    async fn check_out(
        &self,
        received: &Received,
        plan: Plan,
        folder: &Path,
        company: &Company,
    ) -> Result<Record, StoreError> {
        let (here, received, folder, company) = (self.clone(), received.clone(), folder.to_owned(), company.clone());
        self.blocking(move |halt| {
            let _company = &company;
            let way = folder.join(UNDER_WAY);
            let (mut objects, commit) = here.objects(&received, &way.join(PACKS))?;
            let commit = commit.to_string();
            let aside = way.join("tree");
            let files = checkout::write(&plan, &mut objects, &way.join(LARGE), &aside, halt)?;
            drop(objects);
            let name = format!("{TREE}{}", &commit[..commit.len().min(12)]);
            checkout::place(&aside, &folder.join(&name))?;
            let record = Record { commit, folder: name, one: plan.one, files };
            record.save(&way.join(RECORD))?;
            // Whatever is left of this when the process dies here is cleared away by the next pull.
            clear(&folder, &record)?;
            Ok(record)
        })
        .await
    }

    fn objects(&self, received: &Received, packs: &Path) -> Result<(Objects, ObjectId), StoreError> {
        let indices: Vec<_> = received.packs.iter().map(|name| packs.join(name)).collect();
        let mut objects = Objects::open(&indices, &self.place())?;
        let asked =
            revision::full(&received.commit).ok_or_else(|| self.no_commit(&received.commit, "no commit's name"))?;
        let commit = objects.commit(asked)?;
        Ok((objects, commit))
    }

    /// What an earlier pull left, if it is this commit.
    async fn there(&self, folder: &Path, commit: &str) -> Option<Record> {
        let (folder, commit) = (folder.to_owned(), commit.to_owned());
        off_thread(move || {
            let record = Record::read(&folder.join(UNDER_WAY).join(RECORD), &folder, &commit)?;
            if let Err(error) = clear(&folder, &record) {
                tracing::warn!(%error, "leftovers of an earlier pull stay");
            }
            Some(record)
        })
        .await
    }

    fn done(&self, folder: &Path, record: &Record, fetched: u64, pin: Option<&Pin>) -> Result<Pulled, StoreError> {
        let files = record.pulled();
        let found = Pin { version: record.commit.clone(), files: files.len() as u64, bytes: record.bytes() };
        if let Some(pin) = pin.filter(|pin| **pin != found) {
            return Err(StoreError::OtherVersion { place: self.place(), pinned: pin.clone(), found });
        }
        let mut path = folder.join(&record.folder);
        if let (true, Some(file)) = (record.one, files.first()) {
            path = path.join(&file.path);
        }
        Ok(Pulled { path, in_place: false, files, bytes: found.bytes, fetched, pin: Some(found) })
    }

    /// Runs a blocking part of the pull, again when the line breaks.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl Fn(&Halt) -> Result<T, StoreError> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let work = Arc::new(work);
        patiently(self.peer.patience, || {
            let work = work.clone();
            until_dropped(move |halt| work(halt))
        })
        .await
    }

    fn no_commit(&self, commit: &str, said: &str) -> StoreError {
        StoreError::NotFound {
            place: self.place(),
            found: format!("commit {commit}, which this task's first attempt met, is not there any more: {said}"),
            hint:
                "push that commit again under a branch or a tag, or submit the task again to run on what is there now"
                    .into(),
        }
    }
}

/// Below `.mloc-pull`: what was received.
const PACKS: &str = "git";
/// Large files that are there.
const LARGE: &str = "lfs";
/// What lies beside it.
const RECORD: &str = "git.json";
/// How the folders with the files are named: by their commits.
const TREE: &str = "tree-";

/// Removes what led to a tree, and the trees of other commits.
fn clear(folder: &Path, record: &Record) -> Result<(), StoreError> {
    let way = folder.join(UNDER_WAY);
    for name in [PACKS, LARGE, "tree", "history"] {
        disk::remove_all(&way.join(name))?;
    }
    disk::sweep(&way)?;
    for name in disk::folders(folder)?.iter().filter(|name| name.starts_with(TREE) && **name != record.folder) {
        tracing::info!(tree = name, folder = %folder.display(), "of another commit: removed");
        disk::remove_all(&folder.join(name))?;
    }
    Ok(())
}

/// Does something again while the line is what fails and patience lasts.
async fn patiently<T, W: Future<Output = Result<T, StoreError>>>(
    patience: Patience,
    work: impl Fn() -> W,
) -> Result<T, StoreError> {
    let mut failures = 0;
    loop {
        let error = match work().await {
            Err(error)
                if matches!(error, StoreError::Unreachable { .. }) && error.class() == FailureClass::Retryable =>
            {
                error
            }
            ended => return ended,
        };
        failures += 1;
        let Some(wait) = patience.wait_after(failures) else { return Err(error.after(failures)) };
        tracing::debug!(%error, ?wait, "git again");
        tokio::time::sleep(wait).await;
    }
}
