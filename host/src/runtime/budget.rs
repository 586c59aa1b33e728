//! Bytes that many hold together, under one limit: each counts what it takes, and gives it back when it is dropped.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A limit on all of them.
#[derive(Debug)]
pub struct Budget {
    most: usize,
    taken: AtomicUsize,
}

/// What one of them has taken.
#[derive(Debug)]
pub struct BudgetShare {
    budget: &'static Budget,
    bytes: usize,
}

impl Budget {
    /// For at most so many bytes.
    pub const fn new(most: usize) -> Self {
        Self { most, taken: AtomicUsize::new(0) }
    }

    /// A share that has taken nothing yet.
    pub const fn share(&'static self) -> BudgetShare {
        BudgetShare { budget: self, bytes: 0 }
    }
}

impl BudgetShare {
    /// Bytes that it has taken.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more, and counts it in any case; whether all of them are within the limit still.
    pub fn take(&mut self, more: usize) -> bool {
        self.bytes += more;
        self.budget.taken.fetch_add(more, Ordering::Relaxed) + more <= self.budget.most
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fill_one_budget_and_give_back_what_they_took() {
        static BUDGET: Budget = Budget::new(10);
        let (mut first, mut second) = (BUDGET.share(), BUDGET.share());
        assert!(first.take(6) && second.take(4) && !second.take(1));
        drop(first);
        assert!(second.take(5) && second.bytes() == 10);
        drop(second);
        assert_eq!(BUDGET.taken.load(Ordering::Relaxed), 0);
    }
}
