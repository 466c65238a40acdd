//! The cache: each content once, a hit without a request, a flipped byte found, and many processes at it at once.

mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use mloc_core::task::spec::Location;
use mloc_store::{CacheConfig, MANIFEST, Pulled, Store, StoreError, Verify};
use reqwest::Method;
use support::{
    line::Line,
    moto::{Moto, at, with_credentials},
    *,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    moto: Moto,
    line: Line,
    top: PathBuf,
    // Keeps the folder.
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Option<Self> {
        let moto = Moto::start().await?;
        let line = Line::to(&moto.endpoint).await;
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        Some(Self { moto, line, top, _dir: dir })
    }

    fn store(&self) -> Store {
        self.store_with(|_| {})
    }

    fn store_with(&self, change: impl FnOnce(&mut CacheConfig)) -> Store {
        store_in(&self.top.join("cache"), change)
    }

    fn source(&self, path: &str) -> Location {
        at(&self.line.endpoint, path)
    }

    fn cache(&self) -> PathBuf {
        self.top.join("cache")
    }
}

fn store_in(cache: &Path, change: impl FnOnce(&mut CacheConfig)) -> Store {
    let mut config = with_credentials(config(cache));
    config.cache.dir = cache.to_owned();
    change(&mut config.cache);
    Store::new(config).unwrap()
}

fn is_empty(cache: &Path) -> bool {
    contents(cache).is_empty()
}

#[tokio::test]
async fn a_pinned_source_that_is_here_takes_no_request_and_a_newer_one_only_what_changed() {
    let Some(bench) = Bench::new().await else { return };
    let weights = noise(7, 9 << 20);
    bench.moto.put("m/w.bin", &weights).await;
    bench.moto.put("m/sub/config.json", b"{}").await;
    let (store, source) = (bench.store(), bench.source("m"));
    let (tell, told) = seen();
    let first = store.pull(&source, None, tell, unsaid()).await.unwrap();
    assert_eq!((first.fetched, first.in_place), (weights.len() as u64 + 2, false));
    assert_eq!(told.lock().unwrap().last().map(|m| (m.done, m.total)), Some((first.bytes, first.bytes)));
    let there = contents(&first.path);
    assert!(there["w.bin"] == weights && there["sub/config.json"] == b"{}" && there.len() == 2);
    let file = fs::metadata(first.path.join("w.bin")).unwrap();
    assert_eq!((file.permissions().mode() & 0o777, file.nlink()), (0o444, 2), "read-only, a view and a blob");

    let before = bench.line.requests();
    let (tell, told) = seen();
    let again = store.pull(&source, first.pin.as_ref(), tell, unsaid()).await.unwrap();
    assert_eq!((&again.path, &again.files, again.fetched), (&first.path, &first.files, 0));
    assert_eq!(bench.line.requests(), before, "it was asked for");
    assert_eq!(told.lock().unwrap().last().map(|m| (m.done, m.total)), Some((first.bytes, first.bytes)));
    // Without a pin the other side is asked once which version is newest.
    let newest = pull(&store, &source, None).await.unwrap();
    assert_eq!((&newest.path, newest.fetched), (&first.path, 0));
    assert_eq!(bench.line.requests(), before + 1, "one listing");

    bench.moto.put("m/sub/config.json", b"[]").await;
    let changed = pull(&store, &source, None).await.unwrap();
    assert_eq!(changed.fetched, 2, "what had not changed was fetched");
    assert_ne!(changed.path, first.path);
    assert!(contents(&changed.path)["sub/config.json"] == b"[]" && contents(&first.path)["sub/config.json"] == b"{}");
    // The task that was pinned to the older one has it still; a node without it cannot get it any more.
    assert_eq!(pull(&store, &source, first.pin.as_ref()).await.unwrap().path, first.path);
    let elsewhere = store_in(&bench.top.join("elsewhere"), |_| {});
    let gone = pull(&elsewhere, &source, first.pin.as_ref()).await.unwrap_err();
    assert!(matches!(gone, StoreError::OtherVersion { .. }), "{gone}");
    // A shard that left the source is in no newer view.
    bench.moto.call(Method::DELETE, "/mloc-test/m/sub/config.json", vec![]).await;
    let fewer = pull(&store, &source, None).await.unwrap();
    assert_eq!((fewer.fetched, contents(&fewer.path).into_keys().collect::<Vec<_>>()), (0, vec!["w.bin".to_owned()]));
}

