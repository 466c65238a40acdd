//! The whole decoder: embedding, layers, last norm, head.
//!
//! ```text
//! build   from files or at random: which tensors a config asks for
//! ```

mod build;

use std::convert::Infallible;

use burn::tensor::{Device, FloatDType, Tensor};

use self::build::{HEAD, SCORE};
use super::cache::{KeyValueCache, Past};
use super::config::DecoderConfig;
use super::experts::{Balance, Routing};
use super::head::Head;
use super::layer::{Layer, LayerTape};
use super::linear::Linear;
use super::norm::{NormTape, RmsNorm};
use super::packed::Packed;
use super::paged::PagedCache;
use super::parameter::{Gradients, Parameter, Parameters, on_device};
use super::score::ScoreHead;
use super::weight::{Compute, Weight};
use crate::lora::LoraConfig;
use crate::quant::FourBitMatrix;
use crate::random::Random;

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
    norm: NormTape,
    routings: Vec<Routing>,
    /// What the load-balancing loss counts for, and it.
    balance: Option<(f64, Balance)>,
}

impl Tape {
    /// The load-balancing loss of the pass; `None` in a model without experts.
    pub fn balance(&self) -> Option<Balance> {
        Balance::of(&self.routings)
    }

    /// Has the backward pass add the gradient of `weight` times the load-balancing loss.
    #[must_use]
    pub fn with_balance(self, weight: f64, balance: Balance) -> Self {
        Self { balance: Some((weight, balance)), ..self }
    }
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

    /// The output head. A model with a score head has none that was trained.
    pub fn head(&self) -> Head<'_> {
        Head { weight: self.lm_head.as_ref().unwrap_or(&self.embedding), softcap: self.config.logit_softcap }
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
            x = layer.forward(x, packed, Past::None).0;
        }
        Ok(self.norm.forward(x).0)
    }

    /// As [`Self::hidden`] for the next tokens of the texts in `cache`, of which `packed` is a continuation, group by
    /// group.
    pub fn hidden_cached(&self, packed: &Packed, cache: &mut KeyValueCache) -> Tensor<2> {
        let mut x = self.embed(packed);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, packed, Past::Groups(cache.layer(index))).0;
        }
        cache.advance(packed);
        self.norm.forward(x).0
    }

    /// As [`Self::hidden`] for a step over a cache of blocks.
    pub(super) fn hidden_paged(&self, packed: &Packed, cache: &mut PagedCache) -> Tensor<2> {
        let mut x = self.embed(packed);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, packed, Past::Paged(cache.layer(index))).0;
        }
        self.norm.forward(x).0
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
        let mut routings = Vec::new();
        for layer in &self.layers {
            go_on()?;
            let input = self.checkpointing.then(|| x.clone());
            let (out, tape) = layer.forward(x, packed, Past::None);
            routings.extend(tape.routing());
            layers.push(input.map_or_else(|| Kept::Tape(Box::new(tape)), Kept::Input));
            x = out;
        }
        let (hidden, norm) = self.norm.forward(x);
        Ok((hidden, Tape { layers, norm, routings, balance: None }))
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
        let Tape { layers, norm, balance, .. } = tape;
        let balance = balance.map(|(weight, balance)| balance.gradient(weight, &d_hidden));
        let mut d = self.norm.backward(norm, d_hidden, gradients);
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
                Kept::Input(x) => self.layers[index].forward(x, packed, Past::None).1,
            };
            let input_needed = index > lowest || self.embedding.trainable;
            match self.layers[index].backward(d, tape, packed, input_needed, balance.as_ref(), gradients) {
                Some(dx) => d = dx,
                None => return Ok(()),
            }
        }
        if self.embedding.trainable {
            let d = self.scaled(d);
            gradients.add_rows(&self.embedding.name, self.embedding.value.dims(), &packed.ids, d);
        }
        Ok(())
    }

    /// Logits of given hidden states, `[n, vocab]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.head().logits(hidden)
    }

    fn embed(&self, packed: &Packed) -> Tensor<2> {
        let rows = self.embedding.value.clone().select(0, packed.ids.clone());
        let embedded = self.scaled(rows.cast(FloatDType::F32));
        match &packed.embedding_noise {
            Some(noise) => {
                let dims = embedded.dims();
                embedded + noise.values(dims, &self.device)
            }
            None => embedded,
        }
    }

    /// Embeddings, or the gradient at them, by the scale that some families have.
    fn scaled(&self, embedded: Tensor<2>) -> Tensor<2> {
        let scale = self.config.embedding_scale;
        if scale == 1.0 { embedded } else { embedded.mul_scalar(scale) }
    }

    /// Computes the layers' matrix products in another format from now on. The head's are in f32 always, as the loss is.
    pub fn set_compute(&mut self, compute: Compute) {
        for layer in &mut self.layers {
            layer.linears_mut().for_each(|linear| linear.compute = compute);
            layer.attention.compute = compute;
        }
    }

    /// Holds the embedding and the head in another format from now on, as where a model serves and is not trained.
    pub(super) fn hold_vocabulary(&mut self, format: Compute) {
        for parameter in std::iter::once(&mut self.embedding).chain(&mut self.lm_head) {
            parameter.value = parameter.value.clone().cast(format.format());
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
