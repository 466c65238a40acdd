//! Over real sockets: clients that go away, read slowly, send too much, come all at once.

mod scripted;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mloc_engine::request::FinishReason;
use mloc_openai::{Limits, serve};
use scripted::{End, Plan, Scripted, card, listen, server};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

const CHAT: &str = "/v1/chat/completions";

fn endless() -> Plan {
    Plan { ends: End::Never, ..Plan::says("endless", "and so on ") }
}

fn held(when: &'static str, after: usize) -> Plan {
    Plan { holds: Some(after), ..Plan::says(when, "Hello.") }
}

fn chat(text: &str, stream: bool) -> String {
    json!({ "messages": [{ "role": "user", "content": text }], "stream": stream }).to_string()
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

async fn send(address: SocketAddr, text: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    socket
}

/// Status and all else, to the end of the connection.
async fn rest(mut socket: TcpStream) -> (u16, String) {
    let mut text = Vec::new();
    socket.read_to_end(&mut text).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

async fn read_until(reader: &mut (impl AsyncBufReadExt + Unpin), what: &str) {
    let mut line = String::new();
    while !line.contains(what) {
        line.clear();
        assert_ne!(reader.read_line(&mut line).await.unwrap(), 0, "the stream ended before {what:?}");
    }
}

async fn waits(model: &Arc<Scripted>, what: &'static str, so: impl Fn(&scripted::Seen) -> bool + Send + 'static) {
    let model = model.clone();
    tokio::task::spawn_blocking(move || model.until(what, so)).await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_slot() {
    let model = Scripted::new(card(), vec![endless(), held("held", 0)]);
    let (address, _stop) = listen(server(&model, Limits::default())).await;
    let mut asked = 0;
    for (path, body, prompts) in [
        (CHAT, chat("endless", true), 1),
        (CHAT, chat("held", true), 1),
        (CHAT, chat("held", false), 1),
        ("/v1/completions", json!({ "prompt": ["held", "held"], "max_tokens": 2000 }).to_string(), 2),
        ("/v1/responses", json!({ "input": "held", "stream": true }).to_string(), 1),
    ] {
        let socket = send(address, &post(path, &body)).await;
        asked += prompts;
        waits(&model, "the request is on its way", move |seen| seen.requests.len() == asked).await;
        drop(socket);
        waits(&model, "its slot is free", |seen| seen.held.is_empty()).await;
    }
    waits(&model, "those that had no end of their own were cancelled", |seen| seen.cancelled.len() >= 5).await;
}

#[tokio::test]
async fn a_reader_too_slow_is_cut_off_and_told_so() {
    let model = Scripted::new(card(), vec![endless()]);
    let limits = Limits { unread_events: 64, ..Limits::default() };
    let (address, _stop) = listen(server(&model, limits)).await;
    let body = json!({ "messages": [{ "role": "user", "content": "endless" }], "stream": true, "logprobs": true, "top_logprobs": 20 });
    // It reads nothing: the sockets' buffers fill, then the line. 4,000 tokens with log-probabilities are some megabytes.
    let socket = send(address, &post(CHAT, &body.to_string())).await;
    waits(&model, "it has come", |seen| !seen.requests.is_empty()).await;
    waits(&model, "its slot is free though nobody has read", |seen| seen.held.is_empty()).await;
    let (status, text) = rest(socket).await;
    assert_eq!(status, 200);
    let last = text.rsplit("data: ").next().unwrap();
    assert!(last.contains("\"code\":\"reader_too_slow\"") && !text.contains("[DONE]"), "{last}");
}

#[tokio::test]
async fn a_silent_stream_has_a_heartbeat() {
    let model = Scripted::new(card(), vec![held("held", 2)]);
    let limits = Limits { heartbeat: Duration::from_millis(5), ..Limits::default() };
    let (address, _stop) = listen(server(&model, limits)).await;
    let mut reader = BufReader::new(send(address, &post(CHAT, &chat("held", true))).await);
    read_until(&mut reader, ": waiting").await;
    model.release();
    read_until(&mut reader, "[DONE]").await;
}

#[tokio::test]
async fn limits() {
    let model = Scripted::new(card(), vec![held("held", 0)]);
    let limits = Limits {
        body_bytes: 4000,
        requests: 2,
        choices: 4,
        messages: 3,
        tools: 1,
        batch: 2,
        body_within: Duration::from_millis(50),
        ..Limits::default()
    };
    let (address, _stop) = listen(server(&model, limits)).await;
    let told = |(status, text): (u16, String)| {
        let value: Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        let retry = text.lines().find(|line| line.starts_with("retry-after")).unwrap_or("-").to_owned();
        format!("{status} {retry} {} {}", value["error"]["code"], value["error"]["message"])
    };
    let mut all = Vec::new();
    let message = json!({ "role": "user", "content": "Hi" });
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name } });
    for body in [
        json!({ "messages": [message], "metadata": { "a": "x".repeat(5000) } }),
        json!({ "messages": [message], "n": 5 }),
        json!({ "messages": [message, message, message, message] }),
        json!({ "messages": [message], "tools": [tool("a"), tool("b")] }),
    ] {
        all.push(told(rest(send(address, &post(CHAT, &body.to_string())).await).await));
    }
    all.push(told(rest(send(address, &post("/v1/embeddings", "{\"input\": [\"a\", \"b\", \"c\"]}")).await).await));
    // No length said beforehand.
    let chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n1388\r\n{}\r\n0\r\n\r\n",
        " ".repeat(5000)
    );
    all.push(told(rest(send(address, &chunked).await).await));
    let dribbled = format!("POST {CHAT} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{{");
    all.push(told(rest(send(address, &dribbled).await).await));
    let form = post(CHAT, "a=b").replace("application/json", "application/x-www-form-urlencoded");
    all.push(told(rest(send(address, &form).await).await));
    for malformed in ["{\"messages\": [", "{'messages': []}", "\u{feff}{}", "nul", "[[[[[[[["] {
        all.push(told(rest(send(address, &post(CHAT, malformed)).await).await));
    }
    let deep = "[".repeat(1500);
    all.push(told(rest(send(address, &post(CHAT, &format!("{{\"messages\": {deep}"))).await).await));
    // Both places are taken, then one is free again.
    let first = send(address, &post(CHAT, &chat("held", true))).await;
    let second = send(address, &post(CHAT, &chat("held", false))).await;
    waits(&model, "both are on their way", |seen| seen.held.len() == 2).await;
    all.push(told(rest(send(address, &post(CHAT, &chat("Hi", false))).await).await));
    drop((first, second));
    waits(&model, "both are gone", |seen| seen.held.is_empty()).await;
    insta::assert_snapshot!(all.join("\n"));
}

