//! The decoder of the autoencoder (Rombach et al. 2022): latents to pixels.
//!
//! In f32, as the published decoder needs.

use std::path::Path;

use aihost_engine::cpu::rows::Activation;
use aihost_plugin_api::Result;
use aihost_support::attention::{Attention, Heads, Mask};
use aihost_support::checkpoint::{Checkpoint, Layers, Renamed};
use serde::Deserialize;

use crate::config;
use crate::convolution::{Convolution, FeatureMap, GroupNorm, IM2COL_PIXELS, Upsampling, add};
use crate::latents::Shape;
use crate::tiles::{RGB, blend_down, blend_right, cut, paste};

/// Part of a tile that its neighbours cover too.
const OVERLAP: f64 = 0.25;

/// Sizes of the decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Whether tensors are named as diffusers does, or as in the first release.
    diffusers: bool,
    prefix: &'static str,
    /// Channels of latents.
    pub latent_channels: usize,
    /// Channels of each level, the finest first.
    pub(crate) widths: Vec<usize>,
    /// Residual layers of a level.
    layers: usize,
    pub(crate) groups: usize,
    /// Latents are multiplied by it in training.
    scaling_factor: f32,
    /// Latents are shifted by it before, in training.
    shift_factor: f32,
    /// Pixels on a side of a tile.
    tile: usize,
}

/// Keys and defaults of `config.json`; the defaults are FLUX.1's.
#[derive(Deserialize)]
#[serde(default)]
struct File {
    scaling_factor: f32,
    shift_factor: f32,
    norm_num_groups: usize,
    sample_size: usize,
}

impl Default for File {
    fn default() -> Self {
        Self { scaling_factor: 0.3611, shift_factor: 0.1159, norm_num_groups: 32, sample_size: 1024 }
    }
}

impl VaeConfig {
    /// Sizes of a checkpoint; `file` is its `config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptFile`](aihost_plugin_api::ErrorKind::CorruptFile) if a tensor is missing, or the sizes do not fit.
    pub fn of(checkpoint: &Checkpoint, file: Option<&Path>) -> Result<Self> {
        let file = file.map(config::read::<File>).transpose()?.unwrap_or_default();
        let prefix = ["", "vae.", "first_stage_model."];
        let prefix = prefix.into_iter().find(|prefix| checkpoint.has(&format!("{prefix}decoder.conv_in.weight")));
        let prefix = prefix
            .ok_or_else(|| checkpoint.corrupt("it has no tensor `decoder.conv_in.weight`; is it an autoencoder?"))?;
        let shape = |name: &str| checkpoint.shape(&format!("{prefix}decoder.{name}"));
        let diffusers = shape("mid_block.resnets.0.conv1.weight").is_some();
        let mut this = Self {
            diffusers,
            prefix,
            latent_channels: shape("conv_in.weight").and_then(|shape| shape.get(1).copied()).unwrap_or(0),
            widths: Vec::new(),
            layers: 0,
            groups: file.norm_num_groups,
            scaling_factor: file.scaling_factor,
            shift_factor: file.shift_factor,
            tile: file.sample_size,
        };
        let levels =
            (0..).take_while(|i| shape(&this.level_name(*i, usize::MAX, "resnets", 0, "conv1.weight")).is_some());
        let levels = levels.count();
        let width = |level| {
            let name = this.level_name(level, levels, "resnets", 0, "conv1.weight");
            shape(&name).and_then(|shape| shape.first().copied()).unwrap_or(0)
        };
        let widths: Vec<usize> = (0..levels).map(width).collect();
        let has = |i: &usize| shape(&this.level_name(0, levels, "resnets", *i, "conv1.weight")).is_some();
        let layers = (0..).take_while(has).count();
        (this.widths, this.layers) = (widths, layers);
        if checkpoint.has(&format!("{prefix}post_quant_conv.weight")) {
            return Err(checkpoint.corrupt("it has a `post_quant_conv`, which the autoencoder of FLUX.1 has not"));
        }
        let fits = |width: &usize| *width > 0 && this.groups > 0 && width.is_multiple_of(this.groups);
        if levels == 0 || this.latent_channels == 0 || !this.widths.iter().all(fits) || this.scaling_factor == 0.0 {
            let (widths, groups) = (&this.widths, this.groups);
            return Err(
                checkpoint.corrupt(format!("levels of {widths:?} channels and {groups} groups do not fit each other"))
            );
        }
        Ok(this)
    }

