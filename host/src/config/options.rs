//! An entry's `options:` against the JSON Schema that its plugin gives of them: what schemars writes of a Rust type, which is
//! all that plugins have. A schema is a stranger's word: one that is odd, goes in circles or is endless lets options pass that
//! the plugin itself refuses, and costs nothing else.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::{ConfigError, PROBLEMS_TOLD, Problem};
use super::locate::{KeyPath, lines};
use super::resolved::ModelConfig;
use crate::domain::{ModelId, nearest, some_names};

/// How deep schemas lead into one another, by references that go in circles too.
const DEPTH_MAX: u32 = 64;
/// Schemas that are looked at for the options of one entry.
const STEPS_MAX: u32 = 100_000;
/// Bytes shown of a value that somebody typed.
const VALUE_SHOWN_BYTES: usize = 80;

/// What is wrong with entries of a valid file by what is known of their plugins.
#[derive(Debug, Default)]
pub struct EntryFaults(Vec<(ModelId, Fault)>);

#[derive(Debug)]
struct Fault {
    at: KeyPath,
    problem: Problem,
}

impl EntryFaults {
    /// Checks the options of an entry by its plugin's schema.
    pub fn check_options(&mut self, model: &ModelConfig, schema: &Value) {
        let at = KeyPath::root().key("models").key(model.id.as_str()).key("options");
        let mut walk = Walk { root: schema, steps: 0 };
        let faults = walk.check(schema, &model.options, &at, 0);
        if walk.steps < STEPS_MAX {
            self.0.extend(faults.into_iter().map(|fault| (model.id.clone(), fault)));
        }
    }

    /// Notes what is wrong with one key of an entry.
    pub fn add(&mut self, model: &ModelId, key: &str, message: String) {
        let at = KeyPath::root().key("models").key(model.as_str()).key(key);
        self.0.push((model.clone(), Fault::new(&at, None, message, None)));
    }

    /// Each wrong entry with its errors, whose lines are those of this text.
    pub fn placed(self, text: &str, file: &Path) -> BTreeMap<ModelId, ConfigError> {
        let found = lines(text, &self.0.iter().map(|(_, fault)| &fault.at).collect::<Vec<_>>());
        let mut errors: BTreeMap<ModelId, ConfigError> = BTreeMap::new();
        for ((model, fault), line) in self.0.into_iter().zip(found) {
            let problem = Problem { line, ..fault.problem };
            match errors.get_mut(&model) {
                None => drop(errors.insert(model, ConfigError::one(Some(file), problem))),
                Some(error) if error.problems.len() < PROBLEMS_TOLD => error.problems.push(problem),
                Some(error) => error.more += 1,
            }
        }
        errors
    }
}

impl Fault {
    fn new(at: &KeyPath, value: Option<&Value>, message: String, hint: Option<String>) -> Self {
        let problem = Problem { line: None, key: Some(at.to_string()), value: value.map(shown), message, hint };
        Self { at: at.clone(), problem }
    }
}

/// One look at the options of one entry.
struct Walk<'a> {
    root: &'a Value,
    steps: u32,
}

