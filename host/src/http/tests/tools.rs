//! Which tools an answer may call and which it has to, and how calls are told.

use super::*;

const CHAT: &str = "/v1/chat/completions";

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

fn names(input: &Value) -> Vec<String> {
    let tools = input["tools"].as_array().unwrap();
    tools.iter().map(|tool| tool["function"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_choice_says_which_tools_there_are_and_which_is_called() {
    let (f, g) = (tool("f"), tool("g"));
    let required = json!({"type": "required"});
    let named = json!({"type": "named", "name": "g"});
    let of_chat = |name: &str| json!({"type": "function", "function": {"name": name}});
    let flat = |name: &str| json!({"type": "function", "name": name});
    let (all, none): (&[&str], &[&str]) = (&["f", "g"], &[]);
    for (choice, kept, wanted) in [
        (Value::Null, all, Value::Null),
        (json!("auto"), all, Value::Null),
        (json!("none"), none, Value::Null),
        (json!("required"), all, required.clone()),
        (of_chat("g"), all, named.clone()),
        (flat("g"), all, named),
        (
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [of_chat("g")]}}),
            &["g"],
            Value::Null,
        ),
        (json!({"type": "allowed_tools", "mode": "required", "tools": [flat("f")]}), &["f"], required),
    ] {
        let host = Host::featured(&["grammar"], hello);
        let reply = host.post(CHAT, &chat(&json!({"tools": [f, g], "tool_choice": choice}))).await;
        assert_eq!(reply.status, 200, "{choice}: {}", reply.body);
        let input = &host.tasks()[0]["input"];
        assert_eq!(names(input), kept, "{choice}");
        assert_eq!(input["tool_choice"], wanted, "{choice}");
        assert!(input.get("parallel_tool_calls").is_none());
    }
}

#[tokio::test]
async fn one_call_at_a_time_reaches_the_plugin_and_so_does_strictness() {
    let mut strict = tool("f");
    strict["function"]["strict"] = true.into();
    let host = Host::new(hello);
    for (asked, wanted) in [(json!(false), json!(false)), (json!(true), Value::Null), (Value::Null, Value::Null)] {
        let body = chat(&json!({"tools": [strict], "parallel_tool_calls": asked}));
        assert_eq!(host.post(CHAT, &body).await.status, 200);
        let input = host.tasks().pop().unwrap()["input"].clone();
        assert_eq!(input["parallel_tool_calls"], wanted);
        assert_eq!(input["tools"], json!([strict]));
    }
}

