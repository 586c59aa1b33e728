//! What there is to say of each device: what is configured and planned, what the system measures, and whose that is.
//! Nothing here decides. Measuring may take a moment, so it is done beside the loop.

use crate::device;
use crate::domain::{Device, InstanceId, ModelState};
use crate::scheduler::State;

use super::residents::Residents;

/// A device as `ps` and `/metrics` show it. Bytes; `None` where they cannot be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Which one.
    pub device: Device,
    /// What instances may hold there together.
    pub budget: u64,
    /// What is set aside for them: in the host's memory, what is parked there and pinned beside cards as well.
    pub reserved: u64,
    /// What they hold. On a card whose driver does not tell processes apart: what their plugins say.
    pub held: Option<u64>,
    /// What others hold.
    pub others: Option<u64>,
    /// What is free.
    pub free: Option<u64>,
    /// What it has.
    pub total: Option<u64>,
}

/// What the loop knows of a device, and what is to be measured there.
#[derive(Debug)]
pub(super) struct DeviceLook {
    device: Device,
    budget: u64,
    reserved: u64,
    instances: Vec<Holder>,
}

/// An instance on a device, or parked in the host's memory.
#[derive(Debug)]
struct Holder {
    pid: Option<u32>,
    /// What it holds by the system's count or its plugin's account; `None` if it takes or gives memory just now.
    told: Option<u64>,
}

/// A look at every device of the configuration. Changes nothing, and asks no driver.
pub(super) fn look_at_devices(state: &State, residents: &Residents) -> Vec<DeviceLook> {
    let host_memory = state.policy().host_memory;
    let look = |(device, policy): (&Device, &crate::scheduler::DevicePolicy)| {
        let is_host = *device == host_memory;
        let here = || state.instances().iter().filter(|(_, known)| known.device == *device);
        let reserved = here().map(|(_, known)| known.reserved).sum::<u64>();
        let beside = |(id, known): (&InstanceId, &crate::scheduler::Instance)| {
            let pinned = residents.planned(*id).filter(|_| !known.device.is_host_memory());
            known.held.max(pinned.map_or(0, |planned| planned.plan.pinned))
        };
        let beside = state.instances().iter().filter(|_| is_host).map(beside).fold(0, u64::saturating_add);
        let holder = |id, known: &crate::scheduler::Instance| {
            let handle = residents.handle(id);
            let said = residents.planned(id).map(|planned| planned.held).filter(|bytes| *bytes > 0);
            let told = match is_host {
                true => handle.and_then(|handle| handle.usage()),
                false if known.state == ModelState::Parked => Some(0),
                false => (!moves_memory(known.state)).then(|| said.unwrap_or(known.reserved).min(known.reserved)),
            };
            Holder { pid: handle.and_then(|handle| handle.pid()), told }
        };
        // Every worker holds some of the host's memory, wherever its model lies.
        let holders = state.instances().iter().filter(|(_, known)| is_host || known.device == *device);
        DeviceLook {
            device: *device,
            budget: policy.budget,
            reserved: reserved.saturating_add(beside),
            instances: holders.map(|(id, known)| holder(*id, known)).collect(),
        }
    };
    state.policy().devices.iter().filter(|(device, _)| **device != Device::Remote).map(look).collect()
}

/// Measures them, all at once: a card that does not answer costs half a second, however many there are.
pub(super) fn measure_devices(looks: Vec<DeviceLook>) -> Vec<DeviceStatus> {
    std::thread::scope(|scope| {
        let started: Vec<_> = looks.into_iter().map(|look| scope.spawn(move || look.measured())).collect();
        started.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

/// Whether an instance in this state takes or gives memory on its device just now.
pub(super) fn moves_memory(state: ModelState) -> bool {
    matches!(state, ModelState::Loading | ModelState::Parking | ModelState::Unparking | ModelState::Stopping)
}

impl DeviceLook {
    fn measured(self) -> DeviceStatus {
        let memory = device::measured(self.device);
        let used = memory.map(|memory| memory.total.saturating_sub(memory.free));
        let held = self.held();
        DeviceStatus {
            device: self.device,
            budget: self.budget,
            reserved: self.reserved,
            held,
            others: used.zip(held).map(|(used, held)| used.saturating_sub(held)),
            free: memory.map(|memory| memory.free),
            total: memory.map(|memory| memory.total),
        }
    }

    /// What is this host's: of its own memory, the host itself with it.
    fn held(&self) -> Option<u64> {
        if self.device.is_host_memory() {
            let workers = self.instances.iter().filter_map(|holder| holder.told);
            let own = device::charged_to(std::process::id()).unwrap_or(0);
            return Some(workers.fold(own, u64::saturating_add));
        }
        let held = |holder: &Holder| holder.pid.and_then(|pid| device::held_by(self.device, pid)).or(holder.told);
        self.instances.iter().map(held).try_fold(0, |sum: u64, held| Some(sum.saturating_add(held?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_hold_is_unknown_where_something_is() {
        let look = |instances| DeviceLook { device: Device::Cuda(99), budget: 9, reserved: 5, instances };
        let holder = |told| Holder { pid: None, told };
        assert_eq!(look(vec![holder(Some(2)), holder(Some(3))]).held(), Some(5));
        assert_eq!(look(vec![holder(Some(2)), holder(None)]).held(), None, "one takes memory just now");
        // A card that is not there, or does not answer.
        let status = measure_devices(vec![look(vec![holder(Some(2))])]).pop();
        let unknown = DeviceStatus {
            device: Device::Cuda(99),
            budget: 9,
            reserved: 5,
            held: Some(2),
            others: None,
            free: None,
            total: None,
        };
        assert_eq!(status, Some(unknown));
    }

    #[test]
    fn the_hosts_own_memory_is_measured_and_the_host_holds_some() {
        let look = DeviceLook { device: Device::Cpu, budget: 9, reserved: 0, instances: Vec::new() };
        let status = look.measured();
        let (Some(held), Some(free), Some(total), Some(others)) =
            (status.held, status.free, status.total, status.others)
        else {
            panic!("{status:?}");
        };
        assert!(held > 0 && held < total && free <= total && others <= total - free, "{status:?}");
    }
}
