//! What every request may say of how it is served: how urgent it is, and how long its model stays.

use serde_json::Value;

use super::fields::{Fields, wrong_type};
use crate::config::parse_duration;
use crate::http::error::ApiError;
use crate::runtime::{Class, KeepAlive};

/// `service_tier: flex` goes after what someone waits for.
pub(in crate::http) fn class(fields: &Fields<'_>) -> Result<Class, ApiError> {
    Ok(if fields.text("service_tier")? == Some("flex") { Class::Batch } else { Class::Interactive })
}

/// `keep_alive` as Ollama's clients write it: seconds, a duration with a unit, 0 to unload when done, negative to keep.
pub(in crate::http) fn keep_alive(fields: &Fields<'_>) -> Result<Option<KeepAlive>, ApiError> {
    let Some(value) = fields.get("keep_alive") else { return Ok(None) };
    let path = fields.path("keep_alive");
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        other => return Err(wrong_type(&path, "a number of seconds, or a text like 5m or forever", other)),
    };
    if text.starts_with('-') && parse_duration(&text[1..]).is_ok() {
        return Ok(Some(KeepAlive::Forever));
    }
    match parse_duration(&text) {
        Ok(Some(duration)) => Ok(Some(KeepAlive::For(duration))),
        Ok(None) => Ok(Some(KeepAlive::Forever)),
        Err(wrong) => {
            let message = format!("`{path}`: `{text}` {wrong}; write seconds, a text like 5m, or forever");
            Err(ApiError::invalid(path, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::{Fields, KeepAlive, keep_alive};

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
            (json!("forever"), Some(KeepAlive::Forever)),
        ] {
            let body = json!({"keep_alive": value});
            let fields = Fields::of(&body, "").expect("an object");
            assert_eq!(keep_alive(&fields).expect("accepted"), wanted, "{value}");
        }
        for value in [json!(true), json!([]), json!("soon"), json!("5 parsecs"), json!(1e300), json!("-x"), json!("")] {
            let body = json!({"keep_alive": value});
            assert!(keep_alive(&Fields::of(&body, "").expect("an object")).is_err(), "{value}");
        }
    }
}
