//! PPO's and GRPO's arithmetic against the reference trainers.

mod golden;

use std::collections::BTreeMap;

use golden::{Close, Expected, fixture, tensors};
use mloc_burn::rl::grpo::{
    self, Aggregation, Completion, GrpoSettings, ImportanceSampling, LossType, Normalizer, Rewards, ScaleRewards,
};
use mloc_burn::rl::ppo::{self, Episode, PolicyLoss, PpoSettings, Seen, ValueLoss};
use serde_json::{Value, json};

/// The first numbers of each row of a matrix, as many as `lengths` say.
fn ragged(values: &[f32], width: usize, lengths: &[usize]) -> Vec<Vec<f64>> {
    let rows = values.chunks(width).zip(lengths);
    rows.map(|(row, length)| row[..*length].iter().map(|v| f64::from(*v)).collect()).collect()
}

fn flat(rows: &[Vec<f64>]) -> Vec<f32> {
    rows.iter().flatten().map(|v| *v as f32).collect()
}

fn wanted(values: &BTreeMap<String, Vec<f32>>, name: &str, width: usize, lengths: &[usize]) -> Vec<f32> {
    flat(&ragged(&values[name], width, lengths))
}

fn close(what: &str, found: f64, wanted: f64) {
    Close::default().check(what, &[found as f32], &[wanted as f32]);
}

#[test]
fn ppo() {
    const WIDTH: usize = 10;
    let folder = fixture("ppo");
    let expected = Expected::open(&folder.join("expected.json"));
    let values = tensors(&folder.join("tensors.safetensors"));
    let tokens: Vec<usize> = expected.ids("/sequence_lengths").iter().map(|last| *last as usize + 1).collect();
    // One more value, unless the response fills its length.
    let places: Vec<usize> = tokens.iter().map(|n| (n + 1).min(WIDTH)).collect();
    let of_tokens = |name: &str| ragged(&values[name], WIDTH, &tokens);
    let of_places = |name: &str| ragged(&values[name], WIDTH, &places);
    let (logprobs, references) = (of_tokens("in.logprobs"), of_tokens("in.ref_logprobs"));
    let old_values = of_places("in.values");
    let episodes: Vec<Episode> = (0..tokens.len())
        .map(|row| Episode {
            logprobs: logprobs[row].clone(),
            ref_logprobs: references[row].clone(),
            values: old_values[row].clone(),
            score: f64::from(values["in.scores"][row]),
        })
        .collect();
    let (new_logprobs, new_values) = (of_tokens("in.new_logprobs"), of_places("in.new_values"));
    let cases = expected.value("/cases").as_array().expect("cases");
    assert_eq!(cases.len(), 2);
    for (index, case) in cases.iter().enumerate() {
        let settings: PpoSettings = serde_json::from_value(case["hyperparameters"].clone()).expect("settings");
        let estimates = ppo::estimate(&episodes, &settings);
        let number = |name: &str| case[name].as_f64().unwrap_or_else(|| panic!("no {name}"));
        let check = |name: &str, found: Vec<Vec<f64>>, lengths: &[usize]| {
            let name = format!("case{index}.{name}");
            Close::default().check(&name, &flat(&found), &wanted(&values, &name, WIDTH, lengths));
        };
        check("kl", estimates.iter().map(|e| e.kl.clone()).collect(), &tokens);
        check("rewards", estimates.iter().map(|e| e.rewards.clone()).collect(), &places);
        check("returns", estimates.iter().map(|e| e.returns.clone()).collect(), &places);
        check("advantages", estimates.iter().map(|e| e.advantages.clone()).collect(), &tokens);
        let kl: f64 = estimates.iter().flat_map(|e| &e.kl).sum();
        close("mean_kl", kl / tokens.len() as f64, number("mean_kl"));
        let seen = |now: &[Vec<f64>]| -> (PolicyLoss, ValueLoss) {
            let rows: Vec<Seen<'_>> = (0..now.len())
                .map(|row| Seen { episode: &episodes[row], estimate: &estimates[row], now: &now[row] })
                .collect();
            (ppo::policy_loss(&rows, WIDTH, &settings), ppo::value_loss(&rows, &settings))
        };
        let (policy, value) = (seen(&new_logprobs).0, seen(&new_values).1);
        for (name, found) in [
            ("policy_loss", policy.loss),
            ("value_loss", value.loss),
            ("total_loss", policy.loss + settings.vf_coef * value.loss),
            ("policy_clipfrac", policy.clipfrac),
            ("value_clipfrac", value.clipfrac),
            ("approx_kl", policy.approx_kl),
        ] {
            close(&format!("case {index}: {name}"), found, number(name));
        }
        let weighted = |row: Vec<f64>| row.into_iter().map(|slope| settings.vf_coef * slope).collect();
        check("grad_new_logprobs", policy.slopes, &tokens);
        check("grad_new_values", value.slopes.into_iter().map(weighted).collect(), &places);
    }
}

