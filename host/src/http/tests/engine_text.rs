//! Text of engines that speak HTTP, by an API that they do not have.

use axum::http::HeaderMap;

use super::*;
use crate::config::RemoteConfig;
use crate::worker::{Ask, AskBody, HttpHead, HttpOutput};

/// A text model that others run.
fn remote() -> Config {
    let mut model = model("far", Kind::Text);
    let urls = vec!["http://127.0.0.1:1".to_owned()];
    model.http.remote = Some(RemoteConfig { urls, api_key: None, concurrency: 4, retries: 0 });
    model.http.engine_model = Some("their/name".to_owned());
    configured([model])
}

fn answered(status: u16, kind: &'static str, body: &str) -> Vec<Output> {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", kind.parse().unwrap());
    let head = HttpHead { status: StatusCode::from_u16(status).unwrap(), headers: Box::new(headers) };
    let mut outputs = vec![Output::Http(HttpOutput::Head(head))];
    outputs.extend(body.as_bytes().chunks(7).map(|piece| Output::Bytes(Bytes::copy_from_slice(piece))));
    outputs.push(Output::Done(Ok(Bytes::new())));
    outputs
}

fn sent(submission: &Submission) -> (String, Value) {
    let Ask::Http(ask) = &submission.ask else { panic!("no request of HTTP") };
    let AskBody::Whole(body) = &ask.body else { panic!("a streamed body") };
    (ask.target.clone(), serde_json::from_slice(body).unwrap_or_default())
}

/// An engine that has nothing but its chat route.
fn chat_alone(_: usize, submission: &Submission) -> Result<Vec<Output>, Failure> {
    let (target, body) = sent(submission);
    if target != "/v1/chat/completions" {
        return Ok(answered(404, "text/plain", "404 page not found"));
    }
    if body["messages"][0]["content"] == "refuse" {
        let refusal = r#"{"error":{"message":"no such adapter","type":"BadRequestError","param":"lora","code":"bad"}}"#;
        return Ok(answered(400, "application/json", refusal));
    }
    if body["stream"] == true {
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
        let chunk = |delta: Value, finish: Value| {
            format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
        };
        let body = [
            chunk(json!({"role": "assistant", "content": ""}), Value::Null),
            chunk(json!({"content": "Hel"}), Value::Null),
            chunk(json!({"content": "lo"}), Value::Null),
            chunk(json!({}), "stop".into()),
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n"
                .to_owned(),
        ];
        return Ok(answered(200, "text/event-stream", &body.concat()));
    }
    let n = body["n"].as_u64().unwrap_or(1);
    let choice = |index| json!({"index": index, "message": {"role": "assistant", "content": body["messages"][0]["content"]}, "finish_reason": "stop"});
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2});
    let answer = json!({"choices": (0..n).map(choice).collect::<Vec<_>>(), "usage": usage});
    Ok(answered(200, "application/json", &answer.to_string()))
}

#[tokio::test]
async fn every_api_is_answered_by_an_engine_that_has_the_chat_route_alone() {
    let host = Host::with(remote(), chat_alone);
    let message = json!([{"role": "user", "content": "hi"}]);
    for (path, body, at) in [
        ("/v1/responses", json!({"model": "far", "input": "hi", "guided_regex": "x+"}), "/output/0/content/0/text"),
        (
            "/v1/messages",
            json!({"model": "far", "max_tokens": 5, "messages": message, "guided_regex": "x+"}),
            "/content/0/text",
        ),
        ("/v1/completions", json!({"model": "far", "prompt": "hi", "guided_regex": "x+"}), "/choices/0/text"),
    ] {
        let reply = host.post(path, &body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        assert_eq!(reply.json().pointer(at), Some(&json!("hi")), "{path}: {}", reply.body);
        let (target, asked) = sent(host.submitted.lock().unwrap().last().unwrap());
        assert_eq!((target.as_str(), &asked["model"]), ("/v1/chat/completions", &json!("their/name")));
        assert_eq!(asked["guided_regex"], "x+", "what is not known here goes on: {asked}");
        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        let reply = host.post(path, &streamed).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        assert!(reply.body.contains("Hel") && reply.body.contains("lo"), "{path}: {}", reply.body);
    }
    let targets: Vec<_> = host.submitted.lock().unwrap().iter().map(|submission| sent(submission).0).collect();
    let tries = targets.iter().filter(|target| *target != "/v1/chat/completions").count();
    assert_eq!((targets.len(), tries), (9, 3), "each route is tried once: {targets:?}");
}

#[tokio::test]
async fn as_many_unknown_fields_go_on_as_any_api_has_and_no_more() {
    let host = Host::with(remote(), chat_alone);
    for (path, body) in [
        ("/v1/responses", json!({"model": "far", "input": "hi"})),
        ("/v1/messages", json!({"model": "far", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]})),
        ("/v1/completions", json!({"model": "far", "prompt": "hi"})),
        ("/api/chat", json!({"model": "far", "messages": [{"role": "user", "content": "hi"}], "stream": false})),
    ] {
        for (fields, status) in [(1000, 200), (1100, 400)] {
            let mut body = body.clone();
            body.as_object_mut().unwrap().extend((0..fields).map(|i| (format!("x{i}"), json!(i))));
            let reply = host.post(path, &body).await;
            assert_eq!(reply.status, status, "{path} with {fields}: {}", reply.body);
            assert!(status == 200 || reply.body.contains("at most 1024 fields"), "{path}: {}", reply.body);
        }
    }
}

