//! Links between the pages: what a page points to is there, the heading included.

use std::collections::BTreeSet;

use super::source::line_of;
use super::{File, Finding};

/// Checks every Markdown page.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let page = |path: &str| files.iter().find(|file| file.path == path)?.text.as_deref();
    let pages = files.iter().filter(|file| file.path.ends_with(".md"));
    let broken = pages.flat_map(|file| {
        let prose = prose_only(file.text.as_deref().unwrap_or_default());
        let targets = targets(&prose).map(|(at, target)| (line_of(&prose, at), target.to_owned()));
        let broken = targets.filter(|(_, target)| !leads_somewhere(&file.path, target, &paths, page));
        broken
            .map(|(line, target)| Finding::new(&file.path, line, format!("the link to `{target}` leads nowhere")))
            .collect::<Vec<_>>()
    });
    broken.collect()
}

/// A page without what stands in code, in which a bracket is no link. Lines stay where they are.
fn prose_only(page: &str) -> String {
    let mut fenced = false;
    let mut prose = String::with_capacity(page.len());
    for line in page.lines() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if !fenced && !fence {
            prose.extend(line.split('`').step_by(2));
        }
        prose.push('\n');
    }
    prose
}

/// Where `[text](target)` stands, and its target.
fn targets(prose: &str) -> impl Iterator<Item = (usize, &str)> {
    prose.match_indices("](").filter_map(|(at, open)| {
        let target = prose[at + open.len()..].split([')', ' ', '\n']).next()?;
        Some((at, target))
    })
}

fn leads_somewhere<'a>(
    from: &str,
    target: &str,
    paths: &BTreeSet<&str>,
    page: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    if target.contains("://") || target.starts_with("mailto:") {
        return true;
    }
    let (path, heading) = target.split_once('#').map_or((target, None), |(path, heading)| (path, Some(heading)));
    let path = if path.is_empty() { Some(from.to_owned()) } else { resolve(from, path) };
    let Some(path) = path else { return false };
    let folder = format!("{path}/");
    let there = paths.contains(path.as_str()) || paths.iter().any(|other| other.starts_with(&folder));
    match heading {
        Some(heading) if there => page(&path).is_some_and(|text| headings(text).any(|other| other == heading)),
        _ => there,
    }
}

/// A path relative to a page's folder, as one from the root; nothing if it leads out of the repository.
fn resolve(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The headings of a page as the ends of links, in the form that GitHub gives them.
fn headings(page: &str) -> impl Iterator<Item = String> {
    let titles = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    titles.map(|title| {
        let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::{File, check};

    fn sentences(page: &str) -> Vec<String> {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: Some(text.to_owned()) };
        let files = [
            file("docs/a.md", page),
            file("docs/b.md", "# The *first* part, of two\n"),
            file("docs/adr/0001-x.md", "# 1. X\n"),
            file("README.md", "# r\n"),
        ];
        check(&files).into_iter().map(|finding| finding.to_string()).collect()
    }

    #[test]
    fn what_is_there_may_be_linked() {
        for page in [
            "[b](b.md), [`code`](../README.md) and [a folder](adr), [again](adr/)",
            "[a heading](b.md#the-first-part-of-two)",
            "# Here\n[above](#here)",
            "[elsewhere](https://example.org/x.md)",
            "`[not](a-link.md)`\n```md\n[nor](this.md)\n```",
        ] {
            assert_eq!(sentences(page), [""; 0], "{page}");
        }
    }

    #[test]
    fn what_is_not_there_is_named_with_its_line() {
        for (page, wanted) in [
            ("x\n[gone](c.md)", "docs/a.md:2: the link to `c.md`"),
            ("```\n[no](link.md)\n```\n[gone](../docs/c.md)", "docs/a.md:4: the link to `../docs/c.md`"),
            ("[no such part](b.md#the-second-part)", "docs/a.md:1: the link to `b.md#the-second-part`"),
            ("[out of the repository](../../x.md)", "docs/a.md:1: the link to `../../x.md`"),
            ("[nothing below](adr/0002-y.md)", "docs/a.md:1: the link to `adr/0002-y.md`"),
        ] {
            let found = sentences(page);
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{found:?} for {wanted}");
        }
    }
}
