//! What operators are shown of models: where each stands, and what a request for one would meet.

use std::borrow::Cow;

use serde::Serialize;

use super::super::redact::for_clients;

use crate::domain::{Device, InstanceId, Kind, ModelId, ModelState};
use crate::runtime::{DeviceStatus, Explanation, Leaving, ModelStatus, Outcome, Staying};

/// A model of `GET /admin/status`. Memory is in bytes, progress in thousandths.
#[derive(Serialize)]
pub(in crate::http) struct StatusReply<'a> {
    id: &'a ModelId,
    kind: Kind,
    plugin: &'a str,
    state: ModelState,
    device: Option<&'a str>,
    memory: u64,
    measured: Option<u64>,
    replicas: u32,
    active: u32,
    queued: u32,
    progress: Option<u32>,
    step: Option<&'static str>,
    loads: u64,
    wakes: u64,
    left_ms: Option<u64>,
    since_ms: Option<u64>,
    waits_ms: Option<u64>,
    pinned: bool,
    quarantined: bool,
    idle_ms: Option<u64>,
    pid: Option<u32>,
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    aliases: &'a [String],
}

impl<'a> From<&'a ModelStatus> for StatusReply<'a> {
    fn from(status: &'a ModelStatus) -> Self {
        let &ModelStatus { kind, state, memory, measured, replicas, active, queued, .. } = status;
        let &ModelStatus { progress, step, loads, wakes, idle_ms, pid, .. } = status;
        let &ModelStatus { left_ms, since_ms, waits_ms, pinned, quarantined, .. } = status;
        Self {
            id: &status.id,
            kind,
            plugin: &status.plugin,
            state,
            device: status.device.as_deref(),
            memory,
            measured,
            replicas,
            active,
            queued,
            progress,
            step,
            loads,
            wakes,
            left_ms,
            since_ms,
            waits_ms,
            pinned,
            quarantined,
            idle_ms,
            pid,
            error: status.error.as_deref(),
            note: status.note.as_deref(),
            aliases: &status.aliases,
        }
    }
}

/// `GET /models`: llama.cpp's router shape, and our own fields beside it.
#[derive(Serialize)]
pub(in crate::http) struct RouterList<'a> {
    object: &'a str,
    data: Vec<RouterEntry<'a>>,
}

/// A model of it.
#[derive(Serialize)]
struct RouterEntry<'a> {
    id: &'a ModelId,
    object: &'a str,
    created: u64,
    owned_by: &'a str,
    status: RouterStatus<'a>,
    kind: Kind,
    plugin: &'a str,
    aliases: &'a [String],
    device: Option<&'a str>,
    memory: u64,
    measured: Option<u64>,
    replicas: u32,
    active: u32,
    queued: u32,
    loads: u64,
}

#[derive(Serialize)]
struct RouterStatus<'a> {
    value: &'a str,
    state: ModelState,
    progress: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Cow<'a, str>>,
}

impl<'a> RouterList<'a> {
    /// Of these models. `created`: what stands for when each was made, in seconds since 1970.
    pub(in crate::http) fn of(models: &'a [ModelStatus], created: u64) -> Self {
        Self { object: "list", data: models.iter().map(|model| RouterEntry::of(model, created)).collect() }
    }
}

impl<'a> RouterEntry<'a> {
    fn of(model: &'a ModelStatus, created: u64) -> Self {
        let &ModelStatus { kind, state, memory, measured, replicas, active, queued, loads, progress, .. } = model;
        let error = model.client_error.as_deref().map(for_clients);
        let failed = error.is_some().then_some(true);
        let status = RouterStatus { value: router_state(state), state, progress, step: model.step, failed, error };
        Self {
            id: &model.id,
            object: "model",
            created,
            owned_by: "aihost",
            status,
            kind,
            plugin: &model.plugin,
            aliases: &model.aliases,
            device: model.device.as_deref(),
            memory,
            measured,
            replicas,
            active,
            queued,
            loads,
        }
    }
}

/// llama.cpp's word for a state.
fn router_state(state: ModelState) -> &'static str {
    match state {
        ModelState::Cold | ModelState::Stopping | ModelState::Failed => "unloaded",
        ModelState::Starting | ModelState::Waiting | ModelState::Loading | ModelState::Unparking => "loading",
        ModelState::Hot | ModelState::Draining => "loaded",
        // For a model that gives its memory back and wakes on demand.
        ModelState::Parking | ModelState::Parked => "sleeping",
    }
}

/// A device of `GET /admin/devices`. Bytes; nothing where they cannot be told.
#[derive(Serialize)]
pub(in crate::http) struct DeviceReply {
    id: Device,
    budget: u64,
    reserved: u64,
    held: Option<u64>,
    others: Option<u64>,
    free: Option<u64>,
    total: Option<u64>,
}

impl From<&DeviceStatus> for DeviceReply {
    fn from(status: &DeviceStatus) -> Self {
        let &DeviceStatus { device, budget, reserved, held, others, free, total } = status;
        Self { id: device, budget, reserved, held, others, free, total }
    }
}

