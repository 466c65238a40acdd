//! What `model.adapter` and the precision of a task come to: the settings of its adapter, how the frozen weights beneath
//! are held, and what products are computed in.

use burn::tensor::Device;
use mloc_burn::{
    lora::{Bias, Init, LoraConfig, Modules},
    model::{Compute, Held},
    quant::{FourBitSettings, QuantType},
};
use mloc_core::task::{
    settings::Precision,
    spec::{self, Adapter, AdapterBias, AdapterInit, AdapterKind},
};
use mloc_exec::{ModuleError, RunContext};

/// Trains adapters on the weights as they are.
pub const LORA: &str = "adapter:lora";
/// Trains adapters on weights in 4 bits.
pub const QLORA: &str = "adapter:qlora";
/// Holds frozen weights in bf16, and computes in it where the device does.
const BF16: &str = "precision:bf16";
/// Computes in fp16 on a GPU.
const FP16: &str = "precision:fp16";

/// The head of a classifier.
const SCORE: &str = "score";

/// What this build offers of adapters and precisions.
pub fn features() -> Vec<String> {
    let everywhere = [LORA, QLORA, BF16];
    let on_gpus = [FP16].into_iter().filter(|_| cfg!(feature = "cuda"));
    everywhere.into_iter().chain(on_gpus).map(str::to_owned).collect()
}

/// How a model is held and computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    /// Of frozen linear weights. What is trained is f32.
    pub held: Held,
    /// Of matrix products.
    pub compute: Compute,
}

/// The formats of a task, and a word about them in its log.
///
/// # Errors
/// fp16 on a processor.
pub fn formats(
    ctx: &mut RunContext,
    adapter: Option<&Adapter>,
    precision: Precision,
    device: &Device,
) -> Result<Formats, ModuleError> {
    let on_processor = *device == Device::flex();
    if precision == Precision::F16 && on_processor {
        return Err(ModuleError::Fatal(
            "fp16: this task has no GPU, and on a processor fp16 is slower than f32 and loses small gradients: leave it \
             out, or say `bf16: true` to hold frozen weights in half the memory"
                .to_owned(),
        ));
    }
    let compute = computed_in(precision, on_processor);
    let held = match adapter {
        Some(adapter) if adapter.kind == AdapterKind::Qlora => Held::FourBit(four_bit(adapter)),
        Some(_) => frozen(precision),
        // Everything is trained, and what is trained has its master copy in f32.
        None => Held::F32,
    };
    if precision == Precision::Bf16 && on_processor {
        ctx.log(match held {
            Held::Bf16 => {
                "bf16: frozen linear weights are held in bf16, half the memory; this processor computes in f32"
            }
            Held::F32 | Held::F16 | Held::FourBit(_) => {
                "bf16: no effect here: this processor computes in f32, and no weight is held in bf16"
            }
        });
    }
    if let Held::FourBit(settings) = held {
        ctx.log(format!(
            "qlora: linear weights are held in 4 bits ({}, blocks of {}{}) and unpacked layer by layer; embeddings, norms and \
             the head are not",
            match settings.quant_type {
                QuantType::Nf4 => "nf4",
                QuantType::Fp4 => "fp4",
            },
            settings.block_size,
            if settings.double_quant { ", scales quantised too" } else { "" }
        ));
    }
    Ok(Formats { held, compute })
}

/// What products are computed in. A processor has no half formats of its own.
pub fn computed_in(precision: Precision, on_processor: bool) -> Compute {
    match precision {
        Precision::F32 => Compute::F32,
        Precision::Bf16 | Precision::F16 if on_processor => Compute::F32,
        Precision::Bf16 => Compute::Bf16,
        Precision::F16 => Compute::F16,
    }
}

/// How frozen linear weights are held, unless in 4 bits.
pub fn frozen(precision: Precision) -> Held {
    match precision {
        Precision::F32 => Held::F32,
        Precision::Bf16 => Held::Bf16,
        Precision::F16 => Held::F16,
    }
}

/// How weights in 4 bits are quantised, where a task says so and where it does not.
pub fn four_bit_of(adapter: Option<&Adapter>) -> FourBitSettings {
    let unsaid = FourBitSettings { quant_type: QuantType::Nf4, block_size: 64, double_quant: false };
    adapter.map_or(unsaid, four_bit)
}

fn four_bit(adapter: &Adapter) -> FourBitSettings {
    FourBitSettings {
        quant_type: match adapter.four_bit.quant_type {
            spec::QuantType::Nf4 => QuantType::Nf4,
            spec::QuantType::Fp4 => QuantType::Fp4,
        },
        block_size: adapter.four_bit.block_size as usize,
        double_quant: adapter.four_bit.double_quant,
    }
}

/// The task's settings as the library has them, for a model, which may have a score head.
pub fn lora_config(adapter: &Adapter, scores: bool) -> LoraConfig {
    let mut config = plain_config(adapter);
    // A head of few outputs is small, often fresh, and of no use frozen: PEFT saves it with the adapter of a classifier too.
    if scores && config.modules_to_save.iter().all(|name| name != SCORE) {
        config.modules_to_save.push(SCORE.to_owned());
    }
    config
}

