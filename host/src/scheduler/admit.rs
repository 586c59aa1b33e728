//! Residency: which workers start, what is loaded and woken, and who leaves the device for whom.

use super::effect::Effect;
use super::event::Want;
use super::evict::Eviction;
use super::memory::Holds;
use super::policy::{Keep, OTHERS_WAIT_MS};
use super::state::{Instance, State};
use crate::domain::{Device, EvictionCause, InstanceId, Millis, ModelId, ModelState};

/// Workers per device that may be up and wait for memory: the next model's process starts while the one before it still serves.
const COMING_UP_MAX: usize = 2;

impl State {
    /// Draws every consequence of the state as it is now. Called once after each event.
    pub(super) fn schedule(&mut self, effects: &mut Vec<Effect>) {
        self.look_what_is_awaited();
        self.give_up(effects);
        self.end_trials();
        self.grant(effects);
        self.end_drained(effects);
        self.cut_overdue(effects);
        self.end_idle(effects);
        self.drop_unwanted(effects);
        self.start_wanted(effects);
        for device in self.policy.devices.keys().copied().collect::<Vec<_>>() {
            while self.serve_first_waiting(device, effects) {}
        }
        self.spread(effects);
        effects.extend(self.next_deadline().map(Effect::SetTimer));
    }

    pub(super) fn ids_where(&self, condition: impl Fn(InstanceId, &Instance) -> bool) -> Vec<InstanceId> {
        self.instances.iter().filter(|(id, instance)| condition(**id, instance)).map(|(id, _)| *id).collect()
    }

    fn end_drained(&mut self, effects: &mut Vec<Effect>) {
        for id in self.ids_where(|_, i| i.state == ModelState::Draining && i.leases.is_empty()) {
            if self.instances[&id].parks_next && self.parks(id) {
                self.park(id, self.instances[&id].cause, effects);
            } else {
                self.stop(id, self.instances[&id].cause, effects);
            }
        }
    }

    /// Leases that outlived the operator's deadline.
    fn cut_overdue(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        for (id, instance) in &mut self.instances {
            if instance.state == ModelState::Draining && instance.cut_at.is_some_and(|at| at <= now) {
                instance.cut_at = None;
                effects.push(Effect::Kill(*id));
            }
        }
    }

    /// What nobody asked for in time parks if it can; what was to go with its last lease stops.
    fn end_idle(&mut self, effects: &mut Vec<Effect>) {
        for id in self.ids_where(|_, i| self.idle_deadline(i).is_some_and(|deadline| deadline <= self.now)) {
            if self.parks(id) && self.instances[&id].keep != Some(Keep::For(0)) {
                self.park(id, EvictionCause::Idle, effects);
            } else {
                self.stop(id, EvictionCause::Idle, effects);
            }
        }
    }

    /// When an idle instance is to leave the device.
    fn idle_deadline(&self, instance: &Instance) -> Option<Millis> {
        let policy = self.policy.models.get(&instance.model).filter(|policy| !policy.pin)?;
        let idle = instance.state == ModelState::Hot && instance.leases.is_empty();
        match instance.keep.unwrap_or(policy.keep) {
            Keep::For(milliseconds) if idle => Some(instance.used.after(milliseconds)),
            _ => None,
        }
    }

