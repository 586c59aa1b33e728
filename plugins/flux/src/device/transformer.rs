//! FLUX.1's transformer in tensors: the arithmetic of [`crate::transformer`].
//!
//! Norms and modulations are one kernel each (a layer norm whose scale is 1 plus the step's), queries and keys are normed
//! and rotated in f32, and scores are never whole in memory.

use aihost_engine::candle::{self, retry_out_of_memory};
use aihost_engine::cpu::rows::Activation;
use aihost_plugin_api::Result;
use aihost_support::device::{Linear, Place, UploadOptions, activate, attention, to_host_f32};
use candle_core::{D, DType, Tensor};

use super::linear;
use crate::backend::{Denoiser, States};
use crate::config::TransformerConfig;
use crate::layers;
use crate::rope;
use crate::transformer::{self, Conditions, EPSILON, sinusoids, times};

/// A loaded transformer.
#[derive(Debug)]
pub(crate) struct Transformer {
    config: TransformerConfig,
    place: Place,
    image_in: Linear,
    text_in: Linear,
    time_in: Embedder,
    guidance_in: Option<Embedder>,
    vector_in: Embedder,
    double: Vec<[Stream; 2]>,
    single: Vec<SingleBlock>,
    /// Shift and scale.
    last_modulation: [Linear; 2],
    out: Linear,
}

#[derive(Debug)]
struct Embedder {
    first: Linear,
    second: Linear,
}

/// One stream of a double block; text stands before image.
#[derive(Debug)]
struct Stream {
    modulation: Linear,
    attention: QueryKeyValue,
    out: Linear,
    up: Linear,
    down: Linear,
}

#[derive(Debug)]
struct SingleBlock {
    modulation: Linear,
    attention: QueryKeyValue,
    up: Linear,
    /// From the attention's output and the feed-forward layer's inner activations, side by side.
    out: Linear,
}

#[derive(Debug)]
struct QueryKeyValue {
    all: Linear,
    /// In f32; the queries' also scales the scores.
    query_scale: Tensor,
    key_scale: Tensor,
}

/// Queries, keys and values, (tokens, heads, head) each.
type Heads = [Tensor; 3];

/// The state of one request: what its denoising steps share.
#[derive(Debug)]
pub(crate) struct DeviceDenoiser<'a> {
    transformer: &'a Transformer,
    /// Projected text, (text, hidden).
    text: Tensor,
    /// Cosines and sines, (text + image, head / 2), f32.
    rotary: [Tensor; 2],
    /// (steps, 2, 6, hidden) for each double block: text, image.
    double: Vec<[Tensor; 2]>,
    /// (steps, 3, hidden) for each single block.
    single: Vec<Tensor>,
    /// Shift and scale, (steps, 1, hidden) each.
    last: [Tensor; 2],
}

impl Transformer {
    pub(super) fn new(loaded: &transformer::Transformer, options: UploadOptions<'_>) -> candle::Result<Self> {
        let place = options.place;
        let config = loaded.config.clone();
        let linear = |layer: &layers::Linear| linear(layer, options);
        let embedder = |layers: &transformer::Embedder| -> candle::Result<Embedder> {
            Ok(Embedder { first: linear(&layers.first)?, second: linear(&layers.second)? })
        };
        let attention = |layer: &transformer::QueryKeyValue| -> candle::Result<QueryKeyValue> {
            let scale = |scale: &[f32], factor: f64| -> candle::Result<Tensor> {
                Ok((Tensor::from_slice(scale, config.head(), &place.device)? * factor)?)
            };
            Ok(QueryKeyValue {
                all: linear(&layer.all)?,
                query_scale: scale(&layer.query_scale, 1.0 / (config.head() as f64).sqrt())?,
                key_scale: scale(&layer.key_scale, 1.0)?,
            })
        };
        let stream = |stream: &transformer::Stream| -> candle::Result<Stream> {
            Ok(Stream {
                modulation: linear(&stream.modulation)?,
                attention: attention(&stream.attention)?,
                out: linear(&stream.out)?,
                up: linear(&stream.up)?,
                down: linear(&stream.down)?,
            })
        };
        let single = |block: &transformer::SingleBlock| -> candle::Result<SingleBlock> {
            Ok(SingleBlock {
                modulation: linear(&block.modulation)?,
                attention: attention(&block.attention)?,
                up: linear(&block.up)?,
                out: linear(&block.out)?,
            })
        };
        let double = loaded.double.iter().map(|block| Ok([stream(&block.text)?, stream(&block.image)?]));
        let [shift, scale] = &loaded.last_modulation;
        Ok(Self {
            image_in: linear(&loaded.image_in)?,
            text_in: linear(&loaded.text_in)?,
            time_in: embedder(&loaded.time_in)?,
            guidance_in: loaded.guidance_in.as_ref().map(embedder).transpose()?,
            vector_in: embedder(&loaded.vector_in)?,
            double: double.collect::<candle::Result<_>>()?,
            single: loaded.single.iter().map(single).collect::<candle::Result<_>>()?,
            last_modulation: [linear(shift)?, linear(scale)?],
            out: linear(&loaded.out)?,
            place: place.clone(),
            config,
        })
    }

