//! `fuzz`: every reader of bytes that others made, under libFuzzer, for a while each.
//!
//! The targets are `tests/fuzz/`, their corpora `tests/fuzz/corpus/`. Coverage comes from LLVM's own pass, which the toolchain of
//! this repository has; what cargo-fuzz adds to it needs a nightly one. The pass runs over this repository's packages alone, with
//! whatever they instantiate of others, so that no dependency is compiled a second time.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

use crate::error::{Doing, Error, Result};
use crate::workspace::{Profile, Workspace};
use crate::{shell, table, workspace};

/// Seconds of a target that is not told how long.
const SECONDS: u64 = 60;
/// A process fuzzes for so long and makes room for another: templates that are given up leave their threads behind.
const SLICE: Duration = Duration::from_secs(30);
/// Most bytes of an input.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Most memory of a process, mebibytes: that of thousands of inputs, so no bound of one.
const PROCESS_MEMORY_MIB: usize = 4096;
/// Seconds of one input after which libFuzzer gives up.
const INPUT_SECONDS_MAX: u64 = 120;
/// What counts: edges as they are run, and what is compared.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];
/// Set where this program stands before rustc.
const COMPILER_VARIABLE: &str = "AIHOST_FUZZ_COMPILER";
/// Where a C++ compiler is looked for.
const CXX: &str = "c++";

/// Which targets, for how long.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Only these; a folder of tests/fuzz/corpus/ each.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Seconds for each target.
    #[arg(long, value_name = "N", default_value_t = SECONDS, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// A minute of each target, as continuous integration runs it.
pub(crate) fn run_briefly() -> Result {
    run(&Options { targets: Vec::new(), seconds: SECONDS })
}

/// Why it cannot run here.
pub(crate) fn obstacle() -> Option<String> {
    let there = shell::probe(CXX, &["--version"]).is_some();
    (!there).then(|| format!("there is no C++ compiler (`{CXX}`), which libFuzzer is built with; install g++"))
}

/// Builds, fuzzes, reports.
pub(crate) fn run(options: &Options) -> Result {
    if let Some(why) = obstacle() {
        return Err(Error(why));
    }
    let known = targets()?;
    if let Some(unknown) = options.targets.iter().find(|name| !known.contains(name)) {
        return Err(Error(format!("`{unknown}` is no target; there are {}", known.join(", "))));
    }
    let chosen = known.into_iter().filter(|name| options.targets.is_empty() || options.targets.contains(name));
    let fuzzer = Fuzzer { program: build()?, folder: workspace::root().join("target/fuzz") };
    let mut rows = vec![table::row(["target", "seconds", "executions", "inputs", "edges", "found"])];
    let mut found = Vec::new();
    for target in chosen {
        let tally = fuzzer.run(&target, Duration::from_secs(options.seconds))?;
        found.extend(tally.finding.iter().map(|path| path.display().to_string()));
        rows.push(tally.row(&target));
    }
    eprint!("\n{}", table::render(&rows));
    match found.len() {
        0 => Ok(()),
        _ => Err(Error(format!("inputs that break a promise: {}; the logs are beside them", found.join(", ")))),
    }
}

/// The corpora's names.
fn targets() -> Result<Vec<String>> {
    let folder = workspace::root().join("tests/fuzz/corpus");
    let entries = fs::read_dir(&folder).doing(format_args!("list {}", folder.display()))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<std::io::Result<_>>().doing("list the corpora")?;
    names.sort();
    Ok(names)
}

/// Builds the targets with counters, beside all that is built without: cargo knows the two apart by what stands before rustc.
fn build() -> Result<PathBuf> {
    let own = std::env::current_exe().doing("find this program")?;
    let mut cargo = shell::cargo();
    // The whole workspace, so that dependencies have the features that they have in other builds.
    cargo.args(["build", "--workspace", "--example", "fuzz", "--features", "aihost-tests/fuzz"]);
    shell::run(cargo.env("RUSTC_WORKSPACE_WRAPPER", own).env(COMPILER_VARIABLE, "1"))?;
    Ok(Workspace::read()?.built(Profile::Dev, "examples/fuzz"))
}

/// Becomes the compiler that cargo wanted, with counters in what is no tool of the build itself. Nothing if cargo did not ask.
pub(crate) fn become_compiler() -> Option<Error> {
    std::env::var_os(COMPILER_VARIABLE)?;
    let mut arguments = std::env::args_os().skip(1);
    let mut rustc = Command::new(arguments.next()?);
    let arguments: Vec<OsString> = arguments.collect();
    if counts(&arguments) {
        rustc.args(COVERAGE);
    }
    Some(Error(format!("cannot start rustc: {}", rustc.args(arguments).exec())))
}

/// Whether this is compiled into the fuzzer: build scripts and macros run before there is one, and a question compiles nothing.
fn counts(arguments: &[OsString]) -> bool {
    let mut pairs = arguments.windows(2).filter(|pair| pair[0] == "--crate-name");
    let is_macro = arguments.iter().any(|argument| argument == "proc-macro");
    !is_macro && pairs.any(|pair| pair[1] != "___" && !pair[1].to_string_lossy().starts_with("build_script"))
}

