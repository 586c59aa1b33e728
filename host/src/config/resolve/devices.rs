//! The devices that models may use.

use std::collections::HashSet;

use super::Checker;
use crate::config::env::Env;
use crate::config::locate::KeyPath;
use crate::config::raw::{OneOrMany, RawDevice};
use crate::config::resolved::DeviceConfig;
use crate::domain::Device;

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
        let id = match device.id.0.parse::<Device>() {
            Ok(id) if seen.insert(id) => Some(id),
            Ok(_) => {
                check.fail(&key, Some(&device.id.0), "is listed twice").hint("give each device one entry");
                None
            }
            Err(e) => {
                check.fail(&key, Some(&device.id.0), "is not a device").hint(e.to_string());
                None
            }
        };
        let memory = check.size(&key.key("memory"), device.memory.as_ref());
        let max_loaded = check.number(&key.key("max_loaded"), device.max_loaded.as_ref(), 1..=1024);
        if let Some(id) = id {
            devices.push(DeviceConfig { id, memory, max_loaded: max_loaded.and_then(|n| u32::try_from(n).ok()) });
        }
    }
    devices
}
