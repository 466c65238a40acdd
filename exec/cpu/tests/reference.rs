//! Logits against the formulas in f64, over all that an architecture can have.

mod support;

use mloc_cpu::{
    CacheFormat, LoadError, Model, Settings,
    architecture::{Activation, Architecture, Layer},
    weights::{Part, Role},
};
use mloc_engine::forward::{BlockId, Forward, Wanted};
use support::{alone, chunk, difference, everything, load, plain, random, reference, settings, tokens};

/// f32 against f64 over some layers and 150 positions.
const ROUNDING: f64 = 2e-5;

fn agrees(architecture: Architecture, biases: bool) {
    let tensors = random(architecture, biases, 3);
    let tokens = tokens(&tensors.architecture, 150, 4);
    let expected = reference(&tensors, &tokens);
    let mut model = load(&tensors, &settings());
    let worst = difference(&alone(&mut model, &tokens, &[], 0, None), &expected);
    assert!(worst < ROUNDING, "in one step: {worst}");
    let worst = difference(&alone(&mut model, &tokens, &[1, 30, 31, 33, 129], 20, None), &expected);
    assert!(worst < ROUNDING, "in pieces: {worst}");
}

#[test]
fn a_plain_decoder_computes_the_formulas() {
    agrees(plain(), false);
}

#[test]
fn everything_at_once_computes_the_formulas() {
    agrees(everything(), true);
}

#[test]
fn each_extra_computes_the_formulas() {
    let window = |window| vec![Layer { window, rope: 0 }; 2];
    let extras = [
        Architecture { layers: window(Some(5)), ..plain() },
        Architecture { layers: window(Some(129)), ..plain() },
        Architecture { layers: window(Some(1)), ..plain() },
        Architecture { qk_norm: true, ..plain() },
        Architecture { post_norms: true, ..plain() },
        Architecture { activation: Activation::GeluTanh, ..plain() },
        Architecture { attention_soft_cap: Some(2.0), ..plain() },
        Architecture { logit_soft_cap: Some(2.0), embedding_scale: 3.0, ..plain() },
        Architecture { tied: false, head_dim: 80, kv_heads: 1, attention_scale: 0.11, ..plain() },
        Architecture { hidden: 64, intermediate: 96, head_dim: 32, vocabulary: 96, kv_heads: 4, ..plain() },
    ];
    for extra in extras {
        agrees(extra, false);
    }
}

#[test]
fn only_wanted_rows_come_back_in_order() {
    let tensors = random(plain(), false, 1);
    let prompts =
        [tokens(&tensors.architecture, 5, 1), tokens(&tensors.architecture, 9, 2), tokens(&tensors.architecture, 3, 3)];
    let mut model = load(&tensors, &settings());
    let wanted = [Wanted::All, Wanted::None, Wanted::Last];
    let step: Vec<_> = (0..3).map(|i| chunk(&prompts[i], 0, i as u32 * 13, wanted[i])).collect();
    let logits = model.forward(&step).expect("a step");
    assert_eq!((logits.rows(), logits.width), (6, 77));
    let first = alone(&mut model, &prompts[0], &[], 0, None);
    let last = alone(&mut model, &prompts[2], &[], 0, None);
    for (row, expected) in first.iter().chain(last.last()).enumerate() {
        assert_eq!(logits.row(row), &expected[..], "row {row}");
    }
    let none = model.forward(&[chunk(&prompts[1], 0, 0, Wanted::None)]).expect("a step");
    assert_eq!(none.rows(), 0);
}

#[test]
fn a_copied_block_goes_its_own_way() {
    let tensors = random(plain(), false, 1);
    let prompt = tokens(&tensors.architecture, 70, 1);
    let mut model = load(&tensors, &settings());
    alone(&mut model, &prompt, &[], 0, None);
    // A second sequence shares the first two blocks and goes on in a copy of the third, from token 66 on.
    model.copy_blocks(&[(BlockId(2), BlockId(40))]);
    let mut forked = chunk(&[9, 8, 7], 66, 0, Wanted::All);
    forked.blocks = vec![BlockId(0), BlockId(1), BlockId(40)];
    let forked = model.forward(&[forked]).expect("a step");
    let goes_on = model.forward(&[chunk(&[5], 70, 0, Wanted::Last)]).expect("a step");

    let mut both = prompt[..66].to_vec();
    both.extend([9, 8, 7]);
    let expected = alone(&mut model, &both, &[], 20, None);
    assert_eq!(forked.row(2), &expected[68][..]);
    let mut first = prompt.clone();
    first.push(5);
    let expected = alone(&mut model, &first, &[], 20, None);
    assert_eq!(goes_on.row(0), &expected[70][..], "the first sequence's block was left alone");
}

#[test]
fn larger_blocks_and_half_caches_hold_the_same() {
    let tensors = random(everything(), true, 5);
    let tokens = tokens(&tensors.architecture, 150, 4);
    let expected = reference(&tensors, &tokens);
    let base = alone(&mut load(&tensors, &settings()), &tokens, &[], 0, None);
    for block_tokens in [64, 128] {
        let mut model = load(&tensors, &Settings { block_tokens, ..settings() });
        assert_eq!(alone(&mut model, &tokens, &[77], 0, None), base, "blocks of {block_tokens}");
    }
    let mut half = load(&tensors, &Settings { cache: CacheFormat::F16, ..settings() });
    let worst = difference(&alone(&mut half, &tokens, &[], 0, None), &expected);
    assert!((1e-6..3e-3).contains(&worst), "keys and values of 11 bits: {worst}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let broken =
        Architecture { kv_heads: 3, head_dim: 13, layers: vec![Layer { window: Some(0), rope: 2 }], ..plain() };
    let tensors = random(plain(), false, 1);
    let message = |error: Result<Model, LoadError>| error.err().expect("an error").to_string();
    assert_eq!(
        message(Model::load(broken, &tensors, &settings())),
        "architecture: kv_heads 3 does not divide heads 4; head_dim 13 is odd; layer 0 names rope 2 of 1; \
         layer 0 has a window of 0"
    );
    let narrow = Settings { block_tokens: 16, ..settings() };
    assert_eq!(
        message(Model::load(plain(), &tensors, &narrow)),
        "settings: block_tokens is 16, where 32, 64 or 128 would work"
    );
    let mut missing = random(plain(), false, 1);
    missing.tensors.remove(&Role::Layer(1, Part::FeedForwardNorm));
    assert_eq!(message(Model::load(plain(), &missing, &settings())), "no weights for Layer(1, FeedForwardNorm)");
    missing.tensors.insert(Role::FinalNorm, vec![1.0; 39]);
    missing.tensors.insert(Role::Layer(1, Part::FeedForwardNorm), vec![1.0; 40]);
    assert_eq!(message(Model::load(plain(), &missing, &settings())), "FinalNorm has 39 values, [1, 40] were expected");
}
