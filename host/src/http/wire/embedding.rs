//! What `POST /v1/embeddings` and `POST /v1/rerank` read, and what they answer: OpenAI's shape, and that of Jina and Cohere.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use super::fields::{Fields, Items, Keys, text, token, wrong_type};
use super::{ReceivedBody, json, terms};
use crate::http::error::ApiError;
use crate::runtime::{Class, KeepAlive};

/// Most texts, or documents, of one request, as in OpenAI's API.
const INPUTS_MAX: usize = 2048;
/// Most values that a vector may be asked to have; no plugin may make more.
const DIMENSIONS_MAX: i64 = 65_536;
/// Most documents that may be asked for: clients that want all of them name any large number.
const TOP_MAX: i64 = 1 << 32;

/// What is read of a body of `POST /v1/embeddings`.
pub(in crate::http) const KEYS: Keys =
    &["model", "input", "encoding_format", "dimensions", "service_tier", "keep_alive"];
/// What is read of a body of `POST /v1/rerank`.
pub(in crate::http) const RERANK_KEYS: Keys =
    &["model", "query", "documents", "top_n", "return_documents", "service_tier", "keep_alive"];
/// What is read of a document that is an object.
pub(in crate::http) const DOCUMENT_KEYS: Keys = &["text"];

/// A request for vectors or scores, as a plugin is to answer it.
#[derive(Clone, Debug)]
pub(in crate::http) struct EmbeddingJob {
    /// The model's name, if one was given.
    pub(in crate::http) model: Option<String>,
    /// The JSON of the [`EmbeddingRequest`](aihost_plugin_api::task::EmbeddingRequest).
    pub(in crate::http) task: Vec<u8>,
    /// How many texts or documents it has; at least one.
    pub(in crate::http) count: usize,
    /// Values that each vector is to have, if the request says so.
    pub(in crate::http) dimensions: Option<u32>,
    /// Whether other work goes first.
    pub(in crate::http) class: Class,
    /// How long the model stays hot once idle.
    pub(in crate::http) keep_alive: Option<KeepAlive>,
}

/// How the values of vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum VectorEncoding {
    /// As numbers.
    Float,
    /// As base64 of little-endian `f32`.
    Base64,
}

/// How a ranking is told.
#[derive(Clone, Debug)]
pub(in crate::http) struct RankingShape {
    /// How many of the best are told; all if there are fewer.
    top: usize,
    /// The JSON of each document's text, if they are told again.
    documents: Option<Vec<Box<RawValue>>>,
}

/// A request to `POST /v1/embeddings`.
pub(in crate::http) fn parse(body: &ReceivedBody<'_>) -> Result<(EmbeddingJob, VectorEncoding), ApiError> {
    let fields = Fields::root(body, KEYS)?;
    let encoding = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => VectorEncoding::Float,
        Some("base64") => VectorEncoding::Base64,
        Some(_) => {
            return Err(ApiError::unsupported("encoding_format", "`encoding_format` must be float or base64"));
        }
    };
    let (input, count) = input(fields.required("input")?, "input")?;
    Ok((job(&fields, input, count)?, encoding))
}

/// A request to `POST /v1/rerank`.
pub(in crate::http) fn parse_rerank(body: &ReceivedBody<'_>) -> Result<(EmbeddingJob, RankingShape), ApiError> {
    let fields = Fields::root(body, RERANK_KEYS)?;
    let query = fields.required("query")?;
    filled_text(query, || "query".to_owned())?;
    let top = fields.integer("top_n", 1..=TOP_MAX)?.and_then(|top| usize::try_from(top).ok()).unwrap_or(usize::MAX);
    let returns = fields.flag("return_documents")?.unwrap_or(false);
    let items = Items::of(fields.required("documents")?, "documents".to_owned())?;
    let (mut texts, mut list) = (Vec::new(), String::from("["));
    let count = counted(&items, |i, item| {
        let document = document(item, || items.item(i))?;
        list.extend([if i == 0 { "" } else { "," }, document.get()]);
        if returns {
            texts.push(document.to_owned());
        }
        Ok(())
    })?;
    let input = format!("{{\"type\":\"rank\",\"query\":{},\"documents\":{list}]}}", query.get());
    let job = EmbeddingJob {
        model: terms::model(&fields)?,
        task: task(&input, None),
        count,
        dimensions: None,
        class: terms::class(&fields)?,
        keep_alive: terms::keep_alive(&fields)?,
    };
    Ok((job, RankingShape { top, documents: returns.then_some(texts) }))
}

