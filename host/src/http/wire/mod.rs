//! The shapes on the wire: what clients may send, checked field by field, and what they get. Nothing outside `http` sees them.

mod asked;
mod audio;
mod chat;
mod chunk;
mod completion;
mod embedding;
mod fields;
mod format;
mod image;
mod job;
mod json_text;
mod messages;
mod messages_reply;
mod names;
mod ollama;
mod ollama_reply;
mod overview;
mod reasoning;
mod reply;
mod responses;
mod responses_reply;
mod sampling;
mod sources;
mod status;
mod terms;
mod tokens;
mod tools;
mod translated;

use std::collections::BTreeMap;

use aihost_plugin_api::task::{Sampling, TextRequest};
use format::AskedFormat;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::runtime::{Class, KeepAlive};

pub(super) use asked::Asked;
pub(super) use audio::{
    AudioDelivery, AudioFiles, AudioJob, AudioResponseFormat, AudioStreaming, parse as parse_audio,
};
pub(super) use chat::read as read_chat;
pub(super) use completion::read as read_completion;
pub(super) use embedding::{
    EmbeddingJob, embeddings, ollama_embedding, ollama_embeddings, parse as parse_embeddings, parse_rerank, ranking,
};
pub(super) use fields::{Fields, Keys};
pub(super) use image::{ImageDelivery, ImageJob, parse as parse_image};
pub(super) use job::{
    AskedJob, JobReply, JobShape, is_urgent, parse as parse_job, parse_background, status as job_status,
};
pub(super) use json_text::raw;
pub(super) use messages::{read as read_messages, read_to_count as read_messages_to_count};
pub(super) use messages_reply::error as messages_error;
pub(super) use names::FieldNames;
pub(super) use ollama::{
    parse_bare, parse_embed, parse_texts, read_chat as read_ollama_chat, read_generate as read_ollama_generate,
};
pub(super) use overview::{SwapReply, WaitingReply};
pub(super) use reply::{Choice, TextShape};
pub(super) use responses::read as read_responses;
pub(super) use status::{DeviceReply, PlanReply, RouterList, StatusReply};
pub(super) use terms::{parse_name, parse_named, parse_shown};
pub(super) use tokens::{parse_with_pieces, read as read_tokenize, read_ids as read_detokenize};

/// The keys that are read of each kind of object.
pub(super) mod keys {
    pub(in crate::http) use super::audio::KEYS as AUDIO;
    pub(in crate::http) use super::chat::{KEYS as CHAT, MESSAGE_KEYS as MESSAGE, PART_KEYS as PART};
    pub(in crate::http) use super::completion::KEYS as COMPLETION;
    pub(in crate::http) use super::embedding::{DOCUMENT_KEYS as DOCUMENT, KEYS as EMBEDDINGS, RERANK_KEYS as RERANK};
    pub(in crate::http) use super::format::{
        JSON_SCHEMA_KEYS as JSON_SCHEMA, RESPONSE_FORMAT_KEYS as RESPONSE_FORMAT,
        STRUCTURED_OUTPUTS_KEYS as STRUCTURED_OUTPUTS,
    };
    pub(in crate::http) use super::image::KEYS as IMAGE;
    pub(in crate::http) use super::job::{BACKGROUND_KEYS as BACKGROUND, KEYS as JOB};
    pub(in crate::http) use super::messages::{
        BLOCK_KEYS as BLOCK, KEYS as MESSAGES, MESSAGE_KEYS as MESSAGES_MESSAGE, TOOL_KEYS as MESSAGES_TOOL,
    };
    pub(in crate::http) use super::ollama::{
        EMBED_KEYS as OLLAMA_EMBED, KEYS as OLLAMA, MESSAGE_KEYS as OLLAMA_MESSAGE,
    };
    pub(in crate::http) use super::reasoning::{REASONING_KEYS as REASONING, THINKING_KEYS as THINKING};
    pub(in crate::http) use super::responses::{
        ITEM_KEYS as ITEM, KEYS as RESPONSES, PART_KEYS as ITEM_PART, TOOL_KEYS as RESPONSES_TOOL,
    };
    pub(in crate::http) use super::sampling::STREAM_OPTIONS_KEYS as STREAM_OPTIONS;
    pub(in crate::http) use super::terms::{NAME_KEYS as NAME, SHOWN_KEYS as SHOWN};
    pub(in crate::http) use super::tokens::KEYS as TOKENIZE;
    pub(in crate::http) use super::tools::{CHOICE_KEYS as CHOICE, FUNCTION_KEYS as FUNCTION, TOOL_KEYS as TOOL};
}