#[tokio::test]
async fn a_hit_waits_for_nobody() {
    let Some(bench) = Bench::new().await else { return };
    bench.moto.put("m/a", b"one").await;
    let (store, source) = (bench.store(), bench.source("m"));
    let first = pull(&store, &source, None).await.unwrap();
    // Somebody else is at a newer version of the same source, and other users hold the view.
    let view = first.path.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let pulls = bench.cache().join("pulls").join(view.split_once('-').unwrap().0);
    fs::create_dir_all(&pulls).unwrap();
    let turn = fs::File::create(pulls.join("lock")).unwrap();
    turn.lock().unwrap();
    for pin in [first.pin.as_ref(), None] {
        let (say, said) = heard();
        let hit = tokio::time::timeout(PATIENCE, store.pull(&source, pin, unseen(), say)).await;
        assert_eq!(hit.expect("it waits").unwrap().path, first.path);
        assert!(said.lock().unwrap().is_empty());
    }
    // What has to be fetched waits for its turn, and says so.
    bench.moto.put("m/a", b"two").await;
    let (say, said) = heard();
    let go_on = async {
        while said.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(turn);
    };
    let (newer, ()) = tokio::join!(store.pull(&source, None, unseen(), say), go_on);
    assert_eq!(fs::read(newer.unwrap().path.join("a")).unwrap(), b"two");
}

#[tokio::test]
async fn a_pin_is_held_to() {
    let Some(bench) = Bench::new().await else { return };
    bench.moto.put("m/a", b"one").await;
    bench.moto.put("m/b", b"two").await;
    let (store, source) = (bench.store(), bench.source("m"));
    let first = pull(&store, &source, None).await.unwrap();
    let pin = first.pin.expect("a bucket has versions");
    assert_eq!((pin.files, pin.bytes), (2, 6));
    let same = pull(&store_in(&bench.top.join("other"), |_| {}), &source, Some(&pin)).await.unwrap();
    assert_eq!((same.pin.as_ref(), contents(&same.path)), (Some(&pin), contents(&first.path)));

    bench.moto.put("m/b", b"three").await;
    let late = store_in(&bench.top.join("late"), |_| {});
    let changed = pull(&late, &source, Some(&pin)).await.unwrap_err();
    let said = changed.to_string();
    let words = said.split(' ').map(|word| if word.starts_with("sha256:") { "sha256:…" } else { word });
    insta::assert_snapshot!(words.collect::<Vec<_>>().join(" "));
}

#[tokio::test]
async fn the_same_bytes_lie_here_once() {
    let Some(bench) = Bench::new().await else { return };
    let weights = noise(7, 3 << 20);
    for key in ["base/w.bin", "fork/w.bin", "fork/copy/w.bin"] {
        bench.moto.put(key, &weights).await;
    }
    bench.moto.put("fork/config.json", b"{}").await;
    let store = bench.store();
    let base = pull(&store, &bench.source("base"), None).await.unwrap();
    let fork = pull(&store, &bench.source("fork"), None).await.unwrap();
    let number = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let one = number(base.path.join("w.bin"));
    assert_eq!(one, number(fork.path.join("w.bin")));
    assert_eq!(one, number(fork.path.join("copy/w.bin")));
    assert!(store.cache().bytes() < (4 << 20), "{} bytes", store.cache().bytes());
    // The fork goes, the base stays whole.
    drop(fork);
    store.cache().prune();
    assert!(contents(&base.path)["w.bin"] == weights);
    let mine = pull(&store, &bench.source("base"), base.pin.as_ref()).await.unwrap();
    assert_eq!(mine.path, base.path);
}

