use proptest::prelude::*;

use super::*;
use crate::draw::uniform;

fn sampling() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::default() }
}

fn choose(row: &[f32], sampling: &Sampling, draw: f64) -> u32 {
    let history = History::new(sampling, &[]);
    let choice = Choice { sampling, history: &history, mask: None, forbidden: &[], draw, logprobs: None };
    choice.choose(row, &mut Scratch::default()).expect("a token").0
}

/// What vLLM's sampler leaves of a row, written as it is there: sort everything, cut, take the rest's softmax.
fn reference(row: &[f32], sampling: &Sampling) -> Vec<(usize, f64)> {
    let temperature = f64::from(sampling.temperature);
    let mut left: Vec<(usize, f64)> = row
        .iter()
        .enumerate()
        .filter(|(_, v)| v.is_finite())
        .map(|(id, v)| (id, f64::from(*v) / temperature))
        .collect();
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let highest = left[0].1;
    left.iter_mut().for_each(|(_, v)| *v = (*v - highest).exp());
    left.retain(|(_, v)| *v >= f64::from(sampling.min_p));
    if sampling.top_k > 0 && left.len() > sampling.top_k {
        let least = left[sampling.top_k - 1].1;
        left.retain(|(_, v)| *v >= least);
    }
    let total: f64 = left.iter().map(|(_, v)| v).sum();
    let mut reached = 0.0;
    let keep = left.iter().position(|(_, v)| {
        reached += v;
        sampling.top_p < 1.0 && reached >= f64::from(sampling.top_p) * total
    });
    left.truncate(keep.map_or(left.len(), |last| last + 1));
    let total: f64 = left.iter().map(|(_, v)| v).sum();
    left.iter_mut().for_each(|(_, v)| *v /= total);
    left
}

fn row() -> impl Strategy<Value = Vec<f32>> {
    let logit =
        prop_oneof![20 => -30.0_f32..30.0, 3 => Just(1.5_f32), 1 => Just(f32::NEG_INFINITY), 1 => Just(f32::NAN)];
    prop::collection::vec(logit, 1..700).prop_filter("a number", |row| row.iter().any(|v| v.is_finite()))
}

fn cuts() -> impl Strategy<Value = Sampling> {
    let top_k = prop_oneof![Just(0_usize), 1..40_usize, Just(5000)];
    let top_p = prop_oneof![Just(1.0_f32), 0.05..0.999_f32];
    let min_p = prop_oneof![Just(0.0_f32), 0.001..0.9_f32];
    (0.2..8.0_f32, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        ..Sampling::default()
    })
}

