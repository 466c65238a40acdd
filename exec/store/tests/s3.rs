//! Sources, destinations and checkpoints in buckets, against a real S3 server, over lines that break.

mod support;

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, process::Command, time::Duration};

use mloc_core::ledger::entry::FailureClass;
use mloc_exec::checkpoint::Retention;
use mloc_store::{MANIFEST, Patience, Secret, Store, StoreConfig, StoreError, UPLOADING};
use reqwest::Method;
use support::{
    line::Line,
    moto::{Moto, at, with_credentials},
    *,
};

/// A node with an S3 server beside it.
struct Bench {
    moto: Moto,
    store: Store,
    top: PathBuf,
    // Keeps the folder.
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Option<Self> {
        let moto = Moto::start().await?;
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let store = Store::new(with_credentials(config(&top))).unwrap();
        Some(Self { moto, store, top, _dir: dir })
    }
}

#[tokio::test]
async fn a_prefix_or_one_object_is_pulled() {
    let Some(Bench { moto, store, _dir, .. }) = Bench::new().await else { return };
    let weights = noise(7, 20 << 20);
    moto.put("models/m/weights.bin", &weights).await;
    moto.put("models/m/config.json", b"{}").await;
    moto.put("models/m/sub/empty.txt", b"").await;
    moto.put("models/m-other/config.json", b"no").await;
    let (tell, told) = seen();

    let pulled = store.pull(&at(&moto.endpoint, "models/m"), None, tell, unsaid()).await.unwrap();
    assert!(!pulled.in_place);
    let names: Vec<_> = pulled.files.iter().map(|f| (f.path.as_str(), f.bytes)).collect();
    assert_eq!(names, [("config.json", 2), ("sub/empty.txt", 0), ("weights.bin", 20 << 20)]);
    let there = contents(&pulled.path);
    assert!(there["weights.bin"] == weights && there.len() == 3, "other files, or other bytes");
    let total = (20 << 20) + 2;
    assert_eq!((pulled.bytes, pulled.fetched), (total, total));
    assert_eq!(told.lock().unwrap().last().map(|m| (m.done, m.total)), Some((total, total)));

    // Again: nothing goes over the line, until an object has changed.
    let again = pull(&store, &at(&moto.endpoint, "models/m"), None).await.unwrap();
    assert_eq!((again.fetched, again.files), (0, pulled.files));
    moto.put("models/m/config.json", b"[]").await;
    let again = pull(&store, &at(&moto.endpoint, "models/m"), None).await.unwrap();
    assert_eq!((again.fetched, fs::read(again.path.join("config.json")).unwrap()), (2, b"[]".to_vec()));

    let one = pull(&store, &at(&moto.endpoint, "models/m/weights.bin"), None).await.unwrap();
    assert!(one.path.ends_with("weights.bin"));
    assert_eq!(fs::read(one.path).unwrap(), weights);
}

