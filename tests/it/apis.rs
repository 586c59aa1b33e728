//! Every API for every text model, through a whole host: answered by a plugin, and by an engine that has OpenAI's chat route and
//! nothing else; and a client that leaves is one that nobody works for any more.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aihost_tests::eventually;
use aihost_tests::server::{Server, Setup, client};
use axum::Router;
use axum::body::Body;
use axum::extract::{Json, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// An engine with a chat route: it says what the user said last, or goes on saying something.
async fn engine() -> (u16, Arc<AtomicUsize>) {
    let open = Arc::new(AtomicUsize::new(0));
    let router = Router::new().route("/v1/chat/completions", post(chat)).with_state(Arc::clone(&open));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (port, open)
}

/// Counts an answer for as long as somebody takes it.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn chat(State(open): State<Arc<AtomicUsize>>, Json(body): Json<Value>) -> Response {
    open.fetch_add(1, Ordering::SeqCst);
    let open = Open(open);
    let said = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
    let chunk = |delta: Value, finish: Value| {
        format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
    };
    if said == "go on" {
        let pieces = futures_util::stream::unfold(open, move |open| async move {
            let more = chunk(json!({"content": "more "}), Value::Null);
            Some((Ok::<_, Infallible>(Bytes::from(more)), open))
        });
        return ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(pieces)).into_response();
    }
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2});
    if body["stream"] == true {
        let events = [
            chunk(json!({"role": "assistant", "content": ""}), Value::Null),
            chunk(json!({"content": said}), Value::Null),
            chunk(json!({}), "stop".into()),
            format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [], "usage": usage})),
        ];
        return ([(header::CONTENT_TYPE, "text/event-stream")], events.concat()).into_response();
    }
    let message = json!({"role": "assistant", "content": said});
    Json(json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}))
        .into_response()
}

/// A host with a plugin's model and one of that engine.
fn host(port: u16) -> Server {
    let yaml = format!(
        "models:\n  near: {{type: text, plugin: aihost/echo}}\n  slow: {{type: text, plugin: aihost/echo, options: {{latency_ms: 5, tokens: 100000}}}}\n  far: {{type: text, url: 'http://127.0.0.1:{port}'}}\n"
    );
    Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() })
}

/// Each API: its path, and a request that says this.
fn apis(model: &str, said: &str) -> [(&'static str, Value); 6] {
    let messages = json!([{"role": "user", "content": said}]);
    [
        ("/v1/chat/completions", json!({"model": model, "messages": messages})),
        ("/v1/completions", json!({"model": model, "prompt": said, "max_tokens": 100_000})),
        ("/v1/responses", json!({"model": model, "input": said})),
        ("/v1/messages", json!({"model": model, "messages": messages, "max_tokens": 100_000})),
        ("/api/chat", json!({"model": model, "messages": messages})),
        ("/api/generate", json!({"model": model, "prompt": said})),
    ]
}

/// The text of an answer in one piece, of any of them.
fn text(answer: &Value) -> String {
    let places = [
        "/choices/0/message/content",
        "/choices/0/text",
        "/output/0/content/0/text",
        "/content/0/text",
        "/message/content",
        "/response",
    ];
    places.iter().find_map(|place| answer.pointer(place)?.as_str()).unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test]
async fn every_api_is_answered_by_a_plugin_and_by_an_engine_whole_and_streamed() {
    let (port, _open) = engine().await;
    let server = host(port);
    for model in ["near", "far"] {
        for (path, mut body) in apis(model, "Hello there") {
            body["stream"] = false.into();
            let (status, answer) = server.post(path, &body).await;
            assert_eq!((status, text(&answer).as_str()), (200, "Hello there"), "{model} {path}: {answer}");
            body["stream"] = true.into();
            let streamed = client().post(format!("{}{path}", server.base())).json(&body).send().await.unwrap();
            let kind = streamed.headers()["content-type"].to_str().unwrap().to_owned();
            assert_eq!(kind.starts_with("application/x-ndjson"), path.starts_with("/api/"), "{path}: {kind}");
            let streamed = streamed.text().await.unwrap();
            assert!(streamed.contains("Hello"), "{model} {path}: {streamed}");
            assert!(!streamed.contains("\"error\":{"), "{model} {path}: {streamed}");
        }
    }
    let (status, metrics) = server.get("/metrics").await;
    assert_eq!(status, 200);
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("model=\"far\""), "what passed was counted: {metrics}");
}

