//! Parameters that both text endpoints share.

use std::collections::BTreeMap;

use aihost_plugin_api::task::{Sampling, TextInput, TextRequest};

use super::fields::{Fields, Items, Keys, each_entry, number, text, wrong_type};
use super::names::FieldNames;
use super::{MAX_CHOICES, TextDelivery, TextJob, TextTerms, terms};
use crate::http::error::ApiError;

/// Most stop strings. OpenAI takes 4; more do no harm, but each is compared at each token.
pub(super) const MAX_STOPS: usize = 64;
/// Longest stop string, bytes: as much of a text is held back while it might become one.
const MAX_STOP_BYTES: usize = 1 << 10;
/// Most tokens that are biased: each choice has a copy of them.
const MAX_BIASES: usize = 4096;
/// Most choices per prompt.
const MAX_N: i64 = 128;

/// What is read of `stream_options`.
pub(in crate::http) const STREAM_OPTIONS_KEYS: Keys = &["include_usage"];

/// The fields that both text endpoints read; each adds its own.
macro_rules! shared_keys {
    ($($own:literal),* $(,)?) => {
        &[
            "model", "n", "stream", "stream_options", "stop", "max_tokens", "logprobs", "ignore_eos",
            "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "repeat_penalty",
            "frequency_penalty", "presence_penalty", "logit_bias", "service_tier", "keep_alive", $($own),*
        ]
    };
}
pub(super) use shared_keys;

/// The same, with those that say what form an answer is to have.
macro_rules! answer_keys {
    ($($own:literal),* $(,)?) => {
        $crate::http::wire::sampling::shared_keys![
            "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
            "json_schema", "grammar", $($own),*
        ]
    };
}
pub(super) use answer_keys;

/// The whole request, from what the endpoint read itself (`inputs`, `max_tokens`, `logprobs`) and what both have.
pub(super) fn job(
    fields: &Fields<'_>,
    inputs: Vec<String>,
    own: impl FnOnce(&mut TextRequest) -> Result<(), ApiError>,
) -> Result<TextJob, ApiError> {
    let mut common = TextRequest::new(TextInput::tokens(Vec::new()))
        .sampling(sampling(fields)?)
        .stop(stop(fields)?)
        .ignore_eos(fields.flag("ignore_eos")?.unwrap_or(false));
    own(&mut common)?;
    Ok(TextJob { terms: terms(fields, inputs.len())?, inputs, common, format: None, names: FieldNames::default() })
}

/// What is said of a request with so many prompts, whoever answers it.
pub(super) fn terms(fields: &Fields<'_>, prompts: usize) -> Result<TextTerms, ApiError> {
    let n = fields.integer("n", 1..=MAX_N)?.unwrap_or(1);
    let n = usize::try_from(n).unwrap_or(1);
    if n * prompts > MAX_CHOICES {
        return Err(ApiError::invalid("n", format!("prompts times `n` must be at most {MAX_CHOICES}")));
    }
    Ok(TextTerms {
        model: terms::model(fields)?,
        n,
        delivery: delivery(fields)?,
        class: terms::class(fields)?,
        keep_alive: terms::keep_alive(fields)?,
    })
}

/// A count of tokens that fits the task's type.
pub(super) fn token_count(fields: &Fields<'_>, key: &str) -> Result<Option<u32>, ApiError> {
    let count = fields.integer(key, 0..=i64::from(u32::MAX))?;
    Ok(count.and_then(|count| u32::try_from(count).ok()))
}

