//! What tests share: models that are plain functions, and files made of text.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod compare;

use std::{
    io::{Cursor, Write},
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use lopdf::{
    Document as Pdf, Object, Stream,
    content::{Content, Operation},
    dictionary,
};
use mloc_rag::{
    index::{Index, Settings as IndexSettings},
    parse::Source,
    seams::{Embedder, Side, Tokens},
    service::{Models, Parser, Service, Settings, Upload},
    span::Span,
};

/// Numbers of a vector.
pub const DIMENSION: usize = 512;

/// Words and their beginnings, hashed into a vector: like texts have like words.
pub struct Hashed;

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

const COMMON: [&str; 32] = [
    "the", "a", "an", "of", "to", "is", "it", "in", "and", "or", "that", "what", "which", "how", "does", "do", "be",
    "are", "for", "on", "as", "by", "with", "its", "at", "not", "has", "have", "may", "can", "i", "my",
];

impl Embedder for Hashed {
    fn identity(&self) -> &str {
        "hashed words 1"
    }

    fn dimension(&self) -> usize {
        DIMENSION
    }

    fn embed(&self, texts: &[String], _side: Side) -> Result<Vec<Vec<f32>>> {
        let vector = |text: &String| {
            let mut vector = vec![0.0_f32; DIMENSION];
            let lower = text.to_lowercase();
            for word in lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
                if COMMON.contains(&word) {
                    continue;
                }
                let stem: String = word.chars().take(5).collect();
                for (part, weight) in [(word, 1.0), (stem.as_str(), 1.0)] {
                    let hash = hash(part);
                    let sign = if hash & (1 << 40) == 0 { weight } else { -weight };
                    vector[hash as usize % DIMENSION] += sign;
                }
            }
            vector
        };
        Ok(texts.iter().map(vector).collect())
    }
}

/// Words and signs.
pub struct WordTokens;

impl Tokens for WordTokens {
    fn identity(&self) -> &str {
        "words 1"
    }

    fn spans(&self, text: &str) -> Result<Vec<Span>> {
        let mut spans: Vec<Span> = Vec::new();
        let mut in_word = false;
        for (at, c) in text.char_indices() {
            let end = at + c.len_utf8();
            if c.is_alphanumeric() && in_word {
                if let Some(span) = spans.last_mut() {
                    span.end = end;
                }
            } else if !c.is_whitespace() {
                spans.push(Span::new(at, end));
            }
            in_word = c.is_alphanumeric();
        }
        Ok(spans)
    }
}

/// Without a reranker.
pub fn models() -> Models {
    Models { embedder: Arc::new(Hashed), tokens: Arc::new(WordTokens), reranker: None }
}

/// A service over a folder, parsing in this process.
pub fn service_with(folder: &Path, settings: Settings) -> Service {
    let index = Index::open(folder, Hashed.identity(), DIMENSION, IndexSettings::default()).unwrap();
    Service::new("docs", index, models(), Parser::Here, settings).unwrap()
}

/// With all as it is by default.
pub fn service(folder: &Path) -> Service {
    service_with(folder, Settings::default())
}

/// A text that comes.
pub fn upload(id: &str, name: &str, text: &str) -> Upload {
    let source = Source { name: name.to_owned(), ..Source::default() };
    Upload { id: Some(id.to_owned()), source, bytes: text.as_bytes().to_vec(), ..Upload::default() }
}

/// All that waits.
pub fn ingest_all(service: &Service) {
    while !service.ingest_next(1_000).unwrap().is_empty() {}
}

/// A PDF: for each page lines with the size of their letters. An empty line is a gap.
pub fn pdf(pages: &[Vec<(f32, String)>]) -> Vec<u8> {
    let drawn = pages.iter().map(|page| {
        let mut operations = vec![Operation::new("BT", vec![]), Operation::new("Td", vec![50.into(), 780.into()])];
        for (size, line) in page {
            operations.push(Operation::new("Td", vec![0.into(), Object::Real(-12.0)]));
            if !line.is_empty() {
                operations.push(Operation::new("Tf", vec!["F1".into(), Object::Real(*size)]));
                operations.push(Operation::new("Tj", vec![Object::string_literal(line.as_str())]));
            }
        }
        operations.push(Operation::new("ET", vec![]));
        Content { operations }.encode().unwrap()
    });
    pdf_drawn(drawn.collect())
}

/// A PDF of one page, as it is drawn.
pub fn pdf_of(content: &str) -> Vec<u8> {
    pdf_drawn(vec![content.as_bytes().to_vec()])
}

fn pdf_drawn(pages: Vec<Vec<u8>>) -> Vec<u8> {
    let mut document = Pdf::with_version("1.5");
    let tree = document.new_object_id();
    let font = document.add_object(dictionary! {
        "Type" => "Font", "Subtype" => "Type1", "BaseFont" => "Helvetica", "Encoding" => "WinAnsiEncoding",
    });
    let resources = document.add_object(dictionary! { "Font" => dictionary! { "F1" => font } });
    let mut kids = Vec::new();
    for content in pages {
        let content = document.add_object(Stream::new(dictionary! {}, content));
        let page = document.add_object(dictionary! {
            "Type" => "Page", "Parent" => tree, "Contents" => content, "Resources" => resources,
            "MediaBox" => vec![0.into(), 0.into(), 595.into(), 842.into()],
        });
        kids.push(page.into());
    }
    let count = i64::try_from(kids.len()).unwrap();
    let pages = dictionary! { "Type" => "Pages", "Kids" => kids, "Count" => count };
    document.objects.insert(tree, Object::Dictionary(pages));
    let catalog = document.add_object(dictionary! { "Type" => "Catalog", "Pages" => tree });
    document.trailer.set("Root", catalog);
    document.compress();
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).unwrap();
    bytes
}

/// Text for XML and HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A docx of paragraphs, each with its heading's level; 0 = none.
pub fn docx(paragraphs: &[(u8, String)]) -> Vec<u8> {
    let mut body = String::new();
    for (level, words) in paragraphs {
        let style =
            if *level == 0 { String::new() } else { format!("<w:pPr><w:pStyle w:val=\"Titel{level}\"/></w:pPr>") };
        body.push_str(&format!("<w:p>{style}<w:r><w:t xml:space=\"preserve\">{}</w:t></w:r></w:p>", escaped(words)));
    }
    docx_of(&format!("<w:document xmlns:w=\"w\"><w:body>{body}</w:body></w:document>"))
}

/// A docx of a document.xml; its styles are called as in German.
pub fn docx_of(document: &str) -> Vec<u8> {
    let styles: String =
        (1..=3).map(|n| format!("<w:style w:styleId=\"Titel{n}\"><w:name w:val=\"heading {n}\"/></w:style>")).collect();
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for (name, content) in
        [("word/styles.xml", format!("<w:styles>{styles}</w:styles>").as_str()), ("word/document.xml", document)]
    {
        zip.start_file(name, options).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}
