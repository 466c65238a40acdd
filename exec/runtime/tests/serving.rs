//! Replicas of services and real child processes (`examples/child.rs`): readiness, requests, drain, ill health.

mod support;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use mloc_core::{
    id::{AttemptId, TaskId},
    ledger::entry::FailureClass,
    task::{
        TaskSpec, TaskType,
        spec::{Health, Scale, Service, Update},
    },
    wire::{Assign, Phase, Report},
};
use mloc_exec::Run;
use mloc_runtime::serving::{Replicas, proxy, siblings};
use support::{Node, assign, attempt, spec};

fn program() -> PathBuf {
    // target/PROFILE/deps/THIS → target/PROFILE/examples/child
    let this = std::env::current_exe().unwrap();
    let program = this.parent().unwrap().parent().unwrap().join("examples/child");
    assert!(program.exists(), "{} is missing: run the package's tests as a whole", program.display());
    program
}

fn service(mode: &str) -> TaskSpec {
    let mut spec = spec(1, mode);
    spec.service = Some(Service {
        served_name: "chat".into(),
        health: Health { every_ms: 20, failures: 3, ..Health::default() },
        scale: Scale::default(),
        update: Update::default(),
    });
    spec.timeouts.stop_ms = Some(60_000);
    spec
}

/// Asks the replica as a member does; status, whether the node itself answered, body.
async fn ask(replicas: &Arc<Replicas>, path: &str) -> (u16, bool, String) {
    let (near, far) = tokio::io::duplex(64 << 10);
    // Ends with the near end.
    tokio::spawn(proxy::serve(far, replicas.clone()));
    let request = Request::get(path).header(proxy::REPLICA, attempt(1).to_string());
    let request = request.header(proxy::USER, "john-doe").header("authorization", "Bearer x").header("x-mine", "1");
    send(near, request.body(Empty::new()).unwrap()).await
}

