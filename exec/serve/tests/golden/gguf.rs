//! Models as GGUF files of our own writing, served as they are stored: with the answers that the same numbers give in f32,
//! and in no more memory than the file has.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use mloc_burn::{
    device::DeviceChoice,
    export::{GgufStorage, write_gguf},
    formats::tokenizer::TextTokenizer,
    model::{Decoder, DecoderConfig},
    weights::SafetensorsSource,
};
use mloc_serve::{Facts, Number, Settings};
use serde_json::{Value, json};

use crate::{Client, FAMILIES, expected, golden, ids};

fn write(family: &str, storage: GgufStorage, folder: &tempfile::TempDir) -> PathBuf {
    let from = golden(&format!("models/{family}"));
    let config = DecoderConfig::from_folder(&from).expect("config");
    let weights = SafetensorsSource::open_folder(&from).expect("weights");
    let model = Decoder::load(config, &weights, &DeviceChoice::Cpu.open().expect("a processor")).expect("model");
    let tokenizer = TextTokenizer::from_folder(&from).expect("tokenizer");
    let path = folder.path().join(format!("{family}-{}.gguf", storage.name()));
    write_gguf(&model, &tokenizer, &path, storage, &|| false).expect("GGUF");
    path
}

fn serve(path: &Path, number: Number) -> (Client, Facts) {
    let (client, facts) = Client::at(path, Settings { number, ..Settings::new("m", 2) }, &[]);
    (client, facts.expect("a language model"))
}

/// Of each token of a text but its first: the most probable one in its place, its log-probability, and the second's.
async fn best(client: &Client, text: &[u64]) -> Vec<(String, f64, f64)> {
    let body = json!({"model": "m", "prompt": text, "max_tokens": 1, "prompt_logprobs": 2});
    let answer = client.answer("/v1/completions", body).await;
    let ranked = |position: &Value, rank: u64| {
        let mut all = position.as_object().expect("tokens").iter();
        let (id, found) = all.find(|(_, token)| token["rank"] == rank).expect("a token of this rank");
        (id.clone(), found["logprob"].as_f64().expect("a number"))
    };
    let positions = answer["choices"][0]["prompt_logprobs"].as_array().expect("positions");
    let of = |position: &Value| {
        let ((id, first), (_, second)) = (ranked(position, 1), ranked(position, 2));
        (id, first, second)
    };
    positions[1..].iter().map(of).collect()
}

/// Activations are rounded to bytes where weights are: by as much a log-probability may move, in models of 64 columns.
const ROUNDING: f64 = 0.15;

#[tokio::test]
async fn greedy_answers_are_those_of_the_same_numbers_in_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    for family in FAMILIES {
        let prompt = ids(&expected(&format!("models/{family}/expected.json"))["greedy"]["prompt_ids"]);
        for storage in [GgufStorage::F16, GgufStorage::Q8_0, GgufStorage::Q4_0] {
            let what = format!("{family} {}", storage.name());
            let path = write(family, storage, &folder);
            let ((stored, facts), (wide, wide_facts)) = (serve(&path, Number::AsStored), serve(&path, Number::F32));
            let body = json!({"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 20, "ignore_eos": true,
                "return_token_ids": true});
            let answer = wide.answer("/v1/completions", body).await;
            let text = [prompt.clone(), ids(&answer["choices"][0]["token_ids"])].concat();
            // The same text before each token, so that one tie does not part all that follows.
            let (found, wanted) = (best(&stored, &text).await, best(&wide, &text).await);
            for (at, ((found, of_found, _), (wanted, first, second))) in found.iter().zip(&wanted).enumerate() {
                let most = if storage == GgufStorage::F16 { 1e-4 } else { ROUNDING };
                assert!((of_found - first).abs() < most, "{what} {at}: {of_found} for {first}");
                let tie = first - second < 2.0 * most;
                assert!(found == wanted || tie, "{what} {at}: {found} for {wanted}, which leads by {}", first - second);
            }
            let same = found.iter().zip(&wanted).filter(|(found, wanted)| found.0 == wanted.0).count();
            assert!(same * 10 >= wanted.len() * 8, "{what}: {same} of {} are the same", wanted.len());

            // Rows of 176 are no whole number of blocks, and are written in 16 bits.
            let wanted = match storage {
                GgufStorage::F16 => BTreeSet::from(["f16"]),
                GgufStorage::Q8_0 => BTreeSet::from(["int8", "f16"]),
                GgufStorage::Q4_0 => BTreeSet::from(["int4", "int8", "f16"]),
            };
            assert_eq!(facts.format.split(" and ").collect::<BTreeSet<_>>(), wanted, "{what}");
            assert_eq!(wide_facts.format, "f32", "{what}");
            // The file has a tokenizer and names beside; packed rows are padded to 32.
            let file = std::fs::metadata(&path).expect("a file").len();
            assert!(facts.weight_bytes < file, "{what}: {} bytes of a file of {file}", facts.weight_bytes);
            // In f32 too the rows of tokens stay as they are stored, where they are not the head.
            assert!(facts.weight_bytes * 3 / 2 < wide_facts.weight_bytes, "{what}");
        }
    }
}