impl<'a> Walk<'a> {
    fn check(&mut self, schema: &'a Value, value: &Value, at: &KeyPath, depth: u32) -> Vec<Fault> {
        self.steps += 1;
        let Value::Object(schema) = schema else {
            let refuses = schema == &Value::Bool(false);
            let refused = || Fault::new(at, Some(value), "is not taken by the plugin".to_owned(), None);
            return refuses.then(refused).into_iter().collect();
        };
        if depth > DEPTH_MAX || self.steps >= STEPS_MAX {
            return Vec::new();
        }
        if let Some(message) = mismatch(schema, value) {
            return vec![Fault::new(at, Some(value), message, guess(schema, value))];
        }
        let mut faults = Vec::new();
        if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|to| resolve(self.root, to)) {
            faults.extend(self.check(target, value, at, depth + 1));
        }
        for part in list(schema, "allOf") {
            faults.extend(self.check(part, value, at, depth + 1));
        }
        for choice in ["anyOf", "oneOf"] {
            faults.extend(self.choose(list(schema, choice), value, at, depth));
        }
        match value {
            Value::Object(value) => faults.extend(self.object(schema, value, at, depth)),
            Value::Array(items) => {
                if let Some(schema) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        faults.extend(self.check(schema, item, &at.index(index), depth + 1));
                    }
                }
            }
            _ => {}
        }
        faults
    }

    /// A value that has to fit one of several schemas: what is wrong by the one that it nearly fits.
    fn choose(&mut self, choices: &'a [Value], value: &Value, at: &KeyPath, depth: u32) -> Vec<Fault> {
        if choices.is_empty() {
            return Vec::new();
        }
        let names: Vec<&str> = choices.iter().flat_map(|choice| named(self.root, choice, &mut self.steps)).collect();
        let mut best: Option<Vec<Fault>> = None;
        for choice in choices {
            let faults = self.check(choice, value, at, depth + 1);
            if faults.is_empty() {
                return faults;
            }
            let is_nearer = best.as_ref().is_none_or(|best| nearness(&faults, at) > nearness(best, at));
            if is_nearer {
                best = Some(faults);
            }
        }
        let best = best.unwrap_or_default();
        match value.as_str() {
            Some(text) if !names.is_empty() => {
                let hint = nearest(text, names.iter().copied()).map(|name| format!("did you mean `{name}`?"));
                let message = format!("is not one of {}", some_names(names.iter().copied()));
                vec![Fault::new(at, Some(value), message, hint)]
            }
            _ if best.iter().all(|fault| fault.at.to_string() == at.to_string()) && !value.is_object() => {
                let wanted: Vec<String> = choices
                    .iter()
                    .filter_map(|choice| wanted(self.root, choice, 0, &mut self.steps))
                    .filter(|w| w != NULL)
                    .collect();
                match wanted.is_empty() {
                    true => best,
                    false => vec![Fault::new(at, Some(value), format!("is not {}", wanted.join(" or ")), None)],
                }
            }
            _ => best,
        }
    }

    fn object(
        &mut self,
        schema: &'a Map<String, Value>,
        value: &Map<String, Value>,
        at: &KeyPath,
        depth: u32,
    ) -> Vec<Fault> {
        let known = schema.get("properties").and_then(Value::as_object);
        let mut faults = Vec::new();
        for (key, value) in value {
            let at = at.key(key);
            if let Some(schema) = known.and_then(|known| known.get(key)) {
                faults.extend(self.check(schema, value, &at, depth + 1));
                continue;
            }
            match schema.get("additionalProperties") {
                Some(Value::Bool(false)) => {
                    let mut keys: Vec<&str> = known.into_iter().flatten().map(|(key, _)| key.as_str()).collect();
                    keys.sort_unstable();
                    let keys = || keys.iter().copied();
                    let hint = match nearest(key, keys()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None if keys().next().is_none() => "remove it: there are none".to_owned(),
                        None => format!("there are {}", some_names(keys())),
                    };
                    faults.push(Fault::new(&at, None, "is not an option of the plugin".to_owned(), Some(hint)));
                }
                Some(other) => faults.extend(self.check(other, value, &at, depth + 1)),
                None => {}
            }
        }
        for key in list(schema, "required").iter().filter_map(Value::as_str).filter(|key| !value.contains_key(*key)) {
            let wanted = known.and_then(|known| wanted(self.root, known.get(key)?, 0, &mut self.steps));
            let wanted = wanted.map_or_else(String::new, |wanted| format!(": {wanted}"));
            let hint = format!("add `{key}`{wanted}");
            faults.push(Fault::new(at, None, format!("lacks `{key}`, which the plugin cannot do without"), Some(hint)));
        }
        faults
    }
}

/// How near a value came to a schema: what is wrong deeper inside it, and less of it, is nearer.
fn nearness(faults: &[Fault], at: &KeyPath) -> (bool, std::cmp::Reverse<usize>) {
    let is_inside = faults.iter().all(|fault| fault.at.to_string() != at.to_string());
    (is_inside, std::cmp::Reverse(faults.len()))
}

const NULL: &str = "nothing";