/// A file that was whole when its pull died, and was touched since, is read again before it is believed.
#[tokio::test]
async fn what_a_dead_pull_left_is_believed_when_it_is_what_it_was() {
    let Some(Bench { moto, store, top, _dir, .. }) = Bench::new().await else { return };
    let (first, last) = (noise(7, 9 << 20), noise(8, 32 << 20));
    moto.put("m/a.bin", &first).await;
    moto.put("m/z.bin", &last).await;
    let source = at(&moto.endpoint, "m");
    for flips in [false, true] {
        let pulls = top.join("cache/pulls");
        let whole = async {
            // Its name is what it gets last.
            loop {
                let here = fs::read_dir(&pulls).into_iter().flatten().map(|pull| pull.unwrap().path());
                if let Some(file) = here.map(|pull| pull.join("files/a.bin")).find(|file| file.exists()) {
                    return file;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let file = tokio::select! {
            ended = pull(&store, &source, None) => panic!("it ended: {ended:?}"),
            file = whole => file,
        };
        let mut bytes = fs::read(&file).unwrap();
        bytes[5 << 20] ^= u8::from(flips);
        fs::write(&file, bytes).unwrap();
        let before = fs::metadata(&file).unwrap().ino();
        let pulled = pull(&store, &source, None).await.unwrap();
        let there = contents(&pulled.path);
        assert!(there["a.bin"] == first && there["z.bin"] == last, "a damaged file was used");
        let after = fs::metadata(pulled.path.join("a.bin")).unwrap().ino();
        assert_eq!(after == before, !flips, "the same file, or one that came again");
        drop(pulled);
        store.cache().prune();
    }
}

/// What may go of the cache goes for a pull or a checkpoint that does not fit, before it is said that it does not.
#[tokio::test]
async fn room_is_made_before_it_is_said_that_there_is_none() {
    let Some(Bench { moto, store, top, _dir }) = Bench::new().await else { return };
    moto.put("old/a", b"old").await;
    moto.put("m/a", b"abc").await;
    let full = Store::new(StoreConfig { reserve_bytes: u64::MAX, ..with_credentials(config(&top)) }).unwrap();
    let (a, to) = (attempt("t", 1), at(&moto.endpoint, "ckpt"));
    fill(&top.join("run"), &[("model.bin", b"abc")]);
    store.push_checkpoint(&a, &to, 5, &top.join("run"), Retention::newest(0), unseen()).await.unwrap();
    for what in ["a pull", "a checkpoint"] {
        let old = pull(&store, &at(&moto.endpoint, "old"), None).await.unwrap().path;
        let none = match what {
            "a pull" => pull(&full, &at(&moto.endpoint, "m"), None).await.unwrap_err(),
            _ => full.fetch_checkpoint(&a, &to, &top.join("back"), unseen()).await.unwrap_err(),
        };
        assert!(matches!(none, StoreError::NoSpace { needed: u64::MAX, .. }), "{what}: {none}");
        assert!(!old.exists(), "{what}: nothing was given up");
    }
}

#[tokio::test]
async fn a_line_that_breaks_costs_little() {
    let Some(Bench { moto, store, _dir, .. }) = Bench::new().await else { return };
    let bytes = noise(8, 40 << 20);
    moto.put("big.bin", &bytes).await;
    let line = Line::to(&moto.endpoint).await;
    line.breaks_after(3 << 20);

    let pulled = pull(&store, &at(&line.endpoint, "big.bin"), None).await.unwrap();
    assert!(fs::read(&pulled.path).unwrap() == bytes, "other bytes arrived");
    let over = line.down() as f64 / bytes.len() as f64;
    println!("a line that breaks every 3 MiB: {over:.4} × the object came down");
    assert!(over <= 1.05, "{over:.3} × the object came down");
}

#[tokio::test]
async fn a_pull_that_was_dropped_goes_on_where_it_stopped() {
    let Some(Bench { moto, store, _dir, .. }) = Bench::new().await else { return };
    let bytes = noise(9, 64 << 20);
    moto.put("big.bin", &bytes).await;
    let line = Line::to(&moto.endpoint).await;
    line.pause_at(48 << 20);
    {
        let source = at(&line.endpoint, "big.bin");
        tokio::select! {
            ended = pull(&store, &source, None) => panic!("it ended: {ended:?}"),
            () = line.paused() => {}
        }
    }
    line.go_on();
    let before = line.down();
    let pulled = pull(&store, &at(&line.endpoint, "big.bin"), None).await.unwrap();
    assert!(fs::read(&pulled.path).unwrap() == bytes, "other bytes arrived");
    // Four chunks of 8 MiB were on their way at most, and what lay in sockets.
    assert!(pulled.fetched <= (64 - 48 + 4 * 8) << 20, "{} bytes came again", pulled.fetched);
    println!("dropped after {before} bytes; {} came afterwards", pulled.fetched);
}

#[tokio::test]
async fn an_object_that_changes_meanwhile_is_begun_again() {
    let Some(Bench { moto, store, _dir, .. }) = Bench::new().await else { return };
    let (old, new) = (noise(1, 40 << 20), noise(2, 30 << 20));
    moto.put("m/w.bin", &old).await;
    let line = Line::to(&moto.endpoint).await;
    line.pause_at(20 << 20);
    let source = at(&line.endpoint, "m");
    let change = async {
        line.paused().await;
        moto.put("m/w.bin", &new).await;
        line.go_on();
    };
    let (pulled, ()) = tokio::join!(pull(&store, &source, None), change);
    let pulled = pulled.unwrap();
    assert!(contents(&pulled.path)["w.bin"] == new, "old bytes, or a mixture");
    assert_eq!(pulled.bytes, new.len() as u64);
}

#[tokio::test]
async fn a_result_in_a_bucket_is_published_once() {
    let Some(Bench { moto, store, top, _dir, .. }) = Bench::new().await else { return };
    let run = top.join("run");
    fill(&run, &[("adapter_model.safetensors", &noise(3, 20 << 20)), ("logs/training_log.jsonl", b"{}\n")]);
    let outputs = outputs(&["adapter_model.safetensors", "logs/training_log.jsonl"]);
    let to = at(&moto.endpoint, "out/one");
    let publish = |task: &str, number| {
        let (store, to, run, outputs, a) =
            (store.clone(), to.clone(), run.clone(), outputs.clone(), attempt(task, number));
        async move { store.publish(&a, Some(&to), &run, &outputs, None, unseen()).await }
    };
    // Two tasks at once: one result, and the other is told whose it is.
    let (a, b) = tokio::join!(publish("task-a", 1), publish("task-b", 1));
    let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
    let (won, lost) = (won.unwrap(), lost.unwrap_err());
    assert_eq!(won.location, "s3://mloc-test/out/one");
    assert!(matches!(&lost, StoreError::Taken { task, .. } if task.starts_with("task-")), "{lost}");
    assert_eq!(lost.class(), FailureClass::Fatal);
    let mut keys = moto.keys().await;
    keys.sort();
    assert_eq!(
        keys,
        ["out/one/adapter_model.safetensors", "out/one/logs/training_log.jsonl", "out/one/mloc-manifest.json"]
    );

    // The winner's retry adopts; and what was published can be pulled, digests checked.
    let StoreError::Taken { task, .. } = lost else { unreachable!() };
    assert_eq!(publish(&task, 2).await.unwrap(), won);
    let mut back = contents(&pull(&store, &to, None).await.unwrap().path);
    back.remove(MANIFEST);
    assert!(back == contents(&run), "other bytes came back");

    moto.put("out/one/logs/training_log.jsonl", b"no\n").await;
    let damaged = pull(&store, &to, None).await.unwrap_err();
    assert!(
        matches!(&damaged, StoreError::Damaged { place, .. } if place.ends_with("training_log.jsonl")),
        "{damaged}"
    );
}

#[tokio::test]
async fn a_result_gets_through_a_line_that_breaks() {
    let Some(Bench { moto, store, top, _dir, .. }) = Bench::new().await else { return };
    let run = top.join("run");
    fill(&run, &[("model.safetensors", &noise(3, 40 << 20))]);
    let line = Line::to(&moto.endpoint).await;
    // One part and a bit: the second part on a connection never arrives.
    line.breaks_up_after(10 << 20);
    let (to, files) = (at(&line.endpoint, "out"), outputs(&["model.safetensors"]));
    store.publish(&attempt("t", 1), Some(&to), &run, &files, None, unseen()).await.unwrap();
    let back = pull(&store, &at(&moto.endpoint, "out"), None).await.unwrap();
    assert!(contents(&back.path)["model.safetensors"] == noise(3, 40 << 20), "other bytes came back");
}

/// Parts that nobody completes are paid for: a stopped publication takes its own back, and says when it is done.
#[tokio::test]
async fn an_upload_that_was_stopped_leaves_no_parts() {
    let Some(Bench { moto, store, top, _dir }) = Bench::new().await else { return };
    let run = top.join("run");
    fill(&run, &[("model.bin", &noise(3, 80 << 20))]);
    let (reached, mut at_block) = tokio::sync::mpsc::channel(256);
    let (quiet, mut is_quiet) = tokio::sync::watch::channel(());
    let tell = std::sync::Arc::new(move |moved: mloc_exec::Moved| {
        let _ = &quiet;
        // The case has seen enough after the first.
        if moved.done > 20 << 20 {
            reached.try_send(moved.done).ok();
        }
    });
    let (a, to, made) = (attempt("t", 1), at(&moto.endpoint, "out"), outputs(&["model.bin"]));
    tokio::select! {
        ended = store.publish(&a, Some(&to), &run, &made, None, tell) => panic!("it ended: {ended:?}"),
        block = at_block.recv() => assert!(block.is_some()),
    }
    assert!(!moto.uploads().await.is_empty() || is_quiet.has_changed().is_err(), "no upload in parts was under way");
    assert!(is_quiet.changed().await.is_err(), "it is over now");
    assert_eq!(moto.uploads().await, [""; 0]);
    assert_eq!(moto.keys().await, [format!("out/{UPLOADING}")], "a name was given");
}

#[tokio::test]
async fn checkpoints_in_a_bucket() {
    let Some(Bench { moto, store, top, _dir, .. }) = Bench::new().await else { return };
    let (run, back, a, to) = (top.join("run"), top.join("back"), attempt("task-a", 1), at(&moto.endpoint, "ckpt"));
    assert_eq!(store.fetch_checkpoint(&a, &to, &back, unseen()).await.unwrap(), None);
    let mut pushed = Vec::new();
    for step in [5, 10, 15] {
        fill(&run, &[("model.bin", &noise(step, 9 << 20)), ("state/rng.json", format!("{step}").as_bytes())]);
        pushed.push(store.push_checkpoint(&a, &to, step, &run, Retention::newest(2), unseen()).await.unwrap());
    }
    assert_eq!(store.push_checkpoint(&a, &to, 15, &run, Retention::newest(2), unseen()).await.unwrap(), pushed[2]);
    assert_eq!(store.list_checkpoints(&a, &to).await.unwrap(), [10, 15]);
    let fetched = store.fetch_checkpoint(&attempt("task-a", 2), &to, &back, unseen()).await.unwrap().unwrap();
    assert_eq!(fetched.checkpoint, pushed[2]);
    assert!(contents(&back) == contents(&run), "other bytes came back");

    moto.call(Method::DELETE, "/mloc-test/ckpt/task-a/0/step-0000000015/state/rng.json", vec![]).await;
    moto.put("ckpt/task-a/0/step-0000000020/model.bin", b"half-written").await;
    let fetched = store.fetch_checkpoint(&a, &to, &back, unseen()).await.unwrap().unwrap();
    assert_eq!((fetched.checkpoint, fetched.passed_over.len()), (pushed[1].clone(), 2));
    assert_eq!(contents(&back)["state/rng.json"], b"10");
}

#[tokio::test]
async fn what_is_said_when_s3_does_not_give() {
    let Some(Bench { moto, store, top, _dir, .. }) = Bench::new().await else { return };
    let mut said = String::new();
    let mut say = |what: &str, error: StoreError, class: FailureClass| {
        assert_eq!(error.class(), class, "{what}: {error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        said += &format!(
            "# {what}\n{}\n\n",
            error.to_string().replace(&moto.endpoint, "http://HOST:PORT").replace(top.to_str().unwrap(), "TOP")
        );
    };
    let fatal = FailureClass::Fatal;
    let here = |path: &str| at(&moto.endpoint, path);

    say("no such object", pull(&store, &here("none/at/all"), None).await.unwrap_err(), fatal);
    say("empty bucket", pull(&store, &here(""), None).await.unwrap_err(), fatal);
    let mut other = here("x");
    if let mloc_core::task::spec::Location::S3 { bucket, .. } = &mut other {
        *bucket = "nobodys-bucket".into();
    }
    say("no such bucket", pull(&store, &other, None).await.unwrap_err(), fatal);
    moto.put("tricks/..%2F..%2Fetc/passwd", b"x").await;
    let tricks = pull(&store, &here("tricks"), None).await;
    assert!(!top.join("etc").exists(), "{tricks:?}");
    say("path tricks", tricks.unwrap_err(), fatal);

    // An address where nobody listens: bound once, and let go.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let down = pull(&store, &at(&format!("http://{gone}"), "m"), None).await.unwrap_err();
    let down_text = down.to_string().replace(&gone.to_string(), "HOST:PORT");
    assert!(!down_text.contains("hunter2"));
    assert_eq!(down.class(), FailureClass::Retryable, "{down}");

    moto.put("m/a", b"a").await;
    moto.check_credentials().await;
    let retryable = FailureClass::Retryable;
    say("unknown credentials", pull(&store, &here("m"), None).await.unwrap_err(), retryable);
    let to = here("out");
    fill(&top, &[("a", b"abc")]);
    let put = store.publish(&attempt("t", 1), Some(&to), &top, &outputs(&["a"]), None, unseen()).await;
    say("unknown credentials, publishing", put.unwrap_err(), retryable);
    said += &format!("# endpoint down\n{down_text}\n");
    insta::assert_snapshot!(said);
}

#[tokio::test]
async fn two_pulls_of_one_source_wait_for_one_another() {
    let Some(Bench { moto, store, _dir, .. }) = Bench::new().await else { return };
    let bytes = noise(4, 24 << 20);
    moto.put("w.bin", &bytes).await;
    let source = at(&moto.endpoint, "w.bin");
    let (one, two) = tokio::join!(pull(&store, &source, None), pull(&store, &source, None));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.fetched + two.fetched, bytes.len() as u64, "it came twice");
    assert_eq!((one.files, one.path), (two.files, two.path));
}

#[tokio::test]
async fn a_silent_endpoint_is_given_up() {
    // It takes connections (the kernel does) and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_credentials(config(dir.path()));
    config.patience = Patience { tries: 2, silence: Duration::from_millis(50), ..config.patience };
    let store = Store::new(config).unwrap();
    let source = at(&format!("http://{}", silent.local_addr().unwrap()), "m");
    let error = pull(&store, &source, None).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Retryable);
    assert!(error.to_string().contains("after 2 tries"), "{error}");
}

#[tokio::test]
async fn a_worker_without_credentials_is_told_so() {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "without_credentials", "--ignored"])
        .env_clear()
        .env("HOME", home.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test]
