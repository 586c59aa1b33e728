//! Measures: each prints a table last and writes JSON to target/aihost/bench.

pub(crate) mod client;
mod host;
pub(crate) mod server;
mod statistics;
mod swap;
mod text;

use clap::Subcommand;

use crate::error::Result;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Measure {
    /// First token after a swap against first token when resident, beside llama.cpp's router.
    Swap(swap::Options),
    /// What a host of one engine adds to it, and how two models take turns under many clients, beside llama.cpp's own router.
    Host(host::Options),
    /// How fast a text model reads and writes, alone and in company, beside llama.cpp's server.
    Text(text::Options),
}

/// Runs one measure.
pub(crate) fn run(measure: &Measure) -> Result {
    match measure {
        Measure::Swap(options) => swap::run(options),
        Measure::Host(options) => host::run(options),
        Measure::Text(options) => text::run(options),
    }
}
