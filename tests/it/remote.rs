//! Models that others run, behind `url:`: whatever is asked of them reaches their server as it was sent, and what that answers
//! reaches the client as it comes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aihost_tests::server::{Server, Setup, client, prepare};
use aihost_tests::{PATIENCE, binary, eventually};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A server that somebody else runs.
struct Elsewhere {
    port: u16,
    state: Arc<Seen>,
}

struct Seen {
    requests: AtomicUsize,
    status: AtomicUsize,
    /// Clients that were answered and are still there.
    open: AtomicUsize,
    /// Pieces of the stream that may be sent.
    pieces: Semaphore,
}

impl Elsewhere {
    async fn start() -> Self {
        let state = Arc::new(Seen {
            requests: AtomicUsize::new(0),
            status: AtomicUsize::new(200),
            open: AtomicUsize::new(0),
            pieces: Semaphore::new(0),
        });
        let router = Router::new().route("/v1/chat/completions", any(chat)).route("/v1/audio/whole", any(read));
        let router = router
            .route("/v1/models", get(async || axum::Json(models())))
            .fallback(any(echo))
            .with_state(Arc::clone(&state));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { port, state }
    }

    fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }
}

/// What it says of its models, as servers of others list them.
fn models() -> Value {
    json!({"object": "list", "data": [
        {"id": "other", "object": "model", "max_model_len": 8},
        {"id": "own/name", "object": "model", "max_model_len": 4096, "meta": {"n_params": 1_700_000_000_u64, "ftype": "Q4_1"}},
    ]})
}

/// Gives back what it was sent: head as JSON, then the body.
async fn echo(State(seen): State<Arc<Seen>>, request: Request) -> Response {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let status = StatusCode::from_u16(seen.status.load(Ordering::SeqCst) as u16).unwrap();
    let headers: serde_json::Map<String, Value> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    let head = json!({"method": parts.method.as_str(), "target": parts.uri.to_string(), "headers": headers});
    let head = Bytes::from(format!("{head}\n"));
    let body = futures_util::stream::iter([Ok(head)]).chain(body.into_data_stream());
    (status, [("x-engine", "1"), ("server", "engine"), ("set-cookie", "a=b")], Body::from_stream(body)).into_response()
}

