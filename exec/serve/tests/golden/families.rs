//! Families whose fixtures have no tokenizer, asked by token ids.

use std::path::Path;

use mloc_serve::{Number, On, Settings};
use serde_json::{Value, json};

use crate::{Client, PLACES, close, expected, golden, ids, log_probabilities, numbers};

const FAMILIES: [&str; 4] = ["gemma2", "gemma3", "mixtral", "qwen3_moe"];

/// A model's files with a tokenizer of 256 tokens: one for each byte.
fn folder(family: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(&format!("models/{family}/{name}")), folder.path().join(name)).expect(name);
    }
    // GPT-2's characters: bytes that print are themselves, all others are counted from 256 on.
    let prints = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..256).filter(|byte| !prints(byte)).zip(256..).map(|(_, character)| character);
    let characters = (0..256).filter(prints).chain(others).filter_map(char::from_u32);
    let vocabulary: serde_json::Map<String, Value> =
        characters.enumerate().map(|(id, character)| (character.to_string(), id.into())).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []}});
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
    folder
}

async fn logprobs(client: &Client, text: &[u64]) -> Vec<f64> {
    let body = json!({"model": "m", "prompt": text, "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = client.answer("/v1/completions", body).await;
    numbers(&answer["choices"][0]["logprobs"]["token_logprobs"])[1..].to_vec()
}

fn serve(folder: &Path, on: On, number: Number) -> Client {
    Client::at(folder, Settings { on, number, ..Settings::new("m", 2) }, &[]).0
}

#[tokio::test]
async fn greedy_answers_and_prompt_logprobs_are_the_references() {
    for family in FAMILIES {
        let (folder, expected) = (folder(family), expected(&format!("models/{family}/expected.json")));
        for on in PLACES {
            // The files are bf16, and the reference computes in f32.
            let client = serve(folder.path(), on, Number::F32);
            let wanted = ids(&expected["greedy"]["new_ids"]);
            let body = json!({"model": "m", "prompt": expected["greedy"]["prompt_ids"], "temperature": 0,
                "max_tokens": wanted.len(), "ignore_eos": true, "return_token_ids": true});
            let answer = client.answer("/v1/completions", body).await;
            assert_eq!(ids(&answer["choices"][0]["token_ids"]), wanted, "{family} {on:?}");

            let input = ids(&expected["forward"]["input_ids"]);
            let wanted = log_probabilities(&format!("models/{family}/tensors.safetensors"), "logits", &input);
            close(&logprobs(&client, &input).await, &wanted, family);
        }
    }
}

#[tokio::test]
async fn experts_in_fewer_bits_are_near_to_what_they_were() {
    for family in ["mixtral", "qwen3_moe"] {
        let (folder, expected) = (folder(family), expected(&format!("models/{family}/expected.json")));
        let input = ids(&expected["forward"]["input_ids"]);
        let of = |number| serve(folder.path(), On::Processor, number);
        let wide = logprobs(&of(Number::F32), &input).await;
        assert_eq!(logprobs(&of(Number::AsStored), &input).await, wide, "{family}: bf16 is what is stored");
        let bytes = logprobs(&of(Number::Int8), &input).await;
        let off =
            bytes.iter().zip(&wide).map(|(found, wanted)| (found - wanted).abs()).sum::<f64>() / wide.len() as f64;
        assert!((1e-4..0.1).contains(&off), "{family}: log-probabilities are off by {off}");
    }
}
