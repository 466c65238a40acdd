//! The reference library's logits and greedy answers (tests/fixtures/golden), on its own checkpoints.

mod support;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use half::bf16;
use mloc_cpu::{
    Format, Keep, Model, Settings,
    adapter::Adapted,
    architecture::{Activation, Architecture, Layer, Rope},
    weights::{Matrix, Part, Role, Values, Weights},
};
use mloc_engine::forward::AdapterId;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use support::{alone, settings};

const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(path)
}

fn json(path: &str) -> Value {
    let text = std::fs::read_to_string(golden(path)).expect("a fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// A checkpoint's tensors, in the type they are stored in.
struct Checkpoint(BTreeMap<String, Values<'static>>);

fn tensors(folder: &str) -> BTreeMap<String, (Vec<usize>, Values<'static>)> {
    let mut all = BTreeMap::new();
    for file in std::fs::read_dir(golden(folder)).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
        let weights = name.starts_with("model") || name == "adapter_model.safetensors";
        if !weights || !name.ends_with("safetensors") {
            continue;
        }
        let bytes = std::fs::read(&file).expect("a file");
        for (name, tensor) in SafeTensors::deserialize(&bytes).expect("safetensors").tensors() {
            all.insert(name, (tensor.shape().to_vec(), values(tensor.dtype(), tensor.data())));
        }
    }
    all
}

fn values(dtype: Dtype, data: &[u8]) -> Values<'static> {
    match dtype {
        Dtype::F32 => Values::F32(data.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::BF16 => Values::Bf16(data.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect()),
        other => panic!("{other:?} in a fixture"),
    }
}

fn floats(values: &Values<'_>) -> Vec<f32> {
    match values {
        Values::F32(values) => values.to_vec(),
        Values::Bf16(values) => values.iter().map(|v| v.to_f32()).collect(),
        _ => panic!("blocks in a fixture"),
    }
}

impl Weights for Checkpoint {
    fn get(&self, role: Role) -> Option<Values<'_>> {
        let name = match role {
            Role::Embedding => "model.embed_tokens.weight".to_owned(),
            Role::Head => "lm_head.weight".to_owned(),
            Role::FinalNorm => "model.norm.weight".to_owned(),
            Role::Layer(layer, part) => format!(
                "model.layers.{layer}.{}",
                match part {
                    Part::AttentionNorm => "input_layernorm.weight".to_owned(),
                    Part::FeedForwardNorm => "post_attention_layernorm.weight".to_owned(),
                    Part::QueryNorm => "self_attn.q_norm.weight".to_owned(),
                    Part::KeyNorm => "self_attn.k_norm.weight".to_owned(),
                    Part::Matrix(matrix) => format!("{}.weight", name(matrix)),
                    Part::Bias(matrix) => format!("{}.bias", name(matrix)),
                    Part::AttentionPostNorm | Part::FeedForwardPostNorm | Part::Router | Part::Expert(..) => {
                        return None;
                    }
                }
            ),
        };
        self.0.get(&name).map(|values| match values {
            Values::F32(values) => Values::F32(values.as_ref().into()),
            Values::Bf16(values) => Values::Bf16(values.as_ref().into()),
            _ => panic!("blocks in a fixture"),
        })
    }
}

fn name(matrix: Matrix) -> &'static str {
    match matrix {
        Matrix::Query => "self_attn.q_proj",
        Matrix::Key => "self_attn.k_proj",
        Matrix::Value => "self_attn.v_proj",
        Matrix::Output => "self_attn.o_proj",
        Matrix::Gate => "mlp.gate_proj",
        Matrix::Up => "mlp.up_proj",
        Matrix::Down => "mlp.down_proj",
    }
}

fn architecture(family: &str) -> Architecture {
    let config = json(&format!("models/{family}/config.json"));
    let size = |key: &str| config[key].as_u64().map(|n| n as usize);
    let [vocabulary, hidden, intermediate, heads, kv_heads, layers] = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_hidden_layers",
    ]
    .map(|key| size(key).expect(key));
    let head_dim = size("head_dim").unwrap_or(hidden / heads);
    let theta = config["rope_theta"].as_f64().or(config["rope_parameters"]["rope_theta"].as_f64()).expect("theta");
    let mut frequencies: Vec<f64> = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
    let scaling = &config["rope_scaling"];
    if scaling["rope_type"] == "llama3" {
        let number = |key: &str| scaling[key].as_f64().expect(key);
        let (low, high, factor) = (number("low_freq_factor"), number("high_freq_factor"), number("factor"));
        for frequency in &mut frequencies {
            let turns = number("original_max_position_embeddings") * *frequency / (2.0 * std::f64::consts::PI);
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            *frequency *= smooth + (1.0 - smooth) / factor;
        }
    }
    Architecture {
        vocabulary,
        hidden,
        intermediate,
        heads,
        kv_heads,
        head_dim,
        layers: vec![Layer { window: size("sliding_window"), rope: 0 }; layers],
        ropes: vec![Rope { inverse_frequencies: frequencies.iter().map(|f| *f as f32).collect(), scale: 1.0 }],
        norm_epsilon: config["rms_norm_eps"].as_f64().expect("epsilon") as f32,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        activation: Activation::Silu,
        qk_norm: family == "qwen3",
        post_norms: false,
        embedding_scale: 1.0,
        attention_soft_cap: None,
        logit_soft_cap: None,
        tied: config["tie_word_embeddings"].as_bool().expect("tied"),
        experts: None,
    }
}

