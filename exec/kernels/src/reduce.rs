//! Sums and maxima over the units of a cube; every unit gets the result.
//!
//! All units must call them together. With `planes`, the hardware's plane operations do the first five steps and shared
//! memory one; without, shared memory does them all, as a tree.

use cubecl::prelude::*;

/// The sum of `value` over the `units` units of the cube, a power of two.
#[cube]
pub(crate) fn cube_sum(value: f32, #[comptime] units: u32, #[comptime] planes: bool) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(units as usize));
    let mut total = 0.0f32;
    if comptime!(planes) {
        let sum = plane_sum(value);
        if UNIT_POS_PLANE == 0 {
            shared[PLANE_POS as usize] = sum;
        }
        sync_cube();
        for plane in 0..(units / PLANE_DIM) {
            total += shared[plane as usize];
        }
    } else {
        let unit = UNIT_POS as usize;
        shared[unit] = value;
        sync_cube();
        #[unroll]
        for step in 0..comptime!(units.ilog2()) {
            let half = comptime!((units >> (step + 1)) as usize);
            if unit < half {
                let sum = shared[unit] + shared[unit + half];
                shared[unit] = sum;
            }
            sync_cube();
        }
        total = shared[0];
    }
    // Whoever uses this memory next must not overtake a unit that still reads.
    sync_cube();
    total
}

/// The largest `value` of the `units` units of the cube, a power of two.
#[cube]
pub(crate) fn cube_max(value: f32, #[comptime] units: u32, #[comptime] planes: bool) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(units as usize));
    let mut largest = value;
    if comptime!(planes) {
        let of_plane = plane_max(value);
        if UNIT_POS_PLANE == 0 {
            shared[PLANE_POS as usize] = of_plane;
        }
        sync_cube();
        for plane in 0..(units / PLANE_DIM) {
            largest = max(largest, shared[plane as usize]);
        }
    } else {
        let unit = UNIT_POS as usize;
        shared[unit] = value;
        sync_cube();
        #[unroll]
        for step in 0..comptime!(units.ilog2()) {
            let half = comptime!((units >> (step + 1)) as usize);
            if unit < half {
                let of_two = max(shared[unit], shared[unit + half]);
                shared[unit] = of_two;
            }
            sync_cube();
        }
        largest = shared[0];
    }
    sync_cube();
    largest
}

/// The sum of a vector's elements.
#[cube]
pub(crate) fn lane_sum<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for lane in 0..N::value() {
        sum += vector.extract(lane);
    }
    sum
}
