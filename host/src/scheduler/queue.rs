//! Waiting: joining a queue, the gate, grants, and giving up.

use std::collections::VecDeque;

use super::effect::Effect;
use super::event::Want;
use super::policy::Policy;
use super::state::{Awaits, Instance, Phase, State, Waiter};
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
            Want::Again(_) => queue.iter().position(|other| !matches!(other.want, Want::Again(_))),
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
        if !matches!(want, Want::Again(_)) && self.queued(model) >= self.policy.queue_max {
            let message = format!("`{model}` has {} requests waiting, the most it may have", self.queued(model));
            let whole = Failure::new(FailureKind::QueueFull, format!("{message} (`limits: queue:`); try again later"));
            return Some(whole.for_clients(format!("{message}; try again later")));
        }
        // An operator who asks for a load wants it tried now.
        let cooling = self.cooldowns.get(model).filter(|cooldown| want != Want::Load && self.now < cooldown.until);
        cooling.filter(|_| self.instance_of(model).is_none()).map(|cooldown| cooldown.refusal(model))
    }

    pub(super) fn refuse_all(&mut self, model: &ModelId, failure: &Failure, effects: &mut Vec<Effect>) {
        let waiters = self.queues.remove(model).unwrap_or_default();
        effects.extend(waiters.into_iter().map(|waiter| Effect::Refuse(waiter.id, failure.clone())));
    }

    /// Looks what each waiter waits for: its clock begins anew when that changes.
    pub(super) fn look_what_is_awaited(&mut self) {
        let (now, instances) = (self.now, &self.instances);
        let hot = |model: &ModelId| instances.values().any(|i| i.state == ModelState::Hot && i.model == *model);
        for (model, queue) in &mut self.queues {
            let hot = hot(model);
            for waiter in queue {
                waiter.awaits = match waiter.awaits {
                    Awaits::Load(_) if hot => Awaits::Slot(now),
                    Awaits::Slot(_) if !hot => Awaits::Load(now),
                    same => same,
                };
            }
        }
    }

    /// When this waiter is told that it waited in vain: for a load, for a slot, or for all of it together.
    pub(super) fn patience_end(&self, waiter: &Waiter) -> Option<Millis> {
        let Policy { hold_ms, slot_wait_ms, .. } = *self.policy;
        let end = match waiter.awaits {
            Awaits::Load(since) => since.after(hold_ms),
            Awaits::Slot(since) => since.after(slot_wait_ms),
        };
        let all = waiter.since.after(hold_ms.saturating_add(slot_wait_ms));
        (waiter.want != Want::Load).then_some(end.min(all))
    }

    /// Waiters whose patience has ended. The load they waited for goes on.
    pub(super) fn give_up(&mut self, effects: &mut Vec<Effect>) {
        let late = |waiter: &Waiter| self.patience_end(waiter).is_some_and(|end| end <= self.now);
        let late = |queue: &VecDeque<Waiter>| queue.iter().filter(|waiter| late(waiter)).cloned().collect::<Vec<_>>();
        let late: Vec<_> = self.queues.iter().map(|(model, queue)| (model.clone(), late(queue))).collect();
        for (model, waiters) in late.into_iter().filter(|(_, waiters)| !waiters.is_empty()) {
            if let Some(queue) = self.queues.get_mut(&model) {
                // Both are in one order.
                let mut gone = waiters.iter().peekable();
                queue.retain(|waiter| gone.next_if(|late| late.id == waiter.id).is_none());
            }
            let state = self.model_state(&model).0.name();
            effects.extend(waiters.iter().map(|waiter| Effect::Refuse(waiter.id, self.in_vain(&model, state, waiter))));
        }
    }

    fn in_vain(&self, model: &ModelId, state: &str, waiter: &Waiter) -> Failure {
        match waiter.awaits {
            Awaits::Load(since) => {
                let seconds = self.now.since(since) / 1000;
                let message = format!("`{model}` is still {state} after {seconds} s; try again");
                Failure::new(FailureKind::StillLoading, message)
            }
            Awaits::Slot(since) => {
                let seconds = self.now.since(since) / 1000;
                let message = format!("`{model}` is loaded but busy: others had all of its slots for {seconds} s");
                let whole = format!("{message} (`limits: request_timeout:`); try again later");
                Failure::new(FailureKind::Busy, whole).for_clients(format!("{message}; try again later"))
            }
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
            if let Want::Again(again) = waiter.want {
                let leases_max = self.policy.models.get(&instance.model).map_or(1, |policy| policy.leases_max);
                instance.begin_trial(again, self.now, (leases_max, again.trial_ms(&self.policy)));
            }
            instance.leases.insert(waiter.id);
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
            Want::Again(again) => instance.has_room_for(again, leases_max) && gate.admits(waiter),
            Want::Serve | Want::ServeBatch => {
                instance.trial.is_none() && instance.leases.len() < leases_max && gate.admits(waiter)
            }
        };
        let queue = self.queues.get(&instance.model)?;
        let on_trial = |waiter: &Waiter| matches!(waiter.want, Want::Again(_));
        let tried_again = || queue.iter().position(|waiter| on_trial(waiter) && admitted(waiter));
        if queue.front().is_some_and(|first| self.is_trial_due(instance, first)) {
            // Nobody else begins: it might never find the worker empty.
            return tried_again().or_else(|| queue.iter().position(|waiter| waiter.want == Want::Load));
        }
        queue.iter().position(|waiter| !on_trial(waiter) && admitted(waiter)).or_else(tried_again)
    }

    /// Who is let in. Everyone, unless another model has waited for this one's memory: once the quantum is served, those
    /// who came no later than that model's oldest waiter; once that waiter is overdue, nobody.
    fn gate(&self, instance: &Instance) -> Gate {
        let Some(waiting_since) = self.oldest_waiter_beside(instance) else { return Gate::Open };
        if self.now < self.quantum_end(instance) {
            Gate::Open
        } else if self.now.since(waiting_since) < self.policy.max_wait_ms {
            Gate::UpTo(waiting_since)
        } else {
            Gate::Closed
        }
    }

    /// When the instance has served its quantum.
    pub(super) fn quantum_end(&self, instance: &Instance) -> Millis {
        let cost = self.history.get(&instance.model).map_or(0, |known| known.cost_ms);
        instance.since.after(self.policy.quantum_ms.max(cost.saturating_mul(QUANTUM_PER_COST)).max(1))
    }

    /// Since when the oldest waiter waits of a model that needs memory where this instance lies.
    pub(super) fn oldest_waiter_beside(&self, instance: &Instance) -> Option<Millis> {
        if self.policy.models.get(&instance.model).is_some_and(|policy| policy.pin) {
            return None;
        }
        let first = self.waiting_on(instance.device).into_iter().next()?;
        self.oldest_waiter(&self.instances.get(&first)?.model)
    }

    pub(super) fn oldest_waiter(&self, model: &ModelId) -> Option<Millis> {
        self.queues.get(model)?.iter().map(|waiter| waiter.since).min()
    }
}
