//! One start of a child, from its inputs to its end. Tells the worker what happens; the last word is always `Exited`.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use mloc_core::{
    id::{AttemptId, NodeId},
    ledger::entry::{Failure, FailureClass},
    task::spec::{Input, Location, Pin},
    wire::{Assign, Phase, Progress},
    worker::{ChildEvent, Exit},
};
use mloc_exec::{
    Arrived, Inputs, Moved, OnMoved, OnSaid, Run, checkpoint,
    child::read_result,
    event::{MESSAGE_BYTES_MAX, bounded},
    failpoint,
    run::RUN_VERSION,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, timeout},
};
use tracing::{info, warn};

use crate::{
    bounds, clock, devices,
    disk::DiskWatch,
    ending::{exit_of, unsaid},
    folders::Folders,
    host,
    launch::{self, Child},
    logs::{LOG_BYTES_MAX, LogFile},
    relay::{Local, Relay, Said, copy},
    serving::{
        Replicas, health,
        siblings::{ReplicaLink, Siblings},
    },
    tools::Tools,
};

/// Once the processes are gone nothing holds their pipes; should something, it is not waited for.
const PIPES_CLOSE: Duration = Duration::from_secs(2);
/// A process that does not go, even killed, waits for the kernel: a disk or a device.
const KILL_AGAIN: Duration = Duration::from_secs(5);
/// Of `timeouts.stop`, what a replica has to end what it has begun; the rest is for its program to stop.
const DRAIN_SHARE: f64 = 0.75;
/// `timeouts.stop` where a task does not say: the worker's own.
const STOP_UNSAID: Duration = Duration::from_secs(10);
/// Between two looks at the disk's free bytes.
const LOOK_AT_DISK: Duration = Duration::from_secs(1);

/// What is wanted of a running attempt. It only ever rises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    #[default]
    Go,
    /// Write a checkpoint and stop.
    Stop,
    /// Stop, without a checkpoint: nobody will go on from it.
    Drop,
    /// Die now.
    Kill,
}

/// What is the same for every attempt of this node.
pub(crate) struct Bench {
    pub node: NodeId,
    pub folders: Folders,
    pub program: PathBuf,
    pub tools: Arc<Tools>,
    pub disk: Arc<DiskWatch>,
    /// Replicas of services that run here.
    pub replicas: Arc<Replicas>,
    /// The way to those of other nodes.
    pub link: Arc<dyn ReplicaLink>,
}

/// One start.
pub(crate) struct Start {
    pub bench: Arc<Bench>,
    pub assign: Box<Assign>,
    pub wish: watch::Receiver<Wish>,
    pub outlet: Outlet,
    /// Marks of its inputs: they are not evicted while it runs.
    pub held: Vec<Arc<File>>,
    /// Its way to other shards of its task, where there are some.
    pub siblings: Option<Siblings>,
}

/// Where its events go. Figures never wait: only the newest matter.
#[derive(Clone)]
pub(crate) struct Outlet {
    pub attempt: AttemptId,
    pub run: u64,
    pub events: mpsc::Sender<(AttemptId, u64, ChildEvent)>,
    pub replicas: Arc<Replicas>,
}

impl Outlet {
    pub async fn say(&self, event: ChildEvent) {
        let event = match event {
            ChildEvent::Failed(failure) => ChildEvent::Failed(bounds::failure(failure)),
            ChildEvent::Exited(Exit::NotStarted { why }) => {
                ChildEvent::Exited(Exit::NotStarted { why: bounded(&why, MESSAGE_BYTES_MAX) })
            }
            other => other,
        };
        // The worker outlives its attempts, save at a shutdown, where nothing needs to be said.
        self.events.send((self.attempt.clone(), self.run, event)).await.ok();
    }

    pub fn figures(&self, phase: Phase, mut progress: Progress) {
        progress.serving = self.replicas.figures(&self.attempt);
        let phase = if progress.serving.as_ref().is_some_and(|serving| serving.ready) { Phase::Serving } else { phase };
        self.events.try_send((self.attempt.clone(), self.run, ChildEvent::Progress { phase, progress })).ok();
    }
}

