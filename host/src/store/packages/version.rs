//! Versions of Python packages, as far as equality goes (PEP 440): `1.0`, `1.0.0` and `v1` are one version.

/// What two spellings of one version have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    epoch: u64,
    /// Without zeros at the end.
    release: Vec<u64>,
    /// `a`, `b`, `rc`, `post` and `dev`, with their numbers.
    suffixes: Vec<(&'static str, u64)>,
    /// After `+`.
    local: Option<String>,
}

/// Spellings of suffixes, longer ones before what they begin with.
const SUFFIXES: [(&str, &str); 12] = [
    ("alpha", "a"),
    ("beta", "b"),
    ("preview", "rc"),
    ("post", "post"),
    ("dev", "dev"),
    ("pre", "rc"),
    ("rev", "post"),
    ("rc", "rc"),
    ("a", "a"),
    ("b", "b"),
    ("c", "rc"),
    ("r", "post"),
];

impl Version {
    /// `None` if it is not of PEP 440's form.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let text = text.strip_prefix('v').unwrap_or(&text);
        let (public, local) = match text.split_once('+') {
            Some((public, local)) => (public, Some(local.replace(['-', '_'], "."))),
            None => (text, None),
        };
        let (epoch, mut rest) = match public.split_once('!') {
            Some((epoch, rest)) => (epoch.parse().ok()?, rest),
            None => (0, public),
        };
        let mut release = vec![number(&mut rest)?];
        while let Some(mut next) = rest.strip_prefix('.').filter(|next| next.starts_with(|c: char| c.is_ascii_digit()))
        {
            release.push(number(&mut next)?);
            rest = next;
        }
        while release.len() > 1 && release.last() == Some(&0) {
            release.pop();
        }
        let mut suffixes = Vec::new();
        while !rest.is_empty() {
            suffixes.push(suffix(&mut rest)?);
        }
        Some(Self { epoch, release, suffixes, local })
    }

    /// Whether a file of version `candidate` is what this pin asks for: a pin without a local version takes any.
    pub(super) fn pins(&self, candidate: &Self) -> bool {
        let local = self.local.as_ref().and(candidate.local.clone());
        *self == Self { local, ..candidate.clone() }
    }
}

/// Takes a number off the front.
fn number(rest: &mut &str) -> Option<u64> {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let value = rest[..end].parse().ok()?;
    *rest = &rest[end..];
    Some(value)
}

/// Takes `.post2`, `rc-1`, `a`, or `-3` (which is `.post3`) off the front.
fn suffix(rest: &mut &str) -> Option<(&'static str, u64)> {
    let separators: &[char] = &['.', '-', '_'];
    if let Some(mut digits) = rest.strip_prefix('-').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        let value = number(&mut digits)?;
        *rest = digits;
        return Some(("post", value));
    }
    let word = rest.strip_prefix(separators).unwrap_or(rest);
    let (spelling, name) = SUFFIXES.iter().find(|(spelling, _)| word.starts_with(spelling))?;
    let mut after = &word[spelling.len()..];
    if let Some(digits) = after.strip_prefix(separators).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        after = digits;
    }
    let value = if after.starts_with(|c: char| c.is_ascii_digit()) { number(&mut after)? } else { 0 };
    *rest = after;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::Version;

    fn pins(pin: &str, candidate: &str) -> bool {
        Version::parse(pin).expect(pin).pins(&Version::parse(candidate).expect(candidate))
    }

    #[test]
    fn one_version_has_many_spellings() {
        for (pin, candidate) in [
            ("1.0", "1.0.0"),
            ("1", "v1.0"),
            ("01.2", "1.2"),
            ("1.0RC1", "1.0-rc.1"),
            ("1.0a", "1.0.alpha0"),
            ("1.0c2", "1.0pre2"),
            ("1.0.post3", "1.0-3"),
            ("1.0rev3", "1.0_post3"),
            ("1.0.dev", "1.0dev0"),
            ("0!1.0", "1.0"),
            ("1.0", "1.0+cu118"),
            ("1.0+cu-118", "1.0+CU.118"),
        ] {
            assert!(pins(pin, candidate), "{pin} is {candidate}");
        }
    }

    #[test]
    fn others_differ() {
        for (pin, candidate) in [
            ("1.0", "1.0.1"),
            ("1.0", "1.0rc1"),
            ("1.0", "1.0.post1"),
            ("1.0", "10"),
            ("1!1.0", "1.0"),
            ("1.0+a", "1.0"),
            ("1.0a1", "1.0b1"),
        ] {
            assert!(!pins(pin, candidate), "{pin} is not {candidate}");
        }
        assert!(
            ["", "x", "1.x", "1.0.", "1.0foo", "99999999999999999999"]
                .iter()
                .all(|text| Version::parse(text).is_none())
        );
    }
}
