//! REST as clients and members meet it, over a node that only remembers what it was asked.

mod bench;

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use bench::{BACKUP, Fake, FakeMesh, TASK, ask, json, request, serve, status, token_only, tokens, trusted};
use http_body_util::BodyExt;
use mloc_api::forward::Leader;
use mloc_core::id::NodeId;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const LOCAL: (&str, &str) = ("host", "127.0.0.1:7948");

fn john() -> String {
    format!("Bearer {}", tokens().issue("john-doe"))
}

fn there(node: &str) -> Leader {
    Leader::There(NodeId::new(node))
}

#[tokio::test]
async fn a_loopback_listener_trusts_this_machine_and_no_web_page() {
    let fake = Arc::new(Fake::default());
    let app = trusted(&fake);
    let get = "GET /api/v1/tasks";
    let own = ("origin", "http://127.0.0.1:7948");
    for headers in [vec![LOCAL], vec![("host", "localhost:7948")], vec![("host", "[::1]:7948")], vec![LOCAL, own]] {
        assert_eq!(status(&app, get, &headers, "").await, StatusCode::OK, "{headers:?}");
    }
    let asked = fake.asked().len();
    let refused = [
        vec![],
        // DNS rebinding: the page's own name resolves to this machine.
        vec![("host", "evil.example:7948")],
        vec![("host", "evil.example:7948"), ("origin", "http://evil.example:7948")],
        // A request across sites.
        vec![LOCAL, ("origin", "https://evil.example")],
        vec![LOCAL, ("origin", "http://127.0.0.1:3000")],
        vec![LOCAL, ("origin", "null")],
    ];
    for headers in refused {
        for line in [get, "POST /api/v1/tasks", "POST /api/v1/nodes/a/revoke"] {
            assert_eq!(status(&app, line, &headers, TASK).await, StatusCode::FORBIDDEN, "{headers:?} {line}");
        }
    }
    assert_eq!(fake.asked().len(), asked, "nothing of it came through");
    let john = john();
    let behind_a_proxy = [("host", "mloc.example.org"), ("authorization", john.as_str())];
    assert_eq!(status(&app, get, &behind_a_proxy, "").await, StatusCode::OK, "a page does not know the token");
}

#[tokio::test]
async fn an_authorization_header_that_is_no_bearer_token_is_not_taken_for_none() {
    let app = trusted(&Arc::new(Fake::default()));
    for header in ["Basic YTpi", "Bearer", "Bearer ", "Bearer admin", "Bearer admin.00", "x"] {
        let response = ask(&app, request("GET /api/v1/mesh", &[LOCAL, ("authorization", header)], "")).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{header}");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
    let john = john();
    let twice = [LOCAL, ("authorization", john.as_str()), ("authorization", john.as_str())];
    assert_eq!(status(&app, "GET /api/v1/mesh", &twice, "").await, StatusCode::UNAUTHORIZED);
    let lower = john.replace("Bearer", "bearer");
    assert_eq!(status(&app, "GET /api/v1/mesh", &[("authorization", &lower)], "").await, StatusCode::OK);
}

#[tokio::test]
async fn any_other_listener_asks_for_a_token_and_acts_as_its_user_only() {
    let fake = Arc::new(Fake::default());
    let app = token_only(&fake, FakeMesh::new(Leader::Here, &[]));
    assert_eq!(status(&app, "GET /api/v1/tasks", &[LOCAL], "").await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&app, "GET /api/v1/tasks", &[("mloc-caller", "admin")], "").await, StatusCode::UNAUTHORIZED);
    assert!(fake.asked().is_empty());
    let john = john();
    let by_john = [("authorization", john.as_str()), ("mloc-caller", "admin"), ("idempotency-key", "k")];
    assert_eq!(status(&app, "GET /api/v1/tasks", &by_john, "").await, StatusCode::OK, "reading takes any token");
    let own = TASK.replace("OWNER", "john-doe");
    assert_eq!(status(&app, "POST /api/v1/tasks", &by_john, &own).await, StatusCode::ACCEPTED);
    let hers = TASK.replace("OWNER", "mary");
    let response = ask(&app, request("POST /api/v1/tasks", &by_john, &hers)).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let said = json(response).await["detail"].to_string();
    assert!(said.contains("mary") && said.contains("john-doe"), "{said}");
    assert_eq!(status(&app, "POST /api/v1/nodes/a/drain", &by_john, "").await, StatusCode::FORBIDDEN);
    assert_eq!(fake.asked()[1], "submit by john-doe as k");
    assert_eq!(status(&app, "GET /healthz", &[], "").await, StatusCode::OK);
}

