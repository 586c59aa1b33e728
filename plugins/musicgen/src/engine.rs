//! The engine behind the plugin interface: checks requests, makes codes, and sends samples as soon as they are final.

use aihost_engine::finite;
use aihost_plugin_api::{Audio, AudioFormat, AudioOutput, AudioRequest, Context, Engine, Error, MemoryUsage, Result};
use rayon::ThreadPool;

use crate::compose::{Composition, GenerationProgress, Windows};
use crate::config::Config;
use crate::decoder::{DecoderSession, Guidance};
use crate::encodec::{EncodecDecoder, StreamingDecoder};
use crate::model::{MAX_PROMPT_TOKENS, Model};
use crate::sampler::{Sampler, SamplingStrategy};

/// Longest audio of a request, seconds.
const MAX_DURATION_S: f64 = 600.0;
/// Frames beyond a rendered chunk that memory is planned for: its context on both sides, and what the convolutions hold
/// beside their widest tensors.
const PLANNED_CONTEXT: usize = 8;

/// A loaded model with its threads.
#[derive(Debug)]
pub struct MusicGen {
    pub(crate) model: Model,
    pub(crate) threads: ThreadPool,
    /// Frames of a chunk that is sent, and of the generation's windows.
    pub(crate) chunking: Chunking,
    /// Bytes of the weights.
    pub(crate) weights: u64,
}

/// Frames of a chunk that is sent, and of the generation's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunking {
    /// Frames after which samples are sent.
    pub(crate) chunk: usize,
    /// The generation's windows.
    pub(crate) windows: Windows,
}

impl Engine for MusicGen {
    type Task = Audio;

    fn generate(&self, request: AudioRequest, output: &AudioOutput, ctx: &Context) -> Result<()> {
        let frames = frames(self.model.config(), &request)?;
        let strategy = strategy(&request)?;
        let tokens = self.model.tokenize(&request.prompt)?;
        ctx.check()?;
        self.threads.install(|| {
            let composition = Composition {
                text: self.model.encode_tokens(&tokens)?,
                frames,
                guidance: Guidance::from_scale(request.guidance_scale),
                sampler: Sampler::new(strategy, request.seed.unwrap_or_else(rand::random)),
                windows: self.chunking.windows,
            };
            self.stream(composition, output, ctx)
        })
    }

    fn cost(&self, request: &AudioRequest) -> Result<u64> {
        let config = self.model.config();
        let tokens = self.model.tokenize(&request.prompt)?.len();
        let guidance = Guidance::from_scale(request.guidance_scale);
        Ok(bytes(config, guidance, frames(config, request)?, tokens, self.chunking))
    }

    fn usage(&self) -> MemoryUsage {
        MemoryUsage::new(self.weights, self.weights)
    }
}

impl MusicGen {
    fn stream(&self, composition: Composition, output: &AudioOutput, ctx: &Context) -> Result<()> {
        let config = self.model.config();
        let channels = config.decoder.audio_channels;
        output.format(AudioFormat::new(config.audio_encoder.sampling_rate as u32, channels as u16));
        let mut streams: Vec<_> =
            (0..channels).map(|_| StreamingDecoder::new(self.model.codec(), self.chunking.chunk)).collect();
        let mut pushed = 0;
        self.model.compose(composition, |codes, GenerationProgress { complete_frames, done, total }| {
            ctx.check()?;
            let last = done == total;
            if last || complete_frames >= pushed + self.chunking.chunk {
                for frame in pushed..complete_frames {
                    for (channel, stream) in streams.iter_mut().enumerate() {
                        stream.push(&codes.of(frame, channel, channels))?;
                    }
                }
                pushed = complete_frames;
                let ready = streams.iter_mut().map(|stream| if last { stream.finish() } else { stream.ready() });
                let samples = interleave(&ready.collect::<Result<Vec<_>>>()?);
                finite::check(&samples, "codec", format_args!("step {done} of {total}"))?;
                output.samples(&samples)?;
            }
            output.progress(done as u64, total as u64)
        })?;
        Ok(())
    }
}

/// Frames of a request, which must be a length that the model can make.
pub(crate) fn frames(config: &Config, request: &AudioRequest) -> Result<usize> {
    let rate = config.audio_encoder.frame_rate();
    match request.frames(rate) {
        None => Err(Error::invalid_request(format!(
            "duration is {}; it must be a number of seconds above 0 and at most {MAX_DURATION_S}",
            request.duration
        ))
        .at("duration")),
        Some(frames) if frames > max_frames(config) as u64 => Err(Error::invalid_request(format!(
            "duration is {} seconds; at most {MAX_DURATION_S} seconds are made",
            request.duration
        ))
        .at("duration")),
        Some(frames) => Ok(frames as usize),
    }
}

fn max_frames(config: &Config) -> usize {
    (MAX_DURATION_S * config.audio_encoder.frame_rate()).ceil() as usize
}

/// Frames of the longest window: its last code is generated at the model's last position.
pub(crate) fn max_window(config: &Config) -> usize {
    let decoder = &config.decoder;
    decoder.max_position_embeddings.saturating_sub(decoder.codebooks_per_channel() - 1)
}

/// Bytes a request allocates: caches of a window, codes, the codec's memory, and one chunk of its rendering.
pub(crate) fn bytes(config: &Config, guidance: Guidance, frames: usize, tokens: usize, chunking: Chunking) -> u64 {
    let (decoder, codec) = (&config.decoder, &config.audio_encoder);
    let steps = frames.min(chunking.windows.frames) + decoder.codebooks_per_channel() - 1;
    let rendered = frames.min(chunking.chunk) + PLANNED_CONTEXT;
    let channels = decoder.audio_channels;
    // The codec's vectors double as they grow.
    let kept = 2 * channels * rendered * (codec.hidden_size + codec.width());
    let sent = 4 * channels * chunking.chunk.min(frames) * codec.hop();
    let codes = (frames + chunking.windows.overlap) * decoder.num_codebooks;
    DecoderSession::bytes(decoder, guidance, steps, tokens)
        + 4 * (kept + sent + codes) as u64
        + EncodecDecoder::window_bytes(codec, rendered)
}

/// The most that any request allocates.
pub(crate) fn max_bytes(config: &Config, chunking: Chunking) -> u64 {
    bytes(config, Guidance::Scale(3.0), max_frames(config), MAX_PROMPT_TOKENS, chunking)
}

fn strategy(request: &AudioRequest) -> Result<SamplingStrategy> {
    let wrong = |name: &str, value: f32, wanted: &str| {
        Err(Error::invalid_request(format!("{name} is {value}; it must be {wanted}")).at(name))
    };
    if !request.guidance_scale.is_finite() {
        return wrong("guidance_scale", request.guidance_scale, "a number");
    }
    if !(0.0..=2.0).contains(&request.temperature) {
        return wrong("temperature", request.temperature, "from 0 to 2");
    }
    if !(request.top_p > 0.0 && request.top_p <= 1.0) {
        return wrong("top_p", request.top_p, "above 0 and at most 1");
    }
    if request.is_greedy() {
        return Ok(SamplingStrategy::Greedy);
    }
    let (temperature, top_p) = (request.temperature, request.top_p);
    Ok(SamplingStrategy::Sample { temperature, top_k: request.top_k as usize, top_p })
}

fn interleave(channels: &[Vec<f32>]) -> Vec<f32> {
    match channels {
        [mono] => mono.clone(),
        _ => {
            let length = channels.iter().map(Vec::len).min().unwrap_or(0);
            (0..length).flat_map(|i| channels.iter().map(move |channel| channel[i])).collect()
        }
    }
}
