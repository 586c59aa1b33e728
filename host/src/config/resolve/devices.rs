//! The devices that models may use.

use std::collections::HashSet;

use super::Checker;
use crate::config::env::Env;
use crate::config::locate::KeyPath;
use crate::config::raw::{OneOrMany, RawDevice};
use crate::config::resolved::DeviceConfig;
use crate::domain::DeviceId;

/// The devices of `devices:`, or those that are here.
pub(super) fn resolve(check: &mut Checker, typed: Option<&OneOrMany<RawDevice>>, env: &Env) -> Vec<DeviceConfig> {
    let here = |id| DeviceConfig { id, memory: None, max_loaded: None };
    let auto = || env.devices().into_iter().map(here).collect();
    let Some(typed) = typed else { return auto() };
    if let [RawDevice(only)] = typed.items.as_slice()
        && only.id.0 == "auto"
    {
        return auto();
    }
    let root = KeyPath::root().key("devices");
    if typed.items.is_empty() {
        check.fail(&root, None, "is an empty list").hint("write `devices: auto`, or list `cpu`, `cuda:0`, ...");
    }
    let mut devices: Vec<DeviceConfig> = Vec::new();
    let mut seen = HashSet::new();
    for (position, RawDevice(device)) in typed.items.iter().enumerate() {
        let key = if typed.list { root.index(position) } else { root.clone() };
        let id = DeviceId(device.id.0.clone());
        let usable = is_device(&id.0) && seen.insert(id.clone());
        if !is_device(&id.0) {
            check
                .fail(&key, Some(&id.0), "is not a device")
                .hint("devices are called `cpu` and `cuda:0`, `cuda:1`, ...");
        } else if !usable {
            check.fail(&key, Some(&id.0), "is listed twice").hint("give each device one entry");
        }
        let memory = check.size(&key.key("memory"), device.memory.as_ref());
        let max_loaded = check.number(&key.key("max_loaded"), device.max_loaded.as_ref(), 1..=1024);
        if usable {
            devices.push(DeviceConfig { id, memory, max_loaded: max_loaded.and_then(|n| u32::try_from(n).ok()) });
        }
    }
    devices
}

/// Whether this is a device's name.
pub(super) fn is_device(name: &str) -> bool {
    name == "cpu"
        || name
            .strip_prefix("cuda:")
            .is_some_and(|n| n.len() <= 3 && !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}
