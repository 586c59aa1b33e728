//! Connections that have left HTTP: bytes go to and fro between a client and its model's engine. While something is said, the
//! model is held where it is; keeping a connection open is no reason to, and neither are pings. An engine that goes says so.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::runtime::{Answer, Handle, Submission};
use crate::worker::EngineConnection;

/// Bytes that are passed on at once.
const PIECE_BYTES: usize = 16 << 10;
/// How long both sides may say nothing before the model may go.
const HOLD_AFTER: Duration = Duration::from_secs(10);
/// How long an engine is heard once its client has ended its side: it is most likely gone, and an engine that does not notice
/// must not keep its place.
const HALF_CLOSED_LIMIT: Duration = Duration::from_secs(10);
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
    let stall_limit = holder.handle.config().limits.stream_stall_timeout;
    tokio::select! {
        _ = pass(from_client, to_engine, &said, stall_limit) => {}
        () = answer((from_engine, to_client), &said, leaving, stall_limit) => {}
        () = hold(holder, &said) => {}
    }
}

/// From the client to the engine.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    said: &Notify,
    stall_limit: Duration,
) -> io::Result<()> {
    let (mut frames, mut piece) = (Frames::default(), vec![0; PIECE_BYTES]);
    loop {
        let read = from.read(&mut piece).await?;
        if read == 0 {
            to.shutdown().await?;
            // What the engine still says is heard.
            sleep(HALF_CLOSED_LIMIT).await;
            return Ok(());
        }
        if frames.say_something(&piece[..read]) {
            said.notify_one();
        }
        timeout(stall_limit, to.write_all(&piece[..read])).await??;
    }
}

/// From the engine to the client, and a last word if it goes without one.
async fn answer(
    (mut from, mut to): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    said: &Notify,
    mut leaving: watch::Receiver<bool>,
    stall_limit: Duration,
) {
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
        let written = async {
            tokio::select! {
                written = timeout(stall_limit, to.write_all(&piece[..read])) => written.is_ok_and(|sent| sent.is_ok()),
                // One that does not read is not waited for longer than for the last word.
                () = left(leaving.clone()) => false,
            }
        };
        if !written.await {
            return;
        }
    };
    if frames.may_be_followed() {
        let _sent = timeout(LAST_WORD_LIMIT, to.write_all(&last_word)).await;
    }
    let _flushed = timeout(LAST_WORD_LIMIT, to.flush()).await;
}

/// Resolves when its engine has gone for as long as a client has for the last word.
async fn left(mut leaving: watch::Receiver<bool>) {
    // Whoever drops the sender has left too.
    drop(leaving.wait_for(|leaves| *leaves).await);
    sleep(LAST_WORD_LIMIT).await;
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
    use tokio::io::{DuplexStream, duplex};

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

    /// Both ends of a connection of which nothing is read at the far one.
    fn connection() -> (DuplexStream, DuplexStream) {
        duplex(8)
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_does_not_notice_that_its_client_is_gone_keeps_it_no_longer() {
        let (client, from_client) = connection();
        let (to_engine, _engine) = connection();
        drop(client);
        let hour = Duration::from_secs(3600);
        let passed = timeout(hour, pass(from_client, to_engine, &Notify::new(), hour)).await;
        assert!(passed.expect("it ends").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_read_is_waited_for_in_bounds() {
        let limit = Duration::from_secs(60);
        let hour = Duration::from_secs(3600);
        let (mut talks, from_client) = connection();
        let (to_engine, _engine) = connection();
        let talking = tokio::spawn(async move { talks.write_all(&[0x82; 64]).await });
        let passed = timeout(hour, pass(from_client, to_engine, &Notify::new(), limit)).await;
        assert!(passed.expect("it ends").is_err(), "the engine does not read");
        drop(talking);

        let leaving = watch::Sender::new(false);
        for leaves in [false, true] {
            let (mut talks, from_engine) = connection();
            let (to_client, _client) = connection();
            let talking = tokio::spawn(async move { talks.write_all(&[0x82; 64]).await });
            // The first piece lies before a client that does not read.
            let begun = tokio::time::Instant::now();
            let stall_limit = if leaves { hour * 2 } else { limit };
            let said = Notify::new();
            let answering = answer((from_engine, to_client), &said, leaving.subscribe(), stall_limit);
            let mut answering = std::pin::pin!(timeout(hour, answering));
            assert!(timeout(Duration::from_secs(1), &mut answering).await.is_err(), "it waits");
            leaving.send_replace(leaves);
            answering.await.expect("it ends");
            assert!(begun.elapsed() <= limit, "{leaves}");
            drop(talking);
        }
    }
}
