//! Many texts continued at once: each as it would be alone.

mod golden;

use burn::tensor::Device;
use golden::{Close, Expected, fixture};
use mloc_burn::batch::{Batch, IGNORED};
use mloc_burn::generate::many::{Continuation, GenerateError, Prompt, generate_many};
use mloc_burn::generate::{Limits, Sampler};
use mloc_burn::logprobs;
use mloc_burn::loss::Targets;
use mloc_burn::model::{Decoder, DecoderConfig, Packed};
use mloc_burn::weights::SafetensorsSource;

const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

fn base(family: &str) -> Decoder {
    let folder = fixture(&format!("models/{family}"));
    let config = DecoderConfig::from_folder(&folder).expect("config");
    let source = SafetensorsSource::open_folder(&folder).expect("weights");
    Decoder::load(config, &source, &Device::flex()).expect("model")
}

fn limits(max_new_tokens: usize, stop_ids: &[i64]) -> Limits {
    Limits { max_new_tokens, stop_ids: stop_ids.to_vec() }
}

fn greedy() -> Sampler {
    Sampler { temperature: 0.0, ..Sampler::default() }
}

/// Prompts of three lengths, one of them twice with different seeds.
fn prompts(ids: &[i64]) -> Vec<Prompt<'_>> {
    [(ids.len(), 1), (3, 2), (ids.len() - 2, 3), (3, 4), (ids.len(), 5)]
        .map(|(length, seed)| Prompt { ids: &ids[..length], seed })
        .to_vec()
}

#[test]
fn greedily_each_text_goes_on_as_the_reference_says() {
    for family in FAMILIES {
        let expected = Expected::open(&fixture(&format!("models/{family}/expected.json")));
        let (prompt, wanted) = (expected.ids("/greedy/prompt_ids"), expected.ids("/greedy/new_ids"));
        let model = base(family);
        let found = generate_many(&model, &prompts(&prompt), greedy(), &limits(20, &[]), &|| false).expect("texts");
        assert_eq!(found[0].ids, wanted, "{family}");
        assert_eq!(found[4].ids, wanted, "{family}: the same prompt again");
        // The same text ends earlier where it meets a stop token, which is its last.
        let stop = wanted[7];
        let first = wanted.iter().position(|id| *id == stop).expect("it is there") + 1;
        let cut = generate_many(&model, &prompts(&prompt), greedy(), &limits(20, &[stop]), &|| false).expect("texts");
        assert_eq!((cut[0].ids.as_slice(), cut[0].ended), (&wanted[..first], true), "{family}");
    }
}

#[test]
fn a_sampled_text_does_not_depend_on_those_beside_it() {
    for family in FAMILIES {
        let ids = Expected::open(&fixture(&format!("models/{family}/expected.json"))).ids("/greedy/prompt_ids");
        let model = base(family);
        let all = prompts(&ids);
        let sampler = Sampler { temperature: 0.9, top_k: 40, top_p: 0.95, min_p: 0.01 };
        // Some end early, so that rows leave while others go on.
        let stop = generate_many(&model, &all[..1], sampler, &limits(12, &[]), &|| false).expect("text")[0].ids[4];
        let limits = limits(12, &[stop]);
        let together = generate_many(&model, &all, sampler, &limits, &|| false).expect("texts");
        assert!(together[0].ended && together.iter().any(|text| text.ids.len() > together[0].ids.len()), "{family}");
        assert_ne!(together[1].ids, together[3].ids, "{family}: seeds differ");
        for (index, prompt) in all.iter().enumerate() {
            let alone = generate_many(&model, &[*prompt], sampler, &limits, &|| false).expect("text");
            assert_eq!(alone[0].ids, together[index].ids, "{family}: {index}");
        }
    }
}

#[test]
fn log_probabilities_of_what_was_sampled_are_those_of_reading_it() {
    for family in FAMILIES {
        let ids = Expected::open(&fixture(&format!("models/{family}/expected.json"))).ids("/greedy/prompt_ids");
        let model = base(family);
        let all = prompts(&ids);
        let sampler = Sampler { temperature: 0.7, ..Sampler::default() };
        let made = generate_many(&model, &all, sampler, &limits(6, &[]), &|| false).expect("texts");
        let row = |(prompt, made): (&Prompt<'_>, &Continuation)| {
            let labels = vec![IGNORED; prompt.ids.len()].into_iter().chain(made.ids.iter().copied()).collect();
            ([prompt.ids, &made.ids].concat(), labels)
        };
        let batch = Batch::collate(&all.iter().zip(&made).map(row).collect::<Vec<_>>(), 0);
        let packed = Packed::new(&batch, &model.config, model.device());
        let targets = Targets::of(&batch, &packed);
        let scores = logprobs::score(&model.hidden(&packed), model.head(), &targets, 0.7);
        let single = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v as f32).collect::<Vec<f32>>();
        let sampled = single(&mut made.iter().flat_map(|text| text.logprobs.iter().copied()));
        Close::default().check(family, &single(&mut scores.logprobs.iter().copied()), &sampled);
    }
}

#[test]
fn what_cannot_be_continued_is_said() {
    let model = base("llama");
    let said = |ids: &[i64], stop: &dyn Fn() -> bool| {
        let prompts = [Prompt { ids: &[5], seed: 0 }, Prompt { ids, seed: 0 }];
        generate_many(&model, &prompts, greedy(), &limits(2, &[]), stop).expect_err("an error").to_string()
    };
    assert_eq!(said(&[], &|| false), "prompt 1: it has no tokens");
    let vocabulary = model.config.vocab_size;
    let outside = format!("prompt 1: token id {vocabulary}, the vocabulary has {vocabulary}");
    assert_eq!(said(&[vocabulary as i64], &|| false), outside);
    let asked = std::cell::Cell::new(0);
    let prompts = [Prompt { ids: &[5], seed: 0 }];
    let third_time = || asked.replace(asked.get() + 1) == 2;
    let stopped = generate_many(&model, &prompts, greedy(), &limits(50, &[]), &third_time);
    assert_eq!(stopped, Err(GenerateError::Interrupted));
    let mut broken = base("llama");
    for parameter in broken.parameters_mut() {
        parameter.value = parameter.value.clone().mul_scalar(f32::NAN);
    }
    let found = generate_many(&broken, &prompts, greedy(), &limits(2, &[]), &|| false);
    assert_eq!(found, Err(GenerateError::NotFinite { index: 0, token: 0 }));
}
