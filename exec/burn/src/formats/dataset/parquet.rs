//! Rows of Parquet files, nested columns included: `messages` is a list of objects there as it is in JSON.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::Value;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};

use super::DatasetError;
use super::read::{Raw, Rows};

/// The rows of a file; its row groups are read one after another. Its length is added to `bytes` at once: where in the
/// file a row comes from is the format's own affair.
pub(super) fn rows(path: &Path, bytes: &Arc<AtomicU64>) -> Result<Rows, DatasetError> {
    let reader = open(path)?;
    let length = std::fs::metadata(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?.len();
    bytes.fetch_add(length, Ordering::Relaxed);
    let path = path.to_owned();
    let rows = reader.into_iter().enumerate().map(move |(index, row)| match row {
        Ok(row) => Ok(Raw { line: index + 1, value: object(&row) }),
        Err(error) => Err(DatasetError::Format { path: path.clone(), problem: format!("row {}: {error}", index + 1) }),
    });
    Ok(Box::new(rows))
}

/// How many rows it says it has.
pub(super) fn count(path: &Path) -> Result<usize, DatasetError> {
    let rows = open(path)?.metadata().file_metadata().num_rows();
    usize::try_from(rows)
        .map_err(|_| DatasetError::Format { path: path.to_owned(), problem: format!("says it has {rows} rows") })
}

fn open(path: &Path) -> Result<SerializedFileReader<File>, DatasetError> {
    let file = File::open(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    SerializedFileReader::new(file)
        .map_err(|e| DatasetError::Format { path: path.to_owned(), problem: format!("no Parquet file: {e}") })
}

fn object(row: &Row) -> Result<Value, String> {
    let mut columns = Vec::with_capacity(row.len());
    for (name, field) in row.get_column_iter() {
        columns.push((name.clone(), value(field).map_err(|problem| format!("column `{name}`: {problem}"))?));
    }
    Ok(Value::from_pairs(columns))
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::from(()),
        Field::Bool(v) => Value::from(*v),
        Field::Byte(v) => Value::from(*v),
        Field::Short(v) => Value::from(*v),
        Field::Int(v) => Value::from(*v),
        Field::Long(v) => Value::from(*v),
        Field::UByte(v) => Value::from(*v),
        Field::UShort(v) => Value::from(*v),
        Field::UInt(v) => Value::from(*v),
        Field::ULong(v) => Value::from(*v),
        Field::Float16(v) => Value::from(v.to_f32()),
        Field::Float(v) => Value::from(*v),
        Field::Double(v) => Value::from(*v),
        Field::Str(v) => Value::from(v.as_str()),
        Field::Bytes(v) => match std::str::from_utf8(v.data()) {
            Ok(text) => Value::from(text),
            // An image, say, in a column that nobody asks for.
            Err(_) => Value::from_bytes(v.data().to_vec()),
        },
        // As text: 2024-07-26, 12.50.
        Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => Value::from(field.to_string()),
        Field::Group(row) => object(row)?,
        Field::ListInternal(list) => Value::from(list.elements().iter().map(value).collect::<Result<Vec<_>, _>>()?),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().map(|(k, v)| Ok((value(k)?.to_string(), value(v)?)));
            Value::from_pairs(entries.collect::<Result<Vec<_>, String>>()?)
        }
    })
}
