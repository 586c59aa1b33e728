//! The rotary embedding (Su et al. 2021), and how it is scaled for long contexts.

/// A rotary embedding (Su et al. 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Elements of a head that are rotated.
    pub width: usize,
    /// Base of the frequencies.
    pub base: f32,
    /// Each pair's frequency is divided by this, `[width / 2]`; 1 is no scaling of positions.
    pub divisors: Vec<f32>,
    /// What the rotated elements are multiplied with; 1 unless positions are scaled (YaRN: Peng et al. 2023).
    pub magnitude: f32,
    /// What holds where more tokens are served than these (LongRoPE: Ding et al. 2024).
    pub longer: Option<(usize, Vec<f32>)>,
}

impl Rotary {
    /// Unscaled.
    pub fn plain(width: usize, base: f32) -> Self {
        Self { width, base, divisors: vec![1.0; width / 2], magnitude: 1.0, longer: None }
    }

    /// Radians per position of each pair, where sequences have at most `context` tokens.
    pub(super) fn frequencies(&self, context: usize) -> Vec<f32> {
        let divisors = match &self.longer {
            Some((beyond, divisors)) if context > *beyond => divisors,
            _ => &self.divisors,
        };
        let frequency = |i| self.base.powf(-2.0 * i as f32 / self.width as f32);
        (0_u32..).zip(divisors).map(|(i, divisor)| frequency(i) / divisor).collect()
    }

    /// Cosine and sine of each pair's angle at these positions, `[positions, pairs]`, both times a size that may depend on the
    /// position.
    pub(super) fn turns(
        frequencies: &[f32],
        positions: impl Iterator<Item = usize>,
        size: impl Fn(usize) -> f32,
    ) -> Vec<[f32; 2]> {
        let row = |position: usize| {
            let size = size(position);
            let angles = frequencies.iter().map(move |frequency| position as f32 * frequency);
            angles.map(move |angle| [size * angle.cos(), size * angle.sin()])
        };
        positions.flat_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_contexts_have_divisors_of_their_own() {
        let rotary = Rotary { longer: Some((32, vec![2.0, 4.0])), ..Rotary::plain(4, 100.0) };
        for context in [1, 32] {
            assert_eq!(rotary.frequencies(context), Rotary::plain(4, 100.0).frequencies(1 << 20));
        }
        let frequencies = rotary.frequencies(33);
        assert!((frequencies[0] - 0.5).abs() < 1e-6 && (frequencies[1] - 0.025).abs() < 1e-6, "{frequencies:?}");
    }
}
