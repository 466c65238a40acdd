//! Files become rows: an object of columns each, whatever the format.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::Value;
use serde::Deserialize;

use super::{DatasetError, parquet};

/// A format of data, the one that is taken first where several lie side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    /// A JSON object a line.
    Lines,
    /// Apache Parquet.
    Parquet,
    /// A JSON array of objects, or JSON lines under another name.
    Json,
    /// Values with commas between them, their names in the first line.
    Csv,
    /// The same with tabs.
    Tsv,
}

impl Format {
    /// How their files' names end, for people.
    pub const NAMES: &str = ".jsonl, .parquet, .json, .csv or .tsv";

    /// By a file's name.
    pub fn of(name: &str) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        let (stem, packed) = match lower.strip_suffix(".gz").or_else(|| lower.strip_suffix(".zst")) {
            Some(stem) => (stem, true),
            None => (lower.as_str(), false),
        };
        match stem.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Some(Self::Lines),
            "parquet" if !packed => Some(Self::Parquet),
            "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "tsv" => Some(Self::Tsv),
            _ => None,
        }
    }
}

/// A row as it stands in a file.
pub(super) struct Raw {
    /// Its line, or its number; from 1.
    pub line: usize,
    /// Its columns, or what is wrong with it.
    pub value: Result<Value, String>,
}

/// Rows one after another. An error ends them: the file cannot be read on.
pub(super) type Rows = Box<dyn Iterator<Item = Result<Raw, DatasetError>>>;

/// The rows of a file, held one at a time. One whose name says nothing is taken for JSON lines. Bytes of it that were read
/// are added to `bytes`.
pub(super) fn rows(path: &Path, bytes: &Arc<AtomicU64>) -> Result<Rows, DatasetError> {
    match format_of(path) {
        Format::Lines => lines(path, reader(path, bytes)?),
        Format::Json => json(path, reader(path, bytes)?),
        Format::Csv => csv_rows(path, reader(path, bytes)?, b','),
        Format::Tsv => csv_rows(path, reader(path, bytes)?, b'\t'),
        Format::Parquet => parquet::rows(path, bytes),
    }
}

/// How many rows a file has.
pub(super) fn count(path: &Path) -> Result<usize, DatasetError> {
    match format_of(path) {
        Format::Parquet => parquet::count(path),
        Format::Lines => {
            let nobody = Arc::default();
            let io = |source| DatasetError::Io { path: path.to_owned(), source };
            let mut count = 0;
            for line in reader(path, &nobody)?.split(b'\n') {
                count += usize::from(!line.map_err(io)?.trim_ascii().is_empty());
            }
            Ok(count)
        }
        Format::Json | Format::Csv | Format::Tsv => {
            rows(path, &Arc::default())?.try_fold(0, |count, row| row.map(|_| count + 1))
        }
    }
}

fn format_of(path: &Path) -> Format {
    Format::of(&path.file_name().unwrap_or_default().to_string_lossy()).unwrap_or(Format::Lines)
}

/// A file that says how much of it was read.
struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(into)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// The file's text, unpacked.
fn reader(path: &Path, bytes: &Arc<AtomicU64>) -> Result<Box<dyn BufRead>, DatasetError> {
    let io = |source| DatasetError::Io { path: path.to_owned(), source };
    let file = Counted { file: File::open(path).map_err(io)?, bytes: bytes.clone() };
    Ok(match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file))),
        Some("zst") => Box::new(BufReader::new(zstd::stream::read::Decoder::new(file).map_err(io)?)),
        _ => Box::new(BufReader::new(file)),
    })
}

fn lines(path: &Path, reader: Box<dyn BufRead>) -> Result<Rows, DatasetError> {
    let path = path.to_owned();
    let lines = reader.split(b'\n').enumerate().filter_map(move |(index, bytes)| match bytes {
        Ok(bytes) if bytes.trim_ascii().is_empty() => None,
        Ok(bytes) => Some(Ok(Raw { line: index + 1, value: parsed(&bytes) })),
        Err(source) => Some(Err(DatasetError::Io { path: path.clone(), source })),
    });
    Ok(Box::new(lines))
}

