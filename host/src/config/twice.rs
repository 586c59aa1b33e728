//! What YAML lets pass and nobody means: a key that is there twice in one mapping, of which one would count silently; and merge
//! keys, which belong to an older version of it and would be read as a key called `<<`.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::error::Problem;
use super::locate::line_of;

/// The first such key of a text. A text that is wrong in another way is others' business.
pub(super) fn find(text: &str) -> Option<Problem> {
    let walk = Shared::default();
    let error = Walk(&walk).deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    let problem = walk.found.into_inner()?;
    Some(Problem { line: Some(line_of(&error)), ..problem })
}

#[derive(Default)]
struct Shared {
    /// From the document's root.
    path: RefCell<Vec<String>>,
    found: RefCell<Option<Problem>>,
}

impl Shared {
    /// Models have a sentence of their own, which names all that are there twice.
    fn is_told_elsewhere(&self) -> bool {
        self.path.borrow().as_slice() == ["models"]
    }

    fn found(&self, key: &str, message: &str, hint: &str) {
        let path = self.path.borrow();
        let key = path.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".");
        let (message, hint) = (message.to_owned(), Some(hint.to_owned()));
        *self.found.borrow_mut() = Some(Problem { key: Some(key), message, hint, ..Problem::default() });
    }
}

/// Reads a value.
#[derive(Clone, Copy)]
struct Walk<'a>(&'a Shared);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let seen = RefCell::new(HashSet::new());
        while let Some(key) = map.next_key_seed(Key { shared: self.0, seen: &seen })? {
            self.0.path.borrow_mut().push(key);
            map.next_value_seed(self)?;
            self.0.path.borrow_mut().pop();
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Reads a key, and fails there if it is one that nobody means: so the parser says in which line it is.
struct Key<'a> {
    shared: &'a Shared,
    seen: &'a RefCell<HashSet<String>>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        if key == "<<" {
            let hint = "write the keys out, say them once in `defaults:`, or repeat a whole value with `*name`";
            self.shared.found(key, "is a merge key, which YAML has no longer and this host does not read", hint);
            return Err(E::custom(""));
        }
        if !self.seen.borrow_mut().insert(key.to_owned()) && !self.shared.is_told_elsewhere() {
            self.shared.found(key, "is there twice, and only one of them could count", "remove one of the two");
            return Err(E::custom(""));
        }
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn keys_that_nobody_means_are_found_with_their_line() {
        for (text, wanted) in [
            ("a: 1\nb: 2\na: 3\n", Some((3, "a"))),
            ("a: 1\na: 3\n", Some((2, "a"))),
            ("m:\n  o: {x: 1,\n    x: 2}\n", Some((3, "m.o.x"))),
            ("m:\n  - x: 1\n  - x: 2\n  - x: 3\n    x: 4\n", Some((5, "m.x"))),
            ("b: &b {x: 1}\nm:\n  o: {<<: *b}\n", Some((3, "m.o.<<"))),
            ("1.0: a\n1.00: b\n", None),
            ("models:\n  a: {}\n  a: {}\n", None),
            ("models:\n  a: {x: 1, x: 1}\n", Some((2, "models.a.x"))),
            ("b: &b {x: 1}\nc: *b\nd: *b\n", None),
            ("a: [\n", None),
            ("", None),
            ("? [a]\n: b\n", None),
        ] {
            let found = find(text).map(|problem| (problem.line.unwrap(), problem.key.unwrap()));
            assert_eq!(found.as_ref().map(|(line, key)| (*line, key.as_str())), wanted, "{text}");
        }
    }
}
