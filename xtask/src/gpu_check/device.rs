//! Parts that need no host: the programs `flux_device` and `llm_device`, and torch beside it. What they print is passed on as it comes; one that
//! outlasts its part is killed with all that it started.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Instant;

use serde_json::{Value, json};

use super::Run;
use super::report::Verdict;
use crate::error::{Doing, Error, Result};
use crate::shell;

/// Torch's own attention and product at the shapes of a step of 1024x1024: 4608 tokens, 24 heads of 128.
const TORCH: &str = include_str!("torch.py");

/// Runs one part of the program: its name, and what it takes beside device and cases.
pub(super) fn run(run: &mut Run<'_>, part: &str, more: &[&str]) -> Result {
    let mut command = run.kit.command(&run.kit.program);
    command.arg(part).arg(run.device).arg(&run.kit.golden).args(more);
    stream(run, &mut command)
}

/// Runs one part of the decoder's program.
pub(super) fn decoder(run: &mut Run<'_>, part: &str) -> Result {
    let mut command = run.kit.command(&run.kit.decoder);
    command.arg(part).arg(run.device);
    stream(run, &mut command)
}

/// Torch beside it, where there is one.
pub(super) fn torch(run: &mut Run<'_>) -> Result {
    let mut command = Command::new("python3");
    command.args(["-c", TORCH, if run.is_rehearsal() { "cpu" } else { "cuda" }]);
    if shell::probe("python3", &["-c", "import torch"]).is_none() {
        return run.report.say("torch beside it", &"not measured: python3 has no torch here".into(), Verdict::Figure);
    }
    stream(run, &mut command)
}

/// A part that is killed with its process group when this is dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = shell::output(Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]));
        }
        let _ = self.0.wait();
    }
}

/// Passes its lines on until it ends, or its time does.
fn stream(run: &mut Run<'_>, command: &mut Command) -> Result {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut group = Group(command.spawn().doing(format_args!("start {name}"))?);
    let (Some(stdout), Some(mut stderr)) = (group.0.stdout.take(), group.0.stderr.take()) else {
        return Err(Error(format!("{name} has no output")));
    };
    let (lines, heard) = channel();
    std::thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(std::io::Result::ok).try_for_each(|line| lines.send(line)).ok();
    });
    let words = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    loop {
        let left = run.deadline.saturating_duration_since(Instant::now());
        match heard.recv_timeout(left) {
            Ok(line) => pass_on(run, &line)?,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                drop(group);
                return Err(Error(format!("it was not done within {} s and was ended", super::PART_LIMIT.as_secs())));
            }
        }
    }
    let status = group.0.wait().doing(format_args!("wait for {name}"))?;
    if status.success() {
        return Ok(());
    }
    let words = words.join().unwrap_or_default();
    let last: Vec<&str> = words.lines().rev().take(3).collect();
    Err(Error(format!("{name} ended with {status}: {}", last.into_iter().rev().collect::<Vec<_>>().join(" | "))))
}

fn pass_on(run: &mut Run<'_>, line: &str) -> Result {
    match serde_json::from_str::<Value>(line) {
        Ok(said) if said["what"].is_string() => {
            let verdict = Verdict::read(said["verdict"].as_str().unwrap_or_default());
            run.report.say(said["what"].as_str().unwrap_or_default(), &said["value"], verdict)
        }
        _ => run.report.say("it said", &json!(line), Verdict::Figure),
    }
}