/// What a child is given to read.
struct Pulled {
    inputs: Inputs,
    pins: BTreeMap<Input, Pin>,
}

/// Why there is no child to speak of.
enum NoChild {
    /// It was told to stop before.
    Stopped,
    /// Nothing is left to compute.
    Done,
    /// It cannot be.
    Failed(Failure),
}

impl From<Failure> for NoChild {
    fn from(failure: Failure) -> Self {
        NoChild::Failed(failure)
    }
}

fn disk(action: &str, path: &Path, source: &io::Error) -> Failure {
    Failure { class: FailureClass::Retryable, message: format!("cannot {action} {}: {source}", path.display()) }
}

/// Runs one start to its end.
pub(crate) async fn run(mut start: Start) {
    let outlet = start.outlet.clone();
    let exit = match start.prepare().await {
        Ok((log, child)) => start.attend(&log, child).await,
        Err(NoChild::Stopped) => Exit::NotStarted { why: "it was told to stop before its child was started".into() },
        Err(NoChild::Done) => {
            outlet.say(ChildEvent::Computed).await;
            Exit::Code(0)
        }
        Err(NoChild::Failed(failure)) => {
            let why = failure.message.clone();
            if let Ok(log) = LogFile::open(&start.bench.folders.log(&outlet.attempt), LOG_BYTES_MAX) {
                log.line(&format!("error: {why}"));
            }
            outlet.say(ChildEvent::Failed(failure)).await;
            Exit::NotStarted { why }
        }
    };
    outlet.say(ChildEvent::Exited(exit)).await;
}

impl Start {
    fn id(&self) -> &AttemptId {
        &self.assign.attempt
    }

    /// Inputs, checkpoint, run file, process.
    async fn prepare(&mut self) -> Result<(Arc<LogFile>, Child), NoChild> {
        let (bench, id) = (self.bench.clone(), self.id().clone());
        // A daemon that was started again goes on with the same attempt.
        let before = Run::read(&bench.folders.run_file(&id)).ok().filter(|run| run.attempt == id);
        let started_unix_ms = before.map_or_else(clock::unix_ms, |run| run.started_unix_ms);
        let dir = bench.folders.attempt(&id);
        std::fs::create_dir_all(&dir).map_err(|e| disk("make", &dir, &e))?;
        let path = bench.folders.log(&id);
        let log = Arc::new(LogFile::open(&path, LOG_BYTES_MAX).map_err(|e| disk("open", &path, &e))?);
        if read_result(&bench.folders.result(&id)).is_some() {
            log.line("mloc: it had computed everything before the daemon was started again");
            return Err(NoChild::Done);
        }
        let (folders, this) = (bench.folders.clone(), id.clone());
        let taken = tokio::task::spawn_blocking(move || take_over(&folders, &this)).await.map_err(io::Error::other);
        if let Some(number) = taken.and_then(|taken| taken).map_err(|e| disk("take over a result into", &dir, &e))? {
            log.line(&format!(
                "mloc: attempt {number} had computed everything on this node: nothing is left to compute"
            ));
            return Err(NoChild::Done);
        }
        if let Some(failure) = self.disk_short().await {
            return Err(failure.into());
        }
        // Before anything is pulled for nothing.
        let environment = self.environment()?;
        let mut wish = self.wish.clone();
        let pulled = tokio::select! {
            biased;
            _ = wish.wait_for(|wish| *wish > Wish::Go) => return Err(NoChild::Stopped),
            pulled = self.pull(&log) => pulled?,
        };
        self.siblings = self.reach_siblings(&dir).map_err(|e| disk("listen in", &dir, &e))?;
        let run_file = self.write_run_file(pulled, started_unix_ms).await?;
        failpoint::reached("attempt.run_file");
        let child = launch::start(&bench.program, &run_file, &dir, &environment, &self.held)
            .map_err(|e| Failure { class: FailureClass::Retryable, message: e.to_string() })?;
        failpoint::reached("attempt.spawned");
        Ok((log, child))
    }

