//! Whom each route is open to: every route with every method, for everybody who may come.

use std::collections::BTreeSet;

use super::*;
use crate::http::auth::PROBES;
use crate::http::router::routes;

/// Each route, with the method that it answers and whom it is open to. A route of the router that is not here fails.
const TABLE: [(&str, &str, &str); 68] = [
    ("POST", "/v1/chat/completions", "use"),
    ("POST", "/chat/completions", "use"),
    ("POST", "/v1/completions", "use"),
    ("POST", "/completions", "use"),
    ("POST", "/v1/chat/completions/input_tokens", "use"),
    ("POST", "/chat/completions/input_tokens", "use"),
    ("POST", "/v1/responses", "use"),
    ("POST", "/responses", "use"),
    ("POST", "/v1/responses/input_tokens", "use"),
    ("POST", "/responses/input_tokens", "use"),
    ("GET DELETE", "/v1/responses/{id}", "use"),
    ("GET DELETE", "/responses/{id}", "use"),
    ("POST", "/v1/messages", "use"),
    ("POST", "/v1/messages/count_tokens", "use"),
    ("POST", "/api/chat", "use"),
    ("POST", "/api/generate", "use"),
    ("POST", "/api/show", "use"),
    ("POST", "/api/embed", "use"),
    ("POST", "/api/embeddings", "use"),
    ("GET", "/api/tags", "use"),
    ("GET", "/api/ps", "use"),
    ("GET", "/api/version", "use"),
    ("GET", "/running", "use"),
    ("GET", "/", "everybody"),
    ("GET", "/page/{name}", "everybody"),
    ("GET", "/openapi.json", "use"),
    ("GET", "/docs", "use"),
    ("POST", "/tokenize", "use"),
    ("POST", "/detokenize", "use"),
    ("POST", "/v1/audio/generations", "use"),
    ("POST", "/v1/audio/speech", "use"),
    ("POST", "/v1/audio/transcriptions", "use"),
    ("POST", "/v1/audio/translations", "use"),
    ("POST", "/v1/embeddings", "use"),
    ("POST", "/embeddings", "use"),
    ("POST", "/v1/rerank", "use"),
    ("POST", "/rerank", "use"),
    ("POST", "/v1/moderations", "use"),
    ("POST", "/v1/images/generations", "use"),
    ("POST", "/v1/images/edits", "use"),
    ("POST", "/v1/images/variations", "use"),
    ("POST GET", "/v1/jobs", "use"),
    ("GET DELETE", "/v1/jobs/{id}", "use"),
    ("GET", "/v1/jobs/{id}/events", "use"),
    ("GET", "/v1/jobs/{id}/result", "use"),
    ("POST", "/v1/jobs/{id}/cancel", "use"),
    ("ANY", "/upstream/{*rest}", "use"),
    ("GET", "/artifacts/{name}", "use"),
    ("GET", "/v1/models", "use"),
    ("GET", "/v1/models/{*id}", "use"),
    ("GET", "/props", "use"),
    ("GET", "/models", "use"),
    ("POST", "/models/load", "operate"),
    ("POST", "/models/unload", "operate"),
    ("POST", "/models/park", "operate"),
    ("POST", "/models/pin", "operate"),
    ("GET", "/admin/plan", "operate"),
    ("GET", "/admin/status", "operate"),
    ("GET", "/admin/devices", "operate"),
    ("GET", "/admin/overview", "operate"),
    ("GET", "/admin/events", "operate"),
    ("GET", "/admin/options", "operate"),
    ("GET", "/logs/{*model}", "operate"),
    ("GET", "/metrics", "metrics"),
    ("GET", "/health", "everybody"),
    ("GET", "/livez", "everybody"),
    ("GET", "/readyz", "everybody"),
    ("GET", "/ping", "everybody"),
];

/// What never ends once it is answered.
const FOR_EVER: &str = "/admin/events";

const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"];

/// Who may come: a key, and what it opens; nothing where there is none that is accepted.
const CALLERS: [(&str, Option<&[Scope]>); 6] = [
    ("", None),
    ("wrong", None),
    ("user", Some(&[Scope::Use])),
    ("operator", Some(&[Scope::Operate])),
    ("scraper", Some(&[Scope::Metrics])),
    ("owner", Some(&Scope::ALL)),
];

/// What a caller gets for a method of a route: a status, or what is not one of a refusal at the door.
fn wanted(row: (&str, &str, &str), opens: Option<&[Scope]>, method: &str) -> Option<u16> {
    let (answered, _, whom) = row;
    let is_open = whom == "everybody" || opens.is_some_and(|scopes| scopes.iter().any(|scope| scope.name() == whom));
    match (is_open, opens) {
        (true, _) if answered == "ANY" => None,
        (true, _) if answered.split(' ').any(|one| method == one || (method == "HEAD" && one == "GET")) => None,
        (true, _) => Some(405),
        (false, None) => Some(401),
        (false, Some(_)) => Some(403),
    }
}

fn asked(method: &str, path: &str, key: &str) -> Request<Body> {
    // Whatever a path has at its end.
    let path = path
        .replace("{name}", "a")
        .replace("{*id}", "a")
        .replace("{*model}", "a")
        .replace("{*rest}", "a")
        .replace("{id}", "a");
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    if key.is_empty() { request } else { with_key(request, key) }
}

fn keyed() -> Config {
    let of = |(secret, opens): (&str, Option<&[Scope]>)| {
        let scopes = opens?.iter().copied().collect();
        Some(Arc::new(ApiKey { scopes, ..key(secret) }))
    };
    Config { api_keys: CALLERS.into_iter().filter_map(of).collect(), ..config() }
}

