//! An agent on a mesh of real processes: its runs are started, listed and followed through any node, and one that was cut
//! off by the death of its process goes on.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use anyhow::{Context, ensure};
use mloc_tests::{CALM, Sandbox, command::children_of, http, root};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

fn service(agent: &str) -> String {
    format!(
        "apiVersion: mloc/v1\nkind: ServiceTask\nmetadata: {{name: helper, owner: john-doe, project: examples}}\nspec:\n  \
         taskType: agent\n  model: {{source: {{type: local, identifier: golden/models/qwen3}}}}\n  agent: {agent}\n  \
         resources: {{hardware: {{cpu: 500m, memory: 512MiB}}}}\n  health: {{every: 300ms}}\n"
    )
}

#[test]
fn runs_are_started_and_looked_at_through_any_node() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::with_timing(&[], CALM)?;
    let golden = root().join("tests/fixtures/golden");
    let config = format!("hardware: {{cpu: '4', memory: 8GiB}}\nvolumes: {{golden: {}}}", golden.display());
    sandbox.mesh(&["a", "b"], &config, 1)?;

    let wrong = sandbox.dir.path().join("wrong.yaml");
    std::fs::write(&wrong, service("{budgets: {steps: 0}, tools: [{type: telepathy, name: t}]}"))?;
    let refused = sandbox.run(0, &["submit", &wrong.display().to_string()])?;
    ensure!(refused.code == 2 && refused.err.contains("spec.agent.budgets.steps"), "{refused:?}");
    ensure!(refused.err.contains("spec.agent.tools[0]"), "every problem at once: {refused:?}");

    // The model is random: what it says is nothing, and ends by its budget.
    let agent = "{system: You help., parameters: {temperature: 0}, budgets: {steps: 2, answer_tokens: 12}}";
    sandbox.submit(0, &service(agent))?;
    sandbox.until("it is ready", |s| Ok(s.run(0, &["services", "-o", "json"])?.json()?[0]["ready"] == 1))?;
    for node in 0..2 {
        sandbox
            .until("the node knows it", |s| Ok(http::get(&s.rest(node)?, "/v1/agents/helper/runs")?.status == 200))?;
        let ran = sandbox.run(node, &["agent", "run", "helper", "say", "something"])?;
        ensure!(ran.err.contains("run "), "{ran:?}");
        // It has an answer, or its tokens were at an end: both are ends that say so.
        ensure!(ran.code == 0 || ran.code == 1, "{ran:?}");
        let id = ran.err.lines().find_map(|line| line.strip_prefix("run ")).context("the run's name")?.to_owned();
        let other = sandbox.rest(1 - node)?;
        let view = http::get(&other, &format!("/v1/agents/helper/runs/{id}"))?;
        ensure!(view.status == 200 && view.body.contains(&id), "{view:?}");
        let again = sandbox.run(1 - node, &["agent", "follow", "helper", &id])?;
        assert_eq!((again.code, &again.out), (ran.code, &ran.out));
    }
    let unknown = http::post(&sandbox.rest(0)?, "/v1/agents/nobody/runs", &json!({"input": "x"}))?;
    ensure!(unknown.status == 404, "{unknown:?}");
    Ok(())
}

/// A tool behind an address, which keeps what it is called with.
fn tool_server() -> anyhow::Result<(String, Arc<Mutex<Vec<String>>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, called) = (listener.local_addr()?.to_string(), Arc::new(Mutex::new(Vec::new())));
    let keep = called.clone();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                let header = line.to_ascii_lowercase();
                length = header.strip_prefix("content-length:").map_or(length, |n| n.trim().parse().unwrap_or(0));
                line.clear();
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_ok() {
                keep.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
                let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nsent");
            }
        }
    });
    Ok((address, called))
}

