//! A document's way through a service, what a folder brings, and shards.

mod support;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use anyhow::{Result, bail};
use mloc_rag::{
    index::{Index, Settings as IndexSettings},
    parse::Source,
    seams::{Embedder, Reranker, Side},
    service::{Ask, Floor, Models, Parser, Service, ServiceError, Settings, Status, Upload},
    shard::{Sharding, merge, shard_of},
    watch::{Bounds, Known, scan},
};
use support::{DIMENSION, Hashed, ingest_all, models, pdf, service, service_with, upload};

fn status(service: &Service, id: &str) -> Status {
    service.document(id).unwrap().unwrap().status
}

fn first(service: &Service, query: &str) -> Option<String> {
    service.retrieve(&Ask::new(query)).unwrap().hits.first().map(|hit| hit.document_id.clone())
}

#[test]
fn a_document_is_queued_indexed_replaced_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(dir.path());
    let accepted = service.accept(upload("a", "a.md", "# Foxes\n\nThe red fox sleeps."), 5).unwrap();
    assert_eq!((accepted.id.as_str(), accepted.unchanged, status(&service, "a")), ("a", false, Status::Queued));
    assert_eq!(service.ingest_next(6).unwrap(), ["a"]);
    assert!(service.ingest_next(7).unwrap().is_empty());
    assert_eq!(status(&service, "a"), Status::Indexed);
    // The same bytes again are no work.
    assert!(service.accept(upload("a", "a.md", "# Foxes\n\nThe red fox sleeps."), 8).unwrap().unchanged);
    assert_eq!(service.document("a").unwrap().unwrap().indexed.unwrap().indexed_at, 6);
    // Other metadata are.
    let mut other = upload("a", "a.md", "# Foxes\n\nThe red fox sleeps.");
    other.metadata.insert("year".into(), 2026.into());
    assert!(!service.accept(other, 8).unwrap().unchanged);
    service.accept(upload("a", "a.md", "# Wolves\n\nThe grey wolf howls."), 9).unwrap();
    // Until it is read the old one is found.
    assert_eq!(service.retrieve(&Ask::new("red fox")).unwrap().hits[0].text, "# Foxes\n\nThe red fox sleeps.");
    ingest_all(&service);
    let hits = service.retrieve(&Ask::new("red fox sleeps")).unwrap().hits;
    assert!(hits.iter().all(|hit| hit.text.contains("wolf") && hit.words.is_none()), "{hits:?}");
    assert!(service.delete("a").unwrap());
    assert!(!service.delete("a").unwrap());
    assert_eq!((service.document("a").unwrap(), first(&service, "wolf")), (None, None));
}

#[test]
fn what_cannot_be_read_says_why_and_leaves_what_was() {
    let dir = tempfile::tempdir().unwrap();
    let service = service(dir.path());
    service.accept(upload("a", "a.txt", "good words"), 1).unwrap();
    ingest_all(&service);
    service.accept(upload("a", "a.pdf", "no pdf"), 2).unwrap();
    service.accept(Upload { bytes: pdf(&[vec![]]), ..upload("scan", "scan.pdf", "") }, 3).unwrap();
    ingest_all(&service);
    let view = service.document("a").unwrap().unwrap();
    assert!(matches!(&view.status, Status::Failed { reason } if reason.contains("no readable PDF")), "{view:?}");
    assert_eq!(view.indexed.unwrap().name, "a.txt");
    assert_eq!(first(&service, "good words").as_deref(), Some("a"));
    assert!(matches!(status(&service, "scan"), Status::Failed { reason } if reason.contains("most likely scanned")));
    let list: Vec<_> = service.documents("", 10).unwrap().into_iter().map(|view| view.id).collect();
    assert_eq!(list, ["a", "scan"]);
    assert_eq!(service.documents("a", 10).unwrap().len(), 1);
    // A good one makes good.
    service.accept(upload("scan", "scan.txt", "typed again"), 4).unwrap();
    ingest_all(&service);
    assert_eq!(status(&service, "scan"), Status::Indexed);
}

#[test]
fn what_is_not_taken_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { document_bytes: 100, queue_bytes: 150, ..Settings::default() };
    let service = service_with(dir.path(), settings);
    let refused = |upload: Upload| service.accept(upload, 1).unwrap_err();
    assert!(matches!(refused(upload("a/b", "a.txt", "x")), ServiceError::Field { .. }));
    assert!(matches!(refused(upload("a", "", "x")), ServiceError::Field { .. }));
    assert!(matches!(refused(upload("a", "a.jpeg", "x")), ServiceError::Format(_)));
    assert!(matches!(refused(upload("a", "a.txt", &"x".repeat(101))), ServiceError::TooLarge { .. }));
    service.accept(upload("a", "a.txt", &"x".repeat(90)), 1).unwrap();
    assert!(matches!(refused(upload("b", "b.txt", &"x".repeat(90))), ServiceError::Full(150)));
    ingest_all(&service);
    service.accept(upload("b", "b.txt", &"x".repeat(90)), 1).unwrap();
    // Without an id the name says which it is.
    let unnamed = Upload { id: None, ..upload("", "notes.txt", "x") };
    assert_eq!(unnamed.id(), unnamed.clone().id());
    assert!(unnamed.id().starts_with("doc-"));
}

