//! The real model, held against golden data from other implementations (tests/golden/llm/generate.py).

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use aihost_engine::candle::CandleOps;
use aihost_engine::cpu::Cpu;
use aihost_engine::nn::decoder::Decoder;
use aihost_engine::ops::{BLOCK_TOKENS, Ops, Pass, Span};
use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{
    FinishReason, LoadRequest, Message, Sampling, TextEvent, TextInput, TextRequest, TokenLogprob,
};
use candle_core::{DType, Device};
use candle_llm::LlmPlugin;
use candle_llm::files::ModelFiles;
use candle_llm::model::Room;
use candle_llm::sampler::argmax;
use candle_llm::template::{ChatTemplate, Conversation, PromptEnd};
use candle_llm::tokenizer::Tokenizer;
use serde::Deserialize;

/// Where the two likeliest tokens are closer than this, in natural-log probability, another rounding may choose the other one.
const NEAR_TIE: f32 = 0.15;

/// Most tokens of a sequence.
const CONTEXT: usize = 2048;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where the repository's models.yaml puts the file of its entry `smollm2`.
const FETCHED_MODEL: &str = "target/aihost/models/sha256-b179c9523d0e6a0f/SmolLM2-135M-Instruct.Q4_1.gguf";

fn model_file() -> PathBuf {
    let path = std::env::var_os("AIHOST_SMOLLM2").map_or_else(|| root().join(FETCHED_MODEL), PathBuf::from);
    assert!(path.is_file(), "{} is not there: `cargo xtask up` or `cargo xtask test` fetches it", path.display());
    path
}

fn golden<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    let path = root().join("tests/golden/llm").join(name);
    serde_json::from_slice(&std::fs::read(&path).expect("golden data is in the repository"))
        .expect("golden data is valid")
}

/// The model, opened.
fn model_files() -> ModelFiles {
    let load = LoadRequest::new("cpu", [("model".to_owned(), model_file())].into());
    ModelFiles::open(&load).expect("opens")
}

struct Parts {
    model: Decoder<Cpu>,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

fn parts() -> &'static Parts {
    static PARTS: OnceLock<Parts> = OnceLock::new();
    PARTS.get_or_init(|| {
        let files = model_files();
        let model = Decoder::open(Cpu, files.tensors(), files.config().expect("a llama"), CONTEXT).expect("opens");
        let tokenizer = files.tokenizer(model.config().vocabulary).expect("opens");
        let (bos, eos) = tokenizer.bos_eos_texts();
        let template = ChatTemplate::open(files.templates().expect("text"), bos, eos);
        assert_eq!(template.fault(), None);
        Parts { model, tokenizer, template }
    })
}

fn rendered(template: &ChatTemplate, messages: &[Message], end: PromptEnd) -> String {
    let arguments = serde_json::Map::new();
    let conversation = Conversation { messages, tools: &[], arguments: &arguments, end };
    template.render(&conversation, usize::MAX).expect("renders").expect("whole")
}

#[derive(Deserialize)]
struct Greedy {
    messages: Option<Vec<Message>>,
    prompt: Option<String>,
    ids: Vec<u32>,
    tokens: Vec<u32>,
    gaps: Vec<f32>,
}

