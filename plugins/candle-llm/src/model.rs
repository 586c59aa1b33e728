//! The forward pass of Llama: token ids in, logits out. Weights stay in the file; activations are f32, caches f16.
//!
//! Touvron et al. 2023; rotary positions in the interleaved order that GGUF's `llama` files are permuted for (pairs 2i, 2i+1).
//! A row's result does not depend on which rows pass together with it, so chunking and caching never change an answer.

use aihost_engine::cpu::kernels::{add_scaled_f16, dot_f16};
use aihost_engine::cpu::{Linear, project};
use aihost_engine::files::Gguf;
use aihost_plugin_api::Result;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;

use crate::config::Config;

/// Products of queries and keys below which attention is not worth spreading over threads.
const MIN_PARALLEL_ATTENTION: usize = 1 << 15;

/// A model, ready to compute.
#[derive(Debug)]
pub struct Model {
    config: Config,
    embedding: Linear,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// From hidden states to logits; shares the embedding's weights if the file has no output.weight.
    lm_head: Linear,
    /// Radians per position of each rotated pair, `[rope_width / 2]`.
    frequencies: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    feed_forward_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The keys and values of one sequence, f16 bits. Memory is taken from the system page by page, as it is written.
#[derive(Debug)]
pub struct KvCache {
    /// `[layers, kv_heads, context, head_width]`
    keys: Vec<u16>,
    /// Of the same shape as `keys`.
    values: Vec<u16>,
    context: usize,
}

/// Which rows' logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// Those of the last row, [1, vocabulary].
    Last,
    /// Those of every row, [rows, vocabulary].
    All,
}

impl KvCache {
    /// An empty cache of `context` tokens.
    pub fn new(config: &Config, context: usize) -> Self {
        let len = config.layers * config.kv_heads * config.head_width * context;
        Self { keys: vec![0; len], values: vec![0; len], context }
    }

    /// Positions it can hold.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Where a head's rows begin, in elements.
    fn start(&self, config: &Config, layer: usize, head: usize) -> usize {
        (layer * config.kv_heads + head) * self.context * config.head_width
    }

    /// Writes one token's keys and values, `[kv_heads, head_width]` each.
    fn write(&mut self, config: &Config, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let width = config.head_width;
        for head in 0..config.kv_heads {
            let at = self.start(config, layer, head) + position * width;
            let source = head * width..(head + 1) * width;
            self.keys[at..at + width].reinterpret_cast_mut::<half::f16>().convert_from_f32_slice(&key[source.clone()]);
            self.values[at..at + width].reinterpret_cast_mut::<half::f16>().convert_from_f32_slice(&value[source]);
        }
    }
}

