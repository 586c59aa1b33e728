//! Operators who ask that a model leave its device, and are told when it has.

use super::requests::{Departing, Goal};
use super::run::{Loop, send};
use crate::domain::{Failure, FailureKind, InstanceId, ModelId, ModelState};
use crate::scheduler::Event;

/// Said to an operator where nothing went wrong and nothing was parked.
const CANNOT_PARK: &str =
    "it cannot be parked: its plugin does not park, failed to before, or the host's memory does not suffice";

impl Loop {
    /// Asks that a model leave its device, which `event` does, and lets the operator know when it has.
    pub(super) fn depart(&mut self, model: &ModelId, event: Event, mut departing: Departing) {
        departing.access.asks_for(model);
        let reply = |departing: Departing, failure| send(departing.reply, Err(failure));
        if !self.config.models.contains_key(model) {
            let failure = Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`"));
            return reply(departing, failure);
        }
        let instances: Vec<InstanceId> = self.state.instances_of(model).into_iter().map(|(id, _)| id).collect();
        if departing.goal == Goal::Parked && instances.is_empty() {
            let message = format!("`{model}` is not loaded, so there is nothing to park");
            return reply(departing, Failure::new(FailureKind::InvalidRequest, message));
        }
        departing.instances = instances;
        // Before the step: what fails in it is told of with whoever asked for it.
        self.requests.departing.push(departing);
        self.step(event);
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
                let failure = match &departing.failure {
                    Some(why) => Failure::new(FailureKind::NotUsable, format!("its park failed: {why}")),
                    None => Failure::new(FailureKind::InvalidRequest, CANNOT_PARK),
                };
                Some(Err(failure))
            }
        }
    }
}
