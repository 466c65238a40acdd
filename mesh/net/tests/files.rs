//! Files over real links: by what they are, from any byte on, to members only, through streams that break.

mod bench;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bench::identity;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use mloc_core::{
    files::PeerFile,
    id::{AttemptId, TaskId},
};
use mloc_mesh::{
    identity::NodeIdentity,
    link::{
        LinkError, LinkHandle, LinkSettings, StreamKind, Traffic,
        files::{FileError, FileHead, FileRefusal, FileRequest, FileSource, IncomingFile, OutgoingFile},
    },
    names::NodeId,
};
use tokio::task::JoinHandle;

const BYTES: usize = 5 << 20;
const PIECE: usize = 100_000;

struct Peer {
    identity: Arc<NodeIdentity>,
    link: LinkHandle,
}

impl Peer {
    async fn start(number: u8) -> Self {
        mloc_mesh::tls::install_crypto_provider();
        let identity = identity(number);
        let mut settings = LinkSettings::new("127.0.0.1:0".parse().unwrap());
        settings.request_timeout = Duration::from_secs(10);
        settings.silence = Duration::from_secs(2);
        settings.keep_alive = Duration::from_millis(500);
        let link = LinkHandle::start(settings, &identity).await.unwrap();
        Self { identity, link }
    }

    fn node(&self) -> &NodeId {
        self.identity.node()
    }

    fn serve(&self, shelf: &Arc<Shelf>) -> JoinHandle<()> {
        tokio::spawn(self.link.serve_files(shelf.clone()).unwrap())
    }

    fn files(&self) -> Traffic {
        let all = self.link.traffic();
        all.into_iter().find(|(kind, _)| *kind == StreamKind::Files).unwrap().1
    }
}

fn introduce(peers: &[&Peer]) {
    let book: BTreeMap<_, _> = peers.iter().map(|peer| (peer.node().clone(), peer.link.addresses())).collect();
    for peer in peers {
        peer.link.set_addresses(&book);
        peer.link.set_allowed(book.keys());
    }
}

/// One file, and how its owner fails.
#[derive(Default)]
struct Shelf {
    file: Vec<u8>,
    /// Its disk fails at these bytes, one after another.
    breaks_at: Mutex<Vec<usize>>,
    /// From here on nothing comes, and the stream stands.
    silent_from: Option<usize>,
    asked: Mutex<Vec<(NodeId, u64)>>,
}

impl Shelf {
    fn new() -> Self {
        Self { file: (0..BYTES).map(|n| (n * 31 / 7) as u8).collect(), ..Self::default() }
    }
}

#[async_trait]
impl FileSource for Shelf {
    async fn open(&self, asker: &NodeId, request: &FileRequest) -> Result<OutgoingFile, FileRefusal> {
        self.asked.lock().unwrap().push((asker.clone(), request.offset));
        match &request.what {
            PeerFile::Blob { sha256 } if *sha256 == digest() => {}
            PeerFile::Blob { sha256 } => return Err(FileRefusal::Unknown(format!("no upload {sha256}"))),
            PeerFile::Artifact { path, .. } => return Err(FileRefusal::Refused(format!("`{path}` leads out"))),
        }
        let end = self.breaks_at.lock().unwrap().pop();
        let silent = self.silent_from.unwrap_or(usize::MAX);
        let at = usize::try_from(request.offset).unwrap();
        let file = self.file.clone();
        let pieces = stream::unfold(at, move |at| {
            let limit = end.unwrap_or(file.len());
            let piece = file[at.min(limit)..(at + PIECE).min(limit)].to_vec();
            async move {
                if at >= silent {
                    std::future::pending::<()>().await;
                }
                match piece.len() {
                    0 if end.is_some() => Some((Err(io::Error::other("the disk broke")), at)),
                    0 => None,
                    n => Some((Ok(Bytes::from(piece)), at + n)),
                }
            }
        });
        let head = FileHead { total: self.file.len() as u64, sha256: Some(digest()) };
        Ok(OutgoingFile { head, bytes: pieces.boxed() })
    }
}

fn digest() -> String {
    "0a".repeat(32)
}

fn blob(offset: u64, length: Option<u64>) -> FileRequest {
    FileRequest { what: PeerFile::Blob { sha256: digest() }, offset, length }
}

