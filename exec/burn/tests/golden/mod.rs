//! Reading the golden fixtures (tests/fixtures/golden), and comparing with their tolerances.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mloc_burn::optim::{AdamWSettings, OptimizerSettings};
use mloc_burn::schedule::{Schedule, ScheduleKind};
use mloc_burn::train::TrainSettings;
use mloc_burn::weights::{SafetensorsSource, TensorSource};
use serde_json::Value;

/// The decoders in `models`.
pub const FAMILIES: [&str; 8] = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "qwen3_moe"];

pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden").join(path)
}

/// All tensors of floats of one file, row-major.
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let source = SafetensorsSource::open_file(path).expect("fixture");
    source
        .names()
        .into_iter()
        .filter_map(|name| {
            let values = source.read_f32(&name).ok()?;
            Some((name, values))
        })
        .collect()
}

/// An expected.json, read by JSON pointers.
pub struct Expected(pub Value);

impl Expected {
    pub fn open(path: &Path) -> Self {
        let text = std::fs::read(path).expect("fixture");
        Self(serde_json::from_slice(&text).expect("fixture JSON"))
    }

    pub fn value(&self, at: &str) -> &Value {
        self.0.pointer(at).unwrap_or_else(|| panic!("no {at}"))
    }

    pub fn number(&self, at: &str) -> f64 {
        self.value(at).as_f64().unwrap_or_else(|| panic!("no number at {at}"))
    }

    pub fn ids(&self, at: &str) -> Vec<i64> {
        serde_json::from_value(self.value(at).clone()).expect(at)
    }

    pub fn rows(&self, at: &str) -> Vec<Vec<i64>> {
        serde_json::from_value(self.value(at).clone()).expect(at)
    }
}

/// The `hyperparameters` of a recorded run.
pub fn settings(expected: &Expected) -> TrainSettings {
    let number = |key: &str| expected.number(&format!("/hyperparameters/{key}"));
    TrainSettings {
        schedule: Schedule {
            kind: match expected.value("/hyperparameters/lr_scheduler_type").as_str() {
                Some("linear") => ScheduleKind::Linear,
                Some("cosine") => ScheduleKind::Cosine { num_cycles: 0.5 },
                Some("constant") => ScheduleKind::Constant,
                other => panic!("{other:?}"),
            },
            peak: number("learning_rate"),
            warmup_steps: number("warmup_steps") as u64,
            total_steps: number("max_steps") as u64,
        },
        optimizer: OptimizerSettings::AdamW(AdamWSettings {
            adam_beta1: number("adam_beta1"),
            adam_beta2: number("adam_beta2"),
            adam_epsilon: number("adam_epsilon"),
            weight_decay: number("weight_decay"),
        }),
        max_grad_norm: Some(number("max_grad_norm")),
        seed: 42,
        neftune_noise_alpha: None,
    }
}

/// |found − wanted| ≤ absolute + relative · |wanted|.
pub struct Close {
    pub relative: f32,
    pub absolute: f32,
}

impl Default for Close {
    fn default() -> Self {
        Self { relative: 1e-4, absolute: 1e-4 }
    }
}

impl Close {
    pub fn relative(relative: f32) -> Self {
        Self { relative, absolute: 0.0 }
    }

    pub fn absolute(absolute: f32) -> Self {
        Self { relative: 0.0, absolute }
    }

    pub fn check(&self, what: &str, found: &[f32], wanted: &[f32]) {
        assert_eq!(found.len(), wanted.len(), "{what}: number of values");
        let worst = found
            .iter()
            .zip(wanted)
            .map(|(f, w)| (f - w).abs() - (self.absolute + self.relative * w.abs()))
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((index, excess)) = worst
            && (excess > 0.0 || excess.is_nan())
        {
            panic!("{what}: element {index}: found {}, expected {}", found[index], wanted[index]);
        }
    }
}