#[tokio::test]
async fn over_a_unix_socket_until_told_to_stop() {
    let folder = std::env::temp_dir().join(format!("mloc-openai-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("socket");
    let model = Scripted::new(card(), vec![held("held", 1)]);
    let stop = CancellationToken::new();
    let serving =
        tokio::spawn(serve(UnixListener::bind(&path).unwrap(), server(&model, Limits::default()), stop.clone()));
    let mut socket = UnixStream::connect(&path).await.unwrap();
    socket.write_all(post(CHAT, &chat("held", true)).as_bytes()).await.unwrap();
    let mut reader = BufReader::new(socket);
    read_until(&mut reader, "chat.completion.chunk").await;
    stop.cancel();
    model.release();
    read_until(&mut reader, "[DONE]").await;
    drop(reader);
    serving.await.unwrap().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

/// Memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once() {
    const STREAMS: usize = 1000;
    let long = "All of a thousand streams come to their ends. ".repeat(2);
    let plan = Plan {
        holds: Some(1),
        says: vec![long.clone()],
        ends: End::Finish(FinishReason::Stop),
        ..Plan::says("held", "")
    };
    let model = Scripted::new(card(), vec![plan]);
    let limits = Limits { requests: STREAMS, ..Limits::default() };
    let (address, _stop) = listen(server(&model, limits)).await;
    let before = resident();
    let request = post(CHAT, &chat("held", true));
    let clients: Vec<_> = (0..STREAMS)
        .map(|_| {
            let request = request.clone();
            tokio::spawn(async move {
                let (status, text) = rest(send(address, &request).await).await;
                let chunks = text
                    .split("data: ")
                    .filter_map(|event| serde_json::from_str::<Value>(event.split("\n\n").next()?).ok());
                let said: String = chunks
                    .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
                    .collect();
                (status, said, text.contains("[DONE]"))
            })
        })
        .collect();
    waits(&model, "all are on their way at once", |seen| seen.held.len() == STREAMS).await;
    let (status, _) = rest(send(address, &post(CHAT, &chat("Hi", false))).await).await;
    assert_eq!(status, 429, "one more is refused");
    model.release();
    for client in clients {
        assert_eq!(client.await.unwrap(), (200, long.clone(), true));
    }
    // Both ends and the engine are in this process. 200 KiB a stream is several times what was measured.
    let grown = resident().saturating_sub(before);
    println!("{} KiB a stream", (grown / STREAMS) >> 10);
    assert!(grown < STREAMS * (200 << 10), "{} KiB a stream", (grown / STREAMS) >> 10);
}
