//! A named tensor of a model, and gradients by name.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::processor::{self, sum};
use crate::spent::{self, Work};

/// A weight. Vectors (norms, biases) are held as one row, `[1, n]`, so that everything is a matrix.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Hugging Face's name, with `.weight` or `.bias`.
    pub name: String,
    /// The shape in files: `[out, in]`, or `[n]` for vectors.
    pub shape: Vec<usize>,
    /// The value.
    pub value: Tensor<2>,
    /// Whether a backward pass computes its gradient and the optimizer moves it.
    pub trainable: bool,
}

impl Parameter {
    /// A parameter from row-major values; `shape` has one or two dimensions and as many elements as `values`.
    pub fn new(name: String, shape: &[usize], values: Vec<f32>, device: &Device) -> Self {
        Self { value: matrix(values, shape, device), name, shape: shape.to_vec(), trainable: false }
    }

    /// How many elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The values, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        host_values(self.value.clone())
    }

    /// Whether no value is infinite or no number.
    pub fn is_finite(&self) -> bool {
        // 0 times anything finite is 0. A row at a time: see [`Gradients::norms`].
        host_values(self.value.clone().mul_scalar(0.0).sum_dim(1)).iter().all(|sum| *sum == 0.0)
    }
}

/// Anything made of named parameters: what a [`Trainer`](crate::train::Trainer) trains, saves and loads. Names are each
/// there once; two models side by side need names that tell them apart.
pub trait Parameters: Send + Sync {
    /// All of them, in a fixed order.
    fn parameters(&self) -> impl Iterator<Item = &Parameter>;

    /// The same, to be changed.
    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter>;

    /// Elements of all weights, those included that are held in so few bits that they are no parameters.
    fn count(&self) -> usize {
        self.parameters().map(Parameter::count).sum()
    }

    /// The same model on a device, with all that it computes with there. On the device where it is, the two share their
    /// values until one of them changes.
    #[must_use]
    fn on_device(&self, device: &Device) -> Self
    where
        Self: Sized;
}

/// Row-major values as a matrix; a vector becomes one row.
pub fn matrix(values: Vec<f32>, shape: &[usize], device: &Device) -> Tensor<2> {
    let dims = match *shape {
        [rows, columns] => [rows, columns],
        _ => [1, values.len()],
    };
    Tensor::from_data(TensorData::new(values, dims), device)
}

/// A tensor's values on the host, row-major.
pub fn host_values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data();
    // An element at a time costs ten times as much.
    match data.as_slice::<f32>() {
        Ok(values) => values.to_vec(),
        Err(_) => data.iter::<f32>().collect(),
    }
}

/// A tensor on a device, in its own format; moved there through the host's memory, which every pair of devices can do.
pub fn on_device<const D: usize>(tensor: &Tensor<D>, device: &Device) -> Tensor<D> {
    match tensor.device() == *device {
        true => tensor.clone(),
        false => Tensor::from_data(tensor.clone().into_data(), (device, tensor.dtype())),
    }
}

/// As [`host_values`] of a tensor that is given away: its own memory, where it is on the host and nobody else's.
pub fn into_values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data();
    match data.dtype() {
        // Fails for formats that are none of f32.
        DType::F32 => data.try_into_vec::<f32>().unwrap_or_default(),
        _ => data.iter::<f32>().collect(),
    }
}

/// Gradients by parameter name, summed over backward passes.
#[derive(Debug, Default)]
pub struct Gradients {
    by_name: BTreeMap<String, Tensor<2>>,
    /// What is to be added up elsewhere, in the order in which it came; `None` = it is added up here.
    apart: Option<Vec<(String, Tensor<2>)>>,
}

impl Gradients {
    /// Ones that are kept apart, to be added to others with the same bits as if they had been added there at once: sums of
    /// floats depend on their order.
    pub fn apart() -> Self {
        Self { apart: Some(Vec::new()), ..Self::default() }
    }

    /// What was added to [`Self::apart`] ones, in that order; nothing of others.
    pub fn into_addends(self) -> Vec<(String, Tensor<2>)> {
        self.apart.unwrap_or_default()
    }