#[tokio::test]
async fn tools_and_choices_that_cannot_be_meant_are_refused() {
    let of = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let chosen = |choice: Value| json!({"tools": [tool("f")], "tool_choice": choice});
    let allowed = |inner: Value| chosen(json!({"type": "allowed_tools", "allowed_tools": inner}));
    let (missing, invalid, kind) = ("missing_required_parameter", "invalid_value", "invalid_type");
    for (extra, code, param) in [
        (of(json!({"name": "a b!"})), invalid, "tools[0].function.name"),
        (of(json!({"name": "a.b"})), invalid, "tools[0].function.name"),
        (of(json!({"name": ""})), invalid, "tools[0].function.name"),
        (of(json!({"name": "a".repeat(65)})), invalid, "tools[0].function.name"),
        (of(json!({"name": "f", "parameters": []})), kind, "tools[0].function.parameters"),
        (of(json!({"name": "f", "parameters": {"type": "banana"}})), invalid, "tools[0].function.parameters.type"),
        (of(json!({"name": "f", "parameters": {"type": "string"}})), invalid, "tools[0].function.parameters.type"),
        (of(json!({"name": "f", "strict": "yes"})), kind, "tools[0].function.strict"),
        (of(json!({"name": "f", "description": 1})), kind, "tools[0].function.description"),
        (json!({"tools": [tool("f"), tool("f")]}), invalid, "tools[1].function.name"),
        (json!({"functions": [{"name": "f"}, {"name": "f"}]}), invalid, "functions[1].name"),
        (json!({"functions": [{"name": "f", "parameters": {"type": 1}}]}), kind, "functions[0].parameters.type"),
        (json!({"tools": [{"type": "custom", "custom": {"name": "f"}}]}), "unsupported_parameter", "tools[0].type"),
        (json!({"tool_choice": "required"}), invalid, "tool_choice"),
        (json!({"tools": [], "tool_choice": "required"}), invalid, "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), invalid, "tool_choice"),
        (chosen(json!("perhaps")), invalid, "tool_choice"),
        (chosen(json!(1)), kind, "tool_choice"),
        (chosen(json!({"type": "function", "function": {"name": "g"}})), invalid, "tool_choice"),
        (chosen(json!({"type": "function"})), missing, "tool_choice.function"),
        (chosen(json!({"type": "custom", "custom": {"name": "f"}})), "unsupported_parameter", "tool_choice.type"),
        (chosen(json!({"function": {"name": "f"}})), missing, "tool_choice.type"),
        (allowed(json!({"mode": "never", "tools": [tool("f")]})), invalid, "tool_choice.allowed_tools.mode"),
        (allowed(json!({"mode": "auto"})), missing, "tool_choice.allowed_tools.tools"),
        (allowed(json!({"mode": "auto", "tools": []})), invalid, "tool_choice.allowed_tools.tools"),
        (allowed(json!({"mode": "auto", "tools": [tool("g")]})), invalid, "tool_choice"),
        (
            allowed(json!({"mode": "auto", "tools": [{"type": "custom"}]})),
            "unsupported_parameter",
            "tool_choice.allowed_tools.tools[0].type",
        ),
        (json!({"functions": [{"name": "f"}], "function_call": {"name": "g"}}), invalid, "function_call"),
        (json!({"functions": [{"name": "f"}], "function_call": {}}), missing, "function_call.name"),
        (json!({"tools": [tool("f")], "parallel_tool_calls": 1}), kind, "parallel_tool_calls"),
    ] {
        let reply = Host::new(|_, _| panic!("nobody is asked")).post(CHAT, &chat(&extra)).await;
        assert_eq!(reply.error(), (400, code.to_owned(), param.to_owned()), "{extra}: {}", reply.body);
    }
    for parameters in [json!({}), json!({"type": null}), json!({"type": ["object", "null"]}), Value::Null] {
        let reply = Host::new(hello).post(CHAT, &chat(&of(json!({"name": "f", "parameters": parameters})))).await;
        assert_eq!(reply.status, 200, "{parameters}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_history_of_calls_has_arguments_of_text() {
    let call = |function: Value| json!({"type": "function", "function": function});
    let turns = json!([
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
            {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{\"a\": \"ü\"}"}},
            call(json!({"name": "g", "arguments": {"b": [1, 2]}})),
            call(json!({"name": "h"})),
            call(json!({"name": "i", "arguments": ""})),
        ]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "seven"}]},
        {"role": "assistant", "content": "", "function_call": {"name": "j", "arguments": {}}},
        {"role": "function", "name": "j", "content": "8"},
    ]);
    let host = Host::new(hello);
    let reply = host.post(CHAT, &chat(&json!({"messages": turns}))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let turns = host.tasks()[0]["input"]["messages"].clone();
    let made = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let calls = json!([
        made("c1", "f", "{\"a\": \"ü\"}"),
        made("call_1", "g", "{\"b\":[1,2]}"),
        made("call_2", "h", "{}"),
        made("call_3", "i", "{}"),
    ]);
    assert_eq!(turns[1], json!({"role": "assistant", "content": "", "tool_calls": calls}));
    assert_eq!(turns[2], json!({"role": "tool", "content": "7"}));
    assert_eq!(turns[3], json!({"role": "assistant", "content": "seven"}));
    assert_eq!(turns[4]["tool_calls"], json!([made("call_0", "j", "{}")]));
    assert_eq!(turns[5]["role"], "tool");
    let wrong = |calls: Value| json!({"messages": [{"role": "assistant", "content": "", "tool_calls": calls}]});
    for (extra, code, param) in [
        (wrong(json!([{"id": "x"}])), "missing_required_parameter", "messages[0].tool_calls[0].function"),
        (wrong(json!([call(json!({}))])), "missing_required_parameter", "messages[0].tool_calls[0].function.name"),
        (
            wrong(json!([call(json!({"name": "f", "arguments": [1]}))])),
            "invalid_type",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (wrong(json!([{"id": 1, "function": {"name": "f"}}])), "invalid_type", "messages[0].tool_calls[0].id"),
    ] {
        let reply = host.post(CHAT, &chat(&extra)).await;
        assert_eq!(reply.error(), (400, code.to_owned(), param.to_owned()), "{extra}: {}", reply.body);
    }
}

#[tokio::test]
async fn who_sent_functions_is_told_of_a_function_call() {
    let host = Host::featured(&["grammar"], much);
    let body = chat(&json!({"functions": [{"name": "f"}, {"name": "g"}], "function_call": {"name": "f"}}));
    let choice = host.post(CHAT, &body).await.json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "function_call");
    assert_eq!(choice["message"]["function_call"], json!({"name": "f", "arguments": "{\"x\":1}"}));
    assert!(choice["message"].get("tool_calls").is_none());
    let input = &host.tasks()[0]["input"];
    assert_eq!(input["tool_choice"], json!({"type": "named", "name": "f"}));
    assert_eq!(input["parallel_tool_calls"], false);
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = super::chat::events(&host.post(CHAT, &streamed).await.body);
    let calls: Vec<_> = events
        .iter()
        .map(|event| &event["choices"][0]["delta"]["function_call"])
        .filter(|call| !call.is_null())
        .collect();
    assert_eq!(
        calls,
        [&json!({"name": "f", "arguments": ""}), &json!({"arguments": "{\"x\":"}), &json!({"arguments": "1}"})]
    );
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "function_call");
    assert!(!events.iter().any(|event| event["choices"][0]["delta"].get("tool_calls").is_some()));
    // Who sent tools is told of calls of tools, whatever has them called.
    let body = chat(&json!({"tools": [tool("f")], "function_call": {"name": "f"}}));
    assert_eq!(host.post(CHAT, &body).await.json()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn choices_of_other_apis_reach_the_plugin() {
    let message = json!([{"role": "user", "content": "x"}]);
    let function = |name: &str| json!({"type": "function", "name": name, "parameters": {}});
    let responses =
        |choice: Value| json!({"input": "x", "tools": [function("f"), function("g")], "tool_choice": choice});
    let messages = |choice: Value| json!({"messages": message, "max_tokens": 9, "tools": [{"name": "f", "input_schema": {}}, {"name": "g"}], "tool_choice": choice});
    let (required, named) = (json!({"type": "required"}), json!({"type": "named", "name": "g"}));
    let (all, none): (&[&str], &[&str]) = (&["f", "g"], &[]);
    for (path, body, kept, wanted) in [
        ("/v1/responses", responses(json!("required")), all, required.clone()),
        ("/v1/responses", responses(json!("none")), none, Value::Null),
        ("/v1/responses", responses(json!({"type": "function", "name": "g"})), all, named.clone()),
        (
            "/v1/responses",
            responses(
                json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}),
            ),
            &["f"],
            required.clone(),
        ),
        ("/v1/messages", messages(json!({"type": "any"})), all, required),
        ("/v1/messages", messages(json!({"type": "auto"})), all, Value::Null),
        ("/v1/messages", messages(json!({"type": "none"})), none, Value::Null),
        ("/v1/messages", messages(json!({"type": "tool", "name": "g"})), all, named),
    ] {
        let host = Host::featured(&["grammar"], hello);
        let mut body = body;
        body["model"] = "a".into();
        let reply = host.post(path, &body).await;
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.body);
        let input = &host.tasks()[0]["input"];
        assert_eq!(
            (names(input).as_slice(), &input["tool_choice"]),
            (&kept.iter().map(ToString::to_string).collect::<Vec<_>>()[..], &wanted),
            "{body}"
        );
    }
    let once = |path: &'static str, body: Value| async move {
        let host = Host::featured(&["grammar"], hello);
        let mut body = body;
        body["model"] = "a".into();
        assert_eq!(host.post(path, &body).await.status, 200);
        host.tasks()[0]["input"]["parallel_tool_calls"].clone()
    };
    let mut body = responses(json!("auto"));
    body["parallel_tool_calls"] = false.into();
    assert_eq!(once("/v1/responses", body).await, false);
    assert_eq!(once("/v1/messages", messages(json!({"type": "auto", "disable_parallel_tool_use": true}))).await, false);
    for (path, body, field) in [
        ("/v1/responses", responses(json!({"type": "function", "name": "h"})), "tool_choice"),
        ("/v1/responses", json!({"input": "x", "tools": [function("f"), function("f")]}), "tools[1].name"),
        ("/v1/responses", json!({"input": "x", "tools": [function("a b")]}), "tools[0].name"),
        ("/v1/messages", messages(json!({"type": "tool", "name": "h"})), "tool_choice"),
        (
            "/v1/messages",
            json!({"messages": message, "max_tokens": 9, "tools": [{"name": "f", "input_schema": {"type": "banana"}}]}),
            "tools[0].input_schema.type",
        ),
        ("/api/chat", json!({"messages": message, "tools": [tool("a b")]}), "tools[0].function.name"),
    ] {
        let mut body = body;
        body["model"] = "a".into();
        let reply = Host::featured(&["grammar"], hello).post(path, &body).await;
        assert_eq!(reply.status, 400, "{path} {body}");
        assert!(reply.body.contains(&format!("`{field}`")), "{field}: {}", reply.body);
    }
    // Anthropic's names may be longer than OpenAI's.
    let long = json!({"model": "a", "messages": message, "max_tokens": 9, "tools": [{"name": "f".repeat(128)}]});
    assert_eq!(Host::new(hello).post("/v1/messages", &long).await.status, 200);
}
