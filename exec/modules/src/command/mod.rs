//! `taskType: command`: a program of the user's own, whatever it is written in. It is given folders, figures and a grant
//! by its environment, says what it does in the words of [`mloc_exec::event`], and is asked to stop, killed, retried,
//! resumed and accounted like any other module. `COMMAND.md` beside this crate is the contract with whoever writes one.
//!
//! | file | holds |
//! |---|---|
//! | `code`, `unpack` | its code: a copy in a folder of its own |
//! | `sandbox` | what it may touch |
//! | `program` | its processes, from the first to the last |
//! | `speech` | what it says, told apart from what it prints |
//! | `handed` | what it hands over: checkpoints and artifacts |
//! | `service` | one that answers requests: its port, and that it has no end |

pub(crate) mod code;
mod handed;
mod program;
pub mod sandbox;
mod service;
mod speech;
mod unpack;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command as Process,
};

use mloc_core::{
    ledger::entry::FailureClass,
    task::{
        canonical,
        spec::{self, TaskSpec},
    },
    wire::Phase,
};
use mloc_exec::{
    Event, Module, ModuleError, ModuleOutput, Programs, RunContext, checkpoint::write_whole, event::PROTOCOL, tree,
};
use nix::sys::stat::Mode;

use self::{
    program::{Ended, Heard, Program},
    sandbox::Fence,
    speech::Said,
};
use crate::fatal;

/// Of this many lines that look like events and are none the log says what is wrong; then once that there are more.
const ODD_MAX: usize = 10;
/// Checkpoints that are kept when neither the task nor the program says: the newest, and one should that be damaged.
const KEEP: usize = 2;
/// `EX_TEMPFAIL` of sysexits.h: another try may do.
const TRY_AGAIN: i32 = 75;
/// A shell's way to say that what it ran was killed by signal n: 128 + n.
const KILLED_BELOW: std::ops::RangeInclusive<i32> = 129..=192;
/// What is for this process alone of its environment.
const OUR_OWN: [&str; 3] = ["MLOC_FAILPOINT", "RUST_LOG", "RUST_BACKTRACE"];

/// The module.
pub struct Command;

impl Module for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn run(&self, ctx: &mut RunContext) -> Result<ModuleOutput, ModuleError> {
        let spec = ctx.run().spec.clone();
        // Another node may offer it.
        let programs = ctx.run().programs.clone().ok_or_else(|| {
            let hint =
                "hint: set modules.command.enabled: true in its node.yaml, when its users are to be trusted so far";
            ModuleError::Retryable(format!("this node runs no programs of its users\n{hint}"))
        })?;
        let command = spec.command.as_ref().ok_or_else(|| fatal("spec.command: the task names no program"))?;
        let folders = Folders::fresh(ctx)?;
        if let Some(pulled) = &ctx.run().inputs.code {
            code::bring(pulled, &folders.code).map_err(|e| fatal(format!("code.source: {e}")))?;
        }
        ctx.check()?;
        let start_in = folders.start_in(command.code.as_ref())?;
        write_task(&folders.task, &spec)?;
        let mut process = Process::new(&command.argv[0]);
        process.args(&command.argv[1..]).current_dir(&start_in);
        process.env_clear().envs(environment(ctx, &folders));
        let port = service::port(ctx)?;
        process.envs(port.iter().map(|port| ("MLOC_PORT", port.to_string())));
        let processes = programs.processes;
        let fence = fence(ctx, &folders, programs);
        let may_write = folders.said(&fence);
        let program = Program::start(process, fence, &folders.events, processes, ctx.asked()).map_err(not_started)?;
        match &program.unheld {
            None => ctx.log(format_args!("mloc: the program may write in {may_write}, and nowhere else")),
            Some(why) => ctx.warn(format_args!("the program is not held to its folders: {why}")),
        }
        if port.is_some() {
            ctx.serving(port, None);
        } else {
            ctx.phase(Phase::Training);
        }
        let heard = Hearing::new(folders.checkpoints.clone()).hear(ctx, &program)?;
        if ctx.run().spec.service.is_some() { service::conclude_service(ctx, heard) } else { conclude(ctx, heard) }
    }
}

/// It may be this node's lack.
fn not_started(found: String) -> ModuleError {
    ModuleError::Retryable(found)
}

/// Folders of one start, all below the attempt's own.
struct Folders {
    code: PathBuf,
    checkpoints: PathBuf,
    home: PathBuf,
    tmp: PathBuf,
    /// A pipe.
    events: PathBuf,
    task: PathBuf,
}

