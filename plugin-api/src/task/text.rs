//! Kind `text`: a prompt or a conversation in, a stream of text events out.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind};

/// One completion. `n` choices are `n` requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct TextRequest {
    /// The prompt, in one of its forms.
    pub input: TextInput,
    /// How the next token is chosen.
    #[serde(default)]
    pub sampling: Sampling,
    /// The text ends before the first of these; they are not part of it.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Most tokens to generate; absent: up to the context's end.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Log-probabilities of each token and of this many alternatives (0 to 20); absent: none.
    #[serde(default)]
    pub logprobs: Option<u32>,
    /// Completion only: the answer begins with the prompt's text.
    #[serde(default)]
    pub echo: bool,
    /// Go on past the end-of-sequence token (for measuring).
    #[serde(default)]
    pub ignore_eos: bool,
    /// What the answer is to be; absent: any text. A host asks only a plugin that declares `grammar`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<TextFormat>,
    /// Nothing is to be generated: what is asked for are the tokens of the input. The SDK answers it by
    /// [`Engine::tokens`](crate::Engine::tokens); no engine sees it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tokenize: bool,
    /// The bytes that the request speaks of by number.
    #[serde(skip)]
    pub blocks: Vec<Vec<u8>>,
}

builders! {
    TextRequest:
    input(TextInput), sampling(Sampling), stop(Vec<String>), max_tokens(some u32), logprobs(some u32), echo(bool),
    ignore_eos(bool), format(some TextFormat), tokenize(bool), blocks(Vec<Vec<u8>>),
}

impl TextRequest {
    /// A request for whatever follows this, with everything else as clients have it that say nothing of it.
    pub fn new(input: TextInput) -> Self {
        Self {
            input,
            sampling: Sampling::default(),
            stop: Vec::new(),
            max_tokens: None,
            logprobs: None,
            echo: false,
            ignore_eos: false,
            format: None,
            tokenize: false,
            blocks: Vec::new(),
        }
    }

    /// Whether its answer is to be kept to a form: one of its own, that of a call which has to be made, or that of the arguments
    /// of a tool which is strict about them.
    pub fn wants_form(&self) -> bool {
        let has_form = match &self.input {
            TextInput::Chat { tools, tool_choice, .. } => {
                !tool_choice.is_auto() || tools.iter().any(|tool| tool["function"]["strict"] == true)
            }
            _ => false,
        };
        has_form || self.format.is_some()
    }

    /// A request to continue this text.
    pub fn prompt(text: impl Into<String>) -> Self {
        Self::new(TextInput::prompt(text))
    }

    /// A request to answer this message of a user.
    pub fn ask(content: impl Into<String>) -> Self {
        Self::new(TextInput::chat(vec![Message::user(content)]))
    }
}

/// The prompt, in one of its forms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextInput {
    /// A conversation, rendered by the model's chat template.
    #[non_exhaustive]
    Chat {
        /// In order, at least one.
        messages: Vec<Message>,
        /// Tools in OpenAI's form, for the template.
        #[serde(default)]
        tools: Vec<serde_json::Value>,
        /// The last message is the assistant's, and the answer goes on with it: the prompt ends with its text, without the mark
        /// by which a turn ends, and no new turn begins.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        continue_final: bool,
        /// Whether and which of the tools is to be called.
        #[serde(default, skip_serializing_if = "ToolChoice::is_auto")]
        tool_choice: ToolChoice,
        /// Whether the answer may call several tools.
        #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
        parallel_tool_calls: bool,
        /// Names that the chat template knows beside its own: `enable_thinking`, `reasoning_effort` and what else the client
        /// sent.
        #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
        template_arguments: serde_json::Map<String, serde_json::Value>,
    },
    /// Text, tokenised as it is.
    #[non_exhaustive]
    Prompt {
        /// The text to continue, UTF-8.
        text: String,
    },
    /// What is to be written between two texts, by a model that was taught to (fill in the middle, Bavarian et al. 2022).
    #[non_exhaustive]
    FillIn {
        /// The text before it, UTF-8.
        prefix: String,
        /// The text behind it, UTF-8.
        suffix: String,
    },
    /// Token ids of the model's own vocabulary.
    #[non_exhaustive]
    Tokens {
        /// Ids below the model's vocabulary size.
        tokens: Vec<u32>,
    },
}

impl TextInput {
    /// A conversation, of at least one message, without tools.
    pub fn chat(messages: Vec<Message>) -> Self {
        Self::Chat {
            messages,
            tools: Vec::new(),
            continue_final: false,
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            template_arguments: serde_json::Map::new(),
        }
    }

    /// A conversation in which these tools, in OpenAI's form, may be called, or have to be.
    pub fn with_tools(messages: Vec<Message>, tools: Vec<serde_json::Value>, choice: ToolChoice) -> Self {
        let mut input = Self::chat(messages);
        if let Self::Chat { tools: all, tool_choice, .. } = &mut input {
            (*all, *tool_choice) = (tools, choice);
        }
        input
    }

