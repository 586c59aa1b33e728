//! A loaded checkpoint: tokenizer, text encoder, decoder and codec, and the loop that makes codes of a prompt.

use std::path::PathBuf;

use aihost_engine::finite;
use aihost_plugin_api::{Error, LoadRequest, Result};
use aihost_support::roles::beside;
use aihost_support::t5::T5Encoder;
use aihost_support::tokens;
use aihost_support::weights::Weights;
use candle_core::{DType, Device, Tensor};
use tokenizers::Tokenizer;

use crate::config::Config;
use crate::decoder::{Decoder, Guidance};
use crate::delay::DelayPattern;
use crate::encodec::EncodecDecoder;
use crate::sampler::Sampler;

/// Longest prompt, tokens of the text encoder: beyond it attention over the prompt would outweigh the decoder.
pub const MAX_PROMPT_TOKENS: usize = 512;

/// Where a model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// A folder, a weights file, or an index of shards.
    pub weights: PathBuf,
    /// `config.json`.
    pub config: PathBuf,
    /// `tokenizer.json`.
    pub tokenizer: PathBuf,
}

impl Files {
    /// Role `model` is a folder or the weights; `config` and `tokenizer` lie beside it unless they are named.
    ///
    /// # Errors
    /// [`aihost_plugin_api::ErrorKind::MissingFile`] if there is no role `model`.
    pub fn of(load: &LoadRequest) -> Result<Self> {
        Ok(Self {
            weights: load.file("model")?.to_owned(),
            config: beside(load, "config", "config.json")?,
            tokenizer: beside(load, "tokenizer", "tokenizer.json")?,
        })
    }
}

/// All parts of a checkpoint.
#[derive(Debug)]
pub struct Model {
    config: Config,
    tokenizer: Tokenizer,
    text: T5Encoder,
    decoder: Decoder,
    codec: EncodecDecoder,
}

/// One step of the decoder.
#[derive(Clone, Copy, Debug)]
pub struct DecoderStep<'a> {
    /// The step's number, from 0.
    pub index: usize,
    /// (codebooks, vocabulary), with guidance; empty where every token was given.
    pub logits: &'a [f32],
    /// One per codebook; padding where the pattern has none.
    pub tokens: &'a [u32],
}

/// One window that is to be generated.
#[derive(Clone, Copy, Debug)]
pub struct WindowRequest<'a> {
    /// The prompt's states, (tokens, text width).
    pub text: &'a Tensor,
    /// Frames, the given ones among them.
    pub frames: usize,
    /// Weight of the prompt: classifier-free guidance.
    pub guidance: Guidance,
    /// Codes of the first frames, which the decoder is prompted with: (frames, codebooks), perhaps none.
    pub given: &'a [u32],
}

impl Model {
    /// Loads a checkpoint onto the CPU. The decoder's matrices are kept as `dtype`, or as stored; all else is f32.
    ///
    /// # Errors
    /// If a file is missing, damaged, or of a model that is not served.
    pub fn load(files: &Files, dtype: Option<DType>) -> Result<Self> {
        Self::load_from(&Weights::open(&files.weights)?, files, dtype)
    }

