//! Services of real processes on a mesh of three nodes: reached through every node, kept up when a node dies, updated
//! under live traffic, scaled by it, put to sleep and woken.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use mloc_tests::{
    CALM, Sandbox,
    http::{self, Answer},
    python, root,
};
use serde_json::{Value, json};

/// One mesh at a time: a machine that runs several is so slow that healthy nodes look lost.
fn alone() -> MutexGuard<'static, ()> {
    static MESHES: Mutex<()> = Mutex::new(());
    MESHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Three nodes that run programs of users, one simulated GPU each.
fn mesh() -> anyhow::Result<Sandbox> {
    let mut sandbox = Sandbox::with_timing(&[], CALM)?;
    let config = format!(
        "hardware: {{cpu: '4', memory: 8GiB, simulated: {{gpus: [{{type: nvidia-l40, memory: 48GiB, count: 2}}]}}}}\n\
         modules: {{command: {{enabled: true, sandbox: best-effort}}}}\nvolumes: {{service_http: {}}}",
        root().join("configs/service_http").display()
    );
    sandbox.mesh(&["a", "b", "c"], &config, 3)?;
    Ok(sandbox)
}

/// The example of the repository, with a GPU that is accounted and these lines in place of its own.
fn service(changes: &[(&str, &str)]) -> anyhow::Result<String> {
    let mut text = std::fs::read_to_string(root().join("configs/service_http.yaml"))?;
    let gpu = ("hardware: {cpu: 100m, memory: 128MiB}", "hardware: {cpu: 100m, gpu: {type: 'simulated:any'}}");
    let health = ("health: {path: /health}", "health: {path: /health, every: 300ms}\n  retry: {backoff: 100ms}");
    for (from, to) in [gpu, health].iter().chain(changes) {
        ensure!(text.contains(from), "the example has no `{from}`");
        text = text.replace(from, to);
    }
    Ok(text)
}

/// `hello` as the node `ask` shows it.
fn hello(sandbox: &Sandbox, ask: usize) -> anyhow::Result<Value> {
    let all = sandbox.run(ask, &["services", "-o", "json"])?.json()?;
    Ok(all
        .as_array()
        .and_then(|all| all.iter().find(|service| service["name"] == "hello"))
        .cloned()
        .unwrap_or_default())
}

fn until_ready(sandbox: &mut Sandbox, ask: usize, ready: u64) -> anyhow::Result<()> {
    sandbox.until(&format!("{ready} replicas are ready"), |s| {
        let hello = hello(s, ask)?;
        Ok(hello["ready"] == ready && hello["replicas"].as_array().is_some_and(|all| all.len() as u64 == ready))
    })
}

fn chat(address: &str, more: Value) -> anyhow::Result<Answer> {
    let mut body = json!({"model": "hello", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().context("an object")?.extend(more.as_object().cloned().unwrap_or_default());
    http::post(address, "/v1/chat/completions", &body)
}

/// What became of one request.
#[derive(Debug)]
struct Outcome {
    answered: anyhow::Result<Answer>,
    took: Duration,
}

/// Requests that go on until they are told to stop, over several nodes.
struct Traffic {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Outcome>>>,
}

impl Traffic {
    /// One client for each of these nodes and requests.
    fn start(sandbox: &Sandbox, nodes: &[usize], requests: &[Value]) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for node in nodes {
            for request in requests {
                let (address, request, stop) = (sandbox.rest(*node)?, request.clone(), stop.clone());
                clients.push(thread::spawn(move || {
                    let mut outcomes = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        let answered = chat(&address, request.clone());
                        outcomes.push(Outcome { answered, took: begun.elapsed() });
                    }
                    outcomes
                }));
            }
        }
        Ok(Self { stop, clients })
    }

    fn end(self) -> Vec<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients
            .into_iter()
            .flat_map(|client| client.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect()
    }
}

