//! One transformer block.

use aihost_plugin_api::Result;

use super::attention::{Angles, AttentionLayer};
use super::config::{Biases, DecoderConfig, Experts, LayerConfig, Norms, Place, Recurrence};
use super::experts::Mixture;
use super::recurrent::{GatedDeltaNet, ShortConvolution};
use super::{Cache, norm};
use crate::nn::weights::{Bias, Projection, Weights, project};
use crate::ops::{Activation, Ops, Pass};

/// A block's weights.
pub(super) struct Layer<O: Ops> {
    mixer_norms: NormPair<O>,
    mixer: Mixer<O>,
    network_norms: NormPair<O>,
    network: Network<O>,
    /// What it is told of tokens besides.
    input: Option<LayerInput<O>>,
    /// What its result is multiplied with.
    scale: f32,
}

/// What a block begins with: how tokens learn of those before them.
enum Mixer<O: Ops> {
    Attention(AttentionLayer<O>),
    DeltaNet(GatedDeltaNet<O>),
    ShortConvolution(ShortConvolution<O>),
}

/// A norm before a part of a block, and one behind it.
struct NormPair<O: Ops> {
    before: O::Vector,
    behind: Option<O::Vector>,
}

/// What stands behind it.
enum Network<O: Ops> {
    Dense(Dense<O>),
    Experts(Mixture<O>),
    Beside(Box<Beside<O>>),
}

/// A dense network and experts beside it, each between norms of its own.
struct Beside<O: Ops> {
    dense: Dense<O>,
    dense_norm: O::Vector,
    /// Of what the router sees.
    router_norm: O::Vector,
    /// Before the experts and behind them.
    expert_norms: [O::Vector; 2],
    experts: Mixture<O>,
}

/// What a layer is told of tokens besides the residual stream (Gemma 3n): a gate of it, and what becomes of it.
struct LayerInput<O: Ops> {
    gate: Projection<O>,
    output: Projection<O>,
    norm: O::Vector,
}

/// A gated feed-forward network (Shazeer 2020).
pub(super) struct Dense<O: Ops> {
    gate: Projection<O>,
    up: Projection<O>,
    down: Projection<O>,
}

/// A pass on its way through a block.
pub(super) struct Step<'a, O: Ops> {
    pub(super) ops: &'a O,
    pub(super) config: &'a DecoderConfig,
    pub(super) layer: LayerConfig,
    /// The layer's place in the caches, or in the states.
    pub(super) place: Place,
    /// What queries and keys are turned by, if they are.
    pub(super) angles: Option<&'a Angles<O>>,
    pub(super) pass: &'a Pass<'a>,
    pub(super) cache: &'a mut Cache<O>,
}

impl<O: Ops> Layer<O> {
    pub(super) fn open(ops: &O, weights: &mut Weights<'_, O>, c: &DecoderConfig, layer: usize) -> Result<Self> {
        let prefix = format!("{}.{layer}", c.names.layers);
        let recurrence = c.recurrence.filter(|_| c.layers[layer].is_recurrent);
        let mixer = match recurrence {
            None => Mixer::Attention(AttentionLayer::open(ops, weights, c, &prefix, c.layers[layer])?),
            Some(Recurrence::DeltaNet(net)) => Mixer::DeltaNet(GatedDeltaNet::open(weights, c, &prefix, net)?),
            Some(Recurrence::ShortConvolution { taps }) => {
                Mixer::ShortConvolution(ShortConvolution::open(weights, c, &prefix, taps)?)
            }
        };
        let inner = c.layers[layer].feed_forward;
        let network = match c.experts.filter(|_| c.layers[layer].has_experts) {
            Some(experts) if c.has_network_beside => {
                let dense = Dense::open_block(weights, c, &prefix, inner)?;
                Network::Beside(Box::new(Beside::open(ops, weights, c, &prefix, (dense, experts))?))
            }
            Some(experts) => Network::Experts(Mixture::open(weights, c, &prefix, experts)?),
            None => Network::Dense(Dense::open_block(weights, c, &prefix, inner)?),
        };
        let input = c.layer_inputs.map(|width| LayerInput::open(ops, weights, c, &prefix, width)).transpose()?;
        let scale = format!("{prefix}.{}", c.names.layer_scale);
        // Older files have none.
        let scale = if c.has_layer_scales && weights.has(&scale) { weights.values(&scale, 1)?[0] } else { 1.0 };
        let mixer_norms = NormPair::open(ops, weights, c, &prefix, 0)?;
        let network_norms = NormPair::open(ops, weights, c, &prefix, 1)?;
        Ok(Self { mixer_norms, mixer, network_norms, network, input, scale })
    }

