//! Bodies of requests, by the endpoint that reads them, over a runtime that answers at once. No body is the host's failure, each
//! refusal is an envelope, and what reaches a plugin can be read there.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use aihost::config::{self, Config, Env, Selection};
use aihost::domain::{Failure, FailureKind, RequestId};
use aihost::runtime::{Answer, Command, Handle, Submission, Submitted};
use aihost::worker::Output;
use aihost_plugin_api::{AudioRequest, EmbeddingRequest, ImageRequest, TextRequest};
use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tower::ServiceExt;

/// Every endpoint that reads a body, as `aihost docs requests` lists them. An input's first byte says which one it is for.
pub(crate) const ENDPOINTS: [&str; 20] = [
    "/v1/chat/completions",
    "/chat/completions",
    "/v1/completions",
    "/completions",
    "/v1/audio/generations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/variations",
    "/models/load",
    "/models/unload",
    "/models/park",
    "/models/pin",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/moderations",
    "/embeddings",
    "/rerank",
];
/// Commands that may wait for the loop on paper.
const COMMANDS: usize = 64;

/// A model of each kind. What is asked of several goes to `a`.
const MODELS: &str = "
models:
  a: {type: text, plugin: aihost/echo, aliases: [gpt-4o-mini], endpoint: /v1/chat/completions}
  org/b: {type: text, plugin: aihost/echo, endpoint: /v1/completions}
  flux: {type: image, plugin: aihost/none}
  music: {type: audio, plugin: aihost/none, endpoint: /v1/audio/generations}
  vectors: {type: embedding, plugin: aihost/none}
";

static CONFIG: LazyLock<Arc<Config>> = LazyLock::new(|| {
    let (file, env) = (Path::new("/nowhere/models.yaml"), Env::with("/nowhere", [("HOME", "/nowhere")]));
    Arc::new(config::parse(MODELS, file, &Selection::default(), &env).expect("a sound models.yaml"))
});

/// Sends the body, and looks at the answer. `a` is the first endpoint.
pub(super) fn run(input: &[u8]) {
    let Some((selector, body)) = input.split_first() else { return };
    let path = ENDPOINTS[usize::from(selector.wrapping_sub(b'a')) % ENDPOINTS.len()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (status, answer) = runtime.block_on(send(path, Bytes::copy_from_slice(body)));
    let shown = || String::from_utf8_lossy(&answer);
    assert!(status < 500, "{path}: {status} {}", shown());
    if status >= 400 {
        let envelope: Value = serde_json::from_slice(&answer).unwrap_or_else(|e| panic!("{path}: {e}: {}", shown()));
        let error = envelope["error"].as_object().unwrap_or_else(|| panic!("{path}: no envelope: {}", shown()));
        assert!(
            error["message"].as_str().is_some_and(|text| !text.is_empty()) && error.contains_key("code"),
            "{}",
            shown()
        );
    }
}

async fn send(path: &str, body: Bytes) -> (u16, Bytes) {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (_in_force, watched) = watch::channel(Arc::clone(&CONFIG));
    let answering = tokio::spawn(answer(inbox));
    let request = Request::post(path).header("content-type", "application/json").body(Body::from(body));
    let response = aihost::http::router(Handle::new(commands, watched, watch::channel(Arc::default()).1))
        .oneshot(request.expect("a request"))
        .await;
    let response = response.expect("an answer");
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a whole answer");
    answering.abort();
    (status, bytes)
}

/// The loop on paper.
async fn answer(mut inbox: mpsc::Receiver<Command>) {
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Submit(submission, reply) => drop(reply.send(serve(&submission))),
            Command::Load(_, _, reply) | Command::Unload(_, _, _, reply) | Command::Park(_, _, reply) => {
                drop(reply.send(Ok(())))
            }
            // Nothing else is asked of it for a body.
            _ => {}
        }
    }
}

/// Reads the task as its plugin would.
fn serve(submission: &Submission) -> Submitted {
    let task = submission.ask.as_task().expect("no engine of these answers HTTP itself");
    let task = &task.header;
    match submission.model.as_str() {
        "flux" => reads::<ImageRequest>(task),
        "music" => reads::<AudioRequest>(task),
        "vectors" => reads::<EmbeddingRequest>(task),
        _ => {
            reads::<TextRequest>(task);
            return Ok(hello());
        }
    }
    Err(Failure::new(FailureKind::InvalidRequest, "not this"))
}

fn reads<T: DeserializeOwned>(task: &[u8]) {
    if let Err(error) = serde_json::from_slice::<T>(task) {
        panic!("a plugin could not read {}: {error}", String::from_utf8_lossy(task));
    }
}

fn hello() -> Answer {
    let event = |json: Value| Output::Event(Bytes::from(json.to_string()));
    let finish = json!({"reason": "stop", "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1}});
    let outputs = [
        event(json!({"type": "text", "text": "Hel"})),
        event(json!({"type": "text", "text": "lo"})),
        Output::Done(Ok(Bytes::from(finish.to_string()))),
    ];
    let (sender, output) = mpsc::channel(outputs.len());
    outputs.into_iter().for_each(|output| sender.try_send(output).expect("room for all"));
    Answer { request: RequestId(1), output }
}
