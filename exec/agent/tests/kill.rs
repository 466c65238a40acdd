//! A1 and A2 with a real process: `kill -9` at random points of a run, again and again, until it is over.

mod support;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mloc_agent::{
    Agent, Runs,
    event::{CallId, Event, Outcome, ToolSpec},
    feed::Told,
    log,
    message::Message,
    model::scripted::{Scripted, Turn, last_results},
    run::Ask,
    runs::{Limits, Start},
    tool::{Tool, Toolbox},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use support::{call, settings};

/// Tells the child that it is one.
const FOLDER: &str = "MLOC_AGENT_KILL_FOLDER";
/// Answers with calls; each has one that counts and one that does not.
const STEPS: u32 = 12;

/// Writes a line for each call, as something outside that cannot be taken back.
struct Counting {
    spec: ToolSpec,
    file: std::path::PathBuf,
}

#[async_trait]
impl Tool for Counting {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, arguments: &Value) -> Outcome {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.file).unwrap();
        // At once, or a kill would leave half of it.
        file.write_all(format!("{}\n", arguments["n"]).as_bytes()).unwrap();
        Outcome::done(format!("counted {}", arguments["n"]))
    }
}

fn counting(folder: &Path, name: &str, idempotent: bool) -> Arc<Counting> {
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } } });
    let spec = ToolSpec { name: name.into(), description: String::new(), schema, idempotent };
    Arc::new(Counting { spec, file: folder.join(format!("{name}.count")) })
}

/// Counts by the conversation alone, so that it goes on wherever it is asked.
fn script(ask: &Ask) -> Turn {
    let answers = ask.messages.iter().filter(|message| matches!(message, Message::Assistant(_))).count();
    let step = u32::try_from(answers).unwrap() + 1;
    if step > STEPS {
        Turn::Say(last_results(ask).join(" "))
    } else {
        Turn::Call(vec![call("send", step), call("look", step)])
    }
}

/// The process that is killed: it works on the run in its folder, and says each event.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let toolbox = Toolbox::new(1024)
            .with(counting(folder, "send", false), support::LONG)
            .with(counting(folder, "look", true), support::LONG);
        let chat = Arc::new(Scripted::new(script));
        let agent = Agent { name: "a".into(), settings: settings(&json!({})), chat, toolbox };
        let runs = Runs::open(&folder.join("runs"), agent, Limits::default()).unwrap();
        let id = match runs.list().unwrap().pop() {
            Some(id) => id,
            None => {
                let messages = vec![Message::User { content: "count".into() }];
                runs.start(Start { messages, ..Start::default() }).await.unwrap()
            }
        };
        let mut follower = runs.follow(&id, 0).await.unwrap();
        while let Some(told) = follower.next().await {
            if let Told::Record(record) = told {
                // Whoever reads this may have been told enough.
                writeln!(std::io::stdout(), "EVENT {}", record.event.name()).ok();
            }
        }
        writeln!(std::io::stdout(), "OVER").ok();
    });
}

/// Runs the child until so many events were said and so much time has passed; whether the run is over.
fn work_and_kill(folder: &Path, events: u64, then: Duration) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut said, mut over) = (0, false);
    for line in lines {
        let line = line.unwrap();
        over |= line.ends_with("OVER");
        said += u64::from(line.contains("EVENT "));
        if said >= events && !over {
            let until = Instant::now() + then;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            break;
        }
    }
    // SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    over
}

#[test]
fn every_finished_call_was_made_once_whenever_its_process_was_killed() {
    let mut chance = StdRng::seed_from_u64(1);
    let (mut kills, mut unknown) = (0, 0);
    for round in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let before = kills;
        loop {
            let so_far = fs::read_dir(folder.join("runs")).map_or(0, |_| records(folder).len() as u64);
            // Mostly before the end; the count goes from the run's beginning.
            let events = so_far + 1 + u64::from(chance.next_u32() % 14);
            if work_and_kill(folder, events, Duration::from_micros(u64::from(chance.next_u32() % 3000))) {
                break;
            }
            kills += 1;
            assert!(kills - before < 200, "the run does not come to its end");
        }
        unknown += check(folder, round);
    }
    println!("{kills} kills, {unknown} calls whose outcome is unknown");
    assert!(kills > 8, "it was killed in the middle");
}

fn records(folder: &Path) -> Vec<mloc_agent::event::Record> {
    let runs = log::list(&folder.join("runs")).unwrap();
    runs.first().map_or_else(Vec::new, |run| log::read(&log::path(&folder.join("runs"), run)).unwrap().records)
}

/// The log and the counts agree; how many outcomes are unknown.
fn check(folder: &Path, round: u32) -> usize {
    let records = records(folder);
    assert!(matches!(records.last().unwrap().event, Event::Finished { .. }), "round {round}");
    let mut ends: BTreeMap<CallId, (String, Outcome)> = BTreeMap::new();
    for record in &records {
        if let Event::ToolFinished { call, tool, outcome } = &record.event {
            assert!(ends.insert(*call, (tool.clone(), outcome.clone())).is_none(), "{call} ended twice");
        }
    }
    assert_eq!(ends.len() as u32, 2 * STEPS);
    let counts = |tool: &str| {
        let text = fs::read_to_string(folder.join(format!("{tool}.count"))).unwrap_or_default();
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        text.lines().for_each(|line| *counts.entry(line.parse().unwrap()).or_default() += 1);
        counts
    };
    let (sent, looked) = (counts("send"), counts("look"));
    let mut unknown = 0;
    for (call, (tool, outcome)) in ends {
        let times = if tool == "send" { &sent } else { &looked }.get(&call.step).copied().unwrap_or(0);
        match (tool.as_str(), outcome.ok) {
            ("send", true) => assert_eq!(times, 1, "A1: {call}"),
            ("send", false) => {
                assert!(outcome.content.contains("unknown") && times <= 1, "A2: {call} {times} {outcome:?}");
                unknown += 1;
            }
            // It may have been killed in it a few times, and given up.
            _ => assert!(times >= 1 || !outcome.ok, "{call}"),
        }
    }
    unknown
}
