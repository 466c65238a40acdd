//! Models as GGUF: what is written is read back by our own reader with the logits of the model, as far as the format goes,
//! and tensor by tensor by the reader of llama.cpp's own Python package, where that can be had.

mod golden;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::tensor::Device;
use golden::fixture;
use mloc_burn::batch::Batch;
use mloc_burn::export::{GgufStorage, Storage, check_gguf, write_gguf, write_model};
use mloc_burn::formats::gguf::{GgufError, GgufModel};
use mloc_burn::formats::tokenizer::TextTokenizer;
use mloc_burn::model::parameter::host_values;
use mloc_burn::model::{Activation, Decoder, DecoderConfig, Packed};
use mloc_burn::weights::SafetensorsSource;

const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

fn model(family: &str) -> Decoder {
    let folder = fixture(&format!("models/{family}"));
    let config = DecoderConfig::from_folder(&folder).expect("config");
    let weights = SafetensorsSource::open_folder(&folder).expect("weights");
    Decoder::load(config, &weights, &Device::flex()).expect("model")
}

fn tokenizer(family: &str) -> TextTokenizer {
    TextTokenizer::from_folder(&fixture(&format!("models/{family}"))).expect("tokenizer")
}

fn logits(model: &Decoder, ids: &[i64]) -> Vec<f32> {
    let packed = Packed::new(&Batch::single(ids), &model.config, model.device());
    host_values(model.logits(model.hidden(&packed)))
}

/// The root of the mean square of differences, as a share of that of the values.
fn off(found: &[f32], wanted: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let differences = square(&mut found.iter().zip(wanted).map(|(f, w)| f - w));
    (differences / square(&mut wanted.iter().copied())).sqrt()
}

#[test]
fn a_model_comes_back_from_gguf_with_its_logits() {
    let folder = tempfile::tempdir().expect("folder");
    for family in FAMILIES {
        let (model, tokenizer) = (model(family), tokenizer(family));
        let ids: Vec<i64> = (0..24).map(|i| (i * 53 + 7) % 500).collect();
        let wanted = logits(&model, &ids);
        // Half a step of a value is about 2^-12 of it, 1/254 and 1/16 of the largest of 32: some ten layers make ten times that.
        for (storage, most) in [(GgufStorage::F16, 2e-3), (GgufStorage::Q8_0, 4e-2), (GgufStorage::Q4_0, 0.6)] {
            let path = folder.path().join(format!("{family}-{}.gguf", storage.name()));
            write_gguf(&model, &tokenizer, &path, storage, &|| false).unwrap_or_else(|e| panic!("{family}: {e}"));
            let read = GgufModel::open(&path).expect("GGUF");
            let config = DecoderConfig::from_json(read.config().to_hf_config()).expect("config");
            assert_eq!(config.rope_scaling, model.config.rope_scaling, "{family}");
            assert_eq!(config.windows, model.config.windows, "{family}");
            let again = Decoder::load(config, &read, &Device::flex()).expect("model");
            let off = off(&logits(&again, &ids), &wanted);
            assert!(off < most, "{family} {storage:?}: logits are off by {off}");
            assert!(off > 0.0, "{family} {storage:?}: nothing was rounded");
            let read = read.tokenizer().expect("tokenizer");
            assert_eq!((read.bos_id(), read.eos_id()), (tokenizer.bos_id(), tokenizer.eos_id()));
            let template = |t: &TextTokenizer| t.chat_template().map(|t| t.source().to_owned());
            assert_eq!(template(&read), template(&tokenizer));
        }
    }
}

