//! Rules for the text of a single file.

use super::Finding;

/// Over this a file needs a reason.
const LINES_MAX: usize = 1000;
/// Over this a file is a question to answer.
const LINES_WARN: usize = 500;
/// Files that may be longer, and why.
const LONG: [(&str, &str); 0] = [];

/// Names of files whose white space is checked.
const ENDINGS: [&str; 7] = [".rs", ".toml", ".md", ".yaml", ".yml", ".sh", "/run"];

/// Folders whose files are data: what is wrong in them is wrong on purpose.
const DATA: [&str; 3] = ["/corpus/", "/golden/", "/testdata/"];

/// Beginnings of paths that exist on one machine only. In two parts, so that this file passes.
const MACHINE_PATHS: [(&str, &str); 3] = [("/ro", "ot/"), ("/Us", "ers/"), ("file:", "///")];

/// Checks one file.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if path.ends_with(".rs") {
        if !text.starts_with("//!") {
            findings.push(Finding::new(path, 1, "a file opens with `//!`: what it is for, and what it must not know"));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX && !LONG.iter().any(|(long, _)| *long == path) {
            findings.push(Finding::new(path, 0, format!("{lines} lines; split it, or list it in tidy with a reason")));
        }
    }
    let data = DATA.iter().any(|folder| path.contains(folder)) || !ENDINGS.iter().any(|ending| path.ends_with(ending));
    for (number, line) in (1..).zip(text.lines()) {
        let mut say = |sentence: &str| findings.push(Finding::new(path, number, sentence));
        if !data && line.ends_with([' ', '\t']) {
            say("white space at the end of the line");
        }
        if !data && line.contains('\t') {
            say("a tab; indent with spaces");
        }
        if MACHINE_PATHS.iter().any(|(a, b)| line.contains(&format!("{a}{b}"))) {
            say("a path of one machine");
        }
    }
    if !data && !text.is_empty() && !text.ends_with('\n') {
        findings.push(Finding::new(path, text.lines().count(), "the last line has no end"));
    }
    findings
}

/// A sentence about a Rust file that is long, but not too long.
pub(super) fn long(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (LINES_WARN < lines && lines <= LINES_MAX).then(|| format!("{path}: {lines} lines; is it one thing?"))
}

#[cfg(test)]
mod tests {
    use super::{check, long};

    fn sentences(path: &str, text: &str) -> Vec<String> {
        check(path, text).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn a_good_file_passes() {
        assert_eq!(sentences("a.rs", "//! What it is for.\n\nfn f() {}\n"), [""; 0]);
        assert_eq!(sentences("tests/golden/a.md", "x \t\ny"), [""; 0]);
        assert_eq!(sentences("host/src/config/testdata/tab.yaml", "\tx"), [""; 0]);
    }

    #[test]
    fn each_rule_is_seen_to_fail() {
        let home = ["/ro", "ot/x"].concat();
        for (path, text, wanted) in [
            ("a.rs", "fn f() {}\n", "a.rs:1: a file opens"),
            ("a.md", "x\ny \n", "a.md:2: white space"),
            ("a.yaml", "\tx\n", "a.yaml:1: a tab"),
            ("a.toml", "x", "a.toml:1: the last line"),
            ("a.json", home.as_str(), "a.json:1: a path of one machine"),
            ("b.rs", &format!("//!{}", "\n".repeat(1001)), "b.rs: 1001 lines"),
        ] {
            let found = sentences(path, text);
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{found:?} for {wanted}");
        }
    }

    #[test]
    fn long_files_are_questioned() {
        assert!(long("a.rs", &"\n".repeat(501)).is_some());
        assert!(long("a.rs", &"\n".repeat(500)).is_none());
    }
}
