//! What a device must be able to do: fused operations on rows of activations, of which models are written once for all devices.

use std::ops::Range;

use aihost_plugin_api::Result;

use crate::files::Tensors;

/// Tokens of a block of a [cache](Ops::Cache).
pub const BLOCK_TOKENS: usize = 16;

/// The operations of a device. Activations are `[rows, width]`; a row's result never depends on the rows beside it, so that what
/// a sequence gives alone it gives in any company.
///
/// Each method fails with `OutOfMemory` if the device is full and `Device` if it broke; by the cores of the host none does.
pub trait Ops: Send + Sync + 'static {
    /// Activations, `[rows, width]`.
    type Tensor: Send;
    /// A table of vectors, `[rows, columns]`, of which single rows are read.
    type Table: Send + Sync;
    /// A matrix of weights, `[rows, columns]`: it takes `columns` wide activations to `rows` wide ones.
    type Matrix: Clone + Send + Sync;
    /// A vector of weights.
    type Vector: Send + Sync;
    /// Cosines and sines of the rows of a pass.
    type Angles;
    /// Keys and values of all layers and sequences, in blocks of [`BLOCK_TOKENS`].
    type Cache: Send;
    /// What layers without keys and values remember of sequences, in numbered places of one sequence each.
    type States: Send;

    /// A table of a file.
    ///
    /// # Errors
    /// As [`matrix_rows`](Self::matrix_rows).
    fn table(&self, file: &Tensors, name: &str, rows: usize, columns: usize) -> Result<Self::Table>;

    /// Rows of a tensor of this shape, whose last size is that of a row: of a matrix, or of several in one.
    ///
    /// # Errors
    /// `CorruptFile` if it is missing or of another shape, `Unsupported` if its type is not read.
    fn matrix_rows(&self, file: &Tensors, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Self::Matrix>;

    /// A vector.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector>;

    /// A cache of so many blocks.
    fn cache(&self, shape: CacheShape, blocks: usize) -> Result<Self::Cache>;

    /// So many places.
    fn states(&self, shape: StateShape, places: usize) -> Result<Self::States>;

    /// Writes what one place holds into another.
    fn copy_state(&self, states: &mut Self::States, from: usize, to: usize) -> Result<()>;

    /// `[rows, pairs]` of cosine and sine.
    fn angles(&self, table: &[[f32; 2]], pairs: usize) -> Result<Self::Angles>;

    /// Rows of a table: `[tokens, columns]`.
    fn embedding(&self, table: &Self::Table, tokens: &[u32]) -> Result<Self::Tensor>;

    /// Root-mean-square norm (Zhang and Sennrich 2019), row by row; of every head apart where `scale` is as wide as a head.
    fn rms_norm(&self, x: &Self::Tensor, scale: &Self::Vector, epsilon: f32) -> Result<Self::Tensor>;

    /// Layer norm (Ba et al. 2016), row by row; without a shift if there is none.
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        scale: &Self::Vector,
        shift: Option<&Self::Vector>,
        epsilon: f32,
    ) -> Result<Self::Tensor>;

    /// Products of the same activations with several matrices.
    fn linear<const N: usize>(&self, x: &Self::Tensor, matrices: [&Self::Matrix; N]) -> Result<[Self::Tensor; N]>;

    /// Products of groups of rows, which follow each other, each with its own matrix; all matrices are of one shape.
    fn linear_grouped(&self, x: &Self::Tensor, groups: &[(usize, &Self::Matrix)]) -> Result<Self::Tensor>;

    /// The rotary embedding (Su et al. 2021) of every head of `x`, `[rows, heads * width]`; elements of a head beyond the pairs
    /// stay.
    fn rotate(&self, x: &mut Self::Tensor, width: usize, angles: &Self::Angles, order: RotaryOrder) -> Result<()>;

    /// Writes the keys and values of a pass into the cache, if it has any, then causal attention of its queries over it:
    /// `[rows, heads * width]`.
    fn attention(
        &self,
        pass: Attention<'_, Self::Tensor, Self::Vector>,
        cache: &mut Self::Cache,
    ) -> Result<Self::Tensor>;

    /// Attention of sequences each of which sees itself: `[rows, heads * width]`.
    fn self_attention(&self, pass: SelfAttention<'_, Self::Tensor>) -> Result<Self::Tensor>;

    /// A causal convolution of each channel, whose last inputs the states remember: `[rows, channels]`.
    fn convolve(
        &self,
        pass: Convolution<'_, Self::Tensor, Self::Vector>,
        states: &mut Self::States,
    ) -> Result<Self::Tensor>;

    /// The gated delta rule (Yang et al. 2024), whose matrices the states remember: `[rows, heads * value_width]`.
    fn delta_rule(&self, pass: DeltaRule<'_, Self::Tensor>, states: &mut Self::States) -> Result<Self::Tensor>;

    /// Some columns of every row.
    fn columns(&self, x: &Self::Tensor, columns: Range<usize>) -> Result<Self::Tensor>;

    /// Takes apart pairs of pieces that are so wide: the first of each pair, and the second.
    fn halves(&self, x: &Self::Tensor, width: usize) -> Result<[Self::Tensor; 2]>;

    /// `activation(x)`.
    fn activate(&self, x: Self::Tensor, activation: Activation) -> Result<Self::Tensor>;

    /// `activation(gate) * up` (Shazeer 2020).
    fn gated(&self, gate: Self::Tensor, up: &Self::Tensor, activation: Activation) -> Result<Self::Tensor>;

    /// `x += delta`.
    fn add(&self, x: &mut Self::Tensor, delta: &Self::Tensor) -> Result<()>;

    /// Adds to groups of rows, which follow each other, a vector of each.
    fn add_grouped(&self, x: &mut Self::Tensor, groups: &[(usize, &Self::Vector)]) -> Result<()>;

    /// Adds a vector to every row.
    fn add_vector(&self, x: &mut Self::Tensor, vector: &Self::Vector) -> Result<()>;

    /// `x *= factor`.
    fn scale(&self, x: &mut Self::Tensor, factor: f32) -> Result<()>;

    /// Sums of rows, `[rows, width]`: each row of `x` counts with a weight towards the row that `places` names for it, in order.
    fn weighted_sums(&self, x: &Self::Tensor, places: &[(usize, f32)], rows: usize) -> Result<Self::Tensor>;

    /// Some rows, in this order.
    fn select(&self, x: &Self::Tensor, rows: &[usize]) -> Result<Self::Tensor>;

    /// The elements in row-major order, in host memory: whatever the device still does is waited for.
    fn to_host(&self, x: &Self::Tensor) -> Result<Vec<f32>>;

    /// Whether weights are used in their mapped file.
    fn is_in_place(&self) -> bool;

    /// Bytes that the weights of a file take where they are used; `tables` are tensors of which only rows are read.
    fn weight_bytes(&self, file: &Tensors, tables: &[&str]) -> u64;

    /// Bytes of activations.
    fn tensor_bytes(&self, rows: usize, width: usize) -> u64;

    /// Bytes that [`linear`](Self::linear) takes beside its arguments and its results, of `outputs` elements a row together.
    fn linear_bytes(&self, rows: usize, columns: usize, outputs: usize) -> u64;

    /// Bytes that [`attention`](Self::attention) takes beside its arguments and its result, over at most `context` tokens.
    fn attention_bytes(&self, rows: usize, heads: usize, width: usize, context: usize) -> u64;

    /// Bytes that [`self_attention`](Self::self_attention) takes beside its arguments and its result, of sequences of at most
    /// `longest` tokens.
    fn self_attention_bytes(&self, rows: usize, heads: usize, width: usize, longest: usize) -> u64;

    /// Bytes that [`delta_rule`](Self::delta_rule) and [`convolve`](Self::convolve) take beside their arguments and results.
    fn recurrence_bytes(&self, rows: usize, shape: StateShape) -> u64;

    /// Bytes of a block of a cache.
    fn block_bytes(&self, shape: CacheShape) -> u64;

    /// Bytes of a place.
    fn state_bytes(&self, shape: StateShape) -> u64;
}

/// What a cache keeps of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers of the model that have keys and values.
    pub layers: usize,
    /// Key heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head.
    pub width: usize,
}

