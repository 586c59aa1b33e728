//! How much a model is to think: what its chat template is told, and log-probabilities of what is not shown.

use super::*;

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_effort_and_what_else_a_client_says_reach_the_template() {
    let effort = |effort: &str, thinks: bool| json!({"reasoning_effort": effort, "enable_thinking": thinks});
    let thinks = |thinks: bool| json!({ "enable_thinking": thinks });
    for (extra, wanted) in [
        (json!({}), Value::Null),
        (json!({"reasoning_effort": null, "reasoning": {}, "chat_template_kwargs": {}}), Value::Null),
        (json!({"reasoning_effort": "none"}), effort("none", false)),
        (json!({"reasoning_effort": "minimal"}), effort("minimal", false)),
        (json!({"reasoning_effort": "low"}), effort("low", true)),
        (json!({"reasoning_effort": "medium"}), effort("medium", true)),
        (json!({"reasoning_effort": "high"}), effort("high", true)),
        (json!({"reasoning_effort": "xhigh"}), effort("xhigh", true)),
        (json!({"reasoning": {"effort": "high"}}), effort("high", true)),
        (json!({"reasoning": {"enabled": false}}), thinks(false)),
        (json!({"enable_thinking": false}), thinks(false)),
        (json!({"thinking": true}), thinks(true)),
        (json!({"thinking": {"type": "disabled"}}), thinks(false)),
        (json!({"reasoning_effort": "high", "enable_thinking": false}), effort("high", false)),
        (
            json!({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false, "x": [1, null]}}),
            json!({"reasoning_effort": "high", "enable_thinking": false, "x": [1, null]}),
        ),
    ] {
        let host = Host::new(hello);
        let reply = host.post(CHAT, &chat(&extra)).await;
        assert_eq!(reply.status, 200, "{extra}: {}", reply.body);
        assert_eq!(host.tasks()[0]["input"]["template_arguments"], wanted, "{extra}");
    }
}

#[tokio::test]
async fn what_cannot_be_said_to_a_template_is_refused() {
    let mut cases = vec![
        (json!({"reasoning_effort": "lots"}), "invalid_value", "reasoning_effort".to_owned()),
        (json!({"reasoning_effort": 1}), "invalid_type", "reasoning_effort".to_owned()),
        (json!({"reasoning": {"effort": "lots"}}), "invalid_value", "reasoning.effort".to_owned()),
        (json!({"reasoning": "lots"}), "invalid_type", "reasoning".to_owned()),
        (json!({"thinking": {"type": "perhaps"}}), "invalid_value", "thinking.type".to_owned()),
        (json!({"thinking": 1}), "invalid_type", "thinking".to_owned()),
        (json!({"enable_thinking": "yes"}), "invalid_type", "enable_thinking".to_owned()),
        (json!({"chat_template_kwargs": []}), "invalid_type", "chat_template_kwargs".to_owned()),
        (
            json!({"chat_template_kwargs": {"x": "x".repeat(64 << 10)}}),
            "invalid_value",
            "chat_template_kwargs".to_owned(),
        ),
    ];
    for name in ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token"] {
        let kwargs = json!({"chat_template_kwargs": {name: 1}});
        cases.push((kwargs, "invalid_value", format!("chat_template_kwargs.{name}")));
    }
    let mut config = config();
    config.limits.body_limit = Some(ByteSize(1 << 20));
    for (extra, code, param) in cases {
        let host = Host::with(config.clone(), |_, _| panic!("nobody is asked"));
        let reply = host.post(CHAT, &chat(&extra)).await;
        assert_eq!(reply.error(), (400, code.to_owned(), param), "{}", reply.body);
    }
}

#[tokio::test]
async fn efforts_of_other_apis_reach_the_template() {
    let message = json!([{"role": "user", "content": "x"}]);
    let effort = |effort: &str, thinks: bool| json!({"reasoning_effort": effort, "enable_thinking": thinks});
    let thinks = |thinks: bool| json!({ "enable_thinking": thinks });
    let messages = |extra: Value| {
        let mut body = json!({"messages": message, "max_tokens": 9});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for (path, body, wanted) in [
        ("/v1/responses", json!({"input": "x", "reasoning": {"effort": "none"}}), effort("none", false)),
        ("/v1/messages", messages(json!({"thinking": {"type": "enabled", "budget_tokens": 1024}})), thinks(true)),
        ("/v1/messages", messages(json!({"thinking": {"type": "disabled"}})), thinks(false)),
        ("/v1/messages", messages(json!({"output_config": {"effort": "max"}})), effort("xhigh", true)),
        (
            "/v1/messages",
            messages(json!({"thinking": {"type": "disabled"}, "chat_template_kwargs": {"x": 1}})),
            json!({"x": 1, "enable_thinking": false}),
        ),
        ("/api/chat", json!({"messages": message, "think": true}), thinks(true)),
        ("/api/chat", json!({"messages": message, "think": false}), thinks(false)),
        ("/api/generate", json!({"prompt": "x", "think": "low"}), effort("low", true)),
    ] {
        let host = Host::new(hello);
        let mut body = body;
        body["model"] = "a".into();
        let reply = host.post(path, &body).await;
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.body);
        assert_eq!(host.tasks()[0]["input"]["template_arguments"], wanted, "{path} {body}");
    }
    for (path, body, field) in [
        ("/v1/responses", json!({"input": "x", "reasoning": {"effort": "lots"}}), "reasoning.effort"),
        ("/v1/messages", messages(json!({"output_config": {"effort": "lots"}})), "output_config.effort"),
        ("/v1/messages", messages(json!({"thinking": {"type": "lots"}})), "thinking.type"),
        ("/api/chat", json!({"messages": message, "think": "lots"}), "think"),
    ] {
        let mut body = body;
        body["model"] = "a".into();
        let reply = Host::new(hello).post(path, &body).await;
        assert_eq!(reply.status, 400, "{path} {body}");
        assert!(reply.body.contains(&format!("`{field}`")), "{path}: {}", reply.body);
    }
}

