//! An entry put into the text of a models.yaml, or taken out of it, with everything else of the text left as it is. Lines are
//! counted, not understood: whoever calls has the host's own reader compare what came of it.

use std::ops::Range;

/// What is to be done where this is not.
const BY_HAND: &str = "write it as a block, an entry below the other, or edit it by hand";

/// The list of models in a text, as far as lines tell it.
struct Block {
    /// The lines of its entries, with what stands around and between them.
    body: Range<usize>,
    /// Columns before an entry.
    indent: usize,
    /// Whether entries are elements of a list, which have a `name:`.
    is_list: bool,
}

/// The text with an entry at the end of its models. The entry is given as lines with two columns before its name, as a mapping.
///
/// # Errors
/// Why it cannot be put in, as a sentence.
pub(super) fn insert(text: &str, entry: &str) -> Result<String, String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let Some(head) = head(&lines) else {
        let gap = if text.trim().is_empty() { "" } else { "\n" };
        return Ok(format!("{}{gap}{}", ended(text), like(text, &format!("models:\n{entry}"))));
    };
    let (before, value, after) = value(lines[head]);
    if !value.is_empty() && !is_nothing(value) {
        return Err(format!("its `models:` stands on one line; {BY_HAND}"));
    }
    if is_nothing(value) {
        // A comment behind it is kept where it is.
        let rest =
            if after.trim().is_empty() { "\n".to_owned() } else { format!("   {}", after.trim_start_matches(' ')) };
        let whole = [
            lines[..head].concat(),
            format!("{before}{}", ended(&rest)),
            like(text, entry),
            lines[head + 1..].concat(),
        ];
        return Ok(whole.concat());
    }
    let block = block(&lines, head);
    let end = block.body.end;
    let inside = &lines[block.body.clone()];
    let entry = block.shifted(entry);
    let is_spaced = inside.iter().any(|line| line.trim().is_empty());
    let gap = if is_spaced { "\n" } else { "" };
    let above = lines[..end].concat();
    Ok([ended(&above), like(text, &format!("{gap}{entry}")), lines[end..].concat()].concat())
}

/// The text without the entry of this name, and without the comment that stands right above it.
///
/// # Errors
/// Why it cannot be taken out, as a sentence.
pub(super) fn remove(text: &str, name: &str) -> Result<String, String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let head = head(&lines).ok_or("it has no `models:`")?;
    if !value(lines[head]).1.is_empty() {
        return Err(format!("its `models:` stands on one line; {BY_HAND}"));
    }
    let block = block(&lines, head);
    let starts: Vec<usize> = block.body.clone().filter(|line| block.begins(lines[*line])).collect();
    let found = starts.iter().position(|start| {
        let next = starts.iter().find(|other| *other > start).copied().unwrap_or(block.body.end);
        block.is_called(&lines[*start..next], name)
    });
    let found = found.ok_or_else(|| format!("the line of `{name}` was not found; {BY_HAND}"))?;
    let above = |start: usize| {
        let is_comment = |line: &usize| lines[*line].trim_start().starts_with('#');
        start - (block.body.start..start).rev().take_while(is_comment).count()
    };
    let from = above(starts[found]);
    let next = starts.get(found + 1).map_or(block.body.end, |next| above(*next));
    // What is commented out further below, at the place of an entry, is none of it.
    let is_its = |line: &usize| {
        let line = lines[*line];
        !line.trim().is_empty() && indent(line) > block.indent
    };
    let last = (starts[found] + 1..next).rev().find(is_its).unwrap_or(starts[found]);
    let is_last = starts.len() == 1;
    let mut to = last + 1;
    // Of the empty lines around it one is enough.
    let is_empty = |line: usize| lines.get(line).is_some_and(|line| line.trim().is_empty());
    if to < block.body.end && is_empty(to) && (from == block.body.start || is_empty(from - 1)) {
        to += 1;
    }
    let mut above = lines[..from].concat();
    if is_last {
        let line = lines[head].trim_end();
        let (key, rest) = line.split_at(line.find(':').map_or(line.len(), |at| at + 1));
        let nothing = if block.is_list { "[]" } else { "{}" };
        let rest = if rest.is_empty() { String::new() } else { format!(" {rest}") };
        above =
            [lines[..head].concat(), like(text, &format!("{key} {nothing}{rest}\n")), lines[head + 1..from].concat()]
                .concat();
    }
    Ok(above + &lines[to..].concat())
}

