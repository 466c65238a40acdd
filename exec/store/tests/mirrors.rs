//! Mirrors, offline nodes and a node's rate: where bytes come from, and how fast.

mod support;

use std::{
    fs,
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mloc_core::{
    ledger::entry::FailureClass,
    task::spec::{HubRepo, Location, Pin},
};
use mloc_store::{Mirror, Pulled, Store, StoreConfig, StoreError};
use mloc_test_hub::{Hub, Kind};
use sha2::{Digest, Sha256};
use support::{
    gits::{Gits, git, pointer},
    moto,
    web::{Reply, Web},
    *,
};

/// A folder, and what a node in it is made of.
struct Bench {
    top: PathBuf,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { top: dir.path().canonicalize().unwrap(), _dir: dir }
    }

    fn config(&self, with: impl FnOnce(&mut StoreConfig)) -> StoreConfig {
        let mut config = config(&self.top);
        with(&mut config);
        config
    }

    /// A source as a node so configured has it, with a cache of its own by that name.
    async fn pull(
        &self,
        config: &StoreConfig,
        source: &Location,
        pin: Option<&Pin>,
        cache: &str,
    ) -> Result<Pulled, StoreError> {
        pull(&node(config, &self.top.join(cache)), source, pin).await
    }
}

/// A file at a web server, with its digest.
async fn origin(bytes: &[u8]) -> (Web, Location) {
    let here = bytes.to_vec();
    let web = Web::start(move |asked| Reply::file(asked, &here, "\"v1\"")).await;
    let url = format!("{}/models/w.bin", web.endpoint);
    (web, Location::Http { url, sha256: Some(hex::encode(Sha256::digest(bytes))) })
}

fn mirror(web: &Web, to: Location, only: bool) -> Vec<Mirror> {
    vec![Mirror { from: format!("{}/models", web.endpoint), to, only }]
}

/// Bytes that were read, looks left aside.
fn reads(web: &Web) -> usize {
    web.asked().iter().filter(|asked| asked.header("range") != "bytes=0-0").count()
}

#[tokio::test]
async fn bytes_come_from_the_mirror_and_the_pin_from_the_origin() {
    let bench = Bench::new();
    let bytes = noise(1, 20 << 20);
    let (web, source) = origin(&bytes).await;
    fill(&bench.top.join("nas"), &[("w.bin", &bytes)]);
    let near = bench.config(|config| config.mirrors = mirror(&web, local("data/nas"), false));
    let pulled = bench.pull(&near, &source, None, "a").await.unwrap();
    assert!(fs::read(&pulled.path).unwrap() == bytes, "other bytes arrived");
    assert_eq!((reads(&web), pulled.in_place), (0, false), "the origin was read");
    // A later attempt on a node without the mirror finds the same; and so on, back.
    let far = bench.config(|_| {});
    let again = bench.pull(&far, &source, pulled.pin.as_ref(), "b").await.unwrap();
    assert_eq!(again.pin, pulled.pin);
    bench.pull(&near, &source, again.pin.as_ref(), "c").await.unwrap();
}

#[tokio::test]
async fn a_mirror_that_lacks_it_is_down_or_breaks_is_passed_over() {
    let bench = Bench::new();
    let bytes = noise(2, 20 << 20);
    let (web, source) = origin(&bytes).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let http = |url: String| Location::Http { url, sha256: None };
    let (here, given) = (bytes.clone(), AtomicBool::new(false));
    let breaks =
        Web::start(move |asked| match asked.header("range") == "bytes=0-0" || !given.swap(true, Ordering::SeqCst) {
            true => Reply::file(asked, &here, "\"m\""),
            false => Reply::new(500, ""),
        })
        .await;
    for (what, to) in [
        ("lacks it", local("data/nothing-here")),
        ("has no such volume", local("nowhere/at/all")),
        ("is down", http(format!("http://{gone}"))),
        ("breaks in the middle", http(breaks.endpoint.clone())),
    ] {
        let before = reads(&web);
        let store = bench.config(|config| config.mirrors = mirror(&web, to, false));
        let pulled = bench.pull(&store, &source, None, what).await.unwrap();
        assert!(fs::read(pulled.path).unwrap() == bytes, "{what}: other bytes arrived");
        assert!(reads(&web) > before, "{what}: from where?");
    }
}

