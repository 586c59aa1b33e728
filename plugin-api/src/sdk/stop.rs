//! Stop strings: the text ends before the first of them, wherever token borders fall.

/// Holds back text that may yet become a stop string.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    /// With their places in the request.
    stops: Vec<(usize, String)>,
    held: String,
    matched: Option<usize>,
}

impl StopMatcher {
    /// Empty stop strings are ignored.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().cloned().enumerate().filter(|(_, stop)| !stop.is_empty());
        Self { stops: stops.collect(), ..Self::default() }
    }

    /// Takes text, returns what can be shown now.
    pub fn push(&mut self, text: &str) -> String {
        if self.matched() {
            return String::new();
        }
        self.held.push_str(text);
        let places =
            self.stops.iter().enumerate().filter_map(|(i, (_, stop))| Some((self.held.find(stop.as_str())?, i)));
        if let Some((at, which)) = places.min() {
            self.matched = Some(self.stops[which].0);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|(_, stop)| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, where something else than text follows.
    pub fn release(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// What was held back, once no more text comes.
    pub fn finish(&mut self) -> String {
        if self.matched() { String::new() } else { std::mem::take(&mut self.held) }
    }

    /// Whether a stop string was found.
    pub fn matched(&self) -> bool {
        self.matched.is_some()
    }

    /// Which of them was found, counted from 0.
    pub fn which(&self) -> Option<u32> {
        self.matched.and_then(|which| u32::try_from(which).ok())
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::StopMatcher;

    proptest! {
        #[test]
        fn ends_before_the_first_stop(text in "[abé]{0,24}", stops in prop::collection::vec("[abé]{1,4}", 0..3), sizes in prop::collection::vec(1usize..4, 0..24)) {
            let mut matcher = StopMatcher::new(&stops);
            let chars: Vec<char> = text.chars().collect();
            let (mut out, mut at) = (String::new(), 0);
            for size in sizes.into_iter().chain(std::iter::repeat(1)) {
                if at >= chars.len() { break; }
                let end = (at + size).min(chars.len());
                out += &matcher.push(&chars[at..end].iter().collect::<String>());
                at = end;
            }
            out += &matcher.finish();
            // The earliest end of any stop decides when the matcher stops; its text is cut at the earliest start seen by then.
            if stops.iter().all(|stop| !text.contains(stop.as_str())) {
                prop_assert_eq!(out, text);
                prop_assert!(!matcher.matched());
            } else {
                prop_assert!(matcher.matched());
                prop_assert!(text.starts_with(&out));
                prop_assert!(stops.iter().all(|stop| !out.contains(stop.as_str())));
                prop_assert!(stops.iter().any(|stop| text[out.len()..].starts_with(stop.as_str())));
            }
        }
    }

    #[test]
    fn holds_back_only_what_may_match() {
        let mut matcher = StopMatcher::new(&["\nUser:".into()]);
        assert_eq!(matcher.push("hi\nUs"), "hi");
        assert_eq!(matcher.push("e it"), "\nUse it");
        assert_eq!(matcher.push("\nUser: x"), "");
        assert!(matcher.matched());
    }
}
