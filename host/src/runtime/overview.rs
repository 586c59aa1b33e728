//! What whoever watches a host is told of it at one moment: every model, who waits, and what came and left. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::api::{ModelStatus, Overview};
use super::run::{Loop, send};
use super::status::with_all;
use super::watched::WaitingRequest;
use crate::domain::{ModelId, RequestId};

/// Requests that wait and are told of one by one; those beyond are counted in the queues of their models.
pub(super) const WAITING_MAX: usize = 200;

impl Loop {
    /// Tells all of it. The lines of models that are simply cold are written elsewhere.
    pub(super) fn tell_overview(&self, reply: oneshot::Sender<Overview>) {
        let (waiting, swaps) = (self.waiting(), self.swaps.told());
        let touched: BTreeSet<&ModelId> = self.state.touched().chain(self.records.models()).collect();
        let known = touched.into_iter().filter_map(|model| self.config.models.get(model));
        let known: BTreeMap<ModelId, ModelStatus> =
            known.map(|model| (model.id.clone(), self.model_status(model))).collect();
        let config = Arc::clone(&self.config);
        spawn_blocking(move || send(reply, Overview { models: with_all(known, &config), waiting, swaps }));
    }

    fn waiting(&self) -> Vec<WaitingRequest> {
        let now = self.clock.now();
        let mut waiting: Vec<(&ModelId, RequestId, _, bool)> = self.state.waiting().collect();
        waiting.sort_by_key(|(_, id, since, _)| (*since, *id));
        waiting.truncate(WAITING_MAX);
        let told = waiting.into_iter().map(|(model, id, since, for_slot)| WaitingRequest {
            id: self.requests.access_of(id).map(|access| access.id().to_owned()).unwrap_or_default(),
            model: model.clone(),
            waited_ms: now.since(since),
            for_slot,
        });
        told.collect()
    }
}