    /// A conversation whose last message, of the assistant, is to be gone on with.
    pub fn continued(messages: Vec<Message>) -> Self {
        let mut input = Self::chat(messages);
        if let Self::Chat { continue_final, .. } = &mut input {
            *continue_final = true;
        }
        input
    }

    /// Text to continue.
    pub fn prompt(text: impl Into<String>) -> Self {
        Self::Prompt { text: text.into() }
    }

    /// What is to be written between two texts.
    pub fn fill_in(prefix: impl Into<String>, suffix: impl Into<String>) -> Self {
        Self::FillIn { prefix: prefix.into(), suffix: suffix.into() }
    }

    /// Token ids to continue.
    pub fn tokens(tokens: Vec<u32>) -> Self {
        Self::Tokens { tokens }
    }

    /// What an engine answers to a form that is newer than itself: its user is told to update it, and no client is blamed.
    ///
    /// ```
    /// # use aihost_plugin_api::{Result, TextInput};
    /// fn text(input: TextInput) -> Result<String> {
    ///     match input {
    ///         TextInput::Prompt { text, .. } => Ok(text),
    ///         newer => Err(newer.unsupported()),
    ///     }
    /// }
    /// # assert!(text(TextInput::tokens(vec![1])).unwrap_err().message().contains("`tokens`"));
    /// ```
    pub fn unsupported(&self) -> Error {
        let form = match self {
            Self::Chat { .. } => "chat",
            Self::Prompt { .. } => "prompt",
            Self::FillIn { .. } => "fill_in",
            Self::Tokens { .. } => "tokens",
        };
        let message =
            format!("the plugin does not serve prompts of the form `{form}`; update it, or ask another model");
        Error::new(ErrorKind::Unsupported, message)
    }
}

fn yes() -> bool {
    true
}

/// Whether and which of a conversation's tools is to be called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// One at least. A host asks only a plugin that declares `grammar`.
    Required,
    /// This one. A host asks only a plugin that declares `grammar`.
    #[non_exhaustive]
    Named {
        /// The function's name, which is among the tools.
        name: String,
    },
}

impl ToolChoice {
    /// The function of this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self::Named { name: name.into() }
    }

    /// Whether the model may choose.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// What a text is to be. Whatever ends by itself (with [`FinishReason::Stop`]) is as it says; what is cut at `max_tokens` is a
/// beginning of such a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextFormat {
    /// A JSON object (RFC 8259).
    JsonObject,
    /// JSON that a schema allows (JSON Schema 2020-12 and the drafts before it).
    #[non_exhaustive]
    JsonSchema {
        /// The schema.
        schema: serde_json::Value,
    },
    /// A text that a regular expression matches as a whole, in the syntax of Rust's `regex`, without look-around.
    #[non_exhaustive]
    Regex {
        /// The expression.
        pattern: String,
    },
    /// A text of a context-free grammar.
    #[non_exhaustive]
    Lark {
        /// The grammar, in llguidance's dialect of Lark.
        grammar: String,
    },
}

impl TextFormat {
    /// JSON that this schema allows.
    pub fn json_schema(schema: serde_json::Value) -> Self {
        Self::JsonSchema { schema }
    }

    /// A text that this expression matches as a whole.
    pub fn regex(pattern: impl Into<String>) -> Self {
        Self::Regex { pattern: pattern.into() }
    }

    /// A text of this grammar.
    pub fn lark(grammar: impl Into<String>) -> Self {
        Self::Lark { grammar: grammar.into() }
    }
}

/// One turn of a conversation. `content` is always a string: the host has flattened content parts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text of the turn; empty for an assistant turn that only called tools.
    pub content: String,
    /// The participant's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The calls an assistant turn made, in OpenAI's form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<serde_json::Value>,
    /// Which call a `tool` turn answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

builders! {
    Message:
    name(some String), tool_calls(some serde_json::Value), tool_call_id(some String),
}

impl Message {
    /// A turn of `system`, `user`, `assistant` or `tool`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }
}

/// How the next token is chosen. The order is: penalties and bias, temperature, top_k, top_p, min_p, draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct Sampling {
    /// 0 is greedy; 0 to 2.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; (0, 1], 1 is off.
    pub top_p: f32,
    /// Keep the k likeliest tokens; 0 is off.
    pub top_k: u32,
    /// Keep tokens at least this share as likely as the likeliest; [0, 1], 0 is off.
    pub min_p: f32,
    /// The same seed, model and request give the same text. Absent: drawn by the plugin.
    pub seed: Option<u64>,
    /// Divides positive and multiplies negative logits of tokens seen in prompt and answer (CTRL, Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the answer; -2 to 2.
    pub frequency_penalty: f32,
    /// Subtracted once from every token in the answer; -2 to 2.
    pub presence_penalty: f32,
    /// Added to the logits of these token ids; -100 to 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Names of those above that nobody has asked for, whatever they are: a model that comes with others takes its own.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unset: BTreeSet<String>,
}

builders! {
    Sampling:
    temperature(f32), top_p(f32), top_k(u32), min_p(f32), seed(some u64), repetition_penalty(f32), frequency_penalty(f32),
    presence_penalty(f32), logit_bias(BTreeMap<u32, f32>), unset(BTreeSet<String>),
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            unset: BTreeSet::new(),
        }
    }
}

