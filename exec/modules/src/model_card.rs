//! `README.md` beside the weights: what they are, what they were made of and how, and how to use them; with the head of
//! YAML that the Hugging Face Hub reads.

use std::collections::BTreeMap;

use mloc_core::task::{
    TaskSpec, canonical,
    kind::TaskType,
    spec::{Input, Location, Pin},
};
use mloc_exec::{ModuleError, Output, RunContext, VERSION};
use serde_json::{Value, json};

/// The file among the artifacts.
const FILE: &str = "README.md";

/// Writes the card of a finished run. `summary` are its figures.
///
/// # Errors
/// Those of the disk.
pub fn save(ctx: &RunContext, summary: &BTreeMap<String, Value>) -> Result<Output, ModuleError> {
    let path = ctx.artifacts().join(FILE);
    let text = card(&ctx.run().spec, &ctx.run().pins, summary);
    std::fs::write(&path, text).map_err(|e| ModuleError::disk("write", &path, &e))?;
    Ok(Output { path: FILE.into(), kind: "model_card".into() })
}

fn card(spec: &TaskSpec, pins: &BTreeMap<Input, Pin>, summary: &BTreeMap<String, Value>) -> String {
    let adapter = spec.model.as_ref().and_then(|model| model.adapter.as_ref());
    let base = spec.model.as_ref().map(|model| show(&model.source));
    let mut text = head(spec, base.as_deref());
    let mut line = |added: &str| {
        text.push_str(added);
        text.push('\n');
    };
    line(&format!("\n# {}\n", spec.metadata.name));
    let made = match (&base, adapter) {
        (Some(base), Some(adapter)) => format!("A {} adapter for {base}", adapter.kind.name()),
        (Some(base), None) => format!("{base}, all its weights trained"),
        (None, _) => "A model made from nothing".to_owned(),
    };
    line(&format!("{made}, by MLOC {VERSION} with the task type `{}`.", spec.task_type));

    line("\n## Use\n\n```python");
    line(&usage(spec.task_type, adapter.is_some(), base.as_deref()));
    line("```");

    line("\n## Made of\n\n| | where | version | files | bytes |\n|---|---|---|---|---|");
    let inputs = [
        (Input::Model, "base model", spec.model.as_ref().map(|m| &m.source)),
        (Input::Adapter, "adapter to start from", adapter.and_then(|a| a.source.as_ref())),
        (Input::Dataset, "training data", spec.dataset.as_ref().map(|d| &d.source)),
        (Input::Eval, "held-out data", spec.dataset.as_ref().and_then(|d| d.eval.as_ref())),
        (Input::Reward, "reward model", spec.reward.as_ref().and_then(|r| r.model.as_ref())),
        (Input::Reference, "reference model", spec.model.as_ref().and_then(|m| m.reference.as_ref())),
        (Input::Value, "model of values", spec.model.as_ref().and_then(|m| m.value.as_ref())),
    ];
    for (input, what, place) in inputs {
        let Some(place) = place else { continue };
        let pin = pins.get(&input).map(|pin| format!("`{}` | {} | {}", pin.version, pin.files, pin.bytes));
        line(&format!("| {what} | {} | {} |", cell(&show(place)), pin.unwrap_or_else(|| "| |".to_owned())));
    }

    line("\n## Settings\n\nHyperparameters that are not listed had their defaults.\n\n| name | value |\n|---|---|");
    for (name, value) in &spec.hyperparameters {
        line(&format!("| `{name}` | {} |", cell(&value.to_string())));
    }
    let whole = canonical::value(spec);
    for (prefix, pointer) in [
        ("adapter", "/spec/model/adapter"),
        ("preprocessing", "/spec/dataset/preprocessing"),
        ("reward", "/spec/reward"),
    ] {
        for (name, value) in whole.pointer(pointer).and_then(Value::as_object).into_iter().flatten() {
            // Places are in the table above.
            if !["source", "model", "code"].contains(&name.as_str()) {
                let shown = if value.is_number() { value.to_string() } else { cell(&value.to_string()) };
                line(&format!("| `{prefix}.{name}` | {shown} |"));
            }
        }
    }
    if let Some(size) = whole.pointer("/spec/dataset/test_size") {
        line(&format!("| `dataset.test_size` | {size} |"));
    }

    line("\n## Figures\n\n| name | value |\n|---|---|");
    for (name, value) in summary.iter().filter(|(_, value)| value.is_number()) {
        line(&format!("| `{name}` | {value} |"));
    }
    line("\nEach step is in `training_log.jsonl`, and in a TensorBoard event file beside it.");
    text
}

