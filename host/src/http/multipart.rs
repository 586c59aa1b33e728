//! The name of a model in a form of several parts, found while the form comes in: whatever stands before it is kept, and
//! nothing is read of what stands behind it.

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
    pub(super) body: ArrivingBody,
    /// What was read of it.
    read: BytesMut,
    /// Where the name lies in that, if there is one.
    name: Option<std::ops::Range<usize>>,
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
            match look(&read, &mut from, delimiter.as_bytes()) {
                Look::Found(name) => return Ok(Self { body, read, name: Some(name) }),
                Look::Absent => return Ok(Self { body, read, name: None }),
                Look::More => {}
            }
            if read.len() > BEFORE_BYTES {
                let most = ByteSize(BEFORE_BYTES as u64);
                return Err(ApiError::malformed(format!(
                    "no `model` stands within the first {most} of the form; put it before the files"
                ))
                .param(FIELD));
            }
            match body.next().await? {
                Some(piece) => {
                    body.keep(piece.len()).await?;
                    read.extend_from_slice(&piece);
                }
                None => return Ok(Self { body, read, name: None }),
            }
        }
    }

    /// The name of the model, if it names one.
    pub(super) fn model(&self) -> Option<&str> {
        let name = std::str::from_utf8(&self.read[self.name.clone()?]).ok()?;
        Some(name.trim()).filter(|name| !name.is_empty())
    }

    /// The form as it is sent on, with this name in place of the one that it has.
    pub(super) fn with_model(self, name: &str) -> ArrivingBody {
        let Self { body, mut read, name: range } = self;
        let length = body.length();
        // What was put before it to be looked at like any other delimiter.
        let mut before = read.split_off(2);
        let Some(range) = range.map(|range| range.start - 2..range.end - 2) else {
            return body.behind(before.freeze(), length);
        };
        let behind = before.split_off(range.end);
        before.truncate(range.start);
        before.extend_from_slice(name.as_bytes());
        before.extend_from_slice(&behind);
        let (was, is) = (range.len() as u64, name.len() as u64);
        let length = length.map(|length| length.saturating_sub(was) + is);
        body.behind(before.freeze(), length)
    }
}

enum Look {
    Found(std::ops::Range<usize>),
    Absent,
    More,
}

/// Looks for the field from the part that begins at or behind `from`, where the next look begins.
fn look(read: &[u8], from: &mut usize, delimiter: &[u8]) -> Look {
    loop {
        let Some(at) = memmem::find(&read[*from..], delimiter) else {
            // The end may be the beginning of one.
            *from = (*from).max(read.len().saturating_sub(delimiter.len()));
            return Look::More;
        };
        let head = *from + at + delimiter.len();
        if read[head..].starts_with(b"--") {
            return Look::Absent;
        }
        let Some(length) = memmem::find(&read[head..read.len().min(head + HEAD_BYTES)], b"\r\n\r\n") else {
            let is_too_long = read.len() - head > HEAD_BYTES;
            *from += at;
            return if is_too_long { Look::Absent } else { Look::More };
        };
        let value = head + length + 4;
        if !is_field(&read[head..head + length]) {
            *from = value - 2;
            continue;
        }
        // An empty value's delimiter begins with the end of the head.
        return match memmem::find(&read[value - 2..read.len().min(value + HEAD_BYTES)], delimiter) {
            Some(end) if end >= 2 => Look::Found(value..value + end - 2),
            Some(_) => Look::Absent,
            None if read.len() - value > HEAD_BYTES => Look::Absent,
            None => {
                *from += at;
                Look::More
            }
        };
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
}