/// What is wrong with a value by itself, whatever is in it.
fn mismatch(schema: &Map<String, Value>, value: &Value) -> Option<String> {
    let types = types(schema);
    let alone = || Some(format!("is not {}", describe(schema)?));
    if !types.is_empty() && !types.iter().any(|name| is_of(name, value)) {
        return alone();
    }
    if let Some(constant) = schema.get("const") {
        return (constant != value).then(alone)?;
    }
    if schema.get("enum").and_then(Value::as_array).is_some_and(|values| !values.contains(value)) {
        return alone();
    }
    let (least, most) = bounds(schema);
    let is_outside = value.as_f64().is_some_and(|number| {
        least.as_ref().and_then(Value::as_f64).is_some_and(|least| number < least)
            || most.as_ref().and_then(Value::as_f64).is_some_and(|most| number > most)
            || schema.get("exclusiveMinimum").and_then(Value::as_f64).is_some_and(|least| number <= least)
            || schema.get("exclusiveMaximum").and_then(Value::as_f64).is_some_and(|most| number >= most)
    });
    if is_outside {
        return alone();
    }
    let length = match value {
        Value::String(text) => Some((text.chars().count(), "minLength", "maxLength", "characters")),
        Value::Array(items) => Some((items.len(), "minItems", "maxItems", "elements")),
        _ => None,
    };
    let (length, least, most, unit) = length?;
    let limit = |key: &str| schema.get(key).and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
    match (limit(least), limit(most)) {
        (Some(least), _) if length < least => Some(format!("has {length} {unit}, of at least {least}")),
        (_, Some(most)) if length > most => Some(format!("has {length} {unit}, of at most {most}")),
        _ => None,
    }
}

/// The nearest of the texts that are taken.
fn guess(schema: &Map<String, Value>, value: &Value) -> Option<String> {
    let values = list(schema, "enum").iter().filter_map(Value::as_str);
    nearest(value.as_str()?, values).map(|near| format!("did you mean `{near}`?"))
}

fn types(schema: &Map<String, Value>) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// As serde reads it: no whole number has a point.
fn is_of(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        // A type of a later day.
        _ => true,
    }
}

/// The least and the most that a number may be. Formats say it where schemars does not.
fn bounds(schema: &Map<String, Value>) -> (Option<Value>, Option<Value>) {
    let (least, most) = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => (Some(0), Some(i64::from(u8::MAX))),
        Some("uint16") => (Some(0), Some(i64::from(u16::MAX))),
        Some("uint32") => (Some(0), Some(i64::from(u32::MAX))),
        Some("uint" | "uint64") => (Some(0), None),
        Some("int8") => (Some(i64::from(i8::MIN)), Some(i64::from(i8::MAX))),
        Some("int16") => (Some(i64::from(i16::MIN)), Some(i64::from(i16::MAX))),
        Some("int32") => (Some(i64::from(i32::MIN)), Some(i64::from(i32::MAX))),
        _ => (None, None),
    };
    let own = |key: &str, other: Option<i64>| schema.get(key).cloned().or_else(|| other.map(Value::from));
    (own("minimum", least), own("maximum", most))
}

/// What a schema wants, as the end of a sentence.
fn describe(schema: &Map<String, Value>) -> Option<String> {
    if let Some(constant) = schema.get("const") {
        return Some(format!("`{}`", plain(constant)));
    }
    let values = list(schema, "enum");
    if !values.is_empty() {
        let shown: Vec<String> = values.iter().filter(|value| !value.is_null()).map(plain).collect();
        return Some(format!("one of {}", some_names(shown.iter().map(String::as_str))));
    }
    let types = types(schema);
    let kinds: Vec<&str> = types.iter().filter_map(|name| kind(name)).filter(|kind| *kind != NULL).collect();
    if kinds.is_empty() {
        return types.contains(&"null").then(|| NULL.to_owned());
    }
    let mut wanted = kinds.join(" or ");
    if types.iter().any(|name| ["integer", "number"].contains(name)) {
        let (least, most) = bounds(schema);
        let above = schema.get("exclusiveMinimum").map(|least| format!(" above {least}"));
        let below = schema.get("exclusiveMaximum").map(|most| format!(" below {most}"));
        match (least, most) {
            (Some(least), Some(most)) => wanted += &format!(" from {least} to {most}"),
            (Some(least), None) => wanted += &format!(" of at least {least}"),
            (None, Some(most)) => wanted += &format!(" of at most {most}"),
            (None, None) => {}
        }
        wanted.extend(above.into_iter().chain(below));
    }
    Some(wanted)
}

fn kind(name: &str) -> Option<&'static str> {
    Some(match name {
        "null" => NULL,
        "boolean" => "`true` or `false`",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "a text",
        "array" => "a list",
        "object" => "a mapping",
        _ => return None,
    })
}

