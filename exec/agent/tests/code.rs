//! Code of a model: what it can do, and what it cannot. On a machine whose kernel cannot hold it, the tool is refused.

mod support;

use std::{collections::BTreeMap, time::Duration};

use mloc_agent::{
    event::Outcome,
    settings::ToolSettings,
    tool::{Tool, code::CodeTool, fence},
};
use serde_json::{Value, json};
use support::settings;

fn tool(more: Value) -> Option<CodeTool> {
    if let Err(found) = fence::available() {
        println!("not run: {found}");
        return None;
    }
    let mut all =
        json!({ "type": "code", "name": "run", "file_bytes": 1 << 20, "memory_bytes": 256 << 20, "processes": 20 });
    for (name, value) in more.as_object().unwrap() {
        all[name] = value.clone();
    }
    match settings(&json!({ "tools": [all] })).tools.pop() {
        Some(ToolSettings::Code(code)) => Some(CodeTool::new(code, Duration::from_secs(20))),
        _ => panic!("it is no code tool"),
    }
}

async fn run(tool: &CodeTool, language: &str, code: &str) -> Outcome {
    let arguments = json!({ "language": language, "code": code });
    let called = tool.call(&arguments);
    tokio::time::timeout(support::LONG, called).await.expect("it has no end")
}

#[tokio::test]
async fn a_program_runs_and_its_folder_goes_with_it() {
    let Some(tool) = tool(json!({})) else { return };
    let ran =
        run(&tool, "python", "import os; open('x', 'w').write('y'); print(os.getcwd(), sorted(os.listdir()), 6 * 7)")
            .await;
    assert!(ran.ok && ran.content.contains("['main', 'x'] 42"), "{ran:?}");
    let folder = ran.content.split_whitespace().next().unwrap();
    assert!(!std::path::Path::new(folder).exists(), "{folder}");
    assert_eq!(run(&tool, "sh", "echo out; echo err >&2").await, Outcome::done("out\n\n[stderr]\nerr\n"));
    let failed = run(&tool, "sh", "echo before; exit 3").await;
    assert_eq!(failed, Outcome::failed("error: exit status: 3\nbefore\n"));
    assert_eq!(run(&tool, "sh", "true").await, Outcome::done("it printed nothing"));
    assert_eq!(run(&tool, "sh", "cat").await, Outcome::done("it printed nothing"), "its input is empty");
}

#[tokio::test]
async fn it_has_no_network_no_files_of_others_and_no_way_out() {
    let Some(tool) = tool(json!({})) else { return };
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&secret, "secret").unwrap();
    let path = secret.path().display();
    let denied: BTreeMap<&str, String> = BTreeMap::from([
        ("network", "import socket; socket.socket()".to_owned()),
        ("unix sockets", "import socket; socket.socket(socket.AF_UNIX)".to_owned()),
        ("files of others", format!("print(open('{path}').read())")),
        ("writing elsewhere", format!("open('{path}.new', 'w')")),
        ("processes", "open('/proc/1/environ').read()".to_owned()),
        ("a session", "import os; os.setsid()".to_owned()),
        ("namespaces", "import ctypes, os; r = ctypes.CDLL(None, use_errno=True).unshare(0x10000000); assert r == 0, ctypes.get_errno()".to_owned()),
        ("tracing", "import ctypes; r = ctypes.CDLL(None).ptrace(16, 1, 0, 0); assert r == 0".to_owned()),
        ("large files", "open('big', 'w').write('x' * (2 << 20))".to_owned()),
        ("memory", "x = bytearray(512 << 20)".to_owned()),
        ("signals", "import os, signal; os.kill(os.getppid(), 0)".to_owned()),
    ]);
    for (what, code) in denied {
        let ran = run(&tool, "python", &code).await;
        assert!(!ran.ok && !ran.content.contains("secret"), "{what}: {ran:?}");
    }
    let pair = run(&tool, "python", "import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))").await;
    assert_eq!(pair, Outcome::done("b'x'\n"), "a program may speak with itself");
    let threads = "import threading, subprocess; t = threading.Thread(target=lambda: print('t')); t.start(); t.join(); print(subprocess.check_output(['echo', 'p']))";
    let ran = run(&tool, "python", threads).await;
    assert!(ran.ok && ran.content.contains("t\n") && ran.content.contains("b'p\\n'"), "threads and processes: {ran:?}");
    let user = run(&tool, "python", "import os; print(os.getuid() >= 65520, len(os.getgroups()))").await;
    assert!(!is_own_user() || user.content == "True 0\n", "{user:?}");
}

#[tokio::test]
async fn nothing_of_it_outlives_its_call() {
    let Some(tool) = tool(json!({})) else { return };
    // What it leaves behind holds its output open, and is ended all the same.
    let ran = run(&tool, "sh", "sleep 3600 & echo $!").await;
    let left: i32 = ran.content.trim().parse().unwrap_or_else(|_| panic!("{ran:?}"));
    until_gone(left).await;
    // A call that is given up.
    let arguments = json!({ "language": "sh", "code": "sleep 3601; echo never" });
    let called = tool.call(&arguments);
    assert!(tokio::time::timeout(Duration::from_millis(300), called).await.is_err());
    let until = tokio::time::Instant::now() + support::LONG;
    while std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .any(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x003601\x00"))
    {
        assert!(tokio::time::Instant::now() < until, "it is still there");
        tokio::task::yield_now().await;
    }
}

async fn until_gone(process: i32) {
    let until = tokio::time::Instant::now() + support::LONG;
    while nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), None).is_ok() {
        assert!(tokio::time::Instant::now() < until, "{process} is still there");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn floods_and_swarms_end() {
    // Users of its own: what is killed counts until whoever takes in orphans has buried it.
    let Some(tool) = tool(json!({ "uid": 65_000 })) else { return };
    let flood = run(&tool, "sh", "yes").await;
    assert!(
        !flood.ok && flood.content.contains("printed more than"),
        "{}",
        flood.content.get(..200).unwrap_or(&flood.content)
    );
    if is_own_user() {
        let swarm = "import os, sys\nn = 0\ntry:\n  while n < 100:\n    if os.fork() == 0: os.read(0, 1) or __import__('time').sleep(100)\n    n += 1\nexcept OSError: pass\nprint(n)";
        let ran = run(&tool, "python", swarm).await;
        let started: u32 = ran.content.trim().parse().unwrap_or_else(|_| panic!("{ran:?}"));
        assert!(started < 20, "{started}");
    }
}

#[test]
fn a_language_without_a_whole_path_is_refused() {
    let all = json!({ "model": { "url": "http://h/v1", "name": "m" }, "tools": [
        { "type": "code", "name": "run", "interpreters": { "python": "python3" } },
    ] });
    let problems = mloc_agent::Settings::read(&all).unwrap_err();
    assert_eq!(problems[0].path, "tools[0].interpreters.python");
}

/// It runs as a user of its own.
fn is_own_user() -> bool {
    caps::has_cap(None, caps::CapSet::Permitted, caps::Capability::CAP_SETUID).unwrap()
}
