use mloc_kernels::cross_entropy::{FIGURES, Logits, figures, gradient};

use crate::device::{compare, each};
use crate::gradient::differences;

fn host_figures(logits: &[f64], targets: &[u32]) -> Vec<f64> {
    let vocabulary = logits.len() / targets.len();
    let of = |(row, target): (&[f64], &u32)| {
        let top = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|l| (l - top).exp()).sum();
        let expected = row.iter().map(|l| l * (l - top).exp()).sum::<f64>() / sum;
        let mean = row.iter().sum::<f64>() / vocabulary as f64;
        [row[*target as usize], top + sum.ln(), top, expected, mean]
    };
    logits.chunks(vocabulary).zip(targets).flat_map(of).collect()
}

/// Σ weight · cross-entropy with smoothed labels.
fn host_loss(logits: &[f64], targets: &[u32], weights: &[f64], smoothing: f64) -> f64 {
    let of = |(row, weight): (&[f64], &f64)| {
        weight * ((1.0 - smoothing) * (row[1] - row[0]) + smoothing * (row[1] - row[4]))
    };
    host_figures(logits, targets).chunks(FIGURES).zip(weights).map(of).sum()
}

#[test]
fn figures_and_gradients_of_rows() {
    for mut device in each("cross_entropy") {
        for case in 0..14 {
            let vocabulary = [2, 5, 64, 1000, 1023, 5001, 32_000][case % 7];
            let shape = Logits { rows: device.pick(1, 4), vocabulary, dtype: device.dtype };
            // Logits of a model that is sure of itself, far from 0, come too.
            let (spread, far) = device.one_of(&[(1.0, 0.0), (10.0, 0.0), (4.0, -100.0), (4.0, 300.0)]);
            let half = device.dtype.size() == 2;
            let logits: Vec<f64> = device.values(shape.rows * vocabulary).iter().map(|v| v * spread + far).collect();
            // As the device holds them.
            let logits = if half {
                device.get(&device.put(&logits))
            } else {
                logits.iter().map(|v| f64::from(*v as f32)).collect()
            };
            let targets: Vec<u32> = (0..shape.rows).map(|_| device.pick(0, vocabulary - 1) as u32).collect();
            let weights: Vec<f64> = (0..shape.rows).map(|row| 0.5 + row as f64).collect();
            let smoothing = device.one_of(&[0.0, 0.1]);
            let what = format!("{shape:?} {spread} {far} {smoothing}");
            let (logits_at, targets_at) = (device.put(&logits), device.put_words(&targets));
            let (figures_at, weights_at) = (device.room_f32(shape.rows * FIGURES), device.put_f32(&weights));
            figures(device.client(), &logits_at, &targets_at, &figures_at, shape);
            let wanted = host_figures(&logits, &targets);
            compare(&what, &device.get_f32(&figures_at), &wanted, 1e-5);

            // In place.
            gradient(
                device.client(),
                &logits_at,
                &targets_at,
                &figures_at,
                &weights_at,
                &logits_at,
                smoothing as f32,
                shape,
            );
            let found = device.get(&logits_at);
            let mut expected = Vec::new();
            for (row, values) in logits.chunks(vocabulary).enumerate() {
                expected.extend(values.iter().enumerate().map(|(token, l)| {
                    let one = if token == targets[row] as usize { 1.0 - smoothing } else { 0.0 };
                    weights[row] * ((l - wanted[row * FIGURES + 1]).exp() - one - smoothing / vocabulary as f64)
                }));
            }
            // exp of a difference of logits in f32: as precise as the larger of them.
            compare(&what, &found, &expected, if half { 2e-3 } else { 3e-7 * (64.0 + far.abs()) });
            if vocabulary <= 64 {
                let by_differences = differences(&logits, |l| host_loss(l, &targets, &weights, smoothing));
                compare(&what, &found, &by_differences, if half { 2e-3 } else { 2e-4 });
            }
        }
    }
}
