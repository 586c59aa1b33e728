//! A project's page of a package index: as JSON (PEP 691) or HTML (PEP 503).

use reqwest::Url;
use serde::Deserialize;

/// A file that an index offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) url: Url,
    /// In lower case.
    pub(super) sha256: Option<String>,
    pub(super) bytes: Option<u64>,
}

/// The forms of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Html,
}

impl Form {
    /// By the answer's `Content-Type`.
    pub(super) fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/vnd.pypi.simple.v1+json" | "application/json" => Some(Self::Json),
            "application/vnd.pypi.simple.v1+html" | "text/html" => Some(Self::Html),
            _ => None,
        }
    }

    /// The files of the page that lies at `base`.
    pub(super) fn links(self, page: &[u8], base: &Url) -> Result<Vec<Link>, String> {
        match self {
            Self::Json => json(page, base),
            Self::Html => Ok(html(&String::from_utf8_lossy(page), base)),
        }
    }
}

/// What of a JSON page is of use here; everything else is skipped.
#[derive(Debug, Deserialize)]
struct Project {
    files: Vec<File>,
}

#[derive(Debug, Deserialize)]
struct File {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: Hashes,
    size: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
struct Hashes {
    sha256: Option<String>,
}

fn json(page: &[u8], base: &Url) -> Result<Vec<Link>, String> {
    let project: Project = serde_json::from_slice(page).map_err(|error| error.to_string())?;
    let links = project.files.into_iter().filter_map(|file| {
        Some(Link {
            url: base.join(&file.url).ok()?,
            name: file.filename,
            sha256: file.hashes.sha256.map(|digest| digest.to_ascii_lowercase()),
            bytes: file.size,
        })
    });
    Ok(links.collect())
}

/// Every `<a href>`, relative to `base` or to the page's own `<base href>`. The name is the last part of the address.
fn html(page: &str, base: &Url) -> Vec<Link> {
    let mut base = base.clone();
    let mut links = Vec::new();
    for tag in tags(page) {
        let Some(href) = attribute(tag, "href").map(decoded) else { continue };
        let Ok(url) = base.join(href.trim()) else { continue };
        match tag_name(tag) {
            name if name.eq_ignore_ascii_case("base") => base = url,
            name if name.eq_ignore_ascii_case("a") => links.extend(link(url)),
            _ => {}
        }
    }
    links
}

fn link(mut url: Url) -> Option<Link> {
    let sha256 = url.fragment().and_then(|fragment| {
        fragment.split('&').find_map(|part| part.strip_prefix("sha256=")).map(str::to_ascii_lowercase)
    });
    url.set_fragment(None);
    let name = percent_decoded(url.path_segments()?.next_back()?);
    (!name.is_empty()).then_some(Link { name, url, sha256, bytes: None })
}

/// What stands between `<` and `>`, comments aside. A `>` within quotes ends no tag.
fn tags(page: &str) -> impl Iterator<Item = &str> {
    let mut rest = page;
    std::iter::from_fn(move || {
        loop {
            rest = &rest[rest.find('<')? + 1..];
            if let Some(comment) = rest.strip_prefix("!--") {
                rest = &comment[comment.find("-->").unwrap_or(comment.len())..];
                continue;
            }
            let mut quote = None;
            let end = rest.find(|c| {
                match (quote, c) {
                    (None, '"' | '\'') => quote = Some(c),
                    (Some(open), c) if open == c => quote = None,
                    _ => {}
                }
                c == '>' && quote.is_none()
            })?;
            let tag = &rest[..end];
            rest = &rest[end..];
            return Some(tag);
        }
    })
}

fn tag_name(tag: &str) -> &str {
    tag.split(|c: char| c.is_ascii_whitespace() || c == '/').next().unwrap_or_default()
}

/// The value of a tag's attribute: in quotes of either kind, or without.
fn attribute<'a>(tag: &'a str, wanted: &str) -> Option<&'a str> {
    let mut rest = &tag[tag_name(tag).len()..];
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '/');
        let end = rest.find(|c: char| c.is_ascii_whitespace() || c == '=').unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() && after.is_empty() {
            return None;
        }
        let value;
        (value, rest) = match after.trim_start().strip_prefix('=') {
            None => ("", after),
            Some(after) => match after.trim_start() {
                quoted if quoted.starts_with(['"', '\'']) => {
                    let quote = &quoted[..1];
                    quoted[1..].split_once(quote)?
                }
                bare => bare.split_at(bare.find(|c: char| c.is_ascii_whitespace()).unwrap_or(bare.len())),
            },
        };
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
    }
}