    /// Adds to `x` what the rows of a pass learn of those before them.
    pub(super) fn mix(&self, step: &mut Step<'_, O>, x: &mut O::Tensor) -> Result<()> {
        let (ops, c) = (step.ops, step.config);
        let normed = ops.rms_norm(x, &self.mixer_norms.before, c.norm_epsilon)?;
        let delta = match &self.mixer {
            Mixer::Attention(attention) => attention.forward(step, &normed)?,
            Mixer::DeltaNet(net) => net.forward(step, &normed)?,
            Mixer::ShortConvolution(convolution) => convolution.forward(step, &normed)?,
        };
        self.mixer_norms.add(ops, c, x, delta)
    }

    /// Adds what the feed-forward network gives to `x`; and what follows from `told`, `[rows, width]`.
    pub(super) fn feed_forward(
        &self,
        ops: &O,
        c: &DecoderConfig,
        x: &mut O::Tensor,
        told: Option<&O::Tensor>,
    ) -> Result<()> {
        let normed = ops.rms_norm(x, &self.network_norms.before, c.norm_epsilon)?;
        let delta = match &self.network {
            Network::Dense(dense) => dense.forward(ops, &normed, c.activation)?,
            Network::Experts(mixture) => mixture.forward(ops, &normed, &normed, c.activation)?,
            Network::Beside(beside) => beside.forward(ops, c, &normed, x)?,
        };
        self.network_norms.add(ops, c, x, delta)?;
        if let (Some(input), Some(told)) = (&self.input, told) {
            let delta = input.forward(ops, c, x, told)?;
            ops.add(x, &delta)?;
        }
        ops.scale(x, self.scale)
    }
}

impl<O: Ops> Beside<O> {
    fn open(
        ops: &O,
        weights: &mut Weights<'_, O>,
        c: &DecoderConfig,
        prefix: &str,
        (dense, experts): (Dense<O>, Experts),
    ) -> Result<Self> {
        let mut norms = c.names.norms_beside.iter();
        let mut next = |weights: &mut Weights<'_, O>| {
            let name = norms.next().copied().unwrap_or_default();
            norm(ops, weights, c, &format!("{prefix}.{name}.weight"), c.hidden)
        };
        let (dense_norm, expert_norms) = (next(weights)?, [next(weights)?, next(weights)?]);
        let [router, shares] = c.names.router_scales;
        // What the router sees is scaled by the root of its width, too.
        let root = (c.hidden as f32).sqrt();
        let router = weights.values(&format!("{prefix}.{router}"), c.hidden)?;
        let router_norm = ops.vector(router.into_iter().map(|scale| scale / root).collect())?;
        let mixture = Mixture::open(weights, c, prefix, experts)?;
        let shares = weights.values(&format!("{prefix}.{shares}"), experts.count)?;
        Ok(Self { dense, dense_norm, router_norm, expert_norms, experts: mixture.scaled(shares) })
    }

    /// Of the residual stream, and its norm.
    fn forward(&self, ops: &O, c: &DecoderConfig, normed: &O::Tensor, x: &O::Tensor) -> Result<O::Tensor> {
        let norm = |x: &O::Tensor, scale: &O::Vector| ops.rms_norm(x, scale, c.norm_epsilon);
        let mut sum = norm(&self.dense.forward(ops, normed, c.activation)?, &self.dense_norm)?;
        let routed = norm(x, &self.router_norm)?;
        let given = self.experts.forward(ops, &routed, &norm(x, &self.expert_norms[0])?, c.activation)?;
        ops.add(&mut sum, &norm(&given, &self.expert_norms[1])?)?;
        Ok(sum)
    }
}

