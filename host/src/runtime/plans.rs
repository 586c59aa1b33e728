//! What a plugin plans that cannot be meant, and what cannot be had here. A plan that passes is counted by `memory`.

use aihost_plugin_api::MemoryPlan;

use super::run::Loop;
use crate::domain::{ByteSize, Device, Failure, FailureKind, InstanceId, ModelId, excerpt};

/// Bytes shown of a name that a plugin gives to a device.
const DEVICE_SHOWN_BYTES: usize = 40;

impl Loop {
    /// Says what in a plan cannot be meant. It is taken for the nearest that can.
    pub(super) fn doubt(&self, id: InstanceId, model: &ModelId, plan: &MemoryPlan) {
        let MemoryPlan { required, preferred, mapped, pinned, .. } = *plan;
        let on_host = self.device_of(id).is_some_and(Device::is_host_memory);
        for (name, bytes, wrong) in [
            // None at all is a plugin that would take what it requires.
            ("preferred", preferred, preferred > 0 && preferred < required),
            ("mapped", mapped, mapped > required),
            // Where the device is the host's memory, that is part of what it requires.
            ("pinned", pinned, on_host && pinned > required),
        ] {
            if wrong {
                let (bytes, required) = (ByteSize(bytes), ByteSize(required));
                tracing::warn!(%model, "its plugin plans `{name}` of {bytes} beside `required` of {required}, which cannot be");
            }
        }
    }

    /// Why an instance with this plan cannot be brought up where it is, whoever else leaves its device.
    pub(super) fn refused_plan(&self, id: InstanceId, model: &ModelId, plan: &MemoryPlan) -> Option<Failure> {
        let device = self.device_of(id)?;
        self.beside(model, device, plan).or_else(|| self.too_much_pinned(id, model, device, plan))
    }

    fn device_of(&self, id: InstanceId) -> Option<Device> {
        self.state.instances().get(&id).map(|known| known.device)
    }

    /// This host gives an instance one device.
    fn beside(&self, model: &ModelId, device: Device, plan: &MemoryPlan) -> Option<Failure> {
        let (other, bytes) = plan.others.iter().find(|(_, bytes)| **bytes > 0)?;
        let (name, bytes) = (excerpt(other, DEVICE_SHOWN_BYTES), ByteSize(*bytes));
        let message = match other.parse() == Ok(device) {
            true => format!(
                "the plugin of `{model}` plans {bytes} of its own device {device} among others; it must count them in `required`"
            ),
            false => format!(
                "`{model}` needs {bytes} on {name} beside {device}, and this host gives an instance one device; choose options with which it fits on one"
            ),
        };
        let shown = format!("`{model}` needs more than one device; ask whoever runs this host");
        Some(Failure::new(FailureKind::NotUsable, message).for_clients(shown))
    }

    /// Pinned memory cannot be swapped out or taken back, so what others hold is not there for it.
    fn too_much_pinned(&self, id: InstanceId, model: &ModelId, device: Device, plan: &MemoryPlan) -> Option<Failure> {
        let wanted = plan.pinned;
        if device.is_host_memory() || wanted == 0 {
            return None;
        }
        let host = self.state.policy().host_memory;
        let budget = self.state.budget(host);
        let others = self.state.instances().iter().filter(|(other, _)| **other != id);
        let held = others.map(|(other, known)| match known.device == host {
            true => known.reserved,
            false => known.held.saturating_add(self.pinned_by(*other)),
        });
        let left = budget.saturating_sub(held.fold(0, u64::saturating_add));
        let free = self.backends.placement.capacity(host).map_or(left, |free| free.min(left));
        (wanted > free).then(|| {
            let (wanted, free, budget) = (ByteSize(wanted), ByteSize(free), ByteSize(budget));
            let message = format!(
                "`{model}` needs {wanted} of pinned host memory beside {device}, and {free} of {budget} can be had; unload others that hold host memory, give `{host}` more (`devices:`, `memory:`) if it has more, or choose smaller options"
            );
            let shown = format!("`{model}` needs more memory than there is for it; ask whoever runs this host");
            Failure::new(FailureKind::OutOfMemory, message).for_clients(shown)
        })
    }

    /// Bytes of pinned host memory that instances on cards hold, or will once they are loaded.
    pub(super) fn pinned(&self) -> u64 {
        self.state.instances().keys().map(|id| self.pinned_by(*id)).fold(0, u64::saturating_add)
    }

    /// The same of one of them. What it holds of the host's memory while it is parked is counted as that.
    fn pinned_by(&self, id: InstanceId) -> u64 {
        let known = self.state.instances().get(&id).filter(|known| !known.device.is_host_memory());
        let pinned = self.residents.planned(id).map_or(0, |planned| planned.plan.pinned);
        known.map_or(0, |known| pinned.saturating_sub(known.held))
    }
}
