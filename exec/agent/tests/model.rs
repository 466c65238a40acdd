//! A model over HTTP: what is asked, what comes back, and what happens when it is busy, away or broken.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use mloc_agent::{
    Assistant, Message, ToolCall, Usage,
    event::ToolSpec,
    model::{Answer, Chat, ChatError, Delta, OpenAi, openai::Backoff},
    run::{Ask, Calls},
};
use serde_json::{Value, json};
use support::{Served, serve, settings};

const QUICK: Backoff = Backoff { tries: 3, first: Duration::from_millis(1), longest: Duration::from_millis(5) };

type Answering = Arc<dyn Fn(u32, Value, HeaderMap) -> Response + Send + Sync>;

/// A server that answers by the number of the request.
async fn server(
    answering: impl Fn(u32, Value, HeaderMap) -> Response + Send + Sync + 'static,
) -> (Served, Arc<AtomicU32>) {
    let (answering, count): (Answering, _) = (Arc::new(answering), Arc::new(AtomicU32::new(0)));
    let counted = count.clone();
    let route = post(move |headers: HeaderMap, Json(body): Json<Value>| {
        let (answering, n) = (answering.clone(), counted.fetch_add(1, Ordering::SeqCst));
        async move { answering(n, body, headers) }
    });
    (serve(Router::new().route("/v1/chat/completions", route)).await, count)
}

fn streamed(data: &[Value]) -> Response {
    let mut text: String = data.iter().map(|one| format!("data: {one}\n\n")).collect();
    text.push_str("data: [DONE]\n\n");
    ([("content-type", "text/event-stream")], text).into_response()
}

fn delta(delta: Value) -> Value {
    json!({ "choices": [{ "index": 0, "delta": delta }] })
}

fn model(served: &Served, more: Value) -> OpenAi {
    let mut model = json!({ "url": format!("{}/v1/", served.url), "name": "m", "silence_s": 1 });
    for (name, value) in more.as_object().unwrap() {
        model[name] = value.clone();
    }
    let parameters = model.as_object_mut().unwrap().shift_remove("parameters").unwrap_or_else(|| json!({}));
    let settings = settings(&json!({ "model": model, "parameters": parameters }));
    OpenAi::new(&settings.model.unwrap(), settings.parameters, QUICK).unwrap()
}

fn ask() -> Ask {
    let call = ToolCall { id: "c".into(), name: "look".into(), arguments: "{}".into() };
    let messages = vec![
        Message::User { content: "go".into() },
        Message::Assistant(Assistant { content: String::new(), tool_calls: vec![call] }),
        Message::Tool { tool_call_id: "c".into(), content: "seen".into() },
    ];
    Ask { step: 2, messages, calls: Calls::None, max_tokens: 50 }
}

async fn answered(model: &OpenAi) -> (Result<Answer, ChatError>, Vec<Delta>) {
    let tool = ToolSpec {
        name: "look".into(),
        description: "looks".into(),
        schema: json!({ "type": "object" }),
        idempotent: true,
    };
    let told = Mutex::new(Vec::new());
    let answer = model.answer(&ask(), &[tool], &|delta| told.lock().unwrap().push(delta)).await;
    (answer, told.into_inner().unwrap())
}