#[tokio::test]
async fn a_mirror_with_other_bytes_is_found_out() {
    let bench = Bench::new();
    let bytes = noise(3, 10 << 20);
    let (web, source) = origin(&bytes).await;
    let mut other = bytes.clone();
    other[7 << 20] ^= 1;
    fill(&bench.top.join("nas"), &[("w.bin", &other)]);
    let store = bench.config(|config| config.mirrors = mirror(&web, local("data/nas"), false));
    let pulled = bench.pull(&store, &source, None, "a").await.unwrap();
    assert!(fs::read(pulled.path).unwrap() == bytes, "the mirror's bytes were taken");
}

/// At a mirror the files of a split lie in the repository's own folders.
#[tokio::test]
async fn a_data_set_of_the_hub_comes_from_its_mirror() {
    let bench = Bench::new();
    let hub = Hub::start();
    let (train, test) = (noise(5, 3 << 20), noise(6, 1 << 20));
    let files: [(&str, &[u8]); 2] =
        [("data/train-00000-of-00001.parquet", &train), ("data/test-00000-of-00001.parquet", &test)];
    hub.commit(Kind::Dataset, "org/d", &files);
    fill(&bench.top.join("nas/datasets/org/d/main"), &files);
    let near = bench.config(|config| {
        config.hugging_face.endpoint = Some(hub.endpoint.clone());
        config.mirrors = vec![Mirror { from: "huggingface".into(), to: local("data/nas"), only: false }];
    });
    for (path, split, bytes) in
        [(None, "train", &train), (Some("data"), "test", &test), (Some("data/t*-00000-of-*"), "train", &train)]
    {
        let source = Location::HuggingFace {
            identifier: "org/d".into(),
            revision: "main".into(),
            repo: HubRepo::Dataset,
            path: path.map(Into::into),
            config: None,
            split: Some(split.into()),
        };
        let pulled = bench.pull(&near, &source, None, "a").await.unwrap();
        let there = contents(&pulled.path);
        let name = format!("{split}/data/{split}-00000-of-00001.parquet");
        assert!(there.len() == 1 && there[&name] == *bytes, "{path:?}: {:?}", there.keys());
    }
    let bytes: Vec<_> = hub.seen().into_iter().map(|s| s.path).filter(|path| path.contains("/resolve/")).collect();
    assert!(bytes.is_empty(), "the Hub was asked for bytes: {bytes:?}");
}

/// Which commit it is, the origin says; all of it comes from the mirror, and what that lacks from the origin.
#[tokio::test]
async fn a_commit_comes_from_a_mirror() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("model");
    let large = noise(7, 20_000);
    server.keep(&large);
    let first = work.commit(&[("w.bin", pointer(&large).as_bytes())]);
    let repository = |url: String| Location::Git { url, revision: None, path: None };
    let root = work.bare.parent().unwrap();
    git(root, &["clone", "--quiet", "--mirror", work.bare.to_str().unwrap(), "near/model.git"]);
    let (top, main) = (server.top(), repository(work.url.clone()));
    let with = |only| {
        let to = repository(format!("{}/near", server.url));
        StoreConfig { mirrors: vec![Mirror { from: server.url.clone(), to, only }], ..config(&top) }
    };
    server.seen();
    let pulled = pull(&node(&with(false), &top.join("near")), &main, None).await.unwrap();
    assert!(contents(&pulled.path)["w.bin"] == large, "other bytes arrived");
    assert_eq!(pulled.pin.unwrap().version, first);
    let seen = server.seen();
    let posts = |path: &str| seen.iter().filter(|(method, at, _)| method == "POST" && at.starts_with(path)).count();
    assert_eq!(posts("/model.git"), 1, "the origin was asked for more than names: {seen:?}");
    assert_eq!(posts("/near/model.git/info/lfs"), 1, "{seen:?}");

    let second = work.commit(&[("new.txt", b"new")]);
    let newer = pull(&node(&with(false), &top.join("newer")), &main, None).await.unwrap();
    assert_eq!((contents(&newer.path)["new.txt"].as_slice(), newer.pin.unwrap().version), (&b"new"[..], second));
    server.seen();
    let alone = pull(&node(&with(true), &top.join("alone")), &main, None).await.unwrap();
    assert_eq!(alone.pin.unwrap().version, first, "with `only` the mirror says which commit it is");
    assert!(server.seen().iter().all(|(_, path, _)| !path.starts_with("/model.git")), "the origin was asked");
}

