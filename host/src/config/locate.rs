//! Finds the line of a key in a YAML text with the YAML parser itself: a reader that walks to the key and fails there, so that
//! the parser says where it was. Indentation, flow style, comments and quotes are its business, not ours.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step from the document's root towards a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The key's n-th occurrence, counted from 0 (a repeated key has more than one).
    Key(String, usize),
    /// A list's element.
    Index(usize),
}

/// A key's place in the document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyPath(Vec<Step>);

impl KeyPath {
    pub(super) fn root() -> Self {
        Self::default()
    }

    pub(super) fn key(&self, name: &str) -> Self {
        self.nth_key(name, 0)
    }

    pub(super) fn nth_key(&self, name: &str, occurrence: usize) -> Self {
        self.with(Step::Key(name.to_owned(), occurrence))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    /// The line, counted from 1; of the nearest enclosing key where this one is absent.
    pub(super) fn line(&self, text: &str) -> Option<usize> {
        (1..=self.0.len()).rev().find_map(|length| {
            let seek = Seek(&self.0[..length]);
            let error = seek.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
            if !error.to_string().contains(FOUND) {
                return None;
            }
            // The parser gives no place for the very first line.
            Some(error.location().map_or(1, |location| location.line()))
        })
    }

    fn with(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(name, _) if position == 0 => write!(f, "{name}")?,
                Step::Key(name, _) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

const FOUND: &str = "<the key that was looked for>";

/// Reads a value, failing at the end of the path; succeeds when the path does not exist.
struct Seek<'a>(&'a [Step]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = 0;
        loop {
            let wanted = match self.0.first() {
                Some(Step::Key(name, occurrence)) => {
                    Some(KeySeek { name, stop: self.0.len() == 1 && seen == *occurrence })
                }
                _ => None,
            };
            let Some(wanted) = wanted else {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return if self.0.is_empty() { Err(A::Error::custom(FOUND)) } else { Ok(()) };
            };
            let Some(Step::Key(_, occurrence)) = self.0.first() else { return Ok(()) };
            match map.next_key_seed(wanted)? {
                None => return Ok(()),
                Some(true) if seen == *occurrence => map.next_value_seed(Seek(&self.0[1..]))?,
                Some(matched) => {
                    seen += usize::from(matched);
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        match self.0.first() {
            None => return Err(A::Error::custom(FOUND)),
            Some(Step::Index(index)) => {
                for _ in 0..*index {
                    if seq.next_element::<IgnoredAny>()?.is_none() {
                        return Ok(());
                    }
                }
                seq.next_element_seed(Seek(&self.0[1..]))?;
            }
            Some(Step::Key(..)) => {}
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar()
    }
}

impl Seek<'_> {
    fn scalar<E: Error>(self) -> Result<(), E> {
        if self.0.is_empty() { Err(E::custom(FOUND)) } else { Ok(()) }
    }
}

/// Reads a map's key: whether it is the wanted one. Fails there if the path ends with it.
struct KeySeek<'a> {
    name: &'a str,
    stop: bool,
}

impl<'de> DeserializeSeed<'de> for KeySeek<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeek<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match key == self.name {
            true if self.stop => Err(E::custom(FOUND)),
            matched => Ok(matched),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::KeyPath;

    #[test]
    fn keys_have_their_line_in_every_style() {
        let text = "listen: x\nmodels:\n  a: {type: text,\n     options: {c: 1}}\n  \"b\":\n    aliases:\n      - one\n      - two\n  a:\n    x: 1\n";
        let models = KeyPath::root().key("models");
        for (path, line) in [
            (KeyPath::root().key("listen"), Some(1)),
            (models.clone(), Some(2)),
            (models.key("a"), Some(3)),
            (models.key("a").key("options").key("c"), Some(4)),
            (models.key("b").key("aliases").index(1), Some(8)),
            (models.nth_key("a", 1), Some(9)),
            (models.key("b").key("absent"), Some(5)),
            (KeyPath::root().key("absent"), None),
        ] {
            assert_eq!(path.line(text), line, "{path}");
        }
    }
}
