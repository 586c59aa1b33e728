//! What entries and limits say together: policies that contradict one another.

use super::Checker;
use crate::config::locate::KeyPath;
use crate::config::resolved::{DeviceConfig, Limits, ModelConfig};
use crate::domain::ByteSize;

/// Pinned models must fit side by side: they never make room for one another.
pub(super) fn check_pins(check: &mut Checker<'_>, entries: &[(KeyPath, ModelConfig)], devices: &[DeviceConfig]) {
    for device in devices {
        let (mut bytes, mut count) = (0_u64, 0_u32);
        for (key, model) in entries.iter().filter(|(_, model)| model.pin && only_on(model, device, devices)) {
            count += 1;
            bytes = bytes.saturating_add(model.memory.map_or(0, |size| size.0));
            if let Some(budget) = device.memory.filter(|budget| bytes > budget.0) {
                let together = ByteSize(bytes);
                check
                    .fail(
                        &key.key("pin"),
                        Some("true"),
                        format!(
                            "is one too many: the pinned models of {} need {together} together, its budget is {budget}",
                            device.id
                        ),
                    )
                    .hint("unpin one of them, or raise the device's `memory:`");
                break;
            }
            if let Some(most) = device.max_loaded.filter(|most| count > *most) {
                check
                    .fail(
                        &key.key("pin"),
                        Some("true"),
                        format!(
                            "is one too many: {} holds {most} at once (`max_loaded`), and pinned models never leave",
                            device.id
                        ),
                    )
                    .hint("unpin one of them, or raise `max_loaded`");
                break;
            }
        }
    }
}

/// A quantum that outlasts `max_wait` would make others wait longer than they may.
pub(super) fn check_quantum(check: &mut Checker<'_>, typed: Option<&str>, limits: &Limits) {
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

/// Whether this device is the only one that the model can be on.
pub(in crate::config) fn only_on(model: &ModelConfig, device: &DeviceConfig, devices: &[DeviceConfig]) -> bool {
    match model.devices.as_slice() {
        [] => devices.len() == 1,
        named => named.iter().all(|name| *name == device.id),
    }
}
