//! Writing tensors as safetensors, and whole models as folders.
//!
//! Bytes depend on the tensors only: names are sorted and nothing of the time or the machine goes in. Nothing is
//! synced here; who needs durability syncs file and folder.

mod gguf;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::lora;
use crate::model::parameter::host_values;
use crate::model::{Decoder, Parameter};
use crate::weights::WeightsError;

pub use self::gguf::{GgufStorage, check_gguf, write_gguf};

/// How floats are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Four bytes each, exact.
    F32,
    /// Two bytes each, rounded to nearest even.
    Bf16,
}

impl Storage {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    fn dtype(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }

    fn config_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// A tensor to be written; its values are fetched one tensor at a time.
pub struct Stored<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

impl<'a> Stored<'a> {
    /// A parameter under its own name.
    pub fn of(parameter: &'a Parameter) -> Self {
        Self { name: parameter.name.clone(), shape: parameter.shape.clone(), values: Box::new(|| parameter.to_vec()) }
    }
}

/// Writes one safetensors file.
pub fn write_safetensors(path: &Path, tensors: Vec<Stored<'_>>, storage: Storage) -> Result<(), WeightsError> {
    write_safetensors_unless(path, tensors, storage, &|| false)
}

/// As [`write_safetensors`], asking before each tensor whether to stop; what is written by then stays.
fn write_safetensors_unless(
    path: &Path,
    tensors: Vec<Stored<'_>>,
    storage: Storage,
    stop: &dyn Fn() -> bool,
) -> Result<(), WeightsError> {
    let raw = |tensor| Raw::stored(tensor, storage);
    write_raw_unless(path, tensors.into_iter().map(raw).collect(), stop)
}

/// A tensor of any type to be written; its bytes are made one tensor at a time.
pub(crate) struct Raw<'a> {
    name: String,
    dtype: &'static str,
    element_bytes: usize,
    shape: Vec<usize>,
    write: WriteTo<'a>,
}

type WriteTo<'a> = Box<dyn Fn(&mut dyn Write) -> std::io::Result<()> + 'a>;

impl<'a> Raw<'a> {
    fn stored(tensor: Stored<'a>, storage: Storage) -> Self {
        let Stored { name, shape, values } = tensor;
        Self {
            name,
            dtype: storage.dtype(),
            element_bytes: storage.bytes(),
            shape,
            write: Box::new(move |file| write_values(file, values(), storage)),
        }
    }

    /// Four bytes each, exact.
    pub(crate) fn floats(name: String, shape: Vec<usize>, values: impl Fn() -> Vec<f32> + 'a) -> Self {
        Self::stored(Stored { name, shape, values: Box::new(values) }, Storage::F32)
    }

    /// Bytes.
    pub(crate) fn bytes(name: String, shape: Vec<usize>, bytes: &'a [u8]) -> Self {
        Self { name, dtype: "U8", element_bytes: 1, shape, write: Box::new(move |file| file.write_all(bytes)) }
    }
}

/// Writes one safetensors file of tensors of any type.
pub(crate) fn write_raw_safetensors(path: &Path, tensors: Vec<Raw<'_>>) -> Result<(), WeightsError> {
    write_raw_unless(path, tensors, &|| false)
}

