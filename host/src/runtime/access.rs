//! What becomes of one client's request, for the line that the log has of it: whoever asks carries it along, and whoever
//! learns something of the request writes it down here. It decides nothing and knows nothing of HTTP.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use crate::domain::{Failure, FailureKind, ModelId, some_names};

/// One request of a client. Cheap to clone; all clones are the same request's.
#[derive(Clone, Debug, Default)]
pub struct AccessEntry(Arc<Entry>);

#[derive(Debug, Default)]
struct Entry {
    /// The client's own id, or the one that it was given.
    id: String,
    /// Its client's `traceparent`.
    trace: String,
    /// What stands for whoever asks.
    owner: OnceLock<String>,
    facts: Mutex<AccessFacts>,
}

/// What is known of a request.
#[derive(Clone, Debug, Default)]
pub struct AccessFacts {
    /// The model that it was for.
    pub model: Option<ModelId>,
    /// How long it waited while its model was loaded.
    pub queue: Option<Duration>,
    /// How long it waited for its model to be loaded.
    pub swap: Option<Duration>,
    /// From its arrival to its first output.
    pub first_output: Option<Duration>,
    /// Tokens of its prompts; `None` if its model counts none.
    pub tokens_in: Option<u64>,
    /// Tokens of its answers; `None` if its model counts none.
    pub tokens_out: Option<u64>,
    /// Why it was not served, in the operator's words.
    pub cause: Option<String>,
    /// Whether that cause stands in another line, together with the request's id.
    pub is_told: bool,
    /// Whether it was served and failed, other than by its client's doing or its limits.
    pub is_fault: bool,
    /// Whether its worker died under it: why stands in a line of its own, if not yet.
    pub worker_died: bool,
}

impl AccessEntry {
    /// Of the request with this id.
    pub fn new(id: impl Into<String>) -> Self {
        Self::traced(id, "")
    }

    /// Of the request with this id, in the trace that its client's `traceparent` names.
    pub fn traced(id: impl Into<String>, trace: impl Into<String>) -> Self {
        Self(Arc::new(Entry { id: id.into(), trace: trace.into(), ..Entry::default() }))
    }

    /// Whoever has the key of this name asks. Plugins are told something that stands for it while this host runs, not the name.
    pub fn asked_by(&self, key: &str) {
        static SECRET: OnceLock<RandomState> = OnceLock::new();
        self.0.owner.get_or_init(|| format!("{:016x}", SECRET.get_or_init(RandomState::new).hash_one(key)));
    }

    /// The trace that its client named, and what stands for whoever asks; empty if there is none.
    pub(super) fn origin(&self) -> (&str, &str) {
        (&self.0.trace, self.0.owner.get().map_or("", String::as_str))
    }

    /// The trace that its client named, as W3C's `traceparent`; empty if it named none.
    pub fn trace(&self) -> &str {
        &self.0.trace
    }

    /// The client's own id, or the one that it was given; empty if no client asks.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// What is known by now.
    pub fn facts(&self) -> AccessFacts {
        let facts = self.0.facts.lock().clone();
        AccessFacts { is_told: facts.is_told || facts.worker_died, ..facts }
    }

    /// It is for this model.
    pub fn asks_for(&self, model: &ModelId) {
        self.0.facts.lock().model = Some(model.clone());
    }

    /// It was not served for this reason. The first one counts.
    pub fn failed(&self, cause: &str) {
        self.0.facts.lock().cause.get_or_insert_with(|| cause.to_owned());
    }

    /// A part of it waited so long.
    pub(super) fn waited(&self, queue: Duration, swap: Duration) {
        let mut facts = self.0.facts.lock();
        *facts.queue.get_or_insert_default() += queue;
        *facts.swap.get_or_insert_default() += swap;
    }

    /// A part of it has its first output.
    pub(super) fn first_output(&self, after: Duration) {
        self.0.facts.lock().first_output.get_or_insert(after);
    }

