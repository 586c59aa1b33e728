//! What whoever watches a host is told of it, and may say: who waits, what came and left, what is pinned. Plain types.

use std::time::Duration;

use crate::domain::{Device, ModelId};

/// What a swap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapKind {
    /// It came from its files.
    Load,
    /// It came from the memory in which it was parked.
    Wake,
    /// It gave its device memory back, and its worker stays.
    Park,
    /// It left.
    Unload,
    /// Its worker ended by itself.
    Lost,
}

impl SwapKind {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Wake => "wake",
            Self::Park => "park",
            Self::Unload => "unload",
            Self::Lost => "lost",
        }
    }
}

/// How far a swap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapOutcome {
    /// It goes on.
    Underway,
    /// It came to its end.
    Done,
    /// It did not.
    Failed,
    /// Nobody wanted it any more.
    Dropped,
}

impl SwapOutcome {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Underway => "underway",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// A part of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapStep {
    /// `start`, `verify`, `memory`, `load`, `wake`, `drain`, `park` or `stop`.
    pub name: &'static str,
    /// How long it took, or has taken so far.
    pub took: Duration,
}

/// One model on its way to a device or off it.
#[derive(Clone, Debug)]
pub struct Swap {
    /// Counts up while the host runs.
    pub number: u64,
    /// Whose it is.
    pub model: ModelId,
    /// Where to, or where from.
    pub device: Device,
    /// What it is.
    pub kind: SwapKind,
    /// Why: `request`, `operator`, `preload`, `replica` of one that comes, else the cause of its leaving.
    pub cause: &'static str,
    /// The model that its memory goes to.
    pub whom: Option<ModelId>,
    /// The ids of the requests that waited for it when it began; a few of them.
    pub requests: Option<String>,
    /// Milliseconds since 1970 when it began.
    pub began_ms: u64,
    /// Its phases so far, in order.
    pub steps: Vec<SwapStep>,
    /// How far it is.
    pub outcome: SwapOutcome,
    /// Why it failed.
    pub failure: Option<String>,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingRequest {
    /// The client's own id, or the one that it was given.
    pub id: String,
    /// The model that it waits for.
    pub model: ModelId,
    /// For so long.
    pub waited_ms: u64,
    /// Whether its model is loaded, and only a slot of it is waited for.
    pub for_slot: bool,
}

/// Whether a model is never evicted for others, until models.yaml is read anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The model.
    pub model: ModelId,
    /// Whether it is.
    pub pinned: bool,
}
