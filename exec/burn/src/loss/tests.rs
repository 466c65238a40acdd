use burn::tensor::Device;

use super::*;
use crate::model::Parameter;
use crate::model::parameter::matrix;
use crate::random::Random;

fn drawn(random: &mut Random, dims: [usize; 2], spread: f32, around: f32) -> Tensor<2> {
    let values = (0..dims[0] * dims[1]).map(|_| around + spread * random.normal()).collect();
    matrix(values, &dims, &Device::flex())
}

fn close(found: &[f64], wanted: &[f64], within: f64, what: &str) {
    for (index, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        assert!((found - wanted).abs() <= within * (1.0 + wanted.abs()), "{what}, {index}: {found}, expected {wanted}");
    }
}

#[test]
fn single_passes_over_rows_give_what_plain_tensors_do() {
    let mut random = Random::new(6);
    for (rows, vocabulary) in [(1, 1), (3, 7), (4, 64), (5, 1031), (40, 2053)] {
        for (spread, around, softcap, smoothing) in
            [(1.0, 0.0, None, 0.0), (8.0, 0.0, None, 0.1), (3.0, 200.0, None, 0.0), (4.0, 0.0, Some(5.0), 0.1)]
        {
            let what = format!("{rows} × {vocabulary}, {spread} around {around}, cap {softcap:?}");
            let weight = Parameter::new("head".into(), &[1, 1], vec![1.0], &Device::flex());
            let head = Head { weight: &weight, softcap };
            let logits = drawn(&mut random, [rows, vocabulary], spread, around);
            let ids: Vec<i64> = (0..rows).map(|row| (row * 37 % vocabulary) as i64).collect();
            let weights: Vec<f32> = (0..rows).map(|row| 0.25 * row as f32 - 0.5).collect();
            let loss = Loss { weights: &weights, smoothing };

            let capped = head.capped(logits.clone());
            let wanted = plain::figures(&capped, &ids);
            let d_wanted = host_values(head.through_cap(&capped, plain::gradient(&capped, &ids, loss)));
            let looked = processor::cross_entropy::figures(&logits, &ids, softcap);
            let (figures, d) = processor::cross_entropy::gradient(logits.clone(), &ids, softcap, loss);
            assert_eq!(figures, looked, "{what}");
            for (found, wanted) in figures.iter().zip(&wanted) {
                let list = |f: &Figures| [f.target, f.log_partition, f.highest, f.expected, f.mean];
                // Plain sums of a row are in f32 from end to end.
                close(&list(found), &list(wanted), 1e-5, &what);
            }
            let list = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
            close(&list(host_values(d)), &list(d_wanted), 3e-6, &what);
        }
    }
}

#[test]
fn a_logit_that_is_no_number_is_no_loss_either() {
    let device = Device::flex();
    let logits = matrix(vec![0.5, f32::NAN, 1.0, 0.25], &[1, 4], &device);
    let figures = processor::cross_entropy::figures(&logits, &[0], None);
    assert!(figures[0].of_target().log_probability.is_nan(), "{figures:?}");
}

#[test]
fn chunks_are_one_batch() {
    // 300 targets of a vocabulary so large that a chunk has 128 of them.
    let (vocabulary, count, width) = (CHUNK_ELEMENTS / 128, 300, 2);
    let mut random = Random::new(1);
    let mut head = Parameter::new("head".into(), &[vocabulary, width], vec![0.0; vocabulary * width], &Device::flex());
    head.value = drawn(&mut random, [vocabulary, width], 1.0, 0.0);
    let hidden = drawn(&mut random, [count, width], 1.0, 0.0);
    let ids: Vec<i64> = (0..count).map(|row| (row * 7919 % vocabulary) as i64).collect();
    let targets = Targets { rows: (0..count as i64).collect(), ids };
    let (sums, d_hidden) = backward(&hidden, Head::plain(&head), &targets, 0.0, 1.0, &mut Gradients::default());
    assert_eq!((sums.targets, d_hidden.dims()), (count, [count, width]));
    let each = each(&hidden, Head::plain(&head), &targets);
    let loss: f64 = each.iter().map(|target| -target.log_probability).sum();
    assert!((sums.loss - loss).abs() < 1e-9 && each.len() == count);
}
