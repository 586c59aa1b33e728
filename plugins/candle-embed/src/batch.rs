//! Which texts pass together: some of each request in turn, so that one of many texts keeps no other waiting.

use std::collections::VecDeque;

use aihost_engine::nn::encoder::Sequences;

use crate::texts::Encoded;

/// Tokens of a pass.
pub const PASS_TOKENS: usize = 2048;

/// The texts of one request, of which some have passed.
#[derive(Debug)]
struct Work<T> {
    /// Whose they are.
    owner: T,
    /// Those that have not passed, the next one first.
    waiting: VecDeque<Encoded>,
    /// What came of those that have.
    results: Vec<Vec<f32>>,
}

/// All requests that are open.
#[derive(Debug)]
pub struct Batch<T> {
    works: VecDeque<Work<T>>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { works: VecDeque::new() }
    }
}

impl<T> Batch<T> {
    /// One more request.
    pub fn add(&mut self, owner: T, texts: Vec<Encoded>) {
        self.works.push_back(Work { owner, waiting: texts.into(), results: Vec::new() });
    }

    /// Whether no request is open.
    pub fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    /// Takes out the requests that are not to go on.
    pub fn take_out(&mut self, mut is_over: impl FnMut(&T) -> bool) -> Vec<T> {
        let (over, stay): (VecDeque<Work<T>>, VecDeque<Work<T>>) =
            std::mem::take(&mut self.works).into_iter().partition(|work| is_over(&work.owner));
        self.works = stay;
        over.into_iter().map(|work| work.owner).collect()
    }

    /// The texts of the next pass, and whose each is: the first of each request in turn, as long as they fit. A text that is longer
    /// than a pass has one of its own.
    pub fn next_pass(&mut self) -> (Sequences, Vec<usize>) {
        let (mut sequences, mut places) = (Sequences::default(), Vec::new());
        let mut has_more = true;
        while has_more {
            has_more = false;
            for (place, work) in self.works.iter_mut().enumerate() {
                let Some(next) = work.waiting.front() else { continue };
                if !sequences.tokens.is_empty() && sequences.tokens.len() + next.tokens.len() > PASS_TOKENS {
                    return (sequences, places);
                }
                if let Some(Encoded { tokens, kinds }) = work.waiting.pop_front() {
                    sequences.lengths.push(tokens.len());
                    sequences.tokens.extend(tokens);
                    sequences.kinds.extend(kinds);
                    places.push(place);
                    has_more = true;
                }
            }
        }
        (sequences, places)
    }

    /// Hands out what came of a pass, and takes out the requests that are done, with all that came of them in order.
    pub fn deliver(&mut self, places: &[usize], results: Vec<Vec<f32>>) -> Vec<(T, Vec<Vec<f32>>)> {
        for (place, result) in places.iter().zip(results) {
            self.works[*place].results.push(result);
        }
        let (done, stay): (VecDeque<Work<T>>, VecDeque<Work<T>>) =
            std::mem::take(&mut self.works).into_iter().partition(|work| work.waiting.is_empty());
        self.works = stay;
        done.into_iter().map(|work| (work.owner, work.results)).collect()
    }

    /// Takes out the requests that these places are of.
    pub fn fail(&mut self, places: &[usize]) -> Vec<T> {
        let mut place = 0;
        let (failed, stay): (VecDeque<Work<T>>, VecDeque<Work<T>>) =
            std::mem::take(&mut self.works).into_iter().partition(|_| {
                place += 1;
                places.contains(&(place - 1))
            });
        self.works = stay;
        failed.into_iter().map(|work| work.owner).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: u32, count: usize) -> Encoded {
        Encoded { tokens: vec![id; count], kinds: vec![0; count] }
    }

    #[test]
    fn requests_take_turns_and_results_keep_their_order() {
        let mut batch = Batch::default();
        batch.add("many", (0..5).map(|i| text(i, PASS_TOKENS / 4)).collect());
        batch.add("one", vec![text(9, 10)]);
        let (sequences, places) = batch.next_pass();
        assert_eq!(places, [0, 1, 0, 0]);
        assert_eq!(sequences.lengths, [512, 10, 512, 512]);
        assert!(sequences.tokens.len() <= PASS_TOKENS && sequences.kinds.len() == sequences.tokens.len());
        let done = batch.deliver(&places, vec![vec![0.0], vec![9.0], vec![1.0], vec![2.0]]);
        assert_eq!(done, [("one", vec![vec![9.0]])]);
        let (_, places) = batch.next_pass();
        assert_eq!(places, [0, 0]);
        let done = batch.deliver(&places, vec![vec![3.0], vec![4.0]]);
        assert_eq!(done, [("many", (0..5u8).map(|i| vec![f32::from(i)]).collect())]);
        assert!(batch.is_empty());
    }

    #[test]
    fn a_text_longer_than_a_pass_passes_alone() {
        let mut batch = Batch::default();
        batch.add(0, vec![text(1, PASS_TOKENS + 1), text(2, 1)]);
        assert_eq!(batch.next_pass().0.lengths, [PASS_TOKENS + 1]);
        assert_eq!(batch.next_pass().0.lengths, [1]);
    }

    #[test]
    fn who_left_and_who_failed_are_taken_out() {
        let mut batch = Batch::default();
        for owner in 0..4 {
            batch.add(owner, vec![text(1, 1), text(1, PASS_TOKENS)]);
        }
        assert_eq!(batch.take_out(|owner| *owner == 1), [1]);
        let (_, places) = batch.next_pass();
        assert_eq!(places, [0, 1, 2]);
        assert_eq!(batch.fail(&[0, 2]), [0, 3]);
        assert_eq!(batch.take_out(|_| true), [2]);
    }
}
