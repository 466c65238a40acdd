//! The reference library's numbers (tests/fixtures/golden), asked for through the API as a client would: the files of a
//! model in, JSON out.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use http_body_util::BodyExt;
use mloc_burn::device::DeviceChoice;
use mloc_openai::{Limits, Server, router, server::unix_now};
use mloc_serve::{
    Facts, Number, On, Served, Settings,
    listen::{NamedAdapter, load_adapters},
    open,
};
use serde_json::{Value, json};
use tower::ServiceExt;

#[path = "golden/families.rs"]
mod families;
#[path = "golden/gguf.rs"]
mod gguf;
#[path = "golden/last_token.rs"]
mod last_token;

const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
/// The processor's own kernels, and the tensors that a GPU computes with.
const PLACES: [On; 2] = [On::Processor, On::Device(DeviceChoice::Cpu)];

fn on_each_place() -> impl Iterator<Item = (On, &'static str)> {
    PLACES.into_iter().flat_map(|on| FAMILIES.map(|family| (on, family)))
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(path)
}

fn expected(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(path)).expect("a fixture")).expect("JSON")
}

/// A served model, asked without a socket.
struct Client(axum::Router);

impl Client {
    fn of(family: &str, adapters: &[NamedAdapter]) -> Self {
        Self::on(On::Processor, family, adapters)
    }

    fn on(on: On, family: &str, adapters: &[NamedAdapter]) -> Self {
        // In 16 bits as it is stored, a GPU rounds what it computes with too; the reference did not.
        let number = if on == On::Processor { Number::AsStored } else { Number::F32 };
        let settings = Settings { on, number, ..Settings::new("m", 2) };
        Self::at(&golden(&format!("models/{family}")), settings, adapters).0
    }

    /// With the facts of a language model.
    fn at(path: &Path, mut settings: Settings, adapters: &[NamedAdapter]) -> (Self, Option<Facts>) {
        settings.engine.step_tokens = 64;
        let served = open(path, &settings, &|| false);
        let served = served.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut facts = None;
        if let Served::Decoder(decoder) = &served {
            decoder.try_out(std::time::Duration::from_secs(60)).expect("it generates");
            facts = Some(decoder.facts.clone());
        }
        let model = served.model();
        let adapters = load_adapters(&*model, adapters).expect("adapters");
        (Self(router(Arc::new(Server::new(model, adapters, Limits::default(), 7, unix_now)))), facts)
    }

    async fn ask(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body.to_string())).expect("a request");
        let response = self.0.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn answer(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(path, body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|number| number.as_f64().unwrap_or(f64::NAN)).collect()
}

/// Log-probabilities of each token of a text but its first, from the golden logits.
fn log_probabilities(file: &str, key: &str, ids: &[u64]) -> Vec<f64> {
    let bytes = std::fs::read(golden(file)).expect("a file");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = tensors.tensor(key).expect("logits");
    let width = tensor.shape()[1];
    let values: Vec<f64> =
        tensor.data().chunks(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect();
    let of = |(row, id): (&[f64], &u64)| {
        let most = row.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        row[*id as usize] - most - row.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln()
    };
    values.chunks(width).zip(&ids[1..]).map(of).collect()
}

fn close(found: &[f64], wanted: &[f64], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() < 1e-3 + 1e-3 * wanted.abs(), "{what}: {found} instead of {wanted}");
    }
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id")).collect()
}

#[tokio::test]
async fn greedy_answers_and_prompt_logprobs_are_the_references() {
    for (on, family) in on_each_place() {
        let client = Client::on(on, family, &[]);
        let expected = expected(&format!("models/{family}/expected.json"));
        let wanted = ids(&expected["greedy"]["new_ids"]);
        let body = json!({"model": "m", "prompt": expected["greedy"]["prompt_ids"], "temperature": 0,
            "max_tokens": wanted.len(), "ignore_eos": true, "return_token_ids": true});
        let answer = client.answer("/v1/completions", body).await;
        assert_eq!(ids(&answer["choices"][0]["token_ids"]), wanted, "{family}: {answer}");

        let input = ids(&expected["forward"]["input_ids"]);
        let body = json!({"model": "m", "prompt": input, "max_tokens": 0, "echo": true, "logprobs": 0});
        let answer = client.answer("/v1/completions", body).await;
        let found = numbers(&answer["choices"][0]["logprobs"]["token_logprobs"]);
        let wanted = log_probabilities(&format!("models/{family}/tensors.safetensors"), "logits", &input);
        close(&found[1..], &wanted, family);
    }
}

