//! `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, in vLLM's shapes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{Context, models::Adapters};
use crate::{
    fields::{Field, Reader},
    model::{Adapter, ModelError},
    refusal::Refusal,
};

/// The fields of loading.
pub fn fields() -> Vec<Field> {
    let text = json!({ "type": "string", "minLength": 1 });
    let rows = vec![
        Field::used("lora_name", text.clone()).required(),
        Field::used("lora_path", text).required(),
        Field::used("load_inplace", json!({ "type": "boolean" })),
        Field::refused("base_model_name", json!([]), "an adapter belongs to the model that is served"),
    ];
    rows.into_iter().map(Field::of_vllm).collect()
}

/// The fields of unloading.
pub fn out_fields() -> Vec<Field> {
    let why = "an adapter goes by its name";
    let rows = vec![
        Field::used("lora_name", json!({ "type": "string", "minLength": 1 })).required(),
        Field::no_effect("lora_int_id", json!({ "type": "integer" }), why),
    ];
    rows.into_iter().map(Field::of_vllm).collect()
}

fn lock(adapters: &Mutex<Adapters>) -> MutexGuard<'_, Adapters> {
    adapters.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Loads one; it reads files, on the thread it is called on.
///
/// # Errors
/// When the name is taken or unfit, there is no adapter, or it doesn't fit the model.
pub fn load(body: &Value, adapters: &Mutex<Adapters>, context: &Context) -> Result<String, Refusal> {
    let mut reader = Reader::new(body, &fields())?;
    let name = reader.text("lora_name").unwrap_or_default().to_owned();
    let path = reader.text("lora_path").unwrap_or_default().to_owned();
    let in_place = reader.flag("load_inplace", false);
    let card = context.model.card();
    if name.contains(':') || name == card.served_name {
        reader.problem("lora_name", format!("found {name:?}, expected a name without `:` that isn't the model's own"));
    }
    if lock(adapters).find(&name).is_some() && !in_place {
        let hint = "unload it first, or set load_inplace to true";
        reader.problem("lora_name", format!("an adapter {name:?} is loaded already: {hint}"));
    }
    reader.done(|| ())?;
    let id = context.model.load_adapter(&path).map_err(|error| match error {
        ModelError::Asked(message) => Refusal::field("lora_path", message),
        ModelError::Missing(message) => {
            Refusal { status: StatusCode::NOT_FOUND, ..Refusal::field("lora_path", message) }
        }
        ModelError::Failed(message) => Refusal::failure(message),
    })?;
    let adapter = Adapter { name: name.clone(), id, path: path.into(), created: context.now };
    // Two may have loaded one name at once: the later one stays.
    let old = lock(adapters).put(adapter);
    if let Some(old) = old {
        context.model.unload_adapter(old);
    }
    Ok(format!("Success: LoRA adapter '{name}' added successfully: ask for model '{}:{name}'.", card.served_name))
}

/// Lets one go.
///
/// # Errors
/// When there is none of that name.
pub fn unload(body: &Value, adapters: &Mutex<Adapters>, context: &Context) -> Result<String, Refusal> {
    let reader = Reader::new(body, &out_fields())?;
    let name = reader.text("lora_name").unwrap_or_default().to_owned();
    reader.done(|| ())?;
    let served = &context.model.card().served_name;
    let short = name.strip_prefix(served.as_str()).and_then(|rest| rest.strip_prefix(':')).unwrap_or(&name);
    let taken = lock(adapters).take(short);
    let Some(id) = taken else {
        let message = format!("no adapter {short:?} is loaded; GET /v1/models lists those that are");
        let refusal = Refusal::field("lora_name", message).with_code("adapter_not_found");
        return Err(Refusal { status: StatusCode::NOT_FOUND, ..refusal });
    };
    context.model.unload_adapter(id);
    Ok(format!("Success: LoRA adapter '{short}' removed successfully."))
}
