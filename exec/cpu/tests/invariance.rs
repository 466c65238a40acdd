//! Logits are the same to the bit: alone and in any batch, at any thread count, on any instruction set, however a prompt
//! is cut.

mod support;

use mloc_cpu::{CacheFormat, Format, Keep, Settings, isa::Isa, weights::Matrix};
use mloc_engine::forward::{Chunk, Forward, Wanted};
use proptest::prelude::*;
use support::{
    Tensors, adapter, alone, chunk, everything, load, mixture, plain, random, settings, sparse_mixture, tokens,
};

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
}

fn models() -> [Tensors; 4] {
    [
        random(plain(), false, 11),
        random(everything(), true, 12),
        random(mixture(), false, 13),
        random(sparse_mixture(), true, 14),
    ]
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for tensors in models() {
        let tokens = tokens(&tensors.architecture, 140, 2);
        for (format, cache) in Format::ALL.into_iter().zip([CacheFormat::F32, CacheFormat::F16].into_iter().cycle()) {
            let on = |isa| {
                let mut model = load(&tensors, &Settings { isa, keep: Keep::all(format), cache, ..settings() });
                bits(&alone(&mut model, &tokens, &[100], 0, None))
            };
            let expected = on(Isa::Portable);
            for isa in Isa::available() {
                assert!(on(isa) == expected, "{format} on {isa:?} differs from portable");
            }
        }
    }
}

#[test]
fn a_longer_context_is_split_among_threads_without_a_trace() {
    for tensors in models() {
        let tokens = tokens(&tensors.architecture, 390, 2);
        for cache in [CacheFormat::F32, CacheFormat::F16] {
            let with = |threads, cuts: &[usize]| {
                let mut model = load(&tensors, &Settings { threads, cache, ..settings() });
                bits(&alone(&mut model, &tokens, cuts, 0, None))
            };
            let expected = with(1, &[]);
            let single: Vec<usize> = (1..390).collect();
            assert!(with(5, &single) == expected, "token by token on 5 threads");
        }
    }
}

/// One sequence of a batch: its tokens, and where they are cut.
#[derive(Debug, Clone)]
struct Sequence {
    tokens: Vec<u32>,
    cuts: Vec<usize>,
    adapted: bool,
}

fn sequence() -> impl Strategy<Value = Sequence> {
    let cuts = prop::collection::btree_set(1_usize..200, 0..6);
    (1_usize..200, any::<u64>(), cuts, any::<bool>()).prop_map(|(length, seed, cuts, adapted)| Sequence {
        tokens: tokens(&plain(), length, seed),
        cuts: cuts.into_iter().filter(|cut| *cut < length).collect(),
        adapted,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sequence_gets_the_same_bits_alone_and_in_any_batch(
        sequences in prop::collection::vec(sequence(), 1..5),
        order in prop::collection::vec(0_usize..5, 0..40),
        threads in 1_usize..5,
        format in 0_usize..Format::ALL.len(),
        model in 0_usize..4,
    ) {
        let tensors = &models()[model];
        let format = Format::ALL[format];
        let adapted = [Matrix::Query, Matrix::Value, Matrix::Up, Matrix::Down];
        // Experts have no adapters.
        let adapted = if tensors.architecture.experts.is_some() { &adapted[..2] } else { &adapted };
        let low = adapter(&tensors.architecture, adapted, 3, 5);
        let mut model = load(tensors, &Settings { threads, keep: Keep::all(format), ..settings() });
        let id = model.adapters().load(&low).expect("an adapter");
        let mut rows = vec![Vec::new(); sequences.len()];
        let mut at = vec![0; sequences.len()];
        let mut step = |ready: &[usize], at: &mut [usize]| {
            let mut batch = Vec::new();
            for &index in ready {
                let Sequence { tokens, cuts, adapted } = &sequences[index];
                let from = at[index];
                let to = cuts.iter().copied().find(|cut| *cut > from).unwrap_or(tokens.len());
                at[index] = to;
                let chunk = chunk(&tokens[from..to], from, index as u32 * 13, Wanted::All);
                batch.push(Chunk { adapter: adapted.then_some(id), ..chunk });
            }
            let logits = model.forward(&batch).expect("a step");
            let mut row = 0;
            for (chunk, index) in batch.iter().zip(ready) {
                for _ in &chunk.tokens {
                    rows[*index].push(logits.row(row).to_vec());
                    row += 1;
                }
            }
        };
        let unfinished = |index: &usize, at: &[usize]| *index < sequences.len() && at[*index] < sequences[*index].tokens.len();
        // Steps of whichever sequences the draw names, then of all that are left.
        for some in order.chunks(3) {
            let mut ready: Vec<usize> = some.iter().copied().filter(|index| unfinished(index, &at)).collect();
            ready.sort_unstable();
            ready.dedup();
            step(&ready, &mut at);
        }
        loop {
            let ready: Vec<usize> = (0..sequences.len()).rev().filter(|index| unfinished(index, &at)).collect();
            if ready.is_empty() {
                break;
            }
            step(&ready, &mut at);
        }
        let mut quiet = load(tensors, &Settings { threads: 1, keep: Keep::all(format), ..settings() });
        let id = quiet.adapters().load(&low).expect("an adapter");
        for (sequence, rows) in sequences.iter().zip(&rows) {
            let expected = alone(&mut quiet, &sequence.tokens, &[], 0, sequence.adapted.then_some(id));
            prop_assert!(bits(rows) == bits(&expected), "{} tokens in {} threads, {}", sequence.tokens.len(), threads, format);
        }
    }
}
