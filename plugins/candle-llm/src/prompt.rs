//! What a request says to the model, as token ids, and what its answer will look like: from chat templates and the tokenizer to the
//! syntax in which the model reasons and calls tools, and to the grammar that keeps an answer to its form.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use aihost_plugin_api::{
    AnswerStart, AnswerSyntax, Error, Grammar, GrammarToken, GrammarVocabulary, Result, TextInput, TextRequest,
};
use serde_json::{Map, Value};

use crate::template::{ChatTemplate, ControlTokens, Conversation, PromptEnd};
use crate::tokenizer::Tokenizer;

/// Makes the prompts of one model.
#[derive(Debug)]
pub struct Prompts {
    tokenizer: Arc<Tokenizer>,
    chat: Option<Chat>,
    /// Tokens of a prompt and its answer together.
    context: usize,
    /// Made when the first request asks for a grammar.
    grammar: OnceLock<Result<GrammarVocabulary>>,
}

/// How the model is talked with.
#[derive(Debug)]
struct Chat {
    template: ChatTemplate,
    /// What is a token only where the template has it.
    control: ControlTokens,
    /// How it answers without tools, and with them, where nothing is said before.
    answers: [Answer; 2],
}

/// A request's prompt.
#[derive(Debug)]
pub struct Prompt {
    /// At least one, fewer than the context.
    pub ids: Vec<u32>,
    /// How the answer is to be read, if it is a chat's.
    pub answer: Option<Answer>,
}

/// How an answer is to be read.
#[derive(Clone, Debug)]
pub struct Answer {
    /// How the model writes its reasoning and its calls.
    pub syntax: AnswerSyntax,
    /// Where the prompt leaves it.
    pub start: AnswerStart,
    /// Tokens that an answer does not show and that it is read by.
    pub marks: Arc<HashSet<u32>>,
}

impl Prompts {
    /// For a model of this tokenizer and template, and so many tokens of prompt and answer together.
    ///
    /// # Errors
    /// `Internal` if the vocabulary has more tokens that steer the model than can be looked for.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>, context: usize) -> Result<Self> {
        let chat = template.map(|template| -> Result<Chat> {
            let answers = [false, true].map(|has_tools| {
                let syntax = AnswerSyntax::of_template(template.source_for(has_tools));
                let syntax = if has_tools && !template.writes_tools() { syntax.tagged() } else { syntax };
                let names: HashSet<&str> = syntax.marks().collect();
                let marks = tokenizer.control().filter(|(_, name)| names.contains(name)).map(|(id, _)| id).collect();
                Answer { syntax, start: AnswerStart::Free, marks: Arc::new(marks) }
            });
            let control = ControlTokens::new(tokenizer.control().map(|(_, name)| name))?;
            Ok(Chat { template, control, answers })
        });
        let chat = chat.transpose()?;
        Ok(Self { tokenizer: Arc::new(tokenizer), chat, context, grammar: OnceLock::new() })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The prompt of a request.
    ///
    /// # Errors
    /// `InvalidRequest` that names the field: it is empty, or of a form that this model does not take. `ContextLength` if it leaves
    /// no room for an answer.
    pub fn prompt(&self, input: &TextInput) -> Result<Prompt> {
        let (ids, answer) = self.read(input, self.context)?;
        let ids = if ids.is_empty() { self.tokenizer.bos().into_iter().collect() } else { ids };
        if ids.is_empty() {
            return Err(
                Error::invalid_request("the prompt is empty, and this model has no token to begin with").at("prompt")
            );
        }
        if ids.len() >= self.context {
            return Err(self.too_long(format_args!("{} tokens", ids.len()), Some(ids.len())));
        }
        Ok(Prompt { ids, answer })
    }

    /// What the model reads of an input that has at most about so many tokens.
    ///
    /// # Errors
    /// As [`prompt`](Self::prompt).
    pub fn ids(&self, input: &TextInput, most: usize) -> Result<Vec<u32>> {
        self.read(input, most).map(|(ids, _)| ids)
    }

    /// What keeps the answer to this request to its form, if it asks for one.
    ///
    /// # Errors
    /// `InvalidRequest`, which names the field, if the form has something that cannot be kept.
    pub fn grammar(&self, request: &TextRequest, prompt: &Prompt) -> Result<Option<Grammar>> {
        if !request.wants_form() {
            return Ok(None);
        }
        let vocabulary = self.grammar.get_or_init(|| self.grammar_vocabulary()).as_ref().map_err(Clone::clone)?;
        let plain = (AnswerSyntax::TAGGED, AnswerStart::PastReasoning);
        let (syntax, start) = prompt.answer.as_ref().map_or(plain, |answer| (answer.syntax, answer.start));
        vocabulary.grammar(request, syntax, start)
    }

