//! Files by their URL: from servers with ranges and without, over lines that break, through redirects.

mod support;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mloc_core::{ledger::entry::FailureClass, task::spec::Location};
use mloc_store::{HttpAccount, Secret, Store, StoreConfig, StoreError};
use sha2::{Digest, Sha256};
use support::{
    line::Line,
    web::{Asked, Reply, Web},
    *,
};

struct Bench {
    store: Store,
    top: PathBuf,
    // Keeps the folder.
    _dir: tempfile::TempDir,
}

fn bench(accounts: Vec<HttpAccount>) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    let store = Store::new(StoreConfig { http: accounts, ..config(&top) }).unwrap();
    Bench { store, top, _dir: dir }
}

fn at(url: String) -> Location {
    Location::Http { url, sha256: None }
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[tokio::test]
async fn a_file_comes_in_ranges_over_a_line_that_breaks() {
    let Bench { store, _dir, .. } = bench(vec![]);
    let bytes = Arc::new(noise(1, 40 << 20));
    let here = bytes.clone();
    let web = Web::start(move |asked| Reply::file(asked, &here, "\"v1\"")).await;
    let line = Line::to(&web.endpoint).await;
    line.breaks_after(3 << 20);
    let source = at(format!("{}/data/train%20set.jsonl", line.endpoint));
    let pulled = pull(&store, &source, None).await.unwrap();
    assert!(pulled.path.ends_with("train set.jsonl"));
    assert!(fs::read(&pulled.path).unwrap() == *bytes, "other bytes arrived");
    let over = line.down() as f64 / bytes.len() as f64;
    println!("a line that breaks every 3 MiB: {over:.4} × the file came down");
    assert!(over <= 1.05, "{over:.3} × the file came down");
    let pin = pulled.pin.unwrap();
    assert_eq!((pin.version.as_str(), pin.files, pin.bytes), ("\"v1\"", 1, 40 << 20));

    line.breaks_after(u64::MAX);
    let again = pull(&store, &source, Some(&pin)).await.unwrap();
    assert_eq!((again.fetched, again.files), (0, pulled.files));
}

/// 1 GiB over a line that breaks ten times: whole, and hardly a byte twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_over_a_line_that_breaks_ten_times() {
    const BYTES: usize = 1 << 30;
    const BLOCK: usize = 8 << 20;
    // No two blocks are alike, and all of them come out of a little more than one.
    let noise = Arc::new(noise(7, BLOCK + BYTES / BLOCK));
    let block = |noise: &[u8], n: usize| noise[n..n + BLOCK].to_vec();
    let Bench { store, _dir, .. } = bench(vec![]);
    let here = noise.clone();
    let web = Web::start(move |asked| {
        let range = asked.range().expect("it is asked for ranges");
        let at = format!("bytes {}-{}/{BYTES}", range.start, range.end - 1);
        let mut bytes = block(&here, range.start / BLOCK).split_off(range.start % BLOCK);
        bytes.truncate(range.len());
        assert_eq!(bytes.len(), range.len(), "over the edge of a block");
        Reply::new(206, bytes).with("content-range", at).with("etag", "\"v1\"")
    })
    .await;
    let line = Line::to(&web.endpoint).await;
    line.breaks(10, 5 << 20);
    let source = at(format!("{}/model.safetensors", line.endpoint));
    let pulled = pull(&store, &source, None).await.unwrap();
    assert_eq!(line.breaks_left(), 0, "it has not broken ten times");
    let mut hasher = Sha256::new();
    (0..BYTES / BLOCK).for_each(|n| hasher.update(&noise[n..n + BLOCK]));
    assert_eq!(pulled.files[0].sha256.as_deref(), Some(hex::encode(hasher.finalize()).as_str()));
    let over = line.down() as f64 / BYTES as f64;
    println!("1 GiB, ten breaks: {over:.4} × the file came down");
    assert!(over <= 1.05, "{over:.3} × the file came down");
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let Bench { store, _dir, .. } = bench(vec![]);
    let web = Web::start(|asked| Reply::file(asked, b"", "\"v1\"")).await;
    let pulled = pull(&store, &at(format!("{}/empty.txt", web.endpoint)), None).await;
    assert_eq!(fs::read(pulled.unwrap().path).unwrap(), b"");
}

