//! Kind `audio`: a prompt in, audio out. Music and sound effects; speech is another kind.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FinishReason, block};

/// One clip of audio. `n` clips are `n` requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct AudioRequest {
    /// What it should sound like. Not empty.
    pub prompt: String,
    /// Length in seconds; above 0. The plugin rounds up to whole frames and names its own limit.
    #[serde(default = "AudioRequest::default_duration")]
    pub duration: f32,
    /// Weight of the prompt against no prompt (classifier-free guidance, Ho and Salimans 2022); at most 1 is off.
    #[serde(default = "AudioRequest::default_guidance_scale")]
    pub guidance_scale: f32,
    /// 0 is greedy; 0 to 2.
    #[serde(default = "AudioRequest::default_temperature")]
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 is off.
    #[serde(default = "AudioRequest::default_top_k")]
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probability reaches this; (0, 1], 1 is off.
    #[serde(default = "AudioRequest::default_top_p")]
    pub top_p: f32,
    /// The same seed, model and request give the same audio. Absent: drawn by the plugin.
    #[serde(default)]
    pub seed: Option<u64>,
    /// The bytes that the request speaks of by number.
    #[serde(skip)]
    pub blocks: Vec<Vec<u8>>,
}

builders! {
    AudioRequest:
    prompt(into String), duration(f32), guidance_scale(f32), temperature(f32), top_k(u32), top_p(f32), seed(some u64),
    blocks(Vec<Vec<u8>>),
}

impl AudioRequest {
    /// A request for what this describes, with everything else as clients have it that say nothing of it.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self::default().prompt(prompt)
    }

    fn default_duration() -> f32 {
        10.0
    }

    fn default_guidance_scale() -> f32 {
        3.0
    }

    fn default_temperature() -> f32 {
        1.0
    }

    fn default_top_k() -> u32 {
        250
    }

    fn default_top_p() -> f32 {
        1.0
    }

    /// Whether the likeliest token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Frames of a codec that `duration` needs at `frame_rate` frames per second, rounded up; `None` unless it is a
    /// positive number. A thousandth of a frame is taken for rounding of the decimal number, not for a wish.
    pub fn frames(&self, frame_rate: f64) -> Option<u64> {
        let frames = f64::from(self.duration) * frame_rate;
        (frames.is_finite() && frames > 0.0).then(|| ((frames - 1e-3).ceil() as u64).max(1))
    }
}

impl Default for AudioRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            duration: Self::default_duration(),
            guidance_scale: Self::default_guidance_scale(),
            temperature: Self::default_temperature(),
            top_k: Self::default_top_k(),
            top_p: Self::default_top_p(),
            seed: None,
            blocks: Vec::new(),
        }
    }
}

/// What the samples of one answer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AudioFormat {
    /// Samples per second and channel, Hz.
    pub sample_rate: u32,
    /// 1 or 2.
    pub channels: u16,
}

impl AudioFormat {
    /// So many samples per second and channel, in Hz, and 1 or 2 channels.
    pub fn new(sample_rate: u32, channels: u16) -> Self {
        Self { sample_rate, channels }
    }
}

/// The JSON header of a pushed block of samples. After it come interleaved little-endian samples in [-1, 1].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AudioHeader {
    /// Samples per second and channel, Hz.
    pub sample_rate: u32,
    /// 1 or 2.
    pub channels: u16,
    /// `f32le`.
    pub format: String,
    /// Samples per channel that came before this block.
    pub offset: u64,
}

impl AudioHeader {
    /// The only sample format there is.
    pub const F32LE: &'static str = "f32le";

    /// Of a block of [`F32LE`](Self::F32LE) samples that so many of each channel came before.
    pub fn new(format: AudioFormat, offset: u64) -> Self {
        let AudioFormat { sample_rate, channels } = format;
        Self { sample_rate, channels, format: Self::F32LE.to_owned(), offset }
    }
}

/// A block of samples as it crosses: `u32` little-endian header length, JSON header, raw interleaved `f32` LE.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AudioBlock {
    /// What the samples are.
    pub header: AudioHeader,
    /// Interleaved, in [-1, 1]; `channels` per moment.
    pub samples: Vec<f32>,
}

impl AudioBlock {
    /// The payload of an event of kind [`BYTES`](crate::abi::event_kind::BYTES).
    ///
    /// # Errors
    /// If the header cannot be written as JSON, which no header should cause.
    pub fn encode(header: &AudioHeader, samples: &[f32]) -> crate::Result<Vec<u8>> {
        let mut payload = block::start(header, 4 * samples.len())?;
        payload.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
        Ok(payload)
    }

    /// Undoes [`encode`](Self::encode).
    ///
    /// # Errors
    /// If the payload is cut short, or its header is not one of audio.
    pub fn decode(payload: &[u8]) -> crate::Result<Self> {
        let damaged = || crate::Error::internal("a block of samples is damaged");
        let (header, samples): (AudioHeader, _) = block::split(payload).ok_or_else(damaged)?;
        let (samples, rest) = samples.as_chunks::<4>();
        if header.format != AudioHeader::F32LE || !rest.is_empty() {
            return Err(damaged());
        }
        Ok(Self { header, samples: samples.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect() })
    }
}

/// The result of one audio request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AudioFinish {
    /// [`FinishReason::Stop`] when all of it was made, [`FinishReason::Cancelled`] when the client left.
    pub reason: FinishReason,
    /// Samples per second and channel, Hz; 0 if nothing was made.
    pub sample_rate: u32,
    /// 1 or 2; 0 if nothing was made.
    pub channels: u16,
    /// Samples per channel that were pushed.
    pub samples: u64,
    /// Decoder steps that were run.
    pub steps: u64,
    /// `samples / sample_rate`.
    pub seconds: f64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_block_comes_back_as_it_went(samples in prop::collection::vec(-1f32..=1.0, 0..64), offset in any::<u64>()) {
            let header = AudioHeader::new(AudioFormat::new(32_000, 2), offset);
            let payload = AudioBlock::encode(&header, &samples).unwrap();
            prop_assert_eq!(AudioBlock::decode(&payload).unwrap(), AudioBlock { header, samples });
            prop_assert!(payload.len() < 5 || AudioBlock::decode(&payload[..payload.len() - 1]).is_err());
        }
    }

    #[test]
    fn frames_round_up_but_not_for_a_decimal_fraction() {
        let frames = |duration| AudioRequest::default().duration(duration).frames(50.0);
        assert_eq!(frames(1.14), Some(57));
        assert_eq!(frames(1.15), Some(58));
        assert_eq!(frames(1e-6), Some(1));
        assert_eq!([frames(0.0), frames(-1.0), frames(f32::NAN), frames(f32::INFINITY)], [None; 4]);
    }

    #[test]
    fn a_prompt_alone_is_a_request() {
        let request: AudioRequest = serde_json::from_str(r#"{"prompt": "rain"}"#).unwrap();
        assert_eq!(request, AudioRequest::new("rain"));
    }
}
