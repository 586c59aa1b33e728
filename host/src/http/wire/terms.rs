//! What requests of several kinds say: which model, what it shall make, how urgent it is, and how long its model stays.

use std::borrow::Cow;

use super::ReceivedBody;
use super::fields::{Fields, Keys, text, wrong_type};
use crate::config::parse_duration;
use crate::domain::shown;
use crate::http::divert::Named;
use crate::http::error::ApiError;
use crate::runtime::{Class, KeepAlive};

/// Longest description of an image or of audio, characters, as in OpenAI's API. Models read far less of it.
const PROMPT_CHARS_MAX: usize = 32_000;

/// What is read of a body of which only the model's name is read.
pub(in crate::http) const NAME_KEYS: Keys = &["model"];

/// The description of an image or of audio.
pub(in crate::http) fn prompt(fields: &Fields<'_>) -> Result<String, ApiError> {
    let prompt = fields.required_text("prompt")?;
    if prompt.chars().nth(PROMPT_CHARS_MAX).is_some() {
        let message = format!("`prompt` must have at most {PROMPT_CHARS_MAX} characters");
        return Err(ApiError::invalid("prompt", message));
    }
    Ok(prompt.into_owned())
}

/// A body of which only the model's name is read.
pub(in crate::http) fn parse_name(body: &ReceivedBody<'_>) -> Result<Option<String>, ApiError> {
    model(&Fields::root(body, NAME_KEYS)?)
}

/// What is read of a body that asks about a model.
pub(in crate::http) const SHOWN_KEYS: Keys = &["model", "name"];

/// The model that a body asks about: Ollama's older clients call it `name`.
pub(in crate::http) fn parse_shown(body: &ReceivedBody<'_>) -> Result<Option<String>, ApiError> {
    let fields = Fields::root(body, SHOWN_KEYS)?;
    let older = fields.text("name")?;
    Ok(model(&fields)?.or(older.map(Cow::into_owned)))
}

/// What is read of a body that goes on to an engine as it is.
const NAMED_KEYS: Keys = &["model", "stream", "service_tier", "keep_alive"];

/// What matters of a body that goes on to an engine as it is.
pub(in crate::http) fn parse_named(body: &ReceivedBody<'_>) -> Result<Named, ApiError> {
    let fields = Fields::root(body, NAMED_KEYS)?;
    // A `null` is there as well, and is written over.
    let at = fields.found("model").map(|value| {
        let start = value.get().as_ptr() as usize - body.text.as_ptr() as usize;
        start..start + value.get().len()
    });
    let streams = fields.get("stream").is_some_and(|value| value.get() == "true");
    // What an engine means by these words may be something else.
    let (class, keep_alive) = (class(&fields).unwrap_or(body.class), keep_alive(&fields).unwrap_or_default());
    let is_repeated = fields.is_repeated("model");
    Ok(Named { model: model(&fields)?, at, is_repeated, streams, class, keep_alive })
}

/// The model's name, if one was given.
pub(in crate::http) fn model(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    Ok(fields.text("model")?.filter(|name| !name.is_empty()).map(Cow::into_owned))
}

/// `service_tier: flex` goes after what someone waits for, and so does all that a batch key sends.
pub(in crate::http) fn class(fields: &Fields<'_>) -> Result<Class, ApiError> {
    let flex = fields.text("service_tier")?.as_deref() == Some("flex");
    Ok(if flex { Class::Batch } else { fields.sender() })
}

/// `keep_alive` as Ollama's clients write it: seconds, a duration with a unit, 0 to unload when done, negative to keep.
pub(in crate::http) fn keep_alive(fields: &Fields<'_>) -> Result<Option<KeepAlive>, ApiError> {
    let Some(value) = fields.get("keep_alive") else { return Ok(None) };
    let path = fields.path("keep_alive");
    let is_number = value.get().starts_with(|first: char| first == '-' || first.is_ascii_digit());
    let typed = if is_number {
        value.get().into()
    } else if value.get().starts_with('"') {
        text(value, || path.clone(), "a string")?
    } else {
        return Err(wrong_type(&path, "a number of seconds, or a text like 5m or forever", value));
    };
    let typed = typed.trim();
    let (magnitude, is_negative) = typed.strip_prefix('-').map_or((typed, false), |rest| (rest, true));
    let is_unsigned = magnitude.starts_with(|first: char| first.is_ascii_digit());
    let seconds = magnitude.parse::<f64>().ok().filter(|seconds| is_unsigned && seconds.is_finite());
    if is_negative && (seconds.is_some() || parse_duration(magnitude).is_ok_and(|duration| duration.is_some())) {
        return Ok(Some(KeepAlive::Forever));
    }
    // JSON has exponents, which people do not write.
    let plain = seconds.filter(|_| magnitude.contains(['e', 'E'])).map(|seconds| format!("{seconds}"));
    match parse_duration(plain.as_deref().unwrap_or(typed)) {
        Ok(Some(duration)) => Ok(Some(KeepAlive::For(duration))),
        Ok(None) => Ok(Some(KeepAlive::Forever)),
        Err(wrong) => {
            let message = format!("`{path}`: `{}` {wrong}; write seconds, a text like 5m, or forever", shown(typed));
            Err(ApiError::invalid(path, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::ReceivedBody;
    use super::{ApiError, Class, Fields, KeepAlive, keep_alive};

    fn read(value: &Value) -> Result<Option<KeepAlive>, ApiError> {
        let body = json!({"keep_alive": value}).to_string();
        let asked = ReceivedBody { text: &body, class: Class::Interactive };
        keep_alive(&Fields::root(&asked, &["keep_alive"]).expect("an object"))
    }

    #[test]
    fn keep_alive_is_read_as_ollama_reads_it() {
        let of = |milliseconds| Some(KeepAlive::For(Duration::from_millis(milliseconds)));
        for (value, wanted) in [
            (Value::Null, None),
            (json!(0), of(0)),
            (json!("0"), of(0)),
            (json!(300), of(300_000)),
            (json!(0.5), of(500)),
            (json!("5m"), of(300_000)),
            (json!("300"), of(300_000)),
            (json!(-1), Some(KeepAlive::Forever)),
            (json!("-1"), Some(KeepAlive::Forever)),
            (json!("-1m"), Some(KeepAlive::Forever)),
            (json!(i64::MIN), Some(KeepAlive::Forever)),
            (json!(-1e300), Some(KeepAlive::Forever)),
            (json!("-9e9"), Some(KeepAlive::Forever)),
            (json!(3e2), of(300_000)),
            (serde_json::from_str("3e2").expect("JSON"), of(300_000)),
            (serde_json::from_str("5E-1").expect("JSON"), of(500)),
            (json!("forever"), Some(KeepAlive::Forever)),
        ] {
            assert_eq!(read(&value).expect("accepted"), wanted, "{value}");
        }
        for value in [json!(true), json!([]), json!("soon"), json!("5 parsecs"), json!(1e300), json!("-x"), json!("")] {
            assert!(read(&value).is_err(), "{value}");
        }
        for value in [json!("-forever"), json!("--1"), json!("-"), json!("- 1e"), json!("inf"), json!("-inf")] {
            assert!(read(&value).is_err(), "{value}");
        }
        let long = format!("{:?}", read(&serde_json::from_str("1e18").expect("JSON")).expect_err("too long"));
        assert!(long.contains("is longer than a year"), "{long}");
    }
}
