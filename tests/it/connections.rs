//! Connections by the thousand, and clients that are refused while they still send.

use std::process::Command;

use aihost_tests::server::{Server, Setup, chat, client, text};
use aihost_tests::{Gate, PATIENCE, eventually};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const MODELS: &str = "models:\n  a: {type: text, plugin: aihost/echo, options: {latency_ms: 20}}\n";

fn host(before: Option<&'static str>, more: &str) -> Server {
    Server::start(&Setup { yaml: format!("{more}{MODELS}"), plugins: vec!["echo"], before, ..Setup::default() })
}

fn address(server: &Server) -> &str {
    server.base().strip_prefix("http://").unwrap()
}

fn limit(server: &Server, column: usize) -> String {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
    line["Max open files".len()..].split_whitespace().nth(column).unwrap().to_owned()
}

/// Half heads, as many as there are, from one address.
async fn half_heads(server: &Server, count: usize) -> Vec<TcpStream> {
    let mut halves = Vec::new();
    for _ in 0..count {
        let mut half = TcpStream::connect(address(server)).await.unwrap();
        // One that was told to make room has been closed; so it goes.
        let _closed = half.write_all(b"GET /livez HT").await;
        halves.push(half);
    }
    halves
}

/// Whether the host answers before long.
async fn health(server: &Server) -> Result<(), String> {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let reply =
        client.get(format!("{}/health", server.base())).send().await.map_err(|e| format!("no health: {e:?}"))?;
    if reply.status() == 200 { Ok(()) } else { Err(format!("health is {}", reply.status())) }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_requests_by_the_thousand_keep_nobody_out() {
    // The usual soft limit, and a hard one that leaves as much as a test may take.
    for before in ["ulimit -Sn 1024", "ulimit -n 512"] {
        let server = host(Some(before), "");
        assert_eq!(limit(&server, 0), limit(&server, 1), "the soft limit is raised");
        let halves = half_heads(&server, 1500).await;
        health(&server).await.unwrap();
        // A cold model needs descriptors of its own.
        let (status, body) = server.chat("a", "still here").await;
        assert_eq!((status, text(&body)), (200, "still here"));
        drop(halves);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stays_for_ever_keeps_no_probe_out() {
    let server = host(None, "limits: {connections: 128, connections_per_peer: 128}\n");
    // Readers of a log that says nothing, which nothing ends: only some may be.
    let mut followers = Vec::new();
    for _ in 0..100 {
        let follower = client().get(format!("{}/logs/a?follow=true", server.base())).send().await.unwrap();
        followers.push(follower);
    }
    let statuses: Vec<u16> = followers.iter().map(|follower| follower.status().as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 64, "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    // One that ends makes room.
    followers.retain(|follower| follower.status() == 200);
    followers.pop();
    let another =
        eventually(async || match client().get(format!("{}/logs/a?follow=true", server.base())).send().await {
            Ok(follower) if follower.status() == 200 => Ok(follower),
            answer => Err(format!("{answer:?}")),
        })
        .await;
    let long = chat("a", &"word ".repeat(5000));
    // Answers by the hundred take every place that there is, and a probe has one all the same.
    let streams: Vec<_> = futures_util::future::join_all((0..64).map(|_| server.stream(&long))).await;
    health(&server).await.unwrap();
    assert_eq!(server.get("/livez").await.0, 200);
    assert_eq!(client().get(format!("{}/v1/models", server.base())).send().await.unwrap().status(), 503);
    drop((followers, another, streams));
}

#[tokio::test(flavor = "multi_thread")]
async fn half_bodies_by_the_hundred_keep_nobody_out() {
    let server = host(None, "limits: {connections: 200}\n");
    let mut halves = Vec::new();
    for _ in 0..400 {
        let mut half = TcpStream::connect(address(&server)).await.unwrap();
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
        let _closed = half.write_all(head.as_bytes()).await;
        halves.push(half);
    }
    // While none of them is old enough to make room, a client is told to try again.
    let url = format!("{}/v1/chat/completions", server.base());
    eventually(async || match client().post(&url).json(&chat("a", "hi")).send().await {
        Ok(answer) if answer.status() == 200 => Ok(()),
        refused => Err(format!("{refused:?}")),
    })
    .await;
    health(&server).await.unwrap();
}

/// Node's `fetch` sends all of a body whatever comes back, and loses the answer if the connection breaks meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_fetch_sees_why_it_is_refused() {
    if Command::new("node").arg("--version").output().is_err() {
        eprintln!(
            "there is no `node` here: Node's fetch is not tried; http::tests::sockets does the same with plain sockets"
        );
        return;
    }
    let server = host(None, "api_keys: s3cret\n");
    let script = r#"
        const [base, key, megabytes] = process.argv.slice(1);
        const seen = {};
        for (let i = 0; i < 10; i++) {
            const body = "x".repeat(Number(megabytes) << 20);
            const headers = {"authorization": "Bearer " + key, "content-type": "application/json"};
            try {
                const reply = await fetch(base + "/v1/chat/completions", {method: "POST", headers, body});
                await reply.json();
                seen[reply.status] = (seen[reply.status] ?? 0) + 1;
            } catch (error) {
                const code = error.cause?.code ?? String(error);
                seen[code] = (seen[code] ?? 0) + 1;
            }
        }
        console.log(JSON.stringify(seen));
    "#;
    for (key, megabytes, wanted) in [("wrong", "5", "401"), ("wrong", "40", "401"), ("s3cret", "40", "413")] {
        let arguments = ["--input-type=module", "-e", script, "--", server.base(), key, megabytes];
        let output = Command::new("node").args(arguments).output().unwrap();
        let seen: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(seen, json!({wanted: 10}), "key {key}, {megabytes} MB");
    }
}

/// The same for a client that writes everything before it reads, as Python's http.client does.
#[test]
fn a_client_that_writes_all_before_it_reads_sees_why_it_is_refused() {
    use std::io::{Read, Write};
    let server = host(None, "api_keys: s3cret\n");
    for (key, status) in [("wrong", "401"), ("s3cret", "413")] {
        let mut client = std::net::TcpStream::connect(address(&server)).unwrap();
        let length = 40 << 20;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-api-key: {key}\r\nContent-Length: {length}\r\n\r\n"
        );
        client.write_all(head.as_bytes()).unwrap();
        for _ in 0..40 {
            client.write_all(&vec![b'x'; 1 << 20]).unwrap();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_client_gets_its_answer_from_a_cold_model() {
    use tokio::io::AsyncReadExt;
    let server = host(None, "");
    for stream in [false, true] {
        let mut body = chat("a", "one two three");
        body["stream"] = json!(stream);
        let body = body.to_string();
        let mut client = TcpStream::connect(address(&server)).await.unwrap();
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        client.write_all((head + &body).as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains("three") && answer.contains("stop"), "{answer}");
    }
}

/// A request of many choices leaves room for its neighbour in slots and queue alike.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_many_choices_does_not_starve_its_neighbour() {
    let gate = Gate::closed();
    let options = format!("{{fault: progress_only, gate: {}}}", gate.path().display());
    let yaml =
        format!("limits: {{queue: 2}}\nmodels:\n  a: {{type: text, plugin: aihost/faulty, options: {options}}}\n");
    let server = Server::start(&Setup { yaml, plugins: vec!["faulty"], ..Setup::default() });
    let ask = |choices: usize| {
        let mut body = chat("a", "hi");
        body["n"] = json!(choices);
        let request = client().post(format!("{}/v1/chat/completions", server.base())).json(&body);
        tokio::spawn(async move { request.send().await.unwrap().status().as_u16() })
    };
    // Cold, with more choices than the queue has places. The plugin serves four at a time.
    let greedy = ask(64);
    server.until("a", "active", json!(4)).await;
    server.until("a", "queued", json!(1)).await;
    let neighbour = ask(1);
    server.until("a", "queued", json!(2)).await;
    assert_eq!(ask(1).await.unwrap(), 429, "the queue is full only now");
    gate.open();
    assert_eq!((greedy.await.unwrap(), neighbour.await.unwrap()), (200, 200));
}
