//! An engine on its thread: many clients at once, its end, and the model's.

mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fake::{Model, Words, by_hand, request, shape};
use mloc_engine::admission::Settings;
use mloc_engine::engine::Engine;
use mloc_engine::forward::{BlockId, Chunk, Forward, ForwardError, Logits, Shape};
use mloc_engine::request::{Event, FinishReason, Request, RequestError, Sink};
use mloc_engine::run::{Ended, Handle, spawn};
use mloc_engine::vocabulary::Vocabulary;

/// Each opening lets one step happen, or fail.
type Gate = Sender<Result<(), ForwardError>>;

/// A model that computes a step only when it is let.
struct Gated {
    model: Model,
    gate: Receiver<Result<(), ForwardError>>,
}

impl Forward for Gated {
    fn shape(&self) -> Shape {
        self.model.shape()
    }

    fn forward(&mut self, step: &[Chunk]) -> Result<Logits, ForwardError> {
        match self.gate.recv() {
            Ok(Ok(())) => self.model.forward(step),
            Ok(Err(error)) => Err(error),
            Err(_) => panic!("the gate is gone"),
        }
    }

    fn copy_blocks(&mut self, pairs: &[(BlockId, BlockId)]) {
        self.model.copy_blocks(pairs);
    }
}

/// A clock that stands still until it is set.
fn start(model: Box<dyn Forward>, settings: Settings) -> (Handle, JoinHandle<Ended>, Arc<AtomicU64>) {
    let engine = Engine::new(model, Arc::new(Words::new()), settings).expect("good settings");
    let millis = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&millis);
    let clock = Box::new(move || Duration::from_millis(clock.load(Ordering::SeqCst)));
    let (handle, thread) = spawn(engine, clock).expect("a thread");
    (handle, thread, millis)
}

fn gated() -> (Gate, Handle, JoinHandle<Ended>, Arc<AtomicU64>) {
    let (open, gate) = channel();
    let (handle, thread, millis) =
        start(Box::new(Gated { model: Model::new(shape(100, 4)), gate }), Settings::default());
    (open, handle, thread, millis)
}

fn client() -> (Sink, Receiver<Event>) {
    let (told, events) = channel();
    (Box::new(move |event| told.send(event).is_ok()), events)
}

fn ids(events: impl Iterator<Item = Event>) -> Vec<u32> {
    events.filter_map(|event| if let Event::Token { id, .. } = event { Some(id) } else { None }).collect()
}

