//! Death at every write, fsync, rename and upload, one after the other: whatever is left behind is taken up again and
//! comes out whole. The test binary starts itself as the process that dies.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use mloc_core::task::spec::Location;
use mloc_exec::{checkpoint::Retention, failpoint};
use mloc_store::{MANIFEST, Store, StoreConfig, UPLOADING};
use support::{
    gits::{Gits, pointer},
    moto::{Moto, at, with_credentials},
    *,
};

const FILES: [&str; 2] = ["adapter_model.safetensors", "logs/training_log.jsonl"];
/// Two parts of a multipart upload, so that one dies between them.
const LARGE: usize = 9 << 20;
const SMALL: usize = 300_000;

/// The places each case dies at; together they are all of this crate's.
const PLACES: [(&str, &[&str]); 9] = [
    (
        "publish-local",
        &[
            "store.file.written",
            "store.file.synced",
            "store.file.renamed",
            "store.folder.synced",
            "store.manifest.placed",
        ],
    ),
    ("publish-s3", &["store.upload.part", "store.upload.done", "store.manifest.placed"]),
    (
        "push-local",
        &[
            "store.file.written",
            "store.file.synced",
            "store.file.renamed",
            "store.folder.synced",
            "store.checkpoint.prune",
        ],
    ),
    ("push-s3", &["store.upload.part", "store.upload.done", "store.checkpoint.prune"]),
    ("fetch-local", &["store.file.written", "store.file.synced", "store.file.renamed", "store.folder.synced"]),
    ("fetch-s3", &FETCHED),
    ("cache-s3", &CACHED),
    (
        "cache-git",
        &[
            "store.file.written",
            "store.file.synced",
            "store.file.renamed",
            "store.folder.synced",
            "store.pull.chunk",
            "store.pull.whole",
            "store.pull.renamed",
            "store.git.received",
            "store.git.written",
            "store.git.placed",
            "store.cache.blob",
            "store.cache.built",
            "store.cache.placed",
            "store.cache.cleared",
        ],
    ),
    ("evict-s3", &EVICTED),
];
const FETCHED: [&str; 7] = [
    "store.file.written",
    "store.file.synced",
    "store.file.renamed",
    "store.folder.synced",
    "store.pull.chunk",
    "store.pull.whole",
    "store.pull.renamed",
];

const CACHED: [&str; 11] = [
    "store.file.written",
    "store.file.synced",
    "store.file.renamed",
    "store.folder.synced",
    "store.pull.chunk",
    "store.pull.whole",
    "store.pull.renamed",
    "store.cache.blob",
    "store.cache.built",
    "store.cache.placed",
    "store.cache.cleared",
];
const EVICTED: [&str; 1] = ["store.cache.evicted"];

#[test]
fn every_place_of_the_store_has_a_case() {
    let all: BTreeSet<&str> = failpoint::ALL.iter().copied().filter(|place| place.starts_with("store.")).collect();
    let died_at: BTreeSet<&str> = PLACES.iter().flat_map(|(_, places)| places.iter().copied()).collect();
    assert_eq!(died_at, all);
}

fn size(case: &str) -> usize {
    if case.ends_with("s3") { LARGE } else { SMALL }
}

/// What the dying process does, by its environment; nothing when it is run as a test.
#[tokio::test]
#[ignore = "is started by the other cases"]
async fn victim() {
    let Ok(case) = std::env::var("MLOC_KILL_CASE") else { return };
    let top = std::env::var("MLOC_KILL_FOLDER").expect("its folder is given");
    let endpoint = std::env::var("MLOC_KILL_ENDPOINT").unwrap_or_default();
    run(&case, Path::new(&top), &endpoint, 1).await;
}

fn store_in(top: &Path) -> Store {
    Store::new(with_credentials(StoreConfig { ..config(&top.join("data")) })).expect("a client")
}

/// One case, by attempt `number`.
async fn run(case: &str, top: &Path, endpoint: &str, number: u32) {
    let store = store_in(top);
    let (a, run) = (attempt("task-a", number), top.join("run"));
    let publish = async |to| {
        store.publish(&a, Some(&to), &run, &outputs(&FILES), None, unseen()).await.expect("published");
    };
    let push = async |to| {
        for step in [1, 2] {
            fill(&run, &[(FILES[0], &noise(step, size(case)))]);
            store.push_checkpoint(&a, &to, step, &run, Retention::newest(1), unseen()).await.expect("pushed");
        }
    };
    let back = top.join("back");
    let fetch = async |to| {
        let fetched = store.fetch_checkpoint(&a, &to, &back, unseen()).await.expect("fetched");
        assert_eq!(fetched.expect("there is one").checkpoint.step, 2);
    };
    match case {
        "publish-local" => publish(local("data/out")).await,
        "publish-s3" => publish(at(endpoint, "out")).await,
        "push-local" => push(local("data/ckpt")).await,
        "push-s3" => push(at(endpoint, "ckpt")).await,
        "fetch-local" => fetch(local("data/ckpt")).await,
        "fetch-s3" => fetch(at(endpoint, "ckpt")).await,
        "cache-s3" => {
            pull(&store, &at(endpoint, "m"), None).await.expect("pulled");
        }
        "cache-git" => {
            let from = Location::Git { url: endpoint.to_owned(), revision: None, path: None };
            pull(&store, &from, None).await.expect("pulled");
        }
        "evict-s3" => store.cache().prune(),
        other => panic!("no case {other}"),
    }
}

