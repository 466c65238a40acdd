//! `mloc agent run`: an agent of the mesh at work, shown as it goes. What it did is a log where it runs: a connection that
//! breaks costs nothing, and `mloc agent follow` looks again.

use std::io::{IsTerminal, Write};

use anyhow::Context;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Response, body::Incoming};
use mloc_modules::sse::Events;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::chat::printable;
use crate::{
    cli::{AgentFollowArgs, AgentRunArgs, AgentVerb},
    client::{Body, Client, PATIENCE, Refusal, path_encode},
    show::say,
};

/// Characters of a call or its result that are shown.
const SHOWN: usize = 400;
/// Bytes of one event: a result of a tool at most, which its agent has cut.
const EVENT_BYTES: usize = 64 << 20;

/// `mloc agent …`.
pub async fn agent(verb: AgentVerb) -> Result<(), Refusal> {
    match verb {
        AgentVerb::Run(args) => run(args).await,
        AgentVerb::Follow(args) => follow(args).await,
    }
}

async fn run(args: AgentRunArgs) -> Result<(), Refusal> {
    let client = Client::new(&args.remote)?;
    let mut budgets = json!({});
    let asked = [("steps", args.steps.map(u64::from)), ("wall_time_s", args.seconds), ("tokens", args.tokens)];
    for (name, value) in asked {
        if let Some(value) = value {
            budgets[name] = value.into();
        }
    }
    let runs = format!("/v1/agents/{}/runs", path_encode(&args.agent));
    let started: Value = post(&client, &runs, &json!({"input": args.input.join(" "), "budgets": budgets})).await?;
    let id = started["id"].as_str().context("the agent named no run")?.to_owned();
    eprintln!("run {id}");
    let run = format!("{runs}/{id}");
    // Of a person who waits for a question to be answered too: whatever is under way, Ctrl-C ends the run.
    tokio::select! {
        done = watch(&client, &run, 0) => done,
        _ = tokio::signal::ctrl_c() => {
            let _: Value = post(&client, &format!("{run}/cancel"), &json!({})).await?;
            Err(Refusal::new(130, "cancelled"))
        }
    }
}

async fn follow(args: AgentFollowArgs) -> Result<(), Refusal> {
    let client = Client::new(&args.remote)?;
    watch(&client, &format!("/v1/agents/{}/runs/{}", path_encode(&args.agent), path_encode(&args.run)), 0).await
}

async fn post<T: serde::de::DeserializeOwned>(client: &Client, path: &str, body: &Value) -> Result<T, Refusal> {
    let body: Body = Full::new(body.to_string().into()).map_err(|never| match never {}).boxed_unsync();
    let headers = [("content-type", "application/json")];
    let response = client.exchange(Method::POST, path, &[], &headers, body).await?;
    let bytes = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
    Ok(serde_json::from_slice(&bytes).context("the answer is not what this version of mloc expects")?)
}

async fn events(client: &Client, run: &str, from: u64) -> Result<Response<Incoming>, Refusal> {
    let body: Body = Full::default().map_err(|never| match never {}).boxed_unsync();
    client.exchange(Method::GET, &format!("{run}/events"), &[("from", from.to_string())], &[], body).await
}

