//! The choices of one request, from submission to their ends: many answers of the runtime as one sequence of updates.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aihost_plugin_api::task::{FinishReason, TextEvent, TextFinish, Usage};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::wire::{Choice, TextDelivery, TextJob};
use crate::domain::{ByteSize, Failure, FailureKind, Kind, ModelId};
use crate::runtime::{AccessEntry, Answer, Budget, BudgetShare, Handle, OutputMode, Submission, Submitted};
use crate::worker::Output;

/// Most answers of one request in the runtime at once.
pub(super) const MAX_AT_ONCE: usize = 8;
/// Bytes of tasks that one request has in the runtime at once, unless a single one is larger.
const TASKS_BYTES: usize = 1 << 20;
/// How long a request that has begun waits before it asks for a place in a full queue again.
const QUEUE_RETRY: Duration = Duration::from_millis(100);
/// Bytes of events that an answer in one piece may come to; it is held until it is whole.
const WHOLE_ANSWER_BYTES: usize = 64 << 20;
/// The same of all answers that are put together at once.
const ALL_WHOLE_ANSWERS_BYTES: usize = 512 << 20;

/// What all answers that are put together at once have.
pub(super) static WHOLE_ANSWERS: Budget = Budget::new(ALL_WHOLE_ANSWERS_BYTES);

/// An answer that is put together has come to so many bytes.
fn grew_to(bytes: usize, share: &mut BudgetShare) -> Result<(), Failure> {
    let is_within_all = share.take(bytes.saturating_sub(share.bytes()));
    if bytes > WHOLE_ANSWER_BYTES {
        let most = ByteSize(WHOLE_ANSWER_BYTES as u64);
        let message = format!(
            "the answer is larger than {most}, the most that is sent in one piece; ask for `stream`, or for less"
        );
        return Err(Failure::new(FailureKind::InvalidRequest, message));
    }
    if !is_within_all {
        let message = "answers in one piece take all the memory there is for them; ask for `stream`, or send it again";
        return Err(Failure::new(FailureKind::Busy, message));
    }
    Ok(())
}

/// The place of one request in its model's queue: at most one of its parts waits there at a time, so it neither fills the
/// queue nor goes before a neighbour who came between.
#[derive(Debug, Default)]
pub(super) struct QueuePlace {
    /// Whether a part was granted. From then on a full queue is waited for: what was begun is not thrown away.
    begun: Mutex<bool>,
}

impl QueuePlace {
    /// Submits a part once no other waits.
    pub(super) async fn submit(&self, handle: &Handle, submission: Submission) -> Submitted {
        let mut begun = self.begun.lock().await;
        let patience = Instant::now() + handle.config().limits.hold;
        loop {
            let submitted = handle.submit(submission.clone()).await;
            match &submitted {
                Err(failure) if *begun && failure.kind == FailureKind::QueueFull && Instant::now() < patience => {
                    sleep(QUEUE_RETRY).await;
                }
                _ => {
                    *begun |= submitted.is_ok();
                    return submitted;
                }
            }
        }
    }
}

/// One request's choices under way. Dropping it cancels those that have not ended.
pub(super) struct Generation {
    handle: Handle,
    model: ModelId,
    access: AccessEntry,
    job: TextJob,
    place: Arc<QueuePlace>,
    submitted: usize,
    active: Vec<ActiveChoice>,
    /// The task of a prompt whose choices have the same one, and which prompt that is.
    shared: Option<(usize, Bytes)>,
    /// Whose turn it is to be looked at first.
    turn: usize,
    usage: Usage,
    event_bytes: usize,
}

/// A choice that has not ended.
struct ActiveChoice {
    index: usize,
    /// Bytes of its task that no other part has.
    task_bytes: usize,
    stage: ChoiceStage,
}

/// Where a choice stands.
enum ChoiceStage {
    Asking(BoxFuture<'static, Submitted>),
    Answering(Answer),
}

/// The choices of a request as they come, whoever makes them. Dropping it cancels those that have not ended.
pub(super) trait TextUpdates: Send {
    /// How many choices there will be.
    fn choices(&self) -> usize;

    /// Tokens of the choices that have ended; a prompt counts once, however many choices it has.
    fn usage(&self) -> Usage;

    /// Bytes that all of them have come to.
    fn event_bytes(&self) -> usize;

    /// The next update of any choice; `None` once all have ended.
    fn poll_update(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<TextUpdate, Failure>>>;
}

/// Waits for the end of every choice. The bytes that they came to count for as long as the share is there.
pub(super) async fn collect(updates: &mut dyn TextUpdates) -> Result<(Vec<Choice>, BudgetShare), Failure> {
    let mut choices = vec![Choice::default(); updates.choices()];
    let mut share = WHOLE_ANSWERS.share();
    while let Some(update) = std::future::poll_fn(|cx| updates.poll_update(cx)).await {
        match update? {
            TextUpdate::Event(index, event) => choices[index].add(event),
            TextUpdate::Finish(index, finish) => choices[index].finish = Some(finish),
        }
        grew_to(updates.event_bytes(), &mut share)?;
    }
    Ok((choices, share))
}

/// What happened to a choice.
#[derive(Debug)]
pub(super) enum TextUpdate {
    /// More of it.
    Event(usize, TextEvent),
    /// It ended, and why.
    Finish(usize, TextFinish),
}

impl TextUpdate {
    /// The same of a choice that has so many before it.
    pub(super) fn behind(self, others: usize) -> Self {
        match self {
            Self::Event(index, event) => Self::Event(others + index, event),
            Self::Finish(index, finish) => Self::Finish(others + index, finish),
        }
    }
}

impl Generation {
    /// Nothing is submitted before the first poll.
    pub(super) fn new(handle: Handle, model: ModelId, access: AccessEntry, job: TextJob) -> Self {
        Self {
            handle,
            model,
            access,
            job,
            place: Arc::default(),
            submitted: 0,
            active: Vec::new(),
            shared: None,
            turn: 0,
            usage: Usage::default(),
            event_bytes: 0,
        }
    }

