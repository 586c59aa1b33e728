//! `GET /artifacts/{name}`: files that answers name by URL, for as long as they are kept.

use std::io;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::app::App;
use super::blocking::run_blocking;
use super::body::Name;
use super::error::ApiError;
use super::wire::ResponseFormat;
use crate::config::{Config, Limits};
use crate::media::audio::AudioFormat;
use crate::media::image::ImageFormat;
use crate::store::{ArtifactLimits, Media};

/// Bytes of a kept file that are read at once.
const READ_BYTES: usize = 64 << 10;

/// Sends a file.
pub(super) async fn get(State(app): State<App>, Name(name): Name) -> Result<Response, ApiError> {
    let ttl = app.handle.config().limits.artifact_ttl;
    let unknown = || ApiError::unknown_artifact(&name);
    let (artifacts, wanted) = (app.artifacts, name.clone());
    let found = tokio::task::spawn_blocking(move || artifacts.find(&wanted, ttl)).await;
    let (path, media) = found.ok().flatten().ok_or_else(unknown)?;
    // It may have gone since; once it is open it can be read to its end.
    let file = File::open(&path).await.map_err(|_| unknown())?;
    let length = file.metadata().await.map_err(|_| unknown())?.len();
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(media.content_type())),
        (header::CONTENT_LENGTH, HeaderValue::from(length)),
    ];
    Ok((headers, streamed(file)).into_response())
}

/// Files as entries of an answer's `data`.
pub(super) async fn entries(
    app: &App,
    headers: &HeaderMap,
    files: Vec<Vec<u8>>,
    media: Media,
    response_format: ResponseFormat,
) -> Result<Vec<Value>, ApiError> {
    Ok(match response_format {
        ResponseFormat::Base64 => {
            let encode = move || files.iter().map(|file| json!({"b64_json": BASE64_STANDARD.encode(file)})).collect();
            run_blocking(move || Ok(encode())).await?
        }
        ResponseFormat::Url => keep(app, headers, files, media).await?.iter().map(|url| json!({"url": url})).collect(),
    })
}

/// A reply with such entries, which may be long: written where it holds nobody up.
pub(super) async fn reply(body: Value) -> Result<Response, ApiError> {
    let json = run_blocking(move || serde_json::to_vec(&body).map_err(|error| error.to_string())).await?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
}

/// Keeps files and gives their addresses, as this client can reach them.
async fn keep(app: &App, headers: &HeaderMap, files: Vec<Vec<u8>>, media: Media) -> Result<Vec<String>, ApiError> {
    let config = app.handle.config();
    let limits = limits(&config.limits);
    let artifacts = std::sync::Arc::clone(&app.artifacts);
    let put = move || files.iter().map(|file| artifacts.put(file, media, limits)).collect::<Result<Vec<_>, _>>();
    let names = match tokio::task::spawn_blocking(put).await {
        Ok(names) => names?,
        Err(_) => return Err(ApiError::internal("the answer's file could not be written")),
    };
    let base = base_url(&config, headers);
    Ok(names.into_iter().map(|name| format!("{base}/artifacts/{name}")).collect())
}

/// Headers that the addresses of an answer depend on.
pub(super) const ADDRESS_HEADERS: [&str; 2] = ["host", "x-forwarded-proto"];

/// Where this client reaches this host.
pub(super) fn base_url(config: &Config, headers: &HeaderMap) -> String {
    let listen = config.listen.to_string();
    let [host, protocol] = ADDRESS_HEADERS.map(|name| headers.get(name).and_then(|value| value.to_str().ok()));
    let scheme = if protocol == Some("https") { "https" } else { "http" };
    format!("{scheme}://{}", host.unwrap_or(&listen))
}

/// A file as it is read.
pub(super) fn streamed(file: File) -> Body {
    Body::from_stream(stream::unfold(Some(file), piece))
}

/// What the store is held to.
pub(super) fn limits(limits: &Limits) -> ArtifactLimits {
    ArtifactLimits { ttl: limits.artifact_ttl, bytes: limits.artifact_bytes }
}

impl From<ImageFormat> for Media {
    fn from(format: ImageFormat) -> Self {
        match format {
            ImageFormat::Png => Self::Png,
            ImageFormat::Jpeg => Self::Jpeg,
            ImageFormat::Webp => Self::Webp,
        }
    }
}

impl From<AudioFormat> for Media {
    fn from(format: AudioFormat) -> Self {
        match format {
            AudioFormat::Wav => Self::Wav,
            AudioFormat::Flac => Self::Flac,
        }
    }
}

async fn piece(file: Option<File>) -> Option<(io::Result<Bytes>, Option<File>)> {
    let mut file = file?;
    let mut bytes = BytesMut::with_capacity(READ_BYTES);
    match file.read_buf(&mut bytes).await {
        Ok(0) => None,
        Ok(_) => Some((Ok(bytes.freeze()), Some(file))),
        Err(error) => Some((Err(error), None)),
    }
}
