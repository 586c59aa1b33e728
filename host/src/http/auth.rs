//! Who may ask: API keys, and for a keyless host on loopback the names that belong to this machine. Pure functions.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, Uri, header};
use subtle::ConstantTimeEq;

use super::caller::Caller;
use super::error::ApiError;
use super::page_key;
use crate::config::{ApiKey, Config, Scope};

/// Paths that answer without a key, and beyond the most connections: probes send none, and must see that a host is well and
/// merely has much to do.
pub(super) const PROBES: [&str; 5] = ["/", "/health", "/livez", "/readyz", "/ping"];

/// Whom a path is open to, where keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Open,
    /// Every key: nothing is there.
    AnyKey,
    /// Keys of this scope.
    Scoped(Scope),
    /// The same. Whoever watches what was asked before has nothing under way by that.
    Watching(Scope),
    /// The same, for a browser's page: its key may stand in the address once, and in a cookie.
    Page(Scope),
}

/// Who asks, if whoever sends these headers may at all.
pub(super) fn identify(config: &Config, access: Access, uri: &Uri, headers: &HeaderMap) -> Result<Caller, ApiError> {
    if access == Access::Open {
        return Ok(Caller::anyone());
    }
    if config.api_keys.is_empty() {
        return check_sender(config, headers).map(|()| Caller::anyone());
    }
    let key = match access {
        Access::Page(_) => key_of(headers).or_else(|| page_key::key_of(uri, headers)),
        Access::Open | Access::AnyKey | Access::Scoped(_) | Access::Watching(_) => key_of(headers),
    };
    key.and_then(|key| accepted(&config.api_keys, key)).map(Caller::of).ok_or_else(ApiError::bad_key)
}

/// Whose job runs: whoever has the key of this name by now, or anybody where keys are not asked for.
pub(super) fn owner(config: &Config, name: Option<&str>) -> Result<Caller, ApiError> {
    if config.api_keys.is_empty() {
        return Ok(Caller::anyone());
    }
    let key = name.and_then(|name| config.api_keys.iter().find(|key| key.name == name));
    key.cloned().map(Caller::of).ok_or_else(ApiError::owner_gone)
}

/// Whether they may ask for this.
pub(super) fn authorize(caller: &Caller, access: Access) -> Result<(), ApiError> {
    match access {
        Access::Scoped(scope) | Access::Watching(scope) | Access::Page(scope) if !caller.may(scope) => {
            Err(ApiError::missing_scope(scope))
        }
        Access::Open | Access::AnyKey | Access::Scoped(_) | Access::Watching(_) | Access::Page(_) => Ok(()),
    }
}

/// Whether keys are left out of it: a preflight carries none.
pub(super) fn admit_preflight(config: &Config, headers: &HeaderMap) -> Result<(), ApiError> {
    if config.api_keys.is_empty() { check_sender(config, headers) } else { Ok(()) }
}

/// Whether answers may be read by whatever has this `Origin`: a page served from this machine, or what `cors:` says.
pub(super) fn may_read(config: &Config, origin: &str) -> bool {
    is_local_origin(origin) || config.cors.allows(origin)
}

/// Whether an `Origin` is a page served from this machine.
fn is_local_origin(origin: &str) -> bool {
    let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    rest.and_then(host_name).is_some_and(is_local_name)
}

/// Refuses a page of another site (CSRF), which is all that stands before a host without keys, unless `cors:` names it; and on
/// loopback, which has no other names than its own, a foreign name that resolves to it (DNS rebinding), whatever `cors:` says.
fn check_sender(config: &Config, headers: &HeaderMap) -> Result<(), ApiError> {
    if let Some(host) = headers.get(header::HOST).filter(|_| config.addresses().all(|own| own.ip().is_loopback())) {
        let name = host.to_str().ok().and_then(host_name);
        let own = |name: &str| is_local_name(name) || config.addresses().any(|own| ip_of(name) == Some(own.ip()));
        if !name.is_some_and(own) {
            return Err(ApiError::foreign("Host"));
        }
    }
    match headers.get(header::ORIGIN) {
        Some(origin) if !origin.to_str().is_ok_and(|origin| may_read(config, origin)) => {
            Err(ApiError::foreign("Origin"))
        }
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
fn accepted(keys: &[Arc<ApiKey>], sent: &str) -> Option<Arc<ApiKey>> {
    let is_it = |secret: &String| bool::from(secret.as_bytes().ct_eq(sent.as_bytes()));
    let is_one = |key: &ApiKey| key.secrets.iter().fold(false, |found, secret| is_it(secret) | found);
    keys.iter().fold(None, |found, key| if is_one(key) { Some(key) } else { found }).cloned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{accepted, host_name, is_local_origin};
    use crate::http::tests::key;

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
        let keys = [key("abc"), key("abcd"), key("")].map(|mut key| {
            key.secrets.push(format!("{}, rotated", key.secrets[0]));
            Arc::new(key)
        });
        let found = |keys: &[_], sent| accepted(keys, sent).map(|key| key.name.clone());
        assert_eq!(found(&keys[..2], "abc").as_deref(), Some("of abc"));
        assert_eq!(found(&keys[..2], "abc, rotated").as_deref(), Some("of abc"));
        assert_eq!(found(&keys[..2], "abcd").as_deref(), Some("of abcd"));
        for wrong in ["", "ab", "abd", "Abc", "abcde", "abc\0", "of abc"] {
            assert_eq!(found(&keys[..2], wrong), None, "{wrong:?}");
        }
        assert_eq!(found(&keys[2..], "abc"), None);
    }
}
