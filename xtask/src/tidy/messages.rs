//! What docs/TROUBLESHOOTING.md quotes is what is said: every message there stands somewhere in the sources.

use super::{File, Finding};

const PAGE: &str = "docs/TROUBLESHOOTING.md";
/// A piece of a message that is shorter is found anywhere.
const PIECE_CHARS: usize = 12;

/// Every quoted message whose words nobody says.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let Some(page) = files.iter().find(|file| file.path == PAGE).and_then(|file| file.text.as_deref()) else {
        return Vec::new();
    };
    let is_source = |file: &&File| file.is_rust() || [".sh", ".js"].iter().any(|end| file.path.ends_with(end));
    let sources = files.iter().filter(is_source).filter_map(|file| file.text.as_deref()).map(joined);
    let sources: Vec<String> = sources.collect();
    let is_said = |piece: &str| sources.iter().any(|source| source.contains(piece));
    let mut findings = Vec::new();
    for (number, line) in page.lines().enumerate() {
        let Some(message) = quoted(line) else { continue };
        for piece in pieces(message).into_iter().filter(|piece| !is_said(piece)) {
            findings.push(Finding::new(
                PAGE,
                number + 1,
                format!("nothing says `{piece}`: quote it as it is said now"),
            ));
        }
    }
    findings
}

/// The message of a row: the first cell, or the second where the first names a check.
fn quoted(line: &str) -> Option<&str> {
    let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
    let is_message = |cell: &&str| cell.starts_with('`') && cell.contains(' ');
    let cell = cells.next().filter(is_message).or_else(|| cells.next().filter(is_message))?;
    cell[1..].split('`').next()
}

/// Its words between what differs from one time to another: names in capitals, numbers, paths, dots.
fn pieces(message: &str) -> Vec<String> {
    let differs = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        let is_name = bare.len() > 1 && bare.chars().all(|c| c.is_uppercase() || c == '_') || matches!(bare, "A" | "N");
        is_name || word.contains(|c: char| c.is_ascii_digit()) || bare.is_empty()
    };
    let mut pieces = vec![Vec::new()];
    for word in message.split(' ') {
        match (differs(word), pieces.last_mut()) {
            (false, Some(piece)) => piece.push(word.trim_end_matches([';', ',', ':'])),
            _ => pieces.push(Vec::new()),
        }
    }
    let joined = pieces.into_iter().map(|words| words.join(" "));
    joined.filter(|piece| piece.chars().count() >= PIECE_CHARS).collect()
}

/// A source without the breaks of its strings and the marks behind words, so that sentences stand in one piece.
fn joined(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, behind)) = rest.split_once("\\\n") {
        out.push_str(before);
        rest = behind.trim_start();
    }
    out.push_str(rest);
    out.replace([';', ',', ':'], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: Some(text.to_owned()) }
    }

    #[test]
    fn a_message_that_nobody_says_is_found() {
        let source = file("host/src/a.rs", "format!(\"port {port} of {ip} is taken by \\\n     another program\")");
        let page = "| said | helps |\n|---|---|\n| `port 9000 of 127.0.0.1 is taken by another program` | x |\n| port | `nobody says this at all` | y |\n";
        let found = check(&[source, file(PAGE, page)]);
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [4], "{found:?}");
    }

    #[test]
    fn what_differs_is_no_part_of_a_message() {
        let message = "DIR has 12 MiB free, and 90 MiB are needed";
        assert_eq!(pieces(message), ["MiB free and", "MiB are needed"]);
        assert_eq!(pieces("process N goes on: ..."), Vec::<String>::new());
    }
}