#[test]
fn many_clients_are_answered_as_one_is() {
    let (handle, thread, _) =
        start(Box::new(Model::new(shape(60, 4))), Settings { sequences: 6, ..Settings::default() });
    let clients: Vec<_> = (0..4_u32)
        .map(|first| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                for second in 0..8 {
                    let (sink, events) = client();
                    handle.submit(request(&[first, second, 3], 9), sink).expect("room");
                    assert_eq!(ids(events.iter()), by_hand(&[first, second, 3], None, Words::new().size(), 9));
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("no panic"));
    handle.shutdown(Duration::MAX);
    assert_eq!(thread.join().expect("no panic"), Ended::Stopped { cut_off: 0 });
    assert_eq!(handle.stats().generation_tokens, 4 * 8 * 9);
    assert_eq!(handle.stats().resident_blocks, 0);
    let (sink, _) = client();
    assert_eq!(handle.submit(request(&[1], 1), sink), Err(RequestError::ShuttingDown));
}

#[test]
fn an_engine_without_handles_ends_when_its_requests_have() {
    let (handle, thread, _) = start(Box::new(Model::new(shape(60, 4))), Settings::default());
    let (sink, events) = client();
    handle.submit(request(&[1, 2], 5), sink).expect("room");
    drop(handle);
    assert_eq!(thread.join().expect("no panic"), Ended::Stopped { cut_off: 0 });
    assert_eq!(ids(events.iter()).len(), 5);
}

#[test]
fn at_the_end_requests_have_so_long_and_then_fail_with_words() {
    let (open, handle, thread, millis) = gated();
    let (sink, events) = client();
    handle.submit(request(&[1, 2], 50), sink).expect("room");
    open.send(Ok(())).expect("a model");
    let token = |event| matches!(event, Ok(Event::Token { .. }));
    assert!(matches!(events.recv(), Ok(Event::Prompt { .. })) && token(events.recv()));
    handle.shutdown(Duration::from_millis(100));
    for _ in 0..2 {
        // It has time. Before the second of these steps it was told to end.
        open.send(Ok(())).expect("a model");
        assert!(token(events.recv()));
    }
    millis.store(101, Ordering::SeqCst);
    // A step may have begun before the time was over; if none has, nobody waits for this.
    open.send(Ok(())).ok();
    assert_eq!(thread.join().expect("no panic"), Ended::Stopped { cut_off: 1 });
    assert_eq!(events.iter().last(), Some(Event::Failed(RequestError::ShuttingDown)));
}

#[test]
fn a_request_is_taken_back_between_two_steps() {
    let (open, handle, thread, _) = gated();
    let (sink, events) = client();
    let id = handle.submit(request(&[1, 2], 50), sink).expect("room");
    open.send(Ok(())).expect("a model");
    assert!(matches!(events.recv(), Ok(Event::Prompt { .. })));
    handle.cancel(id);
    open.send(Ok(())).expect("a model");
    let reason =
        events.iter().find_map(|event| if let Event::Finished { reason, .. } = event { Some(reason) } else { None });
    assert_eq!(reason, Some(FinishReason::Cancelled));
    // It is counted out as well, though no step follows.
    let until = Instant::now() + Duration::from_secs(60);
    while handle.stats().running > 0 {
        assert!(Instant::now() < until, "{:?}", handle.stats());
        std::thread::yield_now();
    }
    handle.shutdown(Duration::ZERO);
    assert_eq!(thread.join().expect("no panic"), Ended::Stopped { cut_off: 0 });
}

#[test]
fn a_device_that_fails_fails_all_requests_with_its_words() {
    let (open, handle, thread, _) = gated();
    let clients = [client(), client()].map(|(sink, events)| {
        handle.submit(request(&[1, 2], 50), sink).expect("room");
        events
    });
    let error = ForwardError::Device("fell off the bus".to_owned());
    open.send(Err(error.clone())).expect("a model");
    assert_eq!(thread.join().expect("no panic"), Ended::Failed(error.clone()));
    assert!(!handle.is_open());
    for events in clients {
        assert_eq!(events.iter().last(), Some(Event::Failed(RequestError::Forward(error.clone()))));
    }
    let (sink, _) = client();
    assert_eq!(handle.submit(request(&[1], 1), sink), Err(RequestError::ShuttingDown));
}

#[test]
fn a_panic_in_the_model_fails_all_requests_with_its_words() {
    let (open, handle, thread, _) = gated();
    let (sink, events) = client();
    handle.submit(request(&[1, 2], 50), sink).expect("room");
    drop(open);
    let error = ForwardError::Device("panic: the gate is gone".to_owned());
    assert_eq!(thread.join().expect("caught"), Ended::Failed(error.clone()));
    assert_eq!(events.iter().last(), Some(Event::Failed(RequestError::Forward(error))));
}

#[test]
fn a_listeners_panic_is_its_own_end_alone() {
    let (handle, thread, _) = start(Box::new(Model::new(shape(60, 4))), Settings::default());
    handle.submit(request(&[1, 2], 50), Box::new(|_| panic!("a bad listener"))).expect("room");
    let (sink, events) = client();
    handle.submit(request(&[1, 2], 5), sink).expect("room");
    assert_eq!(ids(events.iter()).len(), 5);
    handle.shutdown(Duration::MAX);
    assert_eq!(thread.join().expect("no panic"), Ended::Stopped { cut_off: 0 });
    assert_eq!(handle.stats().endings.abort, 1);
}

#[test]
fn no_more_wait_than_may() {
    let (open, gate): (Gate, _) = channel();
    let model = Gated { model: Model::new(shape(100, 4)), gate };
    let settings = Settings { waiting: 2, sequences: 1, ..Settings::default() };
    let (handle, thread, _) = start(Box::new(model), settings);
    let submit = |request: Request| {
        let (sink, events) = client();
        handle.submit(request, sink).map(|_| events)
    };
    let first = submit(request(&[1], 2)).expect("room");
    open.send(Ok(())).expect("a model");
    assert!(matches!(first.recv(), Ok(Event::Prompt { .. })), "it waits no longer");
    let others = [submit(request(&[2], 1)).expect("room"), submit(request(&[3], 1)).expect("room")];
    assert_eq!(submit(request(&[4], 1)).err(), Some(RequestError::Busy { waiting: 2 }));
    (0..3).for_each(|_| open.send(Ok(())).expect("a model"));
    others.into_iter().for_each(|events| assert_eq!(ids(events.iter()).len(), 1));
    drop(handle);
    assert_eq!(thread.join().expect("no panic"), Ended::Stopped { cut_off: 0 });
}