/// A request to one of Ollama's routes, whose field of this name has its texts.
pub(super) fn of_texts(fields: &Fields<'_>, key: &str) -> Result<EmbeddingJob, ApiError> {
    let (input, count) = input(fields.required(key)?, key)?;
    job(fields, input, count)
}

fn job(fields: &Fields<'_>, input: String, count: usize) -> Result<EmbeddingJob, ApiError> {
    let dimensions =
        fields.integer("dimensions", 1..=DIMENSIONS_MAX)?.and_then(|dimensions| u32::try_from(dimensions).ok());
    Ok(EmbeddingJob {
        model: terms::model(fields)?,
        task: task(&input, dimensions),
        count,
        dimensions,
        class: terms::class(fields)?,
        keep_alive: terms::keep_alive(fields)?,
    })
}

fn task(input: &str, dimensions: Option<u32>) -> Vec<u8> {
    let dimensions = dimensions.map_or_else(|| "null".to_owned(), |dimensions| dimensions.to_string());
    format!("{{\"input\":{input},\"dimensions\":{dimensions}}}").into_bytes()
}

/// The JSON of an [`EmbeddingInput`](aihost_plugin_api::task::EmbeddingInput) and how many texts it has: of a string, of token
/// ids, or of an array of either. What is sent is passed on as it was typed, once it was looked at.
fn input(value: &RawValue, key: &str) -> Result<(String, usize), ApiError> {
    let of_texts = |list: &str| format!("{{\"type\":\"texts\",\"texts\":{list}}}");
    let of_tokens = |list: &str| format!("{{\"type\":\"tokens\",\"tokens\":{list}}}");
    if value.get().starts_with('"') {
        filled_text(value, || key.to_owned())?;
        return Ok((of_texts(&format!("[{}]", value.get())), 1));
    }
    if !value.get().starts_with('[') {
        return Err(wrong_type(key, "a string, or an array of strings or of token ids", value));
    }
    let items = Items::of(value, key.to_owned())?;
    match items.first() {
        Some(b'-' | b'0'..=b'9') => {
            token_ids(&items)?;
            Ok((of_tokens(&format!("[{}]", value.get())), 1))
        }
        Some(b'[') => {
            let count = counted(&items, |i, item| token_ids(&Items::of(item, items.item(i))?))?;
            Ok((of_tokens(value.get()), count))
        }
        _ => {
            let count = counted(&items, |i, item| filled_text(item, || items.item(i)))?;
            Ok((of_texts(value.get()), count))
        }
    }
}

/// Looks at each item of an array that is not empty and not too long. How many there are.
fn counted<'a>(
    items: &Items<'a>,
    mut look: impl FnMut(usize, &'a RawValue) -> Result<(), ApiError>,
) -> Result<usize, ApiError> {
    let path = items.path();
    let count = items.each(|i, item| {
        if i >= INPUTS_MAX {
            let message = format!("`{path}` must have at most {INPUTS_MAX} items; send the rest in another request");
            return Err(ApiError::invalid(path, message));
        }
        look(i, item)
    })?;
    match count {
        0 => Err(ApiError::invalid(path, format!("`{path}` must have at least one item"))),
        count => Ok(count),
    }
}

/// A string that is not empty.
fn filled_text(value: &RawValue, path: impl Fn() -> String) -> Result<(), ApiError> {
    match text(value, &path, "a string")?.is_empty() {
        true => {
            let path = path();
            let message = format!("`{path}` must not be empty; leave it out, or send a text");
            Err(ApiError::invalid(path, message))
        }
        false => Ok(()),
    }
}

/// Token ids, at least one.
fn token_ids(items: &Items<'_>) -> Result<(), ApiError> {
    let count = items.each(|i, item| match token(item) {
        Some(_) => Ok(()),
        None => Err(wrong_type(&items.item(i), "a token id", item)),
    })?;
    match count {
        0 => {
            let path = items.path();
            Err(ApiError::invalid(path, format!("`{path}` must have at least one token id")))
        }
        _ => Ok(()),
    }
}

