//! What `POST /v1/audio/generations` reads. The endpoint is ours; its names are OpenAI's where OpenAI has one.

use aihost_plugin_api::task::AudioRequest;

use super::fields::{Fields, Keys};
use super::{ReceivedBody, ResponseFormat, terms};
use crate::domain::shown;
use crate::http::error::ApiError;
use crate::media::audio::AudioFormat;
use crate::runtime::{Class, KeepAlive};

/// Most pieces of one request.
const MAX_PIECES: i64 = 4;
/// Most seconds of one request, all pieces together: it is held in memory until it is written.
const MAX_SECONDS: f32 = 600.0;
/// Highest weight of the prompt; usual ones are below 10.
const MAX_GUIDANCE: f32 = 100.0;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = &[
    "model",
    "prompt",
    "n",
    "duration",
    "guidance_scale",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "response_format",
    "response",
    "normalize",
    "stream",
    "stream_format",
    "service_tier",
    "keep_alive",
    "background",
];

/// A request for audio.
#[derive(Clone, Debug)]
pub(in crate::http) struct AudioJob {
    /// The model's name, if one was given.
    pub(in crate::http) model: Option<String>,
    /// The first piece; another differs in its seed alone.
    pub(in crate::http) request: AudioRequest,
    /// How many pieces.
    pub(in crate::http) pieces: u64,
    /// How the answer is sent.
    pub(in crate::http) delivery: AudioDelivery,
    /// Whether other work goes first.
    pub(in crate::http) class: Class,
    /// How long the model stays hot once idle.
    pub(in crate::http) keep_alive: Option<KeepAlive>,
}

/// How audio is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum AudioDelivery {
    /// As files, once they are whole.
    Files(AudioFiles),
    /// As it is made.
    Stream(AudioStreaming),
}

/// How whole files are made and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct AudioFiles {
    /// Of what kind.
    pub(in crate::http) format: AudioFormat,
    /// Where they are put.
    pub(in crate::http) response_format: AudioResponseFormat,
    /// Whether they are brought to the same loudness.
    pub(in crate::http) normalize: bool,
}

/// Where audio is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum AudioResponseFormat {
    /// The file is the body.
    Body,
    /// The body is JSON that leads to it.
    Json(ResponseFormat),
}

/// The shape of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum AudioStreaming {
    /// A WAV file whose length its head does not know.
    Wav,
    /// Server-sent events: progress, and the same file in pieces of base64.
    Events,
}

/// Checks a body.
pub(in crate::http) fn parse(body: &ReceivedBody<'_>) -> Result<AudioJob, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let pieces = fields.integer("n", 1..=MAX_PIECES)?.unwrap_or(1).unsigned_abs();
    let request = request(&fields)?;
    if request.duration * pieces as f32 > MAX_SECONDS {
        let message = format!("`duration` times `n` must be at most {MAX_SECONDS} seconds");
        return Err(ApiError::invalid("duration", message));
    }
    Ok(AudioJob {
        model: terms::model(&fields)?,
        request,
        pieces,
        delivery: delivery(&fields, pieces)?,
        keep_alive: terms::keep_alive(&fields)?,
        class: terms::class(&fields)?,
    })
}

fn request(fields: &Fields<'_>) -> Result<AudioRequest, ApiError> {
    let prompt = terms::prompt(fields)?;
    if prompt.trim().is_empty() {
        return Err(ApiError::invalid("prompt", "`prompt` is empty; describe the audio in a few words"));
    }
    let off = AudioRequest::default();
    let duration = fields.number("duration", 0.0..=MAX_SECONDS)?.unwrap_or(off.duration);
    if duration == 0.0 {
        return Err(ApiError::invalid("duration", "`duration` must be above 0 seconds"));
    }
    // -1 is how other endpoints' clients write "off".
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    // 0 means the likeliest token alone; the task's range is open at 0.
    let top_p = fields.number("top_p", 0.0..=1.0)?.map_or(off.top_p, |share| share.max(f32::MIN_POSITIVE));
    Ok(AudioRequest::new(prompt)
        .duration(duration)
        .guidance_scale(fields.number("guidance_scale", 0.0..=MAX_GUIDANCE)?.unwrap_or(off.guidance_scale))
        .temperature(fields.number("temperature", 0.0..=2.0)?.unwrap_or(off.temperature))
        .top_k(top_k.map_or(off.top_k, |k| u32::try_from(k).unwrap_or(0)))
        .top_p(top_p)
        .seed(fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned)))
}

fn delivery(fields: &Fields<'_>, pieces: u64) -> Result<AudioDelivery, ApiError> {
    let format = fields.text("response_format")?.unwrap_or("wav".into());
    let format = AudioFormat::by_name(&format).ok_or_else(|| {
        let message = format!("`response_format` must be wav or flac, not `{}`", shown(&format));
        ApiError::unsupported("response_format", message)
    })?;
    let normalize = fields.flag("normalize")?.unwrap_or(false);
    let response_format = response_format(fields)?;
    match streaming(fields)? {
        Some(streaming) => {
            let why = match (response_format, format, normalize, pieces) {
                (Some(AudioResponseFormat::Json(_)), ..) => Some(("response", "a stream is sent in the body")),
                (_, AudioFormat::Flac, ..) => Some(("response_format", "only wav is streamed")),
                (_, _, true, _) => Some(("normalize", "loudness is known only when all of it is made")),
                (.., 2..) => Some(("n", "one piece at a time is streamed")),
                _ => None,
            };
            match why {
                Some((key, why)) => {
                    Err(ApiError::invalid(key, format!("`{key}` does not go together with `stream`: {why}")))
                }
                None => Ok(AudioDelivery::Stream(streaming)),
            }
        }
        None => {
            let several = pieces > 1;
            let usual =
                if several { AudioResponseFormat::Json(ResponseFormat::Base64) } else { AudioResponseFormat::Body };
            let response_format = response_format.unwrap_or(usual);
            if response_format == AudioResponseFormat::Body && several {
                return Err(ApiError::invalid("response", "`response` must be url or b64_json if `n` is above 1"));
            }
            Ok(AudioDelivery::Files(AudioFiles { format, response_format, normalize }))
        }
    }
}

fn response_format(fields: &Fields<'_>) -> Result<Option<AudioResponseFormat>, ApiError> {
    Ok(match fields.text("response")?.as_deref() {
        None => None,
        Some("bytes") => Some(AudioResponseFormat::Body),
        Some("b64_json") => Some(AudioResponseFormat::Json(ResponseFormat::Base64)),
        Some("url") => Some(AudioResponseFormat::Json(ResponseFormat::Url)),
        Some(other) => {
            let message = format!("`response` must be bytes, b64_json or url, not `{}`", shown(other));
            return Err(ApiError::invalid("response", message));
        }
    })
}

/// `stream`, or `stream_format: sse` alone, as in OpenAI's speech endpoint.
fn streaming(fields: &Fields<'_>) -> Result<Option<AudioStreaming>, ApiError> {
    let stream = fields.flag("stream")?;
    let format = match fields.text("stream_format")?.as_deref() {
        None => None,
        Some("audio") => Some(AudioStreaming::Wav),
        Some("sse") => Some(AudioStreaming::Events),
        Some(other) => {
            let message = format!("`stream_format` must be audio or sse, not `{}`", shown(other));
            return Err(ApiError::invalid("stream_format", message));
        }
    };
    Ok(match (stream, format) {
        (Some(true), format) => Some(format.unwrap_or(AudioStreaming::Wav)),
        (None, Some(AudioStreaming::Events)) => format,
        _ => None,
    })
}
