//! A parser in a process of its own: what it brings, and each way in which it may bring nothing.

mod support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use mloc_rag::parse::{
    Bounds, ParseError, Source,
    child::{ChildError, Limits, parse_in_child},
    parse,
};
use support::{docx, pdf};

const EXE: &str = env!("CARGO_BIN_EXE_mloc-rag-parse");

fn source(name: &str) -> Source {
    Source { name: name.to_owned(), ..Source::default() }
}

fn shell(script: &str, limits: &Limits) -> ChildError {
    let bytes = vec![b'x'; 1 << 20];
    parse_in_child(Path::new("/bin/sh"), &["-c", script], &source("a.txt"), &bytes, limits).unwrap_err()
}

#[test]
fn a_child_reads_what_its_parent_would() {
    let line = (10.0, "words on a page".to_owned());
    for (name, bytes) in [
        ("a.pdf", pdf(&[vec![line.clone()], vec![line]])),
        ("a.docx", docx(&[(1, "Title".into()), (0, "some words".into())])),
        ("a.txt", "long text é\n\n".repeat(100_000).into_bytes()),
    ] {
        let own = parse(&source(name), &bytes, &Bounds::default()).unwrap();
        let childs = parse_in_child(Path::new(EXE), &[""; 0], &source(name), &bytes, &Limits::default()).unwrap();
        assert_eq!(own, childs, "{name}");
    }
}

#[test]
fn each_failure_has_words_of_its_own() {
    let short = Limits { time: Duration::from_millis(400), output: 1 << 16, ..Limits::default() };
    let limits = Limits { output: 1 << 16, ..Limits::default() };

    let refused = parse_in_child(Path::new(EXE), &[""; 0], &source("a.txt"), b" ", &limits).unwrap_err();
    assert!(matches!(refused, ChildError::Refused(ParseError::Empty)), "{refused}");
    let none = parse_in_child(Path::new("/no/such/parser"), &[""; 0], &source("a.txt"), b"x", &limits).unwrap_err();
    assert!(none.to_string().contains("/no/such/parser did not start"), "{none}");

    let began = Instant::now();
    for script in ["sleep 100", "while :; do :; done", "exec >&-; sleep 100", "cat >/dev/null; echo '{'; sleep 100"] {
        let error = shell(script, &short);
        assert!(matches!(error, ChildError::TooSlow(_)), "{script}: {error}");
    }
    assert!(began.elapsed() < Duration::from_secs(60), "a child was waited for");

    let error = shell("head -c 1000000 /dev/zero; sleep 100", &limits);
    assert!(matches!(error, ChildError::Output(65_536)), "{error}");
    let error = shell("echo last words >&2; kill -SEGV $$", &limits);
    assert!(matches!(error, ChildError::Crashed { signal: 11, .. }), "{error}");
    assert!(error.to_string().ends_with(": last words"), "{error}");
    let error = shell("echo '{\"Ok\":1}'", &limits);
    assert!(matches!(error, ChildError::Garbled { .. }), "{error}");
    let error = shell("echo oh no >&2; exit 3", &limits);
    assert!(error.to_string().contains("exit status: 3): oh no"), "{error}");
}

#[test]
fn a_bomb_bursts_in_the_child() {
    // 160 MB of text out of some hundred kilobytes.
    let bytes = docx(&[(0, "x".repeat(160 << 20))]);
    assert!(bytes.len() < 1 << 20);
    let wide = Bounds { text_bytes: usize::MAX / 4, unpacked_bytes: usize::MAX / 4, blocks: 100 };
    let limits = Limits { memory: 128 << 20, bounds: wide, ..Limits::default() };
    let error = parse_in_child(Path::new(EXE), &[""; 0], &source("a.docx"), &bytes, &limits).unwrap_err();
    assert!(matches!(error, ChildError::Memory(_)), "{error}");
    let limits = Limits { bounds: Bounds { unpacked_bytes: 8 << 20, ..Bounds::default() }, ..limits };
    let error = parse_in_child(Path::new(EXE), &[""; 0], &source("a.docx"), &bytes, &limits).unwrap_err();
    assert!(matches!(error, ChildError::Refused(ParseError::TooLarge { .. })), "{error}");
}
