//! One granted request's outputs on their way to its client: when the first came, how many tokens, how it ended.
//! Per output it asks one question (is it the first?); all else is done once.

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use tokio::time::Instant;

use super::access::AccessEntry;
use crate::domain::{Failure, FailureKind, ModelId};
use crate::telemetry::{self, Direction, Metric, Metrics};
use crate::worker::{HttpOutput, Output, Outputs};

/// Outputs that are looked at as they pass.
#[derive(Debug)]
pub(super) struct Metered {
    outputs: Outputs,
    /// `None` if nobody keeps count.
    meter: Option<Meter>,
}

/// What is known of the request.
#[derive(Debug)]
pub(super) struct Meter {
    metrics: Arc<Metrics>,
    model: ModelId,
    arrived: Instant,
    access: AccessEntry,
    begun: bool,
    /// What its worker said of its failure.
    failure: Option<Failure>,
    /// How it ended, as far as its client is concerned.
    outcome: Option<&'static str>,
}

/// The part of a summary that every kind which counts tokens has.
#[derive(Deserialize)]
struct Summary {
    usage: Option<Usage>,
    /// Of a kind that reads tokens and writes none.
    prompt_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl Metered {
    pub(super) fn new(outputs: Outputs, meter: Option<Meter>) -> Self {
        Self { outputs, meter }
    }

    /// The next output.
    pub(super) async fn recv(&mut self) -> Option<Output> {
        let output = self.outputs.recv().await;
        if let (Some(output), Some(meter)) = (&output, &mut self.meter) {
            meter.see(output);
        }
        output
    }

    /// The client's part ends here, whatever the worker still says.
    pub(super) fn cut(&mut self, kind: FailureKind) {
        if let Some(meter) = &mut self.meter {
            meter.outcome.get_or_insert(kind.name());
        }
    }

    /// The lease is over.
    pub(super) fn end(&mut self) {
        if let Some(meter) = self.meter.take() {
            meter.end();
        }
    }
}

/// Whether an engine says that it failed: not that it lacks something, or is busy.
fn is_fault(status: StatusCode) -> bool {
    status.is_server_error() && !matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::SERVICE_UNAVAILABLE)
}

impl Meter {
    pub(super) fn new(metrics: Arc<Metrics>, model: ModelId, arrived: Instant, access: AccessEntry) -> Self {
        Self { metrics, model, arrived, access, begun: false, failure: None, outcome: None }
    }

    /// It ends before its worker is asked to serve it.
    pub(super) fn refused(mut self, failure: &Failure) {
        self.failed(failure);
        self.end();
    }

    fn see(&mut self, output: &Output) {
        match output {
            // An engine whose device is lost says so to whoever asks it, and goes on.
            Output::Http(HttpOutput::Head(head)) if is_fault(head.status) => self.access.met_fault(),
            Output::Progress { .. } | Output::Http(HttpOutput::Head(_) | HttpOutput::Trailers(_)) => {}
            Output::Event(_) | Output::Bytes(_) | Output::Http(HttpOutput::Switched(_)) => {
                if !self.begun {
                    self.begun = true;
                    let elapsed = self.arrived.elapsed();
                    self.metrics.time(Metric::FirstOutput, &self.model, "", elapsed);
                    self.access.first_output(elapsed);
                }
            }
            Output::Done(Ok(summary)) | Output::Http(HttpOutput::Answered(summary)) => {
                self.outcome.get_or_insert(telemetry::OK);
                self.tokens(summary);
            }
            Output::Done(Err(failure)) | Output::Http(HttpOutput::Unsent(failure)) => self.failed(failure),
        }
    }

    fn failed(&mut self, failure: &Failure) {
        self.outcome.get_or_insert(failure.kind.name());
        self.access.broke(failure);
        self.failure = Some(failure.clone());
    }

    fn tokens(&self, summary: &[u8]) {
        let Ok(Summary { usage, prompt_tokens }) = serde_json::from_slice(summary) else { return };
        let read_alone = |prompt_tokens| Usage { prompt_tokens, completion_tokens: 0 };
        if let Some(usage) = usage.or(prompt_tokens.map(read_alone)) {
            self.access.tokens(usage.prompt_tokens, usage.completion_tokens);
            self.metrics.add(Metric::Tokens, &self.model, Direction::In.name(), usage.prompt_tokens);
            self.metrics.add(Metric::Tokens, &self.model, Direction::Out.name(), usage.completion_tokens);
        }
    }

    fn end(self) {
        let died = FailureKind::WorkerDied.name();
        let outcome = self.outcome.unwrap_or(died);
        if outcome != telemetry::OK {
            self.access.ended(outcome, self.failure.as_ref());
        }
        if outcome == died {
            self.metrics.count(Metric::Lost, &self.model, "");
        }
        self.metrics.count(Metric::Requests, &self.model, outcome);
        self.metrics.time(Metric::RequestDuration, &self.model, "", self.arrived.elapsed());
    }
}
