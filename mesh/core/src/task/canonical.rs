//! Writes a spec as a task file that means the same: every default told, every name canonical.

use serde_json::{Map, Value, json};

use super::{
    kind::Kind,
    reward::{Judge, Reward},
    spec::{Adapter, AdapterInit, AdapterKind, Code, Location, Model, Modules, Retrieval, Service, TaskSpec, TestSize},
    yaml,
};
use crate::{capability::Request, quantity};

/// The spec as YAML.
///
/// # Errors
/// Never for a spec that was parsed; a value without a YAML form otherwise.
pub fn write(spec: &TaskSpec) -> Result<String, String> {
    yaml::write(&value(spec))
}

/// The spec as the value its file would have.
pub fn value(spec: &TaskSpec) -> Value {
    let metadata = &spec.metadata;
    let mut body = Map::new();
    body.insert("taskType".into(), json!(spec.task_type.name()));
    let mut resources = json!({ "hardware": hardware(&spec.request) });
    let scales = spec.service.as_ref().is_some_and(|service| service.scale.min < service.scale.max);
    set(&mut resources, "replicas", (!scales).then_some(json!(spec.replicas)));
    body.insert("resources".into(), resources);
    if let Some(model) = &spec.model {
        body.insert("model".into(), self::model(model, spec.kind));
    }
    if let Some(dataset) = &spec.dataset {
        let mut preprocessing = json!({});
        set(&mut preprocessing, "prompt_template", dataset.prompt_template.as_deref().map(Value::from));
        set(&mut preprocessing, "chat_template", dataset.chat_template.as_deref().map(Value::from));
        set(&mut preprocessing, "columns", Some(json!(dataset.columns)).filter(|_| !dataset.columns.is_empty()));
        set(&mut preprocessing, "max_seq_length", dataset.max_seq_length.map(Value::from));
        let mut value = json!({ "source": location(&dataset.source), "preprocessing": preprocessing });
        set(&mut value, "eval", dataset.eval.as_ref().map(|eval| json!({ "source": location(eval) })));
        let test_size = |size| match size {
            TestSize::Rows(rows) => json!(rows),
            TestSize::Millionths(share) => json!(f64::from(share) / 1e6),
        };
        set(&mut value, "test_size", dataset.test_size.map(test_size));
        body.insert("dataset".into(), value);
    }
    if let Some(command) = &spec.command {
        body.insert("command".into(), json!(command.argv));
        if let Some(code) = &command.code {
            body.insert("code".into(), self::code(code));
        }
    }
    if let Some(reward) = &spec.reward {
        body.insert("reward".into(), self::reward(reward));
    }
    if let Some(retrieval) = &spec.retrieval {
        body.insert("retrieval".into(), self::retrieval(retrieval));
    }
    if let Some(agent) = &spec.agent {
        body.insert("agent".into(), json!(agent));
    }
    if let Some(service) = &spec.service {
        body.extend(self::service(service));
    }
    body.insert("hyperparameters".into(), json!(spec.hyperparameters));
    let mut output = json!({ "artifacts": spec.output.artifacts });
    set(&mut output, "destination", spec.output.destination.as_ref().map(location));
    set(&mut output, "keep", spec.output.keep_ms.map(time));
    body.insert("output".into(), output);
    body.insert("priority".into(), json!(spec.priority));
    body.insert("dependsOn".into(), json!(spec.depends_on));
    body.insert(
        "retry".into(),
        json!({
            "limit": spec.retry.limit,
            "backoff": time(spec.retry.backoff_ms),
            "backoffMax": time(spec.retry.backoff_max_ms),
        }),
    );
    let mut timeouts = json!({});
    set(&mut timeouts, "run", spec.timeouts.run_ms.map(time));
    set(&mut timeouts, "stop", spec.timeouts.stop_ms.map(time));
    set(&mut timeouts, "ready", spec.timeouts.ready_ms.map(time));
    set(&mut timeouts, "idle", spec.timeouts.idle_ms.map(time));
    body.insert("timeouts".into(), timeouts);
    let mut placement = json!({ "nodeSelector": spec.placement.node_selector, "nodes": spec.placement.nodes });
    set(&mut placement, "offlineFor", spec.placement.offline_for_ms.map(time));
    body.insert("placement".into(), placement);
    if let Some(destination) = &spec.checkpoint.destination {
        body.insert("checkpoint".into(), json!({ "destination": location(destination) }));
    }
    body.insert("env".into(), json!(spec.env));
    body.insert("secretsFrom".into(), json!(spec.secrets_from));
    let mut named = json!({ "name": metadata.name, "project": metadata.project });
    set(&mut named, "owner", Some(metadata.owner.as_str()).filter(|owner| !owner.is_empty()).map(Value::from));
    set(&mut named, "labels", Some(json!(metadata.labels)));
    set(&mut named, "annotations", Some(json!(metadata.annotations)));
    json!({ "apiVersion": "mloc/v1", "kind": spec.kind, "metadata": named, "spec": body })
}

