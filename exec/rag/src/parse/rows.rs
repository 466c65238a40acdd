//! Tables: a record a row, its fields as metadata.

use serde_json::Value;

use super::{Bounds, Document, Kind, Metadata, ParseError, TEXT_FIELDS, build::Builder, text::decoded};

/// Columns of a csv file: one with more is no table of texts.
const COLUMNS: usize = 1000;

/// A row becomes lines of `name: value`, and each field metadata of its record.
pub(super) fn csv(bytes: &[u8], bounds: &Bounds) -> Result<Document, ParseError> {
    let (text, note) = decoded(bytes, "csv")?;
    let first = text.lines().next().unwrap_or_default();
    let delimiter =
        [b',', b';', b'\t'].into_iter().max_by_key(|c| (first.bytes().filter(|b| b == c).count(), *c == b','));
    let delimiter = delimiter.unwrap_or(b',');
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text.as_bytes());
    let names = reader.headers().map_err(|error| ParseError::malformed("csv", error))?.clone();
    if names.len() > COLUMNS {
        return Err(ParseError::TooLarge { what: "the number of its columns".into(), max: COLUMNS });
    }
    let mut builder = Builder::new(bounds);
    for row in reader.records() {
        let row = row.map_err(|error| ParseError::malformed("csv", error))?;
        let mut words = String::new();
        let mut metadata = Metadata::new();
        for (at, value) in row.iter().enumerate().filter(|(_, value)| !value.trim().is_empty()).take(COLUMNS) {
            let name = names
                .get(at)
                .filter(|name| !name.is_empty())
                .map_or_else(|| format!("column {}", at + 1), str::to_owned);
            words.push_str(&format!("{name}: {value}\n"));
            let number = value.trim().parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number);
            let whole = value.trim().parse::<i64>().ok().map(Value::from);
            metadata.insert(name, whole.or(number).unwrap_or_else(|| Value::from(value)));
        }
        builder.block(&words, Kind::Record, Some(metadata))?;
    }
    note.into_iter().for_each(|note| builder.note(note));
    Ok(builder.done())
}

/// A line's text becomes a block, its other fields metadata.
pub(super) fn jsonl(bytes: &[u8], field: Option<&str>, bounds: &Bounds) -> Result<Document, ParseError> {
    let (text, note) = decoded(bytes, "jsonl")?;
    let mut builder = Builder::new(bounds);
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |detail: String| ParseError::malformed("jsonl", format!("line {}: {detail}", at + 1));
        // serde_json stops at 128 levels.
        let mut fields = match serde_json::from_str(line) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => return Err(wrong("expected an object".into())),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let name = match field {
            Some(name) => Some(name),
            None => TEXT_FIELDS.into_iter().find(|name| fields.get(*name).is_some_and(Value::is_string)),
        };
        let words = name.and_then(|name| fields.shift_remove(name));
        let Some(Value::String(words)) = words else {
            let found: Vec<_> = fields.keys().take(8).cloned().collect();
            let wanted = field.map_or_else(|| TEXT_FIELDS.join(", "), str::to_owned);
            return Err(wrong(format!("no text in {wanted}; there are {}\nhint: name the field", found.join(", "))));
        };
        builder.block(&words, Kind::Record, Some(fields))?;
    }
    note.into_iter().for_each(|note| builder.note(note));
    Ok(builder.done())
}