#[tokio::test]
async fn without_a_digest_a_mirror_is_not_believed() {
    let bench = Bench::new();
    let (web, source) = origin(b"abc").await;
    let Location::Http { url, .. } = source else { unreachable!() };
    fill(&bench.top.join("nas"), &[("w.bin", b"xyz")]);
    let store = bench.config(|config| config.mirrors = mirror(&web, local("data/nas"), false));
    let pulled = bench.pull(&store, &Location::Http { url, sha256: None }, None, "a").await.unwrap();
    assert_eq!(fs::read(pulled.path).unwrap(), b"abc");
}

/// With `only` the mirror's versions count, and a node with another way says that it cannot compare.
#[tokio::test]
async fn an_only_mirror_stands_for_the_origin() {
    let bench = Bench::new();
    let (web, source) = origin(b"abc").await;
    fill(&bench.top.join("nas"), &[("w.bin", b"xyz")]);
    let near = bench.config(|config| config.mirrors = mirror(&web, local("data/nas"), true));
    let far = bench.config(|_| {});
    let pulled = bench.pull(&near, &source, None, "a").await.unwrap();
    assert_eq!((fs::read(&pulled.path).unwrap().as_slice(), web.asked().len()), (b"xyz".as_slice(), 0));
    let again = bench.pull(&near, &source, pulled.pin.as_ref(), "a").await.unwrap();
    assert_eq!((again.fetched, &again.pin), (0, &pulled.pin));

    let mut said = String::new();
    let mut say = |what: &str, error: StoreError, class: FailureClass| {
        assert_eq!(error.class(), class, "{error}");
        said += &format!("# {what}\n{}\n\n", shown(&bench.top, &web, &error));
    };
    let retryable = FailureClass::Retryable;
    say("first from the mirror", bench.pull(&far, &source, pulled.pin.as_ref(), "b").await.unwrap_err(), retryable);
    let of_origin = bench.pull(&far, &source, None, "b").await.unwrap();
    say("first from the origin", bench.pull(&near, &source, of_origin.pin.as_ref(), "c").await.unwrap_err(), retryable);
    fill(&bench.top.join("nas"), &[("w.bin", b"longer")]);
    let changed = bench.pull(&near, &source, pulled.pin.as_ref(), "d").await.unwrap_err();
    assert!(matches!(changed, StoreError::OtherVersion { .. }), "{changed}");
    insta::assert_snapshot!(said);
}

fn shown(top: &Path, web: &Web, error: &StoreError) -> String {
    error.to_string().replace(&web.endpoint, "http://HOST:PORT").replace(top.to_str().unwrap(), "TOP")
}