#[tokio::test]
async fn the_leader_hears_who_called_and_nobody_can_say_it_for_another() {
    let (here, leader) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    let app = token_only(&here, FakeMesh::new(there("b"), &[("b", &leader)]));
    let john = john();
    let headers = [("authorization", john.as_str()), ("mloc-caller", "admin"), ("mloc-caller", "root")];
    let own = TASK.replace("OWNER", "john-doe");
    assert_eq!(status(&app, "POST /api/v1/tasks", &headers, &own).await, StatusCode::ACCEPTED);
    assert_eq!(status(&app, "POST /api/v1/nodes/a/revoke", &headers, "").await, StatusCode::FORBIDDEN);
    assert_eq!(leader.asked(), ["submit by john-doe as minted-1", "revoke a by john-doe"]);
    assert!(here.asked().is_empty());
    let link = mloc_api::link_router(leader);
    assert_eq!(status(&link, "GET /api/v1/tasks", &[], "").await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&link, "GET /metrics", &[], "").await, StatusCode::NOT_FOUND, "members ask for the API only");
}

#[tokio::test]
async fn a_try_at_a_leader_that_died_is_given_up_when_another_leads() {
    let (here, stuck, next) = (Arc::default(), Arc::new(Fake { stuck: true, ..Fake::default() }), Arc::default());
    let mesh = FakeMesh::new(there("dead"), &[("stuck", &stuck), ("next", &next)]);
    let app = token_only(&here, mesh.clone());
    let john = john();
    let own = TASK.replace("OWNER", "john-doe");
    let asking = tokio::spawn(async move {
        ask(&app, request("POST /api/v1/tasks", &[("authorization", john.as_str())], &own)).await
    });
    // The first leader's stream stands in silence; the second took the task and never answers.
    while mesh.silent.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    mesh.leader.send_replace(there("stuck"));
    while stuck.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    mesh.leader.send_replace(there("next"));
    let response = tokio::time::timeout(Duration::from_secs(20), asking).await.expect("it does not hang").unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    assert_eq!(stuck.asked(), next.asked(), "the same request, by its key, so that it makes one task");
}

#[tokio::test]
async fn a_stale_read_is_answered_here_and_nothing_else_is() {
    let (here, leader) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    let app = token_only(&here, FakeMesh::new(there("b"), &[("b", &leader)]));
    let john = john();
    let by_john = [("authorization", john.as_str())];
    let reads = ["tasks", "tasks/t", "tasks/t/explain", "tasks/t/events", "nodes", "stats", "mesh"];
    for read in reads {
        assert_eq!(status(&app, &format!("GET /api/v1/{read}?stale=true"), &by_john, "").await, StatusCode::OK);
        assert_eq!(status(&app, &format!("GET /api/v1/{read}"), &by_john, "").await, StatusCode::OK);
    }
    assert_eq!(here.asked().len(), reads.len());
    assert!(here.asked().iter().all(|asked| asked.ends_with("Stale")), "{:?}", here.asked());
    assert!(leader.asked().iter().all(|asked| asked.ends_with("Linearizable")), "{:?}", leader.asked());
    let own = TASK.replace("OWNER", "john-doe");
    for line in ["GET /api/v1/tasks/t/logs?stale=true", "POST /api/v1/tasks?stale=true"] {
        assert_eq!(status(&app, line, &by_john, &own).await, StatusCode::UNPROCESSABLE_ENTITY, "{line}");
    }
    assert_eq!(here.asked().len(), reads.len());
}

#[tokio::test]
async fn a_backup_comes_whole_from_the_leader_and_for_the_admin_only() {
    let (here, leader) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    let app = token_only(&here, FakeMesh::new(there("b"), &[("b", &leader)]));
    let (john, admin) = (john(), format!("Bearer {}", tokens().issue("admin")));
    let line = "GET /api/v1/backup";
    assert_eq!(status(&app, line, &[], "").await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&app, line, &[("authorization", &john)], "").await, StatusCode::FORBIDDEN);
    let response = ask(&app, request(line, &[("authorization", &admin)], "")).await;
    assert_eq!(response.headers()["content-type"], "application/octet-stream");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), BACKUP);
    assert_eq!(leader.asked(), ["backup by john-doe", "backup by admin"]);
    assert!(here.asked().is_empty());
    // Never of this node's own knowledge: it may be old.
    let stale = format!("{line}?stale=true");
    assert_eq!(status(&app, &stale, &[("authorization", &admin)], "").await, StatusCode::OK);
    assert_eq!((here.asked().len(), leader.asked().len()), (0, 3));
}

