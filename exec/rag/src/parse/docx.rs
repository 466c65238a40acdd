//! Word's documents: paragraphs, headings by their styles' names, tables a row a block.

use std::{
    collections::BTreeMap,
    io::{Cursor, ErrorKind, Read},
};

use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};
use zip::{ZipArchive, result::ZipError};

use super::{Bounds, Document, Kind, ParseError, build::Builder};

/// Files in it. Each page's picture may be one.
const FILES: usize = 100_000;

fn wrong(detail: impl ToString) -> ParseError {
    ParseError::malformed("docx", detail)
}

/// A file of the archive, no larger than there is room for.
fn file(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str, bounds: &Bounds) -> Result<Option<String>, ParseError> {
    let entry = match archive.by_name(name) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => return Ok(None),
        Err(error) => return Err(wrong(error)),
    };
    let max = bounds.unpacked_bytes;
    let mut bytes = Vec::new();
    // One byte more than there is room for shows that it is too much.
    entry.take(max as u64 + 1).read_to_end(&mut bytes).map_err(|error| match error.kind() {
        ErrorKind::OutOfMemory => ParseError::Memory,
        _ => wrong(error),
    })?;
    if bytes.len() > max {
        return Err(ParseError::TooLarge { what: format!("{name} in it, in bytes unpacked,"), max });
    }
    String::from_utf8(bytes).map(Some).map_err(|_| wrong(format!("{name} is no UTF-8")))
}

fn value(tag: &BytesStart<'_>, name: &str) -> Option<String> {
    tag.try_get_attribute(name).ok().flatten().map(|attribute| attribute.value.into_owned())
}

/// Levels of headings by their styles' ids: the ids are in the language of whoever wrote, the names are not.
fn levels(styles: &str) -> Result<BTreeMap<String, u8>, ParseError> {
    let mut levels = BTreeMap::new();
    let mut id = None;
    let mut reader = Reader::from_str(styles);
    loop {
        match reader.read_event().map_err(wrong)? {
            Event::Start(tag) if tag.local_name().as_ref() == "style" => id = value(&tag, "w:styleId"),
            Event::Start(tag) | Event::Empty(tag) if tag.local_name().as_ref() == "name" => {
                let name = value(&tag, "w:val").unwrap_or_default().to_lowercase();
                if let (Some(id), Some(level)) = (&id, level(&name)) {
                    levels.insert(id.clone(), level);
                }
            }
            Event::Eof => return Ok(levels),
            _ => {}
        }
    }
}

fn level(name: &str) -> Option<u8> {
    match name {
        "title" => Some(1),
        name => name.strip_prefix("heading")?.trim().parse().ok().filter(|level| (1..=9).contains(level)),
    }
}

/// What has been read of the paragraph or row that is open.
#[derive(Default)]
struct Open {
    words: String,
    level: Option<u8>,
    /// Tables around it: rows of the outermost are blocks.
    tables: usize,
    in_text: bool,
}

impl Open {
    fn begin(&mut self, tag: &BytesStart<'_>, empty: bool, levels: &BTreeMap<String, u8>) {
        match tag.local_name().as_ref() {
            "t" => self.in_text = !empty,
            "tab" if self.words.chars().next_back().is_some_and(|c| !c.is_whitespace()) => self.words.push('\t'),
            "br" | "cr" => self.words.push('\n'),
            "tbl" if !empty => self.tables += 1,
            "pStyle" => {
                let style = value(tag, "w:val").unwrap_or_default();
                self.level = levels.get(&style).copied().or_else(|| level(&style.to_lowercase()));
            }
            _ => {}
        }
    }

    fn end(&mut self, name: &str, builder: &mut Builder) -> Result<(), ParseError> {
        match name {
            "t" => self.in_text = false,
            "tbl" => self.tables = self.tables.saturating_sub(1),
            "tc" => self.words.push_str(" | "),
            "p" if self.tables > 0 => self.words.push(' '),
            "p" => self.flush(builder)?,
            "tr" if self.tables == 1 => self.flush(builder)?,
            _ => {}
        }
        Ok(())
    }

    fn flush(&mut self, builder: &mut Builder) -> Result<(), ParseError> {
        let words = std::mem::take(&mut self.words);
        let words = words.trim().trim_end_matches('|');
        match self.level.take().filter(|_| self.tables == 0) {
            Some(level) => builder.heading(level, words),
            None => builder.block(words, Kind::Text, None),
        }
    }
}

pub(super) fn parse(bytes: &[u8], bounds: &Bounds) -> Result<Document, ParseError> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(wrong)?;
    if archive.len() > FILES {
        return Err(ParseError::TooLarge { what: "the number of files in it".into(), max: FILES });
    }
    let styles = file(&mut archive, "word/styles.xml", bounds)?;
    let levels = styles.map_or_else(|| Ok(BTreeMap::new()), |styles| levels(&styles))?;
    let body = file(&mut archive, "word/document.xml", bounds)?;
    let body = body.ok_or_else(|| wrong("there is no word/document.xml in it"))?;
    let mut builder = Builder::new(bounds);
    let mut open = Open::default();
    let mut reader = Reader::from_str(&body);
    loop {
        match reader.read_event().map_err(|error| wrong(format!("word/document.xml: {error}")))? {
            Event::Start(tag) => open.begin(&tag, false, &levels),
            Event::Empty(tag) => open.begin(&tag, true, &levels),
            Event::Text(text) if open.in_text => open.words.push_str(&text.xml10_content()),
            Event::CData(text) if open.in_text => open.words.push_str(&text.xml10_content()),
            Event::GeneralRef(entity) if open.in_text => {
                let char = entity.resolve_char_ref().map_err(wrong)?;
                let named = quick_xml::escape::resolve_xml_entity(&entity.xml10_content());
                char.into_iter().for_each(|c| open.words.push(c));
                open.words.push_str(named.unwrap_or_default());
            }
            Event::End(tag) => open.end(tag.local_name().as_ref(), &mut builder)?,
            Event::Eof => break,
            _ => {}
        }
    }
    open.tables = 0;
    open.flush(&mut builder)?;
    Ok(builder.done())
}
