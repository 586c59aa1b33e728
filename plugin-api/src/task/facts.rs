//! What a plugin knows of a model before it is loaded, for those who choose among models.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is known of a model. What is not known is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct ModelFacts {
    /// Tokens of prompt and answer together, as the model is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
    /// Tokens of the longest text that it was trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_context_length: Option<u32>,
    /// Tokens of its vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<u32>,
    /// Numbers of the vector that stands for a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_length: Option<u32>,
    /// Weights, each a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// Bytes of its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The family that it is of: `llama`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// How its weights are stored: `Q4_1`, `BF16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// How a conversation becomes its prompt, in Jinja.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// What it can beside answering: `tools`, `reasoning`, `fill_in`, `vision`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub abilities: Vec<String>,
}

builders! {
    ModelFacts:
    context_length(some u32), trained_context_length(some u32), vocabulary(some u32), embedding_length(some u32),
    parameters(some u64), bytes(some u64), architecture(some String), quantization(some String), chat_template(some String),
    abilities(Vec<String>),
}

impl ModelFacts {
    /// Whether nothing is known.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// The same, with what is not known of it from others.
    pub fn or(self, others: Self) -> Self {
        Self {
            context_length: self.context_length.or(others.context_length),
            trained_context_length: self.trained_context_length.or(others.trained_context_length),
            vocabulary: self.vocabulary.or(others.vocabulary),
            embedding_length: self.embedding_length.or(others.embedding_length),
            parameters: self.parameters.or(others.parameters),
            bytes: self.bytes.or(others.bytes),
            architecture: self.architecture.or(others.architecture),
            quantization: self.quantization.or(others.quantization),
            chat_template: self.chat_template.or(others.chat_template),
            abilities: if self.abilities.is_empty() { others.abilities } else { self.abilities },
        }
    }

    /// Whether it can do this.
    pub fn can(&self, ability: &str) -> bool {
        self.abilities.iter().any(|known| known == ability)
    }
}