impl Model {
    /// Finds and checks every tensor. No weight is read.
    ///
    /// # Errors
    /// `CorruptFile` for a missing tensor or a wrong shape, `Unsupported` for a tensor that this model has no use for.
    pub fn open(gguf: &Gguf, config: Config) -> Result<Self> {
        let Config { hidden, feed_forward, heads, kv_heads, head_width, vocabulary, .. } = config;
        let mut used = vec!["token_embd.weight".to_owned(), "output_norm.weight".to_owned()];
        let embedding = Linear::open(gguf, "token_embd.weight", vocabulary, hidden)?;
        let lm_head = if gguf.has_tensor("output.weight") {
            used.push("output.weight".to_owned());
            Linear::open(gguf, "output.weight", vocabulary, hidden)?
        } else {
            embedding.clone()
        };
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let mut name = |part: &str| {
                used.push(format!("blk.{i}.{part}.weight"));
                format!("blk.{i}.{part}.weight")
            };
            let mut linear = |part: &str, rows, columns| Linear::open(gguf, &name(part), rows, columns);
            layers.push(Layer {
                query: linear("attn_q", heads * head_width, hidden)?,
                key: linear("attn_k", kv_heads * head_width, hidden)?,
                value: linear("attn_v", kv_heads * head_width, hidden)?,
                output: linear("attn_output", hidden, heads * head_width)?,
                gate: linear("ffn_gate", feed_forward, hidden)?,
                up: linear("ffn_up", feed_forward, hidden)?,
                down: linear("ffn_down", hidden, feed_forward)?,
                attention_norm: gguf.vector(&name("attn_norm"), hidden)?,
                feed_forward_norm: gguf.vector(&name("ffn_norm"), hidden)?,
            });
        }
        let pairs = config.rope_width / 2;
        let mut frequencies: Vec<f32> = (0..pairs)
            .map(|i| config.rope_base.powf(-2.0 * i as f32 / config.rope_width as f32) / config.rope_divisor)
            .collect();
        if gguf.has_tensor("rope_freqs.weight") {
            // Llama 3.1's scaling, which the converter has worked into one divisor per pair.
            used.push("rope_freqs.weight".to_owned());
            let divisors = gguf.vector("rope_freqs.weight", pairs)?;
            frequencies.iter_mut().zip(divisors).for_each(|(frequency, divisor)| *frequency /= divisor);
        }
        let norm = gguf.vector("output_norm.weight", hidden)?;
        used.sort();
        if let Some(extra) = gguf.tensor_names().find(|name| used.binary_search_by(|u| u.as_str().cmp(name)).is_err()) {
            let message = format!(
                "{}: the tensor {extra} is of no use to a plain Llama; candle-llm does not serve this variant",
                gguf.name()
            );
            return Err(aihost_plugin_api::Error::new(aihost_plugin_api::ErrorKind::Unsupported, message));
        }
        Ok(Self { config, embedding, layers, norm, lm_head, frequencies })
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Passes `tokens`, which stand at `start` and after, through the model, and extends `cache` by them.
    ///
    /// Returns the logits asked for, `[rows, vocabulary]` f32. Every token must be of the vocabulary, and
    /// `start + tokens.len()` at most the cache's context. To be called within the rayon pool that is to do the work.
    pub fn forward(&self, tokens: &[u32], start: usize, cache: &mut KvCache, logits: Logits) -> Vec<f32> {
        let (c, m) = (&self.config, tokens.len());
        let (q_width, kv_width) = (c.heads * c.head_width, c.kv_heads * c.head_width);
        let mut x = vec![0.0; m * c.hidden];
        for (row, token) in x.chunks_exact_mut(c.hidden).zip(tokens) {
            self.embedding.row(*token as usize, row);
        }
        let rotary = self.rotary_table(start, m);
        let mut normed = vec![0.0; m * c.hidden];
        let mut delta = vec![0.0; m * c.hidden];
        let (mut q, mut k, mut v) = (vec![0.0; m * q_width], vec![0.0; m * kv_width], vec![0.0; m * kv_width]);
        let mut attended = vec![0.0; m * q_width];
        let (mut gate, mut up) = (vec![0.0; m * c.feed_forward], vec![0.0; m * c.feed_forward]);
        for (i, layer) in self.layers.iter().enumerate() {
            rms_norm(&x, &layer.attention_norm, c.norm_epsilon, &mut normed);
            project(&normed, m, &mut [(&layer.query, &mut q), (&layer.key, &mut k), (&layer.value, &mut v)]);
            for (row, rotary) in rotary.chunks_exact(self.frequencies.len().max(1)).enumerate() {
                apply_rotary(&mut q[row * q_width..(row + 1) * q_width], c.head_width, rotary);
                apply_rotary(&mut k[row * kv_width..(row + 1) * kv_width], c.head_width, rotary);
                let range = row * kv_width..(row + 1) * kv_width;
                cache.write(c, i, start + row, &k[range.clone()], &v[range]);
            }
            self.attention(i, start, cache, &q, &mut attended);
            project(&attended, m, &mut [(&layer.output, &mut delta)]);
            add(&mut x, &delta);
            rms_norm(&x, &layer.feed_forward_norm, c.norm_epsilon, &mut normed);
            project(&normed, m, &mut [(&layer.gate, &mut gate), (&layer.up, &mut up)]);
            swiglu(&mut gate, &up, c.feed_forward);
            project(&gate, m, &mut [(&layer.down, &mut delta)]);
            add(&mut x, &delta);
        }
        let rows = match logits {
            Logits::None => 0,
            Logits::Last => 1.min(m),
            Logits::All => m,
        };
        if rows == 0 {
            return Vec::new();
        }
        let last = (m - rows) * c.hidden;
        rms_norm(&x[last..], &self.norm, c.norm_epsilon, &mut normed[last..]);
        let mut out = vec![0.0; rows * c.vocabulary];
        project(&normed[last..], rows, &mut [(&self.lm_head, &mut out)]);
        out
    }

