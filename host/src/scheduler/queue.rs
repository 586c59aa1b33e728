//! Waiting: joining a queue, the gate, grants, and giving up.

use super::effect::Effect;
use super::event::Want;
use super::state::{Instance, Phase, State, Waiter};
use crate::domain::{Failure, FailureKind, InstanceId, Millis, ModelId, ModelState};

/// A quantum is at least this many times what it cost to come up, so that swapping takes at most a third of the time.
const QUANTUM_PER_COST: u64 = 2;

/// Whom a hot instance lets in.
enum Gate {
    Open,
    UpTo(Millis),
    Closed,
}

impl Gate {
    fn admits(&self, waiter: &Waiter) -> bool {
        match self {
            Self::Open => true,
            Self::UpTo(limit) => waiter.since <= *limit,
            Self::Closed => false,
        }
    }
}

impl State {
    pub(super) fn enqueue(&mut self, waiter: Waiter, model: ModelId, effects: &mut Vec<Effect>) {
        if let Some(failure) = self.refusal(&model, waiter.want) {
            effects.push(Effect::Refuse(waiter.id, failure));
            return;
        }
        let queue = self.queues.entry(model).or_default();
        let at = match waiter.want {
            Want::Solo => queue.iter().position(|other| other.want != Want::Solo),
            Want::ServeBatch => None,
            Want::Serve | Want::Load => queue.iter().position(|other| other.want == Want::ServeBatch),
        };
        let at = at.unwrap_or(queue.len());
        queue.insert(at, waiter);
    }

    /// Why a request cannot even wait.
    fn refusal(&self, model: &ModelId, want: Want) -> Option<Failure> {
        if self.phase == Phase::ShuttingDown {
            return Some(Failure::new(FailureKind::ShuttingDown, "the host is shutting down"));
        }
        if !self.policy.models.contains_key(model) {
            return Some(Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`")));
        }
        if want != Want::Solo && self.queued(model) >= self.policy.queue_max {
            let message = format!(
                "`{model}` has {} requests waiting, the most it may have (`limits: queue:`); try again later",
                self.queued(model)
            );
            return Some(Failure::new(FailureKind::QueueFull, message));
        }
        // An operator who asks for a load wants it tried now.
        let cooling = self.cooldowns.get(model).filter(|cooldown| want != Want::Load && self.now < cooldown.until);
        cooling.filter(|_| self.instance_of(model).is_none()).map(|cooldown| cooldown.refusal(model))
    }

    pub(super) fn refuse_all(&mut self, model: &ModelId, failure: &Failure, effects: &mut Vec<Effect>) {
        let waiters = self.queues.remove(model).unwrap_or_default();
        effects.extend(waiters.into_iter().map(|waiter| Effect::Refuse(waiter.id, failure.clone())));
    }

    /// Waiters whose patience has ended. The load they waited for goes on.
    pub(super) fn give_up(&mut self, effects: &mut Vec<Effect>) {
        let (now, hold) = (self.now, self.policy.hold_ms);
        let mut refused = Vec::new();
        for (model, queue) in &mut self.queues {
            queue.retain(|waiter| {
                let late = waiter.want != Want::Load && now.since(waiter.since) >= hold;
                if late {
                    refused.push((model.clone(), waiter.id));
                }
                !late
            });
        }
        for (model, id) in refused {
            let state = self.model_state(&model).0.name();
            let message = format!("`{model}` is still {state} after {} s; try again", hold / 1000);
            effects.push(Effect::Refuse(id, Failure::new(FailureKind::StillLoading, message)));
        }
    }

    /// Leases for every waiter that may have one, on the instance with the fewest.
    pub(super) fn grant(&mut self, effects: &mut Vec<Effect>) {
        let next = |state: &Self| {
            let free = state
                .instances
                .iter()
                .filter_map(|(id, instance)| Some((instance.leases.len(), *id, state.next_grant(*id)?)));
            free.min()
        };
        while let Some((_, id, at)) = next(self) {
            self.grant_one(id, at, effects);
        }
        self.queues.retain(|_, queue| !queue.is_empty());
    }

    fn grant_one(&mut self, id: InstanceId, at: usize, effects: &mut Vec<Effect>) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let Some(waiter) = self.queues.get_mut(&instance.model).and_then(|queue| queue.remove(at)) else { return };
        instance.keep = waiter.keep.or(instance.keep);
        if waiter.want == Want::Load {
            effects.push(Effect::Ready(waiter.id));
        } else {
            instance.leases.insert(waiter.id);
            instance.solo = waiter.want == Want::Solo;
            effects.push(Effect::Grant(waiter.id, id));
        }
    }

    /// The place in its queue of the waiter that may be granted next on this instance.
    pub(super) fn next_grant(&self, id: InstanceId) -> Option<usize> {
        let instance = self.instances.get(&id).filter(|instance| instance.state == ModelState::Hot)?;
        let leases_max = self.policy.models.get(&instance.model)?.leases_max;
        let gate = self.gate(instance);
        let admitted = |waiter: &Waiter| match waiter.want {
            Want::Load => true,
            Want::Solo => instance.leases.is_empty(),
            Want::Serve | Want::ServeBatch => {
                !instance.solo && instance.leases.len() < leases_max && gate.admits(waiter)
            }
        };
        let queue = self.queues.get(&instance.model)?;
        // Behind one that must be alone, nobody begins: it would never find the worker empty.
        let limit = queue.iter().position(|waiter| waiter.want == Want::Solo).map_or(queue.len(), |first| first + 1);
        queue.iter().take(limit).position(admitted)
    }

    /// Who is let in. Everyone, unless another model has waited for this one's room: once the quantum is served, those
    /// who came no later than that model's oldest waiter; once that waiter is overdue, nobody.
    fn gate(&self, instance: &Instance) -> Gate {
        let Some(rival) = self.oldest_rival(instance) else { return Gate::Open };
        if self.now < self.quantum_end(instance) {
            Gate::Open
        } else if self.now.since(rival) < self.policy.max_wait_ms {
            Gate::UpTo(rival)
        } else {
            Gate::Closed
        }
    }

    /// When the instance has served its quantum.
    pub(super) fn quantum_end(&self, instance: &Instance) -> Millis {
        let cost = self.known.get(&instance.model).map_or(0, |known| known.cost_ms);
        instance.since.after(self.policy.quantum_ms.max(cost.saturating_mul(QUANTUM_PER_COST)).max(1))
    }

    /// Since when the oldest waiter waits of a model that needs room where this instance lies.
    pub(super) fn oldest_rival(&self, instance: &Instance) -> Option<Millis> {
        if self.policy.models.get(&instance.model).is_some_and(|policy| policy.pin) {
            return None;
        }
        let first = self.waiting_on(&instance.device).into_iter().next()?;
        self.oldest_waiter(&self.instances.get(&first)?.model)
    }

    pub(super) fn oldest_waiter(&self, model: &ModelId) -> Option<Millis> {
        self.queues.get(model)?.iter().map(|waiter| waiter.since).min()
    }
}