#[tokio::test]
async fn an_offline_node_asks_nobody() {
    let bench = Bench::new();
    let (web, source) = origin(b"abc").await;
    fill(&bench.top.join("nas"), &[("w.bin", b"abc")]);
    let alone = bench.config(|config| config.offline = true);
    let none = bench.pull(&alone, &source, None, "a").await.unwrap_err();
    assert_eq!(none.class(), FailureClass::Retryable);
    let to = moto::at(&web.endpoint, "out");
    let (a, run, files) = (attempt("t", 1), bench.top.join("nas"), outputs(&["w.bin"]));
    let put =
        node(&alone, &bench.top.join("a")).publish(&a, Some(&to), &run, &files, None, unseen()).await.unwrap_err();
    let said = format!(
        "# a source\n{}\n\n# a destination\n{}\n",
        shown(&bench.top, &web, &none),
        shown(&bench.top, &web, &put)
    );
    insta::assert_snapshot!(said);
    // What lies in its volumes is there, as itself and as a mirror.
    bench.pull(&alone, &local("data/nas"), None, "b").await.unwrap();
    let mirrored = bench.config(|config| {
        config.offline = true;
        config.mirrors = mirror(&web, local("data/nas"), false);
    });
    let pulled = bench.pull(&mirrored, &source, None, "c").await.unwrap();
    assert_eq!(fs::read(pulled.path).unwrap(), b"abc");
    assert!(web.asked().is_empty(), "{:?}", web.asked());
    let offers = node(&alone, &bench.top.join("a")).features();
    assert!(offers.contains(&"destination:local".into()) && !offers.contains(&"destination:s3".into()), "{offers:?}");
}

/// What the cache holds is there as it was pulled last, whether a task is pinned to it or not.
#[tokio::test]
async fn an_offline_node_has_what_its_cache_holds() {
    let bench = Bench::new();
    let newer = Arc::new(AtomicBool::new(false));
    let changed = newer.clone();
    let web = Web::start(move |asked| match changed.load(Ordering::SeqCst) {
        false => Reply::file(asked, b"old", "\"v1\""),
        true => Reply::file(asked, b"newer", "\"v2\""),
    })
    .await;
    let source = Location::Http { url: format!("{}/data.csv", web.endpoint), sha256: None };
    let alone = |offline| Store::new(bench.config(|config| config.offline = offline)).unwrap();
    let said = Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = said.clone();
    let say: mloc_exec::OnSaid = Arc::new(move |text| heard.lock().unwrap().push(text.to_owned()));
    let pull = |store: Store, pin: Option<Pin>| {
        let (source, say) = (source.clone(), say.clone());
        async move { store.pull(&source, pin.as_ref(), unseen(), say).await }
    };
    let old = pull(alone(false), None).await.unwrap();
    newer.store(true, Ordering::SeqCst);
    let new = pull(alone(false), None).await.unwrap();
    let asked = web.asked().len();
    let newest = pull(alone(true), None).await.unwrap();
    assert_eq!((fs::read(&newest.path).unwrap().as_slice(), &newest.pin), (b"newer".as_slice(), &new.pin));
    assert_eq!(*said.lock().unwrap(), ["this node is offline: it is what was pulled last"]);
    let pinned = pull(alone(true), old.pin.clone()).await.unwrap();
    assert_eq!((fs::read(&pinned.path).unwrap().as_slice(), &pinned.pin), (b"old".as_slice(), &old.pin));
    let never = Pin { version: "\"v0\"".into(), ..old.pin.unwrap() };
    assert!(matches!(pull(alone(true), Some(never)).await, Err(StoreError::Offline { .. })));
    assert_eq!(web.asked().len(), asked, "somebody was asked");
}

/// Two pulls side by side share what the node may have.
#[tokio::test]
async fn a_nodes_rate_is_for_all_its_transfers() {
    let bench = Bench::new();
    let bytes = Arc::new(noise(4, 2 << 20));
    let here = bytes.clone();
    let web = Web::start(move |asked| Reply::file(asked, &here, "\"v1\"")).await;
    let at = |name: &str| Location::Http { url: format!("{}/{name}", web.endpoint), sha256: None };
    let store = Store::new(bench.config(|config| config.rate_limit = NonZeroU64::new(4 << 20))).unwrap();
    let before = Instant::now();
    let (a, b) = (at("a"), at("b"));
    let (a, b) = tokio::join!(pull(&store, &a, None), pull(&store, &b, None));
    assert_eq!(a.unwrap().fetched + b.unwrap().fetched, 4 << 20);
    let took = before.elapsed();
    assert!(took >= Duration::from_millis(990), "4 MiB at 4 MiB/s in {took:?}");
}
