//! Chunks: exact spans, nothing lost, no longer than they may be, and where people would cut.

mod support;

use mloc_rag::{
    chunk::{Chunk, Chunking, chunks},
    parse::{Bounds, Document, Source, parse},
    seams::Tokens,
    span::Span,
};
use proptest::prelude::*;
use support::WordTokens;

fn read(name: &str, text: &str) -> Document {
    let source = Source { name: name.to_owned(), ..Source::default() };
    parse(&source, text.as_bytes(), &Bounds::default()).unwrap()
}

fn cut(document: &Document, max_tokens: usize, overlap: usize) -> Vec<Chunk> {
    chunks(document, &WordTokens, &Chunking { max_tokens, overlap }).unwrap()
}

fn shown(document: &Document, chunks: &[Chunk]) -> String {
    let line = |chunk: &Chunk| format!("{} [{}] {:?}", chunk.ordinal, chunk.context, chunk.bytes.of(&document.text));
    chunks.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn chunks_end_where_sentences_do() {
    let text = "# Top\n\n## One\nFirst sentence here. The second one\nruns over a line. A third.\n\nNew paragraph with words.\n\n\
                ## Two\nShort.\n";
    let document = read("a.md", text);
    insta::assert_snapshot!(shown(&document, &cut(&document, 16, 4)), @r###"
    0 [Top > One] "## One\nFirst sentence here."
    1 [Top > One] "First sentence here. The second one\nruns over a line."
    2 [Top > One] "A third.\n\nNew paragraph with words."
    3 [Top > Two] "## Two\nShort."
    "###);
}

#[test]
fn a_sentence_that_is_too_long_is_cut_between_tokens() {
    let document = read("a.txt", &"word ".repeat(50));
    let made = cut(&document, 20, 0);
    assert_eq!(made.iter().map(|chunk| chunk.tokens).collect::<Vec<_>>(), [20, 20, 10]);
    assert!(made.iter().all(|chunk| chunk.bytes.of(&document.text).starts_with("word")));
    let document = read("a.txt", &"心".repeat(50));
    assert_eq!(cut(&document, 20, 0).len(), 1, "one run of letters is one token here");
}

#[test]
fn records_stay_apart_with_their_fields() {
    let document = read("a.jsonl", "{\"text\": \"one\", \"n\": 1}\n{\"text\": \"two\", \"n\": 2}\n");
    let made = cut(&document, 100, 10);
    let seen: Vec<_> =
        made.iter().map(|c| (c.bytes.of(&document.text), c.metadata.as_ref().unwrap()["n"].clone())).collect();
    assert_eq!(seen, [("one", 1.into()), ("two", 2.into())]);
}

#[test]
fn settings_that_leave_no_room_are_refused() {
    let document = read("a.txt", "words");
    for (max_tokens, overlap) in [(4, 0), (10, 10), (10, 20)] {
        assert!(chunks(&document, &WordTokens, &Chunking { max_tokens, overlap }).is_err());
    }
}

fn texts() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        "[a-zA-Z é中ß🙂.!?,]{1,80}",
        Just(String::new()),
        "#{1,3} [a-z ]{1,12}",
        "- [a-z .]{1,30}",
        Just("```".to_owned()),
        "\\| [a-z]{1,5} \\| [a-z]{1,5} \\|",
    ];
    prop::collection::vec(line, 1..40).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn spans_are_exact_and_nothing_is_lost(
        text in texts(), max in 8_usize..60, part in 0_usize..4, markdown in any::<bool>(),
    ) {
        let source = Source { name: if markdown { "a.md" } else { "a.txt" }.to_owned(), ..Source::default() };
        let Ok(document) = parse(&source, text.as_bytes(), &Bounds::default()) else { return Ok(()) };
        let made = cut(&document, max, max * part / 5);
        let mut covered = 0;
        for (chunk, ordinal) in made.iter().zip(0..) {
            prop_assert_eq!(chunk.ordinal, ordinal);
            let own = chunk.bytes.of(&document.text);
            prop_assert!(!own.is_empty());
            prop_assert_eq!(own, chunk.chars.of_chars(&document.text));
            prop_assert_eq!(own.trim(), own);
            prop_assert!(chunk.bytes.end >= covered, "a chunk adds nothing");
            covered = chunk.bytes.end;
            let context = WordTokens.spans(&chunk.context).unwrap().len();
            prop_assert!(chunk.tokens as usize + context <= max, "{} and {context} of {max}", chunk.tokens);
        }
        for block in document.blocks.iter().filter(|block| block.kind != mloc_rag::parse::Kind::Heading) {
            for (at, c) in block.span.of(&document.text).char_indices().filter(|(_, c)| !c.is_whitespace()) {
                let place = Span::new(block.span.start + at, block.span.start + at + c.len_utf8());
                prop_assert!(made.iter().any(|chunk| chunk.bytes.covers(place)), "{c:?} at {place:?} is in no chunk");
            }
        }
    }
}
