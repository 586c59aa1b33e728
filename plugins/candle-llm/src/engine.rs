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
    AnswerSyntax, Context, Engine, Error, ErrorKind, Job, LoadContext, LoadRequest, MemoryPlan, MemoryUsage,
    ModelFacts, Plugin, Result, Text, TextInput, TextOutput, TextRequest, Token,
};

use crate::batch::{Batch, Progress, SCORED_TOKENS, STEP_TOKENS};
use crate::files::ModelFiles;
use crate::model::{self, ModelBytes, Room, Runner, StepLimits};
use crate::options::{MAX_SLOTS, Options};
use crate::prompt::Prompts;
use crate::sampler::{Sampler, SamplingDefaults, SamplingOrder};
use crate::sequence::{Ending, Sequence, SequenceRequest};
use crate::template::{ChatTemplate, Templates};
use crate::tokenizer::Tokenizer;

/// How often clients that could not keep up are looked after while nothing else is to do.
const PAUSE_POLL: Duration = Duration::from_millis(2);
/// Most alternatives with log-probabilities, OpenAI's limit.
const MAX_LOGPROBS: u32 = 20;
/// Most tokens of an input that are told: as many as a body can have.
const MAX_COUNTED: usize = 8 << 20;
/// Contexts that the cache holds if the options say nothing of it.
const CACHED_CONTEXTS: usize = 4;
/// Sequences that run together, and copies to go on from, for which a model with states is to have places.
const STATE_SLOTS: usize = 16;
const STATE_COPIES: usize = 16;
/// Places with which it gets along.
const LEAST_STATES: usize = 2;

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
    let source = templates.default.as_deref().or(templates.tool_use.as_deref()).unwrap_or_default();
    if AnswerSyntax::of_template(source).reasons() {
        abilities.push("reasoning".to_owned());
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
        let room = sizes.room_within(load.granted)?;
        let vocabulary = config.vocabulary;
        let model = model::open(&load.device, &files, config, room)?;
        ctx.check()?;
        let tokenizer = files.tokenizer(vocabulary)?;
        ctx.check()?;
        let template = self.template(&files, &tokenizer)?;
        ctx.progress(sizes.bytes.weights, sizes.bytes.weights);
        let share_cache = self.options.share_cache;
        let prompts = Prompts::new(tokenizer, template, sizes.context)?;
        let defaults = files.sampling()?;
        let order = self.options.sampling_order.or(defaults.order).unwrap_or_default();
        let parts = EngineParts { prompts, sizes, share_cache, defaults, order };
        let threads = self.options.threads.unwrap_or(load.threads).max(1);
        LlmEngine::start(parts, model, EngineOptions { room, threads })
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
    /// The least and the most that it is to have.
    fn rooms(&self) -> [Room; 2] {
        let room = |tokens, states| Room { blocks: model::blocks_of(tokens), states, context: self.context };
        let states =
            if self.bytes.state > 0 { [LEAST_STATES, self.slots.min(STATE_SLOTS) + STATE_COPIES] } else { [0; 2] };
        [room(self.context, states[0]), room(self.cache_tokens, states[1])]
    }

    fn plan(&self) -> MemoryPlan {
        let ModelBytes { weights, workspace, is_mapped, .. } = self.bytes;
        let with = |room: Room| weights.saturating_add(workspace).saturating_add(self.cache(room.blocks, room.states));
        let [least, most] = self.rooms();
        let plan = MemoryPlan::new(with(least)).preferred(with(most));
        if is_mapped { plan.mapped(weights) } else { plan }
    }

    /// Bytes of so many blocks and states.
    fn cache(&self, blocks: usize, states: usize) -> u64 {
        let ModelBytes { block, state, .. } = self.bytes;
        block.saturating_mul(blocks as u64).saturating_add(state.saturating_mul(states as u64))
    }

    fn room_within(&self, granted: u64) -> Result<Room> {
        let plan = self.plan();
        if granted < plan.required {
            let message = format!(
                "{} bytes are granted and {} are needed; lower `context` in the entry's options",
                granted, plan.required
            );
            return Err(Error::new(ErrorKind::OutOfMemory, message));
        }
        let [least, most] = self.rooms();
        // Of both the same part of what is wanted more.
        let wanted = self.cache(most.blocks, most.states) - self.cache(least.blocks, least.states);
        let more = (granted - plan.required).min(wanted);
        let part = |least: usize, most: usize| {
            let part = (most - least) as u128 * u128::from(more) / u128::from(wanted.max(1));
            least + usize::try_from(part).unwrap_or(usize::MAX)
        };
        let (blocks, states) = (part(least.blocks, most.blocks), part(least.states, most.states));
        Ok(Room { blocks, states, context: self.context })
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
    room: Room,
    threads: usize,
}

/// What all requests share.
#[derive(Debug)]
struct EngineParts {
    prompts: Prompts,
    sizes: Sizes,
    /// Whether all requests have the cache together.
    share_cache: bool,
    /// How answers are sampled where a request does not say.
    defaults: SamplingDefaults,
    order: SamplingOrder,
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
            tokenizer: Arc::clone(parts.prompts.tokenizer()),
            pool,
            sizes: parts.sizes,
            room: start.room,
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
            cache_tokens = start.room.blocks * aihost_engine::ops::BLOCK_TOKENS,
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

    fn checked(&self, mut request: TextRequest, output: &TextOutput, ctx: &Context) -> Result<SequenceRequest> {
        if request.echo && matches!(request.input, TextInput::Chat { .. }) {
            return Err(Error::invalid_request("echo is for completions, not for conversations").at("echo"));
        }
        if let Some(n) = request.logprobs
            && n > MAX_LOGPROBS
        {
            let message = format!("logprobs is {n} and must be at most {MAX_LOGPROBS}");
            return Err(Error::invalid_request(message).at("logprobs"));
        }
        let EngineParts { prompts, defaults, order, .. } = &self.parts;
        request.sampling = defaults.below(std::mem::take(&mut request.sampling));
        let prompt = prompts.prompt(&request.input)?;
        let grammar = prompts.grammar(&request, &prompt)?;
        if let Some(answer) = &prompt.answer {
            output.read_as(answer.syntax, answer.start, &request.input);
        }
        let vocabulary = prompts.tokenizer().tokens();
        Ok(SequenceRequest {
            sampler: Sampler::new(&request, &prompt.ids, vocabulary, grammar)?.in_order(*order),
            marks: prompt.answer.map(|answer| answer.marks).unwrap_or_default(),
            prompt: prompt.ids,
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
        let (prompts, ids) = (&self.parts.prompts, self.parts.prompts.ids(input, MAX_COUNTED)?);
        Ok(ids.into_iter().map(|id| Token::new(id, prompts.tokenizer().bytes(id))).collect())
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
    room: Room,
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
        let pool = batch.pool();
        let bytes = self.sizes.bytes.workspace + self.sizes.cache(pool.filled(), pool.states.used());
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
            self.batch = Some(Batch::new(self.room, self.sizes.slots));
            self.held.store(self.sizes.bytes.workspace, Ordering::Release);
        }
        Ok(())
    }
}
