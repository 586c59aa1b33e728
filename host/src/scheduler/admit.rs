//! Residency: which workers start, who is evicted for whom, and what is loaded.

use super::effect::Effect;
use super::state::{Instance, State};
use crate::domain::{ByteSize, DeviceId, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState};

/// Workers per device that may be up and wait for room: the next model's process starts while the one before it still serves.
const COMING_UP_MAX: usize = 2;

impl State {
    /// Draws every consequence of the state as it is now. Called once after each event.
    pub(super) fn settle(&mut self, effects: &mut Vec<Effect>) {
        self.give_up(effects);
        self.grant(effects);
        self.end_drained(effects);
        self.end_idle(effects);
        self.drop_unwanted(effects);
        self.start_wanted(effects);
        for device in self.policy.devices.keys().cloned().collect::<Vec<_>>() {
            while self.make_room(&device, effects) {}
        }
        effects.extend(self.next_deadline().map(Effect::Wake));
    }

    fn end_drained(&mut self, effects: &mut Vec<Effect>) {
        self.stop_where(effects, |_, instance| instance.state == ModelState::Draining && instance.leases.is_empty());
    }

    fn end_idle(&mut self, effects: &mut Vec<Effect>) {
        self.stop_where(effects, |state, instance| {
            state.idle_deadline(instance).is_some_and(|deadline| deadline <= state.now)
        });
    }

    /// Workers that wait for room nobody waits for any more.
    fn drop_unwanted(&mut self, effects: &mut Vec<Effect>) {
        self.stop_where(effects, |state, instance| {
            instance.state == ModelState::Waiting && state.queued(&instance.model) == 0
        });
    }

    fn stop_where(&mut self, effects: &mut Vec<Effect>, condition: impl Fn(&Self, &Instance) -> bool) {
        let ids: Vec<InstanceId> =
            self.instances.iter().filter(|(_, instance)| condition(self, instance)).map(|(id, _)| *id).collect();
        for id in ids {
            self.stop(id, effects);
        }
    }

    /// When an idle instance is to end.
    fn idle_deadline(&self, instance: &Instance) -> Option<Millis> {
        let policy = self.policy.models.get(&instance.model).filter(|policy| !policy.pin)?;
        let idle = instance.state == ModelState::Hot && instance.leases.is_empty();
        idle.then_some(instance.used.after(policy.keep_alive_ms?))
    }

    /// Workers for models that are waited for, longest wait first.
    fn start_wanted(&mut self, effects: &mut Vec<Effect>) {
        let mut wanted: Vec<(Millis, ModelId)> = self
            .queues
            .keys()
            .filter(|model| self.instance_of(model).is_none())
            .filter_map(|model| Some((self.oldest_waiter(model)?, model.clone())))
            .collect();
        wanted.sort();
        for (_, model) in wanted {
            if let Some(device) = self.device_for(&model) {
                self.start(&model, device, effects);
            }
        }
    }

    /// The model's first device on which not too many workers are coming up already.
    fn device_for(&self, model: &ModelId) -> Option<DeviceId> {
        let devices = &self.policy.models.get(model)?.devices;
        devices
            .iter()
            .find(|device| self.policy.devices.contains_key(*device) && self.coming_up(device) < COMING_UP_MAX)
            .cloned()
    }

    fn coming_up(&self, device: &DeviceId) -> usize {
        self.on(device).filter(|(_, i)| matches!(i.state, ModelState::Starting | ModelState::Waiting)).count()
    }