/// Without ranges, and without a length: one stream, begun again after each break.
#[tokio::test]
async fn a_server_without_ranges_begins_again() {
    let Bench { store, _dir, .. } = bench(vec![]);
    let bytes = Arc::new(noise(2, 5 << 20));
    let (here, streams) = (bytes.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = streams.clone();
    let web = Web::start(move |asked| {
        let whole = Reply { in_pieces: true, ..Reply::new(200, here.to_vec()).with("etag", "\"v1\"") };
        // What is looked at has a range, and is not answered with one.
        if asked.header("range").is_empty() && counted.fetch_add(1, Ordering::SeqCst) < 2 {
            return Reply { breaks_at: Some(3 << 20), ..whole };
        }
        whole
    })
    .await;
    let source = at(format!("{}/made/on/the/fly.csv", web.endpoint));
    let (tell, told) = seen();
    let pulled = store.pull(&source, None, tell, unsaid()).await.unwrap();
    assert!(pulled.path.ends_with("fly.csv") && fs::read(&pulled.path).unwrap() == *bytes, "other bytes arrived");
    assert_eq!(streams.load(Ordering::SeqCst), 3, "two breaks, and a whole one");
    assert_eq!((pulled.bytes, told.lock().unwrap().last().unwrap().done), (5 << 20, 5 << 20));
    // Its version is known although its length was not: nothing comes again, and the pin holds.
    let pin = pulled.pin.unwrap();
    assert_eq!((pin.version.as_str(), pin.bytes), ("\"v1\"", 5 << 20));
    let again = pull(&store, &source, Some(&pin)).await.unwrap();
    assert_eq!((again.fetched, again.pin), (0, Some(pin)));
    assert_eq!(streams.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_stream_that_always_breaks_is_given_up() {
    let Bench { store, top, _dir, .. } = bench(vec![]);
    let web = Web::start(|_| Reply { breaks_at: Some(1000), ..Reply::new(200, vec![7; 2000]) }).await;
    let source = at(format!("{}/f", web.endpoint));
    let error = pull(&store, &source, None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { tries: 4, .. }), "{error}");
    assert!(contents(&top.join("cache")).keys().all(|name| name.ends_with("lock")), "half a file has its name");
}

#[tokio::test]
async fn a_file_that_changes_meanwhile_is_begun_again() {
    let Bench { store, top, _dir, .. } = bench(vec![]);
    let (old, new) = (noise(3, 20 << 20), noise(4, 18 << 20));
    let (at_first, then, reads) = (old.clone(), new.clone(), AtomicUsize::new(0));
    let web = Web::start(move |asked| {
        let reads = if asked.header("range") == "bytes=0-0" { 0 } else { reads.fetch_add(1, Ordering::SeqCst) };
        match reads {
            0 | 1 => Reply::file(asked, &at_first, "\"old\""),
            _ => Reply::file(asked, &then, "\"new\""),
        }
    })
    .await;
    // The first look after the change has to see it too.
    let looks = web.endpoint.clone();
    let source = at(format!("{looks}/f.bin"));
    let pulled = pull(&store, &source, None).await;
    // A server that shows the old version to looks and the new one to reads never comes to rest.
    assert!(matches!(pulled, Err(StoreError::Changed { .. })), "{pulled:?}");
    assert!(contents(&top.join("cache")).keys().all(|name| name.ends_with("lock")));

    let moved = Arc::new(AtomicUsize::new(0));
    let count = moved.clone();
    let (at_first, then) = (old, new.clone());
    let web = Web::start(move |asked| match count.fetch_add(1, Ordering::SeqCst) {
        0..3 => Reply::file(asked, &at_first, "\"old\""),
        _ => Reply::file(asked, &then, "\"new\""),
    })
    .await;
    let source = at(format!("{}/f.bin", web.endpoint));
    let pulled = pull(&store, &source, None).await.unwrap();
    assert!(fs::read(pulled.path).unwrap() == new, "old bytes, or a mixture");
}

/// An account is shown to its own host, and to no host that this one leads to.
#[tokio::test]
async fn redirects_are_followed_and_accounts_stay_at_home() {
    let far = Web::start(|asked| {
        Reply::file(asked, b"abc", "\"v1\"").with("content-disposition", "attachment; filename=\"named.jsonl\"")
    })
    .await;
    let to = far.endpoint.clone();
    let home = Web::start(move |asked| match asked.path.as_str() {
        "/file" => Reply::new(302, "").with("location", "/moved"),
        "/moved" => Reply::new(307, "").with("location", format!("{to}/hashed?X-Amz-Signature=hunter3")),
        _ => Reply::new(301, "").with("location", "/circle"),
    })
    .await;
    let account = |web: &Web, token: &str, header: Option<&str>| HttpAccount {
        host: web.endpoint.clone(),
        header: header.map(Into::into),
        token: Secret::new(token),
    };
    let Bench { store, _dir, .. } = bench(vec![account(&home, "hunter2", None)]);
    let pulled = pull(&store, &at(format!("{}/file", home.endpoint)), None).await;
    assert!(pulled.unwrap().path.ends_with("named.jsonl"));
    assert!(home.asked().iter().all(|asked| asked.header("authorization") == "Bearer hunter2"));
    assert!(!far.asked().is_empty());
    for asked in far.asked() {
        assert!(!format!("{asked:?}").contains("hunter2"), "{asked:?}");
    }
    let circle = pull(&store, &at(format!("{}/circle", home.endpoint)), None).await;
    assert!(circle.unwrap_err().to_string().contains("from redirect to redirect"));

    // The other host has an account of its own, in a header of its own.
    let Bench { store, _dir, .. } =
        bench(vec![account(&home, "hunter2", None), account(&far, "hunter4", Some("private-token"))]);
    pull(&store, &at(format!("{}/file", home.endpoint)), None).await.unwrap();
    let last = far.asked().pop().unwrap();
    assert_eq!((last.header("private-token"), last.header("authorization")), ("hunter4", ""));
}

#[tokio::test]
async fn a_digest_is_a_version_and_is_held_to() {
    let Bench { store, _dir, .. } = bench(vec![]);
    // No ETag, no time: nothing tells versions apart but the digest.
    let bytes = noise(5, 9 << 20);
    let here = bytes.clone();
    let web = Web::start(move |asked: &Asked| {
        let mut reply = Reply::file(asked, &here, "");
        reply.headers.retain(|(name, _)| *name != "etag");
        reply
    })
    .await;
    let source = Location::Http { url: format!("{}/w.bin", web.endpoint), sha256: Some(digest(&bytes)) };
    let pulled = pull(&store, &source, None).await.unwrap();
    assert_eq!(pulled.pin.unwrap().version, format!("sha256:{}", digest(&bytes)));
    let again = pull(&store, &source, None).await.unwrap();
    assert_eq!(again.fetched, 0);
}

#[tokio::test]
async fn what_is_said_when_the_web_does_not_give() {
    let web = Web::start(|asked| match asked.path.as_str() {
        "/open" => Reply::file(asked, b"abc", "\"v2\""),
        "/down" => Reply::new(503, "try later"),
        "/gone" => Reply::new(404, "no"),
        "/odd" => Reply::new(418, "no"),
        "/secret" => Reply::new(401, "who are you?"),
        _ => Reply::new(403, "no"),
    })
    .await;
    let Bench { store, top, _dir, .. } = bench(vec![]);
    let known = bench(vec![HttpAccount { host: web.endpoint.clone(), header: None, token: Secret::new("hunter2") }]);
    let (fatal, retryable) = (FailureClass::Fatal, FailureClass::Retryable);
    let mut said = String::new();
    let mut say = |what: &str, error: StoreError, class: FailureClass| {
        assert_eq!(error.class(), class, "{what}: {error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        said += &format!("# {what}\n{}\n\n", error.to_string().replace(&web.endpoint, "http://HOST:PORT"));
    };
    let url = |path: &str| at(format!("{}{path}", web.endpoint));
    for (what, path, class) in [
        ("a 404", "/gone", fatal),
        ("a 403", "/forbidden", fatal),
        ("a 401", "/secret", retryable),
        ("a 418", "/odd", fatal),
        ("a 503", "/down", retryable),
    ] {
        say(what, pull(&store, &url(path), None).await.unwrap_err(), class);
    }
    let expired = pull(&known.store, &url("/secret"), None).await.unwrap_err();
    say("an expired token", expired, retryable);
    let wrong = Location::Http { url: format!("{}/open", web.endpoint), sha256: Some("00".repeat(32)) };
    say("a wrong digest", pull(&store, &wrong, None).await.unwrap_err(), retryable);
    assert!(contents(&top.join("cache")).keys().all(|name| name.ends_with("lock")), "a damaged file has its name");
    let pin = mloc_core::task::spec::Pin { version: "\"v1\"".into(), files: 1, bytes: 3 };
    let moved = pull(&store, &url("/open"), Some(&pin)).await.unwrap_err();
    say("a version that moved", moved, fatal);
    insta::assert_snapshot!(said);
}