fn parsed(bytes: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8 text after byte {}", e.valid_up_to()))?;
    serde_json::from_str(text).map_err(|e| {
        // The line number is the file's, which the caller adds; serde's is always 1 here.
        let what = e.to_string();
        format!("not JSON: {}", what.replace(" at line 1 column", " at character"))
    })
}

/// An array of objects, or lines.
fn json(path: &Path, mut reader: Box<dyn BufRead>) -> Result<Rows, DatasetError> {
    let io = |source| DatasetError::Io { path: path.to_owned(), source };
    if next_byte(&mut reader).map_err(io)? != Some(b'[') {
        return lines(path, reader);
    }
    reader.consume(1);
    let mut elements = Elements { path: path.to_owned(), reader, row: 0, over: false };
    Ok(Box::new(std::iter::from_fn(move || elements.next().transpose())))
}

/// The next byte that is no white space, which is left to be read; none at the end.
fn next_byte(reader: &mut impl BufRead) -> std::io::Result<Option<u8>> {
    loop {
        let block = reader.fill_buf()?;
        match block.iter().position(|b| !b.is_ascii_whitespace()) {
            Some(at) => {
                let byte = block[at];
                reader.consume(at);
                return Ok(Some(byte));
            }
            None if block.is_empty() => return Ok(None),
            None => {
                let all = block.len();
                reader.consume(all);
            }
        }
    }
}

/// The elements of an array whose bracket was read: one at a time, for the array may be larger than memory.
struct Elements {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    row: usize,
    over: bool,
}

impl Elements {
    fn next(&mut self) -> Result<Option<Raw>, DatasetError> {
        if self.over {
            return Ok(None);
        }
        // Until an element was read whole there is none after it.
        self.over = true;
        let wrong = |row: usize, problem: String| {
            let problem = format!("not JSON: after {row} elements of the array: {problem}");
            DatasetError::Format { path: self.path.clone(), problem }
        };
        let io = |source| DatasetError::Io { path: self.path.clone(), source };
        let mut found = next_byte(&mut self.reader).map_err(io)?;
        match found {
            Some(b']') => return Ok(None),
            Some(b',') if self.row > 0 => {
                self.reader.consume(1);
                found = next_byte(&mut self.reader).map_err(io)?;
            }
            Some(_) if self.row == 0 => {}
            _ => return Err(wrong(self.row, "expected `,` or `]`".to_owned())),
        }
        if found != Some(b'{') {
            return Err(wrong(self.row, "expected an object".to_owned()));
        }
        let mut deserializer = serde_json::Deserializer::from_reader(&mut self.reader);
        let value = Value::deserialize(&mut deserializer).map_err(|e| wrong(self.row, e.to_string()))?;
        self.row += 1;
        self.over = false;
        Ok(Some(Raw { line: self.row, value: Ok(value) }))
    }
}

/// Values stay the texts they are.
fn csv_rows(path: &Path, reader: Box<dyn BufRead>, delimiter: u8) -> Result<Rows, DatasetError> {
    let mut csv = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(reader);
    let header = csv.headers().map_err(|e| csv_error(path, &e))?.clone();
    let path: PathBuf = path.to_owned();
    let mut line = 1;
    let rows = csv.into_records().map(move |record| match record {
        Ok(record) => {
            line = record.position().map_or(line + 1, |at| at.line() as usize);
            let columns = header.iter().zip(&record).map(|(name, value)| (name.to_owned(), Value::from(value)));
            Ok(Raw { line, value: Ok(Value::from_pairs(columns)) })
        }
        Err(error) if error.is_io_error() => Err(csv_error(&path, &error)),
        Err(error) => {
            line = error.position().map_or(line + 1, |at| at.line() as usize);
            Ok(Raw { line, value: Err(csv_problem(&error)) })
        }
    });
    Ok(Box::new(rows))
}

fn csv_problem(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} values, and the first line names {expected_len} columns")
        }
        csv::ErrorKind::Utf8 { err, .. } => format!("not UTF-8 text after byte {}", err.valid_up_to()),
        _ => error.to_string(),
    }
}

fn csv_error(path: &Path, error: &csv::Error) -> DatasetError {
    DatasetError::Format { path: path.to_owned(), problem: csv_problem(error) }
}
