//! The model a task starts from: a folder in Hugging Face's layout, or a GGUF file.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use mloc_burn::{
    device::DeviceChoice as BurnDevice,
    formats::{
        gguf::GgufModel,
        layout::{Layout, LayoutError},
        tokenizer::TextTokenizer,
    },
    model::{Decoder, DecoderConfig, Held, Parameters},
    weights::{SafetensorsSource, TensorSource, WeightsError},
};
use mloc_exec::{DeviceChoice, ModuleError, RunContext};

use crate::{fatal, unless_stopping};

/// Weights and tokenizer.
pub struct BaseModel {
    /// The decoder, with nothing trainable yet.
    pub model: Decoder,
    /// Its tokenizer and chat template.
    pub tokenizer: TextTokenizer,
}

impl BaseModel {
    /// Refuses a model that has a score head in place of the vocabulary's.
    ///
    /// # Errors
    /// [`ModuleError::Fatal`]
    pub fn must_be_a_language_model(&self) -> Result<(), ModuleError> {
        match self.model.score {
            None => Ok(()),
            Some(_) => Err(ModuleError::Fatal(format!(
                "model.source: config.json: architectures: {} gives scores and no text: start from a …ForCausalLM",
                self.model.config.architecture
            ))),
        }
    }
}

/// What a task computes on.
pub struct Devices {
    /// The one that most is done on.
    pub first: Device,
    /// Those that take a part of each step.
    pub others: Vec<Device>,
}

impl Devices {
    /// How many.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// A model of the first device on each of the others, for [`session::run`](crate::finetune::session::run).
    pub fn replicas<M: Parameters>(&self, model: &M) -> Vec<M> {
        self.others.iter().map(|device| model.on_device(device)).collect()
    }
}

/// Opens all that was granted.
///
/// # Errors
/// When it is simulated, not in this build or not there: a task that was granted a GPU never computes on the CPU.
pub fn open_devices(ctx: &RunContext) -> Result<Devices, ModuleError> {
    let (count, of): (usize, fn(usize) -> BurnDevice) = match ctx.device() {
        DeviceChoice::Cpu { count } => (count, |_| BurnDevice::Cpu),
        DeviceChoice::Cuda { count } => (count, BurnDevice::Cuda),
        DeviceChoice::Simulated { kind } => {
            return Err(ModuleError::Fatal(format!(
                "{kind} exists in a node's configuration only, and {} computes for real: ask for a real GPU or none",
                ctx.run().spec.task_type
            )));
        }
    };
    let first = of(0).open().map_err(fatal)?;
    let others = (1..count).map(|index| of(index).open()).collect::<Result<_, _>>().map_err(fatal)?;
    Ok(Devices { first, others })
}

/// Opens the device that was granted to a task that computes on one.
///
/// # Errors
/// As [`open_devices`], and where several were granted: what is not used is not held.
pub fn open_device(ctx: &RunContext) -> Result<Device, ModuleError> {
    let devices = open_devices(ctx)?;
    match devices.count() {
        1 => Ok(devices.first),
        count => Err(ModuleError::Fatal(format!(
            "resources.hardware.gpu.count: {count}: {} computes on one GPU; ask for 1",
            ctx.run().spec.task_type
        ))),
    }
}

/// The config of a model, whose weights stay where they are.
///
/// # Errors
/// What is no model, and an architecture that is none of ours.
pub fn config_of(path: &Path) -> Result<DecoderConfig, ModuleError> {
    match gguf_of(path)? {
        Some(file) => {
            let source = GgufModel::open(&file).map_err(fatal)?;
            DecoderConfig::from_json(source.config().to_hf_config()).map_err(fatal)
        }
        None => DecoderConfig::from_folder(path).map_err(fatal),
    }
}

/// Loads what was pulled, its linear weights held as said.
///
/// # Errors
/// Missing files, an unknown architecture, mis-shaped tensors: all of it the task's own error. And that it was asked to
/// stop.
pub fn load_held(ctx: &RunContext, path: &Path, held: Held, device: &Device) -> Result<BaseModel, ModuleError> {
    let weights = |config: DecoderConfig, source: &dyn TensorSource| {
        must_not_be_quantised(&config)?;
        Decoder::load_held(config, &Stoppable { source, ctx }, held, device).map_err(|e| unless_stopping(ctx, e))
    };
    match gguf_of(path)? {
        Some(file) => {
            let source = GgufModel::open(&file).map_err(fatal)?;
            let config = DecoderConfig::from_json(source.config().to_hf_config()).map_err(fatal)?;
            let tokenizer = source.tokenizer().map_err(fatal)?;
            Ok(BaseModel { model: weights(config, &source)?, tokenizer })
        }
        None => {
            let config = DecoderConfig::from_folder(path).map_err(fatal)?;
            let source = SafetensorsSource::open_folder(path).map_err(fatal)?;
            let tokenizer = TextTokenizer::from_folder(path).map_err(fatal)?;
            Ok(BaseModel { model: weights(config, &source)?, tokenizer })
        }
    }
}

/// Refuses weights that another library has packed: training on them needs the ones they were made of.
fn must_not_be_quantised(config: &DecoderConfig) -> Result<(), ModuleError> {
    let Some(found) = config.raw.get("quantization_config").filter(|value| value.is_object()) else { return Ok(()) };
    let method = found.get("quant_method").and_then(serde_json::Value::as_str).unwrap_or("an unnamed method");
    Err(ModuleError::Fatal(format!(
        "model.source: config.json: quantization_config: its weights are packed by {method}, and packed weights are not \
         trained\nhint: start from the model that they were made of; `model.adapter.type: qlora` packs it while it is loaded"
    )))
}

/// Tensors that are no longer read once the task is asked to stop: billions of weights take minutes.
struct Stoppable<'a> {
    source: &'a dyn TensorSource,
    ctx: &'a RunContext,
}

impl TensorSource for Stoppable<'_> {
    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        match self.ctx.stopping() {
            true => Err(WeightsError::Interrupted),
            false => self.source.read_f32(name),
        }
    }
}

/// The GGUF file, where the path is one, or a folder that holds one and no config.json.
///
/// # Errors
/// What is neither a model's file nor its folder.
pub fn gguf_of(path: &Path) -> Result<Option<PathBuf>, ModuleError> {
    match Layout::of(path) {
        Ok(Layout::Folder(_)) => Ok(None),
        Ok(Layout::Gguf(file)) => Ok(Some(file)),
        Err(LayoutError::Io { path, source }) => Err(ModuleError::disk("list the model in", &path, &source)),
        Err(LayoutError::NoModel(found)) => Err(ModuleError::Fatal(format!("model.source: {found}"))),
    }
}
