//! What engines of other shapes can do through the same interface: batch on a thread of their own, answer HTTP requests, take
//! bytes in, keep metrics.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod bare;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use aihost_plugin_api::{
    AnswerStart, AnswerSyntax, Context, Custom, CustomHead, CustomOutput, CustomRequest, Engine, Error, ErrorKind,
    FinishReason, Flow, Job, Metric, MetricKind, Result, Text, TextInput, TextOutput, TextRequest,
};
use bare::loaded;
use serde_json::json;

/// Has one thread for all its requests, which gives each of them a token in turn.
struct Batch {
    jobs: Mutex<Sender<Job<Text>>>,
    finished: Arc<AtomicU64>,
}

impl Default for Batch {
    fn default() -> Self {
        let (jobs, queue) = channel();
        let finished = Arc::<AtomicU64>::default();
        let count = Arc::clone(&finished);
        thread::spawn(move || serve(&queue, &count));
        Self { jobs: Mutex::new(jobs), finished }
    }
}

impl Engine for Batch {
    type Task = Text;

    fn submit(&self, job: Job<Text>) {
        if matches!(&job.request.input, TextInput::Prompt { text, .. } if text == "forget") {
            return;
        }
        let _engine_ends_with_it = self.jobs.lock().unwrap().send(job);
    }

    fn metrics(&self) -> Vec<Metric> {
        let finished = self.finished.load(Ordering::Relaxed) as f64;
        vec![Metric::counter("sequences", "Sequences that ended", finished).label("arm", "batch")]
    }
}

/// A token for each sequence in turn, until its client says Stop or it has them all.
fn serve(queue: &Receiver<Job<Text>>, finished: &AtomicU64) {
    let mut open: Vec<(Vec<String>, Job<Text>)> = Vec::new();
    loop {
        let next = if open.is_empty() { queue.recv().ok() } else { queue.try_recv().ok() };
        let was_idle = open.is_empty();
        if let Some(job) = next {
            let TextInput::Prompt { text, .. } = &job.request.input else { continue };
            let words = text.split_inclusive(' ').rev().map(str::to_owned).collect();
            open.push((words, job));
        } else if was_idle {
            return;
        }
        let mut going_on = Vec::new();
        for (mut words, job) in open {
            let end = match words.pop() {
                None => Some(Ok(FinishReason::Stop)),
                Some(word) => job.reply.output().try_token(word.as_bytes(), None).err().map(Err),
            };
            match end {
                None => going_on.push((words, job)),
                Some(end) => {
                    finished.fetch_add(1, Ordering::Relaxed);
                    job.reply.finish(end);
                }
            }
        }
        open = going_on;
    }
}

#[test]
fn many_sequences_need_one_thread() {
    let host = loaded::<Batch>();
    thread::scope(|scope| {
        for n in 0..64 {
            let host = &host;
            scope.spawn(move || {
                let answer = host.generate(&TextRequest::prompt(format!("one two {n}"))).unwrap();
                assert_eq!(answer.text, format!("one two {n}"));
                assert_eq!(answer.finish.reason, FinishReason::Stop);
                assert_eq!(answer.finish.usage.completion_tokens, 3);
            });
        }
    });
    let metric = Metric::counter("sequences", "Sequences that ended", 64.0).label("arm", "batch");
    assert_eq!(host.metrics().unwrap(), [metric]);
    assert_eq!(host.metrics().unwrap()[0].kind, MetricKind::Counter);
}

#[test]
fn a_job_that_is_dropped_fails_its_request() {
    let host = loaded::<Batch>();
    let error = host.generate(&TextRequest::prompt("forget")).unwrap_err();
    assert!(error.message().contains("without an answer"), "{error}");
}

#[test]
fn max_tokens_is_kept_for_an_engine_that_does_not_look_at_it() {
    let host = loaded::<Batch>();
    for (most, text, reason) in
        [(0, "", FinishReason::Length), (1, "a ", FinishReason::Length), (3, "a b c", FinishReason::Stop)]
    {
        let answer = host.generate(&TextRequest::prompt("a b c").max_tokens(most)).unwrap();
        assert_eq!((answer.text.as_str(), answer.finish.reason), (text, reason), "max_tokens {most}");
        assert_eq!(answer.finish.usage.completion_tokens, most);
    }
}

/// Answers HTTP requests in ways that its path names.
#[derive(Default)]
struct Web;

impl Engine for Web {
    type Task = Custom;

    fn generate(&self, request: CustomRequest, output: &CustomOutput, ctx: &Context) -> Result<()> {
        match request.path.as_str() {
            "/who" => output.json(&json!({"owner": ctx.request().owner, "limit": ctx.time_limit()})),
            "/echo" => {
                output.begin(&CustomHead::new(201, "application/octet-stream").header("X-Rows", "1"))?;
                output.write(request.body())
            }
            "/until-cancelled" => {
                let (tell, told) = channel();
                ctx.on_cancel(move || tell.send(()).unwrap());
                output.begin(&CustomHead::new(200, "text/plain"))?;
                told.recv().map_err(Error::internal)?;
                ctx.check()
            }
            "/early" => output.write(b"x"),
            "/teapot" => output.begin(&CustomHead::new(99, "text/plain")),
            "/json" => output.json(&request.json::<serde_json::Value>()?),
            _ => Ok(()),
        }
    }
}