#[test]
fn grpo() {
    const WIDTH: usize = 9;
    let folder = fixture("grpo");
    let expected = Expected::open(&folder.join("expected.json"));
    let values = tensors(&folder.join("tensors.safetensors"));
    let lengths: Vec<usize> = expected.ids("/lengths").iter().map(|n| *n as usize).collect();
    let group = expected.number("/num_generations") as usize;
    let by_function: Vec<Vec<Option<f64>>> =
        values["in.rewards"].iter().map(|reward| vec![Some(f64::from(*reward))]).collect();
    let rewards = Rewards { by_function: &by_function, weights: &[1.0], group };
    let advantages = |scale: &str| {
        let scale: ScaleRewards = serde_json::from_value(json!(scale)).expect("scale");
        rewards.advantages(scale, Aggregation::SumThenNormalize).values
    };
    for scale in ["group", "batch", "none"] {
        let found: Vec<f32> = advantages(scale).iter().map(|a| *a as f32).collect();
        Close::default().check(scale, &found, &values[&format!("advantages.{scale}")]);
    }
    let of = |name: &str| ragged(&values[name], WIDTH, &lengths);
    let (old, new, reference) = (of("in.old_logps"), of("in.new_logps"), of("in.ref_logps"));
    let entropies: Vec<Vec<f64>> = lengths.iter().map(|n| vec![1.0; *n]).collect();
    let cases = expected.value("/cases").as_array().expect("cases");
    assert_eq!(cases.len(), 7);
    for (index, case) in cases.iter().enumerate() {
        let number = |name: &str| case[name].as_f64().unwrap_or_else(|| panic!("no {name}"));
        let parsed = |name: &str| -> Value { case[name].clone() };
        let settings = GrpoSettings {
            loss_type: serde_json::from_value::<LossType>(parsed("loss_type")).expect("loss"),
            beta: number("beta"),
            epsilon: number("epsilon"),
            epsilon_high: number("epsilon_high"),
            delta: None,
            importance_sampling_level: serde_json::from_value::<ImportanceSampling>(parsed(
                "importance_sampling_level",
            ))
            .expect("level"),
            use_bias_correction_kl: case["kl_bias_correction"].as_bool().expect("correction"),
            top_entropy_quantile: 1.0,
            entropy_coef: 0.0,
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            max_completion_length: expected.number("/max_completion_length") as usize,
        };
        let advantages = advantages(case["scale_rewards"].as_str().expect("scale"));
        let rows: Vec<Completion<'_>> = (0..lengths.len())
            .map(|row| Completion {
                old: &old[row],
                reference: &reference[row],
                new: &new[row],
                entropies: &entropies[row],
                advantage: advantages[row],
            })
            .collect();
        let normalizer = Normalizer { micro_batches: 1, tokens: lengths.iter().sum() };
        let found = grpo::loss(&rows, &settings, normalizer);
        let what = format!("case {index} of {}", case["loss_type"]);
        close(&what, found.loss, number("loss"));
        close(&format!("{what}: clip low"), found.clip_low, number("clip_low_mean"));
        close(&format!("{what}: clip high"), found.clip_high, number("clip_high_mean"));
        let name = case["grad_key"].as_str().expect("key");
        let wanted = wanted(&values, name, WIDTH, &lengths);
        // Mean losses over a hundred tokens have small gradients: a hundredth of the usual absolute tolerance.
        Close { relative: 1e-4, absolute: 1e-6 }.check(&what, &flat(&found.d_logprobs), &wanted);
        let plain = GrpoSettings { use_bias_correction_kl: false, ..settings };
        let plain = grpo::loss(&rows, &plain, normalizer);
        close(&format!("{what}, uncorrected"), plain.loss, number("loss_without_kl_bias_correction"));
        if settings.beta != 0.0 {
            close(&format!("{what}: kl"), plain.kl, number("mean_kl"));
        }
    }
}
