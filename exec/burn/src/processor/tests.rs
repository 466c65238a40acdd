//! The loops against the same operations as plain tensors.

use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use super::*;
use crate::model::packed::{HIDDEN, int_tensor};
use crate::model::parameter::{host_values, matrix};
use crate::random::Random;

/// Rows of one element, of a part of a vector, of more than a thread takes together.
const SIZES: [[usize; 2]; 5] = [[1, 1], [3, 7], [5, 64], [40, 576], [70, 1000]];

fn drawn(random: &mut Random, dims: [usize; 2]) -> Tensor<2> {
    matrix((0..dims[0] * dims[1]).map(|_| random.normal()).collect(), &dims, &Device::flex())
}

#[track_caller]
fn check<const D: usize>(found: Tensor<D>, wanted: Tensor<D>, what: &str) {
    assert_eq!(found.dims(), wanted.dims(), "{what}");
    for (at, (found, wanted)) in host_values(found).into_iter().zip(host_values(wanted)).enumerate() {
        assert!((found - wanted).abs() <= 3e-6 * (1.0 + wanted.abs()), "{what}, {at}: {found}, expected {wanted}");
    }
}

#[test]
fn norms() {
    let mut random = Random::new(1);
    for dims in SIZES {
        let what = format!("{dims:?}");
        let [x, dy, beside] = std::array::from_fn(|_| drawn(&mut random, dims));
        let gain = drawn(&mut random, [1, dims[1]]);
        let (y, reciprocal) = norm::rms_norm(&x, gain.clone(), 1e-5);
        let wanted = x.clone().square().mean_dim(1).add_scalar(1e-5).sqrt().recip();
        check(reciprocal.clone(), wanted, &what);
        let normal = x.clone() * reciprocal.clone();
        check(y.clone(), normal.clone() * gain.clone(), &what);
        assert_eq!(host_values(norm::again(&x, gain.clone(), &reciprocal)), host_values(y), "{what}");
        let d_weight = norm::rms_norm_backward_weight(&x, &reciprocal, &dy);
        check(d_weight, (dy.clone() * normal.clone()).sum_dim(0), &what);
        let g = dy.clone() * gain.clone();
        let along = (g.clone() * normal.clone()).mean_dim(1);
        let wanted = (g - normal * along) * reciprocal.clone() + beside.clone();
        let kept = host_values(dy.clone());
        check(norm::rms_norm_backward(x, gain, reciprocal, dy.clone(), Some(beside)), wanted, &what);
        assert_eq!(host_values(dy), kept, "what somebody else has stays as it is");
    }
}

#[test]
fn rotations_and_back() {
    let mut random = Random::new(2);
    for (tokens, heads, half) in [(1, 1, 1), (7, 3, 5), (90, 4, 32)] {
        let x = drawn(&mut random, [tokens, heads * 2 * half]);
        let [cos, sin] = std::array::from_fn(|_| drawn(&mut random, [tokens, half]).reshape([tokens, 1, half]));
        let parts = x.clone().reshape([tokens, heads, 2 * half]);
        let (first, second) = (parts.clone().narrow(2, 0, half), parts.narrow(2, half, half));
        for back in [false, true] {
            let sin = if back { sin.clone().neg() } else { sin.clone() };
            let turned = vec![
                first.clone() * cos.clone() - second.clone() * sin.clone(),
                second.clone() * cos.clone() + first.clone() * sin.clone(),
            ];
            let wanted = Tensor::cat(turned, 2).reshape([tokens, heads * 2 * half]);
            let sin = if back { sin.neg() } else { sin };
            check(rotation::rotate(x.clone(), &cos, &sin, back), wanted, &format!("{tokens} {heads} {half} {back}"));
        }
    }
}

#[test]
fn gates() {
    let mut random = Random::new(3);
    for dims in SIZES {
        let what = format!("{dims:?}");
        let gate = drawn(&mut random, dims).mul_scalar(6.0);
        let [up, dy] = std::array::from_fn(|_| drawn(&mut random, dims));
        let s = sigmoid(gate.clone());
        let silu = s.clone() * gate.clone();
        check(gate::swiglu(&gate, &up), silu.clone() * up.clone(), &what);
        let slope = s.clone() + silu.clone() - silu.clone() * s;
        let wanted = (dy.clone() * up.clone() * slope, dy.clone() * silu);
        let (d_gate, d_up) = gate::swiglu_backward(gate, up, dy);
        check(d_gate, wanted.0, &what);
        check(d_up, wanted.1, &what);
    }
}

