//! What gives the hidden states that vectors are made of: an encoder, or a decoder without its head.

use burn::tensor::Tensor;

use super::EmbeddingError;
use crate::batch::Batch;
use crate::model::encoder::RowError;
use crate::model::packed::Group;
use crate::model::{Decoder, Encoder, EncoderRow, KeyValueCache, Packed};

/// Tokens of a text up to which a decoder reads it whole: of every two tokens there is a score for each head.
const WHOLE: usize = 512;
/// Tokens that are read at a time of a longer one.
const PIECE: usize = 256;

/// A model of hidden states.
#[derive(Debug, Clone)]
pub enum Backbone {
    /// Every token sees all of its text.
    Encoder(Encoder),
    /// A token sees what is before it, so that the last alone has seen all.
    Decoder(Box<Decoder>),
}

/// The hidden states of some rows.
pub struct States {
    /// `[tokens, width]`.
    pub hidden: Tensor<2>,
    /// Which of them are whose, covering all tokens.
    pub groups: Vec<Group>,
}

impl Backbone {
    /// The class name in config.json.
    pub fn architecture(&self) -> &str {
        match self {
            Self::Encoder(encoder) => &encoder.config.architecture,
            Self::Decoder(decoder) => &decoder.config.architecture,
        }
    }

    /// Width of the hidden states.
    pub fn width(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.config.hidden_size,
            Self::Decoder(decoder) => decoder.config.hidden_size,
        }
    }

    /// The longest text, in tokens, special ones included.
    pub fn longest(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.config.max_position_embeddings,
            Self::Decoder(decoder) => decoder.config.max_position_embeddings,
        }
    }

    /// The last hidden states of each row's tokens, without padding.
    ///
    /// # Errors
    /// A row that is empty, longer than the model takes, or has an id that the model does not know.
    pub fn states(&self, rows: &[EncoderRow]) -> Result<States, EmbeddingError> {
        match self {
            Self::Encoder(encoder) => {
                let input = encoder.input(rows)?;
                Ok(States { hidden: encoder.hidden(&input), groups: input.packed.groups })
            }
            Self::Decoder(decoder) => {
                let check = |(row, found): (usize, &EncoderRow)| {
                    problem(decoder, &found.ids).map_or(Ok(()), |problem| Err(RowError { row, problem }))
                };
                rows.iter().enumerate().try_for_each(check)?;
                Ok(decoder_states(decoder, rows))
            }
        }
    }
}

fn problem(decoder: &Decoder, ids: &[i64]) -> Option<String> {
    let (longest, vocabulary) = (decoder.config.max_position_embeddings, decoder.config.vocab_size);
    if ids.is_empty() || ids.len() > longest {
        return Some(format!("{} tokens; the model takes 1 to {longest}", ids.len()));
    }
    let unknown = ids.iter().find(|id| !(0..vocabulary as i64).contains(*id))?;
    Some(format!("token id {unknown}, the vocabulary has {vocabulary}"))
}

fn decoder_states(decoder: &Decoder, rows: &[EncoderRow]) -> States {
    if rows.iter().all(|row| row.ids.len() <= WHOLE) {
        let packed = packed(decoder, rows);
        return States { hidden: decoder.hidden(&packed), groups: packed.groups };
    }
    let (mut parts, mut groups, mut start) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let mut cache = KeyValueCache::new(decoder.layers.len());
        for piece in row.ids.chunks(PIECE) {
            let packed = Packed::continuation(piece, cache.tokens(), &decoder.config, decoder.device());
            parts.push(decoder.hidden_cached(&packed, &mut cache));
        }
        groups.push(Group { start, rows: 1, length: row.ids.len(), past: 0 });
        start += row.ids.len();
    }
    States { hidden: Tensor::cat(parts, 0), groups }
}

fn packed(decoder: &Decoder, rows: &[EncoderRow]) -> Packed {
    let rows: Vec<_> = rows.iter().map(|row| (row.ids.clone(), row.ids.clone())).collect();
    // The padding is taken out again: rows of equal length are attended over together.
    Packed::new(&Batch::collate(&rows, 0), &decoder.config, decoder.device())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::model::DecoderConfig;
    use crate::model::parameter::host_values;

    #[test]
    fn a_long_text_is_read_in_pieces_without_a_trace() {
        let config = DecoderConfig::from_json(json!({
            "architectures": ["Qwen3ForCausalLM"], "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
            "initializer_range": 0.5, "tie_word_embeddings": true,
        }));
        let decoder = Box::new(Decoder::random(config.expect("a config"), 3, &Device::flex()));
        let ids: Vec<i64> = (0..600).map(|i| (i * i * 7 + i) % 32).collect();
        let row = |ids: &[i64]| EncoderRow { ids: ids.to_vec(), type_ids: Vec::new() };
        let rows = [row(&ids), row(&ids[..5])];
        let whole = host_values(decoder.hidden(&packed(&decoder, &rows)));
        let states = Backbone::Decoder(decoder).states(&rows).expect("rows");
        assert_eq!(
            states.groups.iter().map(|group| (group.start, group.length)).collect::<Vec<_>>(),
            [(0, 600), (600, 5)]
        );
        for (found, wanted) in host_values(states.hidden).iter().zip(&whole) {
            assert!((found - wanted).abs() < 1e-4, "{found} for {wanted}");
        }
    }
}