/// Answers once it has read all that it was sent.
async fn read(State(seen): State<Arc<Seen>>, request: Request) -> StatusCode {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    match axum::body::to_bytes(request.into_body(), usize::MAX).await {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

/// A stream of text, piece by piece as the test says; `usage` at its end.
async fn chat(State(seen): State<Arc<Seen>>, request: Request) -> Response {
    struct Open(Arc<Seen>);
    impl Drop for Open {
        fn drop(&mut self) {
            self.0.open.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10});
    if asked["stream"] != true {
        return axum::Json(json!({"model": asked["model"], "asked": asked, "usage": usage})).into_response();
    }
    seen.open.fetch_add(1, Ordering::SeqCst);
    let open = Open(Arc::clone(&seen));
    let pieces = futures_util::stream::unfold((open, 0), move |(open, number)| {
        let usage = usage.clone();
        async move {
            open.0.pieces.acquire().await.unwrap().forget();
            let event = match number {
                0..3 => json!({"choices": [{"delta": {"content": format!("{number}")}}], "usage": null}),
                3 => json!({"choices": [], "usage": usage}),
                _ => return None,
            };
            Some((Ok::<_, Infallible>(format!("data: {event}\n\n")), (open, number + 1)))
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(pieces)).into_response()
}

fn front(models: &str) -> Server {
    Server::start(&Setup { yaml: format!("models:\n{models}"), ..Setup::default() })
}

async fn post(server: &Server, path: &str, body: Value) -> reqwest::Response {
    client().post(format!("{}{path}", server.base())).json(&body).send().await.expect("an answer")
}

/// The head that an engine gave back, and the body behind it.
async fn echoed(answer: reqwest::Response) -> (Value, Bytes) {
    let all = answer.bytes().await.unwrap();
    let end = all.iter().position(|byte| *byte == b'\n').expect("a head");
    (serde_json::from_slice(&all[..end]).unwrap(), all.slice(end + 1..))
}

#[tokio::test]
async fn a_chat_reaches_its_server_as_it_was_sent_and_streams_back() {
    let pod = Elsewhere::start().await;
    let front = front(&format!(
        "  far: {{type: text, url: 'http://127.0.0.1:{}/v1', engine_model: own/name, aliases: [gpt-4o]}}\n",
        pod.port
    ));
    let body = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": [{"type": "image_url"}]}], "unknown": {"a": [1]}, "n": 99});
    let answer = post(&front, "/v1/chat/completions", body.clone()).await;
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    let mut wanted = body.clone();
    wanted["model"] = json!("own/name");
    assert_eq!(answer["asked"], wanted);

    let streaming = json!({"messages": [], "stream": true});
    let mut answer = post(&front, "/v1/chat/completions", streaming).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    for number in 0..3 {
        // Each piece comes before the next one is made.
        pod.state.pieces.add_permits(1);
        let piece = answer.chunk().await.unwrap().expect("a piece");
        assert!(String::from_utf8_lossy(&piece).contains(&format!("\"content\":\"{number}\"")), "{piece:?}");
    }
    pod.state.pieces.add_permits(2);
    while answer.chunk().await.unwrap().is_some() {}
    let metrics = client().get(format!("{}/metrics", front.base())).send().await.unwrap().text().await.unwrap();
    for line in [
        "aihost_tokens_total{model=\"far\",direction=\"in\"} 14",
        "aihost_tokens_total{model=\"far\",direction=\"out\"} 6",
        "aihost_requests_total{model=\"far\",outcome=\"ok\"} 2",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert_eq!(front.status("far", "device").await, json!("remote"));
}

#[tokio::test]
async fn what_a_server_says_of_its_model_is_listed_once_it_was_asked() {
    let pod = Elsewhere::start().await;
    let front = front(&format!(
        "  far: {{type: text, url: 'http://127.0.0.1:{}/v1', engine_model: own/name, aliases: [gpt-4o]}}\n",
        pod.port
    ));
    let get = async |path: &str| -> Value {
        client().get(format!("{}{path}", front.base())).send().await.unwrap().json().await.unwrap()
    };
    assert!(get("/v1/models/gpt-4o").await.get("context_length").is_none(), "a listing asks nobody");
    post(&front, "/v1/chat/completions", json!({"messages": []})).await;
    eventually(async || match get("/v1/models/gpt-4o").await["context_length"].as_u64() {
        Some(4096) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let listed = get("/v1/models").await["data"][0].clone();
    assert_eq!((&listed["id"], &listed["max_model_len"]), (&json!("far"), &json!(4096)));
    assert_eq!(listed["meta"]["quantization"], "Q4_1");
    let shown: Value = post(&front, "/api/show", json!({"model": "far"})).await.json().await.unwrap();
    assert_eq!(shown["details"]["parameter_size"], "1.7B", "{shown}");
    let context = shown["model_info"].as_object().unwrap().iter().find(|(key, _)| key.ends_with(".context_length"));
    assert_eq!(context.map(|(_, length)| length), Some(&json!(4096)), "{shown}");
    assert_eq!(pod.requests(), 2, "the chat, and where such servers tell of their template");
}

#[tokio::test]
async fn a_client_that_leaves_is_gone_from_the_server() {
    let pod = Elsewhere::start().await;
    let front = front(&format!("  far: {{type: text, url: 'http://127.0.0.1:{}'}}\n", pod.port));
    let mut answer = post(&front, "/v1/chat/completions", json!({"messages": [], "stream": true})).await;
    pod.state.pieces.add_permits(1);
    answer.chunk().await.unwrap().expect("a piece");
    assert_eq!(pod.state.open.load(Ordering::SeqCst), 1);
    drop(answer);
    eventually(async || match pod.state.open.load(Ordering::SeqCst) {
        0 => Ok(()),
        open => Err(format!("{open} are open")),
    })
    .await;
}

#[tokio::test]
async fn any_path_of_openai_is_asked_by_the_model_it_names() {
    let pod = Elsewhere::start().await;
    let front = front(&format!(
        "  vectors: {{type: embedding, url: 'http://127.0.0.1:{port}'}}\n  ears: {{type: transcription, url: 'http://127.0.0.1:{port}', aliases: [whisper-1]}}\n  voice: {{type: speech, url: 'http://127.0.0.1:{port}'}}\n",
        port = pod.port
    ));
    for path in
        ["/v1/embeddings", "/v1/rerank", "/v1/moderations", "/v1/audio/speech", "/v1/responses", "/v1/something/new"]
    {
        let (head, body) = echoed(post(&front, path, json!({"input": "x", "model": "vectors"})).await).await;
        assert_eq!((head["method"].as_str(), head["target"].as_str()), (Some("POST"), Some(path)));
        assert_eq!(body, r#"{"input":"x","model":"vectors"}"#);
    }
    // Those that name none mean the only one of their kind.
    let (head, body) = echoed(post(&front, "/v1/audio/speech", json!({"input": "x"})).await).await;
    assert_eq!(head["target"], "/v1/audio/speech");
    assert_eq!(body, r#"{"model":"voice","input":"x"}"#);
    let file: Vec<u8> = (0..3_u32 << 20).map(|n| (n * 7 % 251) as u8).collect();
    let form = |before: &str, after: &str| {
        let mut form = before.as_bytes().to_vec();
        form.extend(b"--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n");
        form.extend(&file);
        form.extend(b"\r\n");
        form.extend(after.as_bytes());
        form.extend(b"--xyz--\r\n");
        form
    };
    let named = |name: &str| format!("--xyz\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{name}\r\n");
    for (sent, wanted) in [
        (form(&named("whisper-1"), ""), form(&named("ears"), "")),
        (form("", &named("whisper-1")), form("", &named("ears"))),
    ] {
        let request = client().post(format!("{}/v1/audio/transcriptions", front.base()));
        let request = request.header("content-type", "multipart/form-data; boundary=\"xyz\"").body(sent);
        let (head, body) = echoed(request.send().await.unwrap()).await;
        assert_eq!(head["headers"]["content-length"], json!(wanted.len().to_string()));
        assert!(body == wanted, "another form came");
    }
    // Which of two an engine heeds is not known here, however far apart they are and whatever they say: one that reads the form
    // before it answers never has the whole.
    let seen = pod.requests();
    for sent in [form(&named("ears"), &named("other")), form(&(named("ears") + &named("ears")), "")] {
        let request = client().post(format!("{}/v1/audio/whole", front.base()));
        let refused =
            request.header("content-type", "multipart/form-data; boundary=xyz").body(sent).send().await.unwrap();
        assert_eq!(refused.status(), 400);
        let refused: Value = refused.json().await.unwrap();
        assert_eq!(refused["error"]["message"], "the form has two fields `model`; name one model");
        assert_eq!(refused["error"]["param"], "model");
    }
    assert!(pod.requests() <= seen + 1, "one of them was refused before it was sent");
    // One in which no name is found up to its end means the only one of the kind, and goes on as it is.
    let bare = "--xyz\ncontent-disposition: form-data; name=\"file\"\n\nx\n--xyz--\n";
    let request = client().post(format!("{}/v1/audio/transcriptions", front.base()));
    let request = request.header("content-type", "multipart/form-data; boundary=xyz").body(bare);
    let (_, body) = echoed(request.send().await.unwrap()).await;
    assert_eq!(body, bare);
    // And by the query, whatever the body is.
    let url = format!("{}/v1/audio/translations?model=ears", front.base());
    let (head, body) = echoed(client().post(url).body("raw").send().await.unwrap()).await;
    assert_eq!((head["target"].as_str(), &body[..]), (Some("/v1/audio/translations?model=ears"), &b"raw"[..]));
    for (path, body, code) in [
        ("/v1/embeddings", json!({"model": "nobody"}), "model_not_found"),
        ("/v1/something/new", json!({"a": 1}), "unknown_url"),
    ] {
        let refused: Value = post(&front, path, body).await.json().await.unwrap();
        assert_eq!(refused["error"]["code"], code, "{refused}");
    }
}

#[tokio::test]
async fn a_packed_body_that_is_read_here_goes_on_unpacked_and_any_other_as_it_is() {
    let pod = Elsewhere::start().await;
    let front = front(&format!(
        "  vectors: {{type: embedding, url: 'http://127.0.0.1:{port}', aliases: [ada]}}\n  ears: {{type: transcription, url: 'http://127.0.0.1:{port}'}}\n  own: {{type: custom, url: 'http://127.0.0.1:{port}', endpoint: /v1/own}}\n",
        port = pod.port
    ));
    let form = b"--xyz\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nears\r\n--xyz--\r\n";
    let form_type = "multipart/form-data; boundary=xyz";
    let json = br#"{"model":"ada","input":"x"}"#;
    for (path, kind, sent, wanted) in [
        ("/v1/embeddings", "application/json", &json[..], &br#"{"model":"vectors","input":"x"}"#[..]),
        ("/v1/audio/transcriptions", form_type, &form[..], &form[..]),
    ] {
        let request = client().post(format!("{}{path}", front.base())).header("content-type", kind);
        let packed = request.try_clone().unwrap().header("content-encoding", "gzip").body(gzip(sent).await);
        let (head, body) = echoed(packed.send().await.unwrap()).await;
        assert_eq!(body, wanted, "{path}");
        assert!(head["headers"].get("content-encoding").is_none(), "{path}: {head}");
        // One that is broken is refused, and so is one that is packed in another way where it has to be read.
        let broken = request.try_clone().unwrap().header("content-encoding", "gzip").body(&sent[..10]);
        assert_eq!(broken.send().await.unwrap().status(), 400, "{path}");
    }
    let strange = client().post(format!("{}/v1/audio/transcriptions", front.base())).header("content-type", form_type);
    assert_eq!(strange.header("content-encoding", "br").body("x").send().await.unwrap().status(), 415);
    for (path, coding) in [("/v1/own/any", "gzip"), ("/v1/own", "br"), ("/v1/embeddings?model=vectors", "br")] {
        let sent = gzip(json).await;
        let request = client().post(format!("{}{path}", front.base())).header("content-encoding", coding);
        let (head, body) = echoed(request.body(sent.clone()).send().await.unwrap()).await;
        assert_eq!((head["headers"]["content-encoding"].as_str(), &body[..]), (Some(coding), &sent[..]), "{path}");
    }
}

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = async_compression::tokio::write::GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

#[tokio::test]
async fn keys_and_cookies_stay_here_and_the_servers_own_is_sent() {
    let pod = Elsewhere::start().await;
    let setup = Setup {
        yaml: format!(
            "api_keys: [a-key-of-this-host-0]\nmodels:\n  far: {{type: embedding, url: 'http://127.0.0.1:{}', api_key: 'env:POD_KEY'}}\n",
            pod.port
        ),
        env: vec![("POD_KEY".to_owned(), "a-key-of-the-pod".to_owned())],
        ..Setup::default()
    };
    let front = Server::start(&setup);
    let ask = async || {
        let request = client().post(format!("{}/v1/embeddings", front.base())).bearer_auth("a-key-of-this-host-0");
        let request = request.header("cookie", "c=d").header("x-request-id", "mine-9").header("x-other", "1");
        request.json(&json!({"model": "far"})).send().await.unwrap()
    };
    let answer = ask().await;
    let told = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!((told("x-engine").as_deref(), told("server"), told("set-cookie")), (Some("1"), None, None));
    let (head, _) = echoed(answer).await;
    let sent = &head["headers"];
    assert_eq!(sent["authorization"], "Bearer a-key-of-the-pod");
    assert_eq!((&sent["cookie"], &sent["x-api-key"]), (&Value::Null, &Value::Null));
    assert_eq!((sent["x-request-id"].as_str(), sent["x-other"].as_str()), (Some("mine-9"), Some("1")));
    // One that is refused there is no fault of who asks here.
    pod.state.status.store(401, Ordering::SeqCst);
    let refused = ask().await;
    assert_eq!(refused.status(), 502);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "engine_unreachable");
    let log = front.logged("does not take this host's key").await;
    assert!(log.contains("api_key:") && !log.contains("a-key-of-the-pod"), "{log}");
    pod.state.status.store(404, Ordering::SeqCst);
    assert_eq!(ask().await.status(), 404, "what it says otherwise is passed on");
}

#[tokio::test]
async fn one_that_does_not_answer_costs_a_try_and_all_that_do_not_cost_a_sentence() {
    let pod = Elsewhere::start().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let front = front(&format!(
        "  both: {{type: embedding, url: ['http://127.0.0.1:{gone}', 'http://127.0.0.1:{}']}}\n  none: {{type: embedding, url: 'http://127.0.0.1:{gone}', retries: 1}}\n",
        pod.port
    ));
    for number in 1..=4 {
        assert_eq!(post(&front, "/v1/embeddings", json!({"model": "both"})).await.status(), 200);
        assert_eq!(pod.requests(), number);
    }
    let refused = post(&front, "/v1/embeddings", json!({"model": "none"})).await;
    assert_eq!(refused.status(), 502);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"]["message"], "the service behind this model does not answer; try again later");
    let log = front.logged("none").await;
    assert!(log.contains("Connection refused") || log.contains("connection refused"), "{log}");
    // A server that has too much to do is one that another may stand in for; what the last of them says is passed on.
    pod.state.status.store(503, Ordering::SeqCst);
    let before = pod.requests();
    let busy = post(&front, "/v1/embeddings", json!({"model": "both"})).await;
    assert_eq!((busy.status().as_u16(), pod.requests()), (503, before + 2));
}

#[tokio::test]
async fn what_is_sent_while_it_comes_is_sent_to_the_next_where_nobody_heard_it() {
    let pod = Elsewhere::start().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let front = front(&format!(
        "  ears: {{type: transcription, url: ['http://127.0.0.1:{gone}', 'http://127.0.0.1:{}']}}\n",
        pod.port
    ));
    let file = "x".repeat(1 << 20);
    let form = format!("--xyz\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n{file}\r\n--xyz--\r\n");
    let pieces: Vec<_> = form.as_bytes().chunks(100_000).map(|piece| Ok::<_, Infallible>(piece.to_vec())).collect();
    let request = client().post(format!("{}/v1/audio/transcriptions", front.base()));
    let request = request.header("content-type", "multipart/form-data; boundary=xyz");
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let answer = request.body(body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let (_, body) = echoed(answer).await;
    assert!(body == form, "another form came");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_fault_of_its_server() {
    let (first, second) = (Elsewhere::start().await, Elsewhere::start().await);
    let front = front(&format!(
        "  ears: {{type: transcription, url: ['http://127.0.0.1:{}', 'http://127.0.0.1:{}']}}\n",
        first.port, second.port
    ));
    let send = async |form: String| {
        let request = client().post(format!("{}/v1/audio/whole", front.base()));
        let request = request.header("content-type", "multipart/form-data; boundary=xyz");
        request.body(form).send().await.unwrap().status().as_u16()
    };
    let named = |name: &str| format!("--xyz\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\nears\r\n");
    let file = format!("{}{}\r\n", named("file").trim_end(), "x".repeat(4 << 20));
    let refused = [named("model"), file.clone(), named("model"), "--xyz--\r\n".to_owned()].concat();
    assert_eq!(send(refused).await, 400);
    assert_eq!(first.requests(), 1, "it was on its way");
    assert_eq!(send([named("model"), file, "--xyz--\r\n".to_owned()].concat()).await, 200);
    assert_eq!((first.requests(), second.requests()), (2, 0), "a server was left alone for what a client did");
}

/// How long it may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn one_that_takes_connections_and_says_nothing_costs_no_more_than_a_connection_may() {
    let pod = Elsewhere::start().await;
    // Whoever connects is in its queue.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = format!("https://{}", mute.local_addr().unwrap());
    let front = front(&format!(
        "  both: {{type: embedding, url: ['{mute}', 'http://127.0.0.1:{}']}}\n  none: {{type: embedding, url: '{mute}', retries: 0}}\n",
        pod.port
    ));
    let asked = async |model: &str| post(&front, "/v1/embeddings", json!({"model": model})).await.status().as_u16();
    // It costs all that it may, and not what a request may take.
    let statuses = tokio::time::timeout(CONNECT_LIMIT * 3, async { tokio::join!(asked("both"), asked("none")) }).await;
    assert_eq!(statuses.expect("an answer"), (200, 502));
    let log = front.logged("there is no connection to it after 10 s").await;
    assert!(log.contains(&mute), "{log}");
}

#[tokio::test]
async fn what_runs_elsewhere_takes_no_place_and_evicts_nobody() {
    let pod = Elsewhere::start().await;
    let yaml = format!(
        "devices: [{{id: cpu, memory: 64MiB, max_loaded: 1}}]\nmodels:\n  here: {{type: text, plugin: aihost/echo}}\n  far: {{type: embedding, url: 'http://127.0.0.1:{}'}}\n",
        pod.port
    );
    let server = Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    let chat = json!({"model": "here", "messages": [{"role": "user", "content": "a b"}]});
    assert_eq!(post(&server, "/v1/chat/completions", chat.clone()).await.status(), 200);
    assert_eq!(post(&server, "/v1/embeddings", json!({"model": "far"})).await.status(), 200);
    assert_eq!(post(&server, "/v1/chat/completions", chat).await.status(), 200);
    assert_eq!(server.status("here", "loads").await, json!(1));
    assert_eq!(server.status("here", "state").await, json!("hot"));
    assert_eq!(server.status("far", "state").await, json!("hot"));
    let devices: Value =
        client().get(format!("{}/admin/devices", server.base())).send().await.unwrap().json().await.unwrap();
    assert!(!devices.to_string().contains("remote"), "{devices}");
}

#[tokio::test]
async fn one_host_before_another_answers_as_that_does() {
    let pod = Server::start(&Setup {
        yaml: "models:\n  talk: {type: text, plugin: aihost/echo}\n".to_owned(),
        plugins: vec!["echo"],
        ..Setup::default()
    });
    let front = front(&format!("  far: {{type: text, url: '{}', engine_model: talk}}\n", pod.base()));
    let chat =
        |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "a b c"}], "stream": true});
    let direct = post(&pod, "/v1/chat/completions", chat("talk")).await.text().await.unwrap();
    let through = post(&front, "/v1/chat/completions", chat("far")).await.text().await.unwrap();
    let contents = |stream: &str| -> String {
        let events = stream.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
        events
            .map(|event: Value| event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert!(!contents(&direct).is_empty() && contents(&direct) == contents(&through), "{direct}\n{through}");
    drop(pod);
    let refused = tokio::time::timeout(Duration::from_secs(20), post(&front, "/v1/chat/completions", chat("far")));
    assert_eq!(refused.await.expect("at once").status(), 502);
}

/// A server that answers each request, by what its target ends with, in bytes of its own.
async fn answering(answers: &'static [(&'static str, &'static str)]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap();
                let (_, answer) = answers.iter().find(|(end, _)| target.ends_with(end)).expect(target);
                let answer = answer.replace("PORT", &port.to_string()).replace("TARGET", target);
                stream.write_all(answer.as_bytes()).await.unwrap();
                // What left HTTP says back what it hears, until its client ends.
                let mut heard = [0; 64];
                while let Ok(read @ 1..) = stream.read(&mut heard).await {
                    let _gone = stream.write_all(&heard[..read]).await;
                }
            });
        }
    });
    port
}

/// What is answered to these bytes, until its end or this one.
async fn said_to(server: &Server, request: &str, end: &str) -> String {
    let mut stream = TcpStream::connect(server.base().strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while end.is_empty() || !said.ends_with(end.as_bytes()) {
        let Ok(byte) = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("an answer") else { break };
        said.push(byte);
    }
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn answers_are_passed_on_as_http_means_them() {
    let port = answering(&[
        ("/both", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        (
            "/trailers",
            "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 77\r\n\r\n",
        ),
        ("/moved", "HTTP/1.1 307 T\r\nLocation: http://127.0.0.1:PORT/page/?a=1\r\nContent-Length: 0\r\n\r\n"),
        ("/away", "HTTP/1.1 307 T\r\nLocation: https://elsewhere.example/x\r\nContent-Length: 0\r\n\r\n"),
        ("/switch", "HTTP/1.1 101 S\r\nUpgrade: own\r\nConnection: upgrade\r\n\r\n"),
    ])
    .await;
    let front = front(&format!("  far: {{type: text, url: 'http://127.0.0.1:{port}', upstream_routes: true}}\n"));
    let get = async |path: &str, more: &str, end: &str| {
        let request = format!("GET /upstream/far/{path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
        said_to(&front, &request, end).await
    };
    let both = get("both", "Connection: close\r\n", "").await;
    assert!(both.contains("hello") && !both.to_ascii_lowercase().contains("content-length"), "{both}");
    let trailers = get("trailers", "TE: trailers\r\nConnection: TE, close\r\n", "").await;
    assert!(trailers.ends_with("0\r\nx-sum: 77\r\n\r\n"), "{trailers}");
    let moved = get("moved", "Connection: close\r\n", "").await;
    assert!(moved.contains("location: /upstream/far/page/?a=1\r\n"), "{moved}");
    let away = get("away", "Connection: close\r\n", "").await;
    assert!(away.contains("location: https://elsewhere.example/x\r\n"), "{away}");
    let unasked = get("switch", "Connection: close\r\n", "").await;
    assert!(unasked.starts_with("HTTP/1.1 502 "), "{unasked}");
}

#[tokio::test]
async fn a_socket_of_any_path_is_carried_to_the_model_that_its_query_names() {
    let switch = "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\nX-Target: TARGET\r\n\r\nhello";
    let port = answering(Vec::leak(vec![("", switch)])).await;
    let front = front(&format!(
        "  far: {{type: text, url: 'http://127.0.0.1:{port}', engine_model: own/name, aliases: [org/gpt]}}\n"
    ));
    let request = "GET /v1/realtime?model=org%2Fgpt&a=1 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let said = said_to(&front, request, "hello").await;
    assert!(said.starts_with("HTTP/1.1 101 ") && said.ends_with("\r\n\r\nhello"), "{said}");
    assert!(said.contains("x-target: /v1/realtime?model=own/name&a=1\r\n"), "{said}");
}

#[tokio::test]
async fn what_a_request_means_is_what_was_looked_at() {
    let pod = Elsewhere::start().await;
    let front = front(&format!(
        "  far: {{type: text, url: 'http://127.0.0.1:{}/v1', aliases: [gpt], upstream_routes: [/page]}}\n",
        pod.port
    ));
    for path in ["/upstream/far/page/../x", "/upstream/far/page/%2e%2E/x", "/v1/x/..%2f../y?model=far"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let refused = said_to(&front, &request, "").await;
        assert!(refused.starts_with("HTTP/1.1 400 "), "{path}: {refused}");
    }
    assert_eq!(pod.requests(), 0);
    let ask = async |body: &str| {
        let url = format!("{}/v1/embeddings?model=gpt", front.base());
        client().post(url).header("content-type", "application/json").body(body.to_owned()).send().await.unwrap()
    };
    // A name that cannot be read here might be by the engine.
    let several = r#"{"model": "other", "mod\u0065l": "far"}"#;
    for body in
        [several, r#"{"model": "other", "model": 7}"#, "\u{feff}{\"model\": \"other\"}", r#"{"model": "other" "#]
    {
        assert_eq!(ask(body).await.status(), 400, "{body}");
    }
    let refused: Value = ask(several).await.json().await.unwrap();
    assert_eq!(refused["error"]["message"], "the body has `model` more than once; name one model");
    let (head, body) = echoed(ask(r#"[{"a": 1}]"#).await).await;
    assert_eq!((head["target"].as_str(), &body[..]), (Some("/v1/embeddings?model=far"), &br#"[{"a": 1}]"#[..]));
    // Where nobody is asked for a key, what an engine calls one is its own.
    let url = format!("{}/upstream/far/page?key=a&b=1", front.base());
    let (head, _) = echoed(client().get(url).send().await.unwrap()).await;
    assert_eq!(head["target"], "/v1/page?key=a&b=1");
}

#[test]
fn a_model_that_runs_elsewhere_lacks_nothing_here() {
    let (folder, _) = prepare(&Setup {
        yaml: "models:\n  far: {type: text, url: 'http://127.0.0.1:1'}\n".to_owned(),
        ..Setup::default()
    });
    let mut check = std::process::Command::new(binary());
    let checked = check.arg("check").arg("--config").arg(folder.path().join("models.yaml")).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert!(checked.status.success() && !said.contains("not usable") && !said.contains("warning"), "{said}");
}
