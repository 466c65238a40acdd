//! Git repositories as sources: the files of one commit, without its history, large files (LFS) among them.
//!
//! ```text
//! url, revision → tips → a commit            (revision; a pinned commit is asked for as it is)
//!   → a pack of that commit alone            (fetch, wire, inflow; with `path`, only the files below it where the server can)
//!   → a plan: files, links, pointers         (tree; pointer)
//!   → large files                            (lfs, through transfer)
//!   → .mloc-pull/tree → tree-COMMIT          (checkout: whole or not there)
//!   → the shelf                              (cache: contents once, a view with links and modes)
//! ```
//!
//! A commit that the cache has takes no request when it is pinned, else the one for the names. Large files that it has
//! of another commit or source are not fetched again. Files that can be executed are a view's own: a mode is not of a
//! name but of a file, and blobs have theirs.
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

use std::{path::Path, sync::Arc};

use gix_hash::ObjectId;
use mloc_core::task::spec::{Location, Pin};
use mloc_exec::OnMoved;
use serde::{Deserialize, Serialize};

use self::{
    address::Address,
    checkout::Record,
    fetch::Meant,
    lfs::Lfs,
    objects::Objects,
    tree::{Plan, Shape},
    wire::Peer,
};
use crate::{
    Store,
    cache::{Filled, Shelf, Turn},
    disk::{self, Halt, off_thread, until_dropped},
    error::StoreError,
    meter::Meter,
    patience::patiently,
    place::Source,
    pull::Pulled,
    rate::Limit,
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
    /// Where its commits can be had as well, and first.
    mirrors: Vec<Git>,
    /// Whether one commit is worth its whole history: not a mirror's, which may only lag behind.
    history: bool,
}