#[test]
fn what_gguf_has_no_words_for_is_said() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("x.gguf");
    let (mut other, tokenizer) = (model("qwen2"), tokenizer("qwen2"));
    assert!(matches!(write_gguf(&other, &tokenizer, &path, GgufStorage::F16, &|| true), Err(GgufError::Interrupted)));
    other.config.windows[1] = Some(8);
    let error = write_gguf(&other, &tokenizer, &path, GgufStorage::F16, &|| false).unwrap_err().to_string();
    assert!(error.contains("a window of attention in some layers of Qwen2ForCausalLM cannot be written"), "{error}");

    let mut gelu = model("llama");
    gelu.config.activation = Activation::GeluTanh;
    let error = check_gguf(&gelu, &tokenizer).unwrap_err().to_string();
    assert!(error.contains("hidden_act GeluTanh cannot be written as GGUF in this build"), "{error}");
    for (family, class) in [("gemma3", "Gemma3ForCausalLM"), ("qwen3_moe", "Qwen3MoeForCausalLM")] {
        let error = check_gguf(&model(family), &tokenizer).unwrap_err().to_string();
        assert!(error.contains(&format!("{class} cannot be written as GGUF in this build")), "{error}");
    }

    let json = std::fs::read_to_string(fixture("models/llama/tokenizer.json")).expect("tokenizer");
    let split = json.replace("1,3}", "1,2}");
    assert_ne!(json, split);
    let odd = TextTokenizer::from_parts(split.as_bytes(), serde_json::Map::new()).expect("tokenizer");
    let error = write_gguf(&model("llama"), &odd, &path, GgufStorage::F16, &|| false).unwrap_err().to_string();
    assert!(error.contains("those of llama-bpe, qwen2, smollm, gpt-2 have a name"), "{error}");
}

/// A Python with the reader, or why there is none.
fn python() -> Result<PathBuf, String> {
    let readers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/readers");
    let packages = ["gguf==0.19.0", "numpy==2.2.6"];
    let ended =
        Command::new(readers.join("python.sh")).arg(env!("CARGO_TARGET_TMPDIR")).arg("gguf").args(packages).output();
    match ended {
        Ok(ended) if ended.status.success() => Ok(String::from_utf8_lossy(&ended.stdout).trim().into()),
        Ok(ended) => Err(String::from_utf8_lossy(&ended.stderr).lines().last().unwrap_or("it fails").to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn llama_cpps_own_reader_finds_the_same_weights() {
    let python = match python() {
        Ok(python) => python,
        Err(why) => {
            assert!(std::env::var("MLOC_NO_SKIP").as_deref() != Ok("1"), "no gguf package: {why}");
            // The harness keeps what tests print to itself.
            writeln!(std::io::stderr(), "SKIP llama_cpps_own_reader_finds_the_same_weights: no gguf package: {why}")
                .ok();
            return;
        }
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/readers/gguf_file.py");
    let folder = tempfile::tempdir().expect("folder");
    for family in FAMILIES {
        let (model, tokenizer) = (model(family), tokenizer(family));
        write_model(&model, folder.path(), Storage::F32, &|| false).expect("safetensors");
        for storage in [GgufStorage::F16, GgufStorage::Q8_0, GgufStorage::Q4_0] {
            let path = folder.path().join("model.gguf");
            write_gguf(&model, &tokenizer, &path, storage, &|| false).expect("GGUF");
            let ended = Command::new(&python)
                .arg(&script)
                .args([&path, &folder.path().join("model.safetensors")])
                .args([model.config.num_heads.to_string(), model.config.num_kv_heads.to_string()])
                .output()
                .expect("python");
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert!(ended.status.success(), "{family} {storage:?}: {said}");
            let kinds: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("JSON");
            let kinds = kinds.as_object().expect("object");
            let count: u64 = kinds.values().map(|of| of[0].as_u64().expect("count")).sum();
            assert_eq!(count as usize, model.parameters().count(), "{family} {storage:?}");
            for (kind, of) in kinds {
                let most = match kind.as_str() {
                    "F32" => 0.0,
                    "F16" => 1.0 / 2048.0,
                    "Q8_0" => 0.5 / 127.0 + 1.0 / 1024.0,
                    "Q4_0" => 1.0 / 8.0 + 1.0 / 1024.0,
                    other => panic!("{family} {storage:?}: {other}"),
                };
                assert!(of[1].as_f64().expect("share") <= most, "{family} {storage:?} {kind}: {of}");
            }
            let wanted = match storage {
                GgufStorage::F16 => "F16",
                GgufStorage::Q8_0 => "Q8_0",
                GgufStorage::Q4_0 => "Q4_0",
            };
            assert!(kinds.contains_key(wanted), "{family}: {kinds:?}");
        }
    }
}
