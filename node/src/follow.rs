//! The log of a task as its reader meets it: one attempt's bytes, and with `follow` those of the attempts after it,
//! until the task has ended. What is about the log and not of it stands on lines of its own:
//!
//! ```text
//! --- log of attempt TASK.0.1 on a                      before an attempt's bytes; `… from byte N` when not from 0
//! --- attempt TASK.0.1 on a: LOST, its node was silent for a lease
//! --- TASK waits for a node: `mloc explain TASK` says why
//! --- TASK COMPLETED
//! ```
//!
//! A reader whose connection broke goes on with the attempt and the byte it had come to: [`crate::tail`] does.
//! The ledger decides when an attempt is over, not its stream: that of a dead node says nothing, and that of a node
//! that restarts ends too early.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use mloc_api::{ControlError, control::LogsFrom};
use mloc_core::{
    id::{AttemptId, NodeId, TaskId},
    ledger::task_state::TaskState,
};
use mloc_mesh::handle::{LeaderView, MeshHandle};
use tokio::time::{sleep, timeout};

use crate::{logs::Logs, views};

/// How long a follower waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two looks at the ledger.
    pub look: Duration,
    /// For a log's stream to be opened: a dead node's connection stands for a while.
    pub open: Duration,
    /// For more bytes of an attempt that has ended: they may be on their way.
    pub grace: Duration,
    /// For the next bytes of a log that is not followed.
    pub silence: Duration,
}

/// In use.
pub const PACE: Pace = Pace {
    look: Duration::from_millis(200),
    open: Duration::from_secs(5),
    grace: Duration::from_secs(2),
    silence: Duration::from_secs(10),
};

/// What is known of an attempt.
#[derive(Clone, Debug)]
pub struct Known {
    /// It.
    pub attempt: AttemptId,
    /// Its node.
    pub node: NodeId,
    /// Its node's name.
    pub name: String,
    /// How it ended, if it did.
    pub ended: Option<String>,
}

/// What is known of a task.
#[derive(Clone, Debug)]
pub struct History {
    /// Its attempts, oldest first.
    pub attempts: Vec<Known>,
    /// Its terminal state, if it has one.
    pub ended: Option<String>,
}

/// A log's bytes as they come.
pub type LogBytes = BoxStream<'static, io::Result<Bytes>>;

/// Where history and logs are read.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// A task's history; `None` when there is no such task.
    fn history(&self, task: &TaskId) -> Option<History>;
    /// Whether this node still leads. The history of one that does not may stand still for ever.
    fn leads(&self) -> bool;
    /// An attempt's log from a byte on.
    async fn open(&self, known: &Known, offset: u64, follow: bool) -> io::Result<LogBytes>;
}

/// The mesh as a source.
pub struct FromMesh {
    /// Has the ledger.
    pub mesh: MeshHandle,
    /// Finds logs.
    pub logs: Arc<Logs>,
}

#[async_trait]
impl Source for FromMesh {
    fn history(&self, task: &TaskId) -> Option<History> {
        self.mesh.read(|ledger| {
            let task = ledger.tasks.get(task)?;
            let known = |a: &mloc_core::ledger::state::Attempt| Known {
                attempt: a.id.clone(),
                node: a.node.clone(),
                name: views::attempt_view(ledger, a).node_name,
                ended: views::how_it_ended(ledger, a),
            };
            let attempts = task.replicas.iter().flat_map(|r| &r.attempts).map(known).collect();
            let state = TaskState::of(task);
            Some(History { attempts, ended: state.is_terminal().then(|| state.name().to_owned()) })
        })
    }

    fn leads(&self) -> bool {
        matches!(self.mesh.leader(), LeaderView::Here { .. })
    }

    async fn open(&self, known: &Known, offset: u64, follow: bool) -> io::Result<LogBytes> {
        self.logs.open(&self.mesh, &known.attempt, &known.node, offset, follow).await
    }
}

