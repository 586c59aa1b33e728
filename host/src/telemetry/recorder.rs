//! The values of the metrics, and their text for a scraper. Shared by the loop and the tasks of its requests; a record is a
//! few map look-ups, made per request and per change of state, never per token.
//!
//! Only models that are in force have series: one that models.yaml lost takes its series with it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::metrics::{Form, Metric, Spec};
use super::plugins::PluginSeries;
use crate::domain::ModelId;

type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// Every counter and histogram with its series.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// By `Metric as usize`.
    families: Vec<Series>,
    /// Models that may have series.
    models: RwLock<Arc<BTreeSet<ModelId>>>,
}

#[derive(Debug)]
enum Series {
    Counter(Family<Labels, Counter>),
    Histogram(Family<Labels, Histogram, Bounds>),
    /// Read at each scrape, not kept: a gauge, or what is counted elsewhere.
    Read,
}

#[derive(Clone, Copy, Debug)]
struct Bounds(&'static [f64]);

/// What is read at one moment: the gauges, and counters that are kept elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    whole: BTreeMap<Metric, BTreeMap<Labels, u64>>,
    /// Of the whole host, with parts of a second.
    seconds: BTreeMap<Metric, f64>,
}

/// In which way a scrape is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextFormat {
    /// OpenMetrics 1.0.0.
    #[default]
    OpenMetrics,
    /// Prometheus's own text, 0.0.4, which older scrapers read.
    Classic,
}

/// All there is to tell a scraper.
#[derive(Debug)]
pub struct Scrape {
    metrics: Arc<Metrics>,
    gauges: Gauges,
    plugins: PluginSeries,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let families = Metric::ALL.map(|metric| Series::register(&mut registry, metric)).into();
        Self { registry, families, models: RwLock::default() }
    }
}

impl Metrics {
    /// Counts one; `value` is that of the metric's closed label, empty if it has none.
    pub fn count(&self, metric: Metric, model: &ModelId, value: &'static str) {
        self.add(metric, model, value, 1);
    }

    /// Counts several.
    pub fn add(&self, metric: Metric, model: &ModelId, value: &'static str, count: u64) {
        if let Some(_in_force) = self.in_force(model)
            && let Series::Counter(family) = &self.families[metric as usize]
        {
            family.get_or_create(&labels(metric, model, value)).inc_by(count);
        }
    }

    /// Notes a duration.
    pub fn time(&self, metric: Metric, model: &ModelId, value: &'static str, duration: Duration) {
        if let Some(_in_force) = self.in_force(model)
            && let Series::Histogram(family) = &self.families[metric as usize]
        {
            family.get_or_create(&labels(metric, model, value)).observe(duration.as_secs_f64());
        }
    }

    /// The models in force, all at once.
    pub fn set_models<'a>(&self, models: impl Iterator<Item = &'a ModelId>) {
        let now: Arc<BTreeSet<ModelId>> = Arc::new(models.cloned().collect());
        let before = self.put_in_force(Arc::clone(&now));
        self.settle(&before, &now);
    }

    /// The models that may have series from now on; those before. However many they are, it takes a moment:
    /// [`Self::settle`] does the rest.
    pub fn put_in_force(&self, models: Arc<BTreeSet<ModelId>>) -> Arc<BTreeSet<ModelId>> {
        std::mem::replace(&mut *self.models.write(), models)
    }

    /// Ends the series of models that are gone since, and begins at zero what is always told of the new ones.
    pub fn settle(&self, before: &BTreeSet<ModelId>, now: &BTreeSet<ModelId>) {
        before.difference(now).for_each(|model| self.forget(model));
        for model in now.difference(before) {
            self.add(Metric::Lost, model, "", 0);
            self.add(Metric::Replays, model, "", 0);
            self.add(Metric::Requests, model, "ok", 0);
        }
    }

    fn forget(&self, model: &ModelId) {
        for (series, metric) in self.families.iter().zip(Metric::ALL).filter(|(_, metric)| metric.is_kept()) {
            let closed = metric.spec().labels.iter().find(|label| !label.values.is_empty());
            for value in closed.map_or(&[""][..], |label| label.values) {
                series.remove(&labels(metric, model, value));
            }
        }
    }

    /// Holds the list of models while a record is made, so that none comes after its model's series have ended.
    fn in_force(&self, model: &ModelId) -> Option<RwLockReadGuard<'_, Arc<BTreeSet<ModelId>>>> {
        let models = self.models.read();
        models.contains(model).then_some(models)
    }
}

impl Gauges {
    /// Adds to one of them: its labels' values in their order.
    pub fn add(&mut self, metric: Metric, values: &[&str], amount: u64) {
        let names = metric.spec().labels.iter().map(|label| label.name);
        let labels = names.zip(values).map(|(name, value)| (name, Cow::Owned((*value).to_owned()))).collect();
        *self.whole.entry(metric).or_default().entry(labels).or_default() += amount;
    }

    /// Sets one that is of the whole host, in seconds.
    pub fn set_seconds(&mut self, metric: Metric, seconds: f64) {
        self.seconds.insert(metric, seconds);
    }
}

