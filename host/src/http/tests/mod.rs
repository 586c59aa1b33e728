//! The router against a fake runtime: each case is a request, a script of what the runtime answers, and the reply.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod access;
mod audio;
mod chat;
mod coding;
mod completions;
mod control;
mod cors;
mod custom;
mod documented;
mod edge;
mod embeddings;
mod engine_text;
mod errors;
mod formats;
mod fuzz;
mod images;
mod jobs;
mod keys;
mod limits;
mod listings;
mod live;
mod messages;
mod ollama;
mod page;
mod reasoning;
mod responses;
mod sockets;
mod streams;
mod tools;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aihost_plugin_api::abi::Manifest;
use aihost_plugin_api::task::TextRequest;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tower::ServiceExt;

use crate::config::{ApiKey, Config, Limits, ModelConfig, Paths, Scope};
use crate::domain::{ByteSize, Failure, FailureKind, Kind, ModelId, ModelState, RequestId};
use crate::plugin::{PluginFile, Registry};
use crate::runtime::{Answer, Command, Handle, ModelStatus, Submission};
use crate::worker::{Followed, Output};

/// What the fake runtime gives for the n-th submission.
type Script = fn(usize, &Submission) -> Result<Vec<Output>, Failure>;

/// A router over a fake runtime, and what was submitted to it.
struct Host {
    router: Router,
    submitted: Arc<Mutex<Vec<Submission>>>,
    /// The configuration in force.
    config: watch::Sender<Arc<Config>>,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

/// What is in force where nobody has put a plugin.
fn no_plugins() -> watch::Receiver<Arc<Registry>> {
    watch::channel(Arc::default()).1
}

impl Host {
    fn new(script: Script) -> Self {
        Self::with(config(), script)
    }

    fn with(config: Config, script: Script) -> Self {
        Self::over(no_plugins(), config, script)
    }

    /// One whose models have a plugin with these features.
    fn featured(features: &[&str], script: Script) -> Self {
        let manifest =
            json!({"id": "echo", "version": "1.0.0", "kinds": ["text"], "devices": ["cpu"], "features": features});
        let plugin = PluginFile {
            manifest: Manifest::parse(manifest.to_string().as_bytes()).unwrap(),
            source: "echo.so".into(),
            copy: Arc::default(),
            sha256: String::new(),
            library_folders: Vec::new(),
        };
        let registry = Registry { plugins: vec![Arc::new(plugin)], ..Registry::default() };
        Self::over(watch::channel(Arc::new(registry)).1, config(), script)
    }

