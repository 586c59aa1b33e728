//! Samples as files: WAV and FLAC of 16 bits, and the loudness they may be brought to. Pure functions.

use std::io::Cursor;

use aihost_plugin_api::task::{AudioBlock, AudioFinish, FinishReason};
use flacenc::bitsink::ByteSink;
use flacenc::component::BitRepr;
use flacenc::error::Verify;
use flacenc::source::MemSource;

use crate::domain::{Failure, FailureKind};

/// Bits per sample of every file. A reader that divides by 32768 is within 2e-5 of what the model made.
const BITS: u16 = 16;
/// What `normalize` brings a piece to: what streaming services play at. ITU-R BS.1770-4, EBU R 128.
const TARGET_LUFS: f64 = -14.0;
/// No sample is raised beyond this by `normalize`: -1 dBFS.
const PEAK_LIMIT: f32 = 0.891_250_9;
/// Below this rate, in Hz, the filters that loudness is defined by do not exist.
const MIN_LOUDNESS_RATE: u32 = 8000;
/// Bytes of the head of a file that is still being made.
const HEAD_BYTES: usize = 44;
/// The size in the head of a file that is still being made.
const UNKNOWN_SIZE: u32 = 4_294_967_295;

/// A piece of audio.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Audio {
    /// Samples per second and channel, Hz.
    pub(crate) sample_rate: u32,
    /// 1 or 2.
    pub(crate) channels: u16,
    /// Interleaved, in [-1, 1]; what lies beyond is cut off in a file.
    pub(crate) samples: Vec<f32>,
}

/// A kind of audio file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AudioFormat {
    /// RIFF WAVE, 16-bit PCM.
    Wav,
    /// Free Lossless Audio Codec.
    Flac,
}

impl AudioFormat {
    /// By its name, which is also its ending.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        match name {
            "wav" => Some(Self::Wav),
            "flac" => Some(Self::Flac),
            _ => None,
        }
    }
}

impl Audio {
    /// Its length in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let frames = self.samples.len() as f64 / f64::from(self.channels.max(1));
        frames / f64::from(self.sample_rate.max(1))
    }

    /// A whole file.
    ///
    /// # Errors
    /// If the file cannot hold it: no channel, no rate, too long.
    pub(crate) fn encode(&self, format: AudioFormat) -> Result<Vec<u8>, String> {
        if self.channels == 0 || self.sample_rate == 0 {
            return Err("it is silent for ever: no channel, or no sample a second".to_owned());
        }
        match format {
            AudioFormat::Wav => self.wav().map_err(|error| format!("no WAV file can be made of it: {error}")),
            AudioFormat::Flac => self.flac().map_err(|error| format!("no FLAC file can be made of it: {error}")),
        }
    }

    /// Brings it to -14 LUFS, or as near as its peaks allow. What has no measurable loudness stays as it is: silence,
    /// less than 0.4 s, or fewer than 8000 samples a second.
    pub(crate) fn normalize(&mut self) {
        let Some(loudness) = self.loudness() else { return };
        let peak = self.samples.iter().fold(0.0f32, |most, sample| most.max(sample.abs()));
        #[expect(clippy::cast_possible_truncation, reason = "a gain needs no more digits than a sample has")]
        let gain = (10f64.powf((TARGET_LUFS - loudness) / 20.0) as f32).min(PEAK_LIMIT / peak);
        self.samples.iter_mut().for_each(|sample| *sample *= gain);
    }

    /// Integrated loudness, LUFS.
    pub(crate) fn loudness(&self) -> Option<f64> {
        if self.sample_rate < MIN_LOUDNESS_RATE {
            return None;
        }
        let mut meter = ebur128::EbuR128::new(u32::from(self.channels), self.sample_rate, ebur128::Mode::I).ok()?;
        meter.add_frames_f32(&self.samples).ok()?;
        meter.loudness_global().ok().filter(|loudness| loudness.is_finite())
    }

    fn wav(&self) -> hound::Result<Vec<u8>> {
        let spec = hound::WavSpec {
            channels: self.channels,
            sample_rate: self.sample_rate,
            bits_per_sample: BITS,
            sample_format: hound::SampleFormat::Int,
        };
        let mut file = Cursor::new(Vec::with_capacity(HEAD_BYTES + 2 * self.samples.len()));
        let mut writer = hound::WavWriter::new(&mut file, spec)?;
        for sample in &self.samples {
            writer.write_sample(quantise(*sample))?;
        }
        writer.finalize()?;
        Ok(file.into_inner())
    }

    fn flac(&self) -> Result<Vec<u8>, String> {
        let config = flacenc::config::Encoder::default().into_verified().map_err(|(_, error)| error.to_string())?;
        let samples: Vec<i32> = self.samples.iter().map(|sample| i32::from(quantise(*sample))).collect();
        let (channels, rate) = (usize::from(self.channels), self.sample_rate as usize);
        let source = MemSource::from_samples(&samples, channels, usize::from(BITS), rate);
        let mut stream = flacenc::encode_with_fixed_block_size(&config, source, config.block_size)
            .map_err(|error| error.to_string())?;
        // The last block may be short, which does not count (RFC 9639, 8.2); the library counts it, and decoders then
        // refuse the file.
        let sizes = stream.stream_info_mut().set_block_sizes(config.block_size, config.block_size);
        sizes.map_err(|error| error.to_string())?;
        let mut sink = ByteSink::new();
        stream.write(&mut sink).map_err(|error| error.to_string())?;
        Ok(sink.into_inner())
    }
}

