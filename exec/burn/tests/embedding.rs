//! BERT against the numbers of the reference libraries: hidden states, sentence embeddings, cosines, scores of pairs, and
//! the gradient of every parameter under the losses that embedders and rerankers are trained by.

mod golden;

use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use golden::{Close, Expected, fixture, tensors};
use mloc_burn::embedding::{
    Embedder, EmbeddingError, Pooling, Reranker, in_batch_contrastive, normalised, normalised_backward,
};
use mloc_burn::model::encoder::EncoderConfig;
use mloc_burn::model::parameter::{host_values, matrix};
use mloc_burn::model::{Encoder, EncoderRow, Gradients, Parameters};
use mloc_burn::weights::{SafetensorsSource, TensorSource, WeightsError};
use serde_json::{Value, json};

fn embedder() -> (Embedder, Expected) {
    let folder = fixture("models/bert");
    let embedder = Embedder::open(&folder, &Device::flex()).expect("model");
    (embedder, Expected::open(&folder.join("expected.json")))
}

/// Rows of single texts without their padding.
fn rows(ids: Vec<Vec<i64>>, mask: &[Vec<i64>]) -> Vec<EncoderRow> {
    let real = |(ids, mask): (Vec<i64>, &Vec<i64>)| {
        let ids: Vec<i64> = ids.into_iter().zip(mask).filter(|(_, mask)| **mask != 0).map(|(id, _)| id).collect();
        EncoderRow { type_ids: vec![0; ids.len()], ids }
    };
    ids.into_iter().zip(mask).map(real).collect()
}

fn texts(expected: &Expected, at: &str) -> Vec<String> {
    serde_json::from_value(expected.value(at).clone()).expect(at)
}

#[test]
fn texts_and_pairs_become_the_references_tokens() {
    let (embedder, expected) = embedder();
    for case in expected.value("/tokenizer").as_array().expect("cases") {
        let text = case["text"].as_str().expect("text");
        let (ids, types) = embedder.tokenizer.encode_pair(text, None).expect("encoded");
        assert_eq!(json!(ids), case["ids"], "{text:?}");
        assert!(types.iter().all(|kind| *kind == 0));
    }
    let pair = expected.value("/pair");
    let (a, b) = (pair["a"].as_str().expect("a"), pair["b"].as_str().expect("b"));
    let (ids, types) = embedder.tokenizer.encode_pair(a, Some(b)).expect("encoded");
    assert_eq!((json!(ids), json!(types)), (pair["ids"].clone(), pair["type_ids"].clone()));

    let long = "the first request waits ".repeat(100);
    let (ids, _) = embedder.tokenizer.encode_pair(&long, None).expect("encoded");
    assert_eq!(ids.len(), embedder.encoder.config.max_position_embeddings);
    let (ids, types) = embedder.tokenizer.encode_pair(a, Some(&long)).expect("encoded");
    assert_eq!(ids.len(), embedder.encoder.config.max_position_embeddings);
    // Of a pair the longer is cut: all of the first is still there.
    assert_eq!(types.iter().filter(|kind| **kind == 0).count(), 13);
}

#[test]
fn hidden_states_are_the_references() {
    let (embedder, expected) = embedder();
    let wanted = tensors(&fixture("models/bert/tensors.safetensors"));
    let rows = rows(expected.rows("/input_ids"), &expected.rows("/attention_mask"));
    let width = expected.rows("/input_ids")[0].len();
    let input = embedder.encoder.input(&rows).expect("rows");
    let found = host_values(embedder.encoder.hidden(&input));
    let hidden = embedder.width();
    let wanted: Vec<f32> = (input.packed.slots.iter())
        .flat_map(|(row, column)| &wanted["last_hidden_state"][(row * width + column) * hidden..][..hidden])
        .copied()
        .collect();
    Close::default().check("last_hidden_state", &found, &wanted);
}

#[test]
fn embeddings_and_cosines_are_the_references_in_any_order() {
    let (embedder, expected) = embedder();
    let wanted = tensors(&fixture("models/bert/tensors.safetensors"));
    let sentences = texts(&expected, "/sentences");
    let found = embedder.embed(&sentences).expect("embedded");
    Close::default().check("embeddings", &found.concat(), &wanted["embeddings"]);
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let cosines: Vec<f32> = found.iter().flat_map(|a| found.iter().map(move |b| cosine(a, b))).collect();
    Close::default().check("cosine", &cosines, &wanted["cosine"]);
    for (sentence, wanted) in sentences.iter().zip(&found) {
        let alone = embedder.embed(std::slice::from_ref(sentence)).expect("embedded");
        Close::absolute(1e-6).check(sentence, &alone[0], wanted);
    }
    // More than one batch: each text is where it was.
    let many: Vec<&String> = sentences.iter().cycle().take(400).collect();
    for (index, vector) in embedder.embed(&many).expect("embedded").iter().enumerate() {
        Close::absolute(1e-6).check(&index.to_string(), vector, &found[index % sentences.len()]);
    }
}

