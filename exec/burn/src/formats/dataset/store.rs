//! Examples in tokens in a file, so that a data set may be larger than memory: what is held is a buffer to write and what
//! was asked for.
//!
//! ```text
//! tokens.bin   a token in four bytes, little-endian: its id, the highest bit set where it is to be learnt
//! ends.bin     an example in eight bytes: how many tokens there are up to its end
//! ```
//! The files are scratch: they are written anew by each attempt, and the same rows give the same bytes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{DatasetError, IGNORED, TokenizedExample};

const TOKENS: &str = "tokens.bin";
const ENDS: &str = "ends.bin";
/// Set in a token that is to be learnt; ids are below it.
const LEARNT: u32 = 1 << 31;
/// What is held of each file while it is written.
const BUFFER_BYTES: usize = 1 << 18;
/// Ends read in one go.
const ENDS_AT_ONCE: usize = 1 << 13;

/// Writes examples one after another.
pub struct TokenWriter {
    folder: PathBuf,
    tokens: BufWriter<File>,
    ends: BufWriter<File>,
    examples: usize,
    end: u64,
}

impl TokenWriter {
    /// A writer of a new file in `folder`, which is made if need be. What an earlier one left there is overwritten.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn create(folder: &Path) -> Result<Self, DatasetError> {
        let io = |source| DatasetError::Io { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(io)?;
        let open = |name: &str| {
            let path = folder.join(name);
            let file = File::options().create(true).truncate(true).read(true).write(true).open(&path);
            let file = file.map_err(|source| DatasetError::Io { path, source })?;
            Ok(BufWriter::with_capacity(BUFFER_BYTES, file))
        };
        Ok(Self { folder: folder.to_owned(), tokens: open(TOKENS)?, ends: open(ENDS)?, examples: 0, end: 0 })
    }

    /// Writes an example.
    ///
    /// # Errors
    /// Those of the disk; a token id of 2³¹ or more, and the four-billionth example.
    pub fn push(&mut self, example: &TokenizedExample) -> Result<(), DatasetError> {
        let limit = |what: String| DatasetError::Unfit(format!("{}: {what}", self.folder.display()));
        if self.examples >= u32::MAX as usize || example.len() >= u32::MAX as usize {
            return Err(limit("more examples, or tokens in one of them, than 32 bits count".to_owned()));
        }
        for (id, label) in example.input_ids.iter().zip(&example.labels) {
            if *id >= LEARNT {
                return Err(limit(format!("token id {id} is beyond any vocabulary")));
            }
            let token = if *label == IGNORED { *id } else { id | LEARNT };
            self.tokens.write_all(&token.to_le_bytes()).map_err(|e| self.io(TOKENS, e))?;
        }
        self.end += example.len() as u64;
        self.ends.write_all(&self.end.to_le_bytes()).map_err(|e| self.io(ENDS, e))?;
        self.examples += 1;
        Ok(())
    }

    /// The whole file, to be read.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn finish(self) -> Result<TokenFile, DatasetError> {
        let Self { folder, tokens, ends, examples, end } = self;
        let closed = |name: &str, writer: BufWriter<File>| {
            let io = |source| DatasetError::Io { path: folder.join(name), source };
            writer.into_inner().map_err(|e| io(e.into_error()))
        };
        let (tokens, ends) = (closed(TOKENS, tokens)?, closed(ENDS, ends)?);
        Ok(TokenFile { folder, tokens, ends, examples, tokens_in_all: end })
    }

    fn io(&self, name: &str, source: std::io::Error) -> DatasetError {
        DatasetError::Io { path: self.folder.join(name), source }
    }
}

/// Examples in a file, read by their numbers.
#[derive(Debug)]
pub struct TokenFile {
    folder: PathBuf,
    tokens: File,
    ends: File,
    examples: usize,
    tokens_in_all: u64,
}

