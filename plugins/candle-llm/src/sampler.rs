//! From logits to the next token: penalties and bias, temperature, top_k, top_p, min_p, draw; or with the temperature behind them. What a
//! request does not say of that, the model's files may.

use aihost_plugin_api::{Error, Grammar, LogitsProcessor, Result, Sampling, TextRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use schemars::JsonSchema;
use serde::Deserialize;

/// In which order tokens are left out and the temperature is heeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum SamplingOrder {
    /// As transformers and vLLM have it: temperature, top_k, top_p, min_p.
    #[default]
    #[serde(rename = "transformers")]
    Transformers,
    /// As llama.cpp has it: top_k, top_p, min_p, temperature. What is left out does not depend on the temperature.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
}

/// How a model's files would have it sampled; what they do not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SamplingDefaults {
    /// See [`Sampling`], as for the others.
    pub temperature: Option<f32>,
    /// As above.
    pub top_p: Option<f32>,
    /// As above; transformers writes -1 or 0 for none.
    pub top_k: Option<i64>,
    /// As above.
    pub min_p: Option<f32>,
    /// As above.
    pub repetition_penalty: Option<f32>,
    /// In which order.
    #[serde(skip)]
    pub order: Option<SamplingOrder>,
}

impl SamplingDefaults {
    /// The sampling that a request asks for, with these where it asks for nothing.
    pub fn below(&self, asked: Sampling) -> Sampling {
        let mut sampling = asked;
        let unset = std::mem::take(&mut sampling.unset);
        let take = |name: &str, own: &mut f32, model: Option<f32>| {
            if let Some(model) = model.filter(|_| unset.contains(name)) {
                *own = model;
            }
        };
        take("temperature", &mut sampling.temperature, self.temperature);
        take("top_p", &mut sampling.top_p, self.top_p);
        take("min_p", &mut sampling.min_p, self.min_p);
        take("repetition_penalty", &mut sampling.repetition_penalty, self.repetition_penalty);
        if let Some(k) = self.top_k.filter(|_| unset.contains("top_k")) {
            sampling.top_k = u32::try_from(k).unwrap_or(0);
        }
        sampling.unset = unset;
        sampling
    }

    /// The same, if they can be asked for; none of them otherwise, which `name`, the file's, is told of in the log.
    pub fn checked(self, name: &str) -> Self {
        let every = ["temperature", "top_p", "min_p", "repetition_penalty", "top_k"].map(str::to_owned).into();
        match self.below(Sampling::default().unset(every)).check(usize::MAX) {
            Ok(()) => self,
            Err(error) => {
                tracing::warn!("{name}: how it would have the model sampled is left out: {error}");
                Self { order: self.order, ..Self::default() }
            }
        }
    }
}

/// Samples the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    order: SamplingOrder,
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
        Ok(Self { sampling, order: SamplingOrder::default(), rng, processor })
    }

    /// The same in this order.
    #[must_use]
    pub fn in_order(self, order: SamplingOrder) -> Self {
        Self { order, ..self }
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
        let weight = |temperature: f32| move |logit: f32| ((logit - largest) / temperature).exp();
        let first = match self.order {
            SamplingOrder::Transformers => s.temperature,
            SamplingOrder::LlamaCpp => 1.0,
        };
        let weight_of = weight(first);
        let mut kept: Vec<(u32, f32)> =
            (0..).zip(logits).map(|(token, logit)| (token, weight_of(*logit))).filter(|(_, w)| *w > 0.0).collect();
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
        if self.order == SamplingOrder::LlamaCpp {
            let weight_of = weight(s.temperature);
            kept.iter_mut().for_each(|(token, w)| *w = weight_of(logits[*token as usize]));
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

    use super::{Result, Sampler, SamplingDefaults, SamplingOrder, TextRequest, logprobs};

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
    fn the_temperature_leaves_out_nothing_where_it_comes_last() {
        let hot = Sampling::default().temperature(2.0).top_p(0.6).seed(1);
        let only = |order| {
            let mut sampler = sampler(hot.clone(), &[]).expect("valid").in_order(order);
            let mut tokens: Vec<u32> =
                (0..500).map(|_| sampler.choose(&mut LOGITS.clone()).expect("numbers")).collect();
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        // Shares of 0.64 and 0.24 at temperature 1, of 0.45 and 0.27 at 2.
        assert_eq!(only(SamplingOrder::LlamaCpp), [1]);
        assert_eq!(only(SamplingOrder::Transformers), [1, 2]);
        // Of two that are left, it flattens the shares all the same: 0.73 at 1, 0.62 at 2.
        let two = Sampling::default().temperature(2.0).top_k(2).seed(1);
        let mut sampler = sampler(two, &[]).expect("valid").in_order(SamplingOrder::LlamaCpp);
        let first = (0..4000).filter(|_| sampler.choose(&mut LOGITS.clone()).expect("numbers") == 1).count();
        assert!((2360..2620).contains(&first), "{first}");
    }

    #[test]
    fn what_nobody_asks_for_is_the_models() {
        let defaults = SamplingDefaults {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            repetition_penalty: Some(1.05),
            ..SamplingDefaults::default()
        };
        let unset = ["temperature", "top_k", "min_p"].map(str::to_owned);
        let found = defaults.below(Sampling::default().top_p(1.0).unset(unset.into()));
        assert_eq!((found.temperature, found.top_k, found.top_p, found.min_p), (0.6, 20, 1.0, 0.0));
        assert_eq!(found.repetition_penalty, 1.0);
        assert_eq!(defaults.below(Sampling::default()), Sampling::default());
        let wrong = SamplingDefaults { top_p: Some(7.0), ..defaults.clone() };
        assert_eq!(wrong.checked("a file"), SamplingDefaults::default());
        assert_eq!(defaults.clone().checked("a file"), defaults);
        let none = SamplingDefaults { top_k: Some(-1), ..SamplingDefaults::default() };
        assert_eq!(none.below(Sampling::default().top_k(5).unset(["top_k".to_owned()].into())).top_k, 0);
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
