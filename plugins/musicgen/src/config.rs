//! What a MusicGen checkpoint's `config.json` says, checked: the three models' sizes under Hugging Face's keys.

use std::path::Path;

use aihost_plugin_api::{Error, ErrorKind, Result};
use aihost_support::t5::T5Config;
use serde::Deserialize;

/// A whole checkpoint: text encoder, decoder, codec.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Config {
    /// Always `musicgen` here.
    #[serde(default)]
    pub model_type: String,
    /// T5, the text encoder.
    pub text_encoder: T5Config,
    /// EnCodec, the audio codec.
    pub audio_encoder: EncodecConfig,
    /// The language model of codes.
    pub decoder: DecoderConfig,
}

/// The language model over codebook tokens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct DecoderConfig {
    /// Codes of a codebook; the token of this number is padding.
    pub vocab_size: usize,
    /// Positions: the most steps of a window.
    pub max_position_embeddings: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Width inside the feed-forward layer.
    pub ffn_dim: usize,
    /// Attention heads of a layer.
    pub num_attention_heads: usize,
    /// Width of a state.
    pub hidden_size: usize,
    /// Codebooks of all channels.
    pub num_codebooks: usize,
    /// 1 or 2; for 2, left and right codebooks alternate.
    pub audio_channels: usize,
    /// `gelu` or `relu`.
    pub activation_function: String,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            vocab_size: 2048,
            max_position_embeddings: 2048,
            num_hidden_layers: 24,
            ffn_dim: 4096,
            num_attention_heads: 16,
            hidden_size: 1024,
            num_codebooks: 4,
            audio_channels: 1,
            activation_function: "gelu".to_owned(),
        }
    }
}

impl DecoderConfig {
    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Codebooks of one channel.
    pub fn codebooks_per_channel(&self) -> usize {
        self.num_codebooks / self.audio_channels
    }
}

/// The codec. Only its decoder is used.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct EncodecConfig {
    /// Samples per second, Hz.
    pub sampling_rate: usize,
    /// Channels of one codec stream; MusicGen's stereo runs a mono codec twice.
    pub audio_channels: usize,
    /// Whether audio was scaled before encoding, which MusicGen's codec never does.
    pub normalize: bool,
    /// Width of a code's vector.
    pub hidden_size: usize,
    /// Channels at the sample rate; doubled with each stage towards the frames.
    pub num_filters: usize,
    /// Residual blocks of a stage.
    pub num_residual_layers: usize,
    /// Stages, from frames to samples.
    pub upsampling_ratios: Vec<usize>,
    /// The kind of normalisation; only `weight_norm` is served.
    pub norm_type: String,
    /// Kernel width of the first convolution.
    pub kernel_size: usize,
    /// Kernel width of the last convolution.
    pub last_kernel_size: usize,
    /// Kernel width of the residual blocks' first convolution.
    pub residual_kernel_size: usize,
    /// Dilation of residual block i is this to the power of i.
    pub dilation_growth_rate: usize,
    /// Whether a sample depends on the past only.
    pub use_causal_conv: bool,
    /// `reflect` or anything else for zeros.
    pub pad_mode: String,
    /// Divides the width inside residual blocks.
    pub compress: usize,
    /// Layers of the LSTM.
    pub num_lstm_layers: usize,
    /// Share of a causal transposed convolution's surplus cut on the right.
    pub trim_right_ratio: f64,
    /// Codes of a codebook.
    pub codebook_size: usize,
    /// Whether the residual path has a convolution.
    pub use_conv_shortcut: bool,
}

impl Default for EncodecConfig {
    fn default() -> Self {
        Self {
            sampling_rate: 24_000,
            audio_channels: 1,
            normalize: false,
            hidden_size: 128,
            num_filters: 32,
            num_residual_layers: 1,
            upsampling_ratios: vec![8, 5, 4, 2],
            norm_type: "weight_norm".to_owned(),
            kernel_size: 7,
            last_kernel_size: 7,
            residual_kernel_size: 3,
            dilation_growth_rate: 2,
            use_causal_conv: true,
            pad_mode: "reflect".to_owned(),
            compress: 2,
            num_lstm_layers: 2,
            trim_right_ratio: 1.0,
            codebook_size: 1024,
            use_conv_shortcut: true,
        }
    }
}

impl EncodecConfig {
    /// Samples of one frame.
    pub fn hop(&self) -> usize {
        self.upsampling_ratios.iter().product()
    }

    /// Frames per second.
    pub fn frame_rate(&self) -> f64 {
        self.sampling_rate as f64 / self.hop() as f64
    }

    /// Width of the frames between the first convolution and the stages.
    pub fn width(&self) -> usize {
        self.num_filters << self.upsampling_ratios.len()
    }
}

