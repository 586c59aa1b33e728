//! Room on devices: what is free, what can never fit, and who would have to leave for whom.

use std::collections::BTreeMap;

use super::admit::OTHERS_WAIT_MS;
use super::effect::{Cause, Effect};
use super::state::{Instance, State};
use crate::domain::{ByteSize, DeviceId, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState};

/// Weight files that an instance maps. Whoever maps the same files on a device shares their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mapped {
    /// Tells these files from others.
    pub files: u64,
    /// Bytes of them in memory.
    pub bytes: u64,
}

/// Bytes that an instance must have on a device, the mapped ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) mapped: Mapped,
}

/// Free bytes and free places on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) bytes: u64,
    pub(super) places: usize,
    /// Bytes by files that are mapped already.
    mapped: BTreeMap<u64, u64>,
}

impl Room {
    const NONE: Self = Self { bytes: 0, places: 0, mapped: BTreeMap::new() };

    pub(super) fn fits(&self, need: Need) -> bool {
        self.places > 0 && self.bytes >= need.bytes.saturating_sub(self.shared(need.mapped))
    }

    /// Bytes of these files that are in memory already.
    pub(super) fn shared(&self, mapped: Mapped) -> u64 {
        self.mapped.get(&mapped.files).map_or(0, |bytes| mapped.bytes.min(*bytes))
    }

    /// Takes what is held, but what is shared only once.
    fn take(&mut self, bytes: u64, mapped: Mapped) {
        self.bytes = self.bytes.saturating_sub(bytes.saturating_sub(self.shared(mapped)));
        if mapped.bytes > 0 {
            let known = self.mapped.entry(mapped.files).or_default();
            *known = mapped.bytes.max(*known);
        }
    }
}

/// What an instance is taken to hold in a look at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// What it holds now.
    All,
    /// What it would hold parked.
    Parked,
    /// Nothing.
    Nothing,
}

/// How an instance leaves its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Way {
    Park,
    Stop,
}

impl State {
    /// What is free on a device if each instance held what `holds` says.
    pub(super) fn room(&self, device: &DeviceId, holds: impl Fn(InstanceId, &Instance) -> Holds) -> Room {
        let limit = self.limit(device);
        self.room_within(limit, device, holds)
    }

    fn room_within(&self, limit: u64, device: &DeviceId, holds: impl Fn(InstanceId, &Instance) -> Holds) -> Room {
        let loaded_max = self.policy.devices.get(device).map_or(Some(0), |policy| policy.loaded_max);
        let mut room = Room { bytes: limit, places: loaded_max.unwrap_or(usize::MAX), ..Room::NONE };
        let is_host = *device == self.policy.host_memory;
        for (id, instance) in &self.instances {
            match holds(*id, instance) {
                Holds::All => {
                    if instance.device == *device {
                        let mapped = if instance.reserved > 0 { instance.mapped } else { Mapped::default() };
                        room.take(instance.reserved, mapped);
                        room.places = room.places.saturating_sub(usize::from(instance.takes_place()));
                    }
                    if is_host {
                        room.take(instance.held, Mapped::default());
                    }
                }
                Holds::Parked if is_host => room.take(self.held_parked(instance), Mapped::default()),
                Holds::Parked | Holds::Nothing => {}
            }
        }
        room
    }

    /// Bytes that instances may hold together: the budget, or less if others use the device.
    fn limit(&self, device: &DeviceId) -> u64 {
        let budget = self.budget(device);
        self.measured.get(device).map_or(budget, |measured| budget.min(*measured))
    }

    /// Bytes of host memory it will hold once parked: as last time; unknown, at most what it takes on another device.
    pub(super) fn held_parked(&self, instance: &Instance) -> u64 {
        let known = self.known.get(&instance.model).and_then(|known| known.held);
        known.unwrap_or(if instance.device == self.policy.host_memory { 0 } else { instance.required })
    }

    /// What is free for an instance that waits, started or parked: all that others do not hold.
    pub(super) fn room_for(&self, id: InstanceId) -> Room {
        let Some(instance) = self.instances.get(&id) else { return Room::NONE };
        self.room(&instance.device, |other, _| if other == id { Holds::Nothing } else { Holds::All })
    }

    /// Whether an instance can park: its plugin does, it worked so far, and the host has memory for it.
    pub(super) fn parks(&self, id: InstanceId) -> bool {
        let Some(instance) = self.instances.get(&id) else { return false };
        self.policy.models.get(&instance.model).is_some_and(|policy| policy.parks)
            && !self.known.get(&instance.model).is_some_and(|known| known.stays_out)
            && (instance.device == self.policy.host_memory
                || self.room(&self.policy.host_memory, |_, _| Holds::All).bytes >= self.held_parked(instance))
    }

    /// Why an instance can never be brought up where it is, with the numbers.
    pub(super) fn never_fits(&self, id: InstanceId) -> Option<Failure> {
        let instance = self.instances.get(&id)?;
        let device = &instance.device;
        let budget = self.policy.devices.get(device)?.budget;
        let most = self.most(device, Some(id));
        (!most.fits(instance.needs())).then(|| {
            let message = format!(
                "`{}` needs {} on {device}, where {} of the budget of {} can be had beside pinned models; raise `memory:` of the device, or choose smaller options",
                instance.model,
                ByteSize(instance.needs().bytes),
                ByteSize(most.bytes),
                ByteSize(budget)
            );
            Failure::new(FailureKind::OutOfMemory, message)
        })
    }

