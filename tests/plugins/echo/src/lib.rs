//! Fixture plugin `aihost/echo`: says the last user message back, word by word. The smallest plugin that does everything
//! right, and the one to read first; it stands for a model wherever a test needs one that is quick.

#![forbid(unsafe_code)]

mod form;
mod script;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aihost_plugin_api::{
    Context, Engine, Error, FinishReason, Flow, LoadContext, LoadRequest, LogprobEntry, MemoryPlan, MemoryUsage,
    ModelFacts, Plugin, Result, Text, TextInput, TextOutput, TextRequest, Token, TokenLogprob,
};
use script::Act;

/// The entry's `options:`.
#[derive(Clone, Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Milliseconds before each token.
    latency_ms: u64,
    /// Milliseconds a load takes.
    load_ms: u64,
    /// Bytes the plan asks for.
    memory: u64,
    /// Whether those bytes are really allocated, and really given back by a park.
    allocate: bool,
    /// Milliseconds a park takes.
    park_ms: u64,
    /// Milliseconds an unpark takes.
    unpark_ms: u64,
    /// Bytes of its device that it keeps while it is parked, and says so.
    keeps: u64,
    /// A park that says it is done and keeps its memory.
    leak_on_park: bool,
    /// Bytes that each byte of a request's text costs beyond the plan.
    cost_per_byte: u64,
    /// Tokens of an answer: the message is repeated or cut to this many. Absent: the message once.
    tokens: Option<u32>,
    /// A load waits at its end until this file exists. By gates a test holds a model until it has seen what it waits for.
    load_gate: Option<PathBuf>,
    /// An answer waits behind its first token until this file exists.
    answer_gate: Option<PathBuf>,
    /// A park waits at its beginning until this file exists.
    park_gate: Option<PathBuf>,
    /// A file that a load reads, `model` for that of the role or else one of this name beside it. Answers begin with its path
    /// and its text.
    reads: Option<String>,
    /// Said before the message, so that an answer can tell which model gave it.
    preface: String,
    /// Lines of a message are acted out: `say: TEXT`, `think: TEXT`, `refuse: TEXT`, `call: NAME JSON`; so is a call of a
    /// given tool that it spells out, `add(1, 2)`.
    script: bool,
}

/// Tokens of prompt and answer together that it says it takes.
const CONTEXT: u32 = 32768;

/// How often a gate is looked at.
const GATE_POLL: Duration = Duration::from_millis(5);

/// The plugin, with the entry's options.
#[derive(Debug)]
pub struct Echo(Options);

/// A loaded instance.
#[derive(Debug)]
pub struct Loaded {
    options: Options,
    /// What stands for weights; nothing while parked.
    weights: Mutex<Option<Vec<u8>>>,
    /// Words that it was asked for as tokens.
    vocabulary: Mutex<Vec<String>>,
}

impl Plugin for Echo {
    type Options = Options;
    type Engine = Loaded;

    fn new(options: Options) -> Result<Self> {
        Ok(Self(options))
    }

    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        let plan = MemoryPlan::new(self.0.memory);
        if !self.0.script {
            return Ok(plan);
        }
        let abilities = ["tools", "reasoning", "fill_in"].map(ToOwned::to_owned).to_vec();
        let facts = ModelFacts::default()
            .context_length(CONTEXT)
            .trained_context_length(CONTEXT)
            .architecture("echo".to_owned());
        Ok(plan.facts(facts.abilities(abilities)))
    }

    fn load(&self, load: &LoadRequest, ctx: &LoadContext) -> Result<Loaded> {
        let mut options = self.0.clone();
        if let Some(name) = &self.0.reads {
            options.preface += &read(load.file("model")?, name)?;
        }
        take(self.0.load_ms, ctx)?;
        pass(self.0.load_gate.as_deref(), || ctx.check())?;
        Ok(Loaded { options, weights: Mutex::new(Some(weights(&self.0))), vocabulary: Mutex::default() })
    }
}

impl Engine for Loaded {
    type Task = Text;

    fn generate(&self, request: TextRequest, output: &TextOutput, ctx: &Context) -> Result<FinishReason> {
        if self.weights().is_none() {
            return Err(Error::internal("the model is parked"));
        }
        let message = last_message(request.input.clone())?;
        if request.wants_form() {
            return form::answer(&request, &message, output, ctx);
        }
        if self.options.script {
            return self.act(&request, &message, output, ctx);
        }
        let text = self.options.preface.clone() + &message;
        let words: Vec<&str> = text.split_inclusive(' ').collect();
        output.prompt(words.len() as u32, 0);
        let wanted = self.options.tokens.unwrap_or(words.len() as u32);
        let most = request.max_tokens.unwrap_or(u32::MAX);
        for (said, word) in words.iter().cycle().take(wanted.min(most) as usize).enumerate() {
            self.say(word, &request, output, ctx)?;
            if said == 0 {
                pass(self.options.answer_gate.as_deref(), || ctx.check())?;
            }
        }
        Ok(if most < wanted { FinishReason::Length } else { FinishReason::Stop })
    }

    /// Words are its tokens, numbered as they are met.
    fn tokens(&self, input: &TextInput) -> Result<Vec<Token>> {
        let mut vocabulary = self.vocabulary.lock().unwrap_or_else(PoisonError::into_inner);
        if let TextInput::Tokens { tokens, .. } = input {
            let known = |id: &u32| Some(Token::new(*id, vocabulary.get(*id as usize)?.as_bytes()));
            let unknown = || Error::invalid_request("a token is not in the vocabulary").at("tokens");
            return tokens.iter().map(known).collect::<Option<_>>().ok_or_else(unknown);
        }
        let text = last_message(input.clone())?;
        let mut number = |word: &str| match vocabulary.iter().position(|known| known == word) {
            Some(at) => at as u32,
            None => {
                vocabulary.push(word.to_owned());
                vocabulary.len() as u32 - 1
            }
        };
        Ok(text.split_inclusive(' ').map(|word| Token::new(number(word), word)).collect())
    }