    /// Pixels for each latent, on a side.
    pub fn scale(&self) -> usize {
        1 << (self.widths.len() - 1)
    }

    /// Shape of the latents of an image of so many pixels; `None` unless both are multiples of 16, where a latent is of 8.
    pub fn shape(&self, width: usize, height: usize) -> Option<Shape> {
        let (scale, channels) = (self.scale(), self.latent_channels);
        let fits = |side: usize| side > 0 && side.is_multiple_of(2 * scale);
        (fits(width) && fits(height)).then_some(Shape { channels, height: height / scale, width: width / scale })
    }

    /// Side of a tile, latents.
    pub fn tile(&self) -> usize {
        (self.tile / self.scale()).max(4)
    }

    /// Latents (channels, height, width) as the transformer makes them, with channels innermost and as they were before
    /// training scaled them.
    ///
    /// # Panics
    /// If there are not as many latents as `shape` says.
    pub(crate) fn unscaled(&self, latents: &[f32], shape: Shape) -> FeatureMap {
        assert_eq!(latents.len(), shape.len(), "latents of another shape");
        let Shape { channels, height, width } = shape;
        let at = |i: usize| latents[i % channels * height * width + i / channels];
        let data = (0..shape.len()).map(|i| at(i) / self.scaling_factor + self.shift_factor).collect();
        FeatureMap { height, width, data }
    }

    /// Pixels (height, width, 3) of latents that are decoded by `pixels` in tiles of `tile` latents on a side, which overlap
    /// by a quarter and are blended: for images whose inner layers would not fit in memory. Each tile is normed alone, so
    /// the result differs slightly.
    pub(crate) fn tiled(
        &self,
        whole: &FeatureMap,
        tile: usize,
        pixels: impl Fn(FeatureMap) -> Result<FeatureMap>,
    ) -> Result<Vec<f32>> {
        let scale = self.scale();
        let step = ((tile as f64 * (1.0 - OVERLAP)) as usize).max(1);
        let blend = (tile as f64 * scale as f64 * OVERLAP) as usize;
        let kept = tile * scale - blend;
        let (height, width) = (whole.height * scale, whole.width * scale);
        let mut out = vec![0.0; height * width * RGB];
        let mut above: Vec<FeatureMap> = Vec::new();
        for (i, top) in (0..whole.height).step_by(step).enumerate() {
            let mut row: Vec<FeatureMap> = Vec::new();
            for (j, left) in (0..whole.width).step_by(step).enumerate() {
                let size = (tile.min(whole.height - top), tile.min(whole.width - left));
                let mut piece = pixels(cut(whole, (top, left), size))?;
                if let Some(above) = above.get(j) {
                    blend_down(above, &mut piece, blend);
                }
                if let Some(before) = j.checked_sub(1).and_then(|j| row.get(j)) {
                    blend_right(before, &mut piece, blend);
                }
                let place = (i * kept, j * kept);
                paste(&piece, &mut out, (height, width), place, kept);
                row.push(piece);
            }
            above = row;
        }
        Ok(out)
    }

    /// Bytes that decoding latents of `shape` at once allocates.
    pub fn bytes(&self, shape: Shape, threads: usize) -> u64 {
        let pixels = |level: usize| (shape.height * shape.width) << (2 * (self.widths.len() - 1 - level));
        let level = |i: usize| {
            // An upsampled image is as wide as the coarser level; a convolution holds the block's input, its own, its result.
            let wider = self.widths.get(i + 1).copied().unwrap_or(self.widths[i]);
            pixels(i) * (2 * wider + self.widths[i])
        };
        let most = (0..self.widths.len()).map(level).max().unwrap_or(0);
        let widest = self.widths.iter().max().copied().unwrap_or(0);
        let attention = shape.height * shape.width * widest * 7;
        let scores = Attention::score_bytes(shape.height * shape.width);
        let scratch = 4 * (9 * widest * IM2COL_PIXELS) as u64 + scores;
        4 * (most.max(attention) + RGB * pixels(0)) as u64 + threads as u64 * scratch
    }

