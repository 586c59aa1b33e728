//! What whoever watches a host is told of it: who waits, what came and left, and which requests were answered. Never what they
//! said.

use serde::Serialize;

use crate::domain::{Device, ModelId};
use crate::runtime::{Swap, SwapStep, WaitingRequest};

/// A request that waits.
#[derive(Serialize)]
pub(in crate::http) struct WaitingReply<'a> {
    request: &'a str,
    model: &'a ModelId,
    waited_ms: u64,
    /// `load` or `slot`.
    awaits: &'a str,
}

impl<'a> From<&'a WaitingRequest> for WaitingReply<'a> {
    fn from(WaitingRequest { id, model, waited_ms, for_slot }: &'a WaitingRequest) -> Self {
        let awaits = if *for_slot { "slot" } else { "load" };
        Self { request: id, model, waited_ms: *waited_ms, awaits }
    }
}

/// A model that came or left, with the phases of its way.
#[derive(Serialize)]
pub(in crate::http) struct SwapReply<'a> {
    number: u64,
    model: &'a ModelId,
    device: Device,
    kind: &'a str,
    cause: &'a str,
    #[serde(rename = "for")]
    whom: Option<&'a str>,
    requests: Option<&'a str>,
    began_ms: u64,
    steps: Vec<StepReply>,
    outcome: &'a str,
    error: Option<&'a str>,
}

/// A phase of it.
#[derive(Serialize)]
struct StepReply {
    name: &'static str,
    ms: u64,
}

/// What stands for a model that there is not for whoever asks.
const ANOTHER: &str = "another model";

impl<'a> SwapReply<'a> {
    /// Of a swap, as those read it who see the models that `sees` says.
    pub(in crate::http) fn of(swap: &'a Swap, sees: impl Fn(&ModelId) -> bool) -> Self {
        let step = |SwapStep { name, took }: &SwapStep| StepReply {
            name,
            ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        Self {
            number: swap.number,
            model: &swap.model,
            device: swap.device,
            kind: swap.kind.name(),
            cause: swap.cause,
            whom: swap.whom.as_ref().map(|whom| if sees(whom) { whom.as_str() } else { ANOTHER }),
            requests: swap.requests.as_deref(),
            began_ms: swap.began_ms,
            steps: swap.steps.iter().map(step).collect(),
            outcome: swap.outcome.name(),
            error: swap.failure.as_deref(),
        }
    }
}
