//! Every way the faulty plugin can misbehave, seen from a client: a clear error, and the other model goes on.

use aihost_tests::Gate;
use aihost_tests::server::{Server, Setup, chat, text};
use serde_json::json;

fn server(options: &str) -> Server {
    let yaml = format!(
        "models:\n  good:\n    type: text\n    plugin: aihost/echo\n  bad:\n    type: text\n    plugin: aihost/faulty\n    startup_time: 2\n    default_max_tokens: 8\n    options: {options}\n"
    );
    Server::start(&Setup { yaml, plugins: vec!["echo", "faulty"], ..Setup::default() })
}

/// The bad model answers with this status and words; the good one still answers, from the same worker as before.
async fn check(options: &str, status: u16, words: &[&str]) {
    let server = server(options);
    assert_eq!(server.chat("good", "still here").await.0, 200);
    let worker = server.status("good", "pid").await;
    let (got, body) = server.chat("bad", "x y z").await;
    assert_eq!(got, status, "{options}: {body}");
    let message = body["error"]["message"].as_str().unwrap_or_default();
    let told = format!("{message} {}", server.status("bad", "error").await);
    for word in words {
        assert!(told.contains(word), "{options}: `{word}` is not in: {told}");
    }
    for key in ["message", "type", "param", "code"] {
        assert!(body["error"].get(key).is_some(), "{options}: no `{key}` in {body}");
    }
    let (status, body) = server.chat("good", "still here").await;
    assert_eq!((status, text(&body)), (200, "still here"));
    assert_eq!(server.status("good", "pid").await, worker);
}

#[tokio::test]
async fn load_error() {
    check("{fault: load_error}", 500, &[]).await;
}

#[tokio::test]
async fn panics() {
    check("{fault: panic_in_new}", 500, &["panic"]).await;
    check("{fault: panic_in_plan}", 500, &["panic"]).await;
    check("{fault: panic_in_load}", 500, &["panic"]).await;
    check("{fault: panic_in_generate}", 500, &["panic"]).await;
}

#[tokio::test]
async fn a_load_blames_no_client_and_is_stopped_by_nobody() {
    check("{fault: stop_in_new}", 500, &["nobody asked for", "stopped, as asked"]).await;
    check("{fault: stop_in_load}", 500, &["nobody asked for", "stopped, as asked"]).await;
    check("{fault: blame_in_load}", 500, &["n is blamed, as asked"]).await;
}

#[tokio::test]
async fn a_panic_after_a_requests_end_is_not_the_next_ones() {
    let server = server("{fault: panic_after_end}");
    for _ in 0..5 {
        let (status, body) = server.chat("bad", "x").await;
        assert_eq!((status, text(&body)), (200, "word ".repeat(8).as_str()), "{body}");
    }
    let told = server.logged("its plugin panicked").await;
    assert!(!told.contains("exited by itself"), "{told}");
}

#[tokio::test]
async fn abort() {
    check("{fault: abort}", 500, &["SIGABRT"]).await;
}

#[tokio::test]
async fn segfault() {
    check("{fault: segfault}", 500, &["signal 11"]).await;
}

#[tokio::test]
async fn exit_by_itself() {
    check("{fault: exit0}", 500, &["exited by itself"]).await;
}

#[tokio::test]
async fn hang_in_load() {
    check("{fault: hang_load}", 504, &["bad", "startup_time"]).await;
}

#[tokio::test]
async fn noise_on_stdout_harms_nothing() {
    let server = server("{fault: stdout_noise}");
    assert_eq!(server.chat("bad", "x").await.0, 200);
}

#[tokio::test]
async fn a_stream_that_had_begun_ends_with_a_framed_error() {
    let gate = Gate::closed();
    let server = server(&format!("{{fault: segfault, after_tokens: 2, gate: {}}}", gate.path().display()));
    let mut stream = server.stream(&chat("bad", "one two three four")).await;
    let begin = stream.chunk().await.expect("a stream").expect("its begin");
    assert!(str::from_utf8(&begin).is_ok_and(|begin| begin.contains("chunk")), "{begin:?}");
    gate.open();
    let body = stream.text().await.expect("a whole body");
    let events: Vec<&str> = body.split("\n\n").filter(|event| !event.is_empty()).collect();
    assert_eq!(events.last(), Some(&"data: [DONE]"), "{body}");
    assert!(events.iter().rev().nth(1).is_some_and(|event| event.contains("\"error\"")), "{body}");
}

#[tokio::test]
async fn a_request_whose_worker_died_is_tried_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let once = folder.path().join("once");
    let server = server(&format!("{{fault: segfault, once_file: {}}}", once.display()));
    let (status, body) = server.chat("bad", "hi").await;
    assert_eq!(status, 200, "{body}");
    assert!(text(&body).starts_with("word"), "{body}");
    assert_eq!(server.status("bad", "loads").await, 2);
}

#[tokio::test]
async fn an_answer_that_nobody_saw_a_part_of_is_begun_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let once = folder.path().join("once");
    let server = server(&format!("{{fault: segfault, after_tokens: 3, once_file: {}}}", once.display()));
    let (status, body) = server.chat("bad", "hi").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(text(&body).split_whitespace().count(), 8, "{body}");
    assert_eq!(server.status("bad", "loads").await, 2);
}

#[tokio::test]
async fn a_request_that_kills_every_worker_is_refused_for_a_while_and_others_are_not() {
    let server = server("{fault: segfault}");
    assert_eq!(server.chat("bad", "poison").await.0, 500);
    let loads = server.status("bad", "loads").await;
    assert_eq!(loads, json!(3));
    let (status, body) = server.chat("bad", "poison").await;
    assert_eq!((status, &body["error"]["code"]), (500, &json!("request_suspected")));
    assert_eq!(server.status("bad", "loads").await, loads, "a suspect costs no worker");
}
