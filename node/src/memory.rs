//! What a task will need of memory, as far as it can be said before it runs: at a dry run, where the model's config is at
//! hand.

use std::path::Path;

use mloc_core::task::{TaskSpec, spec::Location};
use mloc_store::Store;

/// What a node says that is asked to check a task. `None` of a task that trains nothing, and of one whose model comes along
/// with it: who sends it has it at hand.
pub async fn note(store: &Store, spec: &TaskSpec) -> Option<String> {
    let Some(model) = &spec.model else { return forecast(spec, None) };
    if matches!(model.source, Location::Submitted { .. }) || !mloc_modules::trains(spec.task_type) {
        return None;
    }
    match store.here(&model.source).await {
        // Held until it is read: nothing in use is evicted.
        Ok(Some(there)) => forecast(spec, Some(&there.path)),
        Ok(None) | Err(_) => Some(
            "memory: known when the model's config.json has been read: the model is not on the disk of the node that was \
             asked, and the attempt's log says it before the first step"
                .to_owned(),
        ),
    }
}

/// What can be said of a task whose model lies here.
pub fn forecast(spec: &TaskSpec, model: Option<&Path>) -> Option<String> {
    match mloc_modules::foretell_memory(spec, model) {
        Ok(said) => said,
        Err(why) => Some(format!("memory: not known: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mloc_core::task;
    use mloc_store::{CacheConfig, StoreConfig};
    use serde_json::json;

    use super::*;

    fn spec(task_type: &str, model: &serde_json::Value) -> TaskSpec {
        let mut task = json!({
            "apiVersion": "mloc/v1", "kind": "TrainingTask", "metadata": {"name": "t", "owner": "o"},
            "spec": {
                "taskType": task_type,
                "dataset": {"source": {"type": "local", "path": "volume/data"}},
                "hyperparameters": {"max_length": 64},
            },
        });
        if !model.is_null() {
            task["spec"]["model"] = json!({"source": model});
        }
        task::parse(&task.to_string(), "t").unwrap_or_else(|problems| panic!("{problems}")).spec
    }

    #[tokio::test]
    async fn a_plan_is_told_where_the_config_is_at_hand() {
        let top = tempfile::tempdir().unwrap();
        let model = top.path().join("volume/model");
        fs::create_dir_all(&model).unwrap();
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4,
        });
        fs::write(model.join("config.json"), config.to_string()).unwrap();
        let volumes = [("volume".to_owned(), top.path().join("volume"))].into();
        let cache = CacheConfig { dir: top.path().join("cache"), ..CacheConfig::default() };
        let store = Store::new(StoreConfig { volumes, cache, ..StoreConfig::default() }).unwrap();

        let here = json!({"type": "local", "path": "volume/model"});
        let said = note(&store, &spec("sft", &here)).await.unwrap();
        assert!(said.contains("if all rows of a batch had 64 tokens"), "{said}");
        let hub = json!({"type": "huggingface", "identifier": "owner/model"});
        for elsewhere in [json!({"type": "local", "path": "volume/none"}), hub] {
            let said = note(&store, &spec("sft", &elsewhere)).await.unwrap();
            assert!(said.starts_with("memory: known when the model's config.json has been read"), "{said}");
        }
        let made = note(&store, &spec("pretrain", &serde_json::Value::Null)).await.unwrap();
        assert!(made.contains("GiB at the fullest") || made.contains("MiB at the fullest"), "{made}");
    }
}
