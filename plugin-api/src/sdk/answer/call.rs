//! A call as JSON or in tags, found in a text that may still grow.

use serde_json::{Map, Value};

/// How the function is called in a call's object.
const NAMES: [&str; 2] = ["name", "tool_name"];
/// How its arguments are called there.
const ARGUMENTS: [&str; 4] = ["arguments", "parameters", "args", "input"];

/// A value's extent, byte by byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// Objects and arrays that are open.
    depth: u32,
    in_string: bool,
    is_escaped: bool,
}

impl Span {
    /// Within so many objects and arrays that have begun before.
    pub(super) fn within(depth: u32) -> Self {
        Self { depth, ..Self::default() }
    }

    /// Bytes of `text` up to where the depth is 0 again, which then is an object's or an array's end; nothing if that comes later.
    pub(super) fn end(&mut self, text: &str) -> Option<usize> {
        for (at, byte) in text.bytes().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// What the beginning of a call's object says.
#[derive(Debug, PartialEq)]
pub(super) enum Scanned {
    /// Not enough yet.
    Part,
    /// The name is known, and the object of its arguments begins here.
    Arguments { name: String, at: usize },
    /// It ends here, whatever it says.
    Whole { bytes: usize },
    /// It is no JSON object.
    Not,
}

/// Reads the beginning of an object, which `text` begins with.
pub(super) fn scan(text: &str) -> Scanned {
    let mut rest = Rest { text, at: 1 };
    let mut name = None;
    loop {
        match rest.peek() {
            None => return Scanned::Part,
            Some(b'}') => return Scanned::Whole { bytes: rest.at + 1 },
            Some(b',') => {
                rest.at += 1;
                continue;
            }
            Some(b'"') => {}
            Some(_) => return Scanned::Not,
        }
        let Some(key) = rest.value() else { return Scanned::Part };
        match rest.peek() {
            None => return Scanned::Part,
            Some(b':') => rest.at += 1,
            Some(_) => return Scanned::Not,
        }
        let Some(first) = rest.peek() else { return Scanned::Part };
        let Ok(key) = serde_json::from_str::<String>(key) else { return Scanned::Not };
        if first == b'{'
            && ARGUMENTS.contains(&key.as_str())
            && let Some(name) = name
        {
            return Scanned::Arguments { name, at: rest.at };
        }
        let Some(value) = rest.value() else { return Scanned::Part };
        if value.is_empty() {
            return Scanned::Not;
        }
        if NAMES.contains(&key.as_str()) {
            name = serde_json::from_str::<String>(value).ok();
        }
    }
}

/// What is left of a text.
struct Rest<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Rest<'a> {
    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..)?;
        let blanks = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        self.at += blanks;
        Some(rest[blanks])
    }

    /// The value that begins here, if its end is there too.
    fn value(&mut self) -> Option<&'a str> {
        let (text, start) = (self.text, self.at);
        let rest = &text[start..];
        let bytes = match rest.as_bytes().first()? {
            b'{' | b'[' => Span::default().end(rest)?,
            b'"' => {
                let mut is_escaped = false;
                let end = rest.bytes().skip(1).position(|byte| {
                    let is_end = byte == b'"' && !is_escaped;
                    is_escaped = byte == b'\\' && !is_escaped;
                    is_end
                })?;
                end + 2
            }
            _ => rest.bytes().position(|byte| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace())?,
        };
        self.at = start + bytes;
        Some(&text[start..self.at])
    }
}

/// The name and the arguments, as JSON, of a call's whole object; nothing if it is none. `is_marked`: whether it stands where a
/// call is to be.
pub(super) fn of_object(text: &str, is_marked: bool) -> Option<(String, String)> {
    let object: Map<String, Value> = serde_json::from_str(text).ok()?;
    let inner = object.get("function").and_then(Value::as_object).unwrap_or(&object);
    let named = inner.get("function").filter(|name| name.is_string());
    let name = NAMES.iter().find_map(|key| inner.get(*key)).or(named)?.as_str()?.to_owned();
    let arguments = ARGUMENTS.iter().find_map(|key| inner.get(*key));
    if arguments.is_none() && !is_marked {
        return None;
    }
    let text = match arguments {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::String(text)) if text.trim().is_empty() => "{}".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    Some((name, text))
}

/// The name and the arguments, as JSON, of a call in tags: `<function=NAME>`, `<parameter=KEY>`, `</function>`, or an object in place
/// of the parameters. The schema of its parameters says which of them are texts.
pub(super) fn of_tags<'a>(text: &str, schema: impl FnOnce(&str) -> Option<&'a Value>) -> Option<(String, String)> {
    let rest = text.strip_prefix("<function=")?;
    let (name, mut rest) = rest.split_once('>')?;
    let name = name.trim();
    let inner = rest.strip_suffix("</function>").unwrap_or(rest).trim();
    if inner.starts_with('{') && serde_json::from_str::<Map<String, Value>>(inner).is_ok() {
        return (!name.is_empty()).then(|| (name.to_owned(), inner.to_owned()));
    }
    let schema = schema(name);
    let mut arguments = Map::new();
    while let Some((before, behind)) = rest.split_once("<parameter=") {
        if !is_blank(before) {
            return None;
        }
        let (key, behind) = behind.split_once('>')?;
        // A value may have what looks like an end in it; the next parameter or the function's end tells.
        let until = behind.find("<parameter=").unwrap_or(behind.len());
        let end = behind[..until].rfind("</parameter>").or_else(|| behind.find("</function>")).unwrap_or(until);
        let value = &behind[..end];
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        arguments.insert(key.trim().to_owned(), typed(value, schema.and_then(|s| s["properties"].get(key.trim()))));
        rest = &behind[end..];
    }
    if !is_blank(rest) {
        return None;
    }
    (!name.is_empty()).then(|| (name.to_owned(), Value::Object(arguments).to_string()))
}

