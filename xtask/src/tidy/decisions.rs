//! The index of decisions, docs/adr/README.md: every one is in it, under its own number and title.

use std::collections::BTreeMap;

use super::{File, Finding};

const INDEX: &str = "docs/adr/README.md";
const FOLDER: &str = "docs/adr/";

/// Checks the index against the records.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let records = files.iter().filter(|file| file.path != INDEX).filter_map(|file| {
        let name = file.path.strip_prefix(FOLDER)?;
        Some((name, file.text.as_deref().unwrap_or_default()))
    });
    let index = files.iter().find(|file| file.path == INDEX).and_then(|file| file.text.as_deref());
    compare(&records.collect(), index.unwrap_or_default())
}

/// A row of the index: `| [1](0001-name.md) | Title | In a line |`.
fn compare(records: &BTreeMap<&str, &str>, index: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut rows = BTreeMap::new();
    for (line, row) in (1..).zip(index.lines()).filter(|(_, row)| row.starts_with("| [")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let name = cells[0].split(['(', ')']).nth(1).unwrap_or_default();
        let mut say = |sentence: String| findings.push(Finding::new(INDEX, line, sentence));
        if !records.contains_key(name) {
            say(format!("`{name}` is not there"));
        }
        if cells.len() != 3 || cells.iter().any(|cell| cell.is_empty()) {
            say("a row has a number, a title and what was decided, in a line".to_owned());
        }
        rows.insert(name, (line, cells));
    }
    for (expected, (name, text)) in (1..).zip(records) {
        let path = format!("{FOLDER}{name}");
        let heading = text.lines().next().and_then(|line| line.strip_prefix("# ")?.split_once(". "));
        let Some((number, title)) = heading.filter(|(number, _)| *number == expected.to_string()) else {
            let sentence = format!("its first line is not `# {expected}. ` and a title; records are numbered in order");
            findings.push(Finding::new(&path, 1, sentence));
            continue;
        };
        if !name.starts_with(&format!("{expected:04}-")) {
            findings.push(Finding::new(&path, 0, format!("its name does not begin with `{expected:04}-`")));
        }
        match rows.get(name) {
            None => findings.push(Finding::new(INDEX, 0, format!("it has no row for `{name}`"))),
            Some((line, cells)) if !cells[0].starts_with(&format!("[{number}]")) || cells.get(1) != Some(&title) => {
                findings.push(Finding::new(INDEX, *line, format!("`{name}` is number {number}, \"{title}\"")));
            }
            Some(_) => {}
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::compare;

    fn sentences(records: &[(&str, &str)], index: &str) -> Vec<String> {
        compare(&records.iter().copied().collect(), index).into_iter().map(|finding| finding.to_string()).collect()
    }

    const ONE: (&str, &str) = ("0001-a.md", "# 1. First\n\nStatus: accepted\n");
    const TWO: (&str, &str) = ("0002-b.md", "# 2. Second\n");
    const INDEX: &str = "| no. | title | decided |\n|---|---|---|\n| [1](0001-a.md) | First | that |\n| [2](0002-b.md) | Second | this |\n";

    #[test]
    fn a_whole_index_passes() {
        assert_eq!(sentences(&[ONE, TWO], INDEX), [""; 0]);
    }

    #[test]
    fn each_rule_is_seen_to_fail() {
        let without_two = INDEX.split_once("| [2]").unwrap().0;
        let three = ("0003-c.md", "# 4. Third\n");
        let misnamed = ("0002-b.md", "# 2. Another\n");
        for (records, index, wanted) in [
            (&[ONE, TWO][..], without_two, "docs/adr/README.md: it has no row for `0002-b.md`"),
            (&[ONE], INDEX, "docs/adr/README.md:4: `0002-b.md` is not there"),
            (&[ONE, misnamed], INDEX, "docs/adr/README.md:4: `0002-b.md` is number 2, \"Another\""),
            (&[ONE, TWO, three], INDEX, "docs/adr/0003-c.md:1: its first line is not `# 3. `"),
            (&[ONE, ("0003-b.md", TWO.1)], &INDEX.replace("0002", "0003"), "docs/adr/0003-b.md: its name does not"),
            (&[ONE, TWO], &INDEX.replace("| this |", "|  |"), "docs/adr/README.md:4: a row has a number"),
        ] {
            let found = sentences(records, index);
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{found:?} for {wanted}");
        }
    }
}
