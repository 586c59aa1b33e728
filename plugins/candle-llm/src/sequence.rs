//! One request on its way through the model: what is read, what is chosen, when it ends.

use std::collections::HashSet;
use std::sync::Arc;

use aihost_engine::finite;
use aihost_engine::ops::BLOCK_TOKENS;
use aihost_plugin_api::{Context, FinishReason, Flow, LogprobEntry, Result, TextOutput, TokenLogprob};

use crate::blocks::{BlockPool, BlockText, Prefix};
use crate::model::Runner;
use crate::sampler::{Sampler, logprobs};
use crate::tokenizer::Tokenizer;

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
    /// Show the prompt first.
    pub echo: bool,
    /// Do not end at the end-of-sequence token.
    pub ignore_eos: bool,
    /// Tokens that an answer does not show and that it is read by.
    pub marks: Arc<HashSet<u32>>,
    /// Whose cache it takes from and adds to.
    pub owner: String,
    /// The output that the answer is pushed into.
    pub output: TextOutput,
    /// The call's cancellation.
    pub context: Context,
}

/// What ends a sequence.
pub type Ending = Box<dyn FnOnce(Result<FinishReason>) + Send>;

/// A request, as far as it has come.
pub struct Sequence {
    request: SequenceRequest,
    ending: Option<Ending>,
    /// The prompt, and behind it what was chosen.
    tokens: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    /// Of those, how many were there when it came.
    taken: usize,
    blocks: Vec<u32>,
    /// What its full blocks make.
    prefix: Prefix,
    /// The place of its state, if the model has states and it runs.
    state: Option<u32>,
    /// What its last copy is of, if one further on is to take its place.
    copied: Option<Prefix>,
    echoed: Vec<TokenLogprob>,
    is_paused: bool,
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { prompt, computed, blocks, is_paused, .. } = self;
        f.debug_struct("Sequence")
            .field("tokens", &self.tokens.len())
            .field("prompt", prompt)
            .field("computed", computed)
            .field("blocks", blocks)
            .field("is_paused", is_paused)
            .finish_non_exhaustive()
    }
}

impl Sequence {
    /// A request that nothing was computed for yet; `ending` is called once.
    pub fn new(request: SequenceRequest, pool: &mut BlockPool, ending: Ending) -> Self {
        let (tokens, prompt) = (request.prompt.clone(), request.prompt.len());
        let prefix = pool.beginning(&request.owner);
        Self {
            request,
            ending: Some(ending),
            tokens,
            prompt,
            computed: 0,
            taken: 0,
            blocks: Vec::new(),
            prefix,
            state: None,
            copied: None,
            echoed: Vec::new(),
            is_paused: false,
        }
    }

    /// Tokens that are to pass through the model next: the rest of the prompt, or the token just chosen.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Tokens that are in the cache.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// All of its tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Its blocks, from the first token on.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// The place of its state; of no meaning if the model has none.
    pub fn state(&self) -> u32 {
        self.state.unwrap_or_default()
    }

    /// Whether it has chosen a token, and goes on by one at a time.
    pub fn is_decoding(&self) -> bool {
        self.pending() == 1 && self.tokens.len() > self.prompt
    }

    /// Whether it waits for its client.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether the log-probabilities of its prompt's tokens are wanted, and not all there: then nothing is taken from the cache.
    pub fn is_scored(&self) -> bool {
        self.request.echo && self.request.logprobs.is_some() && self.computed < self.prompt
    }

    /// Whether it asks for nothing that has to be computed.
    fn is_mere_echo(&self) -> bool {
        self.request.max_tokens == 0 && !(self.request.echo && self.request.logprobs.is_some())
    }

    /// Looks after a sequence that may have been left, or may go on.
    ///
    /// # Errors
    /// If its client left.
    pub fn look(&mut self, tokenizer: &Tokenizer) -> Result<Option<FinishReason>> {
        self.request.context.check()?;
        if self.is_paused {
            self.is_paused = self.request.output.flow()? == Flow::Pause;
        }
        if self.is_mere_echo() {
            self.request.output.prompt(count(self.prompt), 0);
            self.echo(tokenizer)?;
            return Ok(Some(FinishReason::Length));
        }
        Ok(None)
    }

    /// The full block that it computes next, if all of that is known: what stands before it, and its tokens.
    pub fn next_block(&self) -> Option<(Prefix, BlockText)> {
        let begin = self.computed / BLOCK_TOKENS * BLOCK_TOKENS;
        let text = self.tokens.get(begin..begin + BLOCK_TOKENS)?;
        Some((self.prefix, text.try_into().ok()?))
    }