fn sampling(fields: &Fields<'_>) -> Result<Sampling, ApiError> {
    let off = Sampling::default();
    let repetition_penalty = match fields.number("repetition_penalty", f32::MIN_POSITIVE..=100.0)? {
        Some(penalty) => Some(penalty),
        None => fields.number("repeat_penalty", f32::MIN_POSITIVE..=100.0)?,
    };
    // -1 is how llama.cpp's and vLLM's clients write "off".
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    // 0 means the likeliest token alone; the task's range is open at 0.
    let top_p = fields.number("top_p", 0.0..=1.0)?.map(|share: f32| share.max(f32::MIN_POSITIVE));
    let temperature = fields.number("temperature", 0.0..=2.0)?;
    let min_p = fields.number("min_p", 0.0..=1.0)?;
    let frequency_penalty = fields.number("frequency_penalty", -2.0..=2.0)?;
    let presence_penalty = fields.number("presence_penalty", -2.0..=2.0)?;
    let told = [
        ("temperature", temperature.is_some()),
        ("top_p", top_p.is_some()),
        ("top_k", top_k.is_some()),
        ("min_p", min_p.is_some()),
        ("repetition_penalty", repetition_penalty.is_some()),
        ("frequency_penalty", frequency_penalty.is_some()),
        ("presence_penalty", presence_penalty.is_some()),
    ];
    Ok(Sampling::default()
        .temperature(temperature.unwrap_or(off.temperature))
        .top_p(top_p.unwrap_or(off.top_p))
        .top_k(top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(off.top_k))
        .min_p(min_p.unwrap_or(off.min_p))
        .seed(fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned))
        .repetition_penalty(repetition_penalty.unwrap_or(off.repetition_penalty))
        .frequency_penalty(frequency_penalty.unwrap_or(off.frequency_penalty))
        .presence_penalty(presence_penalty.unwrap_or(off.presence_penalty))
        .logit_bias(logit_bias(fields)?)
        .unset(told.iter().filter(|(_, is_told)| !is_told).map(|(name, _)| (*name).to_owned()).collect()))
}

/// Keys that are no token id are left out: OpenAI's own tests send them.
fn logit_bias(fields: &Fields<'_>) -> Result<BTreeMap<u32, f32>, ApiError> {
    let mut biases = BTreeMap::new();
    let Some(map) = fields.get("logit_bias") else { return Ok(biases) };
    each_entry(map, "logit_bias", |key, value| {
        if value.get() == "null" {
            return Ok(());
        }
        let bias = number(value, || format!("logit_bias.{key}"), -100.0..=100.0)?;
        if let Ok(token) = key.parse() {
            biases.insert(token, bias);
        }
        if biases.len() > MAX_BIASES {
            return Err(ApiError::invalid("logit_bias", format!("`logit_bias` must have at most {MAX_BIASES} tokens")));
        }
        Ok(())
    })?;
    Ok(biases)
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let Some(value) = fields.get("stop") else { return Ok(Vec::new()) };
    let mut stops = Vec::new();
    let mut add = |one: &str, path: &dyn Fn() -> String| {
        if one.len() > MAX_STOP_BYTES {
            let path = path();
            let message = format!("`{path}` must have at most {MAX_STOP_BYTES} bytes");
            return Err(ApiError::invalid(path, message));
        }
        if !one.is_empty() {
            stops.push(one.to_owned());
        }
        Ok(())
    };
    if value.get().starts_with('"') {
        let path = || "stop".to_owned();
        add(&text(value, path, "a string")?, &path)?;
    } else if value.get().starts_with('[') {
        let items = Items::of(value, "stop".to_owned())?;
        items.each(|i, one| {
            if i >= MAX_STOPS {
                return Err(ApiError::invalid("stop", format!("`stop` must have at most {MAX_STOPS} strings")));
            }
            let path = || items.item(i);
            add(&text(one, path, "a string")?, &path)
        })?;
    } else {
        return Err(wrong_type("stop", "a string or an array of strings", value));
    }
    Ok(stops)
}

fn delivery(fields: &Fields<'_>) -> Result<TextDelivery, ApiError> {
    let with_usage = match fields.object("stream_options", STREAM_OPTIONS_KEYS)? {
        Some(options) => options.flag("include_usage")?.unwrap_or(false),
        None => false,
    };
    Ok(match (fields.flag("stream")?.unwrap_or(false), with_usage) {
        (false, _) => TextDelivery::Whole,
        (true, false) => TextDelivery::Stream,
        (true, true) => TextDelivery::StreamWithUsage,
    })
}