#[derive(Deserialize)]
struct Ids {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn tokens_equal_the_reference() {
    for case in golden::<Vec<Ids>>("tokenizer.json") {
        assert_eq!(parts().tokenizer.encode(&case.text).expect("encodes"), case.ids, "{:?}", case.text);
        let bytes: Vec<u8> = case.ids.iter().flat_map(|id| parts().tokenizer.bytes(*id)).copied().collect();
        assert_eq!(String::from_utf8_lossy(&bytes), case.text, "back to text");
    }
}

#[test]
fn greedy_tokens_equal_the_reference() {
    let Parts { model, tokenizer, template } = parts();
    let text = |case: &Greedy| match (&case.messages, &case.prompt) {
        (Some(messages), _) => rendered(template, messages, PromptEnd::NewTurn),
        (None, prompt) => prompt.clone().expect("a prompt"),
    };
    println!("{} tokens compared", greedy_tokens_equal(model, tokenizer, "greedy.json", text));
}

#[test]
#[ignore = "AIHOST_GEMMA3 names gemma-3-270m-q4_k_m.gguf; `cargo xtask ci --full` fetches it"]
fn the_greedy_tokens_of_gemma_3_equal_the_reference() {
    let file = PathBuf::from(std::env::var_os("AIHOST_GEMMA3").expect("it names a file"));
    let load = LoadRequest::new("cpu", [("model".to_owned(), file)].into());
    let files = ModelFiles::open(&load).expect("opens");
    let model = Decoder::open(Cpu, files.tensors(), files.config().expect("a model"), CONTEXT).expect("opens");
    let tokenizer = files.tokenizer(model.config().vocabulary).expect("opens");
    let text = |case: &Greedy| case.prompt.clone().expect("a prompt");
    println!("{} tokens compared", greedy_tokens_equal(&model, &tokenizer, "gemma3.json", text));
}

/// How many tokens were compared, of all of the file's.
fn greedy_tokens_equal(
    model: &Decoder<Cpu>,
    tokenizer: &Tokenizer,
    golden_file: &str,
    text_of: impl Fn(&Greedy) -> String,
) -> usize {
    let cases: Vec<Greedy> = golden(golden_file);
    let (mut compared, mut total) = (0, 0);
    for case in &cases {
        let text = text_of(case);
        let ids = tokenizer.encode(&text).expect("encodes");
        assert_eq!(ids, case.ids, "{text:?}");
        let blocks: Vec<u32> = (0..(ids.len() + case.tokens.len()).div_ceil(BLOCK_TOKENS) as u32).collect();
        let mut cache = model.cache(blocks.len(), 0).expect("memory");
        let (mut feed, mut at) = (ids, 0);
        for (step, (wanted, gap)) in case.tokens.iter().zip(&case.gaps).enumerate() {
            let span = Span { rows: feed.len(), start: at, blocks: &blocks, state: 0 };
            let pass = Pass { wanted: vec![feed.len() - 1], spans: vec![span], tokens: feed.clone() };
            let found = argmax(&model.forward(&pass, &mut cache).expect("computes"));
            at += feed.len();
            if found != *wanted {
                assert!(*gap < NEAR_TIE, "{text:?}, step {step}: {found} in place of {wanted}, with a gap of {gap}");
                break;
            }
            compared += 1;
            feed = vec![found];
        }
        total += case.tokens.len();
    }
    // Near-ties end a comparison early; most of the golden data must have been compared all the same.
    assert!(compared * 10 >= total * 6, "only {compared} of {total} tokens were compared");
    compared
}

#[test]
fn a_last_message_is_gone_on_with() {
    let messages = [Message::user("Who wrote Romeo and Juliet?"), Message::new("assistant", "The author is ")];
    let text = rendered(&parts().template, &messages, PromptEnd::LastMessage);
    assert!(text.ends_with("<|im_start|>assistant\nThe author is "), "{text}");
}

/// Three tokens are one of them: `max_tokens` ends a text within a character.
#[test]
fn no_text_ends_in_half_a_character() {
    let mut host =
        MockHost::new::<LlmPlugin>(serde_json::json!({"threads": 2}), &[("model", model_file())]).expect("options");
    host.load().expect("loads");
    let mut is_cut = false;
    for (most, echo) in [(1, false), (2, false), (3, false), (4, false), (5, true)] {
        let request = TextRequest::prompt("🎉".repeat(10)).sampling(Sampling::default().temperature(0.0));
        let answer = host.generate(&request.max_tokens(most).echo(echo).logprobs(2)).expect("answers");
        assert!(!answer.text.contains('\u{fffd}'), "{most}: {}", answer.text);
        let (mut tokens, mut bytes, mut count) = (String::new(), Vec::<u8>::new(), 0);
        for event in &answer.events {
            let TextEvent::Text { logprobs, .. } = event else { continue };
            for TokenLogprob { chosen, .. } in logprobs {
                tokens += &chosen.token;
                bytes.extend(&chosen.bytes);
                count += 1;
            }
        }
        assert_eq!(tokens, answer.text, "{most}");
        let prompt = if echo { answer.finish.usage.prompt_tokens } else { 0 };
        assert_eq!(count, prompt + answer.finish.usage.completion_tokens, "{most}");
        is_cut |= bytes.len() > tokens.len();
    }
    assert!(is_cut, "no text ended within a character, so nothing was tried");
}

fn chat(text: &str) -> TextRequest {
    TextRequest::ask(text).sampling(Sampling::default().temperature(0.0)).max_tokens(48)
}

#[test]
fn answers_a_question() {
    let mut host =
        MockHost::new::<LlmPlugin>(serde_json::json!({"threads": 2}), &[("model", model_file())]).expect("options");
    let begun = Instant::now();
    host.load().expect("loads");
    println!("load took {:?}", begun.elapsed());
    let answer = host.generate(&chat("Who wrote Romeo and Juliet?")).expect("answers");
    assert!(answer.text.contains("Shakespeare"), "{}", answer.text);
    assert_eq!(answer.finish.reason, FinishReason::Length, "{}", answer.text);
    let again = host.generate(&chat("Who wrote Romeo and Juliet?")).expect("answers");
    assert_eq!(again.text, answer.text, "a cached prompt changes nothing");
    assert!(again.finish.usage.cached_tokens > 0);
}

#[test]
fn speed() {
    let mut host =
        MockHost::new::<LlmPlugin>(serde_json::json!({"threads": 2}), &[("model", model_file())]).expect("options");
    host.load().expect("loads");
    let long =
        chat("").input(TextInput::tokens((0..512).map(|i| 1000 + i * 7).collect())).max_tokens(1).ignore_eos(true);
    let begun = Instant::now();
    host.generate(&long).expect("reads");
    println!("prefill {:.1} tokens/s", 512.0 / begun.elapsed().as_secs_f64());
    let write = chat("Tell me a story.").max_tokens(128).ignore_eos(true);
    host.generate(&write.clone().max_tokens(1)).expect("reads");
    let begun = Instant::now();
    host.generate(&write).expect("writes");
    println!("decode {:.1} tokens/s", 128.0 / begun.elapsed().as_secs_f64());
}

/// Natural-log probabilities of the vocabulary behind a prompt.
fn logprobs_behind<O: Ops + Clone>(ops: O, file: &Arc<ModelFiles>, prompt: &[u32]) -> Vec<f32> {
    let mut model = candle_llm::model::on(
        ops,
        file,
        file.config().expect("a llama"),
        Room { blocks: 4, states: 0, context: CONTEXT },
    )
    .expect("opens");
    model.wake().expect("memory");
    // In two pieces, the second of one token, over blocks in an order of their own.
    let blocks = [2, 0, 3, 1];
    let (begin, last) = prompt.split_at(prompt.len() - 1);
    let span = |rows, start| vec![Span { rows, start, blocks: &blocks, state: 0 }];
    let first = Pass { tokens: begin.to_vec(), spans: span(begin.len(), 0), wanted: vec![] };
    assert!(model.forward(&first).expect("computes").is_empty());
    let second = Pass { tokens: last.to_vec(), spans: span(1, begin.len()), wanted: vec![0] };
    let logits = model.forward(&second).expect("computes");
    let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    model.park();
    logits.iter().map(|logit| logit - total.ln() as f32).collect()
}

/// The same model over the operations of both.
#[test]
fn both_devices_compute_the_same_model() {
    let file = Arc::new(model_files());
    let tokenizer = &parts().tokenizer;
    for (text, dtypes) in [
        ("The capital of France is", &[(DType::F32, 0.03), (DType::F16, 0.05), (DType::BF16, 0.5)][..]),
        ("def add(a, b):\n    return a +", &[(DType::F32, 0.03)]),
    ] {
        let prompt = tokenizer.encode(text).expect("encodes");
        let wanted = logprobs_behind(Cpu, &file, &prompt);
        for (dtype, limit) in dtypes.iter().copied() {
            let found = logprobs_behind(CandleOps::new(Device::Cpu, dtype), &file, &prompt);
            // Of the likely ones; what is as good as impossible is noise.
            let likely = wanted.iter().zip(&found).filter(|(wanted, _)| **wanted > -6.0);
            let worst = likely.map(|(wanted, found)| (wanted - found).abs()).fold(0f32, f32::max);
            println!("{text:?} in {dtype:?}: {worst:.3}");
            assert!(worst < limit, "{text:?} in {dtype:?} is off by {worst}");
            assert!(
                wanted[argmax(&wanted) as usize] - wanted[argmax(&found) as usize] < NEAR_TIE,
                "{text:?} in {dtype:?}"
            );
        }
    }
}
