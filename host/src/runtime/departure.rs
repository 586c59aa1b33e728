//! Operators who ask that a model leave its device, and are told when it has.

use tokio::sync::oneshot;

use super::requests::{Departing, Goal};
use super::run::{Loop, send};
use crate::domain::{Failure, FailureKind, InstanceId, ModelId, ModelState};
use crate::scheduler::Event;

impl Loop {
    /// Asks that a model leave its device, which `event` does, and lets the operator know when it has.
    pub(super) fn depart(
        &mut self,
        model: &ModelId,
        goal: Goal,
        event: Event,
        reply: oneshot::Sender<Result<(), Failure>>,
    ) {
        if !self.config.models.contains_key(model) {
            return send(reply, Err(Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`"))));
        }
        let instances: Vec<InstanceId> = self.state.instances_of(model).into_iter().map(|(id, _)| id).collect();
        if goal == Goal::Parked && instances.is_empty() {
            let message = format!("`{model}` is not loaded, so there is nothing to park");
            return send(reply, Err(Failure::new(FailureKind::InvalidRequest, message)));
        }
        self.step(event);
        self.requests.departing.push(Departing { instances, goal, reply });
    }

    pub(super) fn answer_departing(&mut self) {
        for departing in std::mem::take(&mut self.requests.departing) {
            match self.departed(&departing) {
                Some(answer) => send(departing.reply, answer),
                None => self.requests.departing.push(departing),
            }
        }
    }

    /// What came of it; `None` while the instances are on their way.
    fn departed(&self, departing: &Departing) -> Option<Result<(), Failure>> {
        let known = departing.instances.iter().filter_map(|id| self.state.instances().get(id));
        let states: Vec<ModelState> = known.map(|instance| instance.state).collect();
        let leaving =
            |state: &ModelState| matches!(state, ModelState::Draining | ModelState::Parking | ModelState::Stopping);
        match departing.goal {
            Goal::Cold => states.is_empty().then_some(Ok(())),
            Goal::Parked if !states.is_empty() && states.iter().all(|state| *state == ModelState::Parked) => {
                Some(Ok(()))
            }
            Goal::Parked if states.iter().any(leaving) => None,
            Goal::Parked => {
                let message = "it could not be parked: its plugin does not park, did not give its memory back, or the host's memory does not suffice; the model's log says which";
                Some(Err(Failure::new(FailureKind::NotUsable, message)))
            }
        }
    }
}