#[test]
fn every_route_has_a_row_and_every_row_a_route() {
    let routed: Vec<_> = routes()
        .iter()
        .map(|route| {
            let answered: Vec<&str> = route.answered.iter().map(axum::http::Method::as_str).collect();
            (if answered.is_empty() { "ANY".to_owned() } else { answered.join(" ") }, route.path)
        })
        .collect();
    let rows: Vec<_> = TABLE.iter().map(|(method, path, _)| ((*method).to_owned(), *path)).collect();
    assert_eq!(routed.len(), rows.len());
    let (routed, rows): (BTreeSet<_>, BTreeSet<_>) = (routed.into_iter().collect(), rows.into_iter().collect());
    assert_eq!(routed, rows, "a route without a row, or a row without a route");
    let open: Vec<&str> = TABLE.iter().filter(|row| row.2 == "everybody").map(|row| row.1).collect();
    // The files of the page are no probes: they make room as everything else does.
    let open: Vec<&str> = open.into_iter().filter(|path| !path.starts_with("/page/")).collect();
    assert_eq!(open, PROBES, "what answers beyond the most connections is what answers without a key");
}

#[tokio::test]
async fn every_route_and_method_is_open_to_those_of_its_row() {
    let host = Host::with(keyed(), hello);
    for row in TABLE {
        for (key, opens) in CALLERS {
            for method in METHODS {
                let response = host.router.clone().oneshot(asked(method, row.1, key)).await.unwrap();
                let (status, case) = (response.status().as_u16(), format!("{method} {} as `{key}`", row.1));
                match wanted(row, opens, method) {
                    Some(wanted) => assert_eq!(status, wanted, "{case}"),
                    None => assert!(!matches!(status, 401 | 403 | 405), "{case}: {status}"),
                }
                assert!(status != 405 || response.headers().contains_key("allow"), "{case}");
                assert_eq!(response.headers().contains_key("www-authenticate"), status == 401, "{case}");
                assert_eq!(response.headers()["x-content-type-options"], "nosniff", "{case}");
                assert_eq!(response.headers()["cache-control"], "no-store", "{case}");
                if row.1 == FOR_EVER {
                    continue;
                }
                let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
                let json = serde_json::from_slice::<Value>(&body).unwrap_or_default();
                if json["type"] == "error" || json["error"].is_string() {
                    // Another API's form, which has no codes.
                    continue;
                }
                let code = json["error"]["code"].clone();
                assert_ne!(code, "unknown_url", "{case}: a row without a route");
                match status {
                    // The answer to HEAD has no body.
                    401 | 403 | 405 if method == "HEAD" => {}
                    401 => assert_eq!(code, "invalid_api_key", "{case}"),
                    403 => assert_eq!(code, "missing_scope", "{case}"),
                    405 => assert_eq!(code, "method_not_allowed", "{case}"),
                    _ => {}
                }
            }
        }
    }
}

#[tokio::test]
async fn where_nothing_is_any_key_is_told_so_and_nobody_else() {
    let host = Host::with(keyed(), hello);
    for path in ["/v1", "/v1/", "/admin", "/logs/", "/models/load/x", "/health/x", "//nowhere/"] {
        for (key, opens) in CALLERS {
            for method in METHODS {
                let status = host.send(asked(method, path, key)).await.status.as_u16();
                assert_eq!(status, if opens.is_some() { 404 } else { 401 }, "{method} {path} as `{key}`");
            }
        }
    }
}

#[tokio::test]
async fn without_keys_everything_is_open_to_this_machine_alone() {
    let host = Host::new(hello);
    for row in TABLE {
        for method in METHODS {
            let wanted = wanted(row, Some(&Scope::ALL), method);
            let status = host.router.clone().oneshot(asked(method, row.1, "")).await.unwrap().status().as_u16();
            match wanted {
                Some(wanted) => assert_eq!(status, wanted, "{method} {}", row.1),
                None => assert!(!matches!(status, 401 | 403 | 405), "{method} {}: {status}", row.1),
            }
            let mut foreign = asked(method, row.1, "");
            foreign.headers_mut().insert("origin", "https://evil.example".parse().unwrap());
            let is_open = row.2 == "everybody" && method != "OPTIONS";
            let status = host.send(foreign).await.status.as_u16();
            assert_eq!(status == 403, !is_open, "{method} {} for another site: {status}", row.1);
        }
    }
}

#[tokio::test]
async fn a_host_without_keys_refuses_other_sites_wherever_it_listens() {
    for listen in ["127.0.0.1:9000", "0.0.0.0:9000", "[::]:9000", "10.0.0.5:9000"] {
        let host = Host::with(Config { listen: listen.parse().unwrap(), ..config() }, hello);
        for (method, path, origin, status) in [
            ("POST", "/models/load", Some("https://evil.example"), 403),
            ("POST", "/models/load", Some("null"), 403),
            ("GET", "/v1/models", Some("http://localhost.evil.example"), 403),
            ("OPTIONS", "/models/load", Some("https://evil.example"), 403),
            ("GET", "/v1/models", Some("http://localhost:3000"), 200),
            ("OPTIONS", "/models/load", Some("http://localhost:3000"), 204),
            ("GET", "/v1/models", None, 200),
        ] {
            let mut request = asked(method, path, "");
            if let Some(origin) = origin {
                request.headers_mut().insert("origin", origin.parse().unwrap());
            }
            let reply = host.send(request).await;
            assert_eq!(reply.status.as_u16(), status, "{listen}: {method} {path} from {origin:?}");
        }
    }
}
