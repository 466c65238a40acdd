//! `taskType: pretrain`: a tokenizer trained on the data's texts, then a Llama of the given shape from random weights.

use std::{
    cell::Cell,
    sync::{atomic::Ordering, mpsc},
    thread,
};

use mloc_burn::{
    formats::{
        dataset::{self, DatasetError},
        tokenizer::TextTokenizer,
        train_tokenizer::{self, TokenizerTraining},
    },
    model::{Decoder, DecoderConfig},
};
use mloc_core::task::{
    TaskSpec,
    settings::{Shape, Training},
};
use mloc_exec::{Module, ModuleError, ModuleOutput, RunContext};
use serde_json::json;

use crate::{
    adapter, base_model, fatal,
    finetune::{
        artifacts,
        data::{self, Form, Source},
        examples::{self, Examples},
        over_data::OverData,
        session, start,
    },
    unless_stopping,
};

/// The module.
pub struct Pretrain;

impl Module for Pretrain {
    fn name(&self) -> &'static str {
        "pretrain"
    }

    fn set_up_process(&self) {
        mloc_burn::allocator::keep_freed_memory();
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let spec = ctx.run().spec.clone();
        let (settings, shape) = (Training::of(&spec), Shape::of(&spec));
        let devices = base_model::open_devices(ctx)?;
        let formats = adapter::formats(ctx, None, settings.precision, &devices.first)?;
        // Trained anew after a crash: the same texts give the same tokenizer.
        let training = TokenizerTraining {
            vocab_size: shape.vocab_size,
            model_max_length: shape.max_position_embeddings,
            ..TokenizerTraining::default()
        };
        let tokenizer = tokenizer(ctx, &training)?;
        let tokenizer = start::with_chat_template(ctx, tokenizer)?;
        ctx.check()?;

        let config =
            DecoderConfig::from_json(config(&shape, tokenizer.vocab_size(), [tokenizer.bos_id(), tokenizer.eos_id()]))
                .map_err(fatal)?;
        let mut model = Decoder::random(config, settings.seed, &devices.first);
        model.train_all();
        let data = examples::data(ctx, &tokenizer, &model, &settings)?;
        model.set_compute(formats.compute);
        model.checkpointing = settings.gradient_checkpointing;
        let recipe = Examples::new(&tokenizer, &settings, |ctx, model| {
            let mut outputs = artifacts::save_model(ctx, model, &tokenizer)?;
            outputs.extend(artifacts::save_tokenizer(ctx, &tokenizer)?);
            Ok(outputs)
        });
        let replicas = devices.replicas(&model);
        let method = OverData::new(ctx, recipe, data, &model, &tokenizer, &settings, devices.count())?;
        session::run(ctx, method, model, replicas, &settings)
    }
}

/// A tokenizer of the texts of the data, which are read on a thread of their own and taken from it one by one: they need
/// not fit into memory.
fn tokenizer(ctx: &mut RunContext, training: &TokenizerTraining) -> Result<TextTokenizer, ModuleError> {
    let Source { path, options } = data::training_source(ctx, Form::Examples)?;
    let stop = ctx.asked().stop;
    let (send, receive) = mpsc::sync_channel(TEXTS_AHEAD);
    let mut texts = 0u64;
    let (read, trained) = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            // Nobody takes the texts any more: then the tokenizer's own error is the one to be told.
            let gone = Cell::new(false);
            dataset::for_each(&path, &options, &mut |_| gone.get() || stop.load(Ordering::Relaxed), &mut |row| {
                gone.set(row.example.texts().into_iter().any(|text| send.send(text).is_err()));
                Ok(())
            })
        });
        let trained = train_tokenizer::train(receive.into_iter().inspect(|_| texts += 1), training);
        (reader.join(), trained)
    });
    let read = read.map_err(|_| ModuleError::Fatal("the thread that reads texts panicked".to_owned()))?;
    ctx.check()?;
    let tokenizer = match (read, trained) {
        (Err(DatasetError::Interrupted), Err(error)) => return Err(fatal(error)),
        (Err(error), _) => return Err(unless_stopping(ctx, error)),
        (Ok(_), trained) => trained.map_err(fatal)?,
    };
    ctx.log(format!("tokenizer: {} tokens from {texts} texts", tokenizer.vocab_size()));
    Ok(tokenizer)
}

/// Texts that are read before they are asked for.
const TEXTS_AHEAD: usize = 64;

/// The shape of the model that a task will make, with all the tokens it asks for.
///
/// # Errors
/// A shape that is none.
pub fn config_of(spec: &TaskSpec) -> Result<DecoderConfig, ModuleError> {
    let shape = Shape::of(spec);
    DecoderConfig::from_json(config(&shape, shape.vocab_size, [None, None])).map_err(fatal)
}

/// The config.json of the model to be, with so many tokens, of which one begins texts and one ends them.
fn config(shape: &Shape, vocab_size: usize, [begin, end]: [Option<u32>; 2]) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
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
        "bos_token_id": begin,
        "eos_token_id": end,
        "torch_dtype": "float32",
    })
}
