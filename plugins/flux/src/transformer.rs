//! The transformer of FLUX.1 (Black Forest Labs 2024; blocks after Esser et al. 2024 and Dehghani et al. 2023): text states
//! and noisy image tokens in, the velocity (flow matching) out.
//!
//! What does not change between the steps of a request is computed once, in [`DenoisingSession`]: the text's projection, the rotary
//! embedding, and every block's modulation for every step.

use aihost_engine::cpu::rows::{self, Activation};
use aihost_plugin_api::Result;
use aihost_support::attention::{Attention, Heads, Mask};
use aihost_support::checkpoint::{Layers, Renamed};
use rayon::prelude::*;

use crate::config::{Names, SINUSOIDS, TransformerConfig};
use crate::layers::Linear;
use crate::rope;

/// Added to variances and mean squares.
pub(crate) const EPSILON: f32 = 1e-6;

/// Tokens whose feed-forward layer is computed at once: what bounds its memory.
pub const CHUNK: usize = 1024;

/// A loaded transformer.
#[derive(Debug)]
pub struct Transformer {
    pub(crate) config: TransformerConfig,
    pub(crate) image_in: Linear,
    pub(crate) text_in: Linear,
    pub(crate) time_in: Embedder,
    pub(crate) guidance_in: Option<Embedder>,
    pub(crate) vector_in: Embedder,
    pub(crate) double: Vec<DoubleBlock>,
    pub(crate) single: Vec<SingleBlock>,
    /// Shift and scale.
    pub(crate) last_modulation: [Linear; 2],
    pub(crate) out: Linear,
}

/// A multi-layer perceptron: linear, SiLU, linear.
#[derive(Debug)]
pub(crate) struct Embedder {
    pub(crate) first: Linear,
    pub(crate) second: Linear,
}

/// One stream of a double block.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) modulation: Linear,
    pub(crate) attention: QueryKeyValue,
    pub(crate) out: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

#[derive(Debug)]
pub(crate) struct DoubleBlock {
    pub(crate) image: Stream,
    pub(crate) text: Stream,
}

#[derive(Debug)]
pub(crate) struct SingleBlock {
    pub(crate) modulation: Linear,
    pub(crate) attention: QueryKeyValue,
    pub(crate) up: Linear,
    /// From the attention's output and the feed-forward layer's inner activations, side by side.
    pub(crate) out: Linear,
}

#[derive(Debug)]
pub(crate) struct QueryKeyValue {
    pub(crate) all: Linear,
    pub(crate) query_scale: Vec<f32>,
    pub(crate) key_scale: Vec<f32>,
}

/// The conditioning of one request, f32.
#[derive(Clone, Copy, Debug)]
pub struct Conditions<'a> {
    /// (tokens, context)
    pub text: &'a [f32],
    /// (pooled)
    pub pooled: &'a [f32],
    /// Noise levels, (steps + 1), the last of them 0.
    pub sigmas: &'a [f32],
    /// Guidance scale: the weight of the prompt; ignored where the model has no guidance embedding.
    pub guidance: f32,
    /// Rows and columns of image tokens.
    pub grid: (usize, usize),
}

/// The state of one request, f32: what its denoising steps share, and their buffers.
#[derive(Debug)]
pub struct DenoisingSession {
    /// Projected text, (text, hidden).
    text: Vec<f32>,
    /// (text + image, head / 2)
    rotary: Vec<[f32; 2]>,
    /// Every block's modulation, in the order of blocks, (steps, width).
    modulations: Vec<Vec<f32>>,
    /// Text before image, (text + image, hidden).
    states: Vec<f32>,
    /// As `states`: normed states, then attended values.
    normed: Vec<f32>,
    /// (text + image, 3 * hidden)
    qkv: Vec<f32>,
    /// (CHUNK, hidden + inner)
    wide: Vec<f32>,
    /// (CHUNK, hidden)
    branch: Vec<f32>,
}

impl DenoisingSession {
    /// States of the text and of the image after the last block that was run, (tokens, hidden) each.
    pub fn states(&self) -> (&[f32], &[f32]) {
        self.states.split_at(self.text.len())
    }

