//! Assembles whole characters from token bytes: a character may be spread over several tokens.

/// Holds back an incomplete character; invalid bytes become U+FFFD. One that is incomplete when no more bytes come is no text.
#[derive(Clone, Debug, Default)]
pub struct Utf8Assembler {
    pending: Vec<u8>,
}

impl Utf8Assembler {
    /// Takes bytes, returns the characters that are whole now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(text) => {
                    out.push_str(text);
                    self.pending.clear();
                    return out;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    match error.error_len() {
                        Some(bad) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            self.pending.drain(..valid + bad);
                        }
                        None => {
                            self.pending.drain(..valid);
                            return out;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Utf8Assembler;

    /// Whether more bytes could make a character of these.
    fn is_beginning(bytes: &[u8]) -> bool {
        std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_whole_characters(bytes in prop::collection::vec(any::<u8>(), 0..64), cuts in prop::collection::vec(1usize..5, 0..64)) {
            let mut assembler = Utf8Assembler::default();
            let (mut out, mut rest) = (String::new(), bytes.as_slice());
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                out += &assembler.push(head);
                rest = tail;
            }
            out += &assembler.push(rest);
            let whole = String::from_utf8_lossy(&bytes);
            let is_cut = bytes.utf8_chunks().last().is_some_and(|last| is_beginning(last.invalid()));
            let wanted = if is_cut { whole.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or_default() } else { &whole };
            prop_assert_eq!(out, wanted);
        }
    }
}
