//! `POST /v1/audio/generations`: music and sound from a description; and `POST /v1/audio/speech`, which no model serves.

use aihost_plugin_api::task::{AudioBlock, AudioFinish, AudioRequest, FinishReason};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::try_join_all;
use serde_json::json;

use super::super::artifacts;
use super::super::audio_stream::AudioStream;
use super::super::body::JsonBody;
use super::super::error::ApiError;
use super::super::generate::{Place, broken_off};
use super::super::resolve;
use super::super::router::{App, unix_seconds};
use super::super::sound::Sound;
use super::super::wire::{self, AudioCarrier, AudioDelivery, AudioFiles, AudioJob, AudioStreaming};
use super::{aside, refusal};
use crate::domain::{Failure, FailureKind, Kind, ModelId};
use crate::runtime::{Delivery, Handle, Submission, Submitted};
use crate::worker::Output;

const PATH: &str = "/v1/audio/generations";
const SPEECH_PATH: &str = "/v1/audio/speech";
/// Most samples of one piece, all channels together: 512 MiB. The request's own limit is far below it at any usual rate.
const MAX_SAMPLES: usize = 128 << 20;
/// Fields that a model's own refusal may begin with, and so blame.
const FIELDS: [&str; 6] = ["prompt", "duration", "guidance_scale", "temperature", "top_k", "top_p"];

/// Answers with sound.
pub(in crate::http) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let job = body.read(wire::parse_audio).await?;
    let config = app.handle.config();
    let model = resolve::for_request(&config, job.model.as_deref(), Kind::Audio, PATH)?.id.clone();
    let asker = Asker { handle: &app.handle, model: &model, job: &job, place: Place::default() };
    match job.delivery {
        AudioDelivery::Stream(streaming) => match asker.stream(streaming).await {
            Ok(response) => Ok(response),
            Err(failure) => Err(refusal(&app, failure, &model, &FIELDS).await),
        },
        AudioDelivery::Files(files) => {
            let pieces = (0..job.pieces).map(|number| asker.piece(number));
            match try_join_all(pieces).await {
                Ok(sounds) => send(&app, &headers, sounds, files).await,
                Err(failure) => Err(refusal(&app, failure, &model, &FIELDS).await),
            }
        }
    }
}

/// Says what a client of OpenAI's speech endpoint should ask instead.
pub(in crate::http) async fn speech(State(app): State<App>, body: JsonBody) -> Result<Response, ApiError> {
    let name = body.read(wire::parse_name).await?;
    let config = app.handle.config();
    let model = resolve::for_request(&config, name.as_deref(), Kind::Speech, SPEECH_PATH)?;
    let message = format!("the model `{}` is of kind speech, which this host does not serve yet", model.id);
    Err(Failure::new(FailureKind::WrongKind, message).into())
}

/// Asks for one request's pieces.
struct Asker<'a> {
    handle: &'a Handle,
    model: &'a ModelId,
    job: &'a AudioJob,
    place: Place,
}

impl Asker<'_> {
    /// Piece `number` differs from piece 0 in its seed alone.
    async fn submit(&self, number: u64) -> Submitted {
        let job = self.job;
        let seed = job.request.seed.map(|seed| seed.wrapping_add(number));
        let task = Bytes::from(wire::json(&AudioRequest { seed, ..job.request.clone() }));
        let delivery = match job.delivery {
            AudioDelivery::Files(_) => Delivery::Gathered,
            AudioDelivery::Stream(_) => Delivery::Streamed,
        };
        let (model, class, keep_alive) = (self.model.clone(), job.class, job.keep_alive);
        self.place.submit(self.handle, Submission { model, task, class, keep_alive, delivery }).await
    }

    /// One piece, as it is made.
    async fn stream(&self, streaming: AudioStreaming) -> Result<Response, Failure> {
        let answer = self.submit(0).await?;
        AudioStream::new(answer.output, streaming).respond().await
    }

    /// One piece, once it is whole.
    async fn piece(&self, number: u64) -> Result<Sound, Failure> {
        let mut answer = self.submit(number).await?;
        let mut sound = Sound::default();
        loop {
            match answer.output.recv().await {
                Some(Output::Bytes(payload)) => {
                    let AudioBlock { header, samples } = block(&payload)?;
                    (sound.sample_rate, sound.channels) = (header.sample_rate, header.channels);
                    if sound.samples.len() + samples.len() > MAX_SAMPLES {
                        let message = format!("the model made more than {MAX_SAMPLES} samples");
                        return Err(Failure::new(FailureKind::Internal, message));
                    }
                    sound.samples.extend(samples);
                }
                Some(Output::Done(Ok(summary))) => {
                    let finish = finish(&summary)?;
                    if sound.samples.is_empty() {
                        (sound.sample_rate, sound.channels) = (finish.sample_rate, finish.channels);
                    }
                    return Ok(sound);
                }
                Some(Output::Done(Err(failure))) => return Err(failure),
                Some(Output::Event(_) | Output::Progress { .. }) => {}
                None => return Err(broken_off()),
            }
        }
    }
}

/// A block of samples as the plugin pushed it, if it is one that a file can hold.
pub(in crate::http) fn block(payload: &[u8]) -> Result<AudioBlock, Failure> {
    let wrong = |message: String| Failure::new(FailureKind::Internal, message);
    let block = AudioBlock::decode(payload).map_err(|error| wrong(error.to_string()))?;
    let (channels, rate) = (block.header.channels, block.header.sample_rate);
    if !(1..=2).contains(&channels) || rate == 0 || !block.samples.len().is_multiple_of(usize::from(channels)) {
        let samples = block.samples.len();
        return Err(wrong(format!("the plugin pushed {samples} samples of {channels} channels at {rate} Hz")));
    }
    Ok(block)
}

/// The end of a piece, unless it was cut short.
pub(in crate::http) fn finish(summary: &[u8]) -> Result<AudioFinish, Failure> {
    let finish: AudioFinish = serde_json::from_slice(summary).map_err(|error| {
        Failure::new(FailureKind::Internal, format!("the plugin ended with what is no audio summary: {error}"))
    })?;
    if finish.reason == FinishReason::Cancelled {
        return Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"));
    }
    Ok(finish)
}

async fn send(app: &App, headers: &HeaderMap, sounds: Vec<Sound>, files: AudioFiles) -> Result<Response, ApiError> {
    let seconds: Vec<_> = sounds.iter().map(Sound::seconds).collect();
    let (sample_rate, channels) = sounds.first().map_or((0, 0), |sound| (sound.sample_rate, sound.channels));
    let mut encoded = aside(move || encode(sounds, files)).await?;
    let media = files.encoding.media();
    let AudioCarrier::Json(carrier) = files.carrier else {
        let kind = HeaderValue::from_static(media.content_type());
        return Ok(([(header::CONTENT_TYPE, kind)], encoded.pop().unwrap_or_default()).into_response());
    };
    let mut data = artifacts::entries(app, headers, encoded, media, carrier).await?;
    data.iter_mut().zip(seconds).for_each(|(entry, seconds)| entry["seconds"] = json!(seconds));
    let body = json!({
        "created": unix_seconds(),
        "data": data,
        "response_format": media.ending(),
        "sample_rate": sample_rate,
        "channels": channels,
    });
    Ok(axum::Json(body).into_response())
}

fn encode(sounds: Vec<Sound>, AudioFiles { encoding, normalize, .. }: AudioFiles) -> Result<Vec<Vec<u8>>, String> {
    let file = |mut sound: Sound| {
        if normalize {
            sound.normalize();
        }
        sound.encode(encoding)
    };
    sounds.into_iter().map(file).collect()
}
