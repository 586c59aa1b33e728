//! What each endpoint reads of a body, as data: the same lists that its parser goes by, for tests that fill every field.

use serde::Serialize;

use super::admin;
use super::body::BodySize;
use super::wire::{Keys, keys};

/// An endpoint that reads a body.
#[derive(Debug, Serialize)]
pub(crate) struct RequestFields {
    /// Where it is.
    pub(crate) path: &'static str,
    /// Largest body, bytes, where models.yaml says nothing else.
    pub(crate) body_bytes_max: u64,
    /// Every field that is read, by its path; `[]` stands for each item of an array.
    pub(crate) fields: Vec<String>,
}

/// Objects within a body: where they lie, and what is read of them.
type Nested = &'static [(&'static str, Keys)];

const TEXT_INNER: Nested = &[
    ("response_format", keys::RESPONSE_FORMAT),
    ("response_format.json_schema", keys::JSON_SCHEMA),
    ("structured_outputs", keys::STRUCTURED_OUTPUTS),
    ("stream_options", keys::STREAM_OPTIONS),
];
const TOKENIZE_INNER: Nested = &[("stream_options", keys::STREAM_OPTIONS)];
const CHAT_INNER: Nested = &[
    ("response_format", keys::RESPONSE_FORMAT),
    ("response_format.json_schema", keys::JSON_SCHEMA),
    ("structured_outputs", keys::STRUCTURED_OUTPUTS),
    ("stream_options", keys::STREAM_OPTIONS),
    ("reasoning", keys::REASONING),
    ("thinking", keys::THINKING),
    ("tool_choice", keys::CHOICE),
    ("tool_choice.function", keys::FUNCTION),
    ("tool_choice.allowed_tools", keys::CHOICE),
    ("tool_choice.allowed_tools.tools[]", keys::CHOICE),
    ("function_call", keys::FUNCTION),
    ("messages[]", keys::MESSAGE),
    ("messages[].content[]", keys::PART),
    ("messages[].tool_calls[]", keys::TOOL),
    ("messages[].tool_calls[].function", keys::FUNCTION),
    ("messages[].function_call", keys::FUNCTION),
    ("tools[]", keys::TOOL),
    ("tools[].function", keys::FUNCTION),
    ("functions[]", keys::FUNCTION),
];

const RESPONSES_INNER: Nested = &[
    ("input[]", keys::ITEM),
    ("input[].content[]", keys::ITEM_PART),
    ("input[].output[]", keys::ITEM_PART),
    ("tools[]", keys::RESPONSES_TOOL),
    ("tool_choice", keys::RESPONSES_TOOL),
];
const MESSAGES_INNER: Nested = &[
    ("system[]", keys::BLOCK),
    ("messages[]", keys::MESSAGES_MESSAGE),
    ("messages[].content[]", keys::BLOCK),
    ("messages[].content[].content[]", keys::BLOCK),
    ("tools[]", keys::MESSAGES_TOOL),
    ("tool_choice", keys::MESSAGES_TOOL),
];

const OLLAMA_INNER: Nested = &[("messages[]", keys::OLLAMA_MESSAGE)];
const RERANK_INNER: Nested = &[("documents[]", keys::DOCUMENT)];

