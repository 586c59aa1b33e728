//! One granted request's outputs on their way to its client: when the first came, how many tokens, how it ended.
//! Per output it asks one question (is it the first?); all else is done once.

use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::domain::{FailureKind, ModelId};
use crate::telemetry::{Metric, Metrics};
use crate::worker::Output;

/// Outputs that are looked at as they pass.
#[derive(Debug)]
pub(super) struct Metered {
    outputs: mpsc::Receiver<Output>,
    /// `None` if nobody keeps count.
    meter: Option<Meter>,
}

/// What is known of the request.
#[derive(Debug)]
pub(super) struct Meter {
    metrics: Arc<Metrics>,
    model: ModelId,
    arrived: Instant,
    begun: bool,
    /// How it ended, as far as its client is concerned.
    outcome: Option<&'static str>,
}

/// The part of a summary that every kind which counts tokens has.
#[derive(Deserialize)]
struct Summary {
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl Metered {
    pub(super) fn new(outputs: mpsc::Receiver<Output>, meter: Option<Meter>) -> Self {
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
            meter.outcome.get_or_insert(outcome(kind));
        }
    }

    /// The lease is over.
    pub(super) fn end(&mut self) {
        if let Some(meter) = self.meter.take() {
            meter.end();
        }
    }
}

impl Meter {
    pub(super) fn new(metrics: Arc<Metrics>, model: ModelId, arrived: Instant) -> Self {
        Self { metrics, model, arrived, begun: false, outcome: None }
    }

    /// It ends before its worker is asked.
    pub(super) fn refused(mut self, kind: FailureKind) {
        self.outcome = Some(outcome(kind));
        self.end();
    }

    fn see(&mut self, output: &Output) {
        match output {
            Output::Progress { .. } => {}
            Output::Event(_) | Output::Bytes(_) => {
                if !self.begun {
                    self.begun = true;
                    self.metrics.time(Metric::FirstOutput, &self.model, "", self.arrived.elapsed());
                }
            }
            Output::Done(Ok(summary)) => {
                self.outcome.get_or_insert("ok");
                self.tokens(summary);
            }
            Output::Done(Err(failure)) => drop(self.outcome.get_or_insert(outcome(failure.kind))),
        }
    }

    fn tokens(&self, summary: &[u8]) {
        if let Ok(Summary { usage: Some(usage) }) = serde_json::from_slice(summary) {
            self.metrics.add(Metric::Tokens, &self.model, "in", usage.prompt_tokens);
            self.metrics.add(Metric::Tokens, &self.model, "out", usage.completion_tokens);
        }
    }

    fn end(self) {
        let died = outcome(FailureKind::WorkerDied);
        let outcome = self.outcome.unwrap_or(died);
        if outcome == died {
            self.metrics.count(Metric::Lost, &self.model, "");
        }
        self.metrics.count(Metric::Requests, &self.model, outcome);
        self.metrics.time(Metric::RequestDuration, &self.model, "", self.arrived.elapsed());
    }
}

/// A failure as a value of the label `outcome`.
pub(super) fn outcome(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::InvalidRequest => "invalid_request",
        FailureKind::ContextLength => "context_length",
        FailureKind::UnknownModel => "unknown_model",
        FailureKind::WrongKind => "wrong_kind",
        FailureKind::QueueFull => "queue_full",
        FailureKind::Busy => "busy",
        FailureKind::StillLoading => "still_loading",
        FailureKind::OutOfMemory => "out_of_memory",
        FailureKind::NotUsable => "not_usable",
        FailureKind::NotPulled => "not_pulled",
        FailureKind::WorkerDied => "worker_died",
        FailureKind::Suspected => "suspected",
        FailureKind::TimedOut => "timed_out",
        FailureKind::ShuttingDown => "shutting_down",
        FailureKind::Cancelled => "cancelled",
        FailureKind::Internal => "internal",
    }
}