/// What is remembered of a sequence by layers that have no keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateShape {
    /// How many there are.
    pub layers: usize,
    /// Channels of a layer's convolution.
    pub channels: usize,
    /// Earlier inputs that it sees.
    pub taps: usize,
    /// Matrices of a layer's delta rule.
    pub heads: usize,
    /// Their rows.
    pub key_width: usize,
    /// Their columns.
    pub value_width: usize,
}

impl StateShape {
    /// Elements of a layer's convolution, and of its matrices.
    pub(crate) fn sizes(self) -> [usize; 2] {
        [self.channels * self.taps, self.heads * self.key_width * self.value_width]
    }
}

/// The activation function of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// The tanh approximation of x times the normal distribution function (Hendrycks and Gimpel 2016).
    GeluTanh,
    /// x times the logistic function of 1.702 x: CLIP's.
    QuickGelu,
    /// x times the logistic function of x.
    Silu,
    /// x times the normal distribution function.
    Gelu,
    /// The hyperbolic tangent.
    Tanh,
    /// The logistic function.
    Sigmoid,
    /// x.
    Identity,
    /// gpt-oss's: x, at most 7, times the logistic function of 1.702 times that. What it gates is kept within 7, and has 1 added.
    ClampedSwish,
}

/// Which elements of a head are a pair of the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryOrder {
    /// 2i and 2i + 1.
    Interleaved,
    /// i and i + half of the rotated elements.
    Halves,
}

