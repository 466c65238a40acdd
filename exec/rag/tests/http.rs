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
    http::{App, Call, Chat, ChatError, Limits, Peers, Reply, Told, router, work},
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

struct Env {
    _dir: tempfile::TempDir,
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
        let dir = tempfile::tempdir().unwrap();
        let chat = Arc::new(Parrot { says: says.into(), ..Parrot::default() });
        let count = AtomicU64::new(0);
        let nonce = move || format!("n{}", count.fetch_add(1, Ordering::SeqCst));
        let service = Arc::new(service_with(dir.path(), settings));
        let mut app =
            App::new(service, chat.clone(), Limits { body_bytes: 100_000, ..Limits::default() }, nonce, || 1_000);
        if let Some(peers) = peers {
            app = app.with_peers(peers);
        }
        let app = Arc::new(app);
        let stop = CancellationToken::new();
        tokio::spawn(work(app.clone(), stop.clone()));
        Self { _dir: dir, chat, router: router(app), stop }
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
struct Routers(Mutex<Vec<Option<Router>>>);

impl Peers for Routers {
    fn call(&self, shard: u32, call: Call) -> BoxFuture<'static, Result<Reply, String>> {
        let router = self.0.lock().unwrap().get(shard as usize).cloned().flatten();
        async move {
            let router = router.ok_or("away")?;
            let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let query: Vec<String> = call.query.iter().map(|(n, v)| format!("{n}={}", encoded(v))).collect();
            let uri = format!("/v1/rag/docs/{}?{}", call.path, query.join("&"));
            let kind = call.content_type.unwrap_or_default();
            let request = Request::builder().method(call.method).uri(uri).header("content-type", kind);
            let response = router.oneshot(request.body(Body::from(call.body)).unwrap()).await.unwrap();
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            Ok(Reply { status, body: serde_json::from_slice(&body).unwrap() })
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_answer_as_one_and_say_who_is_missing() {
    let peers = Arc::new(Routers(Mutex::new(vec![None, None])));
    let shard = |index| {
        let settings = Settings {
            sharding: Sharding { index, count: 2 },
            floor: Floor { cosine: Some(0.05), ..Floor::default() },
            ..Settings::default()
        };
        Env::with("It says so [1].", settings, Some(peers.clone()))
    };
    let envs = [shard(0), shard(1)];
    *peers.0.lock().unwrap() = envs.iter().map(|env| Some(env.router.clone())).collect();
    // All go in by the first one, and each lands where it belongs.
    let ids: Vec<String> = (0..8).map(|n| format!("d{n}")).collect();
    for (id, n) in ids.iter().zip(0..) {
        envs[0].put(id, &format!("# Animal {n}\n\nThe creature called zorb{n} lives on hill {n}.")).await;
    }
    let elsewhere: Vec<&String> = ids.iter().filter(|id| shard_of(id, 2) == 1).collect();
    assert!(!elsewhere.is_empty() && elsewhere.len() < 8);
    let (_, list) = envs[0].get("/v1/rag/docs/documents").await;
    assert_eq!((list["data"].as_array().unwrap().len(), &list["missing_shards"]), (8, &json!([])));
    let question = format!("Where does zorb{} live?", &elsewhere[0][1..]);
    let (_, answer) = envs[0].json(Method::POST, "/v1/chat/completions", asks(&question)).await;
    assert_eq!(
        (&answer["citations"][0]["document_id"], &answer["rag"]["missing_shards"]),
        (&json!(elsewhere[0]), &json!([]))
    );
    // A shard goes away: answers go on, and say so.
    peers.0.lock().unwrap()[1] = None;
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
}
