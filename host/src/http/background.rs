//! Requests that nobody waits for: `background: true` on what makes images and audio, and `POST /v1/jobs`. Each is checked as
//! far as it can be without being served, kept as a job, and answered with it.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Json, body::Body};

use super::app::App;
use super::artifacts::{ADDRESS_HEADERS, base_url};
use super::body::{RawBody, check_content_type};
use super::caller::Caller;
use super::content_coding::unpack;
use super::error::ApiError;
use super::job_call::{JobCall, limits};
use super::openai::embeddings::RERANK_PATH;
use super::resolve::{self, Wanted};
use super::wire::{self, JobShape, ReceivedBody};
use crate::config::{Config, ModelConfig};
use crate::domain::{Class, Kind};
use crate::jobs::{JobRequest, NewJob};

/// A route whose requests may be kept.
#[derive(Clone)]
pub(super) struct Keeping {
    pub(super) app: App,
    /// The models that it is for.
    pub(super) wanted: Wanted<'static>,
}

/// Stands before what makes images and audio.
pub(super) async fn background(
    State(Keeping { app, wanted }): State<Keeping>,
    mut request: Request,
    next: Next,
) -> Response {
    let is_job = request.extensions().get::<JobCall>().is_some();
    if is_job || check_content_type(&request).is_err() {
        return next.run(request).await;
    }
    if let Err(error) = unpack(&mut request) {
        return error.into_response();
    }
    let (mut parts, body) = request.into_parts();
    let received = match RawBody::receive(Request::from_parts(parts.clone(), body), &app).await {
        Ok(received) => received,
        Err(error) => return error.into_response(),
    };
    // What is wrong with it is for its route to say.
    let asked = received.clone().read(wire::parse_background).await.ok().flatten();
    match (asked, parts.extensions.get::<Caller>().cloned()) {
        (Some(body), Some(caller)) => {
            let asked = wire::AskedJob { endpoint: parts.uri.path().to_owned(), body };
            accept(&app, &caller, &parts.headers, (wanted, asked)).await.unwrap_or_else(IntoResponse::into_response)
        }
        _ => {
            parts.extensions.insert(received);
            next.run(Request::from_parts(parts, Body::empty())).await
        }
    }
}

/// Keeps a job, and answers with it.
pub(super) async fn accept(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    (wanted, asked): (Wanted<'static>, wire::AskedJob),
) -> Result<Response, ApiError> {
    let config = app.handle.config();
    let model = check(app, &config, caller, (wanted, &asked))?;
    let kept = ADDRESS_HEADERS.into_iter().chain(["traceparent"]).filter_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        Some((name.to_owned(), value.to_owned()))
    });
    let new = NewJob {
        owner: caller.key().map(|key| key.name.clone()),
        model: model.id.to_string(),
        request: JobRequest { headers: kept.collect(), body: asked.body },
        endpoint: asked.endpoint,
    };
    let view = app.jobs.submit(new, limits(&config.limits)).await?;
    let reply = shape(&config, headers).reply(view);
    let location = HeaderValue::try_from(format!("/v1/jobs/{}", reply.id()));
    let mut response = (StatusCode::ACCEPTED, Json(reply)).into_response();
    response.headers_mut().extend(location.ok().map(|location| (header::LOCATION, location)));
    Ok(response)
}

/// The model that a job is for, if it may be one: what is known to be wrong is said now, not when its turn comes.
fn check<'a>(
    app: &App,
    config: &'a Config,
    caller: &Caller,
    (wanted, asked): (Wanted<'_>, &wire::AskedJob),
) -> Result<&'a ModelConfig, ApiError> {
    let received = ReceivedBody { text: &asked.body, class: Class::Batch };
    let named = wire::parse_named(&received)?;
    if named.streams {
        let message = "a job is not streamed: leave `stream` out, and follow its events at /v1/jobs/{id}/events";
        return Err(ApiError::unsupported("stream", message));
    }
    let by_engine = |name: &str| {
        let model = resolve::by_name(config, caller, name).ok()?;
        app.handle.speaks_http(model).then_some(model)
    };
    // An engine that speaks HTTP says by itself what it makes of a route.
    if let Some(model) = named.model.as_deref().and_then(by_engine) {
        return Ok(model);
    }
    let model = resolve::for_request(config, caller, named.model.as_deref(), wanted)?;
    caller.access().asks_for(&model.id);
    if app.handle.speaks_http(model) {
        return Ok(model);
    }
    match wanted.kind {
        Kind::Image => drop(wire::parse_image(&received)?),
        Kind::Audio => drop(wire::parse_audio(&received)?),
        Kind::Embedding if wanted.endpoint == RERANK_PATH => drop(wire::parse_rerank(&received)?),
        Kind::Embedding => drop(wire::parse_embeddings(&received)?),
        _ => {}
    }
    Ok(model)
}

/// What jobs are told with to this client.
pub(super) fn shape(config: &Config, headers: &HeaderMap) -> JobShape {
    JobShape { base_url: base_url(config, headers), ttl_s: config.limits.job_ttl.as_secs() }
}