impl Block {
    /// Whether an entry begins on this line.
    fn begins(&self, line: &str) -> bool {
        let word = line.trim_start();
        let is_element = word.starts_with("- ") || word.trim_end() == "-";
        indent(line) == self.indent && !word.starts_with('#') && !word.trim().is_empty() && is_element == self.is_list
    }

    /// The lines of an entry, as they stand here.
    fn shifted(&self, entry: &str) -> String {
        let pad = " ".repeat(self.indent);
        let mut is_named = false;
        let line = |line: &str| {
            let inner = line.strip_prefix("  ").unwrap_or(line).trim_end();
            if self.is_list && !is_named && !inner.starts_with([' ', '#']) && !inner.is_empty() {
                is_named = true;
                return format!("{pad}- name: {}\n", inner.trim_end_matches(':'));
            }
            if inner.is_empty() { "\n".to_owned() } else { format!("{pad}{inner}\n") }
        };
        entry.lines().map(line).collect()
    }

    /// Whether these lines are the entry of this name.
    fn is_called(&self, lines: &[&str], name: &str) -> bool {
        let is_key = |line: &str, key: &str| {
            let quoted = [key.to_owned(), format!("\"{key}\""), format!("'{key}'")];
            quoted
                .iter()
                .any(|key| line.strip_prefix(key.as_str()).is_some_and(|rest| rest.trim_start().starts_with(':')))
        };
        if !self.is_list {
            return lines.first().is_some_and(|line| is_key(line.trim_start(), name));
        }
        lines.iter().any(|line| {
            let line = line.trim_start().trim_start_matches("- ").trim_start();
            let value = line.strip_prefix("name:").map(|value| value.split(" #").next().unwrap_or(value).trim());
            value.is_some_and(|value| value.trim_matches(['"', '\'']) == name)
        })
    }
}

/// The line of the key `models:` itself.
fn head(lines: &[&str]) -> Option<usize> {
    lines.iter().position(|line| {
        let line = line.strip_prefix('\u{feff}').unwrap_or(line);
        ["models", "\"models\"", "'models'"]
            .iter()
            .any(|key| line.strip_prefix(key).is_some_and(|rest| rest.trim_start_matches(' ').starts_with(':')))
    })
}

/// A line as the key with its colon, what stands behind it, and a comment behind that.
fn value(line: &str) -> (&str, &str, &str) {
    let (key, rest) = line.split_at(line.find(':').map_or(line.len(), |at| at + 1));
    let comment = if rest.trim_start().starts_with('#') { Some(0) } else { rest.find(" #") };
    let (value, comment) = rest.split_at(comment.unwrap_or(rest.len()));
    (key, value.trim(), comment)
}

fn is_nothing(value: &str) -> bool {
    let value: String = value.chars().filter(|c| *c != ' ').collect();
    ["{}", "[]", "null", "~"].contains(&value.as_str())
}

fn block(lines: &[&str], head: usize) -> Block {
    let mut block = Block { body: head + 1..head + 1, indent: 2, is_list: false };
    let mut seen = false;
    for (number, line) in lines.iter().enumerate().skip(head + 1) {
        let word = line.trim();
        let columns = indent(line);
        if word.is_empty() || (columns == 0 && word.starts_with('#')) {
            continue;
        }
        let is_element = word.starts_with("- ") || word == "-";
        // The elements of a list may stand below their key itself.
        let is_inside = columns > 0 || (is_element && (!seen || block.is_list && block.indent == 0));
        if !is_inside {
            break;
        }
        if !seen && !word.starts_with('#') {
            seen = true;
            (block.indent, block.is_list) = (columns, is_element);
        }
        block.body.end = number + 1;
    }
    block
}

/// The text with the line ends that another has.
fn like(other: &str, text: &str) -> String {
    if other.contains("\r\n") { text.replace('\n', "\r\n") } else { text.to_owned() }
}

