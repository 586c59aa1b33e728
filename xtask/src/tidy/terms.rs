//! The field's own words: names that this code once made up, and what the field calls the thing.

use super::Finding;
use super::source::line_of;

/// A part of a name that stands nowhere, and what stands there instead.
const TERMS: &[(&str, &str)] = &[
    ("bereft", "`orphaned`"),
    ("crowded", "`kept_out`"),
    ("homeless", "`without_device`"),
    ("picture", "`image`"),
    ("pictures", "`images`"),
    ("rival", "`waiting`"),
    ("sing", "`run_canary`"),
    ("song", "`canary`"),
];

/// Checks the names in one file; comments and texts are for people to read.
pub(super) fn check(path: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|name| !name.is_empty()) {
        let Some((term, instead)) = TERMS.iter().find(|(term, _)| parts(name).any(|part| part == *term)) else {
            continue;
        };
        let at = name.as_ptr() as usize - code.as_ptr() as usize;
        let sentence = format!("`{term}` in `{name}`: the field says {instead}");
        findings.push(Finding::new(path, line_of(code, at), sentence));
    }
    findings
}

/// The words of a name, in lower case: `AttentionMix` and `attention_mix` have the same.
fn parts(name: &str) -> impl Iterator<Item = String> + '_ {
    let humps = name.split('_').flat_map(|part| {
        let mut begins: Vec<usize> =
            part.char_indices().filter(|(_, c)| c.is_ascii_uppercase()).map(|(at, _)| at).collect();
        begins.insert(0, 0);
        begins.push(part.len());
        let humps: Vec<String> = begins.windows(2).map(|ends| part[ends[0]..ends[1]].to_ascii_lowercase()).collect();
        humps.into_iter().chain([part.to_ascii_lowercase()])
    });
    humps.filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_made_up_word_is_found_in_names_of_every_case() {
        let code = "fn crowded_out() {}\nstruct PictureFile;\nconst PICTURE_BYTES: u32 = 1;\nlet besides = singing(returns);\n";
        let lines: Vec<_> = check("host/src/a.rs", code).into_iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [1, 2, 3]);
    }
}
