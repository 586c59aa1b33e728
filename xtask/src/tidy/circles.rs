//! Circles of imports inside a room of the host: a file can be read by itself only if what it imports does not import it back.
//!
//! An arrow is a path that begins with `super::` or `crate::`. It leads to the file that defines the name, also where a
//! `mod.rs` on the way only passes the name on. What a `mod.rs` says of its own files is their nesting and no arrow.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{code_only, words};
use super::{File, Finding};

/// Most files of one room that may import one another in a circle.
const CIRCLE_FILES_MAX: usize = 3;
/// Times that a name may be passed on by the way to its file.
const REEXPORTS_MAX: usize = 8;
/// Circles that are still there, each named by its first file. None may be added.
const EXCEPTIONS: &[&str] = &[];

const HOUSE: &str = "host/src/";

/// A path of modules, or of modules and a name at its end.
type Path = Vec<String>;

/// What one file says.
#[derive(Debug)]
struct Module<'a> {
    file: &'a str,
    /// Paths that lead out of it.
    paths: Vec<Path>,
    /// Names that it imports, which others may find there, and where they come from.
    imports: BTreeMap<String, Path>,
}

/// Checks all rooms.
pub(super) fn check(files: &[File]) -> Vec<Finding> {
    let house = files.iter().filter(|file| file.is_rust() && file.path.starts_with(HOUSE));
    let texts = house.filter_map(|file| Some((file.path.as_str(), code_only(file.text.as_deref()?))));
    judge(&circles(&texts.collect()), EXCEPTIONS)
}

fn judge(circles: &[Vec<String>], exceptions: &[&str]) -> Vec<Finding> {
    let is_large = |circle: &&Vec<String>| circle.len() > CIRCLE_FILES_MAX;
    let is_known = |circle: &&Vec<String>| exceptions.contains(&circle[0].as_str());
    let finding = |circle: &Vec<String>| {
        let sentence = format!(
            "{} files import one another in a circle; move what they share into a file of its own: {}",
            circle.len(),
            circle.join(", ")
        );
        Finding::new(&circle[0], 0, sentence)
    };
    let new = circles.iter().filter(is_large).filter(|circle| !is_known(circle)).map(finding);
    let known: Vec<&str> = circles.iter().filter(is_large).map(|circle| circle[0].as_str()).collect();
    let gone = exceptions.iter().filter(|file| !known.contains(file));
    let sentence = "it begins no large circle of imports any more; take it out of tidy's exceptions";
    new.chain(gone.map(|file| Finding::new(file, 0, sentence))).collect()
}

/// Files of one room that reach one another, for each set of them, in order.
fn circles(sources: &BTreeMap<&str, String>) -> Vec<Vec<String>> {
    let mut modules = BTreeMap::new();
    let mut test_modules = BTreeSet::new();
    for (file, code) in sources {
        let (at, code) = (module_of(file), without_tests(code));
        test_modules.extend(code.test_modules.into_iter().map(|name| [at.clone(), vec![name]].concat()));
        let inline = inline_modules(&code.text);
        let (paths, imports) = (paths(&code.text, &at, &inline), imports(&code.text, &at, &inline));
        modules.insert(at, Module { file, paths, imports });
    }
    modules.retain(|at, _| !test_modules.iter().any(|test| at.starts_with(test)));
    let arrows: BTreeMap<&Path, BTreeSet<&Path>> = modules
        .iter()
        .map(|(from, module)| {
            let targets = module.paths.iter().filter_map(|path| definition(path, &modules, REEXPORTS_MAX));
            (from, targets.filter(|to| !to.starts_with(from) && to[0] == from[0]).collect())
        })
        .collect();
    let reach: BTreeMap<&Path, BTreeSet<&Path>> = arrows.keys().map(|from| (*from, reached(from, &arrows))).collect();
    let mut found = BTreeSet::new();
    for from in arrows.keys() {
        let circle: Vec<String> =
            reach[from].iter().filter(|to| reach[*to].contains(*from)).map(|at| modules[*at].file.to_owned()).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

/// Everything that arrows lead to from here, over any number of files.
fn reached<'a>(from: &'a Path, arrows: &BTreeMap<&'a Path, BTreeSet<&'a Path>>) -> BTreeSet<&'a Path> {
    let (mut found, mut todo) = (BTreeSet::new(), vec![from]);
    while let Some(at) = todo.pop() {
        todo.extend(arrows[at].iter().filter(|to| found.insert(**to)));
    }
    found
}

/// `host/src/http/wire/mod.rs` is `http`, `wire`.
fn module_of(file: &str) -> Path {
    let inside = file.strip_prefix(HOUSE).unwrap_or(file).trim_end_matches(".rs");
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    inside.split('/').map(str::to_owned).collect()
}