    /// Why an instance has waited long enough for room that is not this host's to make.
    pub(super) fn crowded_out(&self, id: InstanceId) -> Option<Failure> {
        let instance = self.instances.get(&id)?;
        let device = &instance.device;
        let most = self.room(device, |other, known| self.unless_pinned(other == id, known));
        let waited = self.now.since(self.oldest_waiter(&instance.model)?);
        (!most.fits(instance.needs()) && waited >= OTHERS_WAIT_MS).then(|| {
            let message = format!(
                "`{}` needs {} on {device}, where only {} are to be had because other programs use it; stop them, or choose smaller options",
                instance.model,
                ByteSize(instance.needs().bytes),
                ByteSize(most.bytes)
            );
            Failure::new(FailureKind::OutOfMemory, message)
        })
    }

    /// What can ever be had on a device for an instance, or for a new one.
    fn most(&self, device: &DeviceId, id: Option<InstanceId>) -> Room {
        self.room_within(self.budget(device), device, |other, known| self.unless_pinned(Some(other) == id, known))
    }

    /// Whether a model may ever come up on a device, as far as is known of it.
    pub(super) fn may_fit(&self, model: &ModelId, device: &DeviceId) -> bool {
        self.known.get(model).is_none_or(|known| self.most(device, None).fits(known.need))
    }

    /// What would be left if all that may leave did.
    fn unless_pinned(&self, own: bool, instance: &Instance) -> Holds {
        if self.is_pinned(instance) && !own { Holds::All } else { Holds::Nothing }
    }

    fn is_pinned(&self, instance: &Instance) -> bool {
        self.policy.models.get(&instance.model).is_some_and(|policy| policy.pin)
    }

    /// The least valuable idle instances that make room together, and how each leaves; none if what is idle does not
    /// suffice, or enough is already on its way out.
    pub(super) fn victims(&self, id: InstanceId) -> Vec<(InstanceId, Way)> {
        let gentle = |id| if self.parks(id) { Way::Park } else { Way::Stop };
        self.victims_by(id, gentle).or_else(|| self.victims_by(id, |_| Way::Stop)).unwrap_or_default()
    }

    fn victims_by(&self, id: InstanceId, way: impl Fn(InstanceId) -> Way) -> Option<Vec<(InstanceId, Way)>> {
        let instance = self.instances.get(&id)?;
        let enough = |chosen: &[(InstanceId, Way)]| {
            let room =
                self.room(&instance.device, |other, known| match chosen.iter().find(|(victim, _)| *victim == other) {
                    _ if other == id => Holds::Nothing,
                    Some((_, Way::Park)) => Holds::Parked,
                    Some((_, Way::Stop)) => Holds::Nothing,
                    None => known.will_hold(),
                });
            room.fits(instance.needs())
        };
        let mut chosen: Vec<(InstanceId, Way)> = Vec::new();
        for victim in self.candidates(id, &instance.device) {
            if enough(&chosen) {
                break;
            }
            let parked = self.instances[&victim].state == ModelState::Parked;
            chosen.push((victim, if parked { Way::Stop } else { way(victim) }));
        }
        if !enough(&chosen) {
            return None;
        }
        // What turned out not to be needed stays.
        for (victim, _) in chosen.clone() {
            let without: Vec<_> = chosen.iter().copied().filter(|(other, _)| *other != victim).collect();
            if enough(&without) {
                chosen = without;
            }
        }
        Some(chosen)
    }

    /// Who may be made to leave a device for an instance, the least valuable first: low priority, long unused.
    fn candidates(&self, id: InstanceId, device: &DeviceId) -> Vec<InstanceId> {
        let mut candidates: Vec<(i32, Millis, InstanceId)> = self
            .instances
            .iter()
            .filter(|(other, known)| **other != id && self.evictable(**other, known, device))
            .map(|(other, known)| {
                (self.policy.models.get(&known.model).map_or(0, |policy| policy.priority), known.used, *other)
            })
            .collect();
        candidates.sort();
        candidates.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Hot here, without a lease and without a waiter that its gate still lets in; or parked in this memory and not
    /// waited for. Never pinned.
    fn evictable(&self, id: InstanceId, instance: &Instance, device: &DeviceId) -> bool {
        let leaves = match instance.state {
            ModelState::Hot => {
                instance.device == *device && instance.leases.is_empty() && self.next_grant(id).is_none()
            }
            ModelState::Parked => *device == self.policy.host_memory && self.queued(&instance.model) == 0,
            _ => false,
        };
        leaves && !self.is_pinned(instance)
    }

    /// A load ran out of memory although it should have fitted: whatever is idle beside it goes, and it is tried once
    /// more. False if that was done already or nothing is idle.
    pub(super) fn evict_for_retry(&mut self, id: InstanceId, effects: &mut Vec<Effect>) -> bool {
        let Some((model, device)) = self.instances.get(&id).map(|i| (i.model.clone(), i.device.clone())) else {
            return false;
        };
        let known = self.known.entry(model).or_default();
        if std::mem::replace(&mut known.retried, true) {
            return false;
        }
        let idle = self.candidates(id, &device);
        for victim in &idle {
            self.stop(*victim, Cause::Room, effects);
        }
        !idle.is_empty()
    }
}

impl Instance {
    /// Whether it counts as loaded on its device.
    fn takes_place(&self) -> bool {
        match self.state {
            ModelState::Loading
            | ModelState::Hot
            | ModelState::Draining
            | ModelState::Parking
            | ModelState::Unparking => true,
            // A worker that never loaded holds nothing.
            _ => self.reserved > 0,
        }
    }

    /// What it will hold once what it does now is done.
    fn will_hold(&self) -> Holds {
        match self.state {
            ModelState::Stopping => Holds::Nothing,
            ModelState::Draining if !self.parks_next => Holds::Nothing,
            ModelState::Draining | ModelState::Parking => Holds::Parked,
            _ => Holds::All,
        }
    }
}
