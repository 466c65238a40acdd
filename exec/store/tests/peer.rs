//! Sources on other nodes, and single files of results: over a mesh in memory that breaks where it is told to.

mod support;

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use mloc_core::{
    files::{PeerFile, Tree, TreeFile},
    id::NodeId,
    ledger::entry::FailureClass,
    task::spec::Location,
};
use mloc_exec::{PeerBytes, PeerError, Peers};
use mloc_store::{MANIFEST, Store, StoreError};
use sha2::{Digest, Sha256};
use support::{
    moto::{Moto, at, with_credentials},
    *,
};

const NODE: &str = "n";

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// One other node: blobs by digest, and results in folders.
#[derive(Default)]
struct Mesh {
    blobs: BTreeMap<String, Vec<u8>>,
    /// Of one attempt.
    kept: Option<(Store, PathBuf)>,
    /// It cannot be reached so many times.
    away: AtomicU64,
    /// Streams of blobs end with an error after so many bytes, one after another.
    breaks: Mutex<Vec<usize>>,
    sent: Arc<AtomicU64>,
}

#[async_trait]
impl Peers for Mesh {
    async fn open(
        &self,
        node: &NodeId,
        what: &PeerFile,
        offset: u64,
        length: Option<u64>,
    ) -> Result<PeerBytes, PeerError> {
        let away = self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if node.as_str() != NODE || away.is_ok() {
            return Err(PeerError::Unreachable(format!("node {node} cannot be reached: no route")));
        }
        let end = length.map_or(u64::MAX, |length| offset + length);
        match what {
            PeerFile::Blob { sha256 } => {
                let Some(blob) = self.blobs.get(sha256) else {
                    return Err(PeerError::Unknown("no such upload".into()));
                };
                let at = |byte: u64| usize::try_from(byte.min(blob.len() as u64)).unwrap();
                let part = blob[at(offset)..at(end)].to_vec();
                let stop = if part.len() > 1000 { self.breaks.lock().unwrap().pop() } else { None };
                let sent = self.sent.clone();
                let mut pieces: Vec<io::Result<Bytes>> = part[..stop.unwrap_or(part.len()).min(part.len())]
                    .chunks(100_000)
                    .map(|piece| Ok(Bytes::copy_from_slice(piece)))
                    .collect();
                if stop.is_some() {
                    pieces.push(Err(io::Error::other("the line broke")));
                }
                let bytes = stream::iter(pieces)
                    .inspect_ok(move |piece| {
                        sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
                    })
                    .boxed();
                Ok(PeerBytes { total: blob.len() as u64, sha256: None, length: part.len() as u64, bytes })
            }
            PeerFile::Artifact { attempt, destination: None, path } => {
                let (store, folder) = self.kept.as_ref().expect("a worker");
                let opened = store.open_kept(attempt, folder, path, offset..end).await;
                let file = opened.map_err(|error| PeerError::Unknown(error.to_string()))?;
                let length = end.min(file.total) - offset;
                Ok(PeerBytes { total: file.total, sha256: Some(file.sha256), length, bytes: file.bytes })
            }
            PeerFile::Artifact { .. } => panic!("published ones are read where they lie"),
        }
    }
}

impl Mesh {
    /// Takes files in as an upload does; the place a task's source comes to.
    fn bring(&mut self, path: &str, folder: bool, files: &[(&str, &[u8])]) -> Location {
        let mut tree = Tree { folder, files: Vec::new() };
        for (name, bytes) in files {
            self.blobs.insert(digest(bytes), bytes.to_vec());
            tree.files.push(TreeFile { path: (*name).into(), bytes: bytes.len() as u64, sha256: digest(bytes) });
        }
        let list = tree.to_bytes().unwrap();
        let (tree, bytes) = (digest(&list), tree.bytes());
        self.blobs.insert(tree.clone(), list);
        Location::Submitted { node: NodeId::new(NODE), tree, path: path.into(), bytes }
    }
}

fn store(top: &std::path::Path, mesh: Mesh) -> Store {
    Store::new(config(top)).unwrap().with_peers(Arc::new(mesh))
}

