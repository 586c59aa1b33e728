//! The scheduler of steps: which tokens of which sequences pass through the model together.
//!
//! Each step takes one token of every sequence that has begun its answer, and beside them as much of the prompts as keeps the step
//! short. Sequences that find no room wait; one that runs and needs room that is not there puts off whoever came last.

use std::collections::{HashSet, VecDeque};

use aihost_engine::ops::{BLOCK_TOKENS, Pass, Span};
use aihost_plugin_api::{FinishReason, Result};

use crate::blocks::BlockPool;
use crate::model::{Room, Runner};
use crate::sequence::Sequence;
use crate::tokenizer::Tokenizer;

/// Tokens of prompts in a step that nobody's answer waits for.
pub const STEP_TOKENS: usize = 128;
/// Tokens of prompts in a step beside answers, which wait for it.
const SHARED_STEP_TOKENS: usize = 32;
/// Tokens of a prompt in a step if every position's logits are wanted: they are large.
pub const SCORED_TOKENS: usize = 16;

/// All sequences of a model.
#[derive(Debug)]
pub struct Batch {
    pool: BlockPool,
    /// In the order in which they came.
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    /// Most that run together.
    slots: usize,
    /// Tokens of a prompt and its answer together.
    context: usize,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was computed or ended.
    Made,
    /// All that is there waits for its clients.
    Waiting,
    /// There is nothing.
    Idle,
}

/// What one sequence has in a step.
struct Share {
    /// Which of the running ones.
    sequence: usize,
    tokens: usize,
    /// How many of these have logits.
    wanted: usize,
}

impl Batch {
    /// Without sequences, over so many blocks and states.
    pub fn new(room: Room, slots: usize) -> Self {
        let Room { blocks, states, context } = room;
        Self {
            pool: BlockPool::new(blocks).with_states(states),
            running: Vec::new(),
            waiting: VecDeque::new(),
            slots,
            context,
        }
    }

    /// Whether it has no sequence.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// The blocks.
    pub fn pool(&mut self) -> &mut BlockPool {
        &mut self.pool
    }

    /// One more sequence.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// One step.
    pub fn step(&mut self, model: &mut dyn Runner, tokenizer: &Tokenizer) -> Progress {
        let ended = self.look(tokenizer);
        self.admit(model);
        let shares = self.plan(model);
        if shares.is_empty() {
            return match (ended, self.is_empty()) {
                (true, _) => Progress::Made,
                (false, true) => Progress::Idle,
                (false, false) => Progress::Waiting,
            };
        }
        let logits = model.forward(&self.pass(&shares));
        self.deliver(&shares, logits, model, tokenizer);
        Progress::Made
    }

    /// Ends those whose clients left, and wakes those whose clients caught up. Whether any ended.
    fn look(&mut self, tokenizer: &Tokenizer) -> bool {
        let before = self.running.len() + self.waiting.len();
        let pool = &mut self.pool;
        let mut stays = |mut sequence: Sequence| match sequence.look(tokenizer).transpose() {
            None => Some(sequence),
            Some(result) => {
                sequence.end(result, false, pool);
                None
            }
        };
        self.waiting = std::mem::take(&mut self.waiting).into_iter().filter_map(&mut stays).collect();
        self.running = std::mem::take(&mut self.running).into_iter().filter_map(&mut stays).collect();
        self.running.len() + self.waiting.len() < before
    }

    /// Lets those run for whose prompts there is room.
    fn admit(&mut self, model: &mut dyn Runner) {
        while self.running.len() < self.slots
            && let Some(mut next) = self.waiting.pop_front()
        {
            if !next.take_place(&mut self.pool) {
                self.waiting.push_front(next);
                return;
            }
            next.take_known(&mut self.pool, model);
            let room = (next.blocks().len() + self.pool.available()) * BLOCK_TOKENS;
            if !self.running.is_empty() && room <= next.tokens().len() {
                next.put_off(&mut self.pool);
                self.waiting.push_front(next);
                return;
            }
            self.running.push(next);
        }
    }

