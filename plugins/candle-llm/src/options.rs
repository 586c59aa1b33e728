//! The entry's `options:` and their limits.

use aihost_plugin_api::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::sampler::SamplingOrder;
use aihost_support::decoder::gguf::MAX_CONTEXT;

/// Most sequences served together; the manifest's `max_concurrency`.
pub const MAX_SLOTS: usize = 64;
/// Most threads an engine takes.
const MAX_THREADS: usize = 256;
/// Tokens of context when neither the options nor a shorter model decide.
pub const DEFAULT_CONTEXT: usize = 4096;

/// What a models.yaml entry may say under `options:`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tokens of prompt and answer together. Default: the model's own length, at most 4096.
    #[schemars(range(min = 1))]
    pub context: Option<usize>,
    /// Whether `context` may be more than the model was trained for: answers beyond that length are mostly worse. Default: no.
    pub past_trained_length: bool,
    /// Most requests served together; they share the cache. Default: 64.
    #[schemars(range(min = 1, max = MAX_SLOTS))]
    pub slots: Option<usize>,
    /// Tokens that the cache holds: those of the requests that run, and of earlier ones that may be gone on from. Default: four times
    /// the context, or less if memory is short; one request's context at least.
    #[schemars(range(min = 1))]
    pub cache_tokens: Option<usize>,
    /// Take from the cache what others' requests left there: whoever asks can then tell by the time it takes what others asked.
    /// Default: each key has its own.
    pub share_cache: bool,
    /// CPU threads. Default: what the host gives.
    #[schemars(range(min = 1, max = MAX_THREADS))]
    pub threads: Option<usize>,
    /// A Jinja chat template instead of the model's own.
    pub chat_template: Option<String>,
    /// Whether the temperature is heeded before tokens are left out or behind that. Default: as a GGUF file's `general.sampling.sequence`
    /// says, else `transformers`.
    pub sampling_order: Option<SamplingOrder>,
}

impl Options {
    /// Checks what needs no model.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOptions`] that names the option.
    pub fn check(&self) -> Result<()> {
        let limits = [
            ("context", self.context, usize::MAX),
            ("slots", self.slots, MAX_SLOTS),
            ("cache_tokens", self.cache_tokens, usize::MAX),
            ("threads", self.threads, MAX_THREADS),
        ];
        for (name, value, most) in limits {
            if let Some(value) = value
                && !(1..=most).contains(&value)
            {
                let most = if most == usize::MAX { String::new() } else { format!(" and at most {most}") };
                return Err(invalid(format!("options.{name} is {value} and must be at least 1{most}")));
            }
        }
        Ok(())
    }

    /// The context in tokens, for a model trained on `trained` tokens.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOptions`] if more is asked for than the model was trained on, and the options do not allow that.
    pub fn context_for(&self, trained: usize) -> Result<usize> {
        match self.context {
            Some(context) if context > trained && !self.past_trained_length => Err(invalid(format!(
                "options.context is {context}, but the model's context is {trained} tokens; set at most {trained}, or `past_trained_length: true`"
            ))),
            Some(context) if context > MAX_CONTEXT as usize => {
                Err(invalid(format!("options.context is {context} and must be at most {MAX_CONTEXT}")))
            }
            Some(context) => Ok(context),
            None => Ok(trained.min(DEFAULT_CONTEXT)),
        }
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOptions, message)
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn the_schema_has_the_bounds_that_are_enforced() {
        let schema = serde_json::to_value(schemars::schema_for!(Options)).expect("a schema");
        let is_taken = |name: &str, value: u64| {
            let options: Options = serde_json::from_value(serde_json::json!({ name: value })).expect("options");
            options.check().is_ok()
        };
        for name in ["context", "slots", "cache_tokens", "threads"] {
            let bound = |key| schema["properties"][name][key].as_u64();
            let least = bound("minimum").expect("a least");
            assert!(!is_taken(name, least - 1) && is_taken(name, least), "{name}");
            if let Some(most) = bound("maximum") {
                assert!(is_taken(name, most) && !is_taken(name, most + 1), "{name}");
            } else {
                assert!(is_taken(name, u64::from(u32::MAX)), "{name}");
            }
        }
    }

    #[test]
    fn limits_are_named() {
        let slots = Options { slots: Some(65), ..Options::default() };
        assert!(slots.check().expect_err("too many").message().contains("options.slots is 65"));
        assert!(Options { context: Some(0), ..Options::default() }.check().is_err());
        assert_eq!(Options::default().context_for(8192).expect("default"), 4096);
        assert_eq!(Options::default().context_for(100).expect("default"), 100);
        let wide = Options { context: Some(200), ..Options::default() };
        assert!(wide.context_for(100).expect_err("too wide").message().contains("at most 100"));
        let allowed = Options { past_trained_length: true, ..wide };
        assert_eq!(allowed.context_for(100).expect("allowed"), 200);
        let endless = Options { context: Some(usize::MAX), ..allowed };
        assert!(endless.context_for(100).expect_err("too wide").message().contains("at most 16777216"));
        assert!(serde_json::from_str::<Options>(r#"{"contxt": 1}"#).is_err());
    }
}
