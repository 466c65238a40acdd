//! Which of the ready replicas a request goes to.
//!
//! Without a key: to the one with the fewest requests under way. With one (requests that begin alike have the same): by
//! rendezvous hashing, so that a replica sees the prompts whose beginnings it has in its cache, as long as it has at most
//! [`LOAD_BOUND_PERCENT`] of its share of the load; then the next in the key's own order. (Thaler and Ravishankar 1998;
//! the bound: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016.)

use serde_json::Value;

use crate::id::AttemptId;

/// A replica may have so much of the mean load before its keys go elsewhere, in per cent.
pub const LOAD_BOUND_PERCENT: u64 = 125;
/// Bytes of a prompt's beginning that make its key: system prompts differ before that, and caches hold blocks.
const PREFIX_BYTES: usize = 1024;

/// A ready replica and its requests under way, as far as the chooser knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The replica's attempt.
    pub attempt: &'a AttemptId,
    /// Requests under way.
    pub under_way: u32,
}

/// The index of the one to ask; `None` of none. `turn` breaks ties, so that equals are asked in turn.
pub fn choose(key: Option<u64>, candidates: &[Candidate<'_>], turn: u64) -> Option<usize> {
    let count = candidates.len() as u64;
    if count == 0 {
        return None;
    }
    let least = || {
        let from = (turn % count) as usize;
        let in_turn = (from..candidates.len()).chain(0..from);
        in_turn.min_by_key(|at| candidates[*at].under_way)
    };
    let Some(key) = key else { return least() };
    // This request counts too, so that the bound is at least 1.
    let total = candidates.iter().map(|c| u64::from(c.under_way)).sum::<u64>() + 1;
    let bound = (total * LOAD_BOUND_PERCENT).div_ceil(100 * count);
    let within = (0..candidates.len()).filter(|at| u64::from(candidates[*at].under_way) < bound);
    within.max_by_key(|at| (mixed(key, candidates[*at].attempt), std::cmp::Reverse(*at))).or_else(least)
}

/// The key of a request in OpenAI's shape: what it says itself (`prompt_cache_key`), or how its prompt begins.
pub fn prefix_key(body: &Value) -> Option<u64> {
    if let Some(said) = body["prompt_cache_key"].as_str() {
        return Some(hash(said.as_bytes()));
    }
    let first = match (&body["messages"], &body["prompt"]) {
        (Value::Array(messages), _) => messages.first()?.to_string(),
        (_, Value::String(prompt)) => prompt.clone(),
        (_, Value::Array(prompts)) => prompts.first()?.to_string(),
        _ => return None,
    };
    Some(hash(&first.as_bytes()[..first.len().min(PREFIX_BYTES)]))
}

fn mixed(key: u64, attempt: &AttemptId) -> u64 {
    // Restarts of a replica on the same node find an empty cache anyway, so the attempt is hashed as it is.
    finish(hash(attempt.to_string().as_bytes()) ^ finish(key))
}

/// FNV-1a: the same at every node and in every build.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finaliser of SplitMix64: FNV's high bits are weak.
fn finish(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::cases::attempt;

    fn candidates<'a>(ids: &'a [AttemptId], loads: &[u32]) -> Vec<Candidate<'a>> {
        ids.iter().zip(loads).map(|(attempt, load)| Candidate { attempt, under_way: *load }).collect()
    }

    fn ids(count: usize) -> Vec<AttemptId> {
        (0..count).map(|n| AttemptId { replica: n as u32, ..attempt("t", 1) }).collect()
    }

    #[test]
    fn the_least_loaded_is_asked_and_equals_in_turn() {
        let ids = ids(3);
        assert_eq!(choose(None, &[], 0), None);
        assert_eq!(choose(None, &candidates(&ids, &[2, 0, 1]), 7), Some(1));
        let turns: Vec<_> = (0..6).map(|turn| choose(None, &candidates(&ids, &[1, 1, 1]), turn).unwrap()).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn requests_that_begin_alike_have_one_key() {
        let chat = |system: &str, user: &str| {
            prefix_key(&json!({"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}))
        };
        assert_eq!(chat("you are brief", "hi"), chat("you are brief", "what is raft?"));
        assert_ne!(chat("you are brief", "hi"), chat("you are long", "hi"));
        assert_ne!(prefix_key(&json!({"prompt": "a"})), prefix_key(&json!({"prompt": "b"})));
        assert_eq!(
            prefix_key(&json!({"prompt_cache_key": "k", "prompt": "a"})),
            prefix_key(&json!({"prompt_cache_key": "k"}))
        );
        assert_eq!(prefix_key(&json!({"input": "a"})), None);
    }

    proptest! {
        #[test]
        fn a_key_stays_where_it_is_when_others_come_or_go(key in any::<u64>(), count in 2..9usize, gone in 0..9usize) {
            let ids = ids(count);
            let all = candidates(&ids, &vec![0; count]);
            let chosen = choose(Some(key), &all, 0).unwrap();
            prop_assert_eq!(choose(Some(key), &all, 5), Some(chosen), "ties have nothing to say");
            let gone = gone % count;
            let mut rest = all.clone();
            rest.remove(gone);
            let again = choose(Some(key), &rest, 0).unwrap();
            if gone != chosen {
                prop_assert_eq!(rest[again].attempt, all[chosen].attempt);
            }
        }

        #[test]
        fn nobody_gets_more_than_the_bound(key in any::<u64>(), loads in proptest::collection::vec(0..50u32, 1..9)) {
            let ids = ids(loads.len());
            let chosen = choose(Some(key), &candidates(&ids, &loads), 0).unwrap();
            let total = u64::from(loads.iter().sum::<u32>()) + 1;
            let bound = (total * LOAD_BOUND_PERCENT).div_ceil(100 * loads.len() as u64);
            prop_assert!(u64::from(loads[chosen]) < bound, "{} of {:?} is over {}", chosen, loads, bound);
        }

        #[test]
        fn keys_spread_evenly(seed in any::<u32>()) {
            let ids = ids(4);
            let all = candidates(&ids, &[0; 4]);
            let mut hits = [0u32; 4];
            for n in 0..4_000u32 {
                hits[choose(Some(hash(&(u64::from(seed) << 32 | u64::from(n)).to_be_bytes())), &all, 0).unwrap()] += 1;
            }
            prop_assert!(hits.iter().all(|hit| (800..1_200).contains(hit)), "{:?}", hits);
        }
    }
}