/// Whatever touches a cached file is found before an attempt gets it, said, and mended at the price of that file.
#[tokio::test]
async fn a_flipped_byte_is_found_and_mended() {
    let Some(bench) = Bench::new().await else { return };
    let (weights, tokens) = (noise(7, 3 << 20), noise(8, 2 << 20));
    bench.moto.put("m/w.bin", &weights).await;
    bench.moto.put("m/t.bin", &tokens).await;
    let source = bench.source("m");
    let first = pull(&bench.store(), &source, None).await.unwrap();
    let (pin, file) = (first.pin.clone(), first.path.join("w.bin"));
    let flip = |keep_time: bool| {
        let written = fs::metadata(&file).unwrap().modified().unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let mut bytes = fs::read(&file).unwrap();
        bytes[1 << 20] ^= 1;
        fs::write(&file, bytes).unwrap();
        if keep_time {
            fs::File::options().write(true).open(&file).unwrap().set_modified(written).unwrap();
        }
    };
    // Touched, and nothing else: it is read, and nothing is fetched.
    let now = fs::File::open(&file).unwrap();
    now.set_modified(SystemTime::now()).unwrap();
    assert_eq!(pull(&bench.store(), &source, pin.as_ref()).await.unwrap().fetched, 0);

    for (always, keep_time) in [(false, false), (true, true), (true, false)] {
        flip(keep_time);
        let store = bench.store_with(|c| c.verify = if always { Verify::Always } else { Verify::Changed });
        let (say, said) = heard();
        let mended = store.pull(&source, pin.as_ref(), unseen(), say).await.unwrap();
        assert_eq!((&mended.path, mended.fetched), (&first.path, weights.len() as u64), "one file came again");
        assert!(contents(&mended.path)["w.bin"] == weights, "a damaged file was used");
        let said = said.lock().unwrap().join("\n");
        assert!(said.contains("the cached file w.bin is damaged ("), "{said}");
    }
    // What a disk changes without a trace is found when it is looked for.
    flip(true);
    let store = bench.store();
    assert_eq!(pull(&store, &source, pin.as_ref()).await.unwrap().fetched, 0, "time and size are as they were");
    let verified = store.cache().verify().unwrap();
    assert_eq!((verified.files, verified.bytes), (2, 5 << 20));
    assert!(verified.damaged[0].contains("the cached file w.bin is damaged"), "{:?}", verified.damaged);
}

/// Another source never gets a damaged content, though it has another name there.
#[tokio::test]
async fn a_damaged_blob_is_not_lent() {
    let Some(bench) = Bench::new().await else { return };
    let weights = noise(7, 1 << 20);
    bench.moto.put("m/w.bin", &weights).await;
    bench.moto.put("m/config.json", b"{}").await;
    let (store, source) = (bench.store(), bench.source("m"));
    let first = pull(&store, &source, None).await.unwrap();
    let file = first.path.join("w.bin");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, noise(9, 1 << 20)).unwrap();
    // A newer version of the source, with the same weights.
    bench.moto.put("m/config.json", b"[]").await;
    let newer = pull(&store, &source, None).await.unwrap();
    assert!(contents(&newer.path)["w.bin"] == weights, "damaged bytes were lent");
    assert_eq!(newer.fetched, weights.len() as u64 + 2);
}