#[tokio::test]
async fn each_prompt_of_a_completion_is_a_chat_of_its_own() {
    let host = Host::with(remote(), chat_alone);
    let reply = host.post("/v1/completions", &json!({"model": "far", "prompt": ["a", "b"], "n": 2})).await;
    let json = reply.json();
    let texts: Vec<_> = json["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (choice["index"].as_u64().unwrap(), choice["text"].as_str().unwrap()))
        .collect();
    assert_eq!(texts, [(0, "a"), (1, "a"), (2, "b"), (3, "b")]);
    assert_eq!(json["usage"]["total_tokens"], 10);
    for (extra, param) in
        [(json!({"suffix": "x"}), "suffix"), (json!({"echo": true}), "echo"), (json!({"prompt": [1, 2]}), "prompt")]
    {
        let mut body = json!({"model": "far", "prompt": "a"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        assert_eq!(host.post("/v1/completions", &body).await.error().2, param);
    }
}

#[tokio::test]
async fn what_an_engine_refuses_is_refused_in_its_words_and_in_the_form_of_the_api() {
    let host = Host::with(remote(), chat_alone);
    let reply = host.post("/v1/responses", &json!({"model": "far", "input": "refuse"})).await;
    assert_eq!(reply.error(), (400, "bad".into(), "lora".into()));
    let body = json!({"model": "far", "max_tokens": 5, "messages": [{"role": "user", "content": "refuse"}]});
    let reply = host.post("/v1/messages", &body).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["message"]), (400, &json!("no such adapter")));
}

#[tokio::test]
async fn parts_that_no_plugin_reads_go_on_to_an_engine() {
    let host = Host::with(remote(), chat_alone);
    let image = json!([{"role": "user", "content": [
        {"type": "text", "text": "what is it?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    ]}]);
    let tools = json!([{"name": "f", "input_schema": {"type": "object"}}]);
    let body =
        json!({"model": "far", "max_tokens": 5, "messages": image, "tools": tools, "tool_choice": {"type": "any"}});
    let reply = host.post("/v1/messages", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let (_, asked) = sent(host.submitted.lock().unwrap().last().unwrap());
    assert_eq!(asked["messages"][0]["content"][1]["image_url"]["url"], "data:image/png;base64,AAAA");
    assert_eq!((&asked["tool_choice"], &asked["tools"][0]["function"]["name"]), (&json!("required"), &json!("f")));
}

#[tokio::test]
async fn what_an_engine_says_of_itself_is_told_if_it_is_up_and_has_the_route() {
    let named = |name: &str| {
        let mut model = remote().models.into_values().next().unwrap();
        model.id = name.into();
        configured([model])
    };
    let told = |_: usize, _: &Submission| Ok(answered(200, "application/json", "{\"total_slots\":7}"));
    // As the runtime of these tests has it, `a` is up and `b` is loading.
    for (name, script, slots, asked) in
        [("a", told as Script, 7, 2), ("a", chat_alone, 1, 1), ("b", |_, _| panic!("it was asked"), 1, 0)]
    {
        let host = Host::with(named(name), script);
        for _ in 0..2 {
            let reply = host.get(&format!("/props?model={name}")).await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            assert_eq!(reply.json()["total_slots"], slots, "{}", reply.body);
        }
        assert_eq!(host.submitted.lock().unwrap().len(), asked, "an engine that lacks it is asked once");
    }
    let host = Host::with(named("a"), chat_alone);
    assert_eq!(host.get("/running?model=a").await.json()["running"][0], json!({"model": "a", "state": "ready"}));
}

#[tokio::test]
async fn a_route_that_an_engine_has_is_its_own_affair() {
    let has_all = |_: usize, _: &Submission| Ok(answered(200, "text/plain", "{\"mine\":1}"));
    let host = Host::with(remote(), has_all);
    for path in ["/v1/responses", "/v1/messages", "/v1/completions", "/tokenize", "/v1/messages/count_tokens"] {
        let reply = host.post(path, &json!({"model": "far", "anything": true})).await;
        assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, "{\"mine\":1}"), "{path}");
        let (target, asked) = sent(host.submitted.lock().unwrap().last().unwrap());
        assert_eq!((target.as_str(), &asked["anything"]), (path, &json!(true)));
    }
    for short in ["/chat/completions", "/completions", "/responses", "/responses/input_tokens"] {
        host.post(short, &json!({"model": "far"})).await;
        assert_eq!(sent(host.submitted.lock().unwrap().last().unwrap()).0, format!("/v1{short}"));
    }
}
