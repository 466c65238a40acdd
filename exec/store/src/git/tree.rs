//! What of a commit's tree comes onto the disk: files, links that stay inside, large files by their pointers.
//!
//! Not: submodules, which are other repositories with other accounts; filters and hooks, which are programs; line ends
//! other than the commit's own.

use std::collections::BTreeMap;

use gix_hash::ObjectId;
use gix_object::tree::EntryKind;

use super::{
    objects::{Entry, Objects},
    pointer::{POINTER_BYTES_MAX, Pointer},
};
use crate::{disk, error::StoreError};

/// Most files of one source: a tree of a few kilobytes can name the same one without end.
const FILES_MAX: usize = 1_000_000;
/// Deepest folder.
const DEPTH_MAX: usize = 64;
/// Longest target of a link.
const TARGET_BYTES_MAX: u64 = 4096;
/// Links that lead to links.
const HOPS_MAX: usize = 40;
/// Names shown when the asked one is not there.
const SHOWN: usize = 5;

/// Names and objects, before any file was looked at.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// Path, object, whether it can be executed.
    pub files: Vec<(String, ObjectId, bool)>,
    /// Path and object of symbolic links.
    pub links: Vec<(String, ObjectId)>,
    /// Paths of submodules.
    pub modules: Vec<String>,
    /// The repository's own word on its large files.
    pub lfsconfig: Option<ObjectId>,
    /// Whether the source is itself the one file.
    pub one: bool,
}

/// A file to be written.
#[derive(Clone, Debug)]
pub(super) struct File {
    /// Path below the source.
    pub path: String,
    /// Its object.
    pub id: ObjectId,
    /// Its size, as it will be.
    pub bytes: u64,
    /// Whether it can be executed.
    pub executable: bool,
    /// Where its bytes are, when the object only points to them.
    pub pointer: Option<Pointer>,
}

/// All that is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// Files, sorted by path.
    pub files: Vec<File>,
    /// Path and target of symbolic links.
    pub links: Vec<(String, String)>,
    /// Whether the source is itself the one file.
    pub one: bool,
}

impl Shape {
    /// Walks a tree, or the part of it below a path.
    pub fn of(objects: &mut Objects, tree: ObjectId, under: Option<&str>, place: &str) -> Result<Self, StoreError> {
        let mut shape = Self::default();
        let top = objects.entries(&tree)?;
        let lfsconfig =
            |e: &&Entry| e.name == ".lfsconfig" && matches!(e.kind, EntryKind::Blob | EntryKind::BlobExecutable);
        shape.lfsconfig = top.iter().find(lfsconfig).map(|e| e.id);
        let mut start = (tree, String::new());
        let parts: Vec<&str> = under.unwrap_or_default().split('/').filter(|part| !part.is_empty()).collect();
        for (n, part) in parts.iter().enumerate() {
            let entries = objects.entries(&start.0)?;
            let Some(entry) = entries.iter().find(|e| e.name == *part) else {
                return Err(no_path(place, &parts[..=n].join("/"), part, &entries));
            };
            match entry.kind {
                EntryKind::Tree => start.0 = entry.id,
                EntryKind::Blob | EntryKind::BlobExecutable if n + 1 == parts.len() => {
                    shape.one = true;
                    shape.add(place, String::new(), entry)?;
                    return Ok(shape);
                }
                _ => return Err(no_path(place, &parts.join("/"), part, &[])),
            }
        }
        let mut left = vec![(start.0, std::mem::take(&mut start.1), 0)];
        while let Some((tree, prefix, depth)) = left.pop() {
            for entry in objects.entries(&tree)? {
                if entry.kind != EntryKind::Tree {
                    shape.add(place, prefix.clone(), &entry)?;
                } else if depth < DEPTH_MAX {
                    left.push((entry.id, format!("{prefix}{}/", entry.name), depth + 1));
                } else {
                    return Err(too_many(
                        place,
                        format!("{prefix}{} lies more than {DEPTH_MAX} folders deep", entry.name),
                    ));
                }
            }
        }
        shape.files.sort();
        shape.links.sort();
        Ok(shape)
    }

    fn add(&mut self, place: &str, prefix: String, entry: &Entry) -> Result<(), StoreError> {
        let path = prefix + &entry.name;
        let git = path.split('/').any(|part| part.eq_ignore_ascii_case(".git"));
        if git || disk::below(&path).is_none() {
            return Err(StoreError::BadName { place: place.to_owned(), name: path });
        }
        if self.files.len() + self.links.len() >= FILES_MAX {
            return Err(too_many(place, format!("it has more than {FILES_MAX} files")));
        }
        match entry.kind {
            EntryKind::Blob => self.files.push((path, entry.id, false)),
            EntryKind::BlobExecutable => self.files.push((path, entry.id, true)),
            EntryKind::Link => self.links.push((path, entry.id)),
            EntryKind::Commit => self.modules.push(path),
            EntryKind::Tree => {}
        }
        Ok(())
    }