/// Asks as a shard's program does.
async fn ask_shard(socket: &Path, shard: &str) -> (u16, bool, String) {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let request = Request::get("/x").header("host", "x").header(siblings::SHARD, shard).header("mloc-user", "root");
    send(stream, request.body(Empty::new()).unwrap()).await
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> (u16, bool, String)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    let (status, own) = (response.status().as_u16(), response.headers().contains_key(proxy::LOST));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, own, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_becomes_ready_is_asked_and_ends_what_it_has_begun() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    let replicas = node.worker.replicas();
    node.assign(assign(1, service("serve"))).await;
    node.leader.report(|report| *report == Report::Ready).await;
    node.leader
        .says(|said| said.phase == Phase::Serving && said.progress.serving.as_ref().is_some_and(|s| s.ready))
        .await;
    assert_eq!(replicas.shown().len(), 1);

    let (status, own, head) = ask(&replicas, "/x").await;
    assert_eq!((status, own), (200, false));
    assert!(head.contains("x-mine: 1") && head.contains("mloc-user: john-doe") && head.contains("host: service.mloc"));
    assert!(!head.contains("authorization") && !head.contains("mloc-replica"), "{head}");
    assert!(!head.contains("mloc-sibling"), "{head}");

    let begun = tokio::spawn({
        let replicas = replicas.clone();
        async move { ask(&replicas, "/slow").await }
    });
    node.leader.says(|said| said.progress.serving.as_ref().is_some_and(|serving| serving.running == 1)).await;
    node.cancel(attempt(1)).await;
    let mut changes = replicas.changes();
    while !replicas.shown().is_empty() {
        changes.changed().await.unwrap();
    }
    let (status, own, why) = ask(&replicas, "/y").await;
    assert_eq!((status, own), (503, true), "{why}");
    std::fs::write(dir.path().join(format!("attempts/{}/go", attempt(1))), "").unwrap();
    assert_eq!(begun.await.unwrap().0, 200, "what had begun is answered");
    assert_eq!(node.leader.end().await, Report::Stopped);
    assert!(node.log(attempt(1)).await.contains("asked to stop after 2 answers"));
    assert_eq!(replicas.figures(&attempt(1)), None);
    node.worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_health_is_lost_fails_and_so_does_one_that_never_had_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    node.assign(assign(1, service("serve"))).await;
    node.leader.report(|report| *report == Report::Ready).await;
    assert_eq!(ask(&node.worker.replicas(), "/ill").await.0, 200);
    let Report::Failed(failure) = node.leader.end().await else { panic!("it fails") };
    assert_eq!(failure.class, FailureClass::Retryable);
    assert!(failure.message.contains("3 times in a row: GET /health was answered with 500"), "{}", failure.message);

    let mut never = service("slow");
    never.hyperparameters.insert("steps".into(), 100_000.into());
    never.timeouts.ready_ms = Some(300);
    node.assign(assign(2, never)).await;
    let Report::Failed(failure) = node.leader.end_of(&attempt(2)).await else { panic!("it fails") };
    let says = "within timeouts.ready of 0 s: its program has not said where it listens";
    assert!(failure.message.contains(says), "{}", failure.message);
    tokio::time::timeout(Duration::from_secs(60), node.worker.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_reaches_the_others_of_its_task_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &program()).await;
    let replicas = node.worker.replicas();
    let mut spec = service("serve");
    spec.task_type = TaskType::RagInference;
    spec.service.as_mut().unwrap().scale = Scale::fixed(2);
    let id = |replica| AttemptId { replica, ..attempt(1) };
    for replica in 0..2 {
        let mut assign = assign(1, spec.clone());
        assign.attempt = id(replica);
        node.assign(assign).await;
    }
    let mut changes = replicas.changes();
    while replicas.shown().len() < 2 {
        changes.changed().await.unwrap();
    }
    let socket = Run::read(&dir.path().join(format!("attempts/{}/run.json", id(0)))).unwrap().siblings.unwrap();
    let (status, own, head) = ask_shard(&socket, "1").await;
    assert_eq!((status, own), (200, false), "{head}");
    assert!(head.contains(&format!("mloc-sibling: {}", id(0))), "{head}");
    assert!(!head.contains("mloc-shard") && !head.contains("mloc-replica") && !head.contains("mloc-user"), "{head}");
    // Work for a sibling is no work that keeps a replica up.
    let figures = replicas.figures(&id(1)).unwrap();
    assert_eq!((figures.running, figures.done), (0, 0));
    // Itself, one that is not, and nobody.
    for (shard, wanted) in [("0", 404), ("2", 404), ("older 0", 404), ("newer", 404), ("x", 503)] {
        let (status, own, why) = ask_shard(&socket, shard).await;
        assert_eq!((status, own), (wanted, true), "{shard}: {why}");
    }
    // A newer version under the same name.
    let newer = AttemptId { task: TaskId::new("task-02TEST"), ..id(0) };
    node.assign(Assign { attempt: newer.clone(), ..assign(1, spec) }).await;
    while replicas.shown().len() < 3 {
        changes.changed().await.unwrap();
    }
    let socket_of =
        |id: &AttemptId| Run::read(&dir.path().join(format!("attempts/{id}/run.json"))).unwrap().siblings.unwrap();
    let (status, _, head) = ask_shard(&socket, "newer").await;
    assert!(status == 200 && head.contains(&format!("mloc-sibling: {}", id(0))), "{head}");
    for (number, wanted) in [("older 0", 200), ("older 1", 200), ("older 2", 404), ("1", 404)] {
        assert_eq!(ask_shard(&socket_of(&newer), number).await.0, wanted, "{number}");
    }
    node.cancel(id(1)).await;
    while replicas.shown().len() == 3 {
        changes.changed().await.unwrap();
    }
    let (status, own, why) = ask_shard(&socket, "1").await;
    assert!((status, own) == (404, true) && why.contains("no replica can be asked that is Shard(1)"), "{why}");
    node.worker.stop().await;
    assert!(!socket.exists(), "it goes with its attempt");
}
