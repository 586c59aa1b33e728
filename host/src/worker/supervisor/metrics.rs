//! What a plugin counts, on its way to whoever scrapes the host: held to what a scraper reads, whatever the plugin says.

use std::collections::BTreeSet;

use aihost_plugin_api::Metric;

use super::super::awake::timeout;
use super::super::limits::{METRIC_LABELS_MAX, METRIC_NAME_BYTES, METRIC_TEXT_BYTES, METRICS_MAX, METRICS_WAIT};
use super::instance::Supervised;
use crate::domain::excerpt;

/// Labels that are the host's, or that a scraper has a meaning for.
const RESERVED_LABELS: [&str; 4] = ["instance", "job", "le", "model"];

impl Supervised {
    /// What its plugin counts now. Empty if it does not say in time; why a metric is left out stands once in the model's log.
    pub(super) async fn metrics(&self) -> Vec<Metric> {
        let Some(Some(json)) = timeout(METRICS_WAIT, self.socket.metrics()).await else { return Vec::new() };
        let (metrics, problems) = read(&json);
        let mut told = self.metrics_told.lock();
        for problem in problems {
            // One that makes up a new one each time is not listened to for ever.
            if told.len() < METRICS_MAX && !told.contains(&problem) {
                self.log.keep(&format!("a metric of the plugin is not shown: {problem}"));
                told.insert(problem);
            }
        }
        metrics
    }
}

/// The metrics that a scraper can read, and what is wrong with the others.
fn read(json: &[u8]) -> (Vec<Metric>, BTreeSet<String>) {
    let said: Vec<Metric> = match serde_json::from_slice(json) {
        Ok(said) => said,
        Err(error) => return (Vec::new(), [format!("what it sent is no list of metrics: {error}")].into()),
    };
    let (mut shown, mut problems, mut series) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for mut metric in said {
        if shown.len() == METRICS_MAX {
            problems.insert(format!("it has more than {METRICS_MAX} series"));
            break;
        }
        if let Err(problem) = check(&mut metric) {
            problems.insert(problem);
        } else if series.insert((metric.name.clone(), metric.labels.clone())) {
            shown.push(metric);
        } else {
            problems.insert(format!("`{}` is there twice with the same labels", metric.name));
        }
    }
    (shown, problems)
}

/// Cuts its texts to size.
fn check(metric: &mut Metric) -> Result<(), String> {
    let name = excerpt(&metric.name, METRIC_NAME_BYTES);
    if !is_name(&metric.name) {
        return Err(format!("`{name}` is no name: a-z, 0-9 and `_`, a letter first, at most {METRIC_NAME_BYTES}"));
    }
    if metric.name.ends_with("_total") {
        return Err(format!("`{name}` ends with `_total`, which the host writes behind what only rises"));
    }
    if metric.labels.len() > METRIC_LABELS_MAX {
        return Err(format!("`{name}` has more than {METRIC_LABELS_MAX} labels"));
    }
    if let Some(label) = metric.labels.keys().find(|label| !is_name(label) || RESERVED_LABELS.contains(&label.as_str()))
    {
        return Err(format!(
            "`{name}` has a label `{}`, which is no name or not the plugin's",
            excerpt(label, METRIC_NAME_BYTES)
        ));
    }
    if metric.kind == aihost_plugin_api::MetricKind::Counter && (metric.value < 0.0 || metric.value.is_nan()) {
        return Err(format!("`{name}` only rises, and is {}", metric.value));
    }
    for text in std::iter::once(&mut metric.help).chain(metric.labels.values_mut()) {
        *text = excerpt(text, METRIC_TEXT_BYTES);
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    name.len() <= METRIC_NAME_BYTES
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(metrics: &[Metric]) -> (Vec<String>, usize) {
        let (shown, problems) = read(&serde_json::to_vec(metrics).unwrap());
        (shown.into_iter().map(|metric| metric.name).collect(), problems.len())
    }

    #[test]
    fn what_a_scraper_cannot_read_is_left_out_and_the_rest_shown() {
        let good = || Metric::gauge("cache_bytes", "What the cache holds.", 3.0);
        let mut many = good();
        (0..9).for_each(|n| drop(many.labels.insert(format!("l{n}"), String::new())));
        for bad in [
            Metric::gauge("", "", 1.0),
            Metric::gauge("Cache", "", 1.0),
            Metric::gauge("9cache", "", 1.0),
            Metric::gauge("a b", "", 1.0),
            Metric::gauge(&"a".repeat(65), "", 1.0),
            Metric::counter("hits_total", "", 1.0),
            Metric::counter("hits", "", -1.0),
            Metric::counter("hits", "", f64::NAN),
            good(),
            Metric::gauge("x", "", 1.0).label("model", "forged"),
            Metric::gauge("x", "", 1.0).label("a-b", ""),
            many,
        ] {
            let named = bad.name.clone();
            assert_eq!(shown(&[good(), bad]), (vec!["cache_bytes".to_owned()], 1), "{named}");
        }
        assert_eq!(shown(&[good(), good().label("part", "a"), good().label("part", "b")]).0.len(), 3);
        let crowd: Vec<_> = (0..300).map(|n| good().label("n", &n.to_string())).collect();
        assert_eq!((shown(&crowd).0.len(), shown(&crowd).1), (METRICS_MAX, 1));
        for json in ["", "{}", "[1]", "null"] {
            assert_eq!(read(json.as_bytes()).1.len(), 1, "{json}");
        }
    }

    #[test]
    fn a_text_is_one_line_and_short() {
        let (shown, _) = read(&serde_json::to_vec(&[Metric::gauge("a", &"x\n".repeat(999), 1.0)]).unwrap());
        assert!(shown[0].help.len() <= METRIC_TEXT_BYTES && !shown[0].help.contains('\n'), "{}", shown[0].help);
    }
}