    /// Bytes that a request of `text` and `image` tokens and `steps` steps keeps.
    pub fn bytes(config: &TransformerConfig, text: usize, image: usize, steps: usize) -> u64 {
        let (hidden, tokens) = (config.hidden, text + image);
        let chunk = tokens.min(CHUNK);
        let modulation = (12 * config.double_blocks + 3 * config.single_blocks + 2) * hidden;
        let elements = text * hidden + tokens * (config.head() + 5 * hidden) + steps * (modulation + hidden);
        4 * (elements + chunk * (2 * hidden + config.inner)) as u64
    }
}

impl Transformer {
    /// Loads from `layers`, named as the configuration says.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(config: &TransformerConfig, layers: &dyn Layers) -> Result<Self> {
        let layers = &Renamed::below(layers, config.prefix.as_str());
        match config.names {
            Names::Original => Self::original(config, layers),
            Names::Diffusers => Self::diffusers(config, layers),
        }
    }

    fn original(config: &TransformerConfig, layers: &dyn Layers) -> Result<Self> {
        let &TransformerConfig { hidden, inner, .. } = config;
        let linear = |name: &str, rows, columns| Linear::load(layers, name, rows, columns);
        let embedder = |name: &str, columns| -> Result<Embedder> {
            let first = linear(&format!("{name}.in_layer"), hidden, columns)?;
            Ok(Embedder { first, second: linear(&format!("{name}.out_layer"), hidden, hidden)? })
        };
        let scales = |name: String, all| -> Result<QueryKeyValue> {
            let scale = |part| layers.tensor_f32(&format!("{name}.{part}_norm.scale"), &[config.head()]);
            Ok(QueryKeyValue { all, query_scale: scale("query")?, key_scale: scale("key")? })
        };
        let stream = |i: usize, name: &str| -> Result<Stream> {
            let name = format!("double_blocks.{i}.{name}");
            let qkv = linear(&format!("{name}_attn.qkv"), 3 * hidden, hidden)?;
            Ok(Stream {
                modulation: linear(&format!("{name}_mod.lin"), 6 * hidden, hidden)?,
                attention: scales(format!("{name}_attn.norm"), qkv)?,
                out: linear(&format!("{name}_attn.proj"), hidden, hidden)?,
                up: linear(&format!("{name}_mlp.0"), inner, hidden)?,
                down: linear(&format!("{name}_mlp.2"), hidden, inner)?,
            })
        };
        let single = |i: usize| -> Result<SingleBlock> {
            let name = format!("single_blocks.{i}");
            let both = linear(&format!("{name}.linear1"), 3 * hidden + inner, hidden)?;
            Ok(SingleBlock {
                modulation: linear(&format!("{name}.modulation.lin"), 3 * hidden, hidden)?,
                attention: scales(format!("{name}.norm"), both.part(0..3 * hidden))?,
                up: both.part(3 * hidden..3 * hidden + inner),
                out: linear(&format!("{name}.linear2"), hidden, hidden + inner)?,
            })
        };
        let last = linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden)?;
        Ok(Self {
            image_in: linear("img_in", hidden, config.in_channels)?,
            text_in: linear("txt_in", hidden, config.context)?,
            time_in: embedder("time_in", SINUSOIDS)?,
            guidance_in: config.guidance.then(|| embedder("guidance_in", SINUSOIDS)).transpose()?,
            vector_in: embedder("vector_in", config.pooled)?,
            double: (0..config.double_blocks)
                .map(|i| Ok(DoubleBlock { image: stream(i, "img")?, text: stream(i, "txt")? }))
                .collect::<Result<_>>()?,
            single: (0..config.single_blocks).map(single).collect::<Result<_>>()?,
            last_modulation: [last.part(0..hidden), last.part(hidden..2 * hidden)],
            out: linear("final_layer.linear", config.in_channels, hidden)?,
            config: config.clone(),
        })
    }

    fn diffusers(config: &TransformerConfig, layers: &dyn Layers) -> Result<Self> {
        let &TransformerConfig { hidden, inner, .. } = config;
        let linear = |name: &str, rows, columns| Linear::load(layers, name, rows, columns);
        let embedder = |name: &str, columns| -> Result<Embedder> {
            let first = linear(&format!("time_text_embed.{name}_embedder.linear_1"), hidden, columns)?;
            Ok(Embedder {
                first,
                second: linear(&format!("time_text_embed.{name}_embedder.linear_2"), hidden, hidden)?,
            })
        };
        let attention = |name: &str, parts: [&str; 3], norms: [&str; 2]| -> Result<QueryKeyValue> {
            let names = parts.map(|part| format!("{name}.{part}"));
            let [q, k, v] = names.each_ref().map(|name| (name.as_str(), hidden));
            let scale = |norm: &str| layers.tensor_f32(&format!("{name}.{norm}.weight"), &[config.head()]);
            let all = Linear::stack(layers, &[q, k, v], hidden)?;
            Ok(QueryKeyValue { all, query_scale: scale(norms[0])?, key_scale: scale(norms[1])? })
        };
        let double = |i: usize| -> Result<DoubleBlock> {
            let name = format!("transformer_blocks.{i}");
            let at = |part: &str| format!("{name}.{part}");
            let stream = |modulation: &str, out: &str, inner_name: &str, attention| -> Result<Stream> {
                Ok(Stream {
                    modulation: linear(&at(modulation), 6 * hidden, hidden)?,
                    attention,
                    out: linear(&at(out), hidden, hidden)?,
                    up: linear(&at(&format!("{inner_name}.net.0.proj")), inner, hidden)?,
                    down: linear(&at(&format!("{inner_name}.net.2")), hidden, inner)?,
                })
            };
            let image = attention(&at("attn"), ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"])?;
            let added = ["add_q_proj", "add_k_proj", "add_v_proj"];
            let text = attention(&at("attn"), added, ["norm_added_q", "norm_added_k"])?;
            Ok(DoubleBlock {
                image: stream("norm1.linear", "attn.to_out.0", "ff", image)?,
                text: stream("norm1_context.linear", "attn.to_add_out", "ff_context", text)?,
            })
        };
        let single = |i: usize| -> Result<SingleBlock> {
            let name = format!("single_transformer_blocks.{i}");
            Ok(SingleBlock {
                modulation: linear(&format!("{name}.norm.linear"), 3 * hidden, hidden)?,
                attention: attention(&format!("{name}.attn"), ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"])?,
                up: linear(&format!("{name}.proj_mlp"), inner, hidden)?,
                out: linear(&format!("{name}.proj_out"), hidden, hidden + inner)?,
            })
        };
        // Here the scale comes first.
        let last = linear("norm_out.linear", 2 * hidden, hidden)?;
        Ok(Self {
            image_in: linear("x_embedder", hidden, config.in_channels)?,
            text_in: linear("context_embedder", hidden, config.context)?,
            time_in: embedder("timestep", SINUSOIDS)?,
            guidance_in: config.guidance.then(|| embedder("guidance", SINUSOIDS)).transpose()?,
            vector_in: embedder("text", config.pooled)?,
            double: (0..config.double_blocks).map(double).collect::<Result<_>>()?,
            single: (0..config.single_blocks).map(single).collect::<Result<_>>()?,
            last_modulation: [last.part(hidden..2 * hidden), last.part(0..hidden)],
            out: linear("proj_out", config.in_channels, hidden)?,
            config: config.clone(),
        })
    }

    /// The sizes it was loaded with.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Computes what all steps of a request share.
    ///
    /// # Errors
    /// If a weight file cannot be read.
    pub fn session(&self, conditions: &Conditions<'_>) -> Result<DenoisingSession> {
        let &Conditions { text, grid: (rows, columns), .. } = conditions;
        let hidden = self.config.hidden;
        let text = self.text_in.forward(text, None)?;
        let vectors = self.vectors(conditions)?;
        let modulations = self.modulations().map(|layer| layer.forward(&vectors, None)).collect::<Result<_>>()?;
        let tokens = text.len() / hidden + rows * columns;
        let chunk = tokens.min(CHUNK);
        Ok(DenoisingSession {
            rotary: rope::rotary_table(self.config.axes, text.len() / hidden, rows, columns),
            modulations,
            states: vec![0.0; tokens * hidden],
            normed: vec![0.0; tokens * hidden],
            qkv: vec![0.0; tokens * 3 * hidden],
            wide: vec![0.0; chunk * (hidden + self.config.inner)],
            branch: vec![0.0; chunk * hidden],
            text,
        })
    }

    /// The velocity at step `step` for image tokens, both (tokens, in_channels).
    ///
    /// # Errors
    /// If a weight file cannot be read.
    pub fn predict(&self, session: &mut DenoisingSession, step: usize, image: &[f32]) -> Result<Vec<f32>> {
        self.begin(session, image)?;
        for block in 0..self.double.len() {
            self.double_block(session, block, step)?;
        }
        for block in 0..self.single.len() {
            self.single_block(session, block, step)?;
        }
        self.end(session, step)
    }

    /// Puts the projections of text and image tokens into the hidden states.
    ///
    /// # Errors
    /// If a weight file cannot be read.
    pub fn begin(&self, session: &mut DenoisingSession, image: &[f32]) -> Result<()> {
        let hidden = self.config.hidden;
        let (text, states) = session.states.split_at_mut(session.text.len());
        text.copy_from_slice(&session.text);
        self.image_in.project(image, states, hidden)?;
        states.par_chunks_exact_mut(hidden).for_each(|row| rows::add_bias(row, &self.image_in.bias));
        Ok(())
    }

    /// Runs a block of two streams, which meet in their attention.
    ///
    /// # Errors
    /// If a weight file cannot be read.
    pub fn double_block(&self, session: &mut DenoisingSession, block: usize, step: usize) -> Result<()> {
        let hidden = self.config.hidden;
        let border = session.text.len() / hidden;
        let end = session.states.len() / hidden;
        let DoubleBlock { image, text } = &self.double[block];
        let streams = [(text, 0..border, 2 * block + 1), (image, border..end, 2 * block)];
        for (stream, tokens, modulation) in &streams {
            let [shift, scale, ..] = parts::<6>(&session.modulations[*modulation], step, hidden);
            norm(&session.states, &mut session.normed, tokens.clone(), hidden, scale, shift);
            self.query_key_value(session, &stream.attention, tokens.clone())?;
        }
        self.attention(&session.qkv, 0..end, &mut session.normed, hidden);
        for (stream, tokens, modulation) in &streams {
            let DenoisingSession { modulations, states, normed, wide, branch, .. } = session;
            let [.., gate, shift, scale, last_gate] = parts::<6>(&modulations[*modulation], step, hidden);
            for chunk in chunks(tokens.clone()) {
                let place = chunk.start * hidden..chunk.end * hidden;
                let branch = &mut branch[..place.len()];
                stream.out.project(&normed[place.clone()], branch, hidden)?;
                add_gated(&mut states[place.clone()], branch, &stream.out.bias, gate);
                norm(states, normed, chunk.clone(), hidden, scale, shift);
                let wide = &mut wide[..chunk.len() * self.config.inner];
                stream.up.project(&normed[place.clone()], wide, self.config.inner)?;
                let inner = wide.par_chunks_exact_mut(self.config.inner);
                inner.for_each(|row| rows::activate(Activation::GeluTanh, row, &stream.up.bias));
                stream.down.project(wide, branch, hidden)?;
                add_gated(&mut states[place], branch, &stream.down.bias, last_gate);
            }
        }
        Ok(())
    }

    /// Runs a block in which attention and feed-forward layer stand beside each other.
    ///
    /// # Errors
    /// If a weight file cannot be read.
    pub fn single_block(&self, session: &mut DenoisingSession, block: usize, step: usize) -> Result<()> {
        let (hidden, inner) = (self.config.hidden, self.config.inner);
        let tokens = 0..session.states.len() / hidden;
        let SingleBlock { attention, up, out, .. } = &self.single[block];
        let modulation = 2 * self.double.len() + block;
        let [shift, scale, _] = parts::<3>(&session.modulations[modulation], step, hidden);
        norm(&session.states, &mut session.normed, tokens.clone(), hidden, scale, shift);
        self.query_key_value(session, attention, tokens.clone())?;
        let DenoisingSession { modulations, states, normed, qkv, wide, branch, .. } = session;
        let [.., gate] = parts::<3>(&modulations[modulation], step, hidden);
        for chunk in chunks(tokens) {
            let place = chunk.start * hidden..chunk.end * hidden;
            let (wide, branch) = (&mut wide[..chunk.len() * (hidden + inner)], &mut branch[..place.len()]);
            self.attention(qkv, chunk, wide, hidden + inner);
            up.project(&normed[place.clone()], &mut wide[hidden..], hidden + inner)?;
            let inner_rows = wide.par_chunks_exact_mut(hidden + inner);
            inner_rows.for_each(|row| rows::activate(Activation::GeluTanh, &mut row[hidden..], &up.bias));
            out.project(wide, branch, hidden)?;
            add_gated(&mut states[place], branch, &out.bias, gate);
        }
        Ok(())
    }

    /// Reads the velocity (tokens, in_channels) out of the image's states.
    ///
    /// # Errors
    /// If a weight file cannot be read.
    pub fn end(&self, session: &mut DenoisingSession, step: usize) -> Result<Vec<f32>> {
        let hidden = self.config.hidden;
        let place = session.modulations.len() - 2;
        let [shift] = parts::<1>(&session.modulations[place], step, hidden);
        let [scale] = parts::<1>(&session.modulations[place + 1], step, hidden);
        let tokens = session.text.len() / hidden..session.states.len() / hidden;
        norm(&session.states, &mut session.normed, tokens.clone(), hidden, scale, shift);
        self.out.forward(&session.normed[tokens.start * hidden..], None)
    }

    /// Modulations in the order in which a session keeps them: of double blocks image then text, of single blocks, and
    /// of the last norm shift then scale.
    fn modulations(&self) -> impl Iterator<Item = &Linear> {
        let double = self.double.iter().flat_map(|block| [&block.image.modulation, &block.text.modulation]);
        let single = self.single.iter().map(|block| &block.modulation);
        double.chain(single).chain(&self.last_modulation)
    }

    /// What modulations are made of, for every step: (steps, hidden), through SiLU.
    fn vectors(&self, conditions: &Conditions<'_>) -> Result<Vec<f32>> {
        let mut vectors = self.time_in.forward(&times(conditions.sigmas))?;
        let mut constant = self.vector_in.forward(conditions.pooled)?;
        if let Some(embedder) = &self.guidance_in {
            rows::add_gated(&mut constant, &embedder.forward(&sinusoids(conditions.guidance * 1000.0))?, &[], &[]);
        }
        vectors.chunks_exact_mut(self.config.hidden).for_each(|row| rows::activate(Activation::Silu, row, &constant));
        Ok(vectors)
    }

    /// Queries, keys and values of `tokens`: queries and keys normed and rotated, queries scaled for the scores.
    fn query_key_value(
        &self,
        session: &mut DenoisingSession,
        layer: &QueryKeyValue,
        tokens: std::ops::Range<usize>,
    ) -> Result<()> {
        let (hidden, head) = (self.config.hidden, self.config.head());
        let DenoisingSession { normed, qkv, rotary, .. } = session;
        let qkv = &mut qkv[tokens.start * 3 * hidden..tokens.end * 3 * hidden];
        layer.all.project(&normed[tokens.start * hidden..tokens.end * hidden], qkv, 3 * hidden)?;
        let rotary = &rotary[tokens.start * head / 2..tokens.end * head / 2];
        let factor = 1.0 / (head as f32).sqrt();
        qkv.par_chunks_exact_mut(3 * hidden).zip(rotary.par_chunks_exact(head / 2)).for_each(|(row, rotary)| {
            let (queries, rest) = row.split_at_mut(hidden);
            let (keys, values) = rest.split_at_mut(hidden);
            let (query_bias, rest) = layer.all.bias.split_at(hidden);
            let (key_bias, value_bias) = rest.split_at(hidden);
            for (q, bias) in queries.chunks_exact_mut(head).zip(query_bias.chunks_exact(head)) {
                rows::rms_norm_rotary(q, bias, EPSILON, &layer.query_scale, rotary, factor);
            }
            for (k, bias) in keys.chunks_exact_mut(head).zip(key_bias.chunks_exact(head)) {
                rows::rms_norm_rotary(k, bias, EPSILON, &layer.key_scale, rotary, 1.0);
            }
            rows::add_bias(values, value_bias);
        });
        Ok(())
    }

    /// The attention's output for the queries of `tokens`, in rows of `out` that begin `stride` apart.
    fn attention(&self, qkv: &[f32], tokens: std::ops::Range<usize>, out: &mut [f32], stride: usize) {
        let hidden = self.config.hidden;
        let part = |i: usize| Heads { data: &qkv[i * hidden..], stride: 3 * hidden };
        let (q, k, v, heads, width) = (part(0), part(1), part(2), self.config.heads, self.config.head());
        let keys = qkv.len() / (3 * hidden);
        let attention = Attention { q, k, v, keys, heads, width, scale: 1.0, mask: Mask::None };
        attention.forward(tokens.start, tokens.len(), out, stride);
    }
}

impl Embedder {
    fn forward(&self, x: &[f32]) -> Result<Vec<f32>> {
        self.second.forward(&self.first.forward(x, Some(Activation::Silu))?, None)
    }
}

/// The `N` parts of a modulation at a step.
fn parts<const N: usize>(modulation: &[f32], step: usize, hidden: usize) -> [&[f32]; N] {
    std::array::from_fn(|i| &modulation[(step * N + i) * hidden..][..hidden])
}

fn chunks(tokens: std::ops::Range<usize>) -> impl Iterator<Item = std::ops::Range<usize>> {
    let end = tokens.end;
    tokens.step_by(CHUNK).map(move |start| start..(start + CHUNK).min(end))
}

/// Norms of the states of `tokens`, modulated.
fn norm(
    states: &[f32],
    normed: &mut [f32],
    tokens: std::ops::Range<usize>,
    hidden: usize,
    scale: &[f32],
    shift: &[f32],
) {
    let place = tokens.start * hidden..tokens.end * hidden;
    let states = states[place.clone()].par_chunks_exact(hidden);
    states.zip(normed[place].par_chunks_exact_mut(hidden)).for_each(|(row, out)| {
        rows::layer_norm(row, EPSILON, (scale, 1.0), shift, out);
    });
}

fn add_gated(states: &mut [f32], branch: &[f32], bias: &[f32], gate: &[f32]) {
    let width = gate.len();
    let rows = states.par_chunks_exact_mut(width).zip(branch.par_chunks_exact(width));
    rows.for_each(|(row, branch)| rows::add_gated(row, branch, bias, gate));
}

/// Sinusoids of the steps between noise levels, (steps, SINUSOIDS).
pub(crate) fn times(sigmas: &[f32]) -> Vec<f32> {
    // The reference goes to timesteps and back, in f32.
    sigmas[..sigmas.len() - 1].iter().flat_map(|sigma| sinusoids(sigma * 1000.0 / 1000.0 * 1000.0)).collect()
}

/// Cosines then sines of `time` at frequencies from 1 down to 1/10000 (Vaswani et al. 2017), in f32 as the reference.
pub(crate) fn sinusoids(time: f32) -> [f32; SINUSOIDS] {
    let half = SINUSOIDS / 2;
    let angle = |i: usize| time * (-(10_000f64.ln()) as f32 * i as f32 / half as f32).exp();
    std::array::from_fn(|i| if i < half { angle(i).cos() } else { angle(i - half).sin() })
}
