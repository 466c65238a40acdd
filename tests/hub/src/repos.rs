//! Repositories as plain data: commits hold all their files, refs name commits.

use std::collections::BTreeMap;

use axum::body::Bytes;
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::LARGE;

/// Models and data sets have name spaces of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// A file of a commit.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// Its bytes, or those of the pointer in their stead.
    pub bytes: Bytes,
    /// Its name in git.
    pub oid: String,
    /// Its size.
    pub size: usize,
    /// SHA-256 of its bytes in the store for large files.
    pub large: Option<String>,
}

impl File {
    /// One that git keeps.
    pub fn small(bytes: Bytes) -> Self {
        Self { oid: git_blob(&bytes), size: bytes.len(), bytes, large: None }
    }

    /// One that the store keeps; git has a pointer.
    pub fn large(sha256: String, size: usize) -> Self {
        let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n");
        Self { oid: git_blob(pointer.as_bytes()), bytes: pointer.into(), size, large: Some(sha256) }
    }
}

/// A repository.
#[derive(Default)]
pub(crate) struct Repo {
    pub private: bool,
    pub gated: bool,
    pub branches: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    commits: BTreeMap<String, Commit>,
}

struct Commit {
    parent: Option<String>,
    files: BTreeMap<String, File>,
}

impl Repo {
    /// The commit of a branch, tag or commit.
    pub fn resolve(&self, revision: &str) -> Option<String> {
        let named = self.branches.get(revision).or_else(|| self.tags.get(revision));
        named.cloned().or_else(|| self.commits.contains_key(revision).then(|| revision.to_owned()))
    }

    /// The files of a commit.
    pub fn files(&self, commit: &str) -> Option<&BTreeMap<String, File>> {
        self.commits.get(commit).map(|commit| &commit.files)
    }

    /// Commits on a branch.
    pub fn history(&self, branch: &str) -> usize {
        let first = self.branches.get(branch);
        std::iter::successors(first, |at| self.commits.get(*at)?.parent.as_ref()).count()
    }

    /// A commit on a branch: its name.
    pub fn commit(
        &mut self,
        branch: &str,
        parent: Option<&str>,
        added: Vec<(String, File)>,
        removed: &[String],
    ) -> String {
        let mut files = parent.and_then(|parent| self.files(parent)).cloned().unwrap_or_default();
        files.retain(|path, _| !removed.iter().any(|gone| path == gone || path.starts_with(&format!("{gone}/"))));
        files.extend(added);
        let mut hasher = Sha1::new();
        hasher.update(format!("{branch} {parent:?} {}\n", self.commits.len()));
        for (path, file) in &files {
            hasher.update(format!("{path} {}\n", file.oid));
        }
        let name = hex::encode(hasher.finalize());
        self.commits.insert(name.clone(), Commit { parent: parent.map(str::to_owned), files });
        self.branches.insert(branch.to_owned(), name.clone());
        name
    }
}

/// All repositories.
#[derive(Default)]
pub(crate) struct Repos(BTreeMap<(Kind, String), Repo>);

impl Repos {
    /// One of them.
    pub fn get(&self, kind: Kind, id: &str) -> Option<&Repo> {
        self.0.get(&(kind, id.to_owned()))
    }

    /// One of them, to be changed.
    pub fn get_mut(&mut self, kind: Kind, id: &str) -> Option<&mut Repo> {
        self.0.get_mut(&(kind, id.to_owned()))
    }

    /// One of them; an empty one where there was none.
    pub fn entry(&mut self, kind: Kind, id: &str) -> &mut Repo {
        self.0.entry((kind, id.to_owned())).or_default()
    }
}

/// Whether the Hub keeps a file in its store: by size, and by endings as `.gitattributes` says.
pub(crate) fn is_large(path: &str, size: usize) -> bool {
    const ENDINGS: [&str; 7] = [".safetensors", ".bin", ".parquet", ".gguf", ".h5", ".onnx", ".gz"];
    size > 0 && (size >= LARGE || ENDINGS.iter().any(|ending| path.ends_with(ending)))
}

/// What git calls some bytes.
pub(crate) fn git_blob(bytes: &[u8]) -> String {
    hex::encode(Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

/// SHA-256, hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
