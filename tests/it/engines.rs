//! Engines that speak HTTP, under a whole host: their pages and sockets, what they do after they have answered, and the services
//! of a tree in the original's form.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aihost_tests::server::{Server, Setup, client, prepare};
use aihost_tests::{PATIENCE, binary, eventually, fixture, stand_in, wait_for};
use reqwest::StatusCode;
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::services::seed;

/// A host with an image engine, which is ended and not parked, and a text model, of which one fits at a time.
fn host(more: &str) -> Server {
    with_engine(more, ", park: false")
}

fn with_engine(more: &str, keys: &str) -> Server {
    let yaml = format!(
        "devices: [{{id: cpu, memory: 256MiB, max_loaded: 1}}]\ndefaults: {{max_wait: 50ms, quantum: 10ms}}\n{more}models:\n  comfy: {{type: custom, endpoint: /render, command: ['{}', --port, '{{port}}'], memory: 64MiB, busy: comfyui, upstream_routes: true, stop_timeout: 2{keys}}}\n  talk: {{type: text, plugin: aihost/echo}}\n",
        stand_in().display()
    );
    Server::start(&Setup { yaml, plugins: vec!["vllm", "echo"], ..Setup::default() })
}

async fn talk(server: &Server) -> StatusCode {
    let chat = json!({"model": "talk", "messages": [{"role": "user", "content": "a b"}]});
    client().post(format!("{}/v1/chat/completions", server.base())).json(&chat).send().await.unwrap().status()
}

async fn log_of(server: &Server, model: &str) -> String {
    client().get(format!("{}/logs/{model}?follow=false", server.base())).send().await.unwrap().text().await.unwrap()
}

/// Renders in a row, of so many seconds each: each is answered at once, somebody else wants its place, and it is not cut.
async fn render(server: Server, count: usize, seconds: f64) {
    // A page is open, and says nothing.
    let (status, mut page) = Socket::open(&server, "/upstream/comfy/ws", "").await;
    assert_eq!(status, 101);
    let mut page_is_open = true;
    for round in 1..=count {
        let url = format!("{}/upstream/comfy/prompt", server.base());
        let answer = client().post(url).json(&json!({"seconds": seconds})).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let queued: Value = answer.json().await.unwrap();
        assert!(queued["prompt_id"].is_string(), "{queued}");
        // It has its answer, and somebody else wants the device.
        assert_eq!(talk(&server).await, 200);
        let log = log_of(&server, "comfy").await;
        let last = log.rsplit_once("the stand-in listens").map_or("", |(_, last)| last);
        assert!(last.contains("is done"), "render {round} was cut: {log}");
        if page_is_open {
            assert_eq!(page.hear().await, Some((8, 1012_u16.to_be_bytes().to_vec())));
            page_is_open = false;
        }
        // It is opened again, as pages do, where a render takes longer than the first words of a socket hold its engine.
        if round < count && seconds > HOLD.as_secs_f64() {
            (_, page) = Socket::open(&server, "/upstream/comfy/ws", "").await;
            page_is_open = true;
        }
    }
    let (loads, done) = (server.status("comfy", "loads").await, json!(count));
    assert_eq!(loads, done);
}

#[tokio::test]
async fn what_an_engine_still_works_on_is_never_cut() {
    render(host(""), 6, 0.4).await;
}

/// An engine renders one after the other, so as many hosts as this render at once.
const HOSTS: usize = 20;

#[tokio::test]
#[ignore = "takes minutes; `cargo xtask ci --full` runs it"]
async fn of_a_hundred_renders_of_twenty_seconds_none_is_cut() {
    let hosts: Vec<Server> = (0..HOSTS).map(|_| host("")).collect();
    futures_util::future::join_all(hosts.into_iter().map(|server| render(server, 100 / HOSTS, 20.0))).await;
}

#[tokio::test]
async fn work_that_its_client_left_is_done_all_the_same_and_not_longer_than_a_request_may_take() {
    let server = host("limits: {request_timeout: 2s}\n");
    let url = |seconds: f64| format!("{}/upstream/comfy/prompt?seconds={seconds}", server.base());
    assert_eq!(client().post(url(0.01)).body("{}").send().await.unwrap().status(), 200);
    let asking = client().post(url(0.8)).body("{}").timeout(Duration::from_millis(500)).send();
    drop(asking.await);
    assert_eq!(talk(&server).await, 200);
    assert_eq!(log_of(&server, "comfy").await.matches("is done").count(), 2);
    // One that takes for ever is not waited for.
    assert_eq!(client().post(url(600.0)).body("{}").send().await.unwrap().status(), 200);
    assert_eq!(timeout(PATIENCE, talk(&server)).await.expect("it is served"), 200);
}

