//! The whole decoder: embedding, layers, last norm, head.

use std::collections::BTreeMap;
use std::convert::Infallible;

use burn::tensor::{Device, Tensor};

use super::attention::Attention;
use super::cache::KeyValueCache;
use super::config::DecoderConfig;
use super::layer::{Layer, LayerTape, Mlp};
use super::linear::Linear;
use super::norm::RmsNorm;
use super::packed::Packed;
use super::parameter::{Gradients, Parameter, Parameters, on_device};
use super::score::ScoreHead;
use super::weight::{Compute, Held, Weight};
use crate::lora::LoraConfig;
use crate::quant::FourBitMatrix;
use crate::random::Random;
use crate::weights::{TensorSource, WeightsError};

/// A decoder-only transformer: a language model, or with a score head a classifier. A clone shares the values of its
/// parameters until one of the two changes them.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Its sizes and switches.
    pub config: DecoderConfig,
    /// `[vocab, hidden]`.
    pub embedding: Parameter,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: RmsNorm,
    /// `[vocab, hidden]`; `None` = the embedding is the head.
    pub lm_head: Option<Parameter>,
    /// In place of the vocabulary's head, where the config has labels.
    pub score: Option<ScoreHead>,
    /// The settings of the adapters on its linear layers, if there are any.
    pub adapter: Option<LoraConfig>,
    /// Whether a forward keeps only each layer's input and the backward computes the layer anew: the memory of one layer's
    /// activations instead of all, for one more forward. Results are the same to the bit.
    pub checkpointing: bool,
    device: Device,
}

/// What [`Decoder::backward`] needs of one [`Decoder::forward`].
#[derive(Debug)]
pub struct Tape {
    layers: Vec<Kept>,
    x: Tensor<2>,
    reciprocal: Tensor<2>,
}

/// What is kept of a layer.
#[derive(Debug)]
enum Kept {
    /// All that its backward needs.
    Tape(Box<LayerTape>),
    /// What it was given.
    Input(Tensor<2>),
}

impl Decoder {
    /// A model with the weights of `source`. Every missing, unknown or mis-shaped tensor is reported at once.
    pub fn load(config: DecoderConfig, source: &dyn TensorSource, device: &Device) -> Result<Self, WeightsError> {
        Self::load_held(config, source, Held::F32, device)
    }

    /// As [`Self::load`] with the linear weights held as said. They are read one after another, so that never more than
    /// one of them is there in f32.
    pub fn load_held(
        config: DecoderConfig,
        source: &dyn TensorSource,
        held: Held,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        check_fit(&config, source, device)?;
        let values = |name: &str, _: &[usize]| source.read_f32(name);
        Self::build(config, device, Reader { values, held, device })
    }

    /// A model with fresh weights: normal with the config's `initializer_range`, norms 1, biases 0. Each parameter
    /// draws from a stream of its own, so the result depends on `seed` and the config only.
    pub fn random(config: DecoderConfig, seed: u64, device: &Device) -> Self {
        Self::random_held(config, seed, Held::F32, device)
    }

    /// As [`Self::random`] with the linear weights held as said.
    pub fn random_held(config: DecoderConfig, seed: u64, held: Held, device: &Device) -> Self {
        let deviation = config.initializer_range as f32;
        let values = |name: &str, shape: &[usize]| {
            let count = shape.iter().product();
            Ok::<_, Infallible>(if name.ends_with("norm.weight") {
                vec![1.0; count]
            } else if name.ends_with(".bias") {
                vec![0.0; count]
            } else {
                let mut random = Random::stream(seed, name);
                (0..count).map(|_| deviation * random.normal()).collect()
            })
        };
        match Self::build(config, device, Reader { values, held, device }) {
            Ok(model) => model,
            Err(never) => match never {},
        }
    }

