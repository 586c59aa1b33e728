//! What `POST /tokenize` and `POST /detokenize` read: llama.cpp's words or vLLM's.

use super::fields::{Fields, Items, Keys, text, token, wrong_type};
use super::reply::{CompletionAsked, CompletionShape};
use super::{Answerer, Asked, ReceivedBody, TextAsk, TextWork, chat, sampling};
use crate::http::error::ApiError;

/// What is read of a body.
pub(in crate::http) const KEYS: Keys = sampling::shared_keys!["content", "prompt", "messages", "tokens", "tools"];

/// Whether a body asks for what each token stands for.
pub(in crate::http) fn parse_with_pieces(body: &ReceivedBody<'_>) -> Result<bool, ApiError> {
    Ok(Fields::root(body, &["with_pieces"])?.flag("with_pieces")?.unwrap_or(false))
}

/// A text, or a conversation, whose tokens are asked for.
pub(in crate::http) fn read(body: &ReceivedBody<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    if fields.get("messages").is_some() {
        return chat::read(body, asked);
    }
    let (key, sent) = match (fields.get("content"), fields.get("prompt")) {
        (Some(content), _) => ("content", content),
        (None, Some(prompt)) => ("prompt", prompt),
        (None, None) => return Err(ApiError::missing("content")),
    };
    text(sent, || key.to_owned(), "a string")?;
    ask(&fields, format!("{{\"type\":\"prompt\",\"text\":{}}}", sent.get()), asked)
}

/// Tokens whose text is asked for.
pub(in crate::http) fn read_ids(body: &ReceivedBody<'_>, asked: &Asked) -> Result<TextAsk, ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let Some(items) = fields.array("tokens")? else { return Err(ApiError::missing("tokens")) };
    check_ids(&items)?;
    ask(&fields, format!("{{\"type\":\"tokens\",\"tokens\":{}}}", items.value().get()), asked)
}

fn check_ids(items: &Items<'_>) -> Result<(), ApiError> {
    let check = |i, item| match token(item) {
        Some(_) => Ok(()),
        None => Err(wrong_type(&items.item(i), "a token id", item)),
    };
    items.each(check).map(drop)
}

fn ask(fields: &Fields<'_>, input: String, asked: &Asked) -> Result<TextAsk, ApiError> {
    if asked.answerer == Answerer::Engine {
        return Err(ApiError::unsupported("model", "the engine of this model has no such route"));
    }
    let job = sampling::job(fields, vec![input], |_| Ok(()))?;
    let shape = CompletionAsked { delivery: job.terms.delivery, choices: 1, logprobs: None, echo: false };
    let work = TextWork::Plugin(Box::new(job));
    Ok(TextAsk::new(work, move |model, created| CompletionShape::new(shape, model, created)))
}
