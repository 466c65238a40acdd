//! Plain text: paragraphs between empty lines.

use super::{Bounds, Document, Kind, ParseError, build::Builder};
use crate::span::Span;

/// Bytes as text: UTF-8, or UTF-16 that says so at its beginning. The note says what was not read well.
pub(super) fn decoded(bytes: &[u8], format: &str) -> Result<(String, Option<String>), ParseError> {
    let wide = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = rest.as_chunks::<2>().0.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16_lossy(&units)
    };
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => return Ok((wide(rest, u16::from_le_bytes), None)),
        [0xfe, 0xff, rest @ ..] => return Ok((wide(rest, u16::from_be_bytes), None)),
        [0xef, 0xbb, 0xbf, rest @ ..] => rest,
        all => all,
    };
    if text.contains(&0) {
        return Err(ParseError::malformed(format, "there are zero bytes in it, as no text has"));
    }
    match std::str::from_utf8(text) {
        Ok(text) => Ok((text.to_owned(), None)),
        Err(error) => {
            let note =
                format!("no UTF-8 from byte {} on: what could not be read is shown as \u{fffd}", error.valid_up_to());
            Ok((String::from_utf8_lossy(text).into_owned(), Some(note)))
        }
    }
}

pub(super) fn parse(bytes: &[u8], bounds: &Bounds) -> Result<Document, ParseError> {
    let (text, note) = decoded(bytes, "text")?;
    let mut paragraphs = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        if line.trim().is_empty() {
            paragraphs.push(Span::new(start, at));
            start = at + line.len();
        }
        at += line.len();
    }
    paragraphs.push(Span::new(start, at));
    let mut builder = Builder::over(text, bounds)?;
    for span in paragraphs {
        builder.place(span, Kind::Text, None)?;
    }
    note.into_iter().for_each(|note| builder.note(note));
    Ok(builder.done())
}
