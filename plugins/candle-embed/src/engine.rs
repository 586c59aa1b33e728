//! The plugin and its engine: one OS thread computes a pass after the other for all requests together.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use aihost_engine::cpu::Cpu;
use aihost_engine::finite;
use aihost_engine::nn::encoder::Sequences;
use aihost_engine::ops::Ops;
use aihost_plugin_api::{
    Embedding, EmbeddingInput, EmbeddingRequest, Engine, Error, ErrorKind, Job, LoadContext, LoadRequest, MemoryPlan,
    MemoryUsage, ModelFacts, Plugin, Reply, Result,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::batch::Batch;
use crate::dense::Dense;
use crate::files::ModelFiles;
use crate::network::Network;
use crate::pooling::{Pooling, cosine, normalise};
use crate::texts::{Encoded, Texts};

/// Most threads that an engine takes.
const MAX_THREADS: usize = 256;

/// What a models.yaml entry may say under `options:`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Tokens of a text. Default: what the model was taught to read, by its sentence_bert_config.json, or else its positions.
    #[schemars(range(min = 1))]
    pub context: Option<usize>,
    /// Whether a text that is longer is cut; else it is refused. Default: no.
    pub truncate: bool,
    /// How a text's tokens become one vector. Default: as 1_Pooling/config.json says, else `last` for decoders, `mean` for others.
    pub pooling: Option<Pooling>,
    /// Whether vectors have a length of 1. Default: as modules.json says, else yes.
    pub normalize: Option<bool>,
    /// How a decoder ranks documents. Default: `vectors`.
    pub rank_by: RankBy,
    /// What a decoder that ranks by its answers is told to look for.
    pub instruction: Option<String>,
    /// CPU threads. Default: what the host gives.
    #[schemars(range(min = 1, max = MAX_THREADS))]
    pub threads: Option<usize>,
}

/// How documents are ranked for a query by a model without a classifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RankBy {
    /// By how near their vectors are to the query's.
    #[default]
    Vectors,
    /// By whether the model says that they meet it (Qwen3-Reranker).
    Answer,
}

/// What a judge is told to look for where the options do not say.
const INSTRUCTION: &str = "Given a web search query, retrieve relevant passages that answer the query";

/// The plugin, with the entry's options.
#[derive(Debug)]
pub struct EmbedPlugin {
    options: Options,
}

impl Plugin for EmbedPlugin {
    type Options = Options;
    type Engine = EmbedEngine;

    fn new(options: Options) -> Result<Self> {
        let limits = [("context", options.context, usize::MAX), ("threads", options.threads, MAX_THREADS)];
        for (name, value, most) in limits {
            if let Some(value) = value.filter(|value| !(1..=most).contains(value)) {
                let most = if most == usize::MAX { String::new() } else { format!(" and at most {most}") };
                return Err(invalid(format!("options.{name} is {value} and must be at least 1{most}")));
            }
        }
        Ok(Self { options })
    }

    fn plan(&self, load: &LoadRequest) -> Result<MemoryPlan> {
        let files = ModelFiles::open(load)?;
        let context = self.context(&files)?;
        let weights = Cpu.weight_bytes(&files.tensors, &[]);
        let required = weights.saturating_add(files.config.workspace_bytes(&Cpu, context));
        Ok(MemoryPlan::new(required).mapped(weights).facts(facts(&files, context)))
    }

    fn load(&self, load: &LoadRequest, ctx: &LoadContext) -> Result<EmbedEngine> {
        let files = ModelFiles::open(load)?;
        let (config, context) = (files.config.clone(), self.context(&files)?);
        let texts = Texts::open(&files.tokenizer, config.vocabulary(), context, self.options.truncate)?;
        ctx.check()?;
        let bytes = Cpu.weight_bytes(&files.tensors, &[]) + files.config.workspace_bytes(&Cpu, context);
        let width = files.width();
        let mut network = Network::open(Cpu, &files.tensors, config.clone(), context)?;
        if self.options.rank_by == RankBy::Answer {
            let judge = texts.answers().and_then(|answers| network.judging(answers));
            network = judge.ok_or_else(|| {
                invalid("options.rank_by is `answer`, which takes a decoder whose vocabulary has `yes` and `no`; leave it out".to_owned())
            })?;
        }
        let instruction = self.options.instruction.clone().unwrap_or_else(|| INSTRUCTION.to_owned());
        let model = Model {
            hidden: config.hidden(),
            pooling: self.options.pooling.or(files.pooling).unwrap_or(config.pooling()),
            is_normalised: self.options.normalize.or(files.is_normalised).unwrap_or(true),
            network,
            dense: files.dense,
            width,
        };
        ctx.progress(bytes, bytes);
        let threads = self.options.threads.unwrap_or(load.threads).max(1);
        EmbedEngine::start(texts, model, (bytes, instruction), threads)
    }
}

