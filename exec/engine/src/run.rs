//! The engine on a thread of its own. Requests come through a bounded inbox; nothing that a client does or leaves undone
//! stops a step.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::adapters::Adapters;
use crate::admission::{Admission, Admitted};
use crate::engine::Engine;
use crate::forward::ForwardError;
use crate::request::{Request, RequestError, RequestId, Sink};
use crate::stats::Stats;

/// Time since any fixed moment.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// Messages that may lie between two steps, besides as many requests as may wait.
const SPARE: usize = 64;

enum Message {
    Submit(Box<Admitted>, Sink),
    Cancel(RequestId),
    /// Requests have so long to end.
    Shutdown(Duration),
}

/// Why an engine's thread ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, or nobody was left to tell it anything.
    Stopped {
        /// Requests that had not ended by the deadline.
        cut_off: usize,
    },
    /// The model failed: the process should end.
    Failed(ForwardError),
}

/// A way to an engine. Clones lead to the same one.
#[derive(Clone)]
pub struct Handle {
    inbox: SyncSender<Message>,
    admission: Arc<Admission>,
    published: Arc<Mutex<Stats>>,
}

/// Starts an engine's thread; it ends when it is told to, when all handles are gone, or when the model fails.
///
/// # Errors
/// The system gives no thread.
pub fn spawn(engine: Engine, clock: Clock) -> std::io::Result<(Handle, JoinHandle<Ended>)> {
    let admission = Arc::clone(engine.admission());
    let (inbox, messages) = sync_channel(admission.settings().waiting + SPARE);
    let published = Arc::new(Mutex::new(engine.stats().clone()));
    let handle = Handle { inbox, admission, published: Arc::clone(&published) };
    let looped = Loop { engine, messages, clock, published, deadline: None };
    let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || looped.run())?;
    Ok((handle, thread))
}

impl Handle {
    /// Asks for answers. Never waits for the engine, but compiles a constraint if there is one.
    ///
    /// # Errors
    /// Why it isn't even tried.
    pub fn submit(&self, request: Request, sink: Sink) -> Result<RequestId, RequestError> {
        let admitted = self.admission.admit(request)?;
        let id = admitted.id();
        match self.inbox.try_send(Message::Submit(Box::new(admitted), sink)) {
            Ok(()) => Ok(id),
            Err(TrySendError::Full(_)) => Err(RequestError::Busy { waiting: self.admission.settings().waiting }),
            Err(TrySendError::Disconnected(_)) => Err(RequestError::ShuttingDown),
        }
    }

    /// Takes a request back: its answers end as they are. May wait for a step; a sink that returns false does the same.
    pub fn cancel(&self, id: RequestId) {
        // An engine that has ended has no requests.
        let _ = self.inbox.send(Message::Cancel(id));
    }

    /// Adapters: to be added when the model has them.
    pub fn adapters(&self) -> &Arc<Adapters> {
        self.admission.adapters()
    }

    /// What the engine admits.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Whether requests are taken: not after [`Self::shutdown`], nor after the model's end.
    pub fn is_open(&self) -> bool {
        self.admission.is_open()
    }

    /// What was counted up to the last step.
    pub fn stats(&self) -> Stats {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes no more requests, and ends the thread when those there are have ended, or fails them after `drain`.
    pub fn shutdown(&self, drain: Duration) {
        self.admission.close();
        // One that has ended needs no telling.
        let _ = self.inbox.send(Message::Shutdown(drain));
    }
}

struct Loop {
    engine: Engine,
    messages: Receiver<Message>,
    clock: Clock,
    published: Arc<Mutex<Stats>>,
    /// Since when it is told to end, until when requests have time.
    deadline: Option<Duration>,
}

impl Loop {
    fn run(mut self) -> Ended {
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let ended = ended.unwrap_or_else(|panic| Ended::Failed(ForwardError::Device(words(panic.as_ref()))));
        let error = match &ended {
            Ended::Stopped { .. } => RequestError::ShuttingDown,
            Ended::Failed(error) => RequestError::Forward(error.clone()),
        };
        self.engine.admission().close();
        self.engine.fail_all(&error);
        // What came since is told the same.
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Submit(admitted, sink) = message {
                self.engine.submit(*admitted, sink);
                self.engine.fail_all(&error);
            }
        }
        self.publish();
        ended
    }

    fn serve(&mut self) -> Ended {
        loop {
            let connected = self.listen();
            let over = self.deadline.is_some_and(|deadline| (self.clock)() >= deadline);
            if over || (self.engine.is_idle() && (self.deadline.is_some() || !connected)) {
                return Ended::Stopped { cut_off: self.engine.requests() };
            }
            if let Err(error) = self.engine.step() {
                return Ended::Failed(error);
            }
            self.publish();
        }
    }

    /// Hears all messages there are, and waits for one if there is nothing else to do. `false` = none can come.
    fn listen(&mut self) -> bool {
        loop {
            let message = if self.engine.is_idle() && self.deadline.is_none() {
                // Without a step: what was cancelled since the last one is not under way any more.
                self.publish();
                self.messages.recv().map_err(|RecvError| TryRecvError::Disconnected)
            } else {
                self.messages.try_recv()
            };
            match message {
                Ok(message) => self.hear(message),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Submit(admitted, sink) => self.engine.submit(*admitted, sink),
            Message::Cancel(id) => self.engine.cancel(id),
            Message::Shutdown(drain) => {
                let deadline = (self.clock)().saturating_add(drain);
                self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
            }
        }
    }

    fn publish(&self) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone_from(self.engine.stats());
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("without words"))
}