/// What a text engine pushes while it generates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TextEvent {
    /// More of the answer.
    #[non_exhaustive]
    Text {
        /// Whole characters only.
        text: String,
        /// One entry per token of `text`, if asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<TokenLogprob>,
    },
    /// More of the model's reasoning, which is not part of the answer.
    #[non_exhaustive]
    Reasoning {
        /// Whole characters only.
        text: String,
    },
    /// A tool call begins.
    #[non_exhaustive]
    ToolCall {
        /// 0-based, dense.
        index: u32,
        /// `call_...`
        id: String,
        /// The function's name.
        name: String,
    },
    /// More of a tool call's JSON arguments.
    #[non_exhaustive]
    ToolArguments {
        /// The index of the call, as its `ToolCall` event said.
        index: u32,
        /// A fragment of JSON text.
        fragment: String,
    },
    /// More of the text by which the model refuses.
    #[non_exhaustive]
    Refusal {
        /// Whole characters only.
        text: String,
    },
    /// How long the prompt is, before anything of the answer; the same as in the end's [`Usage`].
    #[non_exhaustive]
    Prompt {
        /// How many tokens it has.
        tokens: u32,
        /// How many of them a cache held.
        cached: u32,
    },
    /// More of the tokens of the input, where they were asked for.
    #[non_exhaustive]
    Tokens {
        /// In order.
        tokens: Vec<Token>,
    },
    /// One that this build does not know; it is passed over.
    #[serde(other)]
    Unknown,
}

impl TextEvent {
    /// More of the answer, whole characters only.
    pub fn text(text: impl Into<String>, logprobs: Vec<TokenLogprob>) -> Self {
        Self::Text { text: text.into(), logprobs }
    }

    /// More of the model's reasoning, whole characters only.
    pub fn reasoning(text: impl Into<String>) -> Self {
        Self::Reasoning { text: text.into() }
    }

    /// A tool call begins: `index` counts from 0.
    pub fn tool_call(index: u32, id: impl Into<String>, name: impl Into<String>) -> Self {
        Self::ToolCall { index, id: id.into(), name: name.into() }
    }

    /// More of the arguments of the call of this index.
    pub fn tool_arguments(index: u32, fragment: impl Into<String>) -> Self {
        Self::ToolArguments { index, fragment: fragment.into() }
    }

    /// More of the text by which the model refuses, whole characters only.
    pub fn refusal(text: impl Into<String>) -> Self {
        Self::Refusal { text: text.into() }
    }
}

/// A token of a model's vocabulary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Token {
    /// Its number.
    pub id: u32,
    /// What it stands for, which need not be whole characters; empty for one that stands for no text.
    pub bytes: Vec<u8>,
}

impl Token {
    /// The token of this number, which stands for these bytes.
    pub fn new(id: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self { id, bytes: bytes.into() }
    }
}

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenLogprob {
    /// The chosen token.
    #[serde(flatten)]
    pub chosen: LogprobEntry,
    /// The likeliest alternatives, likeliest first.
    pub top: Vec<LogprobEntry>,
}

impl TokenLogprob {
    /// This token was chosen; these were the likeliest, likeliest first.
    pub fn new(chosen: LogprobEntry, top: Vec<LogprobEntry>) -> Self {
        Self { chosen, top }
    }
}

/// A token's text and natural-log probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogprobEntry {
    /// The token's text, invalid UTF-8 replaced.
    pub token: String,
    /// The token's bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// At most 0; -9999 stands for minus infinity.
    pub logprob: f32,
}

impl LogprobEntry {
    /// The token of these bytes, with its natural-log probability.
    pub fn new(bytes: impl Into<Vec<u8>>, logprob: f32) -> Self {
        let bytes = bytes.into();
        Self { token: String::from_utf8_lossy(&bytes).into_owned(), bytes, logprob }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// End of sequence, or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The model called tools.
    ToolCalls,
    /// A filter held the rest of the answer back.
    ContentFilter,
    /// The client left.
    Cancelled,
    /// One that this build does not know; it counts as `Stop`.
    #[serde(other)]
    Unknown,
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Part of `prompt_tokens` found in a cache.
    #[serde(default)]
    pub cached_tokens: u32,
    /// Part of `completion_tokens` that was reasoning.
    #[serde(default, skip_serializing_if = "is_none")]
    pub reasoning_tokens: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_none(tokens: &u32) -> bool {
    *tokens == 0
}

builders! {
    Usage:
    prompt_tokens(u32), completion_tokens(u32), cached_tokens(u32), reasoning_tokens(u32),
}

/// The result of one text request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TextFinish {
    /// Why the text ended.
    pub reason: FinishReason,
    /// Tokens of the prompt and of the answer.
    pub usage: Usage,
    /// Which of the request's stop strings ended it, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<u32>,
}

builders! {
    TextFinish:
    usage(Usage), stop(some u32),
}

impl TextFinish {
    /// The end of a text, of whose tokens nothing is known.
    pub fn new(reason: FinishReason) -> Self {
        Self { reason, usage: Usage::default(), stop: None }
    }
}
