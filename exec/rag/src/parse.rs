//! Bytes of a file to its text, with blocks that know their page, their headings and their place.
//!
//! What a file can do to its reader is bounded here by [`Bounds`], and by the system where the reader runs in a child
//! ([`child`]). Text and Markdown stay as they were written, so that spans are places in the file itself; of other
//! formats spans are places in the text that was read out of it.
//!
//! Deliberately absent: OCR, encodings but UTF-8 and UTF-16, old Word files, spreadsheets, pages of docx (they exist only once it is laid out), footnotes
//! and comments of docx, tables and columns of PDF (text comes in the order the file draws it).

mod build;
pub mod child;
mod docx;
mod html;
mod markdown;
mod pdf;
mod rows;
mod text;

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::span::Span;

/// Names and values that a filter can ask for.
pub type Metadata = Map<String, Value>;

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain text.
    Text,
    /// Markdown.
    Markdown,
    /// HTML.
    Html,
    /// PDF.
    Pdf,
    /// Word's Open XML.
    Docx,
    /// Comma, semicolon or tab between fields, a row of names first.
    Csv,
    /// A JSON object a line.
    Jsonl,
}

/// Media types and endings, for people.
const KNOWN: &str = ".txt, .md, .html, .pdf, .docx, .csv, .tsv, .jsonl";

impl Format {
    /// By media type; where that is missing or says nothing, by the name's ending.
    ///
    /// # Errors
    /// When neither is known.
    pub fn of(name: &str, media_type: Option<&str>) -> Result<Self, ParseError> {
        let media = media_type.and_then(|media| media.split(';').next()).unwrap_or_default().trim();
        let by_media = match media.to_ascii_lowercase().as_str() {
            "text/markdown" | "text/x-markdown" => Some(Self::Markdown),
            "text/html" | "application/xhtml+xml" => Some(Self::Html),
            "application/pdf" => Some(Self::Pdf),
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document" => Some(Self::Docx),
            "text/csv" | "text/tab-separated-values" => Some(Self::Csv),
            "application/jsonl" | "application/x-ndjson" | "application/jsonlines" => Some(Self::Jsonl),
            _ => None,
        };
        let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
        let by_name = match ending.as_str() {
            "txt" | "text" | "log" | "rst" => Some(Self::Text),
            "md" | "markdown" => Some(Self::Markdown),
            "html" | "htm" | "xhtml" => Some(Self::Html),
            "pdf" => Some(Self::Pdf),
            "docx" => Some(Self::Docx),
            "csv" | "tsv" => Some(Self::Csv),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            _ => None,
        };
        // Many a client says text/plain of whatever it sends.
        let plain = media.to_ascii_lowercase().starts_with("text/").then_some(Self::Text);
        by_media
            .or(by_name)
            .or(plain)
            .ok_or_else(|| ParseError::Unknown { name: name.to_owned(), media: media.to_owned() })
    }
}

/// A file that came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// What its bringer says it is.
    pub media_type: Option<String>,
    /// jsonl: the field that holds the text; `None` = the first there is of [`TEXT_FIELDS`].
    pub text_field: Option<String>,
}

/// Fields of a jsonl line that are taken for its text.
pub const TEXT_FIELDS: [&str; 5] = ["text", "content", "body", "page_content", "passage"];

/// What a file may grow to while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Bytes of text.
    pub text_bytes: usize,
    /// Bytes of what is unpacked on the way to it.
    pub unpacked_bytes: usize,
    /// Paragraphs, items, rows.
    pub blocks: usize,
}

impl Default for Bounds {
    /// 64 MiB of text, which is about the Bible 15 times; 256 MiB on the way; a million blocks.
    fn default() -> Self {
        Self { text_bytes: 64 << 20, unpacked_bytes: 256 << 20, blocks: 1_000_000 }
    }
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The line that opens a section; its own text is the last of its headings.
    Heading,
    /// A paragraph, an item, a table's row.
    Text,
    /// Lines that stay as they are.
    Code,
    /// A row of csv or jsonl.
    Record,
}

/// A stretch of the text that belongs together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Bytes of the text.
    pub span: Span,
    /// What it is.
    pub kind: Kind,
    /// From 1; of PDF alone.
    pub page: Option<u32>,
    /// From the outermost inward.
    pub headings: Vec<String>,
    /// A record's other fields.
    pub metadata: Option<Metadata>,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// All of it.
    pub text: String,
    /// In the text's order, apart from each other.
    pub blocks: Vec<Block>,
    /// What the file calls itself.
    pub title: Option<String>,
    /// Of PDF.
    pub pages: Option<u32>,
    /// What could not be read, or not well, for people.
    pub notes: Vec<String>,
}

/// Why a file was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ParseError {
    /// Nobody here reads it.
    #[error("{name:?} of type {media:?} is nothing that is read here\nhint: send one of {KNOWN}")]
    Unknown {
        /// The file's name.
        name: String,
        /// Its type, as it was said.
        media: String,
    },
    /// It isn't what it says.
    #[error("no readable {format}: {detail}")]
    Malformed {
        /// What it was taken for.
        format: String,
        /// Where, and what was found.
        detail: String,
    },
    /// Only with a password.
    #[error("the PDF is encrypted\nhint: save it without a password")]
    Encrypted,
    /// Pictures of pages, most likely.
    #[error("{pages} pages and no text on them: most likely scanned\nhint: run OCR over it first")]
    NoText {
        /// Pages.
        pages: u32,
    },
    /// Nothing but white space.
    #[error("there is no text in it")]
    Empty,
    /// The system gives no more.
    #[error("there is not enough memory to read it")]
    Memory,
    /// It grows beyond what it may.
    #[error("{what} grows beyond {max}\nhint: cut the file into several")]
    TooLarge {
        /// Of what there is too much.
        what: String,
        /// How much there may be.
        max: usize,
    },
}

impl ParseError {
    fn malformed(format: &str, detail: impl ToString) -> Self {
        Self::Malformed { format: format.to_owned(), detail: detail.to_string() }
    }
}

/// Reads a file, in this process and on this thread. What came from outside is read in a child: [`child`].
///
/// # Errors
/// Why it was not read. A parser's panic is one of the reasons.
pub fn parse(source: &Source, bytes: &[u8], bounds: &Bounds) -> Result<Document, ParseError> {
    let format = Format::of(&source.name, source.media_type.as_deref())?;
    let read = || match format {
        Format::Text => text::parse(bytes, bounds),
        Format::Markdown => markdown::parse(bytes, bounds),
        Format::Html => html::parse(bytes, bounds),
        Format::Pdf => pdf::parse(bytes, bounds),
        Format::Docx => docx::parse(bytes, bounds),
        Format::Csv => rows::csv(bytes, bounds),
        Format::Jsonl => rows::jsonl(bytes, source.text_field.as_deref(), bounds),
    };
    let document = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(ParseError::malformed(&format!("{format:?}"), format!("its parser gave up: {words}")))
    })?;
    if document.blocks.is_empty() { Err(ParseError::Empty) } else { Ok(document) }
}