/// Without the character references that occur in addresses.
fn decoded(text: &str) -> String {
    let mut text = text.to_owned();
    for (reference, character) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&#x27;", "'"),
        ("&#43;", "+"),
        ("&amp;", "&"),
    ] {
        text = text.replace(reference, character);
    }
    text
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = || u8::from_str_radix(text.get(at + 1..at + 3)?, 16).ok();
        match (bytes[at], (bytes[at] == b'%').then(hex).flatten()) {
            (_, Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, None) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{Form, Link};
    use reqwest::Url;

    fn links(form: Form, page: &str) -> Vec<Link> {
        form.links(page.as_bytes(), &Url::parse("https://u:p@h/simple/tiny/").expect("a URL")).expect("a page")
    }

    fn link(name: &str, url: &str, sha256: Option<&str>, bytes: Option<u64>) -> Link {
        let url = Url::parse(url).expect("a URL");
        Link { name: name.into(), url, sha256: sha256.map(str::to_owned), bytes }
    }

    #[test]
    fn forms_are_told_by_content_type() {
        for (content_type, form) in [
            ("application/vnd.pypi.simple.v1+json", Some(Form::Json)),
            ("Text/HTML; charset=utf-8", Some(Form::Html)),
            ("application/vnd.pypi.simple.v1+html", Some(Form::Html)),
            ("text/plain", None),
            ("", None),
        ] {
            assert_eq!(Form::of(content_type), form, "{content_type}");
        }
    }

    #[test]
    fn json_pages() {
        let page = r#"{"meta": {"api-version": "1.4"}, "name": "tiny", "versions": ["1.0"], "files": [
            {"filename": "tiny-1.0-py3-none-any.whl", "url": "../../f/tiny-1.0-py3-none-any.whl", "size": 7, "yanked": "bad",
             "hashes": {"sha256": "ABC", "md5": "1"}, "requires-python": ">=99", "core-metadata": {"sha256": "x"}},
            {"filename": "tiny-1.0.tar.gz", "url": "https://files/tiny-1.0.tar.gz", "hashes": {}}]}"#;
        assert_eq!(
            links(Form::Json, page),
            [
                link("tiny-1.0-py3-none-any.whl", "https://u:p@h/f/tiny-1.0-py3-none-any.whl", Some("abc"), Some(7)),
                link("tiny-1.0.tar.gz", "https://files/tiny-1.0.tar.gz", None, None),
            ]
        );
        let base = Url::parse("https://h/").expect("a URL");
        assert!(Form::Json.links(b"{\"files\": 1}", &base).is_err());
        assert!(Form::Json.links(b"<html>", &base).is_err());
    }

    #[test]
    fn html_pages() {
        let page = r#"<!DOCTYPE html><html><head><meta name="pypi:repository-version" content="1.0"></head><body>
            <!-- <a href="commented.whl">no</a> --><h1>Links > all</h1>
            <a data-requires-python="&gt;=3.7" href="../../f/a-1.0%2Bcpu-py3-none-any.whl#sha256=ABC">a &gt;</a><br/>
            <A HREF='https://files/a-2.0.tar.gz#md5=1&amp;sha256=def' data-yanked="bad > worse">a</A>
            <a class=x href=/abs/a-3.0.whl?x=1&amp;y=2>a</a> <a>none</a> <a name="top"/> <a href="other/">folder</a>"#;
        assert_eq!(
            links(Form::Html, page),
            [
                link("a-1.0+cpu-py3-none-any.whl", "https://u:p@h/f/a-1.0%2Bcpu-py3-none-any.whl", Some("abc"), None),
                link("a-2.0.tar.gz", "https://files/a-2.0.tar.gz", Some("def"), None),
                link("a-3.0.whl", "https://u:p@h/abs/a-3.0.whl?x=1&y=2", None, None),
            ]
        );
        let based = r#"<base href="https://other/x/"><a href="a.whl">a</a>"#;
        assert_eq!(links(Form::Html, based)[0].url.as_str(), "https://other/x/a.whl");
    }

    #[test]
    fn pages_that_are_no_pages_give_nothing_and_harm_nothing() {
        for page in [
            "",
            "<",
            "<a href",
            "<a href=",
            "<a href=\"x",
            "<a href='",
            "<!--",
            "plain",
            "<a href=x",
            "< a href=x>",
            "<a =x>",
        ] {
            links(Form::Html, page);
        }
        assert_eq!(links(Form::Html, &"<a href=".repeat(10_000)), []);
    }
}
