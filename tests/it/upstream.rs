//! Plugins of kind `upstream`: what is asked at their endpoint reaches the server that their engine is.

use aihost::domain::RequestId;
use std::sync::Arc;
use std::time::Duration;

use aihost::worker::{Ask, AskBody, HttpAsk, Output};
use aihost_tests::eventually;
use aihost_tests::server::{Server, Setup, client};
use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::sync::oneshot;

use super::bench::{Bench, Limits};

fn start(options: &str) -> Server {
    let yaml = format!(
        "models:\n  origin: {{type: custom, plugin: aihost/origin, endpoint: /v1/own, options: {{{options}}}}}\n"
    );
    Server::start(&Setup { yaml, plugins: vec!["origin"], ..Setup::default() })
}

async fn ask(server: &Server, method: Method, path: &str, body: Vec<u8>) -> reqwest::Response {
    let url = format!("{}/v1/own{path}", server.base());
    client()
        .request(method, url)
        .header("x-mine", "1")
        .header("x-request-id", "mine-9")
        .body(body)
        .send()
        .await
        .expect("an answer")
}

#[tokio::test]
async fn what_is_asked_reaches_the_engine_and_its_answer_the_client() {
    let server = start("");
    let body: Vec<u8> = (0..3u32 << 20).map(|n| (n * 7 % 251) as u8).collect();
    let answer = ask(&server, Method::POST, "/echo", body.clone()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(
        (header("content-type").as_deref(), header("x-mine").as_deref(), header("server")),
        (Some("x/y"), Some("7"), None)
    );
    let echoed = answer.bytes().await.unwrap();
    let (head, back) = echoed.split_at(echoed.len() - body.len());
    assert!(back == body, "other bytes came back");
    let head = String::from_utf8(head.to_vec()).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("post /base/echo http/1.1\r\n"), "{head}");
    for line in ["x-mine: 1", "x-request-id: mine-9", "x-engine-key: of its own", "content-length: 3145728"] {
        assert!(head.lines().any(|sent| sent == line), "{line}: {head}");
    }
    assert!(!head.contains("authorization"), "{head}");
    assert_eq!(ask(&server, Method::GET, "/nothing", Vec::new()).await.status(), 404);
}

#[tokio::test]
async fn a_client_that_leaves_is_gone_from_the_engine() {
    let server = start("");
    let metrics =
        async || client().get(format!("{}/metrics", server.base())).send().await.unwrap().text().await.unwrap();
    let mut counting = ask(&server, Method::GET, "/count", Vec::new()).await;
    let mut counted = Vec::new();
    // A server may write a line in several pieces, and each is passed on at once.
    while !counted.starts_with(b"data: 0") {
        counted.extend(counting.chunk().await.unwrap().expect("a piece"));
    }
    let counted = "aihost_plugin_counting{model=\"origin\"}";
    let told = metrics().await;
    assert!(told.contains(&format!("{counted} 1.0")), "{told}");
    drop(counting);
    eventually(async || {
        let told = metrics().await;
        if told.contains(&format!("{counted} 0.0")) { Ok(()) } else { Err(told) }
    })
    .await;
}

/// Most bytes of an engine's answer in one output: some of them wait for a client that does not read.
const OUTPUT_BYTES: usize = 64 << 10;

#[tokio::test]
async fn a_large_answer_comes_in_pieces_of_which_none_is_large() {
    let bench = Bench::with(&["origin"], Limits::default());
    let instance = bench.loaded("aihost/origin", json!({})).await;
    let body = Bytes::from(vec![b'x'; 24 << 20]);
    let ask = HttpAsk {
        method: Method::POST,
        target: "/echo".to_owned(),
        headers: HeaderMap::new(),
        body: AskBody::Whole(body.clone()),
        time_limit: Duration::from_secs(600),
    };
    let (_cancel, cancelled) = oneshot::channel();
    let mut output = instance.generate(RequestId(1), Ask::Http(Arc::new(ask)), cancelled);
    let (mut largest, mut bytes) = (0, 0);
    let end = loop {
        match output.recv().await.expect("an end") {
            Output::Bytes(piece) => (largest, bytes) = (largest.max(piece.len()), bytes + piece.len()),
            Output::Done(end) => break end,
            Output::Event(_) | Output::Progress { .. } | Output::Http(_) => {}
        }
    };
    end.unwrap();
    assert!(bytes > body.len() && largest <= OUTPUT_BYTES, "{bytes} bytes, {largest} of them in one output");
}

#[tokio::test]
async fn what_an_engine_breaks_off_is_no_whole_answer() {
    let server = start("");
    let half = ask(&server, Method::GET, "/half", Vec::new()).await;
    assert!(half.status() == 500 || half.bytes().await.is_err(), "half an answer looks whole");
}

#[tokio::test]
async fn an_engine_whose_server_is_gone_is_started_anew() {
    let server = start("");
    assert_eq!(ask(&server, Method::GET, "/echo", Vec::new()).await.status(), 201);
    let before = server.status("origin", "pid").await;
    assert_eq!(ask(&server, Method::POST, "/close", Vec::new()).await.status(), StatusCode::BAD_GATEWAY);
    // It is asked how it is after what failed, and says that it has ended.
    eventually(async || match ask(&server, Method::GET, "/echo", Vec::new()).await.status() {
        StatusCode::CREATED if server.status("origin", "pid").await != before => Ok(()),
        other => Err(format!("{other}")),
    })
    .await;
}

#[tokio::test]
async fn an_engine_elsewhere_than_on_this_machine_is_not_asked() {
    let server = start("says: \"10.0.0.1:80\"");
    let answer = ask(&server, Method::GET, "/echo", Vec::new()).await;
    assert_eq!(answer.status(), 500);
    let log = server.logged("load failed").await;
    assert!(log.contains("10.0.0.1:80 is no port of this machine's loopback"), "{log}");
}
