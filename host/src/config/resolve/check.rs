//! What every check reports to, and the checks of a single value: sizes, durations, numbers.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::error::{PROBLEMS_TOLD, Problem};
use crate::config::locate::{KeyPath, lines};
use crate::config::raw::Text;
use crate::config::units::{parse_duration, parse_size};
use crate::domain::ByteSize;

/// Collects problems, so that one run names many; how many more there are is counted.
#[derive(Default)]
pub(super) struct Checker {
    problems: Vec<(KeyPath, Problem)>,
    more: usize,
}

/// The problem just reported, to which a hint can be added.
pub(super) struct Reported<'a>(Option<&'a mut Problem>);

impl Reported<'_> {
    pub(super) fn hint(self, hint: impl Into<String>) {
        if let Some(problem) = self.0 {
            problem.hint = Some(hint.into());
        }
    }
}

impl Checker {
    pub(super) fn fail(&mut self, key: &KeyPath, value: Option<&str>, message: impl Into<String>) -> Reported<'_> {
        if self.is_full() {
            self.more += 1;
            return Reported(None);
        }
        let problem = Problem {
            // Looked up for all of them together.
            line: None,
            key: Some(key.to_string()),
            value: value.map(str::to_owned),
            message: message.into(),
            hint: None,
        };
        self.problems.push((key.clone(), problem));
        Reported(self.problems.last_mut().map(|(_, problem)| problem))
    }

    /// Whether anything is wrong so far.
    pub(super) fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Whether what is found from here on is counted and no longer told.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= PROBLEMS_TOLD
    }

    /// What was found, in the order of its lines, and how much more was.
    pub(super) fn problems(self, text: &str) -> (Vec<Problem>, usize) {
        let paths: Vec<&KeyPath> = self.problems.iter().map(|(key, _)| key).collect();
        let lines = if paths.is_empty() { Vec::new() } else { lines(text, &paths) };
        let mut problems: Vec<Problem> =
            self.problems.into_iter().zip(lines).map(|((_, problem), line)| Problem { line, ..problem }).collect();
        problems.sort_by_key(|problem| problem.line);
        (problems, self.more)
    }

    /// A number of bytes above zero.
    pub(super) fn size(&mut self, key: &KeyPath, typed: Option<&Text>) -> Option<ByteSize> {
        let typed = typed?;
        match parse_size(&typed.0) {
            Ok(ByteSize(0)) => {
                self.fail(key, Some(&typed.0), "leaves no room for anything").hint("leave the key out for the default");
                None
            }
            Ok(size) => Some(size),
            Err(wrong) => {
                self.fail(key, Some(&typed.0), wrong).hint("a size is written like 20GiB or 512MB");
                None
            }
        }
    }

    /// A duration; `forever` is `Some(None)`.
    pub(super) fn duration(&mut self, key: &KeyPath, typed: Option<&Text>) -> Option<Option<Duration>> {
        let typed = typed?;
        match parse_duration(&typed.0) {
            Ok(duration) => Some(duration),
            Err(wrong) => {
                self.fail(key, Some(&typed.0), wrong).hint("a duration is written like 60s, 5m or 1h");
                None
            }
        }
    }

    /// A duration that ends and is not zero.
    pub(super) fn finite(&mut self, key: &KeyPath, typed: Option<&Text>, default: Duration) -> Duration {
        match self.duration(key, typed) {
            None => default,
            Some(Some(duration)) if !duration.is_zero() => duration,
            Some(_) => {
                self.fail(key, typed.map(|text| text.0.as_str()), "must be longer than nothing and end some day");
                default
            }
        }
    }

    /// The time from one to the next, which is not zero; `None` if there is no next.
    pub(super) fn period(&mut self, key: &KeyPath, typed: Option<&Text>) -> Option<Duration> {
        let period = self.duration(key, typed).flatten()?;
        if period.is_zero() {
            self.fail(key, typed.map(|text| text.0.as_str()), "must be longer than nothing");
        }
        Some(period)
    }

    /// A whole number in a range.
    pub(super) fn number(&mut self, key: &KeyPath, typed: Option<&Text>, range: RangeInclusive<i64>) -> Option<i64> {
        let typed = typed?;
        match typed.0.trim().parse::<i64>() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let message = format!("is not a whole number from {} to {}", range.start(), range.end());
                self.fail(key, Some(&typed.0), message);
                None
            }
        }
    }

    /// How many of something; at least one.
    pub(super) fn count(&mut self, key: &KeyPath, typed: Option<&Text>) -> Option<u32> {
        self.number(key, typed, 1..=1_000_000).and_then(|count| u32::try_from(count).ok())
    }
}
