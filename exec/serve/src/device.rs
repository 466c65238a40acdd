//! A language model on a GPU: the tensors' decoder as the engine calls it. On the processor it is the slow twin that the
//! tests hold to the same numbers.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use mloc_burn::{
    device::{Device, DeviceChoice, full},
    model::{
        Compute, Decoder, DecoderConfig, Held,
        paged::{AdapterSet, PagedChunk, PagedDecoder, PagedSizes, cache_format},
    },
    quant::{FourBitSettings, QuantType},
    weights::{TensorSource, WeightsError},
};
use mloc_cpu::CacheFormat;
use mloc_engine::forward::{AdapterId, BlockId, Chunk, Forward, ForwardError, Logits, Shape, Wanted};

use crate::{
    adapters::{self, AdapterRoom},
    decoder::{Computing, weights_error},
    open::ServeError,
    room::{self, Room},
    settings::{Number, Settings},
};

/// Half a byte an element, and 4 bytes for 64 of them.
const NF4: FourBitSettings = FourBitSettings { quant_type: QuantType::Nf4, block_size: 64, double_quant: false };

/// Loads a model onto a device.
///
/// # Errors
/// There is no such device, the model doesn't fit, its files can't be read, or it was to stop.
pub fn load(
    config: &DecoderConfig,
    source: &(dyn TensorSource + Sync),
    parameters: u64,
    choice: DeviceChoice,
    settings: &Settings,
    stopping: &(dyn Fn() -> bool + Sync),
) -> Result<Computing, ServeError> {
    let device = choice.open().map_err(|error| ServeError::Model(error.to_string()))?;
    let (held, compute) = formats(config, settings.number)?;
    let sizes = |blocks, max_length| PagedSizes {
        blocks,
        block_tokens: settings.block_tokens,
        max_length,
        format: match settings.cache {
            None => cache_format(compute),
            Some(CacheFormat::F32) => cache_format(Compute::F32),
            Some(CacheFormat::F16) => cache_format(Compute::F16),
        },
    };
    let weight_bytes = weight_bytes(config, parameters, held, compute);
    let block_bytes = sizes(0, 0).block_bytes(config) as u64;
    let advice = match settings.number {
        Number::Int4 => "",
        _ => ", or set quantization: int4",
    };
    let room = room::of(config, weight_bytes, block_bytes, advice, settings)?;
    let Room { blocks, max_length, .. } = room;
    let source = Interruptible { source, stopping };
    // Memory that a device lacks is said by a panic.
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let mut model = Decoder::load_held(config.clone(), &source, held, &device)?;
        model.set_compute(compute);
        Ok(PagedDecoder::new(model, sizes(blocks, max_length)))
    }));
    let decoder = match loaded {
        Ok(loaded) => loaded.map_err(weights_error)?,
        Err(panic) => match full(&*panic) {
            Some(said) => return Err(ServeError::Memory(format!("the device has no memory left: {said}"))),
            None => std::panic::resume_unwind(panic),
        },
    };
    let adapters = Arc::new(Adapters { device, loaded: Mutex::default(), next: AtomicU32::new(0) });
    let vocabulary = config.vocab_size;
    let shape = Shape { vocabulary, max_length, block_tokens: settings.block_tokens, blocks };
    Ok(Computing {
        model: Box::new(OnDevice { decoder, adapters: adapters.clone(), shape }),
        adapters,
        format: words(held).to_owned(),
        weight_bytes,
        room,
    })
}

/// What weights are held in, and what products are computed in.
fn formats(config: &DecoderConfig, number: Number) -> Result<(Held, Compute), ServeError> {
    let stored = ["dtype", "torch_dtype"].iter().find_map(|key| config.raw.get(*key)?.as_str());
    match (number, stored) {
        (Number::AsStored, Some("bfloat16")) | (Number::Bf16, _) => Ok((Held::Bf16, Compute::Bf16)),
        (Number::AsStored, Some("float16")) => Ok((Held::F16, Compute::F16)),
        (Number::AsStored | Number::F32, _) => Ok((Held::F32, Compute::F32)),
        (Number::Int4, _) => Ok((Held::FourBit(NF4), Compute::Bf16)),
        (Number::Int8, _) => Err(ServeError::Model(
            "quantization: int8 is of processors; on a GPU weights are as stored, in `dtype: bfloat16`, or in \
             `quantization: int4`, which is NF4 there"
                .to_owned(),
        )),
    }
}

