//! Writes a GGUF file of version 3: metadata, a directory of tensors, their data, one tensor in memory at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::{GgufError, TensorType};

/// Data and each tensor in it begin at a multiple of this.
const ALIGNMENT: u64 = 32;

/// A tensor to be written.
pub struct OutTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Outermost dimension first; a row is a whole number of blocks of `kind`.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub kind: TensorType,
    /// Its values, row-major.
    pub values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

impl OutTensor<'_> {
    fn bytes(&self) -> u64 {
        let elements: usize = self.shape.iter().product();
        (elements / self.kind.block_len() * self.kind.block_bytes()) as u64
    }
}

/// Metadata of a file, key by key.
#[derive(Default)]
pub struct GgufWriter {
    metadata: Vec<u8>,
    keys: u64,
}

impl GgufWriter {
    /// A whole number of 32 bits; larger ones are said to be the largest.
    pub fn uint(&mut self, key: &str, value: usize) {
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        self.entry(key, 4).extend(value.to_le_bytes());
    }

    /// A number of 32 bits.
    pub fn float(&mut self, key: &str, value: f64) {
        #[allow(clippy::cast_possible_truncation, reason = "readers expect this width")]
        self.entry(key, 6).extend((value as f32).to_le_bytes());
    }

    /// A truth value.
    pub fn truth(&mut self, key: &str, value: bool) {
        self.entry(key, 7).push(u8::from(value));
    }

    /// A text.
    pub fn text(&mut self, key: &str, value: &str) {
        push_text(self.entry(key, 8), value);
    }

    /// A list of texts.
    pub fn texts<S: AsRef<str>>(&mut self, key: &str, values: &[S]) {
        let out = self.list(key, 8, values.len());
        values.iter().for_each(|value| push_text(out, value.as_ref()));
    }

    /// A list of whole numbers.
    pub fn ints(&mut self, key: &str, values: &[i32]) {
        let out = self.list(key, 5, values.len());
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }

    /// A list of numbers.
    pub fn floats(&mut self, key: &str, values: &[f32]) {
        let out = self.list(key, 6, values.len());
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }

    /// Writes the file. Before each tensor `stop` is asked whether to leave it half done.
    ///
    /// # Errors
    /// Those of the disk; a value that the tensor's type cannot hold; and [`GgufError::Interrupted`].
    pub fn write(&self, path: &Path, tensors: &[OutTensor<'_>], stop: &dyn Fn() -> bool) -> Result<(), GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let mut head = b"GGUF".to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend(self.keys.to_le_bytes());
        head.extend(&self.metadata);
        let mut offset = 0u64;
        for tensor in tensors {
            push_text(&mut head, &tensor.name);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|d| head.extend((*d as u64).to_le_bytes()));
            head.extend(tensor.kind.code().to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset = (offset + tensor.bytes()).next_multiple_of(ALIGNMENT);
        }
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?);
        file.write_all(&head).map_err(io)?;
        let mut filler = (head.len() as u64).next_multiple_of(ALIGNMENT) - head.len() as u64;
        for tensor in tensors {
            if stop() {
                return Err(GgufError::Interrupted);
            }
            let bytes = tensor.kind.quantise(&(tensor.values)());
            let bytes = bytes.map_err(|problem| GgufError::Tensor { name: tensor.name.clone(), problem })?;
            file.write_all(&vec![0; filler as usize]).and_then(|()| file.write_all(&bytes)).map_err(io)?;
            filler = (bytes.len() as u64).next_multiple_of(ALIGNMENT) - bytes.len() as u64;
        }
        // Readers of other hands want the last tensor filled up as well.
        file.write_all(&vec![0; filler as usize]).and_then(|()| file.flush()).map_err(io)
    }

    fn entry(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.keys += 1;
        push_text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        &mut self.metadata
    }

    fn list(&mut self, key: &str, element: u32, length: usize) -> &mut Vec<u8> {
        let out = self.entry(key, 9);
        out.extend(element.to_le_bytes());
        out.extend((length as u64).to_le_bytes());
        out
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