    fn reach_siblings(&self, dir: &Path) -> io::Result<Option<Siblings>> {
        let spec = &self.assign.spec;
        let (Some(service), Some(shards)) = (&spec.service, spec.shards()) else { return Ok(None) };
        let (name, bench) = (service.served_name.as_str(), &self.bench);
        Siblings::open(dir, self.id(), (name, shards), bench.replicas.clone(), bench.link.clone()).map(Some)
    }

    async fn disk_short(&self) -> Option<Failure> {
        let watch = self.bench.disk.clone();
        tokio::task::spawn_blocking(move || watch.short()).await.ok().flatten()
    }

    async fn pull(&mut self, log: &Arc<LogFile>) -> Result<Pulled, NoChild> {
        let bench = self.bench.clone();
        let spec = self.assign.spec.clone();
        let transfers = bench.tools.transfers();
        if let Some(destination) = &spec.output.destination
            && transfers.published(self.id(), destination).await?.is_some()
        {
            log.line("mloc: an earlier attempt published the result and could not say so: nothing is left to compute");
            return Err(NoChild::Done);
        }
        self.bring_checkpoint(log).await?;
        let mut inputs = Inputs::default();
        let mut pins = BTreeMap::new();
        for (input, source) in spec.sources() {
            let arrived = self.pull_one(input, source, log).await?;
            pins.extend(arrived.pin.map(|pin| (input, pin)));
            *inputs.of(input) = Some(arrived.path);
        }
        let new: BTreeMap<_, _> = pins
            .iter()
            .filter(|(input, _)| !self.assign.pins.contains_key(input))
            .map(|(i, p)| (*i, p.clone()))
            .collect();
        if !new.is_empty() {
            self.outlet.say(ChildEvent::Pinned(new)).await;
        }
        Ok(Pulled { inputs, pins })
    }

    async fn pull_one(&mut self, input: Input, source: &Location, log: &Arc<LogFile>) -> Result<Arrived, Failure> {
        let what = name(input);
        log.line(&format!("mloc: pulling the {what}"));
        let (told, said) = (self.tell(Phase::Pulling, what), self.say(what, log));
        let pin = self.assign.pins.get(&input);
        let mut arrived = self.bench.tools.transfers().pull(source, pin, told, said).await?;
        if let Some(pin) = &arrived.pin {
            log.line(&format!(
                "mloc: the {what} is version {} ({} files, {} bytes)",
                pin.version, pin.files, pin.bytes
            ));
        }
        self.held.extend(arrived.held.take());
        Ok(arrived)
    }

    /// Whichever is further and whole: the newest here, or the newest at the shared place.
    async fn bring_checkpoint(&self, log: &LogFile) -> Result<(), NoChild> {
        let Some(shared) = &self.assign.spec.checkpoint.destination else { return Ok(()) };
        let all = self.bench.folders.checkpoints(self.id());
        std::fs::create_dir_all(&all).map_err(|e| disk("make", &all, &e))?;
        let at = all.clone();
        let here = tokio::task::spawn_blocking(move || checkpoint::find_newest_valid(&at));
        let here = here.await.map_err(io::Error::other).and_then(|found| found);
        let (here, _) = here.map_err(|e| disk("read", &all, &e))?;
        let there = self.assign.checkpoint.as_ref().map(|c| c.step);
        // Without one here it is worth a look even when the ledger knows of none: its report may have been lost.
        if here.as_ref().is_some_and(|here| there.is_none_or(|there| there <= here.step)) {
            return Ok(());
        }
        let into = all.join(".fetched");
        let told = self.tell(Phase::Pulling, "checkpoint");
        let Some(fetched) = self.bench.tools.transfers().fetch_checkpoint(self.id(), shared, &into, told).await? else {
            return Ok(());
        };
        if here.is_some_and(|here| here.step >= fetched.step) {
            return Ok(());
        }
        let (at, step) = (all.clone(), fetched.step);
        // Hashing takes as long as reading it.
        let kept = tokio::task::spawn_blocking(move || match checkpoint::verify(&into, step) {
            Ok(_) => checkpoint::adopt(&into, &at, step).map(|_| format!("brought the checkpoint of step {step}")),
            Err(found) => Ok(format!("the shared checkpoint of step {step} is damaged: {found}")),
        });
        let kept = kept.await.map_err(io::Error::other).and_then(|kept| kept);
        log.line(&format!("mloc: {}", kept.map_err(|e| disk("keep a checkpoint in", &all, &e))?));
        Ok(())
    }

