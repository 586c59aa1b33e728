//! A suite: a script that prints one line for each of its cases, and how it is run to its end.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::engine::{Engine, Running};
use super::environment::Environment;
use super::{file, read};
use crate::error::{Doing, Result};

/// How long a suite may take.
const LIMIT: Duration = Duration::from_secs(1500);

/// An entry of suites.yaml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Suite {
    /// What `--suite` takes.
    pub(super) name: String,
    /// What it is, for the page.
    pub(super) what: String,
    /// Its file in `suites/`: `.py` or `.mjs`.
    pub(super) script: String,
    /// The environment it runs in: of `requirements/NAME.txt` or of `node/NAME.json`; `plain` is any Python 3.
    pub(super) environment: String,
    /// The packages of that environment that are tried, whose versions the page names.
    pub(super) packages: Vec<String>,
    /// A source distribution that has the suite in it.
    #[serde(default)]
    pub(super) source: Option<Source>,
    /// The engines that it makes sense for.
    pub(super) engines: Vec<Engine>,
    /// When it runs without being named.
    pub(super) when: When,
}

/// Part of a source distribution.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    /// `name==version`
    pub(super) package: String,
    /// The folder within it that is unpacked; all of it if empty.
    #[serde(default)]
    pub(super) folder: String,
}

/// When a suite runs without being named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum When {
    /// In every run.
    Ci,
    /// With `--full`.
    Full,
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct CaseResult {
    /// Its name within its suite.
    pub(super) case: String,
    /// `None`: the suite itself leaves it out.
    pub(super) ok: Option<bool>,
    /// Why it is not ok.
    #[serde(default)]
    pub(super) detail: String,
}

impl CaseResult {
    fn broken(detail: String) -> Self {
        Self { case: "the suite itself".to_owned(), ok: Some(false), detail }
    }
}

impl Suite {
    /// All there are.
    pub(super) fn read() -> Result<Vec<Self>> {
        read("suites.yaml")
    }

    /// Runs it to its end; a suite that ends badly, or without a case, is itself a case that failed.
    pub(super) fn run(&self, environment: &Environment, running: &Running, folder: &Path) -> Result<Vec<CaseResult>> {
        let log = folder.join(format!("{}-{}.log", running.engine, self.name));
        let stderr = File::create(&log).doing(format_args!("create {}", log.display()))?;
        let mut command = environment.command(&file("suites").join(&self.script))?;
        command.envs(running.variables()).env("PYTHONPATH", file("")).env("CONFORMANCE_HOME", folder);
        command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
        let mut child = command.spawn().doing(format_args!("start {}", self.script))?;
        let (send, lines) = mpsc::channel();
        let stdout = child.stdout.take();
        std::thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|pipe| BufReader::new(pipe).lines()).map_while(std::io::Result::ok)
            {
                let _ = send.send(line);
            }
        });
        let deadline = Instant::now() + LIMIT;
        let mut results = Vec::new();
        let is_over = loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match serde_json::from_str(&line) {
                    Ok(result) => results.push(result),
                    Err(_) => eprintln!("{line}"),
                },
                Err(mpsc::RecvTimeoutError::Disconnected) => break true,
                Err(mpsc::RecvTimeoutError::Timeout) => break false,
            }
        };
        if !is_over {
            let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
            results.push(CaseResult::broken(format!("it did not end in {} s", LIMIT.as_secs())));
        }
        let status = child.wait().doing(format_args!("wait for {}", self.script))?;
        if is_over && (!status.success() || results.is_empty()) {
            let cases = results.len();
            results.push(CaseResult::broken(format!(
                "ended with {status} after {cases} cases; its log is {}",
                log.display()
            )));
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::Suite;
    use crate::conformance::file;

    #[test]
    fn every_suite_has_its_script_and_its_environment() {
        for suite in Suite::read().unwrap() {
            assert!(file("suites").join(&suite.script).is_file(), "{} has no script", suite.name);
            assert!(!suite.packages.is_empty() || suite.environment == "plain", "{} tries no package", suite.name);
            assert!(!suite.engines.is_empty(), "{} runs on no engine", suite.name);
            let name = &suite.environment;
            let places = [file("requirements").join(format!("{name}.txt")), file("node").join(format!("{name}.json"))];
            let count = places.iter().filter(|place| place.is_file()).count() + usize::from(name == "plain");
            assert_eq!(count, 1, "{} runs in {name}, which is there {count} times", suite.name);
        }
    }
}
