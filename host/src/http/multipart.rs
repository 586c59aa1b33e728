//! The name of a model in a form of several parts, found while the form comes in: whatever stands before it is kept, and what
//! stands behind it passes, if no other name is in it.

use std::ops::Range;

use bytes::BytesMut;
use memchr::memmem;

use super::body::ArrivingBody;
use super::error::ApiError;
use crate::domain::ByteSize;

/// Bytes of a part's head, and of a name.
const HEAD_BYTES: usize = 4 << 10;
/// Bytes that may stand before the name: a file that was put first.
const BEFORE_BYTES: usize = 32 << 20;
/// The field that is looked for.
const FIELD: &str = "model";

/// A form whose beginning was read.
pub(super) struct Form {
    body: ArrivingBody,
    /// What stands before each part.
    delimiter: String,
    /// What was read of it.
    read: BytesMut,
    /// Where the name lies in that, if there is one.
    name: Option<Range<usize>>,
}

/// The boundary between the parts of a form, if this is the type of one.
pub(super) fn boundary(content_type: &str) -> Option<&str> {
    let (media, parameters) = content_type.split_once(';')?;
    if !media.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let mut pairs = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("boundary"))?;
    let value = value.trim().trim_matches('"');
    (!value.is_empty() && value.len() <= 70).then_some(value)
}

impl Form {
    /// Reads until the name of the model is known, or there is none.
    pub(super) async fn read(mut body: ArrivingBody, boundary: &str) -> Result<Self, ApiError> {
        let delimiter = format!("\r\n--{boundary}");
        let mut read = BytesMut::from(&b"\r\n"[..]);
        let mut from = 0;
        loop {
            match look(&read, &mut from, delimiter.as_bytes())? {
                Look::Found(name) => return Ok(Self { body, delimiter, read, name: Some(name) }),
                Look::Absent => return Ok(Self { body, delimiter, read, name: None }),
                Look::More => {}
            }
            if read.len() > BEFORE_BYTES {
                let most = ByteSize(BEFORE_BYTES as u64);
                return Err(malformed(format!(
                    "no `model` stands within the first {most} of the form; put it before the files"
                )));
            }
            match body.next().await? {
                Some(piece) => {
                    body.keep(piece.len()).await?;
                    read.extend_from_slice(&piece);
                }
                None => return Ok(Self { body, delimiter, read, name: None }),
            }
        }
    }

    /// The name of the model, if it names one.
    pub(super) fn model(&self) -> Option<&str> {
        let name = std::str::from_utf8(&self.read[self.name.clone()?]).ok()?;
        Some(name.trim()).filter(|name| !name.is_empty())
    }

    /// The form as it is sent on, with this name in place of the one that it has. It ends at another one.
    pub(super) fn with_model(self, name: &str) -> Result<ArrivingBody, ApiError> {
        let Self { body, delimiter, mut read, name: range } = self;
        let length = body.length();
        // What was put before it to be looked at like any other delimiter.
        let mut before = read.split_off(2);
        let Some(range) = range.map(|range| range.start - 2..range.end - 2) else {
            return Ok(body.behind(before.freeze(), length));
        };
        let behind = before.split_off(range.end);
        let mut rest = Rest { delimiter, unread: Vec::new(), is_over: false };
        rest.see(&behind)?;
        before.truncate(range.start);
        before.extend_from_slice(name.as_bytes());
        before.extend_from_slice(&behind);
        let (was, is) = (range.len() as u64, name.len() as u64);
        let length = length.map(|length| length.saturating_sub(was) + is);
        Ok(body.seen_by(move |piece| rest.see(piece)).behind(before.freeze(), length))
    }
}

/// What stands behind the name. Which of two names an engine heeds is its own matter, and one of them was looked at here: there
/// is no second.
struct Rest {
    delimiter: String,
    /// The end of what passed, which may be the beginning of a part.
    unread: Vec<u8>,
    /// Whether the last part has passed.
    is_over: bool,
}

impl Rest {
    fn see(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        if self.is_over {
            return Ok(());
        }
        self.unread.extend_from_slice(piece);
        let mut from = 0;
        loop {
            match next_part(&self.unread, &mut from, self.delimiter.as_bytes())? {
                Part::Head(head) if is_field(&self.unread[head.clone()]) => {
                    return Err(malformed("the form has two fields `model`; name one model"));
                }
                Part::Head(head) => from = head.end + 2,
                Part::Last => {
                    (self.is_over, self.unread) = (true, Vec::new());
                    return Ok(());
                }
                Part::Unread => {
                    self.unread.drain(..from);
                    return Ok(());
                }
            }
        }
    }
}

fn malformed(message: impl Into<String>) -> ApiError {
    ApiError::malformed(message).param(FIELD)
}

enum Look {
    Found(Range<usize>),
    Absent,
    More,
}

