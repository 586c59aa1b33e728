//! What the system is told of this process's memory: that it goes before the host when there is none left, and how much it
//! may ask for. The host measures too, and is exact; this is for what comes between two of its looks.

use std::fs;

use rustix::process::{Resource, getrlimit, setrlimit};

use super::super::limits::{DATA_SLACK_BYTES, OOM_SCORE_ADDED, OOM_SCORE_MAX, grant_margin};

/// This process's own handle on the kernel's choice.
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Has the kernel choose this process, and what it starts, before the host. Without a /proc to write to the kernel chooses
/// by size alone.
pub(super) fn expose_to_oom_killer() {
    let inherited = fs::read_to_string(OOM_SCORE_ADJ).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let score = inherited.unwrap_or(0).saturating_add(OOM_SCORE_ADDED).min(OOM_SCORE_MAX);
    // To go earlier needs no privilege.
    let _ = fs::write(OOM_SCORE_ADJ, score.to_string());
}

/// From now on an allocation fails that would take this process, and each that it starts, well beyond so many bytes of its
/// own; mapped files are not counted. Fails where the system's own limit is lower, which is as good.
pub(super) fn limit_data(bytes: u64) {
    let most = bytes.saturating_add(grant_margin(bytes)).saturating_add(DATA_SLACK_BYTES);
    let limit = getrlimit(Resource::Data);
    let current = limit.maximum.map_or(most, |maximum| most.min(maximum));
    let _ = setrlimit(Resource::Data, rustix::process::Rlimit { current: Some(current), ..limit });
}
