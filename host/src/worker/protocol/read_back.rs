//! What either end sent, read, written and read again: the promises of this room in one function, for its fuzzer, which is not
//! to know the messages themselves.

use bytes::Buf;

use super::frame::{Assembler, Decoder, Frame, ProtocolError, encode};
use super::message::{ToHost, ToWorker, decode_events, encode_event};

/// Reads the bytes as either end would. That they are refused is no fault.
///
/// # Errors
/// What is read depends on how it arrives, or is another after it was written again.
pub fn read_back(bytes: &[u8]) -> Result<(), String> {
    let whole = rewrite(bytes, bytes.len().max(1))?;
    // In pieces of a size that no length in it is a multiple of.
    if rewrite(bytes, 7)? != whole {
        return Err("in pieces it is something else than at once".to_owned());
    }
    let (written, _) = &whole;
    match rewrite(written, written.len().max(1))? {
        (again, None) if again == *written => Ok(()),
        (_, refusal) => Err(format!("what was written is read as something else ({refusal:?})")),
    }
}

/// Every whole message, written as its sender would have; and why the rest was refused, if it was.
fn rewrite(bytes: &[u8], step: usize) -> Result<(Vec<u8>, Option<ProtocolError>), String> {
    let (mut decoder, mut assembler) = (Decoder::default(), Assembler::new(ToHost::size_max));
    let mut out = Vec::new();
    for piece in bytes.chunks(step) {
        decoder.push(piece);
        loop {
            let message = match decoder.next() {
                Ok(None) => break,
                Ok(Some(frame)) => assembler.push(frame),
                Err(refusal) => return Ok((out, Some(refusal))),
            };
            match message {
                Ok(None) => {}
                Ok(Some(message)) => {
                    read(&message)?;
                    let Frame { kind, request, mut payload, .. } = message;
                    while encode(&mut out, kind, request, &mut payload) {}
                }
                Err(refusal) => return Ok((out, Some(refusal))),
            }
        }
    }
    Ok((out, None))
}

/// A message as each end understands it.
fn read(frame: &Frame) -> Result<(), String> {
    if let Ok(message) = ToHost::decode(frame.clone())
        && ToHost::decode(framed(message.encode())).as_ref() != Ok(&message)
    {
        return Err(format!("the host reads another message after it was written: {message:?}"));
    }
    if let Ok(message) = ToWorker::decode(frame.clone())
        && ToWorker::decode(framed(message.encode())).as_ref() != Ok(&message)
    {
        return Err(format!("the worker reads another message after it was written: {message:?}"));
    }
    let Ok(events) = decode_events(frame.payload.clone()) else { return Ok(()) };
    let mut packed = Vec::new();
    events.iter().for_each(|event| encode_event(&mut packed, event.kind, &event.payload));
    if packed == frame.payload { Ok(()) } else { Err("events are others after they were written".to_owned()) }
}

fn framed((kind, request, mut payload): (u8, u64, impl Buf)) -> Frame {
    let payload = payload.copy_to_bytes(payload.remaining());
    Frame { kind, request, more: false, payload }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn say(out: &mut Vec<u8>, (kind, request, mut payload): (u8, u64, impl Buf)) {
        while encode(out, kind, request, &mut payload) {}
    }

    #[test]
    fn what_both_ends_say_reads_back() {
        let mut bytes = Vec::new();
        say(&mut bytes, ToHost::Stepped(7).encode());
        say(&mut bytes, ToWorker::Generate(3, Bytes::from(vec![1; 100_000]).into()).encode());
        say(&mut bytes, ToHost::Heartbeat.encode());
        assert_eq!(read_back(&bytes), Ok(()));
        for cut in [1, 5, 13, 20] {
            assert_eq!(read_back(&bytes[..bytes.len() - cut]), Ok(()));
        }
        assert_eq!(read_back(&[0xff; 40]), Ok(()));
    }
}