/// Every one of them was answered in full.
fn all_answered(outcomes: &[Outcome]) -> anyhow::Result<()> {
    ensure!(outcomes.len() >= 10, "{} requests are no traffic", outcomes.len());
    for Outcome { answered, took } in outcomes {
        let answer = answered.as_ref().map_err(|e| anyhow::anyhow!("after {took:?}: {e:#}"))?;
        ensure!(answer.status == 200, "after {took:?}: {answer:?}");
        let events = answer.header("content-type") == Some("text/event-stream");
        ensure!(!events || answer.body.ends_with("data: [DONE]\n\n"), "a stream was cut off: {answer:?}");
    }
    Ok(())
}

#[test]
fn every_node_reaches_a_service_by_its_name_and_its_hours_are_accounted() -> anyhow::Result<()> {
    let _alone = alone();
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = mesh()?;
    let id = sandbox.submit(1, &service(&[])?)?;
    until_ready(&mut sandbox, 0, 2)?;
    let shown = hello(&sandbox, 2)?;
    assert_ne!(shown["replicas"][0]["node"], shown["replicas"][1]["node"], "spread: {shown}");
    sandbox.until("it says that it serves", |s| {
        let task = s.task(0, &id)?;
        Ok(task["state"] == "RUNNING" && task["phase"] == "SERVING")
    })?;

    let mut replicas = Vec::new();
    for node in 0..3 {
        let at = sandbox.rest(node)?;
        // Gossip may be a moment behind the leader.
        sandbox.until("the node knows both replicas", |s| {
            let answer =
                chat(&s.rest(node)?, json!({"max_tokens": 1, "prompt_cache_key": replicas.len().to_string()}))?;
            ensure!(answer.status == 200, "{answer:?}");
            replicas.push(answer.json()?["replica"].to_string());
            Ok(replicas.contains(&"\"0.1\"".to_owned()) && replicas.contains(&"\"1.1\"".to_owned()))
        })?;
        replicas.clear();
        let streamed = chat(&at, json!({"stream": true, "max_tokens": 3}))?;
        assert_eq!(streamed.header("content-type"), Some("text/event-stream"));
        assert_eq!(streamed.body.matches("data: ").count(), 4, "{streamed:?}");
        let plain = http::get(&at, "/services/hello/any/path%20here?x=1")?;
        assert_eq!(plain.json()?["path"], "/any/path%20here?x=1", "{plain:?}");
        assert_eq!(plain.json()?["user"], "admin", "{plain:?}");
        let models = http::get(&at, "/v1/models")?.json()?;
        assert_eq!((&models["data"][0]["id"], &models["data"][0]["owned_by"]), (&json!("hello"), &json!("john-doe")));

        let unknown = http::post(&at, "/v1/chat/completions", &json!({"model": "gpt-9"}))?;
        assert_eq!(unknown.status, 404, "{unknown:?}");
        let error = unknown.json()?["error"].clone();
        assert_eq!(error["code"], "model_not_found");
        assert!(error["message"].as_str().is_some_and(|text| text.contains("served are hello")), "{error}");
        assert_eq!(http::get(&at, "/services/nobody/x")?.status, 404);
        assert_eq!(http::post(&at, "/v1/chat/completions", &json!({}))?.status, 400);
        // What the program itself refuses is its own answer.
        let other = http::post(&at, "/v1/embeddings", &json!({"model": "hello"}))?;
        assert_eq!((other.status, other.json()?["error"]["message"].clone()), (404, json!("no /v1/embeddings here")));
    }
    let table = sandbox.run(0, &["services"])?.out;
    assert!(table.contains("hello") && table.contains("2/2") && table.contains("READY"), "{table}");

    // Somebody else's name.
    let stolen = sandbox.dir.path().join("stolen.yaml");
    std::fs::write(&stolen, service(&[("owner: john-doe", "owner: somebody-else")])?)?;
    let refused = sandbox.run(0, &["submit", &stolen.display().to_string()])?;
    assert!(refused.code != 0 && refused.err.contains("`hello` is served by john-doe"), "{refused:?}");

    sandbox.run(2, &["cancel", &id])?;
    sandbox.until("its replicas have stopped", |s| {
        let task = s.task(0, &id)?;
        Ok(task["attempts"].as_array().is_some_and(|all| all.iter().all(|a| a["state"] == "STOPPED")))
    })?;
    let task = sandbox.task(0, &id)?;
    let rows = task["usage"].as_array().context("usage")?;
    assert_eq!(rows.len(), 2, "{task}");
    let hours: f64 = rows.iter().filter_map(|row| row["gpu_hours"].as_f64()).sum();
    let stats = sandbox.run(0, &["stats", "-o", "json", "--user", "john-doe"])?.json()?;
    assert!(
        hours > 0.0 && (stats["total_gpu_hours"].as_f64().unwrap_or_default() - hours).abs() < 1e-9,
        "{stats} {task}"
    );
    let gone = chat(&sandbox.rest(1)?, json!({}))?;
    assert_eq!(gone.status, 404, "{gone:?}");
    Ok(())
}

