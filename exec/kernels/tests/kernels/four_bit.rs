use mloc_kernels::four_bit::{MOST_ROWS, Matrix, Scales, product, unpack};

use crate::device::{Device, each};

/// Any 16 values would do.
fn levels() -> Vec<f64> {
    (0..16).map(|code| f64::from((f64::from(code) * 0.61).sin() as f32)).collect()
}

/// A matrix of random codes, with its values.
fn matrix(device: &mut Device, outputs: usize, inputs: usize, block: usize, double: bool) -> (Matrix, Vec<f64>) {
    let count = outputs * inputs;
    let bytes: Vec<u8> = (0..count / 2).map(|_| device.pick(0, 255) as u8).collect();
    let blocks = count.div_ceil(block);
    let levels = levels();
    let (scales, of_block): (Scales, Vec<f64>) = if double {
        let mut codes: Vec<u8> = (0..blocks).map(|_| device.pick(0, 255) as u8).collect();
        let map: Vec<f64> = (0..256).map(|code| f64::from(code) / 128.0 - 1.0).collect();
        let of_codes: Vec<f64> = (0..blocks.div_ceil(256)).map(|i| 0.25 + i as f64).collect();
        let offset = 0.75;
        let each = codes.iter().enumerate().map(|(i, code)| map[usize::from(*code)] * of_codes[i / 256] + offset);
        let each = each.collect();
        codes.resize(blocks.next_multiple_of(4), 0);
        let scales = Scales::Double {
            codes: device.put_words(&words(&codes)),
            map: device.put_f32(&map),
            scales: device.put_f32(&of_codes),
            offset: offset as f32,
        };
        (scales, each)
    } else {
        let each: Vec<f64> = (0..blocks).map(|i| 0.5 + (i % 7) as f64).collect();
        (Scales::Plain(device.put_f32(&each)), each)
    };
    let values = (0..count).map(|i| {
        let code = if i % 2 == 0 { bytes[i / 2] >> 4 } else { bytes[i / 2] & 15 };
        levels[usize::from(code)] * of_block[i / block]
    });
    let values = values.collect();
    let packed = device.put_words(&words(&bytes));
    (Matrix { outputs, inputs, block, packed, levels: device.put_f32(&levels), scales }, values)
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
}

#[test]
fn codes_become_values_and_products() {
    for mut device in each("four_bit") {
        for case in 0..12 {
            let outputs = device.pick(1, 70);
            let inputs = 8 * [1, 3, 8, 20, 72, 192][case % 6];
            let block = device.one_of(&[32, 64, 128]);
            let (matrix, values) = matrix(&mut device, outputs, inputs, block, case % 2 == 0);
            let what = format!("{outputs} × {inputs} in blocks of {block}");
            let room = device.room(outputs * inputs);
            unpack(device.client(), &matrix, &room, device.dtype);
            device.compare(&what, &device.get(&room), &values, 1);

            let rows = 1 + case % MOST_ROWS;
            let x = device.values(rows * inputs);
            let (x_at, y_at) = (device.put(&x), device.room(rows * outputs));
            product(device.client(), &x_at, &matrix, &y_at, rows, device.dtype);
            let mut y = Vec::new();
            for row in x.chunks(inputs) {
                y.extend(values.chunks(inputs).map(|w| row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()));
            }
            device.compare(&what, &device.get(&y_at), &y, inputs * 16);
        }
    }
}