#[test]
fn what_was_accepted_is_indexed_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    service(dir.path()).accept(upload("a", "a.txt", "words that wait"), 1).unwrap();
    let service = service(dir.path());
    assert_eq!(status(&service, "a"), Status::Queued);
    ingest_all(&service);
    assert_eq!(first(&service, "wait").as_deref(), Some("a"));
}

struct Failing;

impl Embedder for Failing {
    fn identity(&self) -> &str {
        Hashed.identity()
    }
    fn dimension(&self) -> usize {
        DIMENSION
    }
    fn embed(&self, texts: &[String], side: Side) -> Result<Vec<Vec<f32>>> {
        if texts.iter().any(|text| text.contains("panic")) {
            panic!("a defect");
        }
        if texts.iter().any(|text| text.contains("fail")) {
            bail!("the device is lost");
        }
        Hashed.embed(texts, side)
    }
}

/// The longest text first; fails when it is asked to.
struct Longest;

impl Reranker for Longest {
    fn rank(&self, query: &str, passages: &[String]) -> Result<Vec<f32>> {
        if query.contains("broken") {
            bail!("no reranker today");
        }
        Ok(passages.iter().map(|passage| passage.len() as f32).collect())
    }
}

fn with_models(folder: &Path, models: Models, settings: Settings) -> Service {
    let index = Index::open(folder, Hashed.identity(), DIMENSION, IndexSettings::default()).unwrap();
    Service::new("docs", index, models, Parser::Here, settings).unwrap()
}

#[test]
fn an_embedder_that_fails_fails_the_document_and_not_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let service = with_models(dir.path(), Models { embedder: Arc::new(Failing), ..models() }, Settings::default());
    // All in one group: each is judged by itself.
    for (id, text) in [("a", "this will fail"), ("b", "this will panic"), ("c", "this will do")] {
        service.accept(upload(id, &format!("{id}.txt"), text), 1).unwrap();
    }
    ingest_all(&service);
    assert!(matches!(status(&service, "a"), Status::Failed { reason } if reason.contains("the device is lost")));
    assert!(matches!(status(&service, "b"), Status::Failed { reason } if reason.contains("panic")));
    assert_eq!(status(&service, "c"), Status::Indexed);
    assert!(matches!(service.retrieve(&Ask::new("fail")), Err(ServiceError::Embedder(_))));
}

/// While it embeds, somebody deletes one document and sends another anew.
struct Meddling(Mutex<Option<Arc<Service>>>);

impl Embedder for Meddling {
    fn identity(&self) -> &str {
        Hashed.identity()
    }
    fn dimension(&self) -> usize {
        DIMENSION
    }
    fn embed(&self, texts: &[String], side: Side) -> Result<Vec<Vec<f32>>> {
        if let Some(service) = self.0.lock().unwrap().take() {
            assert_eq!(status(&service, "gone"), Status::Parsed);
            service.delete("gone").unwrap();
            service.accept(upload("new", "new.txt", "the newer words"), 2).unwrap();
        }
        Hashed.embed(texts, side)
    }
}

#[test]
fn what_was_deleted_or_replaced_while_it_was_read_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let meddling = Arc::new(Meddling(Mutex::new(None)));
    let with = Models { embedder: meddling.clone(), ..models() };
    let service = Arc::new(with_models(dir.path(), with, Settings::default()));
    for id in ["gone", "new", "stays"] {
        service.accept(upload(id, "old.txt", "the older words"), 1).unwrap();
    }
    *meddling.0.lock().unwrap() = Some(service.clone());
    ingest_all(&service);
    assert!(service.document("gone").unwrap().is_none());
    let hits = service.retrieve(&Ask::new("words")).unwrap().hits;
    let mut texts: Vec<_> = hits.iter().map(|hit| (hit.document_id.as_str(), hit.text.as_str())).collect();
    texts.sort_unstable();
    assert_eq!(texts, [("new", "the newer words"), ("stays", "the older words")]);
}

