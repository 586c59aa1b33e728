//! Sequences of a model whose layers remember by a state (a tiny Qwen 3.5 of tests/golden/llm/families): they go on from where others
//! were, and hear what they hear alone.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{Sampling, TextEvent, TextInput, TextRequest};
use candle_llm::LlmPlugin;

const FAMILIES: [&str; 2] = ["qwen35", "lfm2"];

fn model(family: &str, options: serde_json::Value) -> MockHost {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llm/families");
    MockHost::new::<LlmPlugin>(options, &[("model", folder.join(family).join("model.gguf"))]).expect("a model")
}

fn loaded(family: &str, options: serde_json::Value) -> MockHost {
    let mut host = model(family, options);
    host.load().expect("loads");
    host
}

/// So many tokens that differ by `kind`.
fn prompt(kind: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|at| 3 + (at * at * 7 + at * kind + kind) % 90).collect()
}

fn request(kind: u32, tokens: u32, max_tokens: u32) -> TextRequest {
    TextRequest::new(TextInput::tokens(prompt(kind, tokens)))
        .sampling(Sampling::default().seed(5))
        .max_tokens(max_tokens)
        .ignore_eos(true)
}

fn cached(host: &MockHost, request: &TextRequest) -> u32 {
    host.generate(request).expect("answers").finish.usage.cached_tokens
}

#[test]
fn a_prompt_goes_on_from_the_last_copy_of_its_beginning() {
    for family in FAMILIES {
        let host = loaded(family, serde_json::json!({"slots": 1}));
        // Copies lie at the ends of whole blocks, and the last token passes through the model always.
        for (kind, tokens, wanted) in
            [(1, 40, 0), (1, 40, 32), (1, 70, 32), (1, 70, 64), (2, 70, 0), (1, 33, 32), (1, 32, 0)]
        {
            assert_eq!(cached(&host, &request(kind, tokens, 1)), wanted, "{family}: {kind}, {tokens}");
        }
        // Nothing lies at the end of the second block of a prompt that had more when it came.
        assert_eq!(cached(&host, &request(2, 40, 1)), 0, "{family}");
        host.park().expect("parks");
        host.unpark().expect("wakes");
        assert_eq!(cached(&host, &request(1, 40, 1)), 0, "{family}");
    }
}

#[test]
fn what_was_answered_is_gone_on_from() {
    for family in FAMILIES {
        let (host, fresh) = (loaded(family, serde_json::json!({})), loaded(family, serde_json::json!({})));
        let always = Sampling::default().logit_bias([(40, 100.0)].into());
        host.generate(&request(3, 20, 60).sampling(always)).expect("answers");
        // The whole conversation, and a word more.
        let prompt: Vec<u32> = prompt(3, 20).into_iter().chain([40; 60]).chain([7]).collect();
        let asked = TextRequest::new(TextInput::tokens(prompt))
            .sampling(Sampling::default().seed(9))
            .max_tokens(8)
            .ignore_eos(true);
        let (next, alone) = (host.generate(&asked).expect("answers"), fresh.generate(&asked).expect("answers"));
        assert_eq!(next.text, alone.text, "{family}");
        assert!(next.finish.usage.cached_tokens >= 64, "{family}: {}", next.finish.usage.cached_tokens);
    }
}

#[test]
fn requests_that_come_together_share_what_they_begin_with() {
    let host = loaded("qwen35", serde_json::json!({}));
    let cached: u32 = std::thread::scope(|scope| {
        let asked = |seed| cached(&host, &request(4, 41, 2).sampling(Sampling::default().seed(seed)));
        let threads: Vec<_> = (0..8).map(|seed| scope.spawn(move || asked(seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("answers")).sum()
    });
    assert_eq!(cached, 7 * 32, "all but one take two blocks");
}

/// Many at once, who come and go and have too few blocks and states together, hear what each of them hears alone.
#[test]
fn company_changes_no_answer() {
    for family in FAMILIES {
        let alone = loaded(family, serde_json::json!({"slots": 1, "context": 128}));
        let plan =
            model(family, serde_json::json!({"slots": 16, "context": 128, "threads": 2})).plan().expect("a plan");
        let mut few = model(family, serde_json::json!({"slots": 16, "context": 128, "threads": 2}));
        few.load_within(plan.required + plan.workspace_max).expect("loads");
        let mut some =
            model(family, serde_json::json!({"slots": 16, "context": 128, "cache_tokens": 256, "threads": 2}));
        some.load().expect("loads");
        let asked: Vec<TextRequest> = (0..80_u32)
            .map(|number| {
                let sampling = Sampling::default().seed(u64::from(number)).temperature((number % 4) as f32 * 0.5);
                request(number % 5, 10 + number * 13 % 60, 3 + number * 7 % 40).sampling(sampling).logprobs(2)
            })
            .collect();
        let said = |host: &MockHost, request: &TextRequest| {
            let mut answer = host.generate(request).expect("answers");
            // How much of its prompt a cache held is another's doing.
            answer.events.retain(|event| !matches!(event, TextEvent::Prompt { .. }));
            (answer.events, answer.finish.usage.completion_tokens)
        };
        let wanted: Vec<_> = asked.iter().map(|request| said(&alone, request)).collect();
        for together in [few, some] {
            let (next, differ) = (AtomicUsize::new(0), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for _ in 0..12 {
                    scope.spawn(|| {
                        while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < asked.len()) {
                            if said(&together, &asked[at]) != wanted[at] {
                                differ.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    });
                }
            });
            assert_eq!(differ.into_inner(), 0, "{family}: answers differ");
        }
    }
}

/// A sequence that is forgotten with its cache gives its place back.
#[test]
fn no_place_is_lost() {
    let host = loaded("qwen35", serde_json::json!({"slots": 2}));
    for number in 0..40 {
        host.stop_after(1 + number % 3);
        let _ = host.generate(&request(number as u32, 30, 9));
    }
    host.stop_after(usize::MAX);
    assert_eq!(host.generate(&request(5, 40, 4)).expect("answers").finish.usage.completion_tokens, 4);
    let (plan, usage) =
        (model("qwen35", serde_json::json!({"slots": 2})).plan().expect("a plan"), host.usage().expect("told"));
    assert!(usage.device <= plan.preferred + plan.workspace_max, "{} of {}", usage.device, plan.preferred);
}

#[test]
fn states_are_planned() {
    let plan = |slots: usize| model("qwen35", serde_json::json!({"slots": slots})).plan().expect("a plan");
    // Three layers with a convolution of 3 x 80 and six matrices of 8 x 8, f32.
    let place = 3 * 4 * (3 * 80 + 6 * 8 * 8);
    let more = |plan: &aihost_plugin_api::MemoryPlan| plan.preferred - plan.required;
    assert_eq!(more(&plan(4)) - more(&plan(1)), 3 * place);
}
