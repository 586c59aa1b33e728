//! docs/METRICS.md.

use std::fmt::Write;

use super::table;
use crate::telemetry::{Form, Metric};

const HEAD: &str = "# Metrics

Written by `cargo xtask docgen` from the table in `host/src/telemetry/metrics.rs`.

`GET /metrics` answers in Prometheus's text 0.0.4, and in OpenMetrics text 1.0.0 to whoever asks for it by `Accept`, as
Prometheus does. The series are the same. Where API keys are asked for, the scraper sends one:

```yaml
scrape_configs:
  - job_name: aihost
    authorization: {credentials: KEY}
    static_configs: [{targets: [\"127.0.0.1:9000\"]}]
```

A scrape loads, wakes and keeps nothing. `model` is always a name of models.yaml, never an alias or what a client made up,
so that the number of series is bounded; the series of a model that leaves models.yaml end with it. Counters begin at zero
when the host starts. Requests that are refused before they reach a model (wrong JSON, unknown model) are counted by their
status alone (`aihost_http_refusals_total`). `device` is a device in use; what cannot be measured there has no series
rather than a 0.
A request that is tried again after its worker died is timed anew, and counted once.

What a plugin counts itself is `aihost_plugin_NAME` with `model` and whatever labels it gives: asked for at the scrape, of models
that are loaded, and added up over a model's instances. A plugin that does not answer within half a second is left out.

";

const ALERTS: &str = "
## What to be told of

[monitoring/alerts.yaml](monitoring/alerts.yaml) has these as rules, for a job that is called `aihost`, and
[monitoring/grafana.json](monitoring/grafana.json) is a dashboard of all of it, to import into Grafana: `cargo xtask monitoring` has Prometheus check both.

| alert | what is wrong | when |
|---|---|---|
| `AihostDown` | the host does not answer | `up{job=\"aihost\"} == 0` for a minute |
| `AihostRestarts` | the host restarts | `changes(process_start_time_seconds[15m]) > 2` |
| `AihostModelQuarantined` | a model waits for its operator | `aihost_models{state=\"quarantined\"} > 0`; `aihost ps` and `aihost why MODEL` say which and why |
| `AihostModelFailed` | a model does not load | `aihost_models{state=\"failed\"} > 0` for 5 minutes |
| `AihostLoadsFail` | loads fail again and again | `increase(aihost_load_failures_total[15m]) > 3` |
| `AihostAnswersLost` | answers are lost | `increase(aihost_requests_lost_total[15m]) > 0` |
| `AihostWorkersDie` | workers die | `increase(aihost_worker_exits_total{reason!=\"asked\"}[15m]) > 3` |
| `AihostTurnsAway` | clients are turned away for want of room | `rate(aihost_http_refusals_total{status=~\"429|503\"}[5m]) > 0.1` for 10 minutes |
| `AihostKeysAreTried` | somebody tries keys | `rate(aihost_http_refusals_total{status=\"401\"}[5m]) > 1` |
| `AihostSwapsAllTheTime` | models take turns all the time | `sum(rate(aihost_swaps_total{kind=~\"cold_load|wake\"}[15m])) > 0.05` |
| `AihostOthersFillDevice` | others fill a device | `aihost_device_others_bytes > 0.1 * aihost_device_total_bytes` |
| `AihostDeviceSilent` | a device does not answer | `aihost_device_budget_bytes unless aihost_device_free_bytes` for 5 minutes |
| `AihostDescriptorsRunOut` | descriptors run out | `process_open_fds / process_max_fds > 0.8` |
| `AihostLogLinesLost` | the log loses lines | `increase(aihost_log_lines_lost_total[15m]) > 0` |
";

pub(super) fn page() -> String {
    let row = |metric: Metric| {
        let spec = metric.spec();
        let labels: Vec<String> = spec.labels.iter().map(|label| format!("`{}`", label.name)).collect();
        vec![
            format!("`{}`", spec.name),
            spec.form.name().to_owned(),
            spec.unit.to_owned(),
            labels.join(", "),
            spec.help.to_owned(),
        ]
    };
    let mut text = HEAD.to_owned();
    text += &table(&["name", "type", "unit", "labels", "what it says"], Metric::ALL.map(row));
    text += ALERTS;
    text += "\n## Values of labels\n\n";
    let closed = Metric::ALL.into_iter().flat_map(|metric| {
        let spec = metric.spec();
        spec.labels.iter().filter(|label| !label.values.is_empty()).map(move |label| {
            let values: Vec<String> = label.values.iter().map(|value| format!("`{value}`")).collect();
            vec![format!("`{}`", spec.name), format!("`{}`", label.name), values.join(", ")]
        })
    });
    text += &table(&["metric", "label", "values"], closed);
    text += "\n## Buckets\n\nUpper bounds of the histograms, in seconds:\n\n";
    let mut told: Vec<&[f64]> = Vec::new();
    for metric in Metric::ALL {
        if let Form::Histogram(bounds) = metric.spec().form
            && !told.contains(&bounds)
        {
            told.push(bounds);
            let shown: Vec<String> = bounds.iter().map(ToString::to_string).collect();
            // Writing to a string does not fail.
            let _written = writeln!(text, "{}", shown.join(", "));
        }
    }
    text
}