/// The text with an end to its last line.
fn ended(text: &str) -> String {
    match text.is_empty() || text.ends_with('\n') {
        true => text.to_owned(),
        false => format!("{text}{}", like(text, "\n")),
    }
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Env, Selection, parse};

    const ENTRY: &str = "  # said of it\n  new:\n    type: text\n    plugin: p\n    options:\n      a: 1\n";

    /// The names of the models, in order, as the host's own reader has them.
    fn names(text: &str) -> Vec<String> {
        let config = parse(text, Path::new("/m.yaml"), &Selection::default(), &Env::default());
        config.unwrap_or_else(|error| panic!("{error}\n{text}")).models.into_keys().map(|id| id.to_string()).collect()
    }

    /// Everything before the place and everything behind it is as it was.
    fn check(before: &str, others: &[&str]) {
        let after = insert(before, ENTRY).unwrap_or_else(|why| panic!("{why}: {before}"));
        let mut wanted: Vec<&str> = others.iter().copied().chain(["new"]).collect();
        wanted.sort_unstable();
        assert_eq!(names(&after), wanted, "{after}");
        let mut left = after.lines().filter(|line| !line.contains("said of it"));
        for line in before.lines().filter(|line| !line.starts_with("models:")) {
            assert!(left.any(|other| other.trim_end() == line.trim_end()), "`{line}` is lost: {after}");
        }
        assert!(after.contains("# said of it"), "{after}");
        let again = remove(&after, "new").unwrap_or_else(|why| panic!("{why}: {after}"));
        assert_eq!(names(&again), others, "{again}");
        assert!(!again.contains("said of it"), "{again}");
    }

    #[test]
    fn an_entry_goes_to_the_end_and_comes_out_again() {
        let a = "a: {type: text, plugin: p}";
        for (text, others) in [
            (String::new(), &[][..]),
            ("# nothing but a comment\n".to_owned(), &[]),
            ("listen: 127.0.0.1:9\n".to_owned(), &[]),
            ("models:\n".to_owned(), &[]),
            ("models: {}   # in place of {}:\n  # a: {type: text}\n".to_owned(), &[]),
            ("models: null\nlisten: 127.0.0.1:9\n".to_owned(), &[]),
            (format!("models:\n  {a}\n"), &["a"]),
            (format!("models:\n  {a}"), &["a"]),
            (format!("models: # all\n    {a}  # one\n\n    # out: x\n\n# of the file\nlisten: 127.0.0.1:9\n"), &["a"]),
            (format!("models:\n {a}\n\n # above b\n b:\n  type: text\n  plugin: p\ndefaults:\n  max_wait: 1s\n"), &["a", "b"]),
            ("models:\n- name: a\n  type: text\n  plugin: p\nlisten: 127.0.0.1:9\n".to_owned(), &["a"]),
            ("models:\n  - type: text\n    name: 'a' # x\n    plugin: p\n\n".to_owned(), &["a"]),
            (format!("listen: 127.0.0.1:9\r\n'models':\r\n  {a}\r\ndefaults:\r\n  max_wait: 1s\r\n"), &["a"]),
            ("models:\n  a:\n    type: text\n    plugin: p\n    options:\n      x: |\n        # no comment\n\n        models:\n".to_owned(), &["a"]),
        ] {
            check(&text, others);
        }
    }

    #[test]
    fn line_ends_and_gaps_are_those_of_the_file() {
        let windows = insert("models:\r\n  a: {type: text, plugin: p}\r\n", ENTRY).unwrap();
        assert_eq!(windows.matches('\n').count(), windows.matches("\r\n").count());
        let spaced = insert("models:\n  a: {type: text, plugin: p}\n\n  b: {type: text, plugin: p}\n", ENTRY).unwrap();
        assert!(spaced.contains("plugin: p}\n\n  # said of it"), "{spaced}");
    }

    #[test]
    fn what_is_taken_out_is_one_entry_with_its_comment() {
        let text = "models:\n  # of a\n  a:\n    type: text\n    plugin: p\n    # of a too\n\n  # of b\n  b: {type: text, plugin: p}\n\n  # c: {type: text}\n";
        assert_eq!(
            remove(text, "a").unwrap(),
            "models:\n  # of b\n  b: {type: text, plugin: p}\n\n  # c: {type: text}\n"
        );
        let without_b = remove(text, "b").unwrap();
        assert!(
            without_b.contains("# of a too") && !without_b.contains("of b") && without_b.contains("# c:"),
            "{without_b}"
        );
        let none = remove(&without_b, "a").unwrap();
        assert_eq!(names(&none), [""; 0]);
        assert!(none.starts_with("models: {}\n") && none.contains("# c:"), "{none}");
    }

    #[test]
    fn what_lines_cannot_tell_is_refused() {
        let text = "models: {a: {type: text, plugin: p}}\n";
        for told in [insert(text, ENTRY).unwrap_err(), remove(text, "a").unwrap_err()] {
            assert!(told.contains("stands on one line") && told.contains("by hand"), "{told}");
        }
        let anchored = "models: &all\n  a: {type: text, plugin: p}\n";
        assert!(insert(anchored, ENTRY).is_err());
        assert!(remove("models:\n  a: {type: text, plugin: p}\n", "b").is_err());
    }
}
