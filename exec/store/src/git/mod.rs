//! Git repositories as sources: the files of one commit, without its history, large files (LFS) among them.
//!
//! ```text
//! url, revision → tips → a commit            (revision; a pinned commit is asked for as it is)
//!   → a pack of that commit alone            (wire, inflow; with `path`, only the files below it where the server can)
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
mod inflow;
mod lfs;
mod objects;
mod pointer;
mod revision;
mod tree;
mod trouble;
mod wire;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use gix_hash::ObjectId;
use mloc_core::{
    ledger::entry::FailureClass,
    task::spec::{Location, Pin},
};
use mloc_exec::{MakeRoom, OnMoved, failpoint};
use serde::{Deserialize, Serialize};

use self::{
    address::Address,
    checkout::Record,
    inflow::{Inflow, enough_room},
    lfs::Lfs,
    objects::Objects,
    tree::{Plan, Shape},
    wire::{Ask, Failed, Peer, Session},
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

/// Leaves out every file: they are asked for by name afterwards.
const NO_BLOBS: &str = "blob:none";
/// Leaves out all but commits.
const NO_TREES: &str = "tree:0";

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

    /// What a revision means now.
    async fn resolve(&self, way: &Path, company: &Company) -> Result<ObjectId, StoreError> {
        let (here, way, company) = (self.clone(), way.to_owned(), company.clone());
        self.blocking(move |halt| {
            let revision = here.revision.as_deref();
            if let Some(commit) = revision.and_then(revision::full) {
                return Ok(commit);
            }
            let mut session = Session::open(&here.peer)?;
            let tips = session.tips(Some(&revision::names(revision)))?;
            if let Some(commit) = revision::pick(&tips, revision) {
                return Ok(commit);
            }
            let all = session.tips(None)?;
            match revision {
                None => Err(here.no_revision("its HEAD leads to no commit", "name a branch, a tag or a commit", &all)),
                Some(short) if revision::may_be_short(short) => here.lengthen(short, &all, &way, halt, &company),
                Some(name) => {
                    let found = format!("there is no branch, tag or commit `{name}`");
                    Err(here.no_revision(&found, "", &all))
                }
            }
        })
        .await
    }

    /// The one commit whose name begins so. A server looks up only whole names, so all commits that its names lead to
    /// are fetched: without their files where it can leave those out.
    fn lengthen(
        &self,
        short: &str,
        tips: &[revision::Tip],
        way: &Path,
        halt: &Halt,
        company: &Company,
    ) -> Result<ObjectId, StoreError> {
        tracing::info!(
            repository = self.peer.address.url,
            short,
            "an abbreviated commit: the history is looked through"
        );
        let folder = way.join("history");
        disk::remove_all(&folder)?;
        disk::make_folder(&folder)?;
        let mut wants: Vec<_> = tips.iter().filter(|t| t.name.starts_with("refs/")).map(|t| t.object).collect();
        wants.sort();
        wants.dedup();
        let ask = Ask { wants, shallow: false, filter: Some(NO_TREES) };
        let inflow = Inflow::new(halt, &folder, self.reserve, &company.room, &company.tell);
        let found = Session::open(&self.peer)?.receive(&ask, &folder, &inflow).map_err(|e| self.not_given(e))?;
        let indices: Vec<_> = found.into_iter().collect();
        let commits = Objects::open(&indices, &self.place())?.commits_named(short)?;
        disk::remove_all(&folder)?;
        match commits.as_slice() {
            [one] => Ok(*one),
            [] => Err(self.no_revision(&format!("there is no branch, tag or commit `{short}`"), "", tips)),
            many => {
                let names: Vec<_> = many.iter().take(5).map(|id| id.to_hex_with_len(12).to_string()).collect();
                let found = format!("`{short}` begins the names of {} commits", many.len());
                Err(self.no_revision(&found, &format!("write more of it: {}", names.join(", ")), &[]))
            }
        }
    }

    /// The pack of a commit, whole on the disk: from an earlier try, or from the server.
    async fn receive(
        &self,
        asked: ObjectId,
        pinned: bool,
        way: &Path,
        company: &Company,
    ) -> Result<Received, StoreError> {
        let (here, folder, company) = (self.clone(), way.join(PACKS), company.clone());
        self.blocking(move |halt| {
            let whole = folder.join("whole.json");
            let earlier = fs::read(&whole).ok().and_then(|bytes| serde_json::from_slice::<Received>(&bytes).ok());
            if let Some(earlier) = earlier.filter(|earlier| revision::full(&earlier.commit) == Some(asked)) {
                return Ok(earlier);
            }
            disk::remove_all(&folder)?;
            disk::make_folder(&folder)?;
            let inflow = Inflow::new(halt, &folder, here.reserve, &company.room, &company.tell);
            let packs = here.packs(asked, pinned, &folder, &inflow)?;
            for pack in &packs {
                objects::sync(pack)?;
            }
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let received =
                Received { commit: asked.to_string(), packs: packs.iter().map(name).collect(), bytes: inflow.bytes() };
            let bytes = serde_json::to_vec(&received).map_err(|e| StoreError::Disk {
                action: "describe",
                path: whole.clone(),
                source: e.into(),
            })?;
            disk::write(&whole, &bytes, halt)?;
            failpoint::reached("store.git.received");
            Ok(received)
        })
        .await
    }

    /// The packs that hold what is wanted of a commit; their indices.
    fn packs(
        &self,
        asked: ObjectId,
        pinned: bool,
        folder: &Path,
        inflow: &Inflow<'_>,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let mut session = Session::open(&self.peer)?;
        // Of a part of the tree only that part's files, where the server leaves out the others.
        let sparse = self.path.is_some() && session.filters();
        let ask = Ask { wants: vec![asked], shallow: true, filter: sparse.then_some(NO_BLOBS) };
        let first = match session.receive(&ask, folder, inflow) {
            Ok(index) => index,
            Err(Failed::Other(error)) => return Err(error),
            Err(Failed::NotGiven(said)) => return self.whole_history(asked, pinned, &said, folder, inflow),
        };
        let mut packs: Vec<_> = first.into_iter().collect();
        if sparse {
            let place = self.place();
            let mut objects = Objects::open(&packs, &place)?;
            let commit = objects.commit(asked)?;
            let tree = objects.tree_of(&commit)?;
            let mut wants = Shape::of(&mut objects, tree, self.path.as_deref(), &place)?.blobs();
            wants.retain(|id| !objects.has(id));
            if !wants.is_empty() {
                let ask = Ask { wants, shallow: false, filter: Some(NO_BLOBS) };
                let second = Session::open(&self.peer)?.receive(&ask, folder, inflow);
                packs.extend(second.map_err(|e| self.not_given(e))?);
            }
        }
        Ok(packs)
    }

    /// Servers that give only what their names lead to: all of that is fetched, and the commit is among it or is gone.
    fn whole_history(
        &self,
        asked: ObjectId,
        pinned: bool,
        said: &str,
        folder: &Path,
        inflow: &Inflow<'_>,
    ) -> Result<Vec<PathBuf>, StoreError> {
        let gone = || match pinned {
            true => self.no_commit(&asked.to_string(), said),
            false => self.no_revision(&format!("there is no commit {asked}: {said}"), "", &[]),
        };
        let mut session = Session::open(&self.peer)?;
        let tips = session.tips(None)?;
        let mut wants: Vec<_> = tips.iter().filter(|t| t.name.starts_with("refs/")).map(|t| t.object).collect();
        wants.sort();
        wants.dedup();
        if session.filters() {
            // Whether it is worth it is seen from the commits alone.
            let look = folder.join("history");
            disk::make_folder(&look)?;
            let ask = Ask { wants: wants.clone(), shallow: false, filter: Some(NO_TREES) };
            let index = session.receive(&ask, &look, inflow).map_err(|e| self.not_given(e))?;
            let indices: Vec<_> = index.into_iter().collect();
            let there = Objects::open(&indices, &self.place())?.has(&asked);
            disk::remove_all(&look)?;
            if !there {
                return Err(gone());
            }
            session = Session::open(&self.peer)?;
        }
        tracing::warn!(repository = self.peer.address.url, commit = %asked, said, "the server does not give this commit alone: its whole history is fetched");
        let ask = Ask { wants, shallow: false, filter: None };
        let index = session.receive(&ask, folder, inflow).map_err(|e| self.not_given(e))?;
        let packs: Vec<_> = index.into_iter().collect();
        if Objects::open(&packs, &self.place())?.has(&asked) { Ok(packs) } else { Err(gone()) }
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

    fn not_given(&self, failed: Failed) -> StoreError {
        match failed {
            Failed::Other(error) => error,
            Failed::NotGiven(said) => StoreError::NotFound {
                place: self.place(),
                found: format!("the server does not give it: {said}"),
                hint: "has the repository changed just now? submit the task again".into(),
            },
        }
    }

    fn no_revision(&self, found: &str, hint: &str, tips: &[revision::Tip]) -> StoreError {
        let near = revision::near(tips, self.revision.as_deref().unwrap_or_default());
        let hint = match (hint.is_empty(), near.is_empty()) {
            (false, _) => hint.to_owned(),
            (true, true) => "check the revision".to_owned(),
            (true, false) => format!("there are: {}", near.join(", ")),
        };
        StoreError::NotFound { place: self.peer.address.url.clone(), found: found.to_owned(), hint }
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