    /// The objects that the plan looks into.
    pub fn blobs(&self) -> Vec<ObjectId> {
        let files = self.files.iter().map(|(_, id, _)| *id).chain(self.links.iter().map(|(_, id)| *id));
        let mut all: Vec<_> = files.chain(self.lfsconfig).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Looks into the files.
    pub fn plan(&self, objects: &mut Objects, place: &str) -> Result<Plan, StoreError> {
        let mut plan = Plan { one: self.one, ..Plan::default() };
        let mut bytes = Vec::new();
        for (path, id, executable) in &self.files {
            let size = objects.size(id)?;
            let pointer = match size < POINTER_BYTES_MAX {
                true => {
                    objects.get(id, &mut bytes)?;
                    Pointer::read(&bytes)
                }
                false => None,
            };
            let size = pointer.as_ref().map_or(size, |pointer| pointer.bytes);
            plan.files.push(File { path: path.clone(), id: *id, bytes: size, executable: *executable, pointer });
        }
        for (path, id) in &self.links {
            let refused =
                |target: String| StoreError::LeavesTree { place: place.to_owned(), name: path.clone(), target };
            if objects.size(id)? > TARGET_BYTES_MAX {
                return Err(refused("a target of more than 4096 bytes".into()));
            }
            objects.get(id, &mut bytes)?;
            let target = String::from_utf8(bytes.clone()).map_err(|e| refused(e.to_string()))?;
            plan.links.push((path.clone(), target));
        }
        match plan.leaves() {
            Some((path, target)) => Err(StoreError::LeavesTree { place: place.to_owned(), name: path, target }),
            None => Ok(plan),
        }
    }
}

impl Plan {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }

    /// Bytes of those that the commit only points to.
    pub fn large_bytes(&self) -> u64 {
        self.files.iter().filter(|file| file.pointer.is_some()).map(|file| file.bytes).fold(0, u64::saturating_add)
    }

    /// The first link that leads out of what is written, or round in circles.
    fn leaves(&self) -> Option<(String, String)> {
        let links: BTreeMap<&str, &str> = self.links.iter().map(|(path, to)| (path.as_str(), to.as_str())).collect();
        self.links.iter().find(|(path, _)| leaves(&links, path)).cloned()
    }
}

/// Whether following a link leads out. Other links on the way are followed, as the system would: by names alone
/// `a/b/up/..` would seem to stay inside when `up` is a link to the top.
fn leaves(links: &BTreeMap<&str, &str>, link: &str) -> bool {
    let mut at: Vec<&str> = Vec::new();
    let mut left: Vec<&str> = link.rsplit('/').collect();
    let mut hops = 0;
    while let Some(part) = left.pop() {
        match part {
            "" | "." => continue,
            ".." if at.pop().is_none() => return true,
            ".." => continue,
            name => at.push(name),
        }
        let Some(target) = links.get(at.join("/").as_str()) else { continue };
        hops += 1;
        if hops > HOPS_MAX || target.starts_with('/') || target.contains('\0') || target.is_empty() {
            return true;
        }
        at.pop();
        left.extend(target.rsplit('/'));
    }
    false
}

fn no_path(place: &str, path: &str, part: &str, among: &[Entry]) -> StoreError {
    let mut scored: Vec<_> = among.iter().map(|e| (strsim::jaro_winkler(&e.name, part), e.name.as_str())).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let names: Vec<_> = scored.iter().take(SHOWN).map(|(_, name)| *name).collect();
    let hint = match names.is_empty() {
        true => "name a file or a folder of the commit; links and submodules are not followed".to_owned(),
        false => format!("there are: {}", names.join(", ")),
    };
    StoreError::NotFound { place: place.to_owned(), found: format!("no `{path}` in this commit"), hint }
}

fn too_many(place: &str, found: String) -> StoreError {
    StoreError::NotFound { place: place.to_owned(), found, hint: "name a smaller part of it with `path`".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        let links = BTreeMap::from([
            ("latest", "v2"),
            ("a/b/top", "../.."),
            ("good", "a/b/top/a/file"),
            ("dangling", "nowhere/at/all"),
            ("absolute", "/etc/passwd"),
            ("up", "../other"),
            ("by/way", "../a/b/top/../x"),
            ("round", "trip"),
            ("trip", "round"),
            ("self", "self"),
            ("nothing", ""),
            ("chain", "latest/up/../../.."),
        ]);
        for inside in ["latest", "a/b/top", "good", "dangling"] {
            assert!(!leaves(&links, inside), "{inside} was refused");
        }
        for out in ["absolute", "up", "by/way", "round", "trip", "self", "nothing", "chain"] {
            assert!(leaves(&links, out), "{out} was taken");
        }
    }
}
