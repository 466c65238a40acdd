//! A node on platforms: probed before it has joined, under uids nobody knows, without files that every machine has.
//! What takes namespaces runs by `unshare` and says SKIP where there are none.

mod support;

use std::{
    io::Write,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Output, Stdio},
};

use support::{Daemon, command, mloc, signal, text, until};

/// A well-formed token of a mesh that is nowhere.
fn token() -> String {
    text(&mloc(&["token", "--new-mesh"]).stdout).trim().to_owned()
}

fn healthz(data: &Path, flags: &[&str]) -> Output {
    let args = [&["healthz", "--data-dir", data.to_str().unwrap()], flags].concat();
    command(&args).output().unwrap()
}

/// Says that a case is left out, past the harness that keeps what tests print to itself.
fn skip(why: &str) {
    let here = std::thread::current();
    let line = format!("SKIP {}: {why}", here.name().unwrap_or("a test"));
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
    assert!(std::env::var_os("MLOC_NO_SKIP").is_none_or(|v| v != "1"), "{line}, and MLOC_NO_SKIP=1 forbids it");
}

/// `sh -c SCRIPT mloc ARGS` as root of its own namespaces; `None`, and a SKIP, where that can't be had.
fn unshared(flags: &[&str], script: &str, args: &[String]) -> Option<Command> {
    let flags = [&["--user", "--map-root-user"], flags].concat();
    let can = Command::new("unshare").args(&flags).arg("true").stderr(Stdio::null()).status();
    if !can.is_ok_and(|status| status.success()) {
        skip("no namespaces for this user here");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(&flags).args(["sh", "-c", script, env!("CARGO_BIN_EXE_mloc")]).args(args);
    command.env_remove("MLOC_JOIN_TOKEN").env("RUST_LOG", "info");
    Some(command)
}

#[test]
fn a_node_that_waits_for_its_seed_lives_says_so_and_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let said = healthz(&data, &[]);
    assert_eq!(said.status.code(), Some(1), "nothing has started");
    assert!(text(&said.stderr).contains("no node has started with this data directory"), "{}", text(&said.stderr));

    // Port 1 answers nobody.
    let args = Daemon::args(dir.path(), &["join", "127.0.0.1:1"], &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut node = Daemon::spawn(dir.path(), command(&args).env("MLOC_JOIN_TOKEN", token()));
    until("it answers", || {
        node.lives();
        (healthz(&data, &[]).status.code() == Some(0)).then_some(())
    });
    until("it says what it waits for", || {
        let ready = node.get("/readyz");
        assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
        (ready.contains("not ready: joining: waiting for a seed") && ready.contains("127.0.0.1:1")).then_some(())
    });
    assert!(node.get("/healthz").starts_with("HTTP/1.1 200"));
    let not = healthz(&data, &["--ready"]);
    assert_eq!(not.status.code(), Some(1));
    assert!(text(&not.stderr).contains("joining: waiting for a seed"), "{}", text(&not.stderr));
    let tasks = node.get("/api/v1/tasks");
    let head = tasks.to_lowercase();
    for part in ["http/1.1 503", "retry-after: 1", "content-type: application/problem+json", "joining: waiting"] {
        assert!(head.contains(part), "{part}: {tasks}");
    }
    let verb = node.ask(&["tasks"]);
    assert_eq!(verb.status.code(), Some(4), "the mesh can't answer just now");
    assert!(text(&verb.stderr).contains("does not serve yet: joining"), "{}", text(&verb.stderr));

    // Another one on this data directory is told so, and takes nothing from the first.
    let second = command(&args).env("MLOC_JOIN_TOKEN", token()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another node runs on the data directory"), "{}", text(&second.stderr));
    assert_eq!(healthz(&data, &[]).status.code(), Some(0));

    assert_eq!(node.stop(), Some(0), "it may be stopped before it has joined");
    assert_eq!(healthz(&data, &[]).status.code(), Some(1), "nobody answers any more");
}

#[test]
fn a_node_that_serves_is_ready_and_its_token_is_found_by_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let node = Daemon::start(dir.path(), &["up"], &["--name", "a"], &[]);
    let data = dir.path().join("data");
    let file = dir.path().join("node.yaml");
    std::fs::write(&file, format!("dataDir: {}\n", data.display())).unwrap();
    let file = file.to_str().unwrap();
    for args in [vec!["healthz"], vec!["healthz", "--ready"]] {
        assert_eq!(mloc(&[&args[..], &["--config", file]].concat()).status.code(), Some(0), "{args:?}");
        assert_eq!(command(&args).env("MLOC_CONFIG", file).output().unwrap().status.code(), Some(0), "{args:?}");
    }
    let token = |args: &[&str]| text(&mloc(&[&["token", "john-doe"], args].concat()).stdout);
    let by_file = token(&["--config", file]);
    assert!(by_file.starts_with("john-doe."), "{by_file}");
    assert_eq!(by_file, token(&["--data-dir", data.to_str().unwrap()]));
    // The flag stands above the file, which need not even be one.
    assert_eq!(by_file, token(&["--data-dir", data.to_str().unwrap(), "--config", "/no/such"]));
    assert_eq!(mloc(&["token", "john-doe", "--config", "/no/such"]).status.code(), Some(2));
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_seeds_name_is_resolved_again_at_each_try() {
    let dir = tempfile::tempdir().unwrap();
    let a = Daemon::start(&dir.path().join("a"), &["up"], &["--name", "a"], &[]);
    let gossip = a.address("gossip");
    let (_, port) = gossip.rsplit_once(':').unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    // A name that /etc/hosts does not know is asked of nobody outside: nothing listens there.
    let resolv = dir.path().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n").unwrap();
    let mount = |file: &Path, over: &str| format!("mount --bind {} {over}", file.display());
    let (hosts_over, resolv_over) = (mount(&hosts, "/etc/hosts"), mount(&resolv, "/etc/resolv.conf"));
    let script = format!("{hosts_over} && {resolv_over} && exec \"$0\" \"$@\"");
    let b = dir.path().join("b");
    let args = Daemon::args(&b, &["join", &format!("seed-0.mloc.test:{port}")], &["--name", "b"]);
    let Some(mut command) = unshared(&["--mount"], &script, &args) else { return };
    let mut b = Daemon::spawn(&b, command.env("MLOC_JOIN_TOKEN", a.read("data/join.token").trim()));
    until("the name is not known", || {
        b.lives();
        let known = b.dir.join("data/node.json").exists();
        (known && b.get("/readyz").contains("seed-0.mloc.test")).then_some(())
    });
    // Written in place: the mount is of the file, not of its name.
    std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.9 seed-0.mloc.test\n").unwrap();
    until("the name is that of a machine without a node", || b.get("/readyz").contains("127.0.0.9").then_some(()));
    std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.1 seed-0.mloc.test\n").unwrap();
    b.until_it_greets();
    until("it has heard of the leader", || b.get("/readyz").starts_with("HTTP/1.1 200").then_some(()));
}

#[test]
fn without_resolv_conf_a_node_goes_on_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("etc");
    std::fs::create_dir(&empty).unwrap();
    let script = format!("mount --bind {} /etc && exec \"$0\" \"$@\"", empty.display());
    let args = Daemon::args(dir.path(), &["up"], &["--name", "a"]);
    let Some(mut command) = unshared(&["--mount"], &script, &args) else { return };
    let mut node = Daemon::spawn(dir.path(), &mut command);
    node.until_it_greets();
    assert!(node.read("err").contains("/etc/resolv.conf can't be used"), "{}", node.read("err"));
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn as_the_first_process_of_a_container_it_reaps_what_others_leave() {
    let dir = tempfile::tempdir().unwrap();
    let args = Daemon::args(dir.path(), &["up"], &["--name", "a"]);
    let flags = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let Some(mut command) = unshared(&flags, "exec \"$0\" \"$@\"", &args) else { return };
    let mut node = Daemon::spawn(dir.path(), &mut command);
    node.until_it_greets();
    let children = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()).collect::<Vec<_>>()
    };
    let first = *children(node.child.id()).first().expect("unshare has the first process as its child");
    let daemon = children(first);
    assert_eq!(daemon.len(), 1, "the first process has the daemon and nothing else");
    // An orphan: its parent is gone when `nsenter` returns.
    let enter = ["--target", &first.to_string(), "--user", "--pid", "--mount", "sh", "-c", "(sleep 3 & )"];
    assert!(Command::new("nsenter").args(enter).status().unwrap().success());
    until("the orphan came to the first process", || (children(first).len() == 2).then_some(()));
    until("the orphan is reaped", || (children(first) == daemon).then_some(()));
    // As `docker stop`: to the first process alone, and the daemon's own code comes back.
    let ended = Command::new("kill").args(["-TERM", &first.to_string()]).status().unwrap();
    assert!(ended.success());
    assert_eq!(node.child.wait().unwrap().code(), Some(0), "{}", node.read("err"));
    assert!(node.read("err").contains("stopping"), "{}", node.read("err"));
}

