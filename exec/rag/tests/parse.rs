//! Each format to text, blocks and places; and what no file may do to its reader.

mod support;

use mloc_rag::parse::{Bounds, Document, Kind, ParseError, Source, parse};
use proptest::prelude::*;
use support::{docx, docx_of, pdf, pdf_of};

fn source(name: &str) -> Source {
    Source { name: name.to_owned(), ..Source::default() }
}

fn read(name: &str, bytes: &[u8]) -> Result<Document, ParseError> {
    parse(&source(name), bytes, &Bounds::default())
}

/// Blocks as lines: kind, page, headings, text.
fn shown(document: &Document) -> String {
    let line = |block: &mloc_rag::parse::Block| {
        let page = block.page.map(|page| format!(" p{page}")).unwrap_or_default();
        let kind = format!("{:?}", block.kind);
        format!("{kind}{page} [{}] {:?}", block.headings.join(" > "), block.span.of(&document.text))
    };
    document.blocks.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn text_is_its_paragraphs() {
    let document = read("a.txt", "\u{feff}one\r\nstill one\r\n \r\n\r\ntwo é\n".as_bytes()).unwrap();
    assert_eq!(shown(&document), "Text [] \"one\\r\\nstill one\"\nText [] \"two é\"");
    assert!(read("a.txt", b"\xff\xfeh\0i\0").unwrap().text == "hi");
    let latin = read("a.txt", b"caf\xe9 au lait").unwrap();
    assert_eq!((latin.text.as_str(), latin.notes.len()), ("caf\u{fffd} au lait", 1));
    assert!(matches!(read("a.txt", b"a\0b"), Err(ParseError::Malformed { .. })));
    assert_eq!(read("a.txt", b" \n\n "), Err(ParseError::Empty));
}

#[test]
fn markdown_stays_as_it_was_written() {
    let text = "---\nauthor: me\n---\n# The *big* `one`\n\nWords\nof it.\n\n- item one\n- item two\n\n  of two\n\n## Deeper\n\n\
                ```sh\nrun  it\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n# Next\nlast\n";
    let document = read("a.md", text.as_bytes()).unwrap();
    assert_eq!(document.text, text);
    assert_eq!(document.title.as_deref(), Some("The big one"));
    insta::assert_snapshot!(shown(&document), @r###"
    Heading [The big one] "# The *big* `one`"
    Text [The big one] "Words\nof it."
    Text [The big one] "- item one"
    Text [The big one] "- item two\n\n  of two"
    Heading [The big one > Deeper] "## Deeper"
    Code [The big one > Deeper] "```sh\nrun  it\n```"
    Text [The big one > Deeper] "| a | b |\n|---|---|\n| 1 | 2 |"
    Heading [Next] "# Next"
    Text [Next] "last"
    "###);
}

#[test]
fn html_is_what_a_reader_sees() {
    let html = "<!doctype html><html><head><title>A &amp; B</title><style>p { x: 1 }</style></head><body>\
                <script>var x = '<p>no</p>';</script><h1>Top</h1><p>one\n  <b>bold</b>&nbsp;word<br>next line</p>\
                <svg><text>no</text></svg><div>two <template>no</template></div><h2>Under</h2><ul><li>first<li>second</ul>\
                <table><tr><td>a</td><td>b</td></tr></table><pre>keep\n  this</pre><!-- no --></body></html>";
    let document = read("a.html", html.as_bytes()).unwrap();
    assert_eq!(document.title.as_deref(), Some("A & B"));
    insta::assert_snapshot!(shown(&document), @r#"
    Heading [Top] "Top"
    Text [Top] "one bold\u{a0}word\nnext line"
    Text [Top] "two"
    Heading [Top > Under] "Under"
    Text [Top > Under] "first"
    Text [Top > Under] "second"
    Text [Top > Under] "a |b"
    Code [Top > Under] "keep\n  this"
    "#);
    // A hundred thousand open tags are no depth here.
    let deep = format!("{}deep", "<div><span>".repeat(100_000));
    assert_eq!(shown(&read("deep.html", deep.as_bytes()).unwrap()), "Text [] \"deep\"");
}

#[test]
fn a_pdf_has_pages_paragraphs_and_headings() {
    let line = |size: f32, text: &str| (size, text.to_owned());
    let bytes = pdf(&[
        vec![
            line(20.0, "Big title"),
            line(10.0, ""),
            line(10.0, "The first para-"),
            line(10.0, "graph goes on."),
            line(10.0, ""),
            line(10.0, "A second one."),
        ],
        vec![line(10.0, "Page two says"), line(10.0, "something else.")],
    ]);
    let document = read("a.pdf", &bytes).unwrap();
    assert_eq!(document.pages, Some(2));
    insta::assert_snapshot!(shown(&document), @r#"
    Heading p1 [Big title] "Big title"
    Text p1 [Big title] "The first paragraph goes on."
    Text p1 [Big title] "A second one."
    Text p2 [Big title] "Page two says something else."
    "#);
    // Drawn upside down and turned over, as browsers print; with letters that are one.
    let browsers = pdf_of(
        "q 1 0 0 -1 0 800 cm BT /F1 10 Tf 1 0 0 -1 50 100 Tm (From the top) Tj 1 0 0 -1 50 112 Tm [(dow) 20 (n) -300 (we go)] TJ \
         ET Q BT /F1 10 Tf 50 100 Td (Below it.) Tj 14 TL T* (The end) Tj ET",
    );
    insta::assert_snapshot!(shown(&read("a.pdf", &browsers).unwrap()), @r#"
    Text p1 [] "From the top down we go"
    Text p1 [] "Below it. The end"
    "#);
    assert_eq!(read("a.pdf", &pdf(&[vec![], vec![]])), Err(ParseError::NoText { pages: 2 }));
    assert!(matches!(read("a.pdf", b"%PDF-1.5 nonsense"), Err(ParseError::Malformed { .. })));
}

#[test]
fn a_docx_has_headings_in_any_language() {
    let bytes =
        docx(&[(1, "Erstes".into()), (0, "Ein <Absatz> & mehr".into()), (2, "Darunter".into()), (0, "Zwei".into())]);
    let document = read("a.docx", &bytes).unwrap();
    insta::assert_snapshot!(shown(&document), @r#"
    Heading [Erstes] "Erstes"
    Text [Erstes] "Ein <Absatz> & mehr"
    Heading [Erstes > Darunter] "Darunter"
    Text [Erstes > Darunter] "Zwei"
    "#);
    let table = "<w:document><w:body><w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r>\
                 <w:t>b</w:t><w:tab/><w:t>c&#33;</w:t><w:delText>gone</w:delText></w:r></w:p></w:tc></w:tr></w:tbl>\
                 </w:body></w:document>";
    assert_eq!(shown(&read("a.docx", &docx_of(table)).unwrap()), "Text [] \"a  | b\\tc!\"");
    assert!(matches!(read("a.docx", b"PK no zip"), Err(ParseError::Malformed { .. })));
}

#[test]
fn rows_are_records_with_their_fields() {
    let document = read("a.csv", "name;year;note\nAda;1843;\"a; b\"\nGrace;1952.5;\n".as_bytes()).unwrap();
    insta::assert_snapshot!(shown(&document), @r#"
    Record [] "name: Ada\nyear: 1843\nnote: a; b"
    Record [] "name: Grace\nyear: 1952.5"
    "#);
    let fields = serde_json::to_string(&document.blocks[1].metadata).unwrap();
    assert_eq!(fields, r#"{"name":"Grace","year":1952.5}"#);

    let lines = "{\"text\": \"one\", \"lang\": \"en\"}\n\n{\"lang\": \"de\", \"text\": \"zwei\"}\n";
    let document = read("a.jsonl", lines.as_bytes()).unwrap();
    assert_eq!(shown(&document), "Record [] \"one\"\nRecord [] \"zwei\"");
    assert_eq!(document.blocks[1].kind, Kind::Record);
    assert_eq!(document.blocks[1].metadata.as_ref().unwrap()["lang"], "de");
    let named = Source { text_field: Some("lang".into()), ..source("a.jsonl") };
    assert_eq!(parse(&named, lines.as_bytes(), &Bounds::default()).unwrap().text, "en\n\nde");
    let error = read("a.jsonl", b"{\"text\": \"x\"}\n{\"words\": 1}\n").unwrap_err().to_string();
    assert!(error.contains("line 2: no text in text, content") && error.contains("there are words"), "{error}");
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(read("a.jsonl", nested.as_bytes()).is_err());
}

#[test]
fn what_grows_too_large_is_stopped() {
    let small = Bounds { text_bytes: 100, unpacked_bytes: 10_000, blocks: 3 };
    let words = "word ".repeat(100);
    for (name, bytes) in [
        ("a.txt", words.clone().into_bytes()),
        ("a.md", words.clone().into_bytes()),
        ("a.html", format!("<p>{words}</p>").into_bytes()),
        ("a.csv", format!("a,b\n{words},1\n").into_bytes()),
        ("a.jsonl", format!("{{\"text\": \"{words}\"}}").into_bytes()),
        ("a.pdf", pdf(&[vec![(10.0, words.clone())]])),
        // A bomb: a few kilobytes that unpack to a megabyte.
        ("a.docx", docx(&[(0, "x".repeat(1 << 20))])),
        ("b.txt", b"a\n\nb\n\nc\n\nd\n".to_vec()),
    ] {
        let read = parse(&source(name), &bytes, &small);
        assert!(matches!(read, Err(ParseError::TooLarge { .. })), "{name}: {read:?}");
    }
}

#[test]
fn types_are_told_by_what_is_said_and_by_name() {
    let read = |name: &str, media: Option<&str>| {
        let source = Source { name: name.into(), media_type: media.map(str::to_owned), text_field: None };
        parse(&source, b"# x\n\ny", &Bounds::default()).map(|document| document.blocks[0].kind)
    };
    assert_eq!(read("a.bin", Some("text/markdown; charset=utf-8")), Ok(Kind::Heading));
    assert_eq!(read("a.md", Some("application/octet-stream")), Ok(Kind::Heading));
    assert_eq!(read("a.md", Some("text/plain")), Ok(Kind::Heading));
    assert_eq!(read("a", Some("text/x-anything")), Ok(Kind::Text));
    let error = read("photo.jpeg", Some("image/jpeg")).unwrap_err().to_string();
    assert!(error.contains("\"photo.jpeg\" of type \"image/jpeg\"") && error.contains(".pdf"), "{error}");
}

const NAMES: [&str; 7] = ["a.txt", "a.md", "a.html", "a.pdf", "a.docx", "a.csv", "a.jsonl"];

/// Whatever is read, its blocks are places of its text, in order and apart.
fn sound(name: &str, bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(document) = read(name, bytes) else {
        return Ok(());
    };
    let mut last = 0;
    for block in &document.blocks {
        prop_assert!(block.span.start >= last, "{name}: blocks overlap");
        prop_assert!(!block.span.of(&document.text).trim().is_empty(), "{name}: an empty block");
        last = block.span.end;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        for name in NAMES {
            sound(name, &bytes)?;
        }
    }

    #[test]
    fn random_text_never_panics(text in "[ -~\n\té中<>&;\"#|*`\\[\\]-]{0,600}") {
        for name in NAMES {
            sound(name, text.as_bytes())?;
        }
    }

    #[test]
    fn damaged_files_never_panic(at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let line = (10.0, "some words that are here".to_owned());
        for (name, mut bytes) in [
            ("a.pdf", pdf(&[vec![line.clone(), line.clone()], vec![line]])),
            ("a.docx", docx(&[(1, "Title".into()), (0, "some words".into())])),
        ] {
            let place = at.index(bytes.len());
            bytes[place] = with;
            sound(name, &bytes)?;
            bytes.truncate(cut.index(bytes.len()));
            sound(name, &bytes)?;
        }
    }
}