/// As if a view had been used last so long ago.
fn aged(files: &Path, seconds: u64) {
    let mark = fs::File::open(files.parent().unwrap().join("in-use")).unwrap();
    mark.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

#[tokio::test]
async fn the_bound_holds_and_what_is_in_use_stays() {
    let Some(bench) = Bench::new().await else { return };
    for (n, key) in ["a/w", "b/w", "c/w"].iter().enumerate() {
        bench.moto.put(key, &noise(n as u64, 1 << 20)).await;
    }
    let store = bench.store_with(|c| c.bytes_max = Some((2 << 20) + (1 << 19)));
    let a = pull(&store, &bench.source("a"), None).await.unwrap();
    drop(pull(&store, &bench.source("b"), None).await.unwrap());
    aged(&a.path, 100);
    let c = pull(&store, &bench.source("c"), None).await.unwrap();
    assert!(a.path.exists() && c.path.exists(), "one in use was evicted");
    let pins = |pulled: &Pulled| pulled.pin.clone().unwrap();
    let held: Vec<_> = store.cache().holdings().into_iter().map(|h| (h.pin, h.in_use)).collect();
    assert_eq!(held, [(pins(&c), true), (pins(&a), true)], "newest use first");
    assert!(store.cache().bytes() <= (2 << 20) + (1 << 19));
    // A smaller bound, and a use of the older one.
    let (a_pin, a_path, c_path) = (pins(&a), a.path.clone(), c.path.clone());
    drop((a, c));
    aged(&c_path, 50);
    drop(pull(&store, &bench.source("a"), Some(&a_pin)).await.unwrap());
    let small = bench.store_with(|c| c.bytes_max = Some((1 << 20) + (1 << 19)));
    small.cache().keep_bound();
    assert!(a_path.exists() && !c_path.exists(), "the least recently used goes");
    small.cache().prune();
    assert!(is_empty(&bench.cache()));
}

#[tokio::test]
async fn what_an_earlier_version_left_goes() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), &[("cache/0123456789abcdef0123456789abcdef/w.bin", b"old"), ("cache/notes/keep", b"mine")]);
    let store = store_in(&dir.path().join("cache"), |_| {});
    store.cache().tidy();
    store.cache().prune();
    assert_eq!(contents(&dir.path().join("cache")).into_keys().collect::<Vec<_>>(), ["notes/keep"]);
}

/// A result of ours in the cache is checked against its manifest as anywhere.
#[tokio::test]
async fn a_damaged_result_is_not_kept() {
    let Some(bench) = Bench::new().await else { return };
    let manifest = r#"{"format":1,"attempt":{"task":"t","replica":0,"attempt":1},"files":[{"path":"a","kind":"x","bytes":1,"sha256":"00"}]}"#;
    bench.moto.put("out/a", b"a").await;
    bench.moto.put(&format!("out/{MANIFEST}"), manifest.as_bytes()).await;
    let store = bench.store();
    let damaged = pull(&store, &bench.source("out"), None).await.unwrap_err();
    assert!(matches!(damaged, StoreError::Damaged { .. }), "{damaged}");
    assert!(store.cache().holdings().is_empty());
}