fn model(family: &str, format: Format) -> Model {
    let checkpoint = tensors(&format!("models/{family}")).into_iter().map(|(name, (_, values))| (name, values));
    let settings = Settings { keep: Keep::all(format), ..settings() };
    Model::load(architecture(family), &Checkpoint(checkpoint.collect()), &settings).expect("a sound model")
}

fn expected_logits(file: &str, key: &str) -> Vec<Vec<f64>> {
    let bytes = std::fs::read(golden(file)).expect("a file");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = tensors.tensor(key).expect("logits");
    let all = floats(&values(tensor.dtype(), tensor.data()));
    all.chunks(tensor.shape()[1]).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
}

fn worst(found: &[Vec<f32>], expected: &[Vec<f64>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(f, e)| (f64::from(*f) - e).abs() / (1.0 + e.abs())).fold(0.0, f64::max)
}

fn greedy(model: &mut Model, prompt: &[u32], count: usize, adapter: Option<AdapterId>) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let rows = alone(model, &tokens, &[], 0, adapter);
        let last = rows.last().expect("a row");
        let best = (0..last.len()).fold(0, |best, id| if last[id] > last[best] { id } else { best });
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn logits_and_greedy_answers_are_the_reference_librarys() {
    for family in FAMILIES {
        let expected = json(&format!("models/{family}/expected.json"));
        let logits = expected_logits(&format!("models/{family}/tensors.safetensors"), "logits");
        let mut model = model(family, Format::F32);
        let prompt = ids(&expected["forward"]["input_ids"]);
        let found = alone(&mut model, &prompt, &[5], 0, None);
        let worst = worst(&found, &logits);
        assert!(worst < 1e-4, "{family}: {worst}");
        let (prompt, answer) = (ids(&expected["greedy"]["prompt_ids"]), ids(&expected["greedy"]["new_ids"]));
        assert_eq!(greedy(&mut model, &prompt, answer.len(), None), answer, "{family}");
    }
}

#[test]
fn a_bf16_checkpoint_loses_nothing_in_bf16() {
    let prompt = ids(&json("models/qwen2/expected.json")["forward"]["input_ids"]);
    let [wide, narrow] = [Format::F32, Format::Bf16].map(|f| alone(&mut model("qwen2", f), &prompt, &[], 0, None));
    assert_eq!(wide, narrow);
}

#[test]
fn trained_adapters_give_the_reference_librarys_logits() {
    for family in FAMILIES {
        let expected = json(&format!("lora/{family}/expected.json"));
        let config = json(&format!("lora/{family}/adapter_final/adapter_config.json"));
        let (rank, alpha) = (config["r"].as_u64().expect("r") as usize, config["lora_alpha"].as_f64().expect("alpha"));
        let root = config["use_rslora"].as_bool().unwrap_or(false);
        let scale = alpha / if root { (rank as f64).sqrt() } else { rank as f64 };
        let tensors = tensors(&format!("lora/{family}/adapter_final"));
        let mut adapted = Vec::new();
        for layer in 0..architecture(family).layers.len() {
            for matrix in support::MATRICES {
                let key =
                    |side: &str| format!("base_model.model.model.layers.{layer}.{}.lora_{side}.weight", name(matrix));
                if let (Some((_, a)), Some((_, b))) = (tensors.get(&key("A")), tensors.get(&key("B"))) {
                    adapted.push(Adapted { layer, matrix, a: floats(a), b: floats(b), rank, scale: scale as f32 });
                }
            }
        }
        assert_eq!(adapted.len() * 2, tensors.len(), "{family}: each tensor was used");
        let mut model = model(family, Format::F32);
        let id = model.adapters().load(&adapted).expect("an adapter");
        let logits = expected_logits(&format!("lora/{family}/tensors.safetensors"), "adapter_logits");
        let found = alone(&mut model, &ids(&expected["forward_input_ids"]), &[], 0, Some(id));
        let worst = worst(&found, &logits);
        assert!(worst < 1e-4, "{family}: {worst}");
    }
}

/// How far rounding moves logits: the root of the mean square of the difference, relative to that of the logits. The
/// fixtures' weights are random and their layers 64 wide, so little averages out; a trained model moves less.
#[test]
fn narrower_formats_stay_within_their_bounds() {
    for (format, least, most) in [(Format::Bf16, 5e-4, 1.5e-2), (Format::Int8, 5e-3, 6e-2), (Format::Int4, 5e-2, 0.6)] {
        for family in ["llama", "mistral", "qwen3"] {
            let prompt = ids(&json(&format!("models/{family}/expected.json"))["forward"]["input_ids"]);
            let logits = expected_logits(&format!("models/{family}/tensors.safetensors"), "logits").concat();
            let found = alone(&mut model(family, format), &prompt, &[], 0, None).concat();
            let square = |all: &mut dyn Iterator<Item = f64>| all.map(|v| v * v).sum::<f64>();
            let moved = square(&mut found.iter().zip(&logits).map(|(f, e)| f64::from(*f) - e));
            let moved = (moved / square(&mut logits.iter().copied())).sqrt();
            println!("{family} {format}: {moved:.5}");
            assert!((least..most).contains(&moved), "{family} in {format}: {moved}");
        }
    }
}
