//! A tiny random model, written by the test itself, driven from end to end; and the same file, damaged.

use std::path::PathBuf;
use std::sync::Arc;

use aihost_engine::candle::CandleOps;
use aihost_engine::cpu::Cpu;
use aihost_engine::ops::{Pass, Span};
use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{
    ErrorKind, FinishReason, LoadRequest, Sampling, TextEvent, TextFormat, TextInput, TextRequest,
};
use candle_core::{DType, Device};
use candle_llm::LlmPlugin;
use candle_llm::files::ModelFiles;
use candle_llm::model::{self, Room, Runner};

mod hugging_face;
mod templates;

const HIDDEN: usize = 32;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn key(out: &mut Vec<u8>, name: &str, kind: u32) {
    text(out, name);
    out.extend(kind.to_le_bytes());
}

/// A model of one layer with 258 tokens: the bytes, a merge, and an end-of-sequence token.
fn gguf() -> Vec<u8> {
    built(&[], |_| true, |_, _| {})
}

/// The same with more metadata of whole numbers, with some of its tensors, and with other numbers in them.
fn built(more: &[(&str, u32)], has: impl Fn(&str) -> bool, change: impl Fn(&str, &mut [f32])) -> Vec<u8> {
    padded(0, more, has, change)
}

/// The same with more embeddings than tokens.
fn padded(
    padding: usize,
    more: &[(&str, u32)],
    has: impl Fn(&str) -> bool,
    change: impl Fn(&str, &mut [f32]),
) -> Vec<u8> {
    let mut tokens: Vec<String> = (33..=126u32)
        .chain(161..=172)
        .chain(174..=255)
        .chain(256..=323)
        .filter_map(char::from_u32)
        .map(String::from)
        .collect();
    tokens.extend(["ab".to_owned(), "<|im_end|>".to_owned()]);
    let vocabulary = tokens.len();
    let mut head = b"GGUF\x03\0\0\0".to_vec();
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("token_embd.weight".into(), vec![HIDDEN, vocabulary + padding]),
        ("output_norm.weight".into(), vec![HIDDEN]),
    ];
    for (name, shape) in [
        ("attn_q", vec![HIDDEN, HIDDEN]),
        ("attn_k", vec![HIDDEN, 16]),
        ("attn_v", vec![HIDDEN, 16]),
        ("attn_output", vec![HIDDEN, HIDDEN]),
        ("ffn_gate", vec![HIDDEN, 64]),
        ("ffn_up", vec![HIDDEN, 64]),
        ("ffn_down", vec![64, HIDDEN]),
        ("attn_norm", vec![HIDDEN]),
        ("ffn_norm", vec![HIDDEN]),
    ] {
        tensors.push((format!("blk.0.{name}.weight"), shape));
    }
    tensors.retain(|(name, _)| has(name));
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((13 + more.len() as u64).to_le_bytes());
    for (name, value) in
        [("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm")]
    {
        key(&mut head, name, 8);
        text(&mut head, value);
    }
    for (name, value) in [
        ("llama.block_count", 1u32),
        ("llama.context_length", 64),
        ("llama.embedding_length", 32),
        ("llama.feed_forward_length", 64),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("tokenizer.ggml.eos_token_id", vocabulary as u32 - 1),
    ]
    .iter()
    .chain(more)
    {
        key(&mut head, name, 4);
        head.extend(value.to_le_bytes());
    }
    key(&mut head, "llama.attention.layer_norm_rms_epsilon", 6);
    head.extend(1e-5f32.to_le_bytes());
    for (name, values) in [("tokenizer.ggml.tokens", tokens.clone()), ("tokenizer.ggml.merges", vec!["a b".to_owned()])]
    {
        key(&mut head, name, 9);
        head.extend(8u32.to_le_bytes());
        head.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| text(&mut head, value));
    }
    let (mut data, mut state) = (Vec::new(), 1u32);
    for (name, shape) in &tensors {
        text(&mut head, name);
        head.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|d| head.extend((*d as u64).to_le_bytes()));
        head.extend(0u32.to_le_bytes());
        head.extend((data.len() as u64).to_le_bytes());
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut numbers: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| next()).collect();
        change(name, &mut numbers);
        data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    head.resize(head.len().next_multiple_of(32), 0);
    head.extend(data);
    head
}

