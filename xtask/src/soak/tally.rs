//! What a soak counts, and which counts are too many.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Manner, Outcome, Record};
use super::process::Holdings;
use crate::table;

/// Deaths in one request's life after which the host may refuse it: one in company, two alone.
const DEATHS_REFUSED: usize = 3;
/// What the host may hold at the end beyond what it held after its first round.
const EXTRA_DESCRIPTORS: u64 = 4;
const EXTRA_THREADS: u64 = 4;
const EXTRA_RESIDENT_KIB: u64 = 24 << 10;

/// A worker was made to die, some time between these two.
#[derive(Clone, Debug)]
pub(super) struct Death {
    pub(super) model: String,
    pub(super) from: Instant,
    pub(super) until: Instant,
}

/// What happened, request by request; those that were well are only counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    requests: BTreeMap<&'static str, u64>,
    answered: u64,
    left: u64,
    waits_ms: Vec<f64>,
    troubles: Vec<Record>,
}

/// Counters of the host and readings of its process.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) loads: u64,
    pub(super) loaded: u64,
    pub(super) start: Holdings,
    pub(super) end: Holdings,
    pub(super) orphans: usize,
    pub(super) took: Duration,
}

/// One line of the table, and whether it is within its bound.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) bound: String,
    pub(super) kept: bool,
}

impl Tally {
    pub(super) fn add(&mut self, record: Record) {
        let manner = match record.manner {
            Manner::Patient => "patient",
            Manner::Streaming => "streaming",
            Manner::Impatient => "impatient",
            Manner::Stalled => "stalled",
        };
        *self.requests.entry(manner).or_default() += 1;
        self.waits_ms.extend(record.wait.map(|wait| wait.as_secs_f64() * 1e3));
        match record.outcome {
            Outcome::Answered => self.answered += 1,
            Outcome::Left => self.left += 1,
            _ => self.troubles.push(record),
        }
    }

    /// Every count with its bound.
    pub(super) fn lines(&mut self, deaths: &[Death], host: &Host) -> Vec<Line> {
        let requests: u64 = self.requests.values().sum();
        let by_manner: Vec<String> = self.requests.iter().map(|(manner, count)| format!("{manner} {count}")).collect();
        let died = deaths.len() as u64;
        let swaps = host.loads.saturating_sub(died);
        self.waits_ms.sort_by(f64::total_cmp);
        let wait = |share: f64| format!("{:.1} ms", percentile(&self.waits_ms, share));
        let mut lines = vec![
            told("seconds", format!("{:.1}", host.took.as_secs_f64())),
            told("requests", format!("{requests} ({})", by_manner.join(", "))),
            told("answers", self.answered.to_string()),
            told("left by their client", self.left.to_string()),
        ];
        for class in CLASSES {
            let found: Vec<_> = self.troubles.iter().filter(|record| class_of(record, deaths) == class).collect();
            let most = if class.is_allowed() { u64::MAX } else { 0 };
            lines.push(bounded(class.name(), found.len() as u64, most));
        }
        lines.extend([
            told("p50 wait of a stream's first byte", wait(0.5)),
            told("p99 wait of a stream's first byte", wait(0.99)),
            told("loads and wakes", host.loads.to_string()),
            told("workers made to die", died.to_string()),
            told("swaps (loads and wakes that replace no dead worker)", swaps.to_string()),
            told("swaps per second", format!("{:.1}", swaps as f64 / host.took.as_secs_f64().max(0.001))),
            told("evictions and parks (swaps less what is still hot)", swaps.saturating_sub(host.loaded).to_string()),
            grown("resident KiB", host.start.resident_kib, host.end.resident_kib, EXTRA_RESIDENT_KIB),
            grown("descriptors", host.start.descriptors, host.end.descriptors, EXTRA_DESCRIPTORS),
            grown("threads", host.start.threads, host.end.threads, EXTRA_THREADS),
            grown("zombies", host.start.zombies, host.end.zombies, 0),
            bounded("processes left after the end", host.orphans as u64, 0),
        ]);
        lines
    }

    /// What cannot be explained, at most so many of a class.
    pub(super) fn examples(&self, deaths: &[Death], most: usize) -> Vec<String> {
        let tell = |record: &Record| {
            let took = record.ended - record.begun;
            let outcome: String = format!("{:?}", record.outcome).chars().take(300).collect();
            format!("{:?} {} after {took:.1?}: {outcome}", record.manner, record.model)
        };
        let bad = CLASSES.into_iter().filter(|class| !class.is_allowed());
        let of = |class| self.troubles.iter().filter(move |record| class_of(record, deaths) == class).take(most);
        bad.flat_map(|class| of(class).map(tell)).collect()
    }
}

/// What kind of trouble a request had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Lost,
    Wrong,
    /// A stream that had sent bytes when its worker was made to die.
    CutByDeath,
    /// A stream whose client did not read for too long.
    CutByStall,
    /// Refused because worker after worker was made to die under it.
    Suspected,
    BrokenUnexplained,
    RefusedUnexplained,
}

const CLASSES: [Class; 7] = [
    Class::Lost,
    Class::Wrong,
    Class::CutByDeath,
    Class::CutByStall,
    Class::Suspected,
    Class::BrokenUnexplained,
    Class::RefusedUnexplained,
];

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::Lost => "losses (neither answer nor error)",
            Self::Wrong => "wrong answers (another model's or request's)",
            Self::CutByDeath => "streams that had begun when their worker died",
            Self::CutByStall => "streams whose client stalled",
            Self::Suspected => "requests under which three workers died",
            Self::BrokenUnexplained => "other streams that broke",
            Self::RefusedUnexplained => "other HTTP errors",
        }
    }

    fn is_allowed(self) -> bool {
        matches!(self, Self::CutByDeath | Self::CutByStall | Self::Suspected)
    }
}

