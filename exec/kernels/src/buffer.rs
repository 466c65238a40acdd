//! Tensors as kernels see them, and how work is spread over cubes.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

/// A contiguous, row-major tensor on a device.
#[derive(Debug, Clone)]
pub struct Buffer {
    /// Where it lies.
    pub handle: Handle,
    /// How many elements it has.
    pub elements: usize,
}

impl Buffer {
    /// The tensor at `handle`.
    pub fn new(handle: Handle, elements: usize) -> Self {
        Self { handle, elements }
    }

    pub(crate) fn argument(&self) -> BufferArg {
        #[expect(unsafe_code, reason = "cubecl has no safe constructor")]
        // SAFETY: the length is only declared here; kernels are launched in the checked mode, whose bound is the size of
        // the handle itself.
        unsafe {
            BufferArg::from_raw_parts(self.handle.clone(), self.elements)
        }
    }
}

/// The most cubes along one axis that every runtime takes.
const CUBES_ALONG_AN_AXIS: usize = 32_768;

/// `count` cubes, or a few more: a kernel compares its `CUBE_POS`.
pub(crate) fn cubes(count: usize) -> CubeCount {
    let x = count.clamp(1, CUBES_ALONG_AN_AXIS);
    CubeCount::Static(x as u32, count.div_ceil(x).max(1) as u32, 1)
}

/// The widest vectors, in elements, in which rows of `width` can be read: 16 bytes is what a unit loads at once.
pub(crate) fn vector_size(width: usize, dtype: ElemType) -> usize {
    let widest = 16 / dtype.size();
    [8, 4, 2].into_iter().find(|n| *n <= widest && width.is_multiple_of(*n)).unwrap_or(1)
}

/// How a row is shared out: the units of a cube, a power of two, and whether they may be summed over within planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Team {
    pub units: u32,
    pub planes: bool,
}

impl Team {
    /// For rows of `vectors` vectors.
    pub fn new(client: &Client, vectors: usize) -> Self {
        let properties = client.properties();
        let units = vectors.next_power_of_two().clamp(32, 256) as u32;
        let whole_planes = properties.hardware.plane_size_min == properties.hardware.plane_size_max;
        let planes = whole_planes && properties.features.plane.contains(cubecl::ir::features::Plane::Ops);
        Self { units, planes }
    }

    pub fn dim(self) -> CubeDim {
        CubeDim::new_1d(self.units)
    }
}

/// Units of a cube in kernels in which each unit is on its own.
pub(crate) const UNITS: u32 = 256;

/// Cubes of [`UNITS`] units for `count` units.
pub(crate) fn cubes_of_units(count: usize) -> CubeCount {
    cubes(count.div_ceil(UNITS as usize))
}
