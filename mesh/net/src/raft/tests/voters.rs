//! The plan of `plan_voters`, carried out.

use std::collections::BTreeMap;

use super::{
    super::{Candidate, RaftId, Standing, VoterPolicy, plan_voters, types::RaftNode},
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
                standing: Standing::Willing,
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

/// The leader after the one that knew must not take a voter it has never heard for one that answers.
#[tokio::test]
async fn a_new_leader_counts_the_silence_of_a_voter_it_has_never_heard() {
    let cluster = Cluster::voters(3, fast()).await;
    let old = cluster.leader().await;
    let dead = (old + 1) % 3;
    cluster.kill(dead).await;
    assert!(cluster.nodes[old].consensus.hand_over(|_| true).await);
    let new = cluster.leader().await;
    let silence = || {
        let voters = cluster.nodes[new].consensus.voters();
        voters.into_iter().find(|voter| voter.peer == cluster.nodes[dead].peer).and_then(|voter| voter.silent_for)
    };
    within("its silence is counted", async {
        while silence().is_none_or(|silent| silent < fast().election_max) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_change_that_its_leader_did_not_end_is_ended_by_the_next() {
    let cluster = Cluster::strangers(4, fast()).await;
    cluster.nodes[0].consensus.bootstrap().await.unwrap();
    cluster.leader().await;
    let (old, new, all) = (cluster.ids(0..3), cluster.ids(1..4), cluster.ids(0..4));
    cluster.nodes[0].consensus.change_voters(&old).await.unwrap();
    let raft = cluster.nodes[0].consensus.raft();
    let newcomer = RaftNode { peer: cluster.nodes[3].peer.clone() };
    raft.add_learner(cluster.nodes[3].consensus.raft_id(), newcomer, true).await.unwrap();
    let configs = vec![old.keys().copied().collect(), new.keys().copied().collect()];
    let nodes: BTreeMap<RaftId, RaftNode> = all.into_iter().map(|(id, peer)| (id, RaftNode { peer })).collect();
    let joint = openraft::Membership::new(configs, nodes).unwrap();
    raft.append_membership(joint, openraft::EntryPayload::Blank, []).await.unwrap();
    cluster.kill(0).await;

    let next = &cluster.nodes[cluster.leader().await].consensus;
    assert_eq!(next.unfinished_change(), Some(new.clone()));
    assert!(next.ledger().voters().iter().eq(old.values()), "the newcomer is counted too early");
    next.change_voters(&new).await.unwrap();
    let next = &cluster.nodes[cluster.leader().await].consensus;
    assert_eq!(next.unfinished_change(), None);
    assert!(next.voters().into_iter().map(|voter| voter.id).eq(new.keys().copied()));
    cluster.submit(0).await;
    assert!(next.ledger().voters().iter().eq(new.values()));
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

/// A leader that drains hands the lead to a voter that does not; where all drain it stays.
#[tokio::test]
async fn the_lead_goes_only_to_those_that_may_have_it() {
    let cluster = Cluster::voters(3, fast()).await;
    let leader = cluster.leader().await;
    let (heir, drained) = ((leader + 1) % 3, (leader + 2) % 3);
    let consensus = &cluster.nodes[leader].consensus;
    assert!(!consensus.hand_over(|_| false).await);
    // The heirs must have been heard lately for it; a busy machine may need a second try.
    within("it is handed over", async {
        while !consensus.hand_over(|peer| *peer != cluster.nodes[drained].peer).await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(cluster.leader().await, heir);
    cluster.stop().await;
}
