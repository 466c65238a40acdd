//! Programs that misbehave, on a real node: each is contained, and its end says what it was.

use std::fs;

use anyhow::{Context, ensure};
use mloc_tests::{Sandbox, command::children_of, python, skip};
use nix::{errno::Errno, sys::signal::killpg, unistd::Pid};
use serde_json::{Value, json};

const NODE: &str = "hardware: {cpu: '4', memory: 8GiB}\nmodules: {command: {enabled: true, sandbox: best-effort}}";

fn task(program: &str, more: &str) -> String {
    format!(
        "
apiVersion: mloc/v1
kind: TrainingTask
metadata: {{name: wild, owner: john-doe, project: llm-research}}
spec:
  taskType: command
  command: {}
  resources: {{hardware: {{cpu: 100m, memory: 128MiB}}}}
  retry: {{limit: 0}}
{more}
",
        json!(["python3", "-c", program])
    )
}

/// Hears no SIGTERM, and has offspring in every hiding place there is: in a session of its own, forked twice, with an
/// empty environment, and one that is another process every millisecond.
const WILD: &str = r#"
import os, signal, sys, time

signal.signal(signal.SIGTERM, signal.SIG_IGN)

def hide(work):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            work()
        os._exit(0)
    os.wait()

told, tell = os.pipe()

def say(name):
    # In one piece: others speak at the same time.
    os.write(1, f"here {name} {os.getpgrp()} {os.getpid()}\n".encode())
    os.write(tell, b".")

