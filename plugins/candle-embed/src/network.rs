//! What makes vectors of tokens: an encoder, or a decoder of which what it knows behind its last layer counts.

use aihost_engine::files::Tensors;
use aihost_engine::nn::decoder::{self, Cache, Decoder, DecoderConfig};
use aihost_engine::nn::encoder::{self, Encoder, EncoderConfig, Sequences};
use aihost_engine::ops::{BLOCK_TOKENS, Ops, Pass, Span};
use aihost_plugin_api::Result;

use crate::batch::PASS_TOKENS;
use crate::pooling::Pooling;

/// A network's shape.
#[derive(Clone, Debug, PartialEq)]
pub enum NetworkConfig {
    Encoder(EncoderConfig),
    Decoder(Box<DecoderConfig>),
}

/// A network, ready to compute.
pub enum Network<O: Ops> {
    Encoder(Box<Encoder<O>>),
    Decoder(Box<Decoder<O>>),
    /// A decoder that says of a text whether it is so, and the tokens of `yes` and `no`.
    Judge(Box<Decoder<O>>, [u32; 2]),
}

impl<O: Ops> std::fmt::Debug for Network<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Encoder(_) => f.write_str("Encoder"),
            Self::Decoder(decoder) | Self::Judge(decoder, _) => decoder.fmt(f),
        }
    }
}

impl NetworkConfig {
    /// Width of a token's vector.
    pub fn hidden(&self) -> usize {
        match self {
            Self::Encoder(c) => c.hidden,
            Self::Decoder(c) => c.hidden,
        }
    }

    /// Most tokens of a text.
    pub fn context(&self) -> usize {
        match self {
            Self::Encoder(c) => c.context,
            Self::Decoder(c) => c.context,
        }
    }

    /// Tokens that have vectors.
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Encoder(c) => c.vocabulary,
            Self::Decoder(c) => c.vocabulary,
        }
    }

    /// How tokens' vectors become one where nothing says it: who sees nothing behind it knows all at the end.
    pub fn pooling(&self) -> Pooling {
        match self {
            Self::Decoder(c) if !c.sees_all => Pooling::Last,
            _ => Pooling::default(),
        }
    }

    /// Bytes that a pass takes at its peak, of texts of at most `context` tokens.
    pub fn workspace_bytes<O: Ops>(&self, ops: &O, context: usize) -> u64 {
        let rows = PASS_TOKENS.max(context);
        match self {
            Self::Encoder(c) => encoder::workspace_bytes(ops, c, rows, context),
            Self::Decoder(c) => {
                let kept = ops.tensor_bytes(rows, c.hidden);
                if c.sees_all {
                    let attention = ops.self_attention_bytes(rows, c.heads, widest_head(c), context);
                    return kept + decoder::workspace_bytes(ops, c, rows, 0, context) + attention;
                }
                // Long texts pass in pieces.
                let blocks = rows.div_ceil(BLOCK_TOKENS) + PASS_TOKENS.div_ceil(BLOCK_TOKENS);
                let block: u64 = c.caches().into_iter().map(|shape| ops.block_bytes(shape)).sum();
                kept + decoder::workspace_bytes(ops, c, PASS_TOKENS, 0, context) + block * blocks as u64
            }
        }
    }
}

fn widest_head(c: &DecoderConfig) -> usize {
    c.layers.iter().map(|layer| layer.head_width).max().unwrap_or(0)
}

impl<O: Ops> Network<O> {
    /// Finds and checks every tensor. Texts have at most `context` tokens.
    ///
    /// # Errors
    /// `CorruptFile` for a missing tensor or a wrong shape, `Unsupported` for one that is of no use to the network.
    pub fn open(ops: O, tensors: &Tensors, config: NetworkConfig, context: usize) -> Result<Self> {
        Ok(match config {
            NetworkConfig::Encoder(config) => Self::Encoder(Box::new(Encoder::open(ops, tensors, config)?)),
            NetworkConfig::Decoder(config) => Self::Decoder(Box::new(Decoder::open(ops, tensors, *config, context)?)),
        })
    }

    /// One that scores texts by what it says of them, if it can say anything.
    pub fn judging(self, answers: [u32; 2]) -> Option<Self> {
        match self {
            Self::Decoder(decoder) if !decoder.config().sees_all => Some(Self::Judge(decoder, answers)),
            _ => None,
        }
    }