impl Folders {
    /// Empty ones: what an earlier start left is gone.
    fn fresh(ctx: &RunContext) -> Result<Self, ModuleError> {
        let work = &ctx.run().work;
        let disk = |action: &str, path: &Path, e: &std::io::Error| ModuleError::disk(action, path, e);
        match fs::remove_dir_all(work) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(disk("empty", work, &e)),
            _ => {}
        }
        fs::create_dir_all(work).map_err(|e| disk("make", work, &e))?;
        // The program must not choose what these names mean.
        let work = work.canonicalize().map_err(|e| disk("find", work, &e))?;
        let folder = |name: &str| {
            let path = work.join(name);
            fs::create_dir(&path).map_err(|e| disk("make", &path, &e)).map(|()| path)
        };
        let events = work.join("events");
        nix::unistd::mkfifo(&events, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| disk("make", &events, &e.into()))?;
        Ok(Self {
            code: folder("code")?,
            checkpoints: folder("checkpoints")?,
            home: folder("home")?,
            tmp: folder("tmp")?,
            events,
            task: work.join("task.json"),
        })
    }

    /// Where it may write, for the log.
    fn said(&self, fence: &Fence) -> String {
        let top = self.task.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        let names = fence.writable.iter().map(|path| path.strip_prefix(top).unwrap_or(path).display().to_string());
        format!("{} of {}", names.collect::<Vec<_>>().join(", "), top.display())
    }

    fn start_in(&self, code: Option<&spec::Code>) -> Result<PathBuf, ModuleError> {
        let Some(workdir) = code.and_then(|code| code.workdir.as_ref()) else { return Ok(self.code.clone()) };
        let path = self.code.join(workdir);
        match path.canonicalize() {
            Ok(found) if found.starts_with(&self.code) && found.is_dir() => Ok(found),
            _ => Err(fatal(format!("code.workdir: there is no folder `{workdir}` in the code"))),
        }
    }
}

fn write_task(path: &Path, spec: &TaskSpec) -> Result<(), ModuleError> {
    let bytes = serde_json::to_vec_pretty(&canonical::value(spec)).map_err(std::io::Error::from);
    bytes.and_then(|bytes| write_whole(path, &bytes)).map_err(|e| ModuleError::disk("write", path, &e))
}

fn fence(ctx: &RunContext, folders: &Folders, programs: Programs) -> Fence {
    let run = ctx.run();
    let inputs = [&run.inputs.model, &run.inputs.adapter, &run.inputs.dataset, &run.inputs.eval];
    let inputs = inputs.into_iter().flatten().cloned();
    let writable = [&folders.code, &run.artifacts, &folders.checkpoints, &folders.home, &folders.tmp, &folders.events];
    Fence {
        mode: programs.sandbox,
        writable: writable.into_iter().cloned().collect(),
        readable: inputs.chain([folders.task.clone(), run.checkpoints.clone()]).collect(),
        hidden: programs.hidden,
    }
}

/// What the program is told. What the task sets itself stands above homes and habits, never above `MLOC_…`.
fn environment(ctx: &RunContext, folders: &Folders) -> BTreeMap<String, String> {
    let run = ctx.run();
    let text = |path: &Path| path.display().to_string();
    let mut environment: BTreeMap<String, String> =
        std::env::vars().filter(|(name, _)| !OUR_OWN.contains(&name.as_str())).collect();
    let own = [
        ("HOME", text(&folders.home)),
        ("TMPDIR", text(&folders.tmp)),
        // What a program prints is in its log when it is printed.
        ("PYTHONUNBUFFERED", "1".to_owned()),
    ];
    environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
    environment.extend(run.spec.env.iter().filter(|(name, _)| own_word(name)).map(|(k, v)| (k.clone(), v.clone())));
    let id = &run.attempt;
    let said = [
        ("PROTOCOL", Some(PROTOCOL.to_string())),
        ("TASK", Some(text(&folders.task))),
        ("TASK_ID", Some(id.task.to_string())),
        ("REPLICA", Some(id.replica.to_string())),
        ("ATTEMPT", Some(id.attempt.to_string())),
        ("ARTIFACTS", Some(text(&run.artifacts))),
        ("CHECKPOINTS", Some(text(&folders.checkpoints))),
        ("RESUME", ctx.resume().map(|from| text(&from.dir))),
        ("RESUME_STEP", ctx.resume().map(|from| from.step.to_string())),
        ("MODEL", run.inputs.model.as_deref().map(text)),
        ("ADAPTER", run.inputs.adapter.as_deref().map(text)),
        ("DATASET", run.inputs.dataset.as_deref().map(text)),
        ("EVAL", run.inputs.eval.as_deref().map(text)),
        ("EVENTS", Some(text(&folders.events))),
    ];
    environment.extend(said.into_iter().filter_map(|(name, value)| Some((format!("MLOC_{name}"), value?))));
    environment
}