    /// A model of which only names and shapes ([`Parameter::shape`]) are there: every value is a single zero. What a model
    /// is made of can be asked before there is room for it.
    pub(crate) fn outline(config: DecoderConfig) -> Self {
        let device = Device::flex();
        match Self::build(config, &device, Recorder { wanted: &mut BTreeMap::new(), device: &device }) {
            Ok(model) => model,
            Err(never) => match never {},
        }
    }

    fn build<M: Maker>(config: DecoderConfig, device: &Device, mut maker: M) -> Result<Self, M::Error> {
        let c = &config;
        let embedding = maker.parameter(EMBEDDING.into(), &[c.vocab_size, c.hidden_size])?;
        let mut layers = Vec::with_capacity(c.num_layers);
        for index in 0..c.num_layers {
            layers.push(build_layer(c, index, &mut maker)?);
        }
        let norm = RmsNorm { weight: maker.parameter(LAST_NORM.into(), &[c.hidden_size])?, eps: c.rms_norm_eps };
        let lm_head = match c.tie_word_embeddings || c.num_labels.is_some() {
            true => None,
            false => Some(maker.parameter(HEAD.into(), &[c.vocab_size, c.hidden_size])?),
        };
        let score = match c.num_labels {
            Some(labels) => Some(ScoreHead { weight: maker.parameter(SCORE.into(), &[labels, c.hidden_size])? }),
            None => None,
        };
        Ok(Self {
            embedding,
            layers,
            norm,
            lm_head,
            score,
            adapter: None,
            checkpointing: false,
            device: device.clone(),
            config,
        })
    }

