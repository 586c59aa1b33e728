//! Running other programs: shown before they start, a sentence when they fail.

use std::process::{Command, Stdio};

use crate::error::{Doing, Error, Result};

/// A `cargo` of the toolchain that runs this tool, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::workspace::root());
    // `cargo run` sets these for the package it runs. Build scripts that watch them would run again, and all that stands on
    // them be compiled again, each time a cargo of this tool takes turns with one that was typed.
    for (name, _) in std::env::vars_os() {
        if is_of_package(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

/// A program that becomes another, with this folder and environment.
pub(crate) fn below(program: &str, arguments: &[&str], other: &Command) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg(other.get_program()).args(other.get_args());
    if let Some(folder) = other.get_current_dir() {
        command.current_dir(folder);
    }
    for (name, value) in other.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Whether cargo sets this variable for the package whose program it runs.
fn is_of_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|start| variable.starts_with(start))
}

/// Runs to the end with this terminal's output; a failure is an error.
pub(crate) fn run(command: &mut Command) -> Result {
    let shown = show(command);
    eprintln!("$ {shown}");
    let status = command.status().doing(format_args!("start `{shown}`"))?;
    if status.success() { Ok(()) } else { Err(Error(format!("`{shown}` failed ({status})"))) }
}

/// Runs to the end and returns what it wrote to stdout.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command.stderr(Stdio::inherit()).output().doing(format_args!("start `{shown}`"))?;
    if !output.status.success() {
        return Err(Error(format!("`{shown}` failed ({})", output.status)));
    }
    String::from_utf8(output.stdout).doing(format_args!("read the output of `{shown}`"))
}

/// What a program that may be missing writes to stdout; `None` if it is missing or fails.
pub(crate) fn probe(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output.status.success().then(|| String::from_utf8_lossy(&text).trim().to_owned())
}

/// Asks a process that this tool started to end.
pub(crate) fn terminate(pid: u32) -> Result {
    signal("TERM", pid)
}

/// Sends a process a signal, by its name without `SIG`.
pub(crate) fn signal(name: &str, pid: u32) -> Result {
    output(Command::new("kill").args([format!("-{name}"), pid.to_string()])).map(|_| ())
}

fn show(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str()).to_string_lossy()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy()));
    words.join(" ")
}
