//! `cargo xtask`: everything a developer runs on this repository, one file per command.
//!
//! It drives cargo and the built `aihost` as processes and imports no crate of the workspace, so that it builds in
//! seconds and works while the rest does not compile.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool prints")]

mod abi_snapshot;
mod bench;
mod build_plugins;
mod ci;
mod conformance;
mod cuda;
mod dist;
mod docgen;
mod engines;
mod error;
mod fuzz;
mod golden;
mod gpu;
mod gpu_bundle;
mod gpu_check;
mod install;
mod monitoring;
mod page;
mod peers;
mod shell;
mod soak;
mod stage;
mod system;
mod table;
mod test;
mod tidy;
mod up;
mod variants;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything a developer runs on this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the host and the plugins that models.yaml names, fetch its models and serve them.
    Up(up::Options),
    /// Build the host and the plugins optimised, and put them where a shell and the host find them.
    Install(install::Options),
    /// Make the release: an archive that needs no Rust where it is installed, and a Python wheel.
    Dist(dist::Options),
    /// Build everything, fetch the small real model and run every test.
    Test(test::Options),
    /// What continuous integration runs: fmt, clippy, tidy, doc, package, test, docgen, the page in a browser, conformance, alert rules and dashboard, two minutes of soak.
    Ci(ci::Options),
    /// Build the plugins and put them into a folder.
    BuildPlugins(build_plugins::Options),
    /// Pack what `gpu-check` needs on a machine with a card.
    GpuBundle(gpu_bundle::Options),
    /// Check on a card what is built for cards, from a bundle; or rehearse it here.
    GpuCheck(gpu_check::Options),
    /// Check the rules that the compiler does not know.
    Tidy,
    /// Write docs/METRICS.md, docs/CONFIG.md and docs/CLI.md from the code, or check that they are.
    Docgen(docgen::Options),
    /// Measure.
    #[command(subcommand)]
    Bench(bench::Measure),
    /// Give every reader of bytes that others made one mutated input after another, and look at what each costs.
    Fuzz(fuzz::Options),
    /// Run the suites and clients of others against a host of this workspace, and write docs/CONFORMANCE.md.
    Conformance(conformance::Options),
    /// Check the alert rules and the dashboard with a real Prometheus.
    Monitoring,
    /// Use the page of a host in a real browser, as people use it.
    Page(page::Options),
    /// Have a real engine of others and our own model take turns, and kill the engine in every phase of its life.
    Engines(engines::Options),
    /// Serve clients of every kind for a while, kill workers under them, and count what went wrong.
    Soak(soak::Options),
    /// Write the ABI's layout text and fingerprint anew, when it is meant to change.
    AbiSnapshot,
    /// Build the plugin files that every later host of this ABI is to load, when the layout was meant to change.
    Golden,
    /// Build a plugin in every way that an author may choose, and have the host load and ask each.
    Variants,
}

fn main() -> ExitCode {
    if let Some(error) = fuzz::become_compiler() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let result = match Arguments::parse().command {
        Task::Golden => golden::run(),
        Task::Variants => variants::run(),
        Task::Up(options) => up::run(&options),
        Task::Install(options) => install::run(&options),
        Task::Dist(options) => dist::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Ci(options) => ci::run(&options),
        Task::BuildPlugins(options) => build_plugins::run(&options),
        Task::GpuBundle(options) => gpu_bundle::run(&options),
        Task::GpuCheck(options) => gpu_check::run(&options),
        Task::Tidy => tidy::run(),
        Task::Docgen(options) => docgen::run(&options),
        Task::Bench(measure) => bench::run(&measure),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Conformance(options) => conformance::run(&options),
        Task::Monitoring => monitoring::run(),
        Task::Page(options) => page::run(&options),
        Task::Engines(options) => engines::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::AbiSnapshot => abi_snapshot::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
