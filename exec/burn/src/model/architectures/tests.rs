use serde_json::{Value, json};

use super::*;
use crate::model::config::{Rope, RopeScaling};

fn read(extra: Value) -> Result<DecoderConfig, ConfigError> {
    let mut raw = json!({
        "vocab_size": 8, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 6, "num_attention_heads": 2,
    });
    raw.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    DecoderConfig::from_json(raw)
}

fn message(extra: Value) -> String {
    read(extra).expect_err("refused").to_string()
}

#[test]
fn every_name_means_one_row() {
    let names = |row: &Architecture| [row.class, row.classifier, row.model_type];
    let mut all: Vec<&str> = ARCHITECTURES.iter().flat_map(names).collect();
    all.sort_unstable();
    let count = all.len();
    all.dedup();
    assert_eq!(all.len(), count, "{all:?}");
    assert_eq!(count, 3 * ARCHITECTURES.len());
}

#[test]
fn a_gemma_2_file_may_leave_out_what_its_class_has_as_defaults() {
    let config = read(json!({"model_type": "gemma2"})).unwrap();
    let windows = [Some(4096), None].repeat(3);
    assert_eq!((config.head_dim, config.tie_word_embeddings, config.windows), (256, true, windows));
    assert_eq!((config.attention_softcap, config.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((config.attention_scale, config.embedding_scale, config.norm_offset), (1.0 / 16.0, 4.0, 1.0));
    let said = read(json!({
        "architectures": ["Gemma2ForSequenceClassification"], "attn_logit_softcapping": null, "sliding_window": 8,
        "final_logit_softcapping": null, "layer_types": vec!["full_attention"; 6], "query_pre_attn_scalar": 4,
    }));
    let said = said.unwrap();
    assert_eq!((said.attention_softcap, said.logit_softcap, said.attention_scale), (None, None, 0.5));
    assert_eq!((said.num_labels, said.windows), (Some(2), vec![None; 6]));
    assert_eq!(
        message(json!({"model_type": "gemma2", "final_logit_softcapping": 0})),
        "config.json: final_logit_softcapping: 0; expected more than 0"
    );
    assert_eq!(
        message(json!({"model_type": "gemma2", "use_bidirectional_attention": true})),
        "config.json: use_bidirectional_attention: true; only text that is read from left to right is supported"
    );
}

#[test]
fn both_styles_of_gemma_3_mean_the_same() {
    let old = read(json!({
        "architectures": ["Gemma3ForCausalLM"], "rope_theta": 2e6, "rope_local_base_freq": 3e4, "sliding_window": 8,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 3,
    }));
    let (sliding, full) = ("sliding_attention", "full_attention");
    let new = read(json!({
        "architectures": ["Gemma3ForCausalLM"], "sliding_window": 8,
        "layer_types": [sliding, sliding, full, sliding, sliding, full],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        },
    }));
    let (old, new) = (old.unwrap(), new.unwrap());
    let windowed = Rope { theta: 3e4, scaling: RopeScaling::None };
    assert_eq!(
        (old.rope_theta, old.rope_scaling, old.windowed_rope),
        (2e6, RopeScaling::Linear { factor: 8.0 }, Some(windowed))
    );
    assert_eq!(DecoderConfig { raw: Value::Null, ..old }, DecoderConfig { raw: Value::Null, ..new });
    let bare = read(json!({"model_type": "gemma3_text"})).unwrap();
    assert_eq!((bare.rope_theta, bare.windowed_rope.unwrap().theta), (1e6, 1e4));
    assert_eq!(bare.windows, [Some(4096), Some(4096), Some(4096), Some(4096), Some(4096), None]);
}

#[test]
fn experts_are_where_the_file_says() {
    let mixtral = |extra: Value| {
        let mut keys = json!({"model_type": "mixtral", "num_local_experts": 4});
        keys.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        keys
    };
    let experts = read(mixtral(json!({}))).unwrap().experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.intermediate_size, experts.normalised), (4, 2, 8, true));
    assert_eq!((experts.sparse, experts.balance), (vec![true; 6], None));
    let balanced = mixtral(json!({"output_router_logits": true, "router_aux_loss_coef": 0.02}));
    assert_eq!(read(balanced).unwrap().experts.unwrap().balance, Some(0.02));
    assert_eq!(message(mixtral(json!({"num_experts_per_tok": 5}))), "config.json: num_experts_per_tok: 5 of 4 experts");
    assert_eq!(
        message(mixtral(json!({"router_jitter_noise": 0.1}))),
        "config.json: router_jitter_noise: 0.1; routers are not disturbed in this build, set it to 0"
    );
    assert_eq!(message(json!({"model_type": "mixtral"})), "config.json: num_local_experts: is missing");

    let qwen = |extra: Value| {
        let mut keys = json!({"model_type": "qwen3_moe", "moe_intermediate_size": 4, "num_experts_per_tok": 2});
        keys.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        read(keys).map(|config| config.experts.unwrap())
    };
    let (old, new) = (qwen(json!({"num_experts": 6})).unwrap(), qwen(json!({"num_local_experts": 6})).unwrap());
    assert_eq!((old.count, old.normalised, old.intermediate_size, &old), (6, false, 4, &new));
    let sparse = qwen(json!({"decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": true})).unwrap();
    assert_eq!((sparse.normalised, sparse.sparse), (true, vec![false, true, false, false, false, true]));
    assert_eq!(
        qwen(json!({"mlp_only_layers": [true]})).unwrap_err().to_string(),
        "config.json: mlp_only_layers: expected a list of numbers of layers, found [true]"
    );
}
