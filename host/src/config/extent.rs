//! How much a YAML text holds once its aliases are followed: a few lines can repeat one another into gigabytes. A walk that
//! keeps nothing finds out before anything is built.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Values that a file may hold beyond one for each of its bytes, which no text comes near without aliases.
const REPEATED_MAX: usize = 100_000;

/// Bytes of a text that weigh as much as a value.
const BYTES_PER_VALUE: usize = 64;

/// Whether aliases make far more of the text than it says. False for a text that is wrong in another way.
pub(super) fn is_too_much(text: &str) -> bool {
    // Without both there is no alias.
    if !(text.contains('&') && text.contains('*')) {
        return false;
    }
    let left = Cell::new(text.len().saturating_add(REPEATED_MAX));
    Walk(&left).deserialize(serde_yaml::Deserializer::from_str(text)).is_err() && left.get() == 0
}

/// Counts down for each value, and fails when there are too many.
#[derive(Clone, Copy)]
struct Walk<'a>(&'a Cell<usize>);

impl Walk<'_> {
    fn count<E: Error>(self) -> Result<(), E> {
        let left = self.0.get().checked_sub(1).ok_or_else(|| E::custom("too much"))?;
        self.0.set(left);
        Ok(())
    }
}

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
        self.count()?;
        while map.next_entry_seed(self, self)?.is_some() {}
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.count()?;
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        // A long text that is repeated counts by its length.
        let more = text.len() / BYTES_PER_VALUE;
        self.0.set(self.0.get().saturating_sub(more));
        self.count()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.count()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.count()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.count()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.count()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.count()
    }
}

#[cfg(test)]
mod tests {
    use super::is_too_much;

    #[test]
    fn what_is_repeated_counts_each_time() {
        let list = |count: usize, item: &str| vec![item; count].join(", ");
        for (wanted, text) in [
            (false, "a: &x {k: 1}\nb: *x\nc: '*'\n".to_owned()),
            (false, format!("a: &x [{}]\nb: [{}]\n", list(100, "1"), list(100, "*x"))),
            (true, format!("a: &x [{}]\nb: [{}]\n", list(10_000, "1"), list(10_000, "*x"))),
            (true, format!("a: &x '{}'\nb: [{}]\n", "x".repeat(100_000), list(10_000, "*x"))),
            // Large, and as large as it says.
            (false, format!("a: &x 1\nb: [{}]\nc: *x\n", list(200_000, "1"))),
            (false, "a: &x [\n*".to_owned()),
        ] {
            assert_eq!(is_too_much(&text), wanted, "{:.60}", text);
        }
    }

    #[test]
    fn a_bomb_of_bombs_is_too_much() {
        let mut text = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let below = vec![format!("*l{}", level - 1); 10].join(", ");
            text += &format!("l{level}: &l{level} [{below}]\n");
        }
        assert!(is_too_much(&text) || crate::config::raw::parse(&text).is_err());
    }
}
