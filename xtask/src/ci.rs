//! `ci`: what must pass before a change is merged, the same here and there.

use std::time::Instant;

use clap::Args;

use crate::error::{Error, Result};
use crate::{build_plugins, docgen, shell, soak, table, test, tidy};

/// How much.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Also the documentation, the dependency rules (where cargo-deny is installed) and the release build of the plugins.
    #[arg(long)]
    full: bool,
}

type Step = (&'static str, fn() -> Result);

/// The pages are checked after the tests, which built the host that prints them. About three minutes are the soak.
const STEPS: [Step; 6] = [
    ("fmt", fmt),
    ("clippy", clippy),
    ("tidy", tidy::run),
    ("test", tests),
    ("docgen", docgen::check),
    ("soak", soak::run_briefly),
];
const FULL_STEPS: [Step; 3] = [("doc", doc), ("deny", deny), ("build-plugins", release_plugins)];

/// Runs every step, even after one failed, and prints a table last.
pub(crate) fn run(options: &Options) -> Result {
    let mut rows = vec![table::row(["step", "result", "seconds"])];
    let mut failed = Vec::new();
    let more: &[Step] = if options.full { &FULL_STEPS } else { &[] };
    for (name, step) in STEPS.iter().chain(more) {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = step();
        let seconds = format!("{:.1}", start.elapsed().as_secs_f64());
        rows.push(vec![(*name).to_owned(), if result.is_ok() { "ok" } else { "failed" }.to_owned(), seconds]);
        if let Err(error) = result {
            eprintln!("error: {error}");
            failed.push(*name);
        }
    }
    eprint!("\n{}", table::render(&rows));
    if failed.is_empty() { Ok(()) } else { Err(Error(format!("failed: {}", failed.join(", ")))) }
}

fn fmt() -> Result {
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result {
    shell::run(shell::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn tests() -> Result {
    test::run(&test::Options::default())
}

fn doc() -> Result {
    shell::run(shell::cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

fn deny() -> Result {
    if shell::probe("cargo", &["deny", "--version"]).is_none() {
        eprintln!("skipped: cargo-deny is not installed");
        return Ok(());
    }
    shell::run(shell::cargo().args(["deny", "--all-features", "check", "--config", ".deny.toml"]))
}

fn release_plugins() -> Result {
    build_plugins::run(&build_plugins::Options { release: true, cuda: false, out: None, plugins: Vec::new() })
}
