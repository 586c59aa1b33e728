//! The autoencoder's decoder in tensors: the sums of [`crate::vae`].
//!
//! Channels are innermost, so that a convolution is a product of gathered neighbours with its weights. Convolutions and
//! norms go through a picture a band of rows at a time, which bounds their memory; norms and activations are in f32.

use aihost_support::device::{Place, Result, mix, product, vector};
use candle_core::{DType, Tensor};

use crate::picture::{self, EPSILON, Picture};
use crate::vae;

/// Most neighbours gathered at once, numbers.
pub(crate) const GATHERED: usize = 1 << 26;

/// Most numbers of a norm's band.
pub(crate) const NORMED: usize = 1 << 24;

/// A loaded decoder.
#[derive(Debug)]
pub(super) struct Vae {
    place: Place,
    first: Convolution,
    before: Residual,
    attention: SelfAttention,
    after: Residual,
    /// The coarsest first.
    levels: Vec<Level>,
    last_norm: GroupNorm,
    last: Convolution,
}

#[derive(Debug)]
struct Level {
    blocks: Vec<Residual>,
    up: Option<Convolution>,
}

/// A convolution with a square kernel, zeros around the picture.
#[derive(Debug)]
struct Convolution {
    /// (kernel * kernel * in, out)
    weights: Tensor,
    bias: Tensor,
    kernel: usize,
}

/// Norm over groups of channels and all pixels (Wu and He 2018); in f32.
#[derive(Debug)]
struct GroupNorm {
    scale: Tensor,
    shift: Tensor,
    groups: usize,
}

/// Two convolutions beside a shortcut (He et al. 2016).
#[derive(Debug)]
struct Residual {
    norms: [GroupNorm; 2],
    convolutions: [Convolution; 2],
    shortcut: Option<Convolution>,
}

/// Attention of one head over all pixels.
#[derive(Debug)]
struct SelfAttention {
    norm: GroupNorm,
    /// Query, key, value, out.
    layers: [Convolution; 4],
}

/// Each pixel once, or four times, as the nearest of a picture twice the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sampling {
    Same = 1,
    Doubled = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Silu,
}

impl Vae {
    pub(super) fn new(vae: &vae::Vae, place: &Place) -> Result<Self> {
        let convolution = |layer: &picture::Convolution| Convolution::new(layer, place);
        let residual = |block: &vae::Residual| Residual::new(block, place);
        let level = |level: &vae::Level| -> Result<Level> {
            Ok(Level {
                blocks: level.blocks.iter().map(residual).collect::<Result<_>>()?,
                up: level.up.as_ref().map(convolution).transpose()?,
            })
        };
        let [q, k, v, out] = &vae.attention.layers;
        Ok(Self {
            first: convolution(&vae.first)?,
            before: residual(&vae.before)?,
            attention: SelfAttention {
                norm: GroupNorm::new(&vae.attention.norm, place)?,
                layers: [convolution(q)?, convolution(k)?, convolution(v)?, convolution(out)?],
            },
            after: residual(&vae.after)?,
            levels: vae.levels.iter().map(level).collect::<Result<_>>()?,
            last_norm: GroupNorm::new(&vae.last_norm, place)?,
            last: convolution(&vae.last)?,
            place: place.clone(),
        })
    }

    /// Pixels of latents that were unscaled.
    pub(super) fn pixels(&self, latents: &Picture) -> Result<Picture> {
        let shape = (latents.height, latents.width, latents.channels());
        let mut x = self.first.apply(&self.place.tensor(&latents.data, shape)?, Sampling::Same)?;
        x = self.before.apply(x)?;
        x = self.attention.apply(&x)?;
        x = self.after.apply(x)?;
        for level in &self.levels {
            for block in &level.blocks {
                x = block.apply(x)?;
            }
            if let Some(up) = &level.up {
                x = up.apply(&x, Sampling::Doubled)?;
            }
        }
        x = self.last_norm.apply(&x, Then::Silu)?;
        x = self.last.apply(&x, Sampling::Same)?;
        let (height, width, _) = x.dims3()?;
        Ok(Picture { height, width, data: vector(&x)? })
    }
}

impl Residual {
    fn new(block: &vae::Residual, place: &Place) -> Result<Self> {
        let [first, second] = &block.norms;
        let [one, two] = &block.convolutions;
        Ok(Self {
            norms: [GroupNorm::new(first, place)?, GroupNorm::new(second, place)?],
            convolutions: [Convolution::new(one, place)?, Convolution::new(two, place)?],
            shortcut: block.shortcut.as_ref().map(|layer| Convolution::new(layer, place)).transpose()?,
        })
    }