#[test]
fn a_model_that_knows_nothing_calls_as_the_schema_says_and_a_call_that_is_done_outlives_a_kill() -> anyhow::Result<()> {
    let mut sandbox = Sandbox::with_timing(&[], CALM)?;
    let golden = root().join("tests/fixtures/golden");
    let config = format!("hardware: {{cpu: '4', memory: 8GiB}}\nvolumes: {{golden: {}}}", golden.display());
    sandbox.mesh(&["a"], &config, 1)?;
    let (address, called) = tool_server()?;
    // The tiny model is random: left alone it writes nothing that could be read. Only a grammar makes it call, and its next
    // answer is long enough to be cut off amid.
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if tools %}<tool_call>{% endif %}";
    let schema = json!({"type": "object", "required": ["to", "times"], "additionalProperties": false, "properties": {
        "to": {"enum": ["Ada", "Grace"]}, "times": {"type": "integer", "minimum": 1, "maximum": 3}}});
    let tool = json!({"type": "http", "name": "send", "description": "Sends a letter.", "method": "POST",
        "url": format!("http://{address}/send"), "parameters": schema});
    let agent = json!({"tool_choice": "required", "tools": [tool], "budgets": {"steps": 2, "answer_tokens": 30_000},
        "parameters": {"ignore_eos": true, "parallel_tool_calls": false, "seed": 7}});
    let more = format!("  hyperparameters: {{max_model_len: 32768, chat_template: {}}}\n", json!(template));
    let task = service(&agent.to_string()) + &more + "  retry: {backoff: 100ms}\n";

    // A tool that speaks to the node's own addresses runs where programs of users do.
    let id = sandbox.submit(0, &task)?;
    sandbox.until("it waits for a node that permits it", |s| {
        Ok(s.run(0, &["explain", &id])?.out.contains("programs of users are not run on this node"))
    })?;
    let node = sandbox.dir.path().join("a/node.yaml");
    let permits = "modules: {command: {enabled: true, sandbox: best-effort}}\n";
    std::fs::write(&node, std::fs::read_to_string(&node)? + permits)?;
    sandbox.kill(0)?;
    sandbox.restart(0)?;

    let rest = sandbox.rest(0)?;
    let runs = "/v1/agents/helper/runs";
    sandbox.until("it is served", |_| Ok(http::get(&rest, runs).is_ok_and(|answer| answer.status == 200)))?;
    let started = http::post(&rest, runs, &json!({"input": "write to somebody"}))?;
    ensure!(started.status == 202, "{started:?}");
    let run = format!("{runs}/{}", started.json()?["id"].as_str().context("the run's name")?);
    let view = || http::get(&rest, &run)?.json();
    sandbox.until("it has called, and is asked again", |_| {
        let view = view()?;
        ensure!(view["state"]["status"] == "running", "{view}");
        Ok(view["used"]["calls"] == 1 && view["used"]["steps"] == 2)
    })?;
    let sent: serde_json::Value = serde_json::from_str(&called.lock().unwrap()[0])?;
    let fits = ["Ada", "Grace"].iter().any(|name| sent["to"] == *name)
        && sent["times"].as_u64().is_some_and(|times| (1..=3).contains(&times))
        && sent.as_object().is_some_and(|map| map.len() == 2);
    ensure!(fits, "{sent}");

    let events = view()?["events"].as_u64().context("records")?;
    for process in children_of(sandbox.pid(0)?)? {
        kill(process, Signal::SIGKILL)?;
    }
    sandbox.until("it goes on, and is asked once more", |_| {
        let Ok(view) = view() else { return Ok(false) };
        Ok(view["events"].as_u64() > Some(events) && view["used"]["steps"] == 2)
    })?;
    http::post(&rest, &format!("{run}/cancel"), &json!({}))?;
    let log = http::get(&rest, &format!("{run}/events?from=0"))?.body;
    let times = |kind: &str| log.matches(&format!("\"type\":\"{kind}\"")).count();
    assert_eq!(["resumed", "tool_started", "tool_finished", "failed"].map(times), [1; 4], "{log}");
    assert_eq!(called.lock().unwrap().len(), 1, "what is done is not done again");
    Ok(())
}
