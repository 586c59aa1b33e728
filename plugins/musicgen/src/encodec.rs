//! The decoder of EnCodec (Défossez et al. 2022, sections 3.1 and 3.2): codes of a residual vector quantiser to samples,
//! through a SEANet decoder (Tagliasacchi et al. 2020) with an LSTM.
//!
//! [`StreamingDecoder`] decodes while codes still come. The LSTM runs once over every frame; after it a sample depends only on the
//! frames next to its own, so a window of frames with that much context on both sides gives the same samples as the
//! whole. How much context follows from the kernels ([`EncodecDecoder::context`]).

use aihost_plugin_api::{Error, Result};
use aihost_support::weights::Scope;
use candle_core::{Device, Tensor};

use crate::config::EncodecConfig;
use crate::matrix::Matrix;
use crate::rolling_rows::RollingRows;

/// The codec's decoder. f32.
#[derive(Debug)]
pub struct EncodecDecoder {
    config: EncodecConfig,
    /// Per codebook (codes, hidden).
    codebooks: Vec<Matrix>,
    first: Conv,
    lstm: Vec<Lstm>,
    stages: Vec<Stage>,
    last: Conv,
}

/// One step up in rate.
#[derive(Debug)]
struct Stage {
    up: ConvTranspose,
    blocks: Vec<Residual>,
}

impl EncodecDecoder {
    /// Loads from `scope`, below which are `quantizer` and `decoder`; `codebooks` of the quantiser's are used.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape than `config` says.
    pub fn load(config: &EncodecConfig, codebooks: usize, scope: &Scope<'_>) -> Result<Self> {
        let size = (config.codebook_size, config.hidden_size);
        let codebook = |i| {
            let table = scope.at("quantizer.layers").at(i).get("codebook.embed", size)?;
            Matrix::stack(&[table])
        };
        let layers = scope.at("decoder.layers");
        let width = config.width();
        let first = Conv::load(config, &layers.at(0), Kernel::new(config.hidden_size, width, config.kernel_size))?;
        let lstm =
            (0..config.num_lstm_layers).map(|i| Lstm::load(width, i, &layers.at("1.lstm"))).collect::<Result<_>>()?;
        // The reference numbers activations too: after the LSTM come, per stage, one, the transposed convolution, blocks.
        let mut index = 2;
        let mut channels = width;
        let mut stages = Vec::new();
        for &ratio in &config.upsampling_ratios {
            let up = ConvTranspose::load(config, &layers.at(index + 1), channels, ratio)?;
            channels /= 2;
            let block = |j| Residual::load(config, &layers.at(index + 2 + j), channels, j);
            stages.push(Stage { up, blocks: (0..config.num_residual_layers).map(block).collect::<Result<_>>()? });
            index += 2 + config.num_residual_layers;
        }
        let last = Kernel::new(channels, config.audio_channels, config.last_kernel_size);
        Ok(Self {
            config: config.clone(),
            codebooks: (0..codebooks).map(codebook).collect::<Result<_>>()?,
            first,
            lstm,
            stages,
            last: Conv::load(config, &layers.at(index + 1), last)?,
        })
    }

    /// The sizes it was loaded with.
    pub fn config(&self) -> &EncodecConfig {
        &self.config
    }

    /// Frames before and after its own that a sample depends on, past the LSTM.
    pub fn context(&self) -> Context {
        let mut reach = Context::default().past(&self.last);
        for stage in self.stages.iter().rev() {
            for block in stage.blocks.iter().rev() {
                reach = block.layers.iter().fold(reach, Context::past);
            }
            reach = reach.before(&stage.up);
        }
        reach
    }

    /// Samples of codes (frames, codebooks), all at once: what a [`StreamingDecoder`] gives in pieces.
    ///
    /// # Errors
    /// If a code is not in its codebook.
    pub fn decode(&self, codes: &[u32]) -> Result<Vec<f32>> {
        let frames = codes.len() / self.codebooks.len();
        let mut stream = StreamingDecoder::new(self, frames.max(1));
        codes.chunks_exact(self.codebooks.len()).try_for_each(|frame| stream.push(frame))?;
        stream.finish()
    }

    /// Bytes that decoding `window` frames at once allocates at its peak, beyond what is kept for the request.
    ///
    /// The widest convolution holds its padded input, the input's patches, the product and the transposed product.
    pub fn window_bytes(config: &EncodecConfig, window: usize) -> u64 {
        let (mut channels, mut length) = (config.width(), window);
        let mut peak = length * (config.hidden_size * config.kernel_size + 2 * channels);
        for ratio in &config.upsampling_ratios {
            let columns = length * channels / 2 * 2 * ratio;
            let input = length * channels;
            channels /= 2;
            length *= ratio;
            peak = peak.max(input + columns + 2 * length * channels);
            let inner = channels / config.compress;
            let patches = length * channels * config.residual_kernel_size;
            peak = peak.max(3 * length * channels + patches + 2 * length * inner);
        }
        peak = peak.max(2 * length * channels + length * channels * config.last_kernel_size);
        4 * peak as u64
    }

