//! What form an answer is to have: in which words it is asked for, what reaches the plugin, and what is refused.

use super::*;

const CHAT: &str = "/v1/chat/completions";

fn of_type(kind: &str, extra: &Value) -> Value {
    let mut format = json!({"type": kind});
    format.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!({ "response_format": format })
}

#[tokio::test]
async fn a_form_reaches_the_plugin_whichever_words_ask_for_it() {
    let schema = json!({"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}, "required": ["b"]});
    let of_schema = json!({"type": "json_schema", "schema": schema});
    let object = json!({"type": "json_object"});
    let regex = |pattern: &str| json!({"type": "regex", "pattern": pattern});
    let lark = json!({"type": "lark", "grammar": "start: \"x\""});
    for (extra, wanted) in [
        (of_type("text", &json!({})), Value::Null),
        (json!({"response_format": null, "guided_json": null, "structured_outputs": {}, "grammar": ""}), Value::Null),
        (of_type("json_object", &json!({})), object.clone()),
        (of_type("json_object", &json!({"schema": schema})), of_schema.clone()),
        (
            of_type(
                "json_schema",
                &json!({"json_schema": {"name": "a-1_B", "schema": schema, "strict": false, "description": "d"}}),
            ),
            of_schema.clone(),
        ),
        (of_type("json_schema", &json!({"json_schema": {"schema": schema}})), of_schema.clone()),
        (of_type("json_schema", &json!({"schema": schema})), of_schema.clone()),
        (
            of_type("json_schema", &json!({"json_schema": {"schema": true}})),
            json!({"type": "json_schema", "schema": true}),
        ),
        (of_type("regex", &json!({"pattern": "a+\n"})), regex("a+\n")),
        (of_type("regex", &json!({"value": "a+"})), regex("a+")),
        (of_type("grammar", &json!({"grammar": "start: \"x\""})), lark.clone()),
        (json!({"guided_json": schema}), of_schema.clone()),
        (json!({"guided_json": schema.to_string()}), of_schema.clone()),
        (json!({"guided_regex": "a+"}), regex("a+")),
        (json!({"guided_choice": ["yes", "no (really)", "a|b\n"]}), regex("(?:yes|no \\(really\\)|a\\|b\n)")),
        (json!({"guided_grammar": "start: \"x\""}), lark.clone()),
        (json!({"structured_outputs": {"json": schema}}), of_schema.clone()),
        (json!({"structured_outputs": {"regex": "a+"}}), regex("a+")),
        (json!({"structured_outputs": {"choice": ["a"]}}), regex("(?:a)")),
        (json!({"structured_outputs": {"grammar": "start: \"x\""}}), lark),
        (json!({"structured_outputs": {"json_object": true}}), object),
        (json!({"structured_outputs": {"json_object": false}}), Value::Null),
        (json!({"json_schema": schema}), of_schema),
    ] {
        for (path, prompt) in [(CHAT, "messages"), ("/v1/completions", "prompt")] {
            let host = Host::featured(&["grammar"], hello);
            let mut body = chat(&extra);
            body["prompt"] = "x".into();
            body.as_object_mut().unwrap().retain(|key, _| key == prompt || !matches!(&**key, "messages" | "prompt"));
            let reply = host.post(path, &body).await;
            assert_eq!(reply.status, 200, "{extra}: {}", reply.body);
            assert_eq!(host.tasks()[0]["format"], wanted, "{path} {extra}");
        }
    }
}

#[tokio::test]
async fn members_of_a_schema_stay_in_their_order() {
    let host = Host::featured(&["grammar"], hello);
    let body = r#"{"model":"a","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"properties":{"z":{},"a":{}, "m":{"const":1.0}}}}}}"#;
    assert_eq!(host.send(post(CHAT, body)).await.status, 200);
    let task = host.submitted.lock().unwrap()[0].ask.as_task().unwrap().header.clone();
    let task = String::from_utf8(task.to_vec()).unwrap();
    assert!(
        task.contains(r#""format":{"type":"json_schema","schema":{"properties":{"z":{},"a":{}, "m":{"const":1.0}}}}"#),
        "{task}"
    );
}

#[tokio::test]
async fn what_is_no_form_is_refused_by_its_field() {
    let schema = |schema: Value| of_type("json_schema", &json!({"json_schema": {"schema": schema}}));
    let named = |name: &str| of_type("json_schema", &json!({"json_schema": {"name": name, "schema": {}}}));
    let at_schema = "response_format.json_schema.schema";
    let long = "x".repeat((64 << 10) + 1);
    let (missing, invalid, kind) = ("missing_required_parameter", "invalid_value", "invalid_type");
    for (extra, code, param) in [
        (of_type("sound", &json!({})), invalid, "response_format.type"),
        (json!({"response_format": {"type": 123}}), kind, "response_format.type"),
        (json!({"response_format": {}}), missing, "response_format.type"),
        (json!({"response_format": "json"}), kind, "response_format"),
        (of_type("json_object", &json!({"schema": 123})), kind, "response_format.schema"),
        (of_type("json_object", &json!({"schema": {"type": 123}})), kind, "response_format.schema.type"),
        (of_type("json_object", &json!({"schema": {"type": "hiccup"}})), invalid, "response_format.schema.type"),
        (schema(json!({"type": ["string", "hiccup"]})), invalid, "response_format.json_schema.schema.type[1]"),
        (schema(json!([])), kind, at_schema),
        (schema(json!(vec![0; 1 << 16])), kind, at_schema),
        (schema(json!({"enum": vec![0; 1 << 16]})), invalid, at_schema),
        (schema(Value::Null), missing, at_schema),
        (of_type("json_schema", &json!({})), missing, "response_format.json_schema"),
        (named(""), invalid, "response_format.json_schema.name"),
        (named("a b"), invalid, "response_format.json_schema.name"),
        (named(&"a".repeat(65)), invalid, "response_format.json_schema.name"),
        (
            of_type("json_schema", &json!({"json_schema": {"schema": {}, "strict": 1}})),
            kind,
            "response_format.json_schema.strict",
        ),
        (of_type("regex", &json!({})), missing, "response_format.pattern"),
        (of_type("regex", &json!({"pattern": ""})), invalid, "response_format.pattern"),
        (of_type("regex", &json!({"pattern": long})), invalid, "response_format.pattern"),
        (of_type("grammar", &json!({})), missing, "response_format.grammar"),
        (of_type("grammar", &json!({"grammar": "root ::= \"x\""})), "unsupported_parameter", "response_format.grammar"),
        (json!({"grammar": "root ::= \"x\""}), "unsupported_parameter", "grammar"),
        (json!({"guided_json": "{"}), invalid, "guided_json"),
        (json!({"guided_json": 1}), kind, "guided_json"),
        (json!({"guided_regex": 1}), kind, "guided_regex"),
        (json!({"guided_choice": []}), invalid, "guided_choice"),
        (json!({"guided_choice": ["a", 1]}), kind, "guided_choice[1]"),
        (json!({"guided_choice": [long]}), invalid, "guided_choice"),
        (
            json!({"structured_outputs": {"structural_tag": "x"}}),
            "unsupported_parameter",
            "structured_outputs.structural_tag",
        ),
        (json!({"structured_outputs": {"json": {}, "regex": "x"}}), invalid, "structured_outputs.regex"),
        (json!({"guided_regex": "a", "guided_json": {}}), invalid, "guided_regex"),
        (json!({"json_schema": {}, "response_format": {"type": "json_object"}}), invalid, "json_schema"),
    ] {
        let mut config = config();
        config.limits.body_limit = Some(ByteSize(1 << 20));
        for path in [CHAT, "/v1/completions"] {
            let mut body = chat(&extra);
            body["prompt"] = "x".into();
            let host = Host::with(config.clone(), |_, _| panic!("nobody is asked"));
            let reply = host.post(path, &body).await;
            assert_eq!(reply.error(), (400, code.to_owned(), param.to_owned()), "{}", reply.body);
        }
    }
}

#[tokio::test]
async fn a_plugin_that_keeps_no_form_is_not_asked_for_one() {
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let message = json!([{"role": "user", "content": "x"}]);
    let function = json!({"type": "function", "name": "f"});
    let cases = [
        (CHAT, json!({"messages": message, "response_format": {"type": "json_object"}}), "response_format"),
        (CHAT, json!({"messages": message, "tools": [tool], "tool_choice": "required"}), "tool_choice"),
        (
            CHAT,
            json!({"messages": message, "functions": [{"name": "f"}], "function_call": {"name": "f"}}),
            "function_call",
        ),
        ("/v1/completions", json!({"prompt": "x", "guided_regex": "a"}), "guided_regex"),
        ("/v1/responses", json!({"input": "x", "text": {"format": {"type": "json_object"}}}), "text.format"),
        ("/v1/responses", json!({"input": "x", "tools": [function], "tool_choice": function}), "tool_choice"),
        (
            "/v1/messages",
            json!({"messages": message, "max_tokens": 9, "output_config": {"format": {"type": "json_schema", "schema": {}}}}),
            "output_config.format",
        ),
        (
            "/v1/messages",
            json!({"messages": message, "max_tokens": 9, "output_format": {"type": "json_schema", "schema": {}}}),
            "output_format",
        ),
        (
            "/v1/messages",
            json!({"messages": message, "max_tokens": 9, "tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "any"}}),
            "tool_choice",
        ),
        ("/api/chat", json!({"messages": message, "format": "json"}), "format"),
        ("/api/generate", json!({"prompt": "x", "format": {"type": "object"}}), "format"),
    ];
    for (path, body, field) in cases {
        let mut body = body;
        body["model"] = "a".into();
        let host = Host::featured(&["tokens"], |_, _| panic!("nobody is asked"));
        let reply = host.post(path, &body).await;
        assert_eq!(reply.status, 400, "{path}: {}", reply.body);
        assert!(reply.body.contains(&format!("`{field}`: the plugin of the model `a`")), "{path}: {}", reply.body);
        if path.starts_with("/v1/") && path != "/v1/messages" {
            assert_eq!(reply.error(), (400, "unsupported_parameter".into(), field.into()));
        }
        assert_eq!(Host::featured(&["grammar"], hello).post(path, &body).await.status, 200, "{path} {field}");
    }
    // Calls that the model may make take none, and neither do tokens that are counted.
    for extra in
        [json!({"tools": [tool]}), json!({"response_format": {"type": "text"}}), json!({"reasoning_effort": "low"})]
    {
        assert_eq!(Host::featured(&[], hello).post(CHAT, &chat(&extra)).await.status, 200, "{extra}");
    }
    let host = Host::featured(&["tokens"], hello);
    let reply = host.post("/v1/chat/completions/input_tokens", &chat(&json!({"guided_regex": "a"}))).await;
    assert_eq!((reply.status.as_u16(), host.tasks()[0].get("format")), (200, None), "{}", reply.body);
}

#[tokio::test]
async fn what_a_plugin_blames_has_the_clients_own_name() {
    let message = json!([{"role": "user", "content": "x"}]);
    let format: Script = |_, _| blamed("format");
    let deep: Script = |_, _| blamed("format.schema.properties.a");
    let tool: Script = |_, _| blamed("tools[1].function.parameters.x");
    let choice: Script = |_, _| blamed("input.tool_choice");
    let turn: Script = |_, _| blamed("messages[0].content");
    let schema = json!({"type": "json_schema", "name": "n", "schema": {}});
    let function = |name: &str| json!({"type": "function", "name": name, "parameters": {}});
    let (of_chat, of_responses, of_messages) = (
        json!({"messages": message, "response_format": {"type": "json_schema", "json_schema": schema}}),
        json!({"input": "x", "text": {"format": schema}}),
        json!({"messages": message, "max_tokens": 9, "output_config": {"format": schema}}),
    );
    let tools = |names: [&str; 3]| names.map(|name| json!({"type": "function", "function": {"name": name}}));
    let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": [function("f"), function("h")]});
    for (path, body, script, field) in [
        (CHAT, of_chat.clone(), format, "response_format"),
        (CHAT, of_chat, deep, "response_format.json_schema.schema.properties.a"),
        (CHAT, json!({"messages": message, "structured_outputs": {"regex": "a"}}), format, "structured_outputs"),
        (
            CHAT,
            json!({"messages": message, "tools": tools(["f", "g", "h"]), "tool_choice": allowed}),
            tool,
            "tools[2].function.parameters.x",
        ),
        (
            CHAT,
            json!({"messages": message, "functions": [{"name": "f"}, {"name": "g"}], "function_call": {"name": "f"}}),
            tool,
            "functions[1].parameters.x",
        ),
        (
            CHAT,
            json!({"messages": message, "functions": [{"name": "f"}], "function_call": {"name": "f"}}),
            choice,
            "function_call",
        ),
        (CHAT, json!({"messages": message}), |_, _| blamed("sampling.top_k"), "top_k"),
        ("/v1/responses", of_responses.clone(), format, "text.format"),
        ("/v1/responses", of_responses, deep, "text.format.schema.properties.a"),
        (
            "/v1/responses",
            json!({"input": [{"role": "user", "content": "x"}], "tools": [{"type": "web_search", "external_web_access": false}, function("f"), function("g")]}),
            tool,
            "tools[2].parameters.x",
        ),
        ("/v1/responses", json!({"input": [{"role": "user", "content": "x"}]}), turn, "input[0].content"),
        ("/v1/responses", json!({"input": "x"}), |_, _| blamed("messages"), "input"),
        ("/api/generate", json!({"prompt": "x"}), |_, _| blamed("messages"), "prompt"),
        ("/v1/messages", of_messages.clone(), format, "output_config.format"),
        ("/v1/messages", of_messages, deep, "output_config.format.schema.properties.a"),
        (
            "/v1/messages",
            json!({"messages": message, "max_tokens": 9, "tools": [{"name": "f"}, {"name": "g"}]}),
            tool,
            "tools[1].input_schema.x",
        ),
        ("/api/chat", json!({"messages": message, "format": {}, "stream": false}), deep, "format.properties.a"),
        ("/api/chat", json!({"messages": message, "format": {}, "stream": true}), format, "format"),
        ("/api/chat", json!({"messages": message, "format": "json"}), format, "format"),
    ] {
        let mut body = body;
        body["model"] = "a".into();
        let reply = Host::featured(&["grammar"], script).post(path, &body).await;
        assert_eq!(reply.status, 400, "{path}: {}", reply.body);
        assert!(reply.body.contains(&format!("`{field}` is not kept")), "{path} {field}: {}", reply.body);
        if path.starts_with("/v1/") && path != "/v1/messages" {
            assert_eq!(reply.error().2, field, "{path}");
        }
    }
}

#[tokio::test]
async fn forms_of_other_apis_reach_the_plugin() {
    let message = json!([{"role": "user", "content": "x"}]);
    let schema = json!({"type": "object"});
    let wanted = json!({"type": "json_schema", "schema": schema});
    for (path, body, wanted) in [
        (
            "/v1/responses",
            json!({"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": true}}}),
            wanted.clone(),
        ),
        ("/v1/responses", json!({"input": "x", "text": {"format": {"type": "text"}}}), Value::Null),
        (
            "/v1/responses",
            json!({"input": "x", "text": {"format": {"type": "regex", "pattern": "a"}}}),
            json!({"type": "regex", "pattern": "a"}),
        ),
        (
            "/v1/messages",
            json!({"messages": message, "max_tokens": 9, "output_config": {"format": {"type": "json_schema", "schema": schema}}}),
            wanted.clone(),
        ),
        ("/api/chat", json!({"messages": message, "format": schema, "stream": false}), wanted.clone()),
        ("/api/generate", json!({"prompt": "x", "format": "json", "stream": false}), json!({"type": "json_object"})),
        ("/api/generate", json!({"prompt": "x", "raw": true, "format": schema, "stream": false}), wanted),
        ("/api/generate", json!({"prompt": "x", "format": "", "stream": false}), Value::Null),
    ] {
        let host = Host::featured(&["grammar"], hello);
        let mut body = body;
        body["model"] = "a".into();
        let reply = host.post(path, &body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        assert_eq!(host.tasks()[0]["format"], wanted, "{path} {body}");
    }
}

#[tokio::test]
async fn a_listing_says_which_models_keep_a_form() {
    for (features, keeps) in [(&["grammar"][..], true), (&["tokens"], false)] {
        let model = Host::featured(features, hello).get("/v1/models/a").await.json();
        let parameters = model["supported_parameters"].as_array().unwrap().clone();
        for name in ["response_format", "structured_outputs"] {
            assert_eq!(parameters.contains(&json!(name)), keeps, "{name}: {model}");
        }
    }
}
