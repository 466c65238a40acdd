//! Encoders from files or at random.

use std::collections::BTreeMap;
use std::convert::Infallible;

use burn::tensor::Device;

use super::layer::EncoderLayer;
use super::{Encoder, EncoderConfig};
use crate::model::dot_product::DotProduct;
use crate::model::layer_norm::LayerNorm;
use crate::model::maker::{self, Maker, Reader, fresh};
use crate::model::weight::Held;
use crate::weights::{TensorSource, WeightsError};

impl Encoder {
    /// A model with the weights of `source`. A bare model may lack its pooler, which embeddings do without, and its tensors
    /// may have the `bert.` of the models that it is part of.
    ///
    /// # Errors
    /// Every tensor that is missing, unknown or of another shape, at once.
    pub fn load(config: EncoderConfig, source: &dyn TensorSource, device: &Device) -> Result<Self, WeightsError> {
        let inside = config.num_labels.is_some() || source.shape(&format!("{INSIDE}{WORDS}.weight")).is_some();
        let prefix = if inside { INSIDE } else { "" };
        let pooler = config.num_labels.is_some() || source.shape(&format!("{prefix}{POOLER}.weight")).is_some();
        let parts = Parts { prefix, pooler };
        let wanted =
            maker::wanted(device, |recorder| Self::build(config.clone(), parts, device, recorder).map(|_: Self| ()));
        let stored = Stored::of(source);
        // Old checkpoints carry the numbers 0, 1, 2, …, and a bare model the heads of its first training.
        let bare = config.num_labels.is_none();
        maker::check_fit(&wanted, &stored, |name| {
            name.ends_with("embeddings.position_ids") || bare && name.starts_with("cls.")
        })?;
        let values = |name: &str, _: &[usize]| stored.read_f32(name);
        Self::build(config, parts, device, Reader { values, held: Held::F32, device })
    }

    /// A model with fresh weights: normal with the config's `initializer_range`, norms 1, biases 0. The result depends on
    /// `seed` and the config only.
    pub fn random(config: EncoderConfig, seed: u64, device: &Device) -> Self {
        let deviation = config.initializer_range as f32;
        let prefix = if config.num_labels.is_some() { INSIDE } else { "" };
        let values = |name: &str, shape: &[usize]| Ok::<_, Infallible>(fresh(name, shape, deviation, 1.0, seed));
        let parts = Parts { prefix, pooler: true };
        match Self::build(config, parts, device, Reader { values, held: Held::F32, device }) {
            Ok(model) => model,
            Err(never) => match never {},
        }
    }

    fn build<M: Maker>(
        config: EncoderConfig,
        Parts { prefix, pooler }: Parts,
        device: &Device,
        mut maker: M,
    ) -> Result<Self, M::Error> {
        let c = &config;
        let (h, f) = (c.hidden_size, c.intermediate_size);
        let mut table = |name: &str, rows: usize| maker.parameter(format!("{prefix}{name}.weight"), &[rows, h]);
        let words = table(WORDS, c.vocab_size)?;
        let positions = table("embeddings.position_embeddings", c.max_position_embeddings)?;
        let types = table("embeddings.token_type_embeddings", c.type_vocab_size)?;
        let norm = layer_norm(&mut maker, &format!("{prefix}embeddings.LayerNorm"), c)?;
        let mut layers = Vec::with_capacity(c.num_layers);
        for index in 0..c.num_layers {
            let at = |name: &str| format!("{prefix}encoder.layer.{index}.{name}");
            let mut linear = |name: &str, dims| maker::linear(&mut maker, &at(name), dims, true);
            let qkv = [
                linear("attention.self.query", [h, h])?,
                linear("attention.self.key", [h, h])?,
                linear("attention.self.value", [h, h])?,
            ];
            let attention_out = linear("attention.output.dense", [h, h])?;
            let up = linear("intermediate.dense", [f, h])?;
            let down = linear("output.dense", [h, f])?;
            let dim = h / c.num_heads;
            layers.push(EncoderLayer {
                qkv,
                attention_out,
                attention_norm: layer_norm(&mut maker, &at("attention.output.LayerNorm"), c)?,
                up,
                down,
                norm: layer_norm(&mut maker, &at("output.LayerNorm"), c)?,
                heads: DotProduct { kv: c.num_heads, shared: 1, dim, scale: 1.0 / (dim as f64).sqrt(), softcap: None },
                activation: c.activation,
            });
        }
        let pooler = match pooler {
            true => Some(maker::linear(&mut maker, &format!("{prefix}{POOLER}"), [h, h], true)?),
            false => None,
        };
        let classifier = match c.num_labels {
            Some(labels) => Some(maker::linear(&mut maker, "classifier", [labels, h], true)?),
            None => None,
        };
        Ok(Self { words, positions, types, norm, layers, pooler, classifier, device: device.clone(), config })
    }
}

const INSIDE: &str = "bert.";
const WORDS: &str = "embeddings.word_embeddings";
const POOLER: &str = "pooler.dense";

/// What differs between files of one config.
#[derive(Clone, Copy)]
struct Parts {
    prefix: &'static str,
    pooler: bool,
}

fn layer_norm<M: Maker>(maker: &mut M, prefix: &str, config: &EncoderConfig) -> Result<LayerNorm, M::Error> {
    let mut part = |name: &str| maker.parameter(format!("{prefix}.{name}"), &[config.hidden_size]);
    Ok(LayerNorm { weight: part("weight")?, bias: part("bias")?, eps: config.layer_norm_eps })
}

/// A source whose norms may have the names of the first releases, `gamma` and `beta`.
struct Stored<'a> {
    source: &'a dyn TensorSource,
    /// The source's name by ours.
    names: BTreeMap<String, String>,
}

impl<'a> Stored<'a> {
    fn of(source: &'a dyn TensorSource) -> Self {
        let own = |name: &str| {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        };
        Self { source, names: source.names().into_iter().map(|name| (own(&name), name)).collect() }
    }
}

impl TensorSource for Stored<'_> {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.source.shape(self.names.get(name)?)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let stored = self.names.get(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))?;
        self.source.read_f32(stored)
    }
}
