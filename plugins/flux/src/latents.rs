//! Latents: the seeded noise they begin as, and their packing into the transformer's image tokens.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;

/// Latents are taken in squares of this side as one token.
pub const PATCH: usize = 2;

/// The shape of an image's latents, before packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels of the autoencoder's latent space.
    pub channels: usize,
    /// Rows of latents, an even number.
    pub height: usize,
    /// Columns of latents, an even number.
    pub width: usize,
}

impl Shape {
    /// Elements of the latents.
    pub fn len(self) -> usize {
        self.channels * self.height * self.width
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Rows and columns of tokens.
    pub fn grid(self) -> (usize, usize) {
        (self.height / PATCH, self.width / PATCH)
    }

    /// How many image tokens the latents are packed into.
    pub fn tokens(self) -> usize {
        let (rows, columns) = self.grid();
        rows * columns
    }

    /// Index in (channels, height, width) of element `i` of token `token`: a token holds, channel by channel, a square.
    fn index(self, token: usize, i: usize) -> usize {
        let (_, columns) = self.grid();
        let (channel, y, x) = (i / (PATCH * PATCH), i / PATCH % PATCH, i % PATCH);
        let (row, column) = (token / columns * PATCH + y, token % columns * PATCH + x);
        (channel * self.height + row) * self.width + column
    }

    /// (channels, height, width) to (tokens, channels * 4).
    ///
    /// # Panics
    /// If there are not [`len`](Self::len) elements; so for [`unpack`](Self::unpack).
    pub fn pack(self, latents: &[f32]) -> Vec<f32> {
        assert_eq!(latents.len(), self.len(), "latents of another shape");
        let width = self.channels * PATCH * PATCH;
        (0..self.len()).map(|i| latents[self.index(i / width, i % width)]).collect()
    }

    /// Undoes [`pack`](Self::pack).
    pub fn unpack(self, tokens: &[f32]) -> Vec<f32> {
        assert_eq!(tokens.len(), self.len(), "latents of another shape");
        let width = self.channels * PATCH * PATCH;
        let mut latents = vec![0.0; self.len()];
        for (i, x) in tokens.iter().enumerate() {
            latents[self.index(i / width, i % width)] = *x;
        }
        latents
    }

    /// Standard normal noise of a seed, (channels, height, width) f32.
    ///
    /// The same on every machine: ChaCha20 (RFC 8439) keyed by the seed as `SeedableRng::seed_from_u64` says, of each two
    /// 53-bit uniform draws in (0, 1] and [0, 1) a pair of normal ones (Box and Muller 1958), cosine first.
    pub fn noise(self, seed: u64) -> Vec<f32> {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut noise = Vec::with_capacity(self.len() + 1);
        while noise.len() < self.len() {
            let (radius, angle) = ((-2.0 * (1.0 - uniform()).ln()).sqrt(), std::f64::consts::TAU * uniform());
            noise.push((radius * angle.cos()) as f32);
            noise.push((radius * angle.sin()) as f32);
        }
        noise.truncate(self.len());
        noise
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unpacking_undoes_packing(channels in 1usize..5, rows in 1usize..6, columns in 1usize..6) {
            let shape = Shape { channels, height: 2 * rows, width: 2 * columns };
            let latents: Vec<f32> = (0..shape.len()).map(|i| i as f32).collect();
            let packed = shape.pack(&latents);
            prop_assert_eq!(shape.unpack(&packed), latents);
            prop_assert_eq!(shape.tokens() * channels * 4, shape.len());
        }
    }

    #[test]
    fn a_token_is_a_square_channel_by_channel() {
        let shape = Shape { channels: 2, height: 2, width: 4 };
        let latents: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let wanted = [0.0, 1.0, 4.0, 5.0, 8.0, 9.0, 12.0, 13.0, 2.0, 3.0, 6.0, 7.0, 10.0, 11.0, 14.0, 15.0];
        assert_eq!(shape.pack(&latents), wanted);
    }

    #[test]
    fn a_seed_is_a_promise() {
        let shape = Shape { channels: 4, height: 64, width: 64 };
        let noise = shape.noise(42);
        assert_eq!(noise, shape.noise(42));
        assert_ne!(noise, shape.noise(43));
        let mean = noise.iter().map(|x| f64::from(*x)).sum::<f64>() / noise.len() as f64;
        let variance = noise.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / noise.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
