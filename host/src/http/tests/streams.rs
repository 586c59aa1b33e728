//! A linter of streams, for every API: whatever a plugin pushes and however its answer is cut into pieces, what leaves follows
//! the rules that clients go by.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Something that a plugin pushes.
#[derive(Clone, Debug)]
enum Push {
    Text(&'static str),
    Reasoning(&'static str),
    Refusal(&'static str),
    /// The length of the prompt, which comes late of who speaks no SDK.
    Prompt,
    /// A call, and its arguments in pieces.
    Call(Vec<&'static str>),
}

fn push() -> impl Strategy<Value = Push> {
    let words = || select(vec!["a", "\n", "data: x\n\n", "é", "\u{1f98a}", "\"", "[DONE]", "\r\n", "\u{2028}"]);
    prop_oneof![
        4 => words().prop_map(Push::Text),
        2 => words().prop_map(Push::Reasoning),
        1 => words().prop_map(Push::Refusal),
        1 => Just(Push::Prompt),
        2 => select(vec![vec![], vec!["{}"], vec!["{\"a\"", ":1}"], vec!["{", "\"b\":", "[2]", "}"]]).prop_map(Push::Call),
    ]
}

/// What is pushed, with all texts of each kind joined, and each call's arguments.
fn outputs(pushed: &[Push], reason: &str) -> (Vec<Output>, Told) {
    let (mut outputs, mut told) = (Vec::new(), Told::default());
    for push in pushed {
        match push {
            Push::Text(more) => {
                told.text += more;
                outputs.push(text(more));
            }
            Push::Reasoning(more) => {
                told.reasoning += more;
                outputs.push(event(&json!({"type": "reasoning", "text": more})));
            }
            Push::Refusal(more) => {
                told.refusal += more;
                outputs.push(event(&json!({"type": "refusal", "text": more})));
            }
            Push::Prompt => outputs.push(prompt()),
            Push::Call(fragments) => {
                let index = told.calls.len();
                outputs.push(event(
                    &json!({"type": "tool_call", "index": index, "id": format!("call_{index}"), "name": "f"}),
                ));
                let pushed = fragments
                    .iter()
                    .map(|fragment| json!({"type": "tool_arguments", "index": index, "fragment": fragment}));
                outputs.extend(pushed.map(|json| event(&json)));
                told.calls.push(fragments.concat());
            }
        }
    }
    outputs.push(done(reason));
    (outputs, told)
}

/// What a client has read.
#[derive(Debug, Default, PartialEq)]
struct Told {
    text: String,
    reasoning: String,
    refusal: String,
    calls: Vec<String>,
}

/// The events of a stream of server-sent events: name and data.
fn parse(body: &str) -> Vec<(Option<String>, String)> {
    assert!(body.ends_with("\n\n") && !body.contains('\r'), "{body}");
    let block = |block: &str| {
        let mut name = None;
        let mut data = Vec::new();
        for line in block.lines() {
            match line.split_once(": ").unwrap_or_else(|| panic!("a line of no field: {line:?}")) {
                ("event", of) => assert!(name.replace(of.to_owned()).is_none() && data.is_empty()),
                ("data", of) => data.push(of),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(data.len(), 1, "{block:?}");
        (name, data[0].to_owned())
    };
    body.split_terminator("\n\n").map(block).collect()
}

fn joined(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Chat: openai.md 1.3 and 1.4.
fn read_chat(body: &str, choices: usize) -> Vec<Told> {
    let mut events = parse(body);
    assert_eq!(events.pop(), Some((None, "[DONE]".to_owned())));
    let mut told: Vec<Told> = (0..choices).map(|_| Told::default()).collect();
    let (mut begun, mut ended) = (Vec::new(), vec![false; choices]);
    let mut identity = None;
    let count = events.len();
    for (at, (name, data)) in events.into_iter().enumerate() {
        let chunk: Value = serde_json::from_str(&data).unwrap();
        assert!(name.is_none() && chunk["object"] == "chat.completion.chunk");
        let same = (chunk["id"].clone(), chunk["created"].clone(), chunk["model"].clone());
        assert_eq!(identity.get_or_insert_with(|| same.clone()), &same);
        let is_last = at + 1 == count;
        assert_eq!(chunk["usage"].is_object(), is_last, "{chunk}");
        if is_last {
            assert_eq!(chunk["choices"], json!([]));
            let usage = &chunk["usage"];
            let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
            assert_eq!(usage["total_tokens"], sum);
            continue;
        }
        assert!(chunk.as_object().unwrap().contains_key("usage"));
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        assert!(!ended[index], "behind its end: {chunk}");
        let delta = &choice["delta"];
        if !begun.contains(&index) {
            assert_eq!((index, &delta["role"]), (begun.len(), &json!("assistant")));
            begun.push(index);
            continue;
        }
        assert!(delta.get("role").is_none(), "{chunk}");
        if !choice["finish_reason"].is_null() {
            assert_eq!(delta, &json!({}));
            ended[index] = true;
        }
        let told = &mut told[index];
        told.text += joined(&delta["content"]);
        told.reasoning += joined(&delta["reasoning_content"]);
        told.refusal += joined(&delta["refusal"]);
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let number = call["index"].as_u64().unwrap() as usize;
            if call.get("id").is_some() {
                assert_eq!((number, &call["type"]), (told.calls.len(), &json!("function")), "{chunk}");
                assert!(call["function"]["name"].is_string());
                told.calls.push(String::new());
            }
            told.calls[number] += call["function"]["arguments"].as_str().unwrap();
        }
    }
    assert!(ended.iter().all(|ended| *ended));
    told
}

/// Responses: 1.11.
fn read_responses(body: &str) -> Told {
    let events = parse(body);
    let mut told = Told::default();
    let (mut open, mut items): (BTreeMap<u64, String>, Vec<String>) = (BTreeMap::new(), Vec::new());
    let count = events.len();
    for (at, (name, data)) in events.into_iter().enumerate() {
        let event: Value = serde_json::from_str(&data).unwrap();
        let kind = event["type"].as_str().unwrap();
        assert_eq!((name.as_deref(), event["sequence_number"].as_u64()), (Some(kind), Some(at as u64)));
        let index = event["output_index"].as_u64();
        if let Some(item) = event["item_id"].as_str() {
            assert_eq!(open.get(&index.unwrap()).map(String::as_str), Some(item), "{event}");
        }
        match kind {
            "response.created" => assert_eq!(at, 0),
            "response.in_progress" => assert_eq!(at, 1),
            "response.output_item.added" => {
                assert_eq!(index, Some(items.len() as u64));
                let id = event["item"]["id"].as_str().unwrap().to_owned();
                assert!(!items.contains(&id));
                items.push(id.clone());
                open.insert(index.unwrap(), id);
                if event["item"]["type"] == "function_call" {
                    told.calls.push(String::new());
                }
            }
            "response.output_item.done" => {
                assert_eq!(open.remove(&index.unwrap()).as_deref(), event["item"]["id"].as_str());
            }
            "response.output_text.delta" => told.text += joined(&event["delta"]),
            "response.refusal.delta" => told.refusal += joined(&event["delta"]),
            "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => {
                told.reasoning += joined(&event["delta"])
            }
            "response.function_call_arguments.delta" => {
                // Each is the last that was begun.
                told.calls.last_mut().unwrap().push_str(joined(&event["delta"]));
            }
            "response.completed" | "response.incomplete" => {
                assert_eq!(at + 1, count, "it is the last");
                assert!(open.is_empty());
                let output = event["response"]["output"].as_array().unwrap();
                let ids: Vec<_> = output.iter().map(|item| item["id"].as_str().unwrap()).collect();
                assert_eq!(ids, items);
                assert!(event["response"]["usage"]["total_tokens"].is_u64());
            }
            other => assert!(other.ends_with(".done") || other.ends_with(".added"), "{other}"),
        }
    }
    told
}

/// Anthropic's Messages.
fn read_messages(body: &str) -> Told {
    let mut told = Told::default();
    let (mut begun, mut open, mut stopped) = (0, None, false);
    for (at, (name, data)) in parse(body).into_iter().enumerate() {
        let event: Value = serde_json::from_str(&data).unwrap();
        let kind = event["type"].as_str().unwrap();
        assert_eq!(name.as_deref(), Some(kind));
        assert!(!stopped, "behind the end: {event}");
        match kind {
            "message_start" => assert_eq!(at, 0),
            "ping" => {}
            "content_block_start" => {
                assert_eq!((event["index"].as_u64(), &open), (Some(begun), &None), "{event}");
                begun += 1;
                let block = event["content_block"]["type"].as_str().unwrap().to_owned();
                if block == "tool_use" {
                    told.calls.push(String::new());
                }
                open = Some(block);
            }
            "content_block_delta" => {
                assert_eq!(event["index"].as_u64(), Some(begun - 1));
                let delta = &event["delta"];
                match (delta["type"].as_str().unwrap(), open.as_deref().unwrap()) {
                    ("text_delta", "text") => told.text += joined(&delta["text"]),
                    ("thinking_delta", "thinking") => told.reasoning += joined(&delta["thinking"]),
                    ("signature_delta", "thinking") => {}
                    ("input_json_delta", "tool_use") => {
                        told.calls.last_mut().unwrap().push_str(joined(&delta["partial_json"]))
                    }
                    other => panic!("{other:?}"),
                }
            }
            "content_block_stop" => assert!(open.take().is_some() && event["index"].as_u64() == Some(begun - 1)),
            "message_delta" => assert!(open.is_none() && event["delta"]["stop_reason"].is_string()),
            "message_stop" => stopped = true,
            other => panic!("{other}"),
        }
    }
    assert!(stopped);
    told
}

/// Ollama's chat.
fn read_ollama(body: &str) -> Told {
    let mut told = Told::default();
    assert!(body.ends_with('\n'));
    let count = body.lines().count();
    for (at, line) in body.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["done"], at + 1 == count, "{line}");
        told.text += joined(&line["message"]["content"]);
        told.reasoning += joined(&line["message"]["thinking"]);
        let calls = line["message"]["tool_calls"].as_array().into_iter().flatten();
        told.calls.extend(calls.map(|call| call["function"]["arguments"].to_string()));
    }
    told
}

/// The answer to this request, whose outputs arrive in groups of these sizes.
fn answered(path: &str, body: &Value, outputs: Vec<Output>, groups: &[usize]) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (sender, receiver) = mpsc::channel(outputs.len());
        let groups = groups.to_vec();
        let feeding = tokio::spawn(async move {
            let (mut outputs, mut groups) = (outputs.into_iter(), groups.into_iter().cycle());
            loop {
                let group: Vec<_> = outputs.by_ref().take(groups.next().unwrap_or(1)).collect();
                if group.is_empty() {
                    break;
                }
                for output in group {
                    sender.send(output).await.unwrap();
                }
                tokio::task::yield_now().await;
            }
        });
        let reply = answering(receiver).oneshot(post(path, body.to_string())).await.unwrap();
        assert_eq!(reply.status(), 200);
        let bytes = axum::body::to_bytes(reply.into_body(), usize::MAX).await.unwrap();
        feeding.await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_stream_keeps_the_rules_of_its_api(
        pushed in prop::collection::vec(push(), 0..12),
        groups in prop::collection::vec(1usize..4, 1..6),
        reason in select(vec!["stop", "length", "tool_calls", "content_filter"]),
    ) {
        let message = json!([{"role": "user", "content": "hi"}]);
        let (sent, told) = outputs(&pushed, reason);
        let chat = json!({"model": "a", "messages": message, "stream": true, "stream_options": {"include_usage": true}});
        prop_assert_eq!(&read_chat(&answered("/v1/chat/completions", &chat, sent.clone(), &groups), 1)[0], &told);
        for summary in [Value::Null, "auto".into()] {
            let responses = json!({"model": "a", "input": "hi", "stream": true, "reasoning": {"summary": summary}});
            prop_assert_eq!(&read_responses(&answered("/v1/responses", &responses, sent.clone(), &groups)), &told);
        }
        // These two have no place for a refusal of the model's but its text.
        let mut said = Told { refusal: String::new(), text: String::new(), ..told };
        for push in &pushed {
            if let Push::Text(more) | Push::Refusal(more) = push {
                said.text += more;
            }
        }
        let messages = json!({"model": "a", "messages": message, "max_tokens": 5, "stream": true});
        prop_assert_eq!(&read_messages(&answered("/v1/messages", &messages, sent.clone(), &groups)), &said);
        for call in &mut said.calls {
            if call.is_empty() {
                "{}".clone_into(call);
            }
        }
        let ollama = json!({"model": "a", "messages": message});
        prop_assert_eq!(&read_ollama(&answered("/api/chat", &ollama, sent, &groups)), &said);
    }
}

#[tokio::test]
async fn silent_streams_of_images_and_audio_say_that_they_are_there_while_their_model_loads() {
    let (commands, mut received) = mpsc::channel(1);
    let limits = Limits { sse_ping: Some(Duration::from_millis(5)), ..config().limits };
    let in_force = watch::channel(Arc::new(Config { limits, ..config() })).1;
    let router = crate::http::router(Handle::new(commands, in_force, no_plugins()));
    let image = json!({"model": "flux", "prompt": "a fox", "stream": true});
    let music = json!({"model": "music", "prompt": "rain", "stream_format": "sse"});
    for (path, body) in [("/v1/images/generations", image), ("/v1/audio/generations", music)] {
        let reply = router.clone().oneshot(post(path, body.to_string())).await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
        let mut pieces = reply.into_body().into_data_stream();
        assert_eq!(pieces.next().await.unwrap().unwrap(), ": ping\n\n", "{path}");
        let Some(Command::Submit(_, asked)) = received.recv().await else { panic!("nothing was asked") };
        asked.send(Err(Failure::new(FailureKind::StillLoading, "it loads"))).unwrap();
        let mut rest = String::new();
        while let Some(piece) = pieces.next().await {
            rest += str::from_utf8(&piece.unwrap()).unwrap();
        }
        assert!(rest.contains("event: error\ndata: {\"error\":{") && rest.contains("model_loading"), "{path}: {rest}");
    }
}
