//! The layer against a dense one in f64, written from PEFT's formula; its gradients against finite differences of that.

use super::*;
use crate::batch::Batch;
use crate::model::linear::Linear;
use crate::model::parameter::host_values;
use crate::model::{DecoderConfig, Held};
use crate::quant::{FourBitSettings, QuantType};

const TOKENS: usize = 5;
const IN: usize = 32;
const OUT: usize = 6;
const R: usize = 3;
const SCALE: f64 = 0.7;

/// A layer with a random adapter, its input and the gradient at its output.
struct Case {
    layer: Linear,
    packed: Packed,
    x: Vec<f64>,
    dy: Vec<f64>,
}

fn randoms(seed: u64, count: usize, deviation: f32) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| deviation * random.normal()).collect()
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

impl Case {
    fn new(held: Held, dora: bool, dropout: f32) -> Self {
        let device = Device::flex();
        let weight = Weight::new("m.q_proj.weight".into(), [OUT, IN], randoms(1, OUT * IN, 0.3), held, &device);
        let parameter = |name: &str, shape: &[usize], seed| Parameter {
            trainable: true,
            ..Parameter::new(name.into(), shape, randoms(seed, shape.iter().product(), 0.4), &device)
        };
        let dora = dora.then(|| {
            let mut dora = Dora::new("magnitude".into(), &weight);
            dora.magnitude.value = dora.magnitude.value.clone() * parameter("", &[OUT], 7).value.add_scalar(1.0);
            dora
        });
        let lora = LoraPair {
            a: parameter("a", &[R, IN], 2),
            b: parameter("b", &[OUT, R], 3),
            scale: SCALE as f32,
            dropout,
            dora,
        };
        let bias = Parameter::new("m.q_proj.bias".into(), &[OUT], randoms(4, OUT, 1.0), &device);
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2
        });
        let config = DecoderConfig::from_json(config).expect("config");
        let mut packed = Packed::new(&Batch::single(&[1; TOKENS]), &config, &device);
        packed.dropout_seed = Some(11);
        Self {
            layer: Linear { lora: Some(lora), ..Linear::new(weight, Some(bias)) },
            packed,
            x: widened(&randoms(5, TOKENS * IN, 1.0)),
            dy: widened(&randoms(6, TOKENS * OUT, 1.0)),
        }
    }

    fn lora(&self) -> &LoraPair {
        self.layer.lora.as_ref().expect("an adapter")
    }

    fn tensor(values: &[f64], columns: usize) -> Tensor<2> {
        let narrow: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let shape = [values.len() / columns, columns];
        matrix(narrow, &shape, &Device::flex())
    }

    /// Everything that the output depends on, in f64: x, a, b and, with DoRA, m.
    fn inputs(&self) -> Vec<Vec<f64>> {
        let lora = self.lora();
        let magnitude = lora.dora.as_ref().map(|dora| widened(&dora.magnitude.to_vec()));
        let factors = [self.x.clone(), widened(&lora.a.to_vec()), widened(&lora.b.to_vec())];
        factors.into_iter().chain(magnitude).collect()
    }

    /// Norms of the rows of the dense W + s·B·A.
    fn dense_norms(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let w = widened(&host_values(self.layer.weight.matrix_f32()));
        let (a, b) = (&inputs[1], &inputs[2]);
        let element =
            |o: usize, i: usize| w[o * IN + i] + SCALE * (0..R).map(|k| b[o * R + k] * a[k * IN + i]).sum::<f64>();
        (0..OUT).map(|o| (0..IN).map(|i| element(o, i).powi(2)).sum::<f64>().sqrt()).collect()
    }

    /// The output as PEFT writes it down, with the norms given.
    fn dense(&self, inputs: &[Vec<f64>], norms: &[f64]) -> Vec<f64> {
        let w = widened(&host_values(self.layer.weight.matrix_f32()));
        let bias = widened(&self.layer.bias.as_ref().expect("bias").to_vec());
        let (x, a, b) = (&inputs[0], &inputs[1], &inputs[2]);
        let mask = self.lora().mask(&Self::tensor(x, IN), &self.packed).map(|m| widened(&host_values(m)));
        let mut y = Vec::new();
        for t in 0..TOKENS {
            let dropped = |i: usize| x[t * IN + i] * mask.as_ref().map_or(1.0, |m| m[t * IN + i]);
            for o in 0..OUT {
                let plain: f64 = (0..IN).map(|i| x[t * IN + i] * w[o * IN + i]).sum();
                let base: f64 = (0..IN).map(|i| dropped(i) * w[o * IN + i]).sum();
                let low = |k: usize| (0..IN).map(|i| dropped(i) * a[k * IN + i]).sum::<f64>();
                let delta: f64 = SCALE * (0..R).map(|k| low(k) * b[o * R + k]).sum::<f64>();
                y.push(match inputs.get(3) {
                    None => plain + bias[o] + delta,
                    Some(m) => {
                        let gain = m[o] / norms[o];
                        plain + bias[o] + (gain - 1.0) * base + gain * delta
                    }
                });
            }
        }
        y
    }

    fn check(&self, what: &str) {
        let x = Self::tensor(&self.x, IN);
        let inputs = self.inputs();
        let norms = self.dense_norms(&inputs);
        close(
            &format!("{what}: output"),
            &host_values(self.layer.forward(&x, &self.packed)),
            &self.dense(&inputs, &norms),
        );

        let mut gradients = Gradients::default();
        let dy = Self::tensor(&self.dy, OUT);
        let dx = self.layer.backward(|| x.clone(), dy.clone(), &self.packed, &mut gradients);
        let names = ["x", "a", "b", "magnitude"];
        for (index, name) in names.iter().enumerate().take(inputs.len()) {
            let found = match index {
                0 => host_values(dx.clone()),
                _ => host_values(gradients.get(name).expect(name).clone()),
            };
            // The norms are constants: those of where we stand.
            let wanted: Vec<f64> = (0..inputs[index].len())
                .map(|element| {
                    const STEP: f64 = 1e-4;
                    let at = |offset: f64| {
                        let mut moved = inputs.clone();
                        moved[index][element] += offset;
                        self.dense(&moved, &norms).iter().zip(&self.dy).map(|(y, dy)| y * dy).sum::<f64>()
                    };
                    (at(STEP) - at(-STEP)) / (2.0 * STEP)
                })
                .collect();
            close(&format!("{what}: gradient of {name}"), &found, &wanted);
        }

        let mut alone = Gradients::default();
        self.layer.backward_parameters_only(|| x.clone(), &dy, &self.packed, &mut alone);
        for (name, gradient) in gradients.iter() {
            let same = host_values(alone.get(name).expect(name).clone()) == host_values(gradient.clone());
            assert!(same, "{what}: {name} differs where the input needs no gradient");
        }
    }
}