/// Most choices one request may ask for, over all its prompts.
pub(super) const MAX_CHOICES: usize = 1024;

/// A body as it came, and from whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceivedBody<'a> {
    /// What came, which is UTF-8.
    pub(super) text: &'a str,
    /// How urgent all is that its sender sends.
    pub(super) class: Class,
}

/// What is said of a request for text, whoever answers it.
#[derive(Clone, Debug)]
pub(super) struct TextTerms {
    /// The model's name, if one was given.
    pub(super) model: Option<String>,
    /// Choices per prompt.
    pub(super) n: usize,
    /// How the answer is sent.
    pub(super) delivery: TextDelivery,
    /// Whether other work goes first.
    pub(super) class: Class,
    /// How long the model stays afterwards, if the request says so.
    pub(super) keep_alive: Option<KeepAlive>,
}

/// A request for text that a plugin is to answer.
#[derive(Clone, Debug)]
pub(super) struct TextJob {
    /// What holds whoever answers.
    pub(super) terms: TextTerms,
    /// The JSON of one [`TextInput`](aihost_plugin_api::task::TextInput) per prompt, at least one.
    pub(super) inputs: Vec<String>,
    /// What holds for all of them. Its own input and form are empty.
    pub(super) common: TextRequest,
    /// The JSON of the [`TextFormat`](aihost_plugin_api::task::TextFormat) that the answer is to have.
    format: Option<Box<RawValue>>,
    /// How its client wrote all this.
    pub(super) names: FieldNames,
}

/// An object whose values are as they came.
pub(super) type JsonObject = BTreeMap<String, Box<RawValue>>;

/// A request for text that an engine is to answer at its chat route.
#[derive(Clone, Debug)]
pub(super) struct ChatJob {
    /// What holds whoever answers.
    pub(super) terms: TextTerms,
    /// What the body for each prompt has, but for its messages and the model's name.
    pub(super) common: JsonObject,
    /// The messages of each prompt; at least one.
    pub(super) messages: Vec<Box<RawValue>>,
}

/// Who is to answer a request for text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answerer {
    /// A plugin.
    Plugin,
    /// An engine that speaks HTTP.
    Engine,
}

/// A request for text, as one of them takes it.
#[derive(Clone, Debug)]
pub(super) enum TextWork {
    /// For a plugin.
    Plugin(Box<TextJob>),
    /// For an engine.
    Engine(Box<ChatJob>),
}

/// A request for text, read.
pub(super) struct TextAsk {
    pub(super) work: TextWork,
    /// Makes the shape of its answer, from the model's name and the time in seconds since 1970.
    pub(super) shape: ShapeOf,
}

/// What makes the shape of an answer.
pub(super) type ShapeOf = Box<dyn FnOnce(&str, u64) -> Box<dyn TextShape> + Send>;

impl TextWork {
    /// What holds whoever answers.
    pub(super) fn terms(&self) -> &TextTerms {
        match self {
            Self::Plugin(job) => &job.terms,
            Self::Engine(job) => &job.terms,
        }
    }

    /// What the fields of a plugin's task are called in the body that it was made of; they are no longer there afterwards.
    pub(super) fn take_names(&mut self) -> FieldNames {
        match self {
            Self::Plugin(job) => std::mem::take(&mut job.names),
            Self::Engine(_) => FieldNames::default(),
        }
    }
}

impl TextAsk {
    /// A request with this shape of answer.
    pub(super) fn new<S: TextShape + 'static>(
        work: TextWork,
        shape: impl FnOnce(&str, u64) -> S + Send + 'static,
    ) -> Self {
        Self { work, shape: Box::new(move |model, created| Box::new(shape(model, created))) }
    }
}

impl TextJob {
    /// Has answers end after so many tokens, unless the request says after how many.
    pub(super) fn default_max_tokens(&mut self, tokens: u32) {
        self.common.max_tokens.get_or_insert(tokens);
    }