/// The same of a schema that may refer to another one.
fn wanted(root: &Value, schema: &Value, depth: u32, steps: &mut u32) -> Option<String> {
    let object = schema.as_object()?;
    *steps += 1;
    if depth > DEPTH_MAX || *steps >= STEPS_MAX {
        return None;
    }
    if let Some(described) = describe(object) {
        return Some(described);
    }
    if let Some(target) = object.get("$ref").and_then(Value::as_str).and_then(|to| resolve(root, to)) {
        return wanted(root, target, depth + 1, steps);
    }
    let names = named(root, schema, steps);
    if !names.is_empty() {
        return Some(format!("one of {}", some_names(names.into_iter())));
    }
    let choices = ["anyOf", "oneOf", "allOf"].into_iter().flat_map(|key| list(object, key));
    choices.filter_map(|choice| wanted(root, choice, depth + 1, steps)).find(|wanted| wanted != NULL)
}

/// The texts that a choice takes, if it takes nothing but named ones.
fn named<'a>(root: &'a Value, choice: &'a Value, steps: &mut u32) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut open = vec![(choice, 0)];
    while let Some((schema, depth)) = open.pop() {
        *steps += 1;
        let Some(object) = schema.as_object().filter(|_| depth <= DEPTH_MAX && *steps < STEPS_MAX) else { continue };
        found.extend(object.get("const").and_then(Value::as_str));
        found.extend(list(object, "enum").iter().filter_map(Value::as_str));
        // One way on from each, so that references in circles end.
        match object.get("$ref").and_then(Value::as_str).and_then(|to| resolve(root, to)) {
            Some(target) => open.push((target, depth + 1)),
            None if depth < 2 => {
                let inner = list(object, "oneOf").iter().chain(list(object, "anyOf")).rev();
                open.extend(inner.map(|choice| (choice, depth + 1)));
            }
            None => {}
        }
    }
    found
}

/// What an option takes, what it is by default and what it means: each property of a plugin's schema.
pub fn option_rows(schema: &Value) -> Vec<[String; 4]> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let required = schema.as_object().map_or(&[][..], |schema| list(schema, "required"));
    let row = |(name, option): (&String, &Value)| {
        let is_required = required.iter().any(|required| required == name);
        let default = match option.get("default") {
            _ if is_required => "required".to_owned(),
            None | Some(Value::Null) => "-".to_owned(),
            Some(default) => shown(default),
        };
        let meaning = option.get("description").and_then(Value::as_str).unwrap_or_default();
        let meaning = meaning.split_whitespace().collect::<Vec<_>>().join(" ");
        [name.clone(), wanted(schema, option, 0, &mut 0).unwrap_or_else(|| "-".to_owned()), default, meaning]
    };
    properties.into_iter().flatten().map(row).collect()
}

/// A schema by a reference within its document.
fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