    /// Computes what all steps of a request share.
    pub(super) fn denoiser(&self, conditions: &Conditions<'_>) -> candle::Result<DeviceDenoiser<'_>> {
        let &Conditions { text, grid: (rows, columns), .. } = conditions;
        let tokens = text.len() / self.config.context;
        let text = self.text_in.forward(&self.place.tensor(text, (tokens, self.config.context))?)?;
        let vectors = self.vectors(conditions)?;
        // 1 is added to scales, once for all steps.
        let modulation = |layer: &Linear, ones: &[f32]| -> candle::Result<Tensor> {
            let ones = self.place.tensor(ones, (1, ones.len(), 1))?;
            let steps = vectors.dim(0)?;
            Ok(layer.forward(&vectors)?.reshape((steps, ones.elem_count(), ()))?.broadcast_add(&ones)?)
        };
        let double = |[text, image]: &[Stream; 2]| -> candle::Result<[Tensor; 2]> {
            let ones = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0];
            Ok([modulation(&text.modulation, &ones)?, modulation(&image.modulation, &ones)?])
        };
        let rotary = rope::rotary_table(self.config.axes, tokens, rows, columns);
        let rotary = |i: usize| {
            let values = rotary.iter().map(|cos_sin| cos_sin[i]);
            Tensor::from_iter(values, &self.place.device)?.reshape((tokens + rows * columns, self.config.head() / 2))
        };
        let [shift, scale] = &self.last_modulation;
        Ok(DeviceDenoiser {
            rotary: [rotary(0)?, rotary(1)?],
            double: self.double.iter().map(double).collect::<candle::Result<_>>()?,
            single: (self.single.iter().map(|block| modulation(&block.modulation, &[0.0, 1.0, 0.0])))
                .collect::<candle::Result<_>>()?,
            last: [modulation(shift, &[0.0])?, modulation(scale, &[1.0])?],
            text,
            transformer: self,
        })
    }

    /// What modulations are made of, for every step: (steps, hidden), through SiLU.
    fn vectors(&self, conditions: &Conditions<'_>) -> candle::Result<Tensor> {
        let embed = |embedder: &Embedder, values: &[f32], rows: usize| -> candle::Result<Tensor> {
            let inner = embedder.first.forward(&self.place.tensor(values, (rows, values.len() / rows))?)?;
            embedder.second.forward(&activate(Activation::Silu, inner)?)
        };
        let time = times(conditions.sigmas);
        let mut constant = embed(&self.vector_in, conditions.pooled, 1)?;
        if let Some(embedder) = &self.guidance_in {
            constant = (constant + embed(embedder, &sinusoids(conditions.guidance * 1000.0), 1)?)?;
        }
        let vectors = embed(&self.time_in, &time, conditions.sigmas.len() - 1)?.broadcast_add(&constant)?;
        activate(Activation::Silu, vectors)
    }
}

impl QueryKeyValue {
    /// Queries and keys after their norm, and values, of normed states (tokens, hidden).
    fn heads(&self, normed: &Tensor) -> candle::Result<Heads> {
        let tokens = normed.dim(0)?;
        let parts = self.all.forward(normed)?.reshape((tokens, 3, (), self.query_scale.elem_count()))?;
        let part = |i: usize| parts.narrow(1, i, 1)?.squeeze(1);
        let normed = |i: usize, scale: &Tensor| -> candle::Result<Tensor> {
            let wide = part(i)?.to_dtype(DType::F32)?.contiguous()?;
            Ok(candle_nn::ops::rms_norm(&wide, scale, EPSILON)?)
        };
        Ok([normed(0, &self.query_scale)?, normed(1, &self.key_scale)?, part(2)?])
    }
}

/// A layer norm of `x`, modulated by rows `shift` and `shift + 1` (the scale) of (parts, hidden).
fn norm(x: &Tensor, parts: &Tensor, shift: usize) -> candle::Result<Tensor> {
    Ok(candle_nn::ops::layer_norm(x, &parts.get(shift + 1)?, &parts.get(shift)?, EPSILON)?)
}

/// The residual `x` plus a gated branch.
fn add_gated(x: &Tensor, branch: &Tensor, gate: &Tensor) -> candle::Result<Tensor> {
    let sum = (x + branch.broadcast_mul(gate)?)?;
    // What the reference does: sums of large models pass what f16 can hold.
    Ok(if sum.dtype() == DType::F16 { sum.clamp(half_most(-1.0), half_most(1.0))? } else { sum })
}