fn write_raw_unless(path: &Path, mut tensors: Vec<Raw<'_>>, stop: &dyn Fn() -> bool) -> Result<(), WeightsError> {
    // The container wants each tensor where its type may lie in memory: the widest first.
    tensors.sort_by(|a, b| b.element_bytes.cmp(&a.element_bytes).then_with(|| a.name.cmp(&b.name)));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor in &tensors {
        let end = offset + tensor.shape.iter().product::<usize>() * tensor.element_bytes;
        header.insert(
            tensor.name.clone(),
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    // Readers map the file; data aligned to 8 bytes can be used in place.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let io = |source| WeightsError::Io { path: path.to_path_buf(), source };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(header.as_bytes()).map_err(io)?;
    for tensor in &tensors {
        if stop() {
            return Err(WeightsError::Interrupted);
        }
        (tensor.write)(&mut file).map_err(io)?;
    }
    file.flush().map_err(io)
}

fn write_values(file: &mut dyn Write, values: Vec<f32>, storage: Storage) -> std::io::Result<()> {
    for value in values {
        match storage {
            Storage::F32 => file.write_all(&value.to_le_bytes())?,
            Storage::Bf16 => file.write_all(&half::bf16::from_f32(value).to_le_bytes())?,
        }
    }
    Ok(())
}

/// Bytes of tensors in a file of weights before another one is begun: 5 GB, which the Hub and readers of every age take.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What a model is written as, with its adapters in its weights. A layer is merged, and unpacked from whatever it is held
/// in, when its turn comes, so that only one is there in f32.
pub(crate) fn tensors(model: &Decoder) -> impl Iterator<Item = Stored<'_>> {
    let weights = model.linears().map(|linear| Stored {
        name: linear.weight.name().to_owned(),
        shape: linear.weight.dims().to_vec(),
        values: Box::new(move || host_values(linear.merged())),
    });
    let of_linears: BTreeSet<&str> = model.linears().map(|linear| linear.weight.name()).collect();
    let others =
        model.parameters().filter(move |p| !lora::is_adapter(&p.name) && !of_linears.contains(p.name.as_str()));
    weights.chain(others.map(Stored::of))
}

/// Writes the weights, adapters in them, and `config.json` into `folder`, and says which files those are:
/// `model.safetensors`, or shards of [`MAX_SHARD_BYTES`] with their index. Between tensors `stop` is
/// asked whether to leave it half done.
pub fn write_model(
    model: &Decoder,
    folder: &Path,
    storage: Storage,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<String>, WeightsError> {
    let mut files = write_shards(folder, tensors(model).collect(), storage, MAX_SHARD_BYTES, stop)?;
    let config = model.config.to_json(storage.config_name());
    write_json(&folder.join(CONFIG), &config)?;
    files.push(CONFIG.to_owned());
    Ok(files)
}

const CONFIG: &str = "config.json";

/// Writes weights as `model.safetensors` where they have at most `max_shard_bytes`; else as
/// `model-00001-of-0000N.safetensors` and so on, one after another, each of at most so many bytes of tensors unless one
/// tensor alone has more, with `model.safetensors.index.json`. Tensors are in the order of their names.
///
/// # Errors
/// Those of the disk, and that it was told to stop.
pub fn write_shards(
    folder: &Path,
    mut tensors: Vec<Stored<'_>>,
    storage: Storage,
    max_shard_bytes: u64,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<String>, WeightsError> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let size = |tensor: &Stored<'_>| (tensor.shape.iter().product::<usize>() * storage.bytes()) as u64;
    let (mut shards, mut filled): (Vec<Vec<Stored<'_>>>, u64) = (Vec::new(), 0);
    let (mut total_size, mut total_parameters) = (0, 0);
    for tensor in tensors {
        let bytes = size(&tensor);
        total_size += bytes;
        total_parameters += tensor.shape.iter().product::<usize>();
        match shards.last_mut().filter(|_| filled + bytes <= max_shard_bytes) {
            Some(shard) => {
                shard.push(tensor);
                filled += bytes;
            }
            None => {
                shards.push(vec![tensor]);
                filled = bytes;
            }
        }
    }
    let count = shards.len();
    if count <= 1 {
        let name = "model.safetensors";
        write_safetensors_unless(&folder.join(name), shards.pop().unwrap_or_default(), storage, stop)?;
        return Ok(vec![name.to_owned()]);
    }
    let mut files = Vec::with_capacity(count + 1);
    let mut weight_map = Map::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), json!(name))));
        write_safetensors_unless(&folder.join(&name), shard, storage, stop)?;
        files.push(name);
    }
    let name = "model.safetensors.index.json";
    let metadata = json!({ "total_parameters": total_parameters, "total_size": total_size });
    write_json(&folder.join(name), &json!({ "metadata": metadata, "weight_map": weight_map }))?;
    files.push(name.to_owned());
    Ok(files)
}

/// Writes a JSON file, indented, with a newline at the end.
pub fn write_json(path: &Path, value: &Value) -> Result<(), WeightsError> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|source| WeightsError::Io { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{SafetensorsSource, TensorSource};

    fn stored(name: &str, count: usize) -> Stored<'_> {
        let values = move || (0..count).map(|i| i as f32 + name.len() as f32 / 8.0).collect();
        Stored { name: name.to_owned(), shape: vec![count], values: Box::new(values) }
    }

    fn tensors<'a>() -> Vec<Stored<'a>> {
        vec![stored("e", 3), stored("b", 2), stored("aa", 4), stored("dddd", 9), stored("c", 1)]
    }

    #[test]
    fn shards_hold_what_one_file_holds_and_no_more_than_they_may() {
        let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |folder: &Path, most| write_shards(folder, tensors(), Storage::F32, most, &|| false).unwrap();
        // In 19 floats of 4 bytes.
        assert_eq!(write(one.path(), 76), ["model.safetensors"]);
        let files = write(many.path(), 24);
        let shard = |n: usize| format!("model-{n:05}-of-00004.safetensors");
        assert_eq!(files, [shard(1), shard(2), shard(3), shard(4), "model.safetensors.index.json".to_owned()]);
        let names = |n: usize| SafetensorsSource::open_file(&many.path().join(shard(n))).unwrap().names();
        // The fourth is larger than any shard may be: it has one of its own.
        assert_eq!([names(1), names(2), names(3), names(4)], [vec!["aa", "b"], vec!["c"], vec!["dddd"], vec!["e"]]);

        let (one, many_read) = (open(one.path()), open(many.path()));
        assert_eq!(one.names(), many_read.names());
        for name in one.names() {
            assert_eq!(one.shape(&name), many_read.shape(&name));
            assert_eq!(one.read_f32(&name).unwrap(), many_read.read_f32(&name).unwrap(), "{name}");
        }
        let index: Value =
            serde_json::from_slice(&std::fs::read(many.path().join("model.safetensors.index.json")).unwrap()).unwrap();
        assert_eq!(index["metadata"], json!({ "total_parameters": 19, "total_size": 76 }));
        assert!(matches!(
            write_shards(many.path(), tensors(), Storage::Bf16, 8, &|| true),
            Err(WeightsError::Interrupted)
        ));
    }

    fn open(folder: &Path) -> SafetensorsSource {
        SafetensorsSource::open_folder(folder).unwrap()
    }
}
