//! What .github runs of others is pinned: a tag can be moved to another commit, a hash cannot.

use super::Finding;

/// Hexadecimal digits of a commit.
const HASH_DIGITS: usize = 40;

/// Checks one workflow.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let uses = (1..).zip(text.lines()).filter_map(|(line, text)| {
        let (_, action) =
            text.trim_start().trim_start_matches("- ").split_once("uses:").filter(|(a, _)| a.is_empty())?;
        Some((line, action.trim()))
    });
    let loose = uses.filter(|(_, action)| !is_pinned(action));
    let sentence = "an action is pinned by its full commit, with the tag behind it: `uses: owner/name@HASH # v1.2.3`";
    loose.map(|(line, _)| Finding::new(path, line, sentence)).collect()
}

fn is_pinned(action: &str) -> bool {
    let Some((action, tag)) = action.split_once(" # v") else { return false };
    let hash = action.split_once('@').map_or("", |(_, hash)| hash);
    !tag.is_empty() && hash.len() == HASH_DIGITS && hash.chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_hash_passes_and_a_tag_does_not() {
        let hash = "0123456789abcdef0123456789abcdef01234567";
        for (line, count) in [
            (format!("- uses: a/b@{hash} # v1.2.3"), 0),
            (format!("      uses: a/b@{hash} # v1"), 0),
            ("- run: echo uses: nothing".to_owned(), 0),
            (format!("- uses: a/b@{hash}"), 1),
            ("- uses: a/b@v4 # v4".to_owned(), 1),
            ("- uses: a/b@main".to_owned(), 1),
            (format!("- uses: a/b@{} # v1", &hash[1..]), 1),
        ] {
            assert_eq!(check(".github/workflows/a.yml", &line).len(), count, "{line}");
        }
    }
}
