//! Bodies that clients send compressed: by which codings, and what they unpack to, piece by piece. Nothing of limits and time.

use std::io;
use std::pin::Pin;

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures_util::Stream;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio_util::io::StreamReader;

use super::error::ApiError;

/// What is taken, as a client reads it.
pub(super) const TAKEN: &str = "gzip, deflate, zstd";
/// Most codings of one body.
const CODINGS_MAX: usize = 4;
/// Most bytes of a piece that was unpacked.
const PIECE_BYTES: usize = 16 << 10;
/// The binary logarithm of the most that a decoder of zstd looks back, bytes: 8 MiB, which is all that RFC 9659 lets senders ask
/// of receivers.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Most bytes that a decoder keeps of what it has unpacked.
pub(super) const WINDOW_BYTES: u64 = 1 << ZSTD_WINDOW_LOG_MAX;

/// How a body was packed, in the order in which it was; among a request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Codings(Vec<Coding>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Zstd,
}

/// Has the body of a request unpacked when it is read: from here on it is as if it had come so.
///
/// # Errors
/// It is packed in a way that is not known here, and stays as it is.
pub(super) fn unpack(request: &mut Request) -> Result<(), ApiError> {
    let codings = codings(request.headers())?;
    request.headers_mut().remove(header::CONTENT_ENCODING);
    if !codings.0.is_empty() {
        request.extensions_mut().insert(codings);
    }
    Ok(())
}

fn codings(headers: &HeaderMap) -> Result<Codings, ApiError> {
    let mut codings = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let value = value.to_str().map_err(|_| ApiError::encoded("?"))?;
        for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            codings.push(match name.to_ascii_lowercase().as_str() {
                "identity" => continue,
                "gzip" | "x-gzip" => Coding::Gzip,
                "deflate" => Coding::Deflate,
                "zstd" => Coding::Zstd,
                _ => return Err(ApiError::encoded(name)),
            });
            if codings.len() > CODINGS_MAX {
                return Err(ApiError::encoded(value));
            }
        }
    }
    Ok(Codings(codings))
}

/// A body that is unpacked while it comes.
pub(super) struct Unpacking(Pin<Box<dyn AsyncBufRead + Send>>);

impl Unpacking {
    pub(super) fn new(
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        Codings(codings): &Codings,
    ) -> Self {
        let mut reader: Pin<Box<dyn AsyncBufRead + Send>> = Box::pin(StreamReader::new(pieces));
        for coding in codings.iter().rev() {
            // Each may be several, one behind the other; what is neither is not sound.
            reader = match coding {
                Coding::Gzip => {
                    let mut decoder = GzipDecoder::new(reader);
                    decoder.multiple_members(true);
                    Box::pin(BufReader::with_capacity(PIECE_BYTES, decoder))
                }
                Coding::Deflate => {
                    let mut decoder = ZlibDecoder::new(reader);
                    decoder.multiple_members(true);
                    Box::pin(BufReader::with_capacity(PIECE_BYTES, decoder))
                }
                Coding::Zstd => {
                    let most = [DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)];
                    let mut decoder = ZstdDecoder::with_params(reader, &most);
                    decoder.multiple_members(true);
                    Box::pin(BufReader::with_capacity(PIECE_BYTES, decoder))
                }
            };
        }
        Self(reader)
    }

    /// The next piece of it.
    ///
    /// # Errors
    /// What comes is not sound, or its stream broke.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let piece = Bytes::copy_from_slice(self.0.fill_buf().await?);
        self.0.as_mut().consume(piece.len());
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }
}
