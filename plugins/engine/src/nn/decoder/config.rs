//! Sizes and constants of a decoder.

use super::names::Names;
use crate::nn::rotary::Rotary;
use crate::ops::{Activation, CacheShape, RotaryOrder, StateShape};

/// A decoder's shape: what its family is like, and how large this member is.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// How its tensors are called.
    pub names: &'static Names,
    /// Its transformer blocks, the first one first.
    pub layers: Vec<LayerConfig>,
    /// Blocks behind them that a checkpoint has for other uses.
    pub unused_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads of a block.
    pub heads: usize,
    /// The rotary embeddings that its layers use.
    pub rotaries: Vec<Rotary>,
    /// Which elements are rotated together.
    pub rope_order: RotaryOrder,
    /// Where it has norms.
    pub norms: Norms,
    /// Added to the mean square in RMS norms.
    pub norm_epsilon: f32,
    /// Added to the scales of RMS norms: 1 where a checkpoint keeps what they differ from 1 by.
    pub norm_offset: f32,
    /// Whether tokens see those behind them, too: then a sequence passes as a whole, and nothing is kept of it.
    pub sees_all: bool,
    /// Whether each head's queries and keys have norms (Henry et al. 2020).
    pub has_head_norms: bool,
    /// Whether each head's values have norms, without scales.
    pub has_value_norms: bool,
    /// Whether each head has a score of seeing nothing (Xiao et al. 2023).
    pub has_sinks: bool,
    /// Which products have biases.
    pub biases: Biases,
    /// Whether queries, keys and values are one matrix.
    pub has_fused_attention: bool,
    /// Whether gate and up are one matrix.
    pub has_fused_network: bool,
    /// Whether each head's query comes with a gate of what the head finds (Qiu et al. 2025).
    pub has_query_gates: bool,
    /// What layers without keys and values are like, if there are any.
    pub recurrence: Option<Recurrence>,
    /// The activation of the gates.
    pub activation: Activation,
    /// The experts of layers that have them.
    pub experts: Option<Experts>,
    /// Whether these layers have a dense network beside them.
    pub has_network_beside: bool,
    /// Width of what each layer is told of a token besides (Gemma 3n), if it is.
    pub layer_inputs: Option<usize>,
    /// Whether each layer's result is multiplied with a number of its own.
    pub has_layer_scales: bool,
    /// What embeddings are multiplied with.
    pub embedding_scale: f32,
    /// What each block's two results are multiplied with.
    pub residual_scale: f32,
    /// What scores are multiplied with before their softmax.
    pub attention_scale: f32,
    /// Scores stay below this (Gemma 2): `cap * tanh(score / cap)`.
    pub attention_cap: Option<f32>,
    /// How queries grow with their positions.
    pub query_growth: Option<QueryGrowth>,
    /// What logits are multiplied with.
    pub logit_scale: f32,
    /// Logits stay below this.
    pub logit_cap: Option<f32>,
    /// Tokens the model was trained on.
    pub context: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
}

/// What one block has of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerConfig {
    /// Tokens that a query sees, itself among them; all before it if absent.
    pub window: Option<usize>,
    /// Which of the rotary embeddings; none if absent (Kazemnejad et al. 2023).
    pub rotary: Option<usize>,
    /// Whether its network is of experts.
    pub has_experts: bool,
    /// Whether it remembers what was in a state of one size, and has no keys and values.
    pub is_recurrent: bool,
    /// Key and value heads (Ainslie et al. 2023); divides those of queries.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Width between the two halves of a dense feed-forward network.
    pub feed_forward: usize,
    /// An earlier layer of the same shape whose keys and values it sees (Brandon et al. 2024); its own if absent.
    pub keys_of: Option<usize>,
}

/// What blocks without keys and values have in place of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recurrence {
    /// A gated delta net (Yang et al. 2024).
    DeltaNet(DeltaNet),
    /// A gated convolution (LFM2), which sees so many earlier rows.
    ShortConvolution { taps: usize },
}

/// A gated delta net: queries, keys and values pass through a convolution, then through the delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaNet {
    /// Heads of queries and keys; divides `heads`.
    pub key_heads: usize,
    /// Heads of values.
    pub heads: usize,
    /// Width of a query and a key.
    pub key_width: usize,
    /// Width of a value.
    pub value_width: usize,
    /// Earlier rows that the convolution sees.
    pub taps: usize,
    /// Whether the heads of one key follow each other; if not, each lies `key_heads` behind the one before.
    pub is_grouped: bool,
}

