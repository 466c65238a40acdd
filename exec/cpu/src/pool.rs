//! Threads that compute a job together, phase by phase.
//!
//! A phase is over when its chunks are done, not when all threads have arrived: a thread that the operating system took
//! off its core between two chunks is not waited for, the others claim its share. Only a chunk under way is waited for,
//! first by looking a few microseconds long ([`SPIN`]), then asleep, so that the core is free for whoever holds it up.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a thread looks for the next phase before it sleeps. Phases of a decode step take 5 to 100 µs and waking a
/// thread takes 5 to 50 µs, so much less would make every phase pay for a wake, and much more would be taken from a
/// neighbour that could use the core.
pub const SPIN: Duration = Duration::from_micros(20);

/// Work in phases. Chunks of one phase may run at the same time, on any thread, in any order; a phase starts when all
/// of the one before is done and finished.
pub trait Job: Send + Sync {
    /// How many phases there are.
    fn phases(&self) -> usize;
    /// How many chunks a phase has. May be 0.
    fn chunks(&self, phase: usize) -> usize;
    /// Computes one chunk; `worker` is below the pool's thread count, and no two chunks run with the same at once.
    fn chunk(&self, phase: usize, chunk: usize, worker: usize);
    /// Once after all chunks of a phase, on one thread, nothing else running. For work too small to share.
    fn finish(&self, phase: usize, worker: usize);
}

/// What the threads did, since the pool began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Chunks computed.
    pub chunks: usize,
    /// Waits that ended asleep.
    pub sleeps: usize,
    /// Waits that looked on for the whole of [`SPIN`] or found what they waited for before.
    pub waits: usize,
}

