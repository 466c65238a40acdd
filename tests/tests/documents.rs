//! A service that answers from documents, on a mesh of real processes: a folder that is followed, uploads, retrieval with
//! exact spans, chat with citations, asked through a node that has no replica, and taken over by a newer version; and documents
//! in two shards, one of which is lost with its node.

use std::{
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use mloc_tests::{
    CALM, Sandbox,
    http::{self, Answer},
    root,
};
use serde_json::{Value, json};

/// As [`CALM`], but a node that was killed is given up sooner.
const SOON_LOST: &str = "timing: {raftHeartbeatMs: 300, electionMinMs: 2000, electionMaxMs: 4000, gossipIntervalMs: 200, \
                         voterStableMs: 500, voterGraceMs: 60000, leaseMs: 8000, workerHeartbeatMs: 500, tickMs: 100}\n";

/// One mesh at a time: a machine that runs several is so slow that healthy nodes look lost.
fn alone() -> MutexGuard<'static, ()> {
    static MESHES: Mutex<()> = Mutex::new(());
    MESHES.lock().unwrap_or_else(PoisonError::into_inner)
}

const LEASES: &str = "# Leases\n\nA worker that says nothing for a minute loses its lease.\n\n## Renewal\n\nEvery heartbeat \
                      renews it; a new leader grants one full fresh lease.\n";
const BREAD: &str = "Mix flour, water, salt and yeast, let the dough rise overnight, and bake it hot.\n";

/// Of a node.yaml, with this folder as a volume.
fn config(handbook: &Path) -> String {
    format!(
        "hardware: {{cpu: '4', memory: 8GiB}}\nvolumes: {{golden: {}, handbook: {}}}",
        root().join("tests/fixtures/golden").display(),
        handbook.display()
    )
}

/// The task, with so many replicas.
fn task(replicas: u32) -> String {
    format!(
        "apiVersion: mloc/v1\nkind: ServiceTask\nmetadata: {{name: handbook, owner: john-doe, project: examples}}\nspec:\n  \
         taskType: rag_inference\n  model: {{source: {{type: local, identifier: golden/models/llama}}}}\n  retrieval: \
         {{embedder: {{source: {{type: local, identifier: golden/models/bert}}}}, chunkTokens: 64, chunkOverlap: 8, watch: \
         1s}}\n  dataset: {{source: {{type: local, identifier: handbook}}}}\n  resources: {{replicas: {replicas}, hardware: \
         {{cpu: 500m, memory: 1GiB}}}}\n  health: {{every: 300ms}}\n  retry: {{backoff: 100ms}}\n  hyperparameters: \
         {{max_model_len: 2048}}\n"
    )
}

fn retrieve(at: &str, query: &str) -> anyhow::Result<Value> {
    let answer = http::post(at, "/v1/rag/handbook/retrieve", &json!({"query": query, "arms": ["words"]}))?;
    ensure!(answer.status == 200, "{answer:?}");
    answer.json()
}

#[test]
fn documents_are_found_cited_followed_and_deleted_through_any_node() -> anyhow::Result<()> {
    let _alone = alone();
    let mut sandbox = Sandbox::with_timing(&[], CALM)?;
    let folder = sandbox.dir.path().join("handbook");
    fs::create_dir(&folder)?;
    fs::write(folder.join("leases.md"), LEASES)?;
    fs::write(folder.join("bread.txt"), BREAD)?;
    sandbox.mesh(&["a", "b"], &config(&folder), 1)?;
    sandbox.submit(0, &task(1))?;
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

    // A newer version, in two shards: it takes over what came over HTTP, and there is an answer all the while.
    let newer = sandbox.submit(1, &task(2))?;
    sandbox.until("the newer version has taken over", |s| {
        let found = retrieve(&s.rest(0)?, "Walrus")?;
        // Until a node has heard of a new shard it names it as missing.
        let named = found["missing_shards"] != json!([]);
        ensure!(named || found.to_string().contains("notes.txt"), "it was found before: {found}");
        let all = s.run(0, &["services", "-o", "json"])?.json()?;
        let replicas = all[0]["replicas"].as_array().context("replicas")?;
        Ok(all[0]["ready"] == 2 && replicas.len() == 2 && replicas.iter().all(|one| one["task"] == newer.as_str()))
    })?;
    // Every node has heard of both by gossip, some moments after the leader.
    sandbox.until("both shards answer through the other node", |_| {
        let found = retrieve(&at, "Walrus")?;
        Ok(found.to_string().contains("notes.txt") && found["missing_shards"] == json!([]))
    })
}

/// A document that came over HTTP, and a word that no other has.
fn document(n: usize) -> (String, String, String) {
    let word = format!("zorb{n}{n}");
    (format!("doc-{n}"), format!("The creature called {word} lives on a hill of its own.\n"), word)
}

fn put(at: &str, n: usize) -> anyhow::Result<Answer> {
    let (id, text, _) = document(n);
    let request = format!("POST /v1/rag/handbook/documents?id={id}&name={id}.txt");
    http::request(at, &request, &[("content-type", "text/plain")], &text)
}

/// Whether a document of this word is found, and which shards are missing.
fn found(at: &str, word: &str) -> anyhow::Result<(bool, Value)> {
    let found = retrieve(at, word)?;
    let hits = found["data"].as_array().context("hits")?;
    Ok((
        hits.iter().any(|hit| hit["text"].as_str().is_some_and(|text| text.contains(word))),
        found["missing_shards"].clone(),
    ))
}

