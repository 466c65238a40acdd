//! DPO and reward models against the reference trainer; their gradients against finite differences.

mod golden;

use burn::tensor::Device;
use golden::{Close, Expected, fixture, settings, tensors};
use mloc_burn::batch::{Batch, IGNORED};
use mloc_burn::formats::dataset::{LoadOptions, Pair, PairText, TokenizedPair, tokenize_pair_files};
use mloc_burn::formats::tokenizer::TextTokenizer;
use mloc_burn::lora::{self, LoraConfig};
use mloc_burn::model::parameter::{Gradients, matrix};
use mloc_burn::model::{Decoder, DecoderConfig};
use mloc_burn::objective::{Evaluate, Objective, Pass};
use mloc_burn::preference::losses::{PAIR_LOSSES, Side};
use mloc_burn::preference::{BradleyTerry, Dpo, DpoBatch, PairLoss, Preference, Reference, RewardBatch, reward};
use mloc_burn::train::{StepReport, Trainer};
use mloc_burn::weights::SafetensorsSource;

fn open(folder: &str) -> Decoder {
    let folder = fixture(folder);
    let config = DecoderConfig::from_folder(&folder).expect("config");
    let source = SafetensorsSource::open_folder(&folder).expect("weights");
    Decoder::load(config, &source, &Device::flex()).expect("model")
}

/// The rows of a recorded batch, labelled by its completion mask where it has one.
fn rows(expected: &Expected, at: &str) -> Batch {
    let input_ids = expected.rows(&format!("{at}/input_ids"));
    let completion = expected.0.pointer(&format!("{at}/completion_mask")).map(|_| {
        let mask = expected.rows(&format!("{at}/completion_mask"));
        let row = |(ids, mask): (&Vec<i64>, &Vec<i64>)| {
            ids.iter().zip(mask).map(|(id, m)| if *m == 0 { IGNORED } else { *id }).collect()
        };
        input_ids.iter().zip(&mask).map(row).collect()
    });
    Batch {
        labels: completion.unwrap_or_else(|| input_ids.iter().map(|row| vec![IGNORED; row.len()]).collect()),
        attention_mask: expected.rows(&format!("{at}/attention_mask")),
        input_ids,
    }
}

/// Compares a step's report with the reference's log of it, all figures that the log has.
fn check(what: &str, report: &StepReport, expected: &Expected, index: usize) {
    let logged = expected.value(&format!("/logs/{index}")).as_object().expect("log");
    for (key, wanted) in logged {
        let (found, close) = match key.as_str() {
            "step" => (report.step as f64, Close::absolute(0.0)),
            "loss" => (report.loss, Close::absolute(2e-3)),
            "grad_norm" => (report.grad_norm, Close::relative(1e-2)),
            "learning_rate" => (report.learning_rate, Close::relative(1e-6)),
            "num_tokens" => (report.num_tokens as f64, Close::absolute(0.0)),
            name if name.starts_with("logps/") => (report.figures[name], Close { relative: 1e-4, absolute: 2e-3 }),
            name => (report.figures[name], Close::absolute(2e-3)),
        };
        let what = format!("{what} step {} {key}", index + 1);
        close.check(&what, &[found as f32], &[wanted.as_f64().expect("number") as f32]);
    }
    assert_eq!(logged.len(), report.figures.len() + 5, "{what}: figures");
}

fn sigmoid() -> Preference {
    Preference { losses: vec![(PairLoss::Sigmoid, 1.0)], beta: 0.1, label_smoothing: 0.0 }
}

