//! Chance from a seed: the same everywhere, and each thread its own.

use std::time::Duration;

/// SplitMix64 (Steele et al. 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The `stream`-th generator of a seed.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(seed ^ stream.wrapping_mul(0xD134_2543_DE82_EF95))
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit.max(1)
    }

    /// Milliseconds from `least` to below `limit`.
    pub(super) fn milliseconds(&mut self, least: u64, limit: u64) -> Duration {
        Duration::from_millis(least + self.below(limit - least))
    }

    /// One of them, each as often as its weight says.
    pub(super) fn pick<'a, T>(&mut self, weighted: &'a [(u64, T)]) -> Option<&'a T> {
        let mut left = self.below(weighted.iter().map(|(weight, _)| weight).sum());
        weighted.iter().find_map(|(weight, item)| {
            let taken = left < *weight;
            left = left.saturating_sub(*weight);
            taken.then_some(item)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn weights_count() {
        let mut random = Random::new(7, 0);
        let mut counts = [0, 0, 0];
        for _ in 0..10_000 {
            counts[*random.pick(&[(1, 0), (0, 1), (9, 2)]).unwrap()] += 1;
        }
        assert!(counts[1] == 0 && (800..1200).contains(&counts[0]), "{counts:?}");
    }
}