/// 0 where a query looks, of the last `queries` of so many keys.
fn mask(queries: usize, keys: usize, window: Option<usize>, shared: usize) -> Tensor<4> {
    let row = |query: usize| {
        let last = keys - queries + query;
        let first = window.map_or(0, |window| (last + 1).saturating_sub(window));
        (0..keys).map(move |key| if (first..=last).contains(&key) { 0.0 } else { HIDDEN })
    };
    let values: Vec<f32> = (0..shared * queries).flat_map(|at| row(at % queries)).collect();
    made(values, [1, 1, shared * queries, keys])
}

#[test]
fn probabilities_of_what_is_seen_and_their_slopes() {
    let mut random = Random::new(4);
    for (texts, heads, shared, queries, keys) in [(1, 1, 1, 1, 1), (2, 3, 2, 5, 9), (3, 2, 3, 37, 37)] {
        let rows = shared * queries;
        let mut scores = || drawn(&mut random, [texts * heads * rows, keys]).reshape([texts, heads, rows, keys]);
        let of_all = mask(queries, keys, None, shared);
        let of_each = Tensor::cat(vec![of_all.clone(); texts], 0);
        for mask in [None, Some(of_all), Some(mask(queries, keys, Some(4), shared)), Some(of_each)] {
            let (before, d) = (scores().mul_scalar(4.0), scores());
            let what = format!("{texts} {heads} {shared} {queries} {keys} {:?}", mask.as_ref().map(Tensor::dims));
            let masked = mask.iter().fold(before.clone(), |scores, mask| scores + mask.clone());
            let wanted = softmax(masked, 3);
            let found = attention::softmax(before, mask.as_ref());
            check(found.clone(), wanted.clone(), &what);
            let inner = (d.clone() * wanted.clone()).sum_dim(3);
            let slopes = (d.clone() - inner.clone()) * wanted;
            check(attention::softmax_backward(d, &found, inner), slopes, &what);
        }
    }
    let [a, b] = std::array::from_fn(|_| drawn(&mut random, [50, 3 * 64]));
    let wanted = (a.clone() * b.clone()).reshape([50, 3, 64]).sum_dim(2).reshape([50, 3]);
    let found = attention::inner_products(&a, &b, 64);
    for (found, wanted) in host_values(found).into_iter().zip(host_values(wanted)) {
        assert!((found - wanted).abs() < 1e-4, "{found}, expected {wanted}");
    }
}

#[test]
fn sums_of_tensors_rows_and_squares() {
    let mut random = Random::new(5);
    for dims in SIZES {
        let [a, b] = std::array::from_fn(|_| drawn(&mut random, dims));
        let wanted = host_values(a.clone() + b.clone());
        // Of memory that is somebody else's, the first's own, the second's own.
        assert_eq!(host_values(sum(a.clone(), b.clone())), wanted, "{dims:?}");
        assert_eq!(host_values(sum(a.clone().add_scalar(0.0), b.clone())), wanted, "{dims:?}");
        assert_eq!(host_values(sum(a.clone(), b.clone().add_scalar(0.0))), wanted, "{dims:?}");
        let squares = sums::squares_of_rows(&a);
        check(matrix(squares, &[dims[0], 1], &Device::flex()), a.clone().square().sum_dim(1), &format!("{dims:?}"));

        let ids: Vec<i64> = (0..dims[0]).map(|row| (row * row % 7) as i64).collect();
        let table = drawn(&mut random, [7, dims[1]]);
        let at: Tensor<1, Int> = int_tensor(ids.clone(), &Device::flex());
        let scattered =
            Tensor::zeros([7, dims[1]], &Device::flex()).select_assign(0, at, b.clone(), IndexingUpdateOp::Add);
        let wanted = host_values(table.clone() + scattered);
        assert_eq!(host_values(sums::add_rows(table, &ids, b)), wanted, "to the bit: {dims:?}");
    }
}
