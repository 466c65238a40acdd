//! Bytes by REST: uploads before a task, artifacts after it, both at the node that took the request.

mod bench;

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode};
use bench::{ARTIFACT, Fake, FakeMesh, TASK, ask, json, request, status, token_only, tokens, trusted};
use http_body_util::BodyExt;
use mloc_api::forward::Leader;
use mloc_core::id::NodeId;

const LOCAL: (&str, &str) = ("host", "127.0.0.1:7948");
const SHA: &str = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

fn value(text: &str) -> HeaderValue {
    text.parse().unwrap()
}

/// A query that brings one path along.
fn files(path: &str) -> String {
    format!("files=%7B%22{path}%22%3A%7B%22tree%22%3A%22{SHA}%22%2C%22bytes%22%3A7%7D%7D")
}

#[tokio::test]
async fn an_upload_says_where_it_stands_and_takes_what_is_missing() {
    let fake = Arc::new(Fake::default());
    let app = trusted(&fake);
    let path = format!("/api/v1/files/{SHA}");
    let head = ask(&app, request(&format!("HEAD {path}"), &[LOCAL], "")).await;
    assert_eq!(head.status(), StatusCode::NO_CONTENT);
    assert_eq!((&head.headers()["upload-offset"], &head.headers()["upload-complete"]), (&value("4"), &value("?0")));
    let put = request(&format!("PUT {path}?offset=4"), &[LOCAL, ("content-length", "6")], "456789");
    let put = ask(&app, put).await;
    assert_eq!(put.status(), StatusCode::NO_CONTENT);
    assert_eq!((&put.headers()["upload-offset"], &put.headers()["upload-complete"]), (&value("10"), &value("?1")));
    assert_eq!(fake.asked(), ["uploaded 0a0a", "upload 0a0a from 4, 6 bytes: 456789"]);
    for (line, what) in [
        (format!("PUT {path}"), "Content-Length"),
        ("PUT /api/v1/files/..%2F..%2Fnode.key".into(), "no SHA-256"),
        (format!("PUT /api/v1/files/{}", SHA.to_uppercase()), "no SHA-256"),
        (format!("PUT {path}?offset=-1"), "query"),
    ] {
        let refused = ask(&app, request(&line, &[LOCAL], "x")).await;
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY, "{line}");
        let said = json(refused).await["detail"].to_string();
        assert!(said.contains(what), "{line}: {said}");
    }
    let app = token_only(&fake, FakeMesh::new(Leader::Here, &[]));
    for line in [format!("PUT {path}"), format!("HEAD {path}"), format!("GET {path}/missing")] {
        assert_eq!(status(&app, &line, &[LOCAL], "").await, StatusCode::UNAUTHORIZED, "{line}");
    }
    let link = mloc_api::link_router(fake);
    let member = [("mloc-caller", "admin")];
    assert_eq!(status(&link, &format!("PUT {path}"), &member, "").await, StatusCode::NOT_FOUND, "not for members");
}

