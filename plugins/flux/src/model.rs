//! A loaded model and the way of a request through it: the prompt's states, the steps from noise to latents, the pixels.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aihost_engine::finite;
use aihost_plugin_api::Result;
use aihost_support::checkpoint::{Checkpoint, Layers, Renamed};
use aihost_support::dense::Residency;
use aihost_support::t5::{T5Config, T5Encoder};

use crate::backend::{Backend, Denoiser, HostBackend};
use crate::clip::{Clip, ClipConfig};
use crate::config::{self, TransformerConfig};
use crate::device::{DeviceBackend, DeviceOptions};
use crate::files::Files;
use crate::latents::Shape;
use crate::schedule::Schedule;
use crate::tokens::Tokens;
use crate::transformer::{Conditions, Transformer};
use crate::vae::{Vae, VaeConfig};

/// Prompts whose states are kept.
pub const CACHED_PROMPTS: usize = 4;

/// Pixels above which an image is decoded in tiles.
pub const TILED_FROM: usize = 1_500_000;

/// Which parts' weights stay in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartResidency {
    /// Of the transformer.
    pub transformer: Residency,
    /// Of both text encoders.
    pub encoders: Residency,
}

/// The open checkpoints of a model's parts, with the sizes in their headers: enough to plan, nothing is allocated.
#[derive(Debug)]
pub struct Parts {
    files: Files,
    pub transformer: (Checkpoint, TransformerConfig),
    pub clip: (Checkpoint, ClipConfig),
    pub t5: (Checkpoint, T5Config),
    pub vae: (Checkpoint, VaeConfig),
    schedule: Schedule,
}

impl Parts {
    /// Opens all parts.
    ///
    /// # Errors
    /// If a file is missing, damaged, or of a model that is not served.
    pub fn open(files: &Files, residency: PartResidency) -> Result<Self> {
        let transformer = Checkpoint::open(&files.transformer.weights, residency.transformer)?;
        let transformer_config = TransformerConfig::of(&transformer, files.transformer.config())?;
        let clip = Checkpoint::open(&files.clip.weights, residency.encoders)?;
        let clip_config = ClipConfig::of(&clip, files.clip.config())?;
        let t5 = Checkpoint::open(&files.t5.weights, residency.encoders)?;
        let t5_config = t5_config(&t5, files)?;
        // Copied once, as f32.
        let vae = Checkpoint::open(&files.vae.weights, Residency::Streamed)?;
        let vae_config = VaeConfig::of(&vae, files.vae.config())?;
        let sizes = [
            ("states of T5", t5_config.d_model, transformer_config.context),
            ("pooled states of CLIP", clip_config.hidden, transformer_config.pooled),
            ("latents in a token", 4 * vae_config.latent_channels, transformer_config.in_channels),
        ];
        for (what, found, wanted) in sizes {
            if found != wanted {
                let text = format!("it takes {wanted} {what}, but the other part has {found}; are they of one model?");
                return Err(transformer.corrupt(text));
            }
        }
        let schedule = match &files.scheduler {
            Some(file) => config::read(file)?,
            None => Schedule::of(transformer_config.guidance),
        };
        Ok(Self {
            files: files.clone(),
            transformer: (transformer, transformer_config),
            clip: (clip, clip_config),
            t5: (t5, t5_config),
            vae: (vae, vae_config),
            schedule,
        })
    }

