//! Its routes: `/health`, what it is told of itself, and the control routes of servers that make images.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::http::Asked;
use super::{Stand, end_by, websocket};

/// How long a render takes that does not say.
const RENDER_S: f64 = 20.0;

/// Answers one request; whether there may be another on this connection.
pub(crate) fn answer(
    mut client: &TcpStream,
    lines: &mut BufReader<TcpStream>,
    stand: &Stand,
    asked: &Asked,
) -> io::Result<bool> {
    let sent: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    match (asked.method.as_str(), asked.path.as_str()) {
        (_, "/health") if stand.is_healthy() => say(client, "200 OK", "text/plain", b"ok")?,
        (_, "/health") => say(client, "503 Service Unavailable", "text/plain", b"not yet")?,
        (_, "/about") => tell(client, &about())?,
        (_, "/echo") => {
            let echoed = [asked.head.as_bytes(), &asked.body].concat();
            say(client, "201 Created\r\nX-Mine: 7", "x/y", &echoed)?;
        }
        (_, "/count") => count(client)?,
        (_, "/clock") => clock(client)?,
        (_, "/v1/completions") if sent["stream"] == true => write_on(client)?,
        (_, "/exit") => {
            say(client, "200 OK", "text/plain", b"it exits")?;
            std::process::exit(asked.query("code").and_then(|code| code.parse().ok()).unwrap_or(0));
        }
        (_, "/die") => {
            say(client, "200 OK", "text/plain", b"it dies")?;
            end_by(asked.query("signal").and_then(|signal| signal.parse().ok()).unwrap_or(9));
        }
        ("GET", "/ws") => {
            let accepted = websocket::accept(asked.header("sec-websocket-key").unwrap_or_default());
            write!(
                client,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accepted}\r\n\r\n"
            )?;
            websocket::echo(client, lines)?;
            return Ok(false);
        }
        ("POST", "/free") => {
            stand.renders.free();
            say(client, "200 OK", "text/plain", b"")?;
        }
        ("POST", "/prompt") => {
            let typed = asked.query("seconds").and_then(|seconds| seconds.parse().ok());
            let takes = sent["seconds"].as_f64().or(typed).unwrap_or(RENDER_S);
            let number = stand.renders.queue(Duration::from_secs_f64(takes));
            tell(client, &json!({"prompt_id": number.to_string(), "number": number, "node_errors": {}}))?;
        }
        _ if let Some((status, body)) = stand.language.answer(stand, asked, &sent) => {
            say(client, status, "application/json", body.to_string().as_bytes())?;
        }
        (_, path) => tell(client, &state(stand, path).unwrap_or_else(|| work(asked, &sent)))?,
    }
    Ok(true)
}

/// What the control routes say; nothing for other paths.
fn state(stand: &Stand, path: &str) -> Option<Value> {
    let now = stand.renders.now();
    let item = |number: &u64| json!([number, number.to_string(), {}, {}, []]);
    Some(match path {
        "/queue" => json!({
            "queue_running": now.running.iter().map(item).collect::<Vec<_>>(),
            "queue_pending": now.pending.iter().map(item).collect::<Vec<_>>(),
        }),
        "/history" => {
            now.done.iter().map(|number| (number.to_string(), json!({"status": {"completed": true}}))).collect()
        }
        "/system_stats" => json!({"system": {"os": "posix"}, "devices": [], "freed": now.freed}),
        "/sdapi/v1/progress" => json!({
            "progress": if now.running.is_some() { 0.5 } else { 0.0 },
            "state": {"job_count": now.pending.len() + usize::from(now.running.is_some())},
        }),
        _ => return None,
    })
}

/// What it says to what it has no route for: what it was asked.
fn work(asked: &Asked, sent: &Value) -> Value {
    json!({"by": "stand-in", "pid": std::process::id(), "method": asked.method, "path": asked.path, "query": asked.query, "model": sent["model"], "bytes": asked.body.len()})
}

fn about() -> Value {
    let variables =
        std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into(), value.to_string_lossy().into()));
    json!({
        "pid": std::process::id(),
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        "folder": std::env::current_dir().unwrap_or_default(),
        "env": Value::Object(variables.collect()),
    })
}

fn count(mut client: &TcpStream) -> io::Result<()> {
    write!(client, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")?;
    for number in 0u64.. {
        write!(client, "data: {number}\n\n")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Says every 10 ms what its clock shows, nanoseconds since 1970, so that a client sees how long that was on its way.
fn clock(mut client: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")?;
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        client.write_all(format!("data: {}\n\n", now.as_nanos()).as_bytes())?;
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Says a word every 10 ms, as a completion without an end, in chunks: where they break off, more was to come.
fn write_on(mut client: &TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let choice = json!({"index": 0, "text": " 8", "finish_reason": null});
    let event = format!("data: {}\n\n", json!({"object": "text_completion", "choices": [choice]}));
    loop {
        client.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn tell(client: &TcpStream, body: &Value) -> io::Result<()> {
    say(client, "200 OK", "application/json", body.to_string().as_bytes())
}

fn say(mut client: &TcpStream, status: &str, media: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {length}\r\n\r\n");
    client.write_all(&[head.as_bytes(), body].concat())
}