/// The text of a document, which is a string or an object that has one.
fn document(item: &RawValue, path: impl Fn() -> String) -> Result<&RawValue, ApiError> {
    if item.get().starts_with('{') {
        let fields = Fields::of(item, &path(), DOCUMENT_KEYS)?;
        let value = fields.required("text")?;
        text(value, || fields.path("text"), "a string")?;
        return Ok(value);
    }
    text(item, path, "a string, or an object with a `text`")?;
    Ok(item)
}

/// What an answer says of the tokens that were read.
#[derive(Serialize)]
struct ReadTokens {
    prompt_tokens: u32,
    total_tokens: u32,
}

impl ReadTokens {
    fn new(prompt_tokens: u32) -> Self {
        Self { prompt_tokens, total_tokens: prompt_tokens }
    }
}

#[derive(Serialize)]
struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<EmbeddingObject<'a>>,
    model: &'a str,
    usage: ReadTokens,
}

#[derive(Serialize)]
struct EmbeddingObject<'a> {
    object: &'static str,
    index: usize,
    embedding: VectorText<'a>,
}

/// The values of a vector: JSON's numbers, the shortest that are read back as the same, or base64.
#[derive(Serialize)]
#[serde(untagged)]
enum VectorText<'a> {
    Float(&'a [f32]),
    Base64(String),
}

/// The answer of `POST /v1/embeddings`.
pub(in crate::http) fn embeddings<'a>(
    vectors: impl Iterator<Item = &'a [f32]>,
    encoding: VectorEncoding,
    model: &str,
    prompt_tokens: u32,
) -> Vec<u8> {
    let written = |vector: &'a [f32]| match encoding {
        VectorEncoding::Float => VectorText::Float(vector),
        VectorEncoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            VectorText::Base64(BASE64_STANDARD.encode(bytes))
        }
    };
    let object = |(index, vector)| EmbeddingObject { object: "embedding", index, embedding: written(vector) };
    let data = vectors.enumerate().map(object).collect();
    json(&EmbeddingList { object: "list", data, model, usage: ReadTokens::new(prompt_tokens) })
}

/// The answer of Ollama's `POST /api/embed`.
pub(in crate::http) fn ollama_embeddings(
    vectors: &[&[f32]],
    model: &str,
    prompt_tokens: u32,
    total_duration_ns: u64,
) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        model: &'a str,
        embeddings: &'a [&'a [f32]],
        total_duration: u64,
        load_duration: u64,
        prompt_eval_count: u32,
    }
    let total_duration = total_duration_ns;
    json(&Reply { model, embeddings: vectors, total_duration, load_duration: 0, prompt_eval_count: prompt_tokens })
}

/// The answer of Ollama's `POST /api/embeddings`.
pub(in crate::http) fn ollama_embedding(vector: &[f32]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        embedding: &'a [f32],
    }
    json(&Reply { embedding: vector })
}

#[derive(Serialize)]
struct Ranking<'a> {
    object: &'static str,
    model: &'a str,
    usage: ReadTokens,
    results: Vec<Ranked<'a>>,
}

#[derive(Serialize)]
struct Ranked<'a> {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedDocument<'a>>,
}

#[derive(Serialize)]
struct RankedDocument<'a> {
    text: &'a RawValue,
}

/// The answer of `POST /v1/rerank`: the best first, and of equals the one that was sent first.
pub(in crate::http) fn ranking(scores: &[f32], shape: &RankingShape, model: &str, prompt_tokens: u32) -> Vec<u8> {
    let mut ranked: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    // All are numbers, and -0 is as good as 0.
    ranked.sort_by(|(_, a), (_, b)| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal));
    ranked.truncate(shape.top);
    let documents = shape.documents.as_deref();
    let result = |(index, relevance_score)| {
        let text = documents.and_then(|documents| documents.get(index));
        Ranked { index, relevance_score, document: text.map(|text| RankedDocument { text }) }
    };
    let results = ranked.into_iter().map(result).collect();
    json(&Ranking { object: "list", model, usage: ReadTokens::new(prompt_tokens), results })
}

#[cfg(test)]
mod tests {
    use aihost_plugin_api::task::{EmbeddingInput, EmbeddingRequest};
    use serde_json::{Value, json};

    use super::*;

