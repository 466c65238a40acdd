//! Writing tensors as safetensors, and whole models as folders.
//!
//! Bytes depend on the tensors only: names are sorted and nothing of the time or the machine goes in. Nothing is
//! synced here; who needs durability syncs file and folder.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::lora;
use crate::model::parameter::host_values;
use crate::model::{Decoder, Parameter};
use crate::weights::WeightsError;

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

/// Writes `model.safetensors` and `config.json` into `folder`, with its adapters in its weights. A layer is merged, and
/// unpacked from whatever it is held in, when its turn comes, so that only one is there in f32. Between tensors `stop` is
/// asked whether to leave it half done.
pub fn write_model(
    model: &Decoder,
    folder: &Path,
    storage: Storage,
    stop: &dyn Fn() -> bool,
) -> Result<(), WeightsError> {
    let weights = model.linears().map(|linear| Stored {
        name: linear.weight.name().to_owned(),
        shape: linear.weight.dims().to_vec(),
        values: Box::new(move || host_values(linear.merged())),
    });
    let of_linears: BTreeSet<&str> = model.linears().map(|linear| linear.weight.name()).collect();
    let others = model.parameters().filter(|p| !lora::is_adapter(&p.name) && !of_linears.contains(p.name.as_str()));
    let tensors = weights.chain(others.map(Stored::of)).collect();
    write_safetensors_unless(&folder.join("model.safetensors"), tensors, storage, stop)?;
    let config = model.config.to_json(storage.config_name());
    write_json(&folder.join("config.json"), &config)
}

/// Writes a JSON file, indented, with a newline at the end.
pub fn write_json(path: &Path, value: &Value) -> Result<(), WeightsError> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|source| WeightsError::Io { path: path.to_path_buf(), source })
}
