//! `tokenizer.json`: it is refused, or it turns any text into tokens at a bounded price.

use aihost_support::tokens;

use super::files::Folder;

/// What is put into tokens: words, numbers, signs, other scripts, what is no text at all.
const TEXTS: [&str; 5] = [
    "",
    "A photograph of a cat, 35 mm, f/1.8.",
    "  a\u{a0}b\u{3000}c\r\n\t'S 12345 ...",
    "Größe 漢字 かな हिन्दी \u{1f469}\u{200d}\u{1f52c} e\u{301} \u{feff}\u{0}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
];

/// Reads the input as tokenizer.json.
pub(super) fn run(input: &[u8]) {
    let folder = Folder::new();
    let path = folder.write("tokenizer.json", input);
    let Ok(tokenizer) = tokens::open(&path, "one is needed") else { return };
    for text in TEXTS {
        let _ = tokens::encode(&tokenizer, text);
    }
}