    /// Takes a place for its state, if the model has any. Whether it has what it needs.
    pub fn take_place(&mut self, pool: &mut BlockPool) -> bool {
        if pool.states.is_needed() && self.state.is_none() {
            self.state = pool.states.take();
            return self.state.is_some();
        }
        true
    }

    /// Takes from the cache what it holds of the tokens that come next. The last one always passes through the model.
    pub fn take_known(&mut self, pool: &mut BlockPool, model: &mut dyn Runner) {
        if self.is_scored() {
            return;
        }
        let most = match self.state {
            None => usize::MAX,
            Some(own) => {
                let resumable = self.resumable(pool);
                let copied = resumable.and_then(|(blocks, behind)| {
                    let copy = pool.states.find(behind)?;
                    // What a device cannot copy is computed anew.
                    model.copy_state(copy, own).ok().map(|()| blocks)
                });
                copied.unwrap_or(0)
            }
        };
        for _ in 0..most {
            if let Some((before, text)) = self.next_known()
                && let Some((block, prefix)) = pool.find(before, &text)
            {
                self.blocks.push(block);
                self.prefix = prefix;
                self.computed += BLOCK_TOKENS;
                if self.computed <= self.prompt && self.tokens.len() == self.prompt {
                    self.taken += BLOCK_TOKENS;
                }
            } else {
                return;
            }
        }
    }

    /// The next block, if it begins one and is not the end.
    fn next_known(&self) -> Option<(Prefix, BlockText)> {
        let is_whole = self.computed.is_multiple_of(BLOCK_TOKENS) && self.computed + BLOCK_TOKENS < self.tokens.len();
        self.next_block().filter(|_| is_whole)
    }

    /// How many of the next blocks are known, up to the last one behind which there is a state, if there is one; and what they make.
    fn resumable(&self, pool: &BlockPool) -> Option<(usize, Prefix)> {
        self.next_known()?;
        let (mut found, mut prefix, mut last) = (0, self.prefix, None);
        let blocks = self.tokens[self.computed..self.tokens.len() - 1].as_chunks::<BLOCK_TOKENS>().0;
        for text in blocks {
            let Some(behind) = pool.peek(prefix, text) else { break };
            (found, prefix) = (found + 1, behind);
            if pool.states.has(behind) {
                last = Some((found, behind));
            }
        }
        last
    }

