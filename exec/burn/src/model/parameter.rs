//! A named tensor of a model, and gradients by name.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};

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

    /// The values, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        host_values(self.value.clone())
    }
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
    tensor.into_data().iter::<f32>().collect()
}

/// Gradients by parameter name, summed over backward passes.
#[derive(Debug, Default)]
pub struct Gradients {
    by_name: BTreeMap<String, Tensor<2>>,
}

impl Gradients {
    /// Adds to what is already there for `name`.
    pub fn add(&mut self, name: &str, gradient: Tensor<2>) {
        // Removed rather than cloned: the sum then reuses the buffer.
        let sum = match self.by_name.remove(name) {
            Some(before) => before + gradient,
            None => gradient,
        };
        self.by_name.insert(name.to_owned(), sum);
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

    /// The L2 norm of each gradient. Summed in f64 over f32 values, in the order of names.
    pub fn norms(&self) -> Vec<(String, f64)> {
        let squares = self.by_name.values().map(|g| g.clone().square().sum()).collect::<Vec<_>>();
        if squares.is_empty() {
            return Vec::new();
        }
        // One read-back for all of them: each would be a synchronisation on a GPU.
        let squares = host_values(Tensor::cat(squares, 0));
        self.by_name.keys().cloned().zip(squares.into_iter().map(|s| f64::from(s).sqrt())).collect()
    }
}
