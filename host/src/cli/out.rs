//! Writing: data to stdout, where a reader that left ends the command quietly; notes to stderr. Only commands wait for
//! either; a process that serves does not.

use std::io::{self, Write};
use std::time::Duration;

use comfy_table::{Table, presets};

use super::failure::CliError;
use crate::telemetry;

/// How often a bar that shows no progress moves.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// Writes text to stdout at once.
pub(super) fn text(text: &str) -> Result<(), CliError> {
    bytes(text.as_bytes())
}

/// Writes bytes to stdout at once.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::OutputClosed,
        _ => CliError::failed(format!("stdout cannot be written: {error}")),
    })
}

/// Writes a line to stdout.
pub(super) fn line(line: &str) -> Result<(), CliError> {
    text(&format!("{line}\n"))
}

/// Writes JSON to stdout.
pub(super) fn json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let pretty = serde_json::to_string_pretty(value).map_err(|e| CliError::failed(format!("JSON: {e}")))?;
    line(&pretty)
}

/// Writes a table to stdout: a heading and rows, columns two spaces apart.
pub(super) fn table(heading: &[&str], rows: Vec<Vec<String>>) -> Result<(), CliError> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heading.iter().copied());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let trimmed: Vec<&str> = text.lines().map(str::trim_end).collect();
    line(&trimmed.join("\n"))
}

/// Writes a line to stderr: among those of the log, where this process has one, which waits for nobody. If nobody reads
/// that either, there is nobody to tell.
pub(super) fn note(line: &str) {
    if !telemetry::note(line) {
        drop(writeln!(io::stderr().lock(), "{line}"));
    }
}
