//! The index by itself: what a crash between its two commits leaves, arms that agree, and who may open it.

use std::{collections::BTreeSet, path::Path, sync::atomic::Ordering};

use serde_json::json;

use super::{
    Arms, Condition, Dense, Entry, Filter, Hit, Index, IndexError, Measures, Put, Query, Settings,
    change::chance,
    graph::{Graph, Near},
    vectors::{Vectors, unit},
};
use crate::{
    chunk::Chunk,
    parse::{Document, Metadata},
    span::Span,
};

const DIMENSION: usize = 8;

/// A document of one line a chunk; each line's vector is made of its letters.
fn entry(id: &str, lines: &[&str], metadata: &Metadata) -> Entry {
    let text = lines.join("\n");
    let mut at = 0;
    let mut chunks = Vec::new();
    for (line, ordinal) in lines.iter().zip(0..) {
        let bytes = Span::new(at, at + line.len());
        at = bytes.end + 1;
        let (headings, context) = (Vec::new(), String::new());
        chunks.push(Chunk { ordinal, bytes, chars: bytes, pages: None, headings, context, metadata: None, tokens: 1 });
    }
    Entry {
        id: id.into(),
        name: format!("{id}.txt"),
        media_type: None,
        hash: text.clone(),
        recipe: "r".into(),
        metadata: metadata.clone(),
        bytes: text.len() as u64,
        vectors: lines.iter().map(|line| vector(line)).collect(),
        document: Document { text, ..Document::default() },
        chunks,
        indexed_at: 1,
    }
}

fn vector(text: &str) -> Vec<f32> {
    let mut vector = vec![0.01; DIMENSION];
    text.bytes().for_each(|byte| vector[usize::from(byte) % DIMENSION] += 1.0);
    vector
}

fn open(folder: &Path) -> Index {
    Index::open(folder, "letters", DIMENSION, Settings::default()).unwrap()
}

fn query(text: &str, arms: Arms) -> Query {
    Query {
        text: text.into(),
        vector: Some(vector(text)),
        filter: Filter::default(),
        depth: 10,
        arms,
        statistics: None,
    }
}

fn found(index: &Index, query: &Query) -> Vec<String> {
    index.search(query).unwrap().iter().map(|hit| format!("{}/{}", hit.document_id, hit.ordinal)).collect()
}

fn both(index: &Index, text: &str) -> (Vec<String>, Vec<String>) {
    (found(index, &query(text, Arms::DENSE)), found(index, &query(text, Arms::WORDS)))
}

#[test]
fn what_was_put_is_found_by_both_arms_and_survives() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let none = Metadata::new();
    assert_eq!(index.put(vec![entry("a", &["red fox", "blue sea"], &none)], &[]).unwrap(), [Put::Added]);
    index.put(vec![entry("b", &["green hill"], &none)], &[]).unwrap();
    let (dense, words) = both(&index, "blue sea");
    assert_eq!((dense[0].as_str(), words.as_slice()), ("a/1", ["a/1".to_owned()].as_slice()));
    assert_eq!(index.put(vec![entry("a", &["red wolf"], &none)], &[]).unwrap(), [Put::Replaced]);
    let (dense, words) = both(&index, "blue sea");
    assert_eq!((dense.len(), words.len()), (2, 0), "{dense:?} {words:?}");
    drop(index);
    let index = open(dir.path());
    assert_eq!(index.size(), (2, 2));
    assert_eq!(both(&index, "red wolf").1, ["a/0"]);
    assert!(index.delete("a").unwrap());
    assert!(!index.delete("a").unwrap());
    assert_eq!(both(&index, "red wolf"), (vec!["b/0".to_owned()], vec![]));
    assert_eq!((index.document("a").unwrap(), index.text("a").unwrap()), (None, None));
    assert_eq!(index.text("b").unwrap().as_deref(), Some("green hill"));
}

