//! The command line as a user meets it: what it says, and the exit code it ends with.

mod support;

use std::{fs::File, process::Stdio};

use support::{Daemon, command, configs, mloc, signal, text, until};

#[test]
fn a_node_that_does_not_answer_is_exit_code_4_and_the_text_says_how_to_name_another() {
    for verb in [&["tasks"][..], &["logs", "-f", "task-1"]] {
        let ran = mloc(verb);
        assert_eq!(ran.status.code(), Some(4));
        let text = text(&ran.stderr);
        assert!(text.contains("127.0.0.1:1") && text.contains("MLOC_NODE"), "{text}");
    }
}

#[test]
fn a_wrong_file_is_exit_code_2_before_anything_is_asked() {
    assert_eq!(mloc(&["submit", "/no/such/file.yaml"]).status.code(), Some(2));
    assert_eq!(mloc(&["frobnicate"]).status.code(), Some(2));
    let ran = mloc(&["tasks", "--state", "paused"]);
    assert_eq!(ran.status.code(), Some(2));
    assert!(text(&ran.stderr).contains("CANCELLED"), "{}", text(&ran.stderr));
}

#[test]
fn a_wrong_configuration_is_exit_code_2_and_founds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = |flags: &[&str], env: &[(&str, &str)]| {
        let args = [&["up", "--data-dir", data.to_str().unwrap(), "--rest-bind", "127.0.0.1:0"], flags].concat();
        let ran = command(&args).envs(env.iter().copied()).output().unwrap();
        assert_eq!(ran.status.code(), Some(2), "{flags:?} {env:?}: {}", text(&ran.stderr));
        text(&ran.stderr)
    };
    assert!(up(&["--config", "/no/such.yaml"], &[]).contains("/no/such.yaml"));
    assert!(up(&["--volume", "here"], &[]).contains("NAME=PATH"));
    assert!(up(&["--token-file", "/no/such"], &[]).contains("/no/such"));
    let said = up(&["--advertise", "a:b"], &[]);
    assert!(said.contains("--advertise") && said.contains("a:b"), "{said}");
    assert!(up(&[], &[("MLOC_PROFILE", "moon")]).contains("moon"));
    assert!(up(&[], &[("MLOC_JOIN_TOKEN", "secret")]).contains("mloc1-"));
    for (yaml, says) in [
        ("rest: {advertise: 'a:1'}", "advertise"),
        ("hardware: {cpu: lots}", "hardware.cpu: `lots`"),
        ("hardware: {simulated: {gpus: [{type: a, memory: '40', count: 1}]}}", "40GiB"),
        ("modules: {offer: [sfft]}", "sfft"),
        ("modules: {offer: [command]}", "modules.command.enabled"),
        ("secrets: {hf: /no/such}", "/no/such"),
        ("timing: {leaseMs: 1}", "leaseMs"),
    ] {
        let file = dir.path().join("node.yaml");
        std::fs::write(&file, yaml).unwrap();
        let said = up(&["--config", file.to_str().unwrap()], &[]);
        assert!(said.contains(says), "{yaml}: {said}");
    }
    assert!(!data.exists(), "nothing was founded");
}

#[test]
fn a_join_token_for_a_mesh_to_come_and_a_users_token_are_two_things() {
    let minted = mloc(&["token", "--new-mesh"]);
    let token = text(&minted.stdout);
    assert!(minted.status.success() && token.starts_with("mloc1-") && token.trim().len() > 70, "{token}");
    assert_ne!(mloc(&["token", "--new-mesh"]).stdout, minted.stdout);
    assert_eq!(mloc(&["token"]).status.code(), Some(2));
    assert_eq!(mloc(&["token", "john-doe", "--new-mesh"]).status.code(), Some(2));
}

#[test]
fn a_flag_stands_above_its_variable_and_that_above_the_file_and_a_restart_greets_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.yaml");
    std::fs::write(&file, "name: in-file\n").unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let founder = Daemon::start(dir.path(), &["up"], &config, &[]);
    let greeting = founder.greeting();
    for says in [
        "node     in-file ",
        "(founded just now)",
        "MLOC_JOIN_TOKEN=$(cat ",
        "safety   survives 0 failures of voters now: one node",
    ] {
        assert!(greeting.contains(says), "{says}: {greeting}");
    }
    assert!(!greeting.contains("mloc1-"), "standard output is no terminal here but somebody's log: {greeting}");
    assert_eq!(founder.stop(), Some(0));
    for (flags, name) in [(vec![], "in-env"), (vec!["--name", "in-flag"], "in-flag")] {
        let flags = [&config[..], &flags].concat();
        let node = Daemon::start(dir.path(), &["up"], &flags, &[("MLOC_NAME", "in-env")]);
        let greeting = node.greeting();
        assert!(greeting.contains(&format!("node     {name} ")), "{greeting}");
        assert!(!greeting.contains("founded") && !greeting.contains("mloc1-"), "{greeting}");
        let nodes = text(&node.ask(&["nodes"]).stdout);
        assert!(nodes.contains(name), "{nodes}");
        // Renamed since it was founded: both names are its own.
        for known in [name, "in-file"] {
            let drained = node.ask(&["drain", known]);
            assert!(text(&drained.stdout).contains("DRAINING"), "{known}: {}", text(&drained.stderr));
            assert_eq!(node.ask(&["drain", "--off", known]).status.code(), Some(0));
        }
        assert_eq!(node.stop(), Some(0));
    }
}

