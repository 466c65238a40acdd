use std::collections::BTreeSet;

use bytes::Bytes;
use futures::{StreamExt, stream};
use mloc_core::files::TreeFile;
use sha2::{Digest, Sha256};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn limits() -> Limits {
    Limits { bytes_max: Some(10 << 20), reserve: 0, keep_for: HOUR, silence: Duration::from_secs(20) }
}

fn uploads(dir: &Path) -> Arc<Uploads> {
    Arc::new(Uploads::open(dir, limits()).unwrap())
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 / 7) as u8 ^ seed).collect()
}

/// A body in pieces; with `breaks` it ends with an error.
fn body(bytes: &[u8], breaks: bool) -> mloc_api::files::FileBytes {
    let mut pieces: Vec<_> = bytes.chunks(70_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    if breaks {
        pieces.push(Err(io::Error::other("the line broke")));
    }
    stream::iter(pieces).boxed()
}

async fn put(uploads: &Arc<Uploads>, bytes: &[u8]) -> String {
    let sha256 = digest(bytes);
    let done = uploads.receive(&sha256, 0, bytes.len() as u64, body(bytes, false)).await.unwrap();
    assert_eq!(done, Uploaded { bytes: bytes.len() as u64, whole: true });
    sha256
}

/// Uploads files and the list that names them; the list's digest and the bytes it names.
async fn put_tree(uploads: &Arc<Uploads>, files: &[(&str, &[u8])]) -> BroughtTree {
    let mut tree = Tree { folder: true, files: Vec::new() };
    for (path, bytes) in files {
        let sha256 = put(uploads, bytes).await;
        tree.files.push(TreeFile { path: (*path).to_owned(), bytes: bytes.len() as u64, sha256 });
    }
    tree.files.sort_by(|a, b| a.path.cmp(&b.path));
    let bytes = tree.bytes();
    BroughtTree { tree: put(uploads, &tree.to_bytes().unwrap()).await, bytes }
}

fn age(path: &Path, by: Duration) {
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - by).unwrap();
}

#[tokio::test]
async fn an_upload_that_breaks_goes_on_where_it_broke_and_is_whole_only_with_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = uploads(dir.path());
    let file = noise(0, 3 << 20);
    let (sha256, total) = (digest(&file), file.len() as u64);
    let cut = uploads.receive(&sha256, 0, total, body(&file[..2_000_000], true)).await.unwrap_err();
    assert!(
        matches!(&cut, ControlError::CutOff(why) if why.contains("byte 2000000") && why.contains("the line broke")),
        "{cut}"
    );
    assert_eq!(uploads.have(&sha256).unwrap(), Uploaded { bytes: 2_000_000, whole: false });
    assert!(uploads.read(&sha256).unwrap().is_none(), "nobody is given a part");
    let gap = uploads.receive(&sha256, 2_000_001, 1, body(b"x", false)).await.unwrap_err();
    assert!(matches!(&gap, ControlError::Conflict(why) if why.contains("2000000")), "{gap}");
    // Another process goes on, and sends some of it twice.
    drop(uploads);
    let uploads = self::uploads(dir.path());
    let rest = &file[1_900_000..];
    let done = uploads.receive(&sha256, 1_900_000, rest.len() as u64, body(rest, false)).await.unwrap();
    assert_eq!(done, Uploaded { bytes: total, whole: true });
    let (mut there, bytes) = uploads.read(&sha256).unwrap().unwrap();
    let mut read = Vec::new();
    io::Read::read_to_end(&mut there, &mut read).unwrap();
    assert!(read == file && bytes == total);

    let other = digest(b"other");
    let wrong = uploads.receive(&other, 0, 5, body(b"wrong", false)).await.unwrap_err();
    assert!(matches!(&wrong, ControlError::Invalid { detail, .. } if detail.contains("not those of")), "{wrong}");
    assert_eq!(uploads.have(&other).unwrap(), Uploaded { bytes: 0, whole: false }, "it begins again");
    assert_eq!(uploads.used.load(Ordering::Relaxed), total, "what was thrown away does not count");
    let empty = put(&uploads, b"").await;
    assert!(uploads.have(&empty).unwrap().whole);
}

#[tokio::test]
async fn two_uploads_of_one_file_make_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = uploads(dir.path());
    let file = noise(3, 2 << 20);
    let sha256 = digest(&file);
    let one = uploads.receive(&sha256, 0, file.len() as u64, body(&file, false));
    let two = uploads.receive(&sha256, 0, file.len() as u64, body(&file, false));
    let (one, two) = futures::join!(one, two);
    assert!(one.unwrap().whole && two.unwrap().whole);
    assert_eq!(uploads.used.load(Ordering::Relaxed), file.len() as u64);
}

#[tokio::test]
async fn silence_ends_an_upload() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = Uploads::open(dir.path(), Limits { silence: Duration::from_millis(20), ..limits() }).unwrap();
    let body = stream::iter([Ok(Bytes::from_static(b"abc"))]).chain(stream::pending()).boxed();
    let error = Arc::new(uploads).receive(&digest(b"abcdef"), 0, 6, body).await.unwrap_err();
    assert!(matches!(&error, ControlError::CutOff(why) if why.contains("byte 3 of 6")), "{error}");
}

