//! A seeded storm over three voters: kills, partitions, lost replies, handed-over leads, changed voters, in any order.
//!
//! Held throughout: `R1` a term has one leader; `R2` what was acknowledged is never lost; `R3` all ledgers end equal.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    super::{RaftSettings, types::Ledger},
    wire::{Cluster, fast, within},
};

/// Other seeds: `MLOC_TEST_SEED=7 cargo test -p mloc-mesh storm`.
fn seed() -> u64 {
    std::env::var("MLOC_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_in_a_storm() {
    let seed = seed();
    println!("MLOC_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let settings = RaftSettings { snapshot_every: 15, keep_entries: 3, snapshot_piece: 700, ..fast() };
    let mut cluster = Cluster::voters(3, settings).await;
    let leaders: Arc<Mutex<BTreeMap<u64, usize>>> = Arc::default();
    let mut submitted = 0;
    let mut watchers = tokio::task::JoinSet::new();
    for n in 0..3 {
        watchers.spawn(watch_leader(&cluster, n, leaders.clone()));
    }
    for _ in 0..12 {
        let victim = random.random_range(0..3);
        match random.random_range(0..5) {
            0 => {
                cluster.kill(victim).await;
                submit(&cluster, &mut submitted, random.random_range(1..25)).await;
                cluster.restart(victim).await;
                watchers.spawn(watch_leader(&cluster, victim, leaders.clone()));
            }
            1 => {
                cluster.net.isolate(&cluster.nodes[victim].peer);
                submit(&cluster, &mut submitted, random.random_range(1..25)).await;
                cluster.net.heal();
            }
            2 => cluster.net.break_every(*[0, 3, 11].choose(&mut random).unwrap()),
            3 => {
                let leader = cluster.leader().await;
                // It may fail for lost replies; then somebody leads all the same.
                cluster.nodes[leader].consensus.hand_over(|_| true).await;
            }
            _ => {
                let leader = cluster.leader().await;
                let target = cluster.ids((0..3).filter(|n| *n == leader));
                // Down to one voter and back; either may be refused on the way, and then it is as it was.
                let lonely = cluster.nodes[leader].consensus.change_voters(&target).await;
                submit(&cluster, &mut submitted, 1).await;
                let leader = cluster.leader().await;
                let back = cluster.nodes[leader].consensus.change_voters(&cluster.ids(0..3)).await;
                println!("voters: {lonely:?}, {back:?}");
            }
        }
        submit(&cluster, &mut submitted, 3).await;
    }
    cluster.net.break_every(0);
    within("three voters", async {
        loop {
            let leader = cluster.leader().await;
            if cluster.nodes[leader].consensus.change_voters(&cluster.ids(0..3)).await.is_ok() {
                return;
            }
        }
    })
    .await;
    submit(&cluster, &mut submitted, 1).await;
    for n in 0..3 {
        cluster.has(n, 0..submitted).await;
    }
    let ledgers: Vec<Ledger> = cluster.nodes.iter().map(|node| node.consensus.ledger().read(Ledger::clone)).collect();
    assert!(ledgers[0] == ledgers[1] && ledgers[1] == ledgers[2], "R3: the ledgers differ");
    while let Some(watcher) = watchers.try_join_next() {
        watcher.expect("R1 holds");
    }
    watchers.shutdown().await;
    cluster.stop().await;
}

async fn submit(cluster: &Cluster, submitted: &mut u64, count: u64) {
    for _ in 0..count {
        cluster.submit(*submitted).await;
        *submitted += 1;
        let leader = cluster.leader().await;
        let ledger = cluster.nodes[leader].consensus.ledger();
        if cluster.nodes[leader].consensus.read_index().await.is_ok() {
            assert!(ledger.read(|ledger| super::has(ledger, *submitted - 1)), "R2: entry {} is lost", *submitted - 1);
        }
    }
}

fn watch_leader(
    cluster: &Cluster,
    n: usize,
    leaders: Arc<Mutex<BTreeMap<u64, usize>>>,
) -> impl Future<Output = ()> + Send + 'static {
    let mut leadership = cluster.nodes[n].consensus.leadership();
    async move {
        while let Ok(now) = leadership.wait_for(|now| now.mine).await.map(|now| now.clone()) {
            let known = *leaders.lock().unwrap().entry(now.term).or_insert(n);
            assert_eq!(known, n, "R1: term {} has two leaders", now.term);
            if leadership.changed().await.is_err() {
                return;
            }
        }
    }
}