    /// [`load`](Self::load) from weights that are open, and perhaps observed.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_from(weights: &Weights, files: &Files, dtype: Option<DType>) -> Result<Self> {
        let config = Config::read(&files.config)?;
        let tokenizer = tokens::open(&files.tokenizer, "a MusicGen model needs its tokenizer.json")?;
        let kept = dtype.map_or_else(|| weights.tensor("decoder.lm_heads.0.weight").map(|head| head.dtype()), Ok)?;
        let part = |name: &str, dtype| weights.scope(name, dtype, &Device::Cpu);
        Ok(Self {
            tokenizer,
            text: T5Encoder::load(&config.text_encoder, &part("text_encoder", DType::F32))?,
            decoder: Decoder::load(&config.decoder, config.text_encoder.d_model, &part("", kept))?,
            codec: EncodecDecoder::load(
                &config.audio_encoder,
                config.decoder.codebooks_per_channel(),
                &part("audio_encoder", DType::F32),
            )?,
            config,
        })
    }

    /// What the checkpoint says of itself.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The EnCodec decoder.
    pub fn codec(&self) -> &EncodecDecoder {
        &self.codec
    }

    /// Tokens of a prompt, the end-of-text token included.
    ///
    /// # Errors
    /// [`aihost_plugin_api::ErrorKind::InvalidRequest`] if it is empty or longer than [`MAX_PROMPT_TOKENS`].
    pub fn tokenize(&self, prompt: &str) -> Result<Vec<u32>> {
        if prompt.trim().is_empty() {
            return Err(Error::invalid_request("prompt is empty; describe the music in a few words").at("prompt"));
        }
        if prompt.len() > tokens::TEXT_BYTES {
            let most = tokens::TEXT_BYTES;
            let text =
                format!("prompt has {} bytes, of at most {most}; describe the music in fewer words", prompt.len());
            return Err(Error::invalid_request(text).at("prompt"));
        }
        let tokens = tokens::encode(&self.tokenizer, prompt)?;
        if tokens.len() > MAX_PROMPT_TOKENS {
            let text = format!("prompt has {} tokens; at most {MAX_PROMPT_TOKENS} are read", tokens.len());
            return Err(Error::invalid_request(text).at("prompt"));
        }
        Ok(tokens)
    }

    /// States (tokens, text width) f32 of a prompt.
    ///
    /// # Errors
    /// As [`tokenize`](Self::tokenize).
    pub fn encode(&self, prompt: &str) -> Result<Tensor> {
        self.encode_tokens(&self.tokenize(prompt)?)
    }

    /// States (tokens, text width) f32 of a tokenised prompt.
    ///
    /// # Errors
    /// If it is empty or has a token past the vocabulary.
    pub fn encode_tokens(&self, tokens: &[u32]) -> Result<Tensor> {
        let states = self.text.encode(tokens)?;
        finite::check(&states, "text encoder", "its one step")?;
        Tensor::from_vec(states, (tokens.len(), self.text.width()), &Device::Cpu).map_err(Error::internal)
    }

    /// The order in which the codes of `frames` frames are generated.
    pub fn pattern(&self, frames: usize) -> DelayPattern {
        let decoder = &self.config.decoder;
        DelayPattern::new(decoder.num_codebooks, decoder.audio_channels, frames)
    }

    /// Generates all codes of a window that are not given, calling `on_progress` after every step.
    ///
    /// # Errors
    /// Those of `on_progress`, which end the request.
    pub fn generate(
        &self,
        request: WindowRequest<'_>,
        sampler: &mut Sampler,
        mut on_progress: impl FnMut(DecoderStep<'_>) -> Result<()>,
    ) -> Result<()> {
        let pattern = self.pattern(request.frames);
        let (books, vocabulary) = (pattern.codebooks(), self.config.decoder.vocab_size);
        let padding = vocabulary as u32;
        // What a codebook's token is without asking the model.
        let known = |index, book| match pattern.frame(index, book) {
            None => Some(padding),
            Some(frame) => request.given.get(frame * books + book).copied(),
        };
        let mut session = self.decoder.session(request.text, request.guidance, pattern.steps())?;
        let mut tokens = vec![padding; books];
        for index in 0..pattern.steps() {
            session.feed(&tokens)?;
            let is_asked = (0..books).any(|book| known(index, book).is_none());
            let logits = if is_asked { session.logits() } else { &[] };
            finite::check(logits, "decoder", format_args!("step {} of {}", index + 1, pattern.steps()))?;
            for (book, token) in tokens.iter_mut().enumerate() {
                let choose = || sampler.choose(&logits[book * vocabulary..(book + 1) * vocabulary]);
                *token = known(index, book).unwrap_or_else(choose);
            }
            on_progress(DecoderStep { index, logits, tokens: &tokens })?;
        }
        Ok(())
    }
}