fn class_of(record: &Record, deaths: &[Death]) -> Class {
    let met = deaths
        .iter()
        .filter(|death| death.model == record.model && record.begun <= death.until && record.ended >= death.from)
        .count();
    match &record.outcome {
        Outcome::Lost(_) => Class::Lost,
        Outcome::Wrong(_) | Outcome::Answered | Outcome::Left => Class::Wrong,
        Outcome::Broken(code) if code == "worker_died" && met > 0 => Class::CutByDeath,
        Outcome::Broken(_) if record.manner == Manner::Stalled => Class::CutByStall,
        Outcome::Refused(500, code) if code == "request_suspected" && met >= DEATHS_REFUSED => Class::Suspected,
        Outcome::Broken(_) => Class::BrokenUnexplained,
        Outcome::Refused(..) => Class::RefusedUnexplained,
    }
}

/// The lines as a table.
pub(super) fn render(lines: &[Line]) -> String {
    let mut rows = vec![table::row(["count", "value", "bound", ""])];
    rows.extend(lines.iter().map(|line| {
        let mark = if line.kept { "" } else { "BROKEN" };
        vec![line.name.to_owned(), line.value.clone(), line.bound.clone(), mark.to_owned()]
    }));
    table::render(&rows)
}

/// The lines as JSON.
pub(super) fn json(lines: &[Line]) -> Value {
    lines
        .iter()
        .map(|line| json!({"count": line.name, "value": line.value, "bound": line.bound, "kept": line.kept}))
        .collect()
}

pub(super) fn told(name: &'static str, value: String) -> Line {
    Line { name, value, bound: String::new(), kept: true }
}

pub(super) fn bounded(name: &'static str, value: u64, most: u64) -> Line {
    let bound = if most == u64::MAX { String::new() } else { most.to_string() };
    Line { name, value: value.to_string(), bound, kept: value <= most }
}

pub(super) fn grown(name: &'static str, start: u64, end: u64, extra: u64) -> Line {
    Line { name, value: format!("{start} -> {end}"), bound: format!("+{extra}"), kept: end <= start + extra }
}

pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64) * share).ceil() as usize;
    sorted.get(at.max(1) - 1).or(sorted.last()).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(manner: Manner, outcome: Outcome, begun: Instant) -> Record {
        Record { manner, model: "a", begun, ended: begun + Duration::from_secs(2), wait: None, outcome }
    }

    #[test]
    fn only_what_a_death_or_a_stall_explains_is_allowed() {
        let zero = Instant::now();
        let at = |seconds| zero + Duration::from_secs(seconds);
        let death = |model: &str, second| Death { model: model.into(), from: at(second), until: at(second) };
        let broken = || Outcome::Broken("worker_died".into());
        let suspected = || Outcome::Refused(500, "request_suspected".into());
        let deaths = [death("a", 11), death("b", 21), death("a", 30), death("a", 31), death("a", 32)];
        for (manner, outcome, second, wanted) in [
            (Manner::Streaming, broken(), 10, Class::CutByDeath),
            (Manner::Streaming, broken(), 20, Class::BrokenUnexplained),
            (Manner::Streaming, broken(), 12, Class::BrokenUnexplained),
            (Manner::Streaming, Outcome::Broken("internal_error".into()), 10, Class::BrokenUnexplained),
            (Manner::Stalled, broken(), 20, Class::CutByStall),
            (Manner::Patient, Outcome::Refused(500, "worker_died".into()), 10, Class::RefusedUnexplained),
            (Manner::Patient, suspected(), 10, Class::RefusedUnexplained),
            (Manner::Patient, suspected(), 30, Class::Suspected),
            (Manner::Patient, Outcome::Lost("reset".into()), 10, Class::Lost),
            (Manner::Patient, Outcome::Wrong("b".into()), 10, Class::Wrong),
        ] {
            assert_eq!(class_of(&record(manner, outcome.clone(), at(second)), &deaths), wanted, "{outcome:?}");
        }
    }

    #[test]
    fn a_broken_bound_is_marked_and_shown() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        tally.add(record(Manner::Patient, Outcome::Answered, now));
        tally.add(record(Manner::Impatient, Outcome::Left, now));
        assert!(tally.lines(&[], &Host::default()).iter().all(|line| line.kept));
        tally.add(record(Manner::Patient, Outcome::Lost("reset".into()), now));
        let end = Holdings { descriptors: EXTRA_DESCRIPTORS + 1, ..Holdings::default() };
        let lines = tally.lines(&[], &Host { orphans: 1, end, ..Host::default() });
        let broken: Vec<_> = lines.iter().filter(|line| !line.kept).map(|line| line.name).collect();
        assert_eq!(broken, ["losses (neither answer nor error)", "descriptors", "processes left after the end"]);
        assert_eq!(tally.examples(&[], 9).len(), 1);
    }

    #[test]
    fn percentiles() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        for (share, value) in [(0.5, 100.0), (0.99, 198.0), (1.0, 200.0)] {
            assert!((percentile(&sorted, share) - value).abs() < 1e-9);
        }
        assert!(percentile(&[], 0.5).abs() < 1e-9);
    }
}
