//! What the log is told of models, and by whom: each failed load, lost worker, quarantine and departure is one line, derived
//! from the events and effects of one step. Whoever learns of the same elsewhere keeps silent. It decides nothing.

use tokio::time::Instant;

use super::access::{AccessEntry, ids_of, told_of};
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
        let (model, waiting) = (model.clone(), self.requests.waiting_for(model));
        // Whoever waits for a model that parks waits on, for a fresh worker.
        let failing = if was == ModelState::Parking { Vec::new() } else { waiting };
        let request_id = self.met_by(id, failing);
        for departing in self.requests.departing.iter_mut().filter(|departing| departing.instances.contains(&id)) {
            departing.failure.get_or_insert_with(|| failure.message.clone());
        }
        tracing::warn!(%model, instance = id.0, request_id, cause = failure.kind.name(), "{what}: {failure}");
    }

    /// The ids of the requests that meet what goes wrong with an instance: those that fail of it, operators who want it gone,
    /// and those for whose model it was to leave.
    fn met_by(&mut self, id: InstanceId, mut failing: Vec<AccessEntry>) -> Option<String> {
        failing.extend(self.requests.sending_away(id));
        failing.iter().for_each(AccessEntry::is_told);
        let whom = self.records.told.of(id).leaving.as_ref().and_then(|leaving| leaving.whom.clone());
        let behind = whom.map(|model| self.requests.waiting_for(&model)).unwrap_or_default();
        ids_of(failing.iter().chain(&behind))
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
        let mut met = self.requests.on_instance(id);
        met.extend(self.records.told.take_broken(id));
        let state = self.state.instances().get(&id).map(|known| known.state);
        // The line of a request that met a panic says so.
        let is_told = self.records.told.of(id).has_failed
            || (*reason == ExitReason::Panicked && met.iter().any(|access| access.facts().is_fault));
        if *reason != ExitReason::Asked {
            // What follows of it, a failed load, is the same.
            self.records.told.of(id).has_failed = true;
            if is_told {
                tracing::debug!(%model, instance = id.0, "worker {reason}");
            } else {
                use ModelState::{Loading, Starting, Unparking, Waiting};
                if matches!(state, Some(Starting | Waiting | Loading | Unparking)) {
                    met.extend(self.requests.waiting_for(model));
                }
                let request_id = self.met_by(id, met);
                tracing::warn!(%model, instance = id.0, request_id, "worker {reason}");
            }
        }
        // However it went, it has left.
        if *reason == ExitReason::Asked || state == Some(ModelState::Stopping) {
            self.tell_left(id, model, "unloaded");
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