    fn apply(&self, x: Tensor) -> Result<Tensor> {
        let mut inner = self.norms[0].apply(&x, Then::Silu)?;
        inner = self.convolutions[0].apply(&inner, Sampling::Same)?;
        inner = self.norms[1].apply(&inner, Then::Silu)?;
        inner = self.convolutions[1].apply(&inner, Sampling::Same)?;
        Ok(match &self.shortcut {
            Some(shortcut) => (shortcut.apply(&x, Sampling::Same)? + inner)?,
            None => (x + inner)?,
        })
    }
}

impl SelfAttention {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (height, width, channels) = x.dims3()?;
        let normed = self.norm.apply(x, Then::Nothing)?;
        let part = |i: usize| -> Result<Tensor> {
            Ok(self.layers[i].apply(&normed, Sampling::Same)?.reshape((1, height * width, channels))?)
        };
        let q = (part(0)? * (1.0 / (channels as f64).sqrt()))?;
        let mixed = mix(&q, &part(1)?, &part(2)?, None)?.reshape((height, width, channels))?;
        Ok((x + self.layers[3].apply(&mixed, Sampling::Same)?)?)
    }
}

impl Convolution {
    fn new(layer: &picture::Convolution, place: &Place) -> Result<Self> {
        let outputs = layer.bias.len();
        let weights = place.tensor(&layer.weights, (outputs, layer.weights.len() / outputs))?;
        let bias = place.tensor(&layer.bias, outputs)?;
        Ok(Self { weights: weights.t()?.contiguous()?, bias, kernel: layer.kernel })
    }

    /// Of a picture (height, width, channels).
    fn apply(&self, x: &Tensor, sampling: Sampling) -> Result<Tensor> {
        self.apply_within(GATHERED, x, sampling)
    }

    fn apply_within(&self, most: usize, x: &Tensor, sampling: Sampling) -> Result<Tensor> {
        let (height, width, inputs) = x.dims3()?;
        let factor = sampling as usize;
        let (height, width, reach) = (height * factor, width * factor, self.kernel / 2);
        let (columns, outputs) = self.weights.dims2()?;
        let out = Tensor::zeros((height, width, outputs), x.dtype(), x.device())?;
        let band = (most / (width * columns)).max(1);
        for start in (0..height).step_by(band) {
            let end = (start + band).min(height);
            // The rows that the band sees, with zeros around the picture.
            let (top, bottom) = (start.saturating_sub(reach), (end + reach).min(height));
            let rows = sampled(x, top, bottom, factor)?;
            let (above, below) = (reach - (start - top), reach - (bottom - end));
            let rows = rows.pad_with_zeros(0, above, below)?.pad_with_zeros(1, reach, reach)?;
            let gathered = if self.kernel == 1 {
                rows
            } else {
                let gathered = Tensor::zeros((end - start, width, columns), x.dtype(), x.device())?;
                for place in 0..self.kernel * self.kernel {
                    let seen = rows.narrow(0, place / self.kernel, end - start)?;
                    let seen = seen.narrow(1, place % self.kernel, width)?.contiguous()?;
                    gathered.slice_set(&seen, 2, place * inputs)?;
                }
                gathered
            };
            let made = product(&gathered.reshape(((end - start) * width, columns))?, &self.weights)?;
            let made = made.broadcast_add(&self.bias)?.reshape((end - start, width, outputs))?;
            out.slice_set(&made, 0, start)?;
        }
        Ok(out)
    }
}

/// Rows from `top` to `bottom` of a picture `factor` times the size.
fn sampled(x: &Tensor, top: usize, bottom: usize, factor: usize) -> Result<Tensor> {
    let (first, last) = (top / factor, bottom.div_ceil(factor));
    let rows = x.narrow(0, first, last - first)?;
    if factor == 1 {
        return Ok(rows);
    }
    let (height, width, channels) = rows.dims3()?;
    let rows = rows.reshape((height, 1, width, 1, channels))?;
    let rows = rows.broadcast_as((height, factor, width, factor, channels))?;
    let rows = rows.reshape((height * factor, width * factor, channels))?;
    Ok(rows.narrow(0, top - first * factor, bottom - top)?)
}

impl GroupNorm {
    fn new(norm: &picture::GroupNorm, place: &Place) -> Result<Self> {
        let tensor = |numbers: &[f32]| place.computing(DType::F32).tensor(numbers, numbers.len());
        Ok(Self { scale: tensor(&norm.scale)?, shift: tensor(&norm.shift)?, groups: norm.groups })
    }