fn host(bytes: &[u8], options: serde_json::Value) -> (tempfile::TempDir, aihost_plugin_api::Result<MockHost>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path: PathBuf = folder.path().join("tiny.gguf");
    std::fs::write(&path, bytes).expect("written");
    let host = MockHost::new::<LlmPlugin>(options, &[("model", path)]).and_then(|mut host| host.load().map(|()| host));
    (folder, host)
}

fn request(prompt: &str, max_tokens: u32) -> TextRequest {
    TextRequest::prompt(prompt).sampling(Sampling::default().seed(5)).max_tokens(max_tokens).ignore_eos(true)
}

/// The answers to three seeds, of a model that takes the likeliest token where nobody asks for `top_k`.
fn answers_of_seeds(host: &MockHost, unset: &[&str]) -> Vec<String> {
    let answer = |seed| {
        let unset = unset.iter().map(|name| (*name).to_owned()).collect();
        let request = request("hello", 20).sampling(Sampling::default().seed(seed).unset(unset));
        host.generate(&request).expect("answers").text
    };
    (0..3).map(answer).collect()
}

#[test]
fn a_model_is_sampled_as_its_file_says_where_nobody_asks() {
    let (_folder, host) = host(&built(&[("general.sampling.top_k", 1)], |_| true, |_, _| {}), serde_json::json!({}));
    let host = host.expect("loads");
    let own = answers_of_seeds(&host, &["temperature", "top_k"]);
    assert!(own.iter().all(|text| *text == own[0]), "{own:?}");
    let asked = answers_of_seeds(&host, &["temperature"]);
    assert!(asked.iter().any(|text| *text != asked[0]), "{asked:?}");
}

#[test]
fn what_is_no_token_is_never_chosen() {
    const TOKENS: usize = 258;
    // Of two rows that are each other's negative, one has the largest logit of all.
    let is_padding = |name: &str, numbers: &mut [f32]| {
        if name == "token_embd.weight" {
            let (above, below) = numbers[TOKENS * HIDDEN..].split_at_mut(HIDDEN);
            above.fill(1000.0);
            below.fill(-1000.0);
        }
    };
    let (_folder, host) = host(&padded(2, &[], |_| true, is_padding), serde_json::json!({}));
    let host = host.expect("loads");
    for temperature in [0.0, 1.0] {
        let sampling = Sampling::default().temperature(temperature).seed(1);
        let answer = host.generate(&request("hello", 20).sampling(sampling).logprobs(5)).expect("answers");
        let entries = answer.events.iter().flat_map(|event| match event {
            TextEvent::Text { logprobs, .. } => logprobs.clone(),
            _ => Vec::new(),
        });
        for entry in entries {
            assert!(entry.chosen.logprob > -20.0, "{entry:?}");
            assert!(entry.top.iter().all(|other| !other.bytes.is_empty()), "{entry:?}");
        }
    }
    let formed = request("hello", 20).format(TextFormat::regex("(ab|c){2,4}"));
    let answer = host.generate(&formed).expect("answers");
    assert!(answer.text.starts_with("ab") || answer.text.starts_with('c'), "{}", answer.text);
    let input = TextInput::tokens(vec![TOKENS as u32]);
    let error = host.generate(&request("", 1).input(input)).expect_err("no token");
    assert!(error.message().contains("258 tokens"), "{error}");
}