#[tokio::test]
async fn conversations_are_rendered_as_the_reference_does() {
    for family in FAMILIES {
        let client = Client::of(family, &[]);
        for case in expected(&format!("models/{family}/expected.json"))["chat"].as_array().expect("cases") {
            let body = json!({"model": "m", "messages": case["messages"],
                "add_generation_prompt": case["add_generation_prompt"], "add_special_tokens": false});
            let answer = client.answer("/tokenize", body).await;
            assert_eq!(answer["tokens"], case["ids"], "{family}");
        }
    }
}

#[tokio::test]
async fn texts_come_back_from_their_tokens() {
    for family in FAMILIES {
        let client = Client::of(family, &[]);
        for case in expected(&format!("models/{family}/expected.json"))["tokenizer"].as_array().expect("cases") {
            let answer = client.answer("/tokenize", json!({"model": "m", "prompt": case["text"]})).await;
            assert_eq!(answer["tokens"], case["ids"], "{family}");
            let answer = client.answer("/detokenize", json!({"model": "m", "tokens": case["ids_no_special"]})).await;
            // Special tokens within a text are left out.
            if !case["text"].as_str().is_some_and(|text| text.contains("</s>") || text.contains("<|")) {
                assert_eq!(answer["prompt"], case["decoded_no_special"], "{family}");
            }
        }
    }
}

#[tokio::test]
async fn an_adapter_is_served_beside_its_base() {
    for (on, family) in on_each_place() {
        let path = golden(&format!("lora/{family}/adapter_final"));
        let client = Client::on(on, family, &[NamedAdapter { name: "tuned".into(), path: path.clone() }]);
        let trained = expected(&format!("lora/{family}/expected.json"));
        let input = ids(&trained["forward_input_ids"]);
        let body = |model: &str| json!({"model": model, "prompt": input, "max_tokens": 0, "echo": true, "logprobs": 0});
        let found = |answer: Value| numbers(&answer["choices"][0]["logprobs"]["token_logprobs"])[1..].to_vec();
        let of = |key| log_probabilities(&format!("lora/{family}/tensors.safetensors"), key, &input);
        let (with, base) = tokio::join!(
            client.answer("/v1/completions", body("m:tuned")),
            client.answer("/v1/completions", body("m"))
        );
        let (with, base) = (found(with), found(base));
        close(&with, &of("adapter_logits"), family);
        assert_ne!(with, base, "{family}");

        // Loaded while it serves, and gone again.
        let loaded = json!({"lora_name": "again", "lora_path": path});
        client.answer("/v1/load_lora_adapter", loaded).await;
        close(&found(client.answer("/v1/completions", body("m:again")).await), &with, family);
        client.answer("/v1/unload_lora_adapter", json!({"lora_name": "again"})).await;
        let (status, refused) = client.ask("/v1/completions", body("m:again")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{refused}");
        let other = FAMILIES[(FAMILIES.iter().position(|f| *f == family).expect("one of them") + 1) % 4];
        let misfit = json!({"lora_name": "misfit", "lora_path": golden(&format!("lora/{other}/adapter_final"))});
        let (status, refused) = client.ask("/v1/load_lora_adapter", misfit).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
    }
}

#[tokio::test]
async fn embeddings_have_the_references_cosines() {
    let client = Client::of("bert", &[]);
    let bert = expected("models/bert/expected.json");
    let answer = client.answer("/v1/embeddings", json!({"model": "m", "input": bert["sentences"]})).await;
    let vectors: Vec<Vec<f64>> =
        answer["data"].as_array().expect("data").iter().map(|one| numbers(&one["embedding"])).collect();
    for (one, wanted) in vectors.iter().zip(bert["cosine"].as_array().expect("rows")) {
        let cosines: Vec<f64> = vectors.iter().map(|other| one.iter().zip(other).map(|(a, b)| a * b).sum()).collect();
        close(&cosines, &numbers(wanted), "cosines");
    }
    let (status, refused) = client
        .ask("/v1/chat/completions", json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
}

#[tokio::test]
async fn a_constrained_answer_is_what_its_schema_says() {
    // Random weights write anything; a grammar makes it JSON all the same.
    for family in FAMILIES {
        let client = Client::of(family, &[]);
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["n"], "additionalProperties": false});
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "a number"}], "max_tokens": 200,
            "seed": 3, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
        let answer = client.answer("/v1/chat/completions", body).await;
        let content = answer["choices"][0]["message"]["content"].as_str().expect("text");
        let value: Value = serde_json::from_str(content).unwrap_or_else(|e| panic!("{family}: {e}: {content}"));
        assert!(value["n"].is_u64(), "{family}: {content}");
    }
}