#[test]
fn a_node_that_joins_hears_what_the_mesh_survives_and_claims_no_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let a = Daemon::start(&dir.path().join("a"), &["up"], &["--name", "a"], &[]);
    let token = a.read("data/join.token");
    let seed = a.address("gossip");
    let env = [("MLOC_JOIN_TOKEN", token.trim())];
    let b = Daemon::start(&dir.path().join("b"), &["join", &seed], &["--name", "b"], &env);
    assert!(b.greeting().contains("safety   "), "{}", b.greeting());
    until("it knows what two nodes survive", || {
        text(&b.ask(&["mesh"]).stdout).contains("two nodes have one voter").then_some(())
    });
    let stale = b.get("/api/v1/tasks?stale=true");
    assert!(stale.starts_with("HTTP/1.1 503") && stale.contains("holds no copy of the ledger"), "{stale}");
    assert!(a.get("/api/v1/tasks?stale=true").starts_with("HTTP/1.1 200"));
    assert!(a.get("/metrics").contains("\nmloc_tasks{state=\"PENDING\"} 0\n"));
    let metrics = b.get("/metrics");
    assert!(metrics.contains("\nmloc_leader 0\n") && !metrics.contains("mloc_tasks"), "{metrics}");
}

#[test]
fn explain_names_all_that_the_reference_task_lacks_on_a_small_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = Daemon::start(dir.path(), &["up"], &["--name", "small"], &[]);
    let submitted = node.ask(&["submit", "-o", "json", &configs("sft_mistral_7b.yaml")]);
    let accepted: serde_json::Value = serde_json::from_slice(&submitted.stdout).unwrap();
    let id = accepted["task"]["id"].as_str().unwrap();
    let explained = node.ask(&["explain", id]);
    let says = text(&explained.stdout);
    for lack in ["node small", "precision `fp16`", "cpu 8 asked", "GPU", "hint: "] {
        assert!(says.contains(lack), "{lack}: {says}");
    }
    assert!(text(&node.ask(&["task", id]).stdout).contains("PENDING"));
    let other = text(&node.ask(&["submit", &configs("sft_mistral_7b.yaml")]).stdout);
    let first = text(&node.ask(&["tasks", "--limit", "1", "--state", "pending"]).stdout);
    let cursor = first.split("--cursor ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a next page");
    let next = text(&node.ask(&["tasks", "--cursor", cursor]).stdout);
    assert!(first.contains(other.split(' ').next().unwrap()) && !first.contains(id), "newest first: {first}");
    assert!(next.contains(id) && !next.contains("--cursor"), "{next}");
    let waits = text(&node.get(&format!("/api/v1/tasks/{id}/logs")).into_bytes());
    assert!(waits.starts_with("HTTP/1.1 404") && waits.contains("it has not run on any node"), "{waits}");
}

#[test]
fn run_shows_the_usage_row_and_an_interrupted_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = |file: &str| {
        let mut command = command(&["run", file]);
        command.current_dir(dir.path());
        command
    };
    for _ in 0..2 {
        let ran = run(&configs("echo.yaml")).output().unwrap();
        let (out, err) = (text(&ran.stdout), text(&ran.stderr));
        assert!(ran.status.success(), "{err}");
        let rows: Vec<&str> = out.lines().filter(|line| line.starts_with("usage")).collect();
        assert_eq!(rows.len(), 1, "its own row and no other: {out}");
        assert!(rows[0].contains("john-doe/llm-research") && rows[0].contains("core-hours"), "{out}");
        assert!(!err.contains("goes on"), "{err}");
    }
    let long = dir.path().join("long.yaml");
    let echo = std::fs::read_to_string(configs("echo.yaml")).unwrap();
    std::fs::write(&long, echo.replace("steps: 5", "steps: 30\n    save_steps: 1")).unwrap();
    let long = long.display().to_string();
    let err = dir.path().join("err");
    let mut interrupted = run(&long).stdout(Stdio::null()).stderr(File::create(&err).unwrap()).spawn().unwrap();
    let said = || std::fs::read_to_string(&err).unwrap();
    until("it trains", || said().contains("RUNNING TRAINING").then_some(()));
    signal(&interrupted, "-INT");
    assert_eq!(interrupted.wait().unwrap().code(), Some(130));
    assert!(said().contains("the same command goes on"), "{}", said());
    let ran = run(&long).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(text(&ran.stderr).contains("was interrupted and goes on"), "{}", text(&ran.stderr));
}
