//! The plugin and its engine: one OS thread owns the cache and computes a step after the other for all sequences together.
//!
//! Requests are checked and tokenised on the caller's thread, then handed over; the step that ends one says so to its caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use aihost_engine::nn::decoder::DecoderConfig;
use aihost_plugin_api::{
    Context, Engine, Error, ErrorKind, Job, LoadContext, LoadRequest, MemoryPlan, MemoryUsage, ModelFacts, Plugin,
    Result, Text, TextInput, TextOutput, TextRequest, Token,
};

use crate::batch::{Batch, Progress, SCORED_TOKENS, STEP_TOKENS};
use crate::files::ModelFiles;
use crate::model::{self, ModelBytes, Runner, StepLimits};
use crate::options::{MAX_SLOTS, Options};
use crate::sampler::Sampler;
use crate::sequence::{Ending, Sequence, SequenceRequest};
use crate::template::{ChatTemplate, Conversation, PromptEnd, Templates};
use crate::tokenizer::Tokenizer;

/// How often clients that could not keep up are looked after while nothing else is to do.
const PAUSE_POLL: Duration = Duration::from_millis(2);
/// Most alternatives with log-probabilities, OpenAI's limit.
const MAX_LOGPROBS: u32 = 20;
/// Most tokens of an input that are told: as many as a body can have.
const MAX_COUNTED: usize = 8 << 20;
/// Contexts that the cache holds if the options say nothing of it.
const CACHED_CONTEXTS: usize = 4;

/// What is known of a model before it is loaded.
fn facts(config: &DecoderConfig, files: &ModelFiles, context: usize, templates: &Templates) -> Result<ModelFacts> {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let tensors = files.tensors();
    let elements = |dimensions: &[usize]| dimensions.iter().map(|n| *n as u64).product::<u64>();
    let parameters: u64 = tensors.iter().map(|(_, info)| elements(&info.dimensions)).sum();
    let mut abilities = Vec::new();
    if ChatTemplate::open(templates.clone(), String::new(), String::new()).writes_tools() {
        abilities.push("tools".to_owned());
    }
    if files.fill_in()?.is_some() {
        abilities.push("fill_in".to_owned());
    }
    Ok(ModelFacts::default()
        .context_length(count(context))
        .trained_context_length(count(config.context))
        .vocabulary(count(config.vocabulary))
        .embedding_length(count(config.hidden))
        .parameters(parameters)
        .bytes(tensors.len() as u64)
        .architecture(files.architecture()?.map(str::to_owned))
        .quantization(files.quantization()?)
        .chat_template(templates.default.clone())
        .abilities(abilities))
}

/// The plugin, with the entry's options.
#[derive(Debug)]
pub struct LlmPlugin {
    options: Options,
}

impl Plugin for LlmPlugin {
    type Options = Options;
    type Engine = LlmEngine;

    fn new(options: Options) -> Result<Self> {
        options.check()?;
        Ok(Self { options })
    }

    fn plan(&self, load: &LoadRequest) -> Result<MemoryPlan> {
        let files = ModelFiles::open(load)?;
        let config = files.config()?;
        let sizes = self.sizes(&load.device, &config, &files)?;
        // What is wrong with them, the load says.
        let templates = self.templates(&files)?;
        let facts = facts(&config, &files, sizes.context, &templates).unwrap_or_default();
        Ok(sizes.plan().facts(facts))
    }

    fn load(&self, load: &LoadRequest, ctx: &LoadContext) -> Result<LlmEngine> {
        let files = Arc::new(ModelFiles::open(load)?);
        let config = files.config()?;
        let sizes = self.sizes(&load.device, &config, &files)?;
        let blocks = sizes.blocks_within(load.granted)?;
        let vocabulary = config.vocabulary;
        let model = model::open(&load.device, &files, config, blocks)?;
        ctx.check()?;
        let tokenizer = files.tokenizer(vocabulary)?;
        ctx.check()?;
        let template = self.template(&files, &tokenizer)?;
        ctx.progress(sizes.bytes.weights, sizes.bytes.weights);
        let share_cache = self.options.share_cache;
        let parts = EngineParts { tokenizer: Arc::new(tokenizer), template, sizes, share_cache };
        let threads = self.options.threads.unwrap_or(load.threads).max(1);
        LlmEngine::start(parts, model, EngineOptions { blocks, threads })
    }
}

impl LlmPlugin {
    fn sizes(&self, device: &str, config: &DecoderConfig, files: &ModelFiles) -> Result<Sizes> {
        let context = self.options.context_for(config.context)?;
        let slots = self.options.slots.unwrap_or(MAX_SLOTS);
        // A step has a token of each sequence, and some of prompts.
        let rows = STEP_TOKENS.min(context) + slots;
        let limits = StepLimits { rows, wanted: slots.max(SCORED_TOKENS.min(context)), context };
        let cache_tokens = self.options.cache_tokens.unwrap_or(context.saturating_mul(CACHED_CONTEXTS));
        let bytes = model::bytes(device, files, config, limits)?;
        Ok(Sizes { bytes, context, cache_tokens: cache_tokens.max(context), slots })
    }