    /// Who has how much of the next step, with room for it in the cache.
    fn plan(&mut self, model: &mut dyn Runner) -> Vec<Share> {
        let answers = self.running.iter().filter(|sequence| sequence.is_decoding() && !sequence.is_paused()).count();
        let mut prompts = if answers > 0 { SHARED_STEP_TOKENS } else { STEP_TOKENS };
        let mut shares: Vec<Share> = Vec::new();
        let mut begun = HashSet::new();
        let mut at = 0;
        while at < self.running.len() {
            let sequence = &mut self.running[at];
            if sequence.is_paused() {
                at += 1;
                continue;
            }
            sequence.take_known(&mut self.pool, model);
            let tokens = if sequence.is_decoding() {
                1
            } else {
                // What another one computes right now is waited for: then it is there.
                let is_twin = sequence.next_block().is_some_and(|block| !begun.insert(block));
                let most = if sequence.is_scored() { SCORED_TOKENS } else { prompts };
                let tokens =
                    if is_twin && !sequence.is_scored() { 0 } else { sequence.pending().min(most).min(prompts) };
                let tokens = sequence.up_to_copy(tokens);
                prompts -= tokens;
                tokens
            };
            if tokens > 0 {
                if !self.make_room(at, tokens) {
                    // It was put off itself, and it was the last.
                    break;
                }
                let sequence = &self.running[at];
                let is_last = tokens == sequence.pending();
                let wanted = if sequence.is_scored() { tokens } else { usize::from(is_last) };
                shares.push(Share { sequence: at, tokens, wanted });
            }
            at += 1;
        }
        shares
    }

    /// Finds room for a sequence's next tokens. False if it was put off for want of it.
    fn make_room(&mut self, at: usize, tokens: usize) -> bool {
        while !self.running[at].reserve(tokens, &mut self.pool) {
            let Some(mut last) = self.running.pop() else { return false };
            last.put_off(&mut self.pool);
            self.waiting.push_front(last);
            if self.running.len() == at {
                return false;
            }
        }
        true
    }

    fn pass(&self, shares: &[Share]) -> Pass<'_> {
        let mut pass = Pass::default();
        for share in shares {
            let sequence = &self.running[share.sequence];
            let start = sequence.computed();
            let first = pass.tokens.len();
            pass.tokens.extend_from_slice(&sequence.tokens()[start..start + share.tokens]);
            pass.wanted.extend(first + share.tokens - share.wanted..first + share.tokens);
            pass.spans.push(Span { rows: share.tokens, start, blocks: sequence.blocks(), state: sequence.state() });
        }
        pass
    }

    /// Hands each sequence its logits, and ends those that are over.
    fn deliver(&mut self, shares: &[Share], logits: Result<Vec<f32>>, model: &mut dyn Runner, tokenizer: &Tokenizer) {
        let mut ends: Vec<(usize, Result<FinishReason>, bool)> = Vec::new();
        match logits {
            Err(error) => ends.extend(shares.iter().map(|share| (share.sequence, Err(error.clone()), true))),
            Ok(logits) => {
                let mut rest = logits.as_slice();
                for share in shares {
                    let (own, behind) = rest.split_at(share.wanted * tokenizer.vocabulary());
                    rest = behind;
                    let one = std::slice::from_ref(share);
                    let sound = self.running[share.sequence].check(own, || model.broken_part(&self.pass(one)));
                    let is_broken = sound.is_err();
                    let sequence = &mut self.running[share.sequence];
                    let end = sound
                        .and_then(|()| sequence.advance(share.tokens, own, self.context, &mut self.pool, tokenizer));
                    if !is_broken {
                        sequence.keep_state(&mut self.pool, model);
                    }
                    if let Some(result) = end.transpose() {
                        ends.push((share.sequence, result, is_broken));
                    }
                }
            }
        }
        for (sequence, result, is_broken) in ends.into_iter().rev() {
            self.running.remove(sequence).end(result, is_broken, &mut self.pool);
        }
    }
}
