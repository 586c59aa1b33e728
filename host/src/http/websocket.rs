//! Connections that have left HTTP: bytes go to and fro between a client and its model's engine. While something is said, the
//! model is held where it is; keeping a connection open is no reason to, and neither are pings. An engine that goes says so.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::runtime::{Answer, Handle, Submission};
use crate::worker::EngineConnection;

/// Bytes that are passed on at once.
const PIECE_BYTES: usize = 16 << 10;
/// How long both sides may say nothing before the model may go.
const HOLD_AFTER: Duration = Duration::from_secs(10);
/// How long a client has to take the last word.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(2);
/// A frame that ends a websocket, unmasked as servers send it: 1012, the service restarts.
const RESTARTS: [u8; 4] = [0x88, 2, 0x03, 0xf4];
/// The same for an engine that broke: 1011.
const BROKE: [u8; 4] = [0x88, 2, 0x03, 0xf3];
/// Kinds of frames that only ask whether the other side is there, or answer that.
const PING_AND_PONG: [u8; 2] = [0x9, 0xa];

/// By what a model is held.
pub(super) struct Holder {
    pub(super) handle: Handle,
    pub(super) hold: Submission,
}

/// Carries bytes to and fro until one side ends.
pub(super) async fn bridge(client: OnUpgrade, engine: EngineConnection, holder: Holder) {
    let (Ok(client), Some((engine, leaving))) = (client.await, engine.take()) else { return };
    let (from_client, to_client) = split(TokioIo::new(client));
    let (from_engine, to_engine) = split(TokioIo::new(engine));
    let said = Arc::<Notify>::default();
    // The connection was asked for just now.
    said.notify_one();
    tokio::select! {
        _ = pass(from_client, to_engine, &said) => {}
        () = answer(from_engine, to_client, &said, leaving) => {}
        () = hold(holder, &said) => {}
    }
}

type Reader = ReadHalf<TokioIo<Upgraded>>;
type Writer = WriteHalf<TokioIo<Upgraded>>;

/// From the client to the engine.
async fn pass(mut from: Reader, mut to: Writer, said: &Notify) -> io::Result<()> {
    let (mut frames, mut piece) = (Frames::default(), vec![0; PIECE_BYTES]);
    loop {
        let read = from.read(&mut piece).await?;
        if read == 0 {
            to.shutdown().await?;
            // What the engine still says is heard.
            return std::future::pending().await;
        }
        if frames.say_something(&piece[..read]) {
            said.notify_one();
        }
        to.write_all(&piece[..read]).await?;
    }
}

/// From the engine to the client, and a last word if it goes without one.
async fn answer(mut from: Reader, mut to: Writer, said: &Notify, mut leaving: watch::Receiver<bool>) {
    let (mut frames, mut piece) = (Frames::default(), vec![0; PIECE_BYTES]);
    let last_word = loop {
        let read = tokio::select! {
            biased;
            _ = leaving.wait_for(|leaves| *leaves) => break RESTARTS,
            read = from.read(&mut piece) => read.unwrap_or(0),
        };
        if read == 0 {
            break if *leaving.borrow() { RESTARTS } else { BROKE };
        }
        if frames.say_something(&piece[..read]) {
            said.notify_one();
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    };
    if frames.may_be_followed() {
        let _sent = timeout(LAST_WORD_LIMIT, to.write_all(&last_word)).await;
    }
    let _flushed = timeout(LAST_WORD_LIMIT, to.flush()).await;
}

/// Holds the model while something is said.
async fn hold(holder: Holder, said: &Notify) {
    let mut held: Option<Answer> = None;
    loop {
        let heard = timeout(HOLD_AFTER, said.notified());
        let is_heard = match &mut held {
            None => {
                said.notified().await;
                true
            }
            Some(answer) => tokio::select! {
                heard = heard => heard.is_ok(),
                // It was held for as long as a request may take.
                () = async { while answer.output.recv().await.is_some() {} } => false,
            },
        };
        if !is_heard {
            held = None;
        } else if held.is_none() {
            // Without a lease the connection goes on until its engine has to go.
            held = holder.handle.submit(holder.hold.clone()).await.ok();
        }
    }
}

/// Where a stream of websocket frames stands.
#[derive(Debug, Default)]
struct Frames {
    head: Vec<u8>,
    /// Bytes of the frame's payload that are still to come.
    left: u64,
    /// Whether the frame is a ping or a pong.
    is_probe: bool,
    /// Whether the last frame was one that ends all.
    is_closed: bool,
}

impl Frames {
    /// Takes in what passes; whether any of it is more than a question whether somebody is there.
    fn say_something(&mut self, mut bytes: &[u8]) -> bool {
        let mut says = false;
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                says |= !self.is_probe;
                self.left -= taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            if let Some(payload) = payload(&self.head) {
                let kind = self.head[0] & 0xf;
                (self.left, self.is_probe, self.is_closed) = (payload, PING_AND_PONG.contains(&kind), kind == 0x8);
                says |= !self.is_probe;
                self.head.clear();
            }
        }
        says
    }

    /// Whether a frame of ours may stand behind what has passed.
    fn may_be_followed(&self) -> bool {
        self.head.is_empty() && self.left == 0 && !self.is_closed
    }
}

/// The length of a frame's payload, once its head is whole.
fn payload(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let length_bytes = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
    if head.len() < 2 + length_bytes + mask_bytes {
        return None;
    }
    let length = head[2..2 + length_bytes].iter().fold(0_u64, |length, byte| (length << 8) | u64::from(*byte));
    Some(if length_bytes == 0 { u64::from(second & 0x7f) } else { length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8], is_masked: bool) -> Vec<u8> {
        let mut frame = vec![0x80 | kind];
        let mask = u8::from(is_masked) << 7;
        match payload.len() {
            short @ ..126 => frame.push(mask | short as u8),
            long => {
                frame.push(mask | 126);
                frame.extend((long as u16).to_be_bytes());
            }
        }
        if is_masked {
            frame.extend([1, 2, 3, 4]);
        }
        frame.extend(payload);
        frame
    }

    #[test]
    fn pings_say_nothing_however_they_are_cut() {
        for is_masked in [false, true] {
            let silent = [frame(0x9, b"are you there", is_masked), frame(0xa, b"", is_masked)].concat();
            let spoken = [silent.clone(), frame(0x1, &[b'x'; 300], is_masked), silent.clone()].concat();
            for cut in [1, 2, 3, 5, 7, 64, 1 << 16] {
                let mut frames = Frames::default();
                assert!(silent.chunks(cut).all(|piece| !frames.say_something(piece)), "{cut}");
                assert!(frames.may_be_followed());
                let says = spoken.chunks(cut).filter(|piece| frames.say_something(piece)).count();
                assert!(says > 0, "{cut}");
                assert!(frames.may_be_followed());
                frames.say_something(&frame(0x2, b"half", is_masked)[..4]);
                assert!(!frames.may_be_followed(), "within a frame");
            }
            let mut frames = Frames::default();
            frames.say_something(&frame(0x8, &[3, 232], is_masked));
            assert!(!frames.may_be_followed(), "it was closed");
        }
    }
}
