//! The autoencoder's decoder in tensors: the arithmetic of [`crate::vae`].
//!
//! Channels are innermost, so that a convolution is a product of gathered patches (im2col) with its weights. Convolutions and
//! norms go through an image a band of rows at a time, which bounds their memory; norms and activations are in f32.

use aihost_engine::candle::{Result, matmul};
use aihost_support::device::{Place, attention, to_host_f32};
use candle_core::{DType, Tensor};

use crate::convolution::{self, EPSILON, FeatureMap};
use crate::vae;

/// Most elements of patches that are gathered at once.
pub(crate) const IM2COL_ELEMENTS: usize = 1 << 26;

/// Most elements of a norm's band.
pub(crate) const NORM_ELEMENTS: usize = 1 << 24;

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

/// A convolution with a square kernel, stride 1 and zero padding.
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

/// Whether a convolution upsamples its input first; the number is the factor of height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upsampling {
    None = 1,
    /// Nearest-neighbour.
    Nearest2x = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    Silu,
}

impl Vae {
    pub(super) fn new(vae: &vae::Vae, place: &Place) -> Result<Self> {
        let convolution = |layer: &convolution::Convolution| Convolution::new(layer, place);
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

    /// Pixels (height, width, 3) of unscaled latents (height, width, channels).
    pub(super) fn pixels(&self, latents: &FeatureMap) -> Result<FeatureMap> {
        let shape = (latents.height, latents.width, latents.channels());
        let mut x = self.first.apply(&self.place.tensor(&latents.data, shape)?, Upsampling::None)?;
        x = self.before.apply(x)?;
        x = self.attention.apply(&x)?;
        x = self.after.apply(x)?;
        for level in &self.levels {
            for block in &level.blocks {
                x = block.apply(x)?;
            }
            if let Some(up) = &level.up {
                x = up.apply(&x, Upsampling::Nearest2x)?;
            }
        }
        x = self.last_norm.apply(&x, Then::Silu)?;
        x = self.last.apply(&x, Upsampling::None)?;
        let (height, width, _) = x.dims3()?;
        Ok(FeatureMap { height, width, data: to_host_f32(&x)? })
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
        inner = self.convolutions[0].apply(&inner, Upsampling::None)?;
        inner = self.norms[1].apply(&inner, Then::Silu)?;
        inner = self.convolutions[1].apply(&inner, Upsampling::None)?;
        Ok(match &self.shortcut {
            Some(shortcut) => (shortcut.apply(&x, Upsampling::None)? + inner)?,
            None => (x + inner)?,
        })
    }
}

impl SelfAttention {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (height, width, channels) = x.dims3()?;
        let normed = self.norm.apply(x, Then::Nothing)?;
        let part = |i: usize| -> Result<Tensor> {
            Ok(self.layers[i].apply(&normed, Upsampling::None)?.reshape((1, height * width, channels))?)
        };
        let q = (part(0)? * (1.0 / (channels as f64).sqrt()))?;
        let attended = attention(&q, &part(1)?, &part(2)?, None)?.reshape((height, width, channels))?;
        Ok((x + self.layers[3].apply(&attended, Upsampling::None)?)?)
    }
}

impl Convolution {
    fn new(layer: &convolution::Convolution, place: &Place) -> Result<Self> {
        let outputs = layer.bias.len();
        let weights = place.tensor(&layer.weights, (outputs, layer.weights.len() / outputs))?;
        let bias = place.tensor(&layer.bias, outputs)?;
        Ok(Self { weights: weights.t()?.contiguous()?, bias, kernel: layer.kernel })
    }

    /// A feature map (height, width, in) to (height, width, out), upsampled first.
    fn apply(&self, x: &Tensor, upsampling: Upsampling) -> Result<Tensor> {
        self.apply_within(IM2COL_ELEMENTS, x, upsampling)
    }

