//! A reward function that is a program of the user's own, held to its folders like that of a `command` task. It is asked
//! a line of JSON a batch and answers with a line:
//!
//! ```text
//! {"prompts": […], "completions": […], "completion_ids": [[…], …], "columns": {"answer": […], …}}
//! [1.0, 0.25, null, …]
//! ```
//! One number a completion, `null` where it has nothing to say. Lines of its that begin with anything but `[` are the
//! task's log. A run that goes on from a checkpoint asks a fresh program: what it says should follow from the question.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

use mloc_core::task::reward::Reward;
use mloc_exec::{ModuleError, RunContext, tree};
use serde_json::Value;

use crate::{
    command::{code, sandbox},
    fatal,
};

/// How often it is looked whether the task is to stop.
const LOOK: Duration = Duration::from_millis(100);
/// An answer longer than this is a mistake.
const LINE_MAX: usize = 16 << 20;
/// Of the child's own environment; what is ours alone stays out.
const OUR_OWN: [&str; 3] = ["MLOC_FAILPOINT", "RUST_LOG", "RUST_BACKTRACE"];

/// A running program.
pub struct Program {
    child: Child,
    /// Its own.
    folder: PathBuf,
    questions: SyncSender<String>,
    answers: Receiver<io::Result<String>>,
}

