//! A small HTTP/1.1 client over a plain socket: nothing between the clock and the first byte of an answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Doing, Error, Result};

/// How long one read may take: a cold load and a first token.
const READ_LIMIT: Duration = Duration::from_secs(120);

/// The last event of a stream.
const END: &str = "data: [DONE]";

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body, chunks joined.
    pub(crate) body: String,
}

/// One GET.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    whole(address, "GET", path, None)
}

/// One POST of JSON.
pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> Result<Answer> {
    whole(address, "POST", path, Some(&body.to_string()))
}

fn whole(address: SocketAddr, method: &str, path: &str, body: Option<&str>) -> Result<Answer> {
    let (status, mut body) = request(address, method, path, body)?;
    let mut text = String::new();
    body.read_to_string(&mut text).doing(format_args!("read the answer of {method} {path}"))?;
    Ok(Answer { status, body: text })
}

/// Seconds from sending a streamed chat request with a prompt to the first event that carries text.
pub(crate) fn first_token(address: SocketAddr, model: &str, prompt: &str) -> Result<f64> {
    // `cache_prompt` is llama.cpp's own key; a prompt cache would hide the work that is measured.
    let task = json!({
        "model": model, "messages": [{"role": "user", "content": prompt}], "stream": true,
        "temperature": 0, "max_tokens": 4, "cache_prompt": false,
    });
    first_token_of(address, &task)
}

/// Seconds from sending a streamed chat request to the first event that carries text. The answer is read to its end, which must be one
/// in good order.
pub(crate) fn first_token_of(address: SocketAddr, task: &Value) -> Result<f64> {
    let model = &task["model"];
    let start = Instant::now();
    let (status, body) = request(address, "POST", "/v1/chat/completions", Some(&task.to_string()))?;
    let mut lines = BufReader::new(body).lines();
    if status != 200 {
        let text: Vec<String> = lines.map_while(io::Result::ok).collect();
        return Err(Error(format!("{address} answered {status} for {model}: {}", text.join("\n"))));
    }
    let (mut first, mut has_ended) = (None, false);
    for line in &mut lines {
        let line = line.doing("read the stream")?;
        has_ended |= line == END;
        if first.is_none() && line.strip_prefix("data:").is_some_and(carries_text) {
            first = Some(start.elapsed().as_secs_f64());
        }
    }
    if !has_ended {
        return Err(Error(format!("the answer of {model} at {address} was cut")));
    }
    first.ok_or_else(|| Error(format!("the answer of {model} at {address} carried no text")))
}

/// An answer that came as a stream of text.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// Seconds until the first event of the answer.
    pub(crate) first: f64,
    /// Seconds between each two of its events.
    pub(crate) after_first: Vec<f64>,
    /// Tokens, as the server counts them.
    pub(crate) tokens: u64,
}

/// Asks for a streamed completion, and takes the time of each of its events.
pub(crate) fn written(address: SocketAddr, task: &str) -> Result<Written> {
    let start = Instant::now();
    let (status, body) = request(address, "POST", "/v1/completions", Some(task))?;
    let mut lines = BufReader::new(body).lines();
    if status != 200 {
        let text: Vec<String> = lines.map_while(io::Result::ok).collect();
        return Err(Error(format!("{address} answered {status}: {}", text.join("\n"))));
    }
    let (mut times, mut tokens) = (Vec::new(), 0);
    for line in &mut lines {
        let line = line.doing("read the stream")?;
        let Some(event) = line.strip_prefix("data:").and_then(|data| serde_json::from_str::<Value>(data.trim()).ok())
        else {
            continue;
        };
        tokens = event["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
        // What a token shows may be nothing; the event that says the end, and the one of usage, are none.
        if event["choices"][0]["text"].is_string() && event["choices"][0]["finish_reason"].is_null() {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let first = times.first().copied().ok_or_else(|| Error(format!("the answer at {address} had no text")))?;
    Ok(Written { first, after_first: times.windows(2).map(|two| two[1] - two[0]).collect(), tokens })
}

fn carries_text(data: &str) -> bool {
    let event: Value = serde_json::from_str(data.trim()).unwrap_or_default();
    event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty())
}

fn request(address: SocketAddr, method: &str, path: &str, body: Option<&str>) -> Result<(u16, Body)> {
    receive(send(address, method, path, body)?).doing(format_args!("read the answer of {address} to {path}"))
}

/// Sends a request. Dropping the socket is hanging up.
pub(crate) fn send(address: SocketAddr, method: &str, path: &str, body: Option<&str>) -> Result<TcpStream> {
    let doing = || format!("ask {address} for {path}");
    let mut socket = TcpStream::connect(address).doing(doing())?;
    socket.set_nodelay(true).doing(doing())?;
    socket.set_read_timeout(Some(READ_LIMIT)).doing(doing())?;
    let body = body.unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + body).as_bytes()).doing(doing())?;
    Ok(socket)
}

/// Waits for the status; the body is to be read.
pub(crate) fn receive(socket: TcpStream) -> io::Result<(u16, Body)> {
    let mut reader = BufReader::new(socket);
    let (status, chunked) = read_head(&mut reader)?;
    let body: Body = if chunked { Box::new(Chunks { reader, left: 0 }) } else { Box::new(reader) };
    Ok((status, body))
}

/// The body of an answer, chunks joined.
pub(crate) type Body = Box<dyn Read>;

/// The status, and whether the body comes in chunks; else it ends with the connection.
fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, bool)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("`{}` is not an HTTP status line", line.trim())))?;
    let mut chunked = false;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok((status, chunked));
        }
        let line = line.to_ascii_lowercase();
        chunked |= line.starts_with("transfer-encoding:") && line.contains("chunked");
    }
}

/// Undoes the chunked transfer coding.
struct Chunks<R> {
    reader: R,
    left: usize,
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let mut line = String::new();
            while line.trim().is_empty() {
                line.clear();
                if self.reader.read_line(&mut line)? == 0 {
                    return Ok(0);
                }
            }
            let size = line.trim().split(';').next().unwrap_or_default();
            self.left = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
            if self.left == 0 {
                return Ok(0);
            }
        }
        let most = out.len().min(self.left);
        let read = self.reader.read(&mut out[..most])?;
        self.left -= read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::{Chunks, carries_text, read_head};

    #[test]
    fn chunks_join() {
        let mut text = String::new();
        let wire = b"5\r\ndata:\r\n1;x=y\r\n \r\n3\r\n{}\n\r\n0\r\n\r\n";
        Chunks { reader: &wire[..], left: 0 }.read_to_string(&mut text).unwrap();
        assert_eq!(text, "data: {}\n");
    }

    #[test]
    fn heads_are_read() {
        let mut wire = &b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n"[..];
        assert_eq!(read_head(&mut wire).unwrap(), (503, true));
        assert!(read_head(&mut &b"SSH-2.0\r\n"[..]).is_err());
    }

    #[test]
    fn a_role_chunk_is_not_the_first_token() {
        assert!(!carries_text(r#" {"choices":[{"delta":{"role":"assistant","content":null}}]}"#));
        assert!(!carries_text(r#" {"choices":[{"delta":{"content":""}}]}"#));
        assert!(!carries_text(" [DONE]"));
        assert!(carries_text(r#" {"choices":[{"delta":{"content":"Hi"}}]}"#));
    }
}
