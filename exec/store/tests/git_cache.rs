//! Repositories through the cache: what it has is not fetched again, links and modes are kept, and all of it can go.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    num::NonZeroU64,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    time::{Duration, Instant},
};

use mloc_core::task::spec::{Location, Pin};
use mloc_store::{Store, StoreConfig, StoreError};
use support::{
    gits::{Gits, Work, pointer},
    *,
};

fn source(work: &Work, revision: Option<&str>) -> Location {
    Location::Git { url: work.url.clone(), revision: revision.map(str::to_owned), path: None }
}

/// A model with a large file, links, and the same bytes with and without leave to execute them.
fn model(server: &Gits) -> (Work, Vec<u8>) {
    let (work, weights) = (server.repository("model"), noise(8, 9 << 20));
    server.keep(&weights);
    let point = pointer(&weights);
    let script: &[u8] = b"#!/bin/sh\n";
    fill(
        &work.path,
        &[
            ("v1/w.bin", point.as_bytes()),
            ("v2/w.bin", point.as_bytes()),
            ("tool.bin", point.as_bytes()),
            ("run.sh", script),
            ("run.txt", script),
        ],
    );
    for name in ["run.sh", "tool.bin"] {
        fs::set_permissions(work.path.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink("v2", work.path.join("latest")).unwrap();
    fs::create_dir(work.path.join("links")).unwrap();
    symlink("../latest/w.bin", work.path.join("links/w")).unwrap();
    work.commit_all();
    (work, weights)
}

#[tokio::test]
async fn what_the_cache_has_takes_no_second_fetch() {
    let Some(server) = Gits::start().await else { return };
    let (work, weights) = model(&server);
    let top = server.top();
    let store = Store::new(config(&top)).unwrap();
    let main = source(&work, None);
    let first = pull(&store, &main, None).await.unwrap();
    let large = weights.len() as u64;
    assert!(first.fetched > large && first.fetched < large + 20_000, "{} bytes came", first.fetched);
    server.seen();
    let pinned = pull(&store, &main, first.pin.as_ref()).await.unwrap();
    assert_eq!((&pinned.path, &pinned.files, pinned.fetched), (&first.path, &first.files, 0));
    assert_eq!(server.seen(), [], "a pinned commit that is here was asked for");
    let newest = pull(&store, &main, None).await.unwrap();
    assert_eq!((&newest.path, newest.fetched), (&first.path, 0));
    assert_eq!(server.seen().len(), 2, "the names were asked for, and nothing else");
    let whole = pull(&store, &source(&work, Some(&first.pin.clone().unwrap().version)), None).await.unwrap();
    assert!(whole.fetched < 20_000, "{} bytes came for the same commit by another name", whole.fetched);
    drop(whole);

    // Of the next commit only what is new comes; the large file is a blob already.
    server.seen();
    work.commit(&[("README", b"read me")]);
    let next = pull(&store, &main, None).await.unwrap();
    assert_ne!(next.path, first.path);
    assert!(next.fetched < 20_000, "{} bytes came", next.fetched);
    assert!(!server.seen().iter().any(|(_, path, _)| path.contains("lfs") || path.contains("/large/")));
    assert!(fs::read(next.path.join("links/w")).unwrap() == weights, "other bytes arrived");
    assert!(contents(&first.path)["v1/w.bin"] == weights, "the earlier commit is not whole any more");

    // Another number of files than was pinned is another version, here as anywhere.
    let other = first.pin.clone().map(|pin| Pin { files: 9, ..pin });
    let error = pull(&store, &main, other.as_ref()).await.unwrap_err();
    assert!(matches!(error, StoreError::OtherVersion { .. }), "{error}");
    let gone = (first.path.clone(), next.path.clone());
    drop((first, pinned, newest, next));
    store.cache().prune();
    assert!(!gone.0.exists() && !gone.1.exists());
    assert_eq!(contents(&top.join("cache")).into_keys().collect::<Vec<_>>(), [""; 0], "left in an empty cache");
}

#[tokio::test]
async fn a_view_has_the_links_and_modes_of_its_commit() {
    let Some(server) = Gits::start().await else { return };
    let (work, weights) = model(&server);
    let store = Store::new(config(&server.top())).unwrap();
    let main = source(&work, None);
    let pulled = pull(&store, &main, None).await.unwrap();
    let mode = |name: &str| fs::metadata(pulled.path.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("run.sh"), mode("run.txt"), mode("tool.bin"), mode("v1/w.bin")), (0o555, 0o444, 0o555, 0o444));
    let number = |name: &str| fs::metadata(pulled.path.join(name)).unwrap().ino();
    assert_eq!(number("v1/w.bin"), number("v2/w.bin"), "the same bytes are kept once");
    let own = BTreeSet::from([number("run.sh"), number("run.txt"), number("tool.bin"), number("v1/w.bin")]);
    assert_eq!(own.len(), 4, "a mode is a file's: these cannot be the same");
    assert_eq!(fs::read_link(pulled.path.join("latest")).unwrap(), Path::new("v2"));
    assert!(fs::read(pulled.path.join("links/w")).unwrap() == weights, "other bytes arrived");
    let names: Vec<_> = pulled.files.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(names, ["run.sh", "run.txt", "tool.bin", "v1/w.bin", "v2/w.bin"]);

    // A link or a file that was touched is seen at the next use.
    server.seen();
    fs::remove_file(pulled.path.join("latest")).unwrap();
    symlink("v1", pulled.path.join("latest")).unwrap();
    let mended = pull(&store, &main, pulled.pin.as_ref()).await.unwrap();
    assert_eq!(fs::read_link(mended.path.join("latest")).unwrap(), Path::new("v2"));
    assert!(!server.seen().is_empty());
    let touched = mended.path.join("run.sh");
    fs::set_permissions(&touched, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&touched, "#!/bin/sh\n").unwrap();
    let read = pull(&store, &main, pulled.pin.as_ref()).await.unwrap();
    assert_eq!((read.fetched, mode("run.sh")), (0, 0o555), "the same bytes, and still to be executed");
}

#[tokio::test]
async fn an_offline_node_has_what_it_pulled() {
    let Some(server) = Gits::start().await else { return };
    let (work, _) = model(&server);
    let top = server.top();
    let main = source(&work, None);
    let first = pull(&Store::new(config(&top)).unwrap(), &main, None).await.unwrap();
    server.seen();
    let offline = Store::new(StoreConfig { offline: true, ..config(&top) }).unwrap();
    for pin in [first.pin.as_ref(), None] {
        assert_eq!(pull(&offline, &main, pin).await.unwrap().path, first.path);
    }
    let error = pull(&offline, &source(&work, Some("main")), None).await.unwrap_err();
    assert!(matches!(error, StoreError::Offline { .. }), "{error}");
    assert_eq!(server.seen(), [], "it asked");
}

#[tokio::test]
async fn packs_keep_to_the_rate() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("big");
    work.commit(&[("big.bin", &noise(9, 1 << 20))]);
    let limited = StoreConfig { rate_limit: NonZeroU64::new(1 << 20), ..config(&server.top()) };
    let began = Instant::now();
    let pulled = pull(&Store::new(limited).unwrap(), &source(&work, None), None).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(850), "{} bytes in {:?}", pulled.fetched, began.elapsed());
}
