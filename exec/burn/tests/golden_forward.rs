//! Forward, padding, generation, losses and gradients against the numbers of the reference libraries.

mod golden;

use burn::tensor::Device;
use golden::{Close, Expected, FAMILIES, fixture, tensors};
use mloc_burn::batch::Batch;
use mloc_burn::loss::{self, Targets};
use mloc_burn::model::parameter::host_values;
use mloc_burn::model::{Decoder, DecoderConfig, Gradients, Packed};
use mloc_burn::weights::SafetensorsSource;
use serde_json::Value;

fn model(family: &str) -> (Decoder, Expected) {
    let folder = fixture(&format!("models/{family}"));
    let config = DecoderConfig::from_folder(&folder).expect("config");
    let source = SafetensorsSource::open_folder(&folder).expect("weights");
    let model = Decoder::load(config, &source, &Device::flex()).expect("model");
    (model, Expected::open(&folder.join("expected.json")))
}

fn logits(model: &Decoder, batch: &Batch) -> (Packed, Vec<f32>) {
    let packed = Packed::new(batch, &model.config, model.device());
    let logits = model.logits(model.hidden(&packed));
    (packed, host_values(logits))
}

#[test]
fn logits_of_one_text() {
    for family in FAMILIES {
        let (model, expected) = model(family);
        let wanted = tensors(&fixture(&format!("models/{family}/tensors.safetensors")));
        let (_, found) = logits(&model, &Batch::single(&expected.ids("/forward/input_ids")));
        Close::default().check(&format!("{family} logits"), &found, &wanted["logits"]);
    }
}

#[test]
fn padding_on_either_side_changes_nothing() {
    for family in FAMILIES {
        let (model, expected) = model(family);
        let wanted = tensors(&fixture(&format!("models/{family}/tensors.safetensors")));
        for side in ["right", "left"] {
            let batch = Batch {
                input_ids: expected.rows(&format!("/padded/{side}/input_ids")),
                attention_mask: expected.rows(&format!("/padded/{side}/attention_mask")),
                labels: expected.rows(&format!("/padded/{side}/input_ids")),
            };
            let (packed, found) = logits(&model, &batch);
            let width = batch.input_ids[0].len();
            let vocab = model.config.vocab_size;
            let all = &wanted[&format!("padded_{side}_logits")];
            let wanted: Vec<f32> = packed
                .slots
                .iter()
                .flat_map(|(row, column)| &all[(row * width + column) * vocab..][..vocab])
                .copied()
                .collect();
            Close::default().check(&format!("{family} padded {side}"), &found, &wanted);
        }
    }
}

#[test]
fn losses_and_the_gradient_of_every_parameter() {
    for family in FAMILIES {
        let (mut model, expected) = model(family);
        model.train_all();
        for targets_of in ["all_tokens", "completion_only"] {
            let at = |key: &str| format!("/sft/{targets_of}{key}");
            let batch = Batch {
                input_ids: expected.rows("/sft/input_ids"),
                attention_mask: expected.rows("/sft/attention_mask"),
                labels: expected.rows(&at("/labels")),
            };
            let packed = Packed::new(&batch, &model.config, model.device());
            let targets = Targets::of(&batch, &packed);
            assert_eq!(targets.ids.len(), batch.num_targets());
            assert_eq!(targets.ids.len() as f64, expected.number(&at("/num_target_tokens")));
            let weight = 1.0 / targets.ids.len() as f64;
            let check = |key: &str, balance: Option<f64>| {
                let (hidden, mut tape) = model.forward(&packed);
                let mut gradients = Gradients::default();
                let (sums, d_hidden) = loss::backward(&hidden, model.head(), &targets, 0.0, weight, &mut gradients);
                let mut loss = sums.loss * weight;
                let wanted = expected.value(&at(key));
                let what = format!("{family} {targets_of} {key}");
                if let Some(coefficient) = balance {
                    let balance = tape.balance().expect("experts");
                    let aux_loss = wanted["aux_loss"].as_f64().expect("a number");
                    Close::default().check(&format!("{what} aux_loss"), &[balance.loss as f32], &[aux_loss as f32]);
                    loss += coefficient * balance.loss;
                    tape = tape.with_balance(coefficient, balance);
                }
                model.backward(&packed, tape, d_hidden, &mut gradients);
                let wanted_loss = wanted["loss"].as_f64().expect("a number");
                Close::default().check(&format!("{what} loss"), &[loss as f32], &[wanted_loss as f32]);
                let wanted = wanted["grad_norms"].as_object().expect("map");
                let found = gradients.norms();
                assert_eq!(found.len(), wanted.len(), "{what}: number of gradients");
                for (name, norm) in found {
                    let wanted = wanted.get(&name).and_then(Value::as_f64).expect(&name);
                    Close::relative(1e-3).check(&format!("{what} {name}"), &[norm as f32], &[wanted as f32]);
                }
            };
            check("", None);
            if model.config.experts.is_some() {
                let coefficient = model.config.raw["router_aux_loss_coef"].as_f64().expect("a number");
                check("/balanced", Some(coefficient));
            }
        }
    }
}
