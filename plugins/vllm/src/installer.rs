//! Programs that fetch and install packages: run with their lines shown as they come, and of one that fails its own last
//! words in a sentence.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aihost_plugin_api::{Error, ErrorKind as Kind, Result};

use super::tail::{self, Tail};

/// How long the last words of a program that has ended may take to come through its pipe.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(1);
/// Lines of an error that are told.
const TOLD_LINES: usize = 6;
/// Bytes of them.
const TOLD_BYTES: usize = 480;
/// How pip marks what failed.
const PIP_ERROR: &str = "ERROR: ";
/// How uv begins what failed.
const UV_ERRORS: [&str; 2] = ["error: ", "× "];
/// Asks an interpreter what it is.
const QUESTION: &str = "import os, sys; print('.'.join(map(str, sys.version_info[:3])), sys.implementation.name, os.path.realpath(sys.executable))";

/// How programs are run.
#[derive(Debug)]
pub(crate) struct Installer<'a> {
    /// What says where packages are fetched from.
    pub(crate) environment: &'a BTreeMap<String, String>,
    /// Where relative paths of requirements begin.
    pub(crate) folder: Option<&'a Path>,
    /// For what is needed for a while.
    pub(crate) temporary: &'a Path,
}

/// An interpreter.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    /// As it was named.
    pub(crate) program: String,
    /// Version, implementation and file, in a line.
    pub(crate) identity: String,
}

impl Python {
    pub(crate) fn version(&self) -> &str {
        self.identity.split(' ').next().unwrap_or_default()
    }
}

impl Installer<'_> {
    /// Asks an interpreter what it is.
    pub(crate) fn python(&self, program: &str) -> Result<Python> {
        let unusable = |why: String| {
            Error::new(Kind::Unsupported, format!("{why}; install Python 3.9 or newer, or name one by `python:`"))
        };
        let answer = self.command(program).args(["-c", QUESTION]).output().map_err(|e| match e.kind() {
            ErrorKind::NotFound => unusable(format!("there is no interpreter `{program}`")),
            _ => unusable(format!("the interpreter `{program}` cannot be started ({e})")),
        })?;
        let identity = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        if !answer.status.success() || identity.split(' ').count() < 3 {
            return Err(unusable(format!("`{program}` does not answer as Python 3 does")));
        }
        Ok(Python { program: program.to_owned(), identity })
    }

    /// Runs a program to its end. Its lines go where this process's own go.
    ///
    /// # Errors
    /// It failed: what it said of that.
    pub(crate) fn run(&self, program: &Path, arguments: &[&str]) -> Result<(), String> {
        tracing::info!("running {} {}", program.display(), arguments.join(" "));
        let mut command = self.command(program);
        command.args(arguments).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{} cannot be started: {e}", program.display()))?;
        let tail = child.stderr.take().map_or_else(|| Ok(Tail::default()), Tail::follow).map_err(|e| e.to_string())?;
        let status = child.wait().map_err(|e| format!("{} cannot be waited for: {e}", program.display()))?;
        if status.success() {
            return Ok(());
        }
        match cause(&tail.lines(LAST_WORDS_WAIT)) {
            said if said.is_empty() => Err(format!("{} failed and did not say why ({status})", program.display())),
            said => Err(said),
        }
    }

    /// What a program writes on its standard output.
    pub(crate) fn output(&self, program: &Path, arguments: &[&str]) -> Result<Vec<u8>, String> {
        let output = self.command(program).args(arguments).stderr(Stdio::inherit()).output();
        let output = output.map_err(|e| format!("{} cannot be started: {e}", program.display()))?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(format!("{} failed ({})", program.display(), output.status)),
        }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment).env("TMPDIR", self.temporary).env_remove("PYTHONPATH").stdin(Stdio::null());
        // What was fetched before is where it is when the same is typed by hand.
        command.env_remove("XDG_CACHE_HOME");
        command.env("PIP_DISABLE_PIP_VERSION_CHECK", "1").env("PYTHONUNBUFFERED", "1");
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        command
    }
}

/// The first program of this name in the PATH.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|found| found.is_file())
}

/// Of what an installer said last, what it says of its failure.
fn cause(lines: &[String]) -> String {
    let marked: Vec<String> = lines.iter().filter_map(|line| line.strip_prefix(PIP_ERROR)).map(str::to_owned).collect();
    if !marked.is_empty() {
        return tail::last(&marked, TOLD_LINES, TOLD_BYTES);
    }
    let begins = |line: &String| UV_ERRORS.iter().any(|mark| line.starts_with(mark));
    let told = match lines.iter().rposition(begins) {
        Some(at) => {
            let told: Vec<&str> =
                lines[at..].iter().map(|line| line.trim_start_matches(['×', '╰', '─', '▶', '│', ' '])).collect();
            told.join(" ").trim_start_matches("error: ").to_owned()
        }
        None => lines.last().cloned().unwrap_or_default(),
    };
    let mut told = told;
    told.truncate(told.floor_char_boundary(TOLD_BYTES));
    told
}

#[cfg(test)]
mod tests {
    use super::cause;

    #[test]
    fn of_an_installers_words_those_on_its_failure_are_told() {
        for (said, wanted) in [
            (
                "Collecting a\nERROR: Could not find a version that satisfies the requirement a==9 (from versions: none)\nERROR: No matching distribution found for a==9\n[notice] update pip",
                "Could not find a version that satisfies the requirement a==9 (from versions: none) | No matching distribution found for a==9",
            ),
            (
                "Resolving\n× No solution found when resolving dependencies:\n╰─▶ Because a was not found in the package registry and you require a,\nwe can conclude that your requirements are unsatisfiable.",
                "No solution found when resolving dependencies: Because a was not found in the package registry and you require a, we can conclude that your requirements are unsatisfiable.",
            ),
            ("error: Failed to fetch: `x`\nCaused by: no route", "Failed to fetch: `x` Caused by: no route"),
            ("one\ntwo", "two"),
            ("", ""),
        ] {
            let lines: Vec<String> = said.lines().map(str::to_owned).collect();
            assert_eq!(cause(&lines), wanted);
        }
    }
}
