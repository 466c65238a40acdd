use serde_json::json;

use super::*;
use crate::model::DecoderConfig;
use burn::tensor::Device;

fn small(model_type: &str) -> Decoder {
    let raw = json!({
        "model_type": model_type, "vocab_size": 8, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 2, "tie_word_embeddings": true,
    });
    Decoder::random(DecoderConfig::from_json(raw).expect("config"), 1, &Device::flex())
}

/// Modules with an adapter, with their ranks and scales.
fn planned(config: &LoraConfig) -> Vec<(String, usize, f64)> {
    let plan = targets::plan(&small("llama"), config).unwrap_or_else(|e| panic!("{e}"));
    plan.adapters.into_iter().map(|(module, p)| (module.replace("model.layers.", ""), p.r, p.scale)).collect()
}

fn modules(config: &LoraConfig) -> Vec<String> {
    planned(config).into_iter().map(|(module, ..)| module).collect()
}

fn refusal(config: &LoraConfig) -> String {
    match attach(&mut small("llama"), config, 1) {
        Ok(()) => panic!("{config:?} was taken"),
        Err(error) => error.to_string().replace("adapter_config.json: ", ""),
    }
}

#[test]
fn layers_are_chosen_by_name_pattern_number_and_exception() {
    let only = |target_modules: Modules| LoraConfig { target_modules, ..LoraConfig::default() };
    assert_eq!(modules(&only(["1.self_attn.q_proj"].into())), ["1.self_attn.q_proj"]);
    // A name is whole parts: `proj` is the end of many, and of none.
    assert!(refusal(&only(["proj"].into())).contains("match no layer"));
    let pattern = only(Modules::from_text(r".*\.(0|2)\.self_attn\.[qv]_proj"));
    assert_eq!(
        modules(&pattern),
        ["0.self_attn.q_proj", "0.self_attn.v_proj", "2.self_attn.q_proj", "2.self_attn.v_proj"]
    );
    let all = only(Modules::from_text("all-linear"));
    assert_eq!(modules(&all).len(), 3 * 7);
    let some = LoraConfig { exclude_modules: Some(["mlp.up_proj", "q_proj"].into()), ..all.clone() };
    assert_eq!(modules(&some).len(), 3 * 5);
    let patterned = LoraConfig { exclude_modules: Some(Modules::from_text(r".*\.mlp\..*")), ..all.clone() };
    assert_eq!(modules(&patterned).len(), 3 * 4);
    let by_number = LoraConfig { layers_to_transform: Some(vec![1]), ..LoraConfig::default() };
    assert_eq!(modules(&by_number), ["1.self_attn.q_proj", "1.self_attn.v_proj"]);
    let within = LoraConfig { layers_pattern: vec!["layers".into()], ..by_number.clone() };
    assert_eq!(modules(&within), modules(&by_number));
    let saved = LoraConfig { modules_to_save: vec!["2.mlp".into(), "lm_head".into()], ..all };
    assert_eq!(modules(&saved).len(), 3 * 7 - 3);
}

#[test]
fn patterns_set_ranks_and_scales() {
    let config = LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        target_modules: ["q_proj", "down_proj"].into(),
        rank_pattern: [("0.mlp.down_proj".to_owned(), 16), ("^model.layers.1.self_attn.q_proj".to_owned(), 2)].into(),
        alpha_pattern: [("(down|up)_proj".to_owned(), 32.0)].into(),
        layers_to_transform: Some(vec![0, 1]),
        ..LoraConfig::default()
    };
    let wanted = |name: &str, r, scale| (name.to_owned(), r, scale);
    assert_eq!(
        planned(&config),
        [
            wanted("0.mlp.down_proj", 16, 2.0),
            wanted("0.self_attn.q_proj", 4, 2.0),
            wanted("1.mlp.down_proj", 4, 8.0),
            wanted("1.self_attn.q_proj", 2, 4.0),
        ]
    );
    let stabilised = LoraConfig { use_rslora: true, ..config };
    assert_eq!(planned(&stabilised)[0].2, 8.0);
    assert_eq!(planned(&stabilised)[1].2, 4.0);
}