    fn choices(&self) -> usize {
        self.job.inputs.len() * self.job.terms.n
    }

    fn may_submit(&self) -> bool {
        let waits = self.active.iter().any(|part| matches!(part.stage, ChoiceStage::Asking(_)));
        let bytes: usize = self.active.iter().map(|part| part.task_bytes).sum();
        // All tasks of a request are about as long.
        let fits = bytes + self.active.last().map_or(0, |part| part.task_bytes) <= TASKS_BYTES;
        let has_room = self.active.is_empty() || (fits && self.active.len() < MAX_AT_ONCE);
        self.submitted < self.choices() && !waits && has_room
    }

    fn submit_more(&mut self) {
        if self.may_submit() {
            let index = self.submitted;
            let (task, task_bytes) = self.task(index);
            let submission = self.submission(task);
            let (handle, place) = (self.handle.clone(), Arc::clone(&self.place));
            let asking = async move { place.submit(&handle, submission).await }.boxed();
            self.active.push(ActiveChoice { index, task_bytes, stage: ChoiceStage::Asking(asking) });
            self.submitted += 1;
        }
    }

    /// A choice's task, and how many bytes it adds. Choices of a prompt without a seed have the same.
    fn task(&mut self, index: usize) -> (Bytes, usize) {
        let prompt = index / self.job.terms.n;
        match &self.shared {
            Some((of, task)) if *of == prompt => (task.clone(), 0),
            _ => {
                let task = Bytes::from(self.job.task(index));
                self.shared = self.job.common.sampling.seed.is_none().then(|| (prompt, task.clone()));
                let bytes = task.len();
                (task, bytes)
            }
        }
    }

    fn submission(&self, task: Bytes) -> Submission {
        let delivery = match self.job.terms.delivery {
            TextDelivery::Whole => OutputMode::Gathered,
            TextDelivery::Stream | TextDelivery::StreamWithUsage => OutputMode::Streamed,
        };
        let (class, keep_alive) = (self.job.terms.class, self.job.terms.keep_alive);
        let (model, access) = (self.model.clone(), self.access.clone());
        Submission { model, kind: Kind::Text, ask: task.into(), class, keep_alive, delivery, access }
    }

    fn poll_choice(&mut self, at: usize, cx: &mut Context<'_>) -> Poll<Result<TextUpdate, Failure>> {
        let ActiveChoice { index, stage, .. } = &mut self.active[at];
        let index = *index;
        if let ChoiceStage::Asking(asking) = stage {
            match std::task::ready!(asking.poll_unpin(cx)) {
                Ok(answer) => *stage = ChoiceStage::Answering(answer),
                Err(failure) => return Poll::Ready(Err(failure)),
            }
        }
        let ChoiceStage::Answering(answer) = stage else { return Poll::Pending };
        loop {
            let update = match std::task::ready!(answer.output.poll_recv(cx)) {
                Some(Output::Event(json)) => {
                    self.event_bytes += json.len();
                    TextUpdate::Event(index, read(&json)?)
                }
                Some(Output::Done(Ok(json))) => self.finish(at, read(&json)?)?,
                Some(Output::Done(Err(failure))) => return Poll::Ready(Err(failure)),
                // A text has none of these.
                Some(Output::Bytes(_) | Output::Progress { .. } | Output::Http(_)) => continue,
                None => return Poll::Ready(Err(broken_off())),
            };
            return Poll::Ready(Ok(update));
        }
    }

    fn finish(&mut self, at: usize, finish: TextFinish) -> Result<TextUpdate, Failure> {
        if finish.reason == FinishReason::Cancelled {
            return Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"));
        }
        let index = self.active.remove(at).index;
        let usage = finish.usage;
        self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(usage.completion_tokens);
        self.usage.reasoning_tokens = self.usage.reasoning_tokens.saturating_add(usage.reasoning_tokens);
        if index.is_multiple_of(self.job.terms.n) {
            self.usage.prompt_tokens = self.usage.prompt_tokens.saturating_add(usage.prompt_tokens);
            self.usage.cached_tokens = self.usage.cached_tokens.saturating_add(usage.cached_tokens);
        }
        Ok(TextUpdate::Finish(index, finish))
    }
}

impl TextUpdates for Generation {
    fn choices(&self) -> usize {
        self.choices()
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn event_bytes(&self) -> usize {
        self.event_bytes
    }

    fn poll_update(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<TextUpdate, Failure>>> {
        loop {
            self.submit_more();
            if self.active.is_empty() {
                return Poll::Ready(None);
            }
            for offset in 0..self.active.len() {
                let at = (self.turn + offset) % self.active.len();
                if let Poll::Ready(update) = self.poll_choice(at, cx) {
                    self.turn = at + 1;
                    return Poll::Ready(Some(update));
                }
            }
            // One that was granted just now leaves its place in the queue to the next.
            if !self.may_submit() {
                return Poll::Pending;
            }
        }
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