#[test]
fn a_node_that_is_killed_takes_no_request_with_it_that_had_no_answer_yet() -> anyhow::Result<()> {
    let _alone = alone();
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = mesh()?;
    sandbox.submit(0, &service(&[])?)?;
    until_ready(&mut sandbox, 0, 2)?;
    let leader = sandbox.leader(0)?;
    let shown = hello(&sandbox, 0)?;
    let on = |replica: &Value| sandbox.named(replica["node_name"].as_str().unwrap_or_default());
    let holders = [on(&shown["replicas"][0])?, on(&shown["replicas"][1])?];
    // The replica's node and not the leader too, where there is a choice.
    let dies = holders.into_iter().find(|node| *node != leader).context("two nodes have a replica")?;
    let others: Vec<usize> = (0..3).filter(|node| *node != dies).collect();
    let whole = Traffic::start(&sandbox, &others, &[json!({"max_tokens": 10}), json!({"max_tokens": 40})])?;
    let streams = Traffic::start(&sandbox, &others, &[json!({"max_tokens": 100, "stream": true})])?;
    let answered = |s: &Sandbox| -> anyhow::Result<u64> {
        let replicas = hello(s, others[0])?["replicas"].clone();
        let done = replicas.as_array().into_iter().flatten().filter_map(|r| r["serving"]["done"].as_u64());
        Ok(done.sum())
    };
    sandbox.until("there is traffic", |s| Ok(answered(s)? >= 20))?;
    sandbox.kill(dies)?;
    // Another takes its place, and the traffic goes on.
    sandbox.until("two are ready again", |s| {
        let shown = hello(s, others[0])?;
        let alive = shown["replicas"].as_array().is_some_and(|all| {
            all.len() == 2 && all.iter().all(|r| r["state"] == "READY" && r["node_name"] != s.name(dies))
        });
        Ok(alive)
    })?;
    let (whole, streams) = (whole.end(), streams.end());
    all_answered(&whole)?;
    ensure!(streams.len() > 2, "streams went on");
    let mut cut = 0;
    for Outcome { answered, took } in &streams {
        let answer = answered.as_ref().map_err(|e| anyhow::anyhow!("a stream broke after {took:?}: {e:#}"))?;
        ensure!(answer.status == 200, "{answer:?}");
        if !answer.body.ends_with("data: [DONE]\n\n") {
            // It had begun: the client is told, and nothing hangs.
            ensure!(answer.body.contains("\nevent: error\ndata: {\"error\":{"), "{answer:?}");
            cut += 1;
        }
    }
    ensure!(cut <= others.len(), "each client had one stream under way: {cut} were cut");
    Ok(())
}

