//! The thin part between the engine's thread and a client: events go into a line that is as long as may be unread, and a
//! guard takes the requests back when nobody listens any more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::http::StatusCode;
use mloc_engine::request::{Event, FinishReason, Request, RequestId, Sink};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{
    metrics::{Measure, Metrics},
    model::Model,
    refusal::Refusal,
};

/// Requests on their way. Dropped, they are cancelled.
struct Guard {
    model: Arc<dyn Model>,
    ids: Vec<RequestId>,
    /// The client's place among those that are served.
    _place: OwnedSemaphorePermit,
}

impl Drop for Guard {
    fn drop(&mut self) {
        for id in &self.ids {
            self.model.cancel(*id);
        }
    }
}

/// What is heard of the requests of one client.
pub struct Line {
    events: mpsc::Receiver<(usize, Event)>,
    behind: Arc<AtomicBool>,
    /// Prompts that aren't done.
    left: usize,
    /// `None` = all is heard.
    guard: Option<Guard>,
}

impl Line {
    /// Submits the requests; at most `unread` of their events wait for [`Self::next`].
    ///
    /// # Errors
    /// When the engine takes one of them not; those before it are cancelled.
    pub fn open(
        requests: Vec<Request>,
        unread: usize,
        model: Arc<dyn Model>,
        metrics: &Arc<Metrics>,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, Refusal> {
        let (sender, events) = mpsc::channel(unread.max(1));
        let behind = Arc::new(AtomicBool::new(false));
        let mut guard = Guard { model: model.clone(), ids: Vec::new(), _place: place };
        let left = requests.len();
        for (prompt, request) in requests.into_iter().enumerate() {
            let measure = Measure::new(metrics.clone(), request.best_of, request.max_tokens, Instant::now());
            let sink = sink(prompt, sender.clone(), behind.clone(), measure);
            guard.ids.push(model.submit(request, sink)?);
        }
        Ok(Self { events, behind, left, guard: Some(guard) })
    }

    /// The next event, and which prompt it is about; `None` after the last. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When it can't go on: nothing comes after.
    pub async fn next(&mut self) -> Option<Result<(usize, Event), Refusal>> {
        self.guard.as_ref()?;
        let event = self.events.recv().await;
        self.heard(event)
    }

    /// As [`Self::next`], of what is there already.
    pub fn ready(&mut self) -> Option<Result<(usize, Event), Refusal>> {
        self.guard.as_ref()?;
        let event = self.events.try_recv().ok()?;
        self.heard(Some(event))
    }

    fn heard(&mut self, event: Option<(usize, Event)>) -> Option<Result<(usize, Event), Refusal>> {
        let refusal = match event {
            Some((_, Event::Failed(error))) => error.into(),
            Some((_, Event::Finished { reason: FinishReason::Cancelled, .. })) => {
                let refusal =
                    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the answer was broken off by the server: try again");
                Refusal { retry_after: Some(1), ..refusal.with_code("cancelled") }
            }
            Some((prompt, event)) => {
                if matches!(event, Event::Done { .. }) {
                    self.left -= 1;
                    if self.left == 0 {
                        // Nothing is left to be taken back.
                        self.guard.iter_mut().for_each(|guard| guard.ids.clear());
                        self.guard = None;
                    }
                }
                return Some(Ok((prompt, event)));
            }
            None if self.behind.load(Ordering::Acquire) => {
                let message = "the client read slower than the answer came, and fell further behind than this server keeps: \
                               read faster, or ask for the answer whole";
                Refusal::new(StatusCode::REQUEST_TIMEOUT, message).with_code("reader_too_slow")
            }
            None => Refusal::failure("the engine went away amid the answer"),
        };
        self.guard = None;
        self.events.close();
        Some(Err(refusal))
    }
}

/// Never waits: the engine's thread serves others too.
fn sink(prompt: usize, sender: mpsc::Sender<(usize, Event)>, behind: Arc<AtomicBool>, mut measure: Measure) -> Sink {
    let mut open = Some(sender);
    Box::new(move |event| {
        let Some(sender) = &open else {
            return false;
        };
        measure.hear(&event, Instant::now());
        let sent = sender.try_send((prompt, event));
        if matches!(sent, Err(mpsc::error::TrySendError::Full(_))) {
            behind.store(true, Ordering::Release);
        }
        if sent.is_err() {
            // Now, not when the engine lets go of it: the client is to hear that it was too slow.
            open = None;
        }
        sent.is_ok()
    })
}
