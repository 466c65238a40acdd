//! A service that answers from documents, on a mesh of real processes: a folder that is followed, uploads, retrieval with
//! exact spans, chat with citations; asked through a node that has no replica.

use std::fs;

use anyhow::{Context, ensure};
use mloc_tests::{CALM, Sandbox, http, root};
use serde_json::{Value, json};

const LEASES: &str = "# Leases\n\nA worker that says nothing for a minute loses its lease.\n\n## Renewal\n\nEvery heartbeat \
                      renews it; a new leader grants one full fresh lease.\n";
const BREAD: &str = "Mix flour, water, salt and yeast, let the dough rise overnight, and bake it hot.\n";

fn retrieve(at: &str, query: &str) -> anyhow::Result<Value> {
    let answer = http::post(at, "/v1/rag/handbook/retrieve", &json!({"query": query, "arms": ["words"]}))?;
    ensure!(answer.status == 200, "{answer:?}");
    answer.json()
}

#[test]
fn documents_are_found_cited_followed_and_deleted_through_any_node() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::with_timing(&[], CALM)?;
    let folder = sandbox.dir.path().join("handbook");
    fs::create_dir(&folder)?;
    fs::write(folder.join("leases.md"), LEASES)?;
    fs::write(folder.join("bread.txt"), BREAD)?;
    let config = format!(
        "hardware: {{cpu: '4', memory: 8GiB}}\nvolumes: {{golden: {}, handbook: {}}}",
        root().join("tests/fixtures/golden").display(),
        folder.display()
    );
    sandbox.mesh(&["a", "b"], &config, 1)?;
    sandbox.submit(
        0,
        "apiVersion: mloc/v1\nkind: ServiceTask\nmetadata: {name: handbook, owner: john-doe, project: examples}\nspec:\n  \
         taskType: rag_inference\n  model: {source: {type: local, identifier: golden/models/llama}}\n  retrieval: \
         {embedder: {source: {type: local, identifier: golden/models/bert}}, chunkTokens: 64, chunkOverlap: 8, watch: \
         1s}\n  dataset: {source: {type: local, identifier: handbook}}\n  resources: {hardware: {cpu: 500m, memory: \
         1GiB}}\n  health: {every: 300ms}\n  hyperparameters: {max_model_len: 2048}\n",
    )?;
    sandbox.until("it is ready", |s| {
        let all = s.run(0, &["services", "-o", "json"])?.json()?;
        Ok(all[0]["ready"] == 1)
    })?;
    // One of them has no replica.
    for node in 0..2 {
        sandbox.until("both documents are indexed, and every node knows", |s| {
            let listed = http::get(&s.rest(node)?, "/v1/rag/handbook/documents")?;
            ensure!([200, 404, 503].contains(&listed.status), "{listed:?}");
            let indexed = listed.body.matches("\"status\":\"indexed\"").count();
            Ok(indexed == 2)
        })?;
    }
    let at = sandbox.rest(1)?;
    let found = retrieve(&at, "who renews a lease with every heartbeat?")?;
    let hit = &found["data"][0];
    ensure!(hit.to_string().contains("leases.md"), "{found}");
    let (text, span) = (hit["text"].as_str().context("a text")?, &hit["chars"]);
    let place = |key: &str| span[key].as_u64().map(|n| n as usize).with_context(|| format!("{key}: {hit}"));
    let whole: String = {
        let id = hit["document_id"].as_str().context("an id")?;
        let answer = http::get(&at, &format!("/v1/rag/handbook/documents/{id}/text"))?.json()?;
        answer["text"].as_str().context("the document's text")?.to_owned()
    };
    let cited: String = whole.chars().skip(place("start")?).take(place("end")? - place("start")?).collect();
    assert_eq!(cited, text, "a span is exact");

    // What changes in the folder is noticed; what goes is gone.
    fs::write(folder.join("bread.txt"), "Knead the zucchini dough.\n")?;
    sandbox.until("the change is found", |s| {
        let found = retrieve(&s.rest(0)?, "zucchini")?;
        Ok(found["data"].as_array().is_some_and(|hits| hits.iter().any(|hit| hit.to_string().contains("zucchini"))))
    })?;
    fs::remove_file(folder.join("bread.txt"))?;
    sandbox.until("what went is gone", |s| {
        let found = retrieve(&s.rest(0)?, "zucchini")?;
        Ok(found["data"].as_array().is_some_and(|hits| hits.iter().all(|hit| !hit.to_string().contains("zucchini"))))
    })?;

    // An upload, through the other node.
    let uploaded = http::request(
        &at,
        "POST /v1/rag/handbook/documents?name=notes.txt",
        &[("content-type", "text/plain")],
        "The orchestrator is called Walrus.",
    )?;
    ensure!([200, 201, 202].contains(&uploaded.status), "{uploaded:?}");
    sandbox.until("the upload is found", |s| Ok(retrieve(&s.rest(0)?, "Walrus")?.to_string().contains("notes.txt")))?;

    // The model is random; that it was given passages, and what it cited of them, is told in OpenAI's shape.
    let body = json!({"model": "handbook", "max_tokens": 8,
        "messages": [{"role": "user", "content": "What is the orchestrator called?"}]});
    let answer = http::post(&at, "/v1/chat/completions", &body)?;
    ensure!(answer.status == 200, "{answer:?}");
    let answer = answer.json()?;
    ensure!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
    ensure!(answer.to_string().contains("\"citations\""), "{answer}");
    Ok(())
}
