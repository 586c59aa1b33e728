//! What the texts of a manifest may be. Asked twice: while a plugin is compiled, hence `const`, and when its file is read.

/// Most bytes of an id.
pub const ID_BYTES: usize = 128;
/// Most bytes of a version, and of each name in a list.
pub const NAME_BYTES: usize = 64;
/// Most names in a list.
pub const NAMES_MAX: usize = 32;
/// Most bytes of what is for people.
pub const PROSE_BYTES: usize = 4096;

/// Whether a text is `name` or `vendor/name`, of at most [`ID_BYTES`].
pub const fn is_id(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() > ID_BYTES {
        return false;
    }
    let mut at = 0;
    while at < bytes.len() && bytes[at] != b'/' {
        at += 1;
    }
    let (vendor, rest) = bytes.split_at(at);
    match rest {
        [] => are_name_bytes(vendor),
        [_slash, name @ ..] => are_name_bytes(vendor) && are_name_bytes(name),
    }
}

/// Whether a text is a name of at most [`NAME_BYTES`]: in a-z, 0-9, `-`, `_`, `.`, a letter or digit first.
pub const fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES && are_name_bytes(text.as_bytes())
}

const fn are_name_bytes(bytes: &[u8]) -> bool {
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'a'..=b'z' | b'0'..=b'9' => {}
            b'-' | b'_' | b'.' if i > 0 => {}
            _ => return false,
        }
        i += 1;
    }
    !bytes.is_empty()
}

/// Whether a text is one line of at most [`PROSE_BYTES`] that may be printed in any terminal: no control character, and
/// nothing invisible that changes the reading direction (U+200E, U+200F, U+2028 to U+202E, U+2066 to U+2069).
pub const fn is_prose(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let steers = match bytes[i] {
            0..0x20 | 0x7f => true,
            // U+0080 to U+009F. A byte that begins a character has all of it after it: the text is UTF-8.
            0xc2 => matches!(bytes[i + 1], 0x80..=0x9f),
            0xe2 => matches!((bytes[i + 1], bytes[i + 2]), (0x80, 0x8e | 0x8f | 0xa8..=0xae) | (0x81, 0xa6..=0xa9)),
            _ => false,
        };
        if steers {
            return false;
        }
        i += 1;
    }
    bytes.len() <= PROSE_BYTES
}

#[cfg(test)]
mod tests {
    use super::is_prose;

    #[test]
    fn prose_is_judged_by_characters() {
        for c in '\0'..=char::MAX {
            let steers = c.is_control()
                || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            assert_eq!(is_prose(&format!("a{c}")), !steers, "{c:?}");
        }
    }
}