fn check_norms(what: &str, gradients: &Gradients, wanted: &Value, rename: impl Fn(&str) -> String) {
    let wanted = wanted.as_object().expect("map");
    let found = gradients.norms();
    assert_eq!(found.len(), wanted.len(), "{what}: number of gradients");
    for (name, norm) in found {
        let wanted = wanted.get(&rename(&name)).and_then(Value::as_f64).unwrap_or_else(|| panic!("{name}"));
        // A bias of the keys moves all scores of a row alike: its gradient is 0 but for rounding.
        let close = Close { relative: 1e-3, absolute: 1e-5 };
        close.check(&format!("{what} {name}"), &[norm as f32], &[wanted as f32]);
    }
}

#[test]
fn the_contrastive_loss_and_the_gradient_of_every_parameter() {
    let (mut embedder, expected) = embedder();
    embedder.encoder.train_all();
    let encoder = &embedder.encoder;
    let at = |key: &str| format!("/in_batch_contrastive/{key}");
    let side = |side: &str| {
        let mask = expected.rows(&at(&format!("{side}_mask")));
        encoder.input(&rows(expected.rows(&at(&format!("{side}_ids"))), &mask)).expect("rows")
    };
    let inputs = [side("anchor"), side("positive")];
    let passes = inputs.each_ref().map(|input| encoder.forward(input));
    let pooled = [0, 1].map(|side| Pooling::Mean.forward(&passes[side].0, &inputs[side].packed));
    let units = pooled.each_ref().map(normalised);
    let (loss, slopes) = in_batch_contrastive(&units[0], &units[1], expected.number(&at("scale")));
    Close::default().check("loss", &[loss as f32], &[expected.number(&at("loss")) as f32]);
    let mut gradients = Gradients::default();
    for ((input, (hidden, tape)), (pooled, d)) in inputs.iter().zip(passes).zip(pooled.iter().zip(slopes)) {
        let d = Pooling::Mean.backward(&hidden, &input.packed, normalised_backward(pooled, d));
        encoder.backward(input, tape, d, &mut gradients);
    }
    check_norms("contrastive", &gradients, expected.value(&at("grad_norms")), str::to_owned);
}

/// `models/bert` with the head that `families.py` puts on it.
struct WithHead(SafetensorsSource);

impl TensorSource for WithHead {
    fn names(&self) -> Vec<String> {
        let inside = self.0.names().into_iter().map(|name| format!("bert.{name}"));
        inside.chain(["classifier.bias".to_owned(), "classifier.weight".to_owned()]).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match name {
            "classifier.weight" => Some(vec![3, 64]),
            "classifier.bias" => Some(vec![3]),
            _ => self.0.shape(name.strip_prefix("bert.")?),
        }
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        match name {
            "classifier.weight" => Ok((0..3 * 64).map(|i| 0.5 * (i as f32 * 0.7).sin()).collect()),
            "classifier.bias" => Ok(vec![0.1, -0.2, 0.3]),
            _ => self.0.read_f32(name.trim_start_matches("bert.")),
        }
    }
}

fn classifier() -> Encoder {
    let folder = fixture("models/bert");
    let mut raw = EncoderConfig::from_folder(&folder).expect("config").raw;
    raw["architectures"] = json!(["BertForSequenceClassification"]);
    raw["num_labels"] = 3.into();
    let source = WithHead(SafetensorsSource::open_folder(&folder).expect("weights"));
    Encoder::load(EncoderConfig::from_json(raw).expect("config"), &source, &Device::flex()).expect("model")
}