/// A process of this binary that runs a role on a cache.
fn process(role: &str, cache: &Path, endpoint: &str, lot: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "role", "--ignored", "--nocapture"])
        .env("MLOC_CACHE_ROLE", role)
        .env("MLOC_CACHE_FOLDER", cache)
        .env("MLOC_CACHE_ENDPOINT", endpoint)
        .env("MLOC_CACHE_LOT", lot.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ended_well(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What another process does.
#[tokio::test]
#[ignore = "is started by the other cases"]
async fn role() {
    let Ok(role) = std::env::var("MLOC_CACHE_ROLE") else { return };
    let cache = PathBuf::from(std::env::var_os("MLOC_CACHE_FOLDER").unwrap());
    let endpoint = std::env::var("MLOC_CACHE_ENDPOINT").unwrap();
    let mut lot: u64 = std::env::var("MLOC_CACHE_LOT").unwrap().parse().unwrap();
    let store = store_in(&cache, |_| {});
    match role.as_str() {
        "pull" => {
            let pulled = pull(&store, &at(&endpoint, "m"), None).await.expect("pulled");
            assert!(contents(&pulled.path)["w.bin"] == noise(3, 24 << 20));
        }
        "crowd" => {
            for _ in 0..12 {
                lot = lot.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let name = ["m", "n"][(lot >> 40) as usize % 2];
                if (lot >> 33).is_multiple_of(3) {
                    store.cache().prune();
                }
                let pulled = pull(&store, &at(&endpoint, name), None).await.expect("pulled");
                assert_crowd(name, &pulled.path);
            }
        }
        other => panic!("no role {other}"),
    }
}

/// What the crowd pulls.
fn crowd_files(name: &str) -> Vec<(String, Vec<u8>)> {
    let seed = u64::from(name.as_bytes()[0]);
    let own = (0..6).map(|n| (format!("{n}/w.bin"), noise(seed * 10 + n, 60_000)));
    // The same in both.
    own.chain([("shared.bin".to_owned(), noise(1, 300_000))]).collect()
}

fn assert_crowd(name: &str, path: &Path) {
    let there = contents(path);
    let all = crowd_files(name);
    assert_eq!(there.len(), all.len());
    for (file, bytes) in all {
        assert!(there[&file] == bytes, "{file} is not whole");
    }
}

#[tokio::test]
async fn two_processes_pull_a_source_once() {
    let Some(bench) = Bench::new().await else { return };
    let bytes = noise(3, 24 << 20);
    bench.moto.put("m/w.bin", &bytes).await;
    bench.line.pause_at(9 << 20);
    let one = process("pull", &bench.cache(), &bench.line.endpoint, 0);
    bench.line.paused().await;
    // The first has its turn and stands still: the second finds it, and says so.
    let (store, (say, said)) = (bench.store(), heard());
    let source = bench.source("m");
    let let_go = async {
        while said.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bench.line.go_on();
    };
    // Listing passes the pause: only what came down before it was held.
    let (two, ()) = tokio::join!(store.pull(&source, None, unseen(), say), let_go);
    let two = two.unwrap();
    assert_eq!(two.fetched, 0, "it came twice");
    assert!(contents(&two.path)["w.bin"] == bytes);
    assert_eq!(*said.lock().unwrap(), ["another pull on this host is bringing the same: waiting for it"]);
    ended_well(one);
    let down = bench.line.down();
    assert!(down < bytes.len() as u64 + (1 << 20), "{down} bytes came down for {} bytes", bytes.len());
}

#[tokio::test]
async fn what_a_killed_process_pulled_is_taken_up() {
    let Some(bench) = Bench::new().await else { return };
    // Five requests of 8 MiB, four at once: of 36 MiB at least one has come to its end, and is on the disk.
    let bytes = noise(3, 40 << 20);
    bench.moto.put("m/w.bin", &bytes).await;
    bench.line.pause_at(36 << 20);
    let mut one = process("pull", &bench.cache(), &bench.line.endpoint, 0);
    bench.line.paused().await;
    one.kill().unwrap();
    one.wait().unwrap();
    bench.line.go_on();
    let two = pull(&bench.store(), &bench.source("m"), None).await.unwrap();
    assert!(contents(&two.path)["w.bin"] == bytes);
    assert!(two.fetched < bytes.len() as u64, "nothing was taken up");
}

/// Eight processes pull and evict the same two sources, and are killed at any moment; whatever a pull returns is whole
/// for as long as it is held.
#[tokio::test]
async fn a_crowd_at_one_cache() {
    let Some(bench) = Bench::new().await else { return };
    for name in ["m", "n"] {
        for (file, bytes) in crowd_files(name) {
            bench.moto.put(&format!("{name}/{file}"), &bytes).await;
        }
    }
    let start = |lot| process("crowd", &bench.cache(), &bench.moto.endpoint, lot);
    let mut crowd: Vec<_> = (0..8).map(start).collect();
    // Six of them die in the middle, one after the other, and have successors.
    let mut killed = 0;
    for (n, wait_ms) in [700, 150, 230, 90, 310, 170].into_iter().enumerate() {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        let mut victim = crowd.remove(0);
        drop(victim.kill());
        let output = victim.wait_with_output().unwrap();
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&output.status).is_some();
        assert!(by_signal || output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        killed += u32::from(by_signal);
        crowd.push(start(100 + n as u64));
    }
    assert!(killed > 0, "all of them were done before they could die");
    crowd.into_iter().for_each(ended_well);
    // What the dead left is cleared away, and the cache is as good as new.
    let store = bench.store();
    for name in ["m", "n"] {
        let pulled = pull(&store, &at(&bench.moto.endpoint, name), None).await.unwrap();
        assert_crowd(name, &pulled.path);
    }
    assert_eq!(store.cache().verify().unwrap().damaged, Vec::<String>::new());
    store.cache().tidy();
    store.cache().prune();
    assert!(is_empty(&bench.cache()), "{:?}", contents(&bench.cache()).into_keys().collect::<Vec<_>>());
}