fn close(what: &str, found: &[f32], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let off = (f64::from(*found) - wanted).abs();
        assert!(off <= 2e-4 + 2e-4 * wanted.abs(), "{what}: element {i} is {found}, expected {wanted}");
    }
}

fn four_bit() -> Held {
    Held::FourBit(FourBitSettings { quant_type: QuantType::Nf4, block_size: 32, double_quant: true })
}

#[test]
fn outputs_and_gradients_are_those_of_the_dense_layer() {
    for (base, held) in [("f32", Held::F32), ("bf16", Held::Bf16), ("nf4", four_bit())] {
        for (kind, dora) in [("lora", false), ("dora", true)] {
            for dropout in [0.0, 0.4] {
                Case::new(held, dora, dropout).check(&format!("{kind} on {base}, dropout {dropout}"));
            }
        }
    }
}

#[test]
fn fresh_magnitudes_change_nothing() {
    for held in [Held::F32, four_bit()] {
        for dropout in [0.0, 0.4] {
            let mut case = Case::new(held, false, dropout);
            let lora = case.layer.lora.as_mut().expect("an adapter");
            lora.b.value = lora.b.value.clone().mul_scalar(0.0);
            let x = Case::tensor(&case.x, IN);
            let without = widened(&host_values(case.layer.forward(&x, &case.packed)));
            let magnitudes = Dora::new("magnitude".into(), &case.layer.weight);
            case.layer.lora.as_mut().expect("an adapter").dora = Some(magnitudes);
            close("fresh", &host_values(case.layer.forward(&x, &case.packed)), &without);
        }
    }
}

#[test]
fn a_merged_weight_does_what_the_layer_does_outside_training() {
    for held in [Held::F32, four_bit()] {
        for dora in [false, true] {
            let mut case = Case::new(held, dora, 0.4);
            case.packed.dropout_seed = None;
            let x = Case::tensor(&case.x, IN);
            let wanted = widened(&host_values(case.layer.forward(&x, &case.packed)));
            let bias = case.layer.bias.as_ref().expect("bias").value.clone();
            let merged = x.matmul(case.layer.merged().transpose()) + bias;
            close(&format!("{held:?} {dora}"), &host_values(merged), &wanted);
        }
    }
}