#[test]
fn scores_of_texts_and_pairs_and_their_gradients() {
    let expected = Expected::open(&fixture("models/bert/scores.json"));
    let mut encoder = classifier();
    encoder.train_all();
    let rows: Vec<EncoderRow> = (expected.rows("/input_ids").into_iter().zip(expected.rows("/type_ids")))
        .map(|(ids, type_ids)| EncoderRow { ids, type_ids })
        .collect();
    let input = encoder.input(&rows).expect("rows");
    let (hidden, tape) = encoder.forward(&input);
    let (scores, head_tape) = encoder.scores(&input, &hidden).expect("a head");
    let wanted: Vec<Vec<f32>> = serde_json::from_value(expected.value("/scores").clone()).expect("scores");
    Close::default().check("scores", &host_values(scores.clone()), &wanted.concat());

    // The mean cross-entropy of the labels: its slope is (softmax − one-hot) / rows.
    let mut own = vec![0.0; 9];
    for (row, label) in expected.ids("/labels").into_iter().enumerate() {
        own[row * 3 + label as usize] = 1.0;
    }
    let d_scores: Tensor<2> = (softmax(scores, 1) - matrix(own, &[3, 3], encoder.device())).mul_scalar(1.0 / 3.0);
    let mut gradients = Gradients::default();
    let d_hidden = encoder.scores_backward(&input, head_tape, d_scores, &mut gradients).expect("a head");
    encoder.backward(&input, tape, d_hidden, &mut gradients);
    check_norms("scores", &gradients, expected.value("/grad_norms"), str::to_owned);

    let (embedder, golden) = embedder();
    let reranker = Reranker { encoder, tokenizer: embedder.tokenizer };
    let pair = golden.value("/pair");
    let texts = (pair["a"].as_str().expect("a"), pair["b"].as_str().expect("b"));
    let found = reranker.score(&[texts, texts]).expect("scores");
    assert_eq!(found.len(), 2);
    found.iter().for_each(|found| Close::default().check("pair", found, &wanted[2]));
}

#[test]
fn what_does_not_fit_is_named() {
    let (embedder, _) = embedder();
    let encoder = &embedder.encoder;
    let row = |ids: &[i64], type_ids: &[i64]| EncoderRow { ids: ids.to_vec(), type_ids: type_ids.to_vec() };
    let message = |rows: &[EncoderRow]| encoder.input(rows).expect_err("does not fit").to_string();
    let good = row(&[2, 3], &[0, 0]);
    assert_eq!(message(&[good.clone(), row(&[2, 512], &[0, 0])]), "row 1: token id 512, the vocabulary has 512");
    assert_eq!(message(&[row(&[2, 3], &[0, 2])]), "row 0: token type 2, the model has 2");
    assert_eq!(message(&[row(&[2], &[0, 0])]), "row 0: 2 token types for 1 tokens");
    assert_eq!(message(&[row(&[], &[])]), "row 0: 0 tokens; the model takes 1 to 128");
    assert_eq!(message(&[row(&[2; 129], &[0; 129])]), "row 0: 129 tokens; the model takes 1 to 128");
    match Reranker::open(&fixture("models/bert"), &Device::flex()) {
        Err(error @ EmbeddingError::NoScores(_)) => assert_eq!(
            error.to_string(),
            "config.json: architectures: BertModel gives no scores; a reranker is a BertForSequenceClassification"
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn weights_that_do_not_fit_are_listed_and_old_names_are_known() {
    let folder = fixture("models/bert");
    let mut raw = EncoderConfig::from_folder(&folder).expect("config").raw;
    raw["intermediate_size"] = 100.into();
    raw["num_hidden_layers"] = 1.into();
    let source = SafetensorsSource::open_folder(&folder).expect("weights");
    let config = EncoderConfig::from_json(raw).expect("config");
    let error = Encoder::load(config, &source, &Device::flex()).expect_err("does not fit").to_string();
    let wrong = "encoder.layer.0.intermediate.dense.weight: found shape [144, 64], expected [100, 64]";
    let unknown = "encoder.layer.1.output.dense.bias: unknown to this architecture; its shape is [64]";
    assert!(error.contains(wrong) && error.contains(unknown), "{error}");

    /// As the first releases were written.
    struct Old(SafetensorsSource);
    impl TensorSource for Old {
        fn names(&self) -> Vec<String> {
            let old = |name: String| {
                format!("bert.{}", name.replace("LayerNorm.weight", "LayerNorm.gamma"))
                    .replace("LayerNorm.bias", "LayerNorm.beta")
            };
            let kept = self.0.names().into_iter().filter(|name| !name.starts_with("pooler."));
            kept.map(old).chain(["cls.predictions.bias".to_owned()]).collect()
        }
        fn shape(&self, name: &str) -> Option<Vec<usize>> {
            self.names().contains(&name.to_owned()).then_some(())?;
            let own = name.trim_start_matches("bert.").replace(".gamma", ".weight").replace(".beta", ".bias");
            self.0.shape(&own)
        }
        fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
            let own = name.trim_start_matches("bert.").replace(".gamma", ".weight").replace(".beta", ".bias");
            self.0.read_f32(&own)
        }
    }
    let config = EncoderConfig::from_folder(&folder).expect("config");
    let old = Encoder::load(config.clone(), &Old(source), &Device::flex()).expect("old names");
    assert!(old.pooler.is_none());
    let (embedder, _) = embedder();
    let without_pooler = embedder.encoder.parameters().filter(|p| !p.name.starts_with("pooler."));
    assert!(old.parameters().map(|p| p.to_vec()).eq(without_pooler.map(|p| p.to_vec())));
}
