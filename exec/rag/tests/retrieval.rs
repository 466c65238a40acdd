//! Recall and reciprocal rank of each arm and of both on real documents; citations that lead to the very words.

mod support;

use std::sync::Arc;

use mloc_rag::{
    answer::cited,
    index::{Arms, Settings as IndexSettings, Stems},
    service::Ask,
    span::Span,
};
use support::{
    Hashed, WordTokens,
    compare::{Compared, Counts, Dealt, measure_all, pages, questions},
    ingest_all,
};

#[test]
fn answers_are_found_and_fusion_is_worth_it() {
    let Compared { pages, records } = measure_all(Arc::new(Hashed), Arc::new(WordTokens), IndexSettings::default());
    // A little below what was measured when they were written (the same on every machine), so that a change for the worse
    // shows: two or three questions of 44.
    let [words, dense, fusion] = pages;
    assert!(words.recall_at_5 >= 0.84 && words.mrr >= 0.74, "BM25: {words}");
    assert!(dense.recall_at_5 >= 0.77 && dense.mrr >= 0.53, "dense: {dense}");
    assert!(fusion.recall_at_5 >= 0.86 && fusion.mrr >= 0.72, "fusion: {fusion}");
    assert!(fusion.recall_at_5 >= words.recall_at_5.max(dense.recall_at_5) - 0.03, "fusion loses what an arm has");
    // Most of these answers share no word with their question: what finds more of them understands.
    let [_, _, fusion] = records;
    assert!(fusion.questions > 300 && fusion.recall_at_5 >= 0.23, "fusion on records: {fusion}");
}

#[test]
fn stems_find_more() {
    let stems = IndexSettings { stems: Some(Stems::English), ..IndexSettings::default() };
    let [_, _, fusion] = measure_all(Arc::new(Hashed), Arc::new(WordTokens), stems).pages;
    assert!(fusion.recall_at_5 >= 0.9 && fusion.mrr >= 0.72, "fusion with stems: {fusion}");
}

#[test]
fn shards_find_what_one_index_finds() {
    let (one, four) = (Dealt::to(1), Dealt::to(4));
    for (name, arms) in [("BM25", Arms::WORDS), ("fusion", Arms::default())] {
        let (scores, whole) = one.measure(arms, Counts::Own);
        println!("{name:8} one index              {whole}");
        for counts in [Counts::Own, Counts::All] {
            let (merged, measured) = four.measure(arms, counts);
            let alike = |(one, all): &(&Vec<f32>, &Vec<f32>)| {
                one.len() == all.len() && one.iter().zip(*all).all(|(one, all)| (one - all).abs() < 1e-3)
            };
            let same = scores.iter().zip(&merged).filter(alike).count();
            println!("{name:8} four shards, counts {counts:?} {measured}  {same} of {} weighed alike", scores.len());
            if counts == Counts::All {
                // Of chunks that weigh the same either may be first.
                assert_eq!(same, scores.len(), "{name}");
                assert!((measured.recall_at_5 - whole.recall_at_5).abs() < 0.02, "{measured} of {whole}");
                assert!((measured.mrr - whole.mrr).abs() < 0.02, "{measured} of {whole}");
            }
        }
    }
}

#[test]
fn citations_lead_to_the_very_words() {
    let dir = tempfile::tempdir().unwrap();
    let service = support::service(dir.path());
    for upload in pages() {
        service.accept(upload, 1).unwrap();
    }
    ingest_all(&service);
    let mut paged = 0;
    for question in questions(&service) {
        let hits = service.retrieve(&Ask::new(&question.question)).unwrap().hits;
        let Some(rank) = question.rank(&hits) else { continue };
        let (citations, unknown) = cited(&format!("It says so [{rank}]."), &hits);
        let text = service.index().text(&question.document).unwrap().unwrap();
        let citation = &citations[0];
        assert!(unknown.is_empty() && citation.document_id == question.document);
        assert_eq!(Span::new(citation.start, citation.end).of_chars(&text), citation.text);
        let answer = question.answer.of_chars(&text);
        assert!(citation.text.contains(answer), "{answer}");
        // A PDF's page is the one that the answer was drawn on, or next to it where the chunk goes over an edge.
        assert_eq!(citation.page.is_some(), question.document == "deployment");
        paged += usize::from(citation.page.is_some_and(|page| page >= 1 && citation.page_end >= Some(page)));
    }
    assert!(paged >= 8, "{paged} citations with a page");
}
