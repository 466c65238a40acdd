//! Files by what is in them: what a submission brings along, and what one node can ask another for.
//!
//! A file or folder beside a task file becomes a [`Tree`]: names, sizes, digests. Its JSON is itself a file with a
//! digest, and that digest is all the ledger keeps. Bytes go from the node that took them to the worker, by digest.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    id::{AttemptId, NodeId},
    task::spec::Location,
};

/// Files of one tree. More would make a list that nobody reads through; pack them into fewer.
pub const TREE_FILES_MAX: usize = 100_000;
/// Bytes of a tree's JSON.
pub const TREE_BYTES_MAX: u64 = 32 << 20;
/// Bytes of one name, as file systems have it for paths.
const PATH_BYTES_MAX: usize = 1024;

/// What a file or folder was made of when it was handed in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    /// Whether it is a folder; otherwise it is the one file below.
    pub folder: bool,
    /// The files, sorted by path.
    pub files: Vec<TreeFile>,
}

/// One file of a [`Tree`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeFile {
    /// Path below the folder, with `/`; of a single file its name.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// Why bytes are no tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTree {
    /// Not its JSON.
    #[error("it is no list of files: {0}")]
    Unreadable(String),
    /// No files.
    #[error("it names no files (hint: name a folder that holds some, or one file)")]
    Empty,
    /// Too many of them.
    #[error("it names {found} files, and {TREE_FILES_MAX} are the most (hint: pack them into fewer)")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// A name that would lie elsewhere than below its folder.
    #[error(
        "file name `{0}` is refused: names are relative, with `/`, at most {PATH_BYTES_MAX} bytes, without `..`, `\\`, control characters and parts that are empty or begin with `.mloc-`"
    )]
    Name(String),
    /// A digest that is none.
    #[error("`{0}` is no SHA-256: expected 64 lower-case hex digits")]
    Digest(String),
    /// Not sorted, or twice the same name, or a file where another has a folder.
    #[error("`{0}` stands twice, out of order, or where another file needs a folder")]
    Order(String),
}

impl Tree {
    /// The JSON that has the tree's digest: the same files always give the same bytes.
    ///
    /// # Errors
    /// What is wrong with the tree.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BadTree> {
        self.check()?;
        serde_json::to_vec(self).map_err(|e| BadTree::Unreadable(e.to_string()))
    }

    /// Reads one; past this nobody checks names again.
    ///
    /// # Errors
    /// [`BadTree`]
    pub fn read(bytes: &[u8]) -> Result<Self, BadTree> {
        let tree: Self = serde_json::from_slice(bytes).map_err(|e| BadTree::Unreadable(e.to_string()))?;
        tree.check()?;
        Ok(tree)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    fn check(&self) -> Result<(), BadTree> {
        match self.files.as_slice() {
            [] => return Err(BadTree::Empty),
            files if files.len() > TREE_FILES_MAX => return Err(BadTree::TooMany { found: files.len() }),
            [_, second, ..] if !self.folder => return Err(BadTree::Order(second.path.clone())),
            [one] if !self.folder && one.path.contains('/') => return Err(BadTree::Name(one.path.clone())),
            _ => {}
        }
        let mut last = "";
        let mut names = BTreeSet::new();
        for file in &self.files {
            if !is_below(&file.path) {
                return Err(BadTree::Name(file.path.clone()));
            }
            if !is_digest(&file.sha256) {
                return Err(BadTree::Digest(file.sha256.clone()));
            }
            let under_a_file = file.path.match_indices('/').any(|(at, _)| names.contains(&file.path[..at]));
            if (!last.is_empty() && *last >= *file.path) || under_a_file {
                return Err(BadTree::Order(file.path.clone()));
            }
            last = &file.path;
            names.insert(file.path.as_str());
        }
        Ok(())
    }
}

/// Whether a name stays below its folder, and out of files that are MLOC's own.
pub fn is_below(name: &str) -> bool {
    let part = |part: &str| !matches!(part, "" | "." | "..") && !part.starts_with(".mloc-");
    name.len() <= PATH_BYTES_MAX && name.split('/').all(part) && !name.contains(|c: char| c == '\\' || c.is_control())
}

/// Whether a text is a SHA-256 as it is written here.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What came with a submission: the paths that its text names beside itself, and what they were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brought {
    /// The node that took it, and has the bytes.
    pub node: Option<NodeId>,
    /// By path as the text has it.
    pub trees: BTreeMap<String, BroughtTree>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BroughtTree {
    /// SHA-256 of its list of files, hex.
    pub tree: String,
    /// Bytes of all of them.
    pub bytes: u64,
}

impl Brought {
    /// The place of a path that came along.
    pub fn place(&self, path: &str) -> Option<Location> {
        let (node, brought) = (self.node.as_ref()?, self.trees.get(path)?);
        let (tree, bytes) = (brought.tree.clone(), brought.bytes);
        Some(Location::Submitted { node: node.clone(), tree, path: path.to_owned(), bytes })
    }
}

/// Whether a path means something beside the task file, on the machine it is submitted from.
pub fn is_beside(path: &str) -> bool {
    matches!(path, "." | "..") || path.starts_with("./") || path.starts_with("../")
}

