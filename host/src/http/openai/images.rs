//! `POST /v1/images/generations`: pictures from a description; and the edits and variations that no model makes.

use std::sync::Arc;

use aihost_plugin_api::task::{ImageFinish, ImageRequest};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use super::super::artifacts;
use super::super::body::{JsonBody, Unread};
use super::super::error::ApiError;
use super::super::generate::{MAX_AT_ONCE, Place};
use super::super::image_stream::{ImageStream, Made, Making};
use super::super::picture::{Canvas, Encoding, Notes, Picture};
use super::super::resolve;
use super::super::router::{App, unix_seconds};
use super::super::wire::{self, ImageDelivery, ImageJob};
use super::{aside, refusal};
use crate::domain::{Failure, Kind, ModelId};
use crate::runtime::{Delivery, Handle, Submission};

const PATH: &str = "/v1/images/generations";
/// Fields that a model's own refusal may begin with, and so blame.
const FIELDS: [&str; 4] = ["prompt", "size", "steps", "guidance"];

/// Answers with pictures.
pub(in crate::http) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let job = body.read(wire::parse_image).await?;
    let config = app.handle.config();
    let model = resolve::for_request(&config, job.model.as_deref(), Kind::Image, PATH)?.id.clone();
    let asker = Asker { handle: &app.handle, model: &model, job: &job, place: Place::default() };
    let result = match job.delivery {
        ImageDelivery::Stream => match asker.begin(0).await {
            Ok((making, maker)) => ImageStream::new(making, maker).respond().await,
            Err(failure) => Err(failure),
        },
        ImageDelivery::Files(carrier) => {
            let pictures = stream::iter(0..job.pictures).map(|number| asker.picture(number));
            match pictures.buffered(MAX_AT_ONCE).try_collect::<Vec<_>>().await {
                Ok(pictures) => {
                    let (files, seeds): (Vec<_>, Vec<_>) = pictures.into_iter().unzip();
                    let media = job.encoding.format.media();
                    let mut data = artifacts::entries(&app, &headers, files, media, carrier).await?;
                    data.iter_mut().zip(seeds).for_each(|(entry, seed)| entry["seed"] = json!(seed));
                    let body = json!({
                        "created": unix_seconds(),
                        "data": data,
                        "background": "opaque",
                        "output_format": job.encoding.format.name(),
                        "size": format!("{}x{}", job.request.width, job.request.height),
                    });
                    return Ok(axum::Json(body).into_response());
                }
                Err(failure) => Err(failure),
            }
        }
    };
    match result {
        Ok(response) => Ok(response),
        Err(failure) => Err(refusal(&app, failure, &model, &FIELDS).await),
    }
}

/// Says what to ask instead of an edit or a variation, whatever the body is.
pub(in crate::http) async fn unserved(_: Unread) -> ApiError {
    let message = format!("no model here starts from a picture; describe all of the picture to {PATH}, as JSON");
    ApiError::unserved(message)
}

/// Asks for one request's pictures.
struct Asker<'a> {
    handle: &'a Handle,
    model: &'a ModelId,
    job: &'a ImageJob,
    place: Place,
}

impl Asker<'_> {
    /// Asks for picture `number`.
    async fn begin(&self, number: u64) -> Result<(Making, Maker), Failure> {
        let (model, job) = (self.model, self.job);
        let delivery = match job.delivery {
            ImageDelivery::Files(_) => Delivery::Gathered,
            ImageDelivery::Stream => Delivery::Streamed,
        };
        let task = Bytes::from(wire::json(&job.picture(number)));
        let (class, keep_alive) = (job.class, job.keep_alive);
        let submission = Submission { model: model.clone(), task, class, keep_alive, delivery };
        let answer = self.place.submit(self.handle, submission).await?;
        let making = Making::new(answer.output, Canvas::new(job.request.width, job.request.height));
        Ok((making, Maker { model: model.clone(), request: Arc::clone(&job.request), encoding: job.encoding }))
    }

    /// Picture `number` as a file, and its seed.
    async fn picture(&self, number: u64) -> Result<(Vec<u8>, u64), Failure> {
        let (mut making, maker) = self.begin(number).await?;
        loop {
            if let Made::Whole(picture, finish) = making.next().await? {
                return Ok((maker.file(picture, maker.notes(&finish)).await?, finish.seed));
            }
        }
    }
}

/// Makes files of one request's pictures.
pub(in crate::http) struct Maker {
    model: ModelId,
    request: Arc<ImageRequest>,
    /// Of what kind they are.
    pub(in crate::http) encoding: Encoding,
}

impl Maker {
    /// What a file says of how its picture was made. The guidance is there if the request named one.
    pub(in crate::http) fn notes(&self, finish: &ImageFinish) -> Notes {
        let ImageRequest { prompt, guidance, .. } = &*self.request;
        let mut notes = vec![
            ("prompt", prompt.clone()),
            ("model", self.model.0.clone()),
            ("seed", finish.seed.to_string()),
            ("steps", finish.steps.to_string()),
            ("size", format!("{}x{}", finish.width, finish.height)),
        ];
        notes.extend(guidance.map(|guidance| ("guidance", guidance.to_string())));
        notes
    }

    /// A file, written where it holds nobody up.
    pub(in crate::http) async fn file(&self, picture: Picture, notes: Notes) -> Result<Vec<u8>, Failure> {
        let encoding = self.encoding;
        aside(move || picture.encode(encoding, &notes)).await
    }
}