    fn body(text: &str) -> ReceivedBody<'_> {
        ReceivedBody { text, class: Class::Interactive }
    }

    #[test]
    fn every_form_of_an_input_is_a_request_that_a_plugin_reads() {
        let tokens = |tokens: &[&[u32]]| EmbeddingInput::tokens(tokens.iter().map(|ids| ids.to_vec()).collect());
        for (input, wanted) in [
            (r#""a \"b\" \u00e9""#, EmbeddingInput::texts(["a \"b\" é"])),
            (r#"[ "a" , "b" ]"#, EmbeddingInput::texts(["a", "b"])),
            ("[1, 2]", tokens(&[&[1, 2]])),
            ("[[1], [2, 4294967295]]", tokens(&[&[1], &[2, u32::MAX]])),
        ] {
            let sent = format!(r#"{{"model": "m", "input": {input}, "dimensions": 7, "user": "u", "keep_alive": 5}}"#);
            let (job, encoding) = parse(&body(&sent)).expect("sound");
            let read: EmbeddingRequest = serde_json::from_slice(&job.task).expect("a request");
            assert_eq!(job.count, wanted.count(), "{input}");
            assert_eq!(read, EmbeddingRequest::new(wanted).dimensions(7), "{input}");
            assert_eq!((encoding, job.model.as_deref(), job.dimensions), (VectorEncoding::Float, Some("m"), Some(7)));
            assert!(job.keep_alive.is_some());
        }
    }

    #[test]
    fn documents_are_texts_however_they_are_written() {
        let sent = r#"{"query": "q", "documents": ["a", {"text": "\u00e9", "id": 1}, ""], "return_documents": true}"#;
        let (job, shape) = parse_rerank(&body(sent)).expect("sound");
        let read: EmbeddingRequest = serde_json::from_slice(&job.task).expect("a request");
        assert_eq!(read, EmbeddingRequest::rank("q", ["a", "é", ""]));
        assert_eq!(job.count, 3);
        let told: Value = serde_json::from_slice(&ranking(&[0.5, 1.0, 0.5], &shape, "m", 9)).expect("JSON");
        let wanted = json!({"object": "list", "model": "m", "usage": {"prompt_tokens": 9, "total_tokens": 9}, "results": [
            {"index": 1, "relevance_score": 1.0, "document": {"text": "é"}},
            {"index": 0, "relevance_score": 0.5, "document": {"text": "a"}},
            {"index": 2, "relevance_score": 0.5, "document": {"text": ""}},
        ]});
        assert_eq!(told, wanted);
    }

    #[test]
    fn the_best_come_first_and_equals_in_their_order() {
        for (scores, top, wanted) in
            [(&[0.0, -0.0, 0.0][..], usize::MAX, &[0, 1, 2][..]), (&[-3.5, 1e9, 2.0], 2, &[1, 2]), (&[1.0], 5, &[0])]
        {
            let shape = RankingShape { top, documents: None };
            let told: Value = serde_json::from_slice(&ranking(scores, &shape, "m", 0)).expect("JSON");
            let results = told["results"].as_array().expect("results");
            let order: Vec<_> = results.iter().map(|result| result["index"].as_u64().expect("a place")).collect();
            assert_eq!(order, wanted, "{scores:?}");
            assert!(results.iter().all(|result| result.get("document").is_none()));
        }
    }

    #[test]
    fn values_are_written_short_and_read_back_as_they_are() {
        let vector = [0.1_f32, -0.0, 1.0, f32::MIN_POSITIVE, 1.0 / 3.0, f32::MAX];
        let told =
            String::from_utf8(embeddings([&vector[..]].into_iter(), VectorEncoding::Float, "m", 2)).expect("UTF-8");
        let wanted = r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-0.0,1.0,1.1754944e-38,0.33333334,3.4028235e+38]}],"model":"m","usage":{"prompt_tokens":2,"total_tokens":2}}"#;
        assert_eq!(told, wanted);
        let packed: Value =
            serde_json::from_slice(&embeddings([&vector[..]].into_iter(), VectorEncoding::Base64, "m", 2))
                .expect("JSON");
        let bytes = BASE64_STANDARD.decode(packed["data"][0]["embedding"].as_str().expect("a string")).expect("base64");
        let read: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        assert_eq!(read, vector);
    }
}
