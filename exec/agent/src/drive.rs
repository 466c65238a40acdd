//! The shell of one run: it does what the machine says is next, writes down what happened, and tells the machine.

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::FutureExt;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    event::{CallId, Decider, Event, Failure, Outcome, Record, VERSION},
    feed::Feed,
    log::Log,
    model::{Answer, ChatError},
    run::{Action, Ask, Call, Run},
    runs::Agent,
};

/// A clock that was set back does not make a run wait for ever.
const LOOK: Duration = Duration::from_secs(60);

/// What a client wants of a run.
#[derive(Debug)]
pub enum Command {
    /// A call may be made, or may not.
    Approve {
        /// The call.
        call: CallId,
        /// It may.
        approve: bool,
        /// What the model is told about it.
        note: Option<String>,
        /// Whether anybody was asked about it.
        heard: oneshot::Sender<bool>,
    },
    /// It shall end.
    Cancel {
        /// Told when that is in the log.
        heard: oneshot::Sender<()>,
    },
}

/// A run and what it needs to go on.
pub struct Driver {
    /// The machine.
    pub run: Run,
    /// Its log.
    pub log: Log,
    /// Those who listen.
    pub feed: Arc<Feed>,
    /// Its model and tools.
    pub agent: Arc<Agent>,
    /// What clients want.
    pub inbox: mpsc::Receiver<Command>,
}

/// Something that was on its way and is done.
enum Done {
    Answered { step: u32, answer: Result<Answer, ChatError> },
    Called { call: CallId, tool: String, outcome: Outcome },
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Driver {
    /// Goes on until the run is over, or until it is told to stop: then the run goes on in another process.
    ///
    /// # Errors
    /// The disk's: the run stops as if killed.
    pub async fn drive(mut self, stop: &CancellationToken) -> io::Result<()> {
        let mut work = JoinSet::new();
        let driven = self.until_over(&mut work, stop).await;
        // What is still on its way is let go of before the run is.
        work.shutdown().await;
        let used = self.run.used();
        info!(run = self.run.id(), over = self.run.is_over(), steps = used.steps, calls = used.calls, "run ends here");
        driven
    }

    async fn until_over(&mut self, work: &mut JoinSet<Done>, stop: &CancellationToken) -> io::Result<()> {
        loop {
            match self.run.next(now_ms()) {
                Action::Over => return Ok(()),
                Action::Note(events) => {
                    for event in events {
                        self.record(event).await?;
                    }
                }
                Action::Ask(ask) => {
                    self.record(Event::ModelAsked { step: ask.step }).await?;
                    work.spawn(self.ask(ask));
                }
                Action::Call(calls) => {
                    for call in calls {
                        let (tool, arguments) = (call.tool.clone(), call.arguments.clone());
                        self.record(Event::ToolStarted { call: call.id, tool, arguments }).await?;
                        work.spawn(self.call(call));
                    }
                }
                Action::Wait { until } => {
                    let wait = Duration::from_millis(until.saturating_sub(now_ms())).min(LOOK);
                    tokio::select! { biased;
                        () = stop.cancelled() => return self.take_what_is_done(work).await,
                        Some(command) = self.inbox.recv() => self.on_command(command).await?,
                        Some(done) = work.join_next() => self.on_done(done).await?,
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    /// What has its end already is not left unknown.
    async fn take_what_is_done(&mut self, work: &mut JoinSet<Done>) -> io::Result<()> {
        while let Some(done) = work.try_join_next() {
            self.on_done(done).await?;
        }
        Ok(())
    }

    /// Writes down what the machine wants written: not to take it would be to want it for ever.
    async fn record(&mut self, event: Event) -> io::Result<()> {
        let name = event.name();
        match self.happened(event).await? {
            true => Ok(()),
            false => Err(io::Error::other(format!("a defect: the machine does not take its own {name}"))),
        }
    }

    /// Writes down what happened, if it could.
    async fn happened(&mut self, event: Event) -> io::Result<bool> {
        let at = now_ms().max(self.run.last_at());
        let record = Record { v: VERSION, n: self.run.next_n(), at, event };
        if let Err(found) = self.run.apply(&record) {
            warn!(run = self.run.id(), %found, "left out of the log");
            return Ok(false);
        }
        self.log.append(&record).await?;
        self.feed.push(record);
        Ok(true)
    }

    fn ask(&self, ask: Ask) -> impl Future<Output = Done> + use<> {
        let (agent, feed, tools) = (self.agent.clone(), self.feed.clone(), self.run.setup().tools.clone());
        async move {
            let step = ask.step;
            let tell = |delta| feed.say(step, delta);
            let asked = AssertUnwindSafe(agent.chat.answer(&ask, &tools, &tell)).catch_unwind().await;
            let answer = asked.unwrap_or_else(|_| Err(ChatError::Fatal("asking it panicked".to_owned())));
            Done::Answered { step, answer }
        }
    }

    fn call(&self, call: Call) -> impl Future<Output = Done> + use<> {
        let agent = self.agent.clone();
        async move {
            let called = AssertUnwindSafe(agent.toolbox.call(&call.tool, &call.arguments)).catch_unwind().await;
            let outcome = called.unwrap_or_else(|_| Outcome::failed("error: the tool is broken: it panicked"));
            Done::Called { call: call.id, tool: call.tool, outcome }
        }
    }

    async fn on_done(&mut self, done: Result<Done, tokio::task::JoinError>) -> io::Result<()> {
        let event = match done {
            Ok(Done::Answered { step, answer: Ok(answer) }) => Event::ModelAnswered {
                step,
                message: answer.message,
                usage: answer.usage,
                finish_reason: answer.finish_reason,
            },
            Ok(Done::Answered { step, answer: Err(error) }) => {
                let again = matches!(error, ChatError::Retryable(_));
                Event::ModelFailed { step, message: error.to_string(), again }
            }
            Ok(Done::Called { call, tool, outcome }) => Event::ToolFinished { call, tool, outcome },
            // Panics are caught where they happen, and only the end of a run ends its work.
            Err(_) => return Ok(()),
        };
        self.happened(event).await.map(drop)
    }

    async fn on_command(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Approve { call, approve, note, heard } => {
                let is_asked = self.run.asked().iter().any(|(asked, _)| *asked == call);
                if is_asked {
                    self.happened(Event::ApprovalGiven { call, approve, by: Decider::Client, note }).await?;
                }
                // Whoever asked may be gone.
                heard.send(is_asked).ok();
            }
            Command::Cancel { heard } => {
                let message = "a client ended it".to_owned();
                self.happened(Event::Failed { why: Failure::Cancelled, message }).await?;
                heard.send(()).ok();
            }
        }
        Ok(())
    }
}
