//! Many hands at once: loads and unloads of one model, and clients that send nonsense or hang up. The host stays live and
//! says only what it may say.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use aihost_tests::server::{Server, Setup, text};
use serde_json::{Value, json};

const HANDS: u64 = 32;

fn server(options: &str) -> Server {
    let yaml = format!("models:\n  a:\n    type: text\n    plugin: aihost/echo\n    options: {options}\n");
    Server::start(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() })
}

/// Runs `hand` on so many threads, each with a client of its own.
fn hands<T: Send>(count: u64, hand: impl Fn(u64) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let hand = &hand;
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || hand(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a hand")).collect()
    })
}

/// One request over a connection of its own: status and body.
fn post(address: &str, path: &str, body: &str) -> (u16, Value) {
    let mut socket = TcpStream::connect(address).expect("a connection");
    socket.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
    write!(
        socket,
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn address(server: &Server) -> String {
    server.base().trim_start_matches("http://").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_model_is_loaded_and_unloaded_by_32_hands() {
    const ROUNDS: u64 = 16;
    let server = server("{load_ms: 5}");
    let address = address(&server);
    let answers = hands(HANDS, |number| {
        let round = |round| {
            let (path, body) = match (number + round) % 4 {
                0 => ("/models/unload", json!({"model": "a"})),
                1 | 2 => ("/models/load", json!({"model": "a"})),
                _ => (
                    "/v1/chat/completions",
                    json!({"model": "a", "messages": [{"role": "user", "content": format!("{number}-{round}")}]}),
                ),
            };
            let (status, answer) = post(&address, path, &body.to_string());
            (path, status, answer, format!("{number}-{round}"))
        };
        (0..ROUNDS).map(round).collect::<Vec<_>>()
    });
    for (path, status, body, asked) in answers.into_iter().flatten() {
        match status {
            200 if path == "/v1/chat/completions" => assert_eq!(text(&body), asked),
            200 => assert_eq!(body, json!({"success": true}), "{path}"),
            // Who waited for a load that the operator took back is told so, and nothing else ever.
            503 => {
                assert_eq!(body["error"]["code"], "shutting_down", "{path}: {body}");
            }
            _ => panic!("{path}: {status} {body}"),
        }
    }
    assert_eq!(server.chat("a", "still here").await.0, 200);
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    assert_eq!((server.status("a", "state").await, server.status("a", "active").await), (json!("cold"), json!(0)));
}

/// What clients do that know no manners.
fn misbehave(address: &str, number: u64) {
    let whole = json!({"model": "a", "stream": true, "messages": [{"role": "user", "content": "word ".repeat(200)}]});
    let whole = whole.to_string();
    let head = |length: usize| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut socket = TcpStream::connect(address).expect("a connection");
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut answer = [0; 512];
    match number % 6 {
        // Hangs up without a word, in the head, in the body, after the head of the answer, in mid-stream.
        0 => {}
        1 => drop(socket.write_all(&head(whole.len()).as_bytes()[..40])),
        2 => drop(socket.write_all((head(whole.len()) + &whole[..whole.len() / 2]).as_bytes())),
        3 => drop(socket.write_all((head(whole.len()) + &whole).as_bytes())),
        4 => {
            socket.write_all((head(whole.len()) + &whole).as_bytes()).expect("sent");
            assert!(socket.read(&mut answer).expect("the head of an answer") > 0);
        }
        // No JSON, and no HTTP.
        _ => {
            let nonsense =
                ["{\"model\": \"a\", \"messages\": [", "\u{0}\u{1}\u{2}", "[[[[[[[[[["][(number / 6 % 3) as usize];
            let (status, body) = post(address, "/v1/chat/completions", nonsense);
            assert_eq!(status, 400, "{body}");
            drop(socket.write_all(b"\x16\x03\x01 no http at all\r\n\r\n"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_manners_cost_nobody_else_anything() {
    let server = server("{latency_ms: 1}");
    let address = address(&server);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let worker = server.status("a", "pid").await;
    let polite = |number: u64| {
        for round in 0..20 {
            let body = json!({"model": "a", "messages": [{"role": "user", "content": format!("{number} {round}")}]});
            let (status, answer) = post(&address, "/v1/chat/completions", &body.to_string());
            assert_eq!((status, text(&answer)), (200, format!("{number} {round}").as_str()));
        }
    };
    hands(12, |number| {
        if number < 4 {
            polite(number);
        } else {
            (0..30).for_each(|round| misbehave(&address, number + round));
        }
    });
    server.until("a", "active", json!(0)).await;
    assert_eq!(server.status("a", "pid").await, worker);
    assert_eq!(server.chat("a", "still here").await.0, 200);
}
