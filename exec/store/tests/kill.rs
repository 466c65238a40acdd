//! Death at every write, fsync, rename and upload, one after the other: whatever is left behind is taken up again and
//! comes out whole. The test binary starts itself as the process that dies.

mod support;

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, ExitStatus},
};

use mloc_store::{MANIFEST, Store, StoreConfig};
use support::{
    moto::{Moto, at, with_credentials},
    *,
};

const FILES: [&str; 2] = ["adapter_model.safetensors", "logs/training_log.jsonl"];

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
        store.publish(&a, Some(&to), &run, &outputs(&FILES), BTreeMap::new(), unseen()).await.expect("published");
    };
    let push = async |to| {
        for step in [1, 2] {
            fill(&run, &[(FILES[0], &noise(step, 300_000))]);
            store.push_checkpoint(&a, &to, step, &run, 1, unseen()).await.expect("pushed");
        }
    };
    match case {
        "publish-local" => publish(local("data/out")).await,
        "publish-s3" => publish(at(endpoint, "out")).await,
        "push-local" => push(local("data/ckpt")).await,
        "push-s3" => push(at(endpoint, "ckpt")).await,
        "pull-s3" => drop(store.pull(&at(endpoint, "m"), &top.join("m"), unseen()).await.expect("pulled")),
        other => panic!("no case {other}"),
    }
}

/// Runs a case in a process that dies at the `n`th failpoint it reaches.
fn die(case: &str, top: &Path, endpoint: &str, n: u64) -> ExitStatus {
    let output = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env("MLOC_KILL_CASE", case)
        .env("MLOC_KILL_FOLDER", top)
        .env("MLOC_KILL_ENDPOINT", endpoint)
        .env("MLOC_FAILPOINT", format!("@{n}"))
        .output()
        .expect("it starts");
    let by_signal = std::os::unix::process::ExitStatusExt::signal(&output.status).is_some();
    assert!(
        output.status.success() || by_signal,
        "{case} @{n} failed by itself: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.status
}

/// Kills a case at each of its failpoints in turn, each in a fresh folder; `proof` looks at what is left and goes on.
async fn at_every_failpoint(case: &str, endpoint: Option<&Moto>, proof: impl AsyncFn(&Path, &str)) -> u64 {
    let url = endpoint.map_or("", |m| m.endpoint.as_str());
    for n in 1.. {
        let dir = tempfile::tempdir().expect("a folder");
        let top = dir.path().canonicalize().expect("it is there");
        std::fs::create_dir(top.join("data")).expect("a volume");
        fill(&top.join("run"), &[(FILES[0], &noise(1, 300_000)), (FILES[1], b"{}\n")]);
        // What is pulled lies in the bucket from the start; what is put there goes between two deaths.
        if let (Some(moto), false) = (endpoint, case.starts_with("pull")) {
            moto.clear().await;
        }
        let survived = die(case, &top, url, n).success();
        proof(&top, url).await;
        if survived {
            println!("{case}: died at each of {} failpoints, and came out whole", n - 1);
            return n - 1;
        }
    }
    0
}

#[tokio::test]
async fn publishing_to_a_volume() {
    let points = at_every_failpoint("publish-local", None, async |top, _| {
        let out = top.join("data/out");
        if out.join(MANIFEST).exists() {
            assert_whole(contents(&out), top);
        }
        run("publish-local", top, "", 2).await;
        assert_whole(contents(&out), top);
        for folder in [out.clone(), out.join("logs")] {
            let left = std::fs::read_dir(&folder)
                .expect("it is there")
                .filter(|entry| entry.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().ends_with(".tmp")));
            assert!(left.count() == 0 || out.join(MANIFEST).exists());
        }
    })
    .await;
    assert!(points >= 10, "only {points} failpoints");
}

/// The result is there, all of it, and no other file.
fn assert_whole(mut there: BTreeMap<String, Vec<u8>>, top: &Path) {
    there.remove(MANIFEST).expect("a manifest");
    assert!(there == contents(&top.join("run")), "a result that is not whole: {:?}", there.keys());
}

#[tokio::test]
async fn publishing_to_a_bucket() {
    let Some(moto) = Moto::start().await else { return };
    let points = at_every_failpoint("publish-s3", Some(&moto), async |top, url| {
        let back = top.join("back");
        let whole = moto.keys().await.iter().any(|key| key == "out/mloc-manifest.json");
        if whole {
            store_in(top).pull(&at(url, "out"), &back, unseen()).await.expect("a manifest speaks the truth");
        }
        run("publish-s3", top, url, 2).await;
        store_in(top).pull(&at(url, "out"), &back, unseen()).await.expect("pulled");
        assert_whole(contents(&back), top);
    })
    .await;
    assert!(points >= 4, "only {points} failpoints");
}

/// After any death there is a checkpoint that can be fetched once one was acknowledged, and the next push mends all.
async fn proof_of_push(case: &str, to: mloc_core::task::spec::Location, top: &Path, url: &str) {
    let (store, back) = (store_in(top), top.join("back"));
    if let Some(fetched) = store.fetch_checkpoint(&attempt("task-a", 2), &to, &back, unseen()).await.expect("fetched") {
        assert!(contents(&back)[FILES[0]] == noise(fetched.checkpoint.step, 300_000), "a damaged checkpoint was taken");
    }
    run(case, top, url, 2).await;
    let fetched = store.fetch_checkpoint(&attempt("task-a", 2), &to, &back, unseen()).await.expect("fetched");
    assert_eq!(fetched.expect("there is one").checkpoint.step, 2);
    assert_eq!(store.list_checkpoints(&attempt("task-a", 2), &to).await.expect("listed"), [2]);
}

#[tokio::test]
async fn pushing_checkpoints_to_a_volume() {
    let points = at_every_failpoint("push-local", None, async |top, url| {
        proof_of_push("push-local", local("data/ckpt"), top, url).await;
    })
    .await;
    assert!(points >= 20, "only {points} failpoints");
}

#[tokio::test]
async fn pushing_checkpoints_to_a_bucket() {
    let Some(moto) = Moto::start().await else { return };
    at_every_failpoint("push-s3", Some(&moto), async |top, url| {
        proof_of_push("push-s3", at(url, "ckpt"), top, url).await;
    })
    .await;
}

#[tokio::test]
async fn pulling_from_a_bucket() {
    let Some(moto) = Moto::start().await else { return };
    let bytes = noise(5, 18 << 20);
    moto.put("m/w.bin", &bytes).await;
    moto.put("m/config.json", b"{}").await;
    let points = at_every_failpoint("pull-s3", Some(&moto), async |top, url| {
        run("pull-s3", top, url, 2).await;
        let there = contents(&top.join("m"));
        assert!(there["w.bin"] == bytes && there["config.json"] == b"{}", "other bytes arrived");
    })
    .await;
    assert!(points >= 8, "only {points} failpoints");
}
