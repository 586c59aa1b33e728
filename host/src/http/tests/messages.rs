//! `/v1/messages`: what becomes of its blocks, the events by which an answer comes, and refusals in Anthropic's form.

use super::*;

fn ask(extra: &Value) -> Value {
    let mut body = json!({"model": "a", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn an_answer_has_its_blocks_and_counts_what_was_cached_apart() {
    let host = Host::new(much);
    let reply = host.post("/v1/messages", &ask(&json!({}))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.header("request-id"), reply.header("x-request-id"));
    let message = reply.json();
    assert_eq!(
        message["content"],
        json!([
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "Hello"},
            {"type": "tool_use", "id": "call_a", "name": "f", "input": {"x": 1}},
            {"type": "tool_use", "id": "call_b", "name": "g", "input": {}},
        ])
    );
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("tool_use"), &Value::Null));
    assert_eq!(
        (&message["usage"]["input_tokens"], &message["usage"]["cache_read_input_tokens"]),
        (&json!(2), &json!(1))
    );
}

#[tokio::test]
async fn a_stream_has_every_block_from_its_start_to_its_stop() {
    let host = Host::new(much);
    let reply = host.post("/v1/messages", &ask(&json!({"stream": true}))).await;
    let events = named_events(reply.body.as_bytes());
    let told: Vec<_> = events
        .iter()
        .map(|event| {
            let delta = &event["delta"];
            let kind = event["content_block"]["type"].as_str().or(delta["type"].as_str()).unwrap_or_default();
            format!("{} {} {kind}", event["type"].as_str().unwrap(), event["index"])
        })
        .collect();
    assert_eq!(
        told,
        [
            "message_start null ",
            "ping null ",
            "content_block_start 0 thinking",
            "content_block_delta 0 thinking_delta",
            "content_block_delta 0 signature_delta",
            "content_block_stop 0 ",
            "content_block_start 1 text",
            "content_block_delta 1 text_delta",
            "content_block_delta 1 text_delta",
            "content_block_stop 1 ",
            "content_block_start 2 tool_use",
            "content_block_delta 2 input_json_delta",
            "content_block_delta 2 input_json_delta",
            "content_block_stop 2 ",
            "content_block_start 3 tool_use",
            "content_block_stop 3 ",
            "message_delta null ",
            "message_stop null ",
        ]
    );
    assert_eq!(events[16]["delta"]["stop_reason"], "tool_use");
    assert_eq!(events[16]["usage"]["output_tokens"], 2);
}

#[tokio::test]
async fn a_stream_tells_the_length_of_the_prompt_as_soon_as_it_is_known() {
    let counted: [(Script, u64); 3] = [
        (|_, _| Ok(vec![prompt(), text("Hello"), done("stop")]), 2),
        (|_, _| Ok(vec![done("stop")]), 2),
        // Of a plugin that says so at the end.
        (|_, _| Ok(vec![text("Hello"), done("stop")]), 0),
    ];
    for (script, first) in counted {
        let reply = Host::new(script).post("/v1/messages", &ask(&json!({"stream": true}))).await;
        let events = named_events(reply.body.as_bytes());
        let usage = &events[0]["message"]["usage"];
        assert_eq!((usage["input_tokens"].as_u64(), &usage["output_tokens"]), (Some(first), &json!(0)), "{usage}");
        let [.., delta, _] = events.as_slice() else { panic!("{}", reply.body) };
        let usage = &delta["usage"];
        assert_eq!((&usage["input_tokens"], &usage["cache_read_input_tokens"]), (&json!(2), &json!(1)), "{usage}");
    }
    let whole =
        Host::new(|_, _| Ok(vec![prompt(), text("Hello"), done("stop")])).post("/v1/messages", &ask(&json!({}))).await;
    assert_eq!(whole.json()["content"], json!([{"type": "text", "text": "Hello"}]));
}

