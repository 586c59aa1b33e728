//! The autoencoder's feature maps, and the two layers it is made of: convolution and group norm.
//!
//! Channels are innermost, so that a convolution is a product of patches patches (im2col) with its weights. f32.

use std::cell::RefCell;

use aihost_engine::cpu::rows::{self, Activation};
use aihost_plugin_api::Result;
use aihost_support::checkpoint::Layers;
use aihost_support::gemm::{View, ViewMut, matmul};
use rayon::prelude::*;

/// Added to variances before the square root.
pub(crate) const EPSILON: f32 = 1e-6;

/// Output pixels of a convolution whose patches are gathered at once.
pub(crate) const IM2COL_PIXELS: usize = 192;

/// A feature map: (height, width, channels), f32.
#[derive(Clone, Debug)]
pub(crate) struct FeatureMap {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) data: Vec<f32>,
}

impl FeatureMap {
    pub(crate) fn channels(&self) -> usize {
        self.data.len() / (self.height * self.width)
    }
}

/// Whether a convolution upsamples its input first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upsampling {
    None,
    /// Nearest-neighbour to twice the height and width.
    Nearest2x,
}

/// A convolution with a square kernel, stride 1 and zero padding, which keeps height and width.
#[derive(Debug)]
pub(crate) struct Convolution {
    /// (out, kernel, kernel, in)
    pub(crate) weights: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) kernel: usize,
    pub(crate) inputs: usize,
}

thread_local! {
    static PATCHES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Convolution {
    pub(crate) fn load(layers: &dyn Layers, name: &str, inputs: usize, outputs: usize, kernel: usize) -> Result<Self> {
        let stored = layers.tensor_f32(&format!("{name}.weight"), &[outputs, inputs, kernel, kernel])?;
        let area = kernel * kernel;
        // From (out, in, kernel, kernel) to channels innermost.
        let at = |i: usize| {
            let (out, place, channel) = (i / (area * inputs), i / inputs % area, i % inputs);
            stored[(out * inputs + channel) * area + place]
        };
        let weights = (0..stored.len()).map(at).collect();
        Ok(Self { weights, bias: layers.tensor_f32(&format!("{name}.bias"), &[outputs])?, kernel, inputs })
    }

    pub(crate) fn apply(&self, x: &FeatureMap, upsampling: Upsampling) -> FeatureMap {
        let factor = if upsampling == Upsampling::Nearest2x { 2 } else { 1 };
        let (height, width, outputs) = (x.height * factor, x.width * factor, self.bias.len());
        let columns = self.kernel * self.kernel * self.inputs;
        let weights = View::rows(&self.weights, outputs, columns, columns).transposed();
        let mut data = vec![0.0; height * width * outputs];
        data.par_chunks_mut(IM2COL_PIXELS * outputs).enumerate().for_each(|(i, out)| {
            let pixels = out.len() / outputs;
            let mut patches = PATCHES.take();
            patches.resize(pixels * columns, 0.0);
            for (j, patch) in patches.chunks_exact_mut(columns).enumerate() {
                let place = i * IM2COL_PIXELS + j;
                self.im2col(x, (place / width, place % width), factor, patch);
            }
            let target = &mut ViewMut::rows(out, pixels, outputs, outputs);
            matmul(View::rows(&patches, pixels, columns, columns), weights, 1.0, target);
            out.chunks_exact_mut(outputs).for_each(|pixel| rows::add_bias(pixel, &self.bias));
            PATCHES.set(patches);
        });
        FeatureMap { height, width, data }
    }

    /// The patch (kernel, kernel, in) that the kernel sees at a pixel of the result.
    fn im2col(&self, x: &FeatureMap, (row, column): (usize, usize), factor: usize, patch: &mut [f32]) {
        let reach = self.kernel / 2;
        for (i, pixel) in patch.chunks_exact_mut(self.inputs).enumerate() {
            let (y, x_place) = (row + i / self.kernel, column + i % self.kernel);
            let inside =
                (reach..x.height * factor + reach).contains(&y) && (reach..x.width * factor + reach).contains(&x_place);
            if inside {
                let place = (y - reach) / factor * x.width + (x_place - reach) / factor;
                pixel.copy_from_slice(&x.data[place * self.inputs..(place + 1) * self.inputs]);
            } else {
                pixel.fill(0.0);
            }
        }
    }
}

/// Norm over groups of channels and all pixels (Wu and He 2018).
#[derive(Debug)]
pub(crate) struct GroupNorm {
    pub(crate) scale: Vec<f32>,
    pub(crate) shift: Vec<f32>,
    pub(crate) groups: usize,
}

impl GroupNorm {
    pub(crate) fn load(layers: &dyn Layers, name: &str, groups: usize, channels: usize) -> Result<Self> {
        let tensor = |part| layers.tensor_f32(&format!("{name}.{part}"), &[channels]);
        Ok(Self { scale: tensor("weight")?, shift: tensor("bias")?, groups })
    }

    pub(crate) fn apply(&self, x: &FeatureMap, activation: Option<Activation>) -> FeatureMap {
        let channels = x.channels();
        let pixels = x.height * x.width;
        let group = channels / self.groups;
        // Sums by channel in f64: a group of a large image has millions of elements.
        let pieces: Vec<Vec<[f64; 2]>> = x
            .data
            .par_chunks(channels * IM2COL_PIXELS)
            .map(|piece| {
                let mut sums = vec![[0.0; 2]; channels];
                for pixel in piece.chunks_exact(channels) {
                    for ([sum, squares], x) in sums.iter_mut().zip(pixel) {
                        *sum += f64::from(*x);
                        *squares += f64::from(*x) * f64::from(*x);
                    }
                }
                sums
            })
            .collect();
        let mut sums = vec![[0.0; 2]; self.groups];
        for (channel, [sum, squares]) in pieces.iter().flat_map(|piece| piece.iter().enumerate()) {
            let [all, all_squares] = &mut sums[channel / group];
            (*all, *all_squares) = (*all + sum, *all_squares + squares);
        }
        let count = (pixels * group) as f64;
        let (mut factor, mut offset) = (self.scale.clone(), self.shift.clone());
        for (channel, (factor, offset)) in factor.iter_mut().zip(&mut offset).enumerate() {
            let [sum, squares] = sums[channel / group];
            let mean = sum / count;
            let variance = (squares / count - mean * mean).max(0.0);
            *factor = (f64::from(*factor) / (variance + f64::from(EPSILON)).sqrt()) as f32;
            *offset = (f64::from(*offset) - mean * f64::from(*factor)) as f32;
        }
        let mut data = vec![0.0; x.data.len()];
        data.par_chunks_exact_mut(channels).zip(x.data.par_chunks_exact(channels)).for_each(|(out, pixel)| {
            rows::affine(pixel, (&factor, &offset), activation, out);
        });
        FeatureMap { data, ..*x }
    }
}

/// `x += other`.
pub(crate) fn add(x: &mut FeatureMap, other: &FeatureMap) {
    let pieces = x.data.par_chunks_mut(1 << 14).zip(other.data.par_chunks(1 << 14));
    pieces.for_each(|(x, other)| rows::add_gated(x, other, &[], &[]));
}
