//! Runs one task file in this process, without a node: every folder beside the file is a volume of its name.
//!
//! ```text
//! cargo run --release -p mloc-modules --example run_task -- TASK.yaml WORK_FOLDER [VOLUME=FOLDER]...
//! ```
//! Artifacts are left in WORK_FOLDER/artifacts; a run that was cut goes on from WORK_FOLDER/checkpoints.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use mloc_core::{
    capability::Grant,
    id::{AttemptId, TaskId},
    task::{self, spec::Location},
};
use mloc_exec::{Event, Inputs, Programs, Run, Sandbox, child, event::Level, run::RUN_VERSION};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "run_task TASK.yaml WORK_FOLDER [VOLUME=FOLDER]...";
    let file = PathBuf::from(arguments.next().context(usage)?);
    let work = PathBuf::from(arguments.next().context(usage)?);
    let volumes: BTreeMap<String, PathBuf> = arguments
        .map(|a| a.split_once('=').map(|(name, folder)| (name.to_owned(), folder.into())).context(usage))
        .collect::<Result<_>>()?;
    let beside = file.parent().unwrap_or(Path::new("."));
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let parsed = task::parse(&text, &file.display().to_string())?;
    for note in &parsed.notes {
        eprintln!("{note}");
    }
    let spec = parsed.spec;
    let resolve = |location: &Location| -> Result<PathBuf> {
        let Location::Local { path } = location else { bail!("{} is not on this disk", location.scheme()) };
        let (volume, rest) = path.split_once('/').unwrap_or((path, ""));
        Ok(volumes.get(volume).cloned().unwrap_or_else(|| beside.join(volume)).join(rest))
    };
    let mut inputs = Inputs::default();
    for (input, source) in spec.sources() {
        *inputs.of(input) = Some(resolve(source)?);
    }
    let run = Run {
        v: RUN_VERSION,
        attempt: AttemptId { task: TaskId::new("run_task"), replica: 0, attempt: 1 },
        grant: Grant::default(),
        inputs,
        pins: BTreeMap::new(),
        started_unix_ms: 0,
        artifacts: work.join("artifacts"),
        checkpoints: work.join("checkpoints"),
        result: work.join("result.json"),
        threads: std::thread::available_parallelism()?.get(),
        cpu_devices: 1,
        siblings: None,
        keep_checkpoints: 0,
        work: work.join("work"),
        // The user's own process and the user's own program.
        programs: Some(Programs { sandbox: Sandbox::BestEffort, hidden: Vec::new(), processes: Programs::PROCESSES }),
        memory: Default::default(),
        spec,
    };
    let began = Instant::now();
    let tell = move |event: &Event| {
        let at = began.elapsed().as_secs_f64();
        match event {
            Event::Log { level: Level::Warn, text } => eprintln!("{at:8.1} s  warning: {text}"),
            Event::Log { text, .. } => eprintln!("{at:8.1} s  {text}"),
            Event::Progress(p) => eprintln!(
                "{at:8.1} s  step {} of {}  loss {:.4}  {:.0} tokens/s",
                p.step,
                p.total_steps.unwrap_or_default(),
                p.loss.unwrap_or_default(),
                p.tokens_per_second.unwrap_or_default()
            ),
            Event::Checkpoint { step, .. } => eprintln!("{at:8.1} s  checkpoint of step {step}"),
            _ => {}
        }
    };
    let output = child::run_module(run, Arc::new(AtomicBool::new(false)), Arc::new(tell), mloc_modules::registry())?;
    println!("{}", serde_json::to_string_pretty(&output.summary)?);
    eprintln!("{:8.1} s in all", began.elapsed().as_secs_f64());
    Ok(())
}
