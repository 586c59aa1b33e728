//! Eviction: who has to leave a device so that another fits, and how each leaves.

use super::effect::Effect;
use super::memory::Holds;
use super::state::{Instance, State};
use crate::domain::{Device, EvictionCause, InstanceId, Millis, ModelState};

/// How an instance leaves its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Eviction {
    Park,
    Stop,
}

impl State {
    /// The least valuable idle instances that free enough together, and how each leaves; none if what is idle does not
    /// suffice, or enough is already on its way out.
    pub(super) fn victims(&self, id: InstanceId) -> Vec<(InstanceId, Eviction)> {
        let gentle = |id| if self.parks(id) { Eviction::Park } else { Eviction::Stop };
        self.victims_by(id, gentle).or_else(|| self.victims_by(id, |_| Eviction::Stop)).unwrap_or_default()
    }

    fn victims_by(&self, id: InstanceId, way: impl Fn(InstanceId) -> Eviction) -> Option<Vec<(InstanceId, Eviction)>> {
        let instance = self.instances.get(&id)?;
        let enough = |chosen: &[(InstanceId, Eviction)]| {
            let free =
                self.free(instance.device, |other, known| match chosen.iter().find(|(victim, _)| *victim == other) {
                    _ if other == id => Holds::Nothing,
                    Some((_, Eviction::Park)) => Holds::Parked,
                    Some((_, Eviction::Stop)) => Holds::Nothing,
                    None => known.will_hold(),
                });
            free.fits(instance.needs())
        };
        let mut chosen: Vec<(InstanceId, Eviction)> = Vec::new();
        for victim in self.candidates(id, instance.device) {
            if enough(&chosen) {
                break;
            }
            let parked = self.instances[&victim].state == ModelState::Parked;
            chosen.push((victim, if parked { Eviction::Stop } else { way(victim) }));
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
    fn candidates(&self, id: InstanceId, device: Device) -> Vec<InstanceId> {
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
    fn evictable(&self, id: InstanceId, instance: &Instance, device: Device) -> bool {
        let leaves = match instance.state {
            ModelState::Hot => instance.device == device && instance.leases.is_empty() && self.next_grant(id).is_none(),
            ModelState::Parked => device == self.policy.host_memory && self.queued(&instance.model) == 0,
            _ => false,
        };
        leaves && !self.is_pinned(instance)
    }

    /// Budgets may have been lowered: on each device the least valuable go until the others fit, those that serve after those
    /// that are idle, and pinned ones last.
    pub(super) fn leave_overfull(&mut self, effects: &mut Vec<Effect>) {
        for device in self.policy.devices.keys().copied().collect::<Vec<_>>() {
            for id in self.too_many(device) {
                let idle = self
                    .instances
                    .get(&id)
                    .is_some_and(|known| known.state == ModelState::Hot && known.leases.is_empty());
                if idle && device != self.policy.host_memory && self.parks(id) {
                    self.park(id, EvictionCause::Reload, effects);
                } else {
                    self.drain(id, EvictionCause::Reload, effects);
                }
            }
        }
    }

    /// The least valuable instances without which the others fit a device.
    fn too_many(&self, device: Device) -> Vec<InstanceId> {
        let is_host = device == self.policy.host_memory;
        let on_it = |known: &Instance| known.device == device || is_host && known.held > 0;
        let mut stay: Vec<_> = self
            .instances
            .iter()
            .filter(|(_, known)| on_it(known) && known.will_hold() == Holds::All)
            .map(|(id, known)| {
                let priority = self.policy.models.get(&known.model).map_or(0, |policy| policy.priority);
                (self.is_pinned(known), !known.leases.is_empty(), priority, known.used, *id)
            })
            .collect();
        stay.sort();
        let mut leaving = Vec::new();
        for (.., id) in stay {
            if self.fits_without(device, &leaving) {
                break;
            }
            leaving.push(id);
        }
        // What turned out not to be too much stays.
        for id in leaving.clone() {
            let without: Vec<_> = leaving.iter().copied().filter(|other| *other != id).collect();
            if self.fits_without(device, &without) {
                leaving = without;
            }
        }
        leaving
    }

    /// A load ran out of memory although it should have fitted: whatever is idle beside it goes, and it is tried once
    /// more. False if that was done already or nothing is idle.
    pub(super) fn evict_for_retry(&mut self, id: InstanceId, effects: &mut Vec<Effect>) -> bool {
        let Some((model, device)) = self.instances.get(&id).map(|i| (i.model.clone(), i.device)) else {
            return false;
        };
        let known = self.history.entry(model).or_default();
        if std::mem::replace(&mut known.retried, true) {
            return false;
        }
        let idle = self.candidates(id, device);
        for victim in &idle {
            self.stop(*victim, EvictionCause::Memory, effects);
        }
        !idle.is_empty()
    }
}
