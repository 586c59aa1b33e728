//! Where an audio engine puts its samples. It cuts them into blocks, counts, and heeds the client's pace.

use std::sync::{Arc, Mutex, PoisonError};

use super::outlet::Outlet;
use super::{Error, Result};
use crate::abi::event_kind;
use crate::task::{AudioBlock, AudioFinish, AudioFormat, AudioHeader, AudioRequest, FinishReason};

/// Most samples in one block, all channels together: 64 KiB.
const BLOCK_SAMPLES: usize = 16 * 1024;
/// Most channels of the audio.
const CHANNELS_MAX: u16 = 2;
/// Lowest sample rate that a file can say and a player plays, Hz.
const SAMPLE_RATE_MIN: u32 = 1000;
/// Highest sample rate, Hz.
const SAMPLE_RATE_MAX: u32 = 768_000;
/// How much longer than asked for an answer may become, as engines work in whole frames or chunks. Seconds.
const SPARE_SECONDS: f64 = 1.0;

/// The answer of one audio request. A cheap handle: clones feed the same answer, from any thread.
#[derive(Clone)]
pub struct AudioOutput {
    outlet: Outlet,
    state: Arc<Mutex<AudioState>>,
}

#[derive(Clone, Copy, Default)]
struct AudioState {
    /// That of the first samples, once there are some.
    format: Option<AudioFormat>,
    /// Whether there were samples, which are of `format`.
    is_begun: bool,
    /// Whether another format was named since.
    is_format_changed: bool,
    /// Seconds that were asked for.
    wanted: f32,
    samples: u64,
    steps: u64,
}

impl std::fmt::Debug for AudioOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioOutput").field("outlet", &self.outlet).finish_non_exhaustive()
    }
}

impl AudioOutput {
    pub(crate) fn new(request: &AudioRequest, outlet: Outlet) -> Self {
        let state = AudioState { wanted: request.duration, ..AudioState::default() };
        Self { outlet, state: Arc::new(Mutex::new(state)) }
    }

    /// Says what the samples will be: 1 or 2 channels, 1 to 768 kHz. Before the first [`samples`](Self::samples), which refuses
    /// another format, and one that changes midway.
    pub fn format(&self, format: AudioFormat) {
        let mut state = self.lock();
        if state.is_begun {
            state.is_format_changed |= state.format != Some(format);
        } else {
            state.format = Some(format);
        }
    }

    /// Adds samples, interleaved, in [-1, 1]. Blocks while the client is too slow.
    ///
    /// # Errors
    /// Once the client left: return it with `?`, it is a normal end. Internal if [`format`](Self::format) was not
    /// called, or names a format that is not served; if there is not one sample for each channel, or one is no number; or if the
    /// answer became more than a second longer than asked for.
    pub fn samples(&self, samples: &[f32]) -> Result<()> {
        let format = self.begin(samples)?;
        if let Some(at) = samples.iter().position(|sample| !sample.is_finite()) {
            return Err(Error::internal(format!("sample {} is {}", self.pushed() + at as u64, samples[at])));
        }
        let channels = usize::from(format.channels);
        for block in samples.chunks(BLOCK_SAMPLES / channels * channels) {
            self.push(format, block)?;
            self.lock().samples += (block.len() / channels) as u64;
        }
        Ok(())
    }

    /// Says that `done` of `total` steps have been made; the client's progress bar shows it.
    ///
    /// # Errors
    /// Once the client left.
    pub fn progress(&self, done: u64, total: u64) -> Result<()> {
        self.lock().steps = done;
        self.outlet.progress(done, total)
    }

    /// Samples per channel pushed so far.
    pub fn pushed(&self) -> u64 {
        self.lock().samples
    }

    /// The format of these samples, from which on it stays.
    fn begin(&self, samples: &[f32]) -> Result<AudioFormat> {
        let mut state = self.lock();
        let format = state.checked()?.ok_or_else(|| Error::internal("samples were pushed before their format"))?;
        let channels = usize::from(format.channels);
        if !samples.len().is_multiple_of(channels) {
            return Err(Error::internal(format!("{} samples do not fill {channels} channels", samples.len())));
        }
        let most = (f64::from(state.wanted.max(0.0)) + SPARE_SECONDS) * f64::from(format.sample_rate);
        if state.samples.saturating_add((samples.len() / channels) as u64) > most as u64 {
            let text = format!(
                "the engine makes more than the {} seconds of audio that were asked for; it is to end there",
                state.wanted
            );
            return Err(Error::internal(text));
        }
        state.is_begun |= !samples.is_empty();
        Ok(format)
    }

    fn push(&self, format: AudioFormat, samples: &[f32]) -> Result<()> {
        let header = AudioHeader::new(format, self.pushed());
        let payload = AudioBlock::encode(&header, samples)?;
        self.outlet.push_paced(event_kind::BYTES, &payload)
    }

    pub(crate) fn finish(&self, result: Result<()>) -> Result<AudioFinish> {
        let reason = match result {
            Ok(()) => self.lock().checked().map(|_| FinishReason::Stop)?,
            Err(error) => self.outlet.stopped(error).map(|()| FinishReason::Cancelled)?,
        };
        let AudioState { format, samples, steps, .. } = *self.lock();
        let AudioFormat { sample_rate, channels } = format.unwrap_or(AudioFormat::new(0, 0));
        let seconds = if sample_rate == 0 { 0.0 } else { samples as f64 / f64::from(sample_rate) };
        Ok(AudioFinish { reason, sample_rate, channels, samples, steps, seconds })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, AudioState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AudioState {
    /// The format, if one was named.
    ///
    /// # Errors
    /// If it is none that is served, or was changed midway.
    fn checked(&self) -> Result<Option<AudioFormat>> {
        if self.is_format_changed {
            return Err(Error::internal("the format of the samples was changed midway"));
        }
        let Some(AudioFormat { sample_rate, channels }) = self.format else { return Ok(None) };
        if !(1..=CHANNELS_MAX).contains(&channels) || !(SAMPLE_RATE_MIN..=SAMPLE_RATE_MAX).contains(&sample_rate) {
            let text = format!("samples of {channels} channels at {sample_rate} Hz are no format that is served");
            return Err(Error::internal(text));
        }
        Ok(self.format)
    }
}
