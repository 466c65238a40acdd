//! Parsing in a process of its own, which may burst, hang or crash without harm: what it may use is set by itself before it
//! reads anything, and when its time is over its parent ends it.
//!
//! The parent writes a line of JSON (what to read, within which bounds) and the file's bytes; the child answers with one
//! JSON text. The child is whatever program calls [`child_main`].

use std::{
    ffi::OsStr,
    io::{self, BufRead, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl::set_pdeathsig,
        resource::{Resource, setrlimit},
        signal::{Signal, killpg},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::{Bounds, Document, ParseError, Source, parse};

/// What a child may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// By the clock; the same by the processor's time.
    pub time: Duration,
    /// Bytes of address space.
    pub memory: u64,
    /// Bytes of its answer.
    pub output: usize,
    /// What the file may grow to.
    pub bounds: Bounds,
}

impl Default for Limits {
    /// A minute, 2 GiB, 256 MiB.
    fn default() -> Self {
        Self { time: Duration::from_secs(60), memory: 2 << 30, output: 256 << 20, bounds: Bounds::default() }
    }
}

/// Why a child brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It says so itself.
    #[error(transparent)]
    Refused(ParseError),
    /// It never ran.
    #[error("the parser {exe} did not start: {source}")]
    Start {
        /// The program.
        exe: String,
        /// The system's words.
        source: io::Error,
    },
    /// It took too long.
    #[error("reading it took longer than {0:?}\nhint: cut the file into several")]
    TooSlow(Duration),
    /// It needed too much.
    #[error("reading it takes more than {0} bytes of memory\nhint: cut the file into several")]
    Memory(u64),
    /// It said too much.
    #[error("what was read of it is larger than {0} bytes\nhint: cut the file into several")]
    Output(usize),
    /// It was ended by a signal.
    #[error("the parser crashed on it (signal {signal}){said}")]
    Crashed {
        /// The signal's number.
        signal: i32,
        /// Its last words, with a colon before them.
        said: String,
    },
    /// Its answer is none.
    #[error("the parser gave no answer ({status}){said}")]
    Garbled {
        /// How it ended.
        status: String,
        /// Its last words, with a colon before them.
        said: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Order {
    source: Source,
    limits: Limits,
}

/// The child: an order on its input, an answer on its output.
pub fn child_main(input: impl Read, mut output: impl Write) -> ExitCode {
    let done = answer(input).and_then(|answer| {
        serde_json::to_writer(&mut output, &answer)?;
        output.flush()
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Its error output is all it has to say this on.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn answer(input: impl Read) -> io::Result<Result<Document, ParseError>> {
    /// An order's line.
    const ORDER_BYTES: u64 = 64 << 10;
    let mut input = io::BufReader::new(input);
    let mut line = String::new();
    (&mut input).take(ORDER_BYTES).read_line(&mut line)?;
    let Order { source, limits } = serde_json::from_str(&line)?;
    // The system counts whole seconds; the parent is the exact one.
    let seconds = limits.time.as_secs() + 1;
    // Nobody would hear it any more.
    set_pdeathsig(Signal::SIGKILL)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_CPU, seconds, seconds + 1)?;
    setrlimit(Resource::RLIMIT_AS, limits.memory, limits.memory)?;
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes)?;
    Ok(parse(&source, &bytes, &limits.bounds))
}

/// Starts `exe` with `args`, has it read a file and takes its answer. Blocks until then.
///
/// # Errors
/// Why there is none.
pub fn parse_in_child(
    exe: &Path,
    args: &[impl AsRef<OsStr>],
    source: &Source,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Document, ChildError> {
    let start = |source| ChildError::Start { exe: exe.display().to_string(), source };
    let order = Order { source: source.clone(), limits: *limits };
    let mut line = serde_json::to_vec(&order).map_err(|error| start(error.into()))?;
    line.push(b'\n');
    let mut command = Command::new(exe);
    // A group of its own: what it starts, if anything, ends with it.
    // Of its parent's environment what a program needs to start, and no secrets.
    let kept = ["PATH", "LD_LIBRARY_PATH", "LANG"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command
        .env_clear()
        .envs(kept)
        .process_group(0)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let deadline = Instant::now() + limits.time;
    let mut child = command.spawn().map_err(start)?;
    let (said, ended) = thread::scope(|scope| {
        let heard = Heard::begin(scope, &mut child, &line, bytes, limits.output);
        let ended = wait(&mut child, &heard, deadline);
        end(&mut child);
        (heard.take(), ended)
    });
    let (out, errors) = said;
    let status = match ended {
        Some(Ended::Over(status)) => status,
        Some(Ended::TooMuch) => return Err(ChildError::Output(limits.output)),
        None => return Err(ChildError::TooSlow(limits.time)),
    };
    meant(status, &out, &errors, limits)
}

/// Ends it with all that it started. No error is possible that would matter: what is over can't be ended, and what can't be
/// waited for is over.
fn end(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
}

enum Ended {
    Over(ExitStatus),
    TooMuch,
}

/// What a child says, read by threads of its own: either of its outputs may be full while the other is awaited.
struct Heard {
    out: mpsc::Receiver<Option<Vec<u8>>>,
    errors: mpsc::Receiver<Vec<u8>>,
    whole: std::cell::RefCell<Option<Vec<u8>>>,
}

impl Heard {
    fn begin<'s>(
        scope: &'s thread::Scope<'s, '_>,
        child: &mut Child,
        line: &[u8],
        bytes: &'s [u8],
        max: usize,
    ) -> Self {
        /// Of its last words.
        const WORDS: u64 = 16 << 10;
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let line = line.to_vec();
        scope.spawn(move || {
            let mut input = input?;
            // A child that has ended reads no more; how it ended says why.
            let _ = input.write_all(&line).and_then(|()| input.write_all(bytes));
            Some(())
        });
        let (tell_out, out) = mpsc::channel();
        scope.spawn(move || {
            let mut whole = Vec::new();
            let read = output.map(|output| output.take(max as u64 + 1).read_to_end(&mut whole));
            let fits = whole.len() <= max && read.is_some_and(|read| read.is_ok());
            // Nobody listens any more when the parent has given up.
            let _ = tell_out.send(fits.then_some(whole));
        });
        let (tell_errors, heard_errors) = mpsc::channel();
        scope.spawn(move || {
            let mut words = Vec::new();
            if let Some(mut errors) = errors {
                let _ = (&mut errors).take(WORDS).read_to_end(&mut words);
                let _ = io::copy(&mut errors, &mut io::sink());
            }
            let _ = tell_errors.send(words);
        });
        Self { out, errors: heard_errors, whole: std::cell::RefCell::new(None) }
    }

    fn take(self) -> (Vec<u8>, Vec<u8>) {
        (self.whole.into_inner().unwrap_or_default(), self.errors.recv().unwrap_or_default())
    }
}

/// Until it is over or the time is.
fn wait(child: &mut Child, heard: &Heard, deadline: Instant) -> Option<Ended> {
    /// A child that has said all is over at once, or hangs.
    const LOOK: Duration = Duration::from_millis(2);
    match heard.out.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Some(whole)) => *heard.whole.borrow_mut() = Some(whole),
        Ok(None) => return Some(Ended::TooMuch),
        Err(_) => return None,
    }
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(Ended::Over(status));
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(LOOK);
    }
}

fn meant(status: ExitStatus, out: &[u8], errors: &[u8], limits: &Limits) -> Result<Document, ChildError> {
    let errors = String::from_utf8_lossy(errors);
    // What Rust's runtime says before it ends a process that gets no memory; there is no other sign of it.
    if !status.success() && errors.contains("memory allocation of") {
        return Err(ChildError::Memory(limits.memory));
    }
    let said = errors.trim().lines().last().map(|line| format!(": {line}")).unwrap_or_default();
    match status.signal() {
        Some(signal) if signal == nix::libc::SIGXCPU => Err(ChildError::TooSlow(limits.time)),
        Some(signal) => Err(ChildError::Crashed { signal, said }),
        None => match serde_json::from_slice::<Result<Document, ParseError>>(out) {
            Ok(Err(ParseError::Memory)) => Err(ChildError::Memory(limits.memory)),
            Ok(answer) if status.success() => answer.map_err(ChildError::Refused),
            _ => Err(ChildError::Garbled { status: status.to_string(), said }),
        },
    }
}
