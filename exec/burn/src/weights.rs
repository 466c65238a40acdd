//! Named tensors from files, whatever the container: the model loader sees only [`TensorSource`].
//!
//! Here is the container of Hugging Face folders: one `model.safetensors`, or shards with an index.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};

use crate::formats::gguf::TensorType;

/// Why weights could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The container itself is damaged or of another kind.
    #[error("{}: {detail}", path.display())]
    Container {
        /// The file concerned.
        path: PathBuf,
        /// What was found and what was expected.
        detail: String,
    },
    /// Neither layout of a weights folder was found.
    #[error("{}: no model.safetensors and no model.safetensors.index.json in this folder", .0.display())]
    NoWeights(PathBuf),
    /// A tensor was asked for that the source lacks.
    #[error("no tensor named {0}")]
    Missing(String),
    /// A tensor has a storage type this reader does not know.
    #[error("tensor {name} is stored as {dtype}; known are F32, F16, BF16")]
    Dtype {
        /// The tensor.
        name: String,
        /// The type found.
        dtype: String,
    },
    /// The caller did not want to go on.
    #[error("stopped as asked")]
    Interrupted,
    /// Tensors do not fit the model: every one of them is listed.
    #[error("the weights do not fit the model:\n  {}", .0.join("\n  "))]
    Mismatch(Vec<String>),
}

/// Tensors by name, read one at a time as f32.
///
/// Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`); linear weights are `[out, in]`, row-major.
pub trait TensorSource {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;
    /// The shape of one tensor, or `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// The values of one tensor, row-major, converted exactly to f32.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError>;
    /// How one tensor's values are stored, where [`Self::read_stored`] gives them so; `None` = only as f32.
    fn stored(&self, _name: &str) -> Option<TensorType> {
        None
    }
    /// The values of one tensor as they are stored, row-major: whole blocks of what [`Self::stored`] says, little-endian.
    ///
    /// # Errors
    /// As [`Self::read_f32`].
    fn read_stored(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        Err(WeightsError::Missing(name.to_owned()))
    }
}

/// The safetensors files of one folder (or one file), memory-mapped.
pub struct SafetensorsSource {
    shards: Vec<Shard>,
    shard_of: BTreeMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
    header_len: usize,
    metadata: Metadata,
}

/// The part of `model.safetensors.index.json` that is needed to find tensors.
#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsSource {
    /// Opens `model.safetensors` in `folder`, or the shards that `model.safetensors.index.json` lists.
    pub fn open_folder(folder: &Path) -> Result<Self, WeightsError> {
        let single = folder.join("model.safetensors");
        if single.is_file() {
            return Self::open_file(&single);
        }
        let index_path = folder.join("model.safetensors.index.json");
        if !index_path.is_file() {
            return Err(WeightsError::NoWeights(folder.to_path_buf()));
        }
        let text =
            std::fs::read(&index_path).map_err(|source| WeightsError::Io { path: index_path.clone(), source })?;
        let container = |detail: String| WeightsError::Container { path: index_path.clone(), detail };
        let index: ShardIndex = serde_json::from_slice(&text).map_err(|e| container(e.to_string()))?;
        let mut files: Vec<&String> = index.weight_map.values().collect();
        files.sort();
        files.dedup();
        let mut shards = Vec::with_capacity(files.len());
        for file in &files {
            if file.contains(['/', '\\']) || file.as_str() == ".." {
                return Err(container(format!("shard name {file:?} must be a plain file name")));
            }
            shards.push(Shard::open(&folder.join(file))?);
        }
        let mut shard_of = BTreeMap::new();
        for (name, file) in &index.weight_map {
            let position = files.binary_search(&file).map_err(|_| WeightsError::Missing(name.clone()))?;
            if shards[position].metadata.info(name).is_none() {
                return Err(container(format!("{name} should be in {file}, which lacks it")));
            }
            shard_of.insert(name.clone(), position);
        }
        Ok(Self { shards, shard_of })
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self, WeightsError> {
        let shard = Shard::open(path)?;
        let shard_of = shard.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { shards: vec![shard], shard_of })
    }

    /// The values of a tensor of bytes, row-major.
    pub fn read_u8(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        match self.tensor(name)? {
            (Dtype::U8, bytes) => Ok(bytes.to_vec()),
            (other, _) => Err(WeightsError::Dtype { name: name.to_owned(), dtype: format!("{other:?}") }),
        }
    }

    /// A tensor's type and bytes.
    fn tensor(&self, name: &str) -> Result<(Dtype, &[u8]), WeightsError> {
        let missing = || WeightsError::Missing(name.to_owned());
        let shard = &self.shards[*self.shard_of.get(name).ok_or_else(missing)?];
        let info = shard.metadata.info(name).ok_or_else(missing)?;
        // The header is preceded by its own length in 8 bytes.
        let data_start = 8 + shard.header_len;
        let (from, to) = info.data_offsets;
        let bytes = shard.map.get(data_start + from..data_start + to).ok_or_else(|| WeightsError::Container {
            path: shard.path.clone(),
            detail: format!("tensor {name} ends past the end of the file"),
        })?;
        Ok((info.dtype, bytes))
    }

    /// Forgets pages of one of the maps.
    fn forget(&self, bytes: &[u8]) {
        if let Some(shard) = self.shards.iter().find(|shard| shard.map.as_ptr_range().contains(&bytes.as_ptr())) {
            forget(&shard.map, bytes);
        }
    }
}

