//! Replicas of services and real child processes (`examples/child.rs`): readiness, requests, drain, ill health.

mod support;

use std::{path::PathBuf, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use mloc_core::{
    ledger::entry::FailureClass,
    task::{
        TaskSpec,
        spec::{Health, Scale, Service, Update},
    },
    wire::{Phase, Report},
};
use mloc_runtime::serving::{Replicas, proxy};
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
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header(proxy::REPLICA, attempt(1).to_string());
    let request = request.header(proxy::USER, "john-doe").header("authorization", "Bearer x").header("x-mine", "1");
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
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
