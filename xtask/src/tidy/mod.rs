//! `tidy`: the rules of this repository that the compiler does not know, each a function over text.
//!
//! A rule is data where it can be; a change of the tables here is a change of the design and belongs in an ADR.

mod circles;
mod clocks;
mod decisions;
mod entry_points;
mod fences;
mod imports;
mod links;
mod messages;
mod packages;
mod source;
mod terms;
mod tested;
mod text;
mod tree;
mod workflows;

use std::fmt;
use std::fs;
use std::process::Command;

use crate::error::{Error, Result};
use crate::{shell, workspace};

/// A broken rule: where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    /// 1-based; 0 for the file as a whole.
    line: usize,
    sentence: String,
}

impl Finding {
    fn new(file: &str, line: usize, sentence: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, sentence: sentence.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.sentence),
            line => write!(f, "{}:{line}: {}", self.file, self.sentence),
        }
    }
}

/// A file of the repository.
#[derive(Debug)]
struct File {
    /// Relative to the root, with `/`.
    path: String,
    /// `None` if it is not text.
    text: Option<String>,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// Checks everything; any finding fails, warnings do not.
pub(crate) fn run() -> Result {
    let files = files()?;
    let mut findings = tree::check(&files);
    findings.extend(tested::check(&files));
    findings.extend(circles::check(&files));
    findings.extend(links::check(&files));
    findings.extend(messages::check(&files));
    findings.extend(entry_points::check(&files));
    findings.extend(decisions::check(&files));
    for file in &files {
        let Some(text) = &file.text else { continue };
        findings.extend(text::check(&file.path, text));
        if file.is_rust() {
            let code = source::code_only(text);
            findings.extend(imports::check(&file.path, &code));
            findings.extend(fences::check(&file.path, &code));
            findings.extend(clocks::check(&file.path, &code));
            findings.extend(terms::check(&file.path, &code));
            if let Some(warning) = text::long(&file.path, text) {
                eprintln!("warning: {warning}");
            }
        }
        if file.path.starts_with(".github/workflows/") {
            findings.extend(workflows::check(&file.path, text));
        }
        if file.path.ends_with("Cargo.toml") {
            findings.extend(packages::check_lints(&file.path, text, workspace_manifest(&files)));
        }
    }
    findings.extend(packages::check(&workspace::metadata(&[])?, workspace::root()));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("tidy: {} files, nothing to say", files.len());
            Ok(())
        }
        count => Err(Error(format!("tidy found {count} broken rules"))),
    }
}

fn workspace_manifest(files: &[File]) -> &str {
    files.iter().find(|file| file.path == "Cargo.toml").and_then(|file| file.text.as_deref()).unwrap_or_default()
}

/// Every file that git tracks or would track.
fn files() -> Result<Vec<File>> {
    let mut git = Command::new("git");
    // In a container the checkout may belong to another user.
    git.current_dir(workspace::root()).args(["-c", "safe.directory=*"]).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let mut paths: Vec<String> = shell::output(&mut git)?.split_terminator('\0').map(ToOwned::to_owned).collect();
    paths.sort();
    paths.dedup();
    let read = |path: String| {
        // A tracked file that was just deleted is none.
        let bytes = fs::read(workspace::root().join(&path)).ok()?;
        Some(File { path, text: String::from_utf8(bytes).ok() })
    };
    Ok(paths.into_iter().filter_map(read).collect())
}