#[tokio::test]
async fn what_can_not_be_asked_is_refused_with_what_can() {
    let app = trusted(&Arc::new(Fake::default()));
    let refusal = |line: &'static str| {
        let app = app.clone();
        async move {
            let response = ask(&app, request(line, &[LOCAL], "")).await;
            assert_eq!(response.headers()["content-type"], "application/problem+json", "{line}");
            let allow = response.headers().get("allow").map(|v| v.to_str().unwrap().to_owned());
            (response.status().as_u16(), allow, json(response).await["detail"].as_str().unwrap().to_owned())
        }
    };
    let (status, _, said) = refusal("GET /api/v1/tasks?state=paused").await;
    assert_eq!(status, 422);
    assert!(said.contains("paused") && said.contains("PENDING, SCHEDULED, RUNNING"), "{said}");
    assert_eq!(refusal("GET /api/v1/tasks?colour=red").await.0, 422);
    let (status, allow, _) = refusal("DELETE /api/v1/tasks/t").await;
    assert_eq!((status, allow.as_deref()), (405, Some("GET,HEAD")));
    assert_eq!(refusal("POST /metrics").await.0, 405);
    assert_eq!(refusal("GET /api/v2").await.0, 404);
    let (status, _, said) = refusal("GET /api/v1/tasks/task-1/logs?attempt=task-2.0.1").await;
    assert_eq!(status, 422);
    assert!(said.contains("task-1.REPLICA.ATTEMPT"), "{said}");
    assert_eq!(bench::status(&app, "GET /api/v1/tasks?state=running", &[LOCAL], "").await, StatusCode::OK);
}

/// Sends what it can of a request's bytes, then reads the answer.
async fn answer_to(app: axum::Router, head: &str, body_bytes: usize, more: bool) -> (usize, String) {
    let mut stream = TcpStream::connect(serve(app).await).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let piece = vec![b'x'; 64 << 10];
    let mut sent = 0;
    let mut answer = Vec::new();
    let mut buffer = vec![0; 4096];
    loop {
        let left = (body_bytes - sent).min(piece.len());
        tokio::select! {
            read = reader.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(n) => answer.extend(&buffer[..n]),
            },
            wrote = writer.write(&piece[..left]), if left > 0 => match wrote {
                Ok(n) => sent += n,
                // The other end closed: what it said before that is still there.
                Err(_) => {
                    let _ = reader.read_to_end(&mut answer).await;
                    break;
                }
            },
        }
        if sent == body_bytes && !more {
            // The client is cut off: it says nothing more, and still listens.
            writer.shutdown().await.unwrap();
            let _ = reader.read_to_end(&mut answer).await;
            break;
        }
    }
    (sent, String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn a_body_of_100_mb_is_refused_without_being_read() {
    let fake = Arc::new(Fake::default());
    const HUNDRED_MB: usize = 100 << 20;
    let announced = format!("POST /api/v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: {HUNDRED_MB}\r\n\r\n");
    let chunk = format!("{HUNDRED_MB:x}");
    let chunked =
        format!("POST /api/v1/tasks HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{chunk}\r\n");
    for head in [announced, chunked] {
        let (sent, answer) = answer_to(trusted(&fake), &head, HUNDRED_MB, true).await;
        // What the kernel's buffers take on both sides, and no more.
        assert!(sent < 24 << 20, "{sent} bytes were taken");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer}"));
        assert!(head.starts_with("HTTP/1.1 413 ") && head.contains("application/problem+json"), "{head}");
        insta::allow_duplicates! { insta::assert_snapshot!(body, @r#"{"type":"urn:mloc:too-large","title":"the body is too large","status":413,"detail":"a body is at most 256 KiB: refer to data by its source instead of writing it into the file"}"#); }
    }
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_no_task() {
    let fake = Arc::new(Fake::default());
    let head = "POST /api/v1/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n";
    let (_, answer) = answer_to(trusted(&fake), head, 10, false).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("urn:mloc:cut-off"), "{answer}");
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn a_yaml_bomb_is_refused_as_a_body() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..30 {
        let again = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{again}]\n"));
    }
    let app = trusted(&Arc::new(Fake::default()));
    let asked = ask(&app, request("POST /api/v1/tasks", &[LOCAL], &bomb));
    let response = tokio::time::timeout(Duration::from_secs(20), asked).await.expect("it is not expanded");
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let said = json(response).await["detail"].as_str().unwrap().to_owned();
    assert!(said.len() < 64 << 10 && said.contains("task.yaml"), "{} bytes: {said:.300}", said.len());
}

/// Whether an answer is what its schema says: no key that is not listed, and every required one.
fn hold(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        return hold(document, document.pointer(&name[1..]).unwrap(), value, &format!("{place} ({name})"));
    }
    if let (Some(properties), Some(object)) = (schema["properties"].as_object(), value.as_object()) {
        for (key, inner) in object {
            let known = properties.get(key).unwrap_or_else(|| panic!("{place}.{key} is in no schema"));
            hold(document, known, inner, &format!("{place}.{key}"));
        }
        for key in schema["required"].as_array().into_iter().flatten() {
            assert!(object.contains_key(key.as_str().unwrap()), "{place}: {key} is required and absent");
        }
        // The bench fills in every optional field, so a property it lacks does not exist.
        for key in properties.keys().filter(|key| *key != "misfit") {
            assert!(object.contains_key(key), "{place}.{key} is in the schema only");
        }
    }
    if let Some(items) = value.as_array() {
        assert!(!items.is_empty(), "{place}: nothing to hold the schema to");
        items.iter().for_each(|item| hold(document, &schema["items"], item, &format!("{place}[]")));
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        several => several.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
    };
    let fits = |t: &&str| *t == kind || (*t == "number" && kind == "integer");
    assert!(types.is_empty() || types.iter().any(fits), "{place}: {kind} where the schema says {types:?}");
}

