//! The decoder of MusicGen (Copet et al. 2023, section 2): a causal Transformer over frames of codebook tokens, with
//! cross-attention to the states of the prompt.
//!
//! One [`DecoderSession`] serves one request: its caches are allocated whole before the first step, the prompt's keys and
//! values are computed once, and a step allocates nothing but the lists by which threads share work. With guidance a
//! step has two rows, with and without prompt; the row without prompt attends to zeros through layers that have no bias,
//! so its cross-attention is zero and is not computed.

use aihost_plugin_api::{Error, Result};
use aihost_support::weights::Scope;
use candle_core::{DType, Device, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::config::DecoderConfig;
use crate::matrix::Matrix;

/// What is added to the variance in layer normalisation; the reference's default, not in `config.json`.
const EPSILON: f32 = 1e-5;

/// Elements of a layer's keys below which attention is not spread over threads.
const PARALLEL_FROM: usize = 1 << 16;

/// The weights of the decoder, in their stored type or the one that was asked for.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    /// From the text encoder's width to ours, where they differ.
    projection: Option<(Matrix, Vec<f32>)>,
    /// One (vocabulary + padding, hidden) per codebook.
    embeddings: Vec<Matrix>,
    layers: Vec<Layer>,
    norm: LayerNorm,
    /// All codebooks' heads, stacked: (codebooks * vocabulary, hidden).
    heads: Matrix,
}

#[derive(Debug)]
struct Layer {
    self_norm: LayerNorm,
    /// Queries, keys and values, stacked.
    self_qkv: Matrix,
    self_out: Matrix,
    cross_norm: LayerNorm,
    cross_q: Matrix,
    /// Keys and values, stacked.
    cross_kv: Matrix,
    cross_out: Matrix,
    final_norm: LayerNorm,
    fc1: Matrix,
    fc2: Matrix,
}

impl Decoder {
    /// Loads from the root of a checkpoint; `text_width` is the width of the text encoder's states.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than `config` says.
    pub fn load(config: &DecoderConfig, text_width: usize, root: &Scope<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        let scope = root.at("decoder.model.decoder");
        let projection = if text_width == hidden {
            None
        } else {
            let weight = Matrix::stack(&[root.get("enc_to_dec_proj.weight", (hidden, text_width))?])?;
            Some((weight, to_f32(&root.get("enc_to_dec_proj.bias", hidden)?)?))
        };
        let books = 0..config.num_codebooks;
        let embedding = |book| {
            Matrix::stack(&[scope.at("embed_tokens").at(book).get("weight", (config.vocab_size + 1, hidden))?])
        };
        let head = |book| root.at("decoder.lm_heads").at(book).get("weight", (config.vocab_size, hidden));
        Ok(Self {
            config: config.clone(),
            projection,
            embeddings: books.clone().map(embedding).collect::<Result<_>>()?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(config, &scope.at("layers").at(i)))
                .collect::<Result<_>>()?,
            norm: LayerNorm::load(hidden, &scope.at("layer_norm"))?,
            heads: Matrix::stack(&books.map(head).collect::<Result<Vec<_>>>()?)?,
        })
    }

    /// The sizes it was loaded with.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Begins a request: `text` (tokens, text width) f32 states of the prompt, at most `steps` steps.
    ///
    /// # Errors
    /// If `text` has another width.
    pub fn session(&self, text: &Tensor, guidance: Guidance, steps: usize) -> Result<DecoderSession<'_>> {
        let (tokens, width) = text.dims2().map_err(Error::internal)?;
        let states = to_f32(text)?;
        let hidden = self.config.hidden_size;
        let states = match &self.projection {
            None => states,
            Some((weight, bias)) => {
                let mut projected = vec![0.0; tokens * hidden];
                if width != weight.columns() {
                    return Err(Error::internal("the prompt's states have the wrong width"));
                }
                weight.apply(&states, &mut projected);
                for row in projected.chunks_mut(hidden) {
                    row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
                }
                projected
            }
        };
        Ok(DecoderSession::new(self, &states, tokens, guidance, steps))
    }
}