impl TokenFile {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.examples
    }

    /// Whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.examples == 0
    }

    /// Tokens of all examples.
    pub fn tokens(&self) -> u64 {
        self.tokens_in_all
    }

    /// An example, or the part of it between two tokens.
    ///
    /// # Errors
    /// Those of the disk; a number or a part that is not there.
    pub fn read(&self, example: usize, part: Option<Range<usize>>) -> Result<TokenizedExample, DatasetError> {
        let whole = self.bounds(example)?;
        let length = (whole.end - whole.start) as usize;
        let part = part.unwrap_or(0..length);
        if part.start > part.end || part.end > length {
            return Err(self.absent(format!("tokens {part:?} of example {example}, which has {length}")));
        }
        let mut bytes = vec![0; 4 * part.len()];
        let at = 4 * (whole.start + part.start as u64);
        self.tokens.read_exact_at(&mut bytes, at).map_err(|e| self.io(TOKENS, e))?;
        let mut read = TokenizedExample::default();
        for token in bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)) {
            let id = token & !LEARNT;
            read.input_ids.push(id);
            read.labels.push(if token == id { IGNORED } else { i64::from(id) });
        }
        Ok(read)
    }

    /// How many tokens each example has: four bytes an example.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn lengths(&self) -> Result<Vec<u32>, DatasetError> {
        let mut lengths = Vec::with_capacity(self.examples);
        let mut last = 0;
        for from in (0..self.examples).step_by(ENDS_AT_ONCE) {
            let count = ENDS_AT_ONCE.min(self.examples - from);
            for end in self.ends(from, count)? {
                // Bounded when it was written.
                lengths.push((end - last) as u32);
                last = end;
            }
        }
        Ok(lengths)
    }

    /// The tokens of an example, by their numbers among all.
    fn bounds(&self, example: usize) -> Result<Range<u64>, DatasetError> {
        if example >= self.examples {
            return Err(self.absent(format!("example {example} of {}", self.examples)));
        }
        match example.checked_sub(1) {
            None => Ok(0..self.ends(0, 1)?[0]),
            Some(before) => {
                let ends = self.ends(before, 2)?;
                Ok(ends[0]..ends[1])
            }
        }
    }

    fn ends(&self, from: usize, count: usize) -> Result<Vec<u64>, DatasetError> {
        let mut bytes = vec![0; 8 * count];
        self.ends.read_exact_at(&mut bytes, 8 * from as u64).map_err(|e| self.io(ENDS, e))?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect())
    }

    fn absent(&self, what: String) -> DatasetError {
        DatasetError::Format { path: self.folder.clone(), problem: format!("{what} was asked for") }
    }

    fn io(&self, name: &str, source: std::io::Error) -> DatasetError {
        DatasetError::Io { path: self.folder.join(name), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_whole_and_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let examples = [
            TokenizedExample { input_ids: vec![5, 6, 7], labels: vec![IGNORED, 6, 7] },
            TokenizedExample::default(),
            TokenizedExample { input_ids: vec![LEARNT - 1], labels: vec![i64::from(LEARNT - 1)] },
        ];
        let mut writer = TokenWriter::create(&folder.path().join("deep/down")).unwrap();
        examples.iter().for_each(|example| writer.push(example).unwrap());
        let file = writer.finish().unwrap();
        assert_eq!((file.len(), file.tokens(), file.lengths().unwrap()), (3, 4, vec![3, 0, 1]));
        for (index, example) in examples.iter().enumerate() {
            assert_eq!(&file.read(index, None).unwrap(), example);
        }
        assert_eq!(file.read(0, Some(1..3)).unwrap().labels, [6, 7]);
        assert!(file.read(3, None).unwrap_err().to_string().ends_with("example 3 of 3 was asked for"));
        assert!(file.read(0, Some(1..4)).unwrap_err().to_string().contains("example 0, which has 3"));
        let beyond = TokenizedExample { input_ids: vec![LEARNT], labels: vec![IGNORED] };
        assert!(TokenWriter::create(folder.path()).unwrap().push(&beyond).is_err());
    }
}