/// The head of a WAV file whose end is not known yet; [`pcm`] follows it.
pub(crate) fn wav_head(sample_rate: u32, channels: u16) -> Vec<u8> {
    let frame_bytes = channels.saturating_mul(BITS / 8);
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(b"RIFF");
    head.extend_from_slice(&UNKNOWN_SIZE.to_le_bytes());
    head.extend_from_slice(b"WAVEfmt ");
    head.extend_from_slice(&16u32.to_le_bytes());
    head.extend_from_slice(&1u16.to_le_bytes());
    head.extend_from_slice(&channels.to_le_bytes());
    head.extend_from_slice(&sample_rate.to_le_bytes());
    head.extend_from_slice(&sample_rate.saturating_mul(u32::from(frame_bytes)).to_le_bytes());
    head.extend_from_slice(&frame_bytes.to_le_bytes());
    head.extend_from_slice(&BITS.to_le_bytes());
    head.extend_from_slice(b"data");
    head.extend_from_slice(&UNKNOWN_SIZE.to_le_bytes());
    head
}

/// Samples as they stand in a WAV file.
pub(crate) fn pcm(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|sample| quantise(*sample).to_le_bytes()).collect()
}

/// A block of samples as the plugin pushed it.
///
/// # Errors
/// If it is none, or one that no file can hold.
pub(crate) fn block(payload: &[u8]) -> Result<AudioBlock, Failure> {
    let wrong = |message: String| Failure::new(FailureKind::Internal, message);
    let block = AudioBlock::decode(payload).map_err(|error| wrong(error.to_string()))?;
    let (channels, rate) = (block.header.channels, block.header.sample_rate);
    if !(1..=2).contains(&channels) || rate == 0 || !block.samples.len().is_multiple_of(usize::from(channels)) {
        let samples = block.samples.len();
        return Err(wrong(format!("the plugin pushed {samples} samples of {channels} channels at {rate} Hz")));
    }
    Ok(block)
}

/// The summary that ends a piece.
///
/// # Errors
/// If it is none, or the piece was cut short.
pub(crate) fn finish(summary: &[u8]) -> Result<AudioFinish, Failure> {
    let finish: AudioFinish = serde_json::from_slice(summary).map_err(|error| {
        Failure::new(FailureKind::Internal, format!("the plugin ended with what is no audio summary: {error}"))
    })?;
    if finish.reason == FinishReason::Cancelled {
        return Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"));
    }
    Ok(finish)
}

/// What a streamed WAV file holds, once it is whole; nothing if it is none.
pub(crate) fn of_stream(bytes: &[u8]) -> Option<Audio> {
    let (head, data) = bytes.split_at_checked(HEAD_BYTES)?;
    let channels = u16::from_le_bytes([head[22], head[23]]);
    let sample_rate = u32::from_le_bytes([head[24], head[25], head[26], head[27]]);
    (*head == *wav_head(sample_rate, channels)).then(|| {
        let (samples, _) = data.as_chunks::<2>();
        let sample = |bytes: &[u8; 2]| f32::from(i16::from_le_bytes(*bytes)) / 32768.0;
        Audio { sample_rate, channels, samples: samples.iter().map(sample).collect() }
    })
}