    /// Whether it makes scores.
    pub fn scores(&self) -> bool {
        match self {
            Self::Encoder(encoder) => encoder.scores(),
            Self::Decoder(_) => false,
            Self::Judge(..) => true,
        }
    }

    /// The score of each sequence, if it makes any.
    ///
    /// # Errors
    /// Those of the device.
    pub fn score(&self, sequences: &Sequences) -> Result<Option<Vec<f32>>> {
        match self {
            Self::Encoder(encoder) => encoder.score(sequences),
            Self::Decoder(_) => Ok(None),
            Self::Judge(decoder, answers) => judged(decoder, *answers, sequences).map(Some),
        }
    }

    /// The vectors of all tokens, `[tokens, hidden]` f32.
    ///
    /// # Errors
    /// Those of the device.
    pub fn vectors(&self, sequences: &Sequences) -> Result<Vec<f32>> {
        match self {
            Self::Encoder(encoder) => encoder.vectors(sequences),
            Self::Decoder(decoder) | Self::Judge(decoder, _) => decoded(decoder, sequences),
        }
    }
}

/// The vectors of all tokens.
fn decoded<O: Ops>(decoder: &Decoder<O>, sequences: &Sequences) -> Result<Vec<f32>> {
    let mut vectors = Vec::with_capacity(sequences.tokens.len() * decoder.config().hidden);
    each_pass(decoder, sequences, |mut pass, _, cache| {
        pass.wanted = (0..pass.tokens.len()).collect();
        vectors.extend(decoder.hidden(&pass, cache)?);
        Ok(())
    })?;
    Ok(vectors)
}

/// By how much `yes` is likelier than `no` behind each sequence, as logits have it.
fn judged<O: Ops>(decoder: &Decoder<O>, [yes, no]: [u32; 2], sequences: &Sequences) -> Result<Vec<f32>> {
    let mut scores = Vec::with_capacity(sequences.lengths.len());
    each_pass(decoder, sequences, |mut pass, ends, cache| {
        pass.wanted = ends;
        let logits = decoder.forward(&pass, cache)?;
        let rows = logits.chunks_exact(decoder.config().vocabulary);
        scores.extend(rows.map(|row| row[yes as usize] - row[no as usize]));
        Ok(())
    })?;
    Ok(scores)
}

/// Has sequences pass together, in pieces of at most [`PASS_TOKENS`] rows unless each has to see all of itself. `visit` is told the
/// rows at which sequences end.
fn each_pass<O: Ops>(
    decoder: &Decoder<O>,
    sequences: &Sequences,
    mut visit: impl FnMut(Pass<'_>, Vec<usize>, &mut Cache<O>) -> Result<()>,
) -> Result<()> {
    let sees_all = decoder.config().sees_all;
    let mut next = 0;
    let own_blocks = |rows: &usize| {
        let own = if sees_all { 0 } else { rows.div_ceil(BLOCK_TOKENS) as u32 };
        next += own;
        (next - own..next).collect()
    };
    let blocks: Vec<Vec<u32>> = sequences.lengths.iter().map(own_blocks).collect();
    let mut cache = decoder.cache(next as usize, sequences.lengths.len())?;
    // The sequence whose turn it is, how much of it has passed, and all that has not.
    let (mut at, mut start, mut rest) = (0, 0, sequences.tokens.as_slice());
    while !rest.is_empty() {
        let (mut pass, mut ends) = (Pass::default(), Vec::new());
        while at < sequences.lengths.len() && (sees_all || pass.tokens.len() < PASS_TOKENS) {
            let left = sequences.lengths[at] - start;
            let rows = if sees_all { left } else { left.min(PASS_TOKENS - pass.tokens.len()) };
            let (own, behind) = rest.split_at(rows);
            pass.tokens.extend_from_slice(own);
            pass.spans.push(Span { rows, start, blocks: &blocks[at], state: at as u32 });
            rest = behind;
            if rows == left {
                ends.push(pass.tokens.len() - 1);
                (at, start) = (at + 1, 0);
            } else {
                start += rows;
            }
        }
        visit(pass, ends, &mut cache)?;
    }
    Ok(())
}