/// Whether nothing but ends of tags stands here.
fn is_blank(text: &str) -> bool {
    text.replace("</parameter>", "").replace("</function>", "").trim().is_empty()
}

/// A value that was written as plain text, as the type that it is to have.
fn typed(text: &str, schema: Option<&Value>) -> Value {
    let kinds: Vec<&str> = match schema.and_then(|schema| schema.get("type")) {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let plain = || Value::String(text.to_owned());
    if kinds == ["string"] {
        return plain();
    }
    // As Python writes them.
    let text = match text.trim() {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        trimmed => trimmed,
    };
    match serde_json::from_str::<Value>(text) {
        Ok(value) if !kinds.contains(&"string") || !value.is_string() => value,
        _ => plain(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_beginning_of_an_object_is_enough() {
        let arguments = |name: &str, at| Scanned::Arguments { name: name.into(), at };
        for (text, wanted) in [
            ("{", Scanned::Part),
            (r#"{"name": "f", "argu"#, Scanned::Part),
            (r#"{"name": "f", "arguments": "#, Scanned::Part),
            (r#"{"name": "f", "arguments": {"#, arguments("f", 27)),
            (r#"{"id": 7, "x": [{"a": "]}"}], "name":"f","parameters":{"a"#, arguments("f", 54)),
            (r#"{"arguments": {"a": 1}, "name": "f"}"#, Scanned::Whole { bytes: 36 }),
            (r#"{"name": "f"} more"#, Scanned::Whole { bytes: 13 }),
            (r#"{"name": "f\"}", "arguments": {"#, arguments("f\"}", 30)),
            ("{1}", Scanned::Not),
            ("{'a': 1}", Scanned::Not),
            (r#"{"a" 1}"#, Scanned::Not),
            (r#"{"a":}"#, Scanned::Not),
        ] {
            assert_eq!(scan(text), wanted, "{text}");
        }
    }

    #[test]
    fn objects_are_calls_in_many_forms() {
        for (text, is_marked, wanted) in [
            (r#"{"arguments": {"a": 1}, "name": "f"}"#, false, Some(("f", r#"{"a":1}"#))),
            (r#"{"type": "function", "function": {"name": "f", "parameters": {}}}"#, false, Some(("f", "{}"))),
            (r#"{"function": "f", "arguments": {"b": [2]}}"#, false, Some(("f", r#"{"b":[2]}"#))),
            (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, false, Some(("f", r#"{"a": 1}"#))),
            (r#"{"name": "f", "arguments": null}"#, false, Some(("f", "{}"))),
            (r#"{"name": "f"}"#, true, Some(("f", "{}"))),
            (r#"{"name": "f"}"#, false, None),
            (r#"{"name": 1, "arguments": {}}"#, true, None),
            (r#"[1]"#, true, None),
        ] {
            let found = of_object(text, is_marked);
            assert_eq!(found.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), wanted, "{text}");
        }
    }

    #[test]
    fn parameters_in_tags_have_the_types_of_the_schema() {
        let schema = json!({"properties": {
            "code": {"type": "string"}, "n": {"type": "integer"}, "flag": {"type": "boolean"}, "list": {"type": "array"},
            "either": {"type": ["string", "null"]}, "number": {"type": ["string", "number"]},
        }});
        let text = "<function=f>\n<parameter=code>\nif a < b:\n    x = '</parameter>'\n</parameter>\n<parameter=n>\n3\n</parameter>\n<parameter=flag>True</parameter><parameter=list>\n[1, 2]\n</parameter>\n<parameter=either>null</parameter><parameter=number>7</parameter><parameter=other>x y</parameter>\n</function>";
        let (name, arguments) = of_tags(text, |_| Some(&schema)).expect("a call");
        assert_eq!(name, "f");
        let wanted = json!({
            "code": "if a < b:\n    x = '</parameter>'", "n": 3, "flag": true, "list": [1, 2], "either": null, "number": 7,
            "other": "x y"
        });
        assert_eq!(serde_json::from_str::<Value>(&arguments).expect("JSON"), wanted);
        assert_eq!(of_tags("<function=f></function>", |_| None), Some(("f".into(), "{}".into())));
        assert_eq!(of_tags("<function=></function>", |_| None), None);
        assert_eq!(of_tags("<function=f>said<parameter=a>1</parameter></function>", |_| None), None);
        assert_eq!(of_tags("<function=f>{\"a\": 1}</function>", |_| None), Some(("f".into(), "{\"a\": 1}".into())));
    }

    proptest! {
        #[test]
        fn nothing_makes_them_panic(text in "[{}\\[\\]\",:\\\\ a<>/=é]{0,40}", call in "<function=[a<>/=parmetfunction\n é]{0,40}") {
            let _scanned = scan(&format!("{{{text}"));
            let _object = of_object(&text, true);
            let _tags = of_tags(&call, |_| None);
        }

        #[test]
        fn what_is_scanned_is_a_prefix_of_the_whole(key in "[a-z\"\\\\{}é]{0,5}", value in any::<Option<i64>>(), cut in any::<prop::sample::Index>()) {
            let whole = json!({ key: value, "name": "f", "arguments": {"x": "}\""}}).to_string();
            let at = whole.char_indices().map(|(at, _)| at).nth(cut.index(whole.chars().count())).unwrap_or(0).max(1);
            let scanned = scan(&whole[..at]);
            prop_assert!(scanned == Scanned::Part || matches!(scanned, Scanned::Arguments { .. }), "{:?} of {}", scanned, &whole[..at]);
        }
    }
}