    /// Loads what has to be in memory to run on the host's cores.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn load(&self, text_length: usize) -> Result<Model> {
        self.model(Box::new(self.on_host()?), text_length)
    }

    /// Uploads a model to a device.
    ///
    /// # Errors
    /// As [`open`](Self::open), and those of `on_progress`; [`OutOfMemory`](aihost_plugin_api::ErrorKind::OutOfMemory) if
    /// the device is out of memory.
    pub fn load_on(&self, options: &DeviceOptions<'_>, text_length: usize) -> Result<Model> {
        let parts = DeviceBackend::new(&self.on_host()?, options)?;
        self.model(Box::new(parts), text_length)
    }

    pub(crate) fn on_host(&self) -> Result<HostBackend> {
        let (checkpoint, config) = &self.t5;
        let t5 = if checkpoint.is_gguf() {
            T5Encoder::load(config, &Renamed::new(checkpoint, gguf_name))?
        } else {
            T5Encoder::load(config, checkpoint)?
        };
        Ok(HostBackend {
            transformer: Transformer::load(&self.transformer.1, &self.transformer.0)?,
            clip: Clip::load(&self.clip.1, &self.clip.0)?,
            t5,
            vae: Vae::load(&self.vae.1, &self.vae.0)?,
        })
    }

    pub(crate) fn model(&self, backend: Box<dyn Backend>, text_length: usize) -> Result<Model> {
        Ok(Model {
            backend,
            vae: self.vae.1.clone(),
            positions: self.clip.1.positions,
            clip_tokens: Tokens::clip(&self.files.clip_tokenizer)?,
            t5_tokens: Tokens::t5(&self.files.t5_tokenizer)?,
            schedule: self.schedule,
            text_length,
            prompts: Mutex::default(),
        })
    }
}

impl Parts {
    /// Bytes of both tokenizers' files.
    pub fn tokenizer_bytes(&self) -> u64 {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| if file.is_file() { file.len() } else { 0 });
        let inside = |folder: &Path| -> u64 {
            let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
            files.map(|file| size(&file.path())).sum()
        };
        let both = [&self.files.clip_tokenizer, &self.files.t5_tokenizer];
        both.iter().map(|path| if path.is_dir() { inside(path) } else { size(path) }).sum()
    }

    /// Brings mapped weights into memory, calling `on_progress` with the bytes so far.
    ///
    /// # Errors
    /// Those of `on_progress`, which end it.
    pub fn preload(&self, mut on_progress: impl FnMut(u64) -> Result<()>) -> Result<()> {
        let mut before = 0;
        for checkpoint in [&self.transformer.0, &self.t5.0, &self.clip.0] {
            before += checkpoint.preload(|read| on_progress(before + read))?;
        }
        Ok(())
    }
}

/// All parts of a model.
#[derive(Debug)]
pub struct Model {
    backend: Box<dyn Backend>,
    vae: VaeConfig,
    /// CLIP's tokens of every prompt.
    positions: usize,
    clip_tokens: Tokens,
    t5_tokens: Tokens,
    schedule: Schedule,
    /// Tokens of T5 that every prompt is cut or filled up to.
    text_length: usize,
    /// Prompts and their states, the most recently used last.
    prompts: Mutex<VecDeque<(String, Arc<Prompt>)>>,
}

/// A prompt as the transformer sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// CLIP's state of the whole text, (pooled).
    pub pooled: Vec<f32>,
    /// T5's states, (tokens, context).
    pub text: Vec<f32>,
    /// Tokens that were truncated from T5's input.
    pub truncated: usize,
}

/// The parameters of denoising.
#[derive(Clone, Copy, Debug)]
pub struct DenoiseParams {
    /// The shape of the latents.
    pub shape: Shape,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale: the weight of the prompt.
    pub guidance: f32,
}

/// A denoising step that is done.
#[derive(Clone, Copy, Debug)]
pub struct DenoisingStep<'a> {
    /// Steps so far, this one included.
    pub done: usize,
    /// Packed latents after the step, (tokens, channels).
    pub latents: &'a [f32],
    velocity: &'a [f32],
    sigma: f32,
}

impl DenoisingStep<'_> {
    /// The predicted original sample: the packed latents that this step's velocity leads to at noise level 0.
    pub fn predicted_x0(&self) -> Vec<f32> {
        self.latents.iter().zip(self.velocity).map(|(x, velocity)| x - self.sigma * velocity).collect()
    }
}

impl Model {
    /// Sizes of the autoencoder's decoder.
    pub fn vae(&self) -> &VaeConfig {
        &self.vae
    }