/// The module in whose file the end of a path is defined.
fn definition<'a>(path: &Path, modules: &'a BTreeMap<Path, Module<'_>>, passes: usize) -> Option<&'a Path> {
    // The longest beginning that is a module.
    let (at, module) = (1..=path.len()).rev().find_map(|end| modules.get_key_value(&path[..end]))?;
    let rest = &path[at.len()..];
    match rest.first().and_then(|name| module.imports.get(name)) {
        Some(from) if passes > 0 => {
            let further = [from.as_slice(), &rest[1..]].concat();
            definition(&further, modules, passes - 1).or(Some(at))
        }
        _ => Some(at),
    }
}

/// Code without what is built for tests alone.
struct Untested {
    text: String,
    /// Modules in files of their own that are.
    test_modules: Vec<String>,
}

fn without_tests(code: &str) -> Untested {
    const MARK: &str = "#[cfg(test)]";
    let (mut text, mut test_modules) = (code.to_owned(), Vec::new());
    for (at, _) in code.match_indices(MARK) {
        let item = &code[at + MARK.len()..];
        let Some(end) = item.find(['{', ';']) else { continue };
        let length = if item[end..].starts_with('{') { end + braces(&item[end..]) } else { end + 1 };
        if let Some((_, name)) = item[..end].rsplit_once("mod ").filter(|_| item[end..].starts_with(';')) {
            test_modules.push(name.trim().to_owned());
        }
        let range = at..at + MARK.len() + length;
        let blank = code[range.clone()].chars().map(|c| if c == '\n' { "\n".into() } else { " ".repeat(c.len_utf8()) });
        text.replace_range(range, &blank.collect::<String>());
    }
    Untested { text, test_modules }
}

/// Bytes from an opening brace to the end of its partner.
fn braces(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Modules within the file: where each begins and ends, and its name.
fn inline_modules(code: &str) -> Vec<(usize, usize, String)> {
    let begins = words(code, "mod").filter_map(|at| {
        let (name, _) = code[at + 3..].split_once('{')?;
        let start = at + 3 + name.len();
        let name = name.trim();
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        is_name.then(|| (start, start + braces(&code[start..]), name.to_owned()))
    });
    begins.collect()
}

/// Every path that begins with `super` or `crate`, from the root of the crate on.
fn paths(code: &str, at: &Path, inline: &[(usize, usize, String)]) -> Vec<Path> {
    let mut found = Vec::new();
    for root in ["super", "crate"] {
        for start in words(code, root) {
            // The rest of a path that was seen at its beginning, a visibility, or a macro's own crate.
            if ["::", "(in ", "$"].iter().any(|before| code[..start].ends_with(before)) {
                continue;
            }
            if code[start + root.len()..].starts_with("::") {
                let base = base(at, inline, start);
                found.extend(expand(&code[start..]).into_iter().filter_map(|(path, _)| absolute(&path, &base)));
            }
        }
    }
    found
}

/// What each `use` brings, under the name it has here.
fn imports(code: &str, at: &Path, inline: &[(usize, usize, String)]) -> BTreeMap<String, Path> {
    let mut found = BTreeMap::new();
    for start in words(code, "use") {
        let base = base(at, inline, start);
        // A name in an inline module is not found in the file's own.
        if base != *at {
            continue;
        }
        for (path, alias) in expand(code[start + 3..].trim_start()) {
            let Some(name) = alias.or_else(|| path.last().cloned()) else { continue };
            let relative = || [base.as_slice(), &path].concat();
            found.insert(name, absolute(&path, &base).unwrap_or_else(relative));
        }
    }
    // What is imported from another crate keeps the name of a path that leads nowhere.
    found
}

fn base(at: &Path, inline: &[(usize, usize, String)], offset: usize) -> Path {
    let around = inline.iter().filter(|(start, end, _)| (*start..*end).contains(&offset));
    at.iter().cloned().chain(around.map(|(_, _, name)| name.clone())).collect()
}

/// A path without its `crate`, `self` and `super`; `None` if it begins with none of them.
fn absolute(path: &[String], base: &Path) -> Option<Path> {
    let mut segments = path.iter().peekable();
    let mut at = match segments.next()?.as_str() {
        "crate" => Vec::new(),
        "self" => base.clone(),
        "super" => base[..base.len().checked_sub(1)?].to_vec(),
        _ => return None,
    };
    while segments.next_if(|segment| *segment == "super").is_some() {
        at.pop()?;
    }
    at.extend(segments.filter(|segment| *segment != "self").cloned());
    Some(at)
}

/// The paths of `a::{b, c::d as e}`, each with the name it is given.
fn expand(code: &str) -> Vec<(Path, Option<String>)> {
    let mut path = Vec::new();
    let mut rest = code;
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            let inside = &group[..braces(rest).saturating_sub(2).min(group.len())];
            let parts = split(inside).into_iter().filter(|part| !part.trim().is_empty());
            let inner = parts.flat_map(|part| expand(part.trim_start()));
            return inner.map(|(end, alias)| ([path.as_slice(), &end].concat(), alias)).collect();
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if end > 0 {
            path.push(rest[..end].to_owned());
        }
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(further) if end > 0 => rest = further,
            _ => break,
        }
    }
    if path.len() > 1 && path.last().is_some_and(|segment| segment == "self") {
        path.pop();
    }
    let alias = rest.trim_start().strip_prefix("as ").map(str::trim_start);
    let alias = alias.map(|name| name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default());
    vec![(path, alias.map(str::to_owned))]
}