#[test]
fn dpo_follows_the_reference() {
    let expected = Expected::open(&fixture("dpo/expected.json"));
    // The base without its adapter, and the same numbers computed beforehand.
    for precomputed in [false, true] {
        let mut model = open("models/llama");
        lora::load(&mut model, &fixture("dpo/adapter_init")).expect("adapter");
        let base = lora::base_of(&model);
        let reference = match precomputed {
            true => Reference::Precomputed,
            false => Reference::Models(vec![base.clone()]),
        };
        let objective = Dpo { preference: sigmoid(), reference, dropout: true };
        let mut trainer = Trainer::new(model, settings(&expected));
        for index in 0..5 {
            let rows = rows(&expected, &format!("/batches/{index}"));
            let values = mloc_burn::preference::dpo::log_probabilities(&base, &rows, &|| false).expect("reference");
            let batch = DpoBatch { rows, reference: precomputed.then_some(values) };
            let report = trainer.step_on(&objective, &[batch], &|| false).expect("step");
            check("dpo", &report, &expected, index);
        }
        let out = tempfile::tempdir().expect("folder");
        lora::save(trainer.model(), out.path(), "models/llama").expect("save");
        let found = tensors(&out.path().join("adapter_model.safetensors"));
        let wanted = tensors(&fixture("dpo/adapter_final/adapter_model.safetensors"));
        assert!(found.keys().eq(wanted.keys()));
        for (name, values) in &found {
            Close::absolute(1e-3).check(name, values, &wanted[name]);
        }
    }
}

#[test]
fn losses_of_pairs_are_those_of_the_reference() {
    let expected = Expected::open(&fixture("dpo/expected.json"));
    let numbers = |at: &str| -> Vec<f64> { serde_json::from_value(expected.value(at).clone()).expect(at) };
    let of = |side: &str| {
        let policy = numbers(&format!("/loss_function/policy_{side}_logps"));
        let reference = numbers(&format!("/loss_function/ref_{side}_logps"));
        policy.iter().zip(reference).map(|(p, r)| p - r).collect::<Vec<f64>>()
    };
    let (chosen, rejected) = (of("chosen"), of("rejected"));
    let cases = expected.value("/loss_function/cases").as_array().expect("cases").len();
    let mut compared = 0;
    for case in 0..cases {
        let at = |key: &str| format!("/loss_function/cases/{case}/{key}");
        let (beta, label_smoothing) = (expected.number(&at("beta")), expected.number(&at("label_smoothing")));
        for (key, loss) in
            [("sigmoid", PairLoss::Sigmoid), ("hinge", PairLoss::Hinge), ("ipo_on_given_logps", PairLoss::Ipo)]
        {
            // Only the first is smoothed; the others were recorded without.
            if expected.0.pointer(&at(key)).is_none() {
                continue;
            }
            compared += 1;
            let preference = Preference { losses: vec![(loss, 1.0)], beta, label_smoothing };
            // One token each: the sums are the means.
            let side = |log_ratio: &f64| Side { log_ratio: *log_ratio, tokens: 1.0 };
            let costs = chosen.iter().zip(&rejected).map(|(c, r)| preference.cost(side(c), side(r)).loss as f32);
            let wanted: Vec<f32> = numbers(&at(key)).into_iter().map(|v| v as f32).collect();
            Close::default().check(&format!("{key} {beta} {label_smoothing}"), &costs.collect::<Vec<_>>(), &wanted);
        }
    }
    assert!(compared >= cases + 2, "{compared} comparisons in {cases} cases");
}

