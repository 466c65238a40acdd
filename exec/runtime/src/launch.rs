//! Starts a child: the same binary, in a process group of its own, with a grant's environment and little else.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use mloc_exec::{
    checkpoint::write_whole,
    event, failpoint,
    tree::{self, MARK, Process},
};
use nix::libc;
use tokio::{
    io::AsyncWriteExt,
    process::{Child as TokioChild, ChildStderr, ChildStdin, ChildStdout, Command},
};

/// The private subcommand; its argument is the run file.
pub(crate) const SUBCOMMAND: &str = "__attempt";
/// Below the daemon's: training must not cost an election.
const NICENESS: i32 = 10;
/// What a child gets of the daemon's environment. The rest may hold tokens and keys.
const INHERITED: [&str; 13] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "MLOC_FAILPOINT",
];
const INHERITED_PREFIXES: [&str; 3] = ["CUDA_", "NVIDIA_", "LLVM_PROFILE"];
/// Says which process ran an attempt, for a daemon that starts after this one died.
const CHILD_FILE: &str = "child.json";

/// A started child.
pub(crate) struct Child {
    process: TokioChild,
    id: Option<Process>,
    dir: PathBuf,
    stdin: Option<ChildStdin>,
    /// Events.
    pub stdout: Option<ChildStdout>,
    /// The log.
    pub stderr: Option<ChildStderr>,
}

/// Starts `program __attempt run_file`; `dir` is the attempt's folder and marks its processes, which inherit what is
/// `held`: should this daemon die, their inputs stay until they are gone too.
pub(crate) fn start(
    program: &Path,
    run_file: &Path,
    dir: &Path,
    environment: &BTreeMap<String, String>,
    held: &[Arc<File>],
) -> io::Result<Child> {
    let inherited = std::env::vars().filter(|(name, _)| {
        INHERITED.contains(&name.as_str()) || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    });
    let mut command = Command::new(program);
    inherit(&mut command, held);
    let mut process = command
        .arg(SUBCOMMAND)
        .arg(run_file)
        .env_clear()
        .envs(inherited)
        .envs(environment)
        .env(MARK, dir)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("cannot start {}: {e}", program.display())))?;
    let pid = process.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid {
        lower(pid);
    }
    let id = pid.and_then(Process::of);
    failpoint::reached("attempt.forked");
    let noted =
        serde_json::to_vec(&id).map_err(io::Error::from).and_then(|bytes| write_whole(&dir.join(CHILD_FILE), &bytes));
    if let Err(error) = noted {
        tracing::warn!(%error, "should this daemon die, the child may be overlooked");
    }
    let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
    Ok(Child { process, id, dir: dir.to_owned(), stdin, stdout, stderr })
}

impl Child {
    /// Asks it to stop, with a checkpoint or without one.
    pub async fn ask_to_stop(&mut self, checkpoint: bool) {
        let ask = if checkpoint { event::STOP } else { event::STOP_WITHOUT_CHECKPOINT };
        if let Some(stdin) = &mut self.stdin
            && stdin.write_all(ask.as_bytes()).await.is_err()
        {
            // It is gone, or will not listen: the kill comes when its time is over.
            self.stdin = None;
        }
    }

    /// Waits for its end. May be dropped and called again.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        // tokio closes a child's stdin before it waits unless it was taken; ours was.
        self.process.wait().await
    }

    /// Kills it and every process it started.
    pub async fn kill_all(&self) -> io::Result<()> {
        let (id, dir) = (self.id, self.dir.clone());
        tokio::task::spawn_blocking(move || tree::kill_all(id, &dir)).await.map_err(io::Error::other)?
    }
}

/// Leaves files open in the child that is to be started, and in no other.
#[expect(unsafe_code, reason = "what runs between fork and exec calls fcntl alone, which is safe there")]
fn inherit(command: &mut Command, held: &[Arc<File>]) {
    // They live as long as the closure that names them.
    let held = held.to_vec();
    let keep = move || {
        for file in &held {
            // Without the flag that closes it at exec; no other flag exists.
            if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    unsafe { command.pre_exec(keep) };
}

#[expect(unsafe_code, reason = "neither std nor nix has setpriority; it touches no memory")]
fn lower(group: i32) {
    // A group that is gone already needs no lowering.
    unsafe { libc::setpriority(libc::PRIO_PGRP, group.unsigned_abs(), NICENESS) };
}

/// Kills what attempts left running when the daemon before this one died. Blocks.
pub(crate) fn kill_leftovers(attempts: &Path) {
    let Ok(entries) = fs::read_dir(attempts) else { return };
    for dir in entries.flatten().map(|e| e.path()) {
        let path = dir.join(CHILD_FILE);
        let Ok(bytes) = fs::read(&path) else { continue };
        let id: Option<Process> = serde_json::from_slice(&bytes).unwrap_or_default();
        match tree::kill_all(id, &dir) {
            Ok(()) => {
                fs::remove_file(&path).ok();
            }
            Err(error) => tracing::error!(dir = %dir.display(), %error, "an earlier daemon's child is still there"),
        }
    }
    // Children that were started and not noted any more.
    if let Err(error) = tree::kill_all_below(attempts) {
        tracing::error!(%error, "an earlier daemon's child is still there");
    }
}

/// How often the kernel has killed for want of memory in this container; `None` where it does not say.
pub(crate) fn oom_kills() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or("/").trim();
    let files = [
        format!("/sys/fs/cgroup{}/memory.events", own.trim_end_matches('/')),
        "/sys/fs/cgroup/memory.events".into(),
        "/sys/fs/cgroup/memory/memory.oom_control".into(),
    ];
    let text = files.iter().find_map(|file| fs::read_to_string(file).ok())?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}