/// The parts of a group between its own commas.
fn split(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::{circles, judge};

    fn found(sources: &[(&str, &str)]) -> Vec<Vec<String>> {
        let sources = sources.iter().map(|(name, code)| (format!("host/src/r/{name}.rs"), (*code).to_owned()));
        let sources: Vec<_> = sources.collect();
        circles(&sources.iter().map(|(file, code)| (file.as_str(), code.clone())).collect())
    }

    fn names(circle: &[String]) -> Vec<&str> {
        circle.iter().map(|file| file.trim_start_matches("host/src/r/").trim_end_matches(".rs")).collect()
    }

    #[test]
    fn a_circle_is_found_in_every_form_of_a_path() {
        for back in [
            "use super::a;",
            "use super::a::A;",
            "use super::{x, a::{A, B}};",
            "use crate::r::{a};",
            "fn f() { super::a::f() }",
            "fn f(x: crate::r::a::A) {}",
            "pub(super) use super::a::A;",
            "mod inner { use super::super::a::A; }",
        ] {
            let circles = found(&[("mod", "mod a; mod b; mod x;"), ("a", "use super::b::B;"), ("b", back), ("x", "")]);
            assert_eq!(circles.iter().map(|circle| names(circle)).collect::<Vec<_>>(), [["a", "b"]], "{back}");
        }
    }

    #[test]
    fn what_is_no_arrow_is_no_circle() {
        for (a, b) in [
            ("use super::b::B;", "#[cfg(test)]\nmod tests { use super::super::a::A; }"),
            ("use super::b::B;", "pub(super) fn a() {}"),
            ("use super::b::B;", "use other::a::A;"),
            ("use super::b::B;", "use super::c::a;"),
            ("use super::b::B;", "mod inner { use super::a::A; }"),
            ("use super::b::B;", "$crate::r::a!()"),
            ("use super::b::B;", "pub(in crate::r::a) fn b() {}"),
        ] {
            assert_eq!(found(&[("mod", "mod a; mod b; mod c;"), ("a", a), ("b", b), ("c", "")]), [[""; 0]; 0], "{b}");
        }
        let tests = [
            ("mod", "#[cfg(test)]\nmod tests;\nmod a;"),
            ("a", "use super::tests::T;"),
            ("tests/mod", "use super::a::A;"),
        ];
        assert_eq!(found(&tests), [[""; 0]; 0]);
    }

    #[test]
    fn a_name_that_is_passed_on_leads_to_its_own_file() {
        let facade = "pub(super) use b::{B, C as D}; pub use b::e;";
        for (a, is_circle) in [("B", true), ("D", true), ("e::E", true), ("C", false), ("Own", false)] {
            let a = format!("use super::{a};");
            let circles = found(&[
                ("mod", facade),
                ("a", &a),
                ("b/mod", "use super::a::A; mod e;"),
                ("b/e", "use crate::r::a::A;"),
            ]);
            assert_eq!(!circles.is_empty(), is_circle, "{a}: {circles:?}");
        }
    }

    #[test]
    fn three_files_may_and_four_may_not() {
        let ring = |count: usize| {
            let file = |at: usize| (format!("f{at}"), format!("use super::f{}::X;", (at + 1) % count));
            let files: Vec<_> = (0..count).map(file).collect();
            found(&files.iter().map(|(name, code)| (name.as_str(), code.as_str())).collect::<Vec<_>>())
        };
        assert_eq!(judge(&ring(3), &[]), []);
        assert_eq!(judge(&ring(4), &["host/src/r/f0.rs"]), []);
        assert_eq!(judge(&ring(3), &["host/src/r/f0.rs"]).len(), 1, "an exception without a circle");
        let found = judge(&ring(4), &[]);
        assert_eq!(found.len(), 1);
        assert!(found[0].sentence.contains("4 files") && found[0].sentence.contains("f3.rs"), "{}", found[0].sentence);
    }
}