    /// The name of a layer of level `level` (0 is the finest) of `levels`, below `decoder`.
    fn level_name(&self, level: usize, levels: usize, part: &str, i: usize, leaf: &str) -> String {
        match (self.diffusers, part) {
            // Diffusers counts from the coarsest.
            (true, "resnets") if levels == usize::MAX => format!("up_blocks.{level}.resnets.{i}.{leaf}"),
            (true, "resnets") => format!("up_blocks.{}.resnets.{i}.{leaf}", levels - 1 - level),
            (true, _) => format!("up_blocks.{}.upsamplers.0.conv{leaf}", levels - 1 - level),
            (false, "resnets") => format!("up.{level}.block.{i}.{leaf}"),
            (false, _) => format!("up.{level}.upsample.conv{leaf}"),
        }
    }
}

/// A loaded decoder.
#[derive(Debug)]
pub struct Vae {
    pub(crate) first: Convolution,
    pub(crate) before: Residual,
    pub(crate) attention: SelfAttention,
    pub(crate) after: Residual,
    /// The coarsest first.
    pub(crate) levels: Vec<Level>,
    pub(crate) last_norm: GroupNorm,
    pub(crate) last: Convolution,
}

#[derive(Debug)]
pub(crate) struct Level {
    pub(crate) blocks: Vec<Residual>,
    pub(crate) up: Option<Convolution>,
}

impl Vae {
    /// Loads a checkpoint of these sizes.
    ///
    /// # Errors
    /// If a tensor is missing or of another shape.
    pub fn load(config: &VaeConfig, checkpoint: &Checkpoint) -> Result<Self> {
        let layers = &Renamed::below(checkpoint, format!("{}decoder.", config.prefix));
        let pick = |original: &'static str, diffusers| if config.diffusers { diffusers } else { original };
        let levels = config.widths.len();
        let widest = config.widths[levels - 1];
        let residual = |name: &str, from, to| Residual::load(layers, name, config, (from, to));
        let level = |level: usize| -> Result<Level> {
            let (from, to) = (config.widths[(level + 1).min(levels - 1)], config.widths[level]);
            let block = |i| {
                let name = config.level_name(level, levels, "resnets", i, "");
                residual(name.trim_end_matches('.'), if i == 0 { from } else { to }, to)
            };
            let up = config.level_name(level, levels, "up", 0, "");
            Ok(Level {
                blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
                up: (level > 0).then(|| Convolution::load(layers, &up, to, to, 3)).transpose()?,
            })
        };
        Ok(Self {
            first: Convolution::load(layers, "conv_in", config.latent_channels, widest, 3)?,
            before: residual(pick("mid.block_1", "mid_block.resnets.0"), widest, widest)?,
            attention: SelfAttention::load(layers, config, widest)?,
            after: residual(pick("mid.block_2", "mid_block.resnets.1"), widest, widest)?,
            levels: (0..levels).rev().map(level).collect::<Result<_>>()?,
            last_norm: GroupNorm::load(layers, pick("norm_out", "conv_norm_out"), config.groups, config.widths[0])?,
            last: Convolution::load(layers, "conv_out", config.widths[0], RGB, 3)?,
        })
    }

    /// Pixels (height, width, 3) of latents that were [unscaled](VaeConfig::unscaled).
    pub(crate) fn pixels(&self, latents: FeatureMap) -> FeatureMap {
        let mut x = self.first.apply(&latents, Upsampling::None);
        drop(latents);
        x = self.before.apply(x);
        x = self.attention.apply(x);
        x = self.after.apply(x);
        for level in &self.levels {
            for block in &level.blocks {
                x = block.apply(x);
            }
            if let Some(up) = &level.up {
                x = up.apply(&x, Upsampling::Nearest2x);
            }
        }
        self.last.apply(&self.last_norm.apply(&x, Some(Activation::Silu)), Upsampling::None)
    }
}

