//! What a model pushes for one request for vectors or scores, asked for and put together. Nothing of how either is sent.

use aihost_plugin_api::task::{EmbeddingBlock, EmbeddingFinish, EmbeddingForm, FinishReason};

use super::caller::Caller;
use super::generate::{WHOLE_ANSWERS, broken_off};
use super::wire::EmbeddingJob;
use crate::domain::{Failure, FailureKind, Kind, ModelId};
use crate::runtime::{BudgetShare, Handle, OutputMode, Submission};
use crate::worker::Output;

/// Most values of an answer, which is held until it is whole: 2048 vectors of 8192.
const VALUES_MAX: usize = 16 << 20;
/// Bytes that a value takes until it is sent: as `f32`, and as some 12 digits.
const VALUE_BYTES: usize = 16;

/// All vectors or scores of a request.
#[derive(Debug)]
pub(super) struct Embedded {
    /// One behind the other, in the order of the request.
    values: Vec<f32>,
    /// Values of each.
    width: usize,
    /// Tokens that the model read.
    pub(super) prompt_tokens: u32,
    /// They count for as long as it is there.
    _share: BudgetShare,
}

impl Embedded {
    /// Each vector.
    pub(super) fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width)
    }

    /// The score of each document, if that was asked for.
    pub(super) fn scores(&self) -> &[f32] {
        &self.values
    }
}

/// Asks a model for vectors or scores, and waits for all of them. Dropping it cancels.
pub(super) async fn embed(
    handle: &Handle,
    caller: &Caller,
    model: &ModelId,
    form: EmbeddingForm,
    job: EmbeddingJob,
) -> Result<Embedded, Failure> {
    let mut gathered = Gathered::new(form, &job);
    let submission = Submission {
        model: model.clone(),
        kind: Kind::Embedding,
        ask: bytes::Bytes::from(job.task).into(),
        class: job.class,
        keep_alive: job.keep_alive,
        delivery: OutputMode::Gathered,
        access: caller.access().clone(),
    };
    let mut answer = handle.submit(submission).await?;
    loop {
        match answer.output.recv().await {
            Some(Output::Bytes(payload)) => gathered.take(&payload)?,
            Some(Output::Progress { done, total }) => caller.progress().report((0, 1), done, total),
            Some(Output::Done(Ok(summary))) => return gathered.finish(&summary),
            Some(Output::Done(Err(failure))) => return Err(failure),
            Some(Output::Event(_) | Output::Http(_)) => {}
            None => return Err(broken_off()),
        }
    }
}

/// An answer as far as it has come.
struct Gathered {
    form: EmbeddingForm,
    /// How many vectors or scores there are to be.
    count: usize,
    /// Values of each, once that is known.
    width: Option<usize>,
    values: Vec<f32>,
    share: BudgetShare,
}

impl Gathered {
    fn new(form: EmbeddingForm, job: &EmbeddingJob) -> Self {
        let width = match form {
            EmbeddingForm::Vector => job.dimensions.map(|dimensions| dimensions as usize),
            _ => Some(1),
        };
        Self { form, count: job.count, width, values: Vec::new(), share: WHOLE_ANSWERS.share() }
    }

    /// How many vectors or scores have come.
    fn have(&self) -> usize {
        self.width.map_or(0, |width| self.values.len() / width)
    }

    fn take(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let EmbeddingBlock { header, values, .. } =
            EmbeddingBlock::decode(payload).map_err(|error| defect(error.message()))?;
        if header.form != self.form {
            return Err(defect("the plugin answered a request for vectors with scores, or the other way round"));
        }
        if header.index as usize != self.have() {
            let message = format!("the plugin sent number {} where {} was due", header.index, self.have());
            return Err(defect(&message));
        }
        let width = *self.width.get_or_insert(values.len());
        if self.form == EmbeddingForm::Vector && values.len() != width {
            let message = format!("the plugin sent a vector of {} values where all were to have {width}", values.len());
            return Err(defect(&message));
        }
        if self.have() + values.len() / width > self.count {
            let message = format!("the plugin sent more than the {} vectors or scores it was asked for", self.count);
            return Err(defect(&message));
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            let message = format!("number {} of the plugin's answer has a value that is none: {value}", header.index);
            return Err(defect(&message));
        }
        if self.values.len() + values.len() > VALUES_MAX {
            let message = format!(
                "the vectors have more than {VALUES_MAX} values together, the most of one answer; send fewer texts at once, or ask for fewer `dimensions`"
            );
            return Err(Failure::new(FailureKind::InvalidRequest, message));
        }
        if !self.share.take(values.len() * VALUE_BYTES) {
            let message = "answers in one piece take all the memory there is for them; send it again";
            return Err(Failure::new(FailureKind::Busy, message));
        }
        self.values.extend_from_slice(&values);
        Ok(())
    }

    fn finish(self, summary: &[u8]) -> Result<Embedded, Failure> {
        let finish: EmbeddingFinish = serde_json::from_slice(summary)
            .map_err(|error| defect(&format!("the plugin ended with what is no summary of an embedding: {error}")))?;
        if finish.reason == FinishReason::Cancelled {
            return Err(Failure::new(FailureKind::Cancelled, "the request was cancelled"));
        }
        let have = self.have();
        match self.width {
            Some(width) if have == self.count => {
                Ok(Embedded { values: self.values, width, prompt_tokens: finish.prompt_tokens, _share: self.share })
            }
            _ => Err(defect(&format!("the plugin ended after {have} of {} vectors or scores", self.count))),
        }
    }
}

fn defect(message: &str) -> Failure {
    Failure::new(FailureKind::Internal, message)
}
