//! What was trained and what was measured, as files among the artifacts.

use std::{collections::BTreeMap, path::Path};

use mloc_burn::{
    export::{self, Storage},
    formats::tokenizer::TextTokenizer,
    lora,
    model::Decoder,
};
use mloc_core::task::spec::Location;
use mloc_exec::{ModuleError, Output, RunContext};
use serde_json::Value;

use crate::fatal;

/// The folder of the merged model.
const MERGED: &str = "merged_model";
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

/// The whole model among the artifacts.
///
/// # Errors
/// Those of the disk, and that it was asked to stop.
pub fn save_model(ctx: &RunContext, model: &Decoder) -> Result<Vec<Output>, ModuleError> {
    export::write_model(model, ctx.artifacts(), Storage::F32, &|| ctx.stopping())
        .map_err(|e| ctx.check().err().unwrap_or_else(|| ModuleError::Retryable(e.to_string())))?;
    let output = |path: &str| Output { path: path.into(), kind: "full_model".into() };
    Ok(vec![output("model.safetensors"), output("config.json")])
}

/// The base with the adapter in it, loadable by itself, in a folder of its own among the artifacts.
///
/// # Errors
/// Those of the disk, and that it was asked to stop.
pub fn save_merged(ctx: &RunContext, model: &Decoder, tokenizer: &TextTokenizer) -> Result<Vec<Output>, ModuleError> {
    let folder = ctx.artifacts().join(MERGED);
    std::fs::create_dir_all(&folder).map_err(|e| ModuleError::disk("make", &folder, &e))?;
    export::write_model(model, &folder, Storage::F32, &|| ctx.stopping())
        .map_err(|e| ctx.check().err().unwrap_or_else(|| ModuleError::Retryable(e.to_string())))?;
    let files = tokenizer.save(&folder).map_err(|e| ModuleError::Retryable(e.to_string()))?;
    let names = files.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let names = ["model.safetensors".to_owned(), "config.json".to_owned()].into_iter().chain(names);
    Ok(names.map(|name| Output { path: format!("{MERGED}/{name}"), kind: "merged_model".into() }).collect())
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
        let base_name = ctx.run().spec.model.as_ref().map(|m| base_name(&m.source)).unwrap_or_default();
        lora::save(model, ctx.artifacts(), &base_name).map_err(|e| ModuleError::Retryable(e.to_string()))?;
        for path in ["adapter_model.safetensors", "adapter_config.json"] {
            outputs.push(Output { path: path.into(), kind: "adapter_weights".into() });
        }
        if ctx.wants("merged_model") {
            if model.four_bit().next().is_some() {
                ctx.log(
                    "merged_model: the adapter is added to the weights as they come out of 4 bits, which it was trained on, \
                     and the sum is stored in f32",
                );
            }
            outputs.extend(save_merged(ctx, model, tokenizer)?);
        }
    } else {
        outputs.extend(save_model(ctx, model)?);
    }
    outputs.extend(save_tokenizer(ctx, tokenizer)?);
    Ok(outputs)
}

/// What PEFT calls `base_model_name_or_path`.
fn base_name(source: &Location) -> String {
    match source {
        Location::Local { path } => path.clone(),
        Location::S3 { bucket, path, .. } => format!("s3://{bucket}/{path}"),
        Location::Gcs { bucket, path, .. } => format!("gs://{bucket}/{path}"),
        Location::Azblob { container, path, .. } => format!("az://{container}/{path}"),
        Location::Http { url, .. } | Location::Git { url, .. } => url.clone(),
        Location::HuggingFace { identifier, .. } | Location::Task { identifier, .. } => identifier.clone(),
        Location::Submitted { path, .. } => path.clone(),
        Location::Kept { attempt, .. } => attempt.task.to_string(),
    }
}
