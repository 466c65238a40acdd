//! Sources, destinations and checkpoints on declared volumes, with real files.

mod support;

use std::{collections::BTreeMap, fs, sync::Arc};

use mloc_core::{
    id::NodeId,
    ledger::entry::FailureClass,
    task::spec::{Input, Pin},
};
use mloc_exec::{
    Lineage, Transfers,
    checkpoint::Retention,
    lineage::{AttemptUsage, Hardware, InputLineage},
};
use mloc_store::{MANIFEST, Manifest, Store, StoreError, UPLOADING};
use support::*;

#[tokio::test]
async fn a_local_source_is_used_where_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    fill(&top, &[("model/config.json", b"{}"), ("model/weights/a.bin", b"abc"), ("set.jsonl", b"{}\n")]);
    let store = Store::new(config(&top)).unwrap();
    let (tell, told) = seen();

    let model = store.pull(&local("data/model"), None, tell, unsaid()).await.unwrap();
    assert_eq!((model.path, model.in_place, model.bytes), (top.join("model"), true, 5));
    assert_eq!(model.files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["config.json", "weights/a.bin"]);
    assert!(!top.join("cache").exists());
    assert_eq!(told.lock().unwrap().last().map(|m| (m.done, m.total)), Some((5, 5)));

    let set = pull(&store, &local(top.join("set.jsonl").to_str().unwrap()), None).await.unwrap();
    assert_eq!((set.path, set.files[0].path.as_str()), (top.join("set.jsonl"), "set.jsonl"));
}

#[tokio::test]
async fn local_sources_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    fill(&top, &[("data/model/config.json", b"{}"), ("secret/key", b"k")]);
    fs::create_dir(top.join("data/empty")).unwrap();
    std::os::unix::fs::symlink(top.join("secret/key"), top.join("data/model/key")).unwrap();
    let store = Store::new(config(&top.join("data"))).unwrap();
    let mut said = String::new();
    for path in ["data/none", "data/empty", "/etc", "data/../secret", "data/model"] {
        let error = pull(&store, &local(path), None).await.unwrap_err();
        let elsewhere = matches!(error, StoreError::NoVolume { .. });
        assert_eq!(error.class() == FailureClass::Retryable, elsewhere, "another node may have the volume: {error}");
        said += &format!("{}\n", error.to_string().replace(top.to_str().unwrap(), "TOP"));
    }
    insta::assert_snapshot!(said);
}

#[tokio::test]
async fn a_result_is_published_once() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let (data, run) = (top.join("data"), top.join("run"));
    fs::create_dir(&data).unwrap();
    fill(&run, &[("adapter_model.safetensors", &noise(1, 3 << 20)), ("logs/training_log.jsonl", b"{}\n")]);
    let store = Store::new(config(&data)).unwrap();
    let mut outputs = outputs(&["logs/training_log.jsonl", "adapter_model.safetensors"]);
    outputs.summary = BTreeMap::from([("loss".to_owned(), serde_json::json!(0.5))]);
    let to = local("data/results/one");
    let (tell, told) = seen();

    let first = store.publish(&attempt("task-a", 1), Some(&to), &run, &outputs, None, tell).await.unwrap();
    assert_eq!(first.location, data.join("results/one").display().to_string());
    assert_eq!(first.artifacts[0].path, "adapter_model.safetensors");
    let total = (3 << 20) + 3;
    assert_eq!(told.lock().unwrap().last().map(|m| (m.done, m.total)), Some((total, total)));
    let mut there = contents(&data.join("results/one"));
    there.remove(MANIFEST).expect("a manifest");
    assert_eq!(there, contents(&run));

    // A later attempt of the same task, with other bytes: what is there stands.
    fill(&run, &[("adapter_model.safetensors", b"other")]);
    let again = store.publish(&attempt("task-a", 2), Some(&to), &run, &outputs, None, unseen()).await;
    assert_eq!(again.unwrap(), first);
    assert_eq!(store.published(&attempt("task-a", 3), &to).await.unwrap(), Some(first));

    let taken = store.publish(&attempt("task-b", 1), Some(&to), &run, &outputs, None, unseen()).await;
    let taken = taken.unwrap_err();
    assert_eq!(taken.class(), FailureClass::Fatal);
    assert!(taken.to_string().contains("destination holds the result of task task-a"), "{taken}");
    let mut there = contents(&data.join("results/one"));
    there.remove(MANIFEST);
    assert_eq!(there["adapter_model.safetensors"], noise(1, 3 << 20), "another task's file was overwritten");
}

