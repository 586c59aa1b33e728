//! Pages and apps of other origins.

use super::*;
use crate::config::{Cors, Env, parse};

/// The configuration's `cors:` of this text.
fn cors(origins: &str) -> Cors {
    let text = format!("cors: {{origins: {origins}}}\nmodels: {{a: {{type: text, plugin: p}}}}");
    parse(&text, std::path::Path::new("/m.yaml"), &Default::default(), &Env::default()).unwrap().cors
}

fn from(origin: &str, method: &str, path: &str) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost").header("origin", origin);
    if method == "OPTIONS" {
        request = request.header("access-control-request-method", "POST");
        request = request.header("access-control-request-headers", "authorization, x-stainless-os");
    }
    let body = if method == "POST" { Body::from(chat(&json!({})).to_string()) } else { Body::empty() };
    request.body(body).unwrap()
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_page_that_is_listed_reads_answers_and_refusals_and_asks_without_a_key() {
    let keyed = Config { api_keys: keys(&["k"]), cors: cors("[https://*.example.com, 'null']"), ..config() };
    let host = Host::with(keyed, hello);
    for origin in ["https://chat.example.com", "null", "http://localhost:5173"] {
        let preflight = host.send(from(origin, "OPTIONS", CHAT)).await;
        assert_eq!(preflight.status, 204, "{origin}");
        assert_eq!(preflight.header("access-control-allow-headers"), "authorization, x-stainless-os");
        for method in ["GET", "POST", "DELETE"] {
            assert!(preflight.header("access-control-allow-methods").contains(method), "{method}");
        }
        assert!(preflight.header("vary").contains("Access-Control-Request-Headers"));
        for (request, status) in [
            (with_key(from(origin, "POST", CHAT), "k"), 200),
            (from(origin, "POST", CHAT), 401),
            (with_key(from(origin, "GET", "/nowhere"), "k"), 404),
            (with_key(from(origin, "GET", CHAT), "k"), 405),
            (with_key(from(origin, "POST", "/v1/images/generations"), "k"), 400),
        ] {
            let reply = host.send(request).await;
            assert_eq!(reply.status, status, "{origin}: {}", reply.body);
            assert_eq!(reply.header("access-control-allow-origin"), origin);
            assert_eq!(reply.header("vary"), "Origin");
            for name in ["x-request-id", "retry-after", "x-ratelimit-remaining-requests", "openai-processing-ms"] {
                assert!(reply.header("access-control-expose-headers").contains(name), "{name}");
            }
            assert_eq!(reply.header("access-control-allow-credentials"), "");
        }
    }
    for origin in ["https://example.com", "http://chat.example.com", "app://obsidian.md", "http://localhost.evil.com"] {
        for method in ["OPTIONS", "POST"] {
            let reply = host.send(with_key(from(origin, method, CHAT), "k")).await;
            assert_eq!(reply.header("access-control-allow-origin"), "", "{method} {origin}");
            assert!(reply.header("vary").contains("Origin"));
        }
    }
}

#[tokio::test]
async fn a_host_without_keys_serves_apps_and_whatever_is_listed() {
    let host = Host::new(hello);
    for app in ["app://obsidian.md", "tauri://localhost", "vscode-webview://0e1", "file://", "capacitor://localhost"] {
        for (method, status) in [("OPTIONS", 204), ("POST", 200)] {
            let reply = host.send(from(app, method, CHAT)).await;
            assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (status, app), "{method}");
        }
    }
    for page in ["https://chat.example.com", "null", "chrome-extension://abc", "http://localhost.evil.com"] {
        for method in ["OPTIONS", "POST"] {
            let reply = host.send(from(page, method, CHAT)).await;
            assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (403, ""), "{page}");
        }
    }
    let all = Host::with(Config { cors: cors("'*'"), ..config() }, hello);
    for page in ["https://chat.example.com", "null", "chrome-extension://abc"] {
        let reply = all.send(from(page, "POST", CHAT)).await;
        assert_eq!((reply.status.as_u16(), reply.header("access-control-allow-origin")), (200, page));
    }
    // A name that somebody else gave this machine is none of its own, whoever asks.
    let mut rebound = from("https://chat.example.com", "POST", CHAT);
    rebound.headers_mut().insert("host", "chat.example.com".parse().unwrap());
    assert_eq!(all.send(rebound).await.status, 403);
    // Nobody but pages of this machine.
    let none = Host::with(Config { cors: cors("[]"), ..config() }, hello);
    assert_eq!(none.send(from("app://obsidian.md", "POST", CHAT)).await.status, 403);
    assert_eq!(none.send(from("http://127.0.0.1:1", "POST", CHAT)).await.status, 200);
}

#[test]
fn wrong_origins_are_refused_by_their_place() {
    let text = "cors:\n  origins:\n    - https://a.com\n    - chat.example.com\n    - https://a.com/path\nmodels: {a: {type: text, plugin: p}}";
    let wrong = parse(text, std::path::Path::new("/m.yaml"), &Default::default(), &Env::default()).unwrap_err();
    let told = wrong.to_string();
    for part in ["cors.origins[1]", "chat.example.com", "https://chat.example.com", "cors.origins[2]", "no path"] {
        assert!(told.contains(part), "no `{part}` in {told}");
    }
}
