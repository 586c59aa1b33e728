//! From logits to the next token: penalties and bias, temperature, top_k, top_p, min_p, draw.

use aihost_plugin_api::{Error, Grammar, LogitsProcessor, Result, Sampling, TextRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Samples the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: StdRng,
    processor: Option<LogitsProcessor>,
}

impl Sampler {
    /// Checks how `request` wants its tokens drawn, and takes note of the prompt. The answer is kept to `grammar`.
    ///
    /// # Errors
    /// `InvalidRequest` that names the field that is out of its range.
    pub fn new(request: &TextRequest, prompt: &[u32], vocabulary: usize, grammar: Option<Grammar>) -> Result<Self> {
        let sampling = request.sampling.clone();
        let processor = LogitsProcessor::with_grammar(request, prompt, vocabulary, grammar)?;
        let rng = sampling.seed.map_or_else(StdRng::from_os_rng, StdRng::seed_from_u64);
        Ok(Self { sampling, rng, processor })
    }

    /// Chooses the next token; `logits`, `[vocabulary]`, are changed on the way.
    ///
    /// # Errors
    /// `Internal` if none of them is a number above minus infinity: the first token of the vocabulary would be no answer.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<u32> {
        if let Some(processor) = &mut self.processor {
            processor.apply(logits)?;
        }
        let token = if self.sampling.temperature == 0.0 || self.sampling.top_k == 1 {
            argmax(logits)
        } else {
            self.draw(logits)
        };
        if logits.get(token as usize).is_none_or(|logit| logit.is_nan() || *logit == f32::NEG_INFINITY) {
            return Err(Error::internal("the model leaves no token to go on with; is its file damaged?"));
        }
        if let Some(processor) = &mut self.processor {
            processor.accept(token)?;
        }
        Ok(token)
    }

    /// Whether nothing may follow what was chosen.
    pub fn is_over(&self) -> bool {
        self.processor.as_ref().is_some_and(LogitsProcessor::is_over)
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let s = &self.sampling;
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| ((logit - largest) / s.temperature).exp();
        let mut kept: Vec<(u32, f32)> =
            (0..).zip(logits).map(|(token, logit)| (token, weight(*logit))).filter(|(_, w)| *w > 0.0).collect();
        // Likeliest first, the lower id first among equals, so that a seed always means the same token.
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let k = s.top_k as usize;
        if k > 0 && k < kept.len() {
            kept.select_nth_unstable_by(k - 1, order);
            kept.truncate(k);
        }
        let total: f32 = kept.iter().map(|(_, w)| w).sum();
        if s.top_p < 1.0 {
            // Tokens below this share cannot be in the smallest set unless the set is nearly everything: sort them only then.
            let floor = total * (1.0 - s.top_p) / kept.len() as f32;
            let (mut likely, rest): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(_, w)| *w >= floor);
            likely.sort_unstable_by(order);
            let mut sum = 0.0;
            let enough = likely.iter().position(|(_, w)| {
                sum += w;
                sum >= s.top_p * total
            });
            match enough {
                Some(last) => likely.truncate(last + 1),
                None => likely.extend(rest),
            }
            kept = likely;
        }
        if s.min_p > 0.0 {
            kept.retain(|(_, w)| *w >= s.min_p);
        }
        let total: f32 = kept.iter().map(|(_, w)| w).sum();
        let mut at = self.rng.random::<f32>() * total;
        for (token, w) in &kept {
            at -= w;
            if at < 0.0 {
                return *token;
            }
        }
        kept.last().map_or_else(|| argmax(logits), |(token, _)| *token)
    }
}

/// The likeliest token, the lowest id among equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.0
}

/// Natural-log probability of `token`, and the `top` likeliest tokens with theirs, likeliest first.
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from((logit - largest).exp())).sum();
    let log_total = total.ln() as f32 + largest;
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
    for (id, logit) in (0..).zip(logits) {
        if best.len() < top || best.last().is_some_and(|(_, least)| logit > least) {
            let at = best.partition_point(|(_, other)| other >= logit);
            best.insert(at, (id, *logit));
            best.truncate(top);
        }
    }
    best.iter_mut().for_each(|(_, logit)| *logit = (*logit - log_total).max(-9999.0));
    ((logits[token as usize] - log_total).max(-9999.0), best)
}

#[cfg(test)]
mod tests {
    use aihost_plugin_api::Sampling;

    use super::{Result, Sampler, TextRequest, logprobs};

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    fn sampler(sampling: Sampling, prompt: &[u32]) -> Result<Sampler> {
        Sampler::new(&TextRequest::prompt("").sampling(sampling), prompt, LOGITS.len(), None)
    }

    fn draws(sampling: &Sampling) -> Vec<u32> {
        let mut sampler = sampler(sampling.clone(), &[]).expect("valid");
        (0..200).map(|_| sampler.choose(&mut LOGITS.clone()).expect("numbers")).collect()
    }

    #[test]
    fn a_seed_repeats() {
        let sampling = Sampling::default().seed(7);
        assert_eq!(draws(&sampling), draws(&sampling));
        assert_ne!(draws(&sampling), draws(&Sampling::default().seed(8)));
    }

    #[test]
    fn each_filter_narrows() {
        let only = |sampling: Sampling| {
            let mut tokens = draws(&sampling.seed(1));
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        assert_eq!(only(Sampling::default().temperature(0.0)), [1]);
        assert_eq!(only(Sampling::default().top_k(2)), [1, 2]);
        assert_eq!(only(Sampling::default().top_p(0.5)), [1]);
        assert_eq!(only(Sampling::default().top_p(0.8)), [1, 2]);
        assert_eq!(only(Sampling::default().min_p(0.3)), [1, 2]);
        assert_eq!(only(Sampling::default().logit_bias([(3, 100.0)].into())), [3]);
    }

    #[test]
    fn penalties_push_away() {
        let sampling = Sampling::default().temperature(0.0).presence_penalty(2.0);
        assert_eq!(draws(&sampling)[..2], [1, 2]);
        let sampling = Sampling::default().temperature(0.0).repetition_penalty(4.0);
        let mut sampler = sampler(sampling, &[1]).expect("valid");
        assert_eq!(sampler.choose(&mut LOGITS.clone()).expect("numbers"), 2);
    }

    #[test]
    fn no_token_is_made_up() {
        let (low, nan) = (f32::NEG_INFINITY, f32::NAN);
        for sampling in [
            Sampling::default(),
            Sampling::default().temperature(0.0),
            Sampling::default().top_p(0.5),
            Sampling::default().logit_bias([(0, 100.0)].into()),
        ] {
            let mut sampler = sampler(sampling, &[]).expect("valid");
            for none in [[low; 5], [nan; 5], [nan, low, low, nan, nan]] {
                let error = sampler.choose(&mut none.clone()).expect_err("nothing to draw");
                assert!(error.message().contains("no token"), "{error}");
            }
            assert_eq!(sampler.choose(&mut [low, nan, -1e30, low, nan]).expect("one is left"), 2);
        }
    }

    #[test]
    fn logprobs_sum_to_one() {
        let (chosen, top) = logprobs(&LOGITS, 2, 5);
        assert_eq!(top.iter().map(|(t, _)| *t).collect::<Vec<_>>(), [1, 2, 0, 4, 3]);
        assert_eq!(chosen, top[1].1);
        assert!((top.iter().map(|(_, p)| p.exp()).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(logprobs(&LOGITS, 2, 0).1.is_empty());
    }
}