#[tokio::test]
async fn a_publication_that_was_stopped_gives_no_name_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let (data, run) = (top.join("data"), top.join("run"));
    fs::create_dir(&data).unwrap();
    fill(&run, &[("model.bin", &noise(1, 4 << 20))]);
    let store = Store::new(config(&data)).unwrap();
    // The copying thread waits in the middle of the file; what it holds is dropped when it touches nothing any more.
    let (reached, mut at_block) = tokio::sync::mpsc::channel(64);
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let (quiet, mut is_quiet) = tokio::sync::watch::channel(());
    let tell = Arc::new(move |moved: mloc_exec::Moved| {
        let _ = &quiet;
        if moved.done > 0 {
            reached.try_send(moved.done).unwrap();
            wait.lock().unwrap().recv().ok();
        }
    });
    let (to, outputs, a) = (local("data/out"), outputs(&["model.bin"]), attempt("t", 1));
    {
        let publish = store.publish(&a, Some(&to), &run, &outputs, None, tell);
        tokio::select! {
            ended = publish => panic!("it ended: {ended:?}"),
            block = at_block.recv() => assert_eq!(block, Some(1 << 20)),
        }
    }
    assert!(is_quiet.has_changed().is_ok(), "the thread is still there");
    drop(go_on);
    assert!(is_quiet.changed().await.is_err(), "it is over now");
    let left: Vec<_> = contents(&data.join("out")).into_keys().collect();
    assert_eq!(left, [UPLOADING], "a name was given, or a part stays behind");

    // The successor is not disturbed.
    let again = store.publish(&attempt("t", 2), Some(&to), &run, &outputs, None, unseen()).await.unwrap();
    assert_eq!(again.artifacts[0].bytes, 4 << 20);
    assert!(!data.join("out").join(UPLOADING).exists());
}

#[tokio::test]
async fn what_a_dead_attempt_left_is_taken_away_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let (data, out, run) = (top.join("data"), top.join("data/out"), top.join("run"));
    fill(&data, &[("beside.txt", b"beside")]);
    fill(&out, &[("old/shard-1", b"half"), ("kept.txt", b"the user's"), ("model.bin", b"half")]);
    let paths = ["old/shard-1", "model.bin", "gone", "../beside.txt", "/etc/hostname"];
    let record = serde_json::json!({ "attempt": attempt("t", 1), "paths": paths });
    fill(&out, &[(UPLOADING, record.to_string().as_bytes())]);
    fill(&run, &[("model.bin", b"whole")]);
    let store = Store::new(config(&data)).unwrap();
    let to = local("data/out");

    // One that dies in its first file still leaves word of what was there before it.
    let (reached, mut at_block) = tokio::sync::mpsc::channel(64);
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let tell = Arc::new(move |moved: mloc_exec::Moved| {
        if moved.done > 0 {
            reached.try_send(moved.done).ok();
            wait.lock().unwrap().recv().ok();
        }
    });
    let (made, dead) = (outputs(&["model.bin"]), attempt("t", 2));
    tokio::select! {
        ended = store.publish(&dead, Some(&to), &run, &made, None, tell) => panic!("it ended: {ended:?}"),
        block = at_block.recv() => assert!(block.is_some()),
    }
    drop(go_on);
    let said: serde_json::Value = serde_json::from_slice(&fs::read(out.join(UPLOADING)).unwrap()).unwrap();
    assert_eq!(said["paths"], serde_json::json!(["gone", "model.bin", "old/shard-1"]));

    store.publish(&attempt("t", 3), Some(&to), &run, &made, None, unseen()).await.unwrap();
    let there: Vec<_> = contents(&out).into_keys().collect();
    assert_eq!(there, ["kept.txt", MANIFEST, "model.bin"]);
    assert_eq!(fs::read(out.join("model.bin")).unwrap(), b"whole");
    assert!(data.join("beside.txt").exists());
}

