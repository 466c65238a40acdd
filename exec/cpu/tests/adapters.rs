//! LoRA adapters against the weights they stand for, several in one batch.

mod support;

use mloc_cpu::weights::Matrix;
use mloc_engine::forward::{Chunk, Forward, Wanted};
use support::{
    MATRICES, adapter, alone, chunk, difference, everything, load, merged, plain, random, reference, settings,
    sparse_mixture, tokens,
};

#[test]
fn an_adapter_computes_what_merged_weights_would() {
    for architecture in [plain(), everything()] {
        let tensors = random(architecture, true, 21);
        let prompt = tokens(&tensors.architecture, 40, 3);
        for (matrices, rank) in [(&MATRICES[..], 5), (&[Matrix::Value, Matrix::Gate][..], 40)] {
            let low = adapter(&tensors.architecture, matrices, rank, 8);
            let mut model = load(&tensors, &settings());
            let id = model.adapters().load(&low).expect("an adapter");
            let expected = reference(&merged(&tensors, &low), &prompt);
            let worst = difference(&alone(&mut model, &prompt, &[7], 0, Some(id)), &expected);
            assert!(worst < 3e-5, "rank {rank}: {worst}");
            let base = difference(&alone(&mut model, &prompt, &[], 0, None), &expected);
            assert!(base > 1e-2, "the adapter changes something: {base}");
        }
    }
}

#[test]
fn each_sequence_of_a_batch_has_its_own() {
    let tensors = random(plain(), false, 21);
    let a = &tensors.architecture;
    let mut model = load(&tensors, &settings());
    let adapters = model.adapters();
    let first = adapters.load(&adapter(a, &MATRICES, 4, 1)).expect("an adapter");
    let second = adapters.load(&adapter(a, &[Matrix::Output], 9, 2)).expect("an adapter");
    let prompts: Vec<Vec<u32>> = (0..4).map(|seed| tokens(a, 3 + seed as usize, seed)).collect();
    let which = [Some(first), None, Some(second), Some(first)];
    let step: Vec<Chunk> =
        (0..4).map(|i| Chunk { adapter: which[i], ..chunk(&prompts[i], 0, i as u32 * 13, Wanted::Last) }).collect();
    let together = model.forward(&step).expect("a step");
    for i in 0..4 {
        let expected = alone(&mut model, &prompts[i], &[], 0, which[i]);
        assert_eq!(together.row(i), &expected[prompts[i].len() - 1][..], "sequence {i}");
    }
    assert!(adapters.unload(first) && !adapters.unload(first));
    let third = adapters.load(&adapter(a, &MATRICES, 4, 1)).expect("an adapter");
    assert!(third != first && third != second, "ids are not used again");
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_name() {
    let tensors = random(plain(), false, 21);
    let adapters = load(&tensors, &settings()).adapters();
    let mut low = adapter(&tensors.architecture, &[Matrix::Key], 2, 1);
    low[1].b.pop();
    assert_eq!(
        adapters.load(&low).err().map(|e| e.to_string()).as_deref(),
        Some("adapter: layer 1 Key: a has 80 values, b 47, where rank 2 of [24, 40] needs 80 and 48")
    );
    low[1].layer = 2;
    assert_eq!(adapters.load(&low).err().map(|e| e.to_string()).as_deref(), Some("adapter: layer 2 of 2"));
}

#[test]
fn adapters_of_experts_are_refused_by_name() {
    let model = load(&random(sparse_mixture(), false, 2), &settings());
    let of = |matrices: &[Matrix], layer: usize| {
        let mut low = adapter(&sparse_mixture(), matrices, 2, 5);
        low.retain(|part| part.layer == layer);
        model.adapters().load(&low).map_err(|error| error.to_string())
    };
    assert_eq!(of(&[Matrix::Up], 2).unwrap_err(), "adapter: layer 2 Up: the layer has experts in its place");
    // Its attention's, and those of the layer without experts, are as any.
    assert!(of(&[Matrix::Query], 2).is_ok() && of(&[Matrix::Up, Matrix::Down], 1).is_ok());
}