#[tokio::test]
async fn nobody_works_for_a_client_that_has_left_by_any_api() {
    let (port, open) = engine().await;
    let server = host(port);
    for model in ["slow", "far"] {
        for (path, mut body) in apis(model, "go on") {
            body["stream"] = true.into();
            let answer = client().post(format!("{}{path}", server.base())).json(&body).send().await.unwrap();
            let mut pieces = answer.bytes_stream();
            assert!(!pieces.next().await.unwrap().unwrap().is_empty());
            assert_eq!(server.status(model, "active").await, json!(1), "{model} {path}");
            drop(pieces);
            idle(&server, &open, model).await;
        }
    }
    // Whoever waits for the whole of it leaves in the same way.
    for (path, mut body) in apis("slow", "go on") {
        body["stream"] = false.into();
        let asking = tokio::spawn(client().post(format!("{}{path}", server.base())).json(&body).send());
        server.until("slow", "active", json!(1)).await;
        asking.abort();
        idle(&server, &open, "slow").await;
    }
}

async fn idle(server: &Server, open: &AtomicUsize, model: &str) {
    server.until(model, "active", json!(0)).await;
    eventually(async || match open.load(Ordering::SeqCst) {
        0 => Ok(()),
        open => Err(format!("{open} answers of the engine are open")),
    })
    .await;
}

#[tokio::test]
async fn tokens_are_told_without_a_word_of_an_answer() {
    let (port, _open) = engine().await;
    let server = host(port);
    let (status, told) = server.post("/tokenize", &json!({"model": "near", "content": "one two one two"})).await;
    assert_eq!((status, &told), (200, &json!({"tokens": [0, 1, 0, 2], "count": 4})));
    let (_, told) = server.post("/tokenize", &json!({"model": "near", "prompt": "two", "with_pieces": true})).await;
    assert_eq!(told["tokens"], json!([{"id": 2, "piece": "two"}]));
    let (_, told) = server.post("/detokenize", &json!({"model": "near", "tokens": [0, 1, 0]})).await;
    assert_eq!(told["content"], "one two one ");
    let (status, told) = server.post("/detokenize", &json!({"model": "near", "tokens": [99]})).await;
    assert_eq!((status, &told["error"]["param"]), (400, &json!("tokens")));
    let message = json!([{"role": "user", "content": "one two three"}]);
    for (path, body) in [
        ("/v1/chat/completions/input_tokens", json!({"model": "near", "messages": message})),
        ("/chat/completions/input_tokens", json!({"model": "near", "messages": message})),
        ("/v1/responses/input_tokens", json!({"model": "near", "input": "one two three"})),
        ("/v1/messages/count_tokens", json!({"model": "near", "messages": message})),
    ] {
        let (status, told) = server.post(path, &body).await;
        assert_eq!((status, &told["input_tokens"]), (200, &json!(3)), "{path}: {told}");
    }
    let (status, told) = server.post("/tokenize", &json!({"model": "far", "content": "x"})).await;
    assert_eq!((status, &told["error"]["param"]), (400, &json!("model")), "{told}");
    let completion = json!({"model": "near", "prompt": "def f(", "suffix": "):"});
    let (status, answer) = server.post("/v1/completions", &completion).await;
    assert_eq!((status, &answer["choices"][0]["text"]), (200, &json!("def f(")), "{answer}");
}