    async fn write_run_file(&self, pulled: Pulled, started_unix_ms: u64) -> Result<PathBuf, NoChild> {
        let (folders, id) = (&self.bench.folders, self.id());
        let artifacts = folders.artifacts(id);
        // A start from a checkpoint writes all of it again.
        match tokio::fs::remove_dir_all(&artifacts).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(disk("empty", &artifacts, &e).into()),
            _ => {}
        }
        let path = folders.run_file(id);
        let spec = self.assign.spec.clone();
        let keep = spec.hyperparameters.get("save_total_limit").and_then(serde_json::Value::as_u64);
        let gpus = self.assign.grant.gpus.clone();
        // Without figures nobody refuses a task for want of memory.
        let memory = tokio::task::spawn_blocking(move || host::memory(&gpus)).await.unwrap_or_default();
        let run = Run {
            v: RUN_VERSION,
            attempt: id.clone(),
            spec,
            grant: self.assign.grant.clone(),
            inputs: pulled.inputs,
            pins: pulled.pins,
            started_unix_ms,
            artifacts,
            checkpoints: folders.checkpoints(id),
            result: folders.result(id),
            threads: devices::threads(&self.assign.grant),
            work: folders.work(id),
            programs: self.bench.tools.programs(),
            cpu_devices: 1,
            memory,
            siblings: self.siblings.as_ref().map(|siblings| siblings.socket().to_owned()),
            keep_checkpoints: keep.and_then(|keep| usize::try_from(keep).ok()).unwrap_or(0),
        };
        run.write(&path).map_err(|e| disk("write", &path, &e))?;
        Ok(path)
    }

    fn environment(&self) -> Result<BTreeMap<String, String>, Failure> {
        let spec = &self.assign.spec;
        let mut environment = spec.env.clone();
        for name in &spec.secrets_from {
            let secret = self.bench.tools.secret(name).ok_or_else(|| Failure {
                // Another node may have it.
                class: FailureClass::Retryable,
                message: format!("this node has no secret `{name}`\nhint: add it under `secrets` in its node.yaml, or name a node that has it in spec.placement"),
            })?;
            environment.insert(name.clone(), secret);
        }
        environment.extend(devices::environment(&self.assign.grant).into_iter().map(|(k, v)| (k.to_owned(), v)));
        Ok(environment)
    }

    /// Bytes of a transfer as figures.
    fn tell(&self, phase: Phase, what: &str) -> OnMoved {
        tell(&self.outlet, phase, format!("pulling the {what}"))
    }

    /// What a pull has to say beside its bytes, as lines of the log and as a note.
    fn say(&self, what: &'static str, log: &Arc<LogFile>) -> OnSaid {
        let (outlet, log) = (self.outlet.clone(), log.clone());
        Arc::new(move |text| {
            log.line(&format!("mloc: the {what}: {text}"));
            let note = Some(format!("pulling the {what}: {text}"));
            outlet.figures(Phase::Pulling, Progress { note, ..Progress::default() });
        })
    }

    /// Relays what the child says until it and all it started are gone.
    async fn attend(&mut self, log: &LogFile, mut child: Child) -> Exit {
        let id = self.id().clone();
        let oom_before = launch::oom_kills();
        let (push, pushes) = watch::channel(None);
        let (listens, listening) = watch::channel(None);
        let mut relay = Relay::new(self.outlet.clone(), log, push, self.bench.folders.pushing(&id), listens);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut wish = self.wish.clone();
        let mut relaying = Box::pin(relay.events(stdout));
        let mut copying = Box::pin(copy(stderr, log));
        let (mut relayed, mut copied, mut pushed) = (false, false, false);
        let pusher = self.push_all(pushes, log);
        let mut pushing = Box::pin(pusher);
        let spec = &self.assign.spec;
        let serves = spec.service.is_some();
        let _entry = spec.service.as_ref().map(|service| self.bench.replicas.enter(&id, &service.served_name));
        let mut looking = Box::pin(health::look_after(&self.bench.replicas, spec, &self.outlet, listening));
        let mut leaving =
            Box::pin(leave(self.bench.replicas.clone(), id.clone(), self.wish.clone(), spec.timeouts.stop_ms));
        let mut left = !serves;
        let mut look = tokio::time::interval(LOOK_AT_DISK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut full = None;
        let status = loop {
            let asked = *wish.borrow();
            tokio::select! {
                biased;
                Ok(()) = wish.changed() => {
                    let wanted = *wish.borrow();
                    match wanted {
                        Wish::Go => {}
                        // It answers first what it has begun.
                        Wish::Stop | Wish::Drop if serves => {}
                        Wish::Stop => child.ask_to_stop(true).await,
                        Wish::Drop => child.ask_to_stop(false).await,
                        Wish::Kill => kill(&child, &id, log).await,
                    }
                }
                status = child.wait() => break status,
                () = &mut leaving, if !left => {
                    left = true;
                    child.ask_to_stop(false).await;
                }
                failure = &mut looking, if serves && full.is_none() => {
                    log.line(&format!("mloc: {}", failure.message));
                    full = Some(failure);
                    kill(&child, &id, log).await;
                }
                () = &mut relaying, if !relayed => {
                    relayed = true;
                    // It lives on and says nothing more, or nothing that can be understood.
                    if asked < Wish::Kill {
                        tokio::select! {
                            _ = child.wait() => {}
                            () = tokio::time::sleep(PIPES_CLOSE) => kill(&child, &id, log).await,
                        }
                    }
                }
                () = &mut copying, if !copied => copied = true,
                () = &mut pushing, if !pushed => pushed = true,
                _ = look.tick(), if full.is_none() => {
                    full = self.disk_short().await;
                    if full.is_some() {
                        // A checkpoint would need room as well; there are those it has written.
                        kill(&child, &id, log).await;
                    }
                }
            }
        };
        // Whatever it started goes with it: slots are free only when nothing computes any more.
        let held_back = |error: &io::Error| {
            warn!(attempt = %id, %error, "processes are left: its slots stay taken");
            log.line(&format!("mloc: {error}: this attempt's slots stay taken until they are gone"));
            let note = format!("{error}: its slots stay taken until they are gone");
            self.outlet.figures(Phase::Training, Progress { note: Some(note), ..Progress::default() });
        };
        until_gone(|| child.kill_all(), KILL_AGAIN, held_back).await;
        let rest = async {
            tokio::join!(
                async {
                    if !relayed {
                        relaying.as_mut().await;
                    }
                },
                async {
                    if !copied {
                        copying.as_mut().await;
                    }
                }
            )
        };
        if timeout(PIPES_CLOSE, rest).await.is_err() {
            log.line("mloc: something still holds the child's pipes");
        }
        drop((relaying, looking));
        let Relay { said, push, needs, .. } = relay;
        // The last checkpoint still goes out, unless nobody needs it any more.
        drop(push);
        let needed = !matches!(said, Some(Said::Result));
        if needed && !pushed {
            tokio::select! {
                biased;
                _ = wish.wait_for(|wish| *wish >= Wish::Drop) => {}
                () = &mut pushing => {}
            }
        }
        drop(pushing);
        let exit = exit_of(status);
        log.finish();
        let said = match full {
            Some(failure) if !matches!(said, Some(Said::Result | Said::Stopped)) => Some(Said::Error(failure)),
            _ => said,
        };
        let unsaid = unsaid(&exit, oom_before, needs.as_ref());
        self.conclude(said, unsaid, log).await;
        info!(attempt = %id, ?exit, "child gone");
        exit
    }

    /// Says how it ended, as well as can be known.
    async fn conclude(&self, said: Option<Said>, unsaid: Option<String>, log: &LogFile) {
        let outlet = &self.outlet;
        match said {
            Some(Said::Result) => outlet.say(ChildEvent::Computed).await,
            Some(Said::Error(failure)) => {
                log.line(&format!("mloc: failed: {}", failure.message));
                outlet.say(ChildEvent::Failed(failure)).await;
            }
            Some(Said::Stopped) => log.line("mloc: stopped as asked"),
            None if *self.wish.borrow() > Wish::Go => log.line("mloc: stopped"),
            None => {
                if let Some(message) = unsaid {
                    log.line(&format!("mloc: {message}"));
                    outlet.say(ChildEvent::Failed(Failure { class: FailureClass::Retryable, message })).await;
                }
            }
        }
    }

    /// Pushes checkpoints to the shared place, always the newest; ends when no more can come.
    async fn push_all(&self, mut pushes: watch::Receiver<Option<Local>>, log: &LogFile) {
        let Some(shared) = &self.assign.spec.checkpoint.destination else {
            while pushes.changed().await.is_ok() {}
            return;
        };
        // After the last sender is gone `changed` still tells of a value that was not seen.
        while pushes.changed().await.is_ok() {
            let Some(local) = pushes.borrow_and_update().clone() else { continue };
            failpoint::reached("attempt.push");
            // The child computes on meanwhile: its figures are the attempt's, not those of the push.
            let untold: OnMoved = Arc::new(|_| {});
            let Local { step, held, retention } = &local;
            match self
                .bench
                .tools
                .transfers()
                .push_checkpoint(self.id(), shared, *step, held.dir(), *retention, untold)
                .await
            {
                Ok(reference) => {
                    failpoint::reached("attempt.pushed");
                    log.line(&format!("mloc: the checkpoint of step {step} is at the shared place"));
                    self.outlet.say(ChildEvent::Pushed(reference)).await;
                }
                // It goes on here; the next one may get through.
                Err(failure) => {
                    warn!(attempt = %self.id(), step, error = failure.message, "checkpoint not pushed");
                    log.line(&format!("mloc: the checkpoint of step {step} stays on this node: {}", failure.message));
                }
            }
        }
    }
}

