//! The routes: documents in and out, questions, chat with citations, and what is refused.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http_body_util::BodyExt;
use mloc_rag::{
    answer::NOT_IN_DOCUMENTS,
    http::{App, Call, Chat, ChatError, Limits, NoReply, Peers, Reply, To, Told, keep, router, shard_router, work},
    service::{Floor, Settings},
    shard::{Sharding, shard_of},
};
use serde_json::{Value, json};
use support::service_with;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Says what it was told to say, and keeps what it was asked.
#[derive(Default)]
struct Parrot {
    says: String,
    asked: Mutex<Vec<Value>>,
}

impl Chat for Parrot {
    fn complete(&self, body: Value) -> BoxFuture<'static, Result<Told, ChatError>> {
        self.asked.lock().unwrap().push(body.clone());
        let says = self.says.clone();
        async move {
            if says == "refuse" {
                return Err(ChatError { status: 429, body: json!({ "error": { "message": "busy" } }) });
            }
            if body["stream"] != true {
                let message = json!({ "role": "assistant", "content": says });
                let choices = json!([{ "index": 0, "message": message, "finish_reason": "stop" }]);
                return Ok(Told::Whole(json!({ "id": "c", "object": "chat.completion", "choices": choices })));
            }
            let chunk = |delta: Value, end: Value| {
                let choices = json!([{ "index": 0, "delta": delta, "finish_reason": end }]);
                json!({ "id": "c", "object": "chat.completion.chunk", "choices": choices })
            };
            // A char at a time: citations come in pieces.
            let mut chunks: Vec<Result<Value, ChatError>> =
                says.chars().map(|c| Ok(chunk(json!({ "content": c.to_string() }), Value::Null))).collect();
            if says.contains("break off") {
                chunks.push(Err(ChatError { status: 500, body: json!({ "error": { "message": "lost" } }) }));
            } else {
                chunks.push(Ok(chunk(json!({}), "stop".into())));
                chunks.push(Ok(json!({ "id": "c", "object": "chat.completion.chunk", "choices": [], "usage": { "total_tokens": 9 } })));
            }
            Ok(Told::Stream(stream::iter(chunks).boxed()))
        }
        .boxed()
    }
}

/// What was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begins {
    /// It has all of its documents.
    Whole,
    /// Nobody was this shard before.
    First,
    /// Somebody was, with another folder or with this one.
    Anew,
}

struct Env {
    dir: Option<tempfile::TempDir>,
    app: Arc<App>,
    chat: Arc<Parrot>,
    router: Router,
    stop: CancellationToken,
}

impl Env {
    fn new(says: &str) -> Self {
        Self::with(
            says,
            Settings { floor: Floor { cosine: Some(0.05), ..Floor::default() }, ..Settings::default() },
            None,
        )
    }

    fn with(says: &str, settings: Settings, peers: Option<Arc<dyn Peers>>) -> Self {
        Self::over(tempfile::tempdir().unwrap(), says, settings, peers, Begins::Whole)
    }

    /// Over a folder that may hold what was before.
    fn over(
        dir: tempfile::TempDir,
        says: &str,
        settings: Settings,
        peers: Option<Arc<dyn Peers>>,
        begins: Begins,
    ) -> Self {
        let chat = Arc::new(Parrot { says: says.into(), ..Parrot::default() });
        let count = AtomicU64::new(0);
        let nonce = move || format!("n{}", count.fetch_add(1, Ordering::SeqCst));
        let service = Arc::new(service_with(dir.path(), settings));
        match begins {
            Begins::Whole => service.set_whole(true).unwrap(),
            Begins::First | Begins::Anew if service.is_whole().unwrap().is_none() => service.set_whole(false).unwrap(),
            Begins::First | Begins::Anew => {}
        }
        let mut app =
            App::new(service, chat.clone(), Limits { body_bytes: 100_000, ..Limits::default() }, nonce, || 1_000);
        if let Some(peers) = peers {
            app = app.with_peers(peers);
        }
        let app = Arc::new(app);
        let stop = CancellationToken::new();
        tokio::spawn(work(app.clone(), stop.clone()));
        let first = begins == Begins::First;
        tokio::spawn(keep(app.clone(), first, Duration::from_millis(20), stop.clone()));
        let router = router(app.clone()).merge(shard_router(app.clone()));
        Self { dir: Some(dir), app, chat, router, stop }
    }

