//! `/v1/chat/completions`: shapes, streams, and what reaches the plugin.

use super::*;

#[tokio::test]
async fn whole_answer_has_text_and_usage() {
    let host = Host::new(hello);
    let reply = host.post("/v1/chat/completions", &chat(&json!({}))).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.body,
        concat!(
            r#"{"id":"chatcmpl-ID","object":"chat.completion","created":0,"model":"a","choices":[{"index":0,"#,
            r#""message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,"finish_reason":"stop"}],"#,
            r#""usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1},"#,
            r#""completion_tokens_details":{"reasoning_tokens":0}}}"#
        )
    );
}

#[tokio::test]
async fn an_answer_ends_where_its_request_says_or_its_models_entry() {
    let mut b = model("b", Kind::Text);
    b.default_max_tokens = 77;
    let host = Host::with(configured([model("a", Kind::Text), b]), hello);
    for asked in [json!({}), json!({"model": "b"}), json!({"model": "b", "max_tokens": 5}), json!({"max_tokens": 5000})]
    {
        assert_eq!(host.post("/v1/chat/completions", &chat(&asked)).await.status, 200);
    }
    let limits: Vec<_> = host.tasks().iter().map(|task| task["max_tokens"].clone()).collect();
    assert_eq!(limits, [1024, 77, 5, 5000]);
}

#[tokio::test]
async fn stream_is_exact_to_the_byte() {
    let host = Host::new(hello);
    let reply = host.post("/chat/completions", &chat(&json!({"stream": true}))).await;
    let chunk = |delta: &str, finish: &str| {
        format!(
            r#"data: {{"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"a","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]}}"#
        ) + "\n\n"
    };
    let expected = [
        chunk(r#"{"role":"assistant","content":null}"#, "null"),
        chunk(r#"{"content":"Hel"}"#, "null"),
        chunk(r#"{"content":"lo"}"#, "null"),
        chunk("{}", r#""stop""#),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(reply.body, expected.concat());
    assert_eq!(reply.header("content-type"), "text/event-stream");
    assert_eq!(reply.header("cache-control"), "no-store");
    assert_eq!(reply.header("x-accel-buffering"), "no");
}

#[tokio::test]
async fn usage_comes_in_a_chunk_of_its_own() {
    let host = Host::new(hello);
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = events(&host.post("/v1/chat/completions", &chat(&asked)).await.body);
    let (last, earlier) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], 5);
    assert!(earlier.iter().all(|event| event.as_object().unwrap().get("usage") == Some(&Value::Null)));
}

#[tokio::test]
async fn choices_begin_in_order_and_differ_in_seed() {
    let host = Host::new(hello);
    let asked = json!({"stream": true, "n": 2, "seed": -1});
    let events = events(&host.post("/v1/chat/completions", &chat(&asked)).await.body);
    let order: Vec<_> = events.iter().take(2).map(|event| event["choices"][0]["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [0, 1]);
    for index in 0..2 {
        let own = events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index);
        assert_eq!(own.clone().filter(|choice| !choice["finish_reason"].is_null()).count(), 1);
        assert_eq!(own.filter_map(|choice| choice["delta"]["content"].as_str()).collect::<String>(), "Hello");
    }
    let seeds: Vec<_> = host.tasks().iter().map(|task| task["sampling"]["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [u64::MAX, 0]);
}

#[tokio::test]
async fn more_choices_than_fit_at_once_keep_their_places() {
    let host = Host::new(|_, submission| {
        let task: Value = serde_json::from_slice(&submission.ask.as_task().unwrap().header).unwrap();
        Ok(vec![text(&task["sampling"]["seed"].to_string()), done("length")])
    });
    let json = host.post("/v1/chat/completions", &chat(&json!({"n": 20, "seed": 0}))).await.json();
    let choices = json["choices"].as_array().unwrap();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["message"]["content"]), (&json!(index), &json!(index.to_string())));
    }
    assert_eq!(json["usage"]["prompt_tokens"], 3);
    assert_eq!(json["usage"]["completion_tokens"], 40);
}

#[tokio::test]
async fn tool_calls_and_reasoning_are_told_apart() {
    let host = Host::new(|_, _| {
        Ok(vec![
            event(&json!({"type": "reasoning", "text": "hm"})),
            event(&json!({"type": "tool_call", "index": 0, "id": "call_1", "name": "f"})),
            event(&json!({"type": "tool_arguments", "index": 0, "fragment": "{\"a\":"})),
            event(&json!({"type": "tool_arguments", "index": 0, "fragment": "1}"})),
            done("tool_calls"),
        ])
    });
    let choice = host.post("/v1/chat/completions", &chat(&json!({}))).await.json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}});
    let expected =
        json!({"role": "assistant", "content": null, "refusal": null, "reasoning_content": "hm", "tool_calls": [call]});
    assert_eq!(choice["message"], expected);

    let events = events(&host.post("/v1/chat/completions", &chat(&json!({"stream": true}))).await.body);
    let deltas: Vec<_> = events.iter().map(|event| event["choices"][0]["delta"].clone()).collect();
    assert_eq!(deltas[1], json!({"reasoning_content": "hm"}));
    let begin = json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}});
    assert_eq!(deltas[2], json!({"tool_calls": [begin]}));
    assert_eq!(deltas[3], json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"a\":"}}]}));
    assert_eq!(deltas[5], json!({}));
}

