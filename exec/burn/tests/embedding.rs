//! BERT against the numbers of the reference libraries: hidden states, sentence embeddings, cosines, scores of pairs, and
//! the gradient of every parameter under the losses that embedders and rerankers are trained by.

mod golden;

use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use golden::{Close, Expected, fixture, tensors};
use mloc_burn::batch::Batch;
use mloc_burn::embedding::{
    Backbone, Embedder, EmbeddingError, Pooling, Reranker, in_batch_contrastive, normalised, normalised_backward,
};
use mloc_burn::export::{Storage, Stored, write_safetensors};
use mloc_burn::model::encoder::EncoderConfig;
use mloc_burn::model::parameter::{host_values, matrix};
use mloc_burn::model::{Decoder, DecoderConfig, Encoder, EncoderRow, Gradients, Packed, Parameters};
use mloc_burn::weights::{SafetensorsSource, TensorSource, WeightsError};
use serde_json::{Value, json};

fn embedder() -> (Embedder, Expected) {
    let folder = fixture("models/bert");
    let embedder = Embedder::open(&folder, &Device::flex()).expect("model");
    (embedder, Expected::open(&folder.join("expected.json")))
}

fn encoder(embedder: &Embedder) -> &Encoder {
    match &embedder.backbone {
        Backbone::Encoder(encoder) => encoder,
        Backbone::Decoder(_) => panic!("a decoder"),
    }
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
    assert_eq!(ids.len(), embedder.backbone.longest());
    let (ids, types) = embedder.tokenizer.encode_pair(a, Some(&long)).expect("encoded");
    assert_eq!(ids.len(), embedder.backbone.longest());
    // Of a pair the longer is cut: all of the first is still there.
    assert_eq!(types.iter().filter(|kind| **kind == 0).count(), 13);
}

#[test]
fn hidden_states_are_the_references() {
    let (embedder, expected) = embedder();
    let wanted = tensors(&fixture("models/bert/tensors.safetensors"));
    let rows = rows(expected.rows("/input_ids"), &expected.rows("/attention_mask"));
    let width = expected.rows("/input_ids")[0].len();
    let input = encoder(&embedder).input(&rows).expect("rows");
    let found = host_values(encoder(&embedder).hidden(&input));
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
    let (embedder, expected) = embedder();
    let mut encoder = encoder(&embedder).clone();
    encoder.train_all();
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
    let encoder = encoder(&embedder);
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
    let without_pooler = encoder(&embedder).parameters().filter(|p| !p.name.starts_with("pooler."));
    assert!(old.parameters().map(|p| p.to_vec()).eq(without_pooler.map(|p| p.to_vec())));
}

/// A golden decoder as an embedder's folder of sentence-transformers: the last token's state is the vector. With `bare` it
/// is saved without its head, as `Qwen3Model` and the like.
fn last_token(family: &str, bare: bool) -> tempfile::TempDir {
    let (folder, from) = (tempfile::tempdir().expect("a folder"), fixture(&format!("models/{family}")));
    let read = |name: &str| std::fs::read(from.join(name)).expect(name);
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect(name);
    ["tokenizer.json", "tokenizer_config.json"].into_iter().for_each(|name| write(name, &read(name)));
    let mut config: Value = serde_json::from_slice(&read("config.json")).expect("JSON");
    if bare {
        let class = config["architectures"][0].as_str().expect("a class").replace("ForCausalLM", "Model");
        config["architectures"] = json!([class]);
    }
    write("config.json", config.to_string().as_bytes());
    let source = SafetensorsSource::open_folder(&from).expect("weights");
    let kept = source.names().into_iter().filter(|name| !bare || name.starts_with("model."));
    let stored = kept.map(|name| Stored {
        name: if bare { name.trim_start_matches("model.").to_owned() } else { name.clone() },
        shape: source.shape(&name).expect("a shape"),
        values: Box::new({
            let source = &source;
            move || source.read_f32(&name).expect("values")
        }),
    });
    write_safetensors(&folder.path().join("model.safetensors"), stored.collect(), Storage::F32).expect("weights");
    let module = |path: &str, kind: &str| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
    write("modules.json", json!([module("", "Transformer"), module("1_Pooling", "Pooling")]).to_string().as_bytes());
    std::fs::create_dir(folder.path().join("1_Pooling")).expect("a folder");
    let pooling =
        json!({"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": false, "pooling_mode_lasttoken": true});
    write("1_Pooling/config.json", pooling.to_string().as_bytes());
    folder
}