#[test]
fn serves_from_end_to_end() {
    let (_folder, host) = host(&gguf(), serde_json::json!({}));
    let host = host.expect("loads");
    let answer = host.generate(&request("hello", 8)).expect("answers");
    assert_eq!((answer.finish.reason, answer.finish.usage.completion_tokens), (FinishReason::Length, 8));
    assert_eq!(host.generate(&request("hello", 8)).expect("answers").text, answer.text, "a seed repeats");
    assert_eq!(
        host.generate(&request("hello", 1000)).expect("answers").finish.usage.completion_tokens,
        59,
        "ends at the context's end"
    );
    let error = host.generate(&request(&"x".repeat(70), 8)).expect_err("too long");
    assert_eq!(error.kind(), ErrorKind::ContextLength);
    for phrase in
        ["This model's maximum context length is 64 tokens", "exceeds the available context size", "70 tokens"]
    {
        assert!(error.message().contains(phrase), "{}", error.message());
    }
    assert_eq!(host.generate(&request("", 8)).expect_err("no prompt").kind(), ErrorKind::InvalidRequest);
    let echo = request("abc", 0).echo(true).logprobs(2);
    assert_eq!(host.generate(&echo).expect("echoes").text, "abc");
    host.park().expect("parks");
    assert!(host.generate(&request("hello", 1)).is_err());
    host.unpark().expect("wakes");
    host.stop_after(1);
    assert_eq!(host.generate(&request("hello", 50)).expect("stops").finish.reason, FinishReason::Cancelled);
    host.cancel();
    assert_eq!(host.generate(&request("hello", 50)).expect("ends").finish.reason, FinishReason::Cancelled);
}

#[test]
fn what_a_cache_held_is_counted_and_no_more() {
    let (_folder, host) = host(&gguf(), serde_json::json!({"slots": 1}));
    let host = host.expect("loads");
    let usage = |request: &TextRequest| {
        let usage = host.generate(request).expect("answers").finish.usage;
        (usage.prompt_tokens, usage.cached_tokens)
    };
    let (one, other) = ("once upon a time, far away in a land", "nobody knew what was to come of it");
    // Whole blocks are kept, and the last token of a prompt passes through the model always: a token is a byte here.
    for (prompt, cached) in [
        (one.to_owned(), 0),
        (format!("{one} of snow"), 32),
        (other.to_owned(), 0),
        (one.to_owned(), 32),
        (other[..32].to_owned(), 16),
        (other[..33].to_owned(), 32),
        (format!("x{one}"), 0),
    ] {
        assert_eq!(usage(&request(&prompt, 1)), (prompt.len() as u32, cached), "{prompt}");
    }
    // All of it passes where each of its tokens is scored.
    assert_eq!(usage(&request(one, 1).echo(true).logprobs(0)), (one.len() as u32, 0));
    // What was generated is in the cache like what was asked.
    let z = u32::from(b'z' - b'!');
    let biased = request("a bcdef", 16).sampling(Sampling::default().logit_bias([(z, 100.0)].into()));
    let said = host.generate(&biased).expect("answers").text;
    let asked = format!("a bcdef{said}");
    assert_eq!(usage(&request(&asked, 1)), (23, 16));
}

#[test]
fn what_one_owner_left_in_the_cache_is_not_anothers_unless_they_share_it() {
    let prompt = request("a prompt that is longer than one block", 1);
    for (share_cache, cached) in [(false, [0, 32, 0, 32, 0]), (true, [0, 32, 32, 32, 32])] {
        let (_folder, host) = host(&gguf(), serde_json::json!({"share_cache": share_cache}));
        let host = host.expect("loads");
        let found = ["anna", "anna", "berta", "berta", ""].map(|owner| {
            host.say(|info| info.owner = owner.to_owned());
            host.generate(&prompt).expect("answers").finish.usage.cached_tokens
        });
        assert_eq!(found, cached, "{share_cache}");
    }
}

