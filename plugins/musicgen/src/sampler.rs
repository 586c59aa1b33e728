//! Which token follows from the logits of one codebook: temperature, top_k, top_p, one uniform draw.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Samples the tokens of a request, with its random number generator.
#[derive(Debug)]
pub struct Sampler {
    strategy: SamplingStrategy,
    uniforms: Uniforms,
    /// Logit and token, of one codebook; kept from call to call.
    candidates: Vec<(f32, u32)>,
}

/// Where uniform draws in [0, 1) come from.
#[derive(Debug)]
enum Uniforms {
    Seeded(Box<StdRng>),
    /// The next, in order; 0 once there are no more.
    Given(std::vec::IntoIter<f64>),
}

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SamplingStrategy {
    /// The likeliest; the first of equals.
    Greedy,
    /// Drawn at random from the truncated distribution.
    Sample {
        /// Divides the logits; above 0.
        temperature: f32,
        /// Keep the k likeliest and those as likely as the last of them; 0 is off.
        top_k: usize,
        /// Keep the smallest set whose probability reaches this; 1 is off.
        top_p: f32,
    },
}

impl Sampler {
    /// The same strategy, seed and logits give the same tokens.
    pub fn new(strategy: SamplingStrategy, seed: u64) -> Self {
        let uniforms = Uniforms::Seeded(Box::new(StdRng::seed_from_u64(seed)));
        Self { strategy, uniforms, candidates: Vec::new() }
    }

    /// A sampler that uses these uniform draws in [0, 1), one per token, to draw as another program did.
    pub fn with_draws(strategy: SamplingStrategy, draws: Vec<f64>) -> Self {
        Self { strategy, uniforms: Uniforms::Given(draws.into_iter()), candidates: Vec::new() }
    }

    /// Samples a token from `logits`, (vocabulary).
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        match self.strategy {
            SamplingStrategy::Greedy => greedy(logits),
            SamplingStrategy::Sample { temperature, top_k, top_p } => {
                let uniform = match &mut self.uniforms {
                    Uniforms::Seeded(random) => random.random(),
                    Uniforms::Given(draws) => draws.next().unwrap_or(0.0),
                };
                self.draw(logits, temperature, Truncation { top_k, top_p }, uniform)
            }
        }
    }

    /// The token at which the cumulative probability, in the order of the vocabulary, passes `uniform` in [0, 1).
    fn draw(&mut self, logits: &[f32], temperature: f32, truncation: Truncation, uniform: f64) -> u32 {
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(logits.iter().zip(0..).map(|(logit, token)| (logit / temperature, token)));
        truncation.apply(candidates);
        let most = candidates.iter().fold(f32::NEG_INFINITY, |most, (logit, _)| most.max(*logit));
        let weight = |logit: f32| f64::from((logit - most).exp());
        let goal = uniform * candidates.iter().map(|(logit, _)| weight(*logit)).sum::<f64>();
        let mut sum = 0.0;
        for (logit, token) in candidates.iter() {
            sum += weight(*logit);
            if sum > goal {
                return *token;
            }
        }
        candidates.last().map_or(0, |(_, token)| *token)
    }
}

#[derive(Clone, Copy, Debug)]
struct Truncation {
    top_k: usize,
    top_p: f32,
}

impl Truncation {
    /// Leaves the kept candidates, in the order of their tokens.
    fn apply(self, candidates: &mut Vec<(f32, u32)>) {
        if (1..candidates.len()).contains(&self.top_k) {
            let (_, &mut (least, _), _) =
                candidates.select_nth_unstable_by(self.top_k - 1, |(a, _), (b, _)| b.total_cmp(a));
            candidates.retain(|(logit, _)| *logit >= least);
        }
        if self.top_p < 1.0 {
            candidates.sort_unstable_by(|(a, i), (b, j)| b.total_cmp(a).then(i.cmp(j)));
            let most = candidates.first().map_or(0.0, |(logit, _)| *logit);
            let total: f64 = candidates.iter().map(|(logit, _)| f64::from((logit - most).exp())).sum();
            let mut sum = 0.0;
            let kept = candidates.iter().take_while(|(logit, _)| {
                let before = sum;
                sum += f64::from((logit - most).exp());
                before < f64::from(self.top_p) * total
            });
            let kept = kept.count().max(1);
            candidates.truncate(kept);
        }
        candidates.sort_unstable_by_key(|(_, token)| *token);
    }
}

fn greedy(logits: &[f32]) -> u32 {
    let best = logits.iter().zip(0u32..).reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map_or(0, |(_, token)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(truncation: Truncation, temperature: f32) -> Vec<u32> {
        let mut sampler = Sampler::new(SamplingStrategy::Greedy, 0);
        // Probabilities 0.1, 0.2, 0.3, 0.4.
        let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        (0..100).map(|i| sampler.draw(&logits, temperature, truncation, (f64::from(i) + 0.5) / 100.0)).collect()
    }

    fn counts(tokens: &[u32]) -> [usize; 4] {
        std::array::from_fn(|token| tokens.iter().filter(|t| **t == token as u32).count())
    }

    #[test]
    fn draws_follow_the_probabilities_in_the_vocabularys_order() {
        let tokens = draws(Truncation { top_k: 0, top_p: 1.0 }, 1.0);
        assert_eq!(counts(&tokens), [10, 20, 30, 40]);
        assert!(tokens.is_sorted());
    }

    #[test]
    fn truncation_keeps_the_likeliest() {
        assert_eq!(counts(&draws(Truncation { top_k: 2, top_p: 1.0 }, 1.0)), [0, 0, 43, 57]);
        assert_eq!(counts(&draws(Truncation { top_k: 0, top_p: 0.65 }, 1.0)), [0, 0, 43, 57]);
        assert_eq!(counts(&draws(Truncation { top_k: 0, top_p: 0.01 }, 1.0)), [0, 0, 0, 100]);
        assert_eq!(counts(&draws(Truncation { top_k: 9, top_p: 1.0 }, 0.01)), [0, 0, 0, 100]);
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(Sampler::new(SamplingStrategy::Greedy, 0).choose(&[0.0, 2.0, 2.0, 1.0]), 1);
    }

    #[test]
    fn a_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0u8..64).map(|i| f32::from(i % 7)).collect();
        let strategy = SamplingStrategy::Sample { temperature: 1.0, top_k: 20, top_p: 0.9 };
        let run = |seed| {
            let mut sampler = Sampler::new(strategy, seed);
            (0..32).map(|_| sampler.choose(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }
}
