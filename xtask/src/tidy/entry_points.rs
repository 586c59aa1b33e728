//! The entry points that docs/CONTRIBUTING.md names: each file is there, and still defines what is said to be in it.

use super::source::{code_only, words};
use super::{File, Finding};

const CONTRIBUTING: &str = "docs/CONTRIBUTING.md";
/// The rows below this heading are the entry points: what is decided, `where`, and by which `symbols`.
const HEADING: &str = "## Entry points";
/// With fewer, a newcomer searches.
const LEAST: usize = 10;
/// What stands before a name where it is defined.
const DEFINES: [&str; 9] = ["fn", "struct", "enum", "trait", "type", "const", "static", "mod", "macro_rules!"];

/// Checks the page's entry points against the sources.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let page = files.iter().find(|file| file.path == CONTRIBUTING).and_then(|file| file.text.as_deref());
    let mut findings = Vec::new();
    let mut count = 0;
    for (line, path, symbols) in entry_points(page.unwrap_or_default()) {
        count += 1;
        let mut say = |sentence: String| findings.push(Finding::new(CONTRIBUTING, line, sentence));
        let Some(file) = files.iter().find(|file| file.path == path) else {
            say(format!("`{path}` is not there; name the file that it is in now"));
            continue;
        };
        let code = code_only(file.text.as_deref().unwrap_or_default());
        for symbol in &symbols {
            if !defines(&code, symbol) {
                say(format!("`{path}` defines no `{symbol}`; name what it is called now, or where it went"));
            }
        }
        if symbols.is_empty() {
            say(format!("it names nothing that `{path}` defines"));
        }
    }
    if count < LEAST {
        let sentence = format!("{count} entry points below `{HEADING}`; at least {LEAST} are wanted");
        findings.push(Finding::new(CONTRIBUTING, 0, sentence));
    }
    findings
}

/// Line, path and symbols of each row: what stands in backquotes, in this order.
fn entry_points(page: &str) -> impl Iterator<Item = (usize, &str, Vec<&str>)> {
    let section = (1..).zip(page.lines()).skip_while(|(_, line)| *line != HEADING).skip(1);
    let section = section.take_while(|(_, line)| !line.starts_with("## "));
    section.filter(|(_, line)| line.starts_with('|')).filter_map(|(number, line)| {
        let mut quoted = line.split('`').skip(1).step_by(2);
        Some((number, quoted.next()?, quoted.collect()))
    })
}

fn defines(code: &str, symbol: &str) -> bool {
    words(code, symbol).any(|at| {
        let before = code[..at].trim_end();
        before.len() < at && DEFINES.iter().any(|word| before.ends_with(word))
    })
}

#[cfg(test)]
mod tests {
    use super::{CONTRIBUTING, File, LEAST, check};

    fn sentences(rows: &str, code: &str) -> Vec<String> {
        let good = "| where it is | `a.rs` | `good` |\n".repeat(LEAST - 1);
        let page = format!(
            "`before.rs`\n## Entry points\n\n| what | where | symbol |\n|---|---|---|\n{good}{rows}\n## More\n| `after.rs` |\n"
        );
        let file = |path: &str, text: String| File { path: path.to_owned(), text: Some(text) };
        let files = [file(CONTRIBUTING, page), file("a.rs", format!("fn good() {{}}\n{code}"))];
        check(&files).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn a_symbol_that_its_file_defines_passes() {
        for (symbol, code) in [
            ("step", "pub(super) fn step(now: u64) {}"),
            ("step", "async fn step<T>() {}"),
            ("Step", "pub enum Step { A }"),
            ("LIMIT", "const LIMIT: u64 = 1;"),
            ("kernels", "macro_rules! kernels { () => {} }"),
        ] {
            assert_eq!(sentences(&format!("| x | `a.rs` | `{symbol}` |"), code), [""; 0], "{code}");
        }
    }

    #[test]
    fn what_moved_is_named_with_its_line() {
        let line = format!("{CONTRIBUTING}:{}: ", 6 + LEAST - 1);
        for (row, code, wanted) in [
            ("| x | `b.rs` | `step` |", "fn step() {}", "`b.rs` is not there"),
            ("| x | `a.rs` | `step` |", "", "`a.rs` defines no `step`"),
            ("| x | `a.rs` | `step` |", "fn steps() {}\n// fn step()\nlet x = step();", "`a.rs` defines no `step`"),
            ("| x | `a.rs` | `good`, `step` |", "", "`a.rs` defines no `step`"),
            ("| x | `a.rs` | step |", "fn step() {}", "it names nothing"),
        ] {
            let found = sentences(row, code);
            assert!(found.len() == 1 && found[0].starts_with(&format!("{line}{wanted}")), "{found:?} for {wanted}");
        }
    }

    #[test]
    fn an_entry_point_less_is_seen() {
        let found = sentences("", "");
        assert!(found.len() == 1 && found[0].starts_with(&format!("{CONTRIBUTING}: 9 entry points")), "{found:?}");
    }
}