    /// States of a prompt; those of the last prompts are kept.
    ///
    /// # Errors
    /// If a tokenizer fails or a weight file cannot be read.
    pub fn encode(&self, prompt: &str) -> Result<Arc<Prompt>> {
        let cache = || self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut cache = cache();
            if let Some(known) = cache.iter().position(|(text, _)| text == prompt).and_then(|i| cache.remove(i)) {
                cache.push_back(known.clone());
                return Ok(known.1);
            }
        }
        let clip = self.clip_tokens.encode(prompt, self.positions)?;
        let t5 = self.t5_tokens.encode(prompt, self.text_length)?;
        let (pooled, text) = self.backend.encode(&clip.tokens, &t5.tokens)?;
        finite::check(&pooled, "CLIP encoder", "its one step")?;
        finite::check(&text, "T5 encoder", "its one step")?;
        let states = Prompt { pooled, text, truncated: t5.truncated };
        let states = Arc::new(states);
        let mut cache = cache();
        cache.push_back((prompt.to_owned(), Arc::clone(&states)));
        let extra = cache.len().saturating_sub(CACHED_PROMPTS);
        cache.drain(..extra);
        Ok(states)
    }

    /// Computes what all steps of a request share.
    fn denoiser(&self, prompt: &Prompt, params: &DenoiseParams) -> Result<Box<dyn Denoiser + '_>> {
        self.backend.denoiser(&Conditions {
            text: &prompt.text,
            pooled: &prompt.pooled,
            sigmas: &self.schedule.sigmas(params.steps, params.shape.tokens()),
            guidance: params.guidance,
            grid: params.shape.grid(),
        })
    }

    /// States of text and image after the first block of the first step, for noise (channels, height, width): a
    /// point to compare with a reference.
    ///
    /// # Errors
    /// If a weight file cannot be read, or the device is out of memory; so for the methods below.
    pub fn first_block(&self, prompt: &Prompt, noise: &[f32], params: &DenoiseParams) -> Result<(Vec<f32>, Vec<f32>)> {
        self.denoiser(prompt, params)?.first_block(&params.shape.pack(noise))
    }

    /// Predicts velocities from the same latents, step by step, while `more` says so: for measuring speed and memory.
    ///
    /// # Errors
    /// Those of `more`, which end it.
    pub fn benchmark(
        &self,
        prompt: &Prompt,
        params: &DenoiseParams,
        mut more: impl FnMut(usize) -> Result<bool>,
    ) -> Result<()> {
        let mut denoiser = self.denoiser(prompt, params)?;
        let latents = params.shape.pack(&params.shape.noise(1));
        let mut step = 0;
        while more(step)? {
            denoiser.predict(step % params.steps, &latents)?;
            step += 1;
        }
        Ok(())
    }

    /// From noise (channels, height, width) to latents of the same shape, calling `on_progress` after every step.
    ///
    /// # Errors
    /// Those of `on_progress`, which end the denoising; if a weight file cannot be read.
    pub fn denoise(
        &self,
        prompt: &Prompt,
        noise: &[f32],
        params: &DenoiseParams,
        mut on_progress: impl FnMut(DenoisingStep<'_>) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let sigmas = self.schedule.sigmas(params.steps, params.shape.tokens());
        let mut denoiser = self.denoiser(prompt, params)?;
        let mut latents = params.shape.pack(noise);
        for (i, sigma) in sigmas.windows(2).enumerate() {
            let velocity = denoiser.predict(i, &latents)?;
            finite::check(&velocity, "transformer", format_args!("step {} of {}", i + 1, params.steps))?;
            // One step of Euler's method.
            let step = sigma[1] - sigma[0];
            latents.iter_mut().zip(&velocity).for_each(|(x, velocity)| *x += step * velocity);
            on_progress(DenoisingStep { done: i + 1, latents: &latents, velocity: &velocity, sigma: sigma[1] })?;
        }
        Ok(params.shape.unpack(&latents))
    }

    /// Pixels (height, width, 3) of latents (channels, height, width) as the transformer makes them, in [-1, 1] but for
    /// overshoots; large images in tiles.
    ///
    /// # Errors
    /// If the device is out of memory.
    ///
    /// # Panics
    /// If there are not as many latents as `shape` says.
    pub fn decode(&self, latents: &[f32], shape: Shape) -> Result<Vec<f32>> {
        let pixels = if is_tiled(&self.vae, shape) {
            self.decode_tiled(latents, shape, self.vae.tile())?
        } else {
            self.backend.pixels(self.vae.unscaled(latents, shape))?.data
        };
        finite::check(&pixels, "autoencoder", "its one step")?;
        Ok(pixels)
    }

    /// As [`decode`](Self::decode), in tiles of `tile` latents on a side.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_tiled(&self, latents: &[f32], shape: Shape, tile: usize) -> Result<Vec<f32>> {
        self.vae.tiled(&self.vae.unscaled(latents, shape), tile, |piece| self.backend.pixels(piece))
    }
}

