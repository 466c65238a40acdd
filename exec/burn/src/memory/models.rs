//! Bytes by parameter: of a model's weights, of what is trained of it, of what an optimizer remembers.

use std::collections::BTreeSet;

use super::{Rows, Trained};
use crate::lora::{self, Bias, LoraConfig, LoraError};
use crate::model::{Compute, Decoder, DecoderConfig, Held as Format};
use crate::optim::OptimizerSettings;

/// Of an f32.
const FLOAT: u64 = 4;

/// What a model takes where it is.
#[derive(Debug, Clone)]
pub(super) struct Held {
    /// Bytes of its weights, adapters included.
    pub weights: u64,
    /// Elements of what is trained.
    pub trainable: u64,
    /// Elements of those that are the model's own, and no adapter's.
    own: u64,
    /// Bytes beside the weights while the largest of them is read.
    pub reading: u64,
    /// Name and shape of each parameter that is trained.
    trained: Vec<(String, Vec<usize>)>,
    /// Elements of the largest linear weight.
    largest_linear: u64,
    /// Elements of the embedding.
    embedding: u64,
    format: Format,
    /// Inputs of the widest layer whose adapter drops elements.
    dropped: u64,
    /// Elements of the largest weight whose adapter has magnitudes: its norms are taken in f32.
    normed: u64,
    trains_embedding: bool,
    trains_head: bool,
    tied: bool,
}

impl Held {
    /// A model whose frozen linear weights are held as said.
    pub fn of(config: &DecoderConfig, trained: Trained<'_>, format: Format) -> Result<Self, LoraError> {
        let outline = Decoder::outline(config.clone());
        let count = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        let parts = match trained {
            Trained::All => Marked::all(&outline),
            Trained::Adapter(adapter) => Marked::of(&outline, adapter)?,
        };
        // What is trained whole is f32.
        let format = if matches!(trained, Trained::All) { Format::F32 } else { format };
        let linears: BTreeSet<&str> = outline.linears().map(|linear| linear.weight.name()).collect();
        let (mut weights, mut largest, mut largest_linear) = (0, 0, 0);
        for parameter in outline.parameters() {
            let elements = count(&parameter.shape);
            let linear = linears.contains(parameter.name.as_str());
            let held = linear && !parts.whole.iter().any(|(name, _)| *name == parameter.name);
            weights += match (held, format) {
                (true, Format::Bf16 | Format::F16) => 2 * elements,
                (true, Format::FourBit(settings)) => settings.bytes_of(parameter.count()) as u64,
                (true, Format::F32) | (false, _) => FLOAT * elements,
            };
            largest = largest.max(elements);
            largest_linear = largest_linear.max(if linear { elements } else { 0 });
        }
        let embedding = count(&outline.embedding.shape);
        let tied = outline.lm_head.is_none() && outline.score.is_none();
        if parts.untied {
            // One of the two is still there as it was.
            weights += FLOAT * embedding;
        }
        weights += parts.beside.iter().map(|(_, shape)| FLOAT * count(shape)).sum::<u64>() + parts.squares * FLOAT;
        let trains = |end: &str| parts.whole.iter().any(|(name, _)| name.ends_with(end));
        let (trains_embedding, trains_lm_head) = (trains("embed_tokens.weight"), trains("lm_head.weight"));
        let tied = tied && !parts.untied;
        let own = parts.whole.iter().map(|(_, shape)| count(shape)).sum();
        let trained: Vec<_> = parts.whole.into_iter().chain(parts.beside).collect();
        Ok(Self {
            weights,
            trainable: trained.iter().map(|(_, shape)| count(shape)).sum(),
            own,
            // Its values and, where it is held in fewer bits, a copy of them.
            reading: 2 * FLOAT * largest,
            trained,
            largest_linear,
            embedding,
            format,
            dropped: parts.dropped,
            normed: parts.normed,
            trains_embedding,
            trains_head: trains_lm_head || tied && trains_embedding,
            tied,
        })
    }

    /// Of all that is trained.
    pub fn gradients(&self) -> u64 {
        FLOAT * self.trainable
    }

    /// What the model was before training, where that is kept beside it: what is not moved is shared.
    pub fn moved(&self) -> u64 {
        FLOAT * self.own
    }

    /// Of the vocabulary's head, the first that is there.
    pub fn head_gradient(&self) -> u64 {
        if self.trains_head { FLOAT * self.embedding } else { 0 }
    }

    /// While a second chunk's gradient of the head is added to the first's.
    pub fn head_copy(&self) -> u64 {
        self.head_gradient()
    }

