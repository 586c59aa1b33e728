//! Whether loaded models can still serve, by their plugins' own account: asked while nobody uses them, and after a request that
//! failed by no fault of its client's. One that cannot is let go; whoever asks next gets a fresh worker.

use std::sync::Arc;

use super::access::AccessEntry;
use super::internal::{Health, Internal, post};
use super::run::Loop;
use crate::domain::{FailureKind, InstanceId, ModelState};
use crate::scheduler::Event;

impl Loop {
    /// Asks all that nobody uses.
    pub(super) fn ask_idle_health(&mut self) {
        let hot = self.state.instances().iter().filter(|(_, known)| known.leases.is_empty());
        let hot: Vec<InstanceId> = hot.map(|(id, _)| *id).collect();
        hot.into_iter().for_each(|id| self.ask_health(id, None));
    }

    /// Asks one, unless it is asked already or serves nobody any more.
    pub(super) fn ask_health(&mut self, id: InstanceId, after: Option<AccessEntry>) {
        if self.state.instances().get(&id).is_none_or(|known| known.state != ModelState::Hot) {
            return;
        }
        let Some(instance) = self.residents.begin_health(id) else { return };
        let (instance, events) = (Arc::clone(instance), self.senders.events.clone());
        tokio::spawn(async move {
            let said = instance.health().await;
            post(&events, Internal::Health(id, Health { said, after })).await;
        });
    }

    /// One has answered.
    pub(super) fn health_told(&mut self, id: InstanceId, Health { said, after }: Health) {
        self.residents.end_health(id);
        let Err(failure) = said else { return };
        // Of a worker that is gone, its exit tells.
        if matches!(failure.kind, FailureKind::WorkerDied | FailureKind::TimedOut | FailureKind::ShuttingDown) {
            return;
        }
        let Some(known) = self.state.instances().get(&id).filter(|known| known.state == ModelState::Hot) else {
            return;
        };
        let model = known.model.clone();
        // Its own line tells of that request.
        let request_id = after.as_ref().map(AccessEntry::id);
        tracing::warn!(%model, instance = id.0, request_id, cause = failure.kind.name(), "unhealthy: {failure}; its next request gets a fresh worker");
        // How it leaves is the same story.
        self.records.told.of(id).has_failed = true;
        self.records.died(&model);
        self.step(Event::Failed(id, failure));
    }
}