#[test]
fn an_answer_is_a_status_a_media_type_and_any_bytes() {
    let host = loaded::<Web>();
    let body: Vec<u8> = (0..=255).cycle().take(200_000).collect();
    let answer = host.call_custom(&CustomRequest::new("POST", "/echo", body.clone())).unwrap();
    assert_eq!(answer.head, CustomHead::new(201, "application/octet-stream").header("x-rows", "1"));
    assert!(answer.body == body);
    assert_eq!(answer.finish.bytes, 200_000);
    host.say(|info| (info.owner, info.time_limit_ms) = ("o1".to_owned(), Some(1500)));
    let answer = host.call_custom(&CustomRequest::new("GET", "/who", [])).unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap()["owner"], "o1");
}

#[test]
fn a_bad_answer_or_body_is_one_sentence() {
    let host = loaded::<Web>();
    for (path, kind, words) in [
        ("/early", ErrorKind::Internal, "before the answer was begun"),
        ("/teapot", ErrorKind::Internal, "status 99"),
        ("/json", ErrorKind::InvalidRequest, "cannot be read as JSON"),
        ("/", ErrorKind::Internal, "without an answer"),
    ] {
        let error = host.call_custom(&CustomRequest::new("POST", path, *b"{")).unwrap_err();
        assert!(error.kind() == kind && error.message().contains(words), "{path}: {error}");
    }
}

#[test]
fn a_client_that_leaves_midway_is_called_back() {
    let host = loaded::<Web>();
    host.cancel_after(1);
    let answer = host.call_custom(&CustomRequest::new("GET", "/until-cancelled", [])).unwrap();
    assert_eq!(answer.finish.reason, FinishReason::Cancelled);
}

/// Pushes everything at once, and counts how often it was told to pause.
#[derive(Default)]
struct Hasty;

impl Engine for Hasty {
    type Task = Text;

    fn generate(&self, request: TextRequest, output: &TextOutput, _: &Context) -> Result<FinishReason> {
        let mut pauses = 0;
        let mut flow = output.try_token(b"a", None)?;
        while flow == Flow::Pause {
            pauses += 1;
            flow = output.flow()?;
        }
        output.reasoning(&pauses.to_string())?;
        output.tool_call(0, "call_1", "look")?;
        output.tool_arguments(0, "{}")?;
        output.refusal("no")?;
        output.reasoning(&format!("{} blocks", request.blocks.len()))?;
        Ok(FinishReason::ToolCalls)
    }
}

#[test]
fn pauses_tool_calls_and_blocks_arrive() {
    let host = loaded::<Hasty>();
    host.pause_at(1, 3);
    let answer = host.generate(&TextRequest::prompt("x").blocks(vec![vec![1, 2], vec![]])).unwrap();
    let events: Vec<_> = answer.events.iter().map(|event| serde_json::to_value(event).unwrap()).collect();
    assert_eq!(
        events,
        [
            json!({"type": "text", "text": "a"}),
            json!({"type": "reasoning", "text": "4"}),
            json!({"type": "tool_call", "index": 0, "id": "call_1", "name": "look"}),
            json!({"type": "tool_arguments", "index": 0, "fragment": "{}"}),
            json!({"type": "refusal", "text": "no"}),
            json!({"type": "reasoning", "text": "2 blocks"}),
        ]
    );
    assert_eq!(answer.finish.reason, FinishReason::ToolCalls);
}

/// Says how long its prompt is before its first token, and again.
#[derive(Default)]
struct Counting;

impl Engine for Counting {
    type Task = Text;

    fn generate(&self, _: TextRequest, output: &TextOutput, _: &Context) -> Result<FinishReason> {
        output.prompt(5, 0);
        output.prompt(7, 2);
        output.token(b"a")?;
        output.token(b"b")?;
        Ok(FinishReason::Stop)
    }
}

#[test]
fn the_length_of_a_prompt_leaves_before_the_answer_and_once() {
    let answer = loaded::<Counting>().generate(&TextRequest::prompt("x")).unwrap();
    let events: Vec<_> = answer.events.iter().map(|event| serde_json::to_value(event).unwrap()).collect();
    let prompt = json!({"type": "prompt", "tokens": 7, "cached": 2});
    assert_eq!(events, [prompt, json!({"type": "text", "text": "a"}), json!({"type": "text", "text": "b"})]);
    assert_eq!((answer.text.as_str(), answer.finish.usage.prompt_tokens), ("ab", 7));
}

/// Thinks, and then answers.
#[derive(Default)]
struct Thinking;

impl Engine for Thinking {
    type Task = Text;

    fn generate(&self, request: TextRequest, output: &TextOutput, _: &Context) -> Result<FinishReason> {
        if request.input == TextInput::prompt("alone") {
            output.token(b"")?;
            output.reasoned(9);
            output.reasoning("hm")?;
        } else {
            output.read_as(AnswerSyntax::of_template("<think></think>"), AnswerStart::Free, &request.input);
        }
        ["<think>", "a", "b", "</think>", "c"].iter().try_for_each(|token| output.token(token.as_bytes()))?;
        Ok(FinishReason::Stop)
    }
}

#[test]
fn tokens_of_reasoning_are_counted() {
    let host = loaded::<Thinking>();
    for (prompt, counted) in [("read", (5, 4)), ("alone", (6, 1))] {
        let usage = host.generate(&TextRequest::prompt(prompt)).unwrap().finish.usage;
        assert_eq!((usage.completion_tokens, usage.reasoning_tokens), counted);
    }
}

#[test]
fn what_a_newer_build_says_is_read_as_unknown() {
    let event: aihost_plugin_api::TextEvent = serde_json::from_value(json!({"type": "hologram", "x": 1})).unwrap();
    assert_eq!(event, aihost_plugin_api::TextEvent::Unknown);
    let reason: FinishReason = serde_json::from_value(json!("bored")).unwrap();
    assert_eq!(reason, FinishReason::Unknown);
}
