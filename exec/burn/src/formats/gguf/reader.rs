//! The bytes of a GGUF file: header, metadata, tensor directory, data.
//!
//! Everything is checked against the file's real length before it is used, so that a cut or hostile file gives an
//! error, and memory is only taken for what the file truly holds: arrays stay in the file until they are asked for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use super::GgufError;
use super::blocks::TensorType;
use crate::weights::forget;

/// Dimensions a tensor may have.
const MAX_DIMENSIONS: u32 = 4;
/// Arrays within arrays are legal and unused; deeper than this is an attack on the stack.
const MAX_ARRAY_DEPTH: u32 = 4;
/// The largest vocabularies have a quarter of a million tokens and twice as many merges. An array in memory takes many
/// times its bytes in the file, so there is an end.
const MAX_ARRAY_ELEMENTS: usize = 4_000_000;
/// Data starts at a multiple of this unless the file says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value. Integers of all widths are one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaValue {
    /// Any integer.
    Int(i128),
    /// A 32- or 64-bit float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// An array, left in the file: its element type code, length and bytes.
    Array {
        /// Type code of the elements.
        element: u32,
        /// Number of elements.
        len: usize,
        /// Where the elements lie in the file.
        bytes: Range<usize>,
    },
}

/// Where a tensor lies and how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Outermost dimension first (rows, columns), the reverse of the file's own order.
    pub shape: Vec<usize>,
    /// How elements are stored.
    pub kind: TensorType,
    /// Where its bytes lie in the file.
    pub bytes: Range<usize>,
}

/// An open GGUF file.
#[derive(Debug)]
pub struct GgufFile {
    data: Bytes,
    /// Format version, 2 or 3.
    pub version: u32,
    /// Metadata by key.
    pub metadata: BTreeMap<String, MetaValue>,
    /// Tensors by the file's own names.
    pub tensors: BTreeMap<String, TensorInfo>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl GgufFile {
    /// Maps a file and reads its directory. The data is read when a tensor is asked for.
    ///
    /// # Errors
    /// [`GgufError::Io`] when it cannot be opened, otherwise what is wrong with the content.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        // An empty file cannot be mapped.
        if file.metadata().map_err(io)?.len() == 0 {
            return Self::from_bytes(Vec::new());
        }
        #[allow(unsafe_code, reason = "mapping is the only way to read weights without holding them twice")]
        // SAFETY: the map is only read. Another process that shortens the file while we read it would end ours with
        // SIGBUS; model files are written once and then renamed into place, and work runs in a child process.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::parse(Bytes::Mapped(map))
    }

