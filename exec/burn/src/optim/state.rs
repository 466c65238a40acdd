//! What an optimizer remembers of a parameter, and its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::Tensor;

use super::blocks::{self, Blocks, Levels};
use super::{Optimizer, OptimizerSettings};
use crate::export::{Raw, write_raw_safetensors};
use crate::model::Parameter;
use crate::model::parameter::{host_values, matrix};
use crate::weights::{SafetensorsSource, TensorSource, WeightsError};

/// What is remembered of one parameter.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// First and second moment of the gradient.
    Moments(Tensor<2>, Tensor<2>),
    /// The same in 8 bits.
    Blocks(Blocks, Blocks),
    /// Means of the squared gradient over each row, `[r, 1]`, and each column, `[1, c]`.
    Factored { rows: Tensor<2>, columns: Tensor<2> },
    /// The second moment of a vector's gradient, `[1, n]`.
    Second(Tensor<2>),
    /// The direction so far.
    Momentum(Tensor<2>),
}

/// Parts of a state, as the file names them: `exp_avg.model.norm.weight`.
const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";
const FIRST_SCALES: &str = "exp_avg_scales";
const SECOND_SCALES: &str = "exp_avg_sq_scales";
const ROWS: &str = "exp_avg_sq_row";
const COLUMNS: &str = "exp_avg_sq_col";
const MOMENTUM: &str = "momentum_buffer";

impl State {
    pub(super) fn bytes(&self) -> usize {
        let floats = |tensor: &Tensor<2>| 4 * tensor.dims().iter().product::<usize>();
        match self {
            Self::Moments(m, v) => floats(m) + floats(v),
            Self::Blocks(m, v) => m.bytes() + v.bytes(),
            Self::Factored { rows, columns } => floats(rows) + floats(columns),
            Self::Second(tensor) | Self::Momentum(tensor) => floats(tensor),
        }
    }

    /// Its tensors for the file; `shape` is the parameter's.
    fn parts(&self, name: &str, shape: &[usize]) -> Vec<Raw<'_>> {
        let named = |part: &str| format!("{part}.{name}");
        let whole = |part: &str, tensor, shape: &[usize]| {
            Raw::floats(named(part), shape.to_vec(), move || host_values(Tensor::clone(tensor)))
        };
        match self {
            Self::Moments(m, v) => vec![whole(FIRST, m, shape), whole(SECOND, v, shape)],
            Self::Blocks(m, v) => {
                let codes = |part: &str, blocks| Raw::bytes(named(part), shape.to_vec(), Blocks::codes(blocks));
                let scales = |part: &str, blocks| {
                    let scales = Blocks::scales(blocks);
                    Raw::floats(named(part), vec![scales.len()], || scales.to_vec())
                };
                vec![codes(FIRST, m), scales(FIRST_SCALES, m), codes(SECOND, v), scales(SECOND_SCALES, v)]
            }
            Self::Factored { rows, columns } => {
                vec![whole(ROWS, rows, &shape[..1]), whole(COLUMNS, columns, &shape[1..])]
            }
            Self::Second(v) => vec![whole(SECOND, v, shape)],
            Self::Momentum(buffer) => vec![whole(MOMENTUM, buffer, shape)],
        }
    }
}

impl Optimizer {
    /// Writes what it remembers of these parameters as a safetensors file; the bytes depend on that only.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn save<'a>(&self, path: &Path, parameters: impl Iterator<Item = &'a Parameter>) -> Result<(), WeightsError> {
        let states = parameters.filter_map(|p| Some((p, self.states.get(&p.name)?)));
        write_raw_safetensors(path, states.flat_map(|(p, state)| state.parts(&p.name, &p.shape)).collect())
    }

    /// Takes over what [`Self::save`] wrote of the same parameters after so many updates. What has not had a gradient by
    /// then has no state. On an error nothing is taken over.
    ///
    /// # Errors
    /// A file that is none, and every tensor that is missing, of another shape or of no parameter.
    pub fn load<'a>(
        &mut self,
        path: &Path,
        parameters: impl Iterator<Item = &'a Parameter>,
        updates: u64,
    ) -> Result<(), WeightsError> {
        let source = SafetensorsSource::open_file(path)?;
        let mut reader = Reader { unread: source.names().into_iter().collect(), source: &source, problems: Vec::new() };
        let mut states = BTreeMap::new();
        for parameter in parameters {
            if let Some(state) = reader.state(&self.settings, parameter)? {
                states.insert(parameter.name.clone(), state);
            }
        }
        let Reader { unread, mut problems, .. } = reader;
        problems.extend(unread.iter().map(|name| format!("{name}: of no parameter that is trained")));
        if !problems.is_empty() {
            return Err(WeightsError::Mismatch(problems));
        }
        (self.states, self.updates) = (states, updates);
        Ok(())
    }
}

