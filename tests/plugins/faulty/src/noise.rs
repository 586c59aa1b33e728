//! What a plugin should not say, and how it should not say it.

use std::io::Write;

use aihost_plugin_api::Error;

/// A line that is printed over and over.
const LINE: &str = "a line that says nothing, and says it as often as it can, so that whoever reads it has much to do";
/// Records of one size.
const RECORDS: usize = 8;

/// A hundred lines on each output.
pub(crate) fn both() {
    for line in 0..100 {
        let _ = writeln!(std::io::stdout(), "noise on stdout {line}");
        let _ = writeln!(std::io::stderr(), "noise on stderr {line}");
    }
}

/// So many bytes of lines on standard output; each write waits for whoever reads.
pub(crate) fn shout(bytes: u64) {
    let mut stdout = std::io::stdout().lock();
    for _ in 0..bytes / (LINE.len() as u64 + 1) {
        let _ = writeln!(stdout, "{LINE}");
    }
    let _ = writeln!(stdout, "the last of the shouting");
}

/// Records of so many bytes each.
pub(crate) fn huge_records(bytes: u64) {
    let text = "r".repeat(bytes as usize);
    for _ in 0..RECORDS {
        log(&text);
    }
}

/// So many bytes of records.
pub(crate) fn many_records(bytes: u64) {
    for _ in 0..bytes / LINE.len() as u64 {
        log(LINE);
    }
}

/// Escape codes, lines of their own, and letters that run the other way.
pub(crate) fn forge() -> Error {
    let text = "\u{1b}]0;title\u{7}\u{1b}[2J\r\n[99] ERROR aihost: forged\u{202e}";
    log(text);
    let _ = writeln!(std::io::stderr(), "{}", text.replace(['\r', '\n'], "\u{9b}"));
    Error::internal(text)
}

fn log(text: &str) {
    tracing::error!("{text}");
}