impl Layer {
    fn load(config: &DecoderConfig, scope: &Scope<'_>) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.ffn_dim);
        let square = |part: &str, names: &[&str]| {
            let parts = names.iter().map(|name| scope.at(part).at(name).get("weight", (hidden, hidden)));
            Matrix::stack(&parts.collect::<Result<Vec<_>>>()?)
        };
        let norm = |name: &str| LayerNorm::load(hidden, &scope.at(name));
        Ok(Self {
            self_norm: norm("self_attn_layer_norm")?,
            self_qkv: square("self_attn", &["q_proj", "k_proj", "v_proj"])?,
            self_out: square("self_attn", &["out_proj"])?,
            cross_norm: norm("encoder_attn_layer_norm")?,
            cross_q: square("encoder_attn", &["q_proj"])?,
            cross_kv: square("encoder_attn", &["k_proj", "v_proj"])?,
            cross_out: square("encoder_attn", &["out_proj"])?,
            final_norm: norm("final_layer_norm")?,
            fc1: Matrix::stack(&[scope.at("fc1").get("weight", (inner, hidden))?])?,
            fc2: Matrix::stack(&[scope.at("fc2").get("weight", (hidden, inner))?])?,
        })
    }
}

/// How much the prompt counts against no prompt (classifier-free guidance, Ho and Salimans 2022).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guidance {
    /// Only with the prompt.
    Off,
    /// `without + scale * (with - without)`.
    Scale(f32),
}

impl Guidance {
    /// The reference's reading of a scale: at most 1 is off.
    pub fn from_scale(scale: f32) -> Self {
        if scale > 1.0 { Self::Scale(scale) } else { Self::Off }
    }

    /// Batch rows of a step: with the prompt, and with guidance also without.
    pub fn rows(self) -> usize {
        if self == Self::Off { 1 } else { 2 }
    }
}

/// One request in progress: its KV caches and buffers, all f32.
#[derive(Debug)]
pub struct DecoderSession<'a> {
    decoder: &'a Decoder,
    guidance: Guidance,
    position: usize,
    capacity: usize,
    /// Per layer: keys and values of past steps, (rows, heads, capacity, head_dim).
    past: Vec<KvCache>,
    /// Per layer: keys and values of the prompt, (heads, tokens, head_dim).
    prompt: Vec<KvCache>,
    tokens: usize,
    buffers: Buffers,
}

#[derive(Debug)]
struct KvCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// What a step writes and the next overwrites; (rows, width) each.
#[derive(Debug)]
struct Buffers {
    state: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    out: Vec<f32>,
    inner: Vec<f32>,
    logits: Vec<f32>,
    /// (rows, heads, the longer of capacity and tokens)
    scores: Vec<f32>,
}

impl<'a> DecoderSession<'a> {
    fn new(decoder: &'a Decoder, states: &[f32], tokens: usize, guidance: Guidance, steps: usize) -> Self {
        let config = &decoder.config;
        let (hidden, rows) = (config.hidden_size, guidance.rows());
        let cache = || KvCache { keys: vec![0.0; rows * steps * hidden], values: vec![0.0; rows * steps * hidden] };
        let mut both = vec![0.0; tokens * 2 * hidden];
        let prompt = decoder.layers.iter().map(|layer| {
            layer.cross_kv.apply(states, &mut both);
            KvCache { keys: by_head(&both, 0, tokens, config), values: by_head(&both, hidden, tokens, config) }
        });
        let prompt = prompt.collect();
        let zeros = |width: usize| vec![0.0; rows * width];
        Self {
            decoder,
            guidance,
            position: 0,
            capacity: steps,
            past: decoder.layers.iter().map(|_| cache()).collect(),
            prompt,
            tokens,
            buffers: Buffers {
                state: zeros(hidden),
                normed: zeros(hidden),
                qkv: zeros(3 * hidden),
                attended: zeros(hidden),
                out: zeros(hidden),
                inner: zeros(config.ffn_dim),
                logits: zeros(config.num_codebooks * config.vocab_size),
                scores: zeros(config.num_attention_heads * steps.max(tokens)),
            },
        }
    }

    /// Bytes a session of `steps` steps after a prompt of `tokens` tokens allocates.
    pub fn bytes(config: &DecoderConfig, guidance: Guidance, steps: usize, tokens: usize) -> u64 {
        let (hidden, layers, rows) = (config.hidden_size, config.num_hidden_layers, guidance.rows());
        let past = layers * 2 * rows * steps * hidden;
        let prompt = (layers + 1) * 2 * tokens * hidden + 2 * tokens * hidden;
        let buffers = 7 * hidden
            + config.ffn_dim
            + config.num_codebooks * config.vocab_size
            + config.num_attention_heads * steps.max(tokens);
        4 * (past + prompt + rows * buffers) as u64
    }

