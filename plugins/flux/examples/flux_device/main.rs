//! What is true of this plugin's tensor code on a device, without a host and without cargo: `flux_device PART DEVICE FOLDER`
//! prints a line of JSON for each thing it looked at. `cargo xtask gpu-check` runs it part by part, on a card or, with
//! the device `cpu`, on candle's CPU device, so that no line of it is new on a card.
//!
//! Parts: `golden` the cases against diffusers' values, `memory` plan beside what is taken and given back, `full` a card that
//! others hold, `speed` steps of a model of the published size with random weights, `ceilings` copies and reads, `hold` takes
//! memory until its input ends. FOLDER has the golden cases; TMPDIR is where random weights are written.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]
#![expect(clippy::unwrap_used, reason = "a check that cannot go on ends, and whoever runs it says so")]

mod card;
#[path = "../../tests/cases/mod.rs"]
mod cases;
mod ceilings;
mod golden;
mod memory;
mod speed;
mod weights;

use std::path::PathBuf;

use aihost_engine::candle::{locate, open};
use aihost_support::counting::Counting;
use candle_core::Device;
use serde_json::{Value, json};

/// On candle's CPU device what the process allocates is what the device holds.
#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [part, name, folder, more @ ..] = arguments.as_slice() else {
        eprintln_usage();
        return;
    };
    let device = if name == "cpu" { Ok(Device::Cpu) } else { locate(name).and_then(open) };
    let device = match device {
        Ok(device) => device,
        Err(error) => return say("device", &json!(error.message()), Verdict::Wrong),
    };
    let here = Here { device, name: name.clone(), folder: PathBuf::from(folder) };
    let number = |index: usize| more.get(index).and_then(|text| text.parse::<u64>().ok());
    match part.as_str() {
        "golden" => golden::run(&here),
        "memory" => memory::run(&here, number(0).unwrap_or(50)),
        "full" => memory::full(&here),
        "speed" => speed::run(&here),
        "ceilings" => ceilings::run(&here),
        "hold" => memory::hold(&here, number(0).unwrap_or(0)),
        _ => eprintln_usage(),
    }
}

#[expect(clippy::print_stderr, reason = "usage")]
fn eprintln_usage() {
    eprintln!("usage: flux_device golden|memory|full|speed|ceilings|hold DEVICE FOLDER [NUMBER]");
}

/// Where a part runs.
struct Here {
    device: Device,
    name: String,
    folder: PathBuf,
}

/// What a line comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// As it must be.
    Right,
    /// Not as it must be.
    Wrong,
    /// A figure, which is neither.
    Figure,
}

impl Verdict {
    fn of(right: bool) -> Self {
        if right { Self::Right } else { Self::Wrong }
    }
}

/// A line for whoever runs this, at once.
fn say(what: &str, value: &Value, verdict: Verdict) {
    let verdict = match verdict {
        Verdict::Right => "right",
        Verdict::Wrong => "wrong",
        Verdict::Figure => "figure",
    };
    println!("{}", json!({"what": what, "value": value, "verdict": verdict}));
}

/// Bytes for people and for programs.
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