#[test]
fn shards_answer_as_one_and_a_node_that_is_lost_takes_no_document_along() -> anyhow::Result<()> {
    const UPLOADS: usize = 6;
    let _alone = alone();
    let mut sandbox = Sandbox::with_timing(&[], SOON_LOST)?;
    let folder = sandbox.dir.path().join("handbook");
    fs::create_dir(&folder)?;
    fs::write(folder.join("leases.md"), LEASES)?;
    fs::write(folder.join("bread.txt"), BREAD)?;
    sandbox.mesh(&["a", "b", "c"], &config(&folder), 3)?;
    sandbox.submit(0, &task(2))?;
    let mut replicas = Value::Null;
    sandbox.until("both shards are ready", |s| {
        let all = s.run(0, &["services", "-o", "json"])?.json()?;
        replicas = all[0]["replicas"].clone();
        Ok(all[0]["ready"] == 2)
    })?;
    // The leader is chosen last: it has none, and stays.
    let leader = sandbox.leader(0)?;
    let place = |n: usize| replicas[n]["node_name"].as_str().context("a replica's node");
    let (one, other) = (sandbox.named(place(0)?)?, sandbox.named(place(1)?)?);
    ensure!(one != other && leader != one && leader != other, "{replicas}");

    // In by one node, whichever shard they belong to; found by all.
    for n in 0..UPLOADS {
        let (leader, other) = (sandbox.rest(leader)?, sandbox.rest(other)?);
        let mut accepted = None;
        // Gossip may not have told every node of both shards yet.
        sandbox.until("the document is taken", |_| {
            let answer = put(&leader, n)?;
            ensure!([200, 202, 404, 503].contains(&answer.status), "{answer:?}");
            accepted = Some(answer).filter(|answer| answer.status < 300);
            Ok(accepted.is_some())
        })?;
        let accepted = accepted.context("an answer")?.json()?;
        ensure!(accepted["id"] == document(n).0, "{accepted}");
        sandbox.until("it is found by another node, and no shard is missing", |_| {
            Ok(found(&other, &document(n).2)? == (true, json!([])))
        })?;
    }
    let whole = |s: &Sandbox, node: usize| -> anyhow::Result<bool> {
        let listed = http::get(&s.rest(node)?, "/v1/rag/handbook/documents")?;
        let body = listed.json().unwrap_or_default();
        let indexed =
            body["data"].as_array().map_or(0, |all| all.iter().filter(|one| one["status"] == "indexed").count());
        Ok(indexed == UPLOADS + 2 && body["missing_shards"] == json!([]))
    };
    for node in [one, other, leader] {
        sandbox.until("the folder's documents are there too, each once", |s| whole(s, node))?;
    }

    // A node goes, and with it a shard: what is left answers, and says so.
    sandbox.kill(other)?;
    let number = replicas[1]["attempt"].as_str().and_then(|id| id.rsplit('.').nth(1)).context("a replica's number")?;
    let lost = number.parse::<u32>()? % 2;
    let at = sandbox.rest(leader)?;
    sandbox.until("an answer names the missing shard", |_| {
        let begun = Instant::now();
        let found = retrieve(&at, "creature")?;
        ensure!(begun.elapsed() < Duration::from_secs(30), "a dead shard held it up: {:?}", begun.elapsed());
        Ok(found["missing_shards"] == json!([lost]))
    })?;
    let ask = |streams: bool| -> anyhow::Result<Answer> {
        let messages = json!([{"role": "user", "content": "Where does the creature live?"}]);
        let body = json!({"model": "handbook", "max_tokens": 4, "stream": streams, "messages": messages});
        http::post(&at, "/v1/chat/completions", &body)
    };
    let answer = ask(false)?;
    ensure!(answer.status == 200 && answer.json()?["rag"]["missing_shards"] == json!([lost]), "{answer:?}");
    let streamed = ask(true)?;
    ensure!(streamed.body.contains(&format!("\"missing_shards\":[{lost}]")), "{streamed:?}");
    ensure!(streamed.body.ends_with("data: [DONE]\n\n"), "{streamed:?}");
    let refused: Vec<usize> = {
        let answers = (0..UPLOADS).map(|n| Ok((n, put(&at, n)?)));
        let answers = answers.collect::<anyhow::Result<Vec<_>>>()?;
        for (_, answer) in answers.iter().filter(|(_, answer)| answer.status >= 300) {
            ensure!(answer.status == 503 && answer.header("retry-after").is_some(), "{answer:?}");
            ensure!(answer.json()?["error"]["code"] == "shard_missing", "{answer:?}");
        }
        answers.into_iter().filter(|(_, answer)| answer.status >= 300).map(|(n, _)| n).collect()
    };
    ensure!(!refused.is_empty() && refused.len() < UPLOADS, "of {UPLOADS} documents {refused:?} are the lost shard's");

    // It begins anew on the node that is left, from the copies that the other shard kept.
    sandbox.until("nothing is missing any more", |s| {
        ensure!(retrieve(&at, "creature")?["data"].is_array(), "it is asked all the while");
        whole(s, leader)
    })?;
    for n in 0..UPLOADS {
        // The other node hears of the new one by gossip.
        let what = format!("document {n} is found, of which {refused:?} were lost for a while");
        sandbox.until(&what, |_| Ok(found(&at, &document(n).2)? == (true, json!([]))))?;
    }
    Ok(())
}
