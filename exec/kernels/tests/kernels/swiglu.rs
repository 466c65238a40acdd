use mloc_kernels::swiglu::{backward, forward};

use crate::device::{compare, each};
use crate::gradient::differences;

fn host(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

#[test]
fn the_gate_and_its_gradients() {
    for mut device in each("swiglu") {
        for count in [1, 2, 7, 30, 256, 1000, 4096, 5001] {
            let [gate, up, dy] = [(); 3].map(|()| device.values(count).iter().map(|v| v * 4.0).collect::<Vec<_>>());
            let [gate_at, up_at, dy_at] = [&gate, &up, &dy].map(|values| device.put(values));
            let [y_at, d_gate_at, d_up_at] = [(); 3].map(|()| device.room(count));
            forward(device.client(), &gate_at, &up_at, &y_at, device.dtype);
            backward(device.client(), &gate_at, &up_at, &dy_at, &d_gate_at, &d_up_at, device.dtype);
            let what = format!("{count} of {:?}", device.dtype);
            device.compare(&what, &device.get(&y_at), &host(&gate, &up), 1);
            // An element depends on its own pair alone: one sum has all gradients.
            let loss = |gate: &[f64], up: &[f64]| host(gate, up).iter().zip(&dy).map(|(y, d)| y * d).sum::<f64>();
            if count <= 256 {
                let tolerance = if device.dtype.size() == 2 { 2e-3 } else { 2e-5 };
                compare(&what, &device.get(&d_gate_at), &differences(&gate, |g| loss(g, &up)), tolerance);
                compare(&what, &device.get(&d_up_at), &differences(&up, |u| loss(&gate, u)), tolerance);
            }
            let (mut d_gate, mut d_up) = (Vec::new(), Vec::new());
            for ((g, u), d) in gate.iter().zip(&up).zip(&dy) {
                let s = 1.0 / (1.0 + (-g).exp());
                d_up.push(d * g * s);
                d_gate.push(d * u * (s + g * s * (1.0 - s)));
            }
            device.compare(&what, &device.get(&d_gate_at), &d_gate, 1);
            device.compare(&what, &device.get(&d_up_at), &d_up, 1);
        }
    }
}