/// A sample in [-1, 1] as 16 bits; what lies beyond is cut off, what is no number is silence.
#[expect(clippy::cast_possible_truncation, reason = "the cast saturates, which is what is wanted")]
fn quantise(sample: f32) -> i16 {
    (sample * 32768.0).round() as i16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sine(amplitude: f32, seconds: f32) -> Audio {
        let samples = (0..(32_000.0 * seconds) as usize)
            .map(|i| amplitude * (i as f32 * 997.0 * std::f32::consts::TAU / 32_000.0).sin())
            .collect();
        Audio { sample_rate: 32_000, channels: 1, samples }
    }

    fn read_wav(file: &[u8]) -> Audio {
        let mut reader = hound::WavReader::new(file).unwrap();
        let hound::WavSpec { sample_rate, channels, .. } = reader.spec();
        let samples = reader.samples::<i16>().map(|sample| f32::from(sample.unwrap()) / 32768.0).collect();
        Audio { sample_rate, channels, samples }
    }

    fn read_flac(file: &[u8]) -> Audio {
        let mut reader = claxon::FlacReader::new(file).unwrap();
        let info = reader.streaminfo();
        let samples = reader.samples().map(|sample| sample.unwrap() as f32 / 32768.0).collect();
        Audio { sample_rate: info.sample_rate, channels: info.channels as u16, samples }
    }

    fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn files_read_back(
            frames in prop_oneof![1usize..40, 4080usize..4120, 1usize..9000],
            channels in 1u16..=2,
            noise in 1u32..9999,
            sample_rate in prop::sample::select(vec![1600u32, 16_000, 32_000, 48_000]),
        ) {
            let samples = (0..frames as u32 * u32::from(channels)).map(|i| (i.wrapping_mul(noise) as f32).sin()).collect();
            let audio = Audio { sample_rate, channels, samples };
            let wav = read_wav(&audio.encode(AudioFormat::Wav).unwrap());
            prop_assert_eq!((wav.sample_rate, wav.channels), (sample_rate, channels));
            prop_assert!(largest_difference(&wav.samples, &audio.samples) < 4e-5);
            prop_assert!(read_flac(&audio.encode(AudioFormat::Flac).unwrap()) == wav);
            let mut streamed = wav_head(sample_rate, channels);
            audio.samples.chunks(7).for_each(|block| streamed.extend(pcm(block)));
            prop_assert!(of_stream(&streamed) == Some(wav));
        }
    }

    #[test]
    fn what_is_too_loud_is_cut_off_and_what_is_no_number_is_silence() {
        let samples = vec![2.0, -2.0, f32::NAN, f32::INFINITY];
        let audio = Audio { sample_rate: 32_000, channels: 1, samples };
        let found = read_wav(&audio.encode(AudioFormat::Wav).unwrap()).samples;
        assert_eq!(found, [32767.0 / 32768.0, -1.0, 0.0, 32767.0 / 32768.0]);
    }

    #[test]
    fn no_channels_are_no_file() {
        let nothing = Audio { sample_rate: 32_000, channels: 0, samples: vec![0.0; 64] };
        assert!(nothing.encode(AudioFormat::Wav).is_err() && nothing.encode(AudioFormat::Flac).is_err());
    }

    #[test]
    fn loudness_is_brought_to_its_target_but_peaks_stay_below_theirs() {
        let mut quiet = sine(0.05, 2.0);
        assert!(quiet.loudness().unwrap() < -25.0);
        quiet.normalize();
        assert!((quiet.loudness().unwrap() - TARGET_LUFS).abs() < 0.1, "{:?}", quiet.loudness());

        let mut click = sine(0.05, 2.0);
        click.samples[100] = 0.8;
        click.normalize();
        let peak = click.samples.iter().fold(0.0f32, |most, sample| most.max(sample.abs()));
        assert!((peak - PEAK_LIMIT).abs() < 1e-6, "{peak}");

        for still in [sine(0.0, 2.0), sine(0.5, 0.1), Audio { sample_rate: 1600, ..sine(0.5, 2.0) }] {
            let mut audio = still.clone();
            audio.normalize();
            assert_eq!(audio, still);
        }
    }
}