    fn templates(&self, files: &ModelFiles) -> Result<Templates> {
        match &self.options.chat_template {
            Some(source) => Ok(Templates { default: Some(source.clone()), tool_use: None }),
            None => files.templates(),
        }
    }

    /// One that the options name is to be right; without the model's own, completions are served all the same.
    fn template(&self, files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let templates = self.templates(files)?;
        if templates == Templates::default() {
            return Ok(None);
        }
        let (bos, eos) = tokenizer.bos_eos_texts();
        let template = ChatTemplate::open(templates, bos, eos);
        if let Some(fault) = template.fault() {
            if self.options.chat_template.is_some() {
                return Err(Error::new(ErrorKind::InvalidOptions, format!("options.chat_template: {fault}")));
            }
            tracing::error!("{}: {fault}; set `chat_template` in the entry's options", files.name());
        }
        Ok(Some(template))
    }
}

/// Bytes and counts that the plan, the load and the usage agree on.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    bytes: ModelBytes,
    /// Tokens of a sequence.
    context: usize,
    /// Tokens that the cache is to hold.
    cache_tokens: usize,
    /// Most sequences that run together.
    slots: usize,
}

impl Sizes {
    fn plan(&self) -> MemoryPlan {
        let ModelBytes { weights, workspace, is_mapped, .. } = self.bytes;
        let with = |tokens| weights.saturating_add(workspace).saturating_add(self.cache(model::blocks_of(tokens)));
        let plan = MemoryPlan::new(with(self.context)).preferred(with(self.cache_tokens));
        if is_mapped { plan.mapped(weights) } else { plan }
    }

    /// Bytes of so many blocks.
    fn cache(&self, blocks: usize) -> u64 {
        self.bytes.block.saturating_mul(blocks as u64)
    }

    fn blocks_within(&self, granted: u64) -> Result<usize> {
        let plan = self.plan();
        if granted < plan.required {
            let message = format!(
                "{} bytes are granted and {} are needed; lower `context` in the entry's options",
                granted, plan.required
            );
            return Err(Error::new(ErrorKind::OutOfMemory, message));
        }
        let (least, most) = (model::blocks_of(self.context), model::blocks_of(self.cache_tokens));
        let more = (granted - plan.required).checked_div(self.bytes.block).unwrap_or(0);
        Ok(most.min(least.saturating_add(usize::try_from(more).unwrap_or(usize::MAX))))
    }
}

/// What the engine's thread is asked.
enum Command {
    Generate(Box<SequenceRequest>, Ending),
    /// Give the memory back; refused while a sequence runs.
    Park(SyncSender<Result<()>>),
    /// Make the cache anew.
    Unpark(SyncSender<Result<()>>),
}

/// How to start an engine.
#[derive(Clone, Copy, Debug)]
struct EngineOptions {
    blocks: usize,
    threads: usize,
}

/// What all requests share.
#[derive(Debug)]
struct EngineParts {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    sizes: Sizes,
    /// Whether all requests have the cache together.
    share_cache: bool,
}