/// Two tokens that are not shown, two that are, and a call.
fn hidden(_: usize, _: &Submission) -> Result<Vec<Output>, Failure> {
    let token = |token: &str| json!({"token": token, "bytes": token.as_bytes(), "logprob": -0.5, "top": []});
    let of = |text: &str, tokens: &[&str]| {
        let logprobs: Vec<_> = tokens.iter().map(|text| token(text)).collect();
        event(&json!({"type": "text", "text": text, "logprobs": logprobs}))
    };
    Ok(vec![
        of("", &["<think>"]),
        event(&json!({"type": "reasoning", "text": "hm"})),
        of("", &["hm", "</think>"]),
        of("Hi", &["Hi"]),
        of(" \u{e9}x", &[" \u{e9}", "x"]),
        done("stop"),
    ])
}

#[tokio::test]
async fn tokens_that_are_not_shown_are_told_and_move_no_offset() {
    let host = Host::new(hidden);
    let asked = json!({"logprobs": true});
    let choice = host.post(CHAT, &chat(&asked)).await.json()["choices"][0].clone();
    let tokens = |logprobs: &Value| -> Vec<String> {
        let entries = logprobs["content"].as_array().into_iter().flatten();
        entries.map(|entry| entry["token"].as_str().unwrap().to_owned()).collect()
    };
    let all = ["<think>", "hm", "</think>", "Hi", " \u{e9}", "x"];
    assert_eq!(tokens(&choice["logprobs"]), all);
    let events = super::chat::events(&host.post(CHAT, &chat(&json!({"logprobs": true, "stream": true}))).await.body);
    let streamed: Vec<_> = events.iter().flat_map(|event| tokens(&event["choices"][0]["logprobs"])).collect();
    assert_eq!(streamed, all);
    for stream in [false, true] {
        let body = json!({"model": "a", "prompt": "x", "logprobs": 0, "stream": stream});
        let reply = host.post("/v1/completions", &body).await;
        let told: Vec<Value> = match stream {
            false => vec![reply.json()],
            true => super::chat::events(&reply.body),
        };
        let offsets: Vec<_> = told
            .iter()
            .flat_map(|told| told["choices"][0]["logprobs"]["text_offset"].as_array().cloned().unwrap_or_default())
            .collect();
        assert_eq!(offsets, [0, 0, 0, 0, 2, 4], "stream: {stream}");
    }
}

#[tokio::test]
async fn tokens_of_calls_alone_are_told_and_make_no_message() {
    let host = Host::new(|_, _| {
        let token = json!({"token": "<tool_call>", "bytes": [60], "logprob": -0.5, "top": []});
        Ok(vec![
            event(&json!({"type": "text", "text": "", "logprobs": [token]})),
            event(&json!({"type": "tool_call", "index": 0, "id": "c", "name": "f"})),
            done("tool_calls"),
        ])
    });
    let choice = host.post(CHAT, &chat(&json!({"logprobs": true}))).await.json()["choices"][0].clone();
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&Value::Null, &json!("tool_calls")));
    assert_eq!(choice["logprobs"]["content"][0]["token"], "<tool_call>");
    for stream in [false, true] {
        let body = json!({"model": "a", "input": "x", "include": ["message.output_text.logprobs"], "stream": stream});
        let reply = host.post("/v1/responses", &body).await;
        let response = match stream {
            false => reply.json(),
            true => named_events(reply.body.as_bytes()).pop().unwrap()["response"].clone(),
        };
        let kinds: Vec<_> = response["output"].as_array().unwrap().iter().map(|item| item["type"].clone()).collect();
        assert_eq!(kinds, ["function_call"], "stream: {stream}");
    }
}

#[tokio::test]
async fn a_character_that_several_tokens_make_is_where_its_first_is() {
    let host = Host::new(|_, _| {
        let token = |bytes: &[u8]| json!({"token": "\u{fffd}", "bytes": bytes, "logprob": -1.5, "top": []});
        let whole = json!({"token": "b", "bytes": [98], "logprob": -1.5, "top": []});
        let logprobs = [token(&[240]), token(&[159]), token(&[142, 137]), whole];
        Ok(vec![event(&json!({"type": "text", "text": "\u{1f389}b", "logprobs": logprobs})), done("length")])
    });
    for stream in [false, true] {
        let body = json!({"model": "a", "prompt": "x", "logprobs": 0, "stream": stream});
        let reply = host.post("/v1/completions", &body).await;
        assert!(reply.body.contains(r#""text_offset":[0,0,0,1]"#), "{}", reply.body);
    }
}
