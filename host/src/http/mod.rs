//! The HTTP surface: parses what clients send, asks the runtime, and writes answers in OpenAI's shapes.
//!
//! Nobody imports it but `cli`. It knows the runtime's handle and the checked configuration, nothing of plugins, workers'
//! processes or scheduling. SocketIo shapes stop in `wire`, status codes in `error`.

mod access_log;
mod admin;
mod anthropic;
mod app;
mod artifacts;
mod audio_stream;
mod auth;
mod background;
mod blocking;
mod bodies;
mod body;
mod bucket;
mod caller;
mod connection;
mod connections;
mod content_coding;
mod conversations;
mod cors;
mod custom;
mod divert;
mod edge;
mod embedding_output;
mod engine_chat;
mod engine_routes;
mod engine_text;
mod error;
mod error_form;
mod event_stream;
mod generate;
mod image_output;
mod image_stream;
mod job_call;
mod jobs;
mod listen;
mod listing;
mod multipart;
mod ollama;
mod openai;
mod openapi;
mod page;
mod page_key;
mod passed_events;
mod proxy;
mod quota;
mod recent;
mod redact;
mod request_fields;
mod resolve;
mod revalidated;
mod router;
mod socket;
mod sse;
mod stream_body;
mod tally;
mod text_answer;
mod text_stream;
mod tokens;
mod trace_parent;
mod upstream;
mod websocket;
mod wire;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::jobs::Jobs;
use crate::runtime::Handle;

use app::App;
use job_call::JobDispatch;
pub use listen::Leaving;
pub(crate) use listen::raise_descriptors;
pub(crate) use request_fields::request_fields;
pub(crate) use router::is_served;
pub use router::router;

/// How often files that answers named by URL are looked through for old ones.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Serves until `shutdown` resolves, then lets open requests end.
pub async fn serve(
    listeners: Vec<tokio::net::TcpListener>,
    handle: Handle,
    leaving: Leaving,
    jobs: Jobs,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let app = App::new(handle.clone(), jobs.clone());
    let sweeper = tokio::spawn(sweep(app.clone()));
    let sampler = tokio::spawn(page::remember_devices(app.clone()));
    let log = Arc::clone(&app.access_log);
    let router = router::over(app.clone());
    let dispatch = Arc::new(JobDispatch { app, router: router.clone() });
    let running = jobs.clone();
    let runner = tokio::spawn(async move { running.run(dispatch).await });
    let shutdown = async move {
        shutdown.await;
        jobs.stop();
    };
    listen::serve(listeners, router, (&handle, log), &leaving, shutdown).await;
    // Jobs that run end as requests do: by themselves while the runtime drains, or with it.
    if let Err(error) = runner.await {
        tracing::error!(%error, "jobs ended by themselves");
    }
    sweeper.abort();
    sampler.abort();
}

/// Removes files that are too old, at once and for ever.
async fn sweep(App { handle, artifacts, .. }: App) {
    let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (artifacts, limits) = (Arc::clone(&artifacts), artifacts::limits(&handle.config().limits));
        // A sweep that panicked is logged by its thread; the next one is due anyway.
        let _ended = tokio::task::spawn_blocking(move || artifacts.sweep(limits)).await;
    }
}