    fn on<'a>(&'a self, device: &'a DeviceId) -> impl Iterator<Item = (InstanceId, &'a Instance)> {
        self.instances
            .iter()
            .filter(move |(_, instance)| instance.device == *device)
            .map(|(id, instance)| (*id, instance))
    }

    /// Instances that wait for room, the one with the oldest waiter first.
    pub(super) fn waiting_on(&self, device: &DeviceId) -> Vec<InstanceId> {
        let mut waiting: Vec<(Option<Millis>, InstanceId)> = self
            .on(device)
            .filter(|(_, instance)| instance.state == ModelState::Waiting)
            .map(|(id, instance)| (self.oldest_waiter(&instance.model), id))
            .collect();
        waiting.sort();
        waiting.into_iter().map(|(_, id)| id).collect()
    }

    /// Loads the first that waits, refuses it, or begins to evict for it. True if another may be looked at now.
    fn make_room(&mut self, device: &DeviceId, effects: &mut Vec<Effect>) -> bool {
        let Some(id) = self.waiting_on(device).into_iter().next() else { return false };
        let Some(required) = self.instances.get(&id).map(|instance| instance.required) else { return false };
        if let Some(failure) = self.never_fits(id, device) {
            let model = self.instances[&id].model.clone();
            self.stop(id, effects);
            self.fail_model(&model, failure, effects);
            return true;
        }
        if self.room(device, |_| true).fits(required) {
            self.load(id, device, effects);
            return true;
        }
        let victims = self.victims(device, required);
        for victim in victims {
            self.stop(victim, effects);
        }
        false
    }

    fn load(&mut self, id: InstanceId, device: &DeviceId, effects: &mut Vec<Effect>) {
        let (free, now) = (self.room(device, |_| true).bytes, self.now);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.reserved = instance.preferred.min(free).max(instance.required);
            instance.enter(ModelState::Loading, now);
            effects.push(Effect::Load { instance: id, granted: instance.reserved });
        }
    }

    /// What is free on a device if only the instances that `counts` accepts held anything.
    fn room(&self, device: &DeviceId, counts: impl Fn(InstanceId) -> bool) -> Room {
        let Some(policy) = self.policy.devices.get(device) else { return Room { bytes: 0, places: 0 } };
        let mut room = Room { bytes: policy.budget, places: policy.loaded_max.unwrap_or(usize::MAX) };
        for (id, instance) in self.on(device) {
            let holds = match instance.state {
                ModelState::Loading | ModelState::Hot | ModelState::Draining => true,
                // A worker that never loaded holds nothing.
                _ => instance.reserved > 0,
            };
            if holds && counts(id) {
                room.bytes = room.bytes.saturating_sub(instance.reserved);
                room.places = room.places.saturating_sub(1);
            }
        }
        room
    }

    /// Why an instance can never load here, with the numbers.
    fn never_fits(&self, id: InstanceId, device: &DeviceId) -> Option<Failure> {
        let instance = self.instances.get(&id)?;
        let pinned = |other: InstanceId| {
            let model = self.instances.get(&other).map(|other| &other.model);
            model.and_then(|model| self.policy.models.get(model)).is_some_and(|policy| policy.pin)
        };
        let most = self.room(device, pinned);
        if most.fits(instance.required) {
            return None;
        }
        let budget = self.policy.devices.get(device)?.budget;
        let message = format!(
            "`{}` needs {} on {device}, where {} of the budget of {} can be had beside pinned models; raise `memory:` of the device, or choose smaller options",
            instance.model,
            ByteSize(instance.required),
            ByteSize(most.bytes),
            ByteSize(budget)
        );
        Some(Failure::new(FailureKind::OutOfMemory, message))
    }

    /// The least valuable idle instances that make room together; none if what is idle does not suffice, or enough is
    /// already on its way out.
    fn victims(&self, device: &DeviceId, required: u64) -> Vec<InstanceId> {
        let leaving = |id: &InstanceId| {
            self.instances.get(id).is_some_and(|i| matches!(i.state, ModelState::Stopping | ModelState::Draining))
        };
        let mut candidates: Vec<(i32, Millis, InstanceId)> = self
            .on(device)
            .filter(|(id, instance)| self.evictable(*id, instance))
            .map(|(id, instance)| {
                (self.policy.models.get(&instance.model).map_or(0, |policy| policy.priority), instance.used, id)
            })
            .collect();
        candidates.sort();
        let mut chosen: Vec<InstanceId> = Vec::new();
        let enough =
            |chosen: &[InstanceId]| self.room(device, |id| !leaving(&id) && !chosen.contains(&id)).fits(required);
        for (_, _, id) in candidates {
            if enough(&chosen) {
                break;
            }
            chosen.push(id);
        }
        if !enough(&chosen) {
            return Vec::new();
        }
        // What turned out not to be needed stays.
        for id in chosen.clone() {
            let without: Vec<InstanceId> = chosen.iter().copied().filter(|other| *other != id).collect();
            if enough(&without) {
                chosen = without;
            }
        }
        chosen
    }

    /// Hot, unpinned, without a lease and without a waiter that its gate still lets in.
    fn evictable(&self, id: InstanceId, instance: &Instance) -> bool {
        instance.state == ModelState::Hot
            && instance.leases.is_empty()
            && self.policy.models.get(&instance.model).is_none_or(|policy| !policy.pin)
            && self.next_grant(id).is_none()
    }

    /// The next time something changes without an event.
    fn next_deadline(&self) -> Option<Millis> {
        let patience = self
            .queues
            .values()
            .flatten()
            .filter(|waiter| waiter.want != super::Want::Load)
            .map(|waiter| waiter.since.after(self.policy.hold_ms));
        let idle = self.instances.values().filter_map(|instance| self.idle_deadline(instance));
        let gates =
            self.instances.values().filter(|instance| instance.state == ModelState::Hot).filter_map(|instance| {
                let rival = self.oldest_rival(instance)?;
                Some([self.quantum_end(instance), rival.after(self.policy.max_wait_ms)])
            });
        patience.chain(idle).chain(gates.flatten()).filter(|deadline| *deadline > self.now).min()
    }
}

/// Free bytes and free places on a device.
struct Room {
    bytes: u64,
    places: usize,
}

impl Room {
    fn fits(&self, required: u64) -> bool {
        self.places > 0 && self.bytes >= required
    }
}
