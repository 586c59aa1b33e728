//! The choices of one request, from submission to their ends: many answers of the runtime as one sequence of steps.

use std::task::{Context, Poll};

use aihost_plugin_api::task::{FinishReason, TextEvent, TextFinish, Usage};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::wire::{Choice, TextJob};
use crate::domain::{Failure, FailureKind, ModelId};
use crate::runtime::{Answer, Delivery, Handle, Submission, Submitted};
use crate::worker::Output;

/// Most answers of one request in the runtime at once, so that one client with `n: 128` does not fill a model's queue.
pub(super) const MAX_AT_ONCE: usize = 8;

/// One request's choices under way. Dropping it cancels those that have not ended.
pub(super) struct Generation {
    handle: Handle,
    model: ModelId,
    job: TextJob,
    submitted: usize,
    active: Vec<(usize, Stage)>,
    /// Whose turn it is to be looked at first.
    turn: usize,
    usage: Usage,
}

/// Where a choice stands.
enum Stage {
    Asking(BoxFuture<'static, Submitted>),
    Answering(Answer),
}

/// What happened to a choice.
pub(super) enum Step {
    /// More of it.
    Event(usize, TextEvent),
    /// It ended.
    Finish(usize, TextFinish),
}

impl Generation {
    /// Nothing is submitted before the first poll.
    pub(super) fn new(handle: Handle, model: ModelId, job: TextJob) -> Self {
        let usage = Usage::default();
        Self { handle, model, job, submitted: 0, active: Vec::new(), turn: 0, usage }
    }

    /// How many choices there will be.
    pub(super) fn choices(&self) -> usize {
        self.job.requests.len() * self.job.n
    }

    /// Tokens of the choices that have ended; a prompt counts once, however many choices it has.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// The next step of any choice; `None` once all have ended.
    pub(super) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Step, Failure>>> {
        self.submit_more();
        if self.active.is_empty() {
            return Poll::Ready(None);
        }
        for offset in 0..self.active.len() {
            let at = (self.turn + offset) % self.active.len();
            if let Poll::Ready(step) = self.poll_choice(at, cx) {
                self.turn = at + 1;
                return Poll::Ready(Some(step));
            }
        }
        Poll::Pending
    }

    /// Runs to the end of every choice.
    pub(super) async fn collect(&mut self) -> Result<Vec<Choice>, Failure> {
        let mut choices = vec![Choice::default(); self.choices()];
        while let Some(step) = std::future::poll_fn(|cx| self.poll_step(cx)).await {
            match step? {
                Step::Event(index, event) => choices[index].add(event),
                Step::Finish(index, finish) => choices[index].finish = Some(finish),
            }
        }
        Ok(choices)
    }

    fn submit_more(&mut self) {
        while self.active.len() < MAX_AT_ONCE && self.submitted < self.choices() {
            let index = self.submitted;
            let submission = self.submission(index);
            let handle = self.handle.clone();
            let asking = async move { handle.submit(submission).await }.boxed();
            self.active.push((index, Stage::Asking(asking)));
            self.submitted += 1;
        }
    }

    /// Choice `j` of a prompt differs from choice 0 in its seed alone.
    fn submission(&self, index: usize) -> Submission {
        let (prompt, choice) = (index / self.job.n, index % self.job.n);
        let mut request = self.job.requests[prompt].clone();
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(choice as u64));
        let task = Bytes::from(super::wire::json(&request));
        let delivery = match self.job.delivery {
            super::wire::Delivery::Whole => Delivery::Gathered,
            super::wire::Delivery::Stream | super::wire::Delivery::StreamWithUsage => Delivery::Streamed,
        };
        let (class, keep_alive) = (self.job.class, self.job.keep_alive);
        Submission { model: self.model.clone(), task, class, keep_alive, delivery }
    }

    fn poll_choice(&mut self, at: usize, cx: &mut Context<'_>) -> Poll<Result<Step, Failure>> {
        let (index, stage) = &mut self.active[at];
        let index = *index;
        if let Stage::Asking(asking) = stage {
            match std::task::ready!(asking.poll_unpin(cx)) {
                Ok(answer) => *stage = Stage::Answering(answer),
                Err(failure) => return Poll::Ready(Err(failure)),
            }
        }
        let Stage::Answering(answer) = stage else { return Poll::Pending };
        loop {
            let step = match std::task::ready!(answer.output.poll_recv(cx)) {
                Some(Output::Event(json)) => Step::Event(index, read(&json)?),
                Some(Output::Done(Ok(json))) => self.finish(at, read(&json)?)?,
                Some(Output::Done(Err(failure))) => return Poll::Ready(Err(failure)),
                // A text has neither.
                Some(Output::Bytes(_) | Output::Progress { .. }) => continue,
                None => return Poll::Ready(Err(broken_off())),
            };
            return Poll::Ready(Ok(step));
        }
    }

    fn finish(&mut self, at: usize, finish: TextFinish) -> Result<Step, Failure> {
        if finish.reason == FinishReason::Cancelled {
            return Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"));
        }
        let (index, _) = self.active.remove(at);
        let usage = finish.usage;
        self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(usage.completion_tokens);
        if index % self.job.n == 0 {
            self.usage.prompt_tokens = self.usage.prompt_tokens.saturating_add(usage.prompt_tokens);
            self.usage.cached_tokens = self.usage.cached_tokens.saturating_add(usage.cached_tokens);
        }
        Ok(Step::Finish(index, finish))
    }
}

/// An answer whose channel closed before its end.
pub(super) fn broken_off() -> Failure {
    Failure::new(FailureKind::WorkerDied, "the answer ended without a result")
}

fn read<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(json)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("the plugin sent what is no text event: {error}")))
}