#[test]
fn a_newer_version_takes_over_under_traffic_and_no_request_fails() -> anyhow::Result<()> {
    let _alone = alone();
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = mesh()?;
    let old = sandbox.submit(0, &service(&[])?)?;
    until_ready(&mut sandbox, 0, 2)?;
    let requests = [json!({"max_tokens": 5}), json!({"max_tokens": 60, "stream": true})];
    let traffic = Traffic::start(&sandbox, &[0, 1, 2], &requests)?;
    let new = sandbox.submit(1, &service(&[("VERSION: \"1\"", "VERSION: \"2\", LOADING: \"0.5\"")])?)?;
    let mut least = u64::MAX;
    sandbox.until("the newer version has taken over", |s| {
        let shown = hello(s, 0)?;
        least = least.min(shown["ready"].as_u64().unwrap_or(0));
        let all = shown["replicas"].as_array().cloned().unwrap_or_default();
        Ok(all.len() == 2 && all.iter().all(|r| r["state"] == "READY" && r["task"] == new.as_str()))
    })?;
    assert_eq!(least, 2, "there were always as many ready as are wanted");
    sandbox.until("the older one has ended", |s| Ok(s.task(0, &old)?["state"] == "CANCELLED"))?;
    // A drain is an exchange too.
    let shown = hello(&sandbox, 0)?;
    let leaves = shown["replicas"][0]["node_name"].as_str().context("a node")?.to_owned();
    sandbox.run(0, &["drain", &leaves])?;
    sandbox.until("the node that drains has none", |s| {
        let shown = hello(s, 0)?;
        let all = shown["replicas"].as_array().cloned().unwrap_or_default();
        Ok(all.len() == 2 && all.iter().all(|r| r["state"] == "READY" && r["node_name"] != leaves.as_str()))
    })?;
    let outcomes = traffic.end();
    all_answered(&outcomes)?;
    let versions: Vec<Value> =
        outcomes.iter().filter_map(|o| Some(o.answered.as_ref().ok()?.json().ok()?["version"].clone())).collect();
    ensure!(versions.contains(&json!("1")) && versions.contains(&json!("2")), "both have answered");
    let rows =
        |s: &Sandbox, id: &str| -> anyhow::Result<usize> { Ok(s.task(0, id)?["usage"].as_array().map_or(0, Vec::len)) };
    assert_eq!((rows(&sandbox, &old)?, rows(&sandbox, &new)?), (2, 3), "each version has its own rows");
    Ok(())
}

#[test]
fn a_service_grows_with_its_load_sleeps_when_nobody_asks_and_wakes() -> anyhow::Result<()> {
    let _alone = alone();
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = mesh()?;
    let scaled = "autoscale: {min: 1, max: 3, queueDepth: 2, upAfter: 300ms, downAfter: 1s}\n  resources:";
    let changes = [("    replicas: 2\n", ""), ("resources:", scaled), ("stop: 30s", "stop: 10s, idle: 3s")];
    let id = sandbox.submit(0, &service(&changes)?)?;
    until_ready(&mut sandbox, 0, 1)?;
    let slow = vec![json!({"max_tokens": 50}); 3];
    let traffic = Traffic::start(&sandbox, &[0, 1, 2], &slow)?;
    sandbox.until("nine requests at once have three replicas", |s| Ok(hello(s, 0)?["ready"] == 3))?;
    all_answered(&traffic.end())?;
    sandbox.until("nobody asks, and it sleeps", |s| {
        let hello = hello(s, 1)?;
        Ok(hello["sleeps"] == true && hello["replicas"] == json!([]))
    })?;
    assert_eq!(sandbox.task(0, &id)?["state"], "PENDING");
    let explained = sandbox.run(0, &["explain", &id])?.out;
    assert!(explained.contains("a request"), "{explained}");
    assert!(sandbox.run(0, &["services"])?.out.contains("ASLEEP"));
    let woken = chat(&sandbox.rest(2)?, json!({"max_tokens": 1}))?;
    assert_eq!(woken.status, 200, "the request that wakes it is answered: {woken:?}");
    Ok(())
}
