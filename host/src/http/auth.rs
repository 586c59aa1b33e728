//! Who may ask: API keys, and for a keyless host on loopback the names that belong to this machine. Pure functions.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::config::{ApiKey, Config};
use crate::domain::Class;

/// Paths that answer without a key, and beyond the most connections: probes send none, and must see that a host is well and
/// merely has much to do.
pub(super) const PROBES: [&str; 4] = ["/health", "/livez", "/readyz", "/ping"];

/// Whether a request may pass, by its path and headers; and the class of whoever sent it.
pub(super) fn admit(config: &Config, path: &str, headers: &HeaderMap) -> Result<Class, ApiError> {
    if PROBES.contains(&path) {
        return Ok(Class::default());
    }
    if !config.api_keys.is_empty() {
        return key_of(headers).and_then(|key| accepted(&config.api_keys, key)).ok_or_else(ApiError::bad_key);
    }
    if config.listen.ip().is_loopback() {
        own_names(config.listen, headers)?;
    }
    Ok(Class::default())
}

/// Whether keys are left out of it: a preflight carries none.
pub(super) fn admit_preflight(config: &Config, headers: &HeaderMap) -> Result<(), ApiError> {
    if config.api_keys.is_empty() && config.listen.ip().is_loopback() {
        own_names(config.listen, headers)
    } else {
        Ok(())
    }
}

/// Whether an `Origin` is a page served from this machine.
pub(super) fn is_local_origin(origin: &str) -> bool {
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    rest.and_then(host_name).is_some_and(is_local_name)
}

/// Refuses a page of another site (CSRF) and a foreign name that resolves to loopback (DNS rebinding).
fn own_names(listen: SocketAddr, headers: &HeaderMap) -> Result<(), ApiError> {
    if let Some(host) = headers.get(header::HOST) {
        let name = host.to_str().ok().and_then(host_name);
        let own = |name: &str| is_local_name(name) || ip_of(name) == Some(listen.ip());
        if !name.is_some_and(own) {
            return Err(ApiError::foreign("Host"));
        }
    }
    match headers.get(header::ORIGIN) {
        Some(origin) if !origin.to_str().is_ok_and(is_local_origin) => Err(ApiError::foreign("Origin")),
        _ => Ok(()),
    }
}

fn is_local_name(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]"
}

fn ip_of(name: &str) -> Option<IpAddr> {
    name.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// `name` of `name` or `name:port`, brackets kept; `None` if it is neither.
fn host_name(authority: &str) -> Option<&str> {
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (name, port) = authority.split_at(end);
    let port_is_sane = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    port_is_sane.then_some(name)
}

fn key_of(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
}

/// Compares with every key in full, so that the time taken tells nothing of a key but its length.
fn accepted(keys: &[ApiKey], key: &str) -> Option<Class> {
    let is_it = |known: &ApiKey| bool::from(known.key.as_bytes().ct_eq(key.as_bytes())).then_some(known.class);
    keys.iter().fold(None, |found, known| is_it(known).or(found))
}

#[cfg(test)]
mod tests {
    use super::{ApiKey, Class, accepted, host_name, is_local_origin};

    #[test]
    fn only_this_machine_is_local() {
        for origin in ["http://localhost", "http://localhost:3000", "https://127.0.0.1:1", "http://[::1]:9000"] {
            assert!(is_local_origin(origin), "{origin}");
        }
        for origin in [
            "null",
            "http://localhost.evil.com",
            "http://evil.com",
            "http://localhost:x",
            "http://localhost:80.evil.com",
            "file://localhost",
            "http://[::1",
        ] {
            assert!(!is_local_origin(origin), "{origin}");
        }
    }

    #[test]
    fn host_names_lose_their_port() {
        assert_eq!(host_name("[::1]:9000"), Some("[::1]"));
        assert_eq!(host_name("a:"), None);
    }

    #[test]
    fn keys_are_compared_in_full() {
        let key = |key: &str, class| ApiKey { key: key.to_owned(), class };
        let keys = [key("abc", Class::Batch), key("abcd", Class::Interactive), key("", Class::Interactive)];
        assert_eq!(accepted(&keys[..2], "abc"), Some(Class::Batch));
        assert_eq!(accepted(&keys[..2], "abcd"), Some(Class::Interactive));
        for wrong in ["", "ab", "abd", "Abc", "abcde", "abc\0"] {
            assert_eq!(accepted(&keys[..2], wrong), None, "{wrong:?}");
        }
        assert_eq!(accepted(&keys[2..], "abc"), None);
    }
}