#[tokio::test]
async fn one_that_gives_its_memory_back_is_parked_and_goes_on_where_it_was() {
    let server = with_engine("", "");
    let stats = async || -> Value {
        let url = format!("{}/upstream/comfy/system_stats", server.base());
        client().get(url).send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(stats().await["freed"], 0);
    let pid = server.status("comfy", "pid").await;
    assert_eq!(talk(&server).await, 200);
    assert_eq!(server.status("comfy", "state").await, json!("parked"));
    assert_eq!(stats().await["freed"], 1, "it was asked for its memory");
    assert_eq!((server.status("comfy", "pid").await, server.status("comfy", "wakes").await), (pid, json!(1)));
}

/// A websocket by hand.
struct Socket(TcpStream);

impl Socket {
    async fn open(server: &Server, path: &str, headers: &str) -> (u16, Self) {
        let authority = server.base().strip_prefix("http://").unwrap().to_owned();
        let mut stream = TcpStream::connect(&authority).await.unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answered = Vec::new();
        while !answered.ends_with(b"\r\n\r\n") {
            answered.push(timeout(PATIENCE, stream.read_u8()).await.expect("a head").unwrap());
        }
        let answered = String::from_utf8(answered).unwrap();
        let status = answered.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 101 {
            assert!(answered.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answered}");
        }
        (status, Self(stream))
    }

    async fn say(&mut self, kind: u8, text: &str) {
        let mut frame = vec![0x80 | kind, 0x80 | text.len() as u8, 0, 0, 0, 0];
        frame.extend(text.as_bytes());
        self.0.write_all(&frame).await.unwrap();
    }

    /// The next frame that is no ping or pong; `None` at the end.
    async fn hear(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let mut head = [0; 2];
            timeout(PATIENCE, self.0.read_exact(&mut head)).await.expect("a frame").ok()?;
            let mut payload = vec![0; usize::from(head[1] & 0x7f)];
            self.0.read_exact(&mut payload).await.ok()?;
            match head[0] & 0xf {
                0x9 | 0xa => {}
                kind => return Some((kind, payload)),
            }
        }
    }
}

/// How long a connection that says nothing keeps its model.
const HOLD: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_socket_holds_its_engine_while_it_is_used_and_is_told_when_that_goes() {
    let server = host("");
    let (status, mut socket) = Socket::open(&server, "/upstream/comfy/ws?clientId=1", "").await;
    assert_eq!(status, 101);
    socket.say(1, "hello").await;
    assert_eq!(socket.hear().await, Some((1, b"hello".to_vec())));
    // Somebody else wants the device: while something was said of late, they wait.
    let talking = talk(&server);
    tokio::pin!(talking);
    let early = timeout(HOLD / 2, &mut talking).await;
    assert!(early.is_err(), "its engine was taken from a socket in use");
    // Pings go to and fro every second, and are no use.
    assert_eq!(timeout(PATIENCE + HOLD, &mut talking).await.expect("a turn"), 200);
    assert_eq!(socket.hear().await, Some((8, 1012_u16.to_be_bytes().to_vec())), "the engine went without a word");
    assert_eq!(socket.hear().await, None);
    // Whoever connects again wakes it.
    let (status, mut socket) = Socket::open(&server, "/upstream/comfy/ws", "").await;
    assert_eq!(status, 101);
    socket.say(1, "again").await;
    assert_eq!(socket.hear().await, Some((1, b"again".to_vec())));
    // An unload by an operator ends it.
    let unload =
        client().post(format!("{}/models/unload", server.base())).json(&json!({"model": "comfy", "force": true}));
    assert_eq!(unload.send().await.unwrap().status(), 200);
    assert_eq!(socket.hear().await, Some((8, 1012_u16.to_be_bytes().to_vec())));
}