#[test]
fn a_crash_between_the_commits_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    {
        let index = open(dir.path());
        index.put(vec![entry("old", &["first words"], &none), entry("gone", &["second words"], &none)], &[]).unwrap();
        index.stops_before_words.store(true, Ordering::SeqCst);
        index.put(vec![entry("new", &["third words"], &none)], &[]).unwrap();
        index.put(vec![entry("old", &["fourth words"], &none)], &[]).unwrap();
        index.delete("gone").unwrap();
        // The words know nothing of it yet, and show nothing that is no longer there.
        assert_eq!(both(&index, "words").1, Vec::<String>::new());
        assert_eq!(both(&index, "third words").0.len(), 2);
    }
    let index = open(dir.path());
    let mut words = both(&index, "words").1;
    words.sort();
    assert_eq!(words, ["new/0", "old/0"]);
    assert_eq!(both(&index, "fourth").1, ["old/0"]);
    assert!(both(&index, "first second").1.is_empty());
    // And the same when the words were not written while changes were forgotten, or are lost altogether.
    drop(index);
    std::fs::remove_dir_all(dir.path().join("words")).unwrap();
    assert_eq!(both(&open(dir.path()), "fourth").1, ["old/0"]);
    let metas = dir.path().join("words/meta.json");
    std::fs::write(&metas, "{ broken").unwrap();
    assert_eq!(both(&open(dir.path()), "third").1, ["new/0"]);
}

#[test]
fn words_that_fell_far_behind_are_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let kept = dir.path().join("kept");
    {
        let index = open(dir.path());
        index.put(vec![entry("a", &["apple"], &none)], &[]).unwrap();
    }
    // An old copy of the words comes back after many changes.
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for file in std::fs::read_dir(from).unwrap().flatten() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    copy(&dir.path().join("words"), &kept);
    {
        let index = open(dir.path());
        for n in 0..5 {
            index.put(vec![entry("b", &[&format!("berry{n}")], &none)], &[]).unwrap();
        }
        index.delete("a").unwrap();
    }
    std::fs::remove_dir_all(dir.path().join("words")).unwrap();
    copy(&kept, &dir.path().join("words"));
    let index = open(dir.path());
    assert_eq!(both(&index, "berry4").1, ["b/0"]);
    assert!(both(&index, "apple").1.is_empty() && both(&index, "berry3").1.is_empty());
}

#[test]
fn an_index_belongs_to_its_embedder() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    for (identity, dimension) in [("others", DIMENSION), ("letters", 9)] {
        let error = Index::open(dir.path(), identity, dimension, Settings::default()).map(drop).unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, IndexError::OtherEmbedder { .. }));
        assert!(said.contains("letters (8 numbers)") && said.contains(&format!("{identity} ({dimension} ")), "{said}");
    }
    let index = open(dir.path());
    let second = Index::open(dir.path(), "letters", DIMENSION, Settings::default()).map(drop);
    assert!(matches!(second, Err(IndexError::InUse(_))));
    let mut wrong = entry("a", &["x"], &Metadata::new());
    wrong.vectors[0].push(1.0);
    assert!(matches!(index.put(vec![wrong], &[]), Err(IndexError::Vector(_))));
    let mut wrong = entry("a", &["x"], &Metadata::new());
    wrong.vectors[0][0] = f32::NAN;
    assert!(matches!(index.put(vec![wrong], &[]), Err(IndexError::Vector(_))));
    assert_eq!(index.size(), (0, 0));
}

