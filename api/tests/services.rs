//! Requests to services through a node: which replica they go to, what becomes of them when it is lost.

mod bench;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, http::StatusCode};
use bench::{Fake, FakeMesh, ask, json, request, tokens};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::{
    Response,
    body::{Body, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use mloc_api::{
    Access, Parts, Services,
    forward::{Duplex, Leader},
    services::Ready,
};
use mloc_core::id::{AttemptId, NodeId, TaskId};
use tokio::{
    io::AsyncReadExt,
    sync::{mpsc, watch},
};

const LOCAL: (&str, &str) = ("host", "localhost");

/// What a replica does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Answers,
    /// It is stopping: its node says that it was not asked.
    TurnsAway,
    /// Its node is gone; nothing comes.
    Hangs,
    /// The connection ends before the answer.
    Breaks,
    /// So many streams are dropped before anything was read of them; the next one is answered.
    Drops(usize),
    /// After the head and a first event, by `events` or as plain bytes.
    BreaksWithin {
        events: bool,
    },
    /// An answer of which nothing more comes.
    GoesOn,
}

/// Replicas in memory; each is a node of its own.
struct Bench {
    replicas: BTreeMap<u32, Does>,
    asked: Mutex<Vec<(u32, String)>>,
    dead: watch::Sender<BTreeSet<NodeId>>,
    /// Told when an answer's client has gone.
    gone: Mutex<Option<mpsc::Sender<()>>>,
    streams: Mutex<Vec<tokio::io::DuplexStream>>,
}

impl Bench {
    fn of(replicas: &[Does]) -> Arc<Self> {
        Arc::new(Self {
            replicas: (0..).zip(replicas.iter().copied()).collect(),
            asked: Mutex::default(),
            dead: watch::Sender::default(),
            gone: Mutex::default(),
            streams: Mutex::default(),
        })
    }

    fn app(self: &Arc<Self>) -> Router {
        let control = Arc::new(Fake::default());
        let forward = FakeMesh::new(Leader::Here, &[]);
        let parts = Parts { control: control.clone(), files: control, services: self.clone(), forward };
        mloc_api::rest_router(parts, Access::Trusted(tokens()))
    }

    fn asked(&self) -> Vec<u32> {
        self.asked.lock().unwrap().iter().map(|(replica, _)| *replica).collect()
    }
}

fn node(replica: u32) -> NodeId {
    NodeId::new(format!("node-{replica}"))
}

#[async_trait]
impl Services for Bench {
    fn ready(&self, name: &str) -> Vec<Ready> {
        let one = |replica: &u32| Ready {
            attempt: AttemptId { task: TaskId::new("task-1"), replica: *replica, attempt: 1 },
            node: node(*replica),
        };
        if name == "chat" { self.replicas.keys().map(one).collect() } else { Vec::new() }
    }

    fn names(&self) -> BTreeSet<String> {
        BTreeSet::from(["chat".to_owned()])
    }

    async fn changed(&self, _most: Duration) {
        tokio::task::yield_now().await;
    }

    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    async fn open(&self, at: &NodeId) -> io::Result<Box<dyn Duplex>> {
        let replica = *self.replicas.keys().find(|replica| node(**replica) == *at).unwrap();
        let does = self.replicas[&replica];
        let (near, far) = tokio::io::duplex(64 << 10);
        self.asked.lock().unwrap().push((replica, String::new()));
        match does {
            Does::Hangs => self.streams.lock().unwrap().push(far),
            Does::Breaks => drop(tokio::spawn(async move {
                let mut far = far;
                let _ = far.read_u8().await;
            })),
            Does::Drops(most) if self.asked().len() <= most => drop(far),
            Does::Answers | Does::TurnsAway | Does::BreaksWithin { .. } | Does::GoesOn | Does::Drops(_) => {
                let gone = self.gone.lock().unwrap().clone();
                let service = service_fn(move |request| answer(replica, does, request, gone.clone()));
                tokio::spawn(async move {
                    // It breaks off when the asker gives up, or as it was told to.
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).await;
                });
            }
        }
        Ok(Box::new(near))
    }

    async fn unheard(&self, at: &NodeId) {
        let _ = self.dead.subscribe().wait_for(|dead| dead.contains(at)).await;
    }
}

type AnyBody = http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;

