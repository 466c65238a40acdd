//! A decoder whose folder says that it embeds: the last token's state, over the API.

use axum::http::StatusCode;
use mloc_burn::{device::DeviceChoice, embedding::Embedder};
use mloc_serve::Settings;
use serde_json::json;

use crate::{Client, close, expected, golden, ids, numbers};

#[tokio::test]
async fn a_decoder_embeds_where_its_folder_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(golden("models/llama")).expect("a model") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    let write = |name: &str, json: serde_json::Value| {
        std::fs::write(folder.path().join(name), json.to_string()).expect("a file");
    };
    let module = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    let modules = [module("", "Transformer"), module("1_Pooling", "Pooling"), module("2_Normalize", "Normalize")];
    write("modules.json", json!(modules));
    std::fs::create_dir(folder.path().join("1_Pooling")).expect("a folder");
    write("1_Pooling/config.json", json!({"pooling_mode_lasttoken": true}));

    let expected = expected("models/llama/expected.json");
    let texts = [ids(&expected["forward"]["input_ids"]), ids(&expected["greedy"]["prompt_ids"])];
    let (client, facts) = Client::at(folder.path(), Settings::new("m", 2), &[]);
    assert!(facts.is_none(), "it makes no text");
    let answer = client.answer("/v1/embeddings", json!({"model": "m", "input": texts})).await;
    let embedder = Embedder::open(folder.path(), &DeviceChoice::Cpu.open().expect("a processor")).expect("an embedder");
    let tokens = texts.iter().map(|text| text.iter().map(|id| *id as u32).collect()).collect::<Vec<Vec<u32>>>();
    for (found, wanted) in
        answer["data"].as_array().expect("data").iter().zip(embedder.embed_ids(&tokens).expect("two"))
    {
        let wanted: Vec<f64> = wanted.into_iter().map(f64::from).collect();
        close(&numbers(&found["embedding"]), &wanted, "an embedding");
    }
    let text = json!({"model": "m", "input": "the lease of a node"});
    assert_eq!(client.answer("/v1/embeddings", text).await["data"][0]["embedding"].as_array().map(Vec::len), Some(64));

    let long = json!({"model": "m", "input": vec![5; embedder.backbone.longest() + 1]});
    let (status, refused) = client.ask("/v1/embeddings", long).await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("context_length_exceeded")));
    let (status, refused) = client.ask("/v1/completions", json!({"model": "m", "prompt": "hi"})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");

    // Where it says nothing of the kind it is a language model.
    let (plain, facts) = Client::at(&golden("models/llama"), Settings::new("m", 2), &[]);
    assert!(facts.is_some());
    let (status, refused) = plain.ask("/v1/embeddings", json!({"model": "m", "input": "hi"})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
}