/// A loaded model. Dropping it ends its thread and unmaps the file.
#[derive(Debug)]
pub struct LlmEngine {
    parts: EngineParts,
    /// Bytes of the workspace and of the blocks that hold something.
    held: Arc<AtomicU64>,
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl LlmEngine {
    fn start(parts: EngineParts, model: Box<dyn Runner>, start: EngineOptions) -> Result<Self> {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(start.threads).thread_name(|i| format!("llm-{i}")).build();
        let pool = pool.map_err(|e| Error::internal(format!("cannot start {} threads: {e}", start.threads)))?;
        let (commands, inbox) = channel();
        let held = Arc::new(AtomicU64::new(0));
        let thread = EngineThread {
            model,
            tokenizer: Arc::clone(&parts.tokenizer),
            pool,
            sizes: parts.sizes,
            blocks: start.blocks,
            batch: None,
            held: Arc::clone(&held),
        };
        let thread = std::thread::Builder::new().name("llm-engine".to_owned()).spawn(move || thread.run(&inbox));
        let thread = thread.map_err(|e| Error::internal(format!("cannot start a thread: {e}")))?;
        let context = parts.sizes.context;
        let engine = Self { parts, held, commands: Some(commands), thread: Some(thread) };
        engine.ask(Command::Unpark)?;
        tracing::info!(
            kernels = aihost_engine::cpu::kernels::description(),
            threads = start.threads,
            cache_tokens = start.blocks * aihost_engine::ops::BLOCK_TOKENS,
            context,
            "loaded"
        );
        Ok(engine)
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.as_ref().and_then(|commands| commands.send(command).ok()).ok_or_else(dead)
    }

    fn ask(&self, command: impl FnOnce(SyncSender<Result<()>>) -> Command) -> Result<()> {
        let (reply, answer) = sync_channel(1);
        self.send(command(reply))?;
        answer.recv().map_err(|_| dead())?
    }

    fn prompt(&self, input: &TextInput) -> Result<Vec<u32>> {
        let ids = self.ids(input, self.parts.sizes.context)?;
        let ids = if ids.is_empty() { self.parts.tokenizer.bos().into_iter().collect() } else { ids };
        if ids.is_empty() {
            return Err(
                Error::invalid_request("the prompt is empty, and this model has no token to begin with").at("prompt")
            );
        }
        if ids.len() >= self.parts.sizes.context {
            return Err(self.too_long(format_args!("{} tokens", ids.len()), Some(ids.len())));
        }
        Ok(ids)
    }

    /// What the model reads of an input that has at most about so many tokens.
    fn ids(&self, input: &TextInput, most: usize) -> Result<Vec<u32>> {
        let tokenizer = &self.parts.tokenizer;
        let ids = match input {
            TextInput::Chat { messages, tools, continue_final, template_arguments, .. } => {
                let template = self.parts.template.as_ref().ok_or_else(|| {
                    Error::invalid_request("this model has no chat template, so it answers completions only; set `chat_template` in its options")
                })?;
                let bytes = self.most_bytes(most);
                let end = if *continue_final { PromptEnd::LastMessage } else { PromptEnd::NewTurn };
                let conversation = Conversation { messages, tools, arguments: template_arguments, end };
                let text = template.render(&conversation, bytes)?;
                self.encode(&text.ok_or_else(|| self.too_long(format_args!("more than {bytes} bytes"), None))?, most)?
            }
            TextInput::Prompt { text, .. } => self.encode(text, most)?,
            TextInput::FillIn { prefix, suffix, .. } => {
                let Some(marks) = tokenizer.fill_in() else {
                    let message = "this model was not taught to fill in: its vocabulary has no tokens for what stands before and behind";
                    return Err(Error::invalid_request(message).at("suffix"));
                };
                let (prefix, suffix) = (self.encode(prefix, most)?, self.encode(suffix, most)?);
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
                if let Some(id) = tokens.iter().find(|id| **id as usize >= tokenizer.vocabulary()) {
                    let message = format!(
                        "the prompt has the token {id}, but the vocabulary has {} tokens",
                        tokenizer.vocabulary()
                    );
                    return Err(Error::invalid_request(message).at("prompt"));
                }
                tokens.clone()
            }
            newer => return Err(newer.unsupported()),
        };
        Ok(ids)
    }

    /// The ids of a text that has at most so many. One that cannot is refused before it is cut into tokens, which takes some
    /// hundred times its length.
    fn encode(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let tokenizer = &self.parts.tokenizer;
        if text.len() > self.most_bytes(most) {
            let (bytes, tokens) = (text.len(), text.len().div_ceil(tokenizer.longest()));
            return Err(self.too_long(format_args!("{bytes} bytes, which are at least {tokens} tokens"), None));
        }
        let encoded = tokenizer.encode_up_to(text, most)?;
        if encoded.is_whole {
            Ok(encoded.ids)
        } else {
            Err(self.too_long(format_args!("more than {} tokens", self.parts.sizes.context), None))
        }
    }

    /// Bytes of a text that may have so many tokens.
    fn most_bytes(&self, tokens: usize) -> usize {
        tokens.saturating_mul(self.parts.tokenizer.longest())
    }

    /// `tokens`: those of the prompt, if they were counted.
    fn too_long(&self, has: std::fmt::Arguments<'_>, tokens: Option<usize>) -> Error {
        let context = self.parts.sizes.context;
        let message = format!(
            "This model's maximum context length is {context} tokens, but the prompt has {has}, which exceeds the available context size once an answer is to follow; shorten the prompt"
        );
        let counted = tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX));
        Error::context_length(message, counted, u32::try_from(context).unwrap_or(u32::MAX))
    }

    fn checked(&self, request: TextRequest, output: &TextOutput, ctx: &Context) -> Result<SequenceRequest> {
        if request.echo && matches!(request.input, TextInput::Chat { .. }) {
            return Err(Error::invalid_request("echo is for completions, not for conversations").at("echo"));
        }
        if let Some(n) = request.logprobs
            && n > MAX_LOGPROBS
        {
            let message = format!("logprobs is {n} and must be at most {MAX_LOGPROBS}");
            return Err(Error::invalid_request(message).at("logprobs"));
        }
        let prompt = self.prompt(&request.input)?;
        Ok(SequenceRequest {
            sampler: Sampler::new(&request, &prompt, self.parts.tokenizer.vocabulary())?,
            prompt,
            max_tokens: request.max_tokens.unwrap_or(u32::MAX),
            logprobs: request.logprobs.map(|n| n as usize),
            echo: request.echo,
            ignore_eos: request.ignore_eos,
            owner: if self.parts.share_cache { String::new() } else { ctx.request().owner },
            output: output.clone(),
            context: ctx.clone(),
        })
    }
}