#[tokio::test]
async fn a_page_is_opened_by_a_key_once_and_by_its_cookie_from_then_on() {
    let server = host("api_keys: [a-key-of-this-host-0]\n");
    let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
    let get = async |path: &str, cookie: &str| {
        let mut request = browser.get(format!("{}{path}", server.base()));
        if !cookie.is_empty() {
            request = request.header(COOKIE, cookie);
        }
        request.send().await.unwrap()
    };
    assert_eq!(get("/upstream/comfy/", "").await.status(), 401);
    assert_eq!(get("/upstream/comfy/?key=wrong-wrong-wrong-wrong", "").await.status(), 401);
    let welcome = get("/upstream/comfy/page?a=1&key=a-key-of-this-host-0&b=2", "").await;
    assert_eq!(
        (welcome.status(), &welcome.headers()[LOCATION]),
        (StatusCode::TEMPORARY_REDIRECT, &"/upstream/comfy/page?a=1&b=2".parse().unwrap())
    );
    let cookie = welcome.headers()[SET_COOKIE].to_str().unwrap();
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && cookie.contains("Path=/upstream/comfy"),
        "{cookie}"
    );
    let cookie = format!("theirs=1; {}", cookie.split(';').next().unwrap());
    let page: Value = get("/upstream/comfy/page?a=1&b=2", &cookie).await.json().await.unwrap();
    assert_eq!((page["path"].as_str(), page["query"].as_str()), (Some("/page"), Some("a=1&b=2")));
    let echoed = get("/upstream/comfy/echo", &cookie).await.text().await.unwrap().to_ascii_lowercase();
    assert!(echoed.contains("cookie: theirs=1\r\n") && !echoed.contains("a-key-of-this-host"), "{echoed}");
    let (status, mut socket) = Socket::open(&server, "/upstream/comfy/ws", &format!("Cookie: {cookie}\r\n")).await;
    assert_eq!(status, 101);
    socket.say(1, "x").await;
    assert_eq!(socket.hear().await, Some((1, b"x".to_vec())));
    // Another page of the same site, which the browser sends it for as well, is not this host's.
    let own = format!("http://{}", server.base().strip_prefix("http://").unwrap());
    for (origin, status) in [(own.as_str(), 200), ("http://127.0.0.1:1", 401), ("null", 401)] {
        let asked = browser.post(format!("{}/upstream/comfy/free", server.base())).header(COOKIE, &cookie);
        assert_eq!(asked.header("origin", origin).send().await.unwrap().status(), status, "{origin}");
        let headers = format!("Cookie: {cookie}\r\nOrigin: {origin}\r\n");
        let (opened, _) = Socket::open(&server, "/upstream/comfy/ws", &headers).await;
        assert_eq!(opened, if status == 200 { 101 } else { status }, "{origin}");
    }
    // A cookie of a page opens nothing else, and a page only what its entry opens.
    assert_eq!(get("/v1/models", &cookie).await.status(), 401);
    let moved = get("/upstream/comfy", &cookie).await;
    assert_eq!(moved.headers()[LOCATION], "/upstream/comfy/");
    assert_eq!(get("/upstream/talk/x", &cookie).await.status(), 400);
    assert_eq!(get("/upstream/nobody/x", &cookie).await.status(), 404);
}

#[tokio::test]
async fn an_engine_is_asked_at_its_endpoint_as_it_has_it_and_its_end_costs_nobody_else() {
    let server = host("");
    let ask = async |method: reqwest::Method, path: &str| {
        client().request(method, format!("{}{path}", server.base())).body("{}").send().await.unwrap()
    };
    let worked: Value = ask(reqwest::Method::POST, "/render/at/once?x=1").await.json().await.unwrap();
    assert_eq!((worked["path"].as_str(), worked["query"].as_str()), (Some("/render/at/once"), Some("x=1")));
    let pid = server.status("comfy", "pid").await;
    // One that dies is as a worker that dies: what may be asked twice is, of a fresh one.
    assert_eq!(ask(reqwest::Method::POST, "/upstream/comfy/die?signal=11").await.status(), 200);
    server.logged("crashed (signal 11)").await;
    let after: Value = ask(reqwest::Method::GET, "/render/x").await.json().await.unwrap();
    assert_eq!(after["path"], "/render/x");
    assert_ne!(server.status("comfy", "pid").await, pid);
    // What was read to its end was served.
    server.logged("GET /render/x").await;
    let metrics = client().get(format!("{}/metrics", server.base())).send().await.unwrap().text().await.unwrap();
    assert!(!metrics.contains("outcome=\"cancelled\"} 1"), "{metrics}");
    assert_eq!(talk(&server).await, 200);
}

