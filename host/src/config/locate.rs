//! Finds the lines of keys in a YAML text with the YAML parser itself: a reader that walks to the keys and fails there, so
//! that the parser says where it was. Indentation, flow style, comments and quotes are its business, not ours.
//!
//! One walk finds all keys that are looked for, however many there are.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step from the document's root towards a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The key's n-th occurrence, counted from 0 (a repeated key has more than one).
    Key(String, usize),
    /// A list's element.
    Index(usize),
}

/// A key's place in the document. It shares what it has in common with others, so that a long name costs once.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyPath(Option<Arc<Link>>);

#[derive(Debug)]
struct Link {
    parent: KeyPath,
    step: Step,
}

impl KeyPath {
    pub(super) fn root() -> Self {
        Self::default()
    }

    pub(super) fn key(&self, name: &str) -> Self {
        self.nth_key(name, 0)
    }

    pub(super) fn nth_key(&self, name: &str, occurrence: usize) -> Self {
        self.with(Step::Key(name.to_owned(), occurrence))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        Self(Some(Arc::new(Link { parent: self.clone(), step })))
    }

    /// From the root.
    fn steps(&self) -> Vec<&Step> {
        let links = std::iter::successors(self.0.as_deref(), |link| link.parent.0.as_deref());
        let mut steps: Vec<&Step> = links.map(|link| &link.step).collect();
        steps.reverse();
        steps
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.steps().into_iter().enumerate() {
            match step {
                Step::Key(name, _) if position == 0 => write!(f, "{name}")?,
                Step::Key(name, _) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// The line of each path, counted from 1; of the nearest enclosing key where a path is absent. Reads the text once.
pub(super) fn lines(text: &str, paths: &[&KeyPath]) -> Vec<Option<usize>> {
    let mut nodes = vec![Node::default()];
    let ways: Vec<Vec<usize>> = paths.iter().map(|path| grow(&mut nodes, path)).collect();
    let nodes = RefCell::new(nodes);
    // What the walk did not come to has no line of its own.
    let _unreadable = Walk { nodes: &nodes, at: 0, fails: &Cell::new(false) }
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .is_err();
    let nodes = nodes.into_inner();
    ways.iter().map(|way| way.iter().rev().find_map(|at| nodes[*at].line)).collect()
}

/// A place that is looked for, or on the way to one.
#[derive(Debug, Default)]
struct Node {
    line: Option<usize>,
    children: HashMap<Step, usize>,
    /// How often each wanted key has been met.
    met: HashMap<String, usize>,
    /// Whether it is a list's element, whose line is that of the first thing in it.
    element: bool,
}

/// The nodes of a path, from the first step on.
fn grow(nodes: &mut Vec<Node>, path: &KeyPath) -> Vec<usize> {
    // The root.
    let mut at = 0;
    let mut way = Vec::new();
    for step in path.steps() {
        let next = nodes.len();
        if let Step::Key(name, _) = step {
            nodes[at].met.insert(name.clone(), 0);
        }
        at = *nodes[at].children.entry(step.clone()).or_insert(next);
        if at == next {
            nodes.push(Node { element: matches!(step, Step::Index(_)), ..Node::default() });
        }
        way.push(at);
    }
    way
}

type Nodes = RefCell<Vec<Node>>;

/// Where the parser was when one of our readers failed. It says so in its sentence alone, and for the very first place of a
/// text not at all.
pub(super) fn line_of(error: &impl fmt::Display) -> usize {
    let text = error.to_string();
    let place = text.rsplit_once(" at line ").map(|(_, place)| place);
    place.and_then(|place| place.split(' ').next()?.parse().ok()).unwrap_or(1)
}

/// Reads a value, and finds what is looked for in it. Never fails by itself, once it is over.
struct Walk<'a> {
    nodes: &'a Nodes,
    at: usize,
    /// Raised when it fails on purpose.
    fails: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let (nodes, at, fails) = (self.nodes, self.at, Cell::new(false));
        match deserializer.deserialize_any(Walk { fails: &fails, ..self }) {
            Err(error) if fails.get() => {
                nodes.borrow_mut()[at].line = Some(line_of(&error));
                Ok(())
            }
            walked => walked,
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(child) = map.next_key_seed(Key { nodes: self.nodes, at: self.at, found: &Cell::new(None) })? {
            match child {
                Some(at) => map.next_value_seed(Walk { at, ..self })?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for index in 0.. {
            let child = self.nodes.borrow()[self.at].children.get(&Step::Index(index)).copied();
            let more = match child {
                Some(at) => seq.next_element_seed(Walk { at, ..self })?.is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar()
    }
}

impl Walk<'_> {
    /// A scalar is read as a whole before its reader fails, so that the walk can go on behind it.
    fn scalar<E: Error>(self) -> Result<(), E> {
        let node = &self.nodes.borrow()[self.at];
        self.fails.set(node.element && node.line.is_none());
        if self.fails.get() { Err(E::custom("")) } else { Ok(()) }
    }
}

/// Reads a map's key: the node behind it, if it is one that is looked for. Fails there on purpose, and goes on.
struct Key<'a> {
    nodes: &'a Nodes,
    at: usize,
    found: &'a Cell<Option<Found>>,
}

#[derive(Clone, Copy)]
struct Found {
    child: Option<usize>,
    /// It is the first thing in a list's element.
    first: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        let (nodes, at, found) = (self.nodes, self.at, self.found);
        match (deserializer.deserialize_str(self), found.get()) {
            (Err(error), Some(Found { child, first })) => {
                let line = Some(line_of(&error));
                let mut nodes = nodes.borrow_mut();
                if first {
                    nodes[at].line = line;
                }
                if let Some(child) = child {
                    nodes[child].line = line;
                }
                Ok(child)
            }
            (read, _) => read,
        }
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Option<usize>, E> {
        let node = &mut self.nodes.borrow_mut()[self.at];
        let first = node.element && node.line.is_none();
        let child = node.met.get_mut(key).and_then(|met| {
            let step = Step::Key(key.to_owned(), *met);
            *met += 1;
            node.children.get(&step).copied()
        });
        if first || child.is_some() {
            self.found.set(Some(Found { child, first }));
            return Err(E::custom(""));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyPath, lines};

    #[test]
    fn keys_have_their_line_in_every_style() {
        let text = "listen: x\nmodels:\n  a: {type: text,\n     options: {c: 1}}\n  \"b\":\n    aliases:\n      - one\n      - two\n  a:\n    x: 1\n";
        let models = KeyPath::root().key("models");
        let cases = [
            (KeyPath::root().key("listen"), Some(1)),
            (models.clone(), Some(2)),
            (models.key("a"), Some(3)),
            (models.key("a").key("options").key("c"), Some(4)),
            (models.key("b").key("aliases").index(1), Some(8)),
            (models.nth_key("a", 1), Some(9)),
            (models.key("b").key("absent"), Some(5)),
            (models.key("a").key("options").index(3), Some(4)),
            (KeyPath::root().key("absent"), None),
        ];
        let paths: Vec<&KeyPath> = cases.iter().map(|(path, _)| path).collect();
        for ((path, line), found) in cases.iter().zip(lines(text, &paths)) {
            assert_eq!(found, *line, "{path}");
        }
    }

    #[test]
    fn elements_have_a_line_whatever_they_are() {
        let text = "a:\n  - x\n  - k: 1\n  - {j:\n     2}\n  - [y]\nb: *z\n";
        let a = KeyPath::root().key("a");
        let paths: Vec<KeyPath> = (0..5).map(|n| a.index(n)).chain([a.index(1).key("k")]).collect();
        let paths: Vec<&KeyPath> = paths.iter().collect();
        // An element that begins with neither key nor scalar is found by what holds it.
        assert_eq!(lines(text, &paths), [Some(2), Some(3), Some(4), Some(1), Some(1), Some(3)]);
    }

    #[test]
    fn keys_that_are_no_scalars_and_texts_that_look_like_places_confuse_nobody() {
        let text = "x at line 7 column 1: 1\nb: 2\n? [k]\n: 3\nc: 4\n";
        let root = KeyPath::root();
        let paths = [root.key("x at line 7 column 1"), root.key("b"), root.key("c")];
        let paths: Vec<&KeyPath> = paths.iter().collect();
        assert_eq!(lines(text, &paths), [Some(1), Some(2), None], "the parser reads no further than the odd key");
    }
}