/// How a pull is followed and helped.
#[derive(Clone)]
struct Company {
    shelf: Shelf,
    tell: OnMoved,
    limit: Limit,
    /// Keeps other pulls out of the folder until the last thread that writes there has ended.
    turn: Turn,
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
        Ok(Self {
            peer,
            http: client.http.clone(),
            revision,
            path,
            reserve: config.reserve_bytes,
            mirrors: Vec::new(),
            history: true,
        })
    }

    /// The same with mirrors beside it.
    pub fn beside(self, mirrors: Vec<Git>) -> Self {
        let mirrors = mirrors.into_iter().map(|mirror| Self { history: false, ..mirror }).collect();
        Self { mirrors, ..self }
    }

    /// The repository and the revision as text for people.
    pub fn place(&self) -> String {
        match &self.revision {
            Some(revision) => format!("{} at {revision}", self.peer.address.url),
            None => self.peer.address.url.clone(),
        }
    }

    /// Brings the files to the shelf; as [`crate::Store::pull`].
    pub async fn pull(
        &self,
        pin: Option<&Pin>,
        shelf: &Shelf,
        limit: &Limit,
        tell: OnMoved,
    ) -> Result<Pulled, StoreError> {
        let company = |turn| Company { shelf: shelf.clone(), tell: tell.clone(), limit: limit.clone(), turn };
        let way = shelf.folder().join(UNDER_WAY);
        let meant = match pin {
            Some(pin) => revision::full(&pin.version)
                .map(Meant::Commit)
                .ok_or_else(|| self.no_commit(&pin.version, "no commit's name"))?,
            None => self.meant().await?,
        };
        let (asked, turn) = match meant {
            Meant::Commit(commit) => (commit, None),
            Meant::Short(short, tips) => {
                let company = company(shelf.alone().await?);
                (self.lengthen(short, tips, &way, &company).await?, Some(company.turn))
            }
        };
        if let Some(there) = self.on(shelf, asked, pin, &tell).await? {
            return Ok(there);
        }
        let turn = match turn {
            Some(turn) => turn,
            None => shelf.alone().await?,
        };
        if turn.waited
            && let Some(there) = self.on(shelf, asked, pin, &tell).await?
        {
            return Ok(there);
        }
        let company = company(turn);
        let (record, fetched) = match self.there(shelf.folder(), &asked.to_string()).await {
            Some(record) => {
                Meter::new(record.bytes(), tell).found(record.bytes());
                (record, 0)
            }
            None => self.fetch(asked, pin.is_some(), &way, &company).await?,
        };
        let found = record.pin();
        self.still(pin, &found)?;
        let filled = Filled {
            place: self.place(),
            at: shelf.folder().join(&record.folder),
            pin: found,
            exact: true,
            one: record.one,
            files: record.filled(),
            links: record.links,
            fetched,
        };
        shelf.keep(filled, &company.turn).await
    }

    /// A commit that the shelf has.
    async fn on(
        &self,
        shelf: &Shelf,
        commit: ObjectId,
        pin: Option<&Pin>,
        tell: &OnMoved,
    ) -> Result<Option<Pulled>, StoreError> {
        let Some(there) = shelf.there_by_name(&commit.to_string()).await? else { return Ok(None) };
        if let Some(found) = &there.pin {
            self.still(pin, found)?;
        }
        Meter::new(there.bytes, tell.clone()).found(there.bytes);
        Ok(Some(there))
    }

    /// Fetches a commit from the first mirror that gives all of it, else from where it is.
    async fn fetch(
        &self,
        asked: ObjectId,
        pinned: bool,
        way: &Path,
        company: &Company,
    ) -> Result<(Record, u64), StoreError> {
        for mirror in &self.mirrors {
            match mirror.fetch_here(asked, pinned, way, company).await {
                // This node's own disk is the same whoever is asked.
                ended @ (Ok(_) | Err(StoreError::NoSpace { .. } | StoreError::Disk { .. })) => return ended,
                Err(error) => {
                    let place = self.place();
                    tracing::warn!(place, %error, "the mirror does not give it");
                }
            }
        }
        self.fetch_here(asked, pinned, way, company).await
    }

    /// Fetches a commit and writes its files; how many bytes went over the line for it.
    async fn fetch_here(
        &self,
        asked: ObjectId,
        pinned: bool,
        way: &Path,
        company: &Company,
    ) -> Result<(Record, u64), StoreError> {
        let received = self.receive(asked, pinned, way, company).await?;
        let (plan, configured) = self.plan(&received, &way.join(PACKS), company).await?;
        let meter = Meter::new(received.bytes + plan.large_bytes(), company.tell.clone()).at(&company.limit);
        meter.moved(received.bytes);
        self.fetch_large(&plan, configured, way, company, &meter).await?;
        let record = self.check_out(&received, plan, company).await?;
        Ok((record, meter.fetched()))
    }

    /// Brings the large files that the plan points to, below their digests: from the cache, else from where they are.
    async fn fetch_large(
        &self,
        plan: &Plan,
        configured: Option<String>,
        way: &Path,
        company: &Company,
        meter: &Meter,
    ) -> Result<(), StoreError> {
        let large: Vec<_> = plan.files.iter().filter(|file| file.pointer.is_some()).collect();
        if large.is_empty() {
            return Ok(());
        }
        let (objects, folder) = (lfs::objects(&large), way.join(LARGE));
        let (known, into) = (objects.clone(), folder.clone());
        off_thread(move || {
            disk::make_folder(&into.join(UNDER_WAY))?;
            transfer::remove_others(&known, &into)
        })
        .await?;
        let lent = company.shelf.lend(&objects, &folder, &company.turn).await?;
        meter.found(lent.iter().flatten().map(|stamp| stamp.bytes).sum());
        let missing: Vec<_> =
            objects.into_iter().zip(lent).filter(|(_, lent)| lent.is_none()).map(|(o, _)| o).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let lfs = Lfs::of(self.peer.clone(), self.http.clone(), configured, &large, &company.shelf).await;
        lfs.find(&missing).await?;
        let (known, into, reserve, shelf) = (missing.clone(), folder.clone(), self.reserve, company.shelf.clone());
        let unpacked = plan.bytes() - plan.large_bytes();
        off_thread(move || {
            let needed = transfer::missing_bytes(&known, &into)?.saturating_add(unpacked);
            shelf.enough_room(needed.saturating_add(reserve))
        })
        .await?;
        transfer::fetch(&lfs, &missing, &folder, meter).await?;
        Ok(())
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
                company.shelf.say(&format!("submodules are not fetched, their folders are absent: {modules}"));
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
            company.shelf.enough_room(unpacked.saturating_add(here.reserve))?;
            Ok((plan, configured))
        })
        .await
    }

    /// Writes the files, gives them their place, and clears away what led there.
    async fn check_out(&self, received: &Received, plan: Plan, company: &Company) -> Result<Record, StoreError> {
        let (here, received, company) = (self.clone(), received.clone(), company.clone());
        self.blocking(move |halt| {
            let folder = company.shelf.folder();
            let way = folder.join(UNDER_WAY);
            let (mut objects, commit) = here.objects(&received, &way.join(PACKS))?;
            let commit = commit.to_string();
            let aside = way.join("tree");
            let files = checkout::write(&plan, &mut objects, &way.join(LARGE), &aside, halt)?;
            drop(objects);
            let name = format!("{TREE}{}", &commit[..commit.len().min(12)]);
            checkout::place(&aside, &folder.join(&name))?;
            let record = Record { commit, folder: name, one: plan.one, files, links: plan.links.clone() };
            record.save(&way.join(RECORD))?;
            // Whatever is left of this when the process dies here is cleared away by the next pull.
            clear(folder, &record)?;
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

    /// Whether it is what was pinned.
    fn still(&self, pin: Option<&Pin>, found: &Pin) -> Result<(), StoreError> {
        match pin {
            Some(pin) if pin != found => {
                Err(StoreError::OtherVersion { place: self.place(), pinned: pin.clone(), found: found.clone() })
            }
            _ => Ok(()),
        }
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
    disk::sweep(&way, &Halt::never())?;
    for name in disk::folders(folder)?.iter().filter(|name| name.starts_with(TREE) && **name != record.folder) {
        tracing::info!(tree = name, folder = %folder.display(), "of another commit: removed");
        disk::remove_all(&folder.join(name))?;
    }
    Ok(())
}
