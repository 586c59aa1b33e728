//! What the pages say is tested: each test that they name must be there, in the module that they name.

use super::{File, Finding};

/// Pages whose words between backquotes with `::` in them are tests, or modules of tests.
const PAGES: [&str; 3] = ["docs/TESTING.md", "docs/SECURITY.md", "docs/RELIABILITY.md"];

/// Checks the pages' names against the sources.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let sources: Vec<(&str, &str)> = files
        .iter()
        .filter(|file| file.is_rust())
        .filter_map(|file| Some((file.path.as_str(), file.text.as_deref()?)))
        .collect();
    let mut findings = Vec::new();
    for page in PAGES {
        match files.iter().find(|file| file.path == page).and_then(|file| file.text.as_deref()) {
            Some(text) => findings.extend(missing(page, text, &sources)),
            None => findings.push(Finding::new(page, 0, "it is to say what is promised and which test sees to it")),
        }
    }
    findings
}

fn missing(page: &str, text: &str, sources: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for name in line.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains("::")) {
            if !sources.iter().any(|(path, source)| holds(path, source, name)) {
                findings.push(Finding::new(page, number, format!("it names `{name}`, which is no test or module")));
            }
        }
    }
    findings
}

/// Whether a file has this test or module. `tests` is where many are, and `..` stands for what was named before.
fn holds(path: &str, source: &str, name: &str) -> bool {
    let mut parts = name.rsplit("::").filter(|part| !matches!(*part, "tests" | ".."));
    let Some(last) = parts.next() else { return false };
    let is_there = source.contains(&format!("fn {last}(")) || source.contains(&format!("mod {last};"));
    let mut rooms = path.trim_end_matches(".rs").split('/');
    is_there && parts.next().is_none_or(|room| rooms.any(|part| part.replace('-', "_") == room))
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn a_test_that_is_gone_is_named_with_its_line() {
        let page = "| case | `a::one`, `b::tests::room` |\n| case | `a::two`, `a plain word` |\n";
        let lines = |sources: &[(&str, &str)]| {
            missing("docs/X.md", page, sources).iter().map(|finding| finding.line).collect::<Vec<_>>()
        };
        assert_eq!(lines(&[("it/a.rs", "fn one() {}\nfn two() {}"), ("b/tests/mod.rs", "mod room;")]), [0; 0]);
        assert_eq!(lines(&[("it/a.rs", "fn one() {}\nfn two_more() {}"), ("b/tests/mod.rs", "mod rooms;")]), [1, 2]);
        // A test of that name elsewhere is another one.
        assert_eq!(lines(&[("it/c.rs", "fn one() {}\nfn two() {}"), ("b/tests/mod.rs", "mod room;")]), [1, 2]);
    }
}