fn set(object: &mut Value, key: &str, value: Option<Value>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(key.to_owned(), value);
    }
}

fn time(ms: u64) -> Value {
    Value::from(format!("{ms}ms"))
}

fn service(service: &Service) -> Map<String, Value> {
    let Service { served_name, health, scale, update } = service;
    let mut body = Map::new();
    body.insert("servedName".into(), json!(served_name));
    let looks = json!({
        "path": health.path,
        "every": time(health.every_ms),
        "timeout": time(health.timeout_ms),
        "failures": health.failures,
    });
    body.insert("health".into(), looks);
    if scale.min < scale.max {
        let follows = json!({
            "min": scale.min,
            "max": scale.max,
            "queueDepth": scale.queue_depth,
            "upAfter": time(scale.up_after_ms),
            "downAfter": time(scale.down_after_ms),
        });
        body.insert("autoscale".into(), follows);
    }
    let exchange = json!({ "maxSurge": update.max_surge, "maxUnavailable": update.max_unavailable });
    body.insert("update".into(), exchange);
    body
}

fn hardware(request: &Request) -> Value {
    let mut hardware = json!({
        "cpu": format!("{}m", request.cpu_millis),
        "memory": quantity::write_bytes(request.memory_bytes),
        "disk": quantity::write_bytes(request.disk_bytes),
    });
    let gpu = request
        .gpu
        .as_ref()
        .map(|gpu| json!({ "type": gpu.kind, "count": gpu.count, "memory": quantity::write_bytes(gpu.memory_bytes) }));
    set(&mut hardware, "gpu", gpu);
    hardware
}

fn model(model: &Model, kind: Kind) -> Value {
    let mut value = json!({ "source": location(&model.source) });
    let adapter = |of: &Adapter| match kind {
        Kind::TrainingTask => adapter(of),
        Kind::ServiceTask => served_adapter(of),
    };
    set(&mut value, "adapter", model.adapter.as_ref().map(adapter));
    for (name, beside) in [("reference", &model.reference), ("value", &model.value)] {
        set(&mut value, name, beside.as_ref().map(|beside| json!({ "source": location(beside) })));
    }
    value
}

fn code(code: &Code) -> Value {
    let mut value = json!({ "source": location(&code.source) });
    set(&mut value, "workdir", code.workdir.as_deref().map(Value::from));
    value
}

fn reward(reward: &Reward) -> Value {
    let funcs = reward.funcs.iter().map(|func| {
        let mut value = json!({ "name": func.name, "type": func.judge.name() });
        match &func.judge {
            Judge::Regex { pattern } => set(&mut value, "pattern", Some(json!(pattern))),
            Judge::ExactMatch { column } => set(&mut value, "column", Some(json!(column))),
            Judge::Json { keys } => set(&mut value, "keys", Some(json!(keys))),
            Judge::Length { min, max, unit } => {
                set(&mut value, "min", min.map(Value::from));
                set(&mut value, "max", max.map(Value::from));
                set(&mut value, "unit", Some(json!(unit)));
            }
            Judge::Model => {}
            Judge::Command { argv } => set(&mut value, "command", Some(json!(argv))),
        }
        value
    });
    let mut value = json!({ "funcs": funcs.collect::<Vec<_>>() });
    set(&mut value, "model", reward.model.as_ref().map(|model| json!({ "source": location(model) })));
    set(&mut value, "code", reward.code.as_ref().map(code));
    value
}

fn retrieval(retrieval: &Retrieval) -> Value {
    let mut value = json!({
        "embedder": { "source": location(&retrieval.embedder) },
        "mode": retrieval.mode,
        "topK": retrieval.top_k,
        "candidates": retrieval.candidates,
        "chunkTokens": retrieval.chunk_tokens,
        "chunkOverlap": retrieval.chunk_overlap,
    });
    let reranker = retrieval.reranker.as_ref().map(|reranker| json!({ "source": location(reranker) }));
    set(&mut value, "reranker", reranker);
    set(&mut value, "scoreFloor", retrieval.score_floor_milli.map(|milli| json!(f64::from(milli) / 1e3)));
    set(&mut value, "watch", retrieval.watch_ms.map(time));
    value
}