    /// Past the LSTM: `hidden` (frames, width) to samples.
    fn render(&self, hidden: &[f32], frames: usize) -> candle_core::Result<Vec<f32>> {
        let mut x =
            Tensor::from_slice(hidden, (frames, self.config.width()), &Device::Cpu)?.t()?.contiguous()?.unsqueeze(0)?;
        for stage in &self.stages {
            x = stage.up.forward(&x.elu(1.0)?)?;
            for block in &stage.blocks {
                x = block.forward(&x)?;
            }
        }
        self.last.forward(&x.elu(1.0)?)?.flatten_all()?.to_vec1()
    }
}

/// Decodes audio whose codes come frame by frame.
#[derive(Debug)]
pub struct StreamingDecoder<'a> {
    codec: &'a EncodecDecoder,
    context: Context,
    /// Most frames rendered at once, context apart.
    chunk: usize,
    /// Vectors of the codes, (frames, hidden), as far back as they are still needed.
    embedded: RollingRows,
    /// The LSTM's output, (frames, width), likewise.
    hidden: RollingRows,
    states: Vec<LstmState>,
    /// Frames whose samples were returned.
    returned: usize,
}

impl<'a> StreamingDecoder<'a> {
    /// A decoder that renders at most `chunk` frames at once.
    pub fn new(codec: &'a EncodecDecoder, chunk: usize) -> Self {
        let states = codec.lstm.iter().map(|_| LstmState::new(codec.config.width())).collect();
        let (embedded, hidden) = (RollingRows::new(codec.config.hidden_size), RollingRows::new(codec.config.width()));
        Self { codec, context: codec.context(), chunk: chunk.max(1), embedded, hidden, states, returned: 0 }
    }

    /// Adds a frame: one code per codebook, whose vectors are summed.
    ///
    /// # Errors
    /// If a code is not in its codebook.
    pub fn push(&mut self, codes: &[u32]) -> Result<()> {
        let row = self.embedded.push();
        for (codebook, code) in self.codec.codebooks.iter().zip(codes) {
            if *code as usize >= codebook.rows() {
                return Err(Error::internal(format!("code {code} is not in a codebook of {}", codebook.rows())));
            }
            codebook.add_row(*code as usize, row);
        }
        Ok(())
    }

    /// Samples that no later frame can change and that were not returned before.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn ready(&mut self) -> Result<Vec<f32>> {
        self.advance(Input::Open)
    }

    /// The remaining samples; no frame follows.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn finish(&mut self) -> Result<Vec<f32>> {
        self.advance(Input::Finished)
    }

    fn advance(&mut self, input: Input) -> Result<Vec<f32>> {
        self.remember(input).map_err(Error::internal)?;
        let (hop, known) = (self.codec.config.hop(), self.hidden.frames());
        let Context { before, after } = self.context;
        let end = match input {
            Input::Finished => known,
            // Near the start, padding mirrors what comes after: as far again as a sample looks back.
            Input::Open if known <= before + after => self.returned,
            Input::Open => known - after,
        };
        let mut samples = Vec::with_capacity(end.saturating_sub(self.returned) * hop);
        while self.returned < end {
            let to = end.min(self.returned + self.chunk);
            let window = self.returned.saturating_sub(before)..known.min(to + after);
            let hidden = self.hidden.rows(window.clone());
            let rendered = self.codec.render(hidden, window.len()).map_err(Error::internal)?;
            samples.extend_from_slice(&rendered[(self.returned - window.start) * hop..(to - window.start) * hop]);
            self.returned = to;
        }
        self.hidden.forget(self.returned.saturating_sub(before));
        Ok(samples)
    }

    /// Takes new frames through the first convolution and the LSTM, as far as its input is final.
    fn remember(&mut self, input: Input) -> candle_core::Result<()> {
        let (frames, done) = (self.embedded.frames(), self.hidden.frames());
        let (before, after) = self.codec.first.padding();
        let end = match input {
            Input::Finished => frames,
            Input::Open if frames <= before.max(after) => done,
            Input::Open => frames - after,
        };
        if end <= done {
            return Ok(());
        }
        let start = done.saturating_sub(before);
        let size = self.codec.config.hidden_size;
        let window = Tensor::from_slice(self.embedded.rows(start..frames), (frames - start, size), &Device::Cpu)?;
        let x = self.codec.first.forward(&window.t()?.contiguous()?.unsqueeze(0)?)?;
        let x =
            x.squeeze(0)?.narrow(1, done - start, end - done)?.t()?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let mut y = x.clone();
        for (layer, state) in self.codec.lstm.iter().zip(&mut self.states) {
            layer.run(state, &mut y);
        }
        self.hidden.extend(x.iter().zip(&y).map(|(x, y)| x + y));
        self.embedded.forget(end.saturating_sub(before));
        Ok(())
    }
}

