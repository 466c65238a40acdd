//! BERT (Devlin et al., arXiv 1810.04805): every token sees all of its text. For embeddings, and for scores of texts and
//! pairs of texts.
//!
//! ```text
//! config   what config.json means
//! build    from files or at random
//! layer    attention and feed-forward, each beside a residual and before a norm
//! ```
//!
//! Dropout between layers, as in its first training, is not applied.

mod build;
mod config;
mod layer;

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor};

pub use self::config::EncoderConfig;
use self::layer::{EncoderLayer, EncoderLayerTape};
use super::layer_norm::{LayerNorm, LayerNormTape};
use super::linear::Linear;
use super::packed::{Packed, int_tensor};
use super::parameter::{Gradients, Parameter, Parameters, on_device};

/// An encoder. A clone shares the values of its parameters until one of the two changes them.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// Its sizes.
    pub config: EncoderConfig,
    /// `[vocab, hidden]`.
    pub words: Parameter,
    /// `[positions, hidden]`.
    pub positions: Parameter,
    /// `[types, hidden]`: which of two texts a token is of.
    pub types: Parameter,
    /// Of their sum.
    pub norm: LayerNorm,
    /// The layers, first to last.
    pub layers: Vec<EncoderLayer>,
    /// What the score head sees the first token through: `tanh` of this. Embeddings do without.
    pub pooler: Option<Linear>,
    /// `[labels, hidden]`, where the config has labels.
    pub classifier: Option<Linear>,
    device: Device,
}

/// A text, or a pair of texts, for an encoder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncoderRow {
    /// Token ids, with the special ones.
    pub ids: Vec<i64>,
    /// Of each token: 0 in the first text, 1 in the second.
    pub type_ids: Vec<i64>,
}

/// Why a row cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {row}: {problem}")]
pub struct RowError {
    /// Which one, from 0.
    pub row: usize,
    /// What was found and what was expected.
    pub problem: String,
}

/// Rows on the device.
#[derive(Debug, Clone)]
pub struct EncoderInput {
    /// Their tokens.
    pub packed: Packed,
    positions: Tensor<1, Int>,
    types: Tensor<1, Int>,
}

/// What [`Encoder::backward`] needs of one [`Encoder::forward`].
#[derive(Debug)]
pub struct EncoderTape {
    norm: LayerNormTape,
    layers: Vec<EncoderLayerTape>,
}

/// What [`Encoder::scores_backward`] needs of one [`Encoder::scores`].
#[derive(Debug)]
pub struct ScoresTape {
    first: Tensor<2>,
    pooled: Tensor<2>,
    tokens: usize,
}

impl Encoder {
    /// Rows for this model.
    ///
    /// # Errors
    /// A row that is empty, longer than the model has positions, or has an id the model does not know.
    pub fn input(&self, rows: &[EncoderRow]) -> Result<EncoderInput, RowError> {
        for (row, found) in rows.iter().enumerate() {
            self.check(found).map_err(|problem| RowError { row, problem })?;
        }
        let (packed, positions) = Packed::unmasked(rows.iter().map(|row| row.ids.as_slice()), &self.device);
        let positions = positions.into_iter().map(|position| position as i64).collect();
        let types = rows.iter().flat_map(|row| &row.type_ids).copied().collect();
        let on_device = |values| int_tensor(values, &self.device);
        Ok(EncoderInput { packed, positions: on_device(positions), types: on_device(types) })
    }

    fn check(&self, EncoderRow { ids, type_ids }: &EncoderRow) -> Result<(), String> {
        let EncoderConfig { vocab_size, type_vocab_size, max_position_embeddings, .. } = self.config;
        if ids.is_empty() || ids.len() > max_position_embeddings {
            return Err(format!("{} tokens; the model takes 1 to {max_position_embeddings}", ids.len()));
        }
        if type_ids.len() != ids.len() {
            return Err(format!("{} token types for {} tokens", type_ids.len(), ids.len()));
        }
        let outside = |ids: &[i64], size: usize| ids.iter().find(|id| !(0..size as i64).contains(*id)).copied();
        if let Some(id) = outside(ids, vocab_size) {
            return Err(format!("token id {id}, the vocabulary has {vocab_size}"));
        }
        match outside(type_ids, type_vocab_size) {
            Some(id) => Err(format!("token type {id}, the model has {type_vocab_size}")),
            None => Ok(()),
        }
    }

    /// The last hidden states, `[tokens, hidden]`. Keeps nothing for a backward pass.
    pub fn hidden(&self, input: &EncoderInput) -> Tensor<2> {
        let (mut x, _) = self.norm.forward(self.embed(input));
        for layer in &self.layers {
            // The tape is dropped at once.
            x = layer.forward(x, &input.packed).0;
        }
        x
    }

