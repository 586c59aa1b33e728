//! Ollama's routes: what becomes of its requests, lines of a stream, and what is said of models.

use super::*;

fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.header("content-type"), "application/x-ndjson", "{}", reply.body);
    reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_chat_streams_unless_it_is_told_not_to() {
    let host = Host::new(much);
    let mut asked = json!({"model": "a:latest", "messages": [{"role": "user", "content": "hi"}]});
    let lines = lines(&host.post("/api/chat", &asked).await);
    let messages: Vec<_> = lines.iter().map(|line| &line["message"]).collect();
    let calls =
        json!([{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g", "arguments": {}}}]);
    assert_eq!(messages[0], &json!({"role": "assistant", "content": "", "thinking": "hm"}));
    assert_eq!(messages[1]["content"], "Hel");
    assert_eq!(messages[3]["tool_calls"], calls);
    let last = lines.last().unwrap();
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(3), &json!(2)));
    assert!(lines[..lines.len() - 1].iter().all(|line| line["done"] == false && line["model"] == "a:latest"));
    asked["stream"] = false.into();
    let whole = host.post("/api/chat", &asked).await.json();
    assert_eq!(
        whole["message"],
        json!({"role": "assistant", "content": "Hello", "thinking": "hm", "tool_calls": calls})
    );
    for key in ["created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] {
        assert!(!whole[key].is_null(), "{key}");
    }
}

#[tokio::test]
async fn options_images_and_tools_become_those_of_a_chat() {
    let host = Host::new(hello);
    let asked = json!({
        "model": "a", "stream": false, "think": false,
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g"}}]},
            {"role": "tool", "tool_name": "g", "content": "8"},
            {"role": "tool", "content": "7"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "options": {"temperature": 0.5, "num_predict": 7, "num_ctx": 4096, "seed": 3, "stop": ["x"]},
    });
    let reply = host.post("/api/chat", &asked).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let task = &host.tasks()[0];
    assert_eq!((&task["max_tokens"], &task["sampling"]["seed"], &task["stop"]), (&json!(7), &json!(3), &json!(["x"])));
    let turns = &task["input"]["messages"];
    assert_eq!(turns[1]["tool_calls"][0]["function"], json!({"name": "f", "arguments": "{\"x\":1}"}));
    assert_eq!((&turns[2]["tool_call_id"], &turns[3]["tool_call_id"]), (&json!("call_1"), &json!("call_0")));
    assert_eq!(task["input"]["tools"][0]["function"]["name"], "f");
    let image = json!({"model": "a", "messages": [{"role": "user", "content": "?", "images": ["iVBORw0="]}]});
    let reply = host.post("/api/chat", &image).await;
    assert_eq!(reply.status, 400);
    assert!(reply.json()["error"].as_str().unwrap().contains("messages[0].content[1]"), "{}", reply.body);
}

#[tokio::test]
async fn a_prompt_is_a_turn_of_a_user_or_what_it_says_it_is() {
    let host = Host::new(hello);
    let ask = |extra: Value| {
        let mut body = json!({"model": "a", "prompt": "hi", "stream": false});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for extra in [json!({"system": "be kind"}), json!({"raw": true, "system": "unread"}), json!({"suffix": "!"})] {
        let reply = host.post("/api/generate", &ask(extra)).await;
        assert_eq!(reply.json()["response"], "Hello", "{}", reply.body);
    }
    let tasks = host.tasks();
    assert_eq!(tasks[0]["input"]["messages"][0], json!({"role": "system", "content": "be kind"}));
    assert_eq!(tasks[1]["input"], json!({"type": "prompt", "text": "hi"}));
    assert_eq!(tasks[2]["input"], json!({"type": "fill_in", "prefix": "hi", "suffix": "!"}));
    for (extra, words) in [
        (json!({"context": [1]}), "`context`"),
        (json!({"template": "x"}), "`template`"),
        (json!({"format": "xml"}), "`format`"),
        (json!({"options": {"temperature": 9}}), "`options`"),
        (json!({"model": "nobody"}), "nobody"),
    ] {
        let reply = host.post("/api/generate", &ask(extra)).await;
        assert!(reply.status.is_client_error());
        let error = reply.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(words), "{}", reply.body);
    }
}

#[tokio::test]
async fn a_request_without_anything_to_answer_loads_or_unloads() {
    let host = Host::new(|_, _| panic!("nothing is to be answered"));
    for (path, extra, reason) in [
        ("/api/generate", json!({}), "load"),
        ("/api/chat", json!({"messages": []}), "load"),
        ("/api/generate", json!({"keep_alive": 0}), "unload"),
    ] {
        let mut body = json!({"model": "a"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = host.post(path, &body).await;
        assert_eq!(
            (&reply.json()["done"], &reply.json()["done_reason"]),
            (&json!(true), &json!(reason)),
            "{}",
            reply.body
        );
    }
    let reply = host.post("/api/generate", &json!({"model": "nobody"})).await;
    assert_eq!((reply.status.as_u16(), reply.json()["error"].is_string()), (404, true));
}

#[tokio::test]
async fn models_are_told_without_loading_any() {
    let host = Host::new(|_, _| panic!("nothing is to be answered"));
    let tags = host.get("/api/tags").await.json();
    let names: Vec<_> =
        tags["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "flux", "music", "org/b"]);
    assert_eq!(tags["models"][0]["digest"].as_str().unwrap().len(), 64);
    let show = host.post("/api/show", &json!({"model": "gpt-4o-mini"})).await.json();
    assert!(show["capabilities"].as_array().unwrap().contains(&json!("completion")), "{show}");
    assert_eq!(host.post("/api/show", &json!({"name": "a:latest"})).await.status, 200);
    assert_eq!(host.post("/api/show", &json!({"name": "nobody"})).await.status, 404);
    let ps = host.get("/api/ps").await.json();
    assert_eq!(ps["models"].as_array().unwrap().len(), 1, "{ps}");
    assert!(ps["models"][0]["expires_at"].is_string());
    let running = host.get("/running").await.json();
    assert_eq!(running["running"], json!([{"model": "a", "state": "ready"}, {"model": "b", "state": "starting"}]));
    assert!(host.get("/api/version").await.json()["version"].is_string());
    for method in ["GET", "HEAD"] {
        let root = host.send(Request::builder().method(method).uri("/").body(Body::empty()).unwrap()).await;
        assert_eq!(
            (root.status.as_u16(), root.body.as_str()),
            (200, if method == "GET" { "Ollama is running" } else { "" })
        );
    }
}

#[tokio::test]
async fn what_breaks_off_is_the_last_line() {
    let body = broken_off("/api/chat", &json!({"model": "a", "messages": [{"role": "user", "content": "hi"}]})).await;
    assert_eq!(body.lines().last(), Some("{\"error\":\"it broke\"}"));
}