    fn apply_within(&self, most: usize, x: &Tensor, upsampling: Upsampling) -> Result<Tensor> {
        let (height, width, inputs) = x.dims3()?;
        let factor = upsampling as usize;
        let (height, width, reach) = (height * factor, width * factor, self.kernel / 2);
        let (columns, outputs) = self.weights.dims2()?;
        let out = Tensor::zeros((height, width, outputs), x.dtype(), x.device())?;
        let band = (most / (width * columns)).max(1);
        for start in (0..height).step_by(band) {
            let end = (start + band).min(height);
            // The rows that the band sees, with zeros around the image.
            let (top, bottom) = (start.saturating_sub(reach), (end + reach).min(height));
            let rows = upsampled(x, top, bottom, factor)?;
            let (above, below) = (reach - (start - top), reach - (bottom - end));
            let rows = rows.pad_with_zeros(0, above, below)?.pad_with_zeros(1, reach, reach)?;
            let patches = if self.kernel == 1 {
                rows
            } else {
                let patches = Tensor::zeros((end - start, width, columns), x.dtype(), x.device())?;
                for place in 0..self.kernel * self.kernel {
                    let seen = rows.narrow(0, place / self.kernel, end - start)?;
                    let seen = seen.narrow(1, place % self.kernel, width)?.contiguous()?;
                    patches.slice_set(&seen, 2, place * inputs)?;
                }
                patches
            };
            let made = matmul(&patches.reshape(((end - start) * width, columns))?, &self.weights)?;
            let made = made.broadcast_add(&self.bias)?.reshape((end - start, width, outputs))?;
            out.slice_set(&made, 0, start)?;
        }
        Ok(out)
    }
}

/// Rows from `top` to `bottom` of an image `factor` times the size.
fn upsampled(x: &Tensor, top: usize, bottom: usize, factor: usize) -> Result<Tensor> {
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
    fn new(norm: &convolution::GroupNorm, place: &Place) -> Result<Self> {
        let tensor = |values: &[f32]| place.computing(DType::F32).tensor(values, values.len());
        Ok(Self { scale: tensor(&norm.scale)?, shift: tensor(&norm.shift)?, groups: norm.groups })
    }

    fn apply(&self, x: &Tensor, then: Then) -> Result<Tensor> {
        self.apply_within(NORM_ELEMENTS, x, then)
    }

    fn apply_within(&self, most: usize, x: &Tensor, then: Then) -> Result<Tensor> {
        let (height, width, channels) = x.dims3()?;
        let band = (most / (width * channels)).max(1);
        let bands = || (0..height).step_by(band).map(|start| (start, band.min(height - start)));
        let wide = |start, count| x.narrow(0, start, count)?.to_dtype(DType::F32);
        // The mean of each group, repeated for each of its channels.
        let means = |values: &dyn Fn(usize, usize) -> Result<Tensor>| -> Result<Tensor> {
            let mut sums = Tensor::zeros(channels, DType::F32, x.device())?;
            for (start, count) in bands() {
                // Sums over columns as matrix products, which a device does at the speed of its memory.
                let ones = Tensor::ones((count, 1, width), DType::F32, x.device())?;
                sums = (sums + ones.matmul(&values(start, count)?)?.sum(0)?.squeeze(0)?)?;
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
    use aihost_engine::cpu::rows::Activation;
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place = Place { device: Device::Cpu, dtype: DType::F32, kept: DType::F32 };

    fn random(count: usize, seed: u32) -> Vec<f32> {
        let number = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 24) as f32 - 0.5;
        (0..count as u32).map(number).collect()
    }

    fn image(height: usize, width: usize, channels: usize) -> (FeatureMap, Tensor) {
        let data = random(height * width * channels, 7);
        let tensor = PLACE.tensor(&data, (height, width, channels)).unwrap();
        (FeatureMap { height, width, data }, tensor)
    }

    fn close(found: &Tensor, wanted: &FeatureMap) {
        assert_eq!(found.dims()[..2], [wanted.height, wanted.width]);
        let found = to_host_f32(found).unwrap();
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
            let (x, tensor) = image(height, width, inputs);
            let weights = random(outputs * kernel * kernel * inputs, 3);
            let layer = convolution::Convolution { weights, bias: random(outputs, 5), kernel, inputs };
            let (upsampling, wanted) = match doubled {
                true => (Upsampling::Nearest2x, convolution::Upsampling::Nearest2x),
                false => (Upsampling::None, convolution::Upsampling::None),
            };
            let most = rows * width * upsampling as usize * kernel * kernel * inputs;
            let found = Convolution::new(&layer, &PLACE).unwrap().apply_within(most, &tensor, upsampling).unwrap();
            close(&found, &layer.apply(&x, wanted));

            let norm = convolution::GroupNorm { scale: random(inputs, 1), shift: random(inputs, 2), groups: 2 };
            let tensors = GroupNorm::new(&norm, &PLACE).unwrap();
            let most = rows * width * inputs;
            close(&tensors.apply_within(most, &tensor, Then::Nothing).unwrap(), &norm.apply(&x, None));
            close(&tensors.apply_within(most, &tensor, Then::Silu).unwrap(), &norm.apply(&x, Some(Activation::Silu)));
        }
    }
}