/// Several choices of one prompt compute its beginning once, also if they come at the same time.
#[test]
fn requests_that_come_together_share_what_they_begin_with() {
    let (_folder, host) = host(&gguf(), serde_json::json!({}));
    let host = host.expect("loads");
    let cached: u32 = std::thread::scope(|scope| {
        let asked = |seed| {
            let request = request("a prompt that is longer than one block", 2).sampling(Sampling::default().seed(seed));
            host.generate(&request).expect("answers").finish.usage.cached_tokens
        };
        let threads: Vec<_> = (0..8).map(|seed| scope.spawn(move || asked(seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("answers")).sum()
    });
    assert_eq!(cached, 7 * 32, "all but one take two blocks");
}

/// Many at once, who come and go and have too little room together, hear what each of them hears alone.
#[test]
fn company_changes_no_answer() {
    let (_folder, alone) = host(&gguf(), serde_json::json!({"slots": 1}));
    // Room for two contexts: most of them are put off on the way.
    let options = serde_json::json!({"slots": 16, "cache_tokens": 128, "threads": 2});
    let (_other, together) = host(&gguf(), options);
    let (alone, together) = (alone.expect("loads"), together.expect("loads"));
    let asked: Vec<TextRequest> = (0..120_u64)
        .map(|number| {
            let begin = ["the same beginning of all of these ", "another one, ", ""][(number % 3) as usize];
            let prompt = format!("{begin}{}", number * number * 7919 % 1000);
            let sampling = Sampling::default().seed(number).temperature((number % 4) as f32 * 0.5);
            request(&prompt, 3 + (number * 13 % 17) as u32).sampling(sampling).logprobs(2)
        })
        .collect();
    let said = |host: &MockHost, request: &TextRequest| {
        let mut answer = host.generate(request).expect("answers");
        // How much of its prompt a cache held is another's doing.
        answer.events.retain(|event| !matches!(event, TextEvent::Prompt { .. }));
        (answer.events, answer.finish.reason, answer.finish.usage.completion_tokens)
    };
    let wanted: Vec<_> = asked.iter().map(|request| said(&alone, request)).collect();
    let (next, differ) = (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(request) = asked.get(at) else { break };
                    let said = said(&together, request);
                    if said != wanted[at] {
                        eprintln!("request {at}: {said:?} in place of {:?}", wanted[at]);
                        differ.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(differ.into_inner(), 0, "answers differ");
}

#[test]
fn what_is_no_number_fails_its_request_and_names_the_part() {
    for (tensor, part) in [
        ("token_embd.weight", "embedding"),
        ("blk.0.attn_v.weight", "attention of layer 0"),
        ("blk.0.ffn_down.weight", "feed-forward network of layer 0"),
        ("output_norm.weight", "output"),
    ] {
        let poison = |name: &str, numbers: &mut [f32]| {
            if name == tensor {
                // Of the embeddings that of `c`.
                let at = if name == "token_embd.weight" { usize::from(b'c' - b'!') * HIDDEN } else { 1 };
                numbers[at] = f32::NAN;
            }
        };
        let (_folder, host) = host(&built(&[], |_| true, poison), serde_json::json!({}));
        let host = host.expect("loads");
        for _ in 0..2 {
            let error = host.generate(&request("abcd", 4)).expect_err("no answer");
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
            assert!(
                error.message().contains(&format!("no finite numbers: its {part}, at token 3;")),
                "{tensor}: {error}"
            );
        }
        assert_eq!(host.health().map_err(|error| error.kind()), Ok(()), "{tensor}");
    }
}

#[test]
fn keys_and_values_beyond_half_precision_are_as_good_as_others() {
    // Values 2^20 times as large, and what reads them as much smaller: no result changes but by rounding.
    let large = |name: &str, numbers: &mut [f32]| {
        let factor = match name {
            "blk.0.attn_v.weight" => (1 << 20) as f32,
            "blk.0.attn_output.weight" => 1.0 / (1 << 20) as f32,
            _ => return,
        };
        numbers.iter_mut().for_each(|number| *number *= factor);
    };
    let said = |file: &[u8]| {
        let (_folder, host) = host(file, serde_json::json!({}));
        let asked = request("a prompt of more than a block", 20).logprobs(1);
        let answer = host.expect("loads").generate(&asked).expect("answers");
        let logprobs = answer.events.iter().flat_map(|event| match event {
            TextEvent::Text { logprobs, .. } => logprobs.iter().map(|entry| entry.chosen.logprob).collect(),
            _ => Vec::new(),
        });
        (answer.text.clone(), logprobs.collect::<Vec<f32>>())
    };
    let (wanted, found) = (said(&gguf()), said(&built(&[], |_| true, large)));
    assert_eq!(found.0, wanted.0);
    for (found, wanted) in found.1.iter().zip(&wanted.1) {
        assert!((found - wanted).abs() < 1e-3, "{found} {wanted}");
    }
}

#[test]
fn plain_floats_are_the_same_weights_on_both_devices() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, gguf()).expect("written");
    let load = LoadRequest::new("cpu", [("model".to_owned(), path)].into());
    let file = Arc::new(ModelFiles::open(&load).expect("opens"));
    let logits = |model: aihost_plugin_api::Result<Box<dyn Runner>>| {
        let mut model = model.expect("opens");
        model.wake().expect("memory");
        let span = Span { rows: 5, start: 0, blocks: &[1], state: 0 };
        let pass = Pass { tokens: vec![7, 3, 90, 7, 11], spans: vec![span], wanted: vec![4] };
        model.forward(&pass).expect("computes")
    };
    let config = || file.config().expect("a llama");
    let room = Room { blocks: 2, states: 0, context: 32 };
    let wanted = logits(model::on(Cpu, &file, config(), room));
    let found = logits(model::on(CandleOps::new(Device::Cpu, DType::F32), &file, config(), room));
    assert!(wanted.iter().any(|logit| logit.abs() > 1.0), "weights count");
    for (found, wanted) in found.iter().zip(&wanted) {
        // The cache of one is f16, of the other f32.
        assert!((found - wanted).abs() < 5e-3, "{found} {wanted}");
    }
}

/// Log-probabilities of a prompt's tokens that are far enough from its beginning for positions to count.
fn scores(file: &[u8]) -> Vec<f32> {
    let (_folder, host) = host(file, serde_json::json!({}));
    let asked = request("hello world, a longer text of 12 things and some", 0).echo(true).logprobs(0);
    let answer = host.expect("loads").generate(&asked).expect("scores");
    let entries = answer.events.into_iter().flat_map(|event| match event {
        TextEvent::Text { logprobs, .. } => logprobs,
        _ => Vec::new(),
    });
    entries.map(|entry| entry.chosen.logprob).collect()
}

#[test]
fn positions_are_scaled_however_a_file_says_so() {
    let with = |keys: &[(&str, u32)]| scores(&built(keys, |_| true, |_, _| {}));
    let (plain, scaled) = (with(&[]), with(&[("llama.rope.scaling.factor", 4)]));
    assert!(plain.iter().zip(&scaled).any(|(plain, scaled)| (plain - scaled).abs() > 0.1), "the factor counts");
    assert_eq!(with(&[("llama.rope.scale_linear", 4)]), scaled, "the older key");
    assert_eq!(
        with(&[("llama.rope.scaling.factor", 4), ("llama.rope.scale_linear", 2)]),
        scaled,
        "the newer one counts"
    );
    assert_eq!(with(&[("llama.rope.scaling.factor", 0)]), plain, "0 is none");
    assert_eq!(with(&[("llama.rope.freq_base", 10_000)]), plain, "a base without a fraction");
}

#[test]
fn parts_of_a_model_are_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |number: u32| folder.path().join(format!("tiny-{number:05}-of-00002.gguf"));
    let is_first = |name: &str| name < "blk.0.ffn";
    let part = |number: u32| {
        let split = [("split.no", number), ("split.count", 2)];
        built(&split, |name| is_first(name) == (number == 0), |_, _| {})
    };
    std::fs::write(path(1), part(0)).expect("written");
    let load = |path: PathBuf| {
        let mut host = MockHost::new::<LlmPlugin>(serde_json::json!({}), &[("model", path)])?;
        host.load().map(|()| host)
    };
    let error = load(path(1)).expect_err("half of it");
    assert_eq!(error.kind(), ErrorKind::MissingFile);
    assert!(error.message().contains("part 2 is missing") && error.message().contains("tiny-00002-of-00002.gguf"));
    std::fs::write(path(2), part(1)).expect("written");
    let error = load(path(2)).expect_err("the wrong one");
    assert!(error.message().contains("part 2 of 2; name the first part"), "{error}");
    let said = |host: &MockHost| host.generate(&request("hello", 8)).expect("answers").text;
    let whole = load(path(1)).expect("both");
    assert!(!said(&whole).is_empty());
    // A part in another's place is noticed.
    std::fs::write(path(2), part(0)).expect("written");
    assert!(load(path(1)).expect_err("twice the first").message().contains("is not its part 2 of 2"));
}

#[test]
fn a_special_token_that_is_none_is_left_out() {
    for id in [u32::MAX, 258, 1 << 20] {
        let (_folder, host) =
            host(&built(&[("tokenizer.ggml.bos_token_id", id)], |_| true, |_, _| {}), serde_json::json!({}));
        let host = host.expect("loads");
        assert_eq!(host.generate(&request("hello", 3)).expect("answers").finish.usage.completion_tokens, 3);
    }
}

#[test]
fn damaged_files_are_refused_not_fatal() {
    let file = gguf();
    for len in (0..file.len()).step_by(997) {
        let (_folder, host) = host(&file[..len], serde_json::json!({"slots": 1}));
        assert!(matches!(host.expect_err("truncated").kind(), ErrorKind::CorruptFile | ErrorKind::MissingFile));
    }
    for at in (0..6000).step_by(13) {
        let mut broken = file.clone();
        broken[at] ^= 0x55;
        let (_folder, host) = host(&broken, serde_json::json!({"slots": 1}));
        assert_ne!(host.err().map(|e| e.kind()), Some(ErrorKind::Panicked), "byte {at}");
    }
}

#[test]
fn tokens_are_told_and_what_a_model_cannot_be_told_is_refused() {
    let template = serde_json::json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"});
    let (_folder, host) = host(&gguf(), template);
    let host = host.unwrap();
    let told = host.generate(&TextRequest::prompt("abc").tokenize(true)).unwrap();
    let tokens: Vec<_> = told
        .events
        .iter()
        .flat_map(|event| match event {
            TextEvent::Tokens { tokens, .. } => tokens.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(tokens.iter().map(|token| token.bytes.as_slice()).collect::<Vec<_>>(), [&b"ab"[..], b"c"]);
    assert_eq!((told.finish.usage.prompt_tokens, told.finish.usage.completion_tokens), (2, 0));
    // And back again; a text without an end is counted though it fits no context.
    let ids = tokens.iter().map(|token| token.id).collect();
    let back = host.generate(&TextRequest::new(TextInput::tokens(ids)).tokenize(true)).unwrap();
    assert_eq!(back.finish.usage.prompt_tokens, 2);
    let long = host.generate(&TextRequest::prompt("c".repeat(5000)).tokenize(true)).unwrap();
    assert_eq!(long.finish.usage.prompt_tokens, 5000);
    let error = host.generate(&TextRequest::new(TextInput::fill_in("a", "b"))).unwrap_err();
    assert_eq!((error.kind(), error.details().field.as_deref()), (ErrorKind::InvalidRequest, Some("suffix")));
    let mut chat =
        serde_json::json!({"input": {"type": "chat", "messages": [{"role": "user", "content": "a"}], "tools": []}});
    host.generate(&serde_json::from_value::<TextRequest>(chat.clone()).unwrap().max_tokens(1)).unwrap();
    // A template that has no place for tools is no reason to leave them out.
    let tokens = |chat: &serde_json::Value| {
        let request = serde_json::from_value::<TextRequest>(chat.clone()).unwrap().tokenize(true);
        host.generate(&request).unwrap().finish.usage.prompt_tokens
    };
    let without = tokens(&chat);
    chat["input"]["tools"] = serde_json::json!([{"type": "function", "function": {"name": "f"}}]);
    assert!(tokens(&chat) > without + 100);
}