impl Scrape {
    /// What is kept and what is now.
    pub fn new(metrics: Arc<Metrics>, gauges: Gauges) -> Self {
        Self { metrics, gauges, plugins: PluginSeries::default() }
    }

    /// The same, with what plugins count.
    pub fn with_plugins(self, plugins: PluginSeries) -> Self {
        Self { plugins, ..self }
    }

    /// What else there is at this moment.
    pub fn gauges(&mut self) -> &mut Gauges {
        &mut self.gauges
    }

    /// The text of all series.
    ///
    /// # Errors
    /// None that is known: writing to a string does not fail.
    pub fn render(&self, format: TextFormat) -> Result<String, fmt::Error> {
        let mut now = Registry::default();
        for (metric, series) in &self.gauges.whole {
            register(&mut now, metric.spec(), series);
        }
        for (metric, seconds) in &self.gauges.seconds {
            let spec = metric.spec();
            if spec.form == Form::Counter {
                let counter = Counter::<f64, AtomicU64>::default();
                counter.inc_by(*seconds);
                now.register(counter_name(spec), spec.help, counter);
            } else {
                let gauge = Gauge::<f64, AtomicU64>::default();
                gauge.set(*seconds);
                now.register(spec.name, spec.help, gauge);
            }
        }
        self.plugins.register(&mut now);
        let mut text = String::new();
        encode_registry(&mut text, &self.metrics.registry)?;
        encode_registry(&mut text, &now)?;
        match format {
            TextFormat::OpenMetrics => encode_eof(&mut text)?,
            TextFormat::Classic => text = classic(&text),
        }
        Ok(text)
    }
}

impl TextFormat {
    /// As an HTTP content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Registers what was read at one moment. What is of the whole host has one series, without braces.
fn register(now: &mut Registry, spec: Spec, series: &BTreeMap<Labels, u64>) {
    let signed = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
    match (spec.form, spec.labels) {
        (Form::Counter, []) => {
            let counter = Counter::<u64>::default();
            counter.inc_by(series.values().sum());
            now.register(counter_name(spec), spec.help, counter);
        }
        (Form::Counter, _) => {
            let family = Family::<Labels, Counter>::default();
            now.register(counter_name(spec), spec.help, family.clone());
            for (labels, amount) in series {
                family.get_or_create(labels).inc_by(*amount);
            }
        }
        (_, []) => {
            let gauge = Gauge::<i64>::default();
            gauge.set(signed(series.values().sum()));
            now.register(spec.name, spec.help, gauge);
        }
        _ => {
            let family = Family::<Labels, Gauge>::default();
            now.register(spec.name, spec.help, family.clone());
            for (labels, amount) in series {
                family.get_or_create(labels).set(signed(*amount));
            }
        }
    }
}

/// The same series in Prometheus's own text: there a counter's family has the name of its series, and nothing marks the end.
fn classic(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let counters: BTreeSet<&str> =
        openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in openmetrics.lines() {
        match line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
            Some(("HELP" | "TYPE", rest)) => {
                let (keyword, (name, said)) = (&line[..7], rest.split_once(' ').unwrap_or((rest, "")));
                let ending = if counters.contains(name) { "_total" } else { "" };
                text.extend([keyword, name, ending, " ", said, "\n"]);
            }
            // Units are told in names.
            Some(_) => {}
            None => text.extend([line, "\n"]),
        }
    }
    text
}

impl Series {
    fn register(registry: &mut Registry, metric: Metric) -> Self {
        let spec = metric.spec();
        match spec.form {
            // Of the whole host, not of a model: counted where it happens.
            _ if !metric.is_kept() => Self::Read,
            Form::Counter => {
                let family = Family::default();
                registry.register(counter_name(spec), spec.help, family.clone());
                Self::Counter(family)
            }
            Form::Histogram(bounds) => {
                let family = Family::new_with_constructor(Bounds(bounds));
                registry.register(spec.name, spec.help, family.clone());
                Self::Histogram(family)
            }
            Form::Gauge => Self::Read,
        }
    }

    fn remove(&self, labels: &Labels) {
        let _was_there = match self {
            Self::Counter(family) => family.remove(labels),
            Self::Histogram(family) => family.remove(labels),
            Self::Read => false,
        };
    }
}

impl MetricConstructor<Histogram> for Bounds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// The encoder writes a counter's ending itself.
fn counter_name(spec: Spec) -> &'static str {
    spec.name.strip_suffix("_total").unwrap_or(spec.name)
}