/// Whether more frames will follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    Finished,
}

/// Neighbours, in frames or samples, that a value depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// How many neighbours before it.
    pub before: usize,
    /// How many neighbours after it.
    pub after: usize,
}

impl Context {
    /// What it is on the input of `conv`, if this is what it is on its output.
    fn past(self, conv: &Conv) -> Self {
        let (before, after) = conv.padding();
        Self { before: self.before + before, after: self.after + after }
    }

    /// The same for a transposed convolution: an input reaches 2 ratio outputs, of which `left` are cut off before.
    fn before(self, up: &ConvTranspose) -> Self {
        let (left, _) = up.trim;
        Self {
            before: (self.before + 2 * up.stride - 1 - left).div_ceil(up.stride),
            after: (self.after + left).div_ceil(up.stride),
        }
    }
}

/// The sizes of a convolution.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    inward: usize,
    outward: usize,
    size: usize,
    dilation: usize,
}

impl Kernel {
    fn new(inward: usize, outward: usize, size: usize) -> Self {
        Self { inward, outward, size, dilation: 1 }
    }
}

/// A convolution whose output is as long as its input.
#[derive(Debug)]
struct Conv {
    /// (out, in, size)
    weight: Tensor,
    /// (1, out, 1)
    bias: Tensor,
    kernel: Kernel,
    causal: bool,
    mirror: bool,
}

impl Conv {
    fn load(config: &EncodecConfig, scope: &Scope<'_>, kernel: Kernel) -> Result<Self> {
        Ok(Self {
            weight: weight_norm(&scope.at("conv"), (kernel.outward, kernel.inward, kernel.size))?,
            bias: bias(&scope.at("conv"), kernel.outward)?,
            kernel,
            causal: config.use_causal_conv,
            mirror: config.pad_mode == "reflect",
        })
    }

    /// Samples added on the left and on the right: also how far a value looks.
    fn padding(&self) -> (usize, usize) {
        let total = (self.kernel.size - 1) * self.kernel.dilation;
        let right = if self.causal { 0 } else { total / 2 };
        (total - right, right)
    }

    /// `x` (1, in, length) to (1, out, length).
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (left, right) = self.padding();
        let x = if self.mirror { pad_mirrored(x, left, right)? } else { x.pad_with_zeros(2, left, right)? };
        x.conv1d(&self.weight, 0, 1, self.kernel.dilation, 1)?.broadcast_add(&self.bias)
    }
}

/// Pads with the mirror image, the edge itself not repeated. Too short an input is first lengthened with zeros on the
/// right, as the reference does.
fn pad_mirrored(x: &Tensor, left: usize, right: usize) -> candle_core::Result<Tensor> {
    if left + right == 0 {
        return Ok(x.clone());
    }
    let length = x.dim(2)?;
    let extra = (left.max(right) + 1).saturating_sub(length);
    let x = if extra > 0 { x.pad_with_zeros(2, 0, extra)? } else { x.clone() };
    let edge = length + extra - 1;
    let mirrored = |places: Vec<u32>| x.index_select(&Tensor::new(places, x.device())?, 2);
    let mut parts = Vec::with_capacity(3);
    if left > 0 {
        parts.push(mirrored((1..=left as u32).rev().collect())?);
    }
    parts.push(x.clone());
    if right > 0 {
        parts.push(mirrored((1..=right).map(|i| (edge - i) as u32).collect())?);
    }
    Tensor::cat(&parts, 2)?.narrow(2, 0, left + length + right)?.contiguous()
}

/// A transposed convolution that makes `stride` outputs of every input.
#[derive(Debug)]
struct ConvTranspose {
    /// (in, out, 2 stride)
    weight: Tensor,
    /// (1, out, 1)
    bias: Tensor,
    stride: usize,
    /// Surplus outputs cut off on the left and on the right.
    trim: (usize, usize),
}

impl ConvTranspose {
    fn load(config: &EncodecConfig, scope: &Scope<'_>, channels: usize, stride: usize) -> Result<Self> {
        let right = match config.use_causal_conv {
            true => ((stride as f64 * config.trim_right_ratio).ceil() as usize).min(stride),
            false => stride / 2,
        };
        Ok(Self {
            weight: weight_norm(&scope.at("conv"), (channels, channels / 2, 2 * stride))?,
            bias: bias(&scope.at("conv"), channels / 2)?,
            stride,
            trim: (stride - right, right),
        })
    }