#[test]
fn a_reward_model_follows_the_reference() {
    let expected = Expected::open(&fixture("rm/expected.json"));
    let mut model = open("rm/model_init");
    model.train_all();
    let eval = rows(&expected, "/eval_batch");
    let wanted = |key: &str| -> Vec<f32> { serde_json::from_value(expected.value(key).clone()).expect(key) };
    let scores = |model: &Decoder| {
        let scores = reward::scores(model, &eval, &|| false).expect("scores");
        scores.into_iter().map(|s| s as f32).collect::<Vec<_>>()
    };
    Close::default().check("before", &scores(&model), &wanted("/rewards_before"));
    let objective = BradleyTerry { center_rewards_coefficient: None, dropout: false };
    let mut trainer = Trainer::new(model, settings(&expected));
    for index in 0..5 {
        let batch = RewardBatch { rows: rows(&expected, &format!("/batches/{index}")), margins: None };
        let report = trainer.step_on(&objective, &[batch], &|| false).expect("step");
        check("rm", &report, &expected, index);
    }
    let model = trainer.into_model();
    Close::absolute(1e-2).check("after", &scores(&model), &wanted("/rewards_after"));
    let head = model.score.as_ref().expect("head").weight.to_vec();
    let wanted = tensors(&fixture("rm/score_final.safetensors"));
    assert_eq!(wanted.len(), 1);
    for values in wanted.values() {
        Close::absolute(1e-3).check("score.weight", &head, values);
    }

    // What is written loads back as what it is, in the newer style and in the older one.
    let out = tempfile::tempdir().expect("folder");
    let storage = mloc_burn::export::Storage::F32;
    mloc_burn::export::write_model(&model, out.path(), storage, &|| false).expect("export");
    let config = DecoderConfig::from_folder(out.path()).expect("config");
    assert_eq!((config.architecture.as_str(), config.num_labels), ("LlamaForSequenceClassification", Some(1)));
    let source = SafetensorsSource::open_folder(out.path()).expect("weights");
    let mut raw = config.raw.clone();
    raw["rope_scaling"] = raw["rope_parameters"].take();
    raw["rope_theta"] = raw["rope_scaling"]["rope_theta"].take();
    for config in [config, DecoderConfig::from_json(raw).expect("older style")] {
        let again = Decoder::load(config, &source, &Device::flex()).expect("model");
        assert_eq!(scores(&again), scores(&model));
    }
}

/// The recorded batches, made of the recorded pairs.
#[test]
fn pairs_become_the_tokens_of_the_reference() {
    let tokenizer = TextTokenizer::from_folder(&fixture("models/llama")).expect("tokenizer");
    for method in ["dpo", "rm"] {
        let expected = Expected::open(&fixture(&format!("{method}/expected.json")));
        let (folder, data) = (tempfile::tempdir().expect("folder"), fixture(&format!("{method}/pairs.jsonl")));
        let whole = |TokenizedPair { prompt, chosen, rejected, margin }: TokenizedPair| {
            let text = |answer| PairText { ids: [prompt.as_slice(), answer].concat(), given: prompt.len() };
            Some(Pair { chosen: text(&chosen), rejected: text(&rejected), margin })
        };
        let options = LoadOptions::default();
        let (file, counts, _) =
            tokenize_pair_files(&data, &options, &tokenizer, 0, &whole, folder.path(), &mut |_| false).expect("tokens");
        assert_eq!((file.len(), counts.rows, counts.merged), (10, 10, 0));
        let pairs: Vec<Pair> = (0..file.len()).map(|pair| file.read(pair).expect("pair")).collect();
        for (index, two) in pairs.chunks(2).enumerate() {
            let recorded = rows(&expected, &format!("/batches/{index}"));
            let texts = two.iter().map(|p| &p.chosen).chain(two.iter().map(|p| &p.rejected));
            for (row, text) in texts.enumerate() {
                let ids: Vec<i64> = text.ids.iter().map(|id| i64::from(*id)).collect();
                let real = recorded.attention_mask[row].iter().filter(|m| **m != 0).count();
                assert_eq!(ids, recorded.input_ids[row][..real], "{method} batch {index} row {row}");
                if method == "dpo" {
                    let given = recorded.labels[row].iter().take_while(|label| **label == IGNORED).count();
                    assert_eq!(text.given, given, "{method} batch {index} row {row}");
                }
            }
        }
    }
}

/// A small model, so that f32 differences say something.
fn small(labels: Option<usize>) -> Decoder {
    let raw = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "vocab_size": 23, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": labels.is_none(),
        "initializer_range": 0.5,
    });
    let mut model = Decoder::random(DecoderConfig::from_json(raw).expect("config"), 5, &Device::flex());
    if let Some(labels) = labels {
        model = model.into_classifier(labels, 6);
    }
    model.train_all();
    model
}

fn pairs(labels: bool) -> Batch {
    let row = |ids: &[i64], given: usize| {
        let of = |(at, id): (usize, &i64)| if labels && at >= given { *id } else { IGNORED };
        (ids.to_vec(), ids.iter().enumerate().map(of).collect())
    };
    Batch::collate(&[row(&[1, 4, 7, 9], 2), row(&[2, 5, 11], 1), row(&[1, 4, 3], 2), row(&[2, 6, 8, 10, 12], 1)], 0)
}

