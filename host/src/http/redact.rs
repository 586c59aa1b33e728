//! What clients are not shown of a sentence that was written for operators: where things lie on this machine, and what in a
//! URL may be a password.

use std::borrow::Cow;

use crate::config::shown_url;

/// The end of a path that was cut.
const CUT: &str = "…/";

/// The sentence with the name of a file or folder in place of every absolute path, and URLs without user and query.
pub(super) fn for_clients(text: &str) -> Cow<'_, str> {
    if !text.contains('/') {
        return Cow::Borrowed(text);
    }
    let words: String = without_folders(text).split_inclusive(ends_word).map(without_password).collect();
    Cow::Owned(words)
}

/// A word, and what ends it.
fn without_password(word: &str) -> Cow<'_, str> {
    match word.contains("://") {
        true => {
            let (url, end) = word.split_at(word.trim_end_matches(ends_word).len());
            Cow::Owned(shown_url(url) + end)
        }
        false => Cow::Borrowed(word),
    }
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || "`'\"()[]{}<>,;|".contains(c)
}

fn without_folders(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = begin_of_path(rest) {
        let (before, path) = rest.split_at(begin);
        let (path, after) = path.split_at(end_of_path(path, before));
        out.push_str(before);
        out.push_str(&name_of(path));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Where the next absolute path begins: with a slash that no word goes on into.
fn begin_of_path(text: &str) -> Option<usize> {
    text.match_indices('/').map(|(at, _)| at).find(|&at| {
        let before = text[..at].chars().next_back();
        before.is_none_or(|c| {
            c.is_whitespace() || "`'\"([{<>=,;|".contains(c) || (c == ':' && !text[at..].starts_with("//"))
        })
    })
}

/// Where a path ends: at the quote that closes what it began behind, else with its word. A word that a later slash belongs to
/// is the rest of a name with a space in it.
fn end_of_path(path: &str, before: &str) -> usize {
    let quote = before.chars().next_back().filter(|c| "`'\"".contains(*c));
    if let Some(end) = quote.and_then(|quote| path.find(quote)) {
        return end;
    }
    let mut end = path.find(ends_word).unwrap_or(path.len());
    while let Some(next) = path[end..].strip_prefix(' ') {
        let word = &next[..next.find(ends_word).unwrap_or(next.len())];
        let goes_on = !path[..end].ends_with([':', ',', '.']);
        let is_rest = goes_on && word.find('/').is_some_and(|at| at > 0 && !word[..at].ends_with(':'));
        if !is_rest {
            break;
        }
        end += 1 + word.len();
    }
    // A sentence goes on behind it.
    path[..end].trim_end_matches([':', '.', ',', '?', '!']).len()
}

/// What is shown of a path.
fn name_of(path: &str) -> Cow<'_, str> {
    match path.trim_end_matches('/').rsplit_once('/') {
        // Below the root there is no folder to hide.
        None | Some(("", _)) => Cow::Borrowed(path),
        Some((_, name)) => Cow::Owned(format!("{CUT}{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::for_clients;

    #[test]
    fn no_folder_of_this_machine_is_shown() {
        for (text, shown) in [
            ("its file /workspace/models/a/x.gguf is not there", "its file …/x.gguf is not there"),
            ("/srv/m/x.gguf: bad magic", "…/x.gguf: bad magic"),
            ("cannot open `/srv/my models/x.gguf`.", "cannot open `…/x.gguf`."),
            ("cannot open /home/bob smith/models/x.gguf now", "cannot open …/x.gguf now"),
            ("(No such file: \"/a/b\")", "(No such file: \"…/b\")"),
            ("path=/a/b, other:/c/d;", "path=…/b, other:…/d;"),
            ("no plugin in /opt/plugins/, or /opt/more", "no plugin in …/plugins, or …/more"),
            ("/a/b/models.yaml:12: x", "…/models.yaml:12: x"),
            ("Os { path: /a/b }, [/c/d] </e/f>", "Os { path: …/b }, […/d] <…/f>"),
            ("unclosed `/a/b c", "unclosed `…/b c"),
            ("see https://h.example/a/b and file.txt", "see https://h.example/a/b and file.txt"),
            ("/srv/x.gguf: see docs/a.md", "…/x.gguf: see docs/a.md"),
            ("libx.so => /lib/x.so ->/lib/y", "libx.so => …/x.so ->…/y"),
            (
                "cannot ask https://user:pa55@h/a?token=pa55, or (http://pa55@h)",
                "cannot ask https://h/a, or (http://h)",
            ),
            ("3 tokens/s, and/or org/name", "3 tokens/s, and/or org/name"),
            ("/ and /etc stay", "/ and /etc stay"),
            ("", ""),
            ("ünïcode /ä/ö ß", "ünïcode …/ö ß"),
        ] {
            assert_eq!(for_clients(text), shown);
        }
    }

    #[test]
    fn what_others_wrote_takes_time_in_proportion() {
        for piece in ["/", "/a", " /a/b", "`/", "/a a", "a/", ":/", "://"] {
            let text = piece.repeat((1 << 20) / piece.len());
            assert!(for_clients(&text).len() <= 2 * text.len(), "{piece}");
        }
    }
}