/// The largest f16 of a sign.
fn half_most(sign: f32) -> f32 {
    sign * 65504.0
}

impl DeviceDenoiser<'_> {
    /// The attention's output (text + image, hidden).
    fn attention(&self, [q, k, v]: Heads) -> candle::Result<Tensor> {
        let [cosines, sines] = &self.rotary;
        let heads_first = |x: Tensor| x.transpose(0, 1)?.contiguous();
        let rotated = |x: Tensor| -> candle::Result<Tensor> {
            let x = heads_first(x)?.unsqueeze(0)?;
            let rotated = candle_nn::rotary_emb::rope_i(&x, cosines, sines)?.squeeze(0)?;
            drop(x);
            Ok(rotated.to_dtype(v.dtype())?)
        };
        let (q, k) = (rotated(q)?, rotated(k)?);
        attention(&q, &k, &heads_first(v)?, None)
    }

    /// Runs a block of two streams, which meet in their attention.
    fn double_block(&self, block: usize, step: usize, states: &mut [Tensor; 2]) -> candle::Result<()> {
        let streams = &self.transformer.double[block];
        let parts = [self.double[block][0].get(step)?, self.double[block][1].get(step)?];
        let heads = |i: usize| streams[i].attention.heads(&norm(&states[i], &parts[i], 0)?);
        let ([q, k, v], [image_q, image_k, image_v]) = (heads(0)?, heads(1)?);
        let both = |text: Tensor, image: Tensor| Tensor::cat(&[text, image], 0);
        let attended = self.attention([both(q, image_q)?, both(k, image_k)?, both(v, image_v)?])?;
        let mut start = 0;
        for ((stream, states), parts) in streams.iter().zip(states).zip(&parts) {
            let count = states.dim(0)?;
            let branch = stream.out.forward(&attended.narrow(0, start, count)?)?;
            start += count;
            *states = add_gated(states, &branch, &parts.get(2)?)?;
            let inner = stream.up.forward(&norm(states, parts, 3)?)?;
            let branch = stream.down.forward(&activate(Activation::GeluTanh, inner)?)?;
            *states = add_gated(states, &branch, &parts.get(5)?)?;
        }
        Ok(())
    }

    /// Runs a block in which attention and feed-forward layer stand beside each other.
    fn single_block(&self, block: usize, step: usize, states: &Tensor) -> candle::Result<Tensor> {
        let SingleBlock { attention, up, out, .. } = &self.transformer.single[block];
        let parts = self.single[block].get(step)?;
        let normed = norm(states, &parts, 0)?;
        let attended = self.attention(attention.heads(&normed)?)?;
        let inner = activate(Activation::GeluTanh, up.forward(&normed)?)?;
        let both = Tensor::cat(&[attended, inner], D::Minus1)?;
        let branch = out.forward(&both)?;
        drop((normed, both));
        add_gated(states, &branch, &parts.get(2)?)
    }

    /// Text and image as states.
    fn begin(&self, image: &[f32]) -> candle::Result<[Tensor; 2]> {
        let Transformer { config, place, image_in, .. } = self.transformer;
        let image = place.tensor(image, (image.len() / config.in_channels, config.in_channels))?;
        Ok([self.text.clone(), image_in.forward(&image)?])
    }

    /// The velocity at a step for image tokens, both (tokens, in_channels).
    fn velocity(&self, step: usize, image: &[f32]) -> candle::Result<Vec<f32>> {
        let Transformer { out, double, single, .. } = self.transformer;
        let mut states = self.begin(image)?;
        for block in 0..double.len() {
            self.double_block(block, step, &mut states)?;
        }
        let text = states[0].dim(0)?;
        let mut joined = Tensor::cat(&states, 0)?;
        drop(states);
        for block in 0..single.len() {
            joined = self.single_block(block, step, &joined)?;
        }
        let image = joined.narrow(0, text, joined.dim(0)? - text)?;
        let [shift, scale] = [&self.last[0], &self.last[1]].map(|part| part.get(step)?.get(0));
        to_host_f32(&out.forward(&candle_nn::ops::layer_norm(&image, &scale?, &shift?, EPSILON)?)?)
    }

    fn states_of_first_block(&self, image: &[f32]) -> candle::Result<States> {
        let mut states = self.begin(image)?;
        self.double_block(0, 0, &mut states)?;
        Ok((to_host_f32(&states[0])?, to_host_f32(&states[1])?))
    }
}

impl Denoiser for DeviceDenoiser<'_> {
    fn predict(&mut self, step: usize, image: &[f32]) -> Result<Vec<f32>> {
        retry_out_of_memory(&self.transformer.place.device, || Ok(self.velocity(step, image)?))
    }

    fn first_block(&mut self, image: &[f32]) -> Result<States> {
        Ok(self.states_of_first_block(image)?)
    }
}