/// Shows a run to its end; goes on with it when the connection breaks or its replica moves.
async fn watch(client: &Client, run: &str, mut from: u64) -> Result<(), Refusal> {
    let mut heard = std::time::Instant::now();
    loop {
        let broke = match events(client, run, from).await {
            Ok(response) => match show(client, run, response, &mut from).await? {
                Some(done) => return done,
                None => {
                    heard = std::time::Instant::now();
                    Refusal::new(4, "the connection broke")
                }
            },
            Err(refusal) if refusal.is_passing() => refusal,
            Err(refusal) => return Err(refusal),
        };
        if heard.elapsed() >= PATIENCE {
            return Err(broke);
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

/// Shows what comes. `None`: it broke off, and what was shown counts.
async fn show(
    client: &Client,
    run: &str,
    response: Response<Incoming>,
    from: &mut u64,
) -> Result<Option<Result<(), Refusal>>, Refusal> {
    let (mut body, mut events) = (response.into_body(), Events::new(EVENT_BYTES));
    // Whether a line is unfinished, and whether the newest answer was shown as it came.
    let (mut said, mut shown) = (false, false);
    loop {
        let Some(Ok(frame)) = body.frame().await else { return Ok(None) };
        let mut heard = Vec::new();
        let read = events.take(frame.data_ref().map_or(&[][..], |data| data), |data| heard.push(data));
        for data in heard {
            let Ok(event) = serde_json::from_str::<Value>(&data) else { continue };
            if let Some(text) = event["content"].as_str() {
                said |= print(text);
                shown |= said;
                continue;
            }
            if let Some(n) = event["n"].as_u64() {
                *from = n + 1;
            }
            if std::mem::take(&mut said) {
                say!("");
            }
            let record = &event["event"];
            match record["type"].as_str() {
                Some("model_asked") => shown = false,
                Some("approval_asked") => approve(client, run, record).await?,
                _ => {}
            }
            if let Some(done) = told(record, shown) {
                return Ok(Some(done));
            }
        }
        read.map_err(|error| Refusal::new(1, format!("{error}: this is no agent's event")))?;
    }
}

/// One record, for people. What it was, where it was the last. `shown`: its answer was, as it came.
fn told(record: &Value, shown: bool) -> Option<Result<(), Refusal>> {
    // Names and words of a model must not move the cursor.
    let text = |key: &str| printable(record[key].as_str().unwrap_or_default());
    let short = |text: String| printable(&text.chars().take(SHOWN).collect::<String>()).replace('\n', " ");
    match record["type"].as_str().unwrap_or_default() {
        "tool_started" => eprintln!("→ {} {}", text("tool"), short(record["arguments"].to_string())),
        "tool_finished" => {
            let outcome = &record["outcome"];
            let mark = if outcome["ok"] == true { "←" } else { "✗" };
            eprintln!("{mark} {}", short(outcome["content"].as_str().unwrap_or_default().to_owned()));
        }
        "tool_refused" => eprintln!("✗ {}: {}", text("tool"), short(text("message"))),
        "model_failed" | "warned" => eprintln!("note: {}", text("message")),
        "resumed" => eprintln!("note: it goes on where it was"),
        "finished" => {
            if !shown {
                say!("{}", text("answer"));
            }
            return Some(Ok(()));
        }
        "failed" => return Some(Err(Refusal::new(1, text("message")))),
        _ => {}
    }
    None
}

/// Asks whoever sits at the keyboard; elsewhere it says how to. What was said already is not asked again.
async fn approve(client: &Client, run: &str, record: &Value) -> Result<(), Refusal> {
    let (call, tool) = (&record["call"], printable(record["tool"].as_str().unwrap_or_default()));
    let view: Value = client.get(run, &[]).await?;
    let open = view["approvals"].as_array().into_iter().flatten().any(|asked| &asked["call_id"] == call);
    if !open {
        return Ok(());
    }
    let arguments = printable(&record["arguments"].to_string());
    if !std::io::stdin().is_terminal() {
        eprintln!(
            "note: {tool} {arguments} waits for a person: POST {run}/approve {{\"call_id\": {call}, \"approve\": true}}"
        );
        return Ok(());
    }
    eprint!("may it call {tool} {arguments}? [y/N] ");
    let line = BufReader::new(tokio::io::stdin()).lines().next_line().await.context("read from the terminal")?;
    let yes = line.is_some_and(|line| matches!(line.trim(), "y" | "Y" | "yes"));
    match post::<Value>(client, &format!("{run}/approve"), &json!({"call_id": call, "approve": yes})).await {
        // Somebody else was faster, or nobody was in time: the run says so.
        Err(refusal) if refusal.status == Some(409) => {
            eprintln!("note: {}", refusal.text);
            Ok(())
        }
        answered => answered.map(|_| ()),
    }
}

/// While it comes only a terminal sees it: a pipe gets the answer alone.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        let _ = out.write_all(printable(text).as_bytes()).and_then(|()| out.flush());
    }
    out.is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_last_record_ends_a_run() {
        assert!(told(&json!({"type": "tool_started", "tool": "t", "arguments": {}}), false).is_none());
        assert!(matches!(told(&json!({"type": "finished", "answer": "42"}), false), Some(Ok(()))));
        let failed = told(&json!({"type": "failed", "message": "out of steps"}), false)
            .expect("the last")
            .expect_err("it failed");
        assert_eq!((failed.code, failed.text.as_str()), (1, "out of steps"));
    }
}
