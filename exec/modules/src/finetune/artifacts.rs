//! What was trained and what was measured, as files among the artifacts.

use std::{collections::BTreeMap, path::Path};

use mloc_burn::{
    export::{self, GgufStorage, Storage},
    formats::{gguf::GgufError, tokenizer::TextTokenizer},
    lora,
    model::Decoder,
};
use mloc_exec::{ModuleError, Output, RunContext};
use serde_json::{Value, json};

use crate::{fatal, model_card, unless_stopping};

/// The folder of the merged model.
const MERGED: &str = "merged_model";
/// How the model generates, beside its weights.
const GENERATION: &str = "generation_config.json";
/// GGUF files that may be asked for.
const GGUF: [(&str, GgufStorage); 4] = [
    ("gguf", GgufStorage::F16),
    ("gguf:f16", GgufStorage::F16),
    ("gguf:q8_0", GgufStorage::Q8_0),
    ("gguf:q4_0", GgufStorage::Q4_0),
];
/// The file of what was measured.
const EVAL_FILE: &str = "eval_results.json";

/// What was measured on held-out data, as a file; nothing where nothing was.
///
/// # Errors
/// Those of the disk.
pub fn save_eval(ctx: &RunContext, summary: &BTreeMap<String, Value>) -> Result<Option<Output>, ModuleError> {
    let mut measured = BTreeMap::new();
    for (name, value) in summary {
        // Names of the reference: the plain one is of the trained model.
        let name = match (name.strip_suffix("_after"), name.strip_suffix("_before")) {
            (Some(plain), _) if plain.starts_with("eval_") => plain.to_owned(),
            (_, Some(plain)) if plain.starts_with("eval_") => format!("{plain}_before_training"),
            _ if name == "samples" => name.clone(),
            _ => continue,
        };
        measured.insert(name, value);
    }
    if measured.is_empty() {
        return Ok(None);
    }
    let path = ctx.artifacts().join(EVAL_FILE);
    let text = serde_json::to_vec_pretty(&measured).map_err(fatal)?;
    std::fs::write(&path, text).map_err(|e| ModuleError::disk("write", &path, &e))?;
    Ok(Some(Output { path: EVAL_FILE.into(), kind: "eval_results".into() }))
}

/// Whether what the task asks for can be written of this model: said before hours of training, and not after.
///
/// # Errors
/// A model or tokenizer that GGUF has no words for, where such a file is asked for; a generation_config.json that is none.
pub fn check(ctx: &RunContext, model: &Decoder, tokenizer: &TextTokenizer) -> Result<(), ModuleError> {
    if model.adapter.is_none() || ctx.wants("merged_model") {
        generation_config(ctx, model, tokenizer)?;
    }
    match GGUF.iter().find(|(kind, _)| ctx.wants(kind)) {
        Some((kind, _)) => export::check_gguf(model, tokenizer)
            .map_err(|e| ModuleError::Fatal(format!("output.artifacts: {kind}: {e}"))),
        None => Ok(()),
    }
}

/// The whole model among the artifacts, with a GGUF file of it where that is asked for.
///
/// # Errors
/// Those of the disk, and that it was asked to stop.
pub fn save_model(ctx: &RunContext, model: &Decoder, tokenizer: &TextTokenizer) -> Result<Vec<Output>, ModuleError> {
    let files = write_model(ctx, model, tokenizer, ctx.artifacts())?;
    let mut outputs: Vec<_> = files.into_iter().map(|path| Output { path, kind: "full_model".into() }).collect();
    outputs.extend(save_gguf(ctx, model, tokenizer)?);
    Ok(outputs)
}

/// Weights, config.json and generation_config.json in a folder.
fn write_model(
    ctx: &RunContext,
    model: &Decoder,
    tokenizer: &TextTokenizer,
    folder: &Path,
) -> Result<Vec<String>, ModuleError> {
    let mut files = export::write_model(model, folder, Storage::F32, &|| ctx.stopping())
        .map_err(|e| ctx.check().err().unwrap_or_else(|| ModuleError::Retryable(e.to_string())))?;
    let path = folder.join(GENERATION);
    let text = format!("{:#}\n", generation_config(ctx, model, tokenizer)?);
    std::fs::write(&path, text).map_err(|e| ModuleError::disk("write", &path, &e))?;
    files.push(GENERATION.to_owned());
    Ok(files)
}

