//! How models write what is no plain text: their reasoning, and their calls of tools.
//!
//! Each family has its own marks, and its chat template shows which. [`AnswerSyntax::of_template`] tells them, [`reader`] reads an
//! answer by them, and the grammar of a forced call is made of them.

mod call;
mod harmony;
mod reader;

pub(crate) use reader::{AnswerReader, Piece};

use crate::task::TextInput;

/// How a model writes its reasoning and its calls of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerSyntax {
    /// What stands before and behind its reasoning.
    pub(crate) reasoning: Option<(&'static str, &'static str)>,
    pub(crate) calls: CallSyntax,
}

/// How a model writes its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallSyntax {
    /// A JSON object in `<tool_call>`: Hermes, Qwen 2.5 and 3, SmolLM 3, Granite 4.
    Tagged,
    /// `<function=` and `<parameter=` in `<tool_call>`: Qwen3-Coder, Nemotron 3.
    TaggedXml,
    /// A JSON object with `parameters`, behind `<|python_tag|>` or nothing: Llama 3. Or in `<function=`: Functionary 3.1.
    Llama,
    /// A JSON array behind `[TOOL_CALLS]`: Mistral up to 2024.
    Mistral,
    /// A name, `[ARGS]` and a JSON object behind `[TOOL_CALLS]`: Mistral from 2025 on.
    MistralNamed,
    /// A JSON array between `<|tool_call|>` and `<|/tool_call|>`: Phi 4.
    Phi,
    /// A JSON array behind `<|tool_call|>`: Granite 3.
    Granite,
    /// A name and fenced JSON between marks of their own: DeepSeek V3 and R1.
    DeepSeek,
    /// The same without the fence: DeepSeek V3.1.
    DeepSeekPlain,
    /// Messages to `functions.NAME` on a channel: gpt-oss.
    Harmony,
    /// A JSON object and nothing else.
    Bare,
}

impl CallSyntax {
    /// Whether a call begins with its name alone.
    pub(crate) fn takes_names(self) -> bool {
        matches!(self, Self::Mistral | Self::MistralNamed | Self::DeepSeek | Self::DeepSeekPlain)
    }
}

/// What a mark in an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A call stands behind it.
    Opens,
    /// A call begins with it.
    Begins,
    /// It stands around calls, and says nothing.
    Frames,
}

/// DeepSeek's marks.
pub(crate) const DEEPSEEK_CALLS: [&str; 2] =
    ["<\u{ff5c}tool\u{2581}calls\u{2581}begin\u{ff5c}>", "<\u{ff5c}tool\u{2581}calls\u{2581}end\u{ff5c}>"];
pub(crate) const DEEPSEEK_CALL: [&str; 2] =
    ["<\u{ff5c}tool\u{2581}call\u{2581}begin\u{ff5c}>", "<\u{ff5c}tool\u{2581}call\u{2581}end\u{ff5c}>"];
pub(crate) const DEEPSEEK_SEPARATOR: &str = "<\u{ff5c}tool\u{2581}sep\u{ff5c}>";

/// Where an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerStart {
    /// The model may reason first, or not.
    Free,
    /// The prompt has begun the reasoning.
    InReasoning,
    /// There is no reasoning, or the prompt has ended it.
    PastReasoning,
}

impl AnswerSyntax {
    /// A model that writes text alone, and is told of tools by a prompt that asks for JSON objects in `<tool_call>`.
    pub const TAGGED: Self = Self { reasoning: None, calls: CallSyntax::Tagged };