#[tokio::test]
async fn what_came_along_is_pulled_from_its_node_through_a_line_that_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let weights = noise(1, 20 << 20);
    let mut mesh = Mesh { away: AtomicU64::new(2), breaks: Mutex::new(vec![1 << 20, 300_000]), ..Mesh::default() };
    let model = mesh.bring("./model", true, &[("a/w.bin", &weights), ("config.json", b"{}"), ("empty", b"")]);
    let set = mesh.bring("../set.jsonl", false, &[("set.jsonl", b"{}\n")]);
    let sent = mesh.sent.clone();
    let store = store(dir.path(), mesh);
    let (tell, told) = seen();
    let pulled = store.pull(&model, None, tell, unsaid()).await.unwrap();
    assert!(!pulled.in_place);
    let all = contents(&pulled.path);
    assert_eq!(all.keys().collect::<Vec<_>>(), ["a/w.bin", "config.json", "empty"]);
    assert!(all["a/w.bin"] == weights);
    let total = weights.len() as u64 + 2;
    assert_eq!(told.lock().unwrap().last().map(|m| (m.done, m.total)), Some((total, total)));
    let went = sent.load(Ordering::SeqCst);
    assert!(went < total + 4096 + (1 << 20) * 2, "{went} bytes for {total}: a break costs a block, not a chunk");
    let pin = pulled.pin.unwrap();
    assert_eq!((pin.files, pin.bytes), (3, total));

    // A second time nothing goes over but the list, and the pin holds.
    let again = pull(&store, &model, Some(&pin)).await.unwrap();
    assert_eq!((again.fetched, sent.load(Ordering::SeqCst) - went < 4096), (0, true));
    let one = pull(&store, &set, None).await.unwrap();
    assert!(one.path.ends_with("set.jsonl"));
    assert_eq!(fs::read(one.path).unwrap(), b"{}\n");
}

#[tokio::test]
async fn a_node_that_is_away_is_tried_again_and_files_that_are_gone_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut mesh = Mesh { away: AtomicU64::new(u64::MAX), ..Mesh::default() };
    let set = mesh.bring("./set.jsonl", false, &[("set.jsonl", b"{}\n")]);
    let away = store(dir.path(), mesh);
    let error = pull(&away, &set, None).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Retryable, "{error}");
    let said = error.to_string();
    assert!(said.contains("./set.jsonl") && said.contains("node n") && said.contains("no route"), "{said}");

    let mut mesh = Mesh::default();
    let set = mesh.bring("./set.jsonl", false, &[("set.jsonl", b"{}\n")]);
    mesh.blobs.remove(&digest(b"{}\n"));
    let gone = pull(&store(dir.path(), mesh), &set, None).await.unwrap_err();
    assert_eq!(gone.class(), FailureClass::Fatal, "{gone}");
    assert!(gone.to_string().contains("submit the task again"), "{gone}");
    let without = Store::new(config(dir.path())).unwrap();
    let none = pull(&without, &set, None).await.unwrap_err();
    assert!(matches!(none, StoreError::Unsupported { .. }), "{none}");
}

#[tokio::test]
async fn other_bytes_than_the_digest_says_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::default();
    let set = mesh.bring("./set.jsonl", false, &[("set.jsonl", b"{}\n")]);
    *mesh.blobs.get_mut(&digest(b"{}\n")).unwrap() = b"{ \n".to_vec();
    let file = pull(&store(dir.path(), mesh), &set, None).await.unwrap_err();
    assert!(matches!(&file, StoreError::Damaged { .. }), "{file}");
    let named = contents(dir.path()).into_keys().any(|name| name.ends_with("set.jsonl"));
    assert!(!named, "it gets a name");

    let mut mesh = Mesh::default();
    let Location::Submitted { tree, .. } = mesh.bring("./set.jsonl", false, &[("set.jsonl", b"{}\n")]) else {
        panic!()
    };
    let evil = br#"{"folder":true,"files":[{"path":"../../evil","bytes":3,"sha256":"TREE"}]}"#;
    mesh.blobs.insert(tree.clone(), evil.to_vec());
    let place =
        |tree: &str| Location::Submitted { node: NodeId::new(NODE), tree: tree.into(), path: "./x".into(), bytes: 3 };
    let evil_digest = digest(evil);
    mesh.blobs.insert(evil_digest.clone(), evil.to_vec());
    let store = store(dir.path(), mesh);
    for (tree, what) in [(tree, "SHA-256 of its list"), (evil_digest, "evil")] {
        let error = pull(&store, &place(&tree), None).await.unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { .. }) && error.to_string().contains(what), "{error}");
    }
}