#[tokio::test]
async fn what_is_sent_while_it_comes_is_asked_of_the_next_if_a_dead_engine_never_saw_it() {
    let server = host("");
    let url = |path: &str| format!("{}/upstream/comfy/{path}", server.base());
    let pieces = || futures_util::stream::iter((0..16).map(|_| Ok::<_, std::convert::Infallible>(vec![b'x'; 40_000])));
    for _ in 0..3 {
        let about: Value = client().get(url("about")).send().await.unwrap().json().await.unwrap();
        let pid = about["pid"].as_i64().unwrap();
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        // Its sockets are closed, and whoever runs it may not have heard of it yet.
        wait_for("its end", || (!aihost_tests::server::alive(pid)).then_some(())).await;
        let body = reqwest::Body::wrap_stream(pieces());
        let answer = client().post(url("work")).body(body).send().await.unwrap();
        let (status, worked) = (answer.status(), answer.json::<Value>().await.unwrap());
        assert_eq!((status.as_u16(), &worked["bytes"]), (200, &json!(16 * 40_000)), "{worked}");
        assert_ne!(worked["pid"], json!(pid));
    }
}

#[test]
fn a_server_that_cannot_be_started_is_a_sentence_of_its_command() {
    let (folder, _) = prepare(&Setup {
        yaml: "models:\n  a: {type: text, service_script: nowhere/server.py}\n".to_owned(),
        plugins: vec!["vllm"],
        ..Setup::default()
    });
    let server = Server::serving(folder);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let chat = json!({"model": "a", "messages": []});
        let refused = client().post(format!("{}/v1/chat/completions", server.base())).json(&chat).send().await.unwrap();
        assert_eq!(refused.status(), 500);
        let log = server.logged("load failed").await;
        assert!(log.contains("nowhere/server.py"), "{log}");
    });
}

/// The folders and the port that an original file does not name.
fn at_home(command: &mut Command, home: &Path) {
    for (name, folder) in
        [("AIHOST_PLUGINS_DIR", "plugins"), ("AIHOST_MODELS_DIR", "weights"), ("AIHOST_STATE_DIR", "state")]
    {
        command.env(name, home.join(folder));
    }
}

#[tokio::test]
async fn a_tree_of_the_original_is_served_as_it_stands() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("NOT TESTED: there is no python3 on this machine");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let tree = seed();
    std::fs::create_dir_all(home.path().join("plugins")).unwrap();
    std::fs::copy(fixture("vllm"), home.path().join("plugins/vllm.so")).unwrap();
    let config = tree.path().join("model-orchestrator/models.yaml");
    let mut pull = Command::new(binary());
    at_home(pull.args(["models", "pull", "--all", "--config"]).arg(&config), home.path());
    let pulled = tokio::task::spawn_blocking(move || pull.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&pulled.stderr).into_owned();
    assert!(pulled.status.success(), "{said}");
    let mut serve = Command::new(binary());
    serve.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "text", "--config"]).arg(&config);
    at_home(&mut serve, home.path());
    let server = Server::of(&mut serve, home);
    let asks = [
        ("/v1/chat/completions", json!({"model": "phrases", "messages": [{"role": "user", "content": "hello"}]})),
        ("/v1/images/generations", json!({"prompt": "something red"})),
        ("/v1/beep/generate", json!({"text": "x"})),
    ];
    for round in 1..=2 {
        for (path, body) in &asks {
            let answer = client().post(format!("{}{path}", server.base())).json(body).send().await.unwrap();
            let (status, said) = (answer.status(), answer.text().await.unwrap());
            assert_eq!(status, 200, "{path}: {said}");
        }
        for model in ["phrases", "swatch", "beep"] {
            let loads = server.status(model, "loads").await;
            assert!(loads == json!(round) || loads == json!(1), "{model}: {loads}");
        }
    }
    eventually(async || match server.status("beep", "state").await {
        state if state == json!("hot") => Ok(()),
        state => Err(format!("{state}")),
    })
    .await;
}
