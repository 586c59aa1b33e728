//! `POST /v1/images/generations`: images from a description; and the edits and variations that no model makes.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use super::super::app::{App, unix_seconds};
use super::super::artifacts;
use super::super::body::{JsonBody, Unread};
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::event_stream;
use super::super::generate::{MAX_AT_ONCE, QueuePlace};
use super::super::image_output::{ImageFileWriter, ImageOutput, ImageUpdate};
use super::super::image_stream::ImageStream;
use super::super::resolve::{self, Wanted};
use super::super::wire::{self, ImageDelivery, ImageJob};
use super::explain;
use crate::domain::{Failure, Kind, ModelId};
use crate::media::image::ImageAssembler;
use crate::runtime::{Handle, OutputMode, Submission};
use crate::store::Media;

const PATH: &str = "/v1/images/generations";
const WANTED: Wanted<'_> = Wanted { kind: Kind::Image, endpoint: PATH };

/// Answers with images.
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let job = body.read(wire::parse_image).await?;
    let config = app.handle.config();
    let model = resolve::for_request(&config, &caller, job.model.as_deref(), WANTED)?.id.clone();
    let (handle, place) = (app.handle.clone(), QueuePlace::default());
    let submitter = ImageSubmitter { handle, model: model.clone(), job: job.clone(), caller, place };
    let result = match job.delivery {
        ImageDelivery::Stream => {
            let begun =
                async move { submitter.begin(0).await.map(|(output, writer)| ImageStream::new(output, writer)) };
            event_stream::respond(ImageStream::events(begun), config.limits.sse_ping).await
        }
        ImageDelivery::Files(response_format) => {
            let images = stream::iter(0..job.images).map(|number| submitter.image(number));
            match images.buffered(MAX_AT_ONCE).try_collect::<Vec<_>>().await {
                Ok(images) => {
                    let (files, seeds): (Vec<_>, Vec<_>) = images.into_iter().unzip();
                    let media = Media::from(job.encoding.format);
                    let mut data = artifacts::entries(&app, &headers, files, media, response_format).await?;
                    data.iter_mut().zip(seeds).for_each(|(entry, seed)| entry["seed"] = json!(seed));
                    let body = json!({
                        "created": unix_seconds(),
                        "data": data,
                        "background": "opaque",
                        "output_format": job.encoding.format.name(),
                        "size": format!("{}x{}", job.request.width, job.request.height),
                    });
                    return artifacts::reply(body).await;
                }
                Err(failure) => Err(failure),
            }
        }
    };
    match result {
        Ok(response) => Ok(response),
        Err(failure) => Err(explain(&app, failure, &model, "prompt").await),
    }
}

/// Says what to ask instead of an edit or a variation, whatever the body is.
pub(in crate::http) async fn unserved(_: Unread) -> ApiError {
    let message = format!("no model here starts from an image; describe all of the image to {PATH}, as JSON");
    ApiError::unserved(message)
}

/// Asks for one request's images.
struct ImageSubmitter {
    handle: Handle,
    model: ModelId,
    job: ImageJob,
    caller: Caller,
    place: QueuePlace,
}

impl ImageSubmitter {
    /// Asks for image `number`.
    async fn begin(&self, number: u64) -> Result<(ImageOutput, ImageFileWriter), Failure> {
        let (model, job) = (&self.model, &self.job);
        let delivery = match job.delivery {
            ImageDelivery::Files(_) => OutputMode::Gathered,
            ImageDelivery::Stream => OutputMode::Streamed,
        };
        let task = Bytes::from(wire::json(&job.image(number)));
        let (class, keep_alive) = (job.class, job.keep_alive);
        let submission = Submission {
            model: model.clone(),
            kind: Kind::Image,
            ask: task.into(),
            class,
            keep_alive,
            delivery,
            access: self.caller.access().clone(),
        };
        let answer = self.place.submit(&self.handle, submission).await?;
        let output = ImageOutput::new(answer.output, ImageAssembler::new(job.request.width, job.request.height));
        let (request, encoding) = (Arc::clone(&job.request), job.encoding);
        Ok((output, ImageFileWriter { model: model.clone(), request, encoding }))
    }

    /// Image `number` as a file, and its seed.
    async fn image(&self, number: u64) -> Result<(Vec<u8>, u64), Failure> {
        let (mut output, writer) = self.begin(number).await?;
        loop {
            match output.next().await? {
                ImageUpdate::Progress { done, total } => {
                    self.caller.progress().report((number, self.job.images), done, total);
                }
                ImageUpdate::Partial(..) => {}
                ImageUpdate::Finished(image, finish) => {
                    return Ok((writer.file(image, writer.metadata(&finish)).await?, finish.seed));
                }
            }
        }
    }
}