/// A node that starts again takes away the halves that its own attempt was writing, and no other's.
#[tokio::test]
async fn what_a_dead_daemon_was_writing_goes_when_it_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let out = top.join("out");
    let half = ".mloc-0123456789abcdef-7.tmp";
    let record = serde_json::json!({ "attempt": attempt("t", 2), "paths": ["logs/log.jsonl", "model.bin"] });
    let store = Store::new(config(&top)).unwrap();
    let sweep = async |number| {
        store.sweep(&attempt("t", number), &local("data/out")).await.unwrap();
        [out.join(half), out.join("logs").join(half)].iter().filter(|path| path.exists()).count()
    };
    assert_eq!(sweep(2).await, 0, "there is nothing yet");
    let record = record.to_string();
    let files: [(&str, &[u8]); 4] =
        [(UPLOADING, record.as_bytes()), ("model.bin", b"m"), (half, b"h"), (&format!("logs/{half}"), b"h")];
    fill(&out, &files);
    assert_eq!(sweep(1).await, 2, "another attempt has begun since");
    assert_eq!(sweep(2).await, 0);
    assert!(out.join(UPLOADING).exists() && out.join("model.bin").exists(), "for whoever publishes there next");
}

#[tokio::test]
async fn a_manifest_says_where_a_result_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().canonicalize().unwrap().join("data");
    let run = dir.path().join("run");
    fill(&data, &[("x", b"x")]);
    fill(&run, &[("a", b"abc")]);
    let store = Store::new(config(&data)).unwrap();
    let lineage = Lineage {
        task_name: "tune".into(),
        owner: "ann".into(),
        project: "p".into(),
        task_type: "sft".into(),
        inputs: BTreeMap::from([(
            Input::Dataset,
            InputLineage { source: local("data/x"), pin: Some(Pin { version: "0a1b".into(), files: 1, bytes: 1 }) },
        )]),
        hyperparameters: BTreeMap::new(),
        mloc: "1.0.0".into(),
        node: NodeId::new("n"),
        hardware: Hardware { cpu_features: "x86_64".into(), threads: 2, gpu_type: String::new(), gpu_count: 0 },
        usage: AttemptUsage { seconds: 1.5, gpu_hours: 0.0 },
    };
    let made = outputs(&["a"]);
    for to in [None, Some(local("data/out"))] {
        let transfers: &dyn Transfers = &store;
        let result = transfers
            .publish(&attempt("t", 1), to.as_ref(), &run, &made, Some(lineage.clone()), unseen())
            .await
            .unwrap();
        let manifest = std::path::Path::new(&result.location).join(MANIFEST);
        let manifest = Manifest::read("it", &fs::read(manifest).unwrap()).unwrap();
        assert_eq!(manifest.lineage.as_ref(), Some(&lineage));
        assert_eq!(manifest.files, result.artifacts);
    }
}

#[tokio::test]
async fn a_worker_sees_failures_with_their_class() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    fill(&top, &[("set.jsonl", b"{}\n")]);
    let transfers: Arc<dyn Transfers> = Arc::new(Store::new(config(&top)).unwrap());
    let pulled = transfers.pull(&local("data/set.jsonl"), None, unseen(), unsaid()).await.unwrap();
    assert_eq!((pulled.path, pulled.pin), (top.join("set.jsonl"), None));
    assert!(pulled.held.is_none() && !top.join("cache").exists(), "it is used where it lies");
    let failure = transfers.pull(&local("nowhere/set.jsonl"), None, unseen(), unsaid()).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Retryable, "another node may have it");
    assert!(failure.message.contains("hint: write VOLUME/relative/path"), "{}", failure.message);
}