/// The log of a task.
///
/// # Errors
/// When there is no such task or attempt, or it has not run and nobody wants to wait for it.
pub fn stream(source: impl Source, task: &TaskId, from: LogsFrom, pace: Pace) -> Result<LogBytes, ControlError> {
    let LogsFrom { attempt, offset, follow } = from;
    let history = source.history(task).ok_or_else(|| ControlError::NotFound(format!("task {task}")))?;
    let chosen = match &attempt {
        Some(wanted) => Some(
            history
                .attempts
                .iter()
                .find(|known| known.attempt == *wanted)
                .ok_or_else(|| ControlError::NotFound(format!("attempt {wanted}")))?,
        ),
        None => history.attempts.last(),
    };
    let at = match chosen {
        Some(known) => At::Begin { known: known.clone(), offset },
        None if follow && history.ended.is_none() => At::Next { after: None },
        None => return Err(ControlError::NotFound(format!("log of {task}: it has not run on any node"))),
    };
    let follower = Follower { source, task: task.clone(), follow, pace, at, mid_line: false, said: false };
    let pieces = stream::unfold(follower, |mut follower| async move {
        let piece = follower.piece().await?;
        Some((piece, follower))
    });
    Ok(pieces.boxed())
}

enum At {
    /// The attempt after this one, or the first.
    Next { after: Option<AttemptId> },
    /// Before its bytes.
    Begin { known: Known, offset: u64 },
    /// Its stream is to be opened at this byte.
    Open { known: Known, offset: u64 },
    /// Its bytes come.
    Read { known: Known, offset: u64, bytes: LogBytes },
    /// Nothing more.
    Over,
}

struct Follower<S> {
    source: S,
    task: TaskId,
    follow: bool,
    pace: Pace,
    at: At,
    /// The last byte was no line's end.
    mid_line: bool,
    /// What is being waited for has been said.
    said: bool,
}