    /// Of so many tokens of its prompt those up to the end of a block, where its state is copied.
    pub fn up_to_copy(&self, tokens: usize) -> usize {
        let end = (self.computed + tokens).min(self.tokens.len() - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
        if self.state.is_some() && end > self.computed { end - self.computed } else { tokens }
    }

    /// Keeps a copy of its state, from which others go on: the last one of its prompt, and the last one of all.
    pub fn keep_state(&mut self, pool: &mut BlockPool, model: &mut dyn Runner) {
        let Some(own) = self.state else { return };
        if self.computed == 0 || !self.computed.is_multiple_of(BLOCK_TOKENS) || pool.states.has(self.prefix) {
            return;
        }
        let moved = self.copied.take().and_then(|earlier| pool.states.take_kept(earlier));
        let Some(place) = moved.or_else(|| pool.states.take()) else { return };
        if model.copy_state(own, place).is_err() {
            return pool.states.give_back(place);
        }
        pool.states.keep(self.prefix, place);
        let ends_prompt = self.tokens.len() == self.prompt && self.pending() <= BLOCK_TOKENS;
        self.copied = Some(self.prefix).filter(|_| !ends_prompt);
    }

    fn give_place_back(&mut self, pool: &mut BlockPool) {
        self.copied = None;
        if let Some(place) = self.state.take() {
            pool.states.give_back(place);
        }
    }

    /// Takes blocks until so many tokens more fit. Whether they do.
    pub fn reserve(&mut self, tokens: usize, pool: &mut BlockPool) -> bool {
        while self.blocks.len() * BLOCK_TOKENS < self.computed + tokens {
            let Some(block) = pool.take() else { return false };
            self.blocks.push(block);
        }
        true
    }

    /// Gives back its blocks; what was computed is computed anew, as far as the cache does not hold it any more.
    pub fn put_off(&mut self, pool: &mut BlockPool) {
        pool.release(&std::mem::take(&mut self.blocks));
        self.give_place_back(pool);
        self.computed = 0;
        if self.tokens.len() == self.prompt {
            self.taken = 0;
        }
        self.prefix = pool.beginning(&self.request.owner);
    }

    /// Ends it, and gives back its blocks; those of one that failed by its numbers are not used again.
    pub fn end(mut self, result: Result<FinishReason>, is_broken: bool, pool: &mut BlockPool) {
        let blocks = std::mem::take(&mut self.blocks);
        self.give_place_back(pool);
        if is_broken {
            pool.discard(&blocks)
        } else {
            pool.release(&blocks)
        }
        if let Some(ending) = self.ending.take() {
            ending(result);
        }
    }

    /// Takes in a pass of so many of its tokens, and the logits of those that were wanted: `[rows, vocabulary]`, of the last one or
    /// of all. How it ends, if it does.
    ///
    /// # Errors
    /// If its client left, and if nothing can be chosen.
    pub fn advance(
        &mut self,
        tokens: usize,
        logits: &[f32],
        context: usize,
        pool: &mut BlockPool,
        tokenizer: &Tokenizer,
    ) -> Result<Option<FinishReason>> {
        let was_scored = self.is_scored();
        let start = self.computed;
        self.computed += tokens;
        self.fill_blocks(start, pool);
        if self.tokens.len() == self.prompt {
            self.request.output.prompt(count(self.prompt), count(self.taken));
        }
        if was_scored {
            self.score(tokenizer, start, logits);
        }
        if self.pending() > 0 {
            return Ok(None);
        }
        if self.tokens.len() == self.prompt {
            self.echo(tokenizer)?;
            if self.request.max_tokens == 0 {
                return Ok(Some(FinishReason::Length));
            }
        }
        let last = &logits[logits.len().saturating_sub(tokenizer.vocabulary())..];
        self.choose(tokenizer, context, existing(tokenizer, last))
    }

    /// Makes known the blocks that became full.
    fn fill_blocks(&mut self, start: usize, pool: &mut BlockPool) {
        for block in start / BLOCK_TOKENS..self.computed / BLOCK_TOKENS {
            let text = &self.tokens[block * BLOCK_TOKENS..(block + 1) * BLOCK_TOKENS];
            if let Ok(text) = text.try_into() {
                self.prefix = pool.fill(self.blocks[block], self.prefix, text);
            }
        }
    }

    /// Chooses the next token.
    fn choose(&mut self, tokenizer: &Tokenizer, context: usize, logits: &[f32]) -> Result<Option<FinishReason>> {
        let request = &mut self.request;
        let token = request.sampler.choose(&mut logits.to_vec())?;
        if tokenizer.is_end(token) && (!request.ignore_eos || request.sampler.is_over()) {
            return Ok(Some(FinishReason::Stop));
        }
        let logprob = request.logprobs.map(|top| token_logprob(tokenizer, logits, token, top));
        let is_mark = request.marks.contains(&token);
        let bytes = if is_mark { tokenizer.bytes(token) } else { tokenizer.visible(token) };
        self.is_paused = request.output.try_token(bytes, logprob)? == Flow::Pause;
        if request.sampler.is_over() {
            return Ok(Some(FinishReason::Stop));
        }
        if request.output.completion_tokens() >= request.max_tokens || self.tokens.len() + 1 >= context {
            return Ok(Some(FinishReason::Length));
        }
        self.tokens.push(token);
        Ok(None)
    }

    /// Log-probabilities of the prompt's tokens that follow those at `start` and after.
    fn score(&mut self, tokenizer: &Tokenizer, start: usize, logits: &[f32]) {
        let (request, prompt) = (&self.request, &self.tokens[..self.prompt]);
        let top = request.logprobs.unwrap_or(0);
        if start == 0 {
            // Nothing comes before the first token, so nothing is said of how likely it was.
            self.echoed.push(TokenLogprob::new(entry(tokenizer, prompt[0], 0.0), Vec::new()));
        }
        for (row, token) in logits.chunks_exact(tokenizer.vocabulary()).zip(&prompt[start + 1..]) {
            self.echoed.push(token_logprob(tokenizer, existing(tokenizer, row), *token, top));
        }
    }

    fn echo(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        if self.request.echo {
            let mut entries = std::mem::take(&mut self.echoed).into_iter();
            let tokens = tokenizer.shown(&self.tokens[..self.prompt]);
            let tokens = tokens.map(|bytes| (bytes, entries.next()));
            self.request.output.echo_tokens(tokens)?;
        }
        Ok(())
    }

    /// What is told of logits that are no finite numbers, which `part` of the model made; nothing if they are.
    pub fn check(&self, logits: &[f32], part: impl FnOnce() -> Option<String>) -> Result<()> {
        if finite::is_finite(logits) {
            return Ok(());
        }
        let part = part().unwrap_or_else(|| "output".to_owned());
        Err(finite::broken(part, format_args!("token {}", self.tokens.len())))
    }
}

/// The logits of tokens that there are: a model may have more embeddings.
fn existing<'a>(tokenizer: &Tokenizer, logits: &'a [f32]) -> &'a [f32] {
    &logits[..logits.len().min(tokenizer.tokens())]
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
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