/// One layer's attention of a pass.
#[derive(Debug)]
pub struct Attention<'a, T, V> {
    /// The layer, which is the place in the cache.
    pub layer: usize,
    /// Queries, `[rows, heads * width]`.
    pub queries: &'a T,
    /// Keys and values of the same rows, `[rows, kv_heads * width]`, unless the cache has them.
    pub added: Option<[&'a T; 2]>,
    /// Which rows are of which sequence.
    pub spans: &'a [Span<'a>],
    /// What scores are multiplied with.
    pub scale: f32,
    /// Scores stay below this: `cap * tanh(score / cap)`.
    pub cap: Option<f32>,
    /// Tokens that a query sees, itself among them; all before it if absent.
    pub window: Option<usize>,
    /// The score of seeing nothing, of each head (Xiao et al. 2023).
    pub sinks: Option<&'a V>,
}

/// Attention without a cache: whole sequences, one after the other.
#[derive(Debug)]
pub struct SelfAttention<'a, T> {
    /// Queries, `[rows, heads * width]`.
    pub queries: &'a T,
    /// Keys, `[rows, kv_heads * width]`.
    pub keys: &'a T,
    /// Values, of the same shape.
    pub values: &'a T,
    /// Rows of each sequence.
    pub lengths: &'a [usize],
    /// How many heads there are.
    pub heads: usize,
    /// Those of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Tokens on either side that a query sees; all if absent.
    pub reach: Option<usize>,
}

/// One layer's convolution of a pass.
#[derive(Debug)]
pub struct Convolution<'a, T, V> {
    /// The layer, which is its place in the states.
    pub layer: usize,
    /// `[rows, channels]`
    pub x: &'a T,
    /// `[taps + 1, channels]`: what inputs count, the earliest one first.
    pub kernel: &'a V,
    /// Which rows are of which sequence.
    pub spans: &'a [Span<'a>],
}

/// One layer's delta rule of a pass. Of each head there is a matrix S, `[key_width, value_width]`. A row multiplies it with its decay,
/// `exp(rate * ln(1 + exp(alpha + bias)))`, then adds to what its key finds `beta` of what its value differs by, and gives what its
/// query finds in it. Keys and queries have a length of 1; queries are divided by the root of their width.
#[derive(Debug)]
pub struct DeltaRule<'a, T> {
    /// The layer, which is its place in the states.
    pub layer: usize,
    /// Queries and keys of each key head, and values of each head: `[rows, 2 * key_heads * key_width + heads * value_width]`.
    pub mixed: &'a T,
    /// Heads of queries and keys; divides that of values.
    pub key_heads: usize,
    /// Whether the heads of one key follow each other; if not, each lies `key_heads` behind the one before.
    pub is_grouped: bool,
    /// `[rows, heads]`
    pub alpha: &'a T,
    /// `[rows, heads]`, between 0 and 1.
    pub beta: &'a T,
    /// Of each head.
    pub bias: &'a [f32],
    /// Of each head, at most 0.
    pub rate: &'a [f32],
    /// Which rows are of which sequence.
    pub spans: &'a [Span<'a>],
}

impl<T> DeltaRule<'_, T> {
    /// Which key is a head's.
    pub(crate) fn key_of(&self, head: usize, heads: usize) -> usize {
        if self.is_grouped { head / (heads / self.key_heads) } else { head % self.key_heads }
    }
}

/// Consecutive tokens of one sequence among the rows of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    /// How many.
    pub rows: usize,
    /// The position of the first.
    pub start: usize,
    /// The blocks of the sequence's cache, from its first token on: enough for `start + rows` tokens.
    pub blocks: &'a [u32],
    /// The place of the sequence's state, if the model has states. It is empty for a sequence that starts.
    pub state: u32,
}

/// Tokens of several sequences that pass through a model together.
#[derive(Clone, Debug, Default)]
pub struct Pass<'a> {
    /// All tokens, span by span.
    pub tokens: Vec<u32>,
    /// Whose they are.
    pub spans: Vec<Span<'a>>,
    /// The rows whose logits are wanted, in ascending order.
    pub wanted: Vec<usize>,
}
