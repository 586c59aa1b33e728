//! One question to an engine, such as for its health: a fresh connection, within a time limit. Mostly the status alone counts.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Most bytes of an answer's head.
const HEAD_BYTES: usize = 64 << 10;
/// Most bytes of an answer that is read.
const BODY_BYTES: usize = 1 << 20;

/// In this version an answer comes in one piece, up to the end of the connection.
const HTTP_1_0: &str = "1.0";

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 2xx.
    Good,
    /// Another status.
    Bad(u16),
    /// Nothing yet: why.
    Silent(String),
    /// Something that is no HTTP: what is wrong with it.
    Strange(String),
}

/// Asks. Takes no longer than `limit`.
pub(crate) fn ask(address: SocketAddr, path: &str, limit: Duration) -> Answer {
    let head = head("GET", path, "1.1", address);
    told(exchange(address, &format!("{head}\r\n"), Instant::now() + limit).map(|(answer, _)| answer), limit)
}

/// Sends a body of JSON, or none, of whose answer the status counts as well.
pub(crate) fn post(address: SocketAddr, path: &str, body: &str, limit: Duration) -> Answer {
    let asked = format!("{}{}", head("POST", path, "1.1", address), with_body(body));
    told(exchange(address, &asked, Instant::now() + limit).map(|(answer, _)| answer), limit)
}

/// The same, with the answer: JSON, or nothing if it is none.
pub(crate) fn post_for_json(
    address: SocketAddr,
    path: &str,
    body: &str,
    limit: Duration,
) -> (Answer, Option<serde_json::Value>) {
    for_json(address, &format!("{}{}", head("POST", path, HTTP_1_0, address), with_body(body)), limit)
}

/// Asks, with the answer.
pub(crate) fn get_for_json(address: SocketAddr, path: &str, limit: Duration) -> (Answer, Option<serde_json::Value>) {
    for_json(address, &format!("{}\r\n", head("GET", path, HTTP_1_0, address)), limit)
}

fn for_json(address: SocketAddr, asked: &str, limit: Duration) -> (Answer, Option<serde_json::Value>) {
    let until = Instant::now() + limit;
    match exchange(address, asked, until) {
        Ok((answer, (stream, begun))) => (answer, rest(stream, begun, until).ok()),
        Err(error) => (told(Err(error), limit), None),
    }
}

fn head(method: &str, path: &str, version: &str, address: SocketAddr) -> String {
    format!("{method} {path} HTTP/{version}\r\nHost: {address}\r\nAccept: */*\r\nConnection: close\r\n")
}

fn with_body(body: &str) -> String {
    let media = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    format!("{media}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// What no answer is told as.
fn told(answer: io::Result<Answer>, limit: Duration) -> Answer {
    answer.unwrap_or_else(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Answer::Silent(format!("no answer in {} s", limit.as_secs())),
        _ => Answer::Silent(error.to_string()),
    })
}

/// The answer's status, and what came of it so far.
fn exchange(address: SocketAddr, asked: &str, until: Instant) -> io::Result<(Answer, (TcpStream, Vec<u8>))> {
    let mut stream = TcpStream::connect_timeout(&address, left(until)?)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(left(until)?))?;
    // In one piece: whoever answers to a part of it and closes would have the rest come back as a broken connection.
    stream.write_all(asked.as_bytes())?;
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(until)?))?;
        let read = stream.read(&mut piece)?;
        head.extend_from_slice(&piece[..read]);
        if head.windows(4).any(|end| end == b"\r\n\r\n") || read == 0 {
            return Ok((status(&head), (stream, head)));
        }
        if head.len() > HEAD_BYTES {
            let why = format!("the head of its answer is longer than {HEAD_BYTES} bytes");
            return Ok((Answer::Strange(why), (stream, head)));
        }
    }
}

/// The body of an answer of which this has come: as long as it says, or up to the end of the connection.
fn rest(mut stream: TcpStream, mut begun: Vec<u8>, until: Instant) -> io::Result<serde_json::Value> {
    let head = begun.windows(4).position(|end| end == b"\r\n\r\n").ok_or(ErrorKind::InvalidData)? + 4;
    let length = length(&begun[..head]).unwrap_or(usize::MAX);
    let mut piece = [0; 4096];
    while begun.len() - head < length {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut piece)? {
            0 => break,
            read if begun.len() - head + read <= BODY_BYTES => begun.extend_from_slice(&piece[..read]),
            _ => return Err(ErrorKind::FileTooLarge.into()),
        }
    }
    let end = begun.len().min(head.saturating_add(length));
    Ok(serde_json::from_slice(&begun[head..end])?)
}