/// The result that an earlier attempt of this replica left on this disk, with its artifacts: they become this one's.
/// Says whose they were. Blocks.
fn take_over(folders: &Folders, id: &AttemptId) -> io::Result<Option<u32>> {
    for number in (0..id.attempt).rev() {
        let earlier = AttemptId { attempt: number, ..id.clone() };
        let Some(made) = read_result(&folders.result(&earlier)) else { continue };
        let artifacts = folders.artifacts(&earlier);
        if !made.outputs.iter().all(|output| artifacts.join(&output.path).is_file()) {
            continue;
        }
        let mine = folders.artifacts(id);
        match std::fs::remove_dir_all(&mine) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // The result last: without its artifacts it would be believed.
        if folders.run_file(&earlier).exists() {
            std::fs::rename(folders.run_file(&earlier), folders.run_file(id))?;
        }
        std::fs::rename(&artifacts, &mine)?;
        checkpoint::sync_dir(&folders.attempt(id))?;
        std::fs::rename(folders.result(&earlier), folders.result(id))?;
        checkpoint::sync_dir(&folders.attempt(id))?;
        return Ok(Some(number));
    }
    Ok(None)
}

/// What an input is called before people.
fn name(input: Input) -> &'static str {
    match input {
        Input::Model => "model",
        Input::Adapter => "adapter",
        Input::Dataset => "data set",
        Input::Eval => "held-out data",
        Input::Code => "code",
        Input::Reward => "reward model",
        Input::Reference => "reference model",
        Input::Value => "value model",
        Input::Embedder => "embedding model",
        Input::Reranker => "reranking model",
    }
}

