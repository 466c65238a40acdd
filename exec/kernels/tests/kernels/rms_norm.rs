use mloc_kernels::rms_norm::{Rows, backward, backward_weight, forward};

use crate::device::{compare, each};
use crate::gradient::differences;

const EPS: f64 = 1e-5;

fn host_forward(x: &[f64], weight: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let mut reciprocals = Vec::new();
    let mut y = Vec::new();
    for row in x.chunks(weight.len()) {
        let r = (row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64 + EPS).sqrt().recip();
        reciprocals.push(r);
        y.extend(row.iter().zip(weight).map(|(x, w)| x * r * w));
    }
    (y, reciprocals)
}

#[test]
fn forward_and_backward_are_the_plain_ones() {
    for mut device in each("rms_norm") {
        for case in 0..14 {
            let rows = device.pick(1, if case < 5 { 70 } else { 9 });
            let width = [1, 3, 64, 96, 128, 576, 1000, 2050, 4096][case % 9];
            let shape = Rows { rows, width, dtype: device.dtype };
            let what = format!("{shape:?}");
            let (x, weight, dy) = (device.values(rows * width), device.values(width), device.values(rows * width));
            let on_device = [&x, &weight, &dy].map(|values| device.put(values));
            let [x_at, weight_at, dy_at] = &on_device;
            let (y_at, dx_at) = (device.room(rows * width), device.room(rows * width));
            let (r_at, dw_at) = (device.room_f32(rows), device.room_f32(width));
            forward(device.client(), x_at, weight_at, &y_at, &r_at, EPS as f32, shape);
            backward(device.client(), x_at, weight_at, &r_at, dy_at, &dx_at, shape);
            backward_weight(device.client(), x_at, &r_at, dy_at, &dw_at, shape);

            let (y, r) = host_forward(&x, &weight);
            device.compare(&what, &device.get(&y_at), &y, width);
            device.compare(&what, &device.get_f32(&r_at), &r, width);
            let mut dx = Vec::new();
            let mut dw = vec![0.0; width];
            for (row, r) in r.iter().enumerate() {
                let range = row * width..(row + 1) * width;
                let normal: Vec<f64> = x[range.clone()].iter().map(|x| x * r).collect();
                let g: Vec<f64> = dy[range.clone()].iter().zip(&weight).map(|(d, w)| d * w).collect();
                let along = g.iter().zip(&normal).map(|(g, n)| g * n).sum::<f64>() / width as f64;
                dx.extend(g.iter().zip(&normal).map(|(g, n)| r * (g - n * along)));
                for ((dw, d), n) in dw.iter_mut().zip(&dy[range]).zip(&normal) {
                    *dw += d * n;
                }
            }
            // A row of one element is its own mean: what remains of its gradient is rounding.
            device.compare(&what, &device.get(&dx_at), &dx, width.max(if width == 1 { 10_000 } else { 1 }));
            device.compare(&what, &device.get_f32(&dw_at), &dw, rows * 4);
        }
    }
}

#[test]
fn the_gradients_are_those_of_finite_differences() {
    for mut device in each("rms_norm gradients") {
        let (rows, width) = (3, 20);
        let shape = Rows { rows, width, dtype: device.dtype };
        let (x, weight, dy) = (device.values(rows * width), device.values(width), device.values(rows * width));
        let (x_at, weight_at, dy_at) = (device.put(&x), device.put(&weight), device.put(&dy));
        let (y_at, dx_at) = (device.room(rows * width), device.room(rows * width));
        let (r_at, dw_at) = (device.room_f32(rows), device.room_f32(width));
        forward(device.client(), &x_at, &weight_at, &y_at, &r_at, EPS as f32, shape);
        backward(device.client(), &x_at, &weight_at, &r_at, &dy_at, &dx_at, shape);
        backward_weight(device.client(), &x_at, &r_at, &dy_at, &dw_at, shape);
        let loss = |x: &[f64], w: &[f64]| host_forward(x, w).0.iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>();
        let tolerance = if device.dtype.size() == 2 { 2e-3 } else { 2e-5 };
        compare("dx", &device.get(&dx_at), &differences(&x, |x| loss(x, &weight)), tolerance);
        compare("d_weight", &device.get_f32(&dw_at), &differences(&weight, |w| loss(&x, w)), tolerance);
    }
}