/// Runs a case in a process that dies at the `n`th failpoint it reaches; says which that was, `None` when it came to
/// its end.
fn die(case: &str, top: &Path, endpoint: &str, n: u64) -> Option<String> {
    let output = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env("MLOC_KILL_CASE", case)
        .env("MLOC_KILL_FOLDER", top)
        .env("MLOC_KILL_ENDPOINT", endpoint)
        .env("MLOC_FAILPOINT", format!("@{n}"))
        .output()
        .expect("it starts");
    let by_signal = std::os::unix::process::ExitStatusExt::signal(&output.status).is_some();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || by_signal, "{case} @{n} failed by itself: {said}");
    let died_at = said.split_once("failpoint ").and_then(|(_, rest)| rest.split_once(": dying as asked"));
    let died_at = died_at.map(|(place, _)| place.to_owned());
    assert_eq!(died_at.is_none(), output.status.success(), "{case} @{n}: {said}");
    died_at
}

/// Kills a case at each of its failpoints in turn, each in a fresh folder; `proof` looks at what is left and goes on.
async fn at_every_failpoint(case: &str, endpoint: Option<&Moto>, proof: impl AsyncFn(&Path, &str)) {
    let url = endpoint.map_or("", |m| m.endpoint.as_str());
    at_every_failpoint_of(case, endpoint, url, proof).await;
}

/// The same with a server that is no bucket's.
async fn at_every_failpoint_of(case: &str, endpoint: Option<&Moto>, url: &str, proof: impl AsyncFn(&Path, &str)) {
    let mut died_at = BTreeSet::new();
    for n in 1.. {
        let dir = tempfile::tempdir().expect("a folder");
        let top = dir.path().canonicalize().expect("it is there");
        std::fs::create_dir(top.join("data")).expect("a volume");
        fill(&top.join("run"), &[(FILES[0], &noise(1, size(case))), (FILES[1], b"{}\n")]);
        // What is brought here lies in the bucket from the start; what is put there goes between two deaths.
        if let (Some(moto), true) = (endpoint, ["publish-s3", "push-s3"].contains(&case)) {
            moto.clear().await;
        }
        if let Some(place) = case.strip_prefix("fetch-").filter(|_| n == 1 || endpoint.is_none()) {
            run(&format!("push-{place}"), &top, url, 1).await;
        }
        if case == "evict-s3" {
            run("cache-s3", &top, url, 1).await;
        }
        let death = die(case, &top, url, n);
        proof(&top, url).await;
        let Some(place) = death else { break };
        died_at.insert(place);
    }
    let (_, expected) = PLACES.iter().find(|(name, _)| *name == case).expect("the case is listed");
    let died_at: BTreeSet<&str> = died_at.iter().map(String::as_str).collect();
    assert_eq!(died_at, expected.iter().copied().collect(), "{case}");
}

/// No part of a file that a dead process was writing.
fn assert_clean(folder: &Path) {
    let mut left = vec![folder.to_owned()];
    while let Some(here) = left.pop() {
        for entry in std::fs::read_dir(&here).expect("it is there") {
            let path = entry.expect("it can be listed").path();
            assert!(!path.display().to_string().ends_with(".tmp"), "{} is left", path.display());
            if path.is_dir() {
                left.push(path);
            }
        }
    }
}

#[tokio::test]
async fn publishing_to_a_volume() {
    at_every_failpoint("publish-local", None, async |top, _| {
        let out = top.join("data/out");
        if out.join(MANIFEST).exists() {
            let mut there = contents(&out);
            // What was announced is cleared away after the manifest is there.
            there.remove(UPLOADING);
            assert_whole(there, top);
        }
        run("publish-local", top, "", 2).await;
        assert_whole(contents(&out), top);
        assert_clean(&out);
    })
    .await;
}

/// The result is there, all of it, and no other file.
fn assert_whole(mut there: BTreeMap<String, Vec<u8>>, top: &Path) {
    there.remove(MANIFEST).expect("a manifest");
    assert!(there == contents(&top.join("run")), "a result that is not whole: {:?}", there.keys());
}

#[tokio::test]
async fn publishing_to_a_bucket() {
    let Some(moto) = Moto::start().await else { return };
    at_every_failpoint("publish-s3", Some(&moto), async |top, url| {
        let whole = moto.keys().await.iter().any(|key| key == "out/mloc-manifest.json");
        if whole {
            pull(&store_in(top), &at(url, "out"), None).await.expect("a manifest speaks the truth");
        }
        run("publish-s3", top, url, 2).await;
        let back = pull(&store_in(top), &at(url, "out"), None).await.expect("pulled");
        assert_whole(contents(&back.path), top);
    })
    .await;
}