impl Engine for LlmEngine {
    type Task = Text;

    fn submit(&self, job: Job<Text>) {
        let Job { request, reply, .. } = job;
        match self.checked(request, reply.output(), reply.context()) {
            Ok(request) => {
                let ending: Ending = Box::new(move |result| reply.finish(result));
                // An ending that is dropped fails its request.
                let _ = self.send(Command::Generate(Box::new(request), ending));
            }
            Err(error) => reply.finish(Err(error)),
        }
    }

    fn tokens(&self, input: &TextInput) -> Result<Vec<Token>> {
        // Also of what is longer than the context: whoever counts wants to know by how much.
        let ids = self.ids(input, MAX_COUNTED)?;
        Ok(ids.into_iter().map(|id| Token::new(id, self.parts.tokenizer.bytes(id))).collect())
    }

    fn usage(&self) -> MemoryUsage {
        let bytes = self.parts.sizes.bytes.weights + self.held.load(Ordering::Acquire);
        MemoryUsage::new(bytes, bytes)
    }

    fn park(&self) -> Result<()> {
        self.ask(Command::Park)
    }

    fn unpark(&self, _ctx: &LoadContext) -> Result<()> {
        self.ask(Command::Unpark)
    }

    fn health(&self) -> Result<()> {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) { Err(dead()) } else { Ok(()) }
    }
}

impl Drop for LlmEngine {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread had panicked");
        }
    }
}

fn dead() -> Error {
    Error::new(ErrorKind::Panicked, "the engine's thread has ended by a panic; load the model again")
}

/// The engine's thread: the model, and all who are served.
struct EngineThread {
    model: Box<dyn Runner>,
    tokenizer: Arc<Tokenizer>,
    pool: rayon::ThreadPool,
    sizes: Sizes,
    blocks: usize,
    /// Absent while parked.
    batch: Option<Batch>,
    held: Arc<AtomicU64>,
}

impl EngineThread {
    fn run(mut self, inbox: &Receiver<Command>) {
        let mut open = true;
        while open || self.batch.as_ref().is_some_and(|batch| !batch.is_empty()) {
            let progress = self.step();
            open = self.receive(inbox, progress);
        }
    }

    fn step(&mut self) -> Progress {
        let Some(batch) = &mut self.batch else { return Progress::Idle };
        let (model, tokenizer) = (self.model.as_mut(), &self.tokenizer);
        let progress = self.pool.install(|| batch.step(model, tokenizer));
        let bytes = self.sizes.bytes.workspace + self.sizes.cache(batch.pool().filled());
        self.held.store(bytes, Ordering::Release);
        progress
    }

    /// Takes commands, waiting for one if nothing else is to do. False once nobody can send any more.
    fn receive(&mut self, inbox: &Receiver<Command>, progress: Progress) -> bool {
        let first = match progress {
            Progress::Idle => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Progress::Waiting => inbox.recv_timeout(PAUSE_POLL),
            Progress::Made => Err(RecvTimeoutError::Timeout),
        };
        match first {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => {}
        }
        while let Ok(command) = inbox.try_recv() {
            self.obey(command);
        }
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Generate(request, ending) => match &mut self.batch {
                Some(batch) => {
                    let sequence = Sequence::new(*request, batch.pool(), ending);
                    batch.add(sequence);
                }
                None => ending(Err(Error::internal("the model is parked; wake it first"))),
            },
            Command::Park(reply) => drop(reply.send(self.park())),
            Command::Unpark(reply) => drop(reply.send(self.wake())),
        }
    }

    fn park(&mut self) -> Result<()> {
        if self.batch.as_ref().is_some_and(|batch| !batch.is_empty()) {
            return Err(Error::internal("a request is running; park the model once it is done"));
        }
        self.batch = None;
        self.model.park();
        self.held.store(0, Ordering::Release);
        Ok(())
    }

    fn wake(&mut self) -> Result<()> {
        if self.batch.is_none() {
            self.model.wake()?;
            self.batch = Some(Batch::new(self.blocks, self.sizes.slots, self.sizes.context));
            self.held.store(self.sizes.bytes.workspace, Ordering::Release);
        }
        Ok(())
    }
}
