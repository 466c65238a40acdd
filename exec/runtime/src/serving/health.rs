//! Whether a replica answers: a GET of its health path, again and again.

use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, body::Bytes, header};
use mloc_core::{
    ledger::entry::{Failure, FailureClass},
    task::TaskSpec,
    wire::{Phase, Progress},
    worker::ChildEvent,
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{Listens, Replicas, proxy};
use crate::attempt::Outlet;

/// Figures of requests are told so often; they ride on heartbeats.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Before it was ready it is looked at so often at least: whoever waits for it wants to know.
const LOOK_FIRST: Duration = Duration::from_millis(250);

/// Looks after one replica for as long as its program runs. Returns when it has to be ended, and why.
pub(crate) async fn look_after(
    replicas: &Replicas,
    spec: &TaskSpec,
    outlet: &Outlet,
    mut listening: watch::Receiver<Option<Listens>>,
) -> Failure {
    let Some(service) = &spec.service else { return std::future::pending().await };
    let health = &service.health;
    let ready_within = Duration::from_millis(spec.timeouts.ready_ms.unwrap_or(u64::MAX / 2));
    let (every, patience) = (Duration::from_millis(health.every_ms), Duration::from_millis(health.timeout_ms));
    let begun = Instant::now();
    let mut tell = interval(TELL_EVERY);
    tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut was_ready, mut failures, mut next) = (false, 0u32, begun);
    let mut note = "its program has not said where it listens".to_owned();
    loop {
        tokio::select! {
            _ = tell.tick() => {
                let told = (!was_ready).then(|| format!("waits for its health: {note}"));
                outlet.figures(Phase::Pulling, Progress { note: told, ..Progress::default() });
            }
            // Elsewhere from now on: looked at once.
            Ok(()) = listening.changed() => next = Instant::now(),
            () = tokio::time::sleep_until(next) => {
                let listens = listening.borrow_and_update().clone();
                let looked = match &listens {
                    Some(listens) => look(listens, &health.path, patience).await,
                    None => Err(note.clone()),
                };
                match (looked, listens) {
                    (Ok(()), Some(listens)) => {
                        failures = 0;
                        replicas.ready(&outlet.attempt, listens);
                        if !was_ready {
                            was_ready = true;
                            outlet.say(ChildEvent::Ready).await;
                            // Nobody is to read any longer what it waited for.
                            tell.reset_immediately();
                        }
                    }
                    (Ok(()), None) => {}
                    (Err(why), _) => {
                        note = why;
                        failures = failures.saturating_add(1);
                        if was_ready && failures >= health.failures {
                            let message = format!("its health was not good {failures} times in a row: {note}");
                            return Failure { class: FailureClass::Retryable, message };
                        }
                    }
                }
                next = Instant::now() + if was_ready { every } else { every.min(LOOK_FIRST) };
            }
        }
        if !was_ready && begun.elapsed() >= ready_within {
            let message =
                format!("it did not become ready within timeouts.ready of {} s: {note}", ready_within.as_secs());
            return Failure { class: FailureClass::Retryable, message };
        }
    }
}

/// One look.
async fn look(listens: &Listens, path: &str, patience: Duration) -> Result<(), String> {
    let asked = async {
        let mut sender = proxy::connect(listens).await.map_err(|e| format!("it does not listen: {e}"))?;
        let request = Request::get(path).header(header::HOST, proxy::HOST).body(Empty::<Bytes>::new());
        let request = request.map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| format!("GET {path} broke off: {e}"))?;
        let status = response.status();
        // Read to its end, so that the program sees no broken connection.
        response.into_body().collect().await.map_err(|e| format!("GET {path} broke off: {e}"))?;
        match status {
            StatusCode::OK => Ok(()),
            other => Err(format!("GET {path} was answered with {}", other.as_u16())),
        }
    };
    match timeout(patience, asked).await {
        Ok(looked) => looked,
        Err(_) => Err(format!("GET {path} was not answered within {} ms", patience.as_millis())),
    }
}