    /// Its folder, once nobody has it any more.
    async fn end(mut self) -> tempfile::TempDir {
        let dir = self.dir.take().unwrap();
        let app = Arc::downgrade(&self.app);
        drop(self);
        while app.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        dir
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: impl Into<Body>) -> (StatusCode, String) {
        let request =
            Request::builder().method(method).uri(path).header("content-type", kind).body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn json(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.send(method, path, "application/json", body.to_string()).await;
        (status.as_u16(), serde_json::from_str(&text).unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.json(Method::GET, path, Value::Null).await
    }

    async fn put(&self, id: &str, text: &str) {
        let path = format!("/v1/rag/docs/documents?id={id}&name={id}.md&metadata=%7B%22lang%22%3A%22en%22%7D");
        let (status, body) = self.send(Method::POST, &path, "text/markdown", text.to_owned()).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        self.until(id, "indexed").await;
    }

    async fn until(&self, id: &str, wanted: &str) -> Value {
        for _ in 0..500 {
            let (_, body) = self.get(&format!("/v1/rag/docs/documents/{id}")).await;
            if body["status"] == wanted {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{id} did not become {wanted}");
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

const FOX: &str = "# Foxes\n\nThe red fox sleeps by day and hunts at night.";

fn asks(question: &str) -> Value {
    json!({ "model": "docs", "messages": [{ "role": "user", "content": question }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_come_and_go() {
    let env = Env::new("");
    env.put("fox", FOX).await;
    let form = "--B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"bears.txt\"\r\ncontent-type: text/plain\r\n\r\n\
                Brown bears eat salmon.\r\n--B\r\ncontent-disposition: form-data; name=\"id\"\r\n\r\nbear\r\n--B\r\n\
                content-disposition: form-data; name=\"metadata\"\r\n\r\n{\"lang\":\"en\",\"year\":2020}\r\n--B--\r\n";
    let (status, body) =
        env.send(Method::POST, "/v1/rag/docs/documents", "multipart/form-data; boundary=B", form).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let bear = env.until("bear", "indexed").await;
    assert_eq!((bear["name"].as_str(), &bear["indexed"]["metadata"]["year"]), (Some("bears.txt"), &json!(2020)));
    let (status, again) = env
        .send(
            Method::POST,
            "/v1/rag/docs/documents?id=fox&name=fox.md&metadata=%7B%22lang%22%3A%22en%22%7D",
            "text/markdown",
            FOX,
        )
        .await;
    assert!(status == StatusCode::OK && again.contains("\"unchanged\":true"), "{again}");

    let (_, page) = env.get("/v1/rag/docs/documents?limit=1").await;
    assert_eq!(
        (&page["data"][0]["id"], &page["has_more"], &page["last_id"]),
        (&json!("bear"), &json!(true), &json!("bear"))
    );
    let (_, page) = env.get("/v1/rag/docs/documents?limit=1&after=bear").await;
    assert_eq!((&page["data"][0]["id"], &page["has_more"]), (&json!("fox"), &json!(false)));
    let (_, text) = env.get("/v1/rag/docs/documents/fox/text?start=9&end=20").await;
    assert_eq!((&text["text"], &text["end"]), (&json!("The red fox"), &json!(20)));

    let (_, found) = env.json(Method::POST, "/v1/rag/docs/retrieve", json!({ "query": "what do bears eat" })).await;
    assert_eq!(found["data"][0]["document_id"], "bear");
    let filter = json!([{ "field": "year", "exists": false }]);
    let (_, found) = env
        .json(Method::POST, "/v1/rag/docs/retrieve", json!({ "query": "bears", "filter": filter, "floor": {} }))
        .await;
    assert_eq!((found["data"].as_array().unwrap().len(), &found["data"][0]["document_id"]), (1, &json!("fox")));

    let (status, gone) = env.json(Method::DELETE, "/v1/rag/docs/documents/bear", Value::Null).await;
    assert_eq!((status, &gone["deleted"]), (200, &json!(true)));
    assert_eq!(env.get("/v1/rag/docs/documents/bear").await.0, 404);
    assert_eq!(env.json(Method::DELETE, "/v1/rag/docs/documents/bear", Value::Null).await.0, 404);
    env.send(Method::POST, "/v1/rag/docs/documents?id=bad&name=bad.pdf", "application/pdf", "no pdf").await;
    let bad = env.until("bad", "failed").await;
    assert!(bad["reason"].as_str().unwrap().contains("no readable PDF"), "{bad}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_cites_its_documents() {
    let env = Env::new("By day [1], and [7].");
    env.put("fox", FOX).await;
    let (status, answer) = env.json(Method::POST, "/v1/chat/completions", asks("When does the red fox sleep?")).await;
    assert_eq!(status, 200, "{answer}");
    let citation = &answer["choices"][0]["message"]["citations"][0];
    assert_eq!((&citation["document_id"], &citation["document_name"]), (&json!("fox"), &json!("fox.md")));
    let (start, end) = (citation["start"].as_u64().unwrap(), citation["end"].as_u64().unwrap());
    let (_, text) = env.get(&format!("/v1/rag/docs/documents/fox/text?start={start}&end={end}")).await;
    assert_eq!((&text["text"], &text["document_hash"]), (&citation["text"], &citation["document_hash"]));
    assert_eq!(citation["cited_at"], json!([{ "start": 7, "end": 10 }]));
    assert_eq!((&answer["citations"][0]["choice"], &answer["rag"]["unknown_citations"]), (&json!(0), &json!([7])));
    assert_eq!(answer["rag"]["not_in_documents"], false);
    let asked = env.chat.asked.lock().unwrap()[0].clone();
    assert!(asked["messages"][1]["content"].as_str().unwrap().contains("hunts at night"), "{asked}");
    assert!(asked.get("rag").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_citations() {
    let env = Env::new("By day [1].");
    env.put("fox", FOX).await;
    let mut body = asks("When does the red fox sleep?");
    body["stream"] = true.into();
    let (status, text) =
        env.send(Method::POST, "/v1/rag/docs/chat/completions", "application/json", body.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    let events: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, "By day [1].");
    let last = chunks.last().unwrap();
    assert_eq!((&last["citations"][0]["document_id"], &last["usage"]["total_tokens"]), (&json!("fox"), &json!(9)));
    assert_eq!(chunks.iter().filter(|chunk| chunk.get("citations").is_some()).count(), 1);
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_documents_asks_no_model() {
    let env = Env::new("I make things up.");
    env.put("fox", FOX).await;
    for streamed in [false, true] {
        let mut body = asks("What is the capital of Peru?");
        body["stream"] = streamed.into();
        let (status, text) = env.send(Method::POST, "/v1/chat/completions", "application/json", body.to_string()).await;
        assert!(status == StatusCode::OK && text.contains(NOT_IN_DOCUMENTS), "{text}");
        assert!(text.contains("\"not_in_documents\":true") && text.contains("\"citations\":[]"), "{text}");
        assert_eq!(text.ends_with("data: [DONE]\n\n"), streamed);
    }
    assert!(env.chat.asked.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_errors_are_passed_on() {
    let env = Env::new("refuse");
    env.put("fox", FOX).await;
    let (status, body) = env.json(Method::POST, "/v1/chat/completions", asks("red fox?")).await;
    assert_eq!((status, &body["error"]["message"]), (429, &json!("busy")));
    let env = Env::new("I break off");
    env.put("fox", FOX).await;
    let mut body = asks("red fox?");
    body["stream"] = true.into();
    let (_, text) = env.send(Method::POST, "/v1/chat/completions", "application/json", body.to_string()).await;
    assert!(text.ends_with("data: {\"error\":{\"message\":\"lost\"}}\n\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_would_work() {
    let env = Env::with("", Settings { document_bytes: 1000, ..Settings::default() }, None);
    let post = Method::POST;
    let mut told = Vec::new();
    let large = "x".repeat(100_001);
    for (method, path, kind, body) in [
        (post.clone(), "/v1/rag/docs/documents", "text/plain", "x"),
        (post.clone(), "/v1/rag/docs/documents?name=a.jpeg", "image/jpeg", "x"),
        (post.clone(), "/v1/rag/docs/documents?name=a.txt&id=a%2Fb", "text/plain", "x"),
        (post.clone(), "/v1/rag/docs/documents?name=a.txt&metadata=1", "text/plain", "x"),
        (post.clone(), "/v1/rag/docs/documents?name=a.txt", "text/plain", large.as_str()),
        (post.clone(), "/v1/rag/docs/documents", "multipart/form-data; boundary=B", "--B--\r\n"),
        (post.clone(), "/v1/rag/other/retrieve", "application/json", "{}"),
        (post.clone(), "/v1/rag/docs/retrieve", "application/json", "{"),
        (post.clone(), "/v1/rag/docs/retrieve", "application/json", "{}"),
        (post.clone(), "/v1/rag/docs/retrieve", "application/json", "{\"query\": \"x\", \"topk\": 3}"),
        (post.clone(), "/v1/rag/docs/retrieve", "application/json", "{\"query\": \"x\", \"top_k\": 0}"),
        (
            post.clone(),
            "/v1/rag/docs/retrieve",
            "application/json",
            "{\"query\": \"x\", \"filter\": [{\"field\": \"y\"}]}",
        ),
        (post.clone(), "/v1/rag/docs/retrieve", "application/json", large.as_str()),
        (post.clone(), "/v1/chat/completions", "application/json", "{\"messages\": []}"),
        (post.clone(), "/v1/chat/completions", "application/json", "{\"messages\": [], \"rag\": {\"top\": 1}}"),
        (Method::GET, "/v1/rag/docs/documents?limit=0", "", ""),
        (Method::GET, "/v1/rag/docs/documents/none/text", "", ""),
        (Method::GET, "/v1/nothing", "", ""),
        (Method::PUT, "/v1/chat/completions", "", ""),
    ] {
        let (status, text) = env.send(method, path, kind, body.to_owned()).await;
        let error = serde_json::from_str::<Value>(&text).unwrap_or_else(|_| panic!("{path}: {text}"))["error"].clone();
        told.push(format!("{} {} {} {}", status.as_u16(), error["code"], error["param"], error["message"]));
    }
    insta::assert_snapshot!(told.join("\n"));
}

/// Other shards by their routers; none for one that is away.
#[derive(Default)]
struct Routers {
    shards: Mutex<Vec<Option<Router>>>,
    older: Mutex<Vec<Router>>,
    newer: Mutex<Option<Router>>,
}

impl Peers for Routers {
    fn call(&self, to: To, call: Call) -> BoxFuture<'static, Result<Reply, NoReply>> {
        let router = match to {
            To::Shard(shard) => self.shards.lock().unwrap().get(shard as usize).cloned().flatten(),
            To::Older(number) => self.older.lock().unwrap().get(number as usize).cloned(),
            To::Newer => self.newer.lock().unwrap().clone(),
        };
        async move {
            let router = router.ok_or(NoReply::Nobody("away".to_owned()))?;
            let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let query: Vec<String> = call.query.iter().map(|(n, v)| format!("{n}={}", encoded(v))).collect();
            let uri = format!("/v1/rag/docs/{}?{}", call.path, query.join("&"));
            let kind = call.content_type.unwrap_or_default();
            let request = Request::builder().method(call.method).uri(uri).header("content-type", kind);
            let response = router.oneshot(request.body(Body::from(call.body)).unwrap()).await.unwrap();
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            Ok(Reply { status, retry_after: None, body: body.to_vec() })
        }
        .boxed()
    }
}

impl Routers {
    fn lead_to(&self, envs: &[Env]) {
        *self.shards.lock().unwrap() = envs.iter().map(|env| Some(env.router.clone())).collect();
    }
}

/// One shard of two.
fn of_two(index: u32) -> Settings {
    let floor = Floor { cosine: Some(0.05), ..Floor::default() };
    Settings { sharding: Sharding { index, count: 2 }, floor, ..Settings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_answer_as_one_and_say_who_is_missing() {
    let peers = Arc::new(Routers::default());
    let shard = |index| Env::with("It says so [1].", of_two(index), Some(peers.clone()));
    let envs = [shard(0), shard(1)];
    peers.lead_to(&envs);
    // All go in by the first one, and each lands where it belongs.
    let ids: Vec<String> = (0..8).map(|n| format!("d{n}")).collect();
    for (id, n) in ids.iter().zip(0..) {
        envs[0].put(id, &format!("# Animal {n}\n\nThe creature called zorb{n} lives on hill {n}.")).await;
    }
    let elsewhere: Vec<&String> = ids.iter().filter(|id| shard_of(id, 2) == 1).collect();
    assert!(!elsewhere.is_empty() && elsewhere.len() < 8);
    let (_, list) = envs[0].get("/v1/rag/docs/documents").await;
    assert_eq!((list["data"].as_array().unwrap().len(), &list["missing_shards"]), (8, &json!([])));
    let path = format!("/v1/rag/docs/documents?id={}&name=x.md", elsewhere[0]);
    let (_, again) = envs[0].send(Method::POST, &path, "text/markdown", "# Animal\n\nAs it was.").await;
    assert!(again.contains("\"copies\":2"), "{again}");
    envs[0].put(elsewhere[0], &format!("# Animal\n\nThe creature called zorb{} lives.", &elsewhere[0][1..])).await;
    let question = format!("Where does zorb{} live?", &elsewhere[0][1..]);
    let (_, answer) = envs[0].json(Method::POST, "/v1/chat/completions", asks(&question)).await;
    assert_eq!(
        (&answer["citations"][0]["document_id"], &answer["rag"]["missing_shards"]),
        (&json!(elsewhere[0]), &json!([]))
    );
    // A shard goes away: answers go on, and say so.
    peers.shards.lock().unwrap()[1] = None;
    let (_, found) = envs[0].json(Method::POST, "/v1/rag/docs/retrieve", json!({ "query": question })).await;
    assert_eq!(found["missing_shards"], json!([1]));
    for streamed in [false, true] {
        let mut body = asks("Which creature lives on a hill?");
        body["stream"] = streamed.into();
        let (_, text) = envs[0].send(Method::POST, "/v1/chat/completions", "application/json", body.to_string()).await;
        assert!(text.contains("\"missing_shards\":[1]"), "{text}");
        assert!(text.contains("shard 1 of 2 did not answer"), "{text}");
        let mut body = asks("What is the capital of Peru?");
        body["stream"] = streamed.into();
        let (_, text) = envs[0].send(Method::POST, "/v1/chat/completions", "application/json", body.to_string()).await;
        assert!(text.contains(NOT_IN_DOCUMENTS) && text.contains("shard 1 of 2 did not answer"), "{text}");
    }
    let (status, body) = envs[0].get(&format!("/v1/rag/docs/documents/{}", elsewhere[0])).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("shard_missing")));
    // What belongs to it is not taken, nor taken out, and when to try again is said.
    for (method, path) in [
        (Method::POST, format!("/v1/rag/docs/documents?id={}&name=x.md", elsewhere[0])),
        (Method::DELETE, format!("/v1/rag/docs/documents/{}", elsewhere[0])),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::from("new")).unwrap();
        let response = envs[0].router.clone().oneshot(request).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"5".parse().unwrap()));
    }
    // Of those of the shard that is there the copy comes later.
    let own = ids.iter().find(|id| shard_of(id, 2) == 0).unwrap();
    let path = format!("/v1/rag/docs/documents?id={own}&name={own}.md");
    let (status, body) = envs[0].send(Method::POST, &path, "text/markdown", "# Another\n\nword").await;
    assert!(status == StatusCode::ACCEPTED && body.contains("\"copies\":1"), "{body}");
}

/// Ids of documents that a shard of two lists, in order.
async fn listed(env: &Env) -> Vec<String> {
    let (_, list) = env.get("/v1/rag/docs/documents?local=true").await;
    list["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

/// Until the files of one shard and their copies with the other are alike.
async fn agree(envs: &[Env; 2]) {
    for (of, with) in [(0, 1), (1, 0)] {
        let stamps = async |env: &Env| {
            let (_, body) = env.get(&format!("/v1/rag/docs/shard/copies?of={of}&digest=none")).await;
            body["stamps"].clone()
        };
        for round in 0.. {
            if stamps(&envs[of]).await == stamps(&envs[with]).await {
                break;
            }
            assert!(round < 500, "shard {of} and its copies do not come to agree");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_begins_anew_has_its_documents_from_the_other() {
    let peers = Arc::new(Routers::default());
    let shard = |index| Env::with("", of_two(index), Some(peers.clone()));
    let mut envs = [shard(0), shard(1)];
    peers.lead_to(&envs);
    let ids: Vec<String> = (0..8).map(|n| format!("d{n}")).collect();
    for (id, n) in ids.iter().zip(0..) {
        envs[n % 2].put(id, &format!("# Animal {n}\n\nThe creature called zorb{n} lives on hill {n}.")).await;
    }
    let of_one = |shard| ids.iter().filter(|id| shard_of(id, 2) == shard).cloned().collect::<Vec<_>>();
    assert_eq!((listed(&envs[0]).await, listed(&envs[1]).await), (of_one(0), of_one(1)));
    let gone = of_one(1)[0].clone();
    assert_eq!(envs[0].json(Method::DELETE, &format!("/v1/rag/docs/documents/{gone}"), Value::Null).await.0, 200);

    // Another folder, as on another node. Until it has heard of its documents it is named among the missing.
    peers.shards.lock().unwrap().clear();
    let anew = Env::over(tempfile::tempdir().unwrap(), "", of_two(1), Some(peers.clone()), Begins::Anew);
    let (_, found) = anew.json(Method::POST, "/v1/rag/docs/retrieve", json!({ "query": "creature" })).await;
    assert!(found["missing_shards"].as_array().unwrap().contains(&json!(1)), "{found}");
    assert_eq!(anew.get(&format!("/v1/rag/docs/documents/{}", of_one(1)[1])).await.0, 503, "nobody knows yet");
    let [first, lost] = envs;
    drop(lost.end().await);
    envs = [first, anew];
    peers.lead_to(&envs);
    for round in 0.. {
        if envs[1].app.is_whole() {
            break;
        }
        assert!(round < 500, "it does not become whole");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(listed(&envs[1]).await, of_one(1)[1..], "what was deleted stays so");
    let (_, found) = envs[0].json(Method::POST, "/v1/rag/docs/retrieve", json!({ "query": "creature" })).await;
    assert_eq!((found["data"].as_array().unwrap().len(), &found["missing_shards"]), (6, &json!([])));
    // It keeps copies for the other again: that one may go now.
    agree(&envs).await;
    let [lost, second] = envs;
    peers.shards.lock().unwrap()[0] = None;
    drop(lost.end().await);
    let anew = Env::over(tempfile::tempdir().unwrap(), "", of_two(0), Some(peers.clone()), Begins::Anew);
    envs = [anew, second];
    peers.lead_to(&envs);
    agree(&envs).await;
    for id in of_one(0) {
        envs[0].until(&id, "indexed").await;
    }
    assert_eq!(listed(&envs[0]).await, of_one(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_the_other_was_away_is_told_when_it_is_back() {
    let peers = Arc::new(Routers::default());
    let shard = |index| Env::with("", of_two(index), Some(peers.clone()));
    let envs = [shard(0), shard(1)];
    peers.lead_to(&envs);
    let own: Vec<String> = (0..9).map(|n| format!("d{n}")).filter(|id| shard_of(id, 2) == 0).take(3).collect();
    for id in &own {
        envs[0].put(id, &format!("# A title\n\nThe words of {id}.")).await;
    }
    let [first, second] = envs;
    peers.shards.lock().unwrap()[1] = None;
    let folder = second.end().await;
    assert_eq!(first.json(Method::DELETE, &format!("/v1/rag/docs/documents/{}", own[0]), Value::Null).await.0, 200);
    first.put(&own[1], "# A title\n\nOther words.").await;
    // The same folder: a process that was started again.
    let back = Env::over(folder, "", of_two(1), Some(peers.clone()), Begins::Anew);
    assert!(back.app.is_whole(), "it lost nothing");
    let envs = [first, back];
    peers.lead_to(&envs);
    agree(&envs).await;
    let (_, body) = envs[1].get("/v1/rag/docs/shard/copies?of=0&digest=none").await;
    assert!(body["stamps"][&own[0]][1].is_null(), "that it went is known: {body}");
    let (status, copy) = envs[1].send(Method::GET, &format!("/v1/rag/docs/shard/copies/{}", own[1]), "", "").await;
    assert!(status == StatusCode::OK && copy.ends_with("Other words."), "{copy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_version_takes_over_into_as_many_shards_as_it_has() {
    let (old, new) = (Arc::new(Routers::default()), Arc::new(Routers::default()));
    let older = [0, 1].map(|index| Env::with("", of_two(index), Some(old.clone())));
    old.lead_to(&older);
    let mut ids: Vec<String> = (0..9).map(|n| format!("d{n}")).collect();
    for id in &ids {
        older[0].put(id, &format!("# A title\n\nThe words of {id}.")).await;
    }
    *new.older.lock().unwrap() = older.iter().map(|env| env.router.clone()).collect();
    let shard = |index| {
        let settings = Settings { sharding: Sharding { index, count: 3 }, ..Settings::default() };
        Env::over(tempfile::tempdir().unwrap(), "", settings, Some(new.clone()), Begins::First)
    };
    let newer = [0, 1, 2].map(shard);
    new.lead_to(&newer);
    let has = async |wanted: &[String]| {
        let mut all = Vec::new();
        for (shard, env) in (0..).zip(&newer) {
            let own = listed(env).await;
            assert!(own.iter().all(|id| shard_of(id, 3) == shard), "{own:?} at shard {shard}");
            all.extend(own.into_iter().filter(|_| env.app.is_whole()));
        }
        all.sort();
        all == wanted
    };
    let until = async |wanted: &[String]| {
        for _ in 0..500 {
            if has(wanted).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the newer version does not come to have {wanted:?}");
    };
    until(&ids).await;
    // A shard of it is away: the older version is whole, and its answer is given.
    let away = new.shards.lock().unwrap()[1].take();
    let (_, found) = newer[0].json(Method::POST, "/v1/rag/docs/retrieve", json!({ "query": "words of d3" })).await;
    assert_eq!((&found["data"][0]["document_id"], &found["missing_shards"]), (&json!("d3"), &json!([])));
    new.shards.lock().unwrap()[1] = away;
    // What is changed with the older one meanwhile is changed with the newer one, at once.
    *old.newer.lock().unwrap() = Some(newer[0].router.clone());
    new.older.lock().unwrap().clear();
    older[1].put("late", "# A title\n\nThe last words.").await;
    ids.push("late".to_owned());
    assert_eq!(older[0].json(Method::DELETE, "/v1/rag/docs/documents/d0", Value::Null).await.0, 200);
    until(&ids[1..]).await;
    let (_, found) = newer[2].json(Method::POST, "/v1/rag/docs/retrieve", json!({ "query": "last words" })).await;
    assert_eq!((&found["data"][0]["document_id"], &found["missing_shards"]), (&json!("late"), &json!([])));
}
