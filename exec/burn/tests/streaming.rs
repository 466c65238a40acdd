//! A data set is read, tokenized and trained from without being held: what is allocated is counted, and does not grow with
//! the data.

mod counting;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use counting::most_held;
use mloc_burn::formats::dataset::{
    DatasetError, LoadOptions, Pair, PairText, ReadSoFar, Selection, TokenizeOptions, TokenizedExample, TokenizedPair,
    load, tokenize_all, tokenize_files, tokenize_pair_files,
};
use mloc_burn::formats::tokenizer::TextTokenizer;

/// Words between spaces: what is counted here is not the tokenizer's.
fn tokenizer() -> TextTokenizer {
    let words = r#"{
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"?": 0, "a": 1, "lease": 2, "node": 3}, "unk_token": "?"}
    }"#;
    TextTokenizer::from_parts(words.as_bytes(), serde_json::Map::new()).expect("tokenizer")
}

/// So many rows of about a kilobyte, as lines or as one array.
fn data(folder: &Path, name: &str, rows: usize) -> PathBuf {
    let path = folder.join(name);
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).expect("file"));
    let array = name.ends_with(".json");
    if array {
        file.write_all(b"[").expect("written");
    }
    for row in 0..rows {
        if row > 0 {
            file.write_all(if array { b",\n" } else { b"\n" }).expect("written");
        }
        write!(file, "{{\"text\": \"{row} {}\"}}", "a lease ends when node 17 says so; ".repeat(30)).expect("written");
    }
    file.write_all(if array { b"]" } else { b"\n" }).expect("written");
    file.flush().expect("written");
    path
}

/// One test, for what is held is counted over all threads.
#[test]
fn what_is_held_does_not_grow_with_the_data() {
    let folder = tempfile::tempdir().expect("folder");
    let (tokenizer, load) = (tokenizer(), LoadOptions::default());
    let options = TokenizeOptions { max_length: Some(100), ..TokenizeOptions::default() };
    for name in ["rows.jsonl", "rows.json"] {
        let stored = |path: &Path| {
            let (mut told, into) = (0, folder.path().join("tokens"));
            let mut watch = |so_far: ReadSoFar| {
                told = told.max(so_far.rows);
                false
            };
            let (file, counts, read) =
                tokenize_files(path, &load, &tokenizer, options, &into, &mut watch).expect("tokens");
            assert_eq!(read.bytes, std::fs::metadata(path).expect("file").len());
            assert_eq!((read.rows, counts.rows as u64, told), (file.len() as u64, read.rows, read.rows - 1));
            let samples = Selection::of(Arc::new(file)).samples();
            let targets: usize = (0..samples.len()).map(|at| samples.read(at).expect("sample")[0].num_targets()).sum();
            assert_eq!(targets, 99 * samples.len());
        };
        let (few, many) = (data(folder.path(), name, 400), data(folder.path(), &format!("many-{name}"), 2_400));
        // What is made once and kept, such as caches of the tokenizer, is made here.
        stored(&few);
        let (of_few, ()) = most_held(|| stored(&few));
        let (of_many, ()) = most_held(|| stored(&many));
        let bytes = std::fs::metadata(&many).expect("file").len() as usize;
        assert!(of_many < bytes / 3, "{name}: {of_many} of {bytes} bytes were held");
        assert!(of_many < of_few + (64 << 10), "{name}: {of_few} bytes were held of 400 rows, {of_many} of 2400");
    }

    pairs_are_not_held(folder.path(), &tokenizer);

    // What comes out is what comes out of rows that are all held.
    let path = data(folder.path(), "rows.jsonl", 50);
    let rows = load_all(&path);
    let held = tokenize_all(&rows, &tokenizer, options, &|| false).expect("tokens");
    let (file, counts, _) =
        tokenize_files(&path, &load, &tokenizer, options, &folder.path().join("t"), &mut |_| false).expect("tokens");
    assert_eq!(counts, held.counts);
    let stored: Vec<TokenizedExample> = (0..file.len()).map(|at| file.read(at, None).expect("example")).collect();
    assert_eq!(stored, held.examples);
    let stopped = tokenize_files(&path, &load, &tokenizer, options, folder.path(), &mut |so_far| so_far.rows == 20);
    assert!(matches!(stopped, Err(DatasetError::Interrupted)));
}

/// So many pairs of about two kilobytes, each with a margin.
fn pairs(folder: &Path, name: &str, rows: usize) -> PathBuf {
    let path = folder.join(name);
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).expect("file"));
    let answer = "a lease ends when node 17 says so; ".repeat(30);
    for row in 0..rows {
        let (row, margin) = (serde_json::json!(format!("a lease {row}? {answer}")), row as f64 / 4.0);
        writeln!(file, r#"{{"prompt": {row}, "chosen": " node {answer}", "rejected": " lease", "margin": {margin}}}"#)
            .expect("written");
    }
    file.flush().expect("written");
    path
}

fn pairs_are_not_held(folder: &Path, tokenizer: &TextTokenizer) {
    let into = folder.join("pairs");
    let whole = |TokenizedPair { prompt, chosen, rejected, margin }: TokenizedPair| {
        let text = |answer| PairText { ids: [prompt.as_slice(), answer].concat(), given: prompt.len() };
        // Every tenth is left out.
        let kept = margin.is_some_and(|margin| !((4.0 * margin) as u64).is_multiple_of(10));
        kept.then(|| Pair { chosen: text(&chosen), rejected: text(&rejected), margin })
    };
    let stored = |path: &Path| {
        let load = LoadOptions::default();
        let (file, counts, read) =
            tokenize_pair_files(path, &load, tokenizer, 0, &whole, &into, &mut |_| false).expect("tokens");
        assert_eq!((read.rows, counts.rows as u64, counts.left_out), (read.rows, read.rows, counts.rows / 10));
        for pair in 0..file.len() {
            let Pair { chosen, rejected, margin } = file.read(pair).expect("pair");
            // Nine in ten are there, in order.
            let row = pair / 9 * 10 + pair % 9 + 1;
            assert_eq!(margin, Some(row as f64 / 4.0));
            assert_eq!((chosen.given, rejected.given), (243, 243));
            assert_eq!((chosen.ids.len(), rejected.ids.len()), (243 + 241, 244));
        }
    };
    let (few, many) = (pairs(folder, "few-pairs.jsonl", 400), pairs(folder, "many-pairs.jsonl", 2_400));
    stored(&few);
    let (of_few, ()) = most_held(|| stored(&few));
    let (of_many, ()) = most_held(|| stored(&many));
    let bytes = std::fs::metadata(&many).expect("file").len() as usize;
    assert!(of_many < bytes / 3, "{of_many} of {bytes} bytes were held");
    // Eight bytes a pair, in a list that doubles.
    assert!(of_many < of_few + (64 << 10), "{of_few} bytes were held of 400 pairs, {of_many} of 2400");
}

fn load_all(path: &Path) -> Vec<mloc_burn::formats::dataset::Row> {
    load(path, &LoadOptions::default(), &|| false).expect("rows")
}