/// Moves some elements of every parameter a little, both ways, and compares the change of the loss with the gradient.
fn against_differences<O>(what: &str, model: &Decoder, objective: &O, batch: &O::Batch)
where
    O: Evaluate<Model = Decoder>,
{
    let mut gradients = Gradients::default();
    let (scale, dropout_seed, neftune_noise_alpha, stop) = (1.0, 0, None, &|| false);
    let mut pass = Pass { scale, dropout_seed, neftune_noise_alpha, gradients: &mut gradients, stop };
    let report = objective.accumulate(model, batch, &mut pass).expect("gradient");
    let loss = |model: &Decoder| objective.evaluate(model, batch).expect("loss").means().0;
    assert!((loss(model) - report.loss).abs() < 1e-5, "{what}: {} and {}", loss(model), report.loss);
    let names: Vec<String> = model.parameters().map(|p| p.name.clone()).collect();
    for name in names {
        let parameter = model.parameters().find(|p| p.name == name).expect("parameter").clone();
        let gradient = mloc_burn::model::parameter::host_values(gradients.get(&name).expect(&name).clone());
        let values = parameter.to_vec();
        // Along the gradient itself: the one direction in which nothing cancels.
        let length = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(length > 1e-6, "{what}: {name} has no gradient");
        let h = 2e-3;
        let moved = |sign: f64| {
            let mut other = model.clone();
            let step = |(v, g): (&f32, &f32)| v + (sign * h * f64::from(*g) / length) as f32;
            let values: Vec<f32> = values.iter().zip(&gradient).map(step).collect();
            let target = other.parameters_mut().find(|p| p.name == name).expect("parameter");
            target.value = matrix(values, &parameter.shape, &Device::flex());
            loss(&other)
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * h);
        assert!(
            (slope - length).abs() <= 1e-2 * length + 2e-4,
            "{what}: {name}: the loss changes by {slope}, the gradient says {length}"
        );
    }
}

#[test]
fn the_gradient_of_dpo_is_that_of_its_loss() {
    let model = small(None);
    for (name, loss) in PAIR_LOSSES {
        let preference = Preference { losses: vec![(loss, 1.0)], beta: 0.3, label_smoothing: 0.1 };
        let reference = Some(vec![-4.0, -9.0, -5.5, -3.0]);
        let objective = Dpo { preference, reference: Reference::Precomputed, dropout: false };
        against_differences(name, &model, &objective, &DpoBatch { rows: pairs(true), reference });
    }
}

#[test]
fn the_gradient_of_a_reward_model_is_that_of_its_loss() {
    let model = small(Some(1));
    for (center, margins) in [(None, None), (Some(0.1), Some(vec![0.5, -0.25]))] {
        let objective = BradleyTerry { center_rewards_coefficient: center, dropout: false };
        against_differences("rm", &model, &objective, &RewardBatch { rows: pairs(false), margins });
    }
}

#[test]
fn a_reward_is_read_at_the_last_real_token_wherever_padding_stands() {
    let model = small(Some(1));
    let batch = pairs(false);
    let right = reward::scores(&model, &batch, &|| false).expect("scores");
    let left = Batch {
        input_ids: batch.input_ids.iter().zip(&batch.attention_mask).map(|(ids, mask)| turned(ids, mask)).collect(),
        attention_mask: batch.attention_mask.iter().map(|mask| turned(mask, mask)).collect(),
        labels: batch.labels.clone(),
    };
    let alone = |row: usize| {
        let real = batch.attention_mask[row].iter().filter(|m| **m != 0).count();
        reward::scores(&model, &Batch::single(&batch.input_ids[row][..real]), &|| false).expect("score")[0]
    };
    let close = |found: &[f64]| found.iter().zip(&right).all(|(f, r)| (f - r).abs() < 1e-5);
    assert!(close(&reward::scores(&model, &left, &|| false).expect("scores")));
    assert!(close(&(0..4).map(alone).collect::<Vec<_>>()));
    let none = Batch {
        attention_mask: vec![vec![0; 3]; 2],
        input_ids: vec![vec![0; 3]; 2],
        labels: vec![vec![IGNORED; 3]; 2],
    };
    let error = reward::scores(&model, &none, &|| false).expect_err("nothing to read").to_string();
    assert_eq!(error, "batch row 0: it has no tokens");
    let error = reward::scores(&small(Some(2)), &batch, &|| false).expect_err("two scores").to_string();
    assert!(error.ends_with("the model gives 2 scores, a reward is one"), "{error}");
}