/// Reads states out of a file, and collects what is wrong with it.
struct Reader<'a> {
    source: &'a SafetensorsSource,
    unread: BTreeSet<String>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn state(&mut self, settings: &OptimizerSettings, parameter: &Parameter) -> Result<Option<State>, WeightsError> {
        let (shape, device) = (parameter.shape.as_slice(), parameter.value.device());
        let expected: &[&str] = match settings {
            OptimizerSettings::AdamW8bit(_) if blocks::fit(&parameter.name, &parameter.shape) => {
                &[FIRST, FIRST_SCALES, SECOND, SECOND_SCALES]
            }
            OptimizerSettings::AdamW(_) | OptimizerSettings::AdamW8bit(_) => &[FIRST, SECOND],
            OptimizerSettings::Adafactor { .. } if shape.len() < 2 => &[SECOND],
            OptimizerSettings::Adafactor { .. } => &[ROWS, COLUMNS],
            OptimizerSettings::Sgd(_) => &[MOMENTUM],
        };
        let there = |part: &&str| self.source.shape(&format!("{part}.{}", parameter.name)).is_some();
        if !expected.iter().any(there) {
            return Ok(None);
        }
        let mut floats = |part: &str, shape: &[usize]| -> Result<Option<Tensor<2>>, WeightsError> {
            let Some(name) = self.take(part, parameter, shape) else { return Ok(None) };
            let values = self.source.read_f32(&name)?;
            Ok(Some(matrix(values, shape, &device)))
        };
        Ok(match settings {
            OptimizerSettings::AdamW8bit(_) if blocks::fit(&parameter.name, &parameter.shape) => {
                let m = self.blocks(FIRST, FIRST_SCALES, Levels::Signed, parameter)?;
                let v = self.blocks(SECOND, SECOND_SCALES, Levels::Unsigned, parameter)?;
                m.zip(v).map(|(m, v)| State::Blocks(m, v))
            }
            OptimizerSettings::AdamW(_) | OptimizerSettings::AdamW8bit(_) => {
                let (m, v) = (floats(FIRST, shape)?, floats(SECOND, shape)?);
                m.zip(v).map(|(m, v)| State::Moments(m, v))
            }
            OptimizerSettings::Adafactor { .. } if shape.len() < 2 => floats(SECOND, shape)?.map(State::Second),
            OptimizerSettings::Adafactor { .. } => {
                let (rows, columns) = (floats(ROWS, &shape[..1])?, floats(COLUMNS, &shape[1..])?);
                let column = |rows: Tensor<2>| rows.reshape([shape[0], 1]);
                rows.zip(columns).map(|(rows, columns)| State::Factored { rows: column(rows), columns })
            }
            OptimizerSettings::Sgd(_) => floats(MOMENTUM, shape)?.map(State::Momentum),
        })
    }

    fn blocks(
        &mut self,
        part: &str,
        scales: &str,
        levels: Levels,
        parameter: &Parameter,
    ) -> Result<Option<Blocks>, WeightsError> {
        let count = parameter.shape.iter().product::<usize>();
        let codes = self.take(part, parameter, &parameter.shape);
        let scales = self.take(scales, parameter, &[count.div_ceil(blocks::BLOCK)]);
        let Some((codes, scales)) = codes.zip(scales) else { return Ok(None) };
        let blocks = Blocks::from_parts(levels, self.source.read_u8(&codes)?, self.source.read_f32(&scales)?);
        if blocks.is_none() {
            self.problems.push(format!("{codes}: more or fewer values than its scales are for"));
        }
        Ok(blocks)
    }

    /// The name of a tensor that has the right shape.
    fn take(&mut self, part: &str, parameter: &Parameter, shape: &[usize]) -> Option<String> {
        let name = format!("{part}.{}", parameter.name);
        self.unread.remove(&name);
        let found = self.source.shape(&name);
        if found.as_deref() == Some(shape) {
            return Some(name);
        }
        self.problems.push(format!("{name}: found shape {found:?}, expected {shape:?}"));
        None
    }
}
