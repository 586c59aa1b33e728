//! Keys of pages: a browser says its key once, in the address, and has it in a cookie from then on. Pure functions.

use axum::http::{HeaderMap, Uri, header};

/// The cookie that holds a key.
pub(super) const COOKIE: &str = "aihost_key";
/// The member of a query that is one.
pub(super) const QUERY: &str = "key";

/// The key that comes with a request for a page: in its query, or in its cookie. A browser sends the cookie with whatever a
/// page of the same site asks for: it says who asks only where the page is one of this host's.
pub(super) fn key_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    in_query(uri).or_else(|| in_cookie(headers).filter(|_| is_from_here(headers)))
}

fn in_cookie(headers: &HeaderMap) -> Option<&str> {
    cookies(headers).find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

/// Whether a page of this host's asks, or nobody's: by the browser's own word, or by the host that both name.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if !headers.contains_key(header::ORIGIN) || text("sec-fetch-site") == Some("same-origin") {
        return true;
    }
    let page = text("origin").and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    page.is_some_and(|page| text("host").is_some_and(|host| host.eq_ignore_ascii_case(page)))
}

/// The one in its query.
pub(super) fn in_query(uri: &Uri) -> Option<&str> {
    pairs(uri).find_map(|pair| pair.strip_prefix(QUERY)?.strip_prefix('='))
}

/// The members of a query.
pub(super) fn pairs(uri: &Uri) -> impl Iterator<Item = &str> {
    uri.query().into_iter().flat_map(|query| query.split('&'))
}

/// The cookies of a request, by name.
pub(super) fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(';')).filter_map(|cookie| cookie.trim().split_once('='))
}

/// A text with its percent signs read, and `+` left as it is.
pub(super) fn percent_decoded(text: &str) -> Vec<u8> {
    let mut rest = text.as_bytes();
    let mut decoded = Vec::with_capacity(rest.len());
    while let Some((first, behind)) = rest.split_first() {
        let digit = |at: usize| behind.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.extend(u8::try_from(high * 16 + low));
                rest = &behind[2..];
            }
            _ => {
                decoded.push(*first);
                rest = behind;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_cookie_says_who_asks_where_the_page_is_of_this_host() {
        let uri = Uri::from_static("/upstream/a/b?x=1");
        let asks = |more: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in [("cookie", "a=b; aihost_key=k"), ("host", "gpu.lan:9000")].iter().chain(more) {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            key_of(&uri, &headers) == Some("k")
        };
        assert!(asks(&[]), "no page of another site can be said to ask");
        assert!(asks(&[("origin", "http://gpu.lan:9000")]));
        assert!(asks(&[("origin", "https://GPU.lan:9000"), ("sec-fetch-site", "same-origin")]));
        assert!(asks(&[("origin", "https://public.example"), ("sec-fetch-site", "same-origin")]), "behind a proxy");
        for origin in
            ["http://gpu.lan:3000", "http://gpu.lan", "https://evil.example", "null", "http://gpu.lan:9000.evil"]
        {
            assert!(!asks(&[("origin", origin)]), "{origin}");
            assert!(!asks(&[("origin", origin), ("sec-fetch-site", "same-site")]), "{origin}");
        }
        // A key in the address is known to whoever wrote it.
        let uri = Uri::from_static("/upstream/a/?key=q");
        assert_eq!(
            key_of(&uri, &HeaderMap::from_iter([(header::ORIGIN, HeaderValue::from_static("null"))])),
            Some("q")
        );
    }

    #[test]
    fn percent_signs_are_read_where_they_mean_something() {
        for (text, wanted) in [("a%2Fb", "a/b"), ("%", "%"), ("%2", "%2"), ("%zz%41+", "%zzA+"), ("", "")] {
            assert_eq!(percent_decoded(text), wanted.as_bytes(), "{text}");
        }
    }
}