impl EmbedPlugin {
    /// Tokens of a text.
    fn context(&self, files: &ModelFiles) -> Result<usize> {
        let most = files.config.context();
        match self.options.context {
            Some(context) if context > most => Err(invalid(format!(
                "options.context is {context}, but the model has {most} positions; set at most {most}"
            ))),
            Some(context) => Ok(context),
            None => Ok(files.trained.filter(|trained| *trained > 0).unwrap_or(most).min(most)),
        }
    }
}

fn facts(files: &ModelFiles, context: usize) -> ModelFacts {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let elements = |dimensions: &[usize]| dimensions.iter().map(|n| *n as u64).product::<u64>();
    ModelFacts::default()
        .context_length(count(context))
        .trained_context_length(count(files.config.context()))
        .vocabulary(count(files.config.vocabulary()))
        .embedding_length(count(files.width()))
        .parameters(files.tensors.iter().map(|(_, info)| elements(&info.dimensions)).sum::<u64>())
        .bytes(files.tensors.len() as u64)
        .architecture(files.architecture.clone())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOptions, message)
}

/// A model, and how it makes a vector of a text.
struct Model {
    network: Network<Cpu>,
    /// Width of a token's vector.
    hidden: usize,
    pooling: Pooling,
    /// What stands behind it.
    dense: Vec<Dense>,
    /// Width of a text's vector.
    width: usize,
    is_normalised: bool,
}

impl Model {
    /// What each text gives: a score if it makes any, else a vector.
    fn pass(&self, sequences: &Sequences) -> Result<Vec<Vec<f32>>> {
        if let Some(scores) = self.network.score(sequences)? {
            finite::check(&scores, "score", "a pass")?;
            return Ok(scores.into_iter().map(|score| vec![score]).collect());
        }
        let vectors = self.network.vectors(sequences)?;
        finite::check(&vectors, "network", "a pass")?;
        let mut rest = vectors.as_slice();
        let pooled = sequences.lengths.iter().map(|rows| {
            let (own, behind) = rest.split_at(rows * self.hidden);
            rest = behind;
            let pooled = self.pooling.pool(own, self.hidden);
            self.dense.iter().fold(pooled, |vector, layer| layer.apply(&vector))
        });
        Ok(pooled.collect())
    }
}

/// A request whose texts pass.
struct Asked {
    request: EmbeddingRequest,
    reply: Reply<Embedding>,
    tokens: u32,
}

/// A loaded model. Dropping it ends its thread and unmaps the file.
#[derive(Debug)]
pub struct EmbedEngine {
    texts: Texts,
    hidden: usize,
    makes_scores: bool,
    /// What a judge is told to look for, if the model is one.
    instruction: Option<String>,
    bytes: u64,
    commands: Option<Sender<(Box<Asked>, Vec<Encoded>)>>,
    thread: Option<JoinHandle<()>>,
}

impl EmbedEngine {
    fn start(texts: Texts, model: Model, (bytes, instruction): (u64, String), threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("embed-{i}")).build();
        let pool = pool.map_err(|e| Error::internal(format!("cannot start {threads} threads: {e}")))?;
        let (commands, inbox) = channel();
        let instruction = Some(instruction).filter(|_| matches!(model.network, Network::Judge(..)));
        let (hidden, makes_scores) = (model.width, model.network.scores());
        let thread =
            std::thread::Builder::new().name("embed-engine".to_owned()).spawn(move || run(&model, &pool, &inbox));
        let thread = thread.map_err(|e| Error::internal(format!("cannot start a thread: {e}")))?;
        tracing::info!(threads, context = texts.context(), makes_scores, "loaded");
        Ok(Self { texts, hidden, makes_scores, instruction, bytes, commands: Some(commands), thread: Some(thread) })
    }

    /// A request's texts as the model reads them.
    fn read(&self, request: &EmbeddingRequest) -> Result<Vec<Encoded>> {
        if let Some(dimensions) = request.dimensions.filter(|n| !(1..=self.hidden).contains(&(*n as usize))) {
            let message = format!(
                "dimensions is {dimensions}, and this model's vectors have {}; ask for at most that",
                self.hidden
            );
            return Err(Error::invalid_request(message).at("dimensions"));
        }
        if self.makes_scores && !matches!(request.input, EmbeddingInput::Rank { .. }) {
            let message = "this model scores documents for a query and makes no vectors; ask it at /v1/rerank";
            return Err(Error::invalid_request(message).at("model"));
        }
        match &request.input {
            EmbeddingInput::Texts { texts, .. } => texts.iter().map(|text| self.texts.text(text, "input")).collect(),
            EmbeddingInput::Tokens { tokens, .. } => tokens.iter().map(|ids| self.texts.ids(ids, "input")).collect(),
            EmbeddingInput::Rank { query, documents, .. } if self.makes_scores => {
                let read = |document: &String| match &self.instruction {
                    Some(instruction) => self.texts.judged(instruction, query, document, "documents"),
                    None => self.texts.pair(query, document, "documents"),
                };
                documents.iter().map(read).collect()
            }
            EmbeddingInput::Rank { query, documents, .. } => {
                // By how near their vectors are.
                let query = std::iter::once(self.texts.text(query, "query"));
                query.chain(documents.iter().map(|document| self.texts.text(document, "documents"))).collect()
            }
            other => Err(Error::new(ErrorKind::Unsupported, format!("an input of this form is not known: {other:?}"))),
        }
    }
}

