//! What docs/TESTING.md says is tested: each test it names must be there.

use super::{File, Finding};

const TESTING: &str = "docs/TESTING.md";

/// Checks the page's names against the sources.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let page = files.iter().find(|file| file.path == TESTING).and_then(|file| file.text.as_deref());
    let sources: Vec<&str> =
        files.iter().filter(|file| file.is_rust()).filter_map(|file| file.text.as_deref()).collect();
    missing(page.unwrap_or_default(), &sources)
}

fn missing(page: &str, sources: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(page.lines()) {
        for name in line.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains("::")) {
            let last = name.rsplit("::").next().unwrap_or_default();
            let there =
                |word: &str, end: &str| sources.iter().any(|text| text.contains(&format!("{word} {last}{end}")));
            if !there("fn", "(") && !there("mod", ";") {
                findings.push(Finding::new(TESTING, number, format!("it names `{name}`, which is no test or module")));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn a_test_that_is_gone_is_named_with_its_line() {
        let page = "| case | `a::one`, `b::tests::room` |\n| case | `a::two`, `a plain word` |\n";
        let lines = |sources: &[&str]| missing(page, sources).iter().map(|finding| finding.line).collect::<Vec<_>>();
        assert_eq!(lines(&["fn one() {}\nmod room;", "async fn two() {}"]), [0; 0]);
        assert_eq!(lines(&["fn one() {}\nmod rooms;", "fn two_more() {}"]), [1, 2]);
    }
}