    /// While the embedding's gradient is put together, in the end; where it is the head's too, both are added. On the
    /// processor rows are added to what is there.
    pub fn embedding_scatter(&self, on_gpu: bool) -> u64 {
        match (self.trains_embedding && on_gpu, self.tied) {
            (false, _) => 0,
            (true, false) => FLOAT * self.embedding,
            (true, true) => 2 * FLOAT * self.embedding,
        }
    }

    /// What an optimizer remembers, where tensors are.
    pub fn optimizer(&self, settings: &OptimizerSettings, on_gpu: bool) -> u64 {
        let here = |name: &str, shape: &[usize]| {
            let in_blocks =
                matches!(settings, OptimizerSettings::AdamW8bit(_)) && crate::optim::blocks::fit(name, shape) && on_gpu;
            if in_blocks { 0 } else { settings.state_bytes_of(name, shape) as u64 }
        };
        self.trained.iter().map(|(name, shape)| here(name, shape)).sum()
    }

    /// Beside gradients and state, while the largest parameter is moved.
    pub fn update(&self, settings: &OptimizerSettings, on_gpu: bool) -> u64 {
        let largest = self.trained.iter().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap_or(0) as u64;
        let copies = match settings {
            // In place.
            OptimizerSettings::AdamW(_) | OptimizerSettings::AdamW8bit(_) if !on_gpu => 0,
            OptimizerSettings::AdamW(_) => 4,
            OptimizerSettings::AdamW8bit(_) => 2,
            OptimizerSettings::Adafactor { .. } => 3,
            OptimizerSettings::Sgd(_) => 2,
        };
        FLOAT * copies * largest
    }

    /// While a linear weight is unpacked, or brought to what is computed in.
    pub fn unpacked(&self, compute: Compute) -> u64 {
        let of_weight = match (self.format, compute) {
            (Format::F32, Compute::F32) | (Format::Bf16, Compute::Bf16) | (Format::F16, Compute::F16) => 0,
            (Format::FourBit(_), Compute::Bf16 | Compute::F16) => 6,
            (_, Compute::F32) => FLOAT,
            (_, Compute::Bf16 | Compute::F16) => 2,
        };
        of_weight * self.largest_linear + 2 * FLOAT * self.normed
    }

    /// While elements are dropped: which, and what is left.
    pub fn dropout(&self, rows: Rows) -> u64 {
        2 * FLOAT * self.dropped * rows.tokens as u64
    }
}

/// What is trained of a model.
#[derive(Default)]
struct Marked {
    /// Parameters of the model itself.
    whole: Vec<(String, Vec<usize>)>,
    /// Factors and magnitudes.
    beside: Vec<(String, Vec<usize>)>,
    /// Sums of squares that go with magnitudes.
    squares: u64,
    dropped: u64,
    normed: u64,
    /// Whether head and embedding, which were one, no longer are.
    untied: bool,
}

impl Marked {
    fn all(outline: &Decoder) -> Self {
        Self { whole: outline.parameters().map(|p| (p.name.clone(), p.shape.clone())).collect(), ..Self::default() }
    }

    fn of(outline: &Decoder, adapter: &LoraConfig) -> Result<Self, LoraError> {
        let plan = lora::plan(outline, adapter)?;
        let mut marked = Self::default();
        for linear in outline.linears() {
            let Some(weight) = linear.weight.parameter() else { continue };
            let planned = plan.adapters.get(linear.module());
            let bias = adapter.bias == Bias::All || adapter.bias == Bias::LoraOnly && planned.is_some();
            marked.whole.extend(linear.bias.iter().filter(|_| bias).map(|b| (b.name.clone(), b.shape.clone())));
            let (Some(planned), [out, input]) = (planned, weight.shape.as_slice()) else { continue };
            let name = |part: &str| format!("{}.{part}.weight", linear.module());
            marked.beside.push((name("lora_A"), vec![planned.r, *input]));
            marked.beside.push((name("lora_B"), vec![*out, planned.r]));
            if adapter.use_dora {
                marked.beside.push((name("lora_magnitude_vector"), vec![*out]));
                marked.squares += *out as u64;
                marked.normed = marked.normed.max((out * input) as u64);
            }
            if adapter.lora_dropout > 0.0 {
                marked.dropped = marked.dropped.max(*input as u64);
            }
        }
        let shared = |name: &String| name == "lm_head.weight" || *name == outline.embedding.name;
        marked.untied = outline.lm_head.is_none() && outline.score.is_none() && plan.saved.iter().any(shared);
        for name in plan.saved {
            let shape = outline.parameters().find(|p| p.name == name).map(|p| p.shape.clone());
            // A head that was the embedding is in no list yet.
            let shape = shape.unwrap_or_else(|| outline.embedding.shape.clone());
            if !marked.whole.iter().any(|(other, _)| *other == name) {
                marked.whole.push((name, shape));
            }
        }
        Ok(marked)
    }
}