/// Takes pages that were read out of this process's memory: a tensor is read once, and a model that is packed while it is
/// loaded would otherwise be there a second time. `bytes` are of the map, which is of a file and only read.
pub(crate) fn forget(map: &Mmap, bytes: &[u8]) {
    let offset = bytes.as_ptr() as usize - map.as_ptr() as usize;
    // SAFETY: the map is read-only and of a file, so a page that is touched again is read from it anew.
    #[cfg(unix)]
    #[allow(unsafe_code)]
    let forgotten = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len()) };
    // Where the system will not, memory is what it was.
    #[cfg(unix)]
    forgotten.ok();
}

impl Shard {
    fn open(path: &Path) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only; a file that another process truncates meanwhile is outside what any
        // reader of memory-mapped weights can guard against, and models are not written in place.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(|e| WeightsError::Container {
            path: path.to_path_buf(),
            detail: format!("not a whole safetensors file: {e}"),
        })?;
        Ok(Self { path: path.to_path_buf(), map, header_len, metadata })
    }
}

impl TensorSource for SafetensorsSource {
    fn names(&self) -> Vec<String> {
        self.shard_of.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let shard = &self.shards[*self.shard_of.get(name)?];
        shard.metadata.info(name).map(|info| info.shape.clone())
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let (dtype, bytes) = self.tensor(name)?;
        let values = match dtype {
            Dtype::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Ok(bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::BF16 => {
                Ok(bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect())
            }
            other => Err(WeightsError::Dtype { name: name.to_owned(), dtype: format!("{other:?}") }),
        };
        self.forget(bytes);
        values
    }

    fn stored(&self, name: &str) -> Option<TensorType> {
        let shard = &self.shards[*self.shard_of.get(name)?];
        match shard.metadata.info(name)?.dtype {
            Dtype::F32 => Some(TensorType::F32),
            Dtype::F16 => Some(TensorType::F16),
            Dtype::BF16 => Some(TensorType::BF16),
            _ => None,
        }
    }

    fn read_stored(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        let (_, bytes) = self.tensor(name)?;
        let stored = bytes.to_vec();
        self.forget(bytes);
        Ok(stored)
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    /// A file of one tensor, `w`.
    fn file(dtype: Dtype, bytes: &[u8], count: usize) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let view = TensorView::new(dtype, vec![count], bytes).unwrap();
        std::fs::write(&path, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
        (folder, path)
    }

    #[test]
    fn halves_are_read_exactly() {
        // Each with its bits: one, a third, the largest, the smallest normal and subnormal, minus zero, infinity.
        let f16 = [
            (0x3c00_u16, 1.0_f32),
            (0x3555, 0.333_251_95),
            (0x7bff, 65504.0),
            (0x0400, 2.0_f32.powi(-14)),
            (0x0001, 2.0_f32.powi(-24)),
            (0x8000, -0.0),
            (0xfc00, f32::NEG_INFINITY),
        ];
        let bf16 = [
            (0x3f80_u16, 1.0_f32),
            (0x3eab, 0.333_984_38),
            (0x7f7f, 3.389_531_4e38),
            (0x0080, 2.0_f32.powi(-126)),
            (0x0001, 2.0_f32.powi(-133)),
            (0x8000, -0.0),
            (0xff80, f32::NEG_INFINITY),
        ];
        for (dtype, pairs) in [(Dtype::F16, f16), (Dtype::BF16, bf16)] {
            let bytes: Vec<u8> = pairs.iter().flat_map(|(bits, _)| bits.to_le_bytes()).collect();
            let (_folder, path) = file(dtype, &bytes, pairs.len());
            let read = SafetensorsSource::open_file(&path).unwrap().read_f32("w").unwrap();
            let bits = |x: f32| x.to_bits();
            assert_eq!(read.into_iter().map(bits).collect::<Vec<_>>(), pairs.map(|(_, x)| bits(x)), "{dtype:?}");
        }
    }

    #[test]
    fn other_types_are_named() {
        let (_folder, path) = file(Dtype::I64, &[0; 16], 2);
        let error = SafetensorsSource::open_file(&path).unwrap().read_f32("w").unwrap_err();
        assert_eq!(error.to_string(), "tensor w is stored as I64; known are F32, F16, BF16");
    }
}
