//! What the results of a suite mean beside the list of cases that are not expected to pass. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::engine::Engine;
use super::read;
use super::suite::{CaseResult, Suite};
use crate::error::Result;

/// An entry of deselected.yaml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Deselected {
    pub(super) suite: String,
    /// Names of cases; `*` stands for any text.
    pub(super) cases: Vec<String>,
    /// The engines that it is for; all of them if empty.
    #[serde(default)]
    pub(super) engines: Vec<Engine>,
    pub(super) kind: Kind,
    /// Why, in a sentence for whoever reads the page.
    pub(super) reason: String,
}

/// Why a case is not expected to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// It asks for what a host of models does not do, or no model here can.
    NotOurs,
    /// It contradicts another judge, and the contract decides for the other one.
    Ruling,
    /// The host should do it and does not yet.
    NotYet,
    /// It judges what a small model says; it may pass.
    Model,
}

impl Kind {
    /// Its word in list and page.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::NotOurs => "not ours",
            Self::Ruling => "ruling",
            Self::NotYet => "not yet",
            Self::Model => "model",
        }
    }
}

impl Deselected {
    /// The list.
    pub(super) fn read() -> Result<Vec<Self>> {
        read("deselected.yaml")
    }

    fn is_for(&self, suite: &str, engine: Engine) -> bool {
        self.suite == suite && (self.engines.is_empty() || self.engines.contains(&engine))
    }

    fn names(&self, case: &str) -> bool {
        self.cases.iter().any(|pattern| matches(pattern, case))
    }
}

/// What a suite said on an engine.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) suite: Suite,
    pub(super) engine: Engine,
    pub(super) passed: usize,
    /// Cases that the suite itself leaves out.
    pub(super) skipped: usize,
    /// Cases that failed as the list says.
    pub(super) listed: BTreeMap<Kind, usize>,
    /// Cases that failed and are not on the list.
    failed: Vec<CaseResult>,
    /// Entries of the list that are not true: their case, and what is.
    stale: Vec<String>,
}

impl Verdict {
    pub(super) fn of(suite: &Suite, engine: Engine, results: &[CaseResult], list: &[Deselected]) -> Self {
        let list: Vec<&Deselected> = list.iter().filter(|entry| entry.is_for(&suite.name, engine)).collect();
        let mut verdict = Self {
            suite: suite.clone(),
            engine,
            passed: 0,
            skipped: 0,
            listed: BTreeMap::new(),
            failed: Vec::new(),
            stale: Vec::new(),
        };
        for result in results {
            let entry = list.iter().find(|entry| entry.names(&result.case));
            match (result.ok, entry) {
                (None, _) => verdict.skipped += 1,
                (Some(true), None) => verdict.passed += 1,
                (Some(true), Some(entry)) => {
                    verdict.passed += 1;
                    if entry.kind != Kind::Model {
                        verdict.stale.push(format!("{}: passes, and is listed as {}", result.case, entry.kind.word()));
                    }
                }
                (Some(false), Some(entry)) => *verdict.listed.entry(entry.kind).or_default() += 1,
                (Some(false), None) => verdict.failed.push(result.clone()),
            }
        }
        let is_met = |pattern: &&String| results.iter().any(|result| matches(pattern, &result.case));
        let unmet = list.iter().flat_map(|entry| &entry.cases).filter(|pattern| !is_met(pattern));
        verdict.stale.extend(unmet.map(|pattern| format!("{pattern}: no such case")));
        verdict
    }

    /// Cases that the host is to pass.
    pub(super) fn applicable(&self) -> usize {
        let listed = |kind| self.listed.get(&kind).copied().unwrap_or(0);
        self.passed + self.failed.len() + listed(Kind::NotYet)
    }

    /// How much is not as the list says.
    pub(super) fn broken(&self) -> usize {
        self.failed.len() + self.stale.len()
    }

    /// What is not as the list says, a line each.
    pub(super) fn told(&self) -> String {
        let mut text = String::new();
        for result in &self.failed {
            let _ = writeln!(text, "failed: {}: {}", result.case, result.detail);
        }
        for sentence in &self.stale {
            let _ = writeln!(text, "stale: {sentence}");
        }
        text
    }
}

/// Whether `name` is of the form of `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(head) else { return false };
    name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::{CaseResult, Deselected, Engine, Kind, Suite, Verdict, matches};

    fn verdict(results: &[(&str, Option<bool>)], list: &str) -> Verdict {
        let suite = "{name: s, what: w, script: s.py, environment: e, packages: [p], engines: [echo], when: ci}";
        let suite: Suite = serde_yaml::from_str(suite).unwrap();
        let results: Vec<CaseResult> = results
            .iter()
            .map(|(case, ok)| CaseResult { case: (*case).to_owned(), ok: *ok, detail: String::new() })
            .collect();
        let list: Vec<Deselected> = serde_yaml::from_str(list).unwrap();
        Verdict::of(&suite, Engine::Echo, &results, &list)
    }

    #[test]
    fn what_is_listed_may_fail_and_nothing_else() {
        let list =
            "[{suite: s, cases: ['a*'], kind: not-ours, reason: r}, {suite: s, cases: [b], kind: not-yet, reason: r}]";
        let found = verdict(
            &[("a[1]", Some(false)), ("a[2]", Some(false)), ("b", Some(false)), ("c", Some(true)), ("d", None)],
            list,
        );
        assert_eq!((found.passed, found.applicable(), found.skipped, found.broken()), (1, 2, 1, 0));
        assert_eq!((found.listed[&Kind::NotOurs], found.listed[&Kind::NotYet]), (2, 1));
        let found =
            verdict(&[("a", Some(false)), ("c", Some(false))], "[{suite: s, cases: [a], kind: ruling, reason: r}]");
        assert_eq!((found.broken(), found.told().as_str()), (1, "failed: c: \n"));
    }

    #[test]
    fn an_entry_that_is_not_true_is_told() {
        let list =
            "[{suite: s, cases: [a], kind: not-yet, reason: r}, {suite: s, cases: [gone], kind: ruling, reason: r}]";
        let found = verdict(&[("a", Some(true))], list);
        assert_eq!(found.told(), "stale: a: passes, and is listed as not yet\nstale: gone: no such case\n");
        // What a small model says may be right by chance; what is of another suite or engine is not looked at.
        let list = "[{suite: s, cases: [a], kind: model, reason: r}, {suite: t, cases: [x], kind: ruling, reason: r},\
                     {suite: s, cases: [y], engines: [candle-llm], kind: ruling, reason: r}]";
        assert_eq!(verdict(&[("a", Some(true))], list).broken(), 0);
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, wanted) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*c*", "abcd", true),
            ("*_suffix[*]", "x_suffix[loose]", true),
            ("a*c", "acb", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(matches(pattern, name), wanted, "{pattern} {name}");
        }
    }
}
