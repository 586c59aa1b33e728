//! docs/METRICS.md.

use std::fmt::Write;

use super::table;
use crate::telemetry::{Form, Metric};

const HEAD: &str = "# Metrics

Written by `cargo xtask docgen` from the table in `host/src/telemetry/metrics.rs`.

`GET /metrics` answers in OpenMetrics text, which Prometheus reads. Where API keys are asked for, the scraper sends one:

```yaml
scrape_configs:
  - job_name: aihost
    authorization: {credentials: KEY}
    static_configs: [{targets: [\"127.0.0.1:9000\"]}]
```

A scrape loads, wakes and keeps nothing. `model` is always a name of models.yaml, never an alias or what a client made up,
so that the number of series is bounded; the series of a model that leaves models.yaml end with it. Counters begin at zero
when the host starts. Requests that are refused before they reach a model (wrong JSON, unknown model) are not counted here.
A request that is tried again after its worker died is timed anew, and counted once.

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
