//! Kind `image`: a prompt in, an image out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FinishReason, block};

/// One image. `n` images are `n` requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct ImageRequest {
    /// What it should show. May be empty: the model then follows its seed alone.
    pub prompt: String,
    /// Width in pixels. The plugin names the sizes it makes; diffusion models want a multiple of 8 or 16.
    #[serde(default = "ImageRequest::default_side")]
    pub width: u32,
    /// Height in pixels.
    #[serde(default = "ImageRequest::default_side")]
    pub height: u32,
    /// Denoising steps, at least 1. Absent: what the model was made for.
    #[serde(default)]
    pub steps: Option<u32>,
    /// Weight of the prompt, at least 0; ignored by models that have none. Absent: what the model was made for.
    #[serde(default)]
    pub guidance: Option<f32>,
    /// The same seed, model and request give the same image. Absent: drawn by the plugin, and told in [`ImageFinish`].
    #[serde(default)]
    pub seed: Option<u64>,
    /// Unfinished images to send on the way, spread evenly over the steps; 0 is none. A plugin may send fewer.
    #[serde(default)]
    pub partial_images: u32,
    /// The bytes that the request speaks of by number.
    #[serde(skip)]
    pub blocks: Vec<Vec<u8>>,
}

builders! {
    ImageRequest:
    prompt(into String), width(u32), height(u32), steps(some u32), guidance(some f32), seed(some u64), partial_images(u32),
    blocks(Vec<Vec<u8>>),
}

impl ImageRequest {
    /// A request for what this describes, with everything else as clients have it that say nothing of it.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self::default().prompt(prompt)
    }

    fn default_side() -> u32 {
        1024
    }

    /// The steps after which an unfinished image is to be sent, counted from 1 and below `steps`.
    pub fn preview_steps(&self, steps: u32) -> Vec<u32> {
        let wanted = self.partial_images.min(steps.saturating_sub(1));
        let at = |i: u32| (u64::from(i) * u64::from(steps) / u64::from(wanted + 1)) as u32;
        (1..=wanted).map(at).collect()
    }
}

impl Default for ImageRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            width: Self::default_side(),
            height: Self::default_side(),
            steps: None,
            guidance: None,
            seed: None,
            partial_images: 0,
            blocks: Vec::new(),
        }
    }
}

/// The JSON header of a pushed block of rows. After it come the rows' pixels, top to bottom, 3 bytes each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageHeader {
    /// Pixels in a row of the image.
    pub width: u32,
    /// Rows of the whole image.
    pub height: u32,
    /// `rgb8`: red, green, blue, sRGB.
    pub format: String,
    /// The image's place in the answer, from 0: previews first, the finished image last.
    pub index: u32,
    /// Whether the image is a preview, with noise still in it.
    pub partial: bool,
    /// Steps that were done when it was made.
    pub step: u32,
    /// The block's first row. An image is whole when its rows reach `height`; they come in order.
    pub row: u32,
}

impl ImageHeader {
    /// The only pixel format there is.
    pub const RGB8: &'static str = "rgb8";
    /// Bytes of a pixel.
    pub const PIXEL_BYTES: usize = 3;

    /// Of a finished image's first block: the image is of this size, in [`RGB8`](Self::RGB8), and the first of its answer.
    pub fn new(width: u32, height: u32) -> Self {
        Self { width, height, format: Self::RGB8.to_owned(), index: 0, partial: false, step: 0, row: 0 }
    }
}

builders! {
    ImageHeader:
    width(u32), height(u32), index(u32), partial(bool), step(u32), row(u32),
}

/// Some rows of an image as they cross: `u32` little-endian header length, JSON header, raw pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageBlock {
    /// Of which image, and which rows.
    pub header: ImageHeader,
    /// Whole rows of `width` pixels, 3 bytes each.
    pub pixels: Vec<u8>,
}

