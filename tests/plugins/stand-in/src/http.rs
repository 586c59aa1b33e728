//! HTTP/1.1 over one connection: requests in turn, bodies with a length or in chunks.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{Stand, answer};

/// Most bytes of a body.
const BODY_BYTES: usize = 64 << 20;

/// What was asked.
#[derive(Debug)]
pub(crate) struct Asked {
    /// As it came, without the empty line.
    pub(crate) head: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    /// The first header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// A value of the query.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.split('&').filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name).map(|(_, v)| v)
    }
}

/// Serves a connection until either side has enough of it; what fails ends it.
pub(crate) fn serve(client: TcpStream, stand: &Stand) {
    let _ended = requests(&client, stand).is_ok();
}

fn requests(client: &TcpStream, stand: &Stand) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut lines = BufReader::new(client.try_clone()?);
    while let Some(asked) = read(&mut lines)? {
        if misbehave(client, stand, &asked)? {
            return Ok(());
        }
        if !answer::answer(client, &mut lines, stand, &asked)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether it went wrong on purpose, which ends the connection.
fn misbehave(mut client: &TcpStream, stand: &Stand, asked: &Asked) -> io::Result<bool> {
    let for_ever = || std::thread::sleep(Duration::from_secs(600));
    if stand.is("--silent") {
        for_ever();
    }
    if stand.is("--endless-headers") {
        write!(client, "HTTP/1.1 200 OK\r\n")?;
        for number in 0u64.. {
            write!(client, "x-{number}: more\r\n")?;
        }
    }
    if stand.is("--endless-lines") {
        loop {
            client.write_all(&[b'x'; 4096])?;
        }
    }
    if asked.path == "/health" {
        return Ok(false);
    }
    if stand.is("--else-500") {
        write!(client, "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndead")?;
        return Ok(true);
    }
    if stand.is("--else-hang") {
        for_ever();
    }
    if let Some(after) = stand.number("--answer-after") {
        std::thread::sleep(Duration::from_secs_f64(after));
    }
    Ok(false)
}

fn read(lines: &mut BufReader<TcpStream>) -> io::Result<Option<Asked>> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        head += &line;
    }
    let mut first = head.split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let target = first.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut asked = Asked { head, method, path, query, body: Vec::new() };
    if asked.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        asked.body = chunks(lines)?;
    } else if let Some(length) = asked.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
        asked.body = vec![0; length.min(BODY_BYTES)];
        lines.read_exact(&mut asked.body)?;
    }
    Ok(Some(asked))
}

fn chunks(lines: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16).unwrap_or(0);
        let begun = body.len();
        body.resize((begun + size).min(BODY_BYTES), 0);
        lines.read_exact(&mut body[begun..])?;
        // The chunk's own end, or after the last one that of the trailers.
        let mut end = String::new();
        lines.read_line(&mut end)?;
        if size == 0 {
            return Ok(body);
        }
    }
}
