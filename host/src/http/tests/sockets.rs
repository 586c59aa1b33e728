//! Real sockets: clients that say half of it, end their side, send on after a refusal, or come in numbers.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::live::{Listening, listening};
use super::*;

const CHAT: &str = "/v1/chat/completions";

/// A request of this head and body, as bytes.
fn asking(line: &str, body: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

async fn connected(address: SocketAddr, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(bytes.as_ref()).await.unwrap();
    client
}

/// All that is answered until the other side ends.
async fn rest(client: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A host that serves these models and answers with this script.
async fn host(config: Config, script: Script) -> Listening {
    let (commands, received) = mpsc::channel(64);
    tokio::spawn(fake_loop(received, script, Arc::default()));
    listening(Handle::new(commands, tokio::sync::watch::channel(Arc::new(config)).1, super::no_plugins())).await
}

impl Listening {
    async fn end(self) {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_has_ended_its_side_gets_its_answer() {
    for (version, stream) in [("1.1", false), ("1.1", true), ("1.0", false), ("1.0", true)] {
        let (outputs, receiver) = mpsc::channel(4);
        let (handle, submitted) = handle_answering(receiver);
        let host = listening(handle).await;
        let request = asking(&format!("POST {CHAT}"), &chat(&json!({"stream": stream})).to_string());
        let mut client = connected(host.address, request.replace("HTTP/1.1", &format!("HTTP/{version}"))).await;
        client.shutdown().await.unwrap();
        submitted.await.unwrap();
        // The answer's first byte, sent to see whether the client is there. Only now does it come.
        let mut first = [0];
        client.read_exact(&mut first).await.unwrap();
        assert!(!outputs.is_closed(), "the request was cancelled");
        outputs.send(text("Hel")).await.unwrap();
        outputs.send(text("lo")).await.unwrap();
        outputs.send(done("stop")).await.unwrap();
        drop(outputs);
        let answer = char::from(first[0]).to_string() + &rest(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/{version} 200 OK\r\n")), "{answer}");
        let wanted = if stream { "data: [DONE]" } else { r#""content":"Hello""# };
        assert!(answer.contains(wanted), "{answer}");
        host.end().await;
    }
}

#[tokio::test]
async fn all_requests_of_a_client_that_then_ended_its_side_are_answered() {
    let host = host(config(), hello).await;
    let request = asking(&format!("POST {CHAT}"), &chat(&json!({})).to_string());
    let mut client = connected(host.address, request.repeat(3)).await;
    client.shutdown().await.unwrap();
    let answers = rest(&mut client).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert_eq!(answers.matches(r#""content":"Hello""#).count(), 3, "{answers}");
    host.end().await;
}

#[tokio::test]
async fn a_client_that_ends_its_side_and_then_leaves_cancels_its_request() {
    for (stream, reads) in [(false, false), (false, true), (true, false), (true, true)] {
        let (outputs, receiver) = mpsc::channel(4);
        let (handle, submitted) = handle_answering(receiver);
        let host = listening(handle).await;
        let request = asking(&format!("POST {CHAT}"), &chat(&json!({"stream": stream})).to_string());
        let mut client = connected(host.address, request).await;
        client.shutdown().await.unwrap();
        submitted.await.unwrap();
        if stream {
            outputs.send(text("Hel")).await.unwrap();
        }
        if reads {
            client.read_exact(&mut [0]).await.unwrap();
        }
        drop(client);
        // A second one follows, and comes back; of an event stream it is a comment.
        outputs.closed().await;
        host.end().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_behind_a_request_it_sent_ahead() {
    let (outputs, receiver) = mpsc::channel(4);
    let (handle, submitted) = handle_answering(receiver);
    let host = listening(handle).await;
    let request = asking(&format!("POST {CHAT}"), &chat(&json!({})).to_string());
    let client = connected(host.address, request.repeat(2)).await;
    submitted.await.unwrap();
    drop(client);
    outputs.closed().await;
    host.end().await;
}

/// A refusal that does not need the body must reach a client that sends all of it before it reads.
#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let mut config = Config { api_keys: keys(&["k"]), ..config() };
    config.limits.body_limit = Some(ByteSize(1 << 20));
    let host = host(config, hello).await;
    let body = "x".repeat(40 << 20);
    for (line, status) in [
        (format!("POST {CHAT}"), 401),
        (format!("POST {CHAT} HTTP/1.1\r\nx-api-key: k\r\nx-rest:"), 413),
        ("POST /nowhere HTTP/1.1\r\nx-api-key: k\r\nx-rest:".to_owned(), 404),
        ("PUT /v1/models HTTP/1.1\r\nx-api-key: k\r\nx-rest:".to_owned(), 405),
        (format!("POST {CHAT} HTTP/1.1\r\nx-api-key: k\r\nContent-Type: text/plain\r\nx-rest:"), 400),
    ] {
        let mut client = connected(host.address, asking(&line, &body)).await;
        let answer = rest(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    }
    host.end().await;
}

/// What every reply carries, though this one was made where there was no request.
fn assert_is_whole_refusal(answer: &str, code: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    for name in
        ["x-request-id: req_", "openai-version: ", "openai-processing-ms: ", "cache-control: no-store", "date: "]
    {
        assert!(head.contains(&format!("\r\n{name}")), "no {name}: {answer}");
    }
    let error = &serde_json::from_str::<Value>(body).unwrap()["error"];
    assert_eq!(error["code"], code, "{answer}");
    assert!(["message", "type", "param"].iter().all(|key| error.get(key).is_some()), "{answer}");
}

#[tokio::test]
async fn a_body_is_asked_for_once_it_is_wanted_and_other_expectations_are_refused() {
    let host = host(Config { api_keys: keys(&["k"]), ..config() }, hello).await;
    let body = chat(&json!({})).to_string();
    let asking = |key: &str, expectation: &str| {
        let length = body.len();
        format!(
            "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\nContent-Length: {length}\r\nConnection: close\r\nExpect: {expectation}\r\n\r\n"
        )
    };
    for expectation in ["100-continue", "100-Continue"] {
        let mut client = connected(host.address, asking("k", expectation)).await;
        let mut interim = [0; 25];
        client.read_exact(&mut interim).await.unwrap();
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(body.as_bytes()).await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("Hello"), "{answer}");
    }
    // A refusal comes without asking for the body.
    for (key, expectation, status, code) in
        [("no", "100-continue", 401, "invalid_api_key"), ("k", "tea", 417, "unknown_expectation")]
    {
        let mut client = connected(host.address, asking(key, expectation)).await;
        client.shutdown().await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert_is_whole_refusal(&answer, code);
    }
    let old = asking("k", "tea").replace("HTTP/1.1", "HTTP/1.0");
    assert!(rest(&mut connected(host.address, old + &body).await).await.starts_with("HTTP/1.0 200"));
    host.end().await;
}

#[tokio::test]
async fn heads_that_are_no_http_are_refused_in_json() {
    let host = host(config(), hello).await;
    for (head, status) in [
        ("GARBAGE\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 505),
        ("\r\nGET / HTTP/2\r\n\r\n".to_owned(), 505),
        ("GET / HTTP/x\r\n\r\n".to_owned(), 400),
        ("GET /\u{7f} HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)), 414),
        (format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(65 << 10)), 431),
        (format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200)), 431),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(), 400),
    ] {
        let mut client = connected(host.address, &head).await;
        let answer = rest(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{}: {answer}", &head[..20.min(head.len())]);
        assert_is_whole_refusal(&answer, "bad_head");
    }
    // A head just below the limit is read.
    let head =
        format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nx: {}\r\n\r\n", "x".repeat(60 << 10));
    assert!(rest(&mut connected(host.address, head).await).await.starts_with("HTTP/1.1 200"));
    host.end().await;
}

#[tokio::test]
async fn silent_connections_make_room_for_new_ones() {
    let mut config = config();
    (config.limits.connections, config.limits.connections_per_peer) = (Some(8), Some(8));
    let host = host(config, hello).await;
    let mut halves = Vec::new();
    for number in 0..40 {
        halves.push(connected(host.address, if number % 2 == 0 { "GET /livez HT" } else { "" }).await);
    }
    let quick = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert!(rest(&mut connected(host.address, quick).await).await.starts_with("HTTP/1.1 200"));
    // The oldest ones are gone, the youngest are still served.
    assert!(!matches!(halves[0].read(&mut [0]).await, Ok(1..)));
    let mut youngest = halves.pop().unwrap();
    youngest.write_all(quick.as_bytes()).await.unwrap();
    assert!(rest(&mut youngest).await.starts_with("HTTP/1.1 200"));
    host.end().await;
}

#[tokio::test]
async fn who_is_being_answered_keeps_its_place_and_one_too_many_is_told() {
    let (outputs, receiver) = mpsc::channel(4);
    let (commands, mut received) = mpsc::channel(8);
    let mut config = config();
    (config.limits.connections, config.limits.connections_per_peer) = (Some(4), Some(2));
    let host =
        listening(Handle::new(commands, tokio::sync::watch::channel(Arc::new(config)).1, super::no_plugins())).await;
    let request = asking(&format!("POST {CHAT}"), &chat(&json!({})).to_string());
    let mut waiting = Vec::new();
    let mut asks = Vec::new();
    for _ in 0..2 {
        waiting.push(connected(host.address, &request).await);
        match received.recv().await.unwrap() {
            Command::Submit(_, reply) => asks.push(reply),
            other => panic!("{other:?}"),
        }
    }
    let answer = rest(&mut connected(host.address, &request).await).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("overloaded"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("retry-after: 2"), "{answer}");
    asks.remove(0).send(Ok(Answer { request: RequestId(1), output: receiver })).unwrap();
    outputs.send(done("stop")).await.unwrap();
    let mut status = [0; 12];
    waiting[0].read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    drop((asks, waiting));
    host.end().await;
}

/// Time passes at once where nobody has anything to do, so the limits are met in no time.
#[tokio::test(start_paused = true)]
async fn a_body_that_dribbles_is_not_waited_for() {
    let host = host(config(), hello).await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n");
    let client = connected(host.address, head).await;
    let (mut reading, mut writing) = client.into_split();
    let begun = tokio::time::Instant::now();
    let dribbling = tokio::spawn(async move {
        while writing.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
    let mut status = [0; 12];
    reading.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 408");
    assert!((30..40).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    drop(reading);
    dribbling.await.unwrap();
    host.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_kept_and_not_used_is_closed() {
    let host = host(config(), hello).await;
    let mut client = connected(host.address, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let begun = tokio::time::Instant::now();
    assert!(rest(&mut client).await.starts_with("HTTP/1.1 200"));
    assert!((75..77).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    host.end().await;
}

/// A client that asks for much and reads none of it holds its connection no longer than a stream may stand still.
#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_reads_is_given_up() {
    let (outputs, receiver) = mpsc::channel(1);
    let (handle, submitted) = handle_answering(receiver);
    let host = listening(handle).await;
    let request = asking(&format!("POST {CHAT}"), &chat(&json!({"stream": true})).to_string());
    let client = connected(host.address, request).await;
    submitted.await.unwrap();
    let begun = tokio::time::Instant::now();
    while outputs.send(text(&"x".repeat(1 << 20))).await.is_ok() {}
    assert!((60..70).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    drop(client);
    host.end().await;
}
