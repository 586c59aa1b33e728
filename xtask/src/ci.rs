//! `ci`: what must pass before a change is merged, the same here and there.
//!
//! It knows which steps there are and in which order. What a step checks, its own command knows.

use std::process::Command;
use std::time::Instant;

use clap::Args;

use crate::error::{Error, Result};
use crate::workspace::{self, Profile, Workspace};
use crate::{
    build_plugins, conformance, dist, docgen, engines, fuzz, gpu_check, monitoring, page, shell, soak, stage, table,
    test, tidy, variants,
};

/// The package that is published.
const PUBLISHED: [&str; 2] = ["aihost-plugin-abi", "aihost-plugin-api"];
/// What it is packed from.
const PACKED: [&str; 4] = ["plugin-api", "Cargo.toml", "LICENSE-MIT", "LICENSE-APACHE"];
/// Names a folder of llama.cpp's source, whose models/ has vocabularies and the ids of texts.
const LLAMA_CPP_VARIABLE: &str = "AIHOST_LLAMA_CPP";
const NO_CARGO_DENY: &str = "cargo-deny is not installed; cargo install cargo-deny --locked";

/// How much.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only formatting, lints and tidy.
    #[arg(long, conflicts_with = "full")]
    fast: bool,
    /// Also the dependency rules (by cargo-deny), the release build of the plugins, the release's archive from unpacking to an answer, a plugin built in every way, a rehearsal of what is checked on a card,
    /// a minute of each fuzz target, the hostile and the cache arm of the soak, a hundred long renders, two hundred kills under jobs, a host before another in two network namespaces,
    /// token ids held against llama.cpp's vectors, Gemma 3 against transformers, and real engines of others, killed in every phase.
    #[arg(long)]
    full: bool,
    /// A step that cannot run here fails.
    #[arg(long)]
    strict: bool,
}

/// How a step that found nothing wrong ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// It ran.
    Passed,
    /// It cannot run here: why, and what to do.
    NotRun(String),
}

/// A step's name, and what it does.
type Step = (&'static str, fn() -> Result<Outcome>);

const FAST_STEPS: [Step; 3] = [("fmt", fmt), ("clippy", clippy), ("tidy", rules)];
/// The pages are checked after the tests, which built the host that prints them. About three minutes are the soak, and as many the suites and clients of others.
const STEPS: [Step; 8] = [
    ("doc", doc),
    ("package", package),
    ("test", tests),
    ("docgen", pages),
    ("page", brief_page),
    ("monitoring", rules_and_dashboard),
    ("conformance", brief_conformance),
    ("soak", brief_soak),
];
const FULL_STEPS: [Step; 16] = [
    ("deny", deny),
    ("advisories", advisories),
    ("build-plugins", release_plugins),
    ("dist", release),
    ("variants", plugin_variants),
    ("gpu-check", gpu_rehearsal),
    ("fuzz", brief_fuzz),
    ("soak --hostile", hostile_soak),
    ("soak --cache", cache_soak),
    ("renders", renders),
    ("kills", job_kills),
    ("vps and pod", vps_and_pod),
    ("token ids", token_ids),
    ("gemma 3", gemma_3),
    ("llama-server", llama_server),
    ("vllm", vllm),
];

/// Runs every step, even after one failed, and prints a table last.
pub(crate) fn run(options: &Options) -> Result {
    let steps = FAST_STEPS.iter();
    let steps = steps.chain(if options.fast { &[][..] } else { &STEPS });
    let steps = steps.chain(if options.full { &FULL_STEPS[..] } else { &[] });
    let report = Report::of(steps);
    eprint!("\n{}", table::render(&report.rows));
    report.verdict(if options.strict { Unrun::Fails } else { Unrun::IsSaid })
}

/// What a step that did not run means for the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unrun {
    /// The table says so, and no more.
    IsSaid,
    /// The whole fails: whoever runs this has seen to it that everything can run.
    Fails,
}

/// What became of every step.
#[derive(Debug)]
struct Report {
    /// The table, its head first.
    rows: Vec<Vec<String>>,
    failed: Vec<&'static str>,
    not_run: Vec<&'static str>,
}

impl Report {
    fn of<'a>(steps: impl Iterator<Item = &'a Step>) -> Self {
        let rows = vec![table::row(["step", "seconds", "result"])];
        let mut report = Self { rows, failed: Vec::new(), not_run: Vec::new() };
        for (name, step) in steps {
            eprintln!("== {name}");
            let start = Instant::now();
            let result = step();
            report.add(name, &result, start.elapsed().as_secs_f64());
        }
        report
    }

    fn add(&mut self, name: &'static str, result: &Result<Outcome>, seconds: f64) {
        let said = match result {
            Ok(Outcome::Passed) => "ok".to_owned(),
            Ok(Outcome::NotRun(why)) => {
                self.not_run.push(name);
                format!("not run: {why}")
            }
            Err(error) => {
                eprintln!("error: {error}");
                self.failed.push(name);
                "failed".to_owned()
            }
        };
        self.rows.push(vec![name.to_owned(), format!("{seconds:.1}"), said]);
    }

    fn verdict(&self, unrun: Unrun) -> Result {
        let mut told = Vec::new();
        if !self.failed.is_empty() {
            told.push(format!("failed: {}", self.failed.join(", ")));
        }
        if unrun == Unrun::Fails && !self.not_run.is_empty() {
            told.push(format!("not run: {}", self.not_run.join(", ")));
        }
        if told.is_empty() { Ok(()) } else { Err(Error(told.join("; "))) }
    }
}

