//! The child's main: `mloc __attempt run.json`.
//!
//! Its stdout becomes the events' own descriptor and everything else that prints goes to stderr, the attempt's log;
//! its stdin brings asks. When stdin ends the daemon is gone, and with it everyone who could stop this process: it
//! is asked to stop, and kills its whole process group and all it started when it does not.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::fd::AsFd,
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mloc_core::task::artifacts;

use crate::{
    checkpoint,
    context::{Asked, RunContext, Tell},
    event::{self, Event},
    failpoint,
    module::{Module, ModuleError, ModuleOutput},
    run::Run,
    tree,
};

/// A module that notices has long stopped by then; one that does not must not hold a GPU for ever.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);
/// Deep models recurse, and debug builds have large frames.
const STACK_BYTES: usize = 64 << 20;

/// Runs one attempt to its end. The last thing it does to this process: descriptors 0 and 1 are not what they were.
pub fn main(run_file: &Path, modules: &[&'static dyn Module]) -> ExitCode {
    let (events, asks) = match take_descriptors() {
        Ok(taken) => taken,
        Err(e) => {
            eprintln!("cannot take stdin and stdout: {e}");
            return ExitCode::from(2);
        }
    };
    if let Err(e) = tree::take_in_orphans() {
        eprintln!("what is orphaned below this process may be overlooked when it is killed: {e}");
    }
    let asked = Asked::default();
    let tell = teller(events, asked.stop.clone());
    tell(&Event::Hello {
        pid: std::process::id(),
        version: crate::VERSION.into(),
        cpu_features: crate::cpu_features(),
    });
    if let Err(e) = listen(asks, asked.clone()) {
        eprintln!("cannot listen to the daemon: {e}");
        return ExitCode::from(2);
    }
    let ended = match Run::read(run_file) {
        Ok(run) => on_own_thread(run, asked, tell.clone(), modules),
        Err(e) => Err(ModuleError::Fatal(e.to_string())),
    };
    match ended {
        Ok(output) => {
            tell(&Event::Result(output));
            failpoint::reached("result.event");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let message = event::bounded(&error.to_string(), event::MESSAGE_BYTES_MAX);
            tell(&Event::Error { class: error.class(), message });
            ExitCode::FAILURE
        }
    }
}

/// Runs a module on this thread: what tests of modules call too. Its files are durable and `run.result` names them
/// when this returns.
///
/// # Errors
/// What the module says.
pub fn run_module(
    run: Run,
    stop: Arc<AtomicBool>,
    tell: Tell,
    modules: &[&'static dyn Module],
) -> Result<ModuleOutput, ModuleError> {
    run_asked(run, Asked { stop, ..Asked::default() }, tell, modules)
}

fn run_asked(run: Run, asked: Asked, tell: Tell, modules: &[&'static dyn Module]) -> Result<ModuleOutput, ModuleError> {
    let wanted = run.spec.task_type.name();
    let module = modules.iter().find(|m| m.name() == wanted).ok_or_else(|| {
        let there = modules.iter().map(|m| m.name()).collect::<Vec<_>>().join(", ");
        ModuleError::Fatal(format!("this build has no module `{wanted}`; it has {there}"))
    })?;
    for dir in [&run.artifacts, &run.checkpoints] {
        std::fs::create_dir_all(dir).map_err(|e| ModuleError::disk("make", dir, &e))?;
    }
    let (folder, result) = (run.artifacts.clone(), run.result.clone());
    let mut ctx = RunContext::new(run, asked, tell)?;
    let mut output = module.run(&mut ctx)?;
    let asked = &ctx.run().spec.output.artifacts;
    output.outputs.retain(|made| artifacts::wanted(asked, &made.kind, &made.path));
    let made_of = |wish: &String| {
        let wish = std::slice::from_ref(wish);
        output.outputs.iter().any(|made| artifacts::wanted(wish, &made.kind, &made.path))
    };
    let missed: Vec<String> = asked.iter().filter(|wish| !made_of(wish)).cloned().collect();
    for wish in missed {
        ctx.warn(format!("output.artifacts asks for {wish}, and nothing of that was made"));
    }
    ctx.flush();
    for file in &output.outputs {
        let path = folder.join(&file.path);
        File::open(&path)
            .and_then(|f| f.sync_all())
            .map_err(|e| ModuleError::Fatal(format!("module `{wanted}` names the output {}: {e}", path.display())))?;
    }
    let folders: BTreeSet<&Path> =
        output.outputs.iter().flat_map(|made| Path::new(&made.path).ancestors().skip(1)).collect();
    for below in folders.into_iter().chain([Path::new("")]) {
        let dir = folder.join(below);
        checkpoint::sync_dir(&dir).map_err(|e| ModuleError::disk("sync", &dir, &e))?;
    }
    failpoint::reached("result.sync");
    let written = serde_json::to_vec_pretty(&output).map_err(io::Error::from);
    let written = written.and_then(|bytes| checkpoint::write_whole(&result, &bytes));
    written.map_err(|e| ModuleError::disk("write", &result, &e))?;
    failpoint::reached("result.write");
    Ok(output)
}

fn on_own_thread(
    run: Run,
    asked: Asked,
    tell: Tell,
    modules: &[&'static dyn Module],
) -> Result<ModuleOutput, ModuleError> {
    let name = run.spec.task_type.name();
    if let Some(module) = modules.iter().find(|module| module.name() == name) {
        module.set_up_process();
    }
    let modules = modules.to_vec();
    let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES);
    let module = thread
        .spawn(move || run_asked(run, asked, tell, &modules))
        .map_err(|e| ModuleError::Retryable(format!("cannot start a thread: {e}")))?;
    module.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(ModuleError::Fatal(format!(
            "module `{name}` panicked: {text}\nhint: this is a bug in mloc; the attempt's log has the place"
        )))
    })
}

/// The events' and the asks' own descriptors. From now on prints go to stderr, and nobody started from here inherits
/// either (std's clones close on exec).
fn take_descriptors() -> io::Result<(File, File)> {
    let events = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let asks = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    nix::unistd::dup2_stdout(io::stderr())?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok((events, asks))
}

fn teller(events: File, stop: Arc<AtomicBool>) -> Tell {
    let events = Mutex::new(events);
    Arc::new(move |event| {
        let line = event.to_line();
        let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.write_all(line.as_bytes()).is_err() {
            // Nobody reads: the daemon is gone.
            stop.store(true, Ordering::Relaxed);
        }
    })
}

fn listen(asks: File, asked: Asked) -> io::Result<()> {
    let listen = move || {
        for line in BufReader::new(asks).lines() {
            match line {
                Ok(line) => {
                    if let Some(stop) = event::asks_to_stop(&line) {
                        // Before the stop: who sees that one sees this one.
                        asked.no_checkpoint.fetch_or(!stop.checkpoint, Ordering::SeqCst);
                        asked.stop.store(true, Ordering::SeqCst);
                    }
                }
                Err(_) => break,
            }
        }
        asked.stop.store(true, Ordering::Relaxed);
        std::thread::sleep(ORPHAN_GRACE);
        // The log's reader was most likely the daemon. `eprintln!` panics without one, and then nobody would kill.
        writeln!(io::stderr(), "the daemon is gone and the module has not stopped: killing it and what it started")
            .ok();
        // They are found by this process alone: it does not go before they do. Each try takes seconds where one stays.
        while let Err(e) = tree::kill_descendants() {
            writeln!(io::stderr(), "{e}").ok();
        }
        let group = nix::unistd::getpgrp();
        // A child that was not given a group of its own must not take its neighbours along.
        if group == nix::unistd::getpid() {
            nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).ok();
        }
        std::process::abort();
    };
    std::thread::Builder::new().name("asks".into()).spawn(listen).map(drop)
}

/// What an attempt left in `result.json`; `None` when there is none, or none that can be read.
pub fn read_result(path: &Path) -> Option<ModuleOutput> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
