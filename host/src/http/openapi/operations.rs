//! What each route does, in a sentence, and which shapes its answers have.

/// One method of a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) summary: &'static str,
    pub(super) tag: &'static str,
    /// The shape of an answer of JSON; nothing where it is something else.
    pub(super) reply: Option<&'static str>,
    /// The type of an answer that is not JSON, or that comes as it is made.
    pub(super) stream: Option<&'static str>,
    pub(super) error: &'static str,
}

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";
const TEXT: &str = "text/plain";

/// That of a path and a method, which has no summary if nobody wrote one.
pub(super) fn operation(path: &str, method: &str) -> Operation {
    let (summary, tag, reply, stream) = match (path, method) {
        ("/v1/chat/completions" | "/chat/completions", _) => {
            ("Answers a conversation", "text", Some("ChatCompletion"), Some(EVENTS))
        }
        ("/v1/completions" | "/completions", _) => ("Continues prompts", "text", Some("Completion"), Some(EVENTS)),
        ("/v1/responses" | "/responses", _) => {
            ("Answers in the form of Responses", "text", Some("Response"), Some(EVENTS))
        }
        ("/v1/responses/{id}" | "/responses/{id}", "get") => ("An answer that is kept", "text", Some("Response"), None),
        ("/v1/responses/{id}" | "/responses/{id}", _) => ("Forgets an answer", "text", Some("DeletedResponse"), None),
        (
            "/v1/chat/completions/input_tokens"
            | "/chat/completions/input_tokens"
            | "/v1/responses/input_tokens"
            | "/responses/input_tokens",
            _,
        ) => ("Counts the tokens of a prompt", "text", Some("InputTokens"), None),
        ("/v1/messages/count_tokens", _) => ("Counts the tokens of a prompt", "anthropic", Some("CountedTokens"), None),
        ("/v1/messages", _) => {
            ("Answers in the form of Anthropic's Messages", "anthropic", Some("Message"), Some(EVENTS))
        }
        ("/api/chat", _) => ("Answers a conversation", "ollama", Some("OllamaAnswer"), Some(LINES)),
        ("/api/generate", _) => ("Answers a prompt", "ollama", Some("OllamaAnswer"), Some(LINES)),
        ("/api/show", _) => ("What is known of a model", "ollama", Some("Object"), None),
        ("/api/embed" | "/api/embeddings", _) => ("Embeds texts", "ollama", Some("Object"), None),
        ("/api/tags", _) => ("All models", "ollama", Some("OllamaModels"), None),
        ("/api/ps", _) => ("Loaded models", "ollama", Some("OllamaModels"), None),
        ("/api/version", _) => ("The version of the API", "ollama", Some("Object"), None),
        ("/running", _) => ("Loaded models, as llama-swap tells them", "models", Some("Object"), None),
        ("/", _) => ("That something is here; the page for whoever takes HTML", "health", None, Some(TEXT)),
        ("/page/{name}", _) => ("A file of the page", "health", None, Some("*/*")),
        ("/openapi.json", _) => ("This document", "health", Some("Object"), None),
        ("/docs", _) => ("This document as a page", "health", None, Some("text/html")),
        ("/tokenize", _) => ("The tokens of a text", "text", Some("Tokenized"), None),
        ("/detokenize", _) => ("The text of tokens", "text", Some("Detokenized"), None),
        ("/v1/audio/generations", _) => ("Makes music and other audio", "media", Some("Audio"), Some("audio/wav")),
        ("/v1/audio/speech", _) => ("Speaks a text", "media", None, Some("audio/*")),
        ("/v1/audio/transcriptions" | "/v1/audio/translations", _) => {
            ("Writes down what is spoken", "media", Some("Object"), None)
        }
        ("/v1/images/generations", _) => ("Makes images", "media", Some("Images"), Some(EVENTS)),
        ("/v1/images/edits" | "/v1/images/variations", _) => ("Changes images", "media", Some("Images"), None),
        ("/v1/jobs", "get") => ("The jobs of whoever asks, the newest first", "jobs", Some("Jobs"), None),
        ("/v1/jobs", _) => ("Keeps a request as a job", "jobs", Some("Job"), None),
        ("/v1/jobs/{id}", "get") => ("A job", "jobs", Some("Job"), None),
        ("/v1/jobs/{id}", _) => ("Forgets a job and its answer", "jobs", Some("DeletedResponse"), None),
        ("/v1/jobs/{id}/events", _) => ("What becomes of a job", "jobs", None, Some(EVENTS)),
        ("/v1/jobs/{id}/result", _) => ("The answer of a job", "jobs", Some("Object"), Some("*/*")),
        ("/v1/jobs/{id}/cancel", _) => ("Ends a job", "jobs", Some("Job"), None),
        ("/v1/embeddings" | "/embeddings", _) => ("Embeds texts", "text", Some("Embeddings"), None),
        ("/v1/rerank" | "/rerank", _) => ("Orders texts by how well they fit a query", "text", Some("Ranking"), None),
        ("/v1/moderations", _) => ("Judges texts", "text", Some("Object"), None),
        ("/upstream/{*rest}", _) => ("An engine's own paths", "models", None, Some("*/*")),
        ("/artifacts/{name}", _) => ("A file that an answer named", "media", None, Some("*/*")),
        ("/v1/models", _) => ("All models", "models", Some("Models"), None),
        ("/v1/models/{*id}", _) => ("A model", "models", Some("Model"), None),
        ("/props", _) => ("A model as llama.cpp tells it", "models", Some("Object"), None),
        ("/models", _) => ("All models with their states", "models", Some("RouterModels"), None),
        ("/models/load", _) => ("Loads a model", "models", Some("Success"), None),
        ("/models/unload", _) => ("Unloads a model", "models", Some("Success"), None),
        ("/models/park", _) => ("Parks a model", "models", Some("Success"), None),
        ("/models/pin", _) => ("Keeps a model from being evicted, or not", "models", Some("Success"), None),
        ("/admin/plan", _) => ("What a request for a model would meet", "operation", Some("Object"), None),
        ("/admin/status", _) => ("Every model in full", "operation", Some("List"), None),
        ("/admin/devices", _) => ("Every device", "operation", Some("List"), None),
        ("/admin/overview", _) => ("The host at this moment", "operation", Some("Overview"), None),
        ("/admin/events", _) => ("The same, and what changes", "operation", None, Some(EVENTS)),
        ("/admin/options", _) => ("What options the plugin of a model takes", "operation", Some("Object"), None),
        ("/metrics", _) => ("Metrics for Prometheus", "operation", None, Some(TEXT)),
        ("/logs/{*model}", _) => ("What a model's workers logged", "operation", None, Some(TEXT)),
        ("/health", _) => ("Whether the runtime answers", "health", Some("Object"), None),
        ("/livez", _) => ("Whether the process lives", "health", Some("Object"), None),
        ("/readyz", _) => ("Whether preloaded models are up", "health", Some("Object"), None),
        ("/ping", _) => ("The same for a load balancer", "health", None, None),
        _ => ("", "", None, None),
    };
    let error = if tag == "anthropic" {
        "AnthropicError"
    } else if tag == "ollama" {
        "OllamaError"
    } else {
        "Error"
    };
    Operation { summary, tag, reply, stream, error }
}