    /// Reads a file that is already in memory.
    ///
    /// # Errors
    /// What is wrong with the content.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::parse(Bytes::Owned(bytes))
    }

    fn parse(data: Bytes) -> Result<Self, GgufError> {
        let mut cursor = Cursor { bytes: &data, at: 0 };
        let magic = cursor.take(4, "the magic number")?;
        if magic != b"GGUF" {
            return Err(GgufError::Format(format!("it begins with {magic:02x?}, expected the letters GGUF")));
        }
        let version = cursor.u32("the version")?;
        if version.swap_bytes() <= 3 && version > 3 {
            return Err(GgufError::Format("it is big-endian".into()));
        }
        if !(2..=3).contains(&version) {
            return Err(GgufError::Format(format!("its version is {version}, supported are 2 and 3")));
        }
        // An entry takes at least 12 or 24 bytes, so the counts are bounded by what is left of the file.
        let tensor_count = cursor.count(24, "the number of tensors")?;
        let metadata_count = cursor.count(12, "the number of metadata entries")?;
        let mut metadata = BTreeMap::new();
        for index in 0..metadata_count {
            let at = cursor.at;
            let key = cursor.text(&format!("the key of metadata entry {index}"))?;
            let kind = cursor.u32(&format!("the type of metadata `{key}`"))?;
            let value = cursor.value(kind, &format!("metadata `{key}`"))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(GgufError::Corrupt { at, what: format!("metadata `{key}` is there twice") });
            }
        }
        let directory = (0..tensor_count).map(|_| cursor.tensor()).collect::<Result<Vec<_>, _>>()?;
        let alignment = alignment(&metadata)?;
        let start = (cursor.at as u64)
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| cursor.corrupt("the start of the data is out of range"))?;
        let mut tensors = BTreeMap::new();
        for entry in directory {
            let name = entry.name.clone();
            let info = entry.locate(start, alignment, data.len())?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(GgufError::Tensor { name, problem: "is there twice".into() });
            }
        }
        Ok(Self { version, metadata, tensors, data })
    }

    /// All elements of a tensor as `f32`, rows one after the other.
    ///
    /// # Errors
    /// [`GgufError::Tensor`] when there is none of that name.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, GgufError> {
        self.read(name, |kind, bytes| kind.dequantise(bytes))
    }

    /// What `take` makes of a tensor's blocks, rows one after the other.
    ///
    /// # Errors
    /// [`GgufError::Tensor`] when there is none of that name.
    pub fn read<T>(&self, name: &str, take: impl FnOnce(TensorType, &[u8]) -> T) -> Result<T, GgufError> {
        let info = self.tensors.get(name).ok_or_else(|| GgufError::Tensor {
            name: name.to_owned(),
            problem: format!("not in the file, which has {} tensors", self.tensors.len()),
        })?;
        let bytes = &self.data[info.bytes.clone()];
        let taken = take(info.kind, bytes);
        if let Bytes::Mapped(map) = &self.data {
            forget(map, bytes);
        }
        Ok(taken)
    }

    /// A metadata integer, where present.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it has another type or is negative.
    pub fn uint(&self, key: &str) -> Result<Option<usize>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Int(n)) => match usize::try_from(*n) {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(wrong(key, format!("{n} is out of range"))),
            },
            Some(other) => Err(wrong(key, format!("expected an integer, found {}", kind_name(other)))),
        }
    }

    /// A metadata float (or integer), where present.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it has another type.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Float(x)) => Ok(Some(*x)),
            Some(MetaValue::Int(n)) => Ok(Some(*n as f64)),
            Some(other) => Err(wrong(key, format!("expected a number, found {}", kind_name(other)))),
        }
    }

    /// A metadata truth value, where present.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it has another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(wrong(key, format!("expected true or false, found {}", kind_name(other)))),
        }
    }

    /// A metadata text, where present.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it has another type.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Text(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, format!("expected text, found {}", kind_name(other)))),
        }
    }

    /// The elements of a metadata array, where present.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when it is no array or holds arrays.
    pub fn array(&self, key: &str) -> Result<Option<Vec<MetaValue>>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(MetaValue::Array { element, len, bytes }) => {
                if *element == ARRAY {
                    return Err(wrong(key, "an array of arrays is not read".into()));
                }
                if *len > MAX_ARRAY_ELEMENTS {
                    return Err(wrong(key, format!("{len} elements, at most {MAX_ARRAY_ELEMENTS} are read")));
                }
                let mut cursor = Cursor { bytes: &self.data[..bytes.end], at: bytes.start };
                (0..*len).map(|_| cursor.value(*element, key)).collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(wrong(key, format!("expected an array, found {}", kind_name(other)))),
        }
    }
}

fn wrong(key: &str, problem: String) -> GgufError {
    GgufError::Metadata { key: key.to_owned(), problem }
}

fn kind_name(value: &MetaValue) -> &'static str {
    match value {
        MetaValue::Int(_) => "an integer",
        MetaValue::Float(_) => "a float",
        MetaValue::Bool(_) => "a truth value",
        MetaValue::Text(_) => "text",
        MetaValue::Array { .. } => "an array",
    }
}

fn alignment(metadata: &BTreeMap<String, MetaValue>) -> Result<u64, GgufError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(MetaValue::Int(n)) => match u64::try_from(*n) {
            Ok(n) if n.is_power_of_two() && n <= 1 << 30 => Ok(n),
            _ => Err(wrong("general.alignment", format!("{n} is not a power of two up to 2^30"))),
        },
        Some(other) => Err(wrong("general.alignment", format!("expected an integer, found {}", kind_name(other)))),
    }
}

