//! Writing: data to stdout, where a reader that left ends the command quietly; notes to stderr. Only commands wait for
//! either; a process that serves does not.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use super::failure::CliError;
use super::table::{self, Column};
use crate::domain::{printable, steers};
use crate::telemetry::{self, Severity};

/// How often a bar that shows no progress moves.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// Writes what a model says to stdout at once. What would steer a terminal is escaped on one; a file gets all of it.
pub(super) fn text(text: &str) -> Result<(), CliError> {
    if io::stdout().is_terminal() { bytes(shown(text).as_bytes()) } else { bytes(text.as_bytes()) }
}

/// Writes bytes to stdout at once.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::OutputClosed,
        _ => CliError::failed(format!("stdout cannot be written: {error}")),
    })
}

/// Writes a line to stdout, or several, whoever the words are from.
pub(super) fn line(line: &str) -> Result<(), CliError> {
    bytes(format!("{}\n", shown(line)).as_bytes())
}

/// Writes JSON to stdout.
pub(super) fn json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let pretty = serde_json::to_string_pretty(value).map_err(|e| CliError::failed(format!("JSON: {e}")))?;
    bytes(format!("{}\n", escaped(&pretty)).as_bytes())
}

/// JSON that says the same and steers no terminal: all that would is inside strings, and JSON has a way to write it.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if steers(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // A String takes all of it.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Lines as a terminal may show them.
fn shown(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Prints a name in a column of this width and a text beside it, which goes on below itself where a terminal has no room.
pub(super) fn named(name_columns: usize, name: &str, text: &str) -> Result<(), CliError> {
    let room = width().map_or(usize::MAX, |columns| columns.saturating_sub(name_columns + 1));
    let lines = table::wrap(text, room).into_iter().enumerate();
    let shown = lines.map(|(number, text)| {
        let name = if number == 0 { name } else { "" };
        format!("{name:<name_columns$} {text}").trim_end().to_owned()
    });
    line(&shown.collect::<Vec<_>>().join("\n"))
}

/// Writes a table to stdout, as wide as a terminal is. What is no terminal gets all of it.
pub(super) fn table(columns: &[Column], rows: Vec<Vec<String>>) -> Result<(), CliError> {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell).into_owned()).collect()).collect();
    line(&table::lines(columns, &rows, width()).join("\n"))
}

/// Writes sentences to stdout, on a terminal broken between words.
pub(super) fn prose(text: &str) -> Result<(), CliError> {
    let text = printable(text);
    line(&width().map_or_else(|| text.to_string(), |width| table::wrap(&text, width).join("\n")))
}

/// Columns of the terminal that stdout is.
pub(super) fn width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Writes a line to stderr: among those of the log, where this process has one, which waits for nobody. If nobody reads
/// that either, there is nobody to tell.
pub(super) fn note(line: &str) {
    tell(Severity::Info, line);
}

/// The same for what went wrong.
pub(super) fn error(line: &str) {
    tell(Severity::Error, line);
}

fn tell(severity: Severity, line: &str) {
    let line = shown(line);
    if !telemetry::note(severity, &line) {
        drop(writeln!(io::stderr().lock(), "{line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::{escaped, shown};

    #[test]
    fn json_that_steers_nothing_still_says_the_same() {
        let value = serde_json::json!({"a": "\u{9b}31m\u{7f}\u{202e}x\u{e0041}", "b": ["é\t\n"]});
        let json = escaped(&serde_json::to_string_pretty(&value).unwrap());
        assert!(json.is_ascii() || !json.contains(['\u{9b}', '\u{7f}', '\u{202e}', '\u{e0041}']), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(shown("one\n\u{1b}[2Jtwo\r"), "one\n\\u{1b}[2Jtwo\\r");
    }
}