#[tokio::test]
async fn tokens_of_reasoning_are_counted_over_all_choices() {
    let host = Host::new(|_, _| {
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "reasoning_tokens": 2});
        let finish = json!({"reason": "stop", "usage": usage}).to_string();
        Ok(vec![text("a"), Output::Done(Ok(Bytes::from(finish)))])
    });
    let chat = host.post("/v1/chat/completions", &chat(&json!({"n": 3}))).await.json();
    assert_eq!(chat["usage"]["completion_tokens_details"], json!({"reasoning_tokens": 6}));
    let response = host.post("/v1/responses", &json!({"model": "a", "input": "x"})).await.json();
    assert_eq!(response["usage"]["output_tokens_details"], json!({"reasoning_tokens": 2}));
}

#[tokio::test]
async fn a_refusal_of_the_models_own_is_no_text_and_reaches_the_client() {
    let host = Host::new(|_, _| {
        let piece = |text: &str| event(&json!({"type": "refusal", "text": text}));
        Ok(vec![piece("I would "), piece("rather not"), done("stop")])
    });
    let message = host.post("/v1/chat/completions", &chat(&json!({}))).await.json()["choices"][0]["message"].clone();
    assert_eq!(message, json!({"role": "assistant", "content": null, "refusal": "I would rather not"}));
    let events = events(&host.post("/v1/chat/completions", &chat(&json!({"stream": true}))).await.body);
    let deltas: Vec<_> = events.iter().map(|event| event["choices"][0]["delta"].clone()).collect();
    assert_eq!(deltas[1..3], [json!({"refusal": "I would "}), json!({"refusal": "rather not"})]);
}

#[tokio::test]
async fn logprobs_are_mapped() {
    let host = Host::new(|_, _| {
        let other = json!({"token": "b", "bytes": [98], "logprob": -9999.0});
        let token = json!({"token": "a", "bytes": [97], "logprob": -0.1, "top": [other]});
        Ok(vec![event(&json!({"type": "text", "text": "a", "logprobs": [token]})), done("stop")])
    });
    let asked = chat(&json!({"logprobs": true, "top_logprobs": 1}));
    let reply = host.post("/v1/chat/completions", &asked).await;
    let expected = concat!(
        r#""logprobs":{"content":[{"token":"a","logprob":-0.1,"bytes":[97],"#,
        r#""top_logprobs":[{"token":"b","logprob":-9999.0,"bytes":[98]}]}],"refusal":null}"#
    );
    assert!(reply.body.contains(expected), "{}", reply.body);
    assert_eq!(host.tasks()[0]["logprobs"], 1);
}

#[tokio::test]
async fn parameters_reach_the_plugin() {
    let host = Host::new(hello);
    let body = json!({
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
        ],
        "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 4, "min_p": 0.125,
        "seed": 9, "repeat_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": -0.5,
        "logit_bias": {"foo": 0, "12": -100}, "stop": "x", "tools": null, "ignore_eos": true,
        "service_tier": "flex", "unheard_of": {"a": [1]}, "response_format": {"type": "text"}, "user": null,
    });
    let reply = host.post("/v1/chat/completions", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let task = host.tasks().remove(0);
    assert_eq!(task["max_tokens"], 7);
    assert_eq!(task["stop"], json!(["x"]));
    assert_eq!(task["ignore_eos"], true);
    assert_eq!(task["input"]["messages"][0], json!({"role": "system", "content": "be\nbrief"}));
    assert_eq!(task["input"]["messages"][1]["content"], "");
    assert_eq!(task["input"]["messages"][2]["tool_call_id"], "1");
    let sampling = json!({
        "temperature": 0.5, "top_p": 0.25, "top_k": 4, "min_p": 0.125, "seed": 9, "repetition_penalty": 1.5,
        "frequency_penalty": 0.5, "presence_penalty": -0.5, "logit_bias": {"12": -100.0},
    });
    assert_eq!(task["sampling"], sampling);
    assert_eq!(host.submitted.lock().unwrap()[0].class, crate::runtime::Class::Batch);
}

