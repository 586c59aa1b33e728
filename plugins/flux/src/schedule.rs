//! The noise levels (sigmas) of a request: flow matching with Euler steps (Esser et al. 2024, section 3.1 and the shift of section
//! 5.3.2, which grows with the image).
//!
//! In f32 where the reference (diffusers' `FlowMatchEulerDiscreteScheduler`) is in f32.

use serde::Deserialize;

/// How noise levels are shifted: keys and defaults of `scheduler_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// Whether the shift depends on the size.
    pub use_dynamic_shifting: bool,
    /// The shift, if it does not.
    pub shift: f64,
    /// The shift of an image of `base_image_seq_len` tokens, as a logarithm.
    pub base_shift: f64,
    /// The shift of an image of `max_image_seq_len` tokens, as a logarithm.
    pub max_shift: f64,
    /// Image tokens at which `base_shift` holds.
    pub base_image_seq_len: usize,
    /// Image tokens at which `max_shift` holds.
    pub max_image_seq_len: usize,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            use_dynamic_shifting: false,
            shift: 1.0,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
        }
    }
}

impl Schedule {
    /// What a checkpoint without a scheduler's file was made for: dev has a guidance embedding, schnell none.
    pub fn of(guided: bool) -> Self {
        Self { use_dynamic_shifting: guided, ..Self::default() }
    }

    /// Noise levels of `steps` steps over an image of `tokens` tokens, from 1 down, and 0 after the last.
    pub fn sigmas(&self, steps: usize, tokens: usize) -> Vec<f32> {
        let last = 1.0 / steps as f64;
        let even = |i: usize| match steps {
            1 => 1.0,
            _ => 1.0 + (last - 1.0) * i as f64 / (steps - 1) as f64,
        };
        let levels = (0..steps).map(|i| self.shifted(even(i) as f32, tokens));
        levels.chain([0.0]).collect()
    }

    fn shifted(&self, sigma: f32, tokens: usize) -> f32 {
        if self.use_dynamic_shifting {
            let span = (self.max_image_seq_len - self.base_image_seq_len) as f64;
            let slope = (self.max_shift - self.base_shift) / span;
            let mu = tokens as f64 * slope + (self.base_shift - slope * self.base_image_seq_len as f64);
            let factor = mu.exp() as f32;
            factor / (factor + (1.0 / sigma - 1.0))
        } else {
            let shift = self.shift as f32;
            shift * sigma / (1.0 + (shift - 1.0) * sigma)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn levels_fall_from_one_to_nothing(steps in 1usize..200, tokens in 1usize..20_000, guided in any::<bool>()) {
            let sigmas = Schedule::of(guided).sigmas(steps, tokens);
            prop_assert_eq!(sigmas.len(), steps + 1);
            prop_assert!((sigmas[0] - 1.0).abs() < 1e-6);
            prop_assert_eq!(sigmas[steps], 0.0);
            prop_assert!(sigmas.windows(2).all(|pair| pair[0] > pair[1]));
        }

        #[test]
        fn a_larger_image_keeps_more_noise(steps in 2usize..60, tokens in 16usize..8000) {
            let (small, large) = (Schedule::of(true).sigmas(steps, tokens), Schedule::of(true).sigmas(steps, tokens + 64));
            prop_assert!(small[1..steps].iter().zip(&large[1..steps]).all(|(small, large)| small < large));
        }
    }

    #[test]
    fn schnell_is_even() {
        assert_eq!(Schedule::of(false).sigmas(4, 4096), [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(Schedule::of(false).sigmas(1, 4096), [1.0, 0.0]);
    }

    /// exp(1.15) at the largest image: the level t becomes e / (e + 1 / t - 1).
    #[test]
    fn dev_is_shifted_as_published() {
        let sigmas = Schedule::of(true).sigmas(2, 4096);
        let e = 1.15f64.exp();
        assert!((f64::from(sigmas[1]) - e / (e + 1.0)).abs() < 1e-6);
    }
}