    /// The last hidden states and what the backward pass needs.
    pub fn forward(&self, input: &EncoderInput) -> (Tensor<2>, EncoderTape) {
        let (mut x, norm) = self.norm.forward(self.embed(input));
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (out, tape) = layer.forward(x, &input.packed);
            layers.push(tape);
            x = out;
        }
        (x, EncoderTape { norm, layers })
    }

    /// Adds the gradients of all trainable parameters below the pooler, given the gradient at the last hidden states.
    pub fn backward(&self, input: &EncoderInput, tape: EncoderTape, d_hidden: Tensor<2>, gradients: &mut Gradients) {
        let mut d = d_hidden;
        for (layer, tape) in self.layers.iter().zip(tape.layers).rev() {
            d = layer.backward(d, tape, &input.packed, gradients);
        }
        let d = self.norm.backward(tape.norm, d, gradients);
        let tables =
            [(&self.words, &input.packed.ids), (&self.positions, &input.positions), (&self.types, &input.types)];
        for (table, ids) in tables.into_iter().filter(|(table, _)| table.trainable) {
            let zeros = Tensor::zeros(table.value.dims(), &self.device);
            gradients.add(&table.name, zeros.select_assign(0, ids.clone(), d.clone(), IndexingUpdateOp::Add));
        }
    }

    /// The score of each row, `[rows, labels]`, from the last hidden states; `None` = the model has no score head.
    pub fn scores(&self, input: &EncoderInput, hidden: &Tensor<2>) -> Option<(Tensor<2>, ScoresTape)> {
        let (pooler, classifier) = (self.pooler.as_ref()?, self.classifier.as_ref()?);
        let first = hidden.clone().select(0, int_tensor(input.packed.first_of_rows(), &self.device));
        let pooled = pooler.forward(&first, &input.packed).tanh();
        let scores = classifier.forward(&pooled, &input.packed);
        Some((scores, ScoresTape { first, pooled, tokens: input.packed.tokens() }))
    }

    /// The gradient at the last hidden states, given that at the scores; adds those of the head. `None` = as
    /// [`Self::scores`].
    pub fn scores_backward(
        &self,
        input: &EncoderInput,
        tape: ScoresTape,
        d_scores: Tensor<2>,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let (pooler, classifier) = (self.pooler.as_ref()?, self.classifier.as_ref()?);
        let ScoresTape { first, pooled, tokens } = tape;
        let d_pooled = classifier.backward(|| pooled.clone(), d_scores, &input.packed, gradients);
        let d_pooled = d_pooled * pooled.square().neg().add_scalar(1.0);
        let d_first = pooler.backward(|| first.clone(), d_pooled, &input.packed, gradients);
        let zeros = Tensor::zeros([tokens, self.config.hidden_size], &self.device);
        let rows = int_tensor(input.packed.first_of_rows(), &self.device);
        Some(zeros.select_assign(0, rows, d_first, IndexingUpdateOp::Add))
    }

    fn embed(&self, input: &EncoderInput) -> Tensor<2> {
        let rows = |table: &Parameter, ids: &Tensor<1, Int>| table.value.clone().select(0, ids.clone());
        rows(&self.words, &input.packed.ids) + rows(&self.types, &input.types) + rows(&self.positions, &input.positions)
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Makes every parameter trainable.
    pub fn train_all(&mut self) {
        self.parameters_mut().for_each(|p| p.trainable = true);
    }
}

impl Parameters for Encoder {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.words, &self.positions, &self.types]
            .into_iter()
            .chain(self.norm.parameters())
            .chain(self.layers.iter().flat_map(EncoderLayer::parameters))
            .chain(self.pooler.iter().chain(&self.classifier).flat_map(Linear::parameters))
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [&mut self.words, &mut self.positions, &mut self.types]
            .into_iter()
            .chain(self.norm.parameters_mut())
            .chain(self.layers.iter_mut().flat_map(EncoderLayer::parameters_mut))
            .chain(self.pooler.iter_mut().chain(&mut self.classifier).flat_map(Linear::parameters_mut))
    }

    fn on_device(&self, device: &Device) -> Self {
        let mut model = self.clone();
        model.parameters_mut().for_each(|p| p.value = on_device(&p.value, device));
        let layers = model
            .layers
            .iter_mut()
            .flat_map(|layer| layer.qkv.iter_mut().chain([&mut layer.attention_out, &mut layer.up, &mut layer.down]));
        let ends = model.pooler.iter_mut().chain(&mut model.classifier);
        layers.chain(ends).for_each(|linear| linear.move_the_rest(device));
        model.device = device.clone();
        model
    }
}