    /// This model with a fresh score head of `labels` outputs in place of the vocabulary's: normal with the config's
    /// `initializer_range`, from a stream of `seed`, and trainable.
    #[must_use]
    pub fn into_classifier(mut self, labels: usize, seed: u64) -> Self {
        let (hidden, deviation) = (self.config.hidden_size, self.config.initializer_range as f32);
        let mut random = Random::stream(seed, SCORE);
        let values = (0..labels * hidden).map(|_| deviation * random.normal()).collect();
        let weight = Parameter::new(SCORE.into(), &[labels, hidden], values, &self.device);
        self.config = self.config.with_labels(labels);
        self.lm_head = None;
        self.score = Some(ScoreHead { weight: Parameter { trainable: true, ..weight } });
        self
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The output head: `logits = hidden · headᵀ`. A model with a score head has none that was trained.
    pub fn head(&self) -> &Parameter {
        self.lm_head.as_ref().unwrap_or(&self.embedding)
    }

    /// The normalised hidden states, `[tokens, hidden]`. Keeps nothing for a backward pass.
    pub fn hidden(&self, packed: &Packed) -> Tensor<2> {
        match self.hidden_unless(packed, &mut || Ok::<_, Infallible>(())) {
            Ok(hidden) => hidden,
            Err(never) => match never {},
        }
    }

    /// As [`Self::hidden`], asking before each layer whether to give up.
    ///
    /// # Errors
    /// What `go_on` says.
    pub fn hidden_unless<E>(&self, packed: &Packed, go_on: &mut impl FnMut() -> Result<(), E>) -> Result<Tensor<2>, E> {
        let mut x = self.embed(packed);
        for layer in &self.layers {
            go_on()?;
            // The tape is dropped at once: one layer's activations are alive at a time.
            x = layer.forward(x, packed, None).0;
        }
        let reciprocal = self.norm.reciprocal(&x);
        Ok(self.norm.apply(&x, &reciprocal))
    }

    /// As [`Self::hidden`] for the next tokens of the texts in `cache`, of which `packed` is a continuation, group by
    /// group.
    pub fn hidden_cached(&self, packed: &Packed, cache: &mut KeyValueCache) -> Tensor<2> {
        let mut x = self.embed(packed);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, packed, Some(cache.layer(index))).0;
        }
        cache.advance(packed);
        let reciprocal = self.norm.reciprocal(&x);
        self.norm.apply(&x, &reciprocal)
    }

    /// The normalised hidden states and what the backward pass needs.
    pub fn forward(&self, packed: &Packed) -> (Tensor<2>, Tape) {
        match self.forward_unless(packed, &mut || Ok::<_, Infallible>(())) {
            Ok(done) => done,
            Err(never) => match never {},
        }
    }

    /// As [`Self::forward`], asking before each layer whether to give up.
    pub fn forward_unless<E>(
        &self,
        packed: &Packed,
        go_on: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<(Tensor<2>, Tape), E> {
        let mut x = self.embed(packed);
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            go_on()?;
            let input = self.checkpointing.then(|| x.clone());
            let (out, tape) = layer.forward(x, packed, None);
            layers.push(input.map_or_else(|| Kept::Tape(Box::new(tape)), Kept::Input));
            x = out;
        }
        let reciprocal = self.norm.reciprocal(&x);
        let hidden = self.norm.apply(&x, &reciprocal);
        let tape = Tape { layers, x, reciprocal };
        Ok((hidden, tape))
    }

    /// Adds the gradients of all trainable parameters below the head, given the gradient at the hidden states.
    /// The tape is consumed layer by layer, so memory falls as it goes.
    pub fn backward(&self, packed: &Packed, tape: Tape, d_hidden: Tensor<2>, gradients: &mut Gradients) {
        match self.backward_unless(packed, tape, d_hidden, gradients, &mut || Ok::<_, Infallible>(())) {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    /// As [`Self::backward`], asking before each layer whether to give up; the gradients are then no good.
    pub fn backward_unless<E>(
        &self,
        packed: &Packed,
        tape: Tape,
        d_hidden: Tensor<2>,
        gradients: &mut Gradients,
        go_on: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let Tape { layers, x, reciprocal } = tape;
        let mut d = self.norm.backward(&x, &reciprocal, d_hidden, gradients);
        drop((x, reciprocal));
        // Below the lowest trainable layer there is nothing to compute.
        let lowest = match self.embedding.trainable {
            true => 0,
            false => self.layers.iter().position(|l| l.parameters().any(|p| p.trainable)).unwrap_or(self.layers.len()),
        };
        for (index, kept) in layers.into_iter().enumerate().rev() {
            if index < lowest {
                return Ok(());
            }
            go_on()?;
            let tape = match kept {
                Kept::Tape(tape) => *tape,
                Kept::Input(x) => self.layers[index].forward(x, packed, None).1,
            };
            let input_needed = index > lowest || self.embedding.trainable;
            match self.layers[index].backward(d, tape, packed, input_needed, gradients) {
                Some(dx) => d = dx,
                None => return Ok(()),
            }
        }
        if self.embedding.trainable {
            let zeros = Tensor::zeros(self.embedding.value.dims(), &self.device);
            let scattered = zeros.select_assign(0, packed.ids.clone(), d, burn::tensor::IndexingUpdateOp::Add);
            gradients.add(&self.embedding.name, scattered);
        }
        Ok(())
    }

    /// Logits of given hidden states, `[n, vocab]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden.matmul(self.head().value.clone().transpose())
    }

    fn embed(&self, packed: &Packed) -> Tensor<2> {
        let embedded = self.embedding.value.clone().select(0, packed.ids.clone());
        match &packed.embedding_noise {
            Some(noise) => {
                let dims = embedded.dims();
                embedded + noise.values(dims, &self.device)
            }
            None => embedded,
        }
    }

    /// Computes the layers' matrix products in another format from now on. The head's are in f32 always, as the loss is.
    pub fn set_compute(&mut self, compute: Compute) {
        for layer in &mut self.layers {
            layer.linears_mut().for_each(|linear| linear.compute = compute);
            layer.attention.compute = compute;
        }
    }

    /// What the layers' matrix products are computed in.
    pub fn compute(&self) -> Compute {
        self.layers.first().map_or(Compute::F32, |layer| layer.attention.compute)
    }

    /// Gives the head weights of its own, equal to the embedding's that it shared until now. Nothing where it has them.
    pub fn untie(&mut self) {
        if self.lm_head.is_none() {
            self.lm_head = Some(Parameter { name: HEAD.into(), trainable: false, ..self.embedding.clone() });
            self.config.tie_word_embeddings = false;
            if let Some(raw) = self.config.raw.as_object_mut() {
                raw.insert("tie_word_embeddings".into(), false.into());
            }
        }
    }

    /// The linear layers, in the checkpoint's order; the head is none of them.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(Layer::linears)
    }

    /// As [`Self::linears`], to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.layers.iter_mut().flat_map(Layer::linears_mut)
    }

    /// The weights that are held in 4 bits, with their names. They are no [`Self::parameters`].
    pub fn four_bit(&self) -> impl Iterator<Item = (&str, &FourBitMatrix)> {
        self.linears().filter_map(|linear| match &linear.weight {
            Weight::Plain(_) => None,
            Weight::FourBit { name, matrix } => Some((name.as_str(), matrix)),
        })
    }

    /// All parameters, adapters included, in a fixed order; without weights in 4 bits, which nothing moves.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.embedding)
            .chain(self.layers.iter().flat_map(Layer::parameters))
            .chain([&self.norm.weight])
            .chain(&self.lm_head)
            .chain(self.score.iter().map(|head| &head.weight))
    }

    /// Elements of all weights, adapters and those in 4 bits included.
    pub fn count(&self) -> usize {
        let packed = self.four_bit().map(|(_, matrix)| matrix.dims().iter().product::<usize>());
        self.parameters().map(Parameter::count).chain(packed).sum()
    }

    /// Elements of what is trained.
    pub fn trainable_count(&self) -> usize {
        self.parameters().filter(|p| p.trainable).map(Parameter::count).sum()
    }

    /// As [`Self::parameters`], to be changed.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        std::iter::once(&mut self.embedding)
            .chain(self.layers.iter_mut().flat_map(Layer::parameters_mut))
            .chain([&mut self.norm.weight])
            .chain(&mut self.lm_head)
            .chain(self.score.iter_mut().map(|head| &mut head.weight))
    }

    /// Makes every parameter trainable (full fine-tuning, pre-training). What is trained is f32: weights that are held in
    /// fewer bits are unpacked for good.
    pub fn train_all(&mut self) {
        self.linears_mut().for_each(|linear| linear.weight.unpack());
        self.parameters_mut().for_each(|p| p.trainable = true);
    }
}