    /// One step: takes `tokens`, one per codebook.
    ///
    /// # Errors
    /// If the session is full or a token is past padding.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        let config = &self.decoder.config;
        if self.position == self.capacity {
            return Err(Error::internal("the session has made all its steps"));
        }
        if tokens.len() != config.num_codebooks || tokens.iter().any(|token| *token as usize > config.vocab_size) {
            return Err(Error::internal("a step needs one token for each codebook, at most padding"));
        }
        self.embed(tokens);
        for layer in 0..self.decoder.layers.len() {
            self.self_attention(layer);
            self.cross_attention(layer);
            self.feed_forward(layer);
        }
        self.position += 1;
        Ok(())
    }

    /// What follows the last step: logits (codebooks, vocabulary), with guidance.
    pub fn logits(&mut self) -> &[f32] {
        let config = &self.decoder.config;
        let b = &mut self.buffers;
        self.decoder.norm.apply(&b.state, &mut b.normed);
        self.decoder.heads.apply(&b.normed, &mut b.logits);
        let wide = config.num_codebooks * config.vocab_size;
        if let Guidance::Scale(scale) = self.guidance {
            let (with, without) = b.logits.split_at_mut(wide);
            with.iter_mut().zip(without).for_each(|(with, without)| *with = *without + (*with - *without) * scale);
        }
        &self.buffers.logits[..wide]
    }

    /// The sum of the codebooks' embeddings and the position's; the same in both rows.
    fn embed(&mut self, tokens: &[u32]) {
        let hidden = self.decoder.config.hidden_size;
        let (first, rest) = self.buffers.state.split_at_mut(hidden);
        first.fill(0.0);
        for (embedding, token) in self.decoder.embeddings.iter().zip(tokens) {
            embedding.add_row(*token as usize, first);
        }
        add_position(self.position, first);
        rest.copy_from_slice(&first[..rest.len()]);
    }

    fn self_attention(&mut self, index: usize) {
        let (layer, config) = (&self.decoder.layers[index], &self.decoder.config);
        let (hidden, size) = (config.hidden_size, config.head_dim());
        let b = &mut self.buffers;
        layer.self_norm.apply(&b.state, &mut b.normed);
        layer.self_qkv.apply(&b.normed, &mut b.qkv);
        let past = &mut self.past[index];
        for (row, qkv) in b.qkv.chunks(3 * hidden).enumerate() {
            for head in 0..config.num_attention_heads {
                let at = ((row * config.num_attention_heads + head) * self.capacity + self.position) * size;
                let (key, value) = (hidden + head * size, 2 * hidden + head * size);
                past.keys[at..at + size].copy_from_slice(&qkv[key..key + size]);
                past.values[at..at + size].copy_from_slice(&qkv[value..value + size]);
            }
        }
        let attention = Attention { size, capacity: self.capacity, length: self.position + 1, stride: 3 * hidden };
        attention.apply(&b.qkv, past, &mut b.attended, &mut b.scores);
        layer.self_out.apply(&b.attended, &mut b.out);
        add(&mut b.state, &b.out);
    }

    /// Only the first row: without a prompt the result is zero.
    fn cross_attention(&mut self, index: usize) {
        let (layer, config) = (&self.decoder.layers[index], &self.decoder.config);
        let hidden = config.hidden_size;
        let b = &mut self.buffers;
        layer.cross_norm.apply(&b.state[..hidden], &mut b.normed[..hidden]);
        layer.cross_q.apply(&b.normed[..hidden], &mut b.qkv[..hidden]);
        let attention =
            Attention { size: config.head_dim(), capacity: self.tokens, length: self.tokens, stride: hidden };
        attention.apply(&b.qkv[..hidden], &self.prompt[index], &mut b.attended[..hidden], &mut b.scores);
        layer.cross_out.apply(&b.attended[..hidden], &mut b.out[..hidden]);
        add(&mut b.state[..hidden], &b.out[..hidden]);
    }

    fn feed_forward(&mut self, index: usize) {
        let layer = &self.decoder.layers[index];
        let b = &mut self.buffers;
        layer.final_norm.apply(&b.state, &mut b.normed);
        layer.fc1.apply(&b.normed, &mut b.inner);
        if self.decoder.config.activation_function == "relu" {
            b.inner.iter_mut().for_each(|x| *x = x.max(0.0));
        } else {
            b.inner.iter_mut().for_each(|x| *x = gelu(*x));
        }
        layer.fc2.apply(&b.inner, &mut b.out);
        add(&mut b.state, &b.out);
    }
}

