//! A program and all it starts, from the first process to the end of the last.
//!
//! ```text
//! stdout ──→ Lines ─┬─ events ──────────→ heard ──→ the module's thread
//! MLOC_EVENTS ──────┘  (all else: stderr)   ↑
//! stderr ──→ this process's stderr, the attempt's log
//! stdin  ←── {"v":1,"ask":"stop"}, and SIGTERM for every process, when it is asked to stop
//! waitpid(-1) ──────── its end, then the end of all: orphans are this process's children
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use mloc_exec::{
    Event,
    context::Asked,
    event::{STOP, STOP_WITHOUT_CHECKPOINT},
    tree,
};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitStatus, waitpid},
    unistd::Pid,
};

use super::{
    sandbox::{self, Fence},
    speech::{Lines, Said},
};

/// Events that wait while a checkpoint is taken: then the program waits too, save with its figures.
const WAITING: usize = 256;
/// A wish to stop is passed on within this, and the pipe of events is seen to be empty after its last writer is gone.
const LOOK: Duration = Duration::from_millis(50);
const PIECE_BYTES: usize = 64 << 10;
/// Between two counts of the processes: each reads the whole of /proc.
const COUNT_EVERY: Duration = Duration::from_millis(500);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// What a running program says and does.
#[derive(Debug)]
pub enum Heard {
    /// It said something.
    Said(Said),
    /// The process that was started has ended; others may live on.
    Ended(Ended),
    /// It had so many processes at once that all of them were killed.
    Swarmed(usize),
    /// The last of its processes is gone.
    Gone,
    /// Nothing more will be said; once for stdout, once for the pipe of events.
    Silent,
}

/// A running program.
pub struct Program {
    /// Everything it says and does, in order.
    pub heard: Receiver<Heard>,
    /// What it is not held to, when that is not everything.
    pub unheld: Option<String>,
    gone: Arc<AtomicBool>,
}

impl Drop for Program {
    fn drop(&mut self) {
        // Should the module end before it: nothing of it outlives this.
        if !self.gone.load(Ordering::SeqCst)
            && let Err(error) = tree::kill_descendants()
        {
            // A daemon that died took the log's reader with it, and `eprintln!` panics without one.
            writeln!(io::stderr(), "mloc: {error}").ok();
        }
    }
}

impl Program {
    /// Starts it; with more than `processes` at once it is killed.
    ///
    /// # Errors
    /// When it cannot be started, or not be held to its folders.
    pub fn start(
        mut command: Command,
        fence: Fence,
        events: &Path,
        processes: usize,
        asked: Asked,
    ) -> Result<Self, String> {
        // Open for both, it has no end while this process lives; nobody is waited for.
        let pipe = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(events);
        let pipe = pipe.map_err(|e| format!("open {}: {e}", events.display()))?;
        // A group of its own: a signal to it is none to this process.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
        let (mut child, unheld) = sandbox::spawn(fence, command)?;
        let (tell, heard) = sync_channel(WAITING);
        let gone = Arc::new(AtomicBool::new(false));
        let started = Self { heard, unheld, gone: gone.clone() };
        let failed = |e: io::Error| format!("cannot start a thread: {e}");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (over, said) = (gone.clone(), tell.clone());
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(work).map(drop).map_err(failed)
        };
        spawn("stdout", Box::new(move || listen(stdout.into_iter(), &said)))?;
        let (end, said) = (gone.clone(), tell.clone());
        spawn("events", Box::new(move || listen(Some(Events { pipe, end }).into_iter(), &said)))?;
        let (end, said) = (gone.clone(), tell.clone());
        spawn("count", Box::new(move || bound(processes, &said, &end)))?;
        spawn("stop", Box::new(move || pass_on_stop(&asked, stdin, &over)))?;
        spawn("reap", Box::new(move || reap(&child, &tell, &gone)))?;
        Ok(started)
    }
}

/// Waits for every process below this one. `Child::wait` is not called any more: whoever comes first is taken here.
fn reap(child: &Child, tell: &SyncSender<Heard>, gone: &AtomicBool) {
    let first = Pid::from_raw(child.id().cast_signed());
    loop {
        let ended = match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Ended::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ended::Signal(signal as i32)),
            Ok(_) | Err(Errno::EINTR) => continue,
            // No child is left, and as this process takes in orphans, nothing below it either.
            Err(_) => break,
        };
        if ended.0 == first {
            tell.send(Heard::Ended(ended.1)).unwrap_or(());
        }
    }
    gone.store(true, Ordering::SeqCst);
    // Nobody listens when the module has ended before.
    tell.send(Heard::Gone).unwrap_or(());
}

/// Counts the processes until there are none, or too many.
fn bound(processes: usize, tell: &SyncSender<Heard>, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        let found = tree::below_this_one().len();
        if found > processes {
            tell.send(Heard::Swarmed(found)).unwrap_or(());
            if let Err(error) = tree::kill_descendants() {
                writeln!(io::stderr(), "mloc: {error}").ok();
            }
            return;
        }
        thread::sleep(COUNT_EVERY);
    }
}

/// Reads one source of lines to its end.
fn listen(source: impl Iterator<Item = impl Read>, tell: &SyncSender<Heard>) {
    let (mut lines, mut piece) = (Lines::default(), vec![0; PIECE_BYTES]);
    let say = |said: Said| match said {
        // Only the newest figures matter, and nobody waits for them.
        Said::Event(Event::Progress(_)) => tell.try_send(Heard::Said(said)).unwrap_or(()),
        said => tell.send(Heard::Said(said)).unwrap_or(()),
    };
    for mut source in source {
        loop {
            match source.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => lines.feed(&piece[..n], say),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
            pass_on(&mut lines.log);
        }
    }
    lines.end(say);
    pass_on(&mut lines.log);
    tell.send(Heard::Silent).unwrap_or(());
}

/// To the attempt's log. The daemon bounds it; without a daemon there is nobody to tell.
fn pass_on(log: &mut Vec<u8>) {
    if !log.is_empty() {
        io::stderr().write_all(log).unwrap_or(());
        log.clear();
    }
}

/// The pipe of events, which ends when all who could write to it are gone and it is empty.
struct Events {
    pipe: File,
    end: Arc<AtomicBool>,
}

impl Read for Events {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            // Before the look: what was written before that is there after.
            let end = self.end.load(Ordering::SeqCst);
            let wait = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
            let ready = poll(&mut [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)], wait)?;
            match self.pipe.read(into) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && ready == 0 && end => return Ok(0),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

/// A program is asked in both ways: the line says whether a checkpoint is wanted, the signal reaches those that read
/// nothing.
fn pass_on_stop(asked: &Asked, mut stdin: Option<ChildStdin>, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        if asked.stop.load(Ordering::SeqCst) {
            let line = if asked.no_checkpoint.load(Ordering::SeqCst) { STOP_WITHOUT_CHECKPOINT } else { STOP };
            if let Some(stdin) = &mut stdin {
                // Who has closed it is asked by the signal.
                stdin.write_all(line.as_bytes()).unwrap_or(());
            }
            tree::ask_descendants();
            break;
        }
        thread::sleep(LOOK);
    }
    // Held open until the end: an end of it would be read as the daemon's.
    while !over.load(Ordering::SeqCst) {
        thread::sleep(LOOK);
    }
}
