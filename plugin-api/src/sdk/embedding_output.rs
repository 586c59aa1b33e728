//! Where an embedding engine puts its vectors or scores. It counts, refuses what is no answer, and heeds the client's pace.

use std::sync::{Arc, Mutex, PoisonError};

use super::outlet::Outlet;
use super::{Error, Result};
use crate::abi::event_kind;
use crate::task::{EmbeddingBlock, EmbeddingFinish, EmbeddingForm, EmbeddingHeader, EmbeddingRequest, FinishReason};

/// Most values of a vector. The largest models that are published make some 8000.
const VALUES_MAX: usize = 64 * 1024;

/// The answer of one embedding request. A cheap handle: clones feed the same answer, from any thread.
#[derive(Clone)]
pub struct EmbeddingOutput {
    outlet: Outlet,
    form: EmbeddingForm,
    /// How many vectors or scores there are to be.
    count: usize,
    state: Arc<Mutex<EmbeddingState>>,
}

#[derive(Clone, Copy, Default)]
struct EmbeddingState {
    /// Vectors or scores so far.
    pushed: usize,
    /// Values of each vector, once that is known: as many as were asked for, or as the first one has.
    width: Option<usize>,
    prompt_tokens: u32,
}

impl std::fmt::Debug for EmbeddingOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddingOutput").field("outlet", &self.outlet).finish_non_exhaustive()
    }
}

impl EmbeddingOutput {
    pub(crate) fn new(request: &EmbeddingRequest, outlet: Outlet) -> Self {
        let width = request.dimensions.map(|dimensions| dimensions as usize);
        let state = EmbeddingState { width, ..EmbeddingState::default() };
        let (form, count) = (request.input.form(), request.input.count());
        Self { outlet, form, count, state: Arc::new(Mutex::new(state)) }
    }

    /// Says how many tokens the model read, those of all texts together. Any time before the end; the last word counts.
    pub fn prompt_tokens(&self, tokens: u32) {
        self.lock().prompt_tokens = tokens;
    }

    /// Adds the vector of the next text; they are in the order of the request. Blocks while the client is too slow.
    ///
    /// # Errors
    /// Once the client left: return it with `?`, it is a normal end. Internal if documents are to be scored, if there is one for
    /// each text already, if it has not as many values as the one before it, or as the request's `dimensions`, has none or more
    /// than 65536, or if a value is no number.
    pub fn vector(&self, vector: &[f32]) -> Result<()> {
        self.push(EmbeddingForm::Vector, vector, |state| {
            let width = state.width.unwrap_or(vector.len());
            if vector.len() != width || !(1..=VALUES_MAX).contains(&width) {
                let (at, has) = (state.pushed, vector.len());
                let text = format!(
                    "vector {at} has {has} values; all of an answer have as many as were asked for, from 1 to {VALUES_MAX}"
                );
                return Err(Error::internal(text));
            }
            state.width = Some(width);
            Ok(1)
        })
    }

    /// Adds the score of the next document; they are in the order of the request, and the higher, the better a document answers.
    /// Blocks while the client is too slow.
    ///
    /// # Errors
    /// Once the client left. Internal if texts are to be embedded, if there is one for each document already, or if it is no
    /// number.
    pub fn score(&self, score: f32) -> Result<()> {
        self.scores(&[score])
    }

    /// Adds the scores of the next documents: what a batch gave, say.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn scores(&self, scores: &[f32]) -> Result<()> {
        if scores.is_empty() {
            return self.outlet.flow().map(|_| ());
        }
        self.push(EmbeddingForm::Score, scores, |_| Ok(scores.len()))
    }

    /// Says that `done` of `total` texts have been read; the client's progress bar shows it.
    ///
    /// # Errors
    /// Once the client left.
    pub fn progress(&self, done: u64, total: u64) -> Result<()> {
        self.outlet.progress(done, total)
    }

    /// Vectors or scores pushed so far.
    pub fn pushed(&self) -> usize {
        self.lock().pushed
    }

    /// Sends values that are of this form; `check` says how many vectors or scores they are.
    fn push(
        &self,
        form: EmbeddingForm,
        values: &[f32],
        check: impl FnOnce(&mut EmbeddingState) -> Result<usize>,
    ) -> Result<()> {
        if form != self.form {
            let wanted = noun(self.form);
            return Err(Error::internal(format!(
                "the request asks for {wanted}s, and the engine gave a {}",
                noun(form)
            )));
        }
        // Held while it is sent, so that blocks of several threads come in the order of their places.
        let mut state = self.lock();
        let (at, most) = (state.pushed, self.count);
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::internal(format!("{} {at} has a value that is no number: {value}", noun(form))));
        }
        let more = check(&mut state)?;
        if at + more > most {
            let text = format!("the engine gave more than the {most} {}s that were asked for", noun(form));
            return Err(Error::internal(text));
        }
        let header = EmbeddingHeader::new(form, u32::try_from(at).map_err(Error::internal)?);
        state.pushed += more;
        let flow = self.outlet.push(event_kind::BYTES, &EmbeddingBlock::encode(&header, values)?);
        drop(state);
        self.outlet.pace(flow?)
    }

    pub(crate) fn finish(&self, result: Result<()>) -> Result<EmbeddingFinish> {
        let EmbeddingState { pushed, prompt_tokens, .. } = *self.lock();
        let reason = match result {
            Ok(()) if pushed == self.count => FinishReason::Stop,
            Ok(()) => {
                let (form, count) = (noun(self.form), self.count);
                return Err(Error::internal(format!("the engine ended after {pushed} of {count} {form}s")));
            }
            Err(error) => self.outlet.stopped(error).map(|()| FinishReason::Cancelled)?,
        };
        Ok(EmbeddingFinish::new(reason, prompt_tokens))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, EmbeddingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn noun(form: EmbeddingForm) -> &'static str {
    match form {
        EmbeddingForm::Vector => "vector",
        EmbeddingForm::Score => "score",
    }
}
