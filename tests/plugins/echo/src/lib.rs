//! Fixture plugin `aihost/echo`: says the last user message back, word by word. The smallest plugin that does everything
//! right, and the one to read first; it stands for a model wherever a test needs one that is quick.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use aihost_plugin_api::task::MemoryUsage;
use aihost_plugin_api::{
    Context, Engine, FinishReason, LoadContext, LoadRequest, MemoryPlan, Plugin, Result, Text, TextInput, TextOutput,
    TextRequest,
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
    /// Whether those bytes are really allocated.
    allocate: bool,
    /// Tokens of an answer: the message is repeated or cut to this many. Absent: the message once.
    tokens: Option<u32>,
    /// Said before the message, so that an answer can tell which model gave it.
    preface: String,
}

/// The plugin.
#[derive(Debug)]
pub struct Echo(Options);

/// A loaded instance.
#[derive(Debug)]
pub struct Loaded {
    options: Options,
    /// What stands for weights.
    weights: Vec<u8>,
}

impl Plugin for Echo {
    type Options = Options;
    type Engine = Loaded;

    fn new(options: Options) -> Result<Self> {
        Ok(Self(options))
    }

    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan { required: self.0.memory, preferred: self.0.memory, ..MemoryPlan::default() })
    }

    fn load(&self, _load: &LoadRequest, ctx: &LoadContext) -> Result<Loaded> {
        let started = Instant::now();
        loop {
            ctx.check()?;
            let done = (started.elapsed().as_millis() as u64).min(self.0.load_ms);
            ctx.progress(done, self.0.load_ms);
            if done == self.0.load_ms {
                let bytes = if self.0.allocate { self.0.memory as usize } else { 0 };
                return Ok(Loaded { options: self.0.clone(), weights: vec![1; bytes] });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Engine for Loaded {
    type Task = Text;

    fn generate(&self, request: TextRequest, output: &TextOutput, ctx: &Context) -> Result<FinishReason> {
        let text = self.options.preface.clone() + &last_message(request.input);
        let words: Vec<&str> = text.split_inclusive(' ').collect();
        output.prompt(words.len() as u32, 0);
        let wanted = self.options.tokens.unwrap_or(words.len() as u32);
        let most = request.max_tokens.unwrap_or(u32::MAX);
        for word in words.iter().cycle().take(wanted.min(most) as usize) {
            std::thread::sleep(Duration::from_millis(self.options.latency_ms));
            ctx.check()?;
            output.token(word.as_bytes())?;
        }
        Ok(if most < wanted { FinishReason::Length } else { FinishReason::Stop })
    }

    fn usage(&self) -> MemoryUsage {
        let held = if self.options.allocate { self.weights.len() as u64 } else { self.options.memory };
        MemoryUsage { device: held, host: held }
    }
}

fn last_message(input: TextInput) -> String {
    match input {
        TextInput::Chat { messages, .. } => {
            messages.into_iter().rev().find(|message| message.role == "user").map_or_else(String::new, |m| m.content)
        }
        TextInput::Prompt { text } => text,
        TextInput::Tokens { tokens } => tokens.iter().map(|token| format!("<{token}> ")).collect(),
    }
}

aihost_plugin_api::export_plugin! {
    plugin: Echo,
    id: "aihost/echo",
    kinds: ["text"],
    devices: ["cpu", "cuda"],
    max_concurrency: 64,
    memory_static: true,
}
