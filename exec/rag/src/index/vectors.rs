//! Vectors of length one, side by side.

/// By slot.
pub struct Vectors {
    dimension: usize,
    numbers: Vec<f32>,
}

impl Vectors {
    /// None yet.
    pub fn new(dimension: usize) -> Self {
        Self { dimension, numbers: Vec::new() }
    }

    /// Puts one into its slot.
    pub fn set(&mut self, slot: u32, vector: &[f32]) {
        let start = slot as usize * self.dimension;
        if self.numbers.len() < start + self.dimension {
            self.numbers.resize(start + self.dimension, 0.0);
        }
        self.numbers[start..start + self.dimension].copy_from_slice(vector);
    }

    /// The vector in a slot.
    pub fn get(&self, slot: u32) -> &[f32] {
        let start = slot as usize * self.dimension;
        &self.numbers[start..start + self.dimension]
    }

    /// Cosine of the angle to one of them.
    pub fn score(&self, query: &[f32], slot: u32) -> f32 {
        dot(query, self.get(slot))
    }
}

/// In eight sums, which a processor adds at once.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let (ones, rest_one) = one.as_chunks::<8>();
    let (others, rest_other) = other.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (one, other) in ones.iter().zip(others) {
        for at in 0..8 {
            sums[at] += one[at] * other[at];
        }
    }
    let rest: f32 = rest_one.iter().zip(rest_other).map(|(one, other)| one * other).sum();
    sums.iter().sum::<f32>() + rest
}

/// A vector of length one in the same direction; `None` = it has numbers that are none. Zero stays zero.
pub fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if !length.is_finite() {
        return None;
    }
    let length = if length == 0.0 { 1.0 } else { length };
    Some(vector.iter().map(|x| (f64::from(*x) / length) as f32).collect())
}

/// As it is stored.
pub fn to_bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// As it was stored.
pub fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