#[test]
fn filters_come_before_the_best_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    for n in 0..50 {
        let metadata = json!({ "n": n, "even": n % 2 == 0, "tags": [format!("t{}", n % 5), "all"] });
        index.put(vec![entry(&format!("d{n:02}"), &["same words here"], metadata.as_object().unwrap())], &[]).unwrap();
    }
    let ask = |conditions: Vec<Condition>| {
        let filter = Filter(conditions);
        filter.check().unwrap();
        let ask = |arms| {
            let query = Query { filter: filter.clone(), depth: 3, ..query("same words here", arms) };
            found(&index, &query).into_iter().collect::<BTreeSet<_>>()
        };
        (ask(Arms::DENSE), ask(Arms::WORDS))
    };
    let on = Condition::on;
    // The best three of all are others: a filter after the fact would leave nothing.
    let (dense, words) = ask(vec![Condition { gte: Some(47.0), ..on("n") }]);
    assert_eq!(dense.iter().map(String::as_str).collect::<Vec<_>>(), ["d47/0", "d48/0", "d49/0"]);
    assert_eq!(dense, words);
    let (dense, words) = ask(vec![on("even").equals(true), Condition { gt: Some(10.0), lt: Some(13.0), ..on("n") }]);
    assert_eq!((dense.len(), words.len(), dense.contains("d12/0")), (1, 1, true));
    let any = vec![json!("t1"), json!("t2")];
    let tagged = ask(vec![Condition { any_of: Some(any), ..on("tags") }, Condition { lte: Some(2.0), ..on("n") }]);
    assert_eq!(tagged.0.into_iter().collect::<Vec<_>>(), ["d01/0", "d02/0"]);
    assert!(ask(vec![Condition { exists: Some(false), ..on("n") }]).0.is_empty());
    assert_eq!(ask(vec![Condition { exists: Some(true), ..on("n") }]).1.len(), 3);
    assert_eq!(ask(vec![on("document_id").equals("d07")]).1.len(), 1);
    assert_eq!(ask(vec![on("n").equals(7.0)]).1.len(), 1);
    assert!(Filter(vec![on("n")]).check().is_err());
}

#[test]
fn fusion_puts_first_what_both_name() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let none = Metadata::new();
    index.put(vec![entry("a", &["alpha beta"], &none), entry("b", &["ahpla ateb"], &none)], &[]).unwrap();
    let hits: Vec<Hit> = index.search(&query("alpha beta", Arms::default())).unwrap();
    assert_eq!(hits[0].document_id, "a");
    let (dense, words) = (hits[0].dense.unwrap(), hits[0].words.unwrap());
    let sum = 1.0 / (60.0 + dense.rank as f32) + 1.0 / (60.0 + words.rank as f32);
    assert_eq!((hits[0].fused, words.rank), (sum, 1));
    // The letters are the same: the vectors alone can't tell them apart.
    assert_eq!(hits[1].cosine, hits[0].cosine);
    assert_eq!(hits[1].words, None);
}

/// Like texts lie in clusters, and so do these.
fn cloud(count: u32, dimension: usize) -> Vectors {
    let mut vectors = Vectors::new(dimension);
    for slot in 0..count {
        let number = |at: usize| {
            let center = chance(u64::from(slot % 40) << 20 | at as u64) as f32 / u64::MAX as f32 - 0.5;
            center + 0.6 * (chance(u64::from(slot) << 20 | at as u64 | 1 << 60) as f32 / u64::MAX as f32 - 0.5)
        };
        let vector: Vec<f32> = (0..dimension).map(number).collect();
        vectors.set(slot, &unit(&vector).unwrap());
    }
    vectors
}

fn exact(vectors: &Vectors, of: &[u32], query: &[f32], count: usize) -> Vec<u32> {
    let mut near: Vec<Near> = of.iter().map(|&slot| Near { score: vectors.score(query, slot), slot }).collect();
    near.sort_by(|one, other| other.cmp(one));
    near.into_iter().take(count).map(|near| near.slot).collect()
}

fn recall(graph: &Graph, vectors: &Vectors, of: &[u32], accepted: impl Fn(u32) -> bool) -> f64 {
    let mut right = 0;
    for seed in 0..100_u64 {
        let near = vectors.get(of[(chance(seed) % of.len() as u64) as usize]);
        let query: Vec<f32> = near
            .iter()
            .zip(0..)
            .map(|(x, at)| x + 0.05 * (chance(seed << 9 | at) as f32 / u64::MAX as f32 - 0.5))
            .collect();
        let wanted = exact(vectors, of, &query, 10);
        let found = graph.search(&query, 10, vectors, &accepted);
        right += found.iter().filter(|near| wanted.contains(&near.slot)).count();
    }
    f64::from(right as u32) / 1000.0
}

