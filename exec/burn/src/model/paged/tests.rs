//! Steps over blocks give what the whole texts give at once.

use serde_json::{Value, json};

use super::*;
use crate::batch::Batch;
use crate::lora::{self, LoraConfig};
use crate::model::Parameter;
use crate::model::parameter::host_values;
use crate::model::{DecoderConfig, Held};
use crate::random::{Random, permutation};

const SIZES: PagedSizes = PagedSizes { blocks: 24, block_tokens: 4, max_length: 32, format: FloatDType::F32 };

fn config(family: Value) -> DecoderConfig {
    let mut raw = json!({
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3,
    });
    for (key, value) in family.as_object().expect("an object") {
        raw[key] = value.clone();
    }
    DecoderConfig::from_json(raw).expect("a config")
}

/// What the families have that a cache could get wrong: windows, caps, norms of heads, experts, biases.
fn families() -> Vec<DecoderConfig> {
    vec![
        config(json!({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true})),
        config(json!({"architectures": ["MistralForCausalLM"], "sliding_window": 5})),
        config(json!({"architectures": ["Qwen2ForCausalLM"]})),
        config(json!({"architectures": ["Qwen3ForCausalLM"]})),
        config(json!({"architectures": ["Gemma2ForCausalLM"], "sliding_window": 6, "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8})),
        config(json!({"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2})),
    ]
}

/// A text with blocks of its own and an adapter.
struct Text {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
    done: usize,
    adapter: Option<Arc<AdapterSet>>,
}

fn texts(random: &mut Random, vocabulary: u32, lengths: &[usize]) -> Vec<Text> {
    // In no order.
    let mut blocks: Vec<u32> = permutation(SIZES.blocks, random.next_u64(), 0).into_iter().map(|b| b as u32).collect();
    let text = |length: &usize| {
        let tokens = (0..*length).map(|_| random.below(u64::from(vocabulary)) as u32).collect();
        let blocks = blocks.split_off(blocks.len() - length.div_ceil(SIZES.block_tokens));
        Text { tokens, blocks, done: 0, adapter: None }
    };
    lengths.iter().map(text).collect()
}

/// All logits of each text, computed in steps: of some texts, some of their next tokens.
fn by_steps(model: &mut PagedDecoder, random: &mut Random, texts: &mut [Text]) -> Vec<Vec<f32>> {
    let mut logits = vec![Vec::new(); texts.len()];
    while texts.iter().any(|text| text.done < text.tokens.len()) {
        let mut chunks = Vec::new();
        let mut chosen = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let left = text.tokens.len() - text.done;
            // Half of the texts go on by single tokens, as where they are generated.
            let count = (random.below(if index % 2 == 0 { 8 } else { 2 }) as usize).min(left);
            if count > 0 {
                let tokens = &text.tokens[text.done..text.done + count];
                let adapter = text.adapter.clone();
                chunks.push(PagedChunk { tokens, start: text.done, blocks: &text.blocks, adapter, wanted: 0..count });
                chosen.push((index, count));
            }
        }
        let found = model.step(&chunks);
        drop(chunks);
        let width = model.model().config.vocab_size;
        let mut rows = found.chunks(width);
        for (index, count) in chosen {
            texts[index].done += count;
            (0..count).for_each(|_| logits[index].extend_from_slice(rows.next().expect("a row a token")));
        }
        assert!(rows.next().is_none(), "more rows than were wanted");
    }
    logits
}

fn at_once(model: &Decoder, text: &Text) -> Vec<f32> {
    let ids: Vec<i64> = text.tokens.iter().map(|id| i64::from(*id)).collect();
    let packed = Packed::new(&Batch::single(&ids), &model.config, model.device());
    host_values(model.logits(model.hidden(&packed)))
}

fn close(found: &[f32], wanted: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let most = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most <= tolerance, "{what}: {most} apart");
}

#[test]
fn steps_of_any_cut_give_the_logits_of_whole_texts() {
    for config in families() {
        let name = config.architecture.clone();
        let model = Decoder::random(config, 3, &Device::flex());
        let mut random = Random::new(11);
        let mut texts = texts(&mut random, 40, &[17, 1, 9, 26, 6]);
        let mut paged = PagedDecoder::new(model.clone(), SIZES);
        let found = by_steps(&mut paged, &mut random, &mut texts);
        for (text, found) in texts.iter().zip(&found) {
            close(found, &at_once(&model, text), 2e-5, &format!("{name}, {} tokens", text.tokens.len()));
        }
    }
}

#[test]
fn texts_of_a_step_have_adapters_of_their_own() {
    let base = Decoder::random(families().remove(3), 3, &Device::flex());
    let adapted = |seed: u64| {
        let mut model = base.clone();
        let config =
            LoraConfig { r: 4, target_modules: lora::Modules::from_text("all-linear"), ..LoraConfig::default() };
        lora::attach(&mut model, &config, seed).expect("attached");
        // A fresh adapter gives nothing.
        let mut random = Random::new(seed);
        for parameter in model.parameters_mut().filter(|p| p.name.contains("lora_B")) {
            let values = (0..parameter.count()).map(|_| 0.2 * random.normal()).collect();
            *parameter = Parameter::new(parameter.name.clone(), &parameter.shape.clone(), values, &Device::flex());
        }
        model
    };
    let models = [base.clone(), adapted(1), adapted(2)];
    let set = |model: &Decoder| Arc::new(AdapterSet::of(model, &Device::flex()).expect("factors only"));
    let sets = [None, Some(set(&models[1])), Some(set(&models[2]))];
    let mut random = Random::new(5);
    let mut texts = texts(&mut random, 40, &[9, 12, 7, 10, 8, 11]);
    texts.iter_mut().enumerate().for_each(|(index, text)| text.adapter = sets[index % 3].clone());
    let found = by_steps(&mut PagedDecoder::new(base, SIZES), &mut random, &mut texts);
    for (index, (text, found)) in texts.iter().zip(&found).enumerate() {
        close(found, &at_once(&models[index % 3], text), 5e-5, &format!("text {index}"));
    }
}

#[test]
fn copied_blocks_hold_what_the_others_held() {
    let model = Decoder::random(families().remove(0), 3, &Device::flex());
    let mut random = Random::new(2);
    let mut text = texts(&mut random, 40, &[12]);
    let mut paged = PagedDecoder::new(model.clone(), SIZES);
    by_steps(&mut paged, &mut random, &mut text);
    let text = &text[0];
    let free: Vec<u32> = (0..SIZES.blocks as u32).filter(|block| !text.blocks.contains(block)).take(4).collect();
    // The second reads what the first wrote; the third writes over what the first read.
    let pairs =
        [(text.blocks[0], free[0]), (free[0], free[1]), (text.blocks[1], text.blocks[0]), (text.blocks[2], free[3])];
    paged.copy_blocks(&pairs);
    let blocks = [free[1], text.blocks[0], free[3], free[2]];
    let tokens = [7];
    let next = PagedChunk { tokens: &tokens, start: 12, blocks: &blocks, adapter: None, wanted: 0..1 };
    let found = paged.step(&[next]);
    let mut longer = text.tokens.clone();
    longer.push(7);
    let whole = Text { tokens: longer, blocks: Vec::new(), done: 0, adapter: None };
    let wanted = at_once(&model, &whole);
    close(&found, &wanted[wanted.len() - 40..], 2e-5, "after copies");
}

#[test]
fn a_half_of_the_bytes_gives_nearly_the_same() {
    let config = families().remove(0);
    let exact = Decoder::random(config.clone(), 3, &Device::flex());
    let mut half = Decoder::random_held(config.clone(), 3, Held::Bf16, &Device::flex());
    half.set_compute(Compute::Bf16);
    let sizes = PagedSizes { format: cache_format(Compute::Bf16), ..SIZES };
    assert_eq!(2 * sizes.block_bytes(&config), SIZES.block_bytes(&config));
    let mut random = Random::new(7);
    let mut texts = texts(&mut random, 40, &[14, 9]);
    let mut paged = PagedDecoder::new(half, sizes);
    let found = by_steps(&mut paged, &mut random, &mut texts);
    for (text, found) in texts.iter().zip(&found) {
        let wanted = at_once(&exact, text);
        let size = wanted.iter().map(|value| value.abs()).fold(0.0, f32::max);
        close(found, &wanted, 0.05 * size, "in bf16");
    }
}

#[test]
fn what_a_device_would_read_beyond_its_memory_is_refused() {
    let model = Decoder::random(families().remove(0), 3, &Device::flex());
    let mut paged = PagedDecoder::new(model, SIZES);
    let mut refused = |tokens: &[u32], start: usize, blocks: &[u32]| {
        let chunk = PagedChunk { tokens, start, blocks, adapter: None, wanted: 0..0 };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| paged.step(&[chunk]))).is_err()
    };
    let all: Vec<u32> = (0..SIZES.blocks as u32).collect();
    assert!(!refused(&[1], 0, &all));
    assert!(refused(&[], 0, &all));
    assert!(refused(&[40], 0, &all));
    assert!(refused(&[1], SIZES.max_length, &all));
    assert!(refused(&[1], 4, &[0]));
    assert!(refused(&[1], 0, &[SIZES.blocks as u32]));
}
