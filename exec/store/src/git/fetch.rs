//! From a revision to the packs of its commit: what is asked for, and what else when a server does not give it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gix_hash::ObjectId;
use mloc_exec::failpoint;

use super::{
    Company, Git, PACKS, Received,
    inflow::Inflow,
    objects::{self, Objects},
    revision,
    tree::Shape,
    wire::{Ask, Failed, Session},
};
use crate::{
    disk::{self, Halt},
    error::StoreError,
};

/// Leaves out every file: they are asked for by name afterwards.
const NO_BLOBS: &str = "blob:none";
/// Leaves out all but commits.
const NO_TREES: &str = "tree:0";

/// What a revision means, as far as a server's names say it.
pub(super) enum Meant {
    /// This commit.
    Commit(ObjectId),
    /// A commit whose name begins so: with the names whose history it may be in.
    Short(String, Vec<revision::Tip>),
}

impl Git {
    /// What the revision means now. Writes nothing.
    pub(super) async fn meant(&self) -> Result<Meant, StoreError> {
        let here = self.clone();
        self.blocking(move |_| {
            let revision = here.revision.as_deref();
            if let Some(commit) = revision.and_then(revision::full) {
                return Ok(Meant::Commit(commit));
            }
            let mut session = Session::open(&here.peer)?;
            let tips = session.tips(Some(&revision::names(revision)))?;
            if let Some(commit) = revision::pick(&tips, revision) {
                return Ok(Meant::Commit(commit));
            }
            let all = session.tips(None)?;
            match revision {
                None => Err(here.no_revision("its HEAD leads to no commit", "name a branch, a tag or a commit", &all)),
                Some(short) if revision::may_be_short(short) => Ok(Meant::Short(short.to_owned(), all)),
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
    pub(super) async fn lengthen(
        &self,
        short: String,
        tips: Vec<revision::Tip>,
        way: &Path,
        company: &Company,
    ) -> Result<ObjectId, StoreError> {
        company.shelf.say(&format!("`{short}` is an abbreviated commit: the history is looked through"));
        let (here, way, company) = (self.clone(), way.to_owned(), company.clone());
        self.blocking(move |halt| here.look_through(&short, &tips, &way, halt, &company)).await
    }

    fn look_through(
        &self,
        short: &str,
        tips: &[revision::Tip],
        way: &Path,
        halt: &Halt,
        company: &Company,
    ) -> Result<ObjectId, StoreError> {
        let folder = way.join("history");
        disk::remove_all(&folder)?;
        disk::make_folder(&folder)?;
        let mut wants: Vec<_> = tips.iter().filter(|t| t.name.starts_with("refs/")).map(|t| t.want).collect();
        wants.sort();
        wants.dedup();
        let ask = Ask { wants, shallow: false, filter: Some(NO_TREES) };
        let inflow = Inflow::new(halt, &folder, self.reserve, company);
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
    pub(super) async fn receive(
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
            let inflow = Inflow::new(halt, &folder, here.reserve, &company);
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
        let ask = Ask { wants: vec![session.wanted_as(asked)], shallow: true, filter: sparse.then_some(NO_BLOBS) };
        let first = match session.receive(&ask, folder, inflow) {
            Ok(index) => index,
            Err(Failed::Other(error)) => return Err(error),
            Err(Failed::NotGiven(said)) if !self.history => return Err(self.no_commit(&asked.to_string(), &said)),
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
        let mut wants: Vec<_> = tips.iter().filter(|t| t.name.starts_with("refs/")).map(|t| t.want).collect();
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
        inflow
            .shelf()
            .say(&format!("the server does not give commit {asked} alone ({said}): its whole history is fetched"));
        let ask = Ask { wants, shallow: false, filter: None };
        let index = session.receive(&ask, folder, inflow).map_err(|e| self.not_given(e))?;
        let packs: Vec<_> = index.into_iter().collect();
        if Objects::open(&packs, &self.place())?.has(&asked) { Ok(packs) } else { Err(gone()) }
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
}