/// Keys or values of (tokens, 2 * hidden), from column `from` on, as (heads, tokens, head_dim).
fn by_head(both: &[f32], from: usize, tokens: usize, config: &DecoderConfig) -> Vec<f32> {
    let (hidden, size) = (config.hidden_size, config.head_dim());
    let mut out = Vec::with_capacity(tokens * hidden);
    for head in 0..config.num_attention_heads {
        for token in 0..tokens {
            let at = token * 2 * hidden + from + head * size;
            out.extend_from_slice(&both[at..at + size]);
        }
    }
    out
}

/// Sinusoids (Vaswani et al. 2017, section 3.5) in the order of tensor2tensor: all cosines, then all sines.
fn add_position(position: usize, state: &mut [f32]) {
    let half = state.len() / 2;
    let (cosines, sines) = state.split_at_mut(half);
    let decay = -(10_000f64.ln() / (half - 1) as f64) as f32;
    for i in 0..half {
        let angle = position as f32 * (i as f32 * decay).exp();
        cosines[i] += angle.cos();
        sines[i] += angle.sin();
    }
}

/// GELU in its exact form, with the error function (Hendrycks and Gimpel 2016).
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

fn add(state: &mut [f32], update: &[f32]) {
    state.iter_mut().zip(update).for_each(|(x, update)| *x += update);
}

/// Attention of one query per row and head over `length` keys.
struct Attention {
    size: usize,
    /// Keys that a head's cache can hold.
    capacity: usize,
    length: usize,
    /// Elements from one row's queries to the next row's.
    stride: usize,
}

impl Attention {
    /// `queries` (rows, stride), `attended` (rows, heads * size), `scores` at least (rows, heads, length).
    fn apply(&self, queries: &[f32], past: &KvCache, attended: &mut [f32], scores: &mut [f32]) {
        let rows = queries.len() / self.stride;
        let heads = attended.len() / rows / self.size;
        let head = |(unit, (out, scores)): (usize, (&mut [f32], &mut [f32]))| {
            let query = unit / heads * self.stride + unit % heads * self.size;
            let cache = unit * self.capacity * self.size..(unit * self.capacity + self.length) * self.size;
            Arch::new().dispatch(Head {
                query: &queries[query..query + self.size],
                keys: &past.keys[cache.clone()],
                values: &past.values[cache],
                scores: &mut scores[..self.length],
                out,
            });
        };
        let width = scores.len() / (rows * heads);
        if rows * heads * self.length * self.size < PARALLEL_FROM {
            attended.chunks_mut(self.size).zip(scores.chunks_mut(width)).enumerate().for_each(head);
        } else {
            let units = attended.par_chunks_mut(self.size).zip(scores.par_chunks_mut(width));
            units.enumerate().with_min_len((rows * heads).div_ceil(rayon::current_num_threads())).for_each(head);
        }
    }
}

/// softmax(keys query / sqrt(size)) values, for one head.
struct Head<'a> {
    query: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    scores: &'a mut [f32],
    out: &'a mut [f32],
}

impl WithSimd for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let size = self.query.len();
        let scale = 1.0 / (size as f32).sqrt();
        let mut most = f32::NEG_INFINITY;
        for (score, key) in self.scores.iter_mut().zip(self.keys.chunks_exact(size)) {
            *score = dot(self.query, key) * scale;
            most = most.max(*score);
        }
        let mut sum = 0.0;
        for score in self.scores.iter_mut() {
            *score = (*score - most).exp();
            sum += *score;
        }
        self.out.fill(0.0);
        for (score, value) in self.scores.iter().zip(self.values.chunks_exact(size)) {
            let weight = score / sum;
            self.out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[derive(Debug)]
struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl LayerNorm {
    fn load(width: usize, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self { weight: to_f32(&scope.get("weight", width)?)?, bias: to_f32(&scope.get("bias", width)?)? })
    }

    /// Layer norm (Ba et al. 2016), row by row.
    fn apply(&self, x: &[f32], out: &mut [f32]) {
        let width = self.weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mean = x.iter().sum::<f32>() / width as f32;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / width as f32;
            let scale = 1.0 / (variance + EPSILON).sqrt();
            for ((out, x), (weight, bias)) in out.iter_mut().zip(x).zip(self.weight.iter().zip(&self.bias)) {
                *out = (x - mean) * scale * weight + bias;
            }
        }
    }
}

/// A tensor's elements in row-major order, as f32.
fn to_f32(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.to_device(&Device::Cpu).and_then(|t| t.to_dtype(DType::F32)).and_then(|t| t.flatten_all());
    flat.and_then(|t| t.to_vec1()).map_err(Error::internal)
}