/// Reads until the end or the break; says which it was.
async fn read(mut from: IncomingFile, into: &mut Vec<u8>) -> io::Result<()> {
    while let Some(piece) = from.bytes.try_next().await? {
        into.extend_from_slice(&piece);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_a_file_comes_as_it_is_and_no_byte_more() {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b]);
    let shelf = Arc::new(Shelf::new());
    let _serving = b.serve(&shelf);
    for (offset, length) in [(0, None), (1, Some(2)), (4 << 20, None), (17, Some(1 << 20)), (BYTES as u64, None)] {
        let file = a.link.open_file(b.node(), &blob(offset, length)).await.unwrap();
        assert_eq!(file.head, FileHead { total: BYTES as u64, sha256: Some(digest()) });
        let (expected, start) = (file.length as usize, offset as usize);
        let mut got = Vec::new();
        read(file, &mut got).await.unwrap();
        assert_eq!(got.len(), length.map_or(BYTES - start, |length| length as usize), "{offset} {length:?}");
        assert_eq!(expected, got.len());
        assert!(got == shelf.file[start..start + got.len()], "{offset} {length:?}");
    }
    assert!(shelf.asked.lock().unwrap().iter().all(|(asker, _)| asker == a.node()));
    // What was counted is what went over: three quarters of the file once more, and some frames.
    let (sent, received) = (b.files().sent, a.files().received);
    let data = (BYTES + 2 + BYTES - (4 << 20) + (1 << 20)) as u64;
    assert!(sent == received && sent >= data && sent < data + 4096, "{sent} sent, {received} received of {data}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_in_the_middle_goes_on_at_its_byte() {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b]);
    let shelf = Arc::new(Shelf { breaks_at: Mutex::new(vec![3 << 20, 1 << 20]), ..Shelf::new() });
    let _serving = b.serve(&shelf);
    let mut got = Vec::new();
    let mut breaks = 0;
    loop {
        let file = a.link.open_file(b.node(), &blob(got.len() as u64, None)).await.unwrap();
        match read(file, &mut got).await {
            Ok(()) => break,
            Err(error) => {
                breaks += 1;
                assert!(breaks <= 2, "{error}");
            }
        }
    }
    assert_eq!(breaks, 2);
    assert!(got == shelf.file, "{} bytes", got.len());
    let offsets: Vec<u64> = shelf.asked.lock().unwrap().iter().map(|(_, offset)| *offset).collect();
    assert_eq!(offsets[0], 0);
    assert!(offsets.windows(2).all(|pair| pair[0] < pair[1]), "each try goes further: {offsets:?}");
    assert!(a.files().received < BYTES as u64 + (64 << 10), "nothing comes twice: {:?}", a.files());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owners_end_in_the_middle_is_seen_and_another_start_of_it_goes_on() {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b]);
    let shelf = Arc::new(Shelf { silent_from: Some(1 << 20), ..Shelf::new() });
    let serving = b.serve(&shelf);
    let mut file = a.link.open_file(b.node(), &blob(0, None)).await.unwrap();
    let mut got = Vec::new();
    while got.len() < 1 << 20 {
        got.extend_from_slice(&file.bytes.try_next().await.unwrap().unwrap());
    }
    serving.abort();
    b.link.close().await;
    read(file, &mut got).await.expect_err("bytes are missing");
    let b = Peer::start(2).await;
    introduce(&[&a, &b]);
    let whole = Arc::new(Shelf::new());
    let _serving = b.serve(&whole);
    let offset = got.len() as u64;
    let rest = loop {
        match a.link.open_file(b.node(), &blob(offset, None)).await {
            Ok(file) => break file,
            // The goodbye of the first start may still be on its way.
            Err(FileError::Link(_) | FileError::Broken { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    read(rest, &mut got).await.unwrap();
    assert!(got == whole.file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_an_end() {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b]);
    let shelf = Arc::new(Shelf { silent_from: Some(1 << 20), ..Shelf::new() });
    let _serving = b.serve(&shelf);
    let file = a.link.open_file(b.node(), &blob(0, None)).await.unwrap();
    let mut got = Vec::new();
    let error = tokio::time::timeout(Duration::from_secs(20), read(file, &mut got)).await.expect("it does not hang");
    // Whoever noticed first: this side, or the owner, who then gives it up.
    let error = error.unwrap_err();
    assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof), "{error}");
    assert!(got.len() >= 1 << 20 && got.len() < 2 << 20, "{}", got.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_or_not_given_is_said() {
    let (a, b) = (Peer::start(1).await, Peer::start(2).await);
    introduce(&[&a, &b]);
    let shelf = Arc::new(Shelf::new());
    let _serving = b.serve(&shelf);
    let ask = |what: PeerFile| {
        let request = FileRequest { what, offset: 0, length: None };
        let (a, b) = (a.link.clone(), b.node().clone());
        async move { a.open_file(&b, &request).await.map(drop).unwrap_err() }
    };
    let unknown = ask(PeerFile::Blob { sha256: "0b".repeat(32) }).await;
    assert!(matches!(&unknown, FileError::Refused { why: FileRefusal::Unknown(_), .. }), "{unknown}");
    assert!(unknown.to_string().contains("no upload 0b0b"), "{unknown}");
    let attempt = AttemptId { task: TaskId::new("task-1"), replica: 0, attempt: 1 };
    let outside = ask(PeerFile::Artifact { attempt, destination: None, path: "../../key".into() }).await;
    assert!(matches!(&outside, FileError::Refused { why: FileRefusal::Refused(_), .. }), "{outside}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_nothing_and_is_not_asked() {
    let (a, b, stranger) = (Peer::start(1).await, Peer::start(2).await, Peer::start(3).await);
    introduce(&[&a, &b]);
    let shelf = Arc::new(Shelf::new());
    let _serving = b.serve(&shelf);
    // It knows them, they don't know it.
    let book = BTreeMap::from([(b.node().clone(), b.link.addresses())]);
    stranger.link.set_addresses(&book);
    stranger.link.set_allowed(book.keys());
    let error = stranger.link.open_file(b.node(), &blob(0, None)).await.map(drop).unwrap_err();
    assert!(matches!(error, FileError::Link(_) | FileError::Broken { .. }), "{error}");
    assert!(shelf.asked.lock().unwrap().is_empty());
    let error = a.link.open_file(stranger.node(), &blob(0, None)).await.map(drop).unwrap_err();
    assert!(matches!(error, FileError::Link(LinkError::Refused { .. })), "{error}");
    // A member until a moment ago.
    let file = a.link.open_file(b.node(), &blob(0, None)).await.unwrap();
    b.link.set_allowed([]);
    let mut got = Vec::new();
    if read(file, &mut got).await.is_ok() {
        assert_eq!(got.len(), BYTES, "it was faster than the news");
    }
    a.link.open_file(b.node(), &blob(0, None)).await.map(drop).expect_err("it is none any more");
}
