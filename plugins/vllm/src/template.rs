//! Texts with names in braces that stand for what is known only when a process is started.

/// What the names stand for.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pub(crate) port: u16,
    /// `cpu`, `cuda:0`.
    pub(crate) device: String,
    /// Bytes granted.
    pub(crate) memory: u64,
    /// The file of role `model`; why there is none.
    pub(crate) model_path: Result<String, String>,
}

/// A text that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Port,
    Device,
    Memory,
    ModelPath,
}

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// What is wrong with its braces, as the end of a sentence.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            pieces.push(Piece::Text(rest[..at].to_owned()));
            let (brace, after) = rest[at..].split_at(1);
            if let Some(after) = after.strip_prefix(brace) {
                pieces.push(Piece::Text(brace.to_owned()));
                rest = after;
            } else if brace == "}" {
                return Err("a brace ends that did not begin; write `}}` for one".to_owned());
            } else {
                let (name, after) = after
                    .split_once('}')
                    .ok_or_else(|| "there is a brace that does not end; write `{{` for one".to_owned())?;
                pieces.push(Piece::of(name)?);
                rest = after;
            }
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// The text with what its names stand for.
    pub(crate) fn fill(&self, values: &Values) -> Result<String, String> {
        let mut out = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out += text,
                Piece::Port => out += &values.port.to_string(),
                Piece::Device => out += &values.device,
                Piece::Memory => out += &values.memory.to_string(),
                Piece::ModelPath => out += values.model_path.as_deref().map_err(String::clone)?,
            }
        }
        Ok(out)
    }
}

impl Piece {
    fn of(name: &str) -> Result<Self, String> {
        Ok(match name {
            "port" => Self::Port,
            "device" => Self::Device,
            "memory" => Self::Memory,
            "model_path" => Self::ModelPath,
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(format!(
                    "`{{{}}}` is none of {{port}}, {{model_path}}, {{device}} and {{memory}}; write `{{{{` for a brace",
                    other.escape_debug()
                ));
            }
        })
    }
}

/// The words of a text, as a shell would split them; nothing if a quote does not end.
pub(crate) fn words(text: &str) -> Option<Vec<String>> {
    shlex::split(text)
}

#[cfg(test)]
mod tests {
    use super::{Template, Values, words};

    #[test]
    fn names_stand_for_what_is_known_and_doubled_braces_for_themselves() {
        let values = Values { port: 81, device: "cuda:1".into(), memory: 7, model_path: Ok("/m/a b.gguf".to_owned()) };
        for (text, wanted) in [
            ("--port={port}", "--port=81"),
            ("{device}{memory}", "cuda:17"),
            ("{model_path}", "/m/a b.gguf"),
            ("{{\"a\": {{}}}}", "{\"a\": {}}"),
            ("é{{port}}", "é{port}"),
            ("", ""),
        ] {
            assert_eq!(Template::parse(text).and_then(|template| template.fill(&values)).as_deref(), Ok(wanted));
        }
        for text in ["{", "}", "{port", "{Port}", "{}", "a}b", "{a\u{1b}}"] {
            let why = Template::parse(text).expect_err(text);
            assert!(!why.contains('\u{1b}'), "{why}");
        }
        let none = Values { model_path: Err("there is none".into()), ..values };
        assert_eq!(
            Template::parse("{model_path}").and_then(|template| template.fill(&none)),
            Err("there is none".into())
        );
    }

    #[test]
    fn a_command_is_split_as_by_a_shell() {
        let split = |text| words(text).map(|words| words.join("|"));
        assert_eq!(split("a  'b c' \"d e\" f\\ g").as_deref(), Some("a|b c|d e|f g"));
        assert_eq!(split("a 'b"), None);
        assert_eq!(split("  ").as_deref(), Some(""));
    }
}