/// Returns when a replica that is to stop has answered what it had begun, or its time for that is over.
async fn leave(replicas: Arc<Replicas>, id: AttemptId, mut wish: watch::Receiver<Wish>, stop_ms: Option<u64>) {
    // The sender outlives its attempts.
    wish.wait_for(|wish| *wish > Wish::Go).await.ok();
    replicas.drain(&id);
    let time = stop_ms.map_or(STOP_UNSAID, Duration::from_millis).mul_f64(DRAIN_SHARE);
    if timeout(time, replicas.drained(&id)).await.is_err() {
        info!(attempt = %id, "requests are under way still: it is asked to stop all the same");
    }
}

/// Kills until nothing is left to kill; says why it takes long whenever that changes.
async fn until_gone<K: Future<Output = io::Result<()>>>(
    kill: impl Fn() -> K,
    again: Duration,
    held_back: impl Fn(&io::Error),
) {
    let mut said = None;
    while let Err(error) = kill().await {
        let text = error.to_string();
        if said.as_ref() != Some(&text) {
            held_back(&error);
            said = Some(text);
        }
        tokio::time::sleep(again).await;
    }
}

async fn kill(child: &Child, id: &AttemptId, log: &LogFile) {
    if let Err(error) = child.kill_all().await {
        warn!(attempt = %id, %error, "processes are left");
        log.line(&format!("mloc: {error}"));
    }
}

