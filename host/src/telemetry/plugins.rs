//! What plugins count, as series of the host: one family for each name, whichever models have it, and a label that says which
//! model. What they are called has been checked.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use aihost_plugin_api::{Metric, MetricKind};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::domain::ModelId;

/// What stands before the name of each.
const PREFIX: &str = "aihost_plugin_";
/// What is said of a metric that its plugin says nothing of.
const NO_HELP: &str = "Its plugin does not say what it is";

type Labels = Vec<(String, String)>;

/// Series of plugins by name. Of a model with several instances, what they count is added up.
#[derive(Debug, Default)]
pub struct PluginSeries(BTreeMap<String, PluginFamily>);

#[derive(Debug)]
struct PluginFamily {
    help: String,
    kind: MetricKind,
    series: BTreeMap<Labels, f64>,
}

impl PluginSeries {
    /// Adds what an instance of this model counts. A name means one kind of metric: of two, the one that was there first.
    pub fn add(&mut self, model: &ModelId, metrics: Vec<Metric>) {
        for metric in metrics {
            let family = self.0.entry(metric.name).or_insert_with(|| PluginFamily {
                help: if metric.help.is_empty() { NO_HELP.to_owned() } else { metric.help },
                kind: metric.kind,
                series: BTreeMap::new(),
            });
            if family.kind == metric.kind {
                let own = std::iter::once(("model".to_owned(), model.to_string()));
                *family.series.entry(own.chain(metric.labels).collect()).or_default() += metric.value;
            }
        }
    }

    pub(super) fn register(&self, now: &mut Registry) {
        for (name, PluginFamily { help, kind, series }) in &self.0 {
            let name = format!("{PREFIX}{name}");
            // The encoder ends the sentence.
            let help = help.trim_end_matches('.');
            if *kind == MetricKind::Counter {
                let family = Family::<Labels, Counter<f64, AtomicU64>>::default();
                now.register(name, help, family.clone());
                for (labels, value) in series {
                    family.get_or_create(labels).inc_by(*value);
                }
            } else {
                let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
                now.register(name, help, family.clone());
                for (labels, value) in series {
                    family.get_or_create(labels).set(*value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Scrape, TextFormat};
    use super::*;

    #[test]
    fn models_share_the_family_of_a_name_and_instances_add_up() {
        let mut series = PluginSeries::default();
        let [a, b] = ["a", "b"].map(ModelId::from);
        let counted = || {
            vec![Metric::counter("hits", "Found.", 2.5), Metric::gauge("cache_bytes", "", 7.0).label("part", "x\"y")]
        };
        series.add(&a, counted());
        series.add(&a, counted());
        series.add(&b, vec![Metric::counter("hits", "Another text.", 1.0), Metric::counter("cache_bytes", "", 1.0)]);
        let scrape = Scrape::new(Default::default(), Default::default()).with_plugins(series);
        for (format, counter) in
            [(TextFormat::Classic, "aihost_plugin_hits_total"), (TextFormat::OpenMetrics, "aihost_plugin_hits")]
        {
            let text = scrape.render(format).expect("a text");
            let lines: Vec<&str> = text.lines().filter(|line| line.contains("aihost_plugin_")).collect();
            let wanted = [
                "# HELP aihost_plugin_cache_bytes Its plugin does not say what it is.",
                "# TYPE aihost_plugin_cache_bytes gauge",
                "aihost_plugin_cache_bytes{model=\"a\",part=\"x\\\"y\"} 14.0",
                &format!("# HELP {counter} Found."),
                &format!("# TYPE {counter} counter"),
                "aihost_plugin_hits_total{model=\"a\"} 5.0",
                "aihost_plugin_hits_total{model=\"b\"} 1.0",
            ];
            assert_eq!(sorted(lines), sorted(wanted.to_vec()), "{text}");
        }
    }

    fn sorted(mut lines: Vec<&str>) -> Vec<&str> {
        lines.sort_unstable();
        lines
    }
}
