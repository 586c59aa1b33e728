//! How positions are scaled beyond the length that a model was first trained on.

use std::f64::consts::PI;

use aihost_engine::nn::rotary::Rotary;

/// A rotary embedding before it is scaled.
#[derive(Clone, Copy, Debug)]
pub struct Plain {
    /// Elements of a head that are rotated.
    pub width: usize,
    /// Base of the frequencies.
    pub base: f32,
}

/// Llama 3.1's scaling: long waves are slowed by the factor, short ones are not, and those between by a part of it.
#[derive(Clone, Copy, Debug)]
pub struct Llama3 {
    pub factor: f64,
    pub low: f64,
    /// Above `low`.
    pub high: f64,
    /// Tokens.
    pub trained: f64,
}

/// YaRN (Peng et al. 2023).
#[derive(Clone, Copy, Debug)]
pub struct Yarn {
    pub factor: f64,
    /// Tokens that the model was first trained on.
    pub trained: f64,
    /// Turns within these tokens from which on a pair is not slowed at all.
    pub fast: f64,
    /// Turns up to which it is slowed by the whole factor.
    pub slow: f64,
    /// How much of the slowing; 1 is all.
    pub ramp: f64,
    /// What rotated elements are multiplied with.
    pub magnitude: f64,
    /// Whether the slowing begins and ends at whole pairs.
    pub has_whole_pairs: bool,
}

impl Plain {
    /// Positions divided by a factor, and besides each pair by a number of its own, `[width / 2]`, if there are any.
    pub fn divided(self, factor: f32, divisors: Option<Vec<f32>>) -> Rotary {
        let plain = Rotary::plain(self.width, self.base);
        let divisors = divisors.unwrap_or(plain.divisors).into_iter().map(|divisor| divisor * factor).collect();
        Rotary { divisors, ..plain }
    }

    /// Of all pairs only the first ones are turned.
    pub fn partly(self, pairs: usize) -> Rotary {
        let divisor = |pair| if pair < pairs { 1.0 } else { f32::INFINITY };
        Rotary { divisors: (0..self.width / 2).map(divisor).collect(), ..Rotary::plain(self.width, self.base) }
    }

    /// As Llama 3.1 does.
    pub fn llama3(self, scaling: Llama3) -> Rotary {
        let Llama3 { factor, low, high, trained } = scaling;
        let divisor = |pair: usize| {
            let kept = ((trained / self.wave(pair) - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / factor + kept)) as f32
        };
        Rotary { divisors: (0..self.width / 2).map(divisor).collect(), ..Rotary::plain(self.width, self.base) }
    }

    /// As YaRN does.
    pub fn yarn(self, scaling: Yarn) -> Rotary {
        let Yarn { factor, trained, fast, slow, ramp, magnitude, has_whole_pairs } = scaling;
        // The pair that turns so often within the tokens of the training.
        let pair =
            |turns: f64| self.width as f64 * (trained / (turns * 2.0 * PI)).ln() / (2.0 * f64::from(self.base).ln());
        let (first, last) = (pair(fast), pair(slow));
        let (first, last) = if has_whole_pairs { (first.floor(), last.ceil()) } else { (first, last) };
        let (first, last) = (first.max(0.0), last.min(self.width as f64 - 1.0));
        let divisor = |pair: usize| {
            let slowed = ((pair as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
            let kept = (1.0 - slowed) * ramp;
            (1.0 / ((1.0 - kept) / factor + kept)) as f32
        };
        Rotary {
            divisors: (0..self.width / 2).map(divisor).collect(),
            magnitude: magnitude as f32,
            ..Rotary::plain(self.width, self.base)
        }
    }

    /// As LongRoPE does (Ding et al. 2024): by other divisors, `[width / 2]`, where more than `trained` tokens are served.
    pub fn longrope(self, short: Vec<f32>, long: Vec<f32>, trained: usize, magnitude: f32) -> Rotary {
        Rotary { divisors: short, longer: Some((trained, long)), magnitude, ..Rotary::plain(self.width, self.base) }
    }

    /// Tokens of a pair's whole turn.
    fn wave(self, pair: usize) -> f64 {
        2.0 * PI * f64::from(self.base).powf(2.0 * pair as f64 / self.width as f64)
    }
}

/// By how much YaRN lengthens what it rotates by this factor.
pub fn yarn_magnitude(factor: f64, share: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * share * factor.ln() + 1.0 }
}