fn plain_config(adapter: &Adapter) -> LoraConfig {
    let modules = |modules: &spec::Modules| match modules {
        spec::Modules::Named(names) => Modules::from_names(names.clone()),
        spec::Modules::Matching(pattern) => Modules::Matching(pattern.clone()),
    };
    let ranks = adapter.rank_pattern.iter().map(|(pattern, r)| (pattern.clone(), *r as usize));
    let alphas = adapter.alpha_pattern_milli.iter().map(|(pattern, milli)| (pattern.clone(), *milli as f64 / 1e3));
    let layers: Vec<usize> = adapter.layers_to_transform.iter().map(|layer| *layer as usize).collect();
    LoraConfig {
        r: adapter.r as usize,
        lora_alpha: adapter.lora_alpha_milli as f64 / 1e3,
        lora_dropout: f64::from(adapter.lora_dropout_micro) / 1e6,
        use_rslora: adapter.use_rslora,
        target_modules: modules(&adapter.target_modules),
        exclude_modules: adapter.exclude_modules.as_ref().map(modules),
        rank_pattern: ranks.collect(),
        alpha_pattern: alphas.collect(),
        layers_to_transform: Some(layers).filter(|layers| !layers.is_empty()),
        layers_pattern: adapter.layers_pattern.clone(),
        modules_to_save: adapter.modules_to_save.clone(),
        bias: match adapter.bias {
            AdapterBias::None => Bias::None,
            AdapterBias::All => Bias::All,
            AdapterBias::LoraOnly => Bias::LoraOnly,
        },
        use_dora: adapter.use_dora,
        init_lora_weights: match adapter.init {
            AdapterInit::Kaiming => Init::Kaiming,
            AdapterInit::Gaussian => Init::Gaussian,
        },
    }
}

/// What an adapter's own settings and the task's differ in, for people. What fresh factors would have been does not count:
/// none are made.
pub fn differences(found: &LoraConfig, asked: &LoraConfig) -> Vec<String> {
    let modules = |modules: &Modules| match modules {
        Modules::AllLinear => "all-linear".to_owned(),
        Modules::Matching(pattern) => pattern.clone(),
        Modules::Named(names) => {
            let mut names = names.clone();
            names.sort();
            names.join(" ")
        }
    };
    let all = |config: &LoraConfig| {
        [
            ("r", config.r.to_string()),
            ("lora_alpha", config.lora_alpha.to_string()),
            ("lora_dropout", config.lora_dropout.to_string()),
            ("use_rslora", config.use_rslora.to_string()),
            ("use_dora", config.use_dora.to_string()),
            ("bias", config.bias.word().to_owned()),
            ("target_modules", modules(&config.target_modules)),
            ("exclude_modules", config.exclude_modules.as_ref().map_or("none".to_owned(), modules)),
            ("modules_to_save", format!("{:?}", config.modules_to_save)),
            ("rank_pattern", format!("{:?}", config.rank_pattern)),
            ("alpha_pattern", format!("{:?}", config.alpha_pattern)),
            ("layers_to_transform", format!("{:?}", config.layers_to_transform.as_deref().unwrap_or_default())),
        ]
    };
    let pairs = all(found).into_iter().zip(all(asked));
    let different = pairs.filter(|((_, found), (_, asked))| found != asked);
    different.map(|((name, found), (_, asked))| format!("{name} {found} (the task: {asked})")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_reach_the_library() {
        let task = |adapter: &str| {
            let text = format!(
                "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {{name: t, owner: o}}\nspec:\n  taskType: sft\n  model:\n    \
                 source: {{type: local, path: v/m}}\n    adapter: {adapter}\n  dataset: {{source: {{type: local, path: v/d}}}}\n"
            );
            let spec = mloc_core::task::parse(&text, "t").unwrap_or_else(|e| panic!("{e}")).spec;
            spec.model.and_then(|m| m.adapter).expect("an adapter")
        };
        assert_eq!(plain_config(&task("{type: lora}")), LoraConfig::default());
        let adapter = task(
            "{type: qlora, r: 4, lora_alpha: 16, lora_dropout: 0.1, use_rslora: true, use_dora: true, bias: lora_only, \
             target_modules: '.*\\.(q|v)_proj', exclude_modules: [k_proj], rank_pattern: {down_proj: 2}, \
             alpha_pattern: {down_proj: 2.5}, modules_to_save: [lm_head], init_lora_weights: gaussian, \
             bnb_4bit_quant_type: fp4, bnb_4bit_use_double_quant: true, bnb_4bit_blocksize: 128}",
        );
        assert_eq!(
            plain_config(&adapter),
            LoraConfig {
                r: 4,
                lora_alpha: 16.0,
                lora_dropout: 0.1,
                use_rslora: true,
                use_dora: true,
                bias: Bias::LoraOnly,
                target_modules: Modules::Matching(r".*\.(q|v)_proj".into()),
                exclude_modules: Some(["k_proj"].into()),
                rank_pattern: [("down_proj".to_owned(), 2)].into(),
                alpha_pattern: [("down_proj".to_owned(), 2.5)].into(),
                modules_to_save: vec!["lm_head".into()],
                init_lora_weights: Init::Gaussian,
                ..LoraConfig::default()
            }
        );
        let wanted = FourBitSettings { quant_type: QuantType::Fp4, block_size: 128, double_quant: true };
        assert_eq!(four_bit(&adapter), wanted);
        let by_number = plain_config(&task("{type: lora, target_modules: [q_proj], layers_to_transform: [0, 2]}"));
        assert_eq!(by_number.layers_to_transform, Some(vec![0, 2]));
    }
}
