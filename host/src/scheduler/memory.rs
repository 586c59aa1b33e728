//! FreeMemory on devices: what is free, what can never fit, and who would have to leave for whom.

use std::collections::BTreeMap;

use super::policy::{Mapped, Need, OTHERS_WAIT_MS};
use super::state::{Instance, State};
use crate::domain::{ByteSize, Device, Failure, FailureKind, InstanceId, ModelId, ModelState};

/// Free bytes and free places on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FreeMemory {
    pub(super) bytes: u64,
    pub(super) places: usize,
    /// Bytes by files that are mapped already.
    mapped: BTreeMap<u64, u64>,
}

impl FreeMemory {
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
    /// Nothing at all.
    Nothing,
}

impl State {
    /// What is free on a device if each instance held what `holds` says.
    pub(super) fn free(&self, device: Device, holds: impl Fn(InstanceId, &Instance) -> Holds) -> FreeMemory {
        let limit = self.limit(device);
        self.free_within(limit, device, holds)
    }

    fn free_within(&self, limit: u64, device: Device, holds: impl Fn(InstanceId, &Instance) -> Holds) -> FreeMemory {
        let loaded_max = self.policy.devices.get(&device).map_or(Some(0), |policy| policy.loaded_max);
        let mut free = FreeMemory { bytes: limit, places: loaded_max.unwrap_or(usize::MAX), ..FreeMemory::NONE };
        let is_host = device == self.policy.host_memory;
        for (id, instance) in &self.instances {
            match holds(*id, instance) {
                Holds::All => {
                    if instance.device == device {
                        let mapped = if instance.reserved > 0 { instance.mapped } else { Mapped::default() };
                        free.take(instance.reserved, mapped);
                        free.places = free.places.saturating_sub(usize::from(instance.takes_place()));
                    }
                    if is_host {
                        free.take(instance.held, Mapped::default());
                    }
                }
                Holds::Parked if is_host => free.take(self.held_parked(instance), Mapped::default()),
                Holds::Parked | Holds::Nothing => {}
            }
        }
        free
    }

    /// Whether what stays on a device is within its budget, once these have left it.
    pub(super) fn fits_without(&self, device: Device, leaving: &[InstanceId]) -> bool {
        let Some(policy) = self.policy.devices.get(&device) else { return true };
        let holds = |id, known: &Instance| if leaving.contains(&id) { Holds::Nothing } else { known.will_hold() };
        let held = u64::MAX - self.free_within(u64::MAX, device, holds).bytes;
        let loaded =
            self.on(device).filter(|(id, known)| holds(*id, known) == Holds::All && known.takes_place()).count();
        held <= policy.budget && policy.loaded_max.is_none_or(|most| loaded <= most)
    }

    /// Bytes that instances may hold together: the budget, or less if others use the device.
    fn limit(&self, device: Device) -> u64 {
        let budget = self.budget(device);
        self.measured.get(&device).map_or(budget, |measured| budget.min(*measured))
    }

    /// Bytes of host memory it will hold once parked: as last time; unknown, at most what it takes on another device.
    pub(super) fn held_parked(&self, instance: &Instance) -> u64 {
        let known = self.history.get(&instance.model).and_then(|known| known.held);
        known.unwrap_or(if instance.device == self.policy.host_memory { 0 } else { instance.required })
    }

    /// What is free for an instance that waits, started or parked: all that others do not hold.
    pub(super) fn free_for(&self, id: InstanceId) -> FreeMemory {
        let Some(instance) = self.instances.get(&id) else { return FreeMemory::NONE };
        self.free(instance.device, |other, _| if other == id { Holds::Nothing } else { Holds::All })
    }

    /// Whether an instance can park: its plugin does, it worked so far, and the host has memory for it.
    pub(super) fn parks(&self, id: InstanceId) -> bool {
        let Some(instance) = self.instances.get(&id) else { return false };
        self.policy.models.get(&instance.model).is_some_and(|policy| policy.parks)
            && !self.history.get(&instance.model).is_some_and(|known| known.keeps_out(id))
            && (instance.device == self.policy.host_memory
                || self.free(self.policy.host_memory, |_, _| Holds::All).bytes >= self.held_parked(instance))
    }

    /// Why an instance can never be brought up where it is, with the numbers.
    pub(super) fn never_fits(&self, id: InstanceId) -> Option<Failure> {
        let instance = self.instances.get(&id)?;
        let device = instance.device;
        let budget = self.policy.devices.get(&device)?.budget;
        let most = self.most(device, Some(id));
        (!most.fits(instance.needs())).then(|| {
            let there = match most.bytes == budget {
                true => format!("which has {} for models", ByteSize(budget)),
                false => format!("where {} of {} can be had beside pinned models", ByteSize(most.bytes), ByteSize(budget)),
            };
            let message = format!(
                "`{}` needs {} on {device}, {there}; give the device more (`devices:`, `memory:`) if it has more, or choose smaller options",
                instance.model,
                ByteSize(instance.needs().bytes),
            );
            let shown = format!("`{}` needs more memory than there is for it; ask whoever runs this host", instance.model);
            Failure::new(FailureKind::OutOfMemory, message).for_clients(shown)
        })
    }

    /// Why an instance has waited long enough for memory that is not this host's to free.
    pub(super) fn kept_out_by_others(&self, id: InstanceId) -> Option<Failure> {
        let instance = self.instances.get(&id)?;
        let device = instance.device;
        let most = self.free(device, |other, known| self.unless_pinned(other == id, known));
        let waited = self.now.since(self.oldest_waiter(&instance.model)?);
        (!most.fits(instance.needs()) && waited >= OTHERS_WAIT_MS).then(|| {
            let others = match device == self.policy.host_memory {
                true => "other programs use it, or models on cards have pinned it; stop those",
                false => "other programs use it; stop them",
            };
            let message = format!(
                "`{}` needs {} on {device}, where only {} are to be had because {others}, or choose smaller options",
                instance.model,
                ByteSize(instance.needs().bytes),
                ByteSize(most.bytes)
            );
            let shown =
                format!("`{}` needs more memory than other programs leave now; try again later", instance.model);
            Failure::new(FailureKind::OutOfMemory, message).for_clients(shown)
        })
    }

    /// What can ever be had on a device for an instance, or for a new one.
    fn most(&self, device: Device, id: Option<InstanceId>) -> FreeMemory {
        self.free_within(self.budget(device), device, |other, known| self.unless_pinned(Some(other) == id, known))
    }

    /// Whether a model may ever come up on a device, as far as is known of it.
    pub(super) fn may_fit(&self, model: &ModelId, device: Device) -> bool {
        self.history.get(model).is_none_or(|known| self.most(device, None).fits(known.need))
    }

    /// What would be left if all that may leave did.
    fn unless_pinned(&self, own: bool, instance: &Instance) -> Holds {
        if self.is_pinned(instance) && !own { Holds::All } else { Holds::Nothing }
    }

    pub(super) fn is_pinned(&self, instance: &Instance) -> bool {
        self.policy.models.get(&instance.model).is_some_and(|policy| policy.pin)
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
    pub(super) fn will_hold(&self) -> Holds {
        match self.state {
            ModelState::Stopping => Holds::Nothing,
            ModelState::Draining if !self.parks_next => Holds::Nothing,
            ModelState::Draining | ModelState::Parking => Holds::Parked,
            _ => Holds::All,
        }
    }
}