impl<S: Source> Follower<S> {
    async fn piece(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if self.follow && !matches!(self.at, At::Over) && !self.source.leads() {
                self.at = At::Over;
                // The reader's connection breaks, and it asks again: whoever leads then goes on where it had come to.
                return Some(Err(io::Error::other("this node does not lead any more")));
            }
            let said = match std::mem::replace(&mut self.at, At::Over) {
                At::Over => return None,
                At::Next { after } => self.next(after).await,
                At::Begin { known, offset } => {
                    self.said = false;
                    let place = if offset > 0 { format!(" from byte {offset}") } else { String::new() };
                    let line = format!("log of attempt {} on {}{place}", known.attempt, known.name);
                    self.at = At::Open { known, offset };
                    self.follow.then_some(line)
                }
                At::Open { known, offset } => self.open(known, offset).await,
                At::Read { known, offset, bytes } => match self.read(known, offset, bytes).await {
                    Ok(bytes) => return Some(Ok(bytes)),
                    Err(said) => said,
                },
            };
            if let Some(line) = said {
                let newline = if std::mem::take(&mut self.mid_line) { "\n" } else { "" };
                return Some(Ok(format!("{newline}--- {line}\n").into()));
            }
        }
    }

    /// How the attempt ended, if it did. A task that is gone has no live attempts.
    fn ended(&self, attempt: &AttemptId) -> Option<String> {
        let history = self.source.history(&self.task);
        match history.and_then(|h| h.attempts.into_iter().find(|known| known.attempt == *attempt)) {
            Some(known) => known.ended,
            None => Some("no longer in the ledger".to_owned()),
        }
    }

    async fn next(&mut self, after: Option<AttemptId>) -> Option<String> {
        let history = self.source.history(&self.task)?;
        let mut attempts = history.attempts.into_iter();
        if let Some(after) = &after {
            attempts.find(|known| known.attempt == *after);
        }
        match (attempts.next(), history.ended) {
            (Some(known), _) => {
                self.at = At::Begin { known, offset: 0 };
                None
            }
            (None, Some(ended)) => Some(format!("{} {ended}", self.task)),
            (None, None) => {
                self.at = At::Next { after };
                self.once(format!("{0} waits for a node: `mloc explain {0}` says why", self.task)).await
            }
        }
    }

    async fn open(&mut self, known: Known, offset: u64) -> Option<String> {
        // Asked before the log: of what has ended before it was read to its end, nothing more comes.
        let ended = self.ended(&known.attempt);
        let opened = timeout(self.pace.open, self.source.open(&known, offset, self.follow)).await;
        let opened = opened.unwrap_or_else(|_| Err(io::Error::other("its node does not answer")));
        match opened {
            Ok(bytes) => {
                self.at = At::Read { known, offset, bytes };
                None
            }
            Err(why) if ended.is_some() || !self.follow => {
                let how = ended.map(|how| format!("{how}; ")).unwrap_or_default();
                let line = format!("attempt {} on {}: {how}its log can't be read: {why}", known.attempt, known.name);
                self.at = if self.follow { At::Next { after: Some(known.attempt) } } else { At::Over };
                Some(line)
            }
            Err(why) => {
                let line = format!(
                    "attempt {} on {}: its log can't be read just now ({why}); it goes on here when it can",
                    known.attempt, known.name
                );
                self.at = At::Open { known, offset };
                self.once(line).await
            }
        }
    }

    /// Bytes, or that there are none any more and what is to be said of it.
    async fn read(&mut self, known: Known, offset: u64, mut bytes: LogBytes) -> Result<Bytes, Option<String>> {
        loop {
            if self.follow && !self.source.leads() {
                self.at = At::Read { known, offset, bytes };
                return Err(None);
            }
            let ended = if self.follow { self.ended(&known.attempt) } else { None };
            let patience = match (self.follow, &ended) {
                (false, _) => self.pace.silence,
                (true, Some(_)) => self.pace.grace,
                (true, None) => self.pace.look,
            };
            match timeout(patience, bytes.next()).await {
                Ok(Some(Ok(piece))) => {
                    self.said = false;
                    self.mid_line = piece.last().is_some_and(|last| *last != b'\n');
                    self.at = At::Read { known, offset: offset + piece.len() as u64, bytes };
                    return Ok(piece);
                }
                Err(_) if self.follow && ended.is_none() => {}
                Err(_) if !self.follow => {
                    return Err(Some(format!(
                        "attempt {} on {}: its node stopped answering",
                        known.attempt, known.name
                    )));
                }
                Ok(Some(Err(why))) if !self.follow => {
                    let line = format!("attempt {} on {}: its log broke off: {why}", known.attempt, known.name);
                    return Err(Some(line));
                }
                Ok(None) if !self.follow => return Err(None),
                Ok(_) | Err(_) => match ended {
                    Some(how) => {
                        let line = format!("attempt {} on {}: {how}", known.attempt, known.name);
                        self.at = At::Next { after: Some(known.attempt) };
                        return Err(Some(line));
                    }
                    // Its node went away or restarts: from where it was, as soon as it is back.
                    None => {
                        self.at = At::Open { known, offset };
                        sleep(self.pace.look).await;
                        return Err(None);
                    }
                },
            }
        }
    }

    /// Says it the first time, then waits.
    async fn once(&mut self, line: String) -> Option<String> {
        if !std::mem::replace(&mut self.said, true) {
            return Some(line);
        }
        sleep(self.pace.look).await;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Mutex};

    use super::*;

    const FAST: Pace = Pace {
        look: Duration::from_millis(2),
        open: Duration::from_millis(200),
        grace: Duration::from_millis(20),
        silence: Duration::from_millis(200),
    };

    /// A mesh in memory: what the ledger says, and what each attempt printed so far.
    #[derive(Default)]
    struct World {
        attempts: Vec<Known>,
        ended: Option<String>,
        logs: BTreeMap<u32, Log>,
        opened: u32,
        deposed: bool,
    }

    #[derive(Clone, Default)]
    struct Log {
        text: String,
        /// Its node answers nothing: neither new streams nor old ones.
        dead: bool,
        /// Its processes are gone.
        whole: bool,
    }

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<World>>);

    impl Memory {
        fn change(&self, how: impl FnOnce(&mut World)) {
            how(&mut self.0.lock().unwrap());
        }

        fn assign(&self, attempt: u32, node: &str) {
            let id = AttemptId { task: TaskId::new("t"), replica: 0, attempt };
            let known = Known { attempt: id, node: NodeId::new(node), name: node.into(), ended: None };
            self.change(|w| {
                w.attempts.push(known);
                w.logs.entry(attempt).or_default();
            });
        }

        fn log(&self, attempt: u32, how: impl FnOnce(&mut Log)) {
            self.change(|w| how(w.logs.get_mut(&attempt).unwrap()));
        }

        fn end(&self, attempt: u32, how: &str) {
            self.change(|w| {
                w.attempts.iter_mut().filter(|k| k.attempt.attempt == attempt).for_each(|k| k.ended = Some(how.into()));
            });
        }
    }

    #[async_trait]
    impl Source for Memory {
        fn history(&self, task: &TaskId) -> Option<History> {
            let world = self.0.lock().unwrap();
            (task.as_str() == "t").then(|| History { attempts: world.attempts.clone(), ended: world.ended.clone() })
        }

        fn leads(&self) -> bool {
            !self.0.lock().unwrap().deposed
        }

        async fn open(&self, known: &Known, offset: u64, follow: bool) -> io::Result<LogBytes> {
            let (number, world) = (known.attempt.attempt, self.0.clone());
            world.lock().unwrap().opened += 1;
            if world.lock().unwrap().logs[&number].dead {
                return Err(io::Error::other("no route"));
            }
            let pieces = stream::unfold((world, usize::try_from(offset).unwrap()), move |(world, at)| async move {
                loop {
                    let log = world.lock().unwrap().logs[&number].clone();
                    if !log.dead && log.text.len() > at {
                        let piece = Bytes::from(log.text[at..].to_owned());
                        return Some((Ok(piece), (world, log.text.len())));
                    }
                    if !log.dead && (log.whole || !follow) {
                        return None;
                    }
                    sleep(FAST.look).await;
                }
            });
            Ok(pieces.boxed())
        }
    }

    fn from(attempt: Option<u32>, offset: u64, follow: bool) -> LogsFrom {
        let id = |attempt| AttemptId { task: TaskId::new("t"), replica: 0, attempt };
        LogsFrom { attempt: attempt.map(id), offset, follow }
    }

    fn open(memory: &Memory, from: LogsFrom) -> LogBytes {
        stream(memory.clone(), &TaskId::new("t"), from, FAST).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Reads until the text ends so, or the stream does.
    async fn until(log: &mut LogBytes, seen: &mut String, end: &str) {
        let reading = async {
            while !seen.ends_with(end)
                && let Some(piece) = log.next().await
            {
                seen.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
            }
        };
        timeout(Duration::from_secs(20), reading).await.unwrap_or_else(|_| panic!("no {end:?} after {seen:?}"));
        assert!(seen.ends_with(end), "{seen:?}");
    }

    #[tokio::test]
    async fn a_follower_goes_on_over_attempts_until_the_task_has_ended() {
        let memory = Memory::default();
        let (mut log, mut seen) = (open(&memory, from(None, 0, true)), String::new());
        until(&mut log, &mut seen, "--- t waits for a node: `mloc explain t` says why\n").await;
        memory.assign(1, "a");
        memory.log(1, |l| l.text.push_str("step 1\nste"));
        until(&mut log, &mut seen, "step 1\nste").await;
        // Its node dies in the middle of a line, and the stream to it stands in silence.
        memory.log(1, |l| l.dead = true);
        memory.end(1, "LOST, its node was silent for a lease");
        memory.assign(2, "b");
        memory.log(2, |l| l.text.push_str("going on\n"));
        until(&mut log, &mut seen, "going on\n").await;
        memory.log(2, |l| l.whole = true);
        memory.end(2, "FINISHED");
        memory.change(|w| w.ended = Some("COMPLETED".into()));
        until(&mut log, &mut seen, "--- t COMPLETED\n").await;
        assert!(log.next().await.is_none(), "the stream ends with the task");
        assert_eq!(
            seen,
            "--- t waits for a node: `mloc explain t` says why\n\
             --- log of attempt t.0.1 on a\nstep 1\nste\n\
             --- attempt t.0.1 on a: LOST, its node was silent for a lease\n\
             --- log of attempt t.0.2 on b\ngoing on\n\
             --- attempt t.0.2 on b: FINISHED\n--- t COMPLETED\n"
        );
    }

    #[tokio::test]
    async fn a_worker_that_restarts_is_followed_on_from_the_byte_it_had_come_to() {
        let memory = Memory::default();
        memory.assign(1, "a");
        memory.log(1, |l| l.text.push_str("one\n"));
        let (mut log, mut seen) = (open(&memory, from(None, 0, true)), String::new());
        until(&mut log, &mut seen, "one\n").await;
        // Its stream ends, and the attempt lives on in the ledger: it is opened again, and again.
        memory.log(1, |l| l.whole = true);
        let mut restarting = Box::pin(log.next());
        while memory.0.lock().unwrap().opened < 3 {
            let nothing = timeout(FAST.look, &mut restarting).await;
            assert!(nothing.is_err(), "{nothing:?}");
        }
        memory.log(1, |l| (l.whole, l.text) = (false, "one\ntwo\n".into()));
        drop(restarting);
        until(&mut log, &mut seen, "two\n").await;
        assert_eq!(seen, "--- log of attempt t.0.1 on a\none\ntwo\n", "nothing twice");
    }

    #[tokio::test]
    async fn a_follower_breaks_off_at_a_node_that_leads_no_more() {
        // In the middle of an attempt, and between two.
        for attempts in [1, 0] {
            let memory = Memory::default();
            if attempts == 1 {
                memory.assign(1, "a");
                memory.log(1, |l| l.text.push_str("one\n"));
            }
            let (mut log, mut seen) = (open(&memory, from(None, 0, true)), String::new());
            until(&mut log, &mut seen, if attempts == 1 { "one\n" } else { "says why\n" }).await;
            memory.change(|w| w.deposed = true);
            let error = log.next().await.expect("an end that is said").expect_err("no bytes");
            assert!(error.to_string().contains("does not lead"), "{error}");
            assert!(log.next().await.is_none());
        }
    }

    #[tokio::test]
    async fn a_worker_that_can_not_be_reached_is_said_in_the_stream() {
        let memory = Memory::default();
        memory.assign(1, "a");
        memory.log(1, |l| l.dead = true);
        let (mut log, mut seen) = (open(&memory, from(None, 0, true)), String::new());
        until(&mut log, &mut seen, "(no route); it goes on here when it can\n").await;
        memory.log(1, |l| (l.dead, l.text) = (false, "back\n".into()));
        until(&mut log, &mut seen, "back\n").await;

        memory.log(1, |l| l.dead = true);
        let (mut log, mut seen) = (open(&memory, from(None, 0, false)), String::new());
        until(&mut log, &mut seen, "--- attempt t.0.1 on a: its log can't be read: no route\n").await;
        memory.end(1, "LOST, silent");
        memory.change(|w| w.ended = Some("CANCELLED".into()));
        let (mut log, mut seen) = (open(&memory, from(None, 0, true)), String::new());
        until(&mut log, &mut seen, "on a: LOST, silent; its log can't be read: no route\n--- t CANCELLED\n").await;
    }

    #[tokio::test]
    async fn without_follow_it_is_the_newest_attempts_bytes_or_those_asked_for() {
        let memory = Memory::default();
        let absent = |from| stream(memory.clone(), &TaskId::new("t"), from, FAST).map(|_| ()).unwrap_err();
        assert!(matches!(absent(from(None, 0, false)), ControlError::NotFound(_)), "it has not run");
        memory.assign(1, "a");
        memory.log(1, |l| (l.text, l.whole) = ("one\ntwo\n".into(), true));
        memory.end(1, "LOST, silent");
        memory.assign(2, "b");
        memory.log(2, |l| l.text = "three\n".into());
        for (from, want) in [
            (from(None, 0, false), "three\n"),
            (from(Some(1), 0, false), "one\ntwo\n"),
            (from(Some(1), 4, false), "two\n"),
        ] {
            let (mut log, mut seen) = (open(&memory, from), String::new());
            until(&mut log, &mut seen, want).await;
            assert_eq!(seen, want);
            assert!(log.next().await.is_none());
        }
        assert!(matches!(absent(from(Some(3), 0, false)), ControlError::NotFound(_)));
        let (mut log, mut seen) = (open(&memory, from(Some(1), 4, true)), String::new());
        until(&mut log, &mut seen, "three\n").await;
        assert!(
            seen.starts_with("--- log of attempt t.0.1 on a from byte 4\ntwo\n--- attempt t.0.1 on a: LOST"),
            "{seen}"
        );
    }
}
