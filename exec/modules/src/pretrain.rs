//! `taskType: pretrain`: a tokenizer trained on the data's texts, then a Llama of the given shape from random weights.

use mloc_burn::{
    formats::{
        tokenizer::TextTokenizer,
        train_tokenizer::{self, TokenizerTraining},
    },
    model::{Decoder, DecoderConfig},
};
use mloc_core::task::settings::{Shape, Training};
use mloc_exec::{Module, ModuleError, ModuleOutput, RunContext};
use serde_json::json;

use crate::{
    adapter, base_model, fatal,
    finetune::{
        artifacts,
        data::{self, Form},
        examples::{self, Examples},
        over_data::OverData,
        session,
    },
};

/// The module.
pub struct Pretrain;

impl Module for Pretrain {
    fn name(&self) -> &'static str {
        "pretrain"
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let spec = ctx.run().spec.clone();
        let (settings, shape) = (Training::of(&spec), Shape::of(&spec));
        let device = base_model::open_device(ctx)?;
        let formats = adapter::formats(ctx, None, settings.precision, &device)?;
        let rows = data::training_rows(ctx, Form::Examples)?;
        // Trained anew after a crash: the same texts give the same tokenizer.
        let texts: Vec<String> = rows.iter().flat_map(|row| row.example.texts()).collect();
        let training = TokenizerTraining {
            vocab_size: shape.vocab_size,
            model_max_length: shape.max_position_embeddings,
            ..TokenizerTraining::default()
        };
        let tokenizer = train_tokenizer::train(&texts, &training).map_err(fatal)?;
        ctx.log(format!("tokenizer: {} tokens from {} texts", tokenizer.vocab_size(), texts.len()));
        ctx.check()?;

        let config = DecoderConfig::from_json(config(&shape, &tokenizer)).map_err(fatal)?;
        let mut model = Decoder::random(config, settings.seed, &device);
        model.train_all();
        model.set_compute(formats.compute);
        model.checkpointing = settings.gradient_checkpointing;
        let data = examples::data(ctx, &rows, &tokenizer, &settings)?;
        drop(rows);
        let recipe = Examples::new(&tokenizer, &settings, |ctx, model| {
            let mut outputs = artifacts::save_model(ctx, model)?;
            outputs.extend(artifacts::save_tokenizer(ctx, &tokenizer)?);
            Ok(outputs)
        });
        let method = OverData::new(ctx, recipe, data, &model, &tokenizer, &settings)?;
        session::run(ctx, method, model, &settings)
    }
}

/// The config.json of the model to be.
fn config(shape: &Shape, tokenizer: &TextTokenizer) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.vocab_size(),
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "max_position_embeddings": shape.max_position_embeddings,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_norm_eps,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "initializer_range": shape.initializer_range,
        "hidden_act": "silu",
        "bos_token_id": tokenizer.bos_id(),
        "eos_token_id": tokenizer.eos_id(),
        "torch_dtype": "float32",
    })
}