#[tokio::test]
async fn every_answer_is_what_openapi_says() {
    let app = trusted(&Arc::new(Fake::default()));
    let document = json(ask(&app, request("GET /openapi.json", &[], "")).await).await;
    let own = TASK.replace("OWNER", "john-doe");
    let mut held = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let path = path
                .replace("{id}", "task-1")
                .replace("{path}", "logs/f")
                .replace("{name}", "chat")
                .replace("{model}", "chat")
                .replace("{sha256}", &"0a".repeat(32));
            let line = format!("{} {path}", method.to_uppercase());
            let headers = [LOCAL, ("idempotency-key", "k"), ("content-length", "0")];
            let headers = if method == "put" { &headers[..] } else { &headers[..2] };
            let response = ask(&app, request(&line, headers, if method == "post" { &own } else { "" })).await;
            let said = &operation["responses"][response.status().as_str()];
            assert!(!said.is_null(), "{line}: {} is not in openapi.json", response.status());
            if let Some(schema) = said["content"].get("application/json").map(|c| &c["schema"]) {
                hold(&document, schema, &json(response).await, &line);
                held += 1;
            }
        }
    }
    assert!(held >= 16, "{held}");
}

#[tokio::test]
async fn before_the_node_serves_it_lives_and_says_what_it_waits_for() {
    let waiting = tokio::sync::watch::Sender::new("joining: asking a:7946".to_owned());
    let door = mloc_api::Door::closed(waiting.subscribe());
    let app = door.router();
    let text = async |line: &str| {
        let response = ask(&app, request(line, &[], "")).await;
        let (status, retry) = (response.status(), response.headers().get("retry-after").cloned());
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        (status, retry.is_some(), String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(text("GET /healthz").await, (StatusCode::OK, false, "ok\n".into()));
    waiting.send_replace("joining: waiting for a seed".into());
    let not_ready = (StatusCode::SERVICE_UNAVAILABLE, true, "not ready: joining: waiting for a seed\n".into());
    assert_eq!(text("GET /readyz").await, not_ready);
    for line in ["GET /api/v1/tasks", "POST /api/v1/tasks", "GET /metrics", "GET /", "GET /nope", "POST /healthz"] {
        let response = ask(&app, request(line, &[LOCAL], TASK)).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{line}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{line}");
        assert!(response.headers().contains_key("retry-after"), "{line}");
        let detail = json(response).await["detail"].to_string();
        assert!(detail.contains("does not serve yet: joining: waiting for a seed"), "{detail}");
    }

    // It opens for connections that are there already, and stays open for answers while it leaves.
    door.open(trusted(&Arc::new(Fake::default())));
    assert_eq!(text("GET /readyz").await.0, StatusCode::OK);
    assert_eq!(status(&app, "GET /api/v1/tasks", &[LOCAL], "").await, StatusCode::OK);
    door.leave();
    assert_eq!(text("GET /readyz").await.2, "not ready: stopping\n");
    assert_eq!(text("GET /healthz").await.0, StatusCode::OK);
    assert_eq!(status(&app, "GET /api/v1/tasks", &[LOCAL], "").await, StatusCode::OK);
}