/// What one node can ask another for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerFile {
    /// A file that came with a submission, or a tree's JSON.
    Blob {
        /// SHA-256, hex.
        sha256: String,
    },
    /// A file of a result.
    Artifact {
        /// The attempt that made it.
        attempt: AttemptId,
        /// Where it was published; nowhere: it lies on the disk of the attempt's node.
        destination: Option<Location>,
        /// Its path among the result's files.
        path: String,
    },
}

impl std::fmt::Display for PeerFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blob { sha256 } => write!(f, "the uploaded file {sha256}"),
            Self::Artifact { attempt, path, .. } => write!(f, "artifact {path} of {attempt}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> TreeFile {
        TreeFile { path: path.into(), bytes: 3, sha256: "0a".repeat(32) }
    }

    fn folder(paths: &[&str]) -> Tree {
        Tree { folder: true, files: paths.iter().map(|path| file(path)).collect() }
    }

    #[test]
    fn a_tree_survives_its_bytes_and_the_same_files_give_the_same() {
        let tree = folder(&["a/b.txt", "a.txt", "b"]);
        assert!(matches!(tree.to_bytes(), Err(BadTree::Order(_))), "`.` sorts before `/`");
        let tree = folder(&["a.txt", "a/b.txt", "b"]);
        let bytes = tree.to_bytes().unwrap();
        assert_eq!(Tree::read(&bytes).unwrap(), tree);
        assert_eq!(tree.bytes(), 9);
        assert_eq!(bytes, Tree::read(&bytes).unwrap().to_bytes().unwrap());
        let one = Tree { folder: false, files: vec![file("train.jsonl")] };
        assert_eq!(Tree::read(&one.to_bytes().unwrap()).unwrap(), one);
    }

    #[test]
    fn a_tree_that_would_write_elsewhere_is_none() {
        for bad in ["../a", "/etc/passwd", "a/../b", "a//b", "", ".", "a\\b", "a\nb", ".mloc-pull/x", &"a".repeat(2000)]
        {
            assert!(matches!(folder(&[bad]).to_bytes(), Err(BadTree::Name(_))), "{bad:?}");
        }
        for (paths, what) in
            [(&["b", "a"][..], "out of order"), (&["a", "a"], "twice"), (&["a", "a/b"], "below a file")]
        {
            assert!(matches!(folder(paths).to_bytes(), Err(BadTree::Order(_))), "{what}");
        }
        assert_eq!(folder(&[]).to_bytes(), Err(BadTree::Empty));
        assert!(Tree { folder: false, files: vec![file("a"), file("b")] }.to_bytes().is_err());
        assert!(Tree { folder: false, files: vec![file("a/b")] }.to_bytes().is_err());
        for digest in ["", "0A".repeat(32).as_str(), "0a".repeat(31).as_str(), "..".repeat(32).as_str()] {
            let tree = Tree { folder: true, files: vec![TreeFile { sha256: digest.into(), ..file("a") }] };
            assert!(matches!(tree.to_bytes(), Err(BadTree::Digest(_))), "{digest}");
        }
        assert!(matches!(Tree::read(b"{}"), Err(BadTree::Unreadable(_))));
    }

    const TASK: &str = "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {name: t}\nspec:\n  taskType: sft\n  model: {source: {type: local, path: ../model}}\n  dataset:\n    source: {type: local, path: ./train.jsonl}\n    eval: {source: {type: local, path: volume/eval.jsonl}}\n  output: {destination: {type: local, path: ./out}}\n";

    #[test]
    fn paths_beside_a_task_mean_what_came_along_and_nothing_else() {
        use crate::task::{beside, parse_with};
        assert_eq!(beside(TASK.as_bytes()).into_iter().collect::<Vec<_>>(), ["../model", "./train.jsonl"]);
        assert!(beside(b"no: [task").is_empty());
        let digest = "0a".repeat(32);
        let brought = |paths: &[&str]| Brought {
            node: Some(NodeId::new("n")),
            trees: paths.iter().map(|p| ((*p).to_owned(), BroughtTree { tree: digest.clone(), bytes: 7 })).collect(),
        };
        let problems = parse_with(TASK.as_bytes(), "t", &brought(&["./train.jsonl"])).unwrap_err().to_string();
        assert!(
            problems.contains("t:6:39: spec.model.source.path: found `../model`, expected a file or folder that came"),
            "{problems}"
        );
        // A destination is somewhere on the mesh, never beside the file.
        assert!(problems.contains("spec.output.destination.path: found `./out`"), "{problems}");
        assert!(!problems.contains("train.jsonl"), "{problems}");
        let text = TASK.replace("./out", "volume/out");
        let all = brought(&["./train.jsonl", "../model"]);
        let spec = parse_with(text.as_bytes(), "t", &all).unwrap().spec;
        let place = |path: &str| Location::Submitted {
            node: NodeId::new("n"),
            tree: digest.clone(),
            path: path.into(),
            bytes: 7,
        };
        assert_eq!(spec.dataset.as_ref().unwrap().source, place("./train.jsonl"));
        assert_eq!(spec.model.as_ref().unwrap().source, place("../model"));
        assert!(spec.needs().contains("source:submitted"));
        // Whoever took it has to say who it is.
        assert!(parse_with(text.as_bytes(), "t", &Brought { node: None, ..all }).is_err());
    }
}