fn labels(metric: Metric, model: &ModelId, value: &'static str) -> Labels {
    let of = |label: &super::metrics::Label| match label.values {
        [] => (label.name, Cow::Owned(model.to_string())),
        values => {
            debug_assert!(values.contains(&value), "`{value}` is not a value of `{}` of {metric:?}", label.name);
            (label.name, Cow::Borrowed(value))
        }
    };
    metric.spec().labels.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(models: &[&str]) -> Arc<Metrics> {
        let metrics = Metrics::default();
        let models: Vec<ModelId> = models.iter().map(|model| ModelId::from(*model)).collect();
        metrics.set_models(models.iter());
        Arc::new(metrics)
    }

    fn text(metrics: &Arc<Metrics>, gauges: Gauges) -> String {
        Scrape::new(Arc::clone(metrics), gauges).render(TextFormat::OpenMetrics).expect("a text")
    }

    #[test]
    fn a_scrape_reads_as_openmetrics() {
        let metrics = with(&["a"]);
        metrics.count(Metric::Requests, &"a".into(), "ok");
        metrics.time(Metric::QueueWait, &"a".into(), "", Duration::from_millis(30));
        let mut gauges = Gauges::default();
        gauges.add(Metric::Instances, &["a", "hot"], 1);
        gauges.add(Metric::MemoryPlanned, &["a", "cpu"], 5);
        gauges.add(Metric::MemoryPlanned, &["a", "cpu"], 6);
        gauges.add(Metric::DeviceBudget, &["cpu"], 9);
        gauges.add(Metric::LogLinesLost, &[], 3);
        let text = text(&metrics, gauges);
        for line in [
            "# TYPE aihost_requests counter",
            "aihost_requests_total{model=\"a\",outcome=\"ok\"} 1",
            "aihost_requests_lost_total{model=\"a\"} 0",
            "aihost_request_queue_seconds_bucket{le=\"0.025\",model=\"a\"} 0",
            "aihost_request_queue_seconds_bucket{le=\"0.05\",model=\"a\"} 1",
            "aihost_request_queue_seconds_count{model=\"a\"} 1",
            "aihost_instances{model=\"a\",state=\"hot\"} 1",
            "aihost_memory_planned_bytes{model=\"a\",device=\"cpu\"} 11",
            "aihost_device_budget_bytes{device=\"cpu\"} 9",
            "# TYPE aihost_log_lines_lost counter",
            "aihost_log_lines_lost_total 3",
        ] {
            assert!(text.lines().any(|there| there == line), "no `{line}` in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    }

    #[test]
    fn the_classic_text_says_the_same_in_its_own_way() {
        let metrics = with(&["a"]);
        metrics.count(Metric::Requests, &"a".into(), "ok");
        metrics.time(Metric::QueueWait, &"a".into(), "", Duration::from_millis(30));
        let mut gauges = Gauges::default();
        gauges.add(Metric::Refusals, &["401"], 2);
        gauges.add(Metric::Refusals, &["503"], 0);
        gauges.add(Metric::DeviceBudget, &["cpu"], 9);
        gauges.set_seconds(Metric::CpuSeconds, 1.25);
        let scrape = Scrape::new(Arc::clone(&metrics), gauges);
        let classic = scrape.render(TextFormat::Classic).expect("a text");
        for line in [
            "# TYPE aihost_requests_total counter",
            "aihost_requests_total{model=\"a\",outcome=\"ok\"} 1",
            "# TYPE aihost_request_queue_seconds histogram",
            "aihost_request_queue_seconds_bucket{le=\"+Inf\",model=\"a\"} 1",
            "# TYPE aihost_http_refusals_total counter",
            "aihost_http_refusals_total{status=\"401\"} 2",
            "aihost_http_refusals_total{status=\"503\"} 0",
            "# TYPE process_cpu_seconds_total counter",
            "process_cpu_seconds_total 1.25",
            "# TYPE aihost_device_budget_bytes gauge",
        ] {
            assert!(classic.lines().any(|there| there == line), "no `{line}` in\n{classic}");
        }
        assert!(!classic.contains("# EOF") && !classic.contains("# UNIT"), "{classic}");
        for line in classic.lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).unwrap_or_default();
            let help = format!("# HELP {name} ");
            assert!(classic.lines().any(|there| there.len() > help.len() && there.starts_with(&help)), "{line}");
        }
        let openmetrics = scrape.render(TextFormat::OpenMetrics).expect("a text");
        // A family writes its series in any order.
        let series = |text: &str| -> BTreeSet<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(series(&classic), series(&openmetrics));
    }

    #[test]
    fn a_models_series_go_with_it_and_do_not_come_back() {
        let metrics = with(&["a", "b"]);
        let record = |model: &str| {
            let model = ModelId::from(model);
            for (metric, value) in [(Metric::Requests, "timed_out"), (Metric::Swaps, "stop"), (Metric::Replays, "")] {
                metrics.count(metric, &model, value);
            }
            metrics.time(Metric::SwapPhase, &model, "load", Duration::from_secs(1));
        };
        record("a");
        record("b");
        metrics.set_models([&ModelId::from("b")].into_iter());
        record("a");
        record("made up");
        let text = text(&metrics, Gauges::default());
        assert!(!text.contains("\"a\"") && !text.contains("made up"), "{text}");
        assert!(text.contains("aihost_swaps_total{model=\"b\",kind=\"stop\"} 1"), "{text}");
        assert!(text.contains("aihost_requests_total{model=\"b\",outcome=\"timed_out\"} 1"), "{text}");
    }

    #[test]
    fn hostile_names_are_escaped() {
        let text = text(&with(&["a\"\\\nb"]), Gauges::default());
        assert!(text.contains(r#"aihost_requests_lost_total{model="a\"\\\nb"} 0"#), "{text}");
    }
}
