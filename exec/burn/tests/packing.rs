//! However rows come together in a batch, each gives what it gives alone: losses and gradients of rows one by one, padded on
//! the right, padded on the left and packed are the same, and no token sees a token of another row.

mod golden;

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Device;
use golden::{Close, FAMILIES, fixture};
use mloc_burn::batch::{Batch, IGNORED};
use mloc_burn::formats::dataset::{Packing, Selection, TokenWriter, TokenizedExample};
use mloc_burn::loss::{self, LossSums, Targets};
use mloc_burn::model::parameter::host_values;
use mloc_burn::model::{Decoder, DecoderConfig, Gradients, Packed};
use mloc_burn::weights::SafetensorsSource;

/// Longer and shorter than the windows of 8, some of equal length, some not side by side.
const LENGTHS: [usize; 9] = [13, 4, 9, 9, 2, 20, 4, 7, 13];

fn model(family: &str) -> Decoder {
    let folder = fixture(&format!("models/{family}"));
    let config = DecoderConfig::from_folder(&folder).expect("config");
    let weights = SafetensorsSource::open_folder(&folder).expect("weights");
    let mut model = Decoder::load(config, &weights, &Device::flex()).expect("model");
    model.train_all();
    model
}

/// Rows of any tokens; a third of them are no targets.
fn examples() -> Vec<TokenizedExample> {
    let id = |row: usize, at: usize| ((row * 131 + at * 37) % 250) as u32;
    let example = |(row, length): (usize, &usize)| {
        let input_ids: Vec<u32> = (0..*length).map(|at| id(row, at)).collect();
        let learnt = |(at, id): (usize, &u32)| if (at + row) % 3 == 0 { IGNORED } else { i64::from(*id) };
        let labels = input_ids.iter().enumerate().map(learnt).collect();
        TokenizedExample { input_ids, labels }
    };
    LENGTHS.iter().enumerate().map(example).collect()
}

fn collated(examples: &[TokenizedExample]) -> Batch {
    Batch::collate(&examples.iter().map(TokenizedExample::row).collect::<Vec<_>>(), 0)
}

/// The same rows with their padding in front.
fn on_the_left(mut batch: Batch) -> Batch {
    for row in 0..batch.input_ids.len() {
        let padding = batch.attention_mask[row].iter().filter(|mask| **mask == 0).count();
        batch.input_ids[row].rotate_right(padding);
        batch.attention_mask[row].rotate_right(padding);
        batch.labels[row].rotate_right(padding);
    }
    batch
}

/// What all batches come to together.
fn pass(model: &Decoder, batches: &[Batch]) -> (LossSums, BTreeMap<String, Vec<f32>>) {
    let weight = 1.0 / batches.iter().map(Batch::num_targets).sum::<usize>() as f64;
    let (mut sums, mut gradients) = (LossSums::default(), Gradients::default());
    for batch in batches {
        let packed = Packed::new(batch, &model.config, model.device());
        let targets = Targets::of(batch, &packed);
        let (hidden, tape) = model.forward(&packed);
        let (some, d_hidden) = loss::backward(&hidden, model.head(), &targets, 0.0, weight, &mut gradients);
        model.backward(&packed, tape, d_hidden, &mut gradients);
        sums += some;
    }
    let values = gradients.iter().map(|(name, gradient)| (name.to_owned(), host_values(gradient.clone()))).collect();
    (sums, values)
}

#[test]
fn single_padded_and_packed_rows_give_the_same_losses_and_gradients() {
    let rows = examples();
    let folder = tempfile::tempdir().expect("folder");
    let mut writer = TokenWriter::create(folder.path()).expect("writer");
    rows.iter().for_each(|row| writer.push(row).expect("written"));
    let stored = Selection::of(Arc::new(writer.finish().expect("stored")));
    let (samples, cut) = stored.packed(Packing::BestFit, 24).expect("packed");
    assert!(cut == 0 && samples.len() < rows.len(), "{} samples", samples.len());
    let sequences: Vec<_> = (0..samples.len()).map(|sample| samples.read(sample).expect("sample")).collect();
    assert!(sequences.iter().any(|sample| sample.len() > 2), "nothing was packed");

    let ways = [
        ("right", vec![collated(&rows)]),
        ("left", vec![on_the_left(collated(&rows))]),
        ("packed", sequences.iter().map(|sample| collated(sample)).collect()),
        ("packed, all in one", vec![collated(&sequences.concat())]),
    ];
    for family in FAMILIES {
        let model = model(family);
        let single: Vec<Batch> = rows.iter().map(|row| collated(std::slice::from_ref(row))).collect();
        let (want, want_gradients) = pass(&model, &single);
        assert!(want.targets > 40 && want_gradients.len() > 15);
        for (way, batches) in &ways {
            let (found, gradients) = pass(&model, batches);
            assert_eq!(found.targets, want.targets, "{family} {way}");
            assert!((found.loss - want.loss).abs() <= 1e-6 * want.loss, "{family} {way}: {found:?}, not {want:?}");
            assert!((found.entropy - want.entropy).abs() <= 1e-6 * want.entropy, "{family} {way}");
            assert_eq!(gradients.len(), want_gradients.len());
            for (name, gradient) in &gradients {
                let close = Close { relative: 1e-4, absolute: 1e-6 };
                close.check(&format!("{family} {way} {name}"), gradient, &want_gradients[name]);
            }
        }
    }
}

#[test]
fn no_token_sees_one_of_another_row() {
    let rows = examples();
    for family in FAMILIES {
        let model = model(family);
        let logits = |rows: &[TokenizedExample]| {
            let packed = Packed::new(&collated(rows), &model.config, model.device());
            let values = host_values(model.logits(model.hidden(&packed)));
            let width = values.len() / packed.tokens();
            let of_row = |row: usize| {
                let mine = packed.slots.iter().enumerate().filter(move |(_, (of, _))| *of == row);
                mine.flat_map(|(at, _)| values[at * width..(at + 1) * width].to_vec()).collect::<Vec<f32>>()
            };
            (0..rows.len()).map(of_row).collect::<Vec<_>>()
        };
        let before = logits(&rows);
        let mut changed = rows.clone();
        changed[3].input_ids.iter_mut().for_each(|id| *id = (*id + 7) % 250);
        let after = logits(&changed);
        for (row, (before, after)) in before.iter().zip(&after).enumerate() {
            assert_eq!(before == after, row != 3, "{family}: row {row}");
        }
    }
}
