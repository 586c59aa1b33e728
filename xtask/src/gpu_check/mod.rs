//! `gpu-check`: what is true on a card, part by part, each with a time limit, in one command that needs no cargo. Results go to
//! stdout and to a file as they come, the table last. With `--rehearse` every part runs without a card: on candle's CPU
//! device, and with cards on paper, so that no part is new on a card.

mod device;
mod host;
mod kit;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

pub(crate) use self::kit::MANIFEST;

use self::kit::Kit;
use self::report::{Report, Verdict};
use crate::error::{Error, Result};

/// The longest that a part may take.
const PART_LIMIT: Duration = Duration::from_secs(90);
/// Park and wake cycles.
const CYCLES: &str = "50";

/// What to check, and where.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Only these parts: C, M, P, H, G0, F.
    #[arg(long, value_name = "PART,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Without a card: candle's CPU device, and cards on paper.
    #[arg(long)]
    rehearse: bool,
    /// The card.
    #[arg(long, value_name = "cuda:N", default_value = "cuda:0", conflicts_with = "rehearse")]
    device: String,
    /// Where each result is written as it comes, as a line of JSON [default: gpu-check.jsonl].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Options {
    /// All parts, without a card.
    pub(crate) fn rehearsal() -> Self {
        Self { rehearse: true, ..Self::default() }
    }
}

/// Where a part runs, and until when.
struct Run<'a> {
    kit: &'a Kit,
    /// `cuda:N`, or `cpu` in a rehearsal.
    device: &'a str,
    report: &'a mut Report,
    deadline: Instant,
}

impl Run<'_> {
    fn is_rehearsal(&self) -> bool {
        self.device == "cpu"
    }
}

/// A part: its letter, what it is, and what it does.
struct Part {
    letter: &'static str,
    title: &'static str,
    run: fn(&mut Run<'_>) -> Result,
}

const PARTS: [Part; 6] = [
    Part { letter: "C", title: "golden cases of flux, and a decoder in every format", run: golden },
    Part { letter: "M", title: "memory: plan, park, wake, release", run: |run| device::run(run, "memory", &[CYCLES]) },
    Part { letter: "P", title: "a full card and a poisoned context", run: poison },
    Part { letter: "H", title: "the host over the card", run: host::swaps },
    Part { letter: "G0", title: "ceilings of copies and reads", run: |run| device::run(run, "ceilings", &[]) },
    Part { letter: "F", title: "FLUX.1's size and a decoder of 1B, and torch beside", run: speed },
];

/// Runs the parts, and fails if something is not as it must be.
pub(crate) fn run(options: &Options) -> Result {
    let chosen = chosen(&options.only)?;
    let kit = Kit::find(options.rehearse)?;
    let out = options.out.clone().unwrap_or_else(|| kit.results.clone());
    let mut report = Report::new(&out)?;
    let device = if options.rehearse { "cpu" } else { options.device.as_str() };
    kit.describe(device, &mut report)?;
    let start = Instant::now();
    for part in chosen {
        report.begin(part.letter, part.title);
        let deadline = Instant::now() + PART_LIMIT;
        let mut run = Run { kit: &kit, device, report: &mut report, deadline };
        if let Err(error) = (part.run)(&mut run) {
            report.say("it ended early", &error.0.into(), Verdict::Wrong)?;
        }
        report.end();
    }
    report.finish(start.elapsed(), &out)
}

fn chosen(only: &[String]) -> Result<Vec<&'static Part>> {
    for name in only {
        if !PARTS.iter().any(|part| part.letter.eq_ignore_ascii_case(name.trim())) {
            let known: Vec<&str> = PARTS.iter().map(|part| part.letter).collect();
            return Err(Error(format!("there is no part `{name}`; there are {}", known.join(", "))));
        }
    }
    let is_chosen =
        |part: &&Part| only.is_empty() || only.iter().any(|name| part.letter.eq_ignore_ascii_case(name.trim()));
    Ok(PARTS.iter().filter(is_chosen).collect())
}

fn golden(run: &mut Run<'_>) -> Result {
    device::run(run, "golden", &[])?;
    device::decoder(run, "golden")
}

fn poison(run: &mut Run<'_>) -> Result {
    device::run(run, "full", &[])?;
    host::poison(run)
}

fn speed(run: &mut Run<'_>) -> Result {
    device::decoder(run, "speed")?;
    device::run(run, "speed", &[])?;
    device::torch(run)
}

#[cfg(test)]
mod tests {
    use super::{PART_LIMIT, PARTS, chosen};

    #[test]
    fn parts_are_chosen_in_their_order_and_an_unknown_one_is_named() {
        let letters = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(ToString::to_string).collect();
            chosen(&only).map(|parts| parts.iter().map(|part| part.letter).collect::<Vec<_>>())
        };
        assert_eq!(letters(&[]).unwrap(), ["C", "M", "P", "H", "G0", "F"]);
        assert_eq!(letters(&["g0", " C"]).unwrap(), ["C", "G0"]);
        assert!(letters(&["X"]).unwrap_err().0.contains("no part `X`; there are C, M"));
        assert!(PART_LIMIT.as_secs() * PARTS.len() as u64 <= 9 * 60, "the whole fits into nine minutes");
    }
}
