//! Which place of the states is whose: layers without keys and values remember each sequence as one state, which knows of nothing but
//! the token that it came to. So copies are kept at ends of blocks, from which others with the same beginning go on.

use std::collections::{BTreeMap, HashMap};

use crate::blocks::Prefix;

/// All places.
#[derive(Debug, Default)]
pub struct StatePool {
    free: Vec<u32>,
    /// Copies by what stands before them, and since when nobody took them.
    kept: HashMap<Prefix, (u32, u64)>,
    /// What the copies are of, by that time: the first one is the next to be forgotten.
    order: BTreeMap<u64, Prefix>,
    clock: u64,
    count: usize,
}

impl StatePool {
    /// So many places.
    pub fn new(places: usize) -> Self {
        let free = (0..u32::try_from(places).unwrap_or(u32::MAX)).rev().collect::<Vec<_>>();
        Self { count: free.len(), free, ..Self::default() }
    }

    /// Whether there are any: a model whose layers all have keys needs none.
    pub fn is_needed(&self) -> bool {
        self.count > 0
    }

    /// How many are sequences' own or copies.
    pub fn used(&self) -> usize {
        self.count - self.free.len()
    }

    /// A place; the copy that nobody took for longest is forgotten for it. None if all are sequences' own.
    pub fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let (_, prefix) = self.order.pop_first()?;
            self.kept.remove(&prefix).map(|(place, _)| place)
        })
    }

    /// Gives a place back.
    pub fn give_back(&mut self, place: u32) {
        self.free.push(place);
    }

    /// Says what a place has a copy of.
    pub fn keep(&mut self, prefix: Prefix, place: u32) {
        self.forget(prefix);
        self.clock += 1;
        self.kept.insert(prefix, (place, self.clock));
        self.order.insert(self.clock, prefix);
    }

    /// The copy behind this.
    pub fn find(&mut self, prefix: Prefix) -> Option<u32> {
        let (place, since) = self.kept.get_mut(&prefix)?;
        self.clock += 1;
        self.order.remove(since);
        self.order.insert(self.clock, prefix);
        *since = self.clock;
        Some(*place)
    }

    /// Whether there is a copy behind this.
    pub fn has(&self, prefix: Prefix) -> bool {
        self.kept.contains_key(&prefix)
    }

    /// Takes the place of a copy that is of no use any more.
    pub fn take_kept(&mut self, prefix: Prefix) -> Option<u32> {
        let (place, since) = self.kept.remove(&prefix)?;
        self.order.remove(&since);
        Some(place)
    }

    fn forget(&mut self, prefix: Prefix) {
        if let Some(place) = self.take_kept(prefix) {
            self.free.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::BlockPool;

    #[test]
    fn what_nobody_took_for_longest_is_forgotten_and_no_place_is_lost() {
        let mut blocks = BlockPool::new(1);
        let mut prefix = |owner: &str| blocks.beginning(owner);
        let (a, b, c) = (prefix("a"), prefix("b"), prefix("c"));
        let mut pool = StatePool::new(3);
        let own = pool.take().unwrap();
        for kept in [a, b] {
            let place = pool.take().unwrap();
            pool.keep(kept, place);
        }
        assert_eq!((pool.used(), pool.find(c)), (3, None));
        let of_a = pool.find(a);
        // The copy behind `b` makes room.
        let next = pool.take().unwrap();
        assert!(pool.has(a) && !pool.has(b));
        pool.keep(c, next);
        assert_eq!(pool.take_kept(a), of_a);
        pool.give_back(of_a.unwrap());
        pool.give_back(own);
        assert_eq!(pool.used(), 1);
        // A second copy of the same takes the first one's place.
        let again = pool.take().unwrap();
        pool.keep(c, again);
        assert_eq!((pool.used(), pool.find(c)), (1, Some(again)));
        let all: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all.len(), 3);
        assert!(!StatePool::default().is_needed() && pool.is_needed());
    }
}
