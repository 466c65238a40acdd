//! The gradients of PPO's and GRPO's objectives are the slopes of their losses, through the whole model.

use burn::tensor::{Device, Tensor};
use mloc_burn::logprobs::Scores;
use mloc_burn::model::parameter::Parameters;
use mloc_burn::model::{Decoder, DecoderConfig, Gradients};
use mloc_burn::objective::{Objective, Pass};
use mloc_burn::rl::actor_critic::{ActorCritic, Critic, Ppo, Response};
use mloc_burn::rl::completions::{self, Text};
use mloc_burn::rl::grpo::{GrpoSettings, ImportanceSampling, LossType, Normalizer};
use mloc_burn::rl::policy::{Grpo, GrpoBatch, Judged};
use mloc_burn::rl::ppo::{self, Episode, KlEstimator, PpoSettings};
use serde_json::json;

const TEMPERATURE: f64 = 0.8;
const TEXTS: [(&[i64], &[i64]); 3] = [(&[3, 1, 4], &[1, 5]), (&[9, 2], &[6, 5, 3]), (&[5, 8, 9, 7], &[9])];
/// Tokens of the longest response: the second one fills it.
const LONGEST: usize = 3;

fn tiny(seed: u64) -> Decoder {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 11, "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": false,
        "initializer_range": 0.3,
    });
    let mut model = Decoder::random(DecoderConfig::from_json(config).expect("config"), seed, &Device::flex());
    model.train_all();
    model
}

fn texts() -> Vec<Text<'static>> {
    TEXTS.iter().map(|(prompt, completion)| Text { prompt, completion }).collect()
}

fn scores(model: &Decoder) -> Vec<Scores> {
    completions::score(model, &texts(), TEMPERATURE, 2, &|| false).expect("scores")
}

/// Holds each parameter's gradient against the loss along it, which rises by the gradient's norm a unit.
fn check<O: Objective>(objective: &O, model: &mut O::Model, batch: &O::Batch) {
    let at = |model: &O::Model| {
        let mut gradients = Gradients::default();
        let mut pass =
            Pass { scale: 1.0, dropout_seed: 0, neftune_noise_alpha: None, gradients: &mut gradients, stop: &|| false };
        let report = objective.accumulate(model, batch, &mut pass).expect("pass");
        (report.loss, gradients)
    };
    let (_, gradients) = at(model);
    let norms = gradients.norms();
    assert_eq!(norms.len(), model.parameters().count(), "every parameter has a gradient");
    for (name, norm) in norms {
        let direction = gradients.get(&name).expect("gradient").clone().div_scalar(norm);
        let step = 4e-3;
        let mut moved = |by: f64| {
            let parameter = model.parameters_mut().find(|parameter| parameter.name == name).expect("parameter");
            let before: Tensor<2> = parameter.value.clone();
            parameter.value = before.clone() + direction.clone().mul_scalar(by);
            let loss = at(model).0;
            model.parameters_mut().find(|parameter| parameter.name == name).expect("parameter").value = before;
            loss
        };
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        assert!((slope - norm).abs() < 1e-2 * norm + 2e-4, "{name}: gradient {norm}, slope {slope}");
    }
}

#[test]
fn grpo() {
    let (mut model, old, reference) = (tiny(1), scores(&tiny(2)), scores(&tiny(3)));
    for (loss_type, level) in [
        (LossType::Dapo, ImportanceSampling::Token),
        (LossType::Grpo, ImportanceSampling::Sequence),
        (LossType::Sapo, ImportanceSampling::Token),
    ] {
        let settings = GrpoSettings {
            loss_type,
            beta: 0.2,
            // Wide: a loss has no slope where a bound is.
            epsilon: 0.99,
            epsilon_high: 50.0,
            delta: None,
            importance_sampling_level: level,
            use_bias_correction_kl: true,
            top_entropy_quantile: 1.0,
            entropy_coef: 0.1,
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            max_completion_length: LONGEST,
        };
        let rows = TEXTS.iter().zip(old.iter().zip(&reference)).zip([1.0, -0.5, 0.7]);
        let rows = rows.map(|(((prompt, completion), (old, reference)), advantage)| Judged {
            prompt: prompt.to_vec(),
            completion: completion.to_vec(),
            old: Some(old.logprobs.clone()),
            reference: reference.logprobs.clone(),
            advantage,
        });
        let batch = GrpoBatch { rows: rows.collect(), normalizer: Normalizer { micro_batches: 1, tokens: 6 } };
        check(&Grpo { settings, temperature: TEMPERATURE, dropout: false }, &mut model, &batch);
    }
}

#[test]
fn ppo() {
    let settings = PpoSettings {
        kl_coef: 0.1,
        kl_estimator: KlEstimator::K1,
        whiten_rewards: false,
        gamma: 0.9,
        lam: 0.9,
        cliprange: 0.99,
        cliprange_value: 50.0,
        vf_coef: 0.5,
    };
    let objective = Ppo { settings, temperature: TEMPERATURE, response_length: LONGEST };
    let (old, reference) = (scores(&tiny(2)), scores(&tiny(3)));
    let critics: [fn(&Decoder) -> Critic; 2] = [
        |_| Critic::model(tiny(4).into_classifier(1, 5)).expect("critic"),
        |policy| match Critic::head(policy) {
            Critic::Head(mut head) => {
                // One that says something: from 0 nothing would go on into the policy.
                head.weight.value = head.weight.value.clone().add_scalar(0.3);
                Critic::Head(head)
            }
            other => other,
        },
    ];
    for critic in critics {
        let policy = tiny(1);
        let mut model = ActorCritic { critic: critic(&policy), policy };
        let values = model.values(&texts(), LONGEST, 2, &|| false).expect("values");
        assert_eq!(values.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 2]);
        let episodes: Vec<Episode> = (0..TEXTS.len())
            .map(|row| Episode {
                logprobs: old[row].logprobs.clone(),
                ref_logprobs: reference[row].logprobs.clone(),
                values: values[row].iter().map(|value| value + 0.1).collect(),
                score: [1.0, -1.0, 0.5][row],
            })
            .collect();
        let estimates = ppo::estimate(&episodes, &settings);
        let batch: Vec<Response> = TEXTS
            .iter()
            .zip(episodes.into_iter().zip(estimates))
            .map(|((prompt, response), (episode, estimate))| Response {
                prompt: prompt.to_vec(),
                response: response.to_vec(),
                episode,
                estimate,
            })
            .collect();
        check(&objective, &mut model, &batch);
    }
}
