//! The address in a `proxy:`: on this machine or elsewhere, at which port, below which path.

/// Names of this machine.
const HERE: [&str; 4] = ["localhost", "127.0.0.1", "0.0.0.0", "[::1]"];

/// An address of HTTP, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proxy {
    /// Whether it is TLS.
    pub(super) is_tls: bool,
    /// Whether it is this machine.
    pub(super) is_here: bool,
    /// Its port, where one is written.
    pub(super) port: Option<u16>,
    /// What stands before each path; no slash at its end.
    pub(super) path: String,
    /// All of it, without a slash at its end.
    pub(super) url: String,
}

impl Proxy {
    /// Where llama-swap asks a model that says nothing.
    pub(super) fn usual() -> Self {
        let url = format!("http://localhost:{}", super::command::PORT);
        Self { is_tls: false, is_here: true, port: None, path: String::new(), url }
    }

    /// Reads an address. `${PORT}` counts as none that is written.
    pub(super) fn read(typed: &str) -> Option<Self> {
        let url = typed.trim().trim_end_matches('/');
        let (scheme, rest) = url.split_once("://")?;
        let is_tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let port = match port {
            None | Some(super::command::PORT) => None,
            Some(port) => Some(port.parse().ok()?),
        };
        let is_here = HERE.contains(&host) || host.strip_prefix("127.").is_some();
        Some(Self { is_tls, is_here, port, path: path.to_owned(), url: url.to_owned() })
    }

    /// Where the API of one that runs elsewhere begins: llama-swap puts a whole path behind its address.
    pub(super) fn api(&self) -> String {
        format!("{}/v1", self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let read = |typed: &str| Proxy::read(typed).map(|proxy| (proxy.is_here, proxy.port, proxy.path));
        assert_eq!(read("http://localhost:${PORT}"), Some((true, None, String::new())));
        assert_eq!(read("http://127.0.0.1:9503/"), Some((true, Some(9503), String::new())));
        assert_eq!(read("http://[::1]:81/a/b/"), Some((true, Some(81), "/a/b".into())));
        assert_eq!(read("https://api.example.com/api"), Some((false, None, "/api".into())));
        for typed in ["", "localhost:80", "ftp://x", "http://x:port"] {
            assert_eq!(read(typed), None, "{typed}");
        }
        assert_eq!(Proxy::read(&Proxy::usual().url), Some(Proxy::usual()));
        assert_eq!(Proxy::read("https://a.b/api/").unwrap().api(), "https://a.b/api/v1");
    }
}
