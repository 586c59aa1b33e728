//! `traceparent`: the trace of the client that a request belongs to, read by the rules of W3C's Trace Context. What breaks a
//! rule is as good as not sent.

use axum::http::{HeaderMap, HeaderValue};

/// The header's name.
pub(super) const TRACE_PARENT: &str = "traceparent";
/// Bytes of version 00: version, trace id, parent id and flags, with dashes between them.
const LENGTH: usize = 55;

/// A trace, and the header that named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TraceParent {
    pub(super) trace_id: String,
    pub(super) header: HeaderValue,
}

impl TraceParent {
    /// The trace that these headers name; two of them name none.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACE_PARENT).iter();
        let (Some(header), None) = (values.next(), values.next()) else { return None };
        let trace_id = trace_id(header.to_str().ok()?)?.to_owned();
        Some(Self { trace_id, header: header.clone() })
    }
}

fn trace_id(text: &str) -> Option<&str> {
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let (known, more) = text.split_at_checked(LENGTH)?;
    let parts: Vec<&str> = known.split('-').collect();
    let [version, trace_id, parent_id, flags] = parts[..] else { return None };
    let lengths = [version, trace_id, parent_id, flags].map(str::len) == [2, 32, 16, 2];
    // A later version may say more, after a dash.
    let ends = more.is_empty() || (version != "00" && more.starts_with('-'));
    let is_sound =
        parts.iter().all(|part| is_hex(part)) && version != "ff" && !is_zero(trace_id) && !is_zero(parent_id);
    (lengths && ends && is_sound).then_some(trace_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_a_rule_names_no_trace() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let good = format!("00-{trace}-{parent}-01");
        for text in
            [good.clone(), format!("01-{trace}-{parent}-01"), format!("cc-{trace}-{parent}-01-what-comes-later")]
        {
            assert_eq!(trace_id(&text), Some(trace), "{text}");
        }
        for text in [
            String::new(),
            good.to_uppercase(),
            good[1..].to_owned(),
            format!("{good}-more"),
            format!("{good} "),
            format!("01-{trace}-{parent}-01more"),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}x{parent}-01"),
            format!("00-{}-{parent}-01", &trace[1..]),
            format!("00-{trace}-{parent}-0g"),
            "ä".repeat(55),
            "-".repeat(55),
        ] {
            assert_eq!(trace_id(&text), None, "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.append(TRACE_PARENT, HeaderValue::from_str(&good).unwrap());
        assert_eq!(TraceParent::of(&headers).unwrap().trace_id, trace);
        headers.append(TRACE_PARENT, HeaderValue::from_str(&good).unwrap());
        assert_eq!(TraceParent::of(&headers), None);
    }
}