/// Two convolutions beside a shortcut (He et al. 2016).
#[derive(Debug)]
pub(crate) struct Residual {
    pub(crate) norms: [GroupNorm; 2],
    pub(crate) convolutions: [Convolution; 2],
    pub(crate) shortcut: Option<Convolution>,
}

impl Residual {
    fn load(layers: &dyn Layers, name: &str, config: &VaeConfig, (from, to): (usize, usize)) -> Result<Self> {
        let shortcut = if config.diffusers { "conv_shortcut" } else { "nin_shortcut" };
        let at = |part: &str| format!("{name}.{part}");
        let shortcut = (from != to).then(|| Convolution::load(layers, &at(shortcut), from, to, 1)).transpose()?;
        Ok(Self {
            norms: [
                GroupNorm::load(layers, &at("norm1"), config.groups, from)?,
                GroupNorm::load(layers, &at("norm2"), config.groups, to)?,
            ],
            convolutions: [
                Convolution::load(layers, &at("conv1"), from, to, 3)?,
                Convolution::load(layers, &at("conv2"), to, to, 3)?,
            ],
            shortcut,
        })
    }

    fn apply(&self, x: FeatureMap) -> FeatureMap {
        let mut inner = self.norms[0].apply(&x, Some(Activation::Silu));
        inner = self.convolutions[0].apply(&inner, Upsampling::None);
        inner = self.norms[1].apply(&inner, Some(Activation::Silu));
        inner = self.convolutions[1].apply(&inner, Upsampling::None);
        let mut x = match &self.shortcut {
            Some(shortcut) => shortcut.apply(&x, Upsampling::None),
            None => x,
        };
        add(&mut x, &inner);
        x
    }
}

/// Attention of one head over all pixels.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    pub(crate) norm: GroupNorm,
    /// Of 1 by 1 kernels: query, key, value, out.
    pub(crate) layers: [Convolution; 4],
}

impl SelfAttention {
    fn load(layers: &dyn Layers, config: &VaeConfig, channels: usize) -> Result<Self> {
        let (name, norm, parts) = if config.diffusers {
            ("mid_block.attentions.0", "group_norm", ["to_q", "to_k", "to_v", "to_out.0"])
        } else {
            ("mid.attn_1", "norm", ["q", "k", "v", "proj_out"])
        };
        let linear = |part: &str| -> Result<Convolution> {
            let name = format!("{name}.{part}");
            let shape: &[usize] = if config.diffusers { &[channels, channels] } else { &[channels, channels, 1, 1] };
            let weights = layers.tensor_f32(&format!("{name}.weight"), shape)?;
            let bias = layers.tensor_f32(&format!("{name}.bias"), &[channels])?;
            Ok(Convolution { weights, bias, kernel: 1, inputs: channels })
        };
        let [q, k, v, out] = parts;
        Ok(Self {
            norm: GroupNorm::load(layers, &format!("{name}.{norm}"), config.groups, channels)?,
            layers: [linear(q)?, linear(k)?, linear(v)?, linear(out)?],
        })
    }

    fn apply(&self, mut x: FeatureMap) -> FeatureMap {
        let normed = self.norm.apply(&x, None);
        let [q, k, v, out] = &self.layers;
        let (q, k, v) = (
            q.apply(&normed, Upsampling::None),
            k.apply(&normed, Upsampling::None),
            v.apply(&normed, Upsampling::None),
        );
        let (keys, width) = (x.height * x.width, x.channels());
        fn heads(map: &FeatureMap, stride: usize) -> Heads<'_> {
            Heads { data: &map.data, stride }
        }
        let (q, k, v) = (heads(&q, width), heads(&k, width), heads(&v, width));
        let scale = 1.0 / (width as f32).sqrt();
        let attention = Attention { q, k, v, keys, heads: 1, width, scale, mask: Mask::None };
        let mut attended = normed;
        attention.forward(0, keys, &mut attended.data, width);
        add(&mut x, &out.apply(&attended, Upsampling::None));
        x
    }
}
