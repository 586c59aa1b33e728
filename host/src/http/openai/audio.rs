//! `POST /v1/audio/generations`: music and other audio from a description.

use aihost_plugin_api::task::AudioBlock;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::try_join_all;
use serde_json::json;

use super::super::app::{App, unix_seconds};
use super::super::blocking::run_blocking;
use super::super::body::JsonBody;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::generate::{QueuePlace, broken_off};
use super::super::resolve::{self, Wanted};
use super::super::wire::{self, AudioDelivery, AudioFiles, AudioJob, AudioResponseFormat, AudioStreaming};
use super::super::{artifacts, audio_stream};
use super::explain;
use crate::domain::{Failure, FailureKind, Kind, ModelId};
use crate::media::audio::{Audio, block, finish};
use crate::runtime::{Handle, OutputMode, Submission, Submitted};
use crate::store::Media;
use crate::worker::Output;

const PATH: &str = "/v1/audio/generations";
const WANTED: Wanted<'_> = Wanted { kind: Kind::Audio, endpoint: PATH };
/// Most samples of one piece, all channels together: 512 MiB. The request's own limit is far below it at any usual rate.
const MAX_SAMPLES: usize = 128 << 20;

/// Answers with audio.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let job = body.read(wire::parse_audio).await?;
    let config = app.handle.config();
    let model = resolve::for_request(&config, &caller, job.model.as_deref(), WANTED)?.id.clone();
    let (handle, place) = (app.handle.clone(), QueuePlace::default());
    let submitter = AudioSubmitter { handle, model: model.clone(), job: job.clone(), caller, place };
    match job.delivery {
        AudioDelivery::Stream(streaming) => match submitter.stream(streaming).await {
            Ok(response) => Ok(response),
            Err(failure) => Err(explain(&app, failure, &model, "prompt").await),
        },
        AudioDelivery::Files(files) => {
            let pieces = (0..job.pieces).map(|number| submitter.piece(number));
            match try_join_all(pieces).await {
                Ok(pieces) => send(&app, &headers, pieces, files).await,
                Err(failure) => Err(explain(&app, failure, &model, "prompt").await),
            }
        }
    }
}

/// Asks for one request's pieces.
struct AudioSubmitter {
    handle: Handle,
    model: ModelId,
    job: AudioJob,
    caller: Caller,
    place: QueuePlace,
}

impl AudioSubmitter {
    /// Piece `number` differs from piece 0 in its seed alone.
    async fn submit(&self, number: u64) -> Submitted {
        let job = &self.job;
        let seed = job.request.seed.map(|seed| seed.wrapping_add(number));
        let task = Bytes::from(wire::json(&job.request.clone().seed(seed)));
        let delivery = match job.delivery {
            AudioDelivery::Files(_) => OutputMode::Gathered,
            AudioDelivery::Stream(_) => OutputMode::Streamed,
        };
        let (model, class, keep_alive) = (self.model.clone(), job.class, job.keep_alive);
        let submission = Submission {
            model,
            kind: Kind::Audio,
            ask: task.into(),
            class,
            keep_alive,
            delivery,
            access: self.caller.access().clone(),
        };
        self.place.submit(&self.handle, submission).await
    }

    /// One piece, as it is made.
    async fn stream(self, streaming: AudioStreaming) -> Result<Response, Failure> {
        let ping = self.handle.config().limits.sse_ping;
        audio_stream::respond(async move { self.submit(0).await }, streaming, ping).await
    }

    /// One piece, once it is whole.
    async fn piece(&self, number: u64) -> Result<Audio, Failure> {
        let mut answer = self.submit(number).await?;
        let mut audio = Audio::default();
        loop {
            match answer.output.recv().await {
                Some(Output::Bytes(payload)) => {
                    let AudioBlock { header, samples, .. } = block(&payload)?;
                    (audio.sample_rate, audio.channels) = (header.sample_rate, header.channels);
                    if audio.samples.len() + samples.len() > MAX_SAMPLES {
                        let message = format!("the model made more than {MAX_SAMPLES} samples");
                        return Err(Failure::new(FailureKind::Internal, message));
                    }
                    audio.samples.extend(samples);
                }
                Some(Output::Done(Ok(summary))) => {
                    let finish = finish(&summary)?;
                    if audio.samples.is_empty() {
                        (audio.sample_rate, audio.channels) = (finish.sample_rate, finish.channels);
                    }
                    return Ok(audio);
                }
                Some(Output::Done(Err(failure))) => return Err(failure),
                Some(Output::Progress { done, total }) => {
                    self.caller.progress().report((number, self.job.pieces), done, total);
                }
                Some(Output::Event(_) | Output::Http(_)) => {}
                None => return Err(broken_off()),
            }
        }
    }
}

async fn send(app: &App, headers: &HeaderMap, pieces: Vec<Audio>, files: AudioFiles) -> Result<Response, ApiError> {
    let seconds: Vec<_> = pieces.iter().map(Audio::seconds).collect();
    let (sample_rate, channels) = pieces.first().map_or((0, 0), |audio| (audio.sample_rate, audio.channels));
    let mut encoded = run_blocking(move || encode(pieces, files)).await?;
    let media = Media::from(files.format);
    let AudioResponseFormat::Json(response_format) = files.response_format else {
        let kind = HeaderValue::from_static(media.content_type());
        return Ok(([(header::CONTENT_TYPE, kind)], encoded.pop().unwrap_or_default()).into_response());
    };
    let mut data = artifacts::entries(app, headers, encoded, media, response_format).await?;
    data.iter_mut().zip(seconds).for_each(|(entry, seconds)| entry["seconds"] = json!(seconds));
    let body = json!({
        "created": unix_seconds(),
        "data": data,
        "response_format": media.ending(),
        "sample_rate": sample_rate,
        "channels": channels,
    });
    artifacts::reply(body).await
}

fn encode(pieces: Vec<Audio>, AudioFiles { format, normalize, .. }: AudioFiles) -> Result<Vec<Vec<u8>>, String> {
    let file = |mut audio: Audio| {
        if normalize {
            audio.normalize();
        }
        audio.encode(format)
    };
    pieces.into_iter().map(file).collect()
}
