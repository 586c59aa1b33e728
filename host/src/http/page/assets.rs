//! The files of the page, which are part of the program: nothing of it is built, and nothing comes from elsewhere.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::super::error::ApiError;
use super::super::ollama::models::root as greeting;
use super::super::revalidated::Revalidated;

/// What the page may do: run its own files, ask this host, show what it was answered.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page.
struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

const PAGE: Asset =
    Asset { name: "index.html", kind: "text/html; charset=utf-8", text: include_str!("assets/index.html") };

macro_rules! script {
    ($name:literal) => {
        Asset { name: $name, kind: SCRIPT, text: include_str!(concat!("assets/", $name)) }
    };
}

/// What the page asks for by `/page/NAME`.
const ASSETS: [Asset; 17] = [
    Asset { name: "page.css", kind: "text/css; charset=utf-8", text: include_str!("assets/page.css") },
    Asset { name: "play.css", kind: "text/css; charset=utf-8", text: include_str!("assets/play.css") },
    Asset { name: "icon.svg", kind: "image/svg+xml", text: include_str!("assets/icon.svg") },
    script!("page.js"),
    script!("dom.js"),
    script!("format.js"),
    script!("api.js"),
    script!("feed.js"),
    script!("devices.js"),
    script!("models.js"),
    script!("swaps.js"),
    script!("requests.js"),
    script!("log.js"),
    script!("play.js"),
    script!("play_chat.js"),
    script!("play_media.js"),
    script!("snippets.js"),
];

/// The tags of [`PAGE`] and [`ASSETS`], in this order.
static TAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| {
    let tag = |asset: &Asset| {
        let digest: String = Sha256::digest(asset.text).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        HeaderValue::try_from(format!("\"{digest}\"")).unwrap_or(HeaderValue::from_static("\"\""))
    };
    std::iter::once(&PAGE).chain(&ASSETS).map(tag).collect()
});

/// `GET /`: the page for whoever reads pages; for anybody else that something is there.
pub(in crate::http) async fn root(asked: HeaderMap) -> Response {
    let mut response = if takes_html(&asked) { answer(0, &PAGE, &asked) } else { greeting().await.into_response() };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// `GET /page/{name}`: a file of it.
pub(in crate::http) async fn asset(Path(name): Path<String>, asked: HeaderMap) -> Result<Response, ApiError> {
    let found = ASSETS.iter().enumerate().find(|(_, asset)| asset.name == name);
    let (at, asset) = found.ok_or_else(|| ApiError::no_such_file(&name))?;
    Ok(answer(at + 1, asset, &asked))
}

/// Whether whoever asks names HTML among what it takes: browsers do, and neither curl nor Ollama's clients.
fn takes_html(asked: &HeaderMap) -> bool {
    let accepted = asked.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(','));
    kinds.any(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let is_html = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("text/html"));
        let is_refused = |part: &str| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        is_html && !parts.any(is_refused)
    })
}

fn answer(at: usize, asset: &'static Asset, asked: &HeaderMap) -> Response {
    let tag = TAGS.get(at).cloned().unwrap_or(HeaderValue::from_static("\"\""));
    let known = asked.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|value| value.split(',')).map(|one| one.trim().trim_start_matches("W/"));
    let is_known = known.any(|one| one.as_bytes() == tag.as_bytes());
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::ETAG, tag),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    ];
    let mut response = if is_known {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else {
        (headers, [(header::CONTENT_TYPE, HeaderValue::from_static(asset.kind))], asset.text).into_response()
    };
    response.extensions_mut().insert(Revalidated);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nobody_else_and_writes_no_markup() {
        let all = || std::iter::once(&PAGE).chain(&ASSETS);
        for asset in all() {
            for forbidden in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "localStorage",
                "sessionStorage",
                "document.cookie",
                "https://",
                "@import",
                "javascript:",
                " style=",
            ] {
                assert!(!asset.text.contains(forbidden), "{}: {forbidden}", asset.name);
            }
            // The namespaces of SVG are names, and ask nobody.
            let foreign = asset.text.replace("http://www.w3.org/", "").replace("http://127.0.0.1", "");
            assert!(!foreign.contains("http://"), "{}", asset.name);
        }
        let mut attributes = PAGE.text.split_whitespace().filter_map(|word| word.split_once('=')).map(|(name, _)| name);
        assert!(attributes.all(|name| !name.starts_with("on")), "a handler stands in the page");
    }

    #[test]
    fn every_file_is_asked_for_and_every_file_that_is_asked_for_is_there() {
        let all = || std::iter::once(&PAGE).chain(&ASSETS);
        for asset in &ASSETS {
            let by_page = format!("/page/{}", asset.name);
            let by_script = format!("\"./{}\"", asset.name);
            assert!(all().any(|one| one.text.contains(&by_page) || one.text.contains(&by_script)), "{}", asset.name);
        }
        for text in all().map(|asset| asset.text) {
            for name in text.split("from \"./").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(ASSETS.iter().any(|asset| asset.name == name), "{name}");
            }
        }
    }

    #[test]
    fn pages_are_for_those_who_read_them() {
        for (accept, wanted) in [
            (Some("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"), true),
            (Some("application/json, TEXT/HTML;q=0.1"), true),
            (Some("text/html;q=0"), false),
            (Some("*/*"), false),
            (None, false),
        ] {
            let mut asked = HeaderMap::new();
            if let Some(accept) = accept {
                asked.insert(header::ACCEPT, accept.parse().expect("a header"));
            }
            assert_eq!(takes_html(&asked), wanted, "{accept:?}");
        }
    }
}
