//! Seeded simulation: the real `apply`, `solve`, `Leader` and `Worker` in one process under virtual time.
//!
//! A seed decides everything: nodes, tasks, message delays, losses, repetitions, partitions, crashes with and without
//! reboot, restarts in good order, changes of leader with and without a deposed one that does not know it yet and to
//! clocks that are minutes off, members shut out, destinations that several tasks share, services and their newer versions, proposals that are lost or
//! whose answer is. Raft itself is modelled as one ordered log. Every invariant is looked at after every entry, every byte
//! that is published is checked against the ledger, and after the faults everything has to come to an end.
//!
//! `MLOC_SIM_SEEDS=20000 cargo test -p mloc-core --test sim` tries more seeds; `MLOC_SIM_SEED=17` replays one and
//! prints its trace.

mod faults;
mod leadership;
mod node;
mod tally;
mod tasks;
mod world;

use std::thread;

use tally::Tally;
use world::{Planted, World};

/// Seeds of a usual run: what a gate has time for.
const SEEDS: u64 = 2_000;
/// Seeds in which a planted bug must show. It does in far fewer.
const SEEDS_FOR_A_BUG: u64 = 400;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs one seed; the error is the broken promise and what led to it.
fn run(seed: u64, planted: Planted) -> Result<Tally, String> {
    World::new(seed, planted, false).run().map_err(|why| {
        // Once more, writing down what happens.
        let mut world = World::new(seed, planted, true);
        let again = world.run().err().unwrap_or_else(|| "it did not happen again".to_owned());
        format!("seed {seed}: {why}\n{}\nagain: {again}\nreplay: MLOC_SIM_SEED={seed}", world.trace())
    })
}

#[test]
fn promises_hold_under_faults() {
    if let Some(seed) = number("MLOC_SIM_SEED") {
        let mut world = World::new(seed, Planted::default(), true);
        let result = world.run();
        println!("{}", world.trace());
        result.unwrap();
        return;
    }
    let seeds = number("MLOC_SIM_SEEDS").unwrap_or(SEEDS);
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    let tally = thread::scope(|scope| {
        let one = |first: u64| {
            scope.spawn(move || {
                let mut tally = Tally::default();
                for seed in (first..seeds).step_by(threads as usize) {
                    match run(seed, Planted::default()) {
                        Ok(more) => tally.add(&more),
                        Err(why) => panic!("{why}"),
                    }
                }
                tally
            })
        };
        let handles: Vec<_> = (0..threads).map(one).collect();
        handles.into_iter().fold(Tally::default(), |mut sum, handle| {
            sum.add(&handle.join().unwrap_or_else(|why| std::panic::resume_unwind(why)));
            sum
        })
    });
    println!("{seeds} seeds: {tally:?}");
    // A simulation in which nothing goes wrong, or nothing goes right, proves nothing.
    if seeds >= 100 {
        for (what, count) in tally.counts() {
            assert!(count > 0, "no seed of {seeds} had {what}: {tally:?}");
        }
    }
}

#[test]
fn the_same_seed_runs_the_same_way() {
    let trace = || {
        let mut world = World::new(7, Planted::default(), true);
        world.run().unwrap();
        world.trace()
    };
    assert_eq!(trace(), trace());
}

fn is_caught(planted: Planted) -> String {
    let caught = (0..SEEDS_FOR_A_BUG).find_map(|seed| World::new(seed, planted, false).run().err());
    caught.unwrap_or_else(|| panic!("{planted:?} was not noticed in {SEEDS_FOR_A_BUG} seeds"))
}

#[test]
fn a_missing_fence_is_caught() {
    let why = is_caught(Planted { no_fence: true, ..Planted::default() });
    assert!(why.contains("L1") || why.contains("L3") || why.contains("L4") || why.contains("L5"), "{why}");
}

#[test]
fn a_missing_slot_recheck_is_caught() {
    let why = is_caught(Planted { no_slot_recheck: true, ..Planted::default() });
    assert!(why.contains("L2"), "{why}");
}

#[test]
fn two_publishers_at_one_destination_are_caught() {
    let why = is_caught(Planted { no_publish_hold: true, ..Planted::default() });
    assert!(why.contains("P2"), "{why}");
}

#[test]
fn exchanges_without_bounds_are_caught() {
    let why = is_caught(Planted { no_exchange_bounds: true, ..Planted::default() });
    assert!(why.contains("SV2") || why.contains("SV3"), "{why}");
}

#[test]
fn publishing_without_the_ledger_is_caught() {
    let why = is_caught(Planted { publish_without_ledger: true, ..Planted::default() });
    assert!(why.contains("P1"), "{why}");
}

#[test]
fn publishing_beyond_the_lease_is_caught() {
    let why = is_caught(Planted { no_freeze: true, ..Planted::default() });
    assert!(why.contains("P1"), "{why}");
}
