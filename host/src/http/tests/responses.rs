//! `/v1/responses`: what becomes of its items, the events by which an answer comes, and conversations that go on.

use super::*;

fn ask(extra: &Value) -> Value {
    let mut body = json!({"model": "a", "input": "hi"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn an_answer_has_its_items_and_all_that_its_schema_wants() {
    let host = Host::new(much);
    let asked =
        ask(&json!({"instructions": "be kind", "temperature": 0.5, "metadata": {"k": "v"}, "max_output_tokens": 9}));
    let reply = host.post("/v1/responses", &asked).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let response = reply.json();
    for key in [
        "id",
        "object",
        "created_at",
        "completed_at",
        "status",
        "error",
        "incomplete_details",
        "instructions",
        "metadata",
        "model",
        "output",
        "parallel_tool_calls",
        "temperature",
        "tool_choice",
        "tools",
        "top_p",
        "previous_response_id",
        "truncation",
        "text",
        "presence_penalty",
        "frequency_penalty",
        "top_logprobs",
        "reasoning",
        "usage",
        "max_output_tokens",
        "max_tool_calls",
        "store",
        "background",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
    ] {
        assert!(response.as_object().unwrap().contains_key(key), "no `{key}`: {response}");
    }
    assert_eq!((&response["status"], &response["temperature"]), (&json!("completed"), &json!(0.5)));
    let kinds: Vec<_> =
        response["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call"]);
    assert_eq!(response["output"][1]["content"][0]["text"], "Hello");
    assert_eq!(response["output"][1]["content"][0]["annotations"], json!([]));
    assert_eq!(response["output"][2]["arguments"], "{\"x\":1}");
    assert_eq!(response["output"][3]["arguments"], "{}");
    assert_eq!(response["usage"]["input_tokens_details"]["cached_tokens"], 1);
    let task = &host.tasks()[0];
    assert_eq!(task["max_tokens"], 9);
    assert_eq!(task["input"]["messages"][0], json!({"role": "system", "content": "be kind"}));
    assert_eq!(task["input"]["messages"][1], json!({"role": "user", "content": "hi"}));
}

#[tokio::test]
async fn a_stream_tells_the_same_as_the_whole() {
    let host = Host::new(much);
    let streamed = host.post("/v1/responses", &ask(&json!({"stream": true}))).await;
    let events = named_events(streamed.body.as_bytes());
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.delta",
            "response.output_item.added",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let numbers: Vec<_> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let last = &events.last().unwrap()["response"];
    let whole = host.post("/v1/responses", &ask(&json!({}))).await.json();
    let without_ids = |output: &Value| {
        let mut output = output.clone();
        output.as_array_mut().unwrap().iter_mut().for_each(|item| item["id"] = Value::Null);
        output
    };
    assert_eq!(without_ids(&last["output"]), without_ids(&whole["output"]));
    assert_eq!(last["usage"], whole["usage"]);
    // An item has one id from its beginning to the end.
    for item in last["output"].as_array().unwrap() {
        let of_item = events.iter().filter(|event| event["item_id"] == item["id"] || event["item"]["id"] == item["id"]);
        assert!(of_item.count() >= 3, "{item}");
    }
}

#[tokio::test]
async fn thoughts_are_told_as_a_summary_where_one_is_asked_for() {
    let host = Host::new(much);
    for wanted in ["auto", "concise", "detailed"] {
        let asked = json!({"reasoning": {"summary": wanted, "effort": null}});
        let item = &host.post("/v1/responses", &ask(&asked)).await.json()["output"][0];
        assert_eq!(item["summary"], json!([{"type": "summary_text", "text": "hm"}]));
        assert_eq!((&item["type"], &item["content"]), (&json!("reasoning"), &json!([])));
    }
    let item = &host.post("/v1/responses", &ask(&json!({"reasoning": {"effort": "low"}}))).await.json()["output"][0];
    assert_eq!(item["content"], json!([{"type": "reasoning_text", "text": "hm"}]));
    assert_eq!(item["summary"], json!([]));
    let asked = ask(&json!({"stream": true, "reasoning": {"summary": "auto"}}));
    let events = named_events(host.post("/v1/responses", &asked).await.body.as_bytes());
    let at = events.iter().position(|event| event["item"]["type"] == "reasoning").unwrap();
    assert_eq!((&events[at]["item"]["summary"], &events[at]["item"]["content"]), (&json!([]), &json!([])));
    let id = &events[at]["item"]["id"];
    let told: Vec<_> = events[at + 1..]
        .iter()
        .take_while(|event| event["item_id"] == *id)
        .map(|event| {
            assert_eq!((&event["output_index"], &event["summary_index"]), (&json!(0), &json!(0)), "{event}");
            (event["type"].as_str().unwrap(), [&event["part"], &event["delta"], &event["text"]].map(Value::clone))
        })
        .collect();
    let part = |text: &str| json!({"type": "summary_text", "text": text});
    assert_eq!(
        told,
        [
            ("response.reasoning_summary_part.added", [part(""), Value::Null, Value::Null]),
            ("response.reasoning_summary_text.delta", [Value::Null, "hm".into(), Value::Null]),
            ("response.reasoning_summary_text.done", [Value::Null, Value::Null, "hm".into()]),
            ("response.reasoning_summary_part.done", [part("hm"), Value::Null, Value::Null]),
        ]
    );
    let done = &events[at + 1 + told.len()];
    assert_eq!((&done["type"], &done["item"]["summary"]), (&json!("response.output_item.done"), &json!([part("hm")])));
    let output = &events.last().unwrap()["response"]["output"];
    assert_eq!(output[0], done["item"]);
    let items = json!([output[0], output[1], {"role": "user", "content": "and?"}]);
    let reply = host.post("/v1/responses", &ask(&json!({"input": items}))).await;
    assert_eq!(reply.status, 200, "its item can be sent back: {}", reply.body);
}

#[tokio::test]
async fn what_is_cut_is_incomplete() {
    let host = Host::new(|_, _| Ok(vec![text("Hel"), done("length")]));
    let response = host.post("/v1/responses", &ask(&json!({}))).await.json();
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(response["output"][0]["status"], "incomplete");
    let events = named_events(host.post("/v1/responses", &ask(&json!({"stream": true}))).await.body.as_bytes());
    assert_eq!(events.last().unwrap()["type"], "response.incomplete");
}

#[tokio::test]
async fn what_breaks_off_is_told_by_the_last_events() {
    let body = broken_off("/v1/responses", &ask(&json!({"stream": true}))).await;
    let events = named_events(body.as_bytes());
    let [.., error, failed] = events.as_slice() else { panic!("{body}") };
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("worker_died")));
    assert_eq!((&failed["type"], &failed["response"]["status"]), (&json!("response.failed"), &json!("failed")));
}

