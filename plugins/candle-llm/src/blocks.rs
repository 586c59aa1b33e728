//! Which block of the cache is whose, and what the blocks hold that nobody uses any more.
//!
//! A full block is known by its tokens and by all that stands before them, so that whoever comes with the same beginning takes
//! it. Nothing is compared by a hash alone. Each owner has a beginning of its own: what one had computed tells another nothing.

use std::collections::{BTreeMap, HashMap};

use aihost_engine::ops::BLOCK_TOKENS;

use crate::states::StatePool;

/// What stands before a block: an owner and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(u64);

/// The tokens of a full block.
pub type BlockText = [u32; BLOCK_TOKENS];

/// All blocks of a cache.
#[derive(Debug, Default)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Full blocks by what they hold.
    known: HashMap<(Prefix, BlockText), u32>,
    /// Those that hold nothing, the next one last.
    free: Vec<u32>,
    /// Those that nobody uses and that are known, by the time since when: the first one is the next to be forgotten.
    idle: BTreeMap<u64, u32>,
    /// What each owner's sequences begin with.
    owners: HashMap<String, Prefix>,
    /// Counts releases.
    clock: u64,
    /// Counts prefixes.
    prefixes: u64,
    /// Places for what layers without keys remember.
    pub states: StatePool,
}

#[derive(Clone, Debug, Default)]
struct Block {
    users: u32,
    /// What it holds, and what its text makes with all before it.
    held: Option<((Prefix, BlockText), Prefix)>,
    /// When it was released.
    since: u64,
}

impl BlockPool {
    /// Of so many blocks.
    pub fn new(blocks: usize) -> Self {
        let free = (0..u32::try_from(blocks).unwrap_or(u32::MAX)).rev().collect::<Vec<_>>();
        Self { blocks: vec![Block::default(); free.len()], free, ..Self::default() }
    }

    /// With so many places for states.
    pub fn with_states(self, places: usize) -> Self {
        Self { states: StatePool::new(places), ..self }
    }

