//! Results as they come: a line for people on stdout, a line of JSON in a file, and the table last.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Doing, Error, Result};
use crate::table;

/// Longest value that a line shows, in characters; the file has all of it.
const SHOWN: usize = 160;

/// What a result comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As it must be.
    Right,
    /// Not as it must be.
    Wrong,
    /// A figure, which is neither.
    Figure,
}

impl Verdict {
    pub(super) fn of(right: bool) -> Self {
        if right { Self::Right } else { Self::Wrong }
    }

    /// As the file has it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong => "wrong",
            Self::Figure => "figure",
        }
    }

    /// The other way; what is none of the words is wrong.
    pub(super) fn read(word: &str) -> Self {
        [Self::Right, Self::Figure].into_iter().find(|verdict| verdict.word() == word).unwrap_or(Self::Wrong)
    }
}

/// All that was found.
#[derive(Debug)]
pub(super) struct Report {
    file: File,
    part: &'static str,
    title: &'static str,
    begun: Instant,
    right: usize,
    wrong: usize,
    rows: Vec<Vec<String>>,
    failed: Vec<&'static str>,
}

impl Report {
    pub(super) fn new(out: &Path) -> Result<Self> {
        let file = File::create(out).doing(format_args!("create {}", out.display()))?;
        let rows = vec![table::row(["part", "what", "seconds", "right", "wrong"])];
        let (part, title) = ("-", "");
        Ok(Self { file, part, title, begun: Instant::now(), right: 0, wrong: 0, rows, failed: Vec::new() })
    }

    pub(super) fn begin(&mut self, part: &'static str, title: &'static str) {
        println!("\n{part}: {title}");
        (self.part, self.title, self.begun, self.right, self.wrong) = (part, title, Instant::now(), 0, 0);
    }

    /// One result.
    pub(super) fn say(&mut self, what: &str, value: &Value, verdict: Verdict) -> Result {
        match verdict {
            Verdict::Right => self.right += 1,
            Verdict::Wrong => self.wrong += 1,
            Verdict::Figure => {}
        }
        let shown: String = value.to_string().chars().take(SHOWN).collect();
        println!("  {:<6} {what}: {shown}", verdict.word());
        let seconds = self.begun.elapsed().as_secs_f64();
        let line =
            json!({"part": self.part, "what": what, "value": value, "verdict": verdict.word(), "at_seconds": seconds});
        writeln!(self.file, "{line}").and_then(|()| self.file.flush()).doing("write a result")
    }

    pub(super) fn end(&mut self) {
        if self.wrong > 0 || self.right == 0 && self.part != "G0" {
            self.failed.push(self.part);
        }
        let seconds = format!("{:.1}", self.begun.elapsed().as_secs_f64());
        let (part, title) = (self.part.to_owned(), self.title.to_owned());
        self.rows.push(vec![part, title, seconds, self.right.to_string(), self.wrong.to_string()]);
    }

    /// The table, and whether all is as it must be.
    pub(super) fn finish(self, took: Duration, out: &Path) -> Result {
        println!("\n{}", table::render(&self.rows));
        println!("took {:.0} s; every result is in {}", took.as_secs_f64(), out.display());
        if self.failed.is_empty() {
            Ok(())
        } else {
            Err(Error(format!("not as it must be: {}", self.failed.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Report, Verdict};

    #[test]
    fn results_are_in_the_file_at_once_and_one_that_is_wrong_fails_the_whole() {
        let out = std::env::temp_dir().join(format!("xtask-report-{}.jsonl", std::process::id()));
        let run = |verdicts: &[Verdict]| {
            let mut report = Report::new(&out).unwrap();
            report.begin("C", "cases");
            for verdict in verdicts {
                report.say("a", &json!({"b": 1}), *verdict).unwrap();
            }
            let lines = std::fs::read_to_string(&out).unwrap();
            assert_eq!(lines.lines().count(), verdicts.len(), "{lines}");
            report.end();
            report.finish(std::time::Duration::ZERO, &out).map_err(|error| error.0)
        };
        assert_eq!(run(&[Verdict::Right, Verdict::Figure]), Ok(()));
        assert_eq!(run(&[Verdict::Right, Verdict::Wrong]), Err("not as it must be: C".to_owned()));
        assert_eq!(run(&[]), Err("not as it must be: C".to_owned()), "a part that says nothing is not right");
        std::fs::remove_file(&out).unwrap();
        assert_eq!(
            ["right", "figure", "wrong", "what?"].map(Verdict::read),
            [Verdict::Right, Verdict::Figure, Verdict::Wrong, Verdict::Wrong]
        );
    }
}