    /// What a model that was taught by this chat template (Jinja) writes.
    ///
    /// ```
    /// use aihost_plugin_api::{AnswerStart, AnswerSyntax};
    ///
    /// let syntax = AnswerSyntax::of_template("{{ '<think>' }} ... {{ '<tool_call>' }}");
    /// assert!(syntax.reasons());
    /// assert_eq!(syntax.start("<|im_start|>assistant\n<think>\n"), AnswerStart::InReasoning);
    /// assert_eq!(syntax.start("<|im_start|>assistant\n<think>\n\n</think>\n\n"), AnswerStart::PastReasoning);
    /// ```
    pub fn of_template(template: &str) -> Self {
        let has = |text: &str| template.contains(text);
        let calls = if has("<|channel|>") && has("<|message|>") {
            CallSyntax::Harmony
        } else if has(DEEPSEEK_CALL[0]) {
            if has("```json") { CallSyntax::DeepSeek } else { CallSyntax::DeepSeekPlain }
        } else if has("[TOOL_CALLS]") {
            if has("[ARGS]") { CallSyntax::MistralNamed } else { CallSyntax::Mistral }
        } else if has("<function=") && has("<parameter=") {
            CallSyntax::TaggedXml
        } else if has("<tool_call>") {
            CallSyntax::Tagged
        } else if has("<|tool_call|>") || has("functools[") {
            if has("<|/tool_call|>") || has("functools[") { CallSyntax::Phi } else { CallSyntax::Granite }
        } else if has("<|python_tag|>") || has("\"parameters\": dictionary") {
            CallSyntax::Llama
        } else {
            CallSyntax::Bare
        };
        let pairs = [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")];
        let reasoning = pairs.into_iter().find(|(open, close)| has(open) || has(close));
        Self { reasoning, calls }
    }

    /// The same model, which a prompt has told of its tools by asking for JSON objects in `<tool_call>`.
    #[must_use]
    pub fn tagged(self) -> Self {
        match self.calls {
            CallSyntax::Harmony => self,
            _ => Self { calls: CallSyntax::Tagged, ..self },
        }
    }

    /// Whether the model may reason before it answers.
    pub fn reasons(&self) -> bool {
        self.reasoning.is_some() || self.calls == CallSyntax::Harmony
    }

    /// Where the answer to this prompt begins.
    pub fn start(&self, prompt: &str) -> AnswerStart {
        let prompt = prompt.trim_end();
        match self.reasoning {
            Some((open, _)) if prompt.ends_with(open) => AnswerStart::InReasoning,
            Some((_, close)) if prompt.ends_with(close) => AnswerStart::PastReasoning,
            Some(_) => AnswerStart::Free,
            None if self.calls == CallSyntax::Harmony => AnswerStart::Free,
            None => AnswerStart::PastReasoning,
        }
    }

    /// Texts by which an answer is read. Where one is a token that a model's answers do not show, its bytes are to be given to
    /// [`TextOutput`](crate::TextOutput) all the same.
    pub fn marks(&self) -> impl Iterator<Item = &'static str> {
        let (open, close) = self.reasoning.unzip();
        let calls = self.call_marks().iter().map(|(text, _)| *text);
        let others: &[&str] = match self.calls {
            CallSyntax::Harmony => &harmony::MARKS,
            CallSyntax::MistralNamed => &["[ARGS]", "[CALL_ID]"],
            CallSyntax::DeepSeek | CallSyntax::DeepSeekPlain => &[DEEPSEEK_SEPARATOR],
            _ => &[],
        };
        open.into_iter().chain(close).chain(calls).chain(others.iter().copied())
    }

    /// What stands before, around and behind calls.
    pub(crate) fn call_marks(&self) -> &'static [(&'static str, Mark)] {
        match self.calls {
            CallSyntax::Tagged => &[("<tool_call>", Mark::Opens), ("</tool_call>", Mark::Frames)],
            CallSyntax::TaggedXml => {
                &[("<tool_call>", Mark::Opens), ("<function=", Mark::Begins), ("</tool_call>", Mark::Frames)]
            }
            CallSyntax::Llama => &[("<|python_tag|>", Mark::Opens), ("<function=", Mark::Begins)],
            CallSyntax::Mistral | CallSyntax::MistralNamed => &[("[TOOL_CALLS]", Mark::Opens)],
            CallSyntax::Phi | CallSyntax::Granite => &[
                ("<|tool_call|>", Mark::Opens),
                ("<tool_call>", Mark::Opens),
                ("functools", Mark::Opens),
                ("<|/tool_call|>", Mark::Frames),
                ("</tool_call>", Mark::Frames),
            ],
            CallSyntax::DeepSeek | CallSyntax::DeepSeekPlain => &[
                (DEEPSEEK_CALL[0], Mark::Opens),
                (DEEPSEEK_CALL[1], Mark::Frames),
                (DEEPSEEK_CALLS[0], Mark::Frames),
                (DEEPSEEK_CALLS[1], Mark::Frames),
            ],
            CallSyntax::Harmony | CallSyntax::Bare => &[],
        }
    }
}

/// The functions that a conversation's tools are, with the schemas of their parameters.
pub(crate) fn functions(input: &TextInput) -> Vec<(String, serde_json::Value)> {
    let TextInput::Chat { tools, .. } = input else { return Vec::new() };
    let function = |tool: &serde_json::Value| {
        let function = tool.get("function").unwrap_or(tool);
        Some((function.get("name")?.as_str()?.to_owned(), function.get("parameters").cloned().unwrap_or_default()))
    };
    tools.iter().filter_map(function).collect()
}