fn list<'a>(schema: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    schema.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A value as it is typed.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The beginning of it.
fn shown(value: &Value) -> String {
    let mut text = plain(value);
    if text.len() > VALUE_SHOWN_BYTES {
        text.truncate(text.floor_char_boundary(VALUE_SHOWN_BYTES));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Env, Selection, parse};
    use super::*;

    /// What is said of these options by this schema, each with its line.
    fn told(schema: &Value, options: &str) -> Vec<String> {
        let file = Path::new("/m.yaml");
        let text = format!("models:\n  a:\n    type: text\n    plugin: p\n    options:\n{options}");
        let config = parse(&text, file, &Selection::default(), &Env::default()).unwrap();
        let mut faults = EntryFaults::default();
        config.models.values().for_each(|model| faults.check_options(model, schema));
        let placed = faults.placed(&text, file);
        placed.values().flat_map(ConfigError::lines).map(|line| line.replace("/m.yaml:", "")).collect()
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_what_is_right() {
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["path"],
            "properties": {
                "path": {"type": "string", "minLength": 2},
                "count": {"type": ["integer", "null"], "format": "uint8", "minimum": 1},
                "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                "on": {"type": "boolean"},
                "kind": {"$ref": "#/$defs/Kind"},
                "maybe": {"anyOf": [{"$ref": "#/$defs/Kind"}, {"type": "null"}]},
                "plain": {"enum": ["one", "two", null]},
                "many": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
                "inner": {"allOf": [{"$ref": "#/$defs/Inner"}]},
                "either": {"oneOf": [{"type": "string", "const": "all"}, {"$ref": "#/$defs/Inner"}]},
                "numbers": {"type": "object", "additionalProperties": {"type": "number"}},
            },
            "$defs": {
                "Kind": {"oneOf": [{"type": "string", "const": "slow"}, {"type": "string", "enum": ["fast", "faster"]}]},
                "Inner": {"type": "object", "additionalProperties": false, "properties": {"depth": {"type": "integer"}}},
            },
        });
        let right = [
            "count: 255, share: 0.5, on: true, kind: slow, maybe: null, plain: null, many: [1], inner: {depth: 2}",
            "count: null, share: 1, maybe: faster, plain: two, either: all, numbers: {a: 1.5}",
            "either: {depth: 1}",
        ];
        for options in right {
            assert_eq!(told(&schema, &format!("      {{path: ab, {options}}}\n")), [""; 0], "{options}");
        }
        for (options, wanted) in [
            ("cuont: 1", "cuont: is not an option of the plugin; did you mean `count`?"),
            ("zzz: 1", "zzz: is not an option of the plugin; there are count, either, inner,"),
            ("count: 0", "count: `0` is not a whole number from 1 to 255"),
            ("count: 256", "count: `256` is not a whole number from 1 to 255"),
            ("count: 1.5", "count: `1.5` is not a whole number from 1 to 255"),
            ("count: \"1\"", "count: `1` is not a whole number"),
            ("share: 0", "share: `0` is not a number of at most 1 above 0"),
            ("on: 1", "on: `1` is not `true` or `false`"),
            ("kind: fats", "kind: `fats` is not one of slow, fast, faster; did you mean `fast`?"),
            ("kind: 1", "kind: `1` is not "),
            ("maybe: slw", "maybe: `slw` is not one of slow, fast, faster; did you mean `slow`?"),
            ("plain: twoo", "plain: `twoo` is not one of one, two; did you mean `two`?"),
            ("many: [1, x]", "many[1]: `x` is not a whole number"),
            ("many: [1, 2, 3]", "many: `[1,2,3]` has 3 elements, of at most 2"),
            ("inner: {dpeth: 1}", "inner.dpeth: is not an option of the plugin; did you mean `depth`?"),
            ("either: {depth: x}", "either.depth: `x` is not a whole number"),
            ("numbers: {a: b}", "numbers.a: `b` is not a number"),
        ] {
            let told = told(&schema, &format!("      path: ab\n      {options}\n"));
            assert_eq!(told.len(), 1, "{options}: {told:?}");
            assert!(told[0].starts_with(&format!("7: models.a.options.{wanted}")), "{options}: {told:?}");
        }
        let lacks = "5: models.a.options: lacks `path`, which the plugin cannot do without; add `path`: a text";
        assert_eq!(told(&schema, "      count: 1\n"), [lacks]);
        assert_eq!(told(&schema, "      path: a\n"), ["6: models.a.options.path: `a` has 1 characters, of at least 2"]);
    }

    #[test]
    fn a_schema_that_is_odd_or_goes_in_circles_lets_options_pass() {
        let mut wide = json!({"type": "object"});
        // Each of twenty doubles what it refers to.
        for n in 0..20 {
            wide["$defs"][format!("d{n}")] =
                json!({"allOf": [{"$ref": format!("#/$defs/d{}", n + 1)}, {"$ref": format!("#/$defs/d{}", n + 1)}]});
        }
        wide["$defs"]["d20"] = json!({"type": "string"});
        wide["properties"]["a"] = json!({"$ref": "#/$defs/d0"});
        let circle = json!({
            "$ref": "#",
            "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"anyOf": [{"$ref": "#/properties/b"}, {"$ref": "#/properties/b"}]}},
            "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}},
        });
        for schema in [
            json!(true),
            json!(null),
            json!(7),
            json!({"type": 7, "properties": [], "required": "a", "enum": {}, "minimum": "x", "anyOf": {}}),
            json!({"$ref": "http://elsewhere/schema"}),
            json!({"$ref": "#/nowhere"}),
            json!({"type": "no such type"}),
            circle,
            wide,
        ] {
            assert_eq!(told(&schema, "      {a: 1, b: 2}\n"), [""; 0], "{schema}");
            let _rows = option_rows(&schema);
        }
    }

    #[test]
    fn options_are_listed_with_what_they_take() {
        let schema = json!({"required": ["b"], "properties": {
            "a": {"type": "integer", "minimum": 1, "default": 4, "description": "How\nmany."},
            "b": {"anyOf": [{"$ref": "#/$defs/K"}, {"type": "null"}]},
        }, "$defs": {"K": {"oneOf": [{"const": "x"}, {"const": "y"}]}}});
        let rows = option_rows(&schema);
        assert_eq!(rows[0], ["a", "a whole number of at least 1", "4", "How many."]);
        assert_eq!(rows[1], ["b", "one of x, y", "required", ""]);
    }
}