impl Engine for EmbedEngine {
    type Task = Embedding;

    fn submit(&self, job: Job<Embedding>) {
        let Job { request, reply, .. } = job;
        match self.read(&request) {
            Ok(texts) => {
                let tokens = texts.iter().map(|text| text.tokens.len()).sum::<usize>();
                let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
                let asked = Box::new(Asked { request, reply, tokens });
                // A reply that is dropped fails its request.
                let _ = self.commands.as_ref().map(|commands| commands.send((asked, texts)));
            }
            Err(error) => reply.finish(Err(error)),
        }
    }

    fn usage(&self) -> MemoryUsage {
        MemoryUsage::new(self.bytes, self.bytes)
    }

    fn health(&self) -> Result<()> {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            return Err(Error::new(
                ErrorKind::Panicked,
                "the engine's thread has ended by a panic; load the model again",
            ));
        }
        Ok(())
    }
}

impl Drop for EmbedEngine {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread had panicked");
        }
    }
}

/// Computes until nobody can ask any more.
fn run(model: &Model, pool: &rayon::ThreadPool, inbox: &Receiver<(Box<Asked>, Vec<Encoded>)>) {
    let mut batch: Batch<Box<Asked>> = Batch::default();
    loop {
        if batch.is_empty() {
            let Ok((asked, texts)) = inbox.recv() else { return };
            batch.add(asked, texts);
        }
        while let Ok((asked, texts)) = inbox.try_recv() {
            batch.add(asked, texts);
        }
        for left in batch.take_out(|asked| asked.reply.context().is_cancelled()) {
            let ended = left.reply.context().check();
            left.reply.finish(ended);
        }
        let (sequences, places) = batch.next_pass();
        if places.is_empty() {
            continue;
        }
        match pool.install(|| model.pass(&sequences)) {
            Ok(results) => {
                for (asked, results) in batch.deliver(&places, results) {
                    asked.answer(model, results);
                }
            }
            Err(error) => {
                for asked in batch.fail(&places) {
                    asked.reply.finish(Err(error.clone()));
                }
            }
        }
    }
}

impl Asked {
    /// Sends what came of its texts.
    fn answer(self, model: &Model, results: Vec<Vec<f32>>) {
        let output = self.reply.output();
        output.prompt_tokens(self.tokens);
        let sent = match &self.request.input {
            EmbeddingInput::Rank { .. } if model.network.scores() => {
                // Between 0 and 1, as the other way of scoring has it.
                let scores: Vec<f32> =
                    results.into_iter().flatten().map(|score| 1.0 / (1.0 + (-score).exp())).collect();
                output.scores(&scores)
            }
            EmbeddingInput::Rank { .. } => match results.split_first() {
                Some((query, documents)) => {
                    let scores: Vec<f32> = documents.iter().map(|document| cosine(query, document)).collect();
                    output.scores(&scores)
                }
                None => Ok(()),
            },
            _ => results.into_iter().try_for_each(|mut vector| {
                if let Some(dimensions) = self.request.dimensions {
                    vector.truncate(dimensions as usize);
                }
                if model.is_normalised {
                    normalise(&mut vector);
                }
                output.vector(&vector)
            }),
        };
        self.reply.finish(sent);
    }
}
