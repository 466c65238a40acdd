//! Tensors by their names in files, as the processor's decoder asks for them: by role.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use mloc_burn::{
    formats::gguf::TensorType,
    model::{DecoderConfig, config::ExpertNames},
    weights::{TensorSource, WeightsError},
};
use mloc_cpu::{
    Format, Held,
    weights::{Matrix, Part, Role, Values, Weights},
};

use crate::blocks;

/// The tensors of a checkpoint that fits its config.
pub struct Tensors<'a> {
    source: &'a (dyn TensorSource + Sync),
    config: &'a DecoderConfig,
    /// Whether what no format holds to the bit is rounded to the nearest that is as narrow, and not widened to f32.
    rounds: bool,
    /// Asked before each tensor: billions of weights take minutes.
    stopping: &'a (dyn Fn() -> bool + Sync),
    trouble: Mutex<Option<WeightsError>>,
}

impl<'a> Tensors<'a> {
    /// Of a source. With `rounds`, matrices that are stored in a way that the processor has no exact form of come as
    /// [`blocks`] says; without, as f32.
    pub fn new(
        source: &'a (dyn TensorSource + Sync),
        config: &'a DecoderConfig,
        rounds: bool,
        stopping: &'a (dyn Fn() -> bool + Sync),
    ) -> Self {
        Self { source, config, rounds, stopping, trouble: Mutex::default() }
    }

    /// What went wrong while tensors were read.
    pub fn trouble(self) -> Option<WeightsError> {
        self.trouble.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// What matrices are held in, the most bytes first, and what of them is not as it is stored; for a log.
    pub fn described(&self, held: &Held) -> String {
        let mut formats: Vec<(&Format, &usize)> = held.formats.iter().collect();
        formats.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        let mut text = formats.iter().map(|(format, _)| format.to_string()).collect::<Vec<_>>().join(" and ");
        let kinds = self.source.names().into_iter().filter_map(|name| self.source.stored(&name));
        let rounded = kinds.filter(|kind| self.rounds && !blocks::format(*kind).1);
        let rounded: BTreeSet<String> = rounded.map(|kind| format!("{kind:?}")).collect();
        if !rounded.is_empty() {
            let kinds = rounded.into_iter().collect::<Vec<_>>().join(", ");
            text = format!("{text}, rounded from {kinds}");
        }
        if held.rounded > 0 {
            text = format!("{text}; products of matrices in several formats, in one of them: {}", held.rounded);
        }
        text
    }

    fn read(&self, name: &str, kind: Option<TensorType>) -> Result<Values<'static>, WeightsError> {
        if (self.stopping)() {
            return Err(WeightsError::Interrupted);
        }
        match kind {
            Some(kind) => Ok(blocks::values(kind, &self.source.read_stored(name)?)),
            None => Ok(Values::F32(self.source.read_f32(name)?.into())),
        }
    }

    /// How a tensor is stored, where it is not to be widened to f32.
    fn kind(&self, role: Role, name: &str) -> Option<TensorType> {
        // What is no matrix is few numbers, and computed with in f32.
        let is_matrix = match role {
            Role::Embedding | Role::Head => true,
            Role::FinalNorm => false,
            Role::Layer(_, part) => matches!(part, Part::Matrix(_) | Part::Expert(..)),
        };
        let exact = |kind: &TensorType| self.rounds || blocks::format(*kind).1;
        self.source.stored(name).filter(|kind| is_matrix && exact(kind))
    }
}

impl Weights for Tensors<'_> {
    fn get(&self, role: Role) -> Option<Values<'_>> {
        let name = name(role, self.config)?;
        // Biases may be absent; that all else is there was checked.
        self.source.shape(&name)?;
        match self.read(&name, self.kind(role, &name)) {
            Ok(Values::F32(mut values)) if is_norm(role) && self.config.norm_offset != 0.0 => {
                let offset = self.config.norm_offset as f32;
                values.to_mut().iter_mut().for_each(|value| *value += offset);
                Some(Values::F32(values))
            }
            Ok(values) => Some(values),
            Err(error) => {
                self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                None
            }
        }
    }

    fn format(&self, role: Role) -> Option<Format> {
        let name = name(role, self.config)?;
        self.source.shape(&name)?;
        Some(self.kind(role, &name).map_or(Format::F32, |kind| blocks::format(kind).0))
    }
}

fn is_norm(role: Role) -> bool {
    match role {
        Role::FinalNorm => true,
        Role::Embedding | Role::Head => false,
        Role::Layer(_, part) => !matches!(part, Part::Matrix(_) | Part::Bias(_) | Part::Router | Part::Expert(..)),
    }
}

