//! Metrics of a plugin's own, which the host shows beside its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// A metric of one loaded model, in /metrics as `aihost_plugin_NAME` with a label `model`. What the host cannot show, such as
/// a name that is none, or the label `model`, is left out, and the model's log says why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Metric {
    /// a-z, 0-9 and `_`, a letter first; base units and their names at the end, such as `cache_bytes`. No `_total`.
    pub name: String,
    /// Whether it may fall.
    pub kind: MetricKind,
    /// What it counts, in one line.
    #[serde(default)]
    pub help: String,
    /// What it is now. What is not finite is shown as not a number.
    #[serde(deserialize_with = "number")]
    pub value: f64,
    /// What tells values of one name apart; names as those of metrics.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// JSON has no word for what is not finite; serde_json writes `null`.
fn number<'de, D: Deserializer<'de>>(reader: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(reader)?.unwrap_or(f64::NAN))
}

/// Whether a metric may fall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MetricKind {
    /// It rises and falls.
    #[default]
    Gauge,
    /// It only rises, from 0 at each load.
    Counter,
}

impl Metric {
    /// What is so much now.
    pub fn gauge(name: &str, help: &str, value: f64) -> Self {
        Self { name: name.to_owned(), help: help.to_owned(), value, ..Self::default() }
    }

    /// What was counted since the load.
    pub fn counter(name: &str, help: &str, value: f64) -> Self {
        Self { kind: MetricKind::Counter, ..Self::gauge(name, help, value) }
    }

    /// The same metric with a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }
}
