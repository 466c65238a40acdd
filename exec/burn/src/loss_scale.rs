//! Dynamic loss scaling: f16 has no numbers below 6·10⁻⁸, where many gradients are, nor above 65504.
//!
//! The loss is multiplied by a factor before the backward pass and the gradients divided by it after (Micikevicius et al.
//! 2018, Mixed Precision Training). A step whose gradients leave the range is done again with half the factor; after
//! many good ones it doubles. The constants are those of PyTorch's GradScaler.

/// The factor and how it moves.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LossScale {
    /// What the loss is multiplied by; a power of two, so that nothing is rounded.
    pub factor: f64,
    /// Steps since it last moved.
    good: u32,
}

/// It doubles after so many good steps.
const GROW_AFTER: u32 = 2000;
/// Below this it is not the scale that is at fault.
const LEAST: f64 = 1.0;

impl Default for LossScale {
    fn default() -> Self {
        Self::from(65536.0)
    }
}

impl From<f64> for LossScale {
    /// To begin with this factor.
    fn from(factor: f64) -> Self {
        Self { factor, good: 0 }
    }
}

impl LossScale {
    /// After gradients that left the range; whether there is any use in another try.
    pub fn lower(&mut self) -> bool {
        let lower = self.factor / 2.0;
        if lower < LEAST {
            return false;
        }
        *self = Self::from(lower);
        true
    }

    /// After a step that was good.
    pub fn step(&mut self) {
        self.good += 1;
        if self.good == GROW_AFTER {
            *self = Self::from(self.factor * 2.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_to_one_and_no_further_and_rises_after_many_good_steps() {
        let mut scale = LossScale::default();
        let mut tries = 0;
        while scale.lower() {
            tries += 1;
        }
        assert_eq!((tries, scale.factor), (16, 1.0));
        (0..GROW_AFTER - 1).for_each(|_| scale.step());
        assert_eq!(scale.factor, 1.0);
        scale.step();
        assert_eq!(scale.factor, 2.0);
    }
}