/// Whether an image is decoded in tiles.
pub fn is_tiled(config: &VaeConfig, shape: Shape) -> bool {
    let tile = config.tile();
    shape.height * shape.width * config.scale().pow(2) > TILED_FROM && (shape.height > tile || shape.width > tile)
}

/// The shape of the latents that are decoded at once: a tile's, or the whole image's.
pub(crate) fn decoded_at_once(config: &VaeConfig, shape: Shape) -> Shape {
    let tile = config.tile();
    match is_tiled(config, shape) {
        true => Shape { height: shape.height.min(tile), width: shape.width.min(tile), ..shape },
        false => shape,
    }
}

/// Pixels in [-1, 1] as bytes 0 to 255.
pub fn rgb8(pixels: &[f32]) -> Vec<u8> {
    pixels.iter().map(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect()
}

/// Sizes of a T5 encoder, from `config.json` or from the shapes of its tensors.
fn t5_config(checkpoint: &Checkpoint, files: &Files) -> Result<T5Config> {
    if let Some(file) = files.t5.config() {
        return config::read(file);
    }
    let name = |name: &str| if checkpoint.is_gguf() { gguf_name(name) } else { name.to_owned() };
    let shape = |wanted: &str| -> Result<[usize; 2]> {
        let shape = checkpoint.shape(&name(wanted)).and_then(|shape| shape.try_into().ok());
        shape.ok_or_else(|| checkpoint.corrupt(format!("it has no matrix `{}`; is it T5's encoder?", name(wanted))))
    };
    let attention = "encoder.block.0.layer.0.SelfAttention";
    let table = ["shared.weight", "encoder.embed_tokens.weight"].into_iter().find(|table| checkpoint.has(&name(table)));
    let [vocab_size, d_model] = shape(table.unwrap_or("shared.weight"))?;
    let [relative_attention_num_buckets, num_heads] = shape(&format!("{attention}.relative_attention_bias.weight"))?;
    let [inner, _] = shape(&format!("{attention}.q.weight"))?;
    let dense = "encoder.block.0.layer.1.DenseReluDense";
    let [_, d_ff] = shape(&format!("{dense}.wo.weight"))?;
    let gated = checkpoint.has(&name(&format!("{dense}.wi_0.weight")));
    let has = |i: &usize| checkpoint.has(&name(&format!("encoder.block.{i}.layer.0.SelfAttention.q.weight")));
    Ok(T5Config {
        vocab_size,
        d_model,
        d_kv: inner / num_heads.max(1),
        d_ff,
        num_layers: (0..).take_while(has).count(),
        num_heads,
        relative_attention_num_buckets,
        feed_forward_proj: if gated { "gated-gelu" } else { "relu" }.to_owned(),
        ..T5Config::default()
    })
}

/// The name that a tensor of T5's encoder has in GGUF files.
fn gguf_name(name: &str) -> String {
    if name == "shared.weight" {
        return "token_embd.weight".to_owned();
    }
    const PARTS: [(&str, &str); 11] = [
        ("encoder.block.", "enc.blk."),
        (".layer.0.SelfAttention.relative_attention_bias", ".attn_rel_b"),
        (".layer.0.SelfAttention.q", ".attn_q"),
        (".layer.0.SelfAttention.k", ".attn_k"),
        (".layer.0.SelfAttention.v", ".attn_v"),
        (".layer.0.SelfAttention.o", ".attn_o"),
        (".layer.0.layer_norm", ".attn_norm"),
        (".layer.1.layer_norm", ".ffn_norm"),
        (".layer.1.DenseReluDense.wi_0", ".ffn_gate"),
        (".layer.1.DenseReluDense.wi_1", ".ffn_up"),
        (".layer.1.DenseReluDense.wo", ".ffn_down"),
    ];
    let name = name.replace("encoder.final_layer_norm", "enc.output_norm");
    PARTS.iter().fold(name, |name, (from, to)| name.replace(from, to)).replace(".layer.1.DenseReluDense.wi", ".ffn_up")
}
