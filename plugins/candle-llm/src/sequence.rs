//! One request on its way through the model: what is read, what is chosen, when it ends.

use std::sync::Arc;

use aihost_plugin_api::{Context, FinishReason, Flow, LogprobEntry, Result, TextOutput, TokenLogprob};

use crate::model::{KvCache, Logits, Model};
use crate::sampler::{Sampler, logprobs};
use crate::tokenizer::Tokenizer;

/// Prompt tokens per step while nobody else waits.
pub const CHUNK: usize = 128;
/// Prompt tokens per step while others are served too, so that they go on meanwhile.
const CHUNK_SHARED: usize = 32;
/// Prompt tokens per step if every position's logits are wanted: they are large.
pub const CHUNK_SCORED: usize = 16;

/// A checked request.
#[derive(Debug)]
pub struct SequenceRequest {
    /// The prompt's ids: at least one, all of the vocabulary, fewer than the context.
    pub prompt: Vec<u32>,
    /// Samples the answer's tokens.
    pub sampler: Sampler,
    /// Most tokens to generate.
    pub max_tokens: u32,
    /// Alternatives whose log-probabilities are wanted with each token's.
    pub logprobs: Option<usize>,
    /// Show the prompt first: where its text begins (a beginning-of-sequence token that we added is not shown).
    pub echo: bool,
    /// Do not end at the end-of-sequence token.
    pub ignore_eos: bool,
    /// The output that the answer is pushed into.
    pub output: TextOutput,
    /// The call's cancellation.
    pub context: Context,
}

/// A KV cache, and the sequence that uses it.
#[derive(Debug)]
pub struct Slot {
    cache: KvCache,
    /// The token ids whose keys and values are in the cache.
    cached: Vec<u32>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    request: SequenceRequest,
    /// Tokens that are to pass through the model next: the rest of the prompt, or the token just chosen.
    pending: Vec<u32>,
    echoed: Vec<TokenLogprob>,
    paused: bool,
}

/// Where a sequence stands after a step.
#[derive(Debug)]
pub enum StepOutcome {
    /// It computed something, and there is more to do.
    Working,
    /// It waits for its client.
    Waiting,
    /// It is over, and the slot is free.
    Done(Result<FinishReason>),
}

impl Slot {
    /// A free slot.
    pub fn new(cache: KvCache) -> Self {
        Self { cache, cached: Vec::new(), running: None }
    }

    /// Whether a sequence has it.
    pub fn is_busy(&self) -> bool {
        self.running.is_some()
    }

    /// Tokens of `prompt` that the cache holds already.
    pub fn common_prefix(&self, prompt: &[u32]) -> usize {
        self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count()
    }

    /// Gives the slot to a request. What the cache holds of its prompt is kept, but the last token always passes through the model.
    pub fn start(&mut self, request: SequenceRequest) {
        let scored = request.echo && request.logprobs.is_some();
        let kept = if scored { 0 } else { self.common_prefix(&request.prompt).min(request.prompt.len() - 1) };
        self.cached.truncate(kept);
        request.output.prompt(request.prompt.len() as u32, kept as u32);
        let pending = request.prompt[kept..].to_vec();
        self.running = Some(Running { request, pending, echoed: Vec::new(), paused: false });
    }

    /// One chunk of the prompt, or one token.
    pub fn step(&mut self, model: &Model, tokenizer: &Tokenizer, occupancy: Occupancy) -> StepOutcome {
        let Some(running) = &mut self.running else { return StepOutcome::Waiting };
        let result = running.step(model, tokenizer, &mut self.cache, &mut self.cached, occupancy);
        match result {
            Ok(None) if running.paused => StepOutcome::Waiting,
            Ok(None) => StepOutcome::Working,
            Ok(Some(reason)) => self.end(Ok(reason)),
            Err(error) => self.end(Err(error)),
        }
    }

    fn end(&mut self, result: Result<FinishReason>) -> StepOutcome {
        self.running = None;
        StepOutcome::Done(result)
    }
}

/// How many slots are busy: others wait while one computes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupancy {
    /// No other sequence runs.
    Alone,
    /// Other sequences run too.
    Several,
}

