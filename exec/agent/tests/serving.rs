//! Runs over HTTP, on a real socket, with a scripted model.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mloc_agent::{
    event::Outcome,
    model::{
        ChatError,
        scripted::{Turn, last_results},
    },
    run::Ask,
    runs::Limits,
};
use serde_json::{Value, json};
use support::{Acting, Closing, Env, LONG, agent, call};
use tempfile::tempdir;
use tokio::sync::{Barrier, Notify};

/// Calls a tool once, then says what came of it.
fn once(tool: &'static str) -> impl Fn(&Ask) -> Turn + Send + Sync + 'static {
    move |ask| match last_results(ask).as_slice() {
        [] => Turn::Call(vec![call(tool, 1)]),
        results => Turn::Say(results.join(" and ")),
    }
}

fn adding() -> Arc<Acting> {
    Acting::new("add", async |arguments: Value| Outcome::done((arguments["n"].as_u64().unwrap() + 1).to_string()))
}

#[tokio::test]
async fn a_run_from_its_start_to_its_answer() {
    let (folder, tool) = (tempdir().unwrap(), adding());
    let env = Env::open(folder.path(), agent(&json!({}), once("add"), &[&tool])).await;
    let mut listener = env.start(json!({ "input": "add one to one", "metadata": { "who": "a test" } })).await;
    let first = listener.until("run_started").await;
    let id = first["event"]["run"].as_str().unwrap().to_owned();
    assert_eq!(first["event"]["setup"]["messages"][0], json!({ "role": "system", "content": "be brief" }));
    let heard = listener.rest().await;
    let kinds: Vec<&str> = heard.iter().map(|told| told["event"]["type"].as_str().unwrap_or("delta")).collect();
    let wanted = [
        "model_asked",
        "model_answered",
        "tool_started",
        "tool_finished",
        "model_asked",
        "delta",
        "model_answered",
        "finished",
    ];
    assert_eq!(kinds, wanted);
    assert_eq!(heard[7]["event"]["answer"], "2");
    assert_eq!(heard[5], json!({ "step": 2, "content": "2" }));

    let (status, view) = env.get(&format!("/{id}")).await;
    assert_eq!((status, &view["state"]["status"], &view["state"]["answer"]), (200, &json!("finished"), &json!("2")));
    assert_eq!((&view["used"]["steps"], &view["used"]["calls"]), (&json!(2), &json!(1)));
    assert_eq!(view["events"], 8);
    // Once more, from a record on, and after the end.
    assert_eq!(
        env.events(&format!("/{id}/events?from=5")).await.kinds().await,
        ["model_asked", "model_answered", "finished"]
    );
    assert_eq!(env.events(&format!("/{id}/events?from=99")).await.kinds().await.len(), 0);
    assert_eq!(env.get("").await.1["data"], json!([id]));
    assert_eq!(tool.called(), 1);
    env.shut_down().await;
}

#[tokio::test]
async fn calls_of_one_answer_are_made_at_once_and_told_in_order() {
    let folder = tempdir().unwrap();
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let tool = Acting::new("meet", move |arguments| {
        let both = both.clone();
        async move {
            // One alone would wait for ever.
            both.wait().await;
            Outcome::done(arguments["n"].to_string())
        }
    });
    let script = |ask: &Ask| match last_results(ask).as_slice() {
        [] => Turn::Call(vec![call("meet", 1), call("meet", 2)]),
        results => Turn::Say(results.join(" ")),
    };
    let env = Env::open(folder.path(), agent(&json!({}), script, &[&tool])).await;
    let finished = env.start(json!({ "input": "go" })).await.until("finished").await;
    assert_eq!(finished["event"]["answer"], "1 2");
    env.shut_down().await;
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_end_its_run() {
    let folder = tempdir().unwrap();
    let (started, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (started.clone(), go.clone());
    let tool = Acting::new("wait", move |_| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            tell.notify_one();
            wait.notified().await;
            Outcome::done("waited")
        }
    });
    let env = Env::open(folder.path(), agent(&json!({}), once("wait"), &[&tool])).await;
    let mut listener = env.start(json!({ "input": "go" })).await;
    let id = listener.until("run_started").await["event"]["run"].as_str().unwrap().to_owned();
    started.notified().await;
    drop(listener);
    let mut again = env.events(&format!("/{id}/events?from=3")).await;
    assert_eq!(again.next().await.unwrap()["event"]["type"], "tool_started");
    go.notify_one();
    assert_eq!(again.until("finished").await["event"]["answer"], "waited");
    env.shut_down().await;
}

#[tokio::test]
async fn a_call_waits_for_a_person() {
    let (folder, tool) = (tempdir().unwrap(), adding());
    let env = Env::open(folder.path(), agent(&json!({ "approval": ["a*"] }), once("add"), &[&tool])).await;
    for (approve, answer, calls) in [(true, "2", 1), (false, "too risky", 1)] {
        let mut listener = env.start(json!({ "input": "go" })).await;
        let id = listener.until("run_started").await["event"]["run"].as_str().unwrap().to_owned();
        assert_eq!(listener.until("approval_asked").await["event"]["arguments"], json!({ "n": 1 }));
        let (_, view) = env.get(&format!("/{id}")).await;
        assert_eq!(view["state"]["status"], "waiting_for_approval");
        assert_eq!(view["approvals"], json!([{ "call_id": "1.0", "tool": "add", "arguments": { "n": 1 } }]));
        let wrong = env.post(&format!("/{id}/approve"), &json!({ "call_id": "1.7", "approve": true })).await;
        assert_eq!((wrong.0, &wrong.1["error"]["code"]), (409, &json!("call_not_asked")));
        let body = json!({ "call_id": "1.0", "approve": approve, "note": "too risky" });
        assert_eq!(env.post(&format!("/{id}/approve"), &body).await.0, 200);
        let said = listener.until("finished").await["event"]["answer"].as_str().unwrap().to_owned();
        assert!(said.contains(answer), "{said}");
        assert_eq!(tool.called(), calls);
        let late = env.post(&format!("/{id}/approve"), &body).await;
        assert_eq!((late.0, &late.1["error"]["code"]), (409, &json!("run_not_live")));
    }
    env.shut_down().await;
}

#[tokio::test]
async fn a_run_is_cancelled_with_what_is_on_its_way() {
    struct Gone(Arc<AtomicBool>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let (folder, gone) = (tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
    let flag = gone.clone();
    let tool = Acting::new("hang", move |_| {
        let held = Gone(flag.clone());
        async move {
            let _held = held;
            std::future::pending().await
        }
    });
    let env = Env::open(folder.path(), agent(&json!({}), once("hang"), &[&tool])).await;
    let mut listener = env.start(json!({ "input": "go" })).await;
    let id = listener.until("run_started").await["event"]["run"].as_str().unwrap().to_owned();
    listener.until("tool_started").await;
    let (status, _) = env.post(&format!("/{id}/cancel"), &json!({})).await;
    assert_eq!(status, 200);
    let last = listener.rest().await.pop().unwrap();
    assert_eq!((&last["event"]["type"], &last["event"]["why"]), (&json!("failed"), &json!("cancelled")));
    assert!(gone.load(Ordering::SeqCst), "the events end after what was on its way");
    assert_eq!(env.post(&format!("/{id}/cancel"), &json!({})).await.0, 409);
    env.shut_down().await;
}

#[tokio::test]
async fn time_of_a_call_and_of_a_run_is_bounded() {
    let folder = tempdir().unwrap();
    let tool = Acting::new("hang", async |_| std::future::pending().await);
    let env = Env::open(folder.path(), agent(&json!({ "tool_timeout_s": 1 }), once("hang"), &[&tool])).await;
    let said = env.start(json!({ "input": "go" })).await.until("finished").await;
    assert!(said["event"]["answer"].as_str().unwrap().contains("given up after 1 seconds"), "{said}");
    env.shut_down().await;

    let env = Env::open(folder.path(), agent(&json!({}), |_| Turn::Hang, &[])).await;
    let mut listener = env.start(json!({ "input": "go", "budgets": { "wall_time_s": 1 } })).await;
    assert_eq!(listener.until("failed").await["event"]["why"], "wall_time");
    env.shut_down().await;
}

#[tokio::test]
async fn a_tool_that_floods_is_cut_and_one_that_panics_is_an_error() {
    let folder = tempdir().unwrap();
    let flood = Acting::new("flood", async |_| Outcome::done("spam ".repeat(1_000_000)));
    let panics = Acting::new("panics", async |_| panic!("a broken tool"));
    for (tool, wanted) in [("flood", "4998976 bytes left out"), ("panics", "it panicked")] {
        let env =
            Env::open(folder.path(), agent(&json!({ "tool_output_bytes": 1024 }), once(tool), &[&flood, &panics]))
                .await;
        let mut listener = env.start(json!({ "input": "go" })).await;
        let told = listener.until("tool_finished").await["event"]["outcome"]["content"].as_str().unwrap().to_owned();
        assert!(told.contains(wanted) && told.len() < 1200, "{told}");
        listener.until("finished").await;
        env.shut_down().await;
    }
}

#[tokio::test]
async fn a_server_of_tools_that_does_not_end_is_not_waited_for_beyond_the_patience() {
    let folder = tempdir().unwrap();
    let mut agent = agent(&json!({}), once("add"), &[&adding()]);
    // Nobody else comes.
    agent.toolbox = agent.toolbox.with(Closing::new("stuck", &Arc::new(Barrier::new(2))), LONG);
    let env = Env::open(folder.path(), agent).await;
    env.start(json!({ "input": "go" })).await.until("finished").await;
    let left = tokio::time::timeout(LONG, env.runs.shut_down(Duration::from_millis(50))).await;
    assert_eq!(left, Ok(0));
}

#[tokio::test]
async fn a_model_that_fails_is_asked_again_and_then_not() {
    let folder = tempdir().unwrap();
    let broken = |_: &Ask| Turn::Fail(ChatError::Retryable("the line broke".into()));
    let env = Env::open(folder.path(), agent(&json!({}), broken, &[])).await;
    let kinds = env.start(json!({ "input": "go" })).await.kinds().await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "model_failed").count(), 3, "{kinds:?}");
    assert_eq!(kinds.last().unwrap(), "failed");
    env.shut_down().await;
}

#[tokio::test]
async fn a_run_goes_on_in_the_next_process() {
    let (folder, first) = (tempdir().unwrap(), Acting::new("add", async |_| std::future::pending().await));
    let env = Env::open(folder.path(), agent(&json!({}), once("add"), &[&first])).await;
    let mut listener = env.start(json!({ "input": "go" })).await;
    let id = listener.until("run_started").await["event"]["run"].as_str().unwrap().to_owned();
    listener.until("tool_started").await;
    let (other, none) = (agent(&json!({}), once("add"), &[]), Limits::default());
    let found = mloc_agent::Runs::open(folder.path(), other, none).err().unwrap().to_string();
    assert!(found.contains("another process"), "{found}");
    env.runs.shut_down(support::LONG).await;
    assert_eq!(listener.kinds().await.len(), 0, "the events end without an end of the run");
    let (_, view) = env.get(&format!("/{id}")).await;
    assert_eq!((&view["state"]["status"], &view["live"]), (&json!("running"), &json!(false)));
    assert_eq!(env.post("", &json!({ "input": "more" })).await.0, 503);
    drop(env);

    let tool = adding();
    let env = Env::open(folder.path(), agent(&json!({}), once("add"), &[&tool])).await;
    let mut listener = env.events(&format!("/{id}/events")).await;
    let said = listener.until("finished").await["event"]["answer"].as_str().unwrap().to_owned();
    assert!(said.contains("outcome of this call is unknown"), "{said}");
    assert_eq!(tool.called(), 0);
    env.shut_down().await;
    let env = Env::open(folder.path(), agent(&json!({}), once("add"), &[&tool])).await;
    assert_eq!(env.get(&format!("/{id}")).await.1["live"], false, "what is over does not go on");
    env.shut_down().await;
}

#[tokio::test]
async fn requests_that_will_not_do_are_refused_in_openais_form() {
    let folder = tempdir().unwrap();
    let limits = Limits { live: 1, kept: 10 };
    let env = Env::limited(folder.path(), agent(&json!({}), |_| Turn::Hang, &[]), limits).await;
    let cases = [
        (json!({ "input": "" }), 400, "it is empty"),
        (json!({ "input": 3 }), 400, "write a text, or a list"),
        (json!({ "input": [{ "role": "tool", "content": "x" }] }), 400, "agent's own"),
        (json!({ "input": "go", "strem": true }), 400, "unknown field `strem`"),
        (json!({}), 400, "missing field `input`"),
    ];
    for (body, status, wanted) in cases {
        let (found, answer) = env.post("", &body).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(found == status && message.contains(wanted), "{body}: {found} {message}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
    }
    let conversation = json!([
        { "role": "user", "content": "hello" }, { "role": "assistant", "content": "hi" }, { "role": "user", "content": "go" },
    ]);
    assert_eq!(env.post("", &json!({ "input": conversation })).await.0, 202);
    let (status, answer) = env.post("", &json!({ "input": "one more" })).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    for rest in ["/run-none", "/run-none/events", "/..%2Flock", "/lock"] {
        let (status, answer) = env.get(rest).await;
        assert_eq!((status, &answer["error"]["code"]), (404, &json!("run_not_found")), "{rest}");
    }
    let elsewhere = env.url("").replace("helper", "other");
    assert_eq!(env.client.get(elsewhere).send().await.unwrap().status().as_u16(), 404);
    env.shut_down().await;
}

#[tokio::test]
async fn logs_that_are_torn_or_damaged_hold_nobody_up() {
    let folder = tempdir().unwrap();
    let log = |run: &str| mloc_agent::log::path(folder.path(), run);
    // Killed before its first record was there; damaged; and torn, in the middle of a run.
    std::fs::write(log("run-a"), "{\"v\":1,\"n\":0,").unwrap();
    std::fs::write(log("run-b"), "nothing\nof the kind\n").unwrap();
    let env = Env::open(folder.path(), agent(&json!({}), |_| Turn::Hang, &[])).await;
    assert!(!log("run-a").exists());
    let (status, answer) = env.get("/run-b").await;
    assert_eq!((status, &answer["error"]["type"]), (500, &json!("server_error")));
    let mut listener = env.start(json!({ "input": "go" })).await;
    let id = listener.until("run_started").await["event"]["run"].as_str().unwrap().to_owned();
    listener.until("model_asked").await;
    env.shut_down().await;
    let whole = std::fs::read(log(&id)).unwrap();
    std::fs::write(log(&id), [whole.as_slice(), b"{\"v\":1,\"n\":2,\"at\":"].concat()).unwrap();
    let env = Env::open(folder.path(), agent(&json!({}), |_| Turn::Say("yes".into()), &[])).await;
    let kinds = env.events(&format!("/{id}/events")).await.kinds().await;
    let wanted = ["run_started", "model_asked", "resumed", "warned", "model_asked", "model_answered", "finished"];
    assert_eq!(kinds, wanted);
    env.shut_down().await;
}

#[tokio::test]
async fn logs_of_old_runs_are_forgotten() {
    let folder = tempdir().unwrap();
    let limits = Limits { live: 4, kept: 2 };
    let env = Env::limited(folder.path(), agent(&json!({}), |_| Turn::Say("yes".into()), &[]), limits).await;
    for _ in 0..5 {
        env.start(json!({ "input": "go" })).await.until("finished").await;
    }
    assert_eq!(env.runs.shut_down(Duration::from_secs(60)).await, 0);
    assert_eq!(env.runs.list().unwrap().len(), 2);
}
