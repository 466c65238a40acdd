//! Commands with a bound in time: a verb that hangs fails its case and says what it had printed.

use std::{
    io::Read,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::unistd::Pid;
use serde_json::Value;

/// Longest run of one command: far above what it takes.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// What a command printed.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Standard output as JSON.
    ///
    /// # Errors
    /// When the command failed, or printed something else.
    pub fn json(&self) -> anyhow::Result<Value> {
        ensure!(self.code == 0, "exit {}: {}{}", self.code, self.err, self.out);
        serde_json::from_str(&self.out).with_context(|| format!("not JSON: {}", self.out))
    }
}

/// Runs a command to its end, without standard input.
///
/// # Errors
/// When it can't be started or does not end; a command that fails is no error.
pub fn run_to_end(command: &mut Command) -> anyhow::Result<Ran> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let out = child.stdout.take().map(reader);
    let err = child.stderr.take().map(reader);
    let began = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if began.elapsed() < PATIENCE => thread::sleep(LOOK),
            None => {
                child.kill()?;
                child.wait()?;
                break None;
            }
        }
    };
    let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (out, err) = (text(out), text(err));
    let Some(status) = status else { bail!("{command:?} did not end within {PATIENCE:?}\n{out}{err}") };
    Ok(Ran { code: status.code().unwrap_or(-1), out, err })
}

/// Both pipes are emptied while the command runs, or it would wait for a reader.
fn reader(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before a broken pipe is what there is.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// The processes a process started, and those they started.
///
/// # Errors
/// When /proc can't be read.
pub fn children_of(parent: Pid) -> anyhow::Result<Vec<Pid>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        // It may be gone by now.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name in parentheses may hold blanks; what follows it does not: state, parent.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        if let Some(of) = after_name.split_whitespace().nth(1).and_then(|p| p.parse::<i32>().ok()) {
            parents.push((pid, of));
        }
    }
    let mut found = vec![parent.as_raw()];
    let mut next = 0;
    while let Some(&one) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == one).map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(found.into_iter().skip(1).map(Pid::from_raw).collect())
}
