//! `conformance`: the suites and clients of others against a host of this workspace, and the table of what passes.
//!
//! It knows how a suite is started and how its results are judged. What a suite asks, its script in `tests/conformance` knows.

mod engine;
mod environment;
mod judge;
mod page;
mod suite;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use crate::error::{Doing, Error, Result};
use crate::workspace::{Profile, Workspace, root};
use crate::{shell, table};
use engine::{Engine, Running};
use environment::Cache;
use judge::{Deselected, Verdict};
use suite::{Suite, When};

/// Where scripts, requirements and lists lie.
const FOLDER: &str = "tests/conformance";

/// Which suites against what.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Only this suite; may be given several times.
    #[arg(long = "suite", value_name = "NAME")]
    suites: Vec<String>,
    /// Also the suites with large downloads or long runs, and every engine.
    #[arg(long)]
    full: bool,
    /// Only this engine; may be given several times.
    #[arg(long = "engine", value_name = "ENGINE")]
    engines: Vec<Engine>,
    /// Ask the host that listens here instead of starting one; its model is of the first --engine.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Where environments are kept; else $XDG_CACHE_HOME/aihost-conformance.
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Build optimised.
    #[arg(long)]
    release: bool,
    /// The page must say what comes out, instead of being written.
    #[arg(long)]
    check: bool,
}

/// How the run that continuous integration makes ended, if nothing was wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// It ran.
    Whole,
    /// It cannot run here, and why.
    Not(String),
}

/// The suites that every change is tried with.
pub(crate) fn run_briefly() -> Result<Ran> {
    let options = Options { engines: vec![Engine::Echo], check: true, ..Options::default() };
    for suite in chosen(&options)? {
        if let Some(why) = Cache::open(None)?.obstacle(&suite)? {
            return Ok(Ran::Not(why));
        }
    }
    run(&options).map(|()| Ran::Whole)
}

/// Runs the suites, prints the table, and writes or checks the page.
pub(crate) fn run(options: &Options) -> Result {
    let suites = chosen(options)?;
    let cache = Cache::open(options.cache.as_deref())?;
    let list = Deselected::read()?;
    // Before a host runs, so that downloads do not count as its time.
    let environments: Vec<_> = suites.iter().map(|suite| cache.environment(suite)).collect::<Result<_>>()?;
    let workspace = Workspace::read()?;
    let profile = Profile::of_flag(options.release);
    if options.url.is_none() {
        engine::build(&workspace, profile)?;
    }
    let mut verdicts = Vec::new();
    for engine in engines(options) {
        let suites: Vec<_> =
            suites.iter().zip(&environments).filter(|(suite, _)| suite.engines.contains(&engine)).collect();
        if suites.is_empty() {
            continue;
        }
        if let (true, None, Some(what)) = (options.engines.is_empty(), &options.url, engine.lacks()) {
            eprintln!("== nothing on {engine}, which needs {what}");
            continue;
        }
        let running = match &options.url {
            Some(url) => Running::there(engine, url.trim_end_matches('/').to_owned()),
            None => Running::start(&workspace, profile, engine)?,
        };
        for (suite, environment) in suites {
            let start = Instant::now();
            eprintln!("== {} on {engine}", suite.name);
            let results = suite.run(environment, &running, &workspace.staging().join("conformance"))?;
            let verdict = Verdict::of(suite, engine, &results, &list);
            eprint!("{}", verdict.told());
            eprintln!("{} of {} in {:.0} s", verdict.passed, verdict.applicable(), start.elapsed().as_secs_f64());
            verdicts.push(verdict);
        }
    }
    report(options, &verdicts, &list)
}

fn report(options: &Options, verdicts: &[Verdict], list: &[Deselected]) -> Result {
    println!("{}", table::render(&page::rows(verdicts)));
    let broken: usize = verdicts.iter().map(Verdict::broken).sum();
    let page = page::Page::read(&root().join(page::PAGE))?.with(verdicts, list);
    if broken > 0 {
        return Err(Error(format!("{broken} cases are not as tests/conformance/deselected.yaml says")));
    }
    if options.check { page.check() } else { page.write() }
}

fn engines(options: &Options) -> Vec<Engine> {
    match (options.engines.is_empty(), options.full) {
        (false, _) => options.engines.clone(),
        (true, true) => Engine::ALL.to_vec(),
        (true, false) => vec![Engine::Echo],
    }
}

/// The suites that were asked for, by name or by how long they take.
fn chosen(options: &Options) -> Result<Vec<Suite>> {
    let all = Suite::read()?;
    if let Some(unknown) = options.suites.iter().find(|name| all.iter().all(|suite| suite.name != **name)) {
        let names: Vec<&str> = all.iter().map(|suite| suite.name.as_str()).collect();
        return Err(Error(format!("there is no suite `{unknown}`; there are {}", names.join(", "))));
    }
    let is_chosen = |suite: &Suite| match options.suites.as_slice() {
        [] => options.full || suite.when == When::Ci,
        names => names.contains(&suite.name),
    };
    Ok(all.into_iter().filter(is_chosen).collect())
}

/// A file of `tests/conformance`.
fn file(name: &str) -> PathBuf {
    root().join(FOLDER).join(name)
}

/// What stands in such a file.
fn read<T: serde::de::DeserializeOwned>(name: &str) -> Result<T> {
    let text = std::fs::read_to_string(file(name)).doing(format_args!("read {FOLDER}/{name}"))?;
    serde_yaml::from_str(&text).doing(format_args!("read {FOLDER}/{name}"))
}

/// Whether a program that may be missing runs.
fn has(program: &str) -> bool {
    shell::probe(program, &["--version"]).is_some()
}