fn passed(result: Result) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}

fn fmt() -> Result<Outcome> {
    passed(shell::run(shell::cargo().args(["fmt", "--all", "--check"])))
}

fn clippy() -> Result<Outcome> {
    passed(shell::run(shell::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])))
}

fn rules() -> Result<Outcome> {
    passed(tidy::run())
}

fn doc() -> Result<Outcome> {
    passed(shell::run(shell::cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings")))
}

/// The published crate as its users get it: what it packs builds by itself.
fn package() -> Result<Outcome> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root()).args(["-c", "safe.directory=*", "status", "--porcelain", "--"]).args(PACKED);
    if !shell::output(&mut git)?.is_empty() {
        return Ok(Outcome::NotRun("cargo packs only what is committed; commit plugin-api/".to_owned()));
    }
    // Cargo keeps what it unpacked of a version, by the folder where it was packed: another content is packed in another folder.
    let mut content = Command::new("git");
    content.current_dir(workspace::root()).args(["-c", "safe.directory=*", "rev-parse", "HEAD:plugin-api"]);
    let folder = Workspace::read()?.staging().join("package").join(shell::output(&mut content)?.trim());
    let mut package = shell::cargo();
    package.args(["package", "--package", PUBLISHED[0], "--package", PUBLISHED[1], "--target-dir"]).arg(folder);
    passed(shell::run(&mut package))
}

fn tests() -> Result<Outcome> {
    passed(test::run(&test::Options::default()))
}

fn pages() -> Result<Outcome> {
    passed(docgen::check())
}

/// Two to three minutes in a browser.
fn brief_page() -> Result<Outcome> {
    page::run_briefly().map(ran)
}

/// Half a minute with a Prometheus.
fn rules_and_dashboard() -> Result<Outcome> {
    monitoring::run_where_it_can().map(ran)
}

/// The release, from its archive to an answer.
fn release() -> Result<Outcome> {
    passed(dist::run_whole())
}

/// The suites of others that fit.
fn brief_conformance() -> Result<Outcome> {
    Ok(match conformance::run_briefly()? {
        conformance::Ran::Whole => Outcome::Passed,
        conformance::Ran::Not(why) => Outcome::NotRun(why),
    })
}

fn brief_soak() -> Result<Outcome> {
    passed(soak::run_briefly())
}

fn hostile_soak() -> Result<Outcome> {
    passed(soak::run_hostile())
}

fn cache_soak() -> Result<Outcome> {
    passed(soak::run_cache())
}

/// About two minutes.
fn renders() -> Result<Outcome> {
    passed(test::run_ignored("engines::of_a_hundred_renders_of_twenty_seconds_none_is_cut", &[]))
}

/// Two hundred kills under jobs, a minute or two.
fn job_kills() -> Result<Outcome> {
    passed(test::run_ignored("jobs::each_job_is_answered_once_through_two_hundred_kills", &[]))
}

/// Two machines are two network namespaces, of which this makes the first.
fn vps_and_pod() -> Result<Outcome> {
    if shell::probe("ip", &["-V"]).is_none() || shell::probe("nsenter", &["--version"]).is_none() {
        return Ok(Outcome::NotRun("`ip` or `nsenter` is missing; install iproute2 and util-linux".to_owned()));
    }
    // Whoever is not root may be in a namespace of users of their own.
    let ways: [&[&str]; 2] = [&["--net"], &["--map-root-user", "--net"]];
    let link = ["ip", "link", "add", "a", "type", "veth", "peer", "name", "b"];
    let works = |way: &&&[&str]| shell::probe("unshare", &[**way, &link].concat()).is_some();
    let Some(way) = ways.iter().find(works) else {
        let why = "network namespaces cannot be made here; run it as root, in a container with CAP_SYS_ADMIN and CAP_NET_ADMIN";
        return Ok(Outcome::NotRun(why.to_owned()));
    };
    passed(test::run_ignored(
        "apart::a_host_before_another_serves_it_and_tells_when_it_is_gone",
        &[&["unshare"], *way].concat(),
    ))
}

/// Token ids, held against llama.cpp's own.
fn token_ids() -> Result<Outcome> {
    if std::env::var_os(LLAMA_CPP_VARIABLE).is_none() {
        return Ok(Outcome::NotRun(format!("set {LLAMA_CPP_VARIABLE} to a folder of llama.cpp's source")));
    }
    let arguments = ["test", "--package", "aihost-candle-llm", "--test", "llama_cpp", "--", "--ignored", "--nocapture"];
    passed(shell::run(shell::cargo().args(arguments)))
}

