//! Logits against the formulas in f64, over all that an architecture can have.

mod support;

use mloc_cpu::{
    CacheFormat, Format, Keep, LoadError, Model, Settings,
    architecture::{Activation, Architecture, Experts, Layer},
    held,
    weights::{Block4, Block8, BlockU4, Matrix, Part, Role, Values, Weights},
};
use mloc_engine::forward::{BlockId, Forward, Wanted};
use support::{
    Tensors, alone, chunk, difference, everything, load, mixture, plain, random, reference, settings, sparse_mixture,
    tokens,
};

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
fn experts_compute_the_formulas() {
    agrees(mixture(), false);
    agrees(sparse_mixture(), true);
    // All of them for each token; one; and more than a chunk's panels of each.
    for (per_token, intermediate) in [(5, 30), (1, 30), (2, 300)] {
        let experts = mixture().experts.map(|experts| Experts { per_token, intermediate, ..experts });
        agrees(Architecture { experts, ..mixture() }, false);
    }
}

#[test]
fn a_step_of_one_token_reads_the_experts_that_compute_it() {
    let a = Architecture { hidden: 64, vocabulary: 64, head_dim: 16, kv_heads: 4, ..mixture() };
    let experts = a.experts.clone().expect("experts");
    let experts = Experts { intermediate: 32, count: 8, per_token: 2, ..experts };
    let a = Architecture { experts: Some(experts), ..a };
    let model = load(&random(a, false, 1), &settings());
    // Rows of 64: 4 · 64 of attention, 96 of each expert; the router's eight are padded to 32. The head, and apart from
    // it the rows of tokens.
    let (row, layer) = (64 * 4, 4 * 64 + 32);
    assert_eq!(model.weight_bytes(), (2 * (layer + 2 * 96) + 64) * row);
    assert_eq!(model.held().bytes, (2 * (layer + 8 * 96) + 2 * 64) * row);
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

/// Tensors that come in formats of their own.
struct In<F>(Tensors, F);

impl<F: Fn(Role) -> Format + Sync> Weights for In<F> {
    fn get(&self, role: Role) -> Option<Values<'_>> {
        let floats = self.0.tensors.get(&role)?;
        let blocks = || floats.as_chunks::<32>().0.iter();
        Some(match (self.1)(role) {
            Format::F32 => Values::F32(floats.as_slice().into()),
            Format::Bf16 => Values::Bf16(floats.iter().map(|v| half::bf16::from_f32(*v)).collect()),
            Format::F16 => Values::F16(floats.iter().map(|v| half::f16::from_f32(*v)).collect()),
            Format::Int8 => Values::Int8(blocks().map(Block8::quantise).collect()),
            Format::Int4 => Values::Int4(blocks().map(Block4::quantise).collect()),
            Format::Uint4 => Values::Uint4(blocks().map(BlockU4::quantise).collect()),
        })
    }
}

fn in_blocks() -> Architecture {
    Architecture { hidden: 64, intermediate: 96, head_dim: 32, vocabulary: 96, kv_heads: 4, ..plain() }
}