    fn grammar_vocabulary(&self) -> Result<GrammarVocabulary> {
        let tokenizer = &self.tokenizer;
        let token = |id| {
            let bytes = tokenizer.bytes(id);
            if tokenizer.is_control(id) {
                GrammarToken::Special(String::from_utf8_lossy(bytes).into_owned())
            } else {
                GrammarToken::Bytes(bytes.to_vec())
            }
        };
        let count = u32::try_from(tokenizer.tokens()).unwrap_or(u32::MAX);
        let ends: Vec<u32> = tokenizer.ends().collect();
        GrammarVocabulary::new((0..count).map(token), &ends)
    }

    fn read(&self, input: &TextInput, most: usize) -> Result<(Vec<u32>, Option<Answer>)> {
        let tokenizer = &self.tokenizer;
        let ids = match input {
            TextInput::Chat { messages, tools, continue_final, template_arguments, .. } => {
                let chat = self.chat.as_ref().ok_or_else(|| {
                    Error::invalid_request("this model has no chat template, so it answers completions only; set `chat_template` in its options")
                })?;
                let bytes = self.most_bytes(most);
                let end = if *continue_final { PromptEnd::LastMessage } else { PromptEnd::NewTurn };
                let arguments = named_both_ways(template_arguments);
                let conversation = Conversation { messages, tools, arguments: &arguments, end };
                let rendered = chat.template.render_apart(&conversation, bytes, &chat.control)?;
                let rendered = rendered.ok_or_else(|| self.too_long(format_args!("more than {bytes} bytes"), None))?;
                let mut answer = chat.answers[usize::from(!tools.is_empty())].clone();
                let begun = || answer.syntax.start(&rendered.text);
                answer.start = if *continue_final { AnswerStart::PastReasoning } else { begun() };
                return Ok((self.encode(&rendered.parts(), most)?, Some(answer)));
            }
            TextInput::Prompt { text, .. } => self.encode(&[text], most)?,
            TextInput::FillIn { prefix, suffix, .. } => {
                let Some(marks) = tokenizer.fill_in() else {
                    let message = "this model was not taught to fill in: its vocabulary has no tokens for what stands before and behind";
                    return Err(Error::invalid_request(message).at("suffix"));
                };
                let (prefix, suffix) = (self.encode(&[prefix], most)?, self.encode(&[suffix], most)?);
                let plain = |ids: Vec<u32>| ids.into_iter().skip_while(|id| Some(*id) == tokenizer.added_bos());
                let bos = tokenizer.added_bos().into_iter();
                bos.chain([marks.prefix])
                    .chain(plain(prefix))
                    .chain([marks.suffix])
                    .chain(plain(suffix))
                    .chain([marks.middle])
                    .collect()
            }
            TextInput::Tokens { tokens, .. } => {
                if let Some(id) = tokens.iter().find(|id| **id as usize >= tokenizer.tokens()) {
                    let message =
                        format!("the prompt has the token {id}, but the vocabulary has {} tokens", tokenizer.tokens());
                    return Err(Error::invalid_request(message).at("prompt"));
                }
                tokens.clone()
            }
            newer => return Err(newer.unsupported()),
        };
        Ok((ids, None))
    }

    /// The ids of a text's parts that have at most so many. What cannot is refused before it is cut into tokens, which takes some
    /// hundred times its length.
    fn encode(&self, parts: &[&str], most: usize) -> Result<Vec<u32>> {
        let tokenizer = &self.tokenizer;
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if bytes > self.most_bytes(most) {
            let tokens = bytes.div_ceil(tokenizer.longest());
            return Err(self.too_long(format_args!("{bytes} bytes, which are at least {tokens} tokens"), None));
        }
        let encoded = tokenizer.encode_up_to(parts, most)?;
        if encoded.is_whole {
            Ok(encoded.ids)
        } else {
            Err(self.too_long(format_args!("more than {} tokens", self.context), None))
        }
    }

    /// Bytes of a text that may have so many tokens.
    fn most_bytes(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.tokenizer.longest())
    }

    /// `tokens`: those of the prompt, if they were counted.
    fn too_long(&self, has: std::fmt::Arguments<'_>, tokens: Option<usize>) -> Error {
        let context = self.context;
        let message = format!(
            "This model's maximum context length is {context} tokens, but the prompt has {has}, which exceeds the available context size once an answer is to follow; shorten the prompt"
        );
        let counted = tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX));
        Error::context_length(message, counted, u32::try_from(context).unwrap_or(u32::MAX))
    }
}

/// Whether to reason is asked by two names: most templates' and DeepSeek's.
fn named_both_ways(arguments: &Map<String, Value>) -> Map<String, Value> {
    let mut arguments = arguments.clone();
    if let Some(thinks) = arguments.get("enable_thinking").cloned() {
        arguments.entry("thinking").or_insert(thinks);
    }
    arguments
}