/// The padding of a row moved to its front.
fn turned(row: &[i64], mask: &[i64]) -> Vec<i64> {
    let real = mask.iter().filter(|m| **m != 0).count();
    [&row[real..], &row[..real]].concat()
}

#[test]
fn a_reward_adapter_goes_to_peft_names_and_back() {
    let config = LoraConfig {
        r: 2,
        lora_alpha: 4.0,
        target_modules: ["q_proj"].into(),
        modules_to_save: vec!["score".into()],
        ..LoraConfig::default()
    };
    let mut model = small(Some(1));
    lora::attach(&mut model, &config, 3).expect("attach");
    let expected = Expected::open(&fixture("rm/expected.json"));
    let objective = BradleyTerry { center_rewards_coefficient: None, dropout: false };
    let mut trainer = Trainer::new(model, settings(&expected));
    let batch = || RewardBatch { rows: pairs(false), margins: None };
    let before = trainer.model().score.as_ref().expect("head").weight.to_vec();
    trainer.step_on(&objective, &[batch()], &|| false).expect("step");
    let model = trainer.into_model();
    assert_ne!(model.score.as_ref().expect("head").weight.to_vec(), before, "the head learns");

    let out = tempfile::tempdir().expect("folder");
    lora::save(&model, out.path(), "models/x").expect("save");
    let names: Vec<String> = tensors(&out.path().join("adapter_model.safetensors")).into_keys().collect();
    let layer = |n: usize, ab: &str| format!("base_model.model.model.layers.{n}.self_attn.q_proj.lora_{ab}.weight");
    let want = [layer(0, "A"), layer(0, "B"), layer(1, "A"), layer(1, "B"), "base_model.model.score.weight".into()];
    assert_eq!(names, want);
    let text = std::fs::read_to_string(out.path().join("adapter_config.json")).expect("config");
    let written: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&written["task_type"], &written["modules_to_save"]),
        (&"SEQ_CLS".into(), &serde_json::json!(["score"]))
    );
    // Onto the base with another head: the adapter brings its own.
    let mut again = small(Some(1)).into_classifier(1, 99);
    lora::load(&mut again, out.path()).expect("load");
    let scores = |model: &Decoder| reward::scores(model, &batch().rows, &|| false).expect("scores");
    assert_eq!(scores(&again), scores(&model));
}

#[test]
fn batches_that_are_no_pairs_are_refused() {
    let model = small(None);
    let objective = Dpo { preference: sigmoid(), reference: Reference::Precomputed, dropout: false };
    let three = Batch::collate(&[(vec![1], vec![1]), (vec![2], vec![2]), (vec![3], vec![3])], 0);
    let said = |batch: &DpoBatch| objective.evaluate(&model, batch).expect_err("refused").to_string();
    assert_eq!(said(&DpoBatch { rows: three, reference: None }), "batch row 2: 3 rows are no pairs");
    let batch = DpoBatch { rows: pairs(true), reference: None };
    assert_eq!(said(&batch), "batch row 0: it has no log-probability under the reference");
    let objective = BradleyTerry { center_rewards_coefficient: None, dropout: false };
    let batch = RewardBatch { rows: pairs(false), margins: None };
    let error = objective.check(&model, &batch).expect_err("no head").to_string();
    assert_eq!(error, "batch row 0: the model has no score head");
    let batch = RewardBatch { margins: Some(vec![1.0]), ..batch };
    let error = objective.check(&small(Some(1)), &batch).expect_err("one margin").to_string();
    assert_eq!(error, "batch row 0: 1 margins for 2 pairs");
}