/// Type codes of metadata values that are named more than once.
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of fixed size.
fn fixed_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn corrupt(&self, what: impl Into<String>) -> GgufError {
        GgufError::Corrupt { at: self.at, what: what.into() }
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], GgufError> {
        let left = self.bytes.len() - self.at;
        if len > left {
            return Err(self.corrupt(format!("{what} takes {len} bytes, {left} are left")));
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let taken = self.take(N, what)?;
        Ok(std::array::from_fn(|i| taken[i]))
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.fixed(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.fixed(what)?))
    }

    /// A count of things of at least `each` bytes: more than the rest of the file can hold is a lie.
    fn count(&mut self, each: usize, what: &str) -> Result<usize, GgufError> {
        let n = self.u64(what)?;
        let left = self.bytes.len() - self.at;
        match usize::try_from(n) {
            Ok(n) if n <= left / each => Ok(n),
            _ => Err(self.corrupt(format!("{what} is {n}, more than the {left} bytes left can hold"))),
        }
    }

    fn text(&mut self, what: &str) -> Result<String, GgufError> {
        let len = self.count(1, what)?;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.corrupt(format!("{what} is not UTF-8"))),
        }
    }

    fn value(&mut self, kind: u32, what: &str) -> Result<MetaValue, GgufError> {
        Ok(match kind {
            0 => MetaValue::Int(u8::from_le_bytes(self.fixed(what)?).into()),
            1 => MetaValue::Int(i8::from_le_bytes(self.fixed(what)?).into()),
            2 => MetaValue::Int(u16::from_le_bytes(self.fixed(what)?).into()),
            3 => MetaValue::Int(i16::from_le_bytes(self.fixed(what)?).into()),
            4 => MetaValue::Int(self.u32(what)?.into()),
            5 => MetaValue::Int(i32::from_le_bytes(self.fixed(what)?).into()),
            6 => MetaValue::Float(f32::from_le_bytes(self.fixed(what)?).into()),
            7 => MetaValue::Bool(self.fixed::<1>(what)?[0] != 0),
            TEXT => MetaValue::Text(self.text(what)?),
            ARRAY => {
                let (element, len, start) = self.array_head(what)?;
                self.skip_elements(element, len, what, 1)?;
                MetaValue::Array { element, len, bytes: start..self.at }
            }
            10 => MetaValue::Int(self.u64(what)?.into()),
            11 => MetaValue::Int(i64::from_le_bytes(self.fixed(what)?).into()),
            12 => MetaValue::Float(f64::from_le_bytes(self.fixed(what)?)),
            other => return Err(self.corrupt(format!("{what} has the unknown type {other}"))),
        })
    }

    fn array_head(&mut self, what: &str) -> Result<(u32, usize, usize), GgufError> {
        let element = self.u32(what)?;
        let least = match element {
            TEXT => 8,
            ARRAY => 12,
            other => {
                fixed_size(other).ok_or_else(|| self.corrupt(format!("{what} is an array of unknown type {other}")))?
            }
        };
        let len = self.count(least, &format!("the length of {what}"))?;
        Ok((element, len, self.at))
    }

    fn skip_elements(&mut self, element: u32, len: usize, what: &str, depth: u32) -> Result<(), GgufError> {
        if let Some(size) = fixed_size(element) {
            // The count was checked against the bytes left, so the product cannot overflow.
            self.take(len * size, what)?;
            return Ok(());
        }
        if depth > MAX_ARRAY_DEPTH {
            return Err(self.corrupt(format!("{what} nests arrays more than {MAX_ARRAY_DEPTH} deep")));
        }
        for _ in 0..len {
            if element == TEXT {
                let bytes = self.count(1, what)?;
                self.take(bytes, what)?;
            } else {
                let (inner, inner_len, _) = self.array_head(what)?;
                self.skip_elements(inner, inner_len, what, depth + 1)?;
            }
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<TensorEntry, GgufError> {
        let name = self.text("a tensor's name")?;
        let what = format!("the entry of tensor `{name}`");
        let dimensions = self.u32(&what)?;
        if dimensions > MAX_DIMENSIONS {
            return Err(self.corrupt(format!("{what} has {dimensions} dimensions, at most {MAX_DIMENSIONS} are known")));
        }
        let mut shape = (0..dimensions).map(|_| self.u64(&what)).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let kind = self.u32(&what)?;
        let offset = self.u64(&what)?;
        Ok(TensorEntry { name, shape, kind, offset })
    }
}

struct TensorEntry {
    name: String,
    shape: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl TensorEntry {
    fn locate(self, start: u64, alignment: u64, file_len: usize) -> Result<TensorInfo, GgufError> {
        let wrong = |problem: String| GgufError::Tensor { name: self.name.clone(), problem };
        let kind = TensorType::from_code(self.kind).map_err(|e| wrong(format!("{e} is not supported")))?;
        let row = self.shape.last().copied().unwrap_or(1);
        if row % kind.block_len() as u64 != 0 {
            let block = kind.block_len();
            return Err(wrong(format!("rows of {row} elements are no multiple of {kind:?}'s block of {block}")));
        }
        if !self.offset.is_multiple_of(alignment) {
            return Err(wrong(format!("offset {} is not aligned to {alignment}", self.offset)));
        }
        let elements = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bytes = elements.and_then(|n| (n / kind.block_len() as u64).checked_mul(kind.block_bytes() as u64));
        let end = bytes.and_then(|n| n.checked_add(self.offset)?.checked_add(start));
        match (end, bytes.unwrap_or(0)) {
            (Some(end), 1..) if end <= file_len as u64 => {
                let begin = (start + self.offset) as usize;
                let shape = self.shape.iter().map(|d| *d as usize).collect();
                Ok(TensorInfo { shape, kind, bytes: begin..end as usize })
            }
            (Some(_), 0) => Err(wrong(format!("has no elements (shape {:?})", self.shape))),
            _ => Err(wrong(format!(
                "shape {:?} of {kind:?} at offset {} ends past the file's {file_len} bytes (hint: is the download complete?)",
                self.shape, self.offset
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::GgufWriter;
    use super::*;

    fn sample() -> GgufWriter {
        let mut file = GgufWriter::new();
        file.text("general.architecture", "llama");
        file.uint("answer", 42);
        file.float("eps", 1e-5);
        file.bool("yes", true);
        file.texts("words", &["a", "bé", ""]);
        file.ints("numbers", &[1, -2, 3]);
        file.f32_tensor("m", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        file.tensor("q", &[1, 32], 8, [&[0u8, 0x3c][..], &[7u8; 32]].concat());
        file
    }

    #[test]
    fn a_small_file_is_read() {
        for version in [2, 3] {
            let file = GgufFile::from_bytes(sample().bytes(version)).unwrap();
            assert_eq!(file.version, version);
            assert_eq!(file.uint("answer").unwrap(), Some(42));
            assert_eq!(file.text("general.architecture").unwrap(), Some("llama"));
            assert!((file.float("eps").unwrap().unwrap() - 1e-5).abs() < 1e-9);
            assert_eq!(file.bool("yes").unwrap(), Some(true));
            assert_eq!(file.uint("missing").unwrap(), None);
            let words = ["a", "bé", ""].map(|w| MetaValue::Text(w.into()));
            assert_eq!(file.array("words").unwrap().unwrap(), words);
            assert_eq!(file.array("numbers").unwrap().unwrap(), [1, -2, 3].map(MetaValue::Int));
            assert_eq!(file.tensors["m"].shape, [2, 3]);
            assert_eq!(file.read_f32("m").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            assert_eq!(file.read_f32("q").unwrap(), [7.0; 32]);
            let error = file.uint("words").unwrap_err().to_string();
            assert_eq!(error, "GGUF metadata `words`: expected an integer, found an array");
            let error = file.read_f32("x").unwrap_err().to_string();
            assert_eq!(error, "GGUF tensor `x`: not in the file, which has 2 tensors");
        }
    }

    #[test]
    fn a_file_cut_anywhere_gives_an_error() {
        let whole = sample().bytes(3);
        for len in 0..whole.len() {
            assert!(GgufFile::from_bytes(whole[..len].to_vec()).is_err(), "cut to {len} bytes it was accepted");
        }
    }

    #[test]
    fn no_flipped_byte_makes_it_panic() {
        let whole = sample().bytes(3);
        for at in 0..whole.len() {
            for value in [0x00, 0x01, 0x09, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let Ok(file) = GgufFile::from_bytes(bytes) else {
                    continue;
                };
                for name in file.tensors.keys() {
                    file.read_f32(name).unwrap();
                }
                for key in file.metadata.keys() {
                    // Any answer will do, as long as there is one.
                    let _ = (file.array(key), file.uint(key), file.text(key), file.float(key), file.bool(key));
                }
            }
        }
    }

    #[test]
    fn lies_are_named() {
        let error = |bytes: Vec<u8>| GgufFile::from_bytes(bytes).unwrap_err().to_string();
        assert!(error(b"PK\x03\x04rest".to_vec()).contains("expected the letters GGUF"));
        assert!(error(sample().bytes(1)).contains("its version is 1, supported are 2 and 3"));
        assert!(error(sample().bytes(3u32.swap_bytes())).contains("big-endian"));
        let mut huge = sample().bytes(3);
        huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(error(huge).contains("the number of tensors is 18446744073709551615, more than"));
        let mut odd = GgufWriter::new();
        odd.tensor("q", &[1, 33], 8, vec![0; 64]);
        assert!(error(odd.bytes(3)).contains("rows of 33 elements are no multiple of Q8_0's block of 32"));
        let mut far = GgufWriter::new();
        far.tensor("w", &[1 << 40, 1 << 40], 0, vec![]);
        assert!(error(far.bytes(3)).contains("ends past the file's"));
    }
}