#[test]
fn weights_are_held_as_they_come() {
    let as_they_come = Keep { layers: None, head: None };
    let matrices = |format: Format| {
        move |role: Role| match role {
            Role::Embedding | Role::Head | Role::Layer(_, Part::Matrix(_)) => format,
            _ => Format::F32,
        }
    };
    for tied in [true, false] {
        for format in Format::ALL {
            let given = In(random(Architecture { tied, ..in_blocks() }, false, 5), matrices(format));
            let a = &given.0.architecture;
            let logits = |keep| {
                let mut model = Model::load(a.clone(), &given, &Settings { keep, ..settings() }).expect("a model");
                let rows = alone(&mut model, &tokens(a, 40, 6), &[], 0, None);
                (rows, model.held().clone(), model.weight_bytes())
            };
            let (found, takes, step) = logits(as_they_come);
            let (wanted, all, _) = logits(Keep::all(format));
            assert_eq!(found, wanted, "{format}");
            assert_eq!((&takes, takes.rounded), (&all, 0), "{format}");
            assert_eq!(takes.formats.keys().copied().collect::<Vec<_>>(), [format]);
            // 64 columns: two blocks of 32 each. A tied head has the rows of tokens, else they are held beside it.
            let row = match format {
                Format::F32 => 256,
                Format::Bf16 | Format::F16 => 128,
                Format::Int8 => 2 * 34,
                Format::Int4 => 2 * 18,
                Format::Uint4 => 2 * 20,
            };
            let layers = 2 * (4 * 128 + 2 * 96 + 96) * row;
            assert_eq!(takes.bytes, layers + 96 * row * if tied { 1 } else { 2 }, "{format}");
            assert_eq!(step, layers + 96 * row, "{format}");
            if !matches!(format, Format::Int8 | Format::Int4 | Format::Uint4) {
                // Widened in registers: the same as rounded weights in f32.
                assert_eq!(found, logits(Keep::all(Format::F32)).0, "{format}");
            }
        }
    }
}

#[test]
fn a_product_of_several_formats_takes_the_narrowest_that_holds_them() {
    let mixed = |other: Format| {
        move |role: Role| match role {
            Role::Layer(_, Part::Matrix(Matrix::Value | Matrix::Down)) => other,
            Role::Embedding => Format::Int8,
            Role::Layer(_, Part::Matrix(_)) => Format::Int4,
            _ => Format::F32,
        }
    };
    let as_they_come = Keep { layers: None, head: None };
    for (other, formats, rounded) in [
        (Format::Int8, &[Format::Int8, Format::Int4][..], 0),
        (Format::Uint4, &[Format::Int8, Format::Int4, Format::Uint4], 0),
        (Format::Bf16, &[Format::F32, Format::Bf16, Format::Int8, Format::Int4], 0),
    ] {
        let given = In(random(in_blocks(), false, 5), mixed(other));
        let takes = held(&given.0.architecture, &given, as_they_come);
        assert_eq!(takes.formats.keys().copied().collect::<Vec<_>>(), formats, "{other}");
        assert_eq!(takes.rounded, rounded, "{other}");
        let mut model =
            Model::load(given.0.architecture.clone(), &given, &Settings { keep: as_they_come, ..settings() })
                .expect("a model");
        assert_eq!(*model.held(), takes);
        // The same rounded weights in f32: what is left is the rounding of activations to bytes.
        let mut wide = Model::load(given.0.architecture.clone(), &given, &settings()).expect("a model");
        let prompt = tokens(&given.0.architecture, 40, 6);
        let found = alone(&mut model, &prompt, &[], 0, None);
        let wanted: Vec<Vec<f64>> = alone(&mut wide, &prompt, &[], 0, None)
            .iter()
            .map(|row| row.iter().map(|v| f64::from(*v)).collect())
            .collect();
        let worst = difference(&found, &wanted);
        assert!((1e-4..0.08).contains(&worst), "{other}: {worst}");
    }
    // Bytes don't hold nibbles above a minimum; that is told.
    let given = In(random(in_blocks(), false, 5), |role| match role {
        Role::Layer(0, Part::Matrix(Matrix::Query)) => Format::Uint4,
        Role::Layer(_, Part::Matrix(_)) => Format::Int8,
        _ => Format::F32,
    });
    assert_eq!(held(&given.0.architecture, &given, as_they_come).rounded, 1);
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
    let few = mixture().experts.map(|experts| Experts { per_token: 6, sparse: vec![true], ..experts });
    assert_eq!(
        message(Model::load(Architecture { experts: few, ..mixture() }, &tensors, &settings())),
        "architecture: 6 of 5 experts compute a token; experts are said of 1 layers of 2"
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
