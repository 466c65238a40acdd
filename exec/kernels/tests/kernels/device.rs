//! The device, and how values get there and back.

use std::io::Write;

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::wgpu::WgpuDeviceKind;
use half::f16;
use mloc_kernels::Buffer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A device, and a type of elements on it.
pub struct Device {
    client: Client,
    pub dtype: ElemType,
    random: StdRng,
}

/// Each type of elements that the device can have in memory, with its own seed of random values.
pub fn each(test: &str) -> Vec<Device> {
    let client = match cubecl::Device::vulkan(WgpuDeviceKind::DefaultDevice) {
        Ok(device) => device.client(),
        Err(why) => {
            let line = format!("SKIP {test}: no Vulkan device ({why:?}); mesa-vulkan-drivers has one in software");
            assert!(std::env::var("MLOC_NO_SKIP").as_deref() != Ok("1"), "{line}");
            // Past the harness's capture: a skip is seen.
            writeln!(std::io::stderr(), "{line}").ok();
            return Vec::new();
        }
    };
    let kinds = [FloatKind::F32, FloatKind::F16].map(ElemType::Float);
    let held = kinds.into_iter().filter(|dtype| client.properties().supports_type(*dtype));
    held.map(|dtype| Device { client: client.clone(), dtype, random: StdRng::seed_from_u64(7) }).collect()
}

impl Device {
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A whole number within the range.
    pub fn pick(&mut self, from: usize, to: usize) -> usize {
        self.random.random_range(from..=to)
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random.random_range(0..choices.len())]
    }

    /// Values around zero that the type of elements holds exactly.
    pub fn values(&mut self, count: usize) -> Vec<f64> {
        let half = self.dtype == ElemType::Float(FloatKind::F16);
        let rounded = |v: f32| if half { f16::from_f32(v).to_f64() } else { f64::from(v) };
        (0..count).map(|_| rounded(self.random.random_range(-2.0..2.0))).collect()
    }

    /// On the device, in its type of elements.
    pub fn put(&self, values: &[f64]) -> Buffer {
        let handle = match self.dtype {
            ElemType::Float(FloatKind::F16) => {
                let values: Vec<f16> = values.iter().map(|v| f16::from_f64(*v)).collect();
                self.client.create_from_slice(f16::as_bytes(&values))
            }
            _ => return self.put_f32(values),
        };
        Buffer::new(handle, values.len())
    }

    pub fn put_f32(&self, values: &[f64]) -> Buffer {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        Buffer::new(self.client.create_from_slice(f32::as_bytes(&values)), values.len())
    }

    pub fn put_words(&self, values: &[u32]) -> Buffer {
        Buffer::new(self.client.create_from_slice(u32::as_bytes(values)), values.len())
    }

    /// Room for elements of its type, full of a value that no kernel computes.
    pub fn room(&self, count: usize) -> Buffer {
        self.put(&vec![777.0; count])
    }

    pub fn room_f32(&self, count: usize) -> Buffer {
        self.put_f32(&vec![777.0; count])
    }

    pub fn get(&self, buffer: &Buffer) -> Vec<f64> {
        let bytes = self.client.read_one(buffer.handle.clone()).expect("a buffer can be read");
        match self.dtype {
            ElemType::Float(FloatKind::F16) => f16::from_bytes(&bytes).iter().map(|v| v.to_f64()).collect(),
            _ => f32::from_bytes(&bytes).iter().map(|v| f64::from(*v)).collect(),
        }
    }

    pub fn get_f32(&self, buffer: &Buffer) -> Vec<f64> {
        let bytes = self.client.read_one(buffer.handle.clone()).expect("a buffer can be read");
        f32::from_bytes(&bytes).iter().map(|v| f64::from(*v)).collect()
    }

    /// Compares what was found with what should be, within the precision of the type of elements and, as sums are in
    /// f32, of sums of `terms` terms.
    pub fn compare(&self, what: &str, found: &[f64], wanted: &[f64], terms: usize) {
        let epsilon = match self.dtype {
            ElemType::Float(FloatKind::F16) => 1e-3,
            _ => 0.0,
        };
        compare(what, found, wanted, epsilon + 2e-6 * (terms as f64).sqrt().max(4.0));
    }
}

/// Compares values within `tolerance` of the larger of their size and 1.
pub fn compare(what: &str, found: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (index, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let apart = (found - wanted).abs() / wanted.abs().max(1.0);
        assert!(apart <= tolerance, "{what}, element {index}: {found} for {wanted}");
    }
}
