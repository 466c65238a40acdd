//! Markdown, left as it was written: blocks are places in the file.

use pulldown_cmark::{Event, Options, Parser, Tag};

use super::{Bounds, Document, Kind, ParseError, build::Builder, text::decoded};
use crate::span::Span;

pub(super) fn parse(bytes: &[u8], bounds: &Bounds) -> Result<Document, ParseError> {
    let (text, note) = decoded(bytes, "markdown")?;
    let mut found = Vec::new();
    let options = Options::ENABLE_TABLES | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    // How many blocks are open around the one that is looked at; a list's items count as if they stood alone.
    let mut depth = 0_usize;
    let mut lists = 0_usize;
    for (event, range) in Parser::new_ext(&text, options).into_offset_iter() {
        match event {
            Event::Start(tag) => {
                if depth == lists {
                    match tag {
                        Tag::List(_) if lists == 0 => lists = 1,
                        Tag::MetadataBlock(_) => {}
                        Tag::Heading { level, .. } => found.push((Some(level as u8), Kind::Heading, range)),
                        Tag::CodeBlock(_) => found.push((None, Kind::Code, range)),
                        _ => found.push((None, Kind::Text, range)),
                    }
                }
                depth += 1;
            }
            Event::End(_) => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    lists = 0;
                }
            }
            _ => {}
        }
    }
    let mut builder = Builder::over(text, bounds)?;
    for (level, kind, range) in found {
        let span = Span::new(range.start, range.end);
        match level {
            Some(level) => {
                let words = plain(span.of(builder.text()));
                builder.place_heading(level, &words, span)?;
            }
            None => builder.place(span, kind, None)?,
        }
    }
    note.into_iter().for_each(|note| builder.note(note));
    Ok(builder.done())
}

/// A heading's words without their marks.
fn plain(source: &str) -> String {
    let words = Parser::new(source).filter_map(|event| match event {
        Event::Text(words) | Event::Code(words) => Some(words.into_string()),
        Event::SoftBreak | Event::HardBreak => Some(" ".to_owned()),
        _ => None,
    });
    words.collect()
}
