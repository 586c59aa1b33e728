//! Keys of pages: a browser says its key once, in the address, and has it in a cookie from then on. Pure functions.

use axum::http::{HeaderMap, Uri, header};

/// The cookie that holds a key.
pub(super) const COOKIE: &str = "aihost_key";
/// The member of a query that is one.
pub(super) const QUERY: &str = "key";

/// The key that comes with a request for a page: in its query, or in its cookie.
pub(super) fn key_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    in_query(uri).or_else(|| cookies(headers).find(|(name, _)| *name == COOKIE).map(|(_, value)| value))
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