def bare():
    say("bare")
    os.execve(sys.executable, [sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"], {})

def quiet():
    say("quiet")
    time.sleep(1000)

def eel():
    say("eel")
    while True:
        if os.fork():
            os._exit(0)
        open(os.environ["MLOC_ARTIFACTS"] + "/eel", "w").write(str(os.getpid()))
        time.sleep(0.001)

for work in (bare, quiet, eel):
    hide(work)
say("first")
time.sleep(1000)
"#;

/// One that said that it is there: its group, which the eel keeps through all its lives, and its number.
struct Here {
    group: i32,
    pid: i32,
}

/// All of them, once they are there.
fn here(sandbox: &mut Sandbox, id: &str) -> anyhow::Result<Vec<Here>> {
    let mut all = Vec::new();
    let there = sandbox.until("all of them are there", |s| {
        let log = s.run(0, &["logs", id])?.out;
        let numbers = |line: &str| Some(line.strip_prefix("here ")?.split(' ').skip(1).flat_map(str::parse).collect());
        let said = log.lines().filter_map(numbers).filter_map(|numbers: Vec<i32>| match numbers[..] {
            [group, pid] => Some(Here { group, pid }),
            _ => None,
        });
        all = said.collect();
        Ok(all.len() == 4)
    });
    if let Err(error) = there {
        let (task, log) = (sandbox.run(0, &["task", id])?.out, sandbox.run(0, &["logs", id])?.out);
        return Err(error.context(format!("the task:\n{task}\nits log:\n{log}")));
    }
    Ok(all)
}

/// As [`here`], and none of them is gone yet.
fn here_to_stay(sandbox: &mut Sandbox, id: &str) -> anyhow::Result<Vec<Here>> {
    let all = here(sandbox, id)?;
    ensure!(
        all.iter().all(|one| killpg(Pid::from_raw(one.group), None).is_ok()),
        "they are not there: nothing is shown"
    );
    Ok(all)
}

fn lives(pid: i32) -> bool {
    // A dead one may wait for whoever reaps it.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

/// Nothing of it is left: none of those that spoke, none of their groups, nothing below the daemon, and no process with
/// the attempt's mark.
fn gone(sandbox: &mut Sandbox, id: &str, all: &[Here]) -> anyhow::Result<()> {
    let left: Vec<_> = all.iter().map(|one| one.pid).filter(|pid| lives(*pid)).collect();
    ensure!(left.is_empty(), "{left:?} live on");
    ensure!(children_of(sandbox.pid(0)?)?.iter().all(|pid| !lives(pid.as_raw())), "the daemon has children");
    let marked = format!("attempts/{id}");
    for entry in fs::read_dir("/proc")?.flatten() {
        // Whoever ended meanwhile has none; of others' there is nothing to see.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        ensure!(!String::from_utf8_lossy(&environment).contains(&marked), "{} lives on", entry.path().display());
    }
    // The dead leave their groups when they are reaped.
    sandbox.until("their groups are empty", |_| {
        Ok(all.iter().all(|one| killpg(Pid::from_raw(one.group), None) == Err(Errno::ESRCH)))
    })
}

#[test]
fn a_cancel_ends_every_process_however_well_it_hides() -> anyhow::Result<()> {
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = Sandbox::new(&[])?;
    sandbox.start("one", NODE)?;
    let id = sandbox.submit(0, &task(WILD, "  timeouts: {stop: 1s}"))?;
    let pids = here_to_stay(&mut sandbox, &id)?;
    ensure!(sandbox.run(0, &["cancel", &id])?.code == 0);
    sandbox.until_state(0, &id, &["CANCELLED"])?;
    sandbox.until("the node is idle again", |s| {
        let nodes = s.run(0, &["nodes", "-o", "json"])?.json()?;
        Ok(nodes[0]["state"] == "IDLE" && children_of(s.pid(0)?)?.iter().all(|pid| !lives(pid.as_raw())))
    })?;
    gone(&mut sandbox, &id, &pids)?;
    assert!(sandbox.log(0)?.contains("did not stop in time"), "it was killed, and that is said");
    Ok(())
}

#[test]
fn a_time_that_is_over_ends_every_process_and_says_so() -> anyhow::Result<()> {
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = Sandbox::new(&[])?;
    sandbox.start("one", NODE)?;
    let id = sandbox.submit(0, &task(WILD, "  timeouts: {run: 5s, stop: 1s}"))?;
    let pids = here_to_stay(&mut sandbox, &id)?;
    let failed = sandbox.until_state(0, &id, &["FAILED"])?;
    assert!(failed["reason"].as_str().is_some_and(|r| r.contains("timeouts.run of 5 s is over")), "{failed}");
    gone(&mut sandbox, &id, &pids)
}

#[test]
fn what_a_program_leaves_running_goes_with_it() -> anyhow::Result<()> {
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = Sandbox::new(&[])?;
    sandbox.start("one", NODE)?;
    // It ends when all of them have said that they are there.
    let leaves =
        WILD.replace("say(\"first\")\ntime.sleep(1000)", "say(\"first\")\nfor _ in range(4): os.read(told, 1)");
    let id = sandbox.submit(0, &task(&leaves, ""))?;
    let pids = here(&mut sandbox, &id)?;
    sandbox.until_state(0, &id, &["COMPLETED"])?;
    gone(&mut sandbox, &id, &pids)?;
    let log = sandbox.run(0, &["logs", &id])?.out;
    assert!(log.contains("the program has ended and left "), "{log}");
    Ok(())
}

#[test]
fn a_loop_of_forks_is_ended_before_it_fills_the_node() -> anyhow::Result<()> {
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = Sandbox::new(&[])?;
    sandbox.start("one", &NODE.replace("enabled: true,", "enabled: true, processes: 40,"))?;
    // 128 of them.
    let swarm =
        "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nfor _ in range(7): os.fork()\ntime.sleep(1000)";
    let id = sandbox.submit(0, &task(swarm, ""))?;
    let failed = sandbox.until_state(0, &id, &["FAILED"])?;
    let said = failed["reason"].as_str().unwrap_or_default();
    assert!(said.contains("processes at once") && said.contains("modules.command.processes"), "{failed}");
    gone(&mut sandbox, &id, &[])
}

#[test]
fn a_daemon_that_is_killed_takes_its_programs_with_it() -> anyhow::Result<()> {
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = Sandbox::new(&[])?;
    sandbox.start("one", NODE)?;
    let id = sandbox.submit(0, &task(WILD, ""))?;
    let pids = here_to_stay(&mut sandbox, &id)?;
    sandbox.kill(0)?;
    sandbox.until("they are gone without anybody's help", |_| Ok(!pids.iter().any(|one| lives(one.pid))))?;
    sandbox.until("nor is any of their groups", |_| {
        Ok(pids.iter().all(|one| killpg(Pid::from_raw(one.group), None) == Err(Errno::ESRCH)))
    })
}

/// A gigabyte, once in lines and once in a single one, then the most memory that anything between it and the log took.
const FLOOD: &str = r#"
import os, sys

piece = b"x" * ((1 << 20) - 1) + (b"\n" if "LINES" in os.environ else b"x")
for _ in range(1024):
    sys.stdout.buffer.write(piece)
print()
peak = lambda pid: [line for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM")][0].split()[1]
parent = os.getppid()
daemon = [line for line in open(f"/proc/{parent}/status") if line.startswith("PPid")][0].split()[1]
print("the end", peak(parent), peak(daemon))
"#;

#[test]
fn a_gigabyte_on_stdout_is_taken_and_bounded() -> anyhow::Result<()> {
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = Sandbox::new(&[])?;
    sandbox.start("one", NODE)?;
    for lines in ["", "  env: {LINES: yes}"] {
        let id = sandbox.submit(0, &task(FLOOD, lines))?;
        sandbox.until_state(0, &id, &["COMPLETED"])?;
        let log = sandbox.run(0, &["logs", &id])?.out;
        assert!(log.len() < 34 << 20, "{} bytes", log.len());
        let left_out =
            if lines.is_empty() { "bytes of this line are left out" } else { "bytes left out: the log is bounded" };
        assert!(log.contains(left_out), "what is missing is said");
        let end = log.lines().find_map(|line| line.strip_prefix("the end ")).context("the end of a flood is kept")?;
        let peaks: Vec<u64> = end.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        assert!(peaks.iter().all(|kib| *kib < 512 << 10), "{peaks:?} KiB");
        assert!(peaks[0] < 128 << 10, "{peaks:?} KiB for the process that reads it");
    }
    Ok(())
}

/// Tries what a program may not, and what it must be able to; a line each.
const TRESPASSER: &str = r#"
import json, multiprocessing, os, pathlib

def attempt(name, work):
    try:
        work()
        print("did", name)
    except OSError as error:
        print("refused", name, error.errno)

artifacts = os.environ["MLOC_ARTIFACTS"]
data = pathlib.Path(artifacts).parents[2]
outside = os.environ["OUTSIDE"]
read = lambda path: open(path, "rb").read(1)
attempt("write", lambda: open(outside, "a").write("x"))
attempt("cut", lambda: os.truncate(outside, 0))
attempt("remove", lambda: os.unlink(outside))
attempt("beside", lambda: open(outside + ".new", "w"))
attempt("token", lambda: read(data / "join.token"))
attempt("journal", lambda: read(data / "journal.redb"))
attempt("run file", lambda: read(data / pathlib.Path(artifacts).parent / "run.json"))
attempt("secret", lambda: read(os.environ["SECRET"]))
attempt("result", lambda: open(pathlib.Path(artifacts).parent / "result.json", "w"))
attempt("checkpoint", lambda: os.mkdir(next((data / "checkpoints").iterdir()) / "step-0000000099"))
attempt("rename", lambda: os.rename(os.environ["MLOC_CHECKPOINTS"], artifacts + "/x"))
attempt("kernel", lambda: open("/proc/sys/kernel/core_pattern", "w"))
attempt("signal", lambda: os.kill(os.getppid(), 9))
attempt("environment", lambda: read(f"/proc/{os.getppid()}/environ"))
for name in ("MLOC_ARTIFACTS", "MLOC_CHECKPOINTS", "HOME", "TMPDIR"):
    attempt("own " + name, lambda: open(os.environ[name] + "/x", "w"))
attempt("own code", lambda: open("x", "w"))
attempt("own task", lambda: json.load(open(os.environ["MLOC_TASK"])))
attempt("own null", lambda: open("/dev/null", "w"))
attempt("own lock", multiprocessing.Lock)
attempt("own move", lambda: os.rename("x", artifacts + "/moved"))
os.symlink(outside, artifacts + "/link")
"#;

#[test]
fn a_program_reads_no_secrets_and_writes_nowhere_but_in_its_folders() -> anyhow::Result<()> {
    if !python::python()? {
        return Ok(());
    }
    let mut sandbox = Sandbox::new(&[])?;
    let (outside, secret) = (sandbox.dir.path().join("outside"), sandbox.dir.path().join("secret"));
    fs::write(&outside, "whole")?;
    fs::write(&secret, "hunter2")?;
    sandbox.start("one", &format!("{NODE}\nsecrets: {{TOKEN: {}}}", secret.display()))?;
    if sandbox.log(0)?.contains("programs of users run here and can do whatever") {
        return skip("no Landlock on this machine");
    }
    let env = format!("  env: {{OUTSIDE: {}, SECRET: {}}}", outside.display(), secret.display());
    let id = sandbox.submit(0, &task(TRESPASSER, &env))?;
    let done = sandbox.until_state(0, &id, &["COMPLETED"])?;
    let log = sandbox.run(0, &["logs", &id])?.out;
    assert!(log.contains("the program may write in ") && log.contains(", and nowhere else"), "{log}");
    let did: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("did ")).collect();
    assert_eq!(did.iter().filter(|what| !what.starts_with("own ")).count(), 0, "{log}");
    assert_eq!(did.len(), 9, "{log}");
    let refused = |line: &&str| line.starts_with("refused ") && (line.ends_with(" 13") || *line == "refused signal 1");
    assert_eq!(log.lines().filter(refused).count(), 14, "EACCES for files, EPERM for a signal: {log}");
    assert_eq!(fs::read_to_string(&outside)?, "whole");
    assert!(!outside.with_extension("new").exists());
    let published: Vec<&Value> =
        done["result"]["artifacts"].as_array().into_iter().flatten().map(|artifact| &artifact["path"]).collect();
    assert_eq!(published, ["moved", "x"], "a link is no artifact");
    assert!(log.contains("not published") && log.contains("link"), "{log}");
    Ok(())
}
