//! Origins of web pages and apps, as `cors:` names them and browsers send them.

/// Schemes of apps and editors that have no site: what they show came with them and not from a server, so no page on the web
/// has an origin of theirs. Those that Ollama allows where nothing is said, and those of Electron, Capacitor and Ionic.
const APPS: [&str; 10] = [
    "app://*",
    "capacitor://*",
    "electron://*",
    "file://*",
    "http://tauri.localhost",
    "https://tauri.localhost",
    "ionic://*",
    "tauri://*",
    "vscode-file://*",
    "vscode-webview://*",
];

/// Which pages and apps may use this host, beside pages of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cors {
    /// Any one of these.
    pub origins: Vec<OriginPattern>,
}

impl Default for Cors {
    fn default() -> Self {
        Self { origins: APPS.iter().filter_map(|app| OriginPattern::parse(app).ok()).collect() }
    }
}

impl Cors {
    /// Whether this `Origin` is one of them.
    pub fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|pattern| pattern.matches(origin))
    }

    /// Whether every one is.
    pub fn allows_all(&self) -> bool {
        self.origins.contains(&OriginPattern::Any)
    }
}

/// An origin, or what several have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`: every one, `null` among them.
    Any,
    /// `null`: of pages that have none, such as files and frames in a sandbox.
    Null,
    /// Scheme, host and port.
    Site(SitePattern),
}

/// An origin that is none of those that stand alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SitePattern {
    scheme: String,
    host: HostPattern,
    port: PortPattern,
}

/// A host in small letters.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    /// `*`
    Any,
    Exactly(String),
    /// Something without a dot between these.
    Between(String, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortPattern {
    /// `:*`
    Any,
    /// That of the scheme, which browsers leave out.
    Usual,
    Exactly(u16),
}

/// What is wrong with an origin, and how it is written.
pub(super) struct BadOrigin {
    pub(super) message: &'static str,
    pub(super) hint: String,
}

impl OriginPattern {
    /// As it is typed.
    pub(super) fn parse(typed: &str) -> Result<Self, BadOrigin> {
        const SHAPE: &str = "write \"*\", \"null\", or an origin like https://chat.example.com, https://*.example.com or app://obsidian.md";
        let bad = |message, hint: String| Err(BadOrigin { message, hint });
        match typed {
            "*" => return Ok(Self::Any),
            "null" => return Ok(Self::Null),
            _ => {}
        }
        let Some((scheme, rest)) = typed.split_once("://") else {
            let hint = if is_host(typed) && !typed.is_empty() {
                format!("write https://{typed}, or http://{typed}")
            } else {
                SHAPE.to_owned()
            };
            return bad("is no origin: it has no scheme", hint);
        };
        if !is_scheme(scheme) {
            return bad("is no origin: its scheme is none", SHAPE.to_owned());
        }
        if let Some(end) = rest.find(['/', '?', '#']) {
            return bad("is more than an origin", format!("write {scheme}://{}: an origin has no path", &rest[..end]));
        }
        let scheme = scheme.to_ascii_lowercase();
        let (host, port) = split_port(rest);
        let port = match port {
            None => PortPattern::Usual,
            Some("*") => PortPattern::Any,
            Some(port) => match port.parse() {
                Ok(port) if Some(port) == usual_port(&scheme) => PortPattern::Usual,
                Ok(port) => PortPattern::Exactly(port),
                Err(_) => return bad("has a port that is none", SHAPE.to_owned()),
            },
        };
        let host = host.to_ascii_lowercase();
        let host = match host.split_once('*') {
            Some(("", "")) => HostPattern::Any,
            Some((before, after)) if !before.contains('.') && !after.contains('*') && is_host(after) => {
                HostPattern::Between(before.to_owned(), after.to_owned())
            }
            Some(_) => {
                let hint = "one `*` may stand in what is before the first dot: https://*.example.com".to_owned();
                return bad("has a `*` where it may be none", hint);
            }
            None if is_host(&host) && (!host.is_empty() || !is_web(&scheme)) => HostPattern::Exactly(host),
            None => return bad("has a host that is none", SHAPE.to_owned()),
        };
        Ok(Self::Site(SitePattern { scheme, host, port }))
    }

    fn matches(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Null => origin == "null",
            Self::Site(SitePattern { scheme, host, port }) => {
                let Some((is_scheme, rest)) = origin.split_once("://") else { return false };
                let (is_host, is_port) = split_port(rest);
                let port = match (port, is_port) {
                    (PortPattern::Usual, port) => port.is_none(),
                    (PortPattern::Any, port) => port.is_none_or(|port| port.parse::<u16>().is_ok()),
                    (PortPattern::Exactly(wanted), port) => port.and_then(|port| port.parse().ok()) == Some(*wanted),
                };
                // What has a scheme of its own may have ports that are none.
                let port = port || (*host == HostPattern::Any && !is_web(scheme));
                port && is_scheme.eq_ignore_ascii_case(scheme) && host.matches(&is_host.to_ascii_lowercase())
            }
        }
    }
}

