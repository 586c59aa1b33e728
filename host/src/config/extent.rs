//! What a YAML text costs to read, found out before anything is built: a few lines can repeat one another into gigabytes by
//! their aliases, and the parser keeps hundreds of bytes for each bracket that is open, and looks at all of them with each token.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Values that a file may hold beyond one for each of its bytes, which no text comes near without aliases.
const REPEATED_MAX: usize = 100_000;

/// Bytes of a text that weigh as much as a value.
const BYTES_PER_VALUE: usize = 64;

/// Brackets that may be open at once, and dashes that may open lists in one line. A models.yaml needs less than ten.
const OPEN_MAX: usize = 500;

/// The line in which far more is opened than anyone means, counted from 1. Texts in quotes and comments do not count, and where
/// it is misled by a quote in a text of several lines it lets too much pass, not too little.
pub(super) fn opens_too_much(text: &str) -> Option<usize> {
    let mut open = 0_usize;
    let mut quote = None;
    for (number, line) in text.lines().enumerate() {
        let dashes = line.split_ascii_whitespace().take_while(|word| matches!(*word, "-" | "?")).count();
        if quote.is_none() && dashes > OPEN_MAX {
            return Some(number + 1);
        }
        let mut before = ' ';
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            match (quote, character) {
                (Some('"'), '\\') => drop(characters.next()),
                (Some(inside), _) if inside == character => quote = None,
                (None, '#') if before.is_whitespace() => break,
                (None, '"' | '\'') if before.is_whitespace() || "[{,".contains(before) => quote = Some(character),
                (None, '[' | '{') => open += 1,
                (None, ']' | '}') => open = open.saturating_sub(1),
                _ => {}
            }
            before = character;
        }
        if open > OPEN_MAX {
            return Some(number + 1);
        }
    }
    None
}

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
    use super::{OPEN_MAX, is_too_much, opens_too_much};

    #[test]
    fn what_is_opened_and_never_closed_is_found_by_its_line() {
        for (wanted, text) in [
            (Some(2), format!("models:\n  a: {}", "[".repeat(10_000))),
            (Some(1), "{a: ".repeat(10_000)),
            (Some(OPEN_MAX + 1), "a: [\n".repeat(10_000)),
            (Some(OPEN_MAX + 1), "[ # ]\n".repeat(10_000)),
            (Some(OPEN_MAX + 1), "[ ']', \"]\",\n".repeat(10_000)),
            (Some(1), "- ".repeat(10_000)),
            (Some(1), "  ? - ".repeat(10_000)),
            (None, "- [{a: 1}, {b: ']'}]\n".repeat(10_000)),
            (None, format!("a: '{}'\n", "[".repeat(10_000))),
            (None, format!("# {}\n", "[".repeat(10_000))),
            (None, format!("a: \"\\\"{}\"\n", "[".repeat(10_000))),
            (None, "a: |\n  {% if x %}{{ don't }}{% endif %}\n".repeat(10_000)),
        ] {
            assert_eq!(opens_too_much(&text), wanted, "{text:.60}");
        }
    }

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