/// What a head says of the body's length.
fn length(head: &[u8]) -> Option<usize> {
    let head = String::from_utf8_lossy(head);
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?.1.trim().parse().ok()
}

/// From the first line: `HTTP/1.1 200 OK`.
fn status(head: &[u8]) -> Answer {
    if head.is_empty() {
        return Answer::Silent("it closed the connection".to_owned());
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    match words.next().filter(|code| is_http && code.len() == 3).and_then(|code| code.parse().ok()) {
        Some(200..300) => Answer::Good,
        Some(code) => Answer::Bad(code),
        None => {
            let begun: String = line.chars().take(60).collect();
            Answer::Strange(format!("its answer begins with `{}`", begun.escape_debug()))
        }
    }
}

/// Time that is left; none is a timeout.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

impl Answer {
    /// Whether there is no such route, or not for this model.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Bad(400 | 404 | 405 | 422 | 501))
    }

    /// As a part of a sentence: "its health ...".
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Good => "is good".to_owned(),
            Self::Bad(code) => format!("answers {code}"),
            Self::Silent(why) => format!("does not answer: {why}"),
            Self::Strange(why) => format!("is no HTTP: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    /// What a server that says this, or repeats it for ever, is taken for.
    fn heard(said: &'static [u8], times: usize, limit: Duration) -> Answer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let _asked = client.read(&mut [0; 1024]);
            let all = (0..times).all(|_| client.write_all(said).is_ok());
            // Until it is left.
            let _left = all && client.read(&mut [0; 1]).is_ok();
        });
        let answer = ask(address, "/health", limit);
        serving.join().unwrap();
        answer
    }

    #[test]
    fn a_status_is_what_counts_and_nothing_is_endless() {
        let (long, short) = (Duration::from_secs(20), Duration::from_millis(50));
        assert_eq!(heard(b"HTTP/1.1 204 \r\n\r\n", 1, long), Answer::Good);
        assert_eq!(heard(b"HTTP/1.0 503 Not Yet\r\na: b\r\n\r\nbody", 1, long), Answer::Bad(503));
        assert_eq!(heard(b"HTTP/1.1 302 Found\r\n\r\n", 1, long), Answer::Bad(302));
        assert!(matches!(heard(b"SSH-2.0-x\r\n\r\n", 1, long), Answer::Strange(why) if why.contains("SSH-2.0")));
        assert!(matches!(heard(b"HTTP/1.1 2000 x\r\n\r\n", 1, long), Answer::Strange(_)));
        assert!(matches!(heard(b"HTTP/1.1 200 OK\r\n", 1, short), Answer::Silent(_)));
        assert!(matches!(heard(b"", 0, short), Answer::Silent(_)));
        assert!(matches!(heard(b"x: y\r\n", 1 << 20, long), Answer::Strange(why) if why.contains("longer than")));
    }

    #[test]
    fn a_body_is_read_to_its_end() {
        let said = |said: &'static [u8]| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let serving = std::thread::spawn(move || {
                let (mut client, _) = listener.accept().unwrap();
                let mut asked = [0; 1024];
                let read = client.read(&mut asked).unwrap();
                said.chunks(9).for_each(|piece| client.write_all(piece).unwrap());
                String::from_utf8_lossy(&asked[..read]).into_owned()
            });
            let answer = post_for_json(address, "/x", "{}", Duration::from_secs(20));
            let asked = serving.join().unwrap();
            assert!(asked.contains("Content-Length: 2\r\n\r\n{}"), "{asked}");
            answer
        };
        // It says how long it is, and the connection stays.
        let kept = said(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n[7]and more");
        assert_eq!(kept, (Answer::Good, Some(serde_json::json!([7]))));
        let good = said(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"a\": [1, 2]}");
        assert_eq!(good, (Answer::Good, Some(serde_json::json!({"a": [1, 2]}))));
        assert_eq!(said(b"HTTP/1.0 404 No\r\n\r\nno"), (Answer::Bad(404), None));
        assert!(said(b"HTTP/1.0 404 No\r\n\r\nno").0.is_refusal());
    }

    #[test]
    fn nobody_there_is_no_health() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(ask(free, "/", Duration::from_secs(20)), Answer::Silent(_)));
    }
}