/// The greedy tokens of a real model of another family, of 253 MB.
fn gemma_3() -> Result<Outcome> {
    let workspace = Workspace::read()?;
    let models = workspace.staging().join("gemma3");
    let mut pull = workspace.aihost(Profile::Dev);
    pull.args(["--config", "tests/golden/llm/gemma3.yaml", "models", "pull", "gemma3"]);
    shell::run(pull.env("AIHOST_MODELS_DIR", &models))?;
    let file =
        stage::find(&models, ".gguf").ok_or_else(|| Error::new("`aihost models pull gemma3` left no .gguf file"))?;
    let arguments =
        ["test", "--package", "aihost-candle-llm", "--test", "golden", "--", "--ignored", "--nocapture", "gemma"];
    passed(shell::run(shell::cargo().args(arguments).env("AIHOST_GEMMA3", file)))
}

/// About two minutes.
fn llama_server() -> Result<Outcome> {
    engines::run_if_there(engines::Engine::LlamaServer).map(ran)
}

/// About twenty minutes: it takes more than one to start.
fn vllm() -> Result<Outcome> {
    engines::run_if_there(engines::Engine::Vllm).map(ran)
}

/// From why something cannot run here, if it cannot.
fn ran(obstacle: Option<String>) -> Outcome {
    obstacle.map_or(Outcome::Passed, Outcome::NotRun)
}

/// A minute of each target.
fn brief_fuzz() -> Result<Outcome> {
    match fuzz::obstacle() {
        Some(why) => Ok(Outcome::NotRun(why)),
        None => passed(fuzz::run_briefly()),
    }
}

/// Licences, bans and sources: what Cargo.lock says of itself.
fn deny() -> Result<Outcome> {
    if !has_cargo_deny() {
        return Ok(Outcome::NotRun(NO_CARGO_DENY.to_owned()));
    }
    passed(shell::run(cargo_deny().args(["check", "licenses", "bans", "sources"])))
}

/// Known faults of what Cargo.lock names, by a database that is fetched first.
fn advisories() -> Result<Outcome> {
    if !has_cargo_deny() {
        return Ok(Outcome::NotRun(NO_CARGO_DENY.to_owned()));
    }
    if let Err(error) = shell::run(cargo_deny().args(["fetch", "db"])) {
        eprintln!("{error}");
        return Ok(Outcome::NotRun("no network: the database of advisories cannot be fetched".to_owned()));
    }
    passed(shell::run(cargo_deny().args(["check", "advisories"])))
}

fn has_cargo_deny() -> bool {
    shell::probe("cargo", &["deny", "--version"]).is_some()
}

/// cargo-deny, over what any feature of any package brings.
fn cargo_deny() -> Command {
    let mut command = shell::cargo();
    command.args(["deny", "--all-features", "--config", ".deny.toml"]);
    command
}

fn release_plugins() -> Result<Outcome> {
    passed(build_plugins::run(&build_plugins::Options { release: true, ..build_plugins::Options::default() }))
}

/// What an author may build, the host loads.
fn plugin_variants() -> Result<Outcome> {
    passed(variants::run())
}

/// Every part of what is checked on a card, without one.
fn gpu_rehearsal() -> Result<Outcome> {
    passed(gpu_check::run(&gpu_check::Options::rehearsal()))
}

#[cfg(test)]
mod tests {
    use super::{Error, Outcome, Report, Step, Unrun};

    const PASSES: Step = ("a", || Ok(Outcome::Passed));
    const CANNOT_RUN: Step = ("b", || Ok(Outcome::NotRun("no such tool; install it".to_owned())));
    const FAILS: Step = ("c", || Err(Error::new("as asked")));

    fn results(steps: &[Step]) -> Vec<String> {
        Report::of(steps.iter()).rows[1..].iter().map(|row| format!("{}: {}", row[0], row[2])).collect()
    }

    fn verdict(steps: &[Step], unrun: Unrun) -> Result<(), String> {
        Report::of(steps.iter()).verdict(unrun).map_err(|error| error.to_string())
    }

    #[test]
    fn every_step_has_its_row_and_one_that_did_not_run_is_not_ok() {
        let rows = results(&[FAILS, CANNOT_RUN, PASSES]);
        assert_eq!(rows, ["c: failed", "b: not run: no such tool; install it", "a: ok"]);
    }

    #[test]
    fn what_did_not_run_fails_only_where_that_is_asked_for() {
        assert_eq!(verdict(&[PASSES], Unrun::Fails), Ok(()));
        assert_eq!(verdict(&[PASSES, CANNOT_RUN], Unrun::IsSaid), Ok(()));
        assert_eq!(verdict(&[PASSES, CANNOT_RUN], Unrun::Fails), Err("not run: b".to_owned()));
        assert_eq!(verdict(&[FAILS, CANNOT_RUN], Unrun::IsSaid), Err("failed: c".to_owned()));
        assert_eq!(verdict(&[FAILS, CANNOT_RUN], Unrun::Fails), Err("failed: c; not run: b".to_owned()));
    }
}