impl Config {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::MissingFile`], [`ErrorKind::CorruptFile`], [`ErrorKind::Unsupported`] for another model,
    /// [`ErrorKind::InvalidRequest`] for a melody model.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::new(ErrorKind::MissingFile, format!("{}: {error}", path.display())))?;
        Self::parse(&text).map_err(|error| Error::new(error.kind(), format!("{}: {}", path.display(), error.message())))
    }

    fn parse(text: &str) -> Result<Self> {
        let corrupt = |message: String| Error::new(ErrorKind::CorruptFile, message);
        let json: serde_json::Value = serde_json::from_str(text).map_err(|error| corrupt(error.to_string()))?;
        // Asked before the rest is read: a sibling's keys differ, and the difference would hide the reason.
        match json["model_type"].as_str() {
            Some("musicgen") => {}
            Some("musicgen_melody") => {
                let text = "this is a MusicGen melody model, which needs a melody as well as a prompt; it is not \
                            supported. Use facebook/musicgen-small, -medium, -large or one of their stereo versions";
                // The model is whole: it is the request for music from words alone that it cannot serve.
                return Err(Error::invalid_request(text));
            }
            other => {
                let found = other.unwrap_or("nothing");
                return Err(Error::new(ErrorKind::Unsupported, format!("`model_type` is {found}, not musicgen")));
            }
        }
        let config: Self = serde_json::from_value(json).map_err(|error| corrupt(error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let unsupported = |text: String| Err(Error::new(ErrorKind::Unsupported, text));
        let corrupt = |text: &str| Err(Error::new(ErrorKind::CorruptFile, text));
        let (decoder, codec) = (&self.decoder, &self.audio_encoder);
        if !matches!(decoder.audio_channels, 1 | 2) {
            return unsupported(format!("{} audio channels; 1 and 2 are known", decoder.audio_channels));
        }
        if codec.audio_channels != 1 || codec.normalize || codec.norm_type != "weight_norm" {
            return unsupported("a codec that is not mono, weight-normed and unscaled".to_owned());
        }
        if !matches!(decoder.activation_function.as_str(), "gelu" | "relu") {
            return unsupported(format!("activation `{}`; gelu and relu are known", decoder.activation_function));
        }
        // Before anything is computed of them.
        let hop = codec.upsampling_ratios.iter().try_fold(1_usize, |hop, ratio| hop.checked_mul(*ratio));
        if codec.upsampling_ratios.len() > 16 || hop.is_none_or(|hop| hop > codec.sampling_rate) {
            return corrupt("there are more than 16 upsampling stages, or a frame is longer than a second");
        }
        let sizes = [
            decoder.vocab_size,
            decoder.max_position_embeddings,
            decoder.num_attention_heads,
            decoder.ffn_dim,
            codec.hop(),
            codec.num_filters,
            codec.compress,
            codec.sampling_rate,
            codec.kernel_size,
            codec.last_kernel_size,
            codec.residual_kernel_size,
            self.text_encoder.num_heads,
            self.text_encoder.d_model,
        ];
        if sizes.contains(&0) {
            return corrupt("a size is 0");
        }
        if decoder.hidden_size < 4 || !decoder.hidden_size.is_multiple_of(decoder.num_attention_heads) {
            return corrupt("`hidden_size` is not a multiple of `num_attention_heads`");
        }
        if decoder.num_codebooks == 0 || !decoder.num_codebooks.is_multiple_of(decoder.audio_channels) {
            return corrupt("`num_codebooks` is not a multiple of `audio_channels`");
        }
        if decoder.vocab_size > codec.codebook_size {
            return corrupt("the decoder has more codes than the codec");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_melody_model_is_refused_by_name() {
        let error = Config::parse(r#"{"model_type": "musicgen_melody"}"#).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.message().contains("melody"), "{error}");
    }

    #[test]
    fn stages_that_overflow_are_refused() {
        for ratios in ["[4294967296, 4294967296, 4]", "[0]", "[65536]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"] {
            let json = format!(
                r#"{{"model_type": "musicgen", "text_encoder": {{}}, "decoder": {{}}, "audio_encoder": {{"codebook_size": 2048, "upsampling_ratios": {ratios}}}}}"#
            );
            assert_eq!(Config::parse(&json).unwrap_err().kind(), ErrorKind::CorruptFile, "{ratios}");
        }
    }

    #[test]
    fn nothing_but_the_parts_gives_the_defaults() {
        let config = Config::parse(
            r#"{"model_type": "musicgen", "text_encoder": {}, "decoder": {}, "audio_encoder": {"codebook_size": 2048}}"#,
        );
        assert_eq!(config.unwrap().decoder, DecoderConfig::default());
        assert_eq!(Config::parse("{}").unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(Config::parse("nonsense").unwrap_err().kind(), ErrorKind::CorruptFile);
    }
}
