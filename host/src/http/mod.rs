//! The HTTP surface: parses what clients send, asks the runtime, and writes answers in OpenAI's shapes.
//!
//! Nobody imports it but `cli`. It knows the runtime's handle and the checked configuration, nothing of plugins, workers'
//! processes or scheduling. Wire shapes stop in `wire`, status codes in `error`.

mod admin;
mod auth;
mod body;
mod edge;
mod error;
mod generate;
mod openai;
mod resolve;
mod router;
mod sse;
mod wire;

#[cfg(test)]
mod tests;

use std::future::Future;

use axum::serve::ListenerExt;

use crate::runtime::Handle;

pub use router::router;

/// Serves until `shutdown` resolves, then lets open requests end.
pub async fn serve(
    listener: tokio::net::TcpListener,
    handle: Handle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was not set; tokens may arrive in bursts");
        }
    });
    axum::serve(listener, router(handle)).with_graceful_shutdown(shutdown).await
}