#[test]
fn the_graph_finds_what_looking_at_all_finds() {
    let count = 3000;
    let vectors = cloud(count, 24);
    let mut graph = Graph::new(Measures::default());
    (0..count).for_each(|slot| graph.insert(slot, chance(u64::from(slot)), &vectors));
    let all: Vec<u32> = (0..count).collect();
    let whole = recall(&graph, &vectors, &all, |_| true);
    let tenth: Vec<u32> = all.iter().copied().filter(|slot| slot % 10 == 3).collect();
    let filtered = recall(&graph, &vectors, &tenth, |slot| slot % 10 == 3);
    // Half of it goes, in three parts, and the rest is found as before.
    for part in 0..3 {
        let gone: Vec<u32> = all.iter().copied().filter(|slot| slot % 6 == part * 2).collect();
        graph.remove(&gone, &vectors);
    }
    let left: Vec<u32> = all.iter().copied().filter(|slot| slot % 2 == 1).collect();
    let halved = recall(&graph, &vectors, &left, |_| true);
    // Stored and restored it is the same.
    let mut again = Graph::new(Measures::default());
    for (slot, links) in graph.take_changed() {
        if let Some(links) = links {
            again.restore(slot, &links).unwrap();
        }
    }
    assert!(again.is_whole());
    let restored = recall(&again, &vectors, &left, |_| true);
    println!(
        "recall@10 of the graph: {whole:.3}, a tenth of it {filtered:.3}, half removed {halved:.3}, restored {restored:.3}"
    );
    assert!(whole > 0.97 && filtered > 0.97 && halved > 0.97 && restored > 0.97);
    graph.remove(&left, &vectors);
    assert!(graph.search(vectors.get(0), 5, &vectors, |_| true).is_empty());
}

#[test]
fn an_index_with_a_graph_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let measures = Measures { links: 4, build: 8, search: 8 };
    let hnsw = Settings { dense: Dense::Hnsw(measures), ..Settings::default() };
    let none = Metadata::new();
    let open = |settings| Index::open(dir.path(), "letters", DIMENSION, settings).unwrap();
    {
        let index = open(Settings::default());
        index.put(vec![entry("a", &["one", "two", "three"], &none)], &[]).unwrap();
    }
    {
        // Built from the vectors now that it is wanted.
        let index = open(hnsw);
        assert_eq!(both(&index, "three").0[0], "a/2");
        index.put(vec![entry("b", &["four", "five"], &none), entry("a", &["six"], &none)], &[]).unwrap();
        index.delete("b").unwrap();
        index.put(vec![entry("c", &["seven", "eight", "nine", "ten"], &none)], &[]).unwrap();
    }
    let index = open(hnsw);
    let memory = index.memory.read().unwrap();
    let graph = memory.graph.as_ref().unwrap();
    assert!(graph.is_whole());
    assert_eq!(memory.by_chunk.values().filter(|slot| graph.has(**slot)).count(), 5);
    assert_eq!((0..20).filter(|slot| graph.has(*slot)).count(), 5, "nothing of what was deleted is left");
    let near = graph.search(&unit(&vector("seven")).unwrap(), 5, &memory.vectors, |_| true);
    assert_eq!(near.len(), 5);
    assert!((near[0].score - 1.0).abs() < 1e-5);
}

/// How long it takes: `cargo test --release -p mloc-rag --lib -- --ignored --nocapture what_the_arms_take`.
#[test]
#[ignore = "a measurement"]
fn what_the_arms_take() {
    let (count, dimension) = (50_000, 384);
    let vectors = cloud(count, dimension);
    let all: Vec<u32> = (0..count).collect();
    let began = std::time::Instant::now();
    let mut graph = Graph::new(Measures::default());
    all.iter().for_each(|slot| graph.insert(*slot, chance(u64::from(*slot)), &vectors));
    let built = began.elapsed();
    let timed = |search: &dyn Fn(&[f32])| {
        let began = std::time::Instant::now();
        (0..200).for_each(|n| search(vectors.get(n * 7)));
        began.elapsed() / 200
    };
    let flat = timed(&|query| drop(exact(&vectors, &all, query, 50)));
    let through = timed(&|query| drop(graph.search(query, 50, &vectors, |_| true)));
    let recall = recall(&graph, &vectors, &all, |_| true);
    println!("{count} x {dimension}: built in {built:?}; a query {through:?}, flat {flat:?}; recall@10 {recall:.3}");
    let began = std::time::Instant::now();
    graph.remove(&all[..100], &vectors);
    println!("100 removed in {:?}", began.elapsed());
}
