//! Fixture plugin `aihost/echo`: says the last user message back, word by word. The smallest plugin that does everything
//! right, and the one to read first; it stands for a model wherever a test needs one that is quick.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aihost_plugin_api::{
    Context, Engine, Error, FinishReason, LoadContext, LoadRequest, MemoryPlan, MemoryUsage, Plugin, Result, Text,
    TextInput, TextOutput, TextRequest,
};

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
    /// Said before the message, so that an answer can tell which model gave it.
    preface: String,
}

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
}

impl Plugin for Echo {
    type Options = Options;
    type Engine = Loaded;

    fn new(options: Options) -> Result<Self> {
        Ok(Self(options))
    }

    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan::new(self.0.memory))
    }

    fn load(&self, _load: &LoadRequest, ctx: &LoadContext) -> Result<Loaded> {
        take(self.0.load_ms, ctx)?;
        pass(self.0.load_gate.as_deref(), || ctx.check())?;
        Ok(Loaded { options: self.0.clone(), weights: Mutex::new(Some(weights(&self.0))) })
    }
}

impl Engine for Loaded {
    type Task = Text;

    fn generate(&self, request: TextRequest, output: &TextOutput, ctx: &Context) -> Result<FinishReason> {
        if self.weights().is_none() {
            return Err(Error::internal("the model is parked"));
        }
        let text = self.options.preface.clone() + &last_message(request.input)?;
        let words: Vec<&str> = text.split_inclusive(' ').collect();
        output.prompt(words.len() as u32, 0);
        let wanted = self.options.tokens.unwrap_or(words.len() as u32);
        let most = request.max_tokens.unwrap_or(u32::MAX);
        for (said, word) in words.iter().cycle().take(wanted.min(most) as usize).enumerate() {
            std::thread::sleep(Duration::from_millis(self.options.latency_ms));
            ctx.check()?;
            output.token(word.as_bytes())?;
            if said == 0 {
                pass(self.options.answer_gate.as_deref(), || ctx.check())?;
            }
        }
        Ok(if most < wanted { FinishReason::Length } else { FinishReason::Stop })
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

/// Waits until the gate's file exists.
fn pass(gate: Option<&Path>, check: impl Fn() -> Result<()>) -> Result<()> {
    while gate.is_some_and(|file| !file.exists()) {
        check()?;
        std::thread::sleep(GATE_POLL);
    }
    Ok(())
}

fn last_message(input: TextInput) -> Result<String> {
    Ok(match input {
        // What it goes on with.
        TextInput::Chat { mut messages, continue_final: true, .. } => messages.pop().unwrap_or_default().content,
        TextInput::Chat { messages, .. } => {
            messages.into_iter().rev().find(|message| message.role == "user").map_or_else(String::new, |m| m.content)
        }
        TextInput::Prompt { text, .. } => text,
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
}