    /// A part of it took so many tokens.
    pub(super) fn tokens(&self, tokens_in: u64, tokens_out: u64) {
        let mut facts = self.0.facts.lock();
        *facts.tokens_in.get_or_insert_default() += tokens_in;
        *facts.tokens_out.get_or_insert_default() += tokens_out;
    }

    /// A part of it was served to its end, which was a failure.
    pub(super) fn ended(&self, outcome: &str, failure: Option<&Failure>) {
        self.failed(failure.map_or(outcome, |failure| &failure.message));
    }

    /// An attempt at it begins. What is told of those before says nothing of how this one fails.
    pub(super) fn begins(&self) {
        let mut facts = self.0.facts.lock();
        if facts.cause.is_none() {
            (facts.is_told, facts.is_fault, facts.worker_died) = (false, false, false);
        }
    }

    /// An attempt at a part of it failed.
    pub(super) fn broke(&self, failure: &Failure) {
        if failure.kind == FailureKind::WorkerDied {
            self.0.facts.lock().worker_died = true;
        }
        if matches!(failure.kind, FailureKind::Internal | FailureKind::Unreachable) {
            self.met_fault();
        }
    }

    /// What served it may be unable to serve: its health is asked.
    pub(super) fn met_fault(&self) {
        self.0.facts.lock().is_fault = true;
    }

    /// Why it fails stands in a line that has its id.
    pub(super) fn is_told(&self) {
        self.0.facts.lock().is_told = true;
    }
}

/// The ids of these requests for a line that tells why they fail, which need not say so again. `None` if no client asks.
pub(super) fn told_of<'a>(entries: impl IntoIterator<Item = &'a AccessEntry>) -> Option<String> {
    ids_of(entries.into_iter().inspect(|entry| entry.is_told()))
}

/// The ids of these requests for a line of what they meet. `None` if no client asks.
pub(super) fn ids_of<'a>(entries: impl IntoIterator<Item = &'a AccessEntry>) -> Option<String> {
    let mut ids: Vec<&str> = Vec::new();
    for entry in entries {
        if !entry.id().is_empty() && !ids.contains(&entry.id()) {
            ids.push(entry.id());
        }
    }
    (!ids.is_empty()).then(|| some_names(ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_each_request_once_and_marks_all_that_it_tells_of() {
        let entries: Vec<AccessEntry> = (0..100).map(|n| AccessEntry::new(format!("r{n}"))).collect();
        let twice = entries.iter().chain(&entries);
        let ids = told_of(twice).unwrap();
        assert!(ids.starts_with("r0, r1") && ids.ends_with("more") && ids.len() < 200, "{ids}");
        assert!(entries.iter().all(|entry| entry.facts().is_told));
        assert_eq!(told_of(&[AccessEntry::default()]), None);
    }

    #[test]
    fn what_was_told_of_one_attempt_does_not_hide_how_the_next_one_fails() {
        let entry = AccessEntry::new("r");
        entry.broke(&Failure::new(FailureKind::WorkerDied, "it died"));
        assert!(entry.facts().is_told);
        entry.begins();
        assert!(!entry.facts().is_told);
        told_of([&entry]);
        entry.failed("for good");
        entry.begins();
        assert!(entry.facts().is_told, "another part of it");
    }

    #[test]
    fn waits_and_tokens_of_all_parts_count_and_the_first_cause() {
        let entry = AccessEntry::new("r");
        let ms = Duration::from_millis;
        (0..2).for_each(|_| entry.waited(ms(3), ms(4)));
        (0..2).for_each(|_| entry.tokens(5, 6));
        ["one", "two"].iter().for_each(|cause| entry.failed(cause));
        let facts = entry.facts();
        assert_eq!((facts.queue, facts.swap), (Some(ms(6)), Some(ms(8))));
        assert_eq!((facts.tokens_in, facts.tokens_out), (Some(10), Some(12)));
        assert_eq!(facts.cause.as_deref(), Some("one"));
    }
}