    fn over(plugins: watch::Receiver<Arc<Registry>>, config: Config, script: Script) -> Self {
        let (commands, received) = mpsc::channel(64);
        let submitted = Arc::default();
        tokio::spawn(fake_loop(received, script, Arc::clone(&submitted)));
        let (config, in_force) = watch::channel(Arc::new(config));
        Self { router: super::router(Handle::new(commands, in_force, plugins)), submitted, config }
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let (parts, body) = request.into_parts();
        let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
        let sent = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let request = Request::from_parts(parts, Body::from(sent.clone()));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        documented::check(&method, &path, &sent, &parts, &bytes);
        Reply { status: parts.status, headers: parts.headers, body: plain(std::str::from_utf8(&bytes).unwrap()) }
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(post(path, body.to_string())).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// The tasks as the plugin would read them.
    fn tasks(&self) -> Vec<Value> {
        let submitted = self.submitted.lock().unwrap();
        let tasks = submitted.iter().map(|submission| {
            let header = &submission.ask.as_task().unwrap().header;
            let task: Value = serde_json::from_slice(header).unwrap();
            if submission.kind == Kind::Text {
                // Nothing is written that is not read, and nothing that need not be.
                let read: TextRequest = serde_json::from_slice(header).unwrap();
                let read = serde_json::to_value(read).unwrap();
                assert_eq!((&read["input"], &read["format"]), (&task["input"], &task["format"]));
            }
            task
        });
        tasks.collect()
    }
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Status, `code` and `param` of an error, whose envelope must be whole.
    fn error(&self) -> (u16, String, String) {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("no envelope: {}", self.body));
        for key in ["message", "type", "param", "code"] {
            assert!(error.contains_key(key), "no `{key}`: {}", self.body);
        }
        let text = |key: &str| error[key].as_str().unwrap_or("").to_owned();
        (self.status.as_u16(), text("code"), text("param"))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

async fn fake_loop(mut received: mpsc::Receiver<Command>, script: Script, submitted: Arc<Mutex<Vec<Submission>>>) {
    while let Some(command) = received.recv().await {
        match command {
            Command::Submit(submission, reply) => {
                let number = submitted.lock().unwrap().len();
                let scripted = script(number, &submission);
                submitted.lock().unwrap().push(submission);
                let answer =
                    scripted.map(|outputs| Answer { request: RequestId(number as u64), output: feed(outputs) });
                let _ = reply.send(answer);
            }
            Command::Ping(reply) => _ = reply.send(()),
            Command::Load(model, _, reply) => {
                let failure = Failure::new(FailureKind::NotPulled, "run `aihost models pull b`");
                let _ = reply.send(if model.as_str() == "b" { Err(failure) } else { Ok(()) });
            }
            Command::Unload(_, _, _, reply) | Command::Park(_, _, reply) => {
                let _ = reply.send(Ok(()));
            }
            Command::Explain(_, reply) => {
                let _ = reply.send(Err(Failure::new(FailureKind::Internal, "not scripted")));
            }
            Command::Status(model, reply) => {
                let _ = reply.send(models().into_iter().find(|status| status.id == model));
            }
            Command::Overview(reply) => {
                let _ = reply.send(page::overview());
            }
            Command::Pin(_, reply) => {
                let _ = reply.send(Arc::default());
            }
            Command::Models(reply) => {
                let _ = reply.send(models());
            }
            Command::Devices(reply) => {
                let cpu = crate::runtime::DeviceStatus {
                    device: crate::domain::Device::Cpu,
                    budget: 9,
                    reserved: 5,
                    held: Some(4),
                    others: Some(3),
                    free: Some(2),
                    total: Some(9),
                };
                let lost = crate::runtime::DeviceStatus {
                    device: crate::domain::Device::Cuda(0),
                    held: None,
                    others: None,
                    free: None,
                    total: None,
                    ..cpu.clone()
                };
                let _ = reply.send(vec![cpu, lost]);
            }
            Command::Metrics(reply) => {
                let metrics = crate::telemetry::Metrics::default();
                metrics.set_models([&ModelId::from("a")].into_iter());
                let _ = reply.send(crate::telemetry::Scrape::new(Arc::new(metrics), Default::default()));
            }
            Command::Configure(_, reply) | Command::LookAtPlugins(reply) => {
                let _ = reply.send(Arc::default());
            }
            Command::Logs(_, reply) => {
                let (news, receiver) = tokio::sync::broadcast::channel(2);
                ["dropped", "three\rlines", "four"].into_iter().for_each(|line| _ = news.send(line.to_owned()));
                let _ = reply.send(Followed { tail: vec!["one".into(), "two".into()], news: receiver });
            }
        }
    }
}

/// Status, content type and bytes.
async fn raw(host: &Host, request: Request<Body>) -> (u16, String, Bytes) {
    let response = host.router.clone().oneshot(request).await.unwrap();
    let kind = response.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
    (response.status().as_u16(), kind, axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap())
}

/// A host whose files lie in a folder of the test's own.
fn keeping(script: Script, change: impl FnOnce(&mut Config)) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config.paths.state = folder.path().to_owned();
    change(&mut config);
    (folder, Host::with(config, script))
}

/// The data of server-sent events, each of which says its type twice.
fn named_events(body: &[u8]) -> Vec<Value> {
    let events = std::str::from_utf8(body).unwrap().split_terminator("\n\n").map(|event| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert!(data["type"] == name || (name == "error" && data["error"].is_object()), "{event}");
        data
    });
    events.collect()
}

/// A channel that holds these outputs and is closed behind them.
fn feed(outputs: Vec<Output>) -> mpsc::Receiver<Output> {
    let (sender, receiver) = mpsc::channel(outputs.len().max(1));
    outputs.into_iter().for_each(|output| sender.try_send(output).unwrap());
    receiver
}

fn models() -> Vec<ModelStatus> {
    vec![status("a", ModelState::Hot), status("b", ModelState::Loading)]
}

fn status(id: &str, state: ModelState) -> ModelStatus {
    ModelStatus {
        id: id.into(),
        kind: Kind::Text,
        plugin: "echo".into(),
        state,
        device: None,
        memory: 0,
        active: 0,
        queued: 0,
        progress: (state == ModelState::Loading).then_some(250),
        step: None,
        wakes: 0,
        measured: None,
        replicas: 1,
        loads: u64::from(state == ModelState::Hot),
        left_ms: None,
        since_ms: None,
        waits_ms: None,
        pinned: false,
        quarantined: false,
        idle_ms: None,
        pid: None,
        error: None,
        client_error: None,
        note: None,
        aliases: Vec::new(),
    }
}

/// Text models `a` (alias `gpt-4o-mini`) and `org/b`, an image model and a music model.
fn config() -> Config {
    let mut a = model("a", Kind::Text);
    a.aliases = vec!["gpt-4o-mini".into()];
    a.endpoint = Some("/v1/chat/completions".into());
    let mut b = model("org/b", Kind::Text);
    b.endpoint = Some("/v1/completions".into());
    let mut music = model("music", Kind::Audio);
    music.endpoint = Some("/v1/audio/generations".into());
    configured([a, b, model("flux", Kind::Image), music])
}

fn configured(models: impl IntoIterator<Item = ModelConfig>) -> Config {
    let seconds = Duration::from_secs;
    Config {
        file: None,
        listen: "127.0.0.1:9000".parse().unwrap(),
        listen_also: Vec::new(),
        api_keys: Vec::new(),
        cors: Default::default(),
        devices: Vec::new(),
        limits: Limits {
            queue: 8,
            max_wait: seconds(60),
            quantum: seconds(1),
            hold: seconds(90),
            request_timeout: seconds(600),
            first_output_timeout: seconds(300),
            output_stall_timeout: seconds(120),
            worker_silence: seconds(10),
            stream_stall_timeout: seconds(60),
            sse_ping: None,
            keep_alive: None,
            keep_alive_min: Duration::ZERO,
            drain_timeout: seconds(30),
            body_limit: Some(ByteSize(64 << 10)),
            bodies: ByteSize(1 << 20),
            connections: None,
            jobs: 4,
            jobs_at_once: 2,
            job_ttl: seconds(3600),
            job_bytes: ByteSize(1 << 20),
            connections_per_peer: None,
            artifact_ttl: seconds(3600),
            artifact_bytes: ByteSize(1 << 20),
        },
        paths: Paths {
            cache: None,
            plugins: PathBuf::new(),
            installed_plugins: None,
            models: PathBuf::new(),
            state: PathBuf::new(),
            sharing: Default::default(),
        },
        models: models.into_iter().map(|model| (model.id.clone(), model)).collect(),
    }
}

/// Keys that open everything.
fn keys(secrets: &[&str]) -> Vec<Arc<ApiKey>> {
    secrets.iter().map(|secret| Arc::new(key(secret))).collect()
}

/// A key that opens everything, and is called `of` and what it is.
pub(super) fn key(secret: &str) -> ApiKey {
    ApiKey {
        name: format!("of {secret}"),
        secrets: vec![secret.to_owned()],
        scopes: Scope::ALL.into(),
        models: None,
        class: Default::default(),
        rate: None,
        concurrency: None,
    }
}

/// The same request with a key.
fn with_key(mut request: Request<Body>, key: &str) -> Request<Body> {
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

fn model(id: &str, kind: Kind) -> ModelConfig {
    ModelConfig {
        http: crate::config::HttpConfig::default(),
        id: id.into(),
        kind,
        plugin: "echo".into(),
        plugin_version: None,
        endpoint: None,
        default: false,
        load_timeout: Duration::from_secs(60),
        files: std::collections::BTreeMap::new(),
        options: Value::Null,
        aliases: Vec::new(),
        keep_alive: None,
        default_max_tokens: 1024,
        pin: false,
        priority: 0,
        replicas: 1,
        park: true,
        preload: false,
        memory: None,
        devices: Vec::new(),
        choice: None,
        refusal: None,
    }
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

fn event(json: &Value) -> Output {
    Output::Event(Bytes::from(json.to_string()))
}

fn text(text: &str) -> Output {
    event(&json!({"type": "text", "text": text}))
}

/// What a plugin says of its prompt before it answers.
fn prompt() -> Output {
    event(&json!({"type": "prompt", "tokens": 3, "cached": 1}))
}

/// The end, after 3 prompt tokens and 2 generated ones.
fn done(reason: &str) -> Output {
    let finish = json!({"reason": reason, "usage": {"prompt_tokens": 3, "completion_tokens": 2, "cached_tokens": 1}});
    Output::Done(Ok(Bytes::from(finish.to_string())))
}

/// What a plugin says of a request that it cannot keep, and of which field.
fn blamed(field: &str) -> Result<Vec<Output>, Failure> {
    let mut failure = Failure::new(FailureKind::InvalidRequest, format!("`{field}` is not kept"));
    let details = crate::domain::FailureDetails { field: Some(field.to_owned()), ..Default::default() };
    failure.details = Some(Box::new(details));
    Ok(vec![Output::Done(Err(failure))])
}

fn failed(kind: FailureKind) -> Output {
    Output::Done(Err(Failure::new(kind, "it broke")))
}

fn hello(_: usize, _: &Submission) -> Result<Vec<Output>, Failure> {
    Ok(vec![text("Hel"), text("lo"), done("stop")])
}

/// A thought, a text and two calls.
fn much(_: usize, _: &Submission) -> Result<Vec<Output>, Failure> {
    Ok(vec![
        event(&json!({"type": "reasoning", "text": "hm"})),
        text("Hel"),
        text("lo"),
        event(&json!({"type": "tool_call", "index": 0, "id": "call_a", "name": "f"})),
        event(&json!({"type": "tool_arguments", "index": 0, "fragment": "{\"x\":"})),
        event(&json!({"type": "tool_arguments", "index": 0, "fragment": "1}"})),
        event(&json!({"type": "tool_call", "index": 1, "id": "call_b", "name": "g"})),
        done("tool_calls"),
    ])
}

/// A chat request with these fields beside a message.
fn chat(extra: &Value) -> Value {
    let mut body = json!({"model": "a", "messages": [{"role": "user", "content": "hi"}]});
    let object = body.as_object_mut().unwrap();
    object.extend(extra.as_object().unwrap().clone());
    body
}

/// The same text with random ids and times replaced.
fn plain(text: &str) -> String {
    let mut out = text.to_owned();
    for prefix in ["chatcmpl-", "cmpl-"] {
        let pattern = format!("\"id\":\"{prefix}");
        let mut pieces = out.split(&pattern).map(str::to_owned).collect::<Vec<_>>();
        for piece in pieces.iter_mut().skip(1) {
            piece.replace_range(..32, "ID");
        }
        out = pieces.join(&pattern);
    }
    let mut pieces = out.split("\"created\":").map(str::to_owned).collect::<Vec<_>>();
    for piece in pieces.iter_mut().skip(1) {
        let digits = piece.bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            piece.replace_range(..digits, "0");
        }
    }
    pieces.join("\"created\":")
}

/// A streamed answer that breaks off behind its first text.
async fn broken_off(path: &str, body: &Value) -> String {
    let (outputs, receiver) = mpsc::channel(4);
    outputs.send(text("Hel")).await.unwrap();
    let reply = answering(receiver).oneshot(post(path, body.to_string())).await.unwrap();
    assert_eq!(reply.status(), 200);
    outputs.send(failed(FailureKind::WorkerDied)).await.unwrap();
    let body = axum::body::to_bytes(reply.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

/// A router whose only request is answered by this channel.
fn answering(output: mpsc::Receiver<Output>) -> Router {
    super::router(handle_answering(output).0)
}

/// The same as a handle, and word of the request's arrival.
fn handle_answering(output: mpsc::Receiver<Output>) -> (Handle, oneshot::Receiver<()>) {
    let (commands, mut received) = mpsc::channel(1);
    let (arrived, arrival) = oneshot::channel();
    tokio::spawn(async move {
        // Devices are looked at now and then, whoever asks.
        while let Some(command) = received.recv().await {
            if let Command::Submit(_, reply) = command {
                let _ = reply.send(Ok(Answer { request: RequestId(1), output }));
                let _ = arrived.send(());
                break;
            }
        }
    });
    (Handle::new(commands, tokio::sync::watch::channel(Arc::new(config())).1, no_plugins()), arrival)
}