/// `GET /admin/plan`. Sizes are in bytes.
#[derive(Serialize)]
pub(in crate::http) struct PlanReply<'a> {
    model: &'a ModelId,
    state: ModelState,
    outcome: &'static str,
    message: &'a str,
    device: Option<Device>,
    needs: Option<u64>,
    free: Option<u64>,
    budget: Option<u64>,
    takes_ms: Option<u64>,
    progress: Option<u32>,
    left_ms: Option<u64>,
    since_ms: Option<u64>,
    step: Option<&'static str>,
    queued: usize,
    leaves: Vec<LeavingReply<'a>>,
    stays: Vec<StayingReply<'a>>,
}

/// An instance that would leave.
#[derive(Serialize)]
struct LeavingReply<'a> {
    model: &'a ModelId,
    instance: InstanceId,
    how: &'a str,
    memory: u64,
    idle_ms: u64,
    takes_ms: u64,
}

/// An instance that would stay.
#[derive(Serialize)]
struct StayingReply<'a> {
    model: &'a ModelId,
    instance: InstanceId,
    memory: u64,
    reason: &'a str,
}

impl<'a> From<&'a Explanation> for PlanReply<'a> {
    fn from(plan: &'a Explanation) -> Self {
        Self {
            model: &plan.model,
            state: plan.state,
            outcome: name(plan.outcome),
            message: &plan.message,
            device: plan.device,
            needs: plan.needs,
            free: plan.free,
            budget: plan.budget,
            takes_ms: plan.takes_ms,
            progress: plan.progress,
            left_ms: plan.left_ms,
            since_ms: plan.since_ms,
            step: plan.step,
            queued: plan.queued,
            leaves: plan.leaves.iter().map(LeavingReply::from).collect(),
            stays: plan.stays.iter().map(StayingReply::from).collect(),
        }
    }
}

impl<'a> From<&'a Leaving> for LeavingReply<'a> {
    fn from(Leaving { model, instance, how, memory, idle_ms, takes_ms }: &'a Leaving) -> Self {
        Self { model, instance: *instance, how, memory: *memory, idle_ms: *idle_ms, takes_ms: *takes_ms }
    }
}

impl<'a> From<&'a Staying> for StayingReply<'a> {
    fn from(Staying { model, instance, memory, reason }: &'a Staying) -> Self {
        Self { model, instance: *instance, memory: *memory, reason }
    }
}

fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Hot => "hot",
        Outcome::Coming => "coming",
        Outcome::Fits => "fits",
        Outcome::Evicts => "evicts",
        Outcome::Waits => "waits",
        Outcome::Refused => "refused",
        Outcome::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::wire::json;

    fn text(value: &impl Serialize) -> String {
        String::from_utf8(json(value)).expect("UTF-8")
    }

    #[test]
    fn a_status_is_exact_to_the_byte() {
        let status = ModelStatus {
            id: "org/a".into(),
            kind: Kind::Text,
            plugin: "p".into(),
            state: ModelState::Hot,
            device: Some("gpu0".into()),
            memory: 10,
            measured: Some(9),
            replicas: 1,
            active: 2,
            queued: 3,
            progress: None,
            step: None,
            loads: 4,
            wakes: 5,
            left_ms: Some(8),
            since_ms: Some(9),
            waits_ms: None,
            pinned: true,
            quarantined: false,
            idle_ms: Some(6),
            pid: Some(7),
            error: Some("\"x\"".into()),
            client_error: None,
            note: None,
            aliases: vec!["b".into()],
        };
        let wanted = r#"{"id":"org/a","kind":"text","plugin":"p","state":"hot","device":"gpu0","memory":10,"measured":9,"replicas":1,"active":2,"queued":3,"progress":null,"step":null,"loads":4,"wakes":5,"left_ms":8,"since_ms":9,"waits_ms":null,"pinned":true,"quarantined":false,"idle_ms":6,"pid":7,"error":"\"x\"","aliases":["b"]}"#;
        assert_eq!(text(&StatusReply::from(&status)), wanted);
    }

    #[test]
    fn a_plan_is_exact_to_the_byte() {
        let plan = Explanation {
            model: "a".into(),
            state: ModelState::Cold,
            outcome: Outcome::Evicts,
            message: "so".into(),
            device: Some(Device::Cuda(0)),
            needs: Some(1),
            free: Some(2),
            budget: None,
            takes_ms: Some(3),
            progress: None,
            left_ms: Some(9),
            since_ms: None,
            step: None,
            closed: None,
            queued: 4,
            leaves: vec![Leaving {
                model: "b".into(),
                instance: InstanceId(5),
                how: "park",
                memory: 6,
                idle_ms: 7,
                takes_ms: 8,
            }],
            stays: vec![Staying { model: "c".into(), instance: InstanceId(9), memory: 10, reason: "pinned".into() }],
        };
        let wanted = r#"{"model":"a","state":"cold","outcome":"evicts","message":"so","device":"cuda:0","needs":1,"free":2,"budget":null,"takes_ms":3,"progress":null,"left_ms":9,"since_ms":null,"step":null,"queued":4,"leaves":[{"model":"b","instance":5,"how":"park","memory":6,"idle_ms":7,"takes_ms":8}],"stays":[{"model":"c","instance":9,"memory":10,"reason":"pinned"}]}"#;
        assert_eq!(text(&PlanReply::from(&plan)), wanted);
        let names = [Outcome::Hot, Outcome::Coming, Outcome::Fits, Outcome::Waits, Outcome::Refused, Outcome::Unknown]
            .map(name);
        assert_eq!(names, ["hot", "coming", "fits", "waits", "refused", "unknown"]);
    }
}
