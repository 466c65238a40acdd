use mloc_kernels::rope::{Direction, Heads, rotate};

use crate::device::each;

fn host(x: &[f64], cos: &[f64], sin: &[f64], direction: Direction, scale: f64, shape: Heads) -> Vec<f64> {
    let half = shape.dim / 2;
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
    let mut y = Vec::new();
    for (head, values) in x.chunks(shape.dim).enumerate() {
        let row = head / shape.heads * half;
        let turned = |i: usize| {
            let (c, s) = (cos[row + i % half], sign * sin[row + i % half]);
            let other = if i < half { -values[i + half] } else { values[i - half] };
            scale * (values[i] * c + other * s)
        };
        y.extend((0..shape.dim).map(turned));
    }
    y
}

#[test]
fn heads_are_turned_and_turned_back() {
    for mut device in each("rope") {
        for case in 0..20 {
            let dim = [2, 6, 20, 64, 96, 128, 256][case % 7];
            let shape = Heads { tokens: device.pick(1, 40), heads: device.pick(1, 9), dim, dtype: device.dtype };
            let x = device.values(shape.tokens * shape.heads * dim);
            let angles: Vec<f64> = (0..shape.tokens * dim / 2).map(|i| i as f64 * 0.37).collect();
            let scale = device.one_of(&[1.0, 0.125, 1.375]);
            let cos: Vec<f64> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f64> = angles.iter().map(|a| a.sin()).collect();
            let (x_at, y_at) = (device.put(&x), device.room(x.len()));
            let (cos_at, sin_at) = (device.put_f32(&cos), device.put_f32(&sin));
            for direction in [Direction::Forward, Direction::Backward] {
                rotate(device.client(), &x_at, &cos_at, &sin_at, &y_at, direction, scale as f32, shape);
                let wanted = host(&x, &cos, &sin, direction, scale, shape);
                device.compare(&format!("{shape:?} {direction:?}"), &device.get(&y_at), &wanted, 2);
            }
            // In place, there and back: the same, by the scale's square. (Half is rounded on the way.)
            rotate(device.client(), &x_at, &cos_at, &sin_at, &x_at, Direction::Forward, scale as f32, shape);
            rotate(device.client(), &x_at, &cos_at, &sin_at, &x_at, Direction::Backward, scale as f32, shape);
            let scaled: Vec<f64> = x.iter().map(|v| v * scale * scale).collect();
            device.compare(
                &format!("{shape:?} in place"),
                &device.get(&x_at),
                &scaled,
                if device.dtype.size() == 2 { 1 << 20 } else { 4 },
            );
        }
    }
}