/// Looks for the field from the part that begins at or behind `from`, where the next look begins.
fn look(read: &[u8], from: &mut usize, delimiter: &[u8]) -> Result<Look, ApiError> {
    loop {
        let head = match next_part(read, from, delimiter)? {
            Part::Head(head) => head,
            Part::Last => return Ok(Look::Absent),
            Part::Unread => return Ok(Look::More),
        };
        if !is_field(&read[head.clone()]) {
            *from = head.end + 2;
            continue;
        }
        let value = head.end + 4;
        // An empty value's delimiter begins with the end of the head.
        return match memmem::find(&read[value - 2..read.len().min(value + HEAD_BYTES)], delimiter) {
            Some(end) => Ok(Look::Found(value..value + end.saturating_sub(2))),
            None if read.len() - value > HEAD_BYTES => {
                Err(malformed(format!("the form's `model` is longer than {HEAD_BYTES} bytes; name a model")))
            }
            None => Ok(Look::More),
        };
    }
}

/// What comes next in a form.
enum Part {
    /// Where the head of a part lies.
    Head(Range<usize>),
    /// There is no part any more.
    Last,
    /// It is not here yet.
    Unread,
}

/// The part that begins at or behind `from`, which is moved to where it does, or where the next look begins.
fn next_part(read: &[u8], from: &mut usize, delimiter: &[u8]) -> Result<Part, ApiError> {
    let Some(at) = memmem::find(&read[*from..], delimiter) else {
        // The end may be the beginning of one.
        *from = (*from).max(read.len().saturating_sub(delimiter.len()));
        return Ok(Part::Unread);
    };
    *from += at;
    let head = *from + delimiter.len();
    if read[head..].starts_with(b"--") {
        return Ok(Part::Last);
    }
    match memmem::find(&read[head..read.len().min(head + HEAD_BYTES)], b"\r\n\r\n") {
        Some(length) => Ok(Part::Head(head..head + length)),
        None if read.len() - head > HEAD_BYTES => {
            Err(malformed(format!("the head of a part of the form is longer than {HEAD_BYTES} bytes")))
        }
        None => Ok(Part::Unread),
    }
}

/// Whether a part's head says that it is the field.
fn is_field(head: &[u8]) -> bool {
    let Ok(head) = std::str::from_utf8(head) else { return false };
    let disposition = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    });
    let Some(disposition) = disposition else { return false };
    // What stands between quotes, such as the name of a file, is no parameter.
    let mut is_quoted = false;
    let parameters = disposition.split(|c| {
        is_quoted ^= c == '"';
        c == ';' && !is_quoted
    });
    let mut named = parameters.filter_map(|parameter| parameter.split_once('='));
    let name = named.find(|(name, _)| name.trim().eq_ignore_ascii_case("name"));
    name.is_some_and(|(_, value)| value.trim().trim_matches('"') == FIELD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_what_is_called_so() {
        for (disposition, is) in [
            ("form-data; name=\"model\"", true),
            ("form-data; filename=\"x\"; NAME=model", true),
            ("form-data; name=\"file\"; filename=\"a; name=model\"", false),
            ("form-data; filename=\"a; name=model\"; name=\"model\"", true),
            ("form-data; name=\"model2\"", false),
            ("form-data", false),
        ] {
            let head = format!("\r\nContent-Type: text/plain\r\nContent-Disposition: {disposition}");
            assert_eq!(is_field(head.as_bytes()), is, "{disposition}");
        }
    }

    #[test]
    fn a_second_name_is_found_however_the_form_is_cut() {
        let part = |name: &str, value: &str| {
            format!("\r\n--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}")
        };
        let file = part("file", &"\r\n--xy\r\n\r\nname=model".repeat(500));
        let plain = [file.clone(), part("model2", "x"), "\r\n--xyz--\r\n".to_owned()].concat();
        for (form, is_refused) in [
            (plain.clone(), false),
            // What stands behind the last part is in none.
            (plain.clone() + &part("model", "x"), false),
            (file.clone() + &part("model", "x") + &plain, true),
            (part("model", "") + &plain, true),
            (part("file", "") + "\r\n--xyz\r\nx: " + &"y".repeat(2 * HEAD_BYTES), true),
        ] {
            for cut in [1, 2, 3, 7, 64, 1 << 20] {
                let mut rest = Rest { delimiter: "\r\n--xyz".to_owned(), unread: Vec::new(), is_over: false };
                let seen = form.as_bytes().chunks(cut).try_for_each(|piece| rest.see(piece));
                assert_eq!(seen.is_err(), is_refused, "in pieces of {cut}");
                assert!(rest.unread.len() <= HEAD_BYTES + 64 + cut, "{} bytes are kept", rest.unread.len());
            }
        }
    }
}
