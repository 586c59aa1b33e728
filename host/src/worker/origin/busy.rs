//! Whether an engine still works on what it has answered already: some take a job, answer at once, and are asked how it goes.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::Origin;
use crate::config::BusyProbe;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks in a row that must find nothing to do: a job may be between two of its queues.
const IDLE_LOOKS: u32 = 2;
/// How long an engine may not say, and counts as busy.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// What a job is called in the path at which it is asked for.
const JOB: &str = "{id}";

/// Returns once the engine has nothing more to do, by its own account, or has not said for long. `job`: what it called what it
/// took, if it said so.
pub(in crate::worker) async fn until_idle(origin: &Origin, probe: &BusyProbe, job: Option<&str>) {
    let path = match job {
        Some(job) => probe.path.replace(JOB, job),
        // It took nothing that could be asked for.
        None if probe.path.contains(JOB) => return,
        None => probe.path.clone(),
    };
    let (mut idle, mut told) = (0, Instant::now());
    while idle < IDLE_LOOKS && told.elapsed() < SILENCE_LIMIT {
        match timeout(SILENCE_LIMIT, origin.look(&path)).await.ok().flatten() {
            Some(said) => {
                idle = if is_busy(&said, probe) { 0 } else { idle + 1 };
                told = Instant::now();
            }
            None => idle = 0,
        }
        if idle < IDLE_LOOKS {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Whether any of the values that it is asked for says that there is something to do: is one of those that mean so, or where
/// none are named, is a number above 0, a list or a text that is not empty, or true.
fn is_busy(said: &Value, probe: &BusyProbe) -> bool {
    let at = |path: &str| path.split('.').try_fold(said, |value, name| value.get(name));
    probe.json.iter().filter_map(|path| at(path)).any(|value| match value {
        Value::String(text) if !probe.values.is_empty() => probe.values.contains(text),
        _ if !probe.values.is_empty() => false,
        Value::Null => false,
        Value::Bool(is_true) => *is_true,
        Value::Number(number) => number.as_f64().is_some_and(|number| number > 0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn work_is_seen_by_whatever_counts_it() {
        let probe = |name: &str| BusyProbe::built_in(name).expect(name);
        let (comfyui, a1111, sd_server) = (probe("comfyui"), probe("a1111"), probe("sd-server"));
        for (said, engine, busy) in [
            (json!({"queue_running": [], "queue_pending": []}), &comfyui, false),
            (json!({"queue_running": [[0, "id"]], "queue_pending": []}), &comfyui, true),
            (json!({"queue_running": [], "queue_pending": [1]}), &comfyui, true),
            (json!({}), &comfyui, false),
            (json!([1]), &comfyui, false),
            (json!({"progress": 0.0, "state": {"job_count": 0}}), &a1111, false),
            (json!({"progress": 0.1, "state": {"job_count": 0}}), &a1111, true),
            (json!({"progress": 0, "state": {"job_count": 1}}), &a1111, true),
            (json!({"progress": null, "state": true}), &a1111, false),
            (json!({"status": "queued"}), &sd_server, true),
            (json!({"status": "completed"}), &sd_server, false),
            (json!({"status": 1}), &sd_server, false),
        ] {
            assert_eq!(is_busy(&said, engine), busy, "{said}");
        }
    }
}