    /// Cosine and sine of each pair's angle, `[m, rope_width / 2]`.
    fn rotary_table(&self, start: usize, m: usize) -> Vec<[f32; 2]> {
        let angles = (start..start + m).flat_map(|position| self.frequencies.iter().map(move |f| position as f32 * f));
        angles.map(|angle| [angle.cos(), angle.sin()]).collect()
    }

    /// Causal attention of `q`, `[m, heads, head_width]`, over the cache, into `out` of the same shape.
    fn attention(&self, layer: usize, start: usize, cache: &KvCache, q: &[f32], out: &mut [f32]) {
        let (c, width) = (&self.config, self.config.head_width);
        let group = c.heads / c.kv_heads;
        let scale = 1.0 / (width as f32).sqrt();
        let head = |index: usize, q: &[f32], out: &mut [f32]| {
            let (row, head) = (index / c.heads, index % c.heads);
            let len = start + row + 1;
            let from = cache.start(c, layer, head / group);
            let (keys, values) = (&cache.keys[from..from + len * width], &cache.values[from..from + len * width]);
            let mut scores: Vec<f32> = keys.chunks_exact(width).map(|key| dot_f16(q, key) * scale).collect();
            softmax(&mut scores);
            out.fill(0.0);
            for (score, value) in scores.iter().zip(values.chunks_exact(width)) {
                add_scaled_f16(out, *score, value);
            }
        };
        let work = q.len() / width * (start + q.len() / (width * c.heads)) * width;
        if work < MIN_PARALLEL_ATTENTION || rayon::current_num_threads() == 1 {
            q.chunks_exact(width)
                .zip(out.chunks_exact_mut(width))
                .enumerate()
                .for_each(|(i, (q, out))| head(i, q, out));
        } else {
            q.par_chunks_exact(width)
                .zip(out.par_chunks_exact_mut(width))
                .enumerate()
                .for_each(|(i, (q, out))| head(i, q, out));
        }
    }
}

/// Root-mean-square norm (Zhang and Sennrich 2019), row by row of `weight.len()`.
fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        // Eight partial sums, so that the compiler may use vectors.
        let mut sums = [0f32; 8];
        let (eights, rest) = x.as_chunks::<8>();
        for eight in eights {
            sums.iter_mut().zip(eight).for_each(|(s, x)| *s += x * x);
        }
        let squares: f32 = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
        let scale = 1.0 / (squares / x.len() as f32 + epsilon).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * w;
        }
    }
}

/// The rotary embedding (Su et al. 2021), interleaved: each head's pairs (2i, 2i+1) are rotated by `rotary[i]`, a cosine and a sine.
fn apply_rotary(row: &mut [f32], head_width: usize, rotary: &[[f32; 2]]) {
    for head in row.chunks_exact_mut(head_width) {
        for ([a, b], [cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(rotary) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - largest).exp();
        total += *score;
    }
    scores.iter_mut().for_each(|score| *score /= total);
}

/// `gate = silu(gate) * up` (Shazeer 2020), `[m, width]`.
fn swiglu(gate: &mut [f32], up: &[f32], width: usize) {
    let row = |(gate, up): (&mut [f32], &[f32])| {
        for (g, u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + (-*g).exp()) * u;
        }
    };
    if gate.len() > width {
        gate.par_chunks_mut(width).zip(up.par_chunks(width)).for_each(row);
    } else {
        row((gate, up));
    }
}

fn add(x: &mut [f32], delta: &[f32]) {
    x.iter_mut().zip(delta).for_each(|(x, d)| *x += d);
}