/// All of them.
pub(crate) fn request_fields() -> Vec<RequestFields> {
    let endpoint = |path, size: BodySize, keys: Keys, nested: Nested| {
        let own = keys.iter().map(ToString::to_string);
        let nested = nested.iter().flat_map(|(at, keys)| keys.iter().map(move |key| format!("{at}.{key}")));
        RequestFields { path, body_bytes_max: size.limit(None).0, fields: own.chain(nested).collect() }
    };
    vec![
        endpoint("/v1/chat/completions", BodySize::Text, keys::CHAT, CHAT_INNER),
        endpoint("/chat/completions", BodySize::Text, keys::CHAT, CHAT_INNER),
        endpoint("/v1/completions", BodySize::Text, keys::COMPLETION, TEXT_INNER),
        endpoint("/completions", BodySize::Text, keys::COMPLETION, TEXT_INNER),
        endpoint("/v1/chat/completions/input_tokens", BodySize::Text, keys::CHAT, CHAT_INNER),
        endpoint("/chat/completions/input_tokens", BodySize::Text, keys::CHAT, CHAT_INNER),
        endpoint("/v1/responses", BodySize::Text, keys::RESPONSES, RESPONSES_INNER),
        endpoint("/responses", BodySize::Text, keys::RESPONSES, RESPONSES_INNER),
        endpoint("/v1/responses/input_tokens", BodySize::Text, keys::RESPONSES, RESPONSES_INNER),
        endpoint("/responses/input_tokens", BodySize::Text, keys::RESPONSES, RESPONSES_INNER),
        endpoint("/v1/messages", BodySize::Text, keys::MESSAGES, MESSAGES_INNER),
        endpoint("/v1/messages/count_tokens", BodySize::Text, keys::MESSAGES, MESSAGES_INNER),
        endpoint("/api/chat", BodySize::Text, keys::OLLAMA, OLLAMA_INNER),
        endpoint("/api/generate", BodySize::Text, keys::OLLAMA, OLLAMA_INNER),
        endpoint("/api/show", BodySize::Command, keys::SHOWN, &[]),
        endpoint("/api/embed", BodySize::Text, keys::OLLAMA_EMBED, &[]),
        endpoint("/api/embeddings", BodySize::Text, keys::OLLAMA_EMBED, &[]),
        endpoint("/tokenize", BodySize::Text, keys::TOKENIZE, TOKENIZE_INNER),
        endpoint("/detokenize", BodySize::Text, keys::TOKENIZE, TOKENIZE_INNER),
        endpoint("/v1/audio/generations", BodySize::Prompt, keys::AUDIO, &[]),
        endpoint("/v1/audio/speech", BodySize::Prompt, keys::BACKGROUND, &[]),
        endpoint("/v1/images/generations", BodySize::Prompt, keys::IMAGE, &[]),
        endpoint("/v1/images/edits", BodySize::Files, keys::BACKGROUND, &[]),
        endpoint("/v1/images/variations", BodySize::Files, keys::BACKGROUND, &[]),
        endpoint("/v1/jobs", BodySize::Text, keys::JOB, &[]),
        endpoint("/models/load", BodySize::Command, admin::KEYS, &[]),
        endpoint("/models/unload", BodySize::Command, admin::KEYS, &[]),
        endpoint("/models/park", BodySize::Command, admin::KEYS, &[]),
        endpoint("/models/pin", BodySize::Command, admin::PIN_KEYS, &[]),
        endpoint("/v1/audio/transcriptions", BodySize::Files, keys::NAME, &[]),
        endpoint("/v1/audio/translations", BodySize::Files, keys::NAME, &[]),
        endpoint("/v1/embeddings", BodySize::Files, keys::EMBEDDINGS, &[]),
        endpoint("/v1/rerank", BodySize::Files, keys::RERANK, RERANK_INNER),
        endpoint("/v1/moderations", BodySize::Files, keys::NAME, &[]),
        endpoint("/embeddings", BodySize::Files, keys::EMBEDDINGS, &[]),
        endpoint("/rerank", BodySize::Files, keys::RERANK, RERANK_INNER),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::router::routes;
    use super::request_fields;

    #[test]
    fn every_endpoint_that_takes_a_body_is_there_with_its_size() {
        let routed = routes().into_iter().filter_map(|route| Some((route.path, route.body?.limit(None).0)));
        let known = request_fields().into_iter().map(|endpoint| (endpoint.path, endpoint.body_bytes_max));
        assert_eq!(known.collect::<Vec<_>>(), routed.collect::<Vec<_>>());
    }
}
