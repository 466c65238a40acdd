//! Tensors by their names in files, as the processor's decoder asks for them: by role.

use std::sync::{Mutex, PoisonError};

use mloc_burn::{
    model::DecoderConfig,
    weights::{TensorSource, WeightsError},
};
use mloc_cpu::weights::{Matrix, Part, Role, Values, Weights};

/// The tensors of a checkpoint that fits its config.
pub struct Tensors<'a> {
    source: &'a (dyn TensorSource + Sync),
    config: &'a DecoderConfig,
    /// Asked before each tensor: billions of weights take minutes.
    stopping: &'a (dyn Fn() -> bool + Sync),
    trouble: Mutex<Option<WeightsError>>,
}

impl<'a> Tensors<'a> {
    /// Of a source.
    pub fn new(
        source: &'a (dyn TensorSource + Sync),
        config: &'a DecoderConfig,
        stopping: &'a (dyn Fn() -> bool + Sync),
    ) -> Self {
        Self { source, config, stopping, trouble: Mutex::default() }
    }

    /// What went wrong while tensors were read.
    pub fn trouble(self) -> Option<WeightsError> {
        self.trouble.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        if (self.stopping)() { Err(WeightsError::Interrupted) } else { self.source.read_f32(name) }
    }
}

impl Weights for Tensors<'_> {
    fn get(&self, role: Role) -> Option<Values<'_>> {
        let name = name(role, self.config)?;
        // Biases may be absent; that all else is there was checked.
        self.source.shape(&name)?;
        match self.read(&name) {
            Ok(mut values) => {
                if is_norm(role) && self.config.norm_offset != 0.0 {
                    let offset = self.config.norm_offset as f32;
                    values.iter_mut().for_each(|value| *value += offset);
                }
                Some(Values::F32(values.into()))
            }
            Err(error) => {
                self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                None
            }
        }
    }
}

fn is_norm(role: Role) -> bool {
    match role {
        Role::FinalNorm => true,
        Role::Embedding | Role::Head => false,
        Role::Layer(_, part) => !matches!(part, Part::Matrix(_) | Part::Bias(_)),
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
