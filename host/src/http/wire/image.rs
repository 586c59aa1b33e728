//! What `POST /v1/images/generations` reads: OpenAI's fields, and what the models here take besides.

use std::sync::Arc;

use aihost_plugin_api::task::ImageRequest;

use super::fields::{Fields, Keys};
use super::{ReceivedBody, ResponseFormat, terms};
use crate::http::error::ApiError;
use crate::media::image::{ImageEncoding, ImageFormat};
use crate::runtime::{Class, KeepAlive};

/// Most images of one request, as in OpenAI's API.
const MAX_IMAGES: i64 = 10;
/// Both sides of an image are multiples of this, in pixels: what a token of the models here covers.
const SIDE_UNIT: u32 = 16;
/// Longest side of an image, in pixels.
const MAX_SIDE: u32 = 8192;
/// Most pixels of one request, all images together.
const MAX_PIXELS: u64 = 64 << 20;
/// Most steps; a model may take fewer.
const MAX_STEPS: i64 = 1000;
/// Highest weight of the prompt; usual ones are below 10.
const MAX_GUIDANCE: f32 = 100.0;
/// Most unfinished images of a stream, as in OpenAI's API.
const MAX_PARTIALS: i64 = 3;
/// Bits of a seed that is drawn here: every JSON reader takes such a number as it is.
const SEED_BITS: u32 = 53;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = &[
    "model",
    "prompt",
    "n",
    "size",
    "steps",
    "num_inference_steps",
    "guidance",
    "guidance_scale",
    "cfg_scale",
    "partial_images",
    "seed",
    "output_format",
    "output_compression",
    "response_format",
    "stream",
    "image",
    "mask",
    "negative_prompt",
    "service_tier",
    "keep_alive",
    "background",
];

/// A request for images.
#[derive(Clone, Debug)]
pub(in crate::http) struct ImageJob {
    /// The model's name, if one was given.
    pub(in crate::http) model: Option<String>,
    /// The first image; another differs in its seed alone. It has a seed.
    pub(in crate::http) request: Arc<ImageRequest>,
    /// How many images.
    pub(in crate::http) images: u64,
    /// What kind of file each becomes.
    pub(in crate::http) encoding: ImageEncoding,
    /// How the answer is sent.
    pub(in crate::http) delivery: ImageDelivery,
    /// Whether other work goes first.
    pub(in crate::http) class: Class,
    /// How long the model stays hot once idle.
    pub(in crate::http) keep_alive: Option<KeepAlive>,
}

/// How images are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum ImageDelivery {
    /// As files, once all are whole.
    Files(ResponseFormat),
    /// As events: progress, unfinished images, the finished one.
    Stream,
}

impl ImageJob {
    /// Image `number` of the request.
    pub(in crate::http) fn image(&self, number: u64) -> ImageRequest {
        // It stays a seed that a request can name.
        let seed = self.request.seed.map(|seed| seed.wrapping_add(number) & i64::MAX.cast_unsigned());
        ImageRequest::clone(&self.request).seed(seed)
    }
}

/// Checks a body.
pub(in crate::http) fn parse(body: &ReceivedBody<'_>) -> Result<ImageJob, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    refuse_other_work(&fields)?;
    let images = fields.integer("n", 1..=MAX_IMAGES)?.unwrap_or(1).unsigned_abs();
    let delivery = delivery(&fields, images)?;
    let request = request(&fields, delivery)?;
    if u64::from(request.width) * u64::from(request.height) * images > MAX_PIXELS {
        let message = format!("`size` times `n` must be at most {MAX_PIXELS} pixels");
        return Err(ApiError::invalid("size", message));
    }
    Ok(ImageJob {
        model: terms::model(&fields)?,
        request: Arc::new(request),
        images,
        encoding: encoding(&fields)?,
        delivery,
        class: terms::class(&fields)?,
        keep_alive: terms::keep_alive(&fields)?,
    })
}

/// What would change the image but cannot be done is said; what is left out is harmless.
fn refuse_other_work(fields: &Fields<'_>) -> Result<(), ApiError> {
    for key in ["image", "mask"] {
        if fields.get(key).is_some() {
            let message = format!("`{key}`: no model here starts from an image; describe it all in `prompt`");
            return Err(ApiError::unsupported(key, message));
        }
    }
    if fields.text("negative_prompt")?.is_some_and(|text| !text.trim().is_empty()) {
        let message = "no model here reads `negative_prompt`; say in `prompt` what the image should show";
        return Err(ApiError::unsupported("negative_prompt", message));
    }
    Ok(())
}