fn words(held: Held) -> &'static str {
    match held {
        Held::F32 => "f32",
        Held::Bf16 => "bf16",
        Held::F16 => "f16",
        Held::FourBit(_) => "nf4",
    }
}

/// Bytes of all weights as they are held.
fn weight_bytes(config: &DecoderConfig, parameters: u64, held: Held, compute: Compute) -> u64 {
    let embedding = (config.vocab_size * config.hidden_size) as f64;
    let vocabulary = if config.tie_word_embeddings { embedding } else { 2.0 * embedding };
    let bits = |held| match held {
        Held::F32 => 32.0,
        Held::Bf16 | Held::F16 => 16.0,
        Held::FourBit(settings) => 8.0 * settings.bytes_of(1 << 20) as f64 / f64::from(1 << 20),
    };
    let vocabulary_bits = if compute == Compute::F32 { 32.0 } else { 16.0 };
    let matrices = (parameters as f64 - vocabulary).max(0.0);
    ((matrices * bits(held) + vocabulary * vocabulary_bits) / 8.0) as u64
}

/// A source that is asked, before each tensor, whether to go on: billions of weights take minutes.
struct Interruptible<'a> {
    source: &'a (dyn TensorSource + Sync),
    stopping: &'a (dyn Fn() -> bool + Sync),
}

impl TensorSource for Interruptible<'_> {
    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        if (self.stopping)() { Err(WeightsError::Interrupted) } else { self.source.read_f32(name) }
    }
}

/// A decoder that the engine calls.
struct OnDevice {
    decoder: PagedDecoder,
    adapters: Arc<Adapters>,
    shape: Shape,
}

impl Forward for OnDevice {
    fn shape(&self) -> Shape {
        self.shape
    }

    /// # Panics
    /// When a chunk breaks what [`Chunk`] promises.
    fn forward(&mut self, step: &[Chunk]) -> Result<Logits, ForwardError> {
        let blocks: Vec<Vec<u32>> =
            step.iter().map(|chunk| chunk.blocks.iter().map(|block| block.0).collect()).collect();
        let chunks = step.iter().zip(&blocks).map(|(chunk, blocks)| PagedChunk {
            tokens: &chunk.tokens,
            start: chunk.start,
            blocks,
            adapter: chunk.adapter.map(|id| self.adapters.get(id)),
            wanted: match chunk.wanted {
                Wanted::None => 0..0,
                Wanted::Last => chunk.tokens.len() - 1..chunk.tokens.len(),
                Wanted::All => 0..chunk.tokens.len(),
            },
        });
        let chunks: Vec<PagedChunk<'_>> = chunks.collect();
        // After an error the engine computes a smaller step, or ends with this process.
        let done = catch_unwind(AssertUnwindSafe(|| self.decoder.step(&chunks)));
        match done {
            Ok(values) => Ok(Logits { values, width: self.shape.vocabulary }),
            Err(panic) => match full(&*panic) {
                Some(said) => {
                    let tokens = step.iter().map(|chunk| chunk.tokens.len()).sum();
                    Err(ForwardError::OutOfMemory { tokens, detail: said.to_owned() })
                }
                None => std::panic::resume_unwind(panic),
            },
        }
    }

    fn copy_blocks(&mut self, pairs: &[(BlockId, BlockId)]) {
        let pairs: Vec<(u32, u32)> = pairs.iter().map(|(from, to)| (from.0, to.0)).collect();
        self.decoder.copy_blocks(&pairs);
    }
}

/// Adapters on the device.
struct Adapters {
    device: Device,
    loaded: Mutex<BTreeMap<AdapterId, Arc<AdapterSet>>>,
    /// Ids are not used again.
    next: AtomicU32,
}

impl Adapters {
    /// # Panics
    /// If it was unloaded: the engine runs no text with an adapter that is gone.
    fn get(&self, id: AdapterId) -> Arc<AdapterSet> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.get(&id).cloned().unwrap_or_else(|| panic!("adapter {} is not loaded", id.0))
    }
}

impl AdapterRoom for Adapters {
    fn load(&self, folder: &Path, config: &DecoderConfig) -> Result<AdapterId, String> {
        let set = AdapterSet::of(&adapters::checked(folder, config)?, &self.device);
        let set = set.map_err(|whole| format!("{whole}: more than factors beside a weight"))?;
        let id = AdapterId(self.next.fetch_add(1, Ordering::Relaxed));
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(set));
        Ok(id)
    }

    fn unload(&self, id: AdapterId) {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}