/// Names that a task may give another value than this module does.
fn own_word(name: &str) -> bool {
    ["HOME", "TMPDIR", "PYTHONUNBUFFERED"].contains(&name)
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    ended: Option<Ended>,
    result: Option<ModuleOutput>,
    error: Option<(Option<FailureClass>, String)>,
}

/// What is kept of what it says.
struct Hearing {
    /// Where its checkpoints come from.
    checkpoints: PathBuf,
    odd: usize,
    outcome: Outcome,
}

impl Hearing {
    fn new(checkpoints: PathBuf) -> Self {
        Self { checkpoints, odd: 0, outcome: Outcome::default() }
    }

    /// Hears it to its end, and the end of all that it started.
    fn hear(mut self, ctx: &mut RunContext, program: &Program) -> Result<Outcome, ModuleError> {
        let (mut gone, mut silent, mut swarmed) = (false, 0, false);
        // Both its ways to speak; whatever was said before the last process went is still heard.
        while !gone || silent < 2 {
            match program.heard.recv() {
                Ok(Heard::Said(Said::Event(event))) => self.event(ctx, event),
                Ok(Heard::Said(Said::Odd(found))) => self.odd(ctx, &found),
                Ok(Heard::Ended(ended)) => {
                    self.outcome.ended = Some(ended);
                    // Those that were asked to stop may be at it still.
                    if swarmed {
                        // Those left are being killed already; should one not go, it still was a swarm.
                        if tree::kill_descendants().is_err() {
                            return Ok(self.outcome);
                        }
                    } else if !ctx.stopping() {
                        end_the_rest(ctx)?;
                    }
                }
                Ok(Heard::Swarmed(found)) => {
                    swarmed = true;
                    let why = format!(
                        "the program had {found} processes at once, more than this node allows, and all were killed\nhint: \
                         start fewer, or raise modules.command.processes in its node.yaml"
                    );
                    self.outcome.error = Some((Some(FailureClass::Fatal), why));
                }
                Ok(Heard::Gone) => gone = true,
                Ok(Heard::Silent) => silent += 1,
                Err(_) => break,
            }
        }
        Ok(self.outcome)
    }

    fn event(&mut self, ctx: &mut RunContext, event: Event) {
        match event {
            Event::Hello { version, .. } => ctx.log(format_args!("mloc: the program says hello: {version}")),
            Event::Phase { phase } => ctx.phase(phase),
            Event::Progress(progress) => ctx.progress(progress),
            Event::Log { level: mloc_exec::event::Level::Info, text } => ctx.log(text),
            Event::Log { level: mloc_exec::event::Level::Warn, text } => ctx.warn(text),
            Event::Needs { bytes, advice } => ctx.needs(bytes, advice),
            Event::Checkpoint { step, dir, keep, best } => self.checkpoint(ctx, step, &dir, keep, best),
            // One that chose for itself where it listens.
            Event::Serving { port, socket } if ctx.run().spec.service.is_some() => {
                ctx.serving(port, socket.as_deref());
            }
            Event::Serving { .. } => self.odd(ctx, "it says that it serves, and its task is no service"),
            Event::Result(output) => self.outcome.result = Some(output),
            Event::Error { class, message } => self.outcome.error = Some((class, message)),
        }
    }

    /// A checkpoint that cannot be had costs steps should the run be cut, not the run.
    fn checkpoint(&mut self, ctx: &mut RunContext, step: u64, dir: &Path, keep: usize, best: Option<u64>) {
        let from = match handed::checkpoint(&self.checkpoints, dir) {
            Ok(from) => from,
            Err(why) => return ctx.warn(format_args!("the checkpoint of step {step} is not taken: {why}")),
        };
        let of_task = ctx.run().keep_checkpoints;
        ctx.keep_checkpoints([keep, of_task, KEEP].into_iter().find(|keep| *keep > 0).unwrap_or(KEEP));
        ctx.best_checkpoint(best);
        match ctx.checkpoint(step, |into| handed::take(&from, into).map_err(ModuleError::Retryable)) {
            // Nobody will go on from one.
            Ok(()) | Err(ModuleError::Cancelled) => {}
            Err(error) => ctx.warn(format_args!("the checkpoint of step {step} is not taken: {error}")),
        }
    }

    fn odd(&mut self, ctx: &mut RunContext, found: &str) {
        self.odd += 1;
        match self.odd {
            n if n <= ODD_MAX => ctx.warn(found),
            n if n == ODD_MAX + 1 => ctx.warn("there are more lines that look like events and are none"),
            _ => {}
        }
    }
}