fn request(fields: &Fields<'_>, delivery: ImageDelivery) -> Result<ImageRequest, ApiError> {
    let (width, height) = size(fields)?;
    let steps = first(["steps", "num_inference_steps"], |key| fields.integer(key, 1..=MAX_STEPS))?;
    let guidance = ["guidance", "guidance_scale", "cfg_scale"];
    let partial_images = fields.integer("partial_images", 0..=MAX_PARTIALS)?.unwrap_or(0);
    let seed = fields.integer("seed", 0..=i64::MAX)?.map(i64::cast_unsigned);
    // Drawn here, so that an answer that is tried again, or asked for again, is the same.
    let seed = seed.unwrap_or_else(|| rand::random::<u64>() >> (u64::BITS - SEED_BITS));
    let partial_images = match delivery {
        ImageDelivery::Stream => u32::try_from(partial_images).unwrap_or(0),
        ImageDelivery::Files(_) => 0,
    };
    Ok(ImageRequest::new(terms::prompt(fields)?)
        .width(width)
        .height(height)
        .steps(steps.and_then(|steps| u32::try_from(steps).ok()))
        .guidance(first(guidance, |key| fields.number(key, 0.0..=MAX_GUIDANCE))?)
        .seed(seed)
        .partial_images(partial_images))
}

/// The value of the first of these names of one field.
fn first<T, const N: usize>(
    names: [&str; N],
    read: impl Fn(&str) -> Result<Option<T>, ApiError>,
) -> Result<Option<T>, ApiError> {
    let mut found = None;
    for name in names {
        let value = read(name)?;
        found = found.or(value);
    }
    Ok(found)
}

fn size(fields: &Fields<'_>) -> Result<(u32, u32), ApiError> {
    let Some(text) = fields.text("size")?.filter(|text| text != "auto") else {
        let ImageRequest { width, height, .. } = ImageRequest::default();
        return Ok((width, height));
    };
    let unclear = || {
        let message = "`size` must be WIDTHxHEIGHT in pixels, like 1024x768, or auto";
        ApiError::invalid("size", message)
    };
    let (width, height) = text.split_once(['x', 'X']).ok_or_else(unclear)?;
    let side = |digits: &str| {
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(unclear());
        }
        // More digits than a number has are too many pixels as well.
        let side = digits.parse().unwrap_or(u32::MAX);
        if side.is_multiple_of(SIDE_UNIT) && (SIDE_UNIT..=MAX_SIDE).contains(&side) {
            return Ok(side);
        }
        let message =
            format!("both sides of `size` must be multiples of {SIDE_UNIT} from {SIDE_UNIT} to {MAX_SIDE} pixels");
        Err(ApiError::invalid("size", message))
    };
    Ok((side(width)?, side(height)?))
}

fn encoding(fields: &Fields<'_>) -> Result<ImageEncoding, ApiError> {
    let name = fields.text("output_format")?.unwrap_or("png".into());
    let format = ImageFormat::by_name(&name).ok_or_else(|| {
        let message = "`output_format` must be png, jpeg or webp";
        ApiError::unsupported("output_format", message)
    })?;
    let quality = fields.integer("output_compression", 0..=100)?.unwrap_or(100);
    Ok(ImageEncoding { format, quality: u8::try_from(quality).unwrap_or(100) })
}

fn delivery(fields: &Fields<'_>, images: u64) -> Result<ImageDelivery, ApiError> {
    let response_format = match fields.text("response_format")?.as_deref() {
        None | Some("b64_json") => ResponseFormat::Base64,
        Some("url") => ResponseFormat::Url,
        Some(_) => {
            return Err(ApiError::invalid("response_format", "`response_format` must be b64_json or url"));
        }
    };
    match fields.flag("stream")? {
        Some(true) if images > 1 => {
            let message = "`n` does not go together with `stream`: one image at a time is streamed";
            Err(ApiError::invalid("n", message))
        }
        // OpenAI's events have base64 whatever was asked for.
        Some(true) => Ok(ImageDelivery::Stream),
        _ => Ok(ImageDelivery::Files(response_format)),
    }
}
