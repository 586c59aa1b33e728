//! docs/CONFORMANCE.md: a table with a row for each suite and engine, of which a run replaces its own, and the list.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::engine::Engine;
use super::judge::{Deselected, Kind, Verdict};
use crate::error::{Doing, Error, Result};

/// Where it lies.
pub(super) const PAGE: &str = "docs/CONFORMANCE.md";

const HEAD: &str = "\
# Conformance

Suites and clients of others against a host of this repository, by `cargo xtask conformance`, which writes this page;
[TESTING](TESTING.md#conformance) says how. *Passed* is of the cases that apply. Three kinds of cases do not: **not ours** ask for
what a host of models does not do, a **ruling** is where two judges contradict each other and the host follows the other one,
and **model** ones judge what a model of 135 million parameters says. *Not yet* is what the host should do and does not; those count
as failed. *Left out* are cases that a suite skips by itself. The engines: `echo` is the fixture plugin, which does what a
message tells it to; `candle-llm` is SmolLM2-135M by our plugin; `upstream` is the fixture behind a server that has the chat route
alone; `llama-server` is SmolLM2-135M by llama.cpp's server, as a model that others run.
";
const COLUMNS: [&str; 9] = ["suite", "engine", "what", "versions", "passed", "not ours", "ruling", "model", "left out"];

/// The page as rows by suite and engine.
#[derive(Debug)]
pub(super) struct Page {
    path: PathBuf,
    /// As it stands on the disk.
    before: String,
    rows: BTreeMap<(String, String), Vec<String>>,
    list: String,
}

impl Page {
    /// The page of this repository; a page that is not there has no rows.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let before = if path.exists() {
            fs::read_to_string(path).doing(format_args!("read {}", path.display()))?
        } else {
            String::new()
        };
        Ok(Self { path: path.to_path_buf(), rows: parse(&before), before, list: String::new() })
    }

    /// With what came out now in place of what those suites said before.
    pub(super) fn with(mut self, verdicts: &[Verdict], list: &[Deselected]) -> Self {
        for verdict in verdicts {
            self.rows.insert((verdict.suite.name.clone(), verdict.engine.to_string()), row(verdict));
        }
        self.list = list.iter().map(listed).collect();
        self
    }

    /// Writes it.
    pub(super) fn write(&self) -> Result {
        fs::write(&self.path, self.text()).doing(format_args!("write {}", self.path.display()))
    }

    /// Whether it says what came out.
    pub(super) fn check(&self) -> Result {
        if self.before == self.text() {
            return Ok(());
        }
        Err(Error(format!("{PAGE} does not say what came out; run `cargo xtask conformance` and look at what changed")))
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        let has_run = |engine: &&Engine| self.rows.keys().any(|(_, of)| *of == engine.to_string());
        for engine in Engine::ALL.iter().filter(|engine| !has_run(engine)) {
            let _ = writeln!(text, "Nothing has run on `{engine}` so far.");
        }
        text.push('\n');
        text += &line(&COLUMNS.map(ToOwned::to_owned));
        text += &line(&COLUMNS.map(|_| "---".to_owned()));
        self.rows.values().for_each(|row| text += &line(row));
        let _ = write!(text, "\n## Cases that are not expected to pass\n\nA `*` stands for any text.\n\n");
        text += &line(&["suite", "cases", "engines", "kind", "reason"].map(ToOwned::to_owned));
        text += &line(&["---"; 5].map(ToOwned::to_owned));
        text + &self.list
    }
}

/// What came out as a table for the terminal, its head first.
pub(super) fn rows(verdicts: &[Verdict]) -> Vec<Vec<String>> {
    let short = |row: Vec<String>| [&row[..2], &row[4..]].concat();
    let head = short(COLUMNS.map(ToOwned::to_owned).to_vec());
    std::iter::once(head).chain(verdicts.iter().map(|verdict| short(row(verdict)))).collect()
}

fn row(verdict: &Verdict) -> Vec<String> {
    let listed = |kind| verdict.listed.get(&kind).copied().unwrap_or(0).to_string();
    let mut row = vec![
        verdict.suite.name.clone(),
        verdict.engine.to_string(),
        verdict.suite.what.clone(),
        verdict.suite.versions(),
        format!("{} of {}", verdict.passed, verdict.applicable()),
    ];
    row.extend([Kind::NotOurs, Kind::Ruling, Kind::Model].map(listed));
    row.push(verdict.skipped.to_string());
    row
}

fn listed(entry: &Deselected) -> String {
    let engines: Vec<String> = entry.engines.iter().map(ToString::to_string).collect();
    let engines = if engines.is_empty() { "all".to_owned() } else { engines.join(", ") };
    line(&[
        entry.suite.clone(),
        format!("`{}`", entry.cases.join("`, `")),
        engines,
        entry.kind.word().to_owned(),
        entry.reason.clone(),
    ])
}

fn line(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// The rows of a page, by their first two cells.
fn parse(page: &str) -> BTreeMap<(String, String), Vec<String>> {
    let table =
        page.lines().skip_while(|line| !line.starts_with("| ---")).skip(1).take_while(|line| line.starts_with('|'));
    let cells =
        table.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>());
    cells.filter(|row| row.len() == COLUMNS.len()).map(|row| ((row[0].clone(), row[1].clone()), row)).collect()
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS, Page, parse};

    #[test]
    fn a_run_replaces_its_own_rows_alone() {
        let row = |suite: &str, passed: &str| {
            [suite, "echo", "w", "v", passed, "0", "0", "0", "0"].map(ToOwned::to_owned).to_vec()
        };
        let key = |suite: &str| (suite.to_owned(), "echo".to_owned());
        let mut page = Page { path: "x".into(), before: String::new(), rows: parse(""), list: String::new() };
        assert!(page.text().contains("Nothing has run on `echo` so far."));
        page.rows.insert(key("b"), row("b", "1 of 2"));
        page.rows.insert(key("a"), row("a", "3 of 3"));
        let text = page.text();
        assert_eq!(parse(&text), page.rows);
        assert!(!text.contains("Nothing has run on `echo`") && text.contains("Nothing has run on `upstream` so far."));
        assert!(text.contains(&COLUMNS.join(" | ")) && text.find("3 of 3") < text.find("1 of 2"));
        page.before = text;
        assert!(page.check().is_ok());
        page.rows.insert(key("b"), row("b", "2 of 2"));
        assert!(page.check().is_err());
    }
}