    fn cost(&self, request: &TextRequest) -> Result<u64> {
        Ok(self.options.cost_per_byte * last_message(request.input.clone())?.len() as u64)
    }

    fn usage(&self) -> MemoryUsage {
        let held = if self.weights().is_some() { self.options.memory } else { self.options.keeps };
        MemoryUsage::new(held, held)
    }

    fn park(&self) -> Result<()> {
        pass(self.options.park_gate.as_deref(), || Ok(()))?;
        std::thread::sleep(Duration::from_millis(self.options.park_ms));
        let weights = self.weights().take();
        if self.options.leak_on_park {
            let _kept_for_ever = weights.map(Vec::leak);
        }
        Ok(())
    }

    fn unpark(&self, ctx: &LoadContext) -> Result<()> {
        take(self.options.unpark_ms, ctx)?;
        self.weights().get_or_insert_with(|| weights(&self.options));
        Ok(())
    }
}

impl Loaded {
    /// Does what the message says.
    fn act(&self, request: &TextRequest, message: &str, output: &TextOutput, ctx: &Context) -> Result<FinishReason> {
        output.prompt(message.split_inclusive(' ').count() as u32, 0);
        if request.echo {
            // It knows no probabilities of a prompt.
            output.echo(message, Vec::new())?;
        }
        let mut calls = 0;
        for act in script::acts(&request.input, message) {
            match act {
                Act::Say(text) => {
                    text.split_inclusive(' ').try_for_each(|word| self.say(word, request, output, ctx))?
                }
                Act::Think(text) => output.reasoning(&text).map(drop)?,
                Act::Refuse(text) => output.refusal(&text).map(drop)?,
                Act::Call { name, arguments } => {
                    output.tool_call(calls, &format!("call_{calls}"), &name)?;
                    // In two pieces, as models write them.
                    let (head, tail) = arguments.split_at(arguments.find(':').unwrap_or(0));
                    output.tool_arguments(calls, head)?;
                    output.tool_arguments(calls, tail)?;
                    calls += 1;
                }
            }
        }
        Ok(if calls > 0 { FinishReason::ToolCalls } else { FinishReason::Stop })
    }

    /// One token, and how likely it was if that was asked.
    fn say(&self, word: &str, request: &TextRequest, output: &TextOutput, ctx: &Context) -> Result<()> {
        std::thread::sleep(Duration::from_millis(self.options.latency_ms));
        ctx.check()?;
        let mut flow = output.try_token(word.as_bytes(), logprob(word, request))?;
        while flow == Flow::Pause {
            std::thread::sleep(GATE_POLL);
            flow = output.flow()?;
        }
        Ok(())
    }

    fn weights(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.weights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn weights(options: &Options) -> Vec<u8> {
    vec![1; if options.allocate { options.memory as usize } else { 0 }]
}

/// Takes this long, and says how far it is.
fn take(milliseconds: u64, ctx: &LoadContext) -> Result<()> {
    let started = Instant::now();
    loop {
        ctx.check()?;
        let done = (started.elapsed().as_millis() as u64).min(milliseconds);
        ctx.progress(done, milliseconds);
        if done == milliseconds {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The path of a file, or of one beside it, and what it says.
fn read(model: &Path, name: &str) -> Result<String> {
    let path = if name == "model" { model.to_owned() } else { model.with_file_name(name) };
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|error| Error::internal(format!("{}: {error}", path.display())))?;
    Ok(format!("{} {text} ", path.display()))
}

/// Waits until the gate's file exists.
fn pass(gate: Option<&Path>, check: impl Fn() -> Result<()>) -> Result<()> {
    while gate.is_some_and(|file| !file.exists()) {
        check()?;
        std::thread::sleep(GATE_POLL);
    }
    Ok(())
}

/// As likely as e^-0.5, before alternatives that are less so each.
fn logprob(word: &str, request: &TextRequest) -> Option<TokenLogprob> {
    let chosen = LogprobEntry::new(word, -0.5);
    let others = (1..request.logprobs?).map(|n| LogprobEntry::new(format!("{word}{n}"), -0.5 - n as f32));
    let top = std::iter::once(chosen.clone()).chain(others).take(request.logprobs? as usize);
    Some(TokenLogprob::new(chosen, top.collect()))
}

fn last_message(input: TextInput) -> Result<String> {
    Ok(match input {
        // What it goes on with.
        TextInput::Chat { mut messages, continue_final: true, .. } => messages.pop().unwrap_or_default().content,
        TextInput::Chat { messages, .. } => {
            messages.into_iter().rev().find(|message| message.role == "user").map_or_else(String::new, |m| m.content)
        }
        TextInput::Prompt { text, .. } => text,
        TextInput::FillIn { prefix, .. } => prefix,
        TextInput::Tokens { tokens, .. } => tokens.iter().map(|token| format!("<{token}> ")).collect(),
        newer => return Err(newer.unsupported()),
    })
}

aihost_plugin_api::export_plugin! {
    plugin: Echo,
    id: "aihost/echo",
    devices: ["cpu", "cuda"],
    max_concurrency: 64,
    parks: true,
    grammar: true,
}