impl HostPattern {
    fn matches(&self, host: &str) -> bool {
        is_host(host)
            && match self {
                Self::Any => true,
                Self::Exactly(wanted) => host == wanted,
                Self::Between(before, after) => {
                    let between = host.strip_prefix(before.as_str()).and_then(|rest| rest.strip_suffix(after.as_str()));
                    between.is_some_and(|between| !between.is_empty() && !between.contains('.'))
                }
            }
    }
}

fn is_scheme(scheme: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(is_plain)
}

/// Whether these may be characters of a host: of what apps call theirs too.
fn is_host(host: &str) -> bool {
    host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~[]:%{}".contains(&byte))
}

fn is_web(scheme: &str) -> bool {
    usual_port(scheme).is_some()
}

fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// What is before and behind the colon of a port, if there is one. An address of IPv6 has its own between brackets.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    let host = if authority.starts_with('[') { authority.find(']').map_or(authority.len(), |end| end + 1) } else { 0 };
    match authority[host..].split_once(':') {
        Some((rest, port)) => (&authority[..host + rest.len()], Some(port)),
        None => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, origin: &str) -> bool {
        let pattern = OriginPattern::parse(pattern).unwrap_or_else(|bad| panic!("{pattern}: {}", bad.message));
        Cors { origins: vec![pattern] }.allows(origin)
    }

    #[test]
    fn an_origin_is_allowed_by_what_it_is() {
        for (pattern, allowed, refused) in [
            ("*", &["https://a.b", "null", "app://x", "nonsense"][..], &[][..]),
            ("null", &["null"][..], &["https://null", "NULL"][..]),
            (
                "https://Chat.example.com",
                &["https://chat.example.com", "HTTPS://CHAT.EXAMPLE.COM"][..],
                &[
                    "http://chat.example.com",
                    "https://chat.example.com:8443",
                    "https://chat.example.com.evil.com",
                    "https://evil.com/https://chat.example.com",
                    "https://xchat.example.com",
                    "null",
                    "chat.example.com",
                ][..],
            ),
            ("https://a.com:443", &["https://a.com"][..], &["https://a.com:80", "https://a.com:x"][..]),
            ("http://10.0.0.7:3000", &["http://10.0.0.7:3000"][..], &["http://10.0.0.7", "http://10.0.0.7:30000"][..]),
            ("http://lan:*", &["http://lan", "http://lan:1"][..], &["http://lan:80.evil.com", "http://lan:x"][..]),
            (
                "https://*.example.com",
                &["https://a.example.com"][..],
                &[
                    "https://example.com",
                    "https://.example.com",
                    "https://a.b.example.com",
                    "https://a.example.com.evil.com",
                    "https://evil.com/.example.com",
                    "https://evil.com#.example.com",
                ][..],
            ),
            ("https://app-*.example.com", &["https://app-1.example.com"][..], &["https://app-.example.com"][..]),
            ("http://[::1]:5173", &["http://[::1]:5173"][..], &["http://[::1]", "http://[::1]:5174"][..]),
            ("app://obsidian.md", &["app://obsidian.md"][..], &["app://evil.md", "http://obsidian.md"][..]),
            ("tauri://localhost", &["tauri://localhost"][..], &["tauri://localhost.evil"][..]),
            (
                "vscode-webview://*",
                &["vscode-webview://0e1c-77", "vscode-webview://a:b"][..],
                &["vscode-webviews://x"][..],
            ),
            ("chrome-extension://*", &["chrome-extension://abcdef"][..], &["chrome-extension"][..]),
            ("file://*", &["file://", "file://host"][..], &["null"][..]),
            ("https://*", &["https://any.where"][..], &["http://any.where", "https://any:x", "https://a/b"][..]),
        ] {
            for origin in allowed {
                assert!(allows(pattern, origin), "{pattern} {origin}");
            }
            for origin in refused {
                assert!(!allows(pattern, origin), "{pattern} {origin}");
            }
        }
    }

    #[test]
    fn what_is_no_origin_is_refused_with_a_hint() {
        for (typed, hint) in [
            ("", "write \"*\""),
            ("chat.example.com", "https://chat.example.com"),
            ("https://a.com/", "https://a.com:"),
            ("https://a.com/path", "https://a.com:"),
            ("https://", "write \"*\""),
            ("https://a.com:port", "write \"*\""),
            ("https://a b", "write \"*\""),
            ("https://a.*.com", "before the first dot"),
            ("https://*.*.com", "before the first dot"),
            ("1://a", "write \"*\""),
            ("https://user@a.com", "write \"*\""),
        ] {
            let bad = OriginPattern::parse(typed).err().unwrap_or_else(|| panic!("{typed} is taken"));
            assert!(bad.hint.contains(hint), "{typed}: {}", bad.hint);
        }
    }

    #[test]
    fn apps_are_allowed_where_nothing_is_said_and_sites_are_not() {
        let usual = Cors::default();
        assert_eq!(usual.origins.len(), APPS.len(), "one of them is no origin");
        for app in
            ["app://obsidian.md", "tauri://localhost", "https://tauri.localhost", "vscode-webview://1", "file://"]
        {
            assert!(usual.allows(app), "{app}");
        }
        for site in ["https://a.com", "http://app", "null", "chrome-extension://abc", "http://x.tauri.localhost", "*"] {
            assert!(!usual.allows(site), "{site}");
        }
    }
}