impl Program {
    /// Starts it in a fresh copy of the task's `reward.code`, in a folder named after the function.
    ///
    /// # Errors
    /// That this node runs no programs of its users, or cannot start this one.
    pub fn start(ctx: &mut RunContext, name: &str, argv: &[String], reward: &Reward) -> Result<Self, ModuleError> {
        let programs = ctx.run().programs.clone().ok_or_else(|| {
            let hint =
                "hint: set modules.command.enabled: true in its node.yaml, when its users are to be trusted so far";
            ModuleError::Retryable(format!("reward function `{name}`: this node runs no programs of its users\n{hint}"))
        })?;
        let [first, arguments @ ..] = argv else {
            return Err(fatal(format!("reward function `{name}`: it names no program")));
        };
        let folder = ctx.run().work.join("reward").join(name);
        let disk = |path: &Path, e: &io::Error| ModuleError::disk("make", path, e);
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(disk(&folder, &e)),
            _ => {}
        }
        let [code, home, tmp] = ["code", "home", "tmp"].map(|part| folder.join(part));
        for path in [&code, &home, &tmp] {
            fs::create_dir_all(path).map_err(|e| disk(path, &e))?;
        }
        if let Some(pulled) = &ctx.run().inputs.code {
            code::bring(pulled, &code).map_err(|e| fatal(format!("reward.code.source: {e}")))?;
        }
        let workdir = reward.code.as_ref().and_then(|code| code.workdir.as_deref());
        let start_in = workdir.map_or_else(|| code.clone(), |workdir| code.join(workdir));
        if !start_in.canonicalize().is_ok_and(|found| found.is_dir() && found.starts_with(&folder)) {
            let workdir = workdir.unwrap_or_default();
            return Err(fatal(format!("reward.code.workdir: there is no folder `{workdir}` in the code")));
        }
        let mut process = Command::new(first);
        process.args(arguments).current_dir(&start_in);
        process.env_clear().envs(environment(ctx, &home, &tmp));
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
        let fence = sandbox::Fence {
            mode: programs.sandbox,
            writable: vec![code, home, tmp],
            readable: Vec::new(),
            hidden: programs.hidden,
        };
        let (child, unheld) = sandbox::spawn(fence, process)
            .map_err(|said| ModuleError::Retryable(format!("reward function `{name}`: {said}")))?;
        if let Some(why) = unheld {
            ctx.warn(format_args!("reward function `{name}`: the program is not held to its folders: {why}"));
        }
        Self::heard(child, folder).map_err(|e| ModuleError::Retryable(format!("reward function `{name}`: {e}")))
    }

    /// With threads that write and read: neither side ever waits for the other to empty a pipe.
    fn heard(mut child: Child, folder: PathBuf) -> io::Result<Self> {
        let (questions, to_write) = sync_channel::<String>(1);
        let (tell, answers) = sync_channel(1);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let this = Self { child, folder, questions, answers };
        thread::Builder::new().name("reward questions".into()).spawn(move || {
            let Some(mut stdin) = stdin else { return };
            for line in to_write {
                // Who has gone does not answer, and that is told then.
                if stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                    return;
                }
            }
        })?;
        thread::Builder::new().name("reward answers".into()).spawn(move || {
            let Some(stdout) = stdout else { return };
            let mut lines = BufReader::new(stdout);
            loop {
                let read = line_of(&mut lines);
                let ended = !matches!(&read, Ok(Some(_)));
                match read {
                    Ok(Some(line)) if !line.trim_start().starts_with('[') => {
                        io::stderr().write_all(line.as_bytes()).unwrap_or(());
                    }
                    Ok(Some(line)) => {
                        if tell.send(Ok(line)).is_err() {
                            return;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => tell.send(Err(error)).unwrap_or(()),
                }
                if ended {
                    return;
                }
            }
        })?;
        Ok(this)
    }

    /// One number for each of `count` completions.
    ///
    /// # Errors
    /// An answer that is none, an end before the answer, and that it was asked to stop.
    pub fn ask(&mut self, ctx: &RunContext, question: &Value, count: usize) -> Result<Vec<Option<f64>>, ModuleError> {
        // A program that has ended is told of below.
        self.questions.send(format!("{question}\n")).unwrap_or(());
        let line = loop {
            ctx.check()?;
            match self.answers.recv_timeout(LOOK) {
                Ok(line) => break line.map_err(|e| fatal(format!("its answer cannot be read: {e}")))?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
        };
        let shown = mloc_exec::event::bounded(line.trim_end(), 200);
        let answer: Vec<Option<f64>> = serde_json::from_str(&line)
            .map_err(|e| fatal(format!("the program answered `{shown}`, expected a list of numbers and nulls: {e}")))?;
        if answer.len() != count {
            return Err(fatal(format!(
                "the program answered with {} numbers, expected {count}, one a completion: `{shown}`",
                answer.len()
            )));
        }
        Ok(answer)
    }

    fn ended(&mut self) -> ModuleError {
        let how = match self.child.try_wait() {
            Ok(Some(status)) => format!(" ({status})"),
            _ => String::new(),
        };
        fatal(format!("the program ended{how} before it answered\nhint: its log says why, if it said so"))
    }
}

/// The next line with its end; `None` at the end.
fn line_of(lines: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    io::Read::take(&mut *lines, LINE_MAX as u64).read_line(&mut line)?;
    if line.len() == LINE_MAX {
        return Err(io::Error::other(format!("a line of more than {LINE_MAX} bytes")));
    }
    Ok(Some(line).filter(|line| !line.is_empty()))
}

impl Drop for Program {
    fn drop(&mut self) {
        // With all that it started.
        let process = i32::try_from(self.child.id()).ok().and_then(tree::Process::of);
        if let Err(error) = tree::kill_all(process, &self.folder) {
            writeln!(io::stderr(), "mloc: {error}").ok();
        }
        self.child.wait().ok();
    }
}

fn environment(ctx: &RunContext, home: &Path, tmp: &Path) -> BTreeMap<String, String> {
    let mut environment: BTreeMap<String, String> =
        std::env::vars().filter(|(name, _)| !OUR_OWN.contains(&name.as_str())).collect();
    let text = |path: &Path| path.display().to_string();
    let own = [("HOME", text(home)), ("TMPDIR", text(tmp)), ("PYTHONUNBUFFERED", "1".to_owned())];
    environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
    environment.extend(ctx.run().spec.env.clone());
    environment
}
