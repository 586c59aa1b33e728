//! Texts with names in braces that stand for what is known only when a process is started.

use std::path::PathBuf;

/// Bytes that an engine takes beside weights and cache, as a guess.
const REST_BYTES: u64 = 2 << 30;

/// What the names stand for.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    pub(crate) port: u16,
    /// `cpu`, `cuda:0`.
    pub(crate) device: String,
    /// Bytes granted.
    pub(crate) memory: u64,
    /// Bytes of the device in all; 0 where nobody knows.
    pub(crate) device_memory: u64,
    /// Bytes of the model's files.
    pub(crate) weights: u64,
    /// The name by which the engine is asked for the model.
    pub(crate) name: String,
    /// The model's file or folder; why there is none.
    pub(crate) model_path: Result<String, String>,
    /// A folder that is there again when the model is started again; none if there can be none.
    pub(crate) cache: Option<PathBuf>,
    /// Where an engine that can keeps what its slots have read.
    pub(crate) slots: Option<PathBuf>,
}

impl Values {
    /// Whether it is started on the host's cores.
    pub(crate) fn is_on_cpu(&self) -> bool {
        self.device == "cpu"
    }

    /// What was granted as a part of the device, rounded down: `0.450`.
    fn memory_share(&self) -> Result<String, String> {
        if self.device_memory == 0 {
            return Err("the host does not know what memory the device has, of which `{memory_share}` is a part; use `{memory}`".to_owned());
        }
        let thousandths = (u128::from(self.memory) * 1000 / u128::from(self.device_memory)).clamp(1, 1000);
        Ok(format!("{}.{:03}", thousandths / 1000, thousandths % 1000))
    }

    /// Whole GiB that are left for a cache beside the weights; at least one.
    fn cache_gib(&self) -> u64 {
        (self.memory.saturating_sub(self.weights).saturating_sub(REST_BYTES) >> 30).max(1)
    }
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
    MemoryShare,
    CacheGib,
    Name,
    ModelPath,
    Cache,
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
                Piece::MemoryShare => out += &values.memory_share()?,
                Piece::CacheGib => out += &values.cache_gib().to_string(),
                Piece::Name => out += &values.name,
                Piece::Cache => {
                    let folder = values.cache.as_ref().and_then(|folder| folder.to_str());
                    out += folder.ok_or("there is no folder for `{cache}`; see the log for why")?;
                }
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
            "memory_share" => Self::MemoryShare,
            "kv_gib" => Self::CacheGib,
            "name" => Self::Name,
            "model_path" => Self::ModelPath,
            "cache" => Self::Cache,
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(format!(
                    "`{{{}}}` is none of {{port}}, {{name}}, {{model_path}}, {{device}}, {{memory}}, {{memory_share}}, {{kv_gib}} and {{cache}}; write `{{{{` for a brace",
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
        let values = Values {
            port: 81,
            device: "cuda:1".into(),
            memory: 7,
            device_memory: 9,
            weights: 3,
            name: "a/b".into(),
            model_path: Ok("/m/a b.gguf".to_owned()),
            cache: Some("/c".into()),
            slots: None,
        };
        for (text, wanted) in [
            ("--port={port}", "--port=81"),
            ("{device}{memory}", "cuda:17"),
            ("{model_path}", "/m/a b.gguf"),
            ("{{\"a\": {{}}}}", "{\"a\": {}}"),
            ("{name} {memory_share} {kv_gib} {cache}/x", "a/b 0.777 1 /c/x"),
            ("é{{port}}", "é{port}"),
            ("", ""),
        ] {
            assert_eq!(Template::parse(text).and_then(|template| template.fill(&values)).as_deref(), Ok(wanted));
        }
        for text in ["{", "}", "{port", "{Port}", "{}", "a}b", "{a\u{1b}}"] {
            let why = Template::parse(text).expect_err(text);
            assert!(!why.contains('\u{1b}'), "{why}");
        }
        let unknown = Values { device_memory: 0, cache: None, ..values.clone() };
        for text in ["{memory_share}", "{cache}"] {
            Template::parse(text).unwrap().fill(&unknown).expect_err(text);
        }
        let all = Values { memory: 10, ..values.clone() };
        assert_eq!(Template::parse("{memory_share}").unwrap().fill(&all).as_deref(), Ok("1.000"));
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
