//! What a request wants of the next token's logits before one is drawn.

use std::collections::{BTreeMap, HashMap, HashSet};

#[cfg(feature = "grammar")]
use super::grammar::Grammar;
use super::{Error, Result};
use crate::task::{Sampling, TextRequest};

/// What changes the logits of a sequence before temperature and the filters: penalties, biases, and the grammar that an answer is
/// kept to. An engine calls [`apply`](Self::apply) and [`accept`](Self::accept) once for each token, and so obeys what requests may
/// ask for here later; once [`is_over`](Self::is_over) the answer ends.
///
/// ```
/// use aihost_plugin_api::{LogitsProcessor, Sampling, TextRequest};
///
/// let request = TextRequest::prompt("x").sampling(Sampling::default().logit_bias([(2, -100.0)].into()));
/// let mut processor = LogitsProcessor::new(&request, &[0], 3)?;
/// let mut logits = [0.0, 1.0, 2.0];
/// if let Some(processor) = &mut processor {
///     processor.apply(&mut logits)?;
///     // The engine draws token 1.
///     processor.accept(1)?;
/// }
/// assert_eq!(logits, [0.0, 1.0, -98.0]);
/// # Ok::<(), aihost_plugin_api::Error>(())
/// ```
#[derive(Debug)]
pub struct LogitsProcessor {
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    bias: BTreeMap<u32, f32>,
    /// Tokens of the prompt, if one of them is punished.
    prompt: HashSet<u32>,
    /// How often each token is in the answer.
    answer: HashMap<u32, u32>,
    #[cfg(feature = "grammar")]
    grammar: Option<Grammar>,
}

impl LogitsProcessor {
    /// What `request` wants, for a prompt of these tokens and a vocabulary of this size; `None` if it wants nothing, which is then
    /// free.
    ///
    /// # Errors
    /// As [`Sampling::check`], for all of the request's.
    pub fn new(request: &TextRequest, prompt: &[u32], vocabulary: usize) -> Result<Option<Self>> {
        request.sampling.check(vocabulary)?;
        let &Sampling { repetition_penalty, frequency_penalty, presence_penalty, ref logit_bias, .. } =
            &request.sampling;
        let wants =
            repetition_penalty != 1.0 || frequency_penalty != 0.0 || presence_penalty != 0.0 || !logit_bias.is_empty();
        Ok(wants.then(|| Self::of(&request.sampling, prompt)))
    }

    /// The same, which keeps the answer to `grammar` besides.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(feature = "grammar")]
    pub fn with_grammar(
        request: &TextRequest,
        prompt: &[u32],
        vocabulary: usize,
        grammar: Option<Grammar>,
    ) -> Result<Option<Self>> {
        let plain = Self::new(request, prompt, vocabulary)?;
        Ok(match grammar {
            None => plain,
            grammar => Some(Self { grammar, ..plain.unwrap_or_else(|| Self::of(&request.sampling, prompt)) }),
        })
    }

    fn of(sampling: &Sampling, prompt: &[u32]) -> Self {
        let &Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = sampling;
        let is_repetitive = repetition_penalty != 1.0;
        Self {
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            bias: sampling.logit_bias.clone(),
            prompt: if is_repetitive { prompt.iter().copied().collect() } else { HashSet::new() },
            answer: HashMap::new(),
            #[cfg(feature = "grammar")]
            grammar: None,
        }
    }

    /// Changes the logits of the next token, `[vocabulary]` or more. What is minus infinity or no number stays so.
    ///
    /// # Errors
    /// [`InvalidRequest`](super::ErrorKind::InvalidRequest), which names the field, if what may come next by the answer's grammar is
    /// more than can be followed.
    pub fn apply(&mut self, logits: &mut [f32]) -> Result<()> {
        if self.repetition_penalty != 1.0 {
            let only_in_answer = self.answer.keys().filter(|token| !self.prompt.contains(token));
            for token in self.prompt.iter().chain(only_in_answer) {
                change(logits, *token, |logit| {
                    if logit > 0.0 { logit / self.repetition_penalty } else { logit * self.repetition_penalty }
                });
            }
        }
        for (token, count) in &self.answer {
            let penalty = self.frequency_penalty * *count as f32 + self.presence_penalty;
            change(logits, *token, |logit| logit - penalty);
        }
        for (token, bias) in &self.bias {
            change(logits, *token, |logit| logit + bias);
        }
        #[cfg(feature = "grammar")]
        if let Some(grammar) = &mut self.grammar {
            grammar.apply(logits)?;
        }
        Ok(())
    }

