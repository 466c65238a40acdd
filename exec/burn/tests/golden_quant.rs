//! 4-bit weights against bitsandbytes.

mod golden;

use burn::tensor::Device;
use golden::{Close, Expected, fixture};
use mloc_burn::model::parameter::{host_values, matrix};
use mloc_burn::quant::{FourBitMatrix, FourBitSettings, QuantType};
use safetensors::SafeTensors;

#[test]
fn codes_values_and_products_are_those_of_bitsandbytes() {
    let folder = fixture("quant");
    let file = folder.join("tensors.safetensors");
    let bytes = std::fs::read(&file).expect("fixture");
    let stored = SafeTensors::deserialize(&bytes).expect("safetensors");
    let floats = |name: &str| -> Vec<f32> {
        let view = stored.tensor(name).expect(name);
        view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let device = Device::flex();
    let weight = floats("weight");
    let expected = Expected::open(&folder.join("expected.json"));
    for case in expected.value("/cases").as_array().expect("cases") {
        let key = case["key"].as_str().expect("key");
        let quant_type = match case["quant_type"].as_str() {
            Some("nf4") => QuantType::Nf4,
            _ => QuantType::Fp4,
        };
        let block_size = case["blocksize"].as_u64().expect("block size") as usize;
        let settings = FourBitSettings { quant_type, block_size, double_quant: false };
        let found = FourBitMatrix::quantize(&weight, [48, 128], settings, &device);

        let packed = stored.tensor(&format!("{key}.packed")).expect("packed").data();
        let content = found.content();
        assert_eq!(&content[..packed.len()], packed, "{key}: codes");
        let scales: Vec<u8> = floats(&format!("{key}.absmax")).iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(&content[packed.len()..], scales, "{key}: scales");
        Close::absolute(1e-7).check(key, &found.to_vec(), &floats(&format!("{key}.dequantized")));
        let x = matrix(floats("x"), &[5, 128], &device);
        let product = host_values(x.matmul(found.dequantize().transpose()));
        Close::default().check(key, &product, &floats(&format!("{key}.matmul")));

        // Double quantisation moves the values by no more than the scales' own error.
        let doubled = FourBitSettings { double_quant: true, ..settings };
        let doubled = FourBitMatrix::quantize(&weight, [48, 128], doubled, &device);
        assert_eq!(doubled.content()[..packed.len()], *packed, "{key}: the codes are of the exact scales");
        assert!(doubled.bytes() < found.bytes());
        let largest = weight.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
        Close::absolute(0.02 * largest).check(key, &doubled.to_vec(), &floats(&format!("{key}.dequantized")));
    }
}

#[test]
fn scales_in_eight_bits_are_those_of_bitsandbytes() {
    let expected = Expected::open(&fixture("quant/double_quant.json"));
    let floats = |at: &str| -> Vec<f32> { serde_json::from_value(expected.value(at).clone()).expect(at) };
    let absmax = floats("/absmax");
    // Each scale is the largest of a block of its own: one element of that size among zeros.
    let mut weight = vec![0.0; 32 * absmax.len()];
    for (block, scale) in absmax.iter().enumerate() {
        weight[32 * block] = *scale;
    }
    let settings = FourBitSettings { quant_type: QuantType::Nf4, block_size: 32, double_quant: true };
    let found = FourBitMatrix::quantize(&weight, [absmax.len(), 32], settings, &Device::flex());
    let content = found.content();
    let codes: Vec<u8> = serde_json::from_value(expected.value("/codes").clone()).expect("codes");
    let mine = &content[content.len() - codes.len()..];
    let restored: Vec<f32> = found.to_vec().into_iter().step_by(32).collect();
    // That library's search on the processor takes, rarely, the second nearest of two levels that are as good as equally
    // far; its other kernels take the nearest.
    let (same, others): (Vec<usize>, Vec<usize>) = (0..codes.len()).partition(|i| mine[*i] == codes[*i]);
    assert!(others.len() <= 3 && others.iter().all(|i| mine[*i].abs_diff(codes[*i]) == 1), "{mine:?}\n{codes:?}");
    let of = |values: &[f32]| same.iter().map(|i| values[*i]).collect::<Vec<_>>();
    Close::absolute(1e-6).check("restored scales", &of(&restored), &of(&floats("/restored")));
}