/// OpenShift and its like give each pod a uid of their own, in group 0; a root file system that is read-only is what
/// deploy/check runs the image with.
#[test]
fn an_unknown_uid_without_a_home_says_where_it_would_write_and_works_where_it_may() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return skip("another uid takes root");
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for folder in [dir.path(), data.as_path()] {
        chown(folder, Some(1_234_567), Some(0)).unwrap();
    }
    // Some place where that uid may run it from.
    let program = dir.path().join("mloc");
    std::fs::copy(env!("CARGO_BIN_EXE_mloc"), &program).unwrap();
    let somebody = |args: &[String]| {
        let mut command = Command::new(&program);
        command.args(args).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").uid(1_234_567).gid(0);
        command
    };
    let listen = Daemon::args(dir.path(), &["up"], &["--name", "a"]);
    let nowhere: Vec<String> =
        listen.iter().filter(|a| *a != "--data-dir" && **a != data.display().to_string()).cloned().collect();
    for home in [None, Some("/proc/nowhere")] {
        let mut command = somebody(&nowhere);
        let said = command.envs(home.map(|home| ("HOME", home))).output().unwrap();
        assert_eq!(said.status.code(), Some(1));
        assert!(text(&said.stderr).contains("--data-dir"), "{}", text(&said.stderr));
    }
    let mut node = Daemon::spawn(dir.path(), &mut somebody(&listen));
    node.until_it_greets();
    let task = node.ask(&["submit", "--wait", &support::configs("echo.yaml")]);
    assert_eq!(task.status.code(), Some(0), "{}{}", text(&task.stderr), node.read("err"));
    signal(&node.child, "-TERM");
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
}
