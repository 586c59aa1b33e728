//! What entries and limits say together: policies that contradict one another.

use std::collections::BTreeMap;

use super::Checker;
use crate::config::locate::KeyPath;
use crate::config::resolved::{DeviceConfig, Limits, ModelConfig, TEXT_BODY_BYTES};
use crate::domain::{ByteSize, Device};

/// Pinned models must fit side by side: they never make room for one another.
pub(super) fn check_pins(check: &mut Checker, entries: &[(KeyPath, ModelConfig)], devices: &[DeviceConfig]) {
    let mut pinned: BTreeMap<Device, Pinned> = BTreeMap::new();
    let configured: BTreeMap<Device, &DeviceConfig> = devices.iter().map(|device| (device.id, device)).collect();
    for (key, model) in entries.iter().filter(|(_, model)| model.pin) {
        let Some(device) = only_device(model, devices).and_then(|id| configured.get(&id).copied()) else { continue };
        let together = pinned.entry(device.id).or_default();
        together.count += 1;
        together.bytes = together.bytes.saturating_add(model.memory.map_or(0, |size| size.0));
        // The first that is too many is told of.
        if together.told || !together.is_too_much(device) {
            continue;
        }
        together.told = true;
        let (id, key) = (&device.id, key.key("pin"));
        if let Some(budget) = device.memory.filter(|budget| together.bytes > budget.0) {
            let bytes = ByteSize(together.bytes);
            let message =
                format!("is one too many: the pinned models of {id} need {bytes} together, its budget is {budget}");
            check.fail(&key, Some("true"), message).hint("unpin one of them, or raise the device's `memory:`");
        } else if let Some(most) = device.max_loaded {
            let message =
                format!("is one too many: {id} holds {most} at once (`max_loaded`), and pinned models never leave");
            check.fail(&key, Some("true"), message).hint("unpin one of them, or raise `max_loaded`");
        }
    }
}

/// The pinned models of a device that can be on no other.
#[derive(Default)]
struct Pinned {
    bytes: u64,
    count: u32,
    told: bool,
}

impl Pinned {
    fn is_too_much(&self, device: &DeviceConfig) -> bool {
        device.memory.is_some_and(|budget| self.bytes > budget.0)
            || device.max_loaded.is_some_and(|most| self.count > most)
    }
}

/// A quantum that outlasts `max_wait` would make others wait longer than they may.
pub(super) fn check_quantum(check: &mut Checker, typed: Option<&str>, limits: &Limits) {
    if limits.quantum > limits.max_wait {
        let (quantum, max_wait) = (limits.quantum.as_secs_f64(), limits.max_wait.as_secs_f64());
        check
            .fail(
                &KeyPath::root().key("defaults").key("quantum"),
                typed,
                format!("is {quantum} s, more than `max_wait`, {max_wait} s: who waits for another model would wait longer than they may"),
            )
            .hint("lower `quantum`, or raise `max_wait`");
    }
}

/// The shortest time that a request may keep its model is not above the longest.
pub(super) fn check_keep_alive(check: &mut Checker, typed: Option<&str>, limits: &Limits) {
    if limits.keep_alive.is_some_and(|most| limits.keep_alive_min > most) {
        check
            .fail(&KeyPath::root().key("limits").key("keep_alive_min"), typed, "is more than `keep_alive`, the longest")
            .hint("lower it, or raise `limits: keep_alive:`");
    }
}

/// All bodies together must have room for the largest single one, and a little beside it for short ones.
pub(super) fn check_bodies(check: &mut Checker, typed: Option<&str>, limits: &Limits) {
    let largest = limits.body_limit.unwrap_or(ByteSize(TEXT_BODY_BYTES));
    let least = ByteSize(largest.0.saturating_mul(2));
    if limits.bodies < least {
        check
            .fail(
                &KeyPath::root().key("limits").key("bodies"),
                typed,
                format!("is {}, less than two bodies of the largest size, {largest}, take", limits.bodies),
            )
            .hint(format!("say at least {least}, or lower `body_limit`"));
    }
}

/// The device that is the only one that the model can be on.
pub(in crate::config) fn only_device(model: &ModelConfig, devices: &[DeviceConfig]) -> Option<Device> {
    match (model.devices.as_slice(), devices) {
        ([], [only]) => Some(only.id),
        ([first, others @ ..], _) => others.iter().all(|other| other == first).then_some(*first),
        _ => None,
    }
}