impl Running {
    fn step(
        &mut self,
        model: &Model,
        tokenizer: &Tokenizer,
        cache: &mut KvCache,
        cached: &mut Vec<u32>,
        occupancy: Occupancy,
    ) -> Result<Option<FinishReason>> {
        self.request.context.check()?;
        if self.paused {
            self.paused = self.request.output.flow()? == Flow::Pause;
            return Ok(None);
        }
        let scored = self.request.echo && self.request.logprobs.is_some() && cached.len() < self.request.prompt.len();
        if self.request.max_tokens == 0 && !scored {
            self.echo(tokenizer)?;
            return Ok(Some(FinishReason::Length));
        }
        let chunk = match occupancy {
            _ if scored => CHUNK_SCORED,
            Occupancy::Alone => CHUNK,
            Occupancy::Several => CHUNK_SHARED,
        };
        let now: Vec<u32> = self.pending.drain(..chunk.min(self.pending.len())).collect();
        let wanted = match self.pending.is_empty() {
            _ if scored => Logits::All,
            true => Logits::Last,
            false => Logits::None,
        };
        let logits = model.forward(&now, cached.len(), cache, wanted);
        if scored {
            self.score(model, tokenizer, cached.len(), &logits);
        }
        cached.extend(&now);
        if !self.pending.is_empty() {
            return Ok(None);
        }
        if cached.len() == self.request.prompt.len() {
            self.echo(tokenizer)?;
            if self.request.max_tokens == 0 {
                return Ok(Some(FinishReason::Length));
            }
        }
        let last = logits.len() - model.config().vocabulary;
        self.choose(tokenizer, cached.len(), cache.context(), &logits[last..])
    }

    /// Chooses the token after `len` tokens.
    fn choose(
        &mut self,
        tokenizer: &Tokenizer,
        len: usize,
        context: usize,
        logits: &[f32],
    ) -> Result<Option<FinishReason>> {
        let token = self.request.sampler.choose(&mut logits.to_vec())?;
        if tokenizer.is_end(token) && !self.request.ignore_eos {
            return Ok(Some(FinishReason::Stop));
        }
        let logprob = self.request.logprobs.map(|top| token_logprob(tokenizer, logits, token, top));
        self.paused = self.request.output.try_token(tokenizer.visible(token), logprob)? == Flow::Pause;
        if self.request.output.completion_tokens() >= self.request.max_tokens || len + 1 >= context {
            return Ok(Some(FinishReason::Length));
        }
        self.pending.push(token);
        Ok(None)
    }

    /// Log-probabilities of the prompt's tokens that follow those at `start` and after.
    fn score(&mut self, model: &Model, tokenizer: &Tokenizer, start: usize, logits: &[f32]) {
        let top = self.request.logprobs.unwrap_or(0);
        if start == 0 {
            // Nothing comes before the first token, so nothing is said of how likely it was.
            self.echoed.push(TokenLogprob::new(entry(tokenizer, self.request.prompt[0], 0.0), Vec::new()));
        }
        for (row, token) in logits.chunks_exact(model.config().vocabulary).zip(self.request.prompt[start + 1..].iter())
        {
            self.echoed.push(token_logprob(tokenizer, row, *token, top));
        }
    }

    fn echo(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        if self.request.echo {
            let mut entries = std::mem::take(&mut self.echoed).into_iter();
            let tokens = self.request.prompt.iter().map(|token| (tokenizer.visible(*token), entries.next()));
            self.request.output.echo_tokens(tokens)?;
        }
        Ok(())
    }
}

fn token_logprob(tokenizer: &Tokenizer, logits: &[f32], token: u32, top: usize) -> TokenLogprob {
    let (chosen, best) = logprobs(logits, token, top);
    TokenLogprob::new(
        entry(tokenizer, token, chosen),
        best.into_iter().map(|(token, logprob)| entry(tokenizer, token, logprob)).collect(),
    )
}

fn entry(tokenizer: &Tokenizer, token: u32, logprob: f32) -> LogprobEntry {
    LogprobEntry::new(tokenizer.bytes(token), logprob)
}

/// The slot for a prompt: the free one that holds most of it, the emptiest among equals.
pub fn best_slot(slots: &[Slot], prompt: &[u32]) -> Option<usize> {
    let free = slots.iter().enumerate().filter(|(_, slot)| !slot.is_busy());
    free.max_by_key(|(_, slot)| (slot.common_prefix(prompt), std::cmp::Reverse(slot.cached.len()))).map(|(i, _)| i)
}

/// The parts of a model that all sequences share.
#[derive(Clone, Debug)]
pub struct ModelParts {
    /// The model's weights and sizes.
    pub model: Arc<Model>,
    /// The tokenizer of the model's vocabulary.
    pub tokenizer: Arc<Tokenizer>,
}