#[tokio::test]
async fn turns_with_tools_become_those_of_a_chat() {
    let host = Host::new(hello);
    let reply = host
        .post(
            "/v1/messages",
            &ask(&json!({
                "system": [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "kind"}],
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                    {"role": "assistant", "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "text", "text": "let me see"},
                        {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                        {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
                    ]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "7"}]},
                        {"type": "tool_result", "tool_use_id": "t2"},
                        {"type": "text", "text": "well?"},
                    ]},
                ],
                "stop_sequences": ["END"],
                "tools": [{"name": "f", "input_schema": {"type": "object"}}, {"name": "g", "type": "custom", "input_schema": {}}],
                "metadata": {"user_id": "u"},
            })),
        )
        .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let task = &host.tasks()[0];
    let turns = task["input"]["messages"].as_array().unwrap();
    let roles: Vec<_> = turns.iter().map(|turn| turn["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "tool", "user"]);
    assert_eq!(turns[0]["content"], "be\nkind");
    assert_eq!(turns[2]["content"], "let me see");
    assert_eq!(turns[2]["tool_calls"][1]["function"]["name"], "g");
    assert_eq!((&turns[3]["content"], &turns[3]["tool_call_id"]), (&json!("7"), &json!("t1")));
    assert_eq!(task["stop"], json!(["END"]));
    assert_eq!(
        task["input"]["tools"][0],
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})
    );
}

#[tokio::test]
async fn the_stop_string_that_ended_it_is_named() {
    let ended = |_: usize, _: &Submission| {
        let finish = json!({"reason": "stop", "usage": {"prompt_tokens": 1, "completion_tokens": 1}, "stop": 1});
        Ok(vec![text("x"), Output::Done(Ok(Bytes::from(finish.to_string())))])
    };
    let message = Host::new(ended).post("/v1/messages", &ask(&json!({"stop_sequences": ["a", "b"]}))).await.json();
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("stop_sequence"), &json!("b")));
}

#[tokio::test]
async fn refusals_are_in_anthropics_form_whoever_makes_them() {
    let host = Host::new(|_, _| Err(Failure::new(FailureKind::QueueFull, "full")));
    let mut config = config();
    config.api_keys = keys(&["k"]);
    let keyed = Host::with(config, hello);
    for (reply, status, kind, words) in [
        (host.post("/v1/messages", &json!({"model": "a", "messages": []})).await, 400, "invalid_request_error", "max_tokens"),
        (host.post("/v1/messages", &ask(&json!({"model": "nobody"}))).await, 404, "not_found_error", "nobody"),
        (host.post("/v1/messages", &ask(&json!({}))).await, 429, "rate_limit_error", "full"),
        (host.get("/v1/messages").await, 405, "invalid_request_error", "GET"),
        (host.send(post("/v1/messages", "{")).await, 400, "invalid_request_error", "not JSON"),
        (keyed.post("/v1/messages", &ask(&json!({}))).await, 401, "authentication_error", "API key"),
        (
            host.post("/v1/messages", &ask(&json!({"tools": [{"type": "web_search_20250305", "name": "w"}]}))).await,
            400,
            "invalid_request_error",
            "tools[0].type",
        ),
        (
            host.post("/v1/messages", &ask(&json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]})))
                .await,
            400,
            "invalid_request_error",
            "messages[0].content",
        ),
    ] {
        let json = reply.json();
        assert_eq!((reply.status.as_u16(), &json["type"]), (status, &json!("error")), "{}", reply.body);
        assert_eq!(json["error"]["type"], kind, "{}", reply.body);
        assert!(json["error"]["message"].as_str().unwrap().contains(words), "{}", reply.body);
        assert_eq!(json["request_id"], reply.header("x-request-id"));
    }
}

#[tokio::test]
async fn what_breaks_off_ends_with_an_error_event() {
    let body = broken_off("/v1/messages", &ask(&json!({"stream": true}))).await;
    assert!(
        body.ends_with(
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"it broke\"}}\n\n"
        ),
        "{body}"
    );
}