    /// Has the answer be of this form.
    fn set_format(&mut self, asked: Option<AskedFormat>) {
        let (json, source) = asked.map(|asked| (asked.json, asked.source)).unzip();
        self.format = json;
        self.names.format = source;
    }

    /// Asks for the tokens of the first prompt, and for no answer, which would have a form.
    pub(super) fn only_tokens(&mut self) {
        self.common.tokenize = true;
        self.format = None;
        self.inputs.truncate(1);
        self.terms.n = 1;
        self.terms.delivery = TextDelivery::Stream;
    }

    /// The task of a choice. Choice `j` of a prompt differs from choice 0 in its seed alone.
    pub(super) fn task(&self, choice: usize) -> Vec<u8> {
        let (prompt, choice) = (choice / self.terms.n, choice % self.terms.n);
        let TextRequest { input: _, sampling, stop, max_tokens, logprobs, echo, ignore_eos, tokenize, .. } =
            &self.common;
        let seed = sampling.seed.map(|seed| seed.wrapping_add(choice as u64));
        let sampling = &sampling.clone().seed(seed);
        let format = self.format.as_deref();
        let rest = TaskRest { sampling, stop, max_tokens, logprobs, echo, ignore_eos, format, tokenize };
        let input = &self.inputs[prompt];
        let mut task = Vec::with_capacity(input.len() + 512);
        task.extend_from_slice(b"{\"input\":");
        task.extend_from_slice(input.as_bytes());
        let brace = task.len();
        write_json(&mut task, &rest);
        task[brace] = b',';
        task
    }
}

/// A [`TextRequest`] but for its input, which is there as JSON already: it may be most of a large body.
#[derive(Serialize)]
struct TaskRest<'a> {
    sampling: &'a Sampling,
    stop: &'a [String],
    max_tokens: &'a Option<u32>,
    logprobs: &'a Option<u32>,
    echo: &'a bool,
    ignore_eos: &'a bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "is_false")]
    tokenize: &'a bool,
}

fn is_false(flag: &&bool) -> bool {
    !**flag
}

/// How an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextDelivery {
    /// In one piece.
    Whole,
    /// As server-sent events.
    Stream,
    /// As server-sent events, with a last one for usage.
    StreamWithUsage,
}

/// How JSON leads to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResponseFormat {
    /// It has the file, as base64.
    Base64,
    /// It has the address of the file, which lies on the host.
    Url,
}

/// JSON bytes. Our own shapes have string keys only, which is all that could fail.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    write_json(&mut bytes, value);
    bytes
}

/// Appends the JSON of a value.
pub(super) fn write_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let start = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(start);
        out.extend_from_slice(b"null");
    }
}

/// A new random id with this prefix.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aihost_plugin_api::task::{TextFormat, TextInput};

    use super::*;

    #[test]
    fn a_task_reads_back_as_the_request_it_was_made_of() {
        let input = TextInput::tokens(vec![1, 2]);
        let unset = ["top_k".to_owned()].into();
        let sampling = Sampling::default().seed(7).logit_bias(BTreeMap::from([(5, 1.5)])).unset(unset);
        let common = TextRequest::new(input.clone())
            .sampling(sampling)
            .stop(vec!["\"x\"".into()])
            .max_tokens(3)
            .logprobs(1)
            .echo(true)
            .ignore_eos(true);
        let job = TextJob {
            terms: TextTerms {
                model: None,
                n: 2,
                delivery: TextDelivery::Whole,
                class: Class::Interactive,
                keep_alive: None,
            },
            inputs: vec!["{\"type\":\"prompt\",\"text\":\"\"}".into(), serde_json::to_string(&input).expect("JSON")],
            common: common.clone(),
            format: Some(raw(&TextFormat::regex("a+"))),
            names: FieldNames::default(),
        };
        let task: serde_json::Value = serde_json::from_slice(&job.task(3)).expect("a task");
        let sampling = common.sampling.clone().seed(8);
        // As JSON: a field of the request that the task forgets is missed, whatever its default.
        assert_eq!(
            task,
            serde_json::to_value(common.sampling(sampling).format(TextFormat::regex("a+"))).expect("JSON")
        );
    }
}
