//! The looks at a host that all who watch it share: taken a few times a second while anybody watches, and not otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::super::app::App;
use super::super::wire::StatusReply;
use crate::domain::ModelId;
use crate::runtime::{DeviceStatus, ModelStatus, Overview};
use crate::telemetry::unix_ms;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(250);
/// Looks take at most this part of the time: one in so many.
const SHARE: u32 = 5;
/// Looks between two measurements of the devices.
const DEVICES_EVERY: u64 = 8;

/// The looks.
#[derive(Debug)]
pub(super) struct Pulse {
    looks: watch::Sender<Option<Arc<Look>>>,
    /// Whether somebody takes them.
    is_running: Mutex<bool>,
}

/// A host at one moment.
#[derive(Debug)]
pub(super) struct Look {
    /// Milliseconds since 1970.
    pub(super) at_ms: u64,
    pub(super) models: Vec<SeenModel>,
    pub(super) overview: Overview,
    pub(super) devices: Vec<DeviceStatus>,
    /// How often they were measured.
    pub(super) measured: u64,
}

/// A model as it is told, and what stands for all of it that does not change by time passing alone.
#[derive(Debug)]
pub(super) struct SeenModel {
    pub(super) id: ModelId,
    pub(super) told: Box<RawValue>,
    pub(super) mark: String,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { looks: watch::Sender::new(None), is_running: Mutex::default() }
    }
}

impl Pulse {
    /// The looks from now on. There is none before the first, and none any more once the host ends.
    pub(super) fn watch(self: &Arc<Self>, app: &App) -> watch::Receiver<Option<Arc<Look>>> {
        let mut is_running = self.is_running.lock();
        let mut watcher = self.looks.subscribe();
        if !std::mem::replace(&mut *is_running, true) {
            // What was seen before is old.
            self.looks.send_replace(None);
            watcher.mark_unchanged();
            tokio::spawn(beat(Arc::clone(self), app.clone()));
        } else if watcher.borrow().is_some() {
            watcher.mark_changed();
        }
        watcher
    }

    /// Whether nobody watches any more; whoever comes later has it begun anew.
    fn ends(&self) -> bool {
        let mut is_running = self.is_running.lock();
        *is_running = self.looks.receiver_count() > 0;
        !*is_running
    }
}

async fn beat(pulse: Arc<Pulse>, app: App) {
    let (mut devices, mut measured, mut looks) = (Vec::new(), 0, 0_u64);
    while !pulse.ends() {
        let begun = Instant::now();
        if looks.is_multiple_of(DEVICES_EVERY)
            && let Ok(found) = app.handle.devices().await
        {
            (devices, measured) = (found, measured + 1);
        }
        looks += 1;
        match app.handle.overview().await {
            Ok(overview) => {
                let devices = devices.clone();
                let look = move || Look::of(overview, devices, measured);
                let Ok(look) = tokio::task::spawn_blocking(look).await else { break };
                pulse.looks.send_replace(Some(Arc::new(look)));
            }
            Err(_) => break,
        }
        tokio::time::sleep(EVERY.max(begun.elapsed() * (SHARE - 1))).await;
    }
    *pulse.is_running.lock() = false;
    pulse.looks.send_replace(None);
}

impl Look {
    /// What there is now, with the devices as they were measured last.
    pub(super) fn of(overview: Overview, devices: Vec<DeviceStatus>, measured: u64) -> Self {
        let at_ms = unix_ms();
        let models = overview.models.iter().filter_map(|model| SeenModel::of(model, at_ms)).collect();
        Self { at_ms, models, overview, devices, measured }
    }
}

/// Bytes by which what a worker holds must change to be told.
const TOLD_BYTES: u64 = 1 << 20;
/// Milliseconds by which the end of a model's last request must change to be told.
const TOLD_MS: u64 = 2000;

impl SeenModel {
    fn of(model: &ModelStatus, at_ms: u64) -> Option<Self> {
        let told = serde_json::value::to_raw_value(&StatusReply::from(model)).ok()?;
        let idle_since = model.idle_ms.map(|idle| at_ms.saturating_sub(idle) / TOLD_MS);
        let still = ModelStatus {
            measured: model.measured.map(|bytes| bytes / TOLD_BYTES),
            idle_ms: idle_since,
            left_ms: None,
            since_ms: None,
            waits_ms: None,
            ..model.clone()
        };
        let mark = serde_json::to_string(&StatusReply::from(&still)).ok()?;
        Some(Self { id: model.id.clone(), told, mark })
    }
}