    /// Workers that wait for memory nobody waits for any more.
    fn drop_unwanted(&mut self, effects: &mut Vec<Effect>) {
        for id in self.ids_where(|_, i| i.state == ModelState::Waiting && self.queued(&i.model) == 0) {
            self.stop(id, EvictionCause::Unwanted, effects);
        }
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

    /// Of the model's devices on which not too many workers are coming up already: one with free memory for what it
    /// needed last time, else the least busy of those where it may ever fit, else the first.
    fn device_for(&self, model: &ModelId) -> Option<Device> {
        let devices = || self.devices_of(model).filter(|device| self.coming_up(*device) < COMING_UP_MAX);
        let leases = |device: &Device| self.on(*device).map(|(_, instance)| instance.leases.len()).sum::<usize>();
        let fitting = || devices().filter(|device| self.may_fit(model, *device)).min_by_key(leases);
        self.device_with_free_memory(model).or_else(|| fitting().or_else(|| devices().next()))
    }

    /// A device of the model's with free memory for what it needed last time and nobody waiting there, the one with the
    /// fewest instances of it first.
    fn device_with_free_memory(&self, model: &ModelId) -> Option<Device> {
        let need = self.history.get(model).map(|known| known.need).filter(|need| need.bytes > 0)?;
        let fitting = self
            .devices_of(model)
            .filter(|device| self.coming_up(*device) == 0 && self.free(*device, |_, _| Holds::All).fits(need));
        fitting.min_by_key(|device| self.on(*device).filter(|(_, instance)| instance.model == *model).count())
    }

    fn coming_up(&self, device: Device) -> usize {
        self.on(device).filter(|(_, i)| matches!(i.state, ModelState::Starting | ModelState::Waiting)).count()
    }

    pub(super) fn on(&self, device: Device) -> impl Iterator<Item = (InstanceId, &Instance)> {
        self.instances
            .iter()
            .filter(move |(_, instance)| instance.device == device)
            .map(|(id, instance)| (*id, instance))
    }

    /// Instances that wait for memory here, started or parked, the one with the oldest waiter first. A second instance
    /// of a model is not among them: nothing is evicted for it.
    pub(super) fn waiting_on(&self, device: Device) -> Vec<InstanceId> {
        let mut waiting: Vec<(Millis, InstanceId)> = self
            .on(device)
            .filter(|(id, instance)| self.wants_memory(instance) && !self.is_extra(*id, instance))
            .filter_map(|(id, instance)| Some((self.oldest_waiter(&instance.model)?, id)))
            .collect();
        waiting.sort();
        waiting.into_iter().map(|(_, id)| id).collect()
    }

    /// The model that memory of this device is made free for.
    pub fn first_waiting(&self, device: Device) -> Option<&ModelId> {
        let first = self.waiting_on(device).into_iter().next()?;
        self.instances.get(&first).map(|instance| &instance.model)
    }

    fn wants_memory(&self, instance: &Instance) -> bool {
        matches!(instance.state, ModelState::Waiting | ModelState::Parked) && self.queued(&instance.model) > 0
    }

    /// Whether another instance of its model serves or will serve before it.
    fn is_extra(&self, id: InstanceId, instance: &Instance) -> bool {
        let leaves = |state| matches!(state, ModelState::Draining | ModelState::Stopping | ModelState::Parking);
        let first = self.instances_of(&instance.model).into_iter().find(|(_, other)| !leaves(other.state));
        first.is_some_and(|(first, _)| first != id)
    }

    /// Brings up the first that waits, refuses it, or begins to evict for it. True if another may be looked at now.
    fn serve_first_waiting(&mut self, device: Device, effects: &mut Vec<Effect>) -> bool {
        let Some(id) = self.waiting_on(device).into_iter().next() else { return false };
        let Some((model, needs)) = self.instances.get(&id).map(|i| (i.model.clone(), i.needs())) else {
            return false;
        };
        let never_fits = self.never_fits(id);
        if never_fits.is_some() && self.fits_elsewhere(&model, device) {
            self.stop(id, EvictionCause::Unwanted, effects);
            return true;
        }
        if let Some(failure) = never_fits.or_else(|| self.kept_out_by_others(id)) {
            self.stop(id, EvictionCause::Failed, effects);
            self.fail_model(&model, failure, effects);
            return true;
        }
        if self.free_for(id).fits(needs) {
            self.bring_up(id, effects);
            return true;
        }
        // It was started where its model comes first, before anyone knew what it needs: it begins again where there is enough.
        if self.instances[&id].state == ModelState::Waiting && self.device_with_free_memory(&model).is_some() {
            self.stop(id, EvictionCause::Unwanted, effects);
            return true;
        }
        for (victim, way) in self.victims(id) {
            match way {
                Eviction::Park => self.park(victim, EvictionCause::Memory, effects),
                Eviction::Stop => self.stop(victim, EvictionCause::Memory, effects),
            }
        }
        false
    }

    fn fits_elsewhere(&self, model: &ModelId, device: Device) -> bool {
        self.devices_of(model).any(|other| other != device && self.may_fit(model, other))
    }

    /// The devices that a model may use and that are there, in order of preference.
    fn devices_of(&self, model: &ModelId) -> impl Iterator<Item = Device> {
        let devices = self.policy.models.get(model).into_iter().flat_map(|policy| &policy.devices);
        devices.copied().filter(|device| self.policy.devices.contains_key(device))
    }

    /// Loads what waits, wakes what is parked.
    fn bring_up(&mut self, id: InstanceId, effects: &mut Vec<Effect>) {
        let (free, now) = (self.free_for(id), self.now);
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.state == ModelState::Parked {
            instance.reserved = instance.granted;
            if instance.device == self.policy.host_memory {
                instance.held = 0;
            }
            instance.enter(ModelState::Unparking, now);
            effects.push(Effect::Unpark(id));
        } else {
            let most = free.bytes.saturating_add(free.shared(instance.mapped));
            instance.reserved = instance.preferred.min(most).max(instance.required);
            instance.granted = instance.reserved;
            instance.enter(ModelState::Loading, now);
            effects.push(Effect::Load { instance: id, granted: instance.reserved });
        }
    }

    /// More instances of models whose own are all full, as far as `replicas` and free memory go. Nothing is evicted for them.
    fn spread(&mut self, effects: &mut Vec<Effect>) {
        for id in self.ids_where(|id, i| self.wants_memory(i) && self.is_extra(id, i)) {
            let Some(instance) = self.instances.get(&id) else { continue };
            let fits = self.waiting_on(instance.device).is_empty() && self.free_for(id).fits(instance.needs());
            let parked = instance.state == ModelState::Parked;
            if fits && (!parked || self.wants_more(&instance.model)) {
                self.bring_up(id, effects);
            } else if !parked {
                self.stop(id, EvictionCause::Unwanted, effects);
            }
        }
        for model in self.queues.keys().cloned().collect::<Vec<_>>() {
            let count = self.instances_of(&model).len();
            let more = self.policy.models.get(&model).is_some_and(|policy| count < policy.replicas);
            if more
                && self.wants_more(&model)
                && let Some(device) = self.device_with_free_memory(&model)
                && self.waiting_on(device).is_empty()
            {
                self.start(&model, device, effects);
            }
        }
    }

    /// Whether someone waits for a lease and every instance is hot and full, or closed by a trial.
    fn wants_more(&self, model: &ModelId) -> bool {
        let leases_max = self.policy.models.get(model).map_or(0, |policy| policy.leases_max);
        let full = |(_, i): &(InstanceId, &Instance)| {
            i.state == ModelState::Hot && (i.trial.is_some() || i.leases.len() >= leases_max)
        };
        let hot_or_parked: Vec<_> =
            self.instances_of(model).into_iter().filter(|(_, i)| i.state != ModelState::Parked).collect();
        self.queues.get(model).is_some_and(|queue| queue.iter().any(|waiter| waiter.want != Want::Load))
            && !hot_or_parked.is_empty()
            && hot_or_parked.iter().all(full)
    }

    /// The next time something changes without an event.
    fn next_deadline(&self) -> Option<Millis> {
        let patience = self.queues.values().flatten().filter_map(|waiter| self.patience_end(waiter));
        let idle = self.instances.values().filter_map(|instance| self.idle_deadline(instance));
        let cuts = self.instances.values().filter_map(|instance| instance.cut_at);
        let kept_out = self
            .instances
            .values()
            .filter(|instance| self.wants_memory(instance))
            .filter_map(|instance| Some(self.oldest_waiter(&instance.model)?.after(OTHERS_WAIT_MS)));
        let gates =
            self.instances.values().filter(|instance| instance.state == ModelState::Hot).filter_map(|instance| {
                let waiting_since = self.oldest_waiter_beside(instance)?;
                Some([self.quantum_end(instance), waiting_since.after(self.policy.max_wait_ms)])
            });
        let all = patience.chain(idle).chain(cuts).chain(kept_out).chain(gates.flatten()).chain(self.trial_ends());
        all.filter(|deadline| *deadline > self.now).min()
    }
}