#[tokio::test]
async fn a_question_and_its_answer() {
    let (asked, seen) = (Arc::new(Mutex::new(Value::Null)), Arc::new(Mutex::new(String::new())));
    let (keep, auth) = (asked.clone(), seen.clone());
    let (served, _) = server(move |_, body, headers| {
        *keep.lock().unwrap() = body;
        *auth.lock().unwrap() = headers["authorization"].to_str().unwrap().to_owned();
        let usage =
            json!({ "choices": [], "usage": { "prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13 } });
        let end = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] });
        streamed(&[delta(json!({ "content": "It is " })), delta(json!({ "content": "so." })), end, usage])
    })
    .await;
    let parameters = json!({ "temperature": 0.5, "max_tokens": 40 });
    let (answer, told) =
        answered(&model(&served, json!({ "key_env": "CARGO_PKG_NAME", "parameters": parameters }))).await;
    let message = Assistant { content: "It is so.".into(), tool_calls: Vec::new() };
    let usage = Some(Usage { prompt_tokens: 9, completion_tokens: 4 });
    assert_eq!(answer, Ok(Answer { message, usage, finish_reason: Some("stop".into()) }));
    assert_eq!(told.len(), 2);
    assert_eq!(*seen.lock().unwrap(), "Bearer mloc-agent");
    insta::assert_json_snapshot!(*asked.lock().unwrap());
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again() {
    let (served, count) = server(|n, _, _| match n {
        0 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3600")]).into_response(),
        1 => StatusCode::TOO_MANY_REQUESTS.into_response(),
        _ => streamed(&[delta(json!({ "content": "yes" }))]),
    })
    .await;
    assert_eq!(answered(&model(&served, json!({}))).await.0.unwrap().message.content, "yes");
    assert_eq!(count.load(Ordering::SeqCst), 3);
    let (served, count) = server(|_, _, _| StatusCode::TOO_MANY_REQUESTS.into_response()).await;
    assert!(matches!(answered(&model(&served, json!({}))).await.0, Err(ChatError::Retryable(_))));
    assert_eq!(count.load(Ordering::SeqCst), 3, "its patience has an end");
}

#[tokio::test]
async fn a_server_that_refuses_is_not_asked_again() {
    let refusal = json!({ "error": { "message": "no such model: m", "type": "invalid_request_error" } });
    let (served, count) = server(move |_, _, _| (StatusCode::NOT_FOUND, Json(refusal.clone())).into_response()).await;
    let wanted = "the model's server answers 404 Not Found: no such model: m".to_owned();
    assert_eq!(answered(&model(&served, json!({}))).await.0, Err(ChatError::Fatal(wanted)));
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let (served, _) = server(|_, _, _| ([("content-type", "text/html")], "data: <html>\n\n").into_response()).await;
    assert!(matches!(answered(&model(&served, json!({}))).await.0, Err(ChatError::Fatal(_))));
}

#[tokio::test]
async fn an_answer_that_breaks_off_or_stops_coming_is_none() {
    let half = format!("data: {}\n\n", delta(json!({ "content": "half" })));
    let torn = half.clone();
    let (served, _) = server(move |_, _, _| torn.clone().into_response()).await;
    let (answer, told) = answered(&model(&served, json!({}))).await;
    assert!(matches!(answer, Err(ChatError::Retryable(_))), "{answer:?}");
    assert_eq!(told, [Delta::Text("half".into())]);
    let (served, _) = server(move |_, _, _| {
        let pieces = futures::stream::once(std::future::ready(Ok::<_, std::io::Error>(half.clone())));
        let silence = futures::stream::pending();
        Body::from_stream(futures::StreamExt::chain(pieces, silence)).into_response()
    })
    .await;
    let answer = answered(&model(&served, json!({}))).await.0;
    assert!(matches!(answer, Err(ChatError::Retryable(_))), "{answer:?}");
    let line = "x".repeat(5 << 20);
    let (served, _) = server(move |_, _, _| line.clone().into_response()).await;
    assert!(matches!(answered(&model(&served, json!({}))).await.0, Err(ChatError::Fatal(_))));
}

#[tokio::test]
async fn a_server_that_is_away_is_tried_a_few_times() {
    let (served, _) = server(|_, _, _| StatusCode::OK.into_response()).await;
    let model = model(&served, json!({}));
    let url = served.url.clone();
    drop(served);
    // Its socket goes with its task, in a moment.
    let until = tokio::time::Instant::now() + support::LONG;
    while tokio::net::TcpStream::connect(url.trim_start_matches("http://")).await.is_ok() {
        assert!(tokio::time::Instant::now() < until, "it stays");
        tokio::task::yield_now().await;
    }
    let answer = answered(&model).await.0;
    assert!(matches!(&answer, Err(ChatError::Retryable(found)) if found.contains("refused")), "{answer:?}");
}