fn adapter(adapter: &Adapter) -> Value {
    let alphas =
        adapter.alpha_pattern_milli.iter().map(|(pattern, milli)| (pattern.clone(), json!(*milli as f64 / 1e3)));
    let mut value = json!({
        "type": adapter.kind.name(),
        "r": adapter.r,
        "lora_alpha": adapter.lora_alpha_milli as f64 / 1e3,
        "lora_dropout": f64::from(adapter.lora_dropout_micro) / 1e6,
        "target_modules": modules(&adapter.target_modules),
        "use_rslora": adapter.use_rslora,
        "rank_pattern": adapter.rank_pattern,
        "alpha_pattern": Value::Object(alphas.collect()),
        "layers_to_transform": adapter.layers_to_transform,
        "modules_to_save": adapter.modules_to_save,
        "bias": adapter.bias.word(),
        "use_dora": adapter.use_dora,
        "init_lora_weights": match adapter.init {
            AdapterInit::Kaiming => json!(true),
            AdapterInit::Gaussian => json!("gaussian"),
        },
    });
    set(&mut value, "exclude_modules", adapter.exclude_modules.as_ref().map(modules));
    set(&mut value, "layers_pattern", Some(&adapter.layers_pattern).filter(|p| !p.is_empty()).map(|p| json!(p)));
    if adapter.kind == AdapterKind::Qlora {
        let four_bit = &adapter.four_bit;
        set(&mut value, "bnb_4bit_quant_type", Some(json!(four_bit.quant_type.word())));
        set(&mut value, "bnb_4bit_use_double_quant", Some(json!(four_bit.double_quant)));
        set(&mut value, "bnb_4bit_blocksize", Some(json!(four_bit.block_size)));
    }
    set(&mut value, "source", adapter.source.as_ref().map(location));
    value
}

fn served_adapter(adapter: &Adapter) -> Value {
    let mut value = json!({});
    set(&mut value, "source", adapter.source.as_ref().map(location));
    set(&mut value, "name", adapter.name.as_deref().map(Value::from));
    value
}

fn modules(modules: &Modules) -> Value {
    match modules {
        Modules::Matching(pattern) => json!(pattern),
        Modules::Named(names) => json!(names),
    }
}

fn location(location: &Location) -> Value {
    // What came along is a path beside the file there.
    let kind = if matches!(location, Location::Submitted { .. }) { "local" } else { location.scheme() };
    let mut value = json!({ "type": kind });
    let mut put = |key: &str, text: Option<&String>| set(&mut value, key, text.map(|t| Value::from(t.as_str())));
    match location {
        Location::Local { path } => put("path", Some(path)),
        Location::S3 { bucket, path, endpoint, region } => {
            put("bucket", Some(bucket));
            put("path", Some(path));
            put("endpoint", endpoint.as_ref());
            put("region", region.as_ref());
        }
        Location::Gcs { bucket, path, endpoint } => {
            put("bucket", Some(bucket));
            put("path", Some(path));
            put("endpoint", endpoint.as_ref());
        }
        Location::Azblob { container, path, account, endpoint } => {
            put("bucket", Some(container));
            put("path", Some(path));
            put("account", account.as_ref());
            put("endpoint", endpoint.as_ref());
        }
        Location::Http { url, sha256 } => {
            put("identifier", Some(url));
            put("sha256", sha256.as_ref());
        }
        Location::HuggingFace { identifier, revision, repo: _, path, config, split } => {
            put("identifier", Some(identifier));
            put("revision", Some(revision));
            put("path", path.as_ref());
            put("config", config.as_ref());
            put("split", split.as_ref());
        }
        Location::Git { url, revision, path } => {
            put("identifier", Some(url));
            put("revision", revision.as_ref());
            put("path", path.as_ref());
        }
        Location::Task { identifier, path } => {
            put("identifier", Some(identifier));
            put("path", path.as_ref());
        }
        // Both are the mesh's own words for what the task said otherwise.
        Location::Submitted { path, .. } => put("path", Some(path)),
        Location::Kept { attempt, path, .. } => {
            put("identifier", Some(&attempt.task.to_string()));
            put("path", path.as_ref());
        }
    }
    value
}