/// A condition that is looked at, then slept on.
#[derive(Default)]
struct Bell {
    asleep: AtomicUsize,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    /// Waits until `ready`. Whoever makes it ready calls [`Bell::ring`] after it.
    fn wait(&self, ready: impl Fn() -> bool) -> bool {
        let begin = Instant::now();
        loop {
            for _ in 0..8 {
                if ready() {
                    return false;
                }
                std::hint::spin_loop();
            }
            if begin.elapsed() >= SPIN {
                break;
            }
        }
        let mut guard = locked(&self.lock);
        // In this order: either the ringer sees a sleeper, or the sleeper sees what the ringer wrote.
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while !ready() {
            guard = self.rung.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        true
    }

    fn ring(&self) {
        if self.asleep.load(Ordering::SeqCst) > 0 {
            let _guard = locked(&self.lock);
            self.rung.notify_all();
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One job under way. A thread that comes late to a job that is over finds no chunk in it.
struct Run {
    job: Arc<dyn Job>,
    phases: usize,
    /// Phase in the upper half, the next chunk to be claimed in the lower: one addition claims a chunk of a known phase.
    ticket: AtomicU64,
    done: AtomicUsize,
    failed: AtomicBool,
    bell: Bell,
}

const PHASE: u64 = 1 << 32;

impl Run {
    fn new(job: Arc<dyn Job>) -> Self {
        let phases = job.phases();
        let (ticket, done) = (AtomicU64::new(0), AtomicUsize::new(0));
        Self { job, phases, ticket, done, failed: AtomicBool::new(false), bell: Bell::default() }
    }

    fn phase(&self) -> usize {
        (self.ticket.load(Ordering::SeqCst) / PHASE) as usize
    }

    /// Takes part until the job is over.
    fn work(&self, worker: usize, counters: &Counters) {
        loop {
            let ticket = self.ticket.load(Ordering::SeqCst);
            let phase = (ticket / PHASE) as usize;
            if phase >= self.phases {
                return;
            }
            let chunks = self.job.chunks(phase);
            if ticket % PHASE < chunks as u64 {
                self.claim(worker, counters);
            } else {
                let slept = self.bell.wait(|| self.phase() != phase);
                counters.waits.fetch_add(1, Ordering::Relaxed);
                counters.sleeps.fetch_add(usize::from(slept), Ordering::Relaxed);
            }
        }
    }

    fn claim(&self, worker: usize, counters: &Counters) {
        let ticket = self.ticket.fetch_add(1, Ordering::SeqCst);
        let (phase, chunk) = ((ticket / PHASE) as usize, (ticket % PHASE) as usize);
        if phase >= self.phases || chunk >= self.job.chunks(phase) {
            return;
        }
        self.guarded(|| self.job.chunk(phase, chunk, worker));
        counters.chunks.fetch_add(1, Ordering::Relaxed);
        if self.done.fetch_add(1, Ordering::SeqCst) + 1 == self.job.chunks(phase) {
            self.advance(phase, worker);
        }
    }

    /// Ends a phase, and those after it that have no chunks.
    fn advance(&self, mut phase: usize, worker: usize) {
        loop {
            self.guarded(|| self.job.finish(phase, worker));
            phase = if self.failed.load(Ordering::SeqCst) { self.phases } else { phase + 1 };
            if phase >= self.phases || self.job.chunks(phase) > 0 {
                break;
            }
        }
        self.done.store(0, Ordering::SeqCst);
        self.ticket.store(phase as u64 * PHASE, Ordering::SeqCst);
        self.bell.ring();
    }

    fn guarded(&self, work: impl FnOnce()) {
        if !self.failed.load(Ordering::SeqCst) && catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.failed.store(true, Ordering::SeqCst);
        }
    }
}

#[derive(Default)]
struct Counters {
    chunks: AtomicUsize,
    sleeps: AtomicUsize,
    waits: AtomicUsize,
}

#[derive(Default)]
struct Shared {
    /// Jobs begun; the largest number says that the pool ends.
    epoch: AtomicU64,
    current: Mutex<Option<Arc<Run>>>,
    bell: Bell,
    counters: Counters,
}

const END: u64 = u64::MAX;

/// Threads, of which the caller of [`Pool::run`] is one.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool that computes with `threads` threads, at least one: the caller's and `threads - 1` of its own.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let mut pool = Self { shared: Arc::default(), workers: Vec::new() };
        for worker in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("cpu-{worker}"));
            pool.workers.push(builder.spawn(move || serve(&shared, worker))?);
        }
        Ok(pool)
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// What the threads did so far.
    pub fn counts(&self) -> Counts {
        let Counters { chunks, sleeps, waits } = &self.shared.counters;
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        Counts { chunks: read(chunks), sleeps: read(sleeps), waits: read(waits) }
    }

    /// Computes a job; returns when all of it is done. Threads may hold the job a little longer, but no longer work on it.
    ///
    /// # Panics
    /// When a chunk panicked: the rest of the job is not computed.
    pub fn run(&mut self, job: Arc<dyn Job>) {
        let run = Arc::new(Run::new(job));
        if run.phases == 0 {
            return;
        }
        if run.job.chunks(0) == 0 {
            run.advance(0, 0);
        }
        if self.threads() > 1 {
            *locked(&self.shared.current) = Some(Arc::clone(&run));
            self.shared.epoch.fetch_add(1, Ordering::SeqCst);
            self.shared.bell.ring();
        }
        run.work(0, &self.shared.counters);
        if self.threads() > 1 {
            *locked(&self.shared.current) = None;
        }
        assert!(!run.failed.load(Ordering::SeqCst), "a chunk of a job panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.epoch.store(END, Ordering::SeqCst);
        self.shared.bell.ring();
        for worker in self.workers.drain(..) {
            // A worker catches what a job panics with, so it ends well.
            let _ = worker.join();
        }
    }
}

fn serve(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        shared.bell.wait(|| shared.epoch.load(Ordering::SeqCst) != seen);
        seen = shared.epoch.load(Ordering::SeqCst);
        if seen == END {
            return;
        }
        let run = locked(&shared.current).clone();
        if let Some(run) = run {
            run.work(worker, &shared.counters);
        }
    }
}
