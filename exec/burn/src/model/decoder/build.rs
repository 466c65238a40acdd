//! Decoders from files or at random, and what is wrong with files that do not fit.

use std::collections::BTreeMap;
use std::convert::Infallible;

use burn::tensor::Device;

use super::Decoder;
use crate::model::attention::Attention;
use crate::model::config::{DecoderConfig, ExpertNames, ExpertsConfig};
use crate::model::experts::Experts;
use crate::model::feed_forward::FeedForward;
use crate::model::layer::Layer;
use crate::model::maker::{self, Maker, Reader, Recorder, fresh};
use crate::model::mlp::Mlp;
use crate::model::norm::RmsNorm;
use crate::model::score::ScoreHead;
use crate::model::weight::Held;
use crate::weights::{TensorSource, WeightsError};

const EMBEDDING: &str = "model.embed_tokens.weight";
const LAST_NORM: &str = "model.norm.weight";
pub(super) const HEAD: &str = "lm_head.weight";
pub(super) const SCORE: &str = "score.weight";

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
        Self::check_fit(&config, source)?;
        let values = |name: &str, _: &[usize]| source.read_f32(name);
        Self::build(config, device, Reader { values, held, device })
    }

    /// Whether the tensors of `source` are those of such a model.
    ///
    /// # Errors
    /// Every missing, unknown or mis-shaped one.
    pub fn check_fit(config: &DecoderConfig, source: &dyn TensorSource) -> Result<(), WeightsError> {
        let device = Device::flex();
        // The builder itself says what it wants, so that the list cannot drift from it.
        let wanted = maker::wanted(&device, |recorder| Self::build(config.clone(), &device, recorder).map(drop));
        // A tied head is often stored all the same, and old checkpoints carry rotary tables.
        maker::check_fit(&wanted, source, |name| name == HEAD || name.ends_with("rotary_emb.inv_freq"))
    }

    /// A model with fresh weights: normal with the config's `initializer_range`, norms as if they were not there, biases 0. Each parameter
    /// draws from a stream of its own, so the result depends on `seed` and the config only.
    pub fn random(config: DecoderConfig, seed: u64, device: &Device) -> Self {
        Self::random_held(config, seed, Held::F32, device)
    }

    /// As [`Self::random`] with the linear weights held as said.
    pub fn random_held(config: DecoderConfig, seed: u64, held: Held, device: &Device) -> Self {
        let (deviation, gains) = (config.initializer_range as f32, 1.0 - config.norm_offset as f32);
        let values = |name: &str, shape: &[usize]| Ok::<_, Infallible>(fresh(name, shape, deviation, gains, seed));
        match Self::build(config, device, Reader { values, held, device }) {
            Ok(model) => model,
            Err(never) => match never {},
        }
    }

    /// A model of which only names and shapes ([`Parameter::shape`](crate::model::Parameter)) are there: every value is a
    /// single zero. What a model is made of can be asked before there is room for it.
    pub fn outline(config: DecoderConfig) -> Self {
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
        let norm = rms_norm(&mut maker, c, LAST_NORM.into(), c.hidden_size)?;
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
}

fn build_layer<M: Maker>(c: &DecoderConfig, index: usize, maker: &mut M) -> Result<Layer, M::Error> {
    let prefix = format!("model.layers.{index}");
    let mut linear = |name: &str, out: usize, input: usize, bias: bool| {
        maker::linear(maker, &format!("{prefix}.{name}"), [out, input], bias)
    };
    let (h, f) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
    let attention = [
        linear("self_attn.q_proj", q, h, c.qkv_bias)?,
        linear("self_attn.k_proj", kv, h, c.qkv_bias)?,
        linear("self_attn.v_proj", kv, h, c.qkv_bias)?,
        linear("self_attn.o_proj", h, q, c.o_bias)?,
    ];
    let mut mlp = |[gate, up, down]: [String; 3], f: usize, bias: bool| -> Result<Mlp, M::Error> {
        Ok(Mlp {
            gate_proj: linear(&gate, f, h, bias)?,
            up_proj: linear(&up, f, h, bias)?,
            down_proj: linear(&down, h, f, bias)?,
            activation: c.activation,
        })
    };
    let mlp = match c.experts.as_ref().filter(|experts| experts.sparse[index]) {
        None => FeedForward::Dense(mlp(["gate", "up", "down"].map(|part| format!("mlp.{part}_proj")), f, c.mlp_bias)?),
        Some(ExpertsConfig { count, per_token, intermediate_size, normalised, names, .. }) => {
            let ExpertNames { block, gate, up, down } = names;
            let expert = |number: usize| [gate, up, down].map(|part| format!("{block}.experts.{number}.{part}"));
            let experts = (0..*count).map(|number| mlp(expert(number), *intermediate_size, false));
            let experts = experts.collect::<Result<_, _>>()?;
            let router = maker.parameter(format!("{prefix}.{block}.gate.weight"), &[*count, h])?;
            FeedForward::Experts(Experts { router, experts, per_token: *per_token, normalised: *normalised })
        }
    };
    let mut norm = |name: &str, width: usize| rms_norm(maker, c, format!("{prefix}.{name}.weight"), width);
    let qk_norm = match c.qk_norm {
        true => Some((norm("self_attn.q_norm", c.head_dim)?, norm("self_attn.k_norm", c.head_dim)?)),
        false => None,
    };
    let input_norm = norm("input_layernorm", h)?;
    let (post_norm, output_norms) = match c.output_norms {
        false => (norm("post_attention_layernorm", h)?, None),
        true => {
            let outputs = [norm("post_attention_layernorm", h)?, norm("post_feedforward_layernorm", h)?];
            (norm("pre_feedforward_layernorm", h)?, Some(outputs))
        }
    };
    Ok(Layer { input_norm, post_norm, attention: Attention::new(c, index, attention, qk_norm), mlp, output_norms })
}

fn rms_norm<M: Maker>(maker: &mut M, c: &DecoderConfig, name: String, width: usize) -> Result<RmsNorm, M::Error> {
    Ok(RmsNorm { weight: maker.parameter(name, &[width])?, eps: c.rms_norm_eps, offset: c.norm_offset })
}