#[tokio::test]
async fn a_conversation_goes_on_from_its_answer() {
    let host = Host::new(much);
    let first = host.post("/v1/responses", &ask(&json!({"instructions": "once"}))).await.json();
    let items = json!([
        {"type": "function_call_output", "call_id": "call_a", "output": "7"},
        {"role": "user", "content": [{"type": "input_text", "text": "and?"}]},
    ]);
    let second = json!({"model": "a", "previous_response_id": first["id"], "input": items});
    let reply = host.post("/v1/responses", &second).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json()["previous_response_id"], first["id"]);
    let task = &host.tasks()[1];
    let roles: Vec<_> =
        task["input"]["messages"].as_array().unwrap().iter().map(|turn| turn["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "tool", "user"], "the first one's instructions are not carried on");
    assert_eq!(task["input"]["messages"][1]["tool_calls"][0]["function"]["name"], "f");
    assert_eq!(task["input"]["messages"][3]["content"], "and?");
    let kept = host.get(&format!("/v1/responses/{}", first["id"].as_str().unwrap())).await;
    assert_eq!(kept.json(), first);
    let gone = Request::delete(format!("/v1/responses/{}", first["id"].as_str().unwrap())).body(Body::empty()).unwrap();
    assert_eq!(host.send(gone).await.json()["deleted"], true);
    let reply = host.post("/v1/responses", &second).await;
    assert_eq!(reply.error(), (400, "previous_response_not_found".into(), "previous_response_id".into()));
}

#[tokio::test]
async fn what_is_not_to_be_stored_is_not_kept_and_keys_do_not_see_each_others() {
    let host = Host::new(hello);
    let unkept = host.post("/v1/responses", &ask(&json!({"store": false}))).await.json();
    let reply = host.get(&format!("/v1/responses/{}", unkept["id"].as_str().unwrap())).await;
    assert_eq!(reply.error(), (404, "response_not_found".into(), "response_id".into()));
    let mut config = config();
    config.api_keys = keys(&["one", "two"]);
    let host = Host::with(config, hello);
    let kept = host.send(with_key(post("/v1/responses", ask(&json!({})).to_string()), "one")).await.json();
    let path = format!("/v1/responses/{}", kept["id"].as_str().unwrap());
    for (key, status) in [("one", 200), ("two", 404)] {
        let get = Request::get(&path).body(Body::empty()).unwrap();
        assert_eq!(host.send(with_key(get, key)).await.status, status, "{key}");
    }
}

#[tokio::test]
async fn refusals_name_the_field_as_its_client_wrote_it() {
    let host = Host::new(hello);
    for (extra, code, param) in [
        (json!({"input": null}), "missing_required_parameter", "input"),
        (json!({"input": []}), "invalid_value", "input"),
        (json!({"input": [{"role": "wizard", "content": "x"}]}), "invalid_value", "input[0].role"),
        (json!({"input": [{"role": "user"}]}), "missing_required_parameter", "input[0].content"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:x"}]}]}),
            "unsupported_parameter",
            "input[0].content[0]",
        ),
        (json!({"input": [{"type": "web_search_call"}]}), "unsupported_parameter", "input[0].type"),
        (json!({"max_output_tokens": -1}), "invalid_value", "max_output_tokens"),
        (json!({"temperature": 3}), "invalid_value", "temperature"),
        (json!({"reasoning": {"summary": "long"}}), "invalid_value", "reasoning.summary"),
        (json!({"text": {"format": {"type": "hiccup"}}}), "invalid_value", "text.format.type"),
        (json!({"tools": [{"type": "web_search"}]}), "unsupported_parameter", "tools[0].type"),
        (json!({"background": true}), "unsupported_parameter", "background"),
        (json!({"conversation": "c"}), "unsupported_parameter", "conversation"),
        (json!({"previous_response_id": "resp_x"}), "previous_response_not_found", "previous_response_id"),
    ] {
        let reply = host.post("/v1/responses", &ask(&extra)).await;
        assert_eq!(reply.error(), (400, code.to_owned(), param.to_owned()), "{extra}: {}", reply.body);
    }
}

#[tokio::test]
async fn functions_of_a_namespace_are_called_and_told_by_their_own_names() {
    let host = Host::new(|_, _| {
        Ok(vec![
            event(&json!({"type": "tool_call", "index": 0, "id": "call_a", "name": "agents__run"})),
            event(&json!({"type": "tool_call", "index": 1, "id": "call_b", "name": "spawn"})),
            done("tool_calls"),
        ])
    });
    let tools = json!([
        {"type": "function", "name": "run", "parameters": {}},
        {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "run"}, {"type": "function", "name": "spawn"}]},
        {"type": "web_search", "external_web_access": false},
    ]);
    let items = json!([
        {"role": "user", "content": "go"},
        {"type": "function_call", "call_id": "c", "name": "run", "namespace": "agents", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
    ]);
    let reply = host.post("/v1/responses", &ask(&json!({"tools": tools, "input": items}))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let output = &reply.json()["output"];
    assert_eq!((&output[0]["name"], &output[0]["namespace"]), (&json!("run"), &json!("agents")));
    assert_eq!((&output[1]["name"], &output[1]["namespace"]), (&json!("spawn"), &json!("agents")));
    let input = &host.tasks()[0]["input"];
    let names: Vec<_> =
        input["tools"].as_array().unwrap().iter().map(|tool| tool["function"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["run", "agents__run", "spawn"]);
    assert_eq!(input["messages"][1]["tool_calls"][0]["function"]["name"], "agents__run");
    for tool in [
        json!({"type": "web_search"}),
        json!({"type": "namespace", "name": "n", "tools": [{"type": "custom", "name": "c"}]}),
    ] {
        let reply = host.post("/v1/responses", &ask(&json!({"tools": [tool]}))).await;
        assert_eq!(reply.error().1, "unsupported_parameter", "{}", reply.body);
    }
}