#[tokio::test]
async fn a_result_that_stayed_on_its_worker_is_a_source() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let worker = Store::new(config(&top)).unwrap();
    let folder = top.join("attempts/t.0.1/artifacts");
    let weights = noise(2, 9 << 20);
    fill(
        &folder,
        &[("model/w.bin", &weights), ("model/config.json", b"{}"), ("log.jsonl", b"{}\n"), ("scratch", b"s")],
    );
    let (id, made) = (attempt("t", 1), outputs(&["model/w.bin", "model/config.json", "log.jsonl"]));
    let result = worker.publish(&id, None, &folder, &made, None, unseen()).await.unwrap();
    assert_eq!(result.location, folder.display().to_string());

    let mesh = Mesh { kept: Some((worker.clone(), folder.clone())), ..Mesh::default() };
    let store = store(&top, mesh);
    let kept = |path: Option<&str>| Location::Kept {
        node: NodeId::new(NODE),
        attempt: id.clone(),
        path: path.map(Into::into),
    };
    let part_of = |path: Option<&str>| {
        let (store, place) = (store.clone(), kept(path));
        async move { pull(&store, &place, None).await }
    };
    let all = part_of(None).await.unwrap();
    assert_eq!(contents(&all.path).keys().collect::<Vec<_>>(), ["log.jsonl", "model/config.json", "model/w.bin"]);
    let part = part_of(Some("model")).await.unwrap();
    assert_eq!(contents(&part.path).keys().collect::<Vec<_>>(), ["config.json", "w.bin"]);
    assert!(fs::read(part.path.join("w.bin")).unwrap() == weights);
    let one = part_of(Some("model/w.bin")).await.unwrap();
    assert!(one.path.ends_with("w.bin"));
    // The manifest's files, and nothing else that lies there.
    for nothing in ["scratch", "mode", "../t.0.1/artifacts/log.jsonl"] {
        let error = part_of(Some(nothing)).await.unwrap_err();
        assert!(matches!(&error, StoreError::NotFound { .. }), "{nothing}: {error}");
    }
    fs::remove_dir_all(&folder).unwrap();
    let gone = part_of(None).await.unwrap_err();
    assert!(gone.to_string().contains("output.destination"), "{gone}");
}

#[tokio::test]
async fn one_file_of_a_result_is_read_where_it_lies_and_only_what_its_manifest_names() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let store = Store::new(config(&top)).unwrap();
    let run = top.join("run");
    let weights = noise(3, 1 << 20);
    fill(&run, &[("w.bin", &weights), ("logs/l", b"line\n")]);
    fill(&top, &[("secret", b"s")]);
    let (id, to) = (attempt("t", 2), local("data/results"));
    store.publish(&id, Some(&to), &run, &outputs(&["w.bin", "logs/l"]), None, unseen()).await.unwrap();
    let read = |path: &str, range: std::ops::Range<u64>| {
        let (store, id, to, path) = (store.clone(), id.clone(), to.clone(), path.to_owned());
        async move {
            let file = store.open_published(&id, &to, &path, range).await?;
            let bytes: Vec<Bytes> = file.bytes.try_collect().await.unwrap();
            Ok::<_, StoreError>((file.total, file.sha256, bytes.concat()))
        }
    };
    let (total, sha256, bytes) = read("w.bin", 0..u64::MAX).await.unwrap();
    assert!(total == weights.len() as u64 && sha256 == digest(&weights) && bytes == weights);
    assert!(read("w.bin", 1000..2000).await.unwrap().2 == weights[1000..2000]);
    assert_eq!(read("logs/l", 5..9).await.unwrap().2, b"");
    for nothing in ["secret", "../secret", "/etc/passwd", "logs", ""] {
        assert!(matches!(read(nothing, 0..9).await, Err(StoreError::NotFound { .. })), "{nothing}");
    }
    // Somebody put a link in its place.
    fs::remove_file(top.join("results/logs/l")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", top.join("results/logs/l")).unwrap();
    let link = read("logs/l", 0..5).await.unwrap_err();
    assert!(matches!(link, StoreError::Escapes { .. }), "{link}");
    // Another task's result is not taken for it, nor a folder without one.
    let other = store.open_published(&attempt("other", 1), &to, "w.bin", 0..1).await.unwrap_err();
    assert!(matches!(other, StoreError::Taken { .. }), "{other}");
    fs::remove_file(top.join("results").join(MANIFEST)).unwrap();
    assert!(matches!(read("w.bin", 0..1).await, Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn one_file_of_a_result_in_a_bucket_is_read_in_ranges() {
    let Some(moto) = Moto::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(with_credentials(config(dir.path()))).unwrap();
    let weights = noise(4, 1 << 20);
    fill(dir.path(), &[("w.bin", &weights), ("empty", b"")]);
    let (id, to) = (attempt("t", 1), at(&moto.endpoint, "results/one"));
    let made = outputs(&["w.bin", "empty"]);
    store.publish(&id, Some(&to), dir.path(), &made, None, unseen()).await.unwrap();
    moto.put("results/one/stray", b"s").await;
    for (path, range, expected) in
        [("w.bin", 0..u64::MAX, &weights[..]), ("w.bin", 1000..2000, &weights[1000..2000]), ("empty", 0..u64::MAX, b"")]
    {
        let file = store.open_published(&id, &to, path, range.clone()).await.unwrap();
        let bytes: Vec<Bytes> = file.bytes.try_collect().await.unwrap();
        assert!(bytes.concat() == expected, "{path} {range:?}");
    }
    let stray = store.open_published(&id, &to, "stray", 0..1).await.unwrap_err();
    assert!(matches!(stray, StoreError::NotFound { .. }), "{stray}");
    let elsewhere = at(&moto.endpoint, "results/two");
    let none = store.open_published(&id, &elsewhere, "w.bin", 0..1).await.unwrap_err();
    assert!(matches!(none, StoreError::NotFound { .. }), "{none}");
}
