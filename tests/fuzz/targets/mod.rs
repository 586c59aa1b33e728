//! What is fuzzed: every reader of bytes that others made, through the door at which they come in. A target asserts what must be
//! true of whatever was read; that reading ends, and what it may cost, `bounds` sees to.

mod config;
mod files;
mod frames;
mod gguf;
mod manifest;
mod pickle;
mod requests;
mod safetensors;
mod template;
mod tokenizer;

use std::time::Duration;

#[cfg(test)]
pub(crate) use requests::ENDPOINTS;

/// A reader, and what an input may cost.
pub(crate) struct Target {
    /// As `cargo xtask fuzz` and the corpus call it.
    pub(crate) name: &'static str,
    /// Reads an input; panics where something is wrong.
    pub(crate) run: fn(&[u8]),
    /// Times the input's bytes that reading may take of memory ...
    pub(crate) copies: usize,
    /// ... and this much beside.
    pub(crate) extra_bytes: usize,
    /// Time that reading may take.
    pub(crate) time: Time,
}

/// How an input's time is bounded.
#[derive(Clone, Copy)]
pub(crate) enum Time {
    /// In proportion to its bytes, in a build that is hardly optimised and counts what it runs.
    Linear { extra: Duration, per_byte: Duration },
    /// By the reader itself: a template is a program.
    Own,
}

/// What no input of 64 KiB exceeds whose reading is linear, and every one whose reading is quadratic.
const LINEAR: Time = Time::Linear { extra: Duration::from_millis(150), per_byte: Duration::from_micros(8) };

/// All of them, each with a folder of this name in `corpus/`.
pub(crate) const TARGETS: [Target; 9] = [
    Target { name: "requests", run: requests::run, copies: 8, extra_bytes: 1 << 20, time: LINEAR },
    Target { name: "frames", run: frames::run, copies: 8, extra_bytes: 1 << 20, time: LINEAR },
    Target { name: "manifest", run: manifest::run, copies: 16, extra_bytes: 1 << 20, time: LINEAR },
    Target { name: "config", run: config::run, copies: 128, extra_bytes: 1 << 20, time: LINEAR },
    Target { name: "gguf", run: gguf::run, copies: 64, extra_bytes: 4 << 20, time: LINEAR },
    Target { name: "safetensors", run: safetensors::run, copies: 32, extra_bytes: 1 << 20, time: LINEAR },
    Target { name: "pickle", run: pickle::run, copies: 64, extra_bytes: 4 << 20, time: LINEAR },
    Target { name: "tokenizer", run: tokenizer::run, copies: 64, extra_bytes: 16 << 20, time: LINEAR },
    Target { name: "template", run: template::run, copies: 8, extra_bytes: 4 << 20, time: Time::Own },
];

/// The target of this name.
pub(crate) fn named(name: &str) -> Option<&'static Target> {
    const ALL: &[Target] = &TARGETS;
    ALL.iter().find(|target| target.name == name)
}