#[ignore = "is started by a_worker_without_credentials_is_told_so"]
async fn without_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(config(dir.path())).unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = at(&format!("http://{}", nobody.local_addr().unwrap()), "m");
    let error = pull(&store, &source, None).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Retryable, "another node may have some: {error:?}");
    let said = "s3://mloc-test/m: access denied: signing http request: failed to load signing credential\n\
                hint: this node has no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the worker, \
                or s3 in node.yaml (s3.anonymous for public buckets)";
    assert_eq!(error.to_string(), said);
}

/// Disk full, before the pull and in the middle of it. Runs on a small file system of its own.
#[tokio::test]
async fn a_full_disk() {
    // The inner one starts its own; without one there is nothing to run.
    if Moto::start().await.is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=64m tmpfs "$1" && exec "$2" --exact on_a_small_disk --ignored --nocapture"#;
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env("MLOC_SMALL_DISK", dir.path())
        .output();
    let said = output.map_or_else(
        |e| e.to_string(),
        |o| format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr)),
    );
    if !said.contains("running 1 test") {
        return skip(&format!("no file system of our own can be mounted here: {said}"));
    }
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "is started by a_full_disk"]
async fn on_a_small_disk() {
    let Some(disk) = std::env::var_os("MLOC_SMALL_DISK") else { return };
    let moto = Moto::start().await.expect("the outer case has started one");
    let disk = PathBuf::from(disk).canonicalize().unwrap();
    let mut config = with_credentials(config(&disk));
    config.reserve_bytes = 4 << 20;
    config.volumes.insert("small".into(), disk.clone());
    let store = Store::new(config).unwrap();
    let bytes = noise(6, 50 << 20);
    moto.put("large/a.bin", &noise(5, 62 << 20)).await;
    moto.put("m/a.bin", &bytes).await;

    let early = pull(&store, &at(&moto.endpoint, "large"), None).await.unwrap_err();
    assert!(matches!(&early, StoreError::NoSpace { needed, .. } if *needed == 66 << 20), "{early}");
    // Publishing to a volume and fetching from one say it before the first byte as well.
    let roomy = tempfile::tempdir().unwrap();
    let run = roomy.path().join("run");
    fill(&run, &[("model.bin", &noise(3, 70 << 20))]);
    let (a, files) = (attempt("t", 1), outputs(&["model.bin"]));
    let full = store.publish(&a, Some(&local("small/out")), &run, &files, None, unseen()).await.unwrap_err();
    let wide = Store::new(config_with(roomy.path(), 4 << 20)).unwrap();
    wide.push_checkpoint(&a, &local("data/ckpt"), 5, &run, Retention::newest(1), unseen()).await.unwrap();
    let fetched = wide.fetch_checkpoint(&a, &local("data/ckpt"), &disk.join("ckpt"), unseen()).await.unwrap_err();
    // Its place in the cache is named by the source, whose port is another one each time.
    let StoreError::NoSpace { folder: place, .. } = &early else { unreachable!() };
    let mut said = String::new();
    for (what, error) in [("pull", &early), ("publish", &full), ("fetch a checkpoint", &fetched)] {
        assert_eq!(error.class(), FailureClass::Retryable);
        // How much a file system of its own keeps for itself is its own affair.
        let text = error.to_string().replace(place.to_str().unwrap(), "DISK/cache/pulls/SOURCE/files");
        let text = text.replace(disk.to_str().unwrap(), "DISK");
        let (before, after) = text.split_once(" more bytes are needed and ").expect("it says how much");
        let (_, hint) = after.split_once(" are free").expect("it says what there is");
        said += &format!("# {what}\n{before} more bytes are needed and FREE are free{hint}\n\n");
    }
    insta::assert_snapshot!("a_full_disk", said);
    fs::remove_dir_all(disk.join("ckpt")).unwrap();

    let line = Line::to(&moto.endpoint).await;
    line.pause_at(20 << 20);
    let source = at(&line.endpoint, "m");
    let others = async {
        line.paused().await;
        fs::write(disk.join("somebody-elses"), noise(1, 30 << 20)).unwrap();
        line.go_on();
    };
    let (full, ()) = tokio::join!(pull(&store, &source, None), others);
    let full = full.unwrap_err();
    assert!(matches!(full, StoreError::NoSpace { .. }), "{full}");
    assert_eq!(full.class(), FailureClass::Retryable);

    fs::remove_file(disk.join("somebody-elses")).unwrap();
    let pulled = pull(&store, &source, None).await.unwrap();
    assert!(fs::read(pulled.path.join("a.bin")).unwrap() == bytes, "other bytes arrived");
    assert!(pulled.fetched < bytes.len() as u64, "nothing was kept");
}

/// A volume elsewhere, and so many bytes left free.
fn config_with(data: &std::path::Path, reserve_bytes: u64) -> StoreConfig {
    StoreConfig { reserve_bytes, ..config(data) }
}

#[tokio::test]
async fn https_is_spoken_with_ring() {
    // Nobody listens, but a client that cannot agree on a TLS provider would not even get so far.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = StoreConfig { patience: config(dir.path()).patience, ..StoreConfig::default() };
    config.s3.access_key_id = Some(Secret::new("AKIAEXAMPLE"));
    config.s3.secret_access_key = Some(Secret::new("hunter2"));
    let store = Store::new(config).unwrap();
    let error = pull(&store, &at(&format!("https://{gone}"), "m"), None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. } | StoreError::Unready { .. }), "{error}");
}