#[tokio::test]
async fn without_a_destination_artifacts_stay() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[("a", b"abc")]);
    let store = Store::new(config(dir.path())).unwrap();
    let stay = store.publish(&attempt("t", 1), None, dir.path(), &outputs(&["a"]), None, unseen()).await;
    let stay = stay.unwrap();
    assert_eq!(stay.location, dir.path().display().to_string());
    assert_eq!(stay.artifacts[0].sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[tokio::test]
async fn outputs_with_path_tricks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(config(dir.path())).unwrap();
    let mut said = String::new();
    for name in ["../a", "/etc/passwd", "a/../../b", "", MANIFEST, UPLOADING] {
        let to = local("data/out");
        let bad = store.publish(&attempt("t", 1), Some(&to), dir.path(), &outputs(&[name]), None, unseen()).await;
        let bad = bad.unwrap_err();
        assert!(matches!(bad, StoreError::BadName { .. }), "{name:?}: {bad:?}");
        said += &format!("{}\n", bad.to_string().replace(dir.path().to_str().unwrap(), "TOP"));
    }
    insta::assert_snapshot!(said);
}

#[tokio::test]
async fn the_newest_whole_checkpoint_is_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let (data, run, back) = (top.join("data"), top.join("run"), top.join("back"));
    fs::create_dir(&data).unwrap();
    let store = Store::new(config(&data)).unwrap();
    let (a, to) = (attempt("task-a", 1), local("data/ckpt"));
    assert_eq!(store.fetch_checkpoint(&a, &to, &back, unseen()).await.unwrap(), None);

    let mut pushed = Vec::new();
    for step in [5, 10, 15, 20] {
        fill(&run, &[("model.bin", &noise(step, 100_000)), ("state/rng.json", format!("{step}").as_bytes())]);
        pushed.push(store.push_checkpoint(&a, &to, step, &run, Retention::newest(3), unseen()).await.unwrap());
    }
    let again = store.push_checkpoint(&a, &to, 20, &run, Retention::newest(3), unseen()).await.unwrap();
    assert_eq!(again, pushed[3]);
    assert_eq!(store.list_checkpoints(&a, &to).await.unwrap(), [10, 15, 20]);

    let fetched = store.fetch_checkpoint(&a, &to, &back, unseen()).await.unwrap().unwrap();
    assert_eq!((&fetched.checkpoint, fetched.passed_over.len()), (&pushed[3], 0));
    assert_eq!(contents(&back), contents(&run));

    // One flipped bit, then a truncated file, then a missing one.
    let file = |step: u32| data.join(format!("ckpt/task-a/0/step-{step:010}/model.bin"));
    let mut flipped = fs::read(file(20)).unwrap();
    flipped[50_000] ^= 1;
    fs::write(file(20), flipped).unwrap();
    let fetched = store.fetch_checkpoint(&a, &to, &back, unseen()).await.unwrap().unwrap();
    assert_eq!(fetched.checkpoint, pushed[2]);
    assert!(fetched.passed_over[0].contains("step 20") && fetched.passed_over[0].contains("SHA-256"));
    assert_eq!(contents(&back)["model.bin"], noise(15, 100_000));

    fs::File::options().write(true).open(file(15)).unwrap().set_len(10).unwrap();
    assert_eq!(store.fetch_checkpoint(&a, &to, &back, unseen()).await.unwrap().unwrap().checkpoint, pushed[1]);
    fs::remove_file(file(10)).unwrap();
    assert_eq!(store.fetch_checkpoint(&a, &to, &back, unseen()).await.unwrap(), None);

    // The attempt that had to pass it over comes to step 20 itself, and mends it.
    let mended =
        store.push_checkpoint(&attempt("task-a", 2), &to, 20, &run, Retention::newest(3), unseen()).await.unwrap();
    assert_eq!(store.fetch_checkpoint(&a, &to, &back, unseen()).await.unwrap().unwrap().checkpoint, mended);
    assert_eq!(contents(&back), contents(&run));
    assert_eq!(store.list_checkpoints(&a, &to).await.unwrap(), [10, 15, 20]);

    // The best one stays however old it is.
    let retention = Retention { keep: 2, best: Some(10) };
    for step in [25, 30] {
        fill(&run, &[("model.bin", &noise(step, 1_000))]);
        store.push_checkpoint(&a, &to, step, &run, retention, unseen()).await.unwrap();
        assert_eq!(store.list_checkpoints(&a, &to).await.unwrap(), [10, step]);
    }
}