    /// `x` (1, in, length) to (1, out, stride * length).
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let length = x.dim(2)? * self.stride;
        let y = x.conv_transpose1d(&self.weight, 0, 0, self.stride, 1, 1)?;
        y.narrow(2, self.trim.0, length)?.broadcast_add(&self.bias)
    }
}

/// A residual block: ELU, convolution, ELU, pointwise convolution, beside a shortcut.
#[derive(Debug)]
struct Residual {
    layers: [Conv; 2],
    shortcut: Option<Conv>,
}

impl Residual {
    fn load(config: &EncodecConfig, scope: &Scope<'_>, channels: usize, index: usize) -> Result<Self> {
        let inner = channels / config.compress;
        let dilation = config.dilation_growth_rate.pow(index as u32);
        let wide = Kernel { dilation, ..Kernel::new(channels, inner, config.residual_kernel_size) };
        let shortcut = config
            .use_conv_shortcut
            .then(|| Conv::load(config, &scope.at("shortcut"), Kernel::new(channels, channels, 1)));
        Ok(Self {
            layers: [
                Conv::load(config, &scope.at("block.1"), wide)?,
                Conv::load(config, &scope.at("block.3"), Kernel::new(inner, channels, 1))?,
            ],
            shortcut: shortcut.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = self.layers[1].forward(&self.layers[0].forward(&x.elu(1.0)?)?.elu(1.0)?)?;
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(x)? + y,
            None => x + y,
        }
    }
}

/// Weight normalisation (Salimans and Kingma 2016): a direction and, per first index, a magnitude. Stored under the names of
/// torch's new or old implementation, or already multiplied.
fn weight_norm(scope: &Scope<'_>, shape: (usize, usize, usize)) -> Result<Tensor> {
    let names = [("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v")];
    let Some((magnitude, direction)) = names.into_iter().find(|(magnitude, _)| scope.has(magnitude)) else {
        return scope.get("weight", shape);
    };
    let (magnitude, direction) = (scope.get(magnitude, (shape.0, 1, 1))?, scope.get(direction, shape)?);
    let norm = |v: &Tensor| v.sqr()?.sum_keepdim((1, 2))?.sqrt();
    let weight = norm(&direction).and_then(|norm| direction.broadcast_mul(&magnitude.div(&norm)?));
    weight.map_err(Error::internal)
}

fn bias(scope: &Scope<'_>, channels: usize) -> Result<Tensor> {
    scope.get("bias", channels)?.reshape((1, channels, 1)).map_err(Error::internal)
}

/// One layer of a long short-term memory (Hochreiter and Schmidhuber 1997), gates in torch's order.
#[derive(Debug)]
struct Lstm {
    input: Matrix,
    recurrent: Matrix,
    bias: Vec<f32>,
}

#[derive(Debug)]
struct LstmState {
    output: Vec<f32>,
    cell: Vec<f32>,
}

impl LstmState {
    fn new(width: usize) -> Self {
        Self { output: vec![0.0; width], cell: vec![0.0; width] }
    }
}

impl Lstm {
    fn load(width: usize, index: usize, scope: &Scope<'_>) -> Result<Self> {
        let matrix = |name: &str| Matrix::stack(&[scope.get(&format!("{name}_l{index}"), (4 * width, width))?]);
        let vector = |name: &str| scope.get(&format!("{name}_l{index}"), 4 * width);
        let bias = (vector("bias_ih")? + vector("bias_hh")?).and_then(|bias| bias.to_vec1());
        Ok(Self { input: matrix("weight_ih")?, recurrent: matrix("weight_hh")?, bias: bias.map_err(Error::internal)? })
    }

    /// Replaces the frames of `x` (frames, width) by the layer's outputs.
    fn run(&self, state: &mut LstmState, x: &mut [f32]) {
        let width = state.cell.len();
        let mut gates = vec![0.0; x.len() * 4];
        self.input.apply(x, &mut gates);
        let mut recurrent = vec![0.0; 4 * width];
        for (out, gates) in x.chunks_exact_mut(width).zip(gates.chunks_exact_mut(4 * width)) {
            self.recurrent.apply(&state.output, &mut recurrent);
            for ((gate, recurrent), bias) in gates.iter_mut().zip(&recurrent).zip(&self.bias) {
                *gate += recurrent + bias;
            }
            for i in 0..width {
                let (input, forget) = (sigmoid(gates[i]), sigmoid(gates[width + i]));
                let (candidate, output) = (gates[2 * width + i].tanh(), sigmoid(gates[3 * width + i]));
                state.cell[i] = forget * state.cell[i] + input * candidate;
                state.output[i] = output * state.cell[i].tanh();
            }
            out.copy_from_slice(&state.output);
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