#[tokio::test]
async fn what_nobody_asks_of_sampling_is_told_to_the_plugin() {
    let host = Host::new(hello);
    for (path, body) in [
        ("/v1/chat/completions", chat(&json!({"temperature": 0.5, "top_p": null}))),
        ("/v1/completions", json!({"model": "a", "prompt": "hi", "temperature": 0.5})),
        (
            "/v1/messages",
            json!({"model": "a", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}),
        ),
        ("/api/generate", json!({"model": "a", "prompt": "hi", "stream": false, "options": {"temperature": 0.5}})),
    ] {
        let reply = host.post(path, &body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        let task = host.tasks().pop().unwrap();
        let unset = json!(["frequency_penalty", "min_p", "presence_penalty", "repetition_penalty", "top_k", "top_p"]);
        assert_eq!(task["sampling"]["unset"], unset, "{path}");
    }
}

#[tokio::test]
async fn a_request_says_how_it_is_served_and_so_does_its_key() {
    use crate::runtime::{Class, KeepAlive};
    let key = |secret: &str, class| Arc::new(ApiKey { class, ..key(secret) });
    let keys = vec![key("person", Class::Interactive), key("robot", Class::Batch)];
    let host = Host::with(Config { api_keys: keys, ..config() }, hello);
    let five = Some(KeepAlive::For(Duration::from_secs(300)));
    for (key, extra, class, keep_alive) in [
        ("person", json!({}), Class::Interactive, None),
        ("person", json!({"service_tier": "flex", "keep_alive": "5m"}), Class::Batch, five),
        ("robot", json!({"keep_alive": 0}), Class::Batch, Some(KeepAlive::For(Duration::ZERO))),
        ("robot", json!({"service_tier": "priority", "keep_alive": -1}), Class::Batch, Some(KeepAlive::Forever)),
    ] {
        for (path, body) in [
            ("/v1/chat/completions", chat(&extra)),
            ("/v1/completions", {
                let mut body = json!({"model": "a", "prompt": "hi"});
                body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
                body
            }),
        ] {
            host.submitted.lock().unwrap().clear();
            let request = Request::post(path).header("x-api-key", key).body(Body::from(body.to_string())).unwrap();
            assert_eq!(host.send(request).await.status, 200);
            let submitted = host.submitted.lock().unwrap();
            assert_eq!((submitted[0].class, submitted[0].keep_alive), (class, keep_alive), "{key} {path} {extra}");
        }
    }
    let request = Request::post("/v1/chat/completions").header("x-api-key", "person");
    let reply = host.send(request.body(Body::from(chat(&json!({"keep_alive": "soon"})).to_string())).unwrap()).await;
    assert_eq!(reply.error(), (400, "invalid_value".into(), "keep_alive".into()));
}

#[tokio::test]
async fn tools_reach_the_template_unless_forbidden() {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    for (extra, tools) in [
        (json!({"tools": [tool]}), json!([tool])),
        (json!({"tools": [tool], "tool_choice": "auto"}), json!([tool])),
        (json!({"tools": [tool], "tool_choice": "none"}), json!([])),
        (json!({"functions": [tool["function"]]}), json!([tool])),
        (json!({"tool_choice": "auto"}), json!([])),
    ] {
        let host = Host::new(hello);
        assert_eq!(host.post("/v1/chat/completions", &chat(&extra)).await.status, 200);
        assert_eq!(host.tasks()[0]["input"]["tools"], tools, "{extra}");
    }
}

/// The JSON events of a stream, which must end with `[DONE]`.
pub(super) fn events(body: &str) -> Vec<Value> {
    let body = body.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("no [DONE]: {body}"));
    let events = body.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
    events.map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[tokio::test]
async fn an_answer_goes_on_from_what_the_assistant_began_only_if_it_is_told_to() {
    let host = Host::new(hello);
    let turns = |last: Value| json!([{"role": "user", "content": "who?"}, last]);
    let begun = json!({"role": "assistant", "content": "It is"});
    let prefix = json!({"role": "assistant", "content": "It is", "prefix": true});
    for (extra, continues) in [
        (json!({"messages": turns(begun.clone())}), false),
        (json!({"messages": turns(begun.clone()), "continue_final_message": true}), true),
        (
            json!({"messages": turns(begun.clone()), "continue_final_message": true, "add_generation_prompt": false}),
            true,
        ),
        (json!({"messages": turns(begun.clone()), "add_generation_prompt": false}), true),
        (json!({"messages": turns(begun.clone()), "add_generation_prompt": true}), false),
        (json!({"messages": turns(prefix.clone())}), true),
        (json!({"messages": turns(prefix), "continue_final_message": false}), false),
    ] {
        let reply = host.post("/v1/chat/completions", &chat(&extra)).await;
        assert_eq!(reply.status, 200, "{extra}: {}", reply.body);
        let task = host.tasks().pop().unwrap();
        assert_eq!(task["input"]["continue_final"] == true, continues, "{extra}");
    }
    for (extra, param) in [
        (json!({"continue_final_message": true}), "continue_final_message"),
        (json!({"add_generation_prompt": false}), "add_generation_prompt"),
        (
            json!({"messages": turns(begun), "continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
        ),
    ] {
        let reply = host.post("/v1/chat/completions", &chat(&extra)).await;
        assert_eq!(reply.error(), (400, "invalid_value".into(), param.into()));
    }
    let body = json!({"model": "a", "max_tokens": 5, "messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "It is"}]});
    assert_eq!(host.post("/v1/messages", &body).await.status, 200);
    assert_eq!(host.tasks().pop().unwrap()["input"]["continue_final"], true, "Anthropic's API always goes on");
}