    fn apply(&self, x: &Tensor, then: Then) -> Result<Tensor> {
        self.apply_within(NORMED, x, then)
    }

    fn apply_within(&self, most: usize, x: &Tensor, then: Then) -> Result<Tensor> {
        let (height, width, channels) = x.dims3()?;
        let band = (most / (width * channels)).max(1);
        let bands = || (0..height).step_by(band).map(|start| (start, band.min(height - start)));
        let wide = |start, count| x.narrow(0, start, count)?.to_dtype(DType::F32);
        // Means of the numbers of each group, one for each of its channels.
        let means = |numbers: &dyn Fn(usize, usize) -> Result<Tensor>| -> Result<Tensor> {
            let mut sums = Tensor::zeros(channels, DType::F32, x.device())?;
            for (start, count) in bands() {
                // Sums over columns as products, which a device does at the speed of its memory.
                let ones = Tensor::ones((count, 1, width), DType::F32, x.device())?;
                sums = (sums + ones.matmul(&numbers(start, count)?)?.sum(0)?.squeeze(0)?)?;
            }
            let each = channels / self.groups;
            let means = (sums.reshape((self.groups, each))?.sum_keepdim(1)? / (height * width * each) as f64)?;
            Ok(means.broadcast_as((self.groups, each))?.reshape(channels)?)
        };
        let mean = means(&|start, count| Ok(wide(start, count)?))?;
        let variance = means(&|start, count| Ok(wide(start, count)?.broadcast_sub(&mean)?.sqr()?))?;
        let factor = (&self.scale / (variance + f64::from(EPSILON))?.sqrt()?)?;
        let offset = (&self.shift - (mean * &factor)?)?;
        let out = Tensor::zeros(x.shape(), x.dtype(), x.device())?;
        for (start, count) in bands() {
            let mut made = wide(start, count)?.broadcast_mul(&factor)?.broadcast_add(&offset)?;
            if then == Then::Silu {
                made = made.silu()?;
            }
            out.slice_set(&made.to_dtype(x.dtype())?, 0, start)?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use aihost_support::rows::Activation;
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place = Place { device: Device::Cpu, dtype: DType::F32, kept: DType::F32 };

    fn random(count: usize, seed: u32) -> Vec<f32> {
        let number = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 24) as f32 - 0.5;
        (0..count as u32).map(number).collect()
    }

    fn picture(height: usize, width: usize, channels: usize) -> (Picture, Tensor) {
        let data = random(height * width * channels, 7);
        let tensor = PLACE.tensor(&data, (height, width, channels)).unwrap();
        (Picture { height, width, data }, tensor)
    }

    fn close(found: &Tensor, wanted: &Picture) {
        assert_eq!(found.dims()[..2], [wanted.height, wanted.width]);
        let found = vector(found).unwrap();
        assert_eq!(found.len(), wanted.data.len());
        for (found, wanted) in found.iter().zip(&wanted.data) {
            assert!((found - wanted).abs() < 1e-4, "{found} {wanted}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Bands of one row, of some, and all at once, beside the layers of the host.
        #[test]
        fn bands_do_not_show(
            (height, width) in (1usize..7, 1usize..6),
            rows in 0usize..8,
            wide in any::<bool>(),
            doubled in any::<bool>(),
        ) {
            let (inputs, outputs, kernel) = (4, 6, if wide { 3 } else { 1 });
            let (x, tensor) = picture(height, width, inputs);
            let weights = random(outputs * kernel * kernel * inputs, 3);
            let layer = picture::Convolution { weights, bias: random(outputs, 5), kernel, inputs };
            let (sampling, wanted) = match doubled {
                true => (Sampling::Doubled, picture::Sampling::Doubled),
                false => (Sampling::Same, picture::Sampling::Same),
            };
            let most = rows * width * sampling as usize * kernel * kernel * inputs;
            let found = Convolution::new(&layer, &PLACE).unwrap().apply_within(most, &tensor, sampling).unwrap();
            close(&found, &layer.apply(&x, wanted));

            let norm = picture::GroupNorm { scale: random(inputs, 1), shift: random(inputs, 2), groups: 2 };
            let tensors = GroupNorm::new(&norm, &PLACE).unwrap();
            let most = rows * width * inputs;
            close(&tensors.apply_within(most, &tensor, Then::Nothing).unwrap(), &norm.apply(&x, None));
            close(&tensors.apply_within(most, &tensor, Then::Silu).unwrap(), &norm.apply(&x, Some(Activation::Silu)));
        }
    }
}