/// After any death there is a checkpoint that can be fetched once one was acknowledged, and the next push mends all.
async fn proof_of_push(case: &str, to: mloc_core::task::spec::Location, top: &Path, url: &str) {
    let (store, back) = (store_in(top), top.join("back"));
    if let Some(fetched) = store.fetch_checkpoint(&attempt("task-a", 2), &to, &back, unseen()).await.expect("fetched") {
        let bytes = noise(fetched.checkpoint.step, size(case));
        assert!(contents(&back)[FILES[0]] == bytes, "a damaged checkpoint was taken");
    }
    run(case, top, url, 2).await;
    let fetched = store.fetch_checkpoint(&attempt("task-a", 2), &to, &back, unseen()).await.expect("fetched");
    assert_eq!(fetched.expect("there is one").checkpoint.step, 2);
    assert_eq!(store.list_checkpoints(&attempt("task-a", 2), &to).await.expect("listed"), [2]);
}

#[tokio::test]
async fn pushing_checkpoints_to_a_volume() {
    at_every_failpoint("push-local", None, async |top, url| {
        proof_of_push("push-local", local("data/ckpt"), top, url).await;
        assert_clean(&top.join("data/ckpt"));
    })
    .await;
}

#[tokio::test]
async fn pushing_checkpoints_to_a_bucket() {
    let Some(moto) = Moto::start().await else { return };
    at_every_failpoint("push-s3", Some(&moto), async |top, url| {
        proof_of_push("push-s3", at(url, "ckpt"), top, url).await;
    })
    .await;
}

/// What a dead process fetched is fetched again, whole.
async fn proof_of_fetch(case: &str, top: &Path, url: &str) {
    run(case, top, url, 2).await;
    let back = top.join("back");
    let there = contents(&back);
    assert!(there[FILES[0]] == noise(2, size(case)) && there[FILES[1]] == b"{}\n", "other bytes arrived");
    assert_clean(&back);
}

#[tokio::test]
async fn fetching_a_checkpoint_from_a_volume() {
    at_every_failpoint("fetch-local", None, async |top, url| proof_of_fetch("fetch-local", top, url).await).await;
}

#[tokio::test]
async fn fetching_a_checkpoint_from_a_bucket() {
    let Some(moto) = Moto::start().await else { return };
    at_every_failpoint("fetch-s3", Some(&moto), async |top, url| proof_of_fetch("fetch-s3", top, url).await).await;
}

/// What a dead process put into the cache is taken up or fetched again, and what it was removing is gone: what comes out
/// is whole, and nothing stays behind.
async fn proof_of_cache(top: &Path, source: &Location, bytes: &[u8]) {
    let store = store_in(top);
    let pulled = pull(&store, source, None).await.expect("pulled");
    let there = contents(&pulled.path);
    assert!(there["w.bin"] == bytes && there["config.json"] == b"{}" && there.len() == 2, "other bytes arrived");
    drop(pulled);
    store.cache().tidy();
    // A process that another case starts holds this one's locks, too, from its fork to its exec: then a view is in use.
    let deadline = Instant::now() + Duration::from_secs(30);
    let left = loop {
        store.cache().prune();
        let left: Vec<_> = contents(&top.join("data/cache")).into_keys().collect();
        if left.is_empty() || Instant::now() > deadline {
            break left;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(left.is_empty(), "left in an empty cache: {left:?}");
    assert_clean(&top.join("data/cache"));
}

#[tokio::test]
async fn pulling_into_the_cache() {
    let Some(moto) = Moto::start().await else { return };
    let bytes = noise(5, 9 << 20);
    moto.put("m/w.bin", &bytes).await;
    moto.put("m/config.json", b"{}").await;
    at_every_failpoint("cache-s3", Some(&moto), async |top, url| proof_of_cache(top, &at(url, "m"), &bytes).await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pulling_from_git_into_the_cache() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("model");
    let large = noise(6, 9 << 20);
    server.keep(&large);
    fill(&work.path, &[("w.bin", pointer(&large).as_bytes()), ("config.json", b"{}")]);
    // One that a view has for itself.
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(work.path.join("config.json"), executable).expect("its mode is set");
    work.commit_all();
    at_every_failpoint_of("cache-git", None, &work.url, async |top, url| {
        let from = Location::Git { url: url.to_owned(), revision: None, path: None };
        proof_of_cache(top, &from, &large).await;
    })
    .await;
}

#[tokio::test]
async fn evicting_from_the_cache() {
    let Some(moto) = Moto::start().await else { return };
    let bytes = noise(5, 1 << 20);
    moto.put("m/w.bin", &bytes).await;
    moto.put("m/config.json", b"{}").await;
    at_every_failpoint("evict-s3", Some(&moto), async |top, url| proof_of_cache(top, &at(url, "m"), &bytes).await)
        .await;
}
