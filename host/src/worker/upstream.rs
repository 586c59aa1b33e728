//! What an upstream address may be: said by the worker when its plugin answers, and by the host, which does not take a worker's
//! word.

use aihost_plugin_api::UpstreamAddress;
use hyper::header::{HeaderName, HeaderValue};

/// Most headers that an engine is sent with each request, beside those of its clients.
const HEADERS_MAX: usize = 16;
/// Most bytes of what stands before each path.
const PREFIX_BYTES: usize = 256;

/// What is wrong with it.
pub(super) fn check_upstream(upstream: &UpstreamAddress) -> Result<(), String> {
    let UpstreamAddress { address, prefix, headers, .. } = upstream;
    if !address.ip().is_loopback() || address.port() == 0 {
        return Err(format!("{address} is no port of this machine's loopback"));
    }
    let is_plain = |c: char| c.is_ascii_graphic() && !"?#\\".contains(c);
    if !(prefix.is_empty() || prefix.starts_with('/')) || !prefix.chars().all(is_plain) || prefix.len() > PREFIX_BYTES {
        return Err(format!("`{}` is no beginning of a path", crate::domain::excerpt(prefix, PREFIX_BYTES)));
    }
    if headers.len() > HEADERS_MAX {
        return Err(format!("it has more than {HEADERS_MAX} headers"));
    }
    for (name, value) in headers {
        let is_header = HeaderName::try_from(name).is_ok() && HeaderValue::try_from(value).is_ok();
        if !is_header || matches!(name.as_str(), "connection" | "content-length" | "host" | "transfer-encoding") {
            return Err(format!("`{}` is no header of its own to say", crate::domain::excerpt(name, 64)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_asked_on_this_machine_and_in_http() {
        let good = UpstreamAddress::on_port(8000);
        for good in [
            good.clone(),
            good.clone().below("/v1/x").header("x-key", "k"),
            UpstreamAddress::at("[::1]:1".parse().unwrap()),
        ] {
            assert_eq!(check_upstream(&good), Ok(()));
        }
        for bad in [
            UpstreamAddress::on_port(0),
            UpstreamAddress::at("10.0.0.1:80".parse().unwrap()),
            UpstreamAddress::at("0.0.0.0:80".parse().unwrap()),
            good.clone().below("v1"),
            good.clone().below("/a b"),
            good.clone().below("/a?b"),
            good.clone().below(&"/a".repeat(200)),
            good.clone().header("a b", "c"),
            good.clone().header("a", "b\nc"),
            good.clone().header("Host", "c"),
            (0..17).fold(good, |good, n| good.header(&format!("x-{n}"), "")),
        ] {
            assert!(check_upstream(&bad).is_err(), "{bad:?}");
        }
    }
}