async fn answer(
    replica: u32,
    does: Does,
    request: hyper::Request<Incoming>,
    gone: Option<mpsc::Sender<()>>,
) -> Result<Response<AnyBody>, Infallible> {
    let (parts, body) = request.into_parts();
    let sent = body.collect().await.unwrap().to_bytes();
    let full =
        |text: String| http_body_util::Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let head = Response::builder();
    let response = match does {
        Does::TurnsAway => head.status(503).header("mloc-lost", "it is stopping").body(full("no".into())),
        Does::BreaksWithin { events } => {
            let kind = if events { "text/event-stream; charset=utf-8" } else { "text/plain" };
            head.header("content-type", kind)
                .body(Broken { left: vec!["data: 1\n\n", "data: 2"], gone: None, sent: false }.boxed_unsync())
        }
        Does::GoesOn => head.body(Broken { left: vec!["first"], gone: Some(Gone(gone)), sent: false }.boxed_unsync()),
        Does::Answers | Does::Hangs | Does::Breaks | Does::Drops(_) => {
            let seen: BTreeMap<String, String> =
                parts.headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned())).collect();
            let said = serde_json::json!({
                "replica": replica, "method": parts.method.as_str(), "path": parts.uri.to_string(), "headers": seen,
                "body": String::from_utf8(sent.to_vec()).unwrap(),
            });
            head.status(207).header("x-own", "kept").body(full(said.to_string()))
        }
    };
    Ok(response.unwrap())
}

struct Gone(Option<mpsc::Sender<()>>);

impl Drop for Gone {
    fn drop(&mut self) {
        if let Some(told) = &self.0 {
            told.try_send(()).unwrap();
        }
    }
}

/// Some pieces; then an error, or nothing for ever.
struct Broken {
    left: Vec<&'static str>,
    gone: Option<Gone>,
    /// Whether the connection had its turn to send the pieces.
    sent: bool,
}

impl Body for Broken {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if !self.left.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from(self.left.remove(0))))));
        }
        match self.gone {
            // Woken by nothing but the connection's end.
            Some(_) => Poll::Pending,
            None if self.sent => Poll::Ready(Some(Err(io::Error::other("it broke")))),
            // What was sent goes out first, so that it breaks within the answer and not before.
            None => {
                self.sent = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

const BODY: &str = r#"{"model": "chat", "messages": [{"role": "user", "content": "hi"}]}"#;

/// Without a beginning that others may share: replicas are asked in turn.
const KEYLESS: &str = r#"{"model": "chat", "input": "hi"}"#;

#[tokio::test]
async fn what_a_replica_answers_is_the_clients_answer() {
    let bench = Bench::of(&[Does::Answers]);
    let app = bench.app();
    let headers = [LOCAL, ("mloc-caller", "root"), ("mloc-user", "root"), ("mloc-sibling", "t.0.1"), ("x-mine", "1")];
    let response = ask(&app, request("POST /v1/chat/completions?a=b", &headers, BODY)).await;
    assert_eq!((response.status().as_u16(), response.headers()["x-own"].to_str().unwrap()), (207, "kept"));
    let said = json(response).await;
    assert_eq!(
        (&said["method"], &said["path"], &said["body"]),
        (&"POST".into(), &"/v1/chat/completions?a=b".into(), &BODY.into())
    );
    assert_eq!((&said["headers"]["x-mine"], &said["headers"]["mloc-user"]), (&"1".into(), &"admin".into()), "{said}");
    assert!(said["headers"]["mloc-sibling"].is_null(), "no client is a replica: {said}");
    assert!(said["headers"]["mloc-caller"].is_null() && said["headers"]["authorization"].is_null(), "{said}");

    let token = format!("Bearer {}", tokens().issue("john-doe"));
    let headers = [LOCAL, ("authorization", token.as_str())];
    let said = json(ask(&app, request("PUT /services/chat/a%2Fb?c", &headers, "x")).await).await;
    assert_eq!((&said["method"], &said["path"], &said["body"]), (&"PUT".into(), &"/a%2Fb?c".into(), &"x".into()));
    assert_eq!(said["headers"]["mloc-user"], "john-doe");
    assert!(said["headers"]["authorization"].is_null(), "the mesh's token is not the program's: {said}");
}

#[tokio::test]
async fn one_that_is_lost_before_its_answer_is_followed_by_another() {
    for lost in [Does::TurnsAway, Does::Breaks] {
        // Whichever is asked first.
        let bench = Bench::of(&[lost, Does::Answers, lost]);
        let app = bench.app();
        for _ in 0..4 {
            let said = json(ask(&app, request("POST /v1/completions", &[LOCAL], KEYLESS)).await).await;
            assert_eq!((&said["replica"], &said["body"]), (&1.into(), &KEYLESS.into()), "{lost:?}");
        }
        assert!(bench.asked().len() > 4, "{lost:?}: some were lost");
    }
}

/// libp2p-stream drops streams of which too many come at once.
#[tokio::test]
async fn a_stream_that_was_dropped_unread_is_opened_anew() {
    let bench = Bench::of(&[Does::Drops(4)]);
    let response = ask(&bench.app(), request("POST /v1/completions", &[LOCAL], BODY)).await;
    assert_eq!((response.status(), bench.asked()), (StatusCode::MULTI_STATUS, vec![0; 5]));
    let bench = Bench::of(&[Does::Drops(100)]);
    let response = ask(&bench.app(), request("POST /v1/completions", &[LOCAL], BODY)).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "not for ever");
}

#[tokio::test]
async fn a_request_that_ends_every_replica_is_given_up() {
    let bench = Bench::of(&[Does::Breaks; 6]);
    let response = ask(&bench.app(), request("POST /v1/completions", &[LOCAL], BODY)).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(bench.asked().len(), 3);
}

#[tokio::test]
async fn one_whose_node_is_not_heard_any_more_is_not_waited_for() {
    let bench = Bench::of(&[Does::Hangs, Does::Answers]);
    let app = bench.app();
    let asking = async {
        let mut all = Vec::new();
        for _ in 0..2 {
            all.push(
                json(ask(&app, request("POST /v1/completions", &[LOCAL], KEYLESS)).await).await["replica"].clone(),
            );
        }
        all
    };
    let dying = async {
        while !bench.asked().contains(&0) {
            tokio::task::yield_now().await;
        }
        bench.dead.send_modify(|dead| _ = dead.insert(node(0)));
    };
    let (all, ()) = tokio::join!(asking, dying);
    assert_eq!(all, [1, 1]);
}

#[tokio::test]
async fn after_the_first_byte_an_event_stream_ends_with_an_error_event_and_others_break() {
    let bench = Bench::of(&[Does::BreaksWithin { events: true }, Does::BreaksWithin { events: true }]);
    let response = ask(&bench.app(), request("POST /v1/completions", &[LOCAL], BODY)).await;
    assert_eq!(response.status(), StatusCode::OK);
    let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let (head, error) = text.split_once("event: error\ndata: ").unwrap();
    assert!(head.starts_with("data: 1\n\n") && head.ends_with("\n\n"), "{text}");
    let error: serde_json::Value = serde_json::from_str(error.trim()).unwrap();
    assert_eq!(error["error"]["code"], "replica_lost");
    assert_eq!(bench.asked().len(), 1, "what has begun is not begun again");

    let bench = Bench::of(&[Does::BreaksWithin { events: false }]);
    let response = ask(&bench.app(), request("GET /services/chat/x", &[LOCAL], "")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.into_body().collect().await.is_err(), "no end is made up");
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    let bench = Bench::of(&[Does::GoesOn]);
    let (tell, mut told) = mpsc::channel(1);
    *bench.gone.lock().unwrap() = Some(tell);
    let response = ask(&bench.app(), request("POST /v1/completions", &[LOCAL], BODY)).await;
    let mut body = response.into_body().into_data_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "first");
    drop(body);
    told.recv().await.unwrap();
}