    /// How many can be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// How many hold something.
    pub fn filled(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    /// How many are used by sequences.
    pub fn used(&self) -> usize {
        self.filled() - self.idle.len()
    }

    /// What the sequences of an owner begin with.
    pub fn beginning(&mut self, owner: &str) -> Prefix {
        if let Some(prefix) = self.owners.get(owner) {
            return *prefix;
        }
        let prefix = self.new_prefix();
        self.owners.insert(owner.to_owned(), prefix);
        prefix
    }

    fn new_prefix(&mut self) -> Prefix {
        self.prefixes += 1;
        Prefix(self.prefixes)
    }

    /// The block of these tokens behind these, for one more user; and what both make.
    pub fn find(&mut self, before: Prefix, text: &BlockText) -> Option<(u32, Prefix)> {
        let number = *self.known.get(&(before, *text))?;
        let block = &mut self.blocks[number as usize];
        if block.users == 0 {
            self.idle.remove(&block.since);
        }
        block.users += 1;
        block.held.map(|(_, prefix)| (number, prefix))
    }

    /// What these tokens behind these make, if they are there.
    pub fn peek(&self, before: Prefix, text: &BlockText) -> Option<Prefix> {
        let number = *self.known.get(&(before, *text))?;
        self.blocks[number as usize].held.map(|(_, prefix)| prefix)
    }

    /// An empty block for one user; none if all are used. What nobody used for longest is forgotten for it.
    pub fn take(&mut self) -> Option<u32> {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                let (_, number) = self.idle.pop_first()?;
                self.forget(number);
                number
            }
        };
        self.blocks[number as usize].users = 1;
        Some(number)
    }

    /// Says that a block is full, and of what. What all of it makes.
    pub fn fill(&mut self, number: u32, before: Prefix, text: BlockText) -> Prefix {
        if let Some(twin) = self.known.get(&(before, text)) {
            // Another computed the same meanwhile: that one stays known.
            return self.blocks[*twin as usize].held.map_or(before, |(_, prefix)| prefix);
        }
        let prefix = self.new_prefix();
        self.known.insert((before, text), number);
        self.blocks[number as usize].held = Some(((before, text), prefix));
        prefix
    }

    /// Gives back a sequence's blocks, in their order.
    pub fn release(&mut self, numbers: &[u32]) {
        // The last one first: without what stands before it a block is of no use.
        for number in numbers.iter().rev() {
            let block = &mut self.blocks[*number as usize];
            block.users = block.users.saturating_sub(1);
            if block.users > 0 {
                continue;
            }
            if block.held.is_some() {
                self.clock += 1;
                block.since = self.clock;
                self.idle.insert(self.clock, *number);
            } else {
                self.free.push(*number);
            }
        }
    }

    /// The same for blocks whose numbers are not to be used again.
    pub fn discard(&mut self, numbers: &[u32]) {
        numbers.iter().for_each(|number| self.forget(*number));
        self.release(numbers);
    }

    fn forget(&mut self, number: u32) {
        if let Some((key, _)) = self.blocks[number as usize].held.take() {
            self.known.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(number: u32) -> BlockText {
        [number; BLOCK_TOKENS]
    }

    #[test]
    fn a_block_is_found_by_its_text_and_all_before_it() {
        let mut pool = BlockPool::new(4);
        let (one, other) = (pool.beginning("one"), pool.beginning("other"));
        assert_eq!(pool.beginning("one"), one);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        let after_a = pool.fill(a, one, text(7));
        pool.fill(b, after_a, text(7));
        assert_eq!(pool.find(one, &text(7)), Some((a, after_a)));
        assert_eq!(pool.find(after_a, &text(7)).map(|(block, _)| block), Some(b));
        assert_eq!((pool.find(other, &text(7)), pool.find(one, &text(8))), (None, None));
        // A twin of it is not known, and is free once it is released.
        let twin = pool.take().unwrap();
        assert_eq!(pool.fill(twin, one, text(7)), after_a);
        pool.release(&[twin]);
        assert_eq!((pool.used(), pool.filled(), pool.available()), (2, 2, 2));
    }

    #[test]
    fn what_was_not_used_for_longest_is_forgotten_and_the_end_before_the_beginning() {
        let mut pool = BlockPool::new(3);
        let root = pool.beginning("");
        let blocks: Vec<u32> = (0..3).map(|_| pool.take().unwrap()).collect();
        let mut prefix = root;
        for (number, block) in blocks.iter().enumerate() {
            prefix = pool.fill(*block, prefix, text(number as u32));
        }
        assert_eq!(pool.take(), None);
        pool.release(&blocks);
        assert_eq!((pool.used(), pool.filled(), pool.available()), (0, 3, 3));
        assert_eq!(pool.take(), Some(blocks[2]));
        let (first, after) = pool.find(root, &text(0)).unwrap();
        assert_eq!(pool.find(after, &text(1)).map(|(block, _)| block), Some(blocks[1]));
        pool.discard(&[first, blocks[1]]);
        assert_eq!(pool.find(root, &text(0)), None);
        assert_eq!(pool.available(), 2);
    }

    proptest! {
        /// Sequences of few texts come and go in every order: no block is lost, none is had twice, and what is known is right.
        #[test]
        fn no_block_is_lost_or_shared_by_what_differs(
            steps in prop::collection::vec((0usize..6, 0u32..3, 0usize..5), 1..200),
            count in 1usize..12,
        ) {
            let mut pool = BlockPool::new(count);
            // Each sequence: its owner, its blocks and its texts, and what they make.
            let mut sequences: Vec<(u32, Vec<u32>, Vec<u32>, Prefix)> = Vec::new();
            let mut holds: HashMap<u32, (u32, Vec<u32>)> = HashMap::new();
            for (action, number, which) in steps {
                match action {
                    0 => {
                        let owner = pool.beginning(&number.to_string());
                        sequences.push((number, Vec::new(), Vec::new(), owner));
                    }
                    1..=3 if !sequences.is_empty() => {
                        let at = which % sequences.len();
                        let (owner, blocks, texts, prefix) = &mut sequences[at];
                        let mut longer = texts.clone();
                        longer.push(number);
                        let found = match pool.find(*prefix, &text(number)) {
                            Some((block, after)) => {
                                prop_assert_eq!(&holds[&block], &(*owner, longer.clone()));
                                Some((block, after))
                            }
                            None => pool.take().map(|block| (block, pool.fill(block, *prefix, text(number)))),
                        };
                        if let Some((block, after)) = found {
                            holds.insert(block, (*owner, longer.clone()));
                            blocks.push(block);
                            (*texts, *prefix) = (longer, after);
                        }
                    }
                    4 if !sequences.is_empty() => {
                        let (_, blocks, ..) = sequences.swap_remove(which % sequences.len());
                        pool.release(&blocks);
                    }
                    _ => {}
                }
                let mut used: Vec<u32> = sequences.iter().flat_map(|(_, blocks, ..)| blocks.clone()).collect();
                used.sort_unstable();
                used.dedup();
                prop_assert_eq!(pool.used(), used.len());
                prop_assert_eq!(pool.available(), count - used.len());
            }
            sequences.iter().for_each(|(_, blocks, ..)| pool.release(blocks));
            prop_assert_eq!((pool.used(), pool.available()), (0, count));
        }
    }
}
