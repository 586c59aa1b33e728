//! Reading a request's JSON body or path, with every refusal in the envelope.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header;
use axum::http::request::Parts;
use futures_util::StreamExt;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::error::ApiError;
use super::router::App;
use crate::domain::Class;

/// How long the next piece of a body may take.
const BODY_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The body as a JSON object.
pub(super) struct JsonObject(pub(super) Map<String, Value>);

impl FromRequest<App> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        check_content_type(&request)?;
        let class = request.extensions().get().copied().unwrap_or_default();
        let bytes = read(request, app).await?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => Ok(Self(of_class(map, class))),
            Ok(_) => Err(ApiError::malformed("the body must be a JSON object")),
            Err(error) => Err(ApiError::malformed(format!("the body is not JSON: {error}"))),
        }
    }
}

/// A body that nobody looks at. It is taken in, so that the client is done with sending when the answer comes.
pub(super) struct Unread;

impl FromRequest<App> for Unread {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        read(request, app).await.map(|_| Self)
    }
}

/// The name at the end of a path, percent-decoded.
pub(super) struct Name(pub(super) String);

impl FromRequestParts<App> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, app).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(ApiError::malformed("the path is not UTF-8 once decoded")),
        }
    }
}

/// What a batch key sends is `flex`, whatever it says: said here once, no endpoint can forget it.
fn of_class(mut body: Map<String, Value>, class: Class) -> Map<String, Value> {
    if class == Class::Batch {
        body.insert("service_tier".to_owned(), Value::from("flex"));
    }
    body
}

/// JSON, or nothing said. Anything else is refused: a form post is what a hostile page can send without a preflight.
fn check_content_type(request: &Request) -> Result<(), ApiError> {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        Ok(())
    } else {
        Err(ApiError::malformed("the body must be JSON; send `Content-Type: application/json`"))
    }
}

async fn read(request: Request, app: &App) -> Result<Vec<u8>, ApiError> {
    let limit = app.handle.config().limits.body_limit;
    let most = usize::try_from(limit.0).unwrap_or(usize::MAX);
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limit.0) {
        return Err(ApiError::too_large(limit));
    }
    let mut chunks = request.into_body().into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) =
        timeout(BODY_STALL_TIMEOUT, chunks.next()).await.map_err(|_| ApiError::stalled(BODY_STALL_TIMEOUT))?
    {
        let chunk = chunk.map_err(|_| ApiError::malformed("the body ended early"))?;
        if chunk.len() > most - bytes.len() {
            return Err(ApiError::too_large(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