/// Bytes of a transfer as figures of an attempt.
fn tell(outlet: &Outlet, phase: Phase, note: String) -> OnMoved {
    let outlet = outlet.clone();
    Arc::new(move |moved: Moved| {
        let (bytes_done, bytes_total) = (Some(moved.done), (moved.total > 0).then_some(moved.total));
        outlet.figures(phase, Progress { bytes_done, bytes_total, note: Some(note.clone()), ..Default::default() });
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use mloc_core::id::TaskId;

    use super::*;

    #[tokio::test]
    async fn slots_are_held_until_the_last_process_is_gone() {
        let (tries, said) = (Cell::new(0), Cell::new(0));
        let kill = || {
            tries.set(tries.get() + 1);
            std::future::ready(if tries.get() < 4 { Err(io::Error::other("process 7 does not go")) } else { Ok(()) })
        };
        until_gone(kill, Duration::ZERO, |_| said.set(said.get() + 1)).await;
        assert_eq!((tries.get(), said.get()), (4, 1));
    }

    #[test]
    fn a_successor_takes_over_what_is_whole() {
        let top = tempfile::tempdir().unwrap();
        let folders = Folders::new(top.path());
        let id = |attempt| AttemptId { task: TaskId::new("t"), replica: 0, attempt };
        let made = r#"{"outputs":[{"path":"text","kind":"echo"}],"summary":{}}"#;
        for number in [1, 2] {
            std::fs::create_dir_all(folders.artifacts(&id(number))).unwrap();
            std::fs::write(folders.result(&id(number)), made).unwrap();
        }
        std::fs::create_dir_all(folders.attempt(&id(3))).unwrap();
        std::fs::create_dir_all(folders.artifacts(&id(3)).join("half")).unwrap();
        assert_eq!(take_over(&folders, &id(3)).unwrap(), None, "artifacts are missing");
        std::fs::write(folders.artifacts(&id(1)).join("text"), "1").unwrap();
        assert_eq!(take_over(&folders, &id(3)).unwrap(), Some(1));
        assert_eq!(std::fs::read_to_string(folders.artifacts(&id(3)).join("text")).unwrap(), "1");
        assert!(read_result(&folders.result(&id(3))).is_some() && read_result(&folders.result(&id(1))).is_none());
        assert_eq!(take_over(&folders, &id(1)).unwrap(), None);
    }
}
