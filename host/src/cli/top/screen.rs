//! A terminal as a screen: one key at a time comes in, whole screens go out, and it is as it was afterwards. Nothing of what
//! they show.

use std::io::{self, Read};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use super::super::failure::CliError;
use super::super::out;

/// Keys that were pressed and not yet seen.
const KEYS_MAX: usize = 64;
/// What a terminal is taken to have that does not say.
const SIZE: (usize, usize) = (80, 24);
/// The alternate screen, without a cursor; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// A key that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// `q`, where nothing is typed.
    Quit,
    /// Control-C.
    Interrupt,
    Up,
    Down,
    PageUp,
    PageDown,
    Enter,
    Escape,
    Backspace,
    Letter(char),
}

/// A terminal that shows whole screens.
#[derive(Debug)]
pub(super) struct Screen {
    before: Termios,
    keys: mpsc::Receiver<Key>,
}

impl Screen {
    /// The terminal of stdin and stdout.
    pub(super) fn open() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        let (sender, keys) = mpsc::channel(KEYS_MAX);
        // It waits for a key until the process ends.
        std::thread::spawn(move || {
            let mut bytes = [0; 32];
            while let Ok(count @ 1..) = io::stdin().lock().read(&mut bytes) {
                for key in keys_of(bytes.get(..count).unwrap_or_default()) {
                    if sender.blocking_send(key).is_err() {
                        return;
                    }
                }
            }
        });
        let screen = Self { before, keys };
        out::bytes(ENTER).map_err(|_| io::Error::other("stdout cannot be written"))?;
        Ok(screen)
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        let told = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        told.map_or(SIZE, |size| (usize::from(size.ws_col), usize::from(size.ws_row)))
    }

    /// The next key; nothing once there are no more.
    pub(super) async fn key(&mut self) -> Option<Key> {
        self.keys.recv().await
    }

    /// Shows these lines, which steer nothing, in the place of those before.
    pub(super) fn draw(&self, lines: &[String]) -> Result<(), CliError> {
        let mut text = String::from("\x1b[H");
        for (number, line) in lines.iter().enumerate() {
            let end = if number + 1 == lines.len() { "" } else { "\r\n" };
            text.extend([line, "\x1b[K", end]);
        }
        text += "\x1b[J";
        out::bytes(text.as_bytes())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If nobody takes it, nobody looks.
        let _shown = out::bytes(LEAVE);
        let _as_before = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// The keys that these bytes of a terminal are.
fn keys_of(bytes: &[u8]) -> Vec<Key> {
    let mut rest = bytes;
    let mut keys = Vec::new();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        keys.push(match first {
            3 => Key::Interrupt,
            b'\r' | b'\n' => Key::Enter,
            8 | 127 => Key::Backspace,
            b'q' => Key::Quit,
            27 => match behind.strip_prefix(b"[") {
                Some(sequence) => {
                    let end =
                        sequence.iter().position(|byte| (64..127).contains(byte)).map_or(sequence.len(), |at| at + 1);
                    let (sequence, others) = sequence.split_at(end);
                    rest = others;
                    match sequence {
                        b"A" => Key::Up,
                        b"B" => Key::Down,
                        b"5~" => Key::PageUp,
                        b"6~" => Key::PageDown,
                        _ => continue,
                    }
                }
                None => Key::Escape,
            },
            32..=126 => Key::Letter(char::from(*first)),
            _ => continue,
        });
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        assert_eq!(keys_of(b"\x1b[A\x1b[B\x1b[6~q"), [Key::Up, Key::Down, Key::PageDown, Key::Quit]);
        assert_eq!(
            keys_of(b"/a\x7f\r\x1b"),
            [Key::Letter('/'), Key::Letter('a'), Key::Backspace, Key::Enter, Key::Escape]
        );
        assert_eq!(keys_of(b"\x1b[1;5C\xc3\xa9x"), [Key::Letter('x')]);
        assert_eq!(keys_of(b"\x03"), [Key::Interrupt]);
        assert_eq!(keys_of(b"\x1b["), []);
    }
}
