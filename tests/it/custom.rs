//! Plugins of kind `custom`: their endpoints over the wire, what they count, and what becomes of one that cannot serve.

use std::time::Duration;

use aihost_tests::eventually;
use aihost_tests::server::{Server, Setup, chat, client};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const YAML: &str = "models:\n  mirror: {type: custom, plugin: aihost/mirror, endpoint: /v1/mirror}\n  a: {type: text, plugin: aihost/echo}\n";

fn start() -> Server {
    Server::start(&Setup { yaml: YAML.to_owned(), plugins: vec!["mirror", "echo"], ..Setup::default() })
}

async fn ask(server: &Server, method: Method, path: &str, body: Vec<u8>) -> reqwest::Response {
    let url = format!("{}/v1/mirror{path}", server.base());
    let request = client().request(method, url).header("content-type", "application/x-mine").header("x-mine", "1");
    request.header("x-request-id", "mine-7").body(body).send().await.expect("an answer")
}

async fn pid(server: &Server) -> u64 {
    let told: Value = ask(server, Method::GET, "", Vec::new()).await.json().await.expect("JSON");
    told["pid"].as_u64().expect("a process")
}

#[tokio::test]
async fn what_is_asked_at_an_endpoint_reaches_its_plugin_and_its_answer_the_client() {
    let server = start();
    let told: Value = ask(&server, Method::PUT, "/a%20b?x=%2F", vec![0; 5]).await.json().await.unwrap();
    let headers =
        json!({"accept": "*/*", "content-type": "application/x-mine", "x-mine": "1", "x-request-id": "mine-7"});
    for (field, wanted) in [
        ("method", json!("PUT")),
        ("path", json!("/a%20b")),
        ("query", json!("x=%2F")),
        ("headers", headers),
        ("bytes", json!(5)),
    ] {
        assert_eq!(told[field], wanted, "{told}");
    }
    // Any bytes, any length: beyond what a plugin may have on its way at once.
    let body: Vec<u8> = (0..6u32 << 20).map(|n| (n * 7 % 251) as u8).collect();
    let echoed = ask(&server, Method::POST, "/echo", body.clone()).await;
    assert_eq!((echoed.status(), &echoed.headers()["x-bytes"]), (StatusCode::OK, &"6291456".parse().unwrap()));
    assert_eq!(echoed.headers()["content-type"], "application/x-mine");
    assert!(echoed.bytes().await.unwrap() == body, "other bytes came back");
    let refused = ask(&server, Method::POST, "/refuse", Vec::new()).await;
    assert_eq!(refused.status(), 400);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(
        (&refused["error"]["param"], &refused["error"]["message"]),
        (&json!("shape"), &json!("the mirror shows no such thing"))
    );
}

#[tokio::test]
async fn an_answer_streams_and_ends_with_its_client() {
    let server = start();
    let mut counting = ask(&server, Method::GET, "/count", Vec::new()).await;
    assert_eq!(counting.headers()["x-accel-buffering"], "no");
    let mut seen = String::new();
    while !seen.contains("data: 3\n\n") {
        seen += std::str::from_utf8(&counting.chunk().await.unwrap().expect("more")).unwrap();
    }
    drop(counting);
    eventually(async || match server.status("mirror", "active").await {
        Value::Number(none) if none.as_u64() == Some(0) => Ok(()),
        other => Err(format!("{other} requests go on")),
    })
    .await;
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_again() {
    let server = start();
    let before = pid(&server).await;
    let died = ask(&server, Method::POST, "/die", Vec::new()).await;
    assert_eq!(died.status(), 500);
    assert_ne!(pid(&server).await, before);
    let metrics = client().get(format!("{}/metrics", server.base())).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("aihost_replays_total{model=\"mirror\"} 0"), "{metrics}");
    // By HTTP, asking twice for this is as good as once.
    assert_eq!(ask(&server, Method::DELETE, "/die", Vec::new()).await.status(), 500);
    let metrics = client().get(format!("{}/metrics", server.base())).send().await.unwrap().text().await.unwrap();
    assert!(!metrics.contains("aihost_replays_total{model=\"mirror\"} 0"), "{metrics}");
}

#[tokio::test]
async fn what_a_plugin_counts_stands_in_the_metrics_of_the_host() {
    let server = start();
    let url = format!("{}/metrics", server.base());
    let scrape = async || client().get(&url).send().await.unwrap().text().await.unwrap();
    assert!(!scrape().await.contains("aihost_plugin_"), "a model that is not loaded counts nothing");
    for _ in 0..3 {
        ask(&server, Method::POST, "/echo", Vec::new()).await;
    }
    let told = scrape().await;
    for line in [
        "# HELP aihost_plugin_answers_total What was asked of the mirror.",
        "# TYPE aihost_plugin_answers_total counter",
        "aihost_plugin_answers_total{model=\"mirror\",path=\"/echo\"} 3.0",
    ] {
        assert!(told.lines().any(|told| told == line), "{line}\n{told}");
    }
    scrape().await;
    let logs = client().get(format!("{}/logs/mirror", server.base())).send().await.unwrap().text().await.unwrap();
    assert_eq!(logs.matches("`Not a name` is no name").count(), 1, "{logs}");
}

#[tokio::test]
async fn one_that_says_it_cannot_serve_is_replaced() {
    let server = start();
    let before = pid(&server).await;
    assert_eq!(ask(&server, Method::POST, "/break", Vec::new()).await.status(), 500);
    assert_eq!(pid(&server).await, before, "a request that failed is no reason to replace what is well");
    assert_eq!(ask(&server, Method::POST, "/sicken", Vec::new()).await.status(), 500);
    eventually(async || match pid(&server).await {
        same if same == before => Err("the sick worker serves on".to_owned()),
        _ => Ok(()),
    })
    .await;
    let log = server.log();
    let told: Vec<&str> =
        log.lines().filter(|line| line.contains("unhealthy: the mirror cannot be looked at")).collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains("mine-7") && told[0].contains("mirror"), "{}", told[0]);
}

#[tokio::test]
async fn a_text_model_beside_it_is_as_before_and_a_path_beyond_it_is_none() {
    let server = start();
    let url = format!("{}/v1/chat/completions", server.base());
    assert_eq!(client().post(url).json(&chat("mirror", "hi")).send().await.unwrap().status(), 400);
    let url = format!("{}/v1/chat/completions", server.base());
    assert_eq!(client().post(url).json(&chat("a", "hi")).send().await.unwrap().status(), 200);
    let beyond =
        client().get(format!("{}/v1/mirrors", server.base())).timeout(Duration::from_secs(30)).send().await.unwrap();
    assert_eq!(beyond.status(), 404);
}