/// What the base says of generating, and for one that says nothing its tokens.
fn generation_config(ctx: &RunContext, model: &Decoder, tokenizer: &TextTokenizer) -> Result<Value, ModuleError> {
    let of_base = ctx.run().inputs.model.as_ref().map(|folder| folder.join(GENERATION)).filter(|path| path.is_file());
    if let Some(path) = of_base {
        let text = std::fs::read(&path).map_err(|e| ModuleError::disk("read", &path, &e))?;
        return serde_json::from_slice(&text).map_err(|e| fatal(format!("{}: {e}", path.display())));
    }
    let mut config = json!({ "do_sample": false });
    let ends = &model.config.eos_token_ids;
    let end = match ends.as_slice() {
        [] => tokenizer.eos_id().map(Value::from),
        [one] => Some(json!(one)),
        several => Some(json!(several)),
    };
    for (name, id) in [
        ("bos_token_id", tokenizer.bos_id().map(Value::from)),
        ("eos_token_id", end),
        ("pad_token_id", tokenizer.pad_id().map(Value::from)),
    ] {
        if let Some(id) = id {
            config[name] = id;
        }
    }
    Ok(config)
}

/// A file for each kind of GGUF that is asked for.
fn save_gguf(ctx: &RunContext, model: &Decoder, tokenizer: &TextTokenizer) -> Result<Vec<Output>, ModuleError> {
    let mut outputs: Vec<Output> = Vec::new();
    for (kind, storage) in GGUF.into_iter().filter(|(kind, _)| ctx.wants(kind)) {
        let path = format!("model-{}.gguf", storage.name());
        if outputs.iter().any(|made| made.path == path) {
            continue;
        }
        export::write_gguf(model, tokenizer, &ctx.artifacts().join(&path), storage, &|| ctx.stopping()).map_err(
            |e| {
                let said = format!("output.artifacts: {kind}: {e}");
                match e {
                    GgufError::Io { .. } => ModuleError::Retryable(said),
                    _ => unless_stopping(ctx, said),
                }
            },
        )?;
        outputs.push(Output { path, kind: (*kind).into() });
    }
    Ok(outputs)
}

/// The base with the adapter in it: loadable by itself, in a folder of its own among the artifacts, and as GGUF, whichever is
/// asked for.
///
/// # Errors
/// Those of the disk, and that it was asked to stop.
pub fn save_merged(ctx: &RunContext, model: &Decoder, tokenizer: &TextTokenizer) -> Result<Vec<Output>, ModuleError> {
    let mut outputs = save_gguf(ctx, model, tokenizer)?;
    if ctx.wants("merged_model") {
        let folder = ctx.artifacts().join(MERGED);
        std::fs::create_dir_all(&folder).map_err(|e| ModuleError::disk("make", &folder, &e))?;
        let mut names = write_model(ctx, model, tokenizer, &folder)?;
        let files = tokenizer.save(&folder).map_err(|e| ModuleError::Retryable(e.to_string()))?;
        names.extend(files.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())));
        let output = |name| Output { path: format!("{MERGED}/{name}"), kind: "merged_model".into() };
        outputs.extend(names.into_iter().map(output));
    }
    Ok(outputs)
}

/// Copies of the tokenizer's files among the artifacts.
///
/// # Errors
/// Those of the disk.
pub fn save_tokenizer(ctx: &RunContext, tokenizer: &TextTokenizer) -> Result<Vec<Output>, ModuleError> {
    let files = tokenizer.save(ctx.artifacts()).map_err(|e| ModuleError::Retryable(e.to_string()))?;
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    Ok(files.iter().filter_map(|p| name(p)).map(|path| Output { path, kind: "tokenizer".into() }).collect())
}

/// What a fine-tuned model is published as: its adapter, with the merged model where that is asked for, or the whole
/// model; and its tokenizer.
///
/// # Errors
/// Those of the disk, and that it was asked to stop.
pub fn save_tuned(
    ctx: &mut RunContext,
    model: &Decoder,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Output>, ModuleError> {
    let mut outputs = Vec::new();
    if model.adapter.is_some() {
        let base_name = ctx.run().spec.model.as_ref().map(|m| model_card::show(&m.source)).unwrap_or_default();
        lora::save(model, ctx.artifacts(), &base_name).map_err(|e| ModuleError::Retryable(e.to_string()))?;
        for path in ["adapter_model.safetensors", "adapter_config.json"] {
            outputs.push(Output { path: path.into(), kind: "adapter_weights".into() });
        }
        let merged = ctx.wants("merged_model") || GGUF.iter().any(|(kind, _)| ctx.wants(kind));
        if merged && model.four_bit().next().is_some() {
            ctx.log(
                "merged_model, gguf: the adapter is added to the weights as they come out of 4 bits, which it was trained on, \
                 and the sum is stored",
            );
        }
        outputs.extend(save_merged(ctx, model, tokenizer)?);
    } else {
        outputs.extend(save_model(ctx, model, tokenizer)?);
    }
    outputs.extend(save_tokenizer(ctx, tokenizer)?);
    Ok(outputs)
}