#[tokio::test]
async fn without_a_name_or_a_replica_the_client_is_told_in_its_own_terms() {
    let bench = Bench::of(&[]);
    let app = bench.app();
    let response = ask(&app, request("POST /v1/chat/completions", &[LOCAL], r#"{"model": "gpt-9"}"#)).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let error = json(response).await["error"].clone();
    assert_eq!((&error["code"], &error["param"]), (&"model_not_found".into(), &"model".into()));
    assert!(error["message"].as_str().unwrap().contains("served are chat"), "{error}");
    for (body, param) in
        [("no json", serde_json::Value::Null), ("{}", "model".into()), (r#"{"model": 1}"#, "model".into())]
    {
        let response = ask(&app, request("POST /v1/embeddings", &[LOCAL], body)).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let error = json(response).await["error"].clone();
        assert_eq!((&error["param"], &error["type"]), (&param, &"invalid_request_error".into()));
    }
    // It is served, and no replica is ready: this node's patience is none.
    let response = ask(&app, request("POST /v1/chat/completions", &[LOCAL], BODY)).await;
    assert_eq!(
        (response.status(), &response.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    assert_eq!(json(response).await["error"]["code"], "model_not_ready");
    let response = ask(&app, request("GET /services/chat/x", &[LOCAL], "")).await;
    assert_eq!(
        (response.status(), &response.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    let response = ask(&app, request("GET /services/nobody/x", &[LOCAL], "")).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let models = json(ask(&app, request("GET /v1/models", &[LOCAL], "")).await).await;
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&"list".into(), &"chat".into()));
    let one = json(ask(&app, request("GET /v1/models/chat", &[LOCAL], "")).await).await;
    assert_eq!(one, models["data"][0], "OpenAI's clients ask for one by name");
    let unknown = ask(&app, request("GET /v1/models/nobody", &[LOCAL], "")).await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    assert_eq!(json(unknown).await["error"]["code"], "model_not_found");
    assert_eq!(
        ask(&app, request("GET /v1/models", &[("host", "evil.example")], "")).await.status(),
        StatusCode::FORBIDDEN
    );
}