/// What the Hub reads.
fn head(spec: &TaskSpec, base: Option<&str>) -> String {
    let adapter = spec.model.as_ref().and_then(|model| model.adapter.as_ref());
    let mut tags = vec!["mloc".to_owned(), spec.task_type.name().to_owned()];
    let mut head = BTreeMap::from([
        ("library_name", json!(if adapter.is_some() { "peft" } else { "transformers" })),
        ("model_name", json!(spec.metadata.name)),
        ("pipeline_tag", json!(if scores(spec.task_type) { "text-classification" } else { "text-generation" })),
    ]);
    let hub = |place: &Location| match place {
        Location::HuggingFace { identifier, .. } => Some(identifier.clone()),
        _ => None,
    };
    if let Some(adapter) = adapter {
        tags.push(adapter.kind.name().to_owned());
    }
    // Elsewhere than on the Hub a base has no name there; the reference writes its path all the same.
    if let Some(base) = spec.model.as_ref().and_then(|m| hub(&m.source)).or(base.map(str::to_owned)) {
        head.insert("base_model", json!(base));
    }
    if let Some(data) = spec.dataset.as_ref().and_then(|d| hub(&d.source)) {
        head.insert("datasets", json!([data]));
    }
    head.insert("tags", json!(tags));
    let mut text = "---\n".to_owned();
    for (key, value) in head {
        // Any JSON value is a YAML value.
        text.push_str(&format!("{key}: {value}\n"));
    }
    text.push_str("---\n");
    text
}

/// Whether what was made gives a score instead of tokens.
fn scores(task_type: TaskType) -> bool {
    task_type == TaskType::Rm
}

fn usage(task_type: TaskType, adapter: bool, base: Option<&str>) -> String {
    let base = json!(base.unwrap_or_default());
    let (class, labels) = match scores(task_type) {
        true => ("AutoModelForSequenceClassification", ", num_labels=1"),
        false => ("AutoModelForCausalLM", ""),
    };
    let here = "\"path/to/this/folder\"";
    match adapter {
        true => format!(
            "from peft import PeftModel\nfrom transformers import {class}, AutoTokenizer\n\nbase = \
             {class}.from_pretrained({base}{labels})\nmodel = PeftModel.from_pretrained(base, {here})\ntokenizer = \
             AutoTokenizer.from_pretrained({here})"
        ),
        false => format!(
            "from transformers import {class}, AutoTokenizer\n\nmodel = {class}.from_pretrained({here})\ntokenizer = \
             AutoTokenizer.from_pretrained({here})"
        ),
    }
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    let flat = text.replace(['\n', '\r'], " ").replace('|', "\\|");
    if flat.is_empty() { flat } else { format!("`{}`", flat.replace('`', "'")) }
}

/// A place as PEFT and people name it.
pub fn show(source: &Location) -> String {
    match source {
        Location::Local { path } | Location::Submitted { path, .. } => path.clone(),
        Location::S3 { bucket, path, .. } => format!("s3://{bucket}/{path}"),
        Location::Gcs { bucket, path, .. } => format!("gs://{bucket}/{path}"),
        Location::Azblob { container, path, .. } => format!("az://{container}/{path}"),
        Location::Http { url, .. } | Location::Git { url, .. } => url.clone(),
        Location::HuggingFace { identifier, .. } | Location::Task { identifier, .. } => identifier.clone(),
        Location::Kept { attempt, .. } => attempt.task.to_string(),
    }
}
