//! Where a model's tensors come from: files, chance, or nowhere, when only their names and shapes are asked for.

use std::collections::BTreeMap;
use std::convert::Infallible;

use burn::tensor::Device;

use super::linear::Linear;
use super::parameter::Parameter;
use super::weight::{Held, Weight};
use crate::random::Random;
use crate::weights::{TensorSource, WeightsError};

/// Where the builder's tensors come from.
pub(super) trait Maker {
    /// Why there is none.
    type Error;
    /// A tensor of one or two dimensions.
    fn parameter(&mut self, name: String, shape: &[usize]) -> Result<Parameter, Self::Error>;
    /// The weight of a linear layer, `[out, in]`.
    fn weight(&mut self, name: String, dims: [usize; 2]) -> Result<Weight, Self::Error>;
}

/// Tensors from values by name and shape.
pub(super) struct Reader<'a, F> {
    pub values: F,
    pub held: Held,
    pub device: &'a Device,
}

impl<E, F: FnMut(&str, &[usize]) -> Result<Vec<f32>, E>> Maker for Reader<'_, F> {
    type Error = E;

    fn parameter(&mut self, name: String, shape: &[usize]) -> Result<Parameter, E> {
        let values = (self.values)(&name, shape)?;
        Ok(Parameter::new(name, shape, values, self.device))
    }

    fn weight(&mut self, name: String, dims: [usize; 2]) -> Result<Weight, E> {
        let values = (self.values)(&name, &dims)?;
        Ok(Weight::new(name, dims, values, self.held, self.device))
    }
}

/// Writes down what is asked for, and makes nothing of it.
pub(super) struct Recorder<'a> {
    pub wanted: &'a mut BTreeMap<String, Vec<usize>>,
    pub device: &'a Device,
}

impl Maker for Recorder<'_> {
    type Error = Infallible;

    fn parameter(&mut self, name: String, shape: &[usize]) -> Result<Parameter, Infallible> {
        self.wanted.insert(name.clone(), shape.to_vec());
        Ok(Parameter { shape: shape.to_vec(), ..Parameter::new(name, &[1], vec![0.0], self.device) })
    }

    fn weight(&mut self, name: String, dims: [usize; 2]) -> Result<Weight, Infallible> {
        self.parameter(name, &dims).map(Weight::Plain)
    }
}

/// A linear layer from `prefix.weight` and, where it has one, `prefix.bias`.
pub(super) fn linear<M: Maker>(maker: &mut M, prefix: &str, dims: [usize; 2], bias: bool) -> Result<Linear, M::Error> {
    let weight = maker.weight(format!("{prefix}.weight"), dims)?;
    let bias = match bias {
        true => Some(maker.parameter(format!("{prefix}.bias"), &[dims[0]])?),
        false => None,
    };
    Ok(Linear::new(weight, bias))
}

/// Fresh values: `gains` in norms' weights, 0 in biases, else normal with this deviation from a stream of each tensor's
/// own.
pub(super) fn fresh(name: &str, shape: &[usize], deviation: f32, gains: f32, seed: u64) -> Vec<f32> {
    let count = shape.iter().product();
    if name.ends_with("norm.weight") || name.ends_with("LayerNorm.weight") {
        vec![gains; count]
    } else if name.ends_with(".bias") {
        vec![0.0; count]
    } else {
        let mut random = Random::stream(seed, name);
        (0..count).map(|_| deviation * random.normal()).collect()
    }
}

/// What a builder asks for, by name.
pub(super) fn wanted(
    device: &Device,
    build: impl FnOnce(Recorder<'_>) -> Result<(), Infallible>,
) -> BTreeMap<String, Vec<usize>> {
    let mut wanted = BTreeMap::new();
    match build(Recorder { wanted: &mut wanted, device }) {
        Ok(()) => wanted,
        Err(never) => match never {},
    }
}

/// Compares names and shapes of a source with what is wanted, before anything is read. `harmless` says of which other
/// tensors a file may have.
///
/// # Errors
/// [`WeightsError::Mismatch`] with every tensor that is missing, unknown or of another shape.
pub(super) fn check_fit(
    wanted: &BTreeMap<String, Vec<usize>>,
    source: &dyn TensorSource,
    harmless: impl Fn(&str) -> bool,
) -> Result<(), WeightsError> {
    let mut problems = Vec::new();
    for (name, shape) in wanted {
        match source.shape(name) {
            None => problems.push(format!("{name}: missing; expected shape {shape:?}")),
            Some(found) if found != *shape => {
                problems.push(format!("{name}: found shape {found:?}, expected {shape:?}"));
            }
            Some(_) => {}
        }
    }
    for name in source.names() {
        if !harmless(&name) && !wanted.contains_key(&name) {
            let shape = source.shape(&name).unwrap_or_default();
            problems.push(format!("{name}: unknown to this architecture; its shape is {shape:?}"));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(WeightsError::Mismatch(problems)),
    }
}
