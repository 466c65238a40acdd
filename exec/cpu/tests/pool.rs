//! Threads share a job without waiting for one another's arrival.

use std::sync::{
    Arc, Condvar, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use mloc_cpu::pool::{Job, Pool};

/// Counts what was done when; a phase's chunks must all see the phase before them done.
struct Counting {
    phases: Vec<usize>,
    done: Vec<AtomicUsize>,
    finished: Vec<AtomicUsize>,
}

impl Counting {
    fn new(phases: Vec<usize>) -> Arc<Self> {
        let zeros = || phases.iter().map(|_| AtomicUsize::new(0)).collect();
        Arc::new(Self { done: zeros(), finished: zeros(), phases: phases.clone() })
    }
}

impl Job for Counting {
    fn phases(&self) -> usize {
        self.phases.len()
    }
    fn chunks(&self, phase: usize) -> usize {
        self.phases[phase]
    }
    fn chunk(&self, phase: usize, chunk: usize, _: usize) {
        assert!(chunk < self.phases[phase]);
        assert!(self.finished[..phase].iter().all(|f| f.load(Ordering::SeqCst) == 1), "phase {phase} began early");
        self.done[phase].fetch_add(1, Ordering::SeqCst);
    }
    fn finish(&self, phase: usize, _: usize) {
        assert_eq!(self.done[phase].load(Ordering::SeqCst), self.phases[phase]);
        self.finished[phase].fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn each_chunk_runs_once_and_phases_follow_each_other() {
    for threads in [1, 2, 3, 8] {
        let mut pool = Pool::new(threads).expect("threads");
        for _ in 0..50 {
            let job = Counting::new(vec![0, 7, 1, 0, 0, 100, 3, 0]);
            pool.run(Arc::clone(&job) as Arc<dyn Job>);
            assert!(job.finished.iter().all(|f| f.load(Ordering::SeqCst) == 1));
            assert!(job.done.iter().zip(&job.phases).all(|(done, chunks)| done.load(Ordering::SeqCst) == *chunks));
        }
        assert_eq!(pool.counts().chunks, 50 * 111);
    }
}

/// As a neighbour does that takes a core: one chunk doesn't go on until all others of its phase are done.
struct HeldUp {
    chunks: usize,
    done: Mutex<usize>,
    rest_done: Condvar,
}

impl Job for HeldUp {
    fn phases(&self) -> usize {
        3
    }
    fn chunks(&self, _: usize) -> usize {
        self.chunks
    }
    fn chunk(&self, _: usize, chunk: usize, _: usize) {
        let mut done = self.done.lock().expect("no panic");
        if chunk == 0 {
            while *done < self.chunks - 1 {
                done = self.rest_done.wait(done).expect("no panic");
            }
        }
        *done += 1;
        self.rest_done.notify_all();
    }
    fn finish(&self, _: usize, _: usize) {
        *self.done.lock().expect("no panic") = 0;
    }
}

#[test]
fn a_thread_that_is_held_up_leaves_its_share_to_the_others() {
    for threads in [2, 4] {
        let mut pool = Pool::new(threads).expect("threads");
        let job = HeldUp { chunks: 64, done: Mutex::new(0), rest_done: Condvar::new() };
        // With a share for each thread this would never end: the held-up thread's own share waits behind chunk 0.
        pool.run(Arc::new(job));
        assert_eq!(pool.counts().chunks, 3 * 64);
    }
}

/// Sets the flag of a busy neighbour when it goes.
struct Neighbours(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        for neighbour in self.1.drain(..) {
            neighbour.join().expect("a neighbour ends");
        }
    }
}

#[test]
fn with_a_busy_neighbour_on_every_core_work_is_neither_lost_nor_repeated_and_waits_are_bounded() {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let stop = Arc::new(AtomicBool::new(false));
    let neighbour = || {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
        })
    };
    let _neighbours = Neighbours(Arc::clone(&stop), (0..cores).map(|_| neighbour()).collect());
    let mut pool = Pool::new(cores).expect("threads");
    let phases = vec![16; 200];
    let job = Counting::new(phases.clone());
    pool.run(Arc::clone(&job) as Arc<dyn Job>);
    assert!(job.done.iter().all(|done| done.load(Ordering::SeqCst) == 16));
    let counts = pool.counts();
    assert_eq!(counts.chunks, 200 * 16);
    // A thread waits at most once a phase, and each wait looks for 20 µs at most before it gives its core away.
    assert!(counts.waits <= 200 * cores, "{counts:?}");
    assert!(counts.sleeps <= counts.waits, "{counts:?}");
}

/// Panics in one chunk.
struct Broken;

impl Job for Broken {
    fn phases(&self) -> usize {
        2
    }
    fn chunks(&self, _: usize) -> usize {
        20
    }
    fn chunk(&self, phase: usize, chunk: usize, _: usize) {
        assert!(phase == 0, "nothing follows");
        assert!(chunk != 13, "unlucky");
    }
    fn finish(&self, _: usize, _: usize) {}
}

#[test]
fn a_panic_ends_the_job_and_the_pool_goes_on() {
    let mut pool = Pool::new(3).expect("threads");
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.run(Arc::new(Broken))));
    assert!(broken.is_err());
    let job = Counting::new(vec![5, 5]);
    pool.run(Arc::clone(&job) as Arc<dyn Job>);
    assert_eq!(job.finished[1].load(Ordering::SeqCst), 1);
}