/// The built targets, and where they work.
struct Fuzzer {
    program: PathBuf,
    folder: PathBuf,
}

/// What came of a target.
#[derive(Debug, Default)]
struct Tally {
    taken: Duration,
    executions: u64,
    inputs: u64,
    edges: u64,
    /// The input that broke a promise.
    finding: Option<PathBuf>,
}

impl Fuzzer {
    /// Process after process until the time is over or something is found.
    fn run(&self, target: &str, time: Duration) -> Result<Tally> {
        let begin = Instant::now();
        let mut tally = Tally::default();
        while let Some(left) = time.checked_sub(begin.elapsed()).filter(|left| left.as_secs() > 0) {
            self.slice(target, left.min(SLICE), &mut tally)?;
            tally.taken = begin.elapsed();
            eprintln!("{}", tally.row(target).join("  "));
            if tally.finding.is_some() {
                break;
            }
        }
        Ok(tally)
    }

    fn slice(&self, target: &str, time: Duration, tally: &mut Tally) -> Result {
        // What is found to be new stays here for the next run, beside what is committed.
        let corpus = self.folder.join("corpus").join(target);
        let findings = self.folder.join("findings").join(target);
        for folder in [&corpus, &findings] {
            fs::create_dir_all(folder).doing(format_args!("make {}", folder.display()))?;
        }
        let committed = workspace::root().join("tests/fuzz");
        let mut command = Command::new(&self.program);
        command.arg(&corpus).arg(committed.join("corpus").join(target));
        command.arg(format!("-max_total_time={}", time.as_secs())).arg(format!("-max_len={INPUT_BYTES_MAX}"));
        command.arg(format!("-timeout={INPUT_SECONDS_MAX}")).arg(format!("-rss_limit_mb={PROCESS_MEMORY_MIB}"));
        command.arg("-print_final_stats=1").arg(format!("-artifact_prefix={}/", findings.display()));
        let words = committed.join("dictionaries").join(target);
        if words.is_file() {
            command.arg(format!("-dict={}", words.display()));
        }
        // Errors that carry the calls that led to them take memory to tell of it, which is not their reader's.
        command.env("AIHOST_FUZZ_TARGET", target).env("RUST_LIB_BACKTRACE", "0");
        if Path::new(MEMORY).is_dir() {
            command.env("TMPDIR", MEMORY);
        }
        let log = findings.join("log");
        let file = fs::File::create(&log).doing(format_args!("write {}", log.display()))?;
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).status();
        let status = status.doing(format_args!("start {}", self.program.display()))?;
        let said = fs::read(&log).doing(format_args!("read {}", log.display()))?;
        tally.read(&String::from_utf8_lossy(&said));
        if !status.success() && tally.finding.is_none() {
            return Err(Error(format!(
                "the target `{target}` failed ({status}) and wrote no input; see {}",
                log.display()
            )));
        }
        Ok(())
    }
}

/// A folder in memory, for inputs that are read from files.
const MEMORY: &str = "/dev/shm";

impl Tally {
    /// Takes what libFuzzer printed.
    fn read(&mut self, log: &str) {
        let number = |text: &str| text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        for line in log.lines() {
            if let Some(count) = line.strip_prefix("stat::number_of_executed_units:").and_then(number) {
                self.executions += count;
            } else if let Some(path) = line.split_once("Test unit written to ").map(|(_, path)| path) {
                self.finding = Some(PathBuf::from(path.trim()));
            } else if let Some((_, rest)) = line.split_once(" cov: ") {
                self.edges = self.edges.max(number(rest).unwrap_or(0));
                let inputs = rest.split_once(" corp: ").and_then(|(_, rest)| rest.split('/').next()?.parse().ok());
                self.inputs = self.inputs.max(inputs.unwrap_or(0));
            }
        }
    }

    fn row(&self, target: &str) -> Vec<String> {
        let finding = self.finding.as_ref().map_or("nothing".to_owned(), |path| path.display().to_string());
        let counts = [self.taken.as_secs(), self.executions, self.inputs, self.edges].map(|count| count.to_string());
        [target.to_owned()].into_iter().chain(counts).chain([finding]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn counts_are_read_from_what_libfuzzer_prints() {
        let mut tally = Tally::default();
        tally.read(
            "#2\tINITED cov: 5391 ft: 9129 corp: 12/903b exec/s: 0 rss: 57Mb\n\
             #4096\tpulse  cov: 5402 ft: 9200 corp: 15/1Kb lim: 4 exec/s: 2048 rss: 60Mb\n\
             stat::number_of_executed_units: 4100\n",
        );
        assert_eq!((tally.executions, tally.inputs, tally.edges, &tally.finding), (4100, 15, 5402, &None));
        tally.read("artifact_prefix='/x/'; Test unit written to /x/crash-01\nstat::number_of_executed_units: 7\n");
        assert_eq!(tally.executions, 4107);
        assert_eq!(tally.row("gguf").last().map(String::as_str), Some("/x/crash-01"));
    }
}
