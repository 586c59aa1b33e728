//! What each device held over the last hour: a sample every ten seconds, however many pages look.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::super::app::App;
use super::Page;
use crate::domain::Device;
use crate::runtime::DeviceStatus;
use crate::telemetry::unix_ms;

/// Between two samples.
const EVERY: Duration = Duration::from_secs(10);
/// Samples of a device that are kept: an hour of them.
const SAMPLES_MAX: usize = 360;

/// The samples of every device, the oldest first.
#[derive(Debug, Default)]
pub(super) struct DeviceHistory(Mutex<BTreeMap<Device, VecDeque<Sample>>>);

/// A device at a moment, in bytes.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Milliseconds since 1970.
    at_ms: u64,
    reserved: u64,
    held: Option<u64>,
    others: Option<u64>,
    free: Option<u64>,
}

impl DeviceHistory {
    /// These devices stand so now; others are forgotten.
    pub(super) fn add(&self, at_ms: u64, devices: &[DeviceStatus]) {
        let mut kept = self.0.lock();
        kept.retain(|device, _| devices.iter().any(|status| status.device == *device));
        for &DeviceStatus { device, reserved, held, others, free, .. } in devices {
            let samples = kept.entry(device).or_default();
            if samples.len() >= SAMPLES_MAX {
                samples.pop_front();
            }
            samples.push_back(Sample { at_ms, reserved, held, others, free });
        }
    }

    /// All of them: of each device lists of when, and of what was reserved, held, others' and free.
    pub(super) fn told(&self) -> Value {
        let kept = self.0.lock();
        let list = |samples: &VecDeque<Sample>| -> Value {
            let row = |one: &Sample| json!([one.at_ms, one.reserved, one.held, one.others, one.free]);
            samples.iter().map(row).collect()
        };
        let devices: serde_json::Map<String, Value> =
            kept.iter().map(|(device, samples)| (device.to_string(), list(samples))).collect();
        json!({"every_ms": u64::try_from(EVERY.as_millis()).unwrap_or(u64::MAX), "devices": devices})
    }
}

/// Takes samples for ever.
pub(in crate::http) async fn remember_devices(app: App) {
    // What there is at first, a page that is opened measures itself.
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let page: Arc<Page> = Arc::clone(&app.page);
    loop {
        ticks.tick().await;
        // A host that ends is asked in vain.
        let Ok(devices) = app.handle.devices().await else { return };
        page.history.add(unix_ms(), &devices);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_devices_that_are_gone_are_not() {
        let status = |device| DeviceStatus {
            device,
            budget: 9,
            reserved: 5,
            held: Some(4),
            others: None,
            free: Some(2),
            total: Some(9),
        };
        let history = DeviceHistory::default();
        (0..1000).for_each(|at| history.add(at, &[status(Device::Cpu), status(Device::Cuda(0))]));
        let told = history.told();
        assert_eq!(told["devices"]["cpu"].as_array().map(Vec::len), Some(SAMPLES_MAX));
        assert_eq!(told["devices"]["cuda:0"][SAMPLES_MAX - 1], json!([999, 5, 4, null, 2]));
        history.add(1000, &[status(Device::Cpu)]);
        assert!(history.told()["devices"]["cuda:0"].is_null());
    }
}