impl Parameters for Decoder {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        Decoder::parameters(self)
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        Decoder::parameters_mut(self)
    }

    fn count(&self) -> usize {
        Decoder::count(self)
    }

    fn on_device(&self, device: &Device) -> Self {
        let mut model = self.clone();
        model.parameters_mut().for_each(|p| p.value = on_device(&p.value, device));
        model.linears_mut().for_each(|linear| linear.move_the_rest(device));
        model.device = device.clone();
        model
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const LAST_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";
const SCORE: &str = "score.weight";

/// Where the builder's tensors come from.
trait Maker {
    /// Why there is none.
    type Error;
    /// A tensor of one or two dimensions.
    fn parameter(&mut self, name: String, shape: &[usize]) -> Result<Parameter, Self::Error>;
    /// The weight of a linear layer, `[out, in]`.
    fn weight(&mut self, name: String, dims: [usize; 2]) -> Result<Weight, Self::Error>;
}

/// Tensors from values by name and shape.
struct Reader<'a, F> {
    values: F,
    held: Held,
    device: &'a Device,
}

impl<E, F: FnMut(&str, &[usize]) -> Result<Vec<f32>, E>> Maker for Reader<'_, F> {
    type Error = E;

    fn parameter(&mut self, name: String, shape: &[usize]) -> Result<Parameter, E> {
        let values = (self.values)(&name, shape)?;
        Ok(Parameter::new(name, shape, values, self.device))
    }

    fn weight(&mut self, name: String, dims: [usize; 2]) -> Result<Weight, E> {
        let values = (self.values)(&name, &dims)?;
        Ok(Weight::new(name, dims, values, self.held, self.device))
    }
}