impl<O: Ops> LayerInput<O> {
    fn open(ops: &O, weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str, width: usize) -> Result<Self> {
        let [gate, output, behind] = c.names.layer_inputs.parts;
        Ok(Self {
            gate: weights.projection(&format!("{prefix}.{gate}"), [width, c.hidden], 0..width, Bias::None)?,
            output: weights.projection(&format!("{prefix}.{output}"), [c.hidden, width], 0..c.hidden, Bias::None)?,
            norm: norm(ops, weights, c, &format!("{prefix}.{behind}.weight"), c.hidden)?,
        })
    }

    fn forward(&self, ops: &O, c: &DecoderConfig, x: &O::Tensor, told: &O::Tensor) -> Result<O::Tensor> {
        let [gate] = project(ops, x, [&self.gate])?;
        let [output] = project(ops, &ops.gated(gate, told, c.activation)?, [&self.output])?;
        ops.rms_norm(&output, &self.norm, c.norm_epsilon)
    }
}

impl<O: Ops> NormPair<O> {
    /// Those of a block's first or second part.
    fn open(ops: &O, weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str, part: usize) -> Result<Self> {
        let mut norm = |name: &str| norm(ops, weights, c, &format!("{prefix}.{name}.weight"), c.hidden);
        let before = norm(c.names.norms_before[part])?;
        let behind = match c.norms {
            Norms::Before => None,
            Norms::Around => Some(norm(c.names.norms_behind[part])?),
        };
        Ok(Self { before, behind })
    }

    /// `x += delta`, as the block has it.
    fn add(&self, ops: &O, c: &DecoderConfig, x: &mut O::Tensor, delta: O::Tensor) -> Result<()> {
        let mut delta = match &self.behind {
            Some(norm) => ops.rms_norm(&delta, norm, c.norm_epsilon)?,
            None => delta,
        };
        ops.scale(&mut delta, c.residual_scale)?;
        ops.add(x, &delta)
    }
}

impl<O: Ops> Dense<O> {
    /// That of a block.
    fn open_block(weights: &mut Weights<'_, O>, c: &DecoderConfig, prefix: &str, inner: usize) -> Result<Self> {
        let (names, bias) = (c.names, other_bias(c));
        if !c.has_fused_network {
            return Self::open(weights, c, prefix, names.feed_forward, inner);
        }
        let fused = format!("{prefix}.{}", names.fused_feed_forward);
        let mut half = |rows| weights.projection(&fused, [2 * inner, c.hidden], rows, bias);
        let (gate, up) = (half(0..inner)?, half(inner..2 * inner)?);
        let down = format!("{prefix}.{}", names.feed_forward[2]);
        Ok(Self { gate, up, down: weights.projection(&down, [c.hidden, inner], 0..c.hidden, bias)? })
    }

    /// One whose halves are so wide, by the names of its gate, up and down.
    pub(super) fn open(
        weights: &mut Weights<'_, O>,
        c: &DecoderConfig,
        prefix: &str,
        [gate, up, down]: [&str; 3],
        inner: usize,
    ) -> Result<Self> {
        let mut part = |name: &str, rows: usize, columns: usize| {
            weights.projection(&format!("{prefix}.{name}"), [rows, columns], 0..rows, other_bias(c))
        };
        Ok(Self {
            gate: part(gate, inner, c.hidden)?,
            up: part(up, inner, c.hidden)?,
            down: part(down, c.hidden, inner)?,
        })
    }

    /// `[rows, hidden]`
    pub(super) fn forward(&self, ops: &O, x: &O::Tensor, activation: Activation) -> Result<O::Tensor> {
        let [gate, up] = project(ops, x, [&self.gate, &self.up])?;
        let [output] = project(ops, &ops.gated(gate, &up, activation)?, [&self.down])?;
        Ok(output)
    }
}

/// Whether products other than queries, keys and values have biases.
pub(super) fn other_bias(c: &DecoderConfig) -> Bias {
    if c.biases == Biases::AsStored { Bias::AsStored } else { Bias::None }
}