#[test]
fn the_last_tokens_state_of_a_decoder_is_what_its_head_would_see() {
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        let from = fixture(&format!("models/{family}"));
        let (expected, wanted) =
            (Expected::open(&from.join("expected.json")), tensors(&from.join("tensors.safetensors")));
        let config = DecoderConfig::from_folder(&from).expect("config");
        let source = SafetensorsSource::open_folder(&from).expect("weights");
        let whole = Decoder::load(config, &source, &Device::flex()).expect("model");
        for bare in [false, true] {
            let folder = last_token(family, bare);
            let embedder = Embedder::open(folder.path(), &Device::flex()).expect("an embedder");
            assert_eq!((embedder.pooling, embedder.normalise), (Pooling::Last, false));
            // The reference's logits at the last token of each row, wherever its padding is.
            let (ids, mask) = (expected.rows("/padded/left/input_ids"), expected.rows("/padded/left/attention_mask"));
            let real: Vec<Vec<u32>> =
                rows(ids, &mask).into_iter().map(|row| row.ids.into_iter().map(|id| id as u32).collect()).collect();
            let vectors = embedder.embed_ids(&real).expect("vectors");
            let (width, vocabulary) = (embedder.width(), whole.config.vocab_size);
            let last = &wanted["padded_left_logits"];
            for (row, vector) in vectors.iter().enumerate() {
                let logits = host_values(whole.logits(matrix(vector.clone(), &[1, width], &Device::flex())));
                let at = (row + 1) * mask[0].len() - 1;
                Close::default().check(family, &logits, &last[at * vocabulary..][..vocabulary]);
            }
            // Computed plainly, from batches that are padded on either side.
            for side in ["left", "right"] {
                let batch = Batch {
                    input_ids: expected.rows(&format!("/padded/{side}/input_ids")),
                    attention_mask: expected.rows(&format!("/padded/{side}/attention_mask")),
                    labels: expected.rows(&format!("/padded/{side}/input_ids")),
                };
                let packed = Packed::new(&batch, &whole.config, whole.device());
                let pooled = host_values(Pooling::Last.forward(&whole.hidden(&packed), &packed));
                Close::absolute(1e-5).check(side, &pooled, &vectors.concat());
            }
        }
    }
}

#[test]
fn texts_for_a_decoder_are_framed_and_cut_but_for_their_end() {
    let folder = last_token("qwen3", true);
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
    let end = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let id = tokenizer["added_tokens"].as_array().expect("tokens").iter().find(|t| t["content"] == "<|endoftext|>");
    let id = id.expect("a token")["id"].as_u64().expect("an id");
    // As Qwen 3's embedders have it: an end token, whose state is the vector.
    tokenizer["post_processor"] = json!({"type": "TemplateProcessing", "single": [text, end.clone()],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}, end],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [id], "tokens": ["<|endoftext|>"]}}});
    std::fs::write(&path, tokenizer.to_string()).expect("a file");
    let embedder = Embedder::open(folder.path(), &Device::flex()).expect("an embedder");
    let longest = embedder.longest;
    let (short, long) = ("a lease ends", "the first request waits ".repeat(longest));
    let bare = |text: &str| embedder.tokenizer.encode(text, false).expect("tokens");
    let framed = |text: &str, most: usize| {
        let mut ids = bare(text);
        ids.truncate(most - 1);
        ids.push(id as u32);
        ids
    };
    let wanted = embedder.embed_ids(&[framed(short, longest), framed(&long, longest)]).expect("vectors");
    assert_eq!(framed(&long, longest).len(), longest);
    let found = embedder.embed(&[short, &long]).expect("vectors");
    Close::absolute(1e-6).check("framed", &found.concat(), &wanted.concat());

    let error = |ids: Vec<u32>| embedder.embed_ids(&[vec![1], ids]).expect_err("refused").to_string();
    let most = embedder.backbone.longest();
    assert_eq!(error(vec![1; most + 1]), format!("row 1: {} tokens; the model takes 1 to {most}", most + 1));
    assert_eq!(error(vec![]), format!("row 1: 0 tokens; the model takes 1 to {most}"));
    let said = error(vec![9999]);
    assert!(said.starts_with("row 1: token id 9999, the vocabulary has "), "{said}");
}

#[test]
fn decoders_that_see_all_of_a_text_are_refused() {
    for (key, value) in [("is_causal", false), ("use_bidirectional_attention", true)] {
        let folder = last_token("qwen2", true);
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
        config[key] = value.into();
        std::fs::write(&path, config.to_string()).expect("a file");
        let error = Embedder::open(folder.path(), &Device::flex()).expect_err("refused").to_string();
        assert!(error.starts_with(&format!("config.json: {key}: {value}; a token of this model sees")), "{error}");
    }
}
