//! Every process that belongs to an attempt, and its end.
//!
//! They are found by process group, by descent, and by a mark in their environment. A child takes in whatever is
//! orphaned below it ([`take_in_orphans`]), so that one that forked twice, made a session of its own and emptied its
//! environment is still found by descent. All are frozen before the first is killed, and the child is killed last: a
//! process that forks on and on cannot have a successor slip out between two looks.
//!
//! What is left: a process without the mark whose child was killed before it by somebody else, the kernel's OOM killer
//! say, is nobody's any more.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// The environment variable that marks an attempt's processes; its value is the attempt's folder.
pub const MARK: &str = "MLOC_ATTEMPT_DIR";
/// A killed process is gone within this, unless the kernel holds it in the middle of a disk or device access.
const GONE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A process, told apart from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Ticks from boot to its start.
    pub started: u64,
}

struct Stat {
    process: Process,
    parent: i32,
    group: i32,
    dead: bool,
}

impl Process {
    /// The live process of this number.
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|s| s.process)
    }
}

/// Kills every process of an attempt until none is left. Blocks.
///
/// # Errors
/// Names those that would not go.
pub fn kill_all(child: Option<Process>, dir: &Path) -> io::Result<()> {
    let mark = mark(dir);
    // A number that another process has by now says nothing.
    let root = child.filter(|c| stat(c.pid).is_some_and(|s| s.process == *c)).map(|c| c.pid);
    end_all(root, root, || belonging(child, &mark))
}

/// Kills every process that this one started, and those they started. Blocks.
///
/// # Errors
/// Names those that would not go.
pub fn kill_descendants() -> io::Result<()> {
    end_all(Some(own_pid()), None, below_this_one)
}

/// Asks every process that this one started, and those they started, to end (SIGTERM).
pub fn ask_descendants() {
    below_this_one().iter().for_each(|process| signal(process.pid, Signal::SIGTERM));
}

/// Live processes that this one started, and those they started.
pub fn below_this_one() -> Vec<Process> {
    let (all, own) = (all(), own_pid());
    let below = descendants(&all, own);
    let live = all.into_iter().filter(|s| !s.dead && s.process.pid != own && below.contains(&s.process.pid));
    live.map(|s| s.process).collect()
}

/// From now on what is orphaned below this process becomes its child, instead of init's.
///
/// # Errors
/// On kernels older than 3.4.
pub fn take_in_orphans() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Kills every process of any attempt below a folder: a daemon that died between starting a child and noting it left
/// nothing but this mark. Blocks.
///
/// # Errors
/// Names those that would not go.
pub fn kill_all_below(attempts: &Path) -> io::Result<()> {
    let mark = format!("{}/", mark(attempts));
    let own = own_pid();
    end_all(None, None, || {
        let live = all().into_iter().filter(|s| !s.dead && s.process.pid != own);
        live.filter(|s| marked(s.process.pid, |v| v.starts_with(mark.as_bytes()))).map(|s| s.process).collect()
    })
}

/// Freezes, then kills: what `find` finds and what is below `top`. `last` is killed when the others are gone, for orphans
/// of theirs become its children.
fn end_all(top: Option<i32>, last: Option<i32>, find: impl Fn() -> Vec<Process>) -> io::Result<()> {
    let until = Instant::now() + GONE_WITHIN;
    let mut frozen = Frozen::default();
    let mut moving = true;
    while moving && Instant::now() < until {
        moving = false;
        for process in find() {
            moving |= frozen.freeze(process.pid);
            moving |= frozen.freeze_below(process.pid);
        }
        // The quick look: what forks on and on is never there any more when a list of all processes is read to its end.
        while top.is_some_and(|top| frozen.freeze_below(top)) && Instant::now() < until {
            moving = true;
        }
    }
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let left = find();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            let pids: Vec<String> = left.iter().map(|p| p.pid.to_string()).collect();
            return Err(io::Error::other(format!("processes {} do not go, even killed", pids.join(", "))));
        }
        let others = left.iter().any(|process| Some(process.pid) != last);
        for process in left.iter().filter(|process| !others || Some(process.pid) != last) {
            signal(process.pid, Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// To one that may have gone by itself meanwhile: then there is nothing to signal.
fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or(());
}

/// Processes that were sent SIGSTOP, or seen dead.
#[derive(Default)]
struct Frozen(BTreeSet<Process>);

impl Frozen {
    /// Freezes one; whether that was news. One that has gone in between is: its successor is about.
    fn freeze(&mut self, pid: i32) -> bool {
        if pid == own_pid() {
            return false;
        }
        signal(pid, Signal::SIGSTOP);
        stat(pid).is_none_or(|s| self.0.insert(s.process))
    }

    /// Freezes everything below a process, each as soon as it is seen.
    fn freeze_below(&mut self, pid: i32) -> bool {
        let mut moving = false;
        let mut parents = vec![pid];
        while let Some(parent) = parents.pop() {
            for child in children(parent) {
                moving |= self.freeze(child);
                parents.push(child);
            }
        }
        moving
    }
}

/// The children of a process, of all its threads. Nothing on a kernel without these lists: then [`all`] has to do.
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Processes of this node's own tree: those are no foreigners on a GPU.
pub fn own_pids() -> BTreeSet<i32> {
    descendants(&all(), own_pid())
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

fn mark(dir: &Path) -> String {
    format!("{MARK}={}", dir.display())
}

fn belonging(child: Option<Process>, mark: &str) -> Vec<Process> {
    let all = all();
    let is_mark = |variable: &[u8]| variable == mark.as_bytes();
    // A number that another process has by now says nothing.
    let root = child.filter(|c| all.iter().any(|s| s.process == *c)).map(|c| c.pid);
    let below = root.map(|pid| descendants(&all, pid)).unwrap_or_default();
    let own = own_pid();
    all.iter()
        .filter(|s| !s.dead && s.process.pid != own)
        .filter(|s| below.contains(&s.process.pid) || root == Some(s.group) || marked(s.process.pid, is_mark))
        .map(|s| s.process)
        .collect()
}

fn descendants(all: &[Stat], root: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        found.extend(all.iter().filter(|s| found.contains(&s.parent)).map(|s| s.process.pid).collect::<Vec<_>>());
        if found.len() == before {
            return found;
        }
    }
}

fn marked(pid: i32, is_mark: impl Fn(&[u8]) -> bool) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment.split(|b| *b == 0).any(is_mark)
}

fn all() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|e| stat(e.file_name().to_str()?.parse().ok()?)).collect()
}

/// `pid (name) state ppid pgrp …`; the name may hold anything, so fields count from the last bracket.
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let started = fields.get(19)?.parse().ok()?;
    Some(Stat {
        process: Process { pid, started },
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        dead: matches!(*fields.first()?, "Z" | "X"),
    })
}
