//! One question to an engine, such as for its health: a fresh connection, within a time limit, and the status alone counts.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Most bytes of an answer's head.
const HEAD_BYTES: usize = 64 << 10;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
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
pub(crate) fn ask(address: SocketAddr, path: &str, limit: Duration) -> Health {
    send(address, "GET", path, "", limit)
}

/// Sends a body of JSON, of whose answer the status counts as well.
pub(crate) fn post(address: SocketAddr, path: &str, body: &str, limit: Duration) -> Health {
    send(address, "POST", path, body, limit)
}

fn send(address: SocketAddr, method: &str, path: &str, body: &str, limit: Duration) -> Health {
    let what = match body.len() {
        0 => String::new(),
        length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    let asked =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n{what}Connection: close\r\n\r\n{body}");
    match exchange(address, &asked, Instant::now() + limit) {
        Ok(health) => health,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Health::Silent(format!("no answer in {} s", limit.as_secs()))
        }
        Err(error) => Health::Silent(error.to_string()),
    }
}

fn exchange(address: SocketAddr, asked: &str, until: Instant) -> io::Result<Health> {
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
            return Ok(status(&head));
        }
        if head.len() > HEAD_BYTES {
            return Ok(Health::Strange(format!("the head of its answer is longer than {HEAD_BYTES} bytes")));
        }
    }
}

/// From the first line: `HTTP/1.1 200 OK`.
fn status(head: &[u8]) -> Health {
    if head.is_empty() {
        return Health::Silent("it closed the connection".to_owned());
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    match words.next().filter(|code| is_http && code.len() == 3).and_then(|code| code.parse().ok()) {
        Some(200..300) => Health::Good,
        Some(code) => Health::Bad(code),
        None => {
            let begun: String = line.chars().take(60).collect();
            Health::Strange(format!("its answer begins with `{}`", begun.escape_debug()))
        }
    }
}

/// Time that is left; none is a timeout.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

impl Health {
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
    fn heard(said: &'static [u8], times: usize, limit: Duration) -> Health {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let _asked = client.read(&mut [0; 1024]);
            let all = (0..times).all(|_| client.write_all(said).is_ok());
            // Until it is left.
            let _left = all && client.read(&mut [0; 1]).is_ok();
        });
        let health = ask(address, "/health", limit);
        serving.join().unwrap();
        health
    }

    #[test]
    fn a_status_is_what_counts_and_nothing_is_endless() {
        let (long, short) = (Duration::from_secs(20), Duration::from_millis(50));
        assert_eq!(heard(b"HTTP/1.1 204 \r\n\r\n", 1, long), Health::Good);
        assert_eq!(heard(b"HTTP/1.0 503 Not Yet\r\na: b\r\n\r\nbody", 1, long), Health::Bad(503));
        assert_eq!(heard(b"HTTP/1.1 302 Found\r\n\r\n", 1, long), Health::Bad(302));
        assert!(matches!(heard(b"SSH-2.0-x\r\n\r\n", 1, long), Health::Strange(why) if why.contains("SSH-2.0")));
        assert!(matches!(heard(b"HTTP/1.1 2000 x\r\n\r\n", 1, long), Health::Strange(_)));
        assert!(matches!(heard(b"HTTP/1.1 200 OK\r\n", 1, short), Health::Silent(_)));
        assert!(matches!(heard(b"", 0, short), Health::Silent(_)));
        assert!(matches!(heard(b"x: y\r\n", 1 << 20, long), Health::Strange(why) if why.contains("longer than")));
    }

    #[test]
    fn nobody_there_is_no_health() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(ask(free, "/", Duration::from_secs(20)), Health::Silent(_)));
    }
}
