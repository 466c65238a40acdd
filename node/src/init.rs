//! The first process of a container, when that is mloc itself.
//!
//! Whatever a task's processes leave behind becomes a child of PID 1, and is a zombie until PID 1 asks for it. A daemon
//! that waits for its own children by number cannot do that for strangers, so PID 1 stands in front of it: it starts the
//! daemon, passes signals on, reaps, and ends as the daemon does. Images with tini have that already: there mloc is not
//! PID 1.

use std::process::{Command, ExitCode};

use anyhow::Context;
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Raised by what a process does itself: not to be waited for.
const OWN: [Signal; 7] =
    [Signal::SIGFPE, Signal::SIGILL, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT, Signal::SIGTRAP, Signal::SIGSYS];

/// Whether this process must reap for others.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// Runs this program again as a child, until it ends. Call it before there is any other thread.
///
/// # Errors
/// When it can't be started.
pub fn stand_before() -> anyhow::Result<ExitCode> {
    let mut signals = SigSet::all();
    OWN.into_iter().for_each(|signal| signals.remove(signal));
    // Blocked, they wait for `wait`. The daemon inherits that, and begins by [`unblock`].
    signals.thread_block().context("block signals")?;
    let program = std::env::current_exe().context("this program's path")?;
    let child = Command::new(&program).args(std::env::args_os().skip(1)).spawn();
    let child = child.with_context(|| format!("start {}", program.display()))?.id();
    let child = Pid::from_raw(i32::try_from(child).context("its process id")?);
    loop {
        match signals.wait().context("wait for a signal")? {
            Signal::SIGCHLD => {
                if let Some(code) = reap(child) {
                    return Ok(code);
                }
            }
            // It may have ended just now: then its SIGCHLD is next.
            signal => drop(kill(child, signal)),
        }
    }
}

/// Lets signals through that whoever started this process has blocked. Call it before there is any other thread.
pub fn unblock() {
    // It fails for no set of signals that exist.
    SigSet::all().thread_unblock().ok();
}

/// Takes the dead; the code to end with when the daemon is among them.
fn reap(child: Pid) -> Option<ExitCode> {
    loop {
        let code = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => 128 + signal as i32,
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return None,
        };
        return Some(ExitCode::from(u8::try_from(code).unwrap_or(1)));
    }
}