    /// Adds to what is already there for `name`.
    pub fn add(&mut self, name: &str, gradient: Tensor<2>) {
        if let Some(apart) = &mut self.apart {
            apart.push((name.to_owned(), gradient));
            return;
        }
        // Removed rather than cloned: the sum then reuses the buffer.
        let sum = match self.by_name.remove(name) {
            Some(before) => sum(before, gradient),
            None => gradient,
        };
        self.by_name.insert(name.to_owned(), sum);
    }

    /// Adds each of `rows` to the row of a table of these dimensions that its id names: the gradient of a look-up.
    pub fn add_rows(&mut self, name: &str, dims: [usize; 2], ids: &Tensor<1, Int>, rows: Tensor<2>) {
        let zeros = || Tensor::zeros(dims, &rows.device());
        if self.apart.is_some() || !processor::take([&rows]) {
            let scattered = zeros().select_assign(0, ids.clone(), rows, IndexingUpdateOp::Add);
            return self.add(name, scattered);
        }
        // A few rows of a large table that may be there already, as where it is the head's too: no second one is made.
        let table = self.by_name.remove(name).unwrap_or_else(zeros);
        let ids: Vec<i64> = ids.clone().into_data().iter::<i64>().collect();
        let table = spent::on(Work::Sums, || processor::sums::add_rows(table, &ids, rows));
        self.by_name.insert(name.to_owned(), table);
    }

    /// The gradient of one parameter, if a backward pass reached it.
    pub fn get(&self, name: &str) -> Option<&Tensor<2>> {
        self.by_name.get(name)
    }

    /// Takes the gradient of one parameter out.
    pub fn take(&mut self, name: &str) -> Option<Tensor<2>> {
        self.by_name.remove(name)
    }

    /// All gradients, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<2>)> {
        self.by_name.iter().map(|(name, g)| (name.as_str(), g))
    }

    /// The L2 norm of each gradient, in the order of names. The squares of a row are summed in f32 and the rows' sums in
    /// f64, both in a fixed order.
    pub fn norms(&self) -> Vec<(String, f64)> {
        // Not one `sum` over everything: from 4 Mi elements on the CPU's adds up in whatever order its threads take
        // parts from one another, and training would not give the same bits twice.
        let rows: Vec<usize> = self.by_name.values().map(|g| g.dims()[0]).collect();
        let squares = match self.by_name.values().all(|g| processor::take([g])) {
            true => self.by_name.values().flat_map(processor::sums::squares_of_rows).collect(),
            // One read-back for all of them: each would be a synchronisation on a GPU.
            false => {
                let by_row = |g: &Tensor<2>| g.clone().square().sum_dim(1);
                host_values(Tensor::cat(self.by_name.values().map(by_row).collect(), 0))
            }
        };
        let mut rest = squares.as_slice();
        let mut next = |rows: usize| {
            let (own, others) = rest.split_at(rows);
            rest = others;
            own.iter().map(|s| f64::from(*s)).sum::<f64>().sqrt()
        };
        self.by_name.keys().zip(rows).map(|(name, rows)| (name.clone(), next(rows))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_of_large_gradients_do_not_depend_on_who_adds_them_up() {
        // 6 Mi elements of many magnitudes, and a vector, which is one row.
        let value = |i: u32| (i.wrapping_mul(2_654_435_761) as f32).sin() * f32::from((i % 61) as u16);
        let values: Vec<f32> = (0..6 << 20).map(value).collect();
        let wanted = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let device = Device::flex();
        let mut gradients = Gradients::default();
        gradients.add("matrix", matrix(values, &[2048, 3072], &device));
        gradients.add("vector", matrix(vec![3.0, 4.0], &[2], &device));
        let with_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| gradients.norms())
        };
        let first = with_threads(1);
        assert!((first[0].1 / wanted - 1.0).abs() < 1e-6, "{first:?}, expected {wanted}");
        assert_eq!(first[1], ("vector".to_owned(), 5.0));
        for threads in [2, 3, 5, 8] {
            assert_eq!(with_threads(threads), first, "{threads} threads");
        }
    }
}
