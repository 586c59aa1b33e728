//! From the configuration to what the scheduler must know.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plugins::Running;
use crate::config::{Config, ModelConfig, RemoteConfig};
use crate::device;
use crate::domain::Device;
use crate::plugin::{PluginFile, Registry};
use crate::scheduler::{DevicePolicy, Keep, ModelPolicy, Policy};

/// Leases at once for a plugin that is not there (its loads fail anyway).
const LEASES_DEFAULT: usize = 1;

/// What devices had that name no budget, when they were first seen.
pub(super) type FoundBudgets = BTreeMap<Device, u64>;

/// Looks at devices and plugins, and takes longer the more models there are. `found`: what devices without a `memory:` had when they were first seen. What they have later is less by what is loaded.
/// `running`: the plugin files by which models are scheduled whatever lies in the folders.
pub(super) fn policy(config: &Config, registry: &Registry, running: &Running, found: &mut FoundBudgets) -> Policy {
    let mut measured = |device: Device| {
        let bytes = || device::measured_budget(device).unwrap_or(0);
        *found.entry(device).or_insert_with(bytes)
    };
    let devices = config.devices.iter().map(|device| {
        let budget = device.memory.map_or_else(|| measured(device.id), |size| size.0);
        let loaded_max = device.max_loaded.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        (device.id, DevicePolicy { budget, loaded_max })
    });
    // Parked models lie in the host's own memory even if no model runs there.
    let host_memory = Device::Cpu;
    let mut devices: BTreeMap<Device, DevicePolicy> = devices.collect();
    devices.entry(host_memory).or_insert_with(|| DevicePolicy { budget: measured(host_memory), loaded_max: None });
    if config.models.values().any(|model| model.http.remote.is_some()) {
        // Whoever runs them knows what they have room for.
        devices.insert(Device::Remote, DevicePolicy { budget: u64::MAX, loaded_max: None });
    }
    let of_model = |model: &ModelConfig| {
        let plugin = running.get(&model.id).filter(|plugin| plugin.manifest.id == model.plugin).cloned();
        let plugin = plugin.or_else(|| registry.find(&model.plugin, model.plugin_version.as_ref()).ok());
        model_policy(model, config, plugin.as_deref())
    };
    Policy {
        models: config.models.iter().map(|(id, model)| (id.clone(), of_model(model))).collect(),
        devices,
        host_memory,
        queue_max: usize::try_from(config.limits.queue).unwrap_or(usize::MAX),
        max_wait_ms: milliseconds(config.limits.max_wait),
        quantum_ms: milliseconds(config.limits.quantum),
        hold_ms: milliseconds(config.limits.hold),
        slot_wait_ms: milliseconds(config.limits.request_timeout),
    }
}

fn model_policy(model: &ModelConfig, config: &Config, plugin: Option<&PluginFile>) -> ModelPolicy {
    let per_address = |remote: &RemoteConfig| {
        let addresses = u32::try_from(remote.urls.len()).unwrap_or(u32::MAX);
        usize::try_from(remote.concurrency.saturating_mul(addresses)).unwrap_or(usize::MAX)
    };
    let elsewhere = model.http.remote.as_ref().map(per_address);
    let here =
        plugin.map_or(LEASES_DEFAULT, |plugin| usize::try_from(plugin.manifest.max_concurrency).unwrap_or(1).max(1));
    let leases_max = elsewhere.unwrap_or(here);
    let devices = if elsewhere.is_some() {
        vec![Device::Remote]
    } else if model.devices.is_empty() {
        let all: Vec<Device> = config.devices.iter().map(|device| device.id).collect();
        plugin.and_then(|plugin| usable(&all, &plugin.manifest.devices)).unwrap_or(all)
    } else {
        model.devices.clone()
    };
    ModelPolicy {
        devices,
        leases_max,
        pin: model.pin,
        priority: model.priority,
        keep: model.keep_alive.map_or(Keep::Forever, |idle| Keep::For(milliseconds(idle))),
        parks: model.park && plugin.is_some_and(|plugin| parks(plugin, model)),
        replicas: usize::try_from(model.replicas).unwrap_or(usize::MAX).max(1),
    }
}

/// Whether instances of a model can park. Of a program the entry knows whether it can be asked to.
fn parks(plugin: &PluginFile, model: &ModelConfig) -> bool {
    plugin.manifest.parks
        && (!plugin.runs_programs() || ["free", "sleep"].iter().any(|way| model.options.get(way).is_some()))
}

/// The devices that are of the same kind as the first that a plugin supports.
fn usable(devices: &[Device], kinds: &[String]) -> Option<Vec<Device>> {
    let first = devices.iter().find(|device| kinds.iter().any(|kind| kind == device.kind()))?;
    Some(devices.iter().filter(|device| device.kind() == first.kind()).copied().collect())
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