/// When the process that was started has ended, the program has: what it left running goes.
fn end_the_rest(ctx: &mut RunContext) -> Result<(), ModuleError> {
    let left = tree::below_this_one().len();
    if left > 0 {
        ctx.warn(format_args!("the program has ended and left {left} processes: they are killed"));
    }
    tree::kill_descendants().map_err(|e| ModuleError::Retryable(e.to_string()))
}

/// What a program's last words and its exit come to.
fn conclude(ctx: &mut RunContext, outcome: Outcome) -> Result<ModuleOutput, ModuleError> {
    let class = |class: Option<FailureClass>, message: String| match class {
        Some(FailureClass::Retryable) => ModuleError::Retryable(message),
        Some(FailureClass::Fatal | FailureClass::TimedOut) => ModuleError::Fatal(message),
        None => ModuleError::Cancelled,
    };
    let stopping = ctx.stopping();
    match (outcome.error, outcome.ended) {
        // It was done before it heard.
        (None, Some(Ended::Code(0))) if !stopping || outcome.result.is_some() => {
            let (output, odd) = handed::artifacts(ctx.artifacts(), outcome.result).map_err(fatal)?;
            if !odd.is_empty() {
                ctx.warn(format_args!(
                    "not published, for they are no files, or have no UTF-8 names: {}",
                    mloc_exec::event::bounded(&odd.join(", "), 4 << 10)
                ));
            }
            Ok(output)
        }
        _ if stopping => Err(ModuleError::Cancelled),
        (Some((Some(of), message)), _) => Err(class(Some(of), message)),
        (Some((None, message)), _) => {
            Err(fatal(format!("the program says that it stopped as asked, and nobody asked: {message}")))
        }
        (None, ended) => Err(unsaid(ended)),
    }
}

/// An end without a last word.
fn unsaid(ended: Option<Ended>) -> ModuleError {
    let hint = "hint: its log says why, if it said so";
    match ended {
        Some(Ended::Code(TRY_AGAIN)) => {
            ModuleError::Retryable(format!("the program exited with {TRY_AGAIN}: another try may do\n{hint}"))
        }
        Some(Ended::Code(code)) if KILLED_BELOW.contains(&code) => ModuleError::Retryable(killed(code - 128)),
        Some(Ended::Code(code)) => ModuleError::Fatal(format!(
            "the program exited with {code}\n{hint}; exit with {TRY_AGAIN} where another try may do"
        )),
        Some(Ended::Signal(signal)) => ModuleError::Retryable(killed(signal)),
        None => ModuleError::Retryable("the end of the program was not seen".to_owned()),
    }
}

fn killed(signal: i32) -> String {
    let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown", |signal| signal.as_str());
    let said = format!("the program was killed by signal {signal} ({name})");
    match signal {
        9 => format!("{said}: out of memory?\nhint: ask for more resources.hardware.memory, or make batches smaller"),
        _ => format!("{said}\nhint: its log says why, if it said so"),
    }
}

#[cfg(test)]
mod tests {
    use mloc_exec::event::asks_to_stop;

    use super::*;

    /// The page's own words, held to what this module takes and gives.
    #[test]
    fn the_page_says_what_is_so() {
        let page = include_str!("../../COMMAND.md");
        let (mut events, mut asks) = (0, 0);
        for line in page.lines().filter(|line| line.starts_with("{\"v\":")) {
            if line.contains("\"ask\"") {
                assert!(asks_to_stop(line).is_some(), "{line}");
                asks += 1;
            } else {
                assert!(matches!(Event::of_line(line), Ok(Some(_))), "{line}: {:?}", Event::of_line(line));
                events += 1;
            }
        }
        assert_eq!((events, asks), (10, 2));
        let unpack::Bounds { bytes, entries } = unpack::Bounds::CODE;
        assert!(page.contains(&format!("{} GiB or {},000 files", bytes >> 30, entries / 1000)));
        assert!(page.contains(&format!("else {KEEP}) newest ones")));
        assert!(page.contains(&format!("exits with {TRY_AGAIN} ")));
        assert!(page.contains(&format!("A line longer than {} MiB", mloc_exec::event::LINE_BYTES_MAX >> 20)));
        assert!(page.contains(&format!("| `MLOC_PROTOCOL` | `{PROTOCOL}`")));
    }

    #[test]
    fn what_an_exit_means_for_another_try() {
        for (ended, again, says) in [
            (Ended::Code(1), false, "exited with 1"),
            (Ended::Code(75), true, "another try may do"),
            (Ended::Code(137), true, "signal 9 (SIGKILL): out of memory?"),
            (Ended::Signal(9), true, "signal 9 (SIGKILL): out of memory?"),
            (Ended::Signal(11), true, "signal 11 (SIGSEGV)"),
        ] {
            let error = unsaid(Some(ended));
            assert_eq!(matches!(error, ModuleError::Retryable(_)), again, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