impl DeltaNet {
    /// Width of queries and keys together with values.
    pub fn channels(self) -> usize {
        2 * self.key_heads * self.key_width + self.heads * self.value_width
    }
}

/// Where a block has norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before attention and before the network (Xiong et al. 2020).
    Before,
    /// There, and behind both as well (Gemma 2).
    Around,
}

/// Which products of a block have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Biases {
    /// None.
    None,
    /// Those of queries, keys and values.
    QueryKeyValue,
    /// Those for which the checkpoint has any.
    AsStored,
}

/// A mixture of experts (Shazeer et al. 2017), of which each token goes to those with the largest shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many a token goes to.
    pub used: usize,
    /// Width between the halves of one.
    pub feed_forward: usize,
    /// Whether the shares of those add up to 1.
    pub is_normalised: bool,
    /// Width between the halves of one that every token goes to, by a share of its own.
    pub shared: Option<usize>,
}

/// Queries are multiplied with `1 + beta * ln(1 + floor(position / from))` (Llama 4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryGrowth {
    pub beta: f32,
    /// Tokens.
    pub from: usize,
}

impl QueryGrowth {
    pub(super) fn at(self, position: usize) -> f32 {
        1.0 + self.beta * ((position / self.from.max(1)) as f32).ln_1p()
    }
}

/// Where a layer's keys and values are, or its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Which of the caches.
    pub(super) cache: usize,
    /// Its number there, or among the states.
    pub(super) layer: usize,
}

impl LayerConfig {
    fn has_own_keys(&self) -> bool {
        !self.is_recurrent && self.keys_of.is_none()
    }

    fn fits(&self, cache: &CacheShape) -> bool {
        (cache.kv_heads, cache.width) == (self.kv_heads, self.head_width)
    }
}

impl DecoderConfig {
    /// What the caches keep of a token: of layers whose heads differ, each its own.
    pub fn caches(&self) -> Vec<CacheShape> {
        let mut caches: Vec<CacheShape> = Vec::new();
        for layer in self.layers.iter().filter(|layer| layer.has_own_keys()) {
            match caches.iter_mut().find(|cache| layer.fits(cache)) {
                Some(cache) => cache.layers += 1,
                None => caches.push(CacheShape { layers: 1, kv_heads: layer.kv_heads, width: layer.head_width }),
            }
        }
        caches
    }

    /// What layers without keys and values remember of a sequence.
    pub fn state(&self) -> StateShape {
        let layers = self.layers.iter().filter(|layer| layer.is_recurrent).count();
        match self.recurrence {
            None => StateShape::default(),
            Some(Recurrence::ShortConvolution { taps }) => {
                StateShape { layers, channels: self.hidden, taps, ..StateShape::default() }
            }
            Some(Recurrence::DeltaNet(net)) => {
                let DeltaNet { heads, key_width, value_width, taps, .. } = net;
                StateShape { layers, channels: net.channels(), taps, heads, key_width, value_width }
            }
        }
    }

    /// The place of each layer.
    pub(super) fn places(&self) -> Vec<Place> {
        let caches = self.caches();
        // How many of each cache are taken, and of the states.
        let (mut taken, mut states) = (vec![0; caches.len()], 0);
        let mut next = |count: &mut usize| {
            *count += 1;
            *count - 1
        };
        let mut places: Vec<Place> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            places.push(if layer.is_recurrent {
                Place { cache: 0, layer: next(&mut states) }
            } else if let Some(earlier) = layer.keys_of.and_then(|earlier| places.get(earlier)) {
                *earlier
            } else {
                let cache = caches.iter().position(|cache| layer.fits(cache)).unwrap_or_default();
                Place { cache, layer: taken.get_mut(cache).map_or(0, &mut next) }
            });
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_grow_by_steps() {
        let growth = QueryGrowth { beta: 0.5, from: 10 };
        assert_eq!([0, 9].map(|position| growth.at(position)), [1.0; 2]);
        assert!((growth.at(25) - (1.0 + 0.5 * 3f32.ln())).abs() < 1e-6);
    }
}