impl ImageBlock {
    /// The payload of an event of kind [`BYTES`](crate::abi::event_kind::BYTES).
    ///
    /// # Errors
    /// If the header cannot be written as JSON, which no header should cause.
    pub fn encode(header: &ImageHeader, pixels: &[u8]) -> crate::Result<Vec<u8>> {
        let mut payload = block::start(header, pixels.len())?;
        payload.extend_from_slice(pixels);
        Ok(payload)
    }

    /// Undoes [`encode`](Self::encode).
    ///
    /// # Errors
    /// If the payload is cut short, its header is not one of an image, or its rows are not whole or reach past the end.
    pub fn decode(payload: &[u8]) -> crate::Result<Self> {
        let damaged = || crate::Error::internal("a block of pixels is damaged");
        let (header, pixels): (ImageHeader, _) = block::split(payload).ok_or_else(damaged)?;
        let row = (header.width as usize).saturating_mul(ImageHeader::PIXEL_BYTES);
        let left = header.height.checked_sub(header.row).ok_or_else(damaged)?;
        let whole = row > 0 && pixels.len().is_multiple_of(row) && pixels.len() / row <= left as usize;
        if header.format != ImageHeader::RGB8 || !whole {
            return Err(damaged());
        }
        Ok(Self { header, pixels: pixels.to_vec() })
    }
}

/// The result of one image request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageFinish {
    /// [`FinishReason::Stop`] when the image is whole, [`FinishReason::Cancelled`] when the client left.
    pub reason: FinishReason,
    /// The seed that was used: the request's, or the one the plugin drew.
    pub seed: u64,
    /// Denoising steps that were run.
    pub steps: u32,
    /// Width in pixels; 0 if nothing was made.
    pub width: u32,
    /// Height in pixels; 0 if nothing was made.
    pub height: u32,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(width: u32, height: u32, row: u32) -> ImageHeader {
        ImageHeader::new(width, height).index(1).partial(true).step(3).row(row)
    }

    proptest! {
        #[test]
        fn a_block_comes_back_as_it_went(width in 1u32..20, rows in 1u32..6, above in 0u32..9, below in 0u32..9, value in any::<u8>()) {
            let pixels: Vec<u8> = (0..width * rows * 3).map(|i| value.wrapping_add(i as u8)).collect();
            let header = header(width, above + rows + below, above);
            let payload = ImageBlock::encode(&header, &pixels).unwrap();
            prop_assert_eq!(ImageBlock::decode(&payload).unwrap(), ImageBlock { header, pixels });
            prop_assert!(ImageBlock::decode(&payload[..payload.len() - 1]).is_err());
        }

        #[test]
        fn previews_are_spread_before_the_last_step(steps in 1u32..2000, partial_images in 0u32..2000) {
            let at = ImageRequest::default().partial_images(partial_images).preview_steps(steps);
            prop_assert_eq!(at.len() as u32, partial_images.min(steps - 1));
            prop_assert!(at.iter().all(|step| (1..steps).contains(step)));
            prop_assert!(at.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn rows_past_the_end_are_damage() {
        let refused = |header: &ImageHeader, bytes| {
            ImageBlock::decode(&ImageBlock::encode(header, &vec![0; bytes]).unwrap()).is_err()
        };
        assert!(refused(&header(4, 2, 1), 24));
        assert!(refused(&header(4, 2, 3), 12));
        assert!(refused(&header(0, 2, 0), 0));
        assert!(refused(&ImageHeader { format: "rgb16".to_owned(), ..header(4, 2, 0) }, 24));
        assert!(!refused(&header(4, 2, 0), 24));
    }

    #[test]
    fn a_prompt_alone_is_a_request() {
        let request: ImageRequest = serde_json::from_str(r#"{"prompt": "a cat"}"#).unwrap();
        assert_eq!(request, ImageRequest::new("a cat"));
        assert_eq!((request.width, request.height), (1024, 1024));
    }
}