/// Writes down what is asked for, and makes nothing of it.
struct Recorder<'a> {
    wanted: &'a mut BTreeMap<String, Vec<usize>>,
    device: &'a Device,
}

impl Maker for Recorder<'_> {
    type Error = Infallible;

    fn parameter(&mut self, name: String, shape: &[usize]) -> Result<Parameter, Infallible> {
        self.wanted.insert(name.clone(), shape.to_vec());
        Ok(Parameter { shape: shape.to_vec(), ..Parameter::new(name, &[1], vec![0.0], self.device) })
    }

    fn weight(&mut self, name: String, dims: [usize; 2]) -> Result<Weight, Infallible> {
        self.parameter(name, &dims).map(Weight::Plain)
    }
}

fn build_layer<M: Maker>(c: &DecoderConfig, index: usize, maker: &mut M) -> Result<Layer, M::Error> {
    let prefix = format!("model.layers.{index}");
    let mut linear = |name: &str, out: usize, input: usize, bias: bool| {
        let weight = maker.weight(format!("{prefix}.{name}.weight"), [out, input])?;
        let bias = match bias {
            true => Some(maker.parameter(format!("{prefix}.{name}.bias"), &[out])?),
            false => None,
        };
        Ok(Linear::new(weight, bias))
    };
    let (h, f) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
    let attention = [
        linear("self_attn.q_proj", q, h, c.qkv_bias)?,
        linear("self_attn.k_proj", kv, h, c.qkv_bias)?,
        linear("self_attn.v_proj", kv, h, c.qkv_bias)?,
        linear("self_attn.o_proj", h, q, c.o_bias)?,
    ];
    let mlp = Mlp {
        gate_proj: linear("mlp.gate_proj", f, h, c.mlp_bias)?,
        up_proj: linear("mlp.up_proj", f, h, c.mlp_bias)?,
        down_proj: linear("mlp.down_proj", h, f, c.mlp_bias)?,
    };
    let mut norm = |name: &str, width: usize| {
        Ok(RmsNorm { weight: maker.parameter(format!("{prefix}.{name}.weight"), &[width])?, eps: c.rms_norm_eps })
    };
    let qk_norm = match c.qk_norm {
        true => Some((norm("self_attn.q_norm", c.head_dim)?, norm("self_attn.k_norm", c.head_dim)?)),
        false => None,
    };
    Ok(Layer {
        input_norm: norm("input_layernorm", h)?,
        post_norm: norm("post_attention_layernorm", h)?,
        attention: Attention::new(c, index, attention, qk_norm),
        mlp,
    })
}

/// Compares names and shapes of a source with what the config asks for, before anything is read.
fn check_fit(config: &DecoderConfig, source: &dyn TensorSource, device: &Device) -> Result<(), WeightsError> {
    // The builder itself says what it wants, so that the list cannot drift from it.
    let mut wanted = BTreeMap::new();
    match Decoder::build(config.clone(), device, Recorder { wanted: &mut wanted, device }) {
        Ok(_) => {}
        Err(never) => match never {},
    }
    let mut problems = Vec::new();
    for (name, shape) in &wanted {
        match source.shape(name) {
            None => problems.push(format!("{name}: missing; expected shape {shape:?}")),
            Some(found) if found != *shape => {
                problems.push(format!("{name}: found shape {found:?}, expected {shape:?}"));
            }
            Some(_) => {}
        }
    }
    for name in source.names() {
        // A tied head is often stored all the same, and old checkpoints carry rotary tables.
        let harmless = name == HEAD || name.ends_with("rotary_emb.inv_freq");
        if !harmless && !wanted.contains_key(&name) {
            let shape = source.shape(&name).unwrap_or_default();
            problems.push(format!("{name}: unknown to this architecture; its shape is {shape:?}"));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(WeightsError::Mismatch(problems)),
    }
}