#[test]
fn rerank_and_floor() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { floor: Floor { cosine: Some(0.2), ..Floor::default() }, ..Settings::default() };
    let service = with_models(dir.path(), Models { reranker: Some(Arc::new(Longest)), ..models() }, settings);
    service.accept(upload("short", "s.txt", "red fox"), 1).unwrap();
    service.accept(upload("long", "l.txt", "a red fox and many other words about foxes"), 1).unwrap();
    service.accept(upload("other", "o.txt", "gardening tomatoes tips"), 1).unwrap();
    ingest_all(&service);
    let found = service.retrieve(&Ask::new("red fox")).unwrap();
    assert_eq!(found.hits.iter().map(|hit| hit.document_id.as_str()).collect::<Vec<_>>(), ["long", "short"]);
    assert_eq!((found.below, found.hits[0].rerank), (1, Some(42.0)));
    let plain = service.retrieve(&Ask { rerank: false, ..Ask::new("red fox") }).unwrap();
    assert_eq!(plain.hits[0].document_id, "short");
    // A reranker that fails leaves the order of fusion, and says so.
    let broken = service.retrieve(&Ask::new("broken red fox")).unwrap();
    assert!(broken.notes[0].contains("not reranked: no reranker today") && !broken.hits.is_empty());
    let floor = Floor { rerank: Some(40.0), ..Floor::default() };
    let found = service.retrieve(&Ask { floor: Some(floor), ..Ask::new("red fox") }).unwrap();
    assert_eq!(found.hits.len(), 1);
    let nothing = service.retrieve(&Ask::new("capital of Peru")).unwrap();
    assert!(nothing.not_in_documents() && nothing.below > 0);
}

#[test]
fn a_folder_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("docs");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("a.txt"), "about apples").unwrap();
    fs::write(folder.join("sub/b.md"), "# About\n\nberries").unwrap();
    fs::write(folder.join("photo.jpeg"), "no text").unwrap();
    fs::write(folder.join(".hidden.txt"), "secrets").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", folder.join("link.txt")).unwrap();
    let later = |seconds| SystemTime::now() + Duration::from_secs(seconds);
    let bounds = Bounds::default();
    {
        let service = service(&dir.path().join("index"));
        // Just written files may be written to still.
        let early = service.follow("docs", &folder, &bounds, SystemTime::now()).unwrap();
        assert_eq!(early.accepted.len(), 0);
        assert_eq!(service.follow("docs", &folder, &bounds, later(10)).unwrap().accepted.len(), 2);
        ingest_all(&service);
        assert_eq!(service.index().size().0, 2);
        let hit = &service.retrieve(&Ask::new("berries")).unwrap().hits[0];
        assert_eq!((hit.metadata["path"].as_str(), hit.document_name.as_str()), (Some("sub/b.md"), "sub/b.md"));
        assert_eq!(service.follow("docs", &folder, &bounds, later(20)).unwrap(), Default::default());
    }
    fs::write(folder.join("a.txt"), "about apricots!").unwrap();
    fs::remove_file(folder.join("sub/b.md")).unwrap();
    let service = service(&dir.path().join("index"));
    let followed = service.follow("docs", &folder, &bounds, later(30)).unwrap();
    assert_eq!((followed.accepted.len(), followed.deleted.len()), (1, 1));
    ingest_all(&service);
    assert_eq!(service.index().size().0, 1);
    assert_eq!(service.retrieve(&Ask::new("apricots")).unwrap().hits[0].text, "about apricots!");
    // A folder that is away is not empty.
    fs::rename(&folder, dir.path().join("elsewhere")).unwrap();
    assert!(matches!(service.follow("docs", &folder, &bounds, later(40)), Err(ServiceError::Field { .. })));
    assert_eq!(service.index().size().0, 1);
}

#[test]
fn a_scan_reads_what_changed_and_bounds_what_it_looks_at() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..5 {
        fs::write(dir.path().join(format!("{n}.txt")), format!("file {n}")).unwrap();
    }
    let later = SystemTime::now() + Duration::from_secs(60);
    let bounds = Bounds::default();
    let first = scan(dir.path(), &Known::new(), &bounds, later).unwrap();
    assert_eq!((first.changed.len(), first.known.len()), (5, 5));
    // Touched, and the same inside.
    let file = fs::File::options().write(true).open(dir.path().join("0.txt")).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
    let second = scan(dir.path(), &first.known, &bounds, later).unwrap();
    assert_eq!((second.changed.len(), second.known["0.txt"] == first.known["0.txt"]), (0, false));
    fs::remove_file(dir.path().join("4.txt")).unwrap();
    let few = scan(dir.path(), &second.known, &Bounds { files: 2, ..bounds }, later).unwrap();
    // What was not looked at is not gone.
    assert_eq!((few.skipped.len(), few.removed.clone()), (2, vec!["4.txt".to_owned()]));
    assert_eq!(few.known.len(), 4);
    let small = scan(dir.path(), &Known::new(), &Bounds { file_bytes: 3, ..bounds }, later).unwrap();
    assert_eq!((small.changed.len(), small.skipped.len()), (0, 4));
}