#[tokio::test]
async fn what_comes_along_is_checked_where_it_is_and_told_to_the_leader_with_its_node() {
    let (here, leader) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    let app = token_only(&here, FakeMesh::new(Leader::There(NodeId::new("b")), &[("b", &leader)]));
    let token = format!("Bearer {}", tokens().issue("john-doe"));
    // Who holds the files is for the node to say, not for its client.
    let headers = [("authorization", token.as_str()), ("mloc-taken-by", "elsewhere")];
    let task = TASK.replace("OWNER", "john-doe");
    let submit = |path: &str| format!("POST /api/v1/tasks?{}", files(path));
    assert_eq!(status(&app, &submit("./x"), &headers, &task).await, StatusCode::ACCEPTED);
    assert_eq!(here.asked(), [r#"keep ["./x"]"#]);
    let asked = leader.asked();
    assert_eq!(asked[0], "submit by john-doe as minted-1");
    assert!(asked[1].contains("Some(here)") && asked[1].contains("./x") && asked[1].contains(SHA), "{}", asked[1]);

    let refused = ask(&app, request(&submit("./gone"), &headers, &task)).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    assert_eq!(leader.asked().len(), 2, "the leader hears of no task whose files are not there");
    let dry = format!("{}&dry_run=true", submit("./gone"));
    assert_eq!(status(&app, &dry, &headers, &task).await, StatusCode::OK, "a dry run needs no files");
    for bad in ["files=x".to_owned(), files("train.jsonl"), files("./x").replace(SHA, "0a")] {
        let line = format!("POST /api/v1/tasks?{bad}");
        assert_eq!(status(&app, &line, &headers, &task).await, StatusCode::UNPROCESSABLE_ENTITY, "{bad}");
    }
    let without = task.replace("taskType: echo", "taskType: echo, dataset: {source: {type: local, path: ./y}}");
    let refused = ask(&app, request(&submit("./x"), &headers, &without)).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let said = json(refused).await["detail"].to_string();
    assert!(said.contains("./y") && said.contains("mloc submit"), "{said}");
}

#[tokio::test]
async fn an_artifact_is_read_here_after_the_leader_said_what_there_is() {
    let (here, leader) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    let app = token_only(&here, FakeMesh::new(Leader::There(NodeId::new("b")), &[("b", &leader)]));
    let token = format!("Bearer {}", tokens().issue("john-doe"));
    let by_john = ("authorization", token.as_str());
    let path = "/api/v1/tasks/task-1/artifacts/logs/f";
    let whole = ask(&app, request(&format!("GET {path}"), &[by_john], "")).await;
    assert_eq!(whole.status(), StatusCode::OK);
    for (name, value) in [
        ("etag", "\"0\""),
        ("accept-ranges", "bytes"),
        ("content-disposition", "attachment"),
        ("x-content-type-options", "nosniff"),
        ("content-length", "17"),
    ] {
        assert_eq!(whole.headers()[name], value, "{name}");
    }
    assert_eq!(whole.into_body().collect().await.unwrap().to_bytes(), ARTIFACT);
    assert_eq!(here.asked(), ["artifact logs/f of task-1.0.1 on a"]);
    assert_eq!(leader.asked(), ["task task-1 Linearizable"]);

    let part = [by_john, ("range", "bytes=5-"), ("if-range", "\"0\"")];
    let part = ask(&app, request(&format!("GET {path}"), &part, "")).await;
    assert_eq!(
        (part.status(), &part.headers()["content-range"]),
        (StatusCode::PARTIAL_CONTENT, &value("bytes 5-16/17"))
    );
    assert_eq!(part.into_body().collect().await.unwrap().to_bytes(), &ARTIFACT[5..]);
    let beyond = ask(&app, request(&format!("GET {path}"), &[by_john, ("range", "bytes=17-")], "")).await;
    assert_eq!((beyond.status().as_u16(), &beyond.headers()["content-range"]), (416, &value("bytes */17")));

    let before = here.asked().len();
    let head = ask(&app, request(&format!("HEAD {path}"), &[by_john], "")).await;
    assert_eq!((head.status(), &head.headers()["content-length"]), (StatusCode::OK, &value("17")));
    assert_eq!(here.asked().len(), before, "nothing is opened for it");
    for nothing in ["logs/g", "..%2F..%2Fnode.key", "logs/../logs/f", "%2Fetc%2Fpasswd"] {
        let line = format!("GET /api/v1/tasks/task-1/artifacts/{nothing}");
        assert_eq!(status(&app, &line, &[by_john], "").await, StatusCode::NOT_FOUND, "{nothing}");
    }
    let odd = "GET /api/v1/tasks/task-1%3Fstale=true/artifacts/logs/f";
    assert_eq!(status(&app, odd, &[by_john], "").await, StatusCode::NOT_FOUND);
    assert_eq!(status(&app, &format!("GET {path}"), &[], "").await, StatusCode::UNAUTHORIZED);
    assert_eq!(here.asked().len(), before);

    // The leader itself answers without a hop.
    let alone = Arc::new(Fake::default());
    assert_eq!(status(&trusted(&alone), &format!("GET {path}"), &[LOCAL], "").await, StatusCode::OK);
    assert_eq!(alone.asked(), ["task task-1 Linearizable", "artifact logs/f of task-1.0.1 on a"]);
}
