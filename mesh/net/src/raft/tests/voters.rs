//! The plan of `plan_voters`, carried out.

use super::{
    super::{Candidate, VoterPolicy, plan_voters},
    wire::{Cluster, fast, within},
};

#[tokio::test]
async fn voters_grow_from_one_to_three_and_a_dead_one_is_replaced() {
    let cluster = Cluster::strangers(4, fast()).await;
    cluster.nodes[0].consensus.bootstrap().await.unwrap();
    let leader = &cluster.nodes[cluster.leader().await].consensus;
    let policy = VoterPolicy { voters_max: 3, grace: fast().election_max, ..VoterPolicy::default() };
    let plan = |dead: Option<usize>| {
        let voters = leader.voters();
        let members: Vec<Candidate> = (0..4)
            .map(|n| Candidate {
                id: cluster.nodes[n].consensus.raft_id(),
                leader: n == 0,
                willing: true,
                reachable: true,
                disk_ok: true,
                alive: dead != Some(n),
                stable_for: policy.stable_after * (10 - n as u32),
                silent_for: voters
                    .iter()
                    .find(|voter| voter.id == cluster.nodes[n].consensus.raft_id())
                    .and_then(|voter| voter.silent_for),
            })
            .collect();
        let plan = plan_voters(&members, &voters.iter().map(|voter| voter.id).collect(), &policy)?;
        Some(cluster.ids((0..4).filter(|n| plan.contains(&cluster.nodes[*n].consensus.raft_id()))))
    };
    let three = plan(None).unwrap();
    assert_eq!(three, cluster.ids([0, 1, 2]));
    leader.change_voters(&three).await.unwrap();
    assert_eq!(leader.voters().len(), 3);
    assert_eq!(plan(None), None);
    cluster.submit(0).await;
    cluster.has(2, 0..1).await;

    cluster.kill(2).await;
    assert_eq!(plan(Some(2)), None, "its silence is short yet");
    let replaced = within("raft misses node 2", async {
        loop {
            if let Some(plan) = plan(Some(2)) {
                return plan;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(replaced, cluster.ids([0, 1, 3]));
    leader.change_voters(&replaced).await.unwrap();
    cluster.submit(1).await;
    cluster.has(3, 0..2).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_leader_that_loses_its_vote_steps_down() {
    let cluster = Cluster::voters(4, fast()).await;
    let leader = cluster.leader().await;
    let rest = (0..4).filter(|n| *n != leader);
    cluster.nodes[leader].consensus.change_voters(&cluster.ids(rest)).await.unwrap();
    within("it steps down", cluster.nodes[leader].consensus.leadership().wait_for(|now| !now.mine)).await.unwrap();
    assert_ne!(cluster.leader().await, leader);
    cluster.submit(0).await;
    cluster.stop().await;
}
