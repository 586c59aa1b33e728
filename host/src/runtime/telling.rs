//! What the log is told of models, and by whom: each failed load, lost worker, quarantine and departure is one line, derived
//! from the events and effects of one step. Whoever learns of the same elsewhere keeps silent. It decides nothing.

use tokio::time::Instant;

use super::access::{AccessEntry, told_of};
use super::run::Loop;
use super::told::{Leaving, milliseconds_since};
use crate::domain::{EvictionCause, Failure, FailureKind, InstanceId, ModelId, ModelState};
use crate::scheduler::{Effect, Event};
use crate::worker::ExitReason;

/// What an event says of an instance that failed.
pub(super) type Failed = Option<(InstanceId, Failure)>;

impl Loop {
    /// What is to be told of an event, should its step say so.
    pub(super) fn failed_by(event: &Event) -> Failed {
        match event {
            Event::Failed(id, failure) | Event::Exited(id, failure) => Some((*id, failure.clone())),
            _ => None,
        }
    }

    /// Tells of a step, before anybody else learns of it: whoever is refused is still known, and each instance's last state.
    pub(super) fn tell(&mut self, failed: &Failed, effects: &[Effect]) {
        if let Some((id, failure)) = failed {
            self.tell_failed(*id, failure);
        }
        for effect in effects {
            match effect {
                Effect::Start { instance, .. } | Effect::Unpark(instance) => {
                    self.records.told.of(*instance).coming = Some(Instant::now());
                }
                // Nothing failed outside: it was found that it cannot have what it needs.
                Effect::Stop(id, EvictionCause::Failed) if failed.is_none() => {
                    let model = self.observer.was(*id).map(|(model, _)| model);
                    if let Some((_, Some(failure))) = model.map(|model| self.state.model_state(model)) {
                        self.tell_failed(*id, &failure);
                    }
                }
                Effect::Park(id, cause) | Effect::Stop(id, cause) => self.leaves(*id, *cause, failed),
                Effect::RememberQuarantine => self.tell_quarantined(),
                _ => {}
            }
        }
    }

    fn tell_failed(&mut self, id: InstanceId, failure: &Failure) {
        let Some((model, was)) = self.observer.was(id) else { return };
        let what = match was {
            ModelState::Starting | ModelState::Waiting | ModelState::Loading => "load failed",
            ModelState::Parking => "parking failed",
            ModelState::Unparking => "waking failed",
            _ => return,
        };
        if matches!(failure.kind, FailureKind::Cancelled | FailureKind::ShuttingDown)
            || std::mem::replace(&mut self.records.told.of(id).has_failed, true)
        {
            return;
        }
        let requests = self.requests.waiting_for(model);
        let request_id = told_of(&requests);
        tracing::warn!(%model, instance = id.0, request_id, cause = failure.kind.name(), "{what}: {failure}");
    }

    /// A model is loaded or awake.
    pub(super) fn tell_hot(&mut self, id: InstanceId, what: &str) {
        let ms = milliseconds_since(self.records.told.of(id).coming.take().unwrap_or_else(Instant::now));
        if let Some(known) = self.state.instances().get(&id) {
            tracing::info!(model = %known.model, instance = id.0, device = %known.device, bytes = known.reserved, ms, "{what}");
        }
    }

    /// A worker is gone, for whatever reason.
    pub(super) fn tell_exit(&mut self, id: InstanceId, model: &ModelId, reason: &ExitReason) {
        self.records.told.of(id).coming = None;
        let broken = self.records.told.take_broken(id);
        match reason {
            ExitReason::Asked => self.tell_left(id, model, "unloaded"),
            _ if self.records.told.of(id).has_failed => tracing::debug!(%model, instance = id.0, "worker {reason}"),
            reason => {
                let state = self.state.instances().get(&id).map(|known| known.state);
                let comes_up = matches!(
                    state,
                    Some(ModelState::Starting | ModelState::Waiting | ModelState::Loading | ModelState::Unparking)
                );
                let waiting = if comes_up { self.requests.waiting_for(model) } else { Vec::new() };
                let served = self.requests.on_instance(id);
                let panicked = |access: &AccessEntry| access.facts().is_fault;
                if *reason == ExitReason::Panicked && served.iter().chain(&broken).any(panicked) {
                    // The line of that request says so.
                    tracing::debug!(%model, instance = id.0, "worker {reason}");
                    self.records.told.of(id).has_failed = true;
                    return;
                }
                let request_id = told_of(served.iter().chain(&broken).chain(&waiting));
                tracing::warn!(%model, instance = id.0, request_id, "worker {reason}");
                // What follows of it, a failed load, is the same.
                self.records.told.of(id).has_failed = true;
            }
        }
    }

    /// It is on its way: what will be told of it at the end is known now.
    fn leaves(&mut self, id: InstanceId, cause: EvictionCause, failed: &Failed) {
        let Some(known) = self.state.instances().get(&id) else { return };
        let whom = (cause == EvictionCause::Memory).then(|| match failed {
            // A load ran out of memory, and is tried again without its neighbours.
            Some((failed, _)) => self.observer.was(*failed).map(|(model, _)| model.clone()),
            None => {
                let host_memory = self.state.policy().host_memory;
                let first = self.state.first_waiting(known.device).or_else(|| self.state.first_waiting(host_memory));
                first.cloned()
            }
        });
        let bytes = known.reserved.max(known.held);
        let leaving = Leaving { cause, whom: whom.flatten(), bytes, device: known.device, since: Instant::now() };
        self.records.told.of(id).leaving = Some(leaving);
    }

    /// It has left its device.
    pub(super) fn tell_left(&mut self, id: InstanceId, model: &ModelId, what: &str) {
        match self.records.told.of(id).leaving.take() {
            // A load that failed or that nobody wants any more was told of, or is nothing to tell.
            Some(Leaving { cause: EvictionCause::Failed, .. }) | None => {
                tracing::debug!(%model, instance = id.0, "worker ended");
            }
            Some(Leaving { cause, whom, bytes, device, since }) => {
                let ms = milliseconds_since(since);
                let whom = whom.as_ref().map(ModelId::as_str);
                tracing::info!(%model, instance = id.0, %device, cause = cause.name(), "for" = whom, bytes, ms, "{what}");
            }
        }
    }

    fn tell_quarantined(&mut self) {
        let now: Vec<(ModelId, Failure)> =
            self.state.quarantined().map(|(model, failure)| (model.clone(), failure.clone())).collect();
        for (model, failure) in now.iter().filter(|(model, _)| !self.records.told.quarantined.contains(model)) {
            let request_id = told_of(&self.requests.waiting_for(model));
            tracing::warn!(%model, request_id, "quarantined: {failure}");
        }
        self.records.told.quarantined = now.into_iter().map(|(model, _)| model).collect();
    }
}