#[test]
fn settings_that_mean_nothing_are_refused_with_what_would_work() {
    let default = LoraConfig::default;
    let pattern = |text: &str| LoraConfig { target_modules: Modules::Matching(text.into()), ..default() };
    let messages = [
        refusal(&LoraConfig { r: 0, ..default() }),
        refusal(&LoraConfig { target_modules: ["q_prj", "zebra"].into(), ..default() }),
        refusal(&pattern("(q|v)_proj")),
        refusal(&pattern(".*(q|v_proj")),
        refusal(&LoraConfig { exclude_modules: Some(["k_prj"].into()), ..default() }),
        refusal(&LoraConfig { exclude_modules: Some(["q_proj", "v_proj"].into()), ..default() }),
        refusal(&LoraConfig { layers_to_transform: Some(vec![3]), ..default() }),
        refusal(&LoraConfig { layers_to_transform: Some(vec![0]), target_modules: Modules::AllLinear, ..default() }),
        refusal(&LoraConfig { rank_pattern: [("down_proj".to_owned(), 2)].into(), ..default() }),
        refusal(&LoraConfig {
            rank_pattern: [("q_proj".to_owned(), 2), ("[qv]_proj".to_owned(), 4)].into(),
            ..default()
        }),
        refusal(&LoraConfig { modules_to_save: vec!["classifier".into()], ..default() }),
    ];
    let known = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
    let first = "model.layers.0.self_attn.q_proj";
    let wanted = [
        "r: 0; expected 1 or more".to_owned(),
        format!(
            r#"target_modules: ["q_prj", "zebra"] match no layer; known are {known} and all-linear (near: q_prj → q_proj)"#
        ),
        format!(
            r#"target_modules: the pattern "(q|v)_proj" matches no layer; it must match a whole name such as {first}"#
        ),
        r#"target_modules: ".*(q|v_proj" is no regular expression: unclosed group"#.to_owned(),
        format!(r#"exclude_modules: ["k_prj"] match no layer; known are {known} and all-linear (near: k_prj → k_proj)"#),
        "target_modules: no layer is left: exclude_modules, modules_to_save and layers_to_transform take all of them out"
            .to_owned(),
        "layers_to_transform: 3: the model's 3 layers are numbered from 0".to_owned(),
        "layers_to_transform: goes with a list of names in target_modules only; a pattern can hold the numbers itself"
            .to_owned(),
        r#"rank_pattern: "down_proj" matches no layer with an adapter"#.to_owned(),
        format!(r#"rank_pattern: "[qv]_proj" and "q_proj" both match {first}; which one counts?"#),
        r#"modules_to_save: "classifier" matches no module; known are embed_tokens, q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, input_layernorm, post_attention_layernorm, norm, lm_head"#
            .to_owned(),
    ];
    for (found, wanted) in messages.iter().zip(&wanted) {
        assert_eq!(found, wanted);
    }
}

#[test]
fn a_refused_adapter_leaves_the_model_as_it_was() {
    let mut model = small("llama");
    model.train_all();
    assert!(attach(&mut model, &LoraConfig { r: 0, ..LoraConfig::default() }, 1).is_err());
    assert!(model.parameters().all(|p| p.trainable) && model.adapter.is_none());
}

#[test]
fn what_is_trained_beside_the_adapter_is_what_is_named() {
    let trained = |config: &LoraConfig| {
        let mut model = small("qwen2");
        attach(&mut model, config, 1).unwrap_or_else(|e| panic!("{e}"));
        let names = model.parameters().filter(|p| p.trainable && !is_adapter(&p.name));
        let names: Vec<String> = names.map(|p| p.name.replace("model.layers.", "")).collect();
        (names, model.lm_head.is_some())
    };
    let one = LoraConfig { target_modules: ["0.self_attn.q_proj"].into(), ..LoraConfig::default() };
    assert_eq!(trained(&one), (vec![], false));
    let biases = trained(&LoraConfig { bias: Bias::All, ..one.clone() }).0;
    assert_eq!(biases.len(), 9);
    assert_eq!(trained(&LoraConfig { bias: Bias::LoraOnly, ..one.clone() }).0, ["0.self_attn.q_proj.bias"]);
    let saved = |names: &[&str]| {
        let modules_to_save = names.iter().map(|n| (*n).to_owned()).collect();
        trained(&LoraConfig { modules_to_save, ..one.clone() })
    };
    // A head that shared the embedding's weights gets its own when one of the two is trained.
    assert_eq!(saved(&["lm_head"]), (vec!["lm_head.weight".into()], true));
    assert_eq!(saved(&["embed_tokens"]), (vec!["model.embed_tokens.weight".into()], true));
    assert_eq!(saved(&["model.norm"]).0, ["model.norm.weight"]);
    let mlp = ["1.mlp.gate_proj.weight", "1.mlp.up_proj.weight", "1.mlp.down_proj.weight"];
    assert_eq!(saved(&["1.mlp"]).0, mlp);
}

#[test]
fn settings_survive_pefts_file() {
    let config = LoraConfig {
        r: 4,
        lora_alpha: 2.5,
        lora_dropout: 0.25,
        use_rslora: true,
        target_modules: Modules::Matching(r".*\.(q|v)_proj".into()),
        exclude_modules: Some(["k_proj"].into()),
        rank_pattern: [("a".to_owned(), 2)].into(),
        alpha_pattern: [("b".to_owned(), 0.5)].into(),
        layers_to_transform: Some(vec![0, 2]),
        layers_pattern: vec!["layers".into()],
        modules_to_save: vec!["lm_head".into()],
        bias: Bias::LoraOnly,
        use_dora: true,
        init_lora_weights: Init::Gaussian,
    };
    let same = |config: &LoraConfig| assert_eq!(&LoraConfig::from_json(&config.to_json("base")).unwrap(), config);
    same(&config);
    same(&LoraConfig::default());
    same(&LoraConfig { target_modules: Modules::AllLinear, ..LoraConfig::default() });
    // Other spellings of PEFT's.
    let mut raw = config.to_json("base");
    raw["layers_to_transform"] = json!(0);
    raw["layers_pattern"] = json!("layers");
    let one = LoraConfig { layers_to_transform: Some(vec![0]), ..config };
    assert_eq!(LoraConfig::from_json(&raw).unwrap(), one);
}

#[test]
fn what_peft_can_and_this_crate_cannot_is_refused_by_name() {
    let refused = |key: &str, value| {
        let mut raw = LoraConfig::default().to_json("base");
        raw[key] = value;
        LoraConfig::from_json(&raw).unwrap_err().to_string()
    };
    assert_eq!(
        refused("peft_type", json!("IA3")),
        "adapter_config.json: peft_type: Some(\"IA3\"); only \"LORA\" is supported"
    );
    assert_eq!(refused("lora_bias", json!(true)), "adapter_config.json: lora_bias: true is not supported");
    assert_eq!(
        refused("init_lora_weights", json!("pissa_niter_4")),
        "adapter_config.json: init_lora_weights: \"pissa_niter_4\" changes the base model too; convert the adapter to plain \
         LoRA in PEFT"
    );
    assert_eq!(refused("bias", json!("some")), "adapter_config.json: bias: \"some\"; known are none, all, lora_only");
    assert_eq!(refused("r", json!("8")), "adapter_config.json: r: expected a whole number, found \"8\"");
    assert_eq!(
        refused("target_modules", json!(7)),
        "adapter_config.json: target_modules: expected a list of names or a pattern, found 7"
    );
}