/// Hugging Face's name.
fn name(role: Role, config: &DecoderConfig) -> Option<String> {
    let (layer, part) = match role {
        Role::Embedding => return Some("model.embed_tokens.weight".to_owned()),
        Role::Head => return (!config.tie_word_embeddings).then(|| "lm_head.weight".to_owned()),
        Role::FinalNorm => return Some("model.norm.weight".to_owned()),
        Role::Layer(layer, part) => (layer, part),
    };
    // With norms after both blocks, the one after attention has the name that elsewhere the one before the other block has.
    let around = config.output_norms;
    let name = match part {
        Part::AttentionNorm => "input_layernorm.weight".to_owned(),
        Part::FeedForwardNorm if around => "pre_feedforward_layernorm.weight".to_owned(),
        Part::FeedForwardNorm => "post_attention_layernorm.weight".to_owned(),
        Part::AttentionPostNorm if around => "post_attention_layernorm.weight".to_owned(),
        Part::FeedForwardPostNorm if around => "post_feedforward_layernorm.weight".to_owned(),
        Part::AttentionPostNorm | Part::FeedForwardPostNorm => return None,
        Part::QueryNorm => "self_attn.q_norm.weight".to_owned(),
        Part::KeyNorm => "self_attn.k_norm.weight".to_owned(),
        Part::Matrix(matrix) => format!("{}.weight", module(matrix)),
        Part::Bias(matrix) => format!("{}.bias", module(matrix)),
        Part::Router => format!("{}.gate.weight", config.experts.as_ref()?.names.block),
        Part::Expert(number, matrix) => {
            let ExpertNames { block, gate, up, down } = config.experts.as_ref()?.names;
            let part = match matrix {
                Matrix::Gate => gate,
                Matrix::Up => up,
                Matrix::Down => down,
                Matrix::Query | Matrix::Key | Matrix::Value | Matrix::Output => return None,
            };
            format!("{block}.experts.{number}.{part}.weight")
        }
    };
    Some(format!("model.layers.{layer}.{name}"))
}

/// The name of a matrix within its layer.
pub fn module(matrix: Matrix) -> &'static str {
    match matrix {
        Matrix::Query => "self_attn.q_proj",
        Matrix::Key => "self_attn.k_proj",
        Matrix::Value => "self_attn.v_proj",
        Matrix::Output => "self_attn.o_proj",
        Matrix::Gate => "mlp.gate_proj",
        Matrix::Up => "mlp.up_proj",
        Matrix::Down => "mlp.down_proj",
    }
}

/// The matrix of a name within its layer.
pub fn matrix(module_name: &str) -> Option<Matrix> {
    const ALL: [Matrix; 7] =
        [Matrix::Query, Matrix::Key, Matrix::Value, Matrix::Output, Matrix::Gate, Matrix::Up, Matrix::Down];
    ALL.into_iter().find(|matrix| module(*matrix) == module_name)
}

#[cfg(test)]
mod tests {
    use mloc_cpu::{Keep, held};
    use serde_json::json;

    use super::*;
    use crate::shape;

    /// A layer of 256 columns as K-quants have it: most in Q4_K, some of what is felt in Q6_K, norms in f32.
    struct KQuants(DecoderConfig);

    impl TensorSource for KQuants {
        fn names(&self) -> Vec<String> {
            let matrices = ["q", "k", "v", "o"].map(|m| format!("self_attn.{m}_proj"));
            let others =
                ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"];
            let parts = matrices.into_iter().chain(others.map(str::to_owned));
            let outside = ["model.embed_tokens.weight", "model.norm.weight"].map(str::to_owned);
            parts.map(|part| format!("model.layers.0.{part}.weight")).chain(outside).collect()
        }

        fn shape(&self, name: &str) -> Option<Vec<usize>> {
            self.names().contains(&name.to_owned()).then(|| vec![256, 256])
        }

        fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
            let bytes = self.read_stored(name)?;
            Ok(self.stored(name).map_or(Vec::new(), |kind| kind.dequantise(&bytes)))
        }

        fn stored(&self, name: &str) -> Option<TensorType> {
            Some(match name {
                _ if name.contains("norm") => TensorType::F32,
                _ if ["v_proj", "down_proj", "embed_tokens"].iter().any(|part| name.contains(part)) => TensorType::Q6_K,
                _ => TensorType::Q4_K,
            })
        }

        fn read_stored(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
            let kind = self.stored(name).ok_or_else(|| WeightsError::Missing(name.to_owned()))?;
            Ok(vec![0; 256 * 256 / kind.block_len() * kind.block_bytes()])
        }
    }

    #[test]
    fn what_no_format_holds_is_rounded_where_it_is_held_as_stored_and_that_is_said() {
        let config = DecoderConfig::from_json(json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 256, "intermediate_size": 256,
            "num_hidden_layers": 1, "num_attention_heads": 4, "tie_word_embeddings": true,
        }));
        let source = KQuants(config.expect("a config"));
        let architecture = shape::architecture(&source.0).expect("served");
        let as_stored = Keep { layers: None, head: None };
        let role = |matrix| Role::Layer(0, Part::Matrix(matrix));

        let rounds = Tensors::new(&source, &source.0, true, &|| false);
        assert_eq!(rounds.format(role(Matrix::Query)), Some(Format::Uint4));
        assert_eq!(rounds.format(role(Matrix::Value)), Some(Format::Int8));
        for role in [role(Matrix::Query), role(Matrix::Value), Role::Embedding, Role::FinalNorm] {
            let given = rounds.get(role).map(|values| values.format());
            assert_eq!(given, rounds.format(role), "{role:?} comes as it is said to");
        }
        assert_eq!(rounds.format(Role::Layer(0, Part::Bias(Matrix::Query))), None);
        // Queries, keys and values are one product.
        assert_eq!(
            rounds.described(&held(&architecture, &rounds, as_stored)),
            "int8 and uint4, rounded from Q4_K, Q6_K; products of matrices in several formats, in one of them: 1"
        );

        let exact = Tensors::new(&source, &source.0, false, &|| false);
        assert_eq!(exact.format(role(Matrix::Query)), Some(Format::F32));
        assert_eq!(exact.described(&held(&architecture, &exact, Keep::all(Format::F32))), "f32");

        let stopped = Tensors::new(&source, &source.0, true, &|| true);
        assert!(stopped.get(Role::Embedding).is_none());
        assert!(matches!(stopped.trouble(), Some(WeightsError::Interrupted)));
    }
}