#[test]
fn shards_hold_what_is_theirs_and_answer_together() {
    let dir = tempfile::tempdir().unwrap();
    let shard = |index| {
        let sharding = Sharding { index, count: 3 };
        service_with(&dir.path().join(index.to_string()), Settings { sharding, ..Settings::default() })
    };
    let shards: Vec<Service> = (0..3).map(shard).collect();
    let whole = service(&dir.path().join("whole"));
    let kinds = ["red fox", "grey wolf", "brown bear", "red deer", "white hare"];
    for n in 0..60 {
        let upload = upload(&format!("d{n}"), "d.txt", &format!("the {} number {n} of the red list", kinds[n % 5]));
        let own = shard_of(&format!("d{n}"), 3);
        for (at, service) in (0..).zip(&shards) {
            let taken = service.accept(upload.clone(), 1);
            assert_eq!(taken.is_ok(), at == own);
            assert!(taken.is_ok() || matches!(taken, Err(ServiceError::OtherShard { shard, .. }) if shard == own));
        }
        whole.accept(upload, 1).unwrap();
    }
    shards.iter().for_each(ingest_all);
    ingest_all(&whole);
    assert_eq!(shards.iter().map(|service| service.index().size().0).sum::<usize>(), 60);
    assert!(shards.iter().all(|service| service.index().size().0 > 10), "dealt out by hash");
    let asked = Ask::new("brown bear number 42");
    let mut ask = shards[0].counted(asked.clone()).unwrap();
    for other in &shards[1..] {
        ask.statistics.as_mut().unwrap().add(other.counted(asked.clone()).unwrap().statistics.unwrap());
    }
    let of = |service: &Service| Some(service.candidates(&ask).unwrap());
    let merged = merge((0..).zip(shards.iter().map(of)).collect(), 50);
    assert!(merged.missing.is_empty());
    let one = whole.candidates(&asked).unwrap();
    assert_eq!(whole.counted(asked.clone()).unwrap().statistics, ask.statistics);
    let top =
        |hits: &[mloc_rag::index::Hit]| hits.iter().take(5).map(|hit| hit.document_id.clone()).collect::<Vec<_>>();
    assert_eq!(top(&merged.hits)[0], top(&one)[0]);
    let ranks: Vec<u32> = merged.hits.iter().filter_map(|hit| hit.dense.map(|arm| arm.rank)).collect();
    assert_eq!((ranks.iter().max().copied(), ranks.len()), (Some(50), 50), "ranks are given anew, each once");
    // The dense arm says of all shards what it says of one index.
    let dense = |hits: &[mloc_rag::index::Hit]| {
        let mut scores: Vec<f32> = hits.iter().filter_map(|hit| hit.dense.map(|arm| arm.score)).collect();
        scores.sort_by(|one, other| other.total_cmp(one));
        scores.truncate(20);
        scores
    };
    assert_eq!(dense(&merged.hits), dense(&one));
    // And so do the words, which are weighed by what all shards count.
    let words = |hits: &[mloc_rag::index::Hit]| {
        let arm = |hit: &mloc_rag::index::Hit| hit.words.map(|arm| (arm.score * 1e4).round() as i64);
        let mut scores: Vec<i64> = hits.iter().filter_map(arm).collect();
        scores.sort_unstable();
        scores
    };
    assert_eq!(words(&merged.hits), words(&one));
    let partial = merge(vec![(0, of(&shards[0])), (1, None), (2, None)], 50);
    assert_eq!(partial.missing, [1, 2]);
    assert!(!partial.hits.is_empty());
}

#[test]
fn files_may_be_read_in_a_child() {
    let dir = tempfile::tempdir().unwrap();
    let index = Index::open(dir.path(), Hashed.identity(), DIMENSION, IndexSettings::default()).unwrap();
    let parser = Parser::Child { exe: env!("CARGO_BIN_EXE_mloc-rag-parse").into(), args: Vec::new() };
    let service = Service::new("docs", index, models(), parser, Settings::default()).unwrap();
    let page = |words: &str| vec![(10.0, words.to_owned())];
    let bytes = pdf(&[page("first page words"), page("second page speaks of herons")]);
    let source = Source { name: "birds.pdf".into(), ..Source::default() };
    let id = service.accept(Upload { source, bytes, ..Upload::default() }, 1).unwrap().id;
    ingest_all(&service);
    assert_eq!(status(&service, &id), Status::Indexed);
    let hit = &service.retrieve(&Ask::new("herons")).unwrap().hits[0];
    assert_eq!(hit.pages, Some((1, 2)));
    assert_eq!(hit.chars.of_chars(&service.index().text(&id).unwrap().unwrap()), hit.text);
}
