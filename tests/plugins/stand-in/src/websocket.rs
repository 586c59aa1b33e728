//! A websocket that gives back what it is sent, and asks every second whether its client is there.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What RFC 6455 has appended to a key.
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Most bytes of a frame.
const FRAME_BYTES: usize = 1 << 20;

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What answers a key.
pub(crate) fn accept(key: &str) -> String {
    base64(&sha1(format!("{key}{MAGIC}").as_bytes()))
}

/// Echoes until the client closes.
pub(crate) fn echo(mut client: &TcpStream, lines: &mut BufReader<TcpStream>) -> io::Result<()> {
    client.set_read_timeout(Some(PING_INTERVAL))?;
    let mut held = Vec::new();
    loop {
        while let Some((kind, payload, length)) = frame(&held) {
            held.drain(..length);
            match kind {
                CLOSE => return client.write_all(&framed(CLOSE, &payload)),
                PING => client.write_all(&framed(PONG, &payload))?,
                PONG => {}
                kind => client.write_all(&framed(kind, &payload))?,
            }
        }
        let mut piece = [0; 4096];
        match lines.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => held.extend_from_slice(&piece[..read]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                client.write_all(&framed(PING, b""))?;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Kind, payload and length of the frame that bytes begin with, once it is whole.
fn frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (kind, short) = (bytes.first()? & 15, usize::from(bytes.get(1)? & 127));
    let (length, at) = match short {
        126 => (usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize, 10),
        length => (length, 2),
    };
    let length = length.min(FRAME_BYTES);
    let masked = bytes[1] & 128 != 0;
    let mask = if masked { bytes.get(at..at + 4)? } else { &[0; 4] };
    let at = if masked { at + 4 } else { at };
    let payload = bytes.get(at..at + length)?.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]).collect();
    Some((kind, payload, at + length))
}

fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x80 | kind];
    match payload.len() {
        length @ 0..126 => out.push(length as u8),
        length @ 126..65536 => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
    out
}

/// FIPS 180-4, 6.1.
fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut hash: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut message = bytes.to_vec();
    message.push(0x80);
    message.resize(message.len().next_multiple_of(64) + if message.len() % 64 > 56 { 64 } else { 0 }, 0);
    let at = message.len() - 8;
    message[at..].copy_from_slice(&(bytes.len() as u64 * 8).to_be_bytes());
    for block in message.chunks_exact(64) {
        let mut words = [0u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        for i in 16..80 {
            words[i] = (words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = hash;
        for (i, word) in words.iter().enumerate() {
            let (mixed, constant) = match i {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let next = a.rotate_left(5).wrapping_add(mixed).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, new) in hash.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(new);
        }
    }
    let mut out = [0; 20];
    out.chunks_exact_mut(4).zip(hash).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_be_bytes()));
    out
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextets = |triple: &[u8]| {
        let word = (0..3).fold(0u32, |word, i| word << 8 | u32::from(triple.get(i).copied().unwrap_or(0)));
        let letter = |i: usize| char::from(ALPHABET[(word >> (18 - 6 * i)) as usize & 63]);
        (0..4).map(|i| if i <= triple.len() { letter(i) } else { '=' }).collect::<String>()
    };
    bytes.chunks(3).map(sextets).collect()
}

#[cfg(test)]
mod tests {
    use super::accept;

    /// The example of RFC 6455, 1.3.
    #[test]
    fn a_key_is_answered_as_the_standard_has_it() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