proptest! {
    /// The draw is the inverse of what the reference leaves, summed up by id; at a border either neighbour is right.
    #[test]
    fn a_draw_falls_where_the_reference_has_it(row in row(), sampling in cuts(), draw in 0.0..1.0_f64) {
        let mut left = reference(&row, &sampling);
        left.sort_by_key(|(id, _)| *id);
        let id = choose(&row, &sampling, draw) as usize;
        let place = left.iter().position(|(other, _)| *other == id);
        // A cut at the very border may fall either way by rounding, so another cut of a hair's breadth is right too.
        let near = |factor: f32| reference(&row, &Sampling { top_p: (sampling.top_p * factor).min(1.0), min_p: sampling.min_p * factor, ..sampling.clone() });
        let (wider, narrower) = (near(1.00001), near(0.99999));
        prop_assume!(wider.len() == left.len() && narrower.len() == left.len());
        let place = place.expect("a token that the cuts leave");
        let before: f64 = left[..place].iter().map(|(_, p)| p).sum();
        prop_assert!(before - 1e-5 <= draw && draw <= before + left[place].1 + 1e-5, "{draw} in {before} + {}", left[place].1);
    }

    #[test]
    fn logprobs_are_those_of_the_softmax(row in row(), temperature in 0.2..8.0_f32, count in 0..30_usize) {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let history = History::new(&sampling, &[]);
        let choice = Choice { sampling: &sampling, history: &history, mask: None, forbidden: &[], draw: 0.4, logprobs: Some(count) };
        let (id, logprobs) = choice.choose(&row, &mut Scratch::default()).expect("a token");
        let logprobs = logprobs.expect("wanted");
        let all = reference(&row, &sampling);
        prop_assert_eq!(logprobs.chosen.id, id);
        prop_assert_eq!(all[logprobs.chosen.rank - 1].0, id as usize);
        prop_assert_eq!(logprobs.top.len(), count.min(all.len()));
        for (place, top) in logprobs.top.iter().chain([&logprobs.chosen]).map(|top| (top.rank - 1, top)) {
            prop_assert_eq!(all[place].0, top.id as usize);
            let expected = all[place].1.ln();
            let close = (f64::from(top.logprob) - expected).abs() < 1e-4 * (1.0 + expected.abs());
            prop_assert!(close || expected < -80.0, "{} is not {expected}", top.logprob);
        }
    }

    #[test]
    fn the_exponential_is_close(x in -87.0..=0.0_f32) {
        let exact = f64::from(x).exp();
        prop_assert!((f64::from(exponential(x)) / exact - 1.0).abs() < 3e-7);
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_the_highest_and_no_nan() {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    assert_eq!(choose(&[f32::NAN, 1.0, 3.0, 3.0, f32::NEG_INFINITY], &greedy, 0.9), 2);
    assert_eq!(choose(&[f32::NAN, 1.0, f32::INFINITY, 3.0], &greedy, 0.9), 2);
    assert_eq!(choose(&[0.0, 1.0, f32::INFINITY, 3.0], &sampling(), 0.9), 2);
}

#[test]
fn a_row_without_numbers_is_an_error_that_says_so() {
    let history = History::default();
    let choice =
        Choice { sampling: &sampling(), history: &history, mask: None, forbidden: &[], draw: 0.5, logprobs: None };
    let error = choice.choose(&[f32::NAN, f32::NEG_INFINITY], &mut Scratch::default()).expect_err("nothing to choose");
    assert_eq!(error.to_string(), "device failed: none of 2 logits is a number to choose by");
}

/// The logits that a choice works with, found out by asking for all log-probabilities at temperature 0.
fn changed(row: &[f32], sampling: &Sampling, prompt: &[u32], answer: &[u32], mask: Option<&[u32]>) -> Vec<f32> {
    let sampling = Sampling { temperature: 0.0, ..sampling.clone() };
    let mut history = History::new(&sampling, prompt);
    answer.iter().for_each(|id| history.push(*id));
    let choice =
        Choice { sampling: &sampling, history: &history, mask, forbidden: &[], draw: 0.0, logprobs: Some(row.len()) };
    let (_, logprobs) = choice.choose(row, &mut Scratch::default()).expect("a token");
    let mut out = vec![f32::NEG_INFINITY; row.len()];
    logprobs.expect("wanted").top.iter().for_each(|top| out[top.id as usize] = top.logprob);
    out
}

/// Differences between log-probabilities are those between logits.
fn differences(logprobs: &[f32]) -> Vec<f32> {
    logprobs.iter().map(|logprob| ((logprob - logprobs[0]) * 1000.0).round() / 1000.0).collect()
}

#[test]
fn penalties_and_bias_change_logits_as_they_say() {
    let row = [0.0, 2.0, -2.0, 2.0];
    let repetition = Sampling { repetition_penalty: 2.0, ..sampling() };
    assert_eq!(differences(&changed(&row, &repetition, &[1], &[2], None)), [0.0, 1.0, -4.0, 2.0]);
    let frequency = Sampling { frequency_penalty: 0.5, presence_penalty: 0.25, ..sampling() };
    // The prompt doesn't count.
    assert_eq!(differences(&changed(&row, &frequency, &[3], &[1, 1, 2], None)), [0.0, 0.75, -2.75, 2.0]);
    let bias = Sampling { logit_bias: [(2, 5.0), (99, 1.0)].into(), ..sampling() };
    assert_eq!(differences(&changed(&row, &bias, &[], &[], None)), [0.0, 2.0, 3.0, 2.0]);
}

#[test]
fn what_a_mask_forbids_has_no_probability_and_a_bias_does_not_bring_it_back() {
    let bias = Sampling { logit_bias: [(1, 100.0)].into(), ..sampling() };
    let logprobs = changed(&[0.0; 40], &bias, &[], &[], Some(&[0b101]));
    assert_eq!(logprobs.iter().filter(|logprob| logprob.is_finite()).count(), 2);
    assert!((logprobs[2] - 0.5_f32.ln()).abs() < 1e-6);
}

/// Chi-squared with 4 degrees of freedom exceeds 18.5 once in a thousand.
#[test]
fn draws_are_as_frequent_as_they_are_likely() {
    let row = [1.0, 0.0, -1.0, 2.0, 0.5];
    let all = reference(&row, &sampling());
    let mut counts = [0.0_f64; 5];
    for position in 0..20_000 {
        counts[choose(&row, &sampling(), uniform(3, 0, position)) as usize] += 1.0;
    }
    let squared: f64 = all.iter().map(|(id, p)| (counts[*id] - p * 20_000.0).powi(2) / (p * 20_000.0)).sum();
    assert!(squared < 18.5, "{squared}");
}
