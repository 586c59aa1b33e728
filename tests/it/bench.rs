//! Workers without a host around them: plugins in a folder, instances of them, and the exits they come to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aihost::config::Sharing;
use aihost::domain::{Failure, InstanceId, ModelId, RequestId};
use aihost::plugin::Registry;
use aihost::runtime::{Lease, LeaseEnd, LeaseTerms, OutputLimits, OutputMode, carry};
use aihost::worker::{Exit, ExitReason, InstanceHandle, ModelLog, Output, StartSpec, WorkerLimits, WorkerPlacement};
use aihost_tests::{PATIENCE, binary, fixture};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Time limits that make a stall a matter of moments.
pub(super) const SHORT: WorkerLimits =
    WorkerLimits { cancel_grace: Duration::from_millis(500), ..WorkerLimits::DEFAULT };
pub(super) const LOAD_DEADLINE: Duration = Duration::from_secs(20);

/// What a bench's workers live under.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) worker: WorkerLimits,
    pub(super) silence: Duration,
    pub(super) start: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { worker: SHORT, silence: Duration::from_secs(3), start: Duration::from_secs(20) }
    }
}

/// A plugin folder, its registry, the limits its workers live under, and the channel their exits come on.
pub(super) struct Bench {
    dir: TempDir,
    registry: Registry,
    limits: Limits,
    /// What its workers logged.
    pub(super) log: Arc<ModelLog>,
    exits: mpsc::Receiver<Exit>,
    sender: mpsc::Sender<Exit>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::under(Limits::default())
    }

    pub(super) fn under(limits: Limits) -> Self {
        Self::with(&["echo", "faulty"], limits)
    }

    pub(super) fn with(libraries: &[&str], limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        for name in libraries {
            std::os::unix::fs::symlink(fixture(name), plugins.join(format!("{name}.so"))).unwrap();
        }
        let registry = Registry::scan(&[plugins], &dir.path().join("state"), Sharing::Refused).unwrap();
        assert!(registry.rejected.is_empty(), "{:?}", registry.rejected);
        let (sender, exits) = mpsc::channel(8);
        Self { dir, registry, limits, log: Arc::default(), exits, sender }
    }

    pub(super) fn spec(&self, plugin: &str, options: Value) -> StartSpec {
        StartSpec {
            own_folder: None,
            instance: InstanceId(7),
            model: ModelId::new("m").unwrap(),
            plugin: self.registry.find(plugin, None).unwrap(),
            options,
            load: serde_json::from_value(json!({"files": {}, "device": "cpu"})).unwrap(),
            start_timeout: self.limits.start,
            silence: self.limits.silence,
            busy: None,
            copied_from: Vec::new(),
            log: Arc::clone(&self.log),
        }
    }

    pub(super) async fn start(&self, plugin: &str, options: Value) -> Result<Arc<dyn InstanceHandle>, Failure> {
        self.start_as(&WorkerPlacement { executable: binary() }, self.spec(plugin, options)).await
    }

    pub(super) async fn start_as(
        &self,
        placement: &WorkerPlacement,
        spec: StartSpec,
    ) -> Result<Arc<dyn InstanceHandle>, Failure> {
        placement.start_within(self.limits.worker, spec, self.sender.clone()).await.map(|(instance, _)| instance)
    }

    pub(super) async fn loaded(&self, plugin: &str, options: Value) -> Arc<dyn InstanceHandle> {
        let instance = self.start(plugin, options).await.unwrap();
        instance.load(1 << 30, LOAD_DEADLINE).await.unwrap();
        instance
    }

    pub(super) async fn exit(&mut self) -> ExitReason {
        let exit = timeout(PATIENCE, self.exits.recv()).await.expect("no exit was told").unwrap();
        assert_eq!(exit.instance, InstanceId(7));
        exit.reason
    }

    /// No second exit: the channel is silent and this bench holds its only sender.
    pub(super) async fn no_more_exits(mut self) {
        drop(self.sender);
        assert!(timeout(PATIENCE, self.exits.recv()).await.unwrap().is_none(), "a second exit was told");
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

pub(super) fn task(text: &str, max_tokens: Option<u32>) -> String {
    let input = json!({"type": "chat", "messages": [{"role": "user", "content": text}]});
    json!({"input": input, "max_tokens": max_tokens, "sampling": {"temperature": 0}}).to_string()
}

/// What every request is held to that its test does not limit.
pub(super) const UNHURRIED: OutputLimits = OutputLimits { first: PATIENCE, stall: PATIENCE };

pub(super) fn ask(
    instance: &Arc<dyn InstanceHandle>,
    request: u64,
    text: &str,
    max_tokens: Option<u32>,
) -> mpsc::Receiver<Output> {
    ask_for(instance, request, task(text, max_tokens), UNHURRIED)
}

/// A request as the runtime carries it to a client, with its clocks.
pub(super) fn ask_for(
    instance: &Arc<dyn InstanceHandle>,
    request: u64,
    task: String,
    output: OutputLimits,
) -> mpsc::Receiver<Output> {
    let day = Duration::from_secs(86_400);
    let terms = LeaseTerms { request_timeout: day, stall_timeout: day, output, delivery: OutputMode::Streamed };
    let lease = Lease::new(RequestId(request), Arc::clone(instance), Bytes::from(task).into(), terms);
    let (client, outputs) = mpsc::channel(1);
    tokio::spawn(async move {
        if let LeaseEnd::Lost(client, failure) = carry(lease, client).await {
            let _left = client.send(Output::Done(Err(failure))).await;
        }
    });
    outputs
}

/// The text of an answer and its end.
pub(super) async fn collect(mut output: mpsc::Receiver<Output>) -> (String, Result<Value, Failure>) {
    let mut text = String::new();
    loop {
        match timeout(PATIENCE, output.recv()).await.expect("the answer does not end").expect("no end was told") {
            Output::Event(event) => {
                let event: Value = serde_json::from_slice(&event).unwrap();
                // Before the text is told how long the prompt is.
                if event["type"] != "prompt" {
                    text.push_str(event["text"].as_str().unwrap());
                }
            }
            Output::Bytes(_) | Output::Progress { .. } | Output::Http(_) => {}
            Output::Done(end) => return (text, end.map(|summary| serde_json::from_slice(&summary).unwrap())),
        }
    }
}

/// Waits for the next token.
pub(super) async fn first_event(output: &mut mpsc::Receiver<Output>) {
    loop {
        match timeout(PATIENCE, output.recv()).await.expect("no first token").unwrap() {
            // Before the text is told how long the prompt is.
            Output::Event(event) if event.starts_with(b"{\"type\":\"prompt\"") => {}
            Output::Event(_) => return,
            other => panic!("{other:?}"),
        }
    }
}