    /// Takes note of the token that was drawn.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn accept(&mut self, token: u32) -> Result<()> {
        *self.answer.entry(token).or_default() += 1;
        #[cfg(feature = "grammar")]
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token)?;
        }
        Ok(())
    }

    /// Whether nothing may follow what was accepted, so that the answer ends without a token that says so.
    pub fn is_over(&self) -> bool {
        #[cfg(feature = "grammar")]
        let is_over = self.grammar.as_ref().is_some_and(Grammar::is_over);
        #[cfg(not(feature = "grammar"))]
        let is_over = false;
        is_over
    }
}

/// A prompt of token ids may have some that the model has no logit for.
fn change(logits: &mut [f32], token: u32, to: impl Fn(f32) -> f32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = to(*logit);
    }
}

impl Sampling {
    /// Checks each field against its range, and the biases against a vocabulary of this size.
    ///
    /// # Errors
    /// [`InvalidRequest`](super::ErrorKind::InvalidRequest) that names the field.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        let ranges = [
            ("temperature", self.temperature, 0.0, 2.0),
            ("top_p", self.top_p, f32::MIN_POSITIVE, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, 100.0),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                let least = if least == f32::MIN_POSITIVE { "above 0".to_owned() } else { format!("at least {least}") };
                let message = format!("{name} is {value} and must be {least} and at most {most}");
                return Err(Error::invalid_request(message).at(name));
            }
        }
        for (token, bias) in &self.logit_bias {
            let message = if *token as usize >= vocabulary {
                format!("logit_bias names token {token}, but the vocabulary has {vocabulary} tokens")
            } else if !(-100.0..=100.0).contains(bias) {
                format!("logit_bias of token {token} is {bias} and must be from -100 to 100")
            } else {
                continue;
            };
            return Err(Error::invalid_request(message).at("logit_bias"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(sampling: Sampling, prompt: &[u32]) -> Result<Option<LogitsProcessor>> {
        LogitsProcessor::new(&TextRequest::prompt("").sampling(sampling), prompt, 4)
    }

    fn applied(sampling: Sampling, prompt: &[u32], answer: &[u32], mut logits: [f32; 4]) -> [f32; 4] {
        let mut processor = made(sampling, prompt).unwrap().unwrap();
        answer.iter().for_each(|token| processor.accept(*token).unwrap());
        processor.apply(&mut logits).unwrap();
        logits
    }

    #[test]
    fn what_asks_for_nothing_has_none() {
        assert!(made(Sampling::default().temperature(0.0).top_k(3), &[1]).unwrap().is_none());
        assert!(made(Sampling::default().presence_penalty(0.5), &[]).unwrap().is_some());
    }

    #[test]
    fn penalties_and_biases_add_up() {
        let even = [1.0, 2.0, -1.0, 0.0];
        let repeated = Sampling::default().repetition_penalty(2.0);
        assert_eq!(applied(repeated, &[1], &[1, 2], even), [1.0, 1.0, -2.0, 0.0]);
        let counted = Sampling::default().frequency_penalty(1.0).presence_penalty(0.5);
        assert_eq!(applied(counted, &[0], &[1, 1, 2], even), [1.0, -0.5, -2.5, 0.0]);
        let all = Sampling::default().repetition_penalty(2.0).presence_penalty(1.0).logit_bias([(1, 10.0)].into());
        assert_eq!(applied(all, &[], &[1], even), [1.0, 10.0, -1.0, 0.0]);
    }

    #[test]
    fn what_is_no_number_stays_so_and_ids_past_the_end_are_passed_over() {
        let (low, nan) = (f32::NEG_INFINITY, f32::NAN);
        let biased =
            Sampling::default().repetition_penalty(2.0).logit_bias((0..4).map(|token| (token, 100.0)).collect());
        let found = applied(biased.clone(), &[0, 1, u32::MAX], &[0, 1, 4], [low, nan, low, nan]);
        assert!(found[0] == low && found[1].is_nan() && found[2] == low && found[3].is_nan(), "{found:?}");
        made(biased, &[9]).unwrap().unwrap().apply(&mut []).unwrap();
    }

    #[test]
    fn errors_name_the_field() {
        let off = Sampling::default;
        for (sampling, name) in [
            (off().temperature(3.0), "temperature"),
            (off().temperature(f32::NAN), "temperature"),
            (off().top_p(0.0), "top_p"),
            (off().min_p(-0.1), "min_p"),
            (off().repetition_penalty(0.0), "repetition_penalty"),
            (off().frequency_penalty(2.5), "frequency_penalty"),
            (off().presence_penalty(f32::NAN), "presence_penalty"),
            (off().logit_bias([(4, 1.0)].into()), "logit_bias"),
            (off().logit_bias([(u32::MAX, 1.0)].into()), "logit_bias"),
            (off().logit_bias([(0, -101.0)].into()), "logit_bias"),
            (off().logit_bias([(0, f32::NAN)].into()), "logit_bias"),
        ] {
            let error = made(sampling, &[]).unwrap_err();
            assert_eq!(error.details().field.as_deref(), Some(name), "{error}");
        }
    }
}