#[tokio::test]
async fn what_has_no_room_is_refused_before_a_byte_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = uploads(dir.path());
    let never = || stream::once(async { panic!("it was read") }).boxed();
    let digest = digest(b"x");
    let large = uploads.receive(&digest, 0, 11 << 20, never()).await.unwrap_err();
    assert!(matches!(&large, ControlError::TooLarge(why) if why.contains("uploads.maxBytes")), "{large}");
    put(&uploads, &noise(1, 6 << 20)).await;
    let full = uploads.receive(&digest, 0, 5 << 20, never()).await.unwrap_err();
    assert!(matches!(&full, ControlError::NoRoom(why) if why.contains("uploads.keepFor")), "{full}");
    let reserve = Limits { reserve: u64::MAX / 2, ..limits() };
    let uploads = Arc::new(Uploads::open(dir.path(), reserve).unwrap());
    let disk = uploads.receive(&digest, 0, 1, never()).await.unwrap_err();
    assert!(matches!(&disk, ControlError::NoRoom(why) if why.contains("another node")), "{disk}");
}

#[tokio::test]
async fn a_task_brings_only_what_is_here_and_as_its_list_says() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = uploads(dir.path());
    let brought = put_tree(&uploads, &[("a.txt", b"a"), ("b/c.txt", b"bc")]).await;
    let with = |tree: &BroughtTree| BTreeMap::from([("./data".to_owned(), tree.clone())]);
    let now = SystemTime::now();
    uploads.keep(&with(&brought), now).unwrap();
    assert_eq!(uploads.missing(&brought.tree, now).unwrap(), []);
    let lie = uploads.keep(&with(&BroughtTree { bytes: 4, ..brought.clone() }), now).unwrap_err();
    assert!(matches!(&lie, ControlError::Invalid { detail, .. } if detail.contains("3 bytes, not 4")), "{lie}");

    fs::remove_file(uploads.whole(&digest(b"bc"))).unwrap();
    fs::write(uploads.part(&digest(b"bc")), b"b").unwrap();
    let missing = uploads.missing(&brought.tree, now).unwrap();
    assert_eq!(missing, [Missing { sha256: digest(b"bc"), bytes: 2, there: 1 }]);
    let gone = uploads.keep(&with(&brought), now).unwrap_err();
    assert!(
        matches!(&gone, ControlError::Conflict(why) if why.contains("b/c.txt") && why.contains("./data")),
        "{gone}"
    );
    let none = BroughtTree { tree: digest(b"none"), bytes: 0 };
    let none = uploads.keep(&with(&none), now).unwrap_err();
    assert!(matches!(&none, ControlError::Conflict(why) if why.contains("did not come along")), "{none}");
    let no_list = put(&uploads, b"just a file").await;
    let no_list = uploads.keep(&with(&BroughtTree { tree: no_list, bytes: 0 }), now).unwrap_err();
    assert!(
        matches!(&no_list, ControlError::Invalid { detail, .. } if detail.contains("no list of files")),
        "{no_list}"
    );
}

#[tokio::test]
async fn what_a_live_task_names_stays_whatever_its_age_and_the_rest_goes_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = uploads(dir.path());
    let live = put_tree(&uploads, &[("shared", b"shared"), ("own", b"own")]).await;
    let over = put_tree(&uploads, &[("shared", b"shared"), ("old", b"old")]).await;
    let stray = put(&uploads, b"never submitted").await;
    let now = SystemTime::now();
    for tree in [&live, &over] {
        uploads.keep(&BTreeMap::from([("./d".to_owned(), tree.clone())]), now).unwrap();
    }
    let named = BTreeSet::from([live.tree.clone()]);
    assert_eq!(uploads.collect(&named, now), Collected::default(), "all of it is young");
    let all = ["shared", "own", "old", "never submitted"].map(|text| uploads.whole(&digest(text.as_bytes())));
    for path in all.iter().chain(&[uploads.whole(&live.tree), uploads.whole(&over.tree)]) {
        age(path, HOUR * 2);
    }
    age(&uploads.mark(&live.tree), HOUR * 2);
    // The list of the other task was named until a moment ago: what it names stays as well.
    let collected = uploads.collect(&named, now);
    assert_eq!((collected.files, collected.kept_because.as_deref()), (1, None));
    assert!(!uploads.have(&stray).unwrap().whole);
    age(&uploads.mark(&over.tree), HOUR * 2);
    let collected = uploads.collect(&named, now);
    assert_eq!((collected.files, collected.kept_because.as_deref()), (2, None), "its list and the file it alone named");
    assert_eq!(uploads.missing(&live.tree, now).unwrap(), []);
    assert!(!uploads.have(&digest(b"old")).unwrap().whole && !uploads.have(&over.tree).unwrap().whole);
    // From the last time that it was known to be named, it is kept for as long again.
    for path in [uploads.whole(&digest(b"own")), uploads.whole(&live.tree)] {
        age(&path, HOUR * 3);
    }
    assert_eq!(uploads.collect(&BTreeSet::new(), now).files, 0);
    assert_eq!(uploads.collect(&BTreeSet::new(), now + HOUR * 2).files, 3);
    assert_eq!(uploads.used.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn nothing_goes_while_it_is_not_known_what_a_live_task_names() {
    let dir = tempfile::tempdir().unwrap();
    let uploads = uploads(dir.path());
    let live = put_tree(&uploads, &[("own", b"own")]).await;
    fs::write(uploads.whole(&live.tree), b"damaged").unwrap();
    age(&uploads.whole(&digest(b"own")), HOUR * 2);
    let collected = uploads.collect(&BTreeSet::from([live.tree.clone()]), SystemTime::now());
    let why = collected.kept_because.expect("a reason");
    assert!(collected.files == 0 && why.contains(&live.tree), "{why}");
    assert!(uploads.have(&digest(b"own")).unwrap().whole);
}
