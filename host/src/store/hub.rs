//! What the hub says of a repository: its files with their sizes and digests, its licence, and whether its terms are to be
//! accepted first. And the beginnings of files there and elsewhere, which say what they are. It fetches no weights.

use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;

use super::client::broke;
use super::download::{Asked, TRIES, header, is_page, next_wait, refusal, with_token};
use super::failure::Failure;
use super::pull::Puller;
use super::route::{Candidate, Places};
use crate::config::{Location, Source};
use crate::domain::ByteSize;

/// Bytes of what the hub says of a repository that are read.
const REPOSITORY_BYTES_MAX: usize = 32 << 20;
/// Why it is asked for nothing.
const OFFLINE: &str =
    "HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or name a file that is on this machine";

/// A repository at one commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repository {
    /// `org/name`, as the hub spells it.
    pub id: String,
    /// The commit that was asked about.
    pub commit: String,
    /// Its files.
    pub files: Vec<HubFile>,
    /// As its card names it.
    pub licence: Option<String>,
    /// Whether its terms are to be accepted before its files are given.
    pub is_gated: bool,
    /// What it is for, in the hub's words: `text-generation`.
    pub task: Option<String>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// Path inside.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest, which the hub knows of large files.
    pub sha256: Option<String>,
}

/// The first bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// As many as were asked for, or all.
    pub bytes: Vec<u8>,
    /// How many there are in all, if that was said.
    pub total: Option<u64>,
}

/// What the API answers, as far as it is used.
#[derive(Deserialize)]
struct Answer {
    id: Option<String>,
    #[serde(rename = "modelId")]
    model_id: Option<String>,
    sha: Option<String>,
    #[serde(default)]
    gated: Value,
    pipeline_tag: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(rename = "cardData", default)]
    card: Value,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Puller {
    /// What the hub has under this name.
    ///
    /// # Errors
    /// It has none, does not give it, or cannot be asked; one sentence that says what to do.
    pub async fn repository(&self, id: &str, revision: Option<&str>) -> Result<Repository, String> {
        if self.offline {
            return Err(OFFLINE.to_owned());
        }
        let url = self.places.repository_url(id, revision).map_err(|failure| failure.sentence)?;
        let asked = self.places.asked_of_hub();
        let told = |failure: Failure| format!("the hub does not tell of {id}: {}", failure.sentence);
        let text = self.patiently(async || {
            let builder = self.places.http.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            let response = self.places.http.head(&url, with_token(builder, asked, &url)).await?;
            match response.status() {
                status if status.is_success() => {}
                StatusCode::NOT_FOUND => {
                    return Err(Failure::last(format!("{}: it has no such repository or revision", response.status())));
                }
                _ => return Err(refusal(asked, &url, &response)),
            }
            if is_page(&response) {
                return Err(Failure::last(
                    "it answers with a web page; does HF_ENDPOINT name a hub, and is there a login on the way?",
                ));
            }
            read(response, REPOSITORY_BYTES_MAX).await
        });
        let text = text.await.map_err(told)?;
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|error| told(Failure::last(format!("what it answers is not what a hub says ({error})"))))?;
        answer.repository(id).map_err(|why| told(Failure::last(why)))
    }

    /// The first bytes of a file, at most so many.
    ///
    /// # Errors
    /// It is not given; one sentence that says what to do.
    pub async fn beginning(&self, location: &Location, most: usize) -> Result<Beginning, String> {
        if self.offline {
            return Err(OFFLINE.to_owned());
        }
        let source = Source::Whole(location.clone());
        let routes = self.places.routes(&source);
        let candidate = routes.first().and_then(|route| route.pieces.first()?.candidates.first());
        let Some(Candidate::Direct { http, url, asked }) = candidate else {
            return Err(format!("{location}: its beginning cannot be asked for"));
        };
        let told = |failure: Failure| format!("{location}: {}", failure.sentence);
        let url = Url::parse(url).map_err(|error| format!("{location}: its address is not a URL: {error}"))?;
        let beginning = self.patiently(async || {
            let range = format!("bytes=0-{}", most.saturating_sub(1));
            let builder = http.client.get(url.clone()).header(ACCEPT_ENCODING, "identity").header(RANGE, range);
            let response = http.head(&url, with_token(builder, *asked, &url)).await?;
            let total = match response.status() {
                StatusCode::PARTIAL_CONTENT => {
                    header(&response, &CONTENT_RANGE).and_then(|range| range.rsplit_once('/')?.1.trim().parse().ok())
                }
                // It gives no ranges: no more than the beginning is read.
                status if status.is_success() => header(&response, &CONTENT_LENGTH).and_then(|all| all.parse().ok()),
                _ => return Err(refusal(*asked, &url, &response)),
            };
            if is_page(&response) {
                return Err(Failure::last("it answers with a web page instead of the file; does it ask for a login?"));
            }
            Ok(Beginning { bytes: first(response, most).await?, total })
        });
        beginning.await.map_err(told)
    }

    /// Asks as often as it may help.
    async fn patiently<T>(&self, ask: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut wait = self.patience.backoff;
        let mut attempt = 1;
        loop {
            match ask().await {
                Err(failure) if failure.is_passing() && attempt < TRIES => {
                    tokio::time::sleep(next_wait(wait, [&failure])).await;
                    wait *= 2;
                    attempt += 1;
                }
                Err(failure) if failure.is_passing() => {
                    return Err(Failure { sentence: format!("{} ({TRIES} tries)", failure.sentence), ..failure });
                }
                other => return other,
            }
        }
    }
}

impl Places {
    fn repository_url(&self, id: &str, revision: Option<&str>) -> Result<Url, Failure> {
        let wrong = |_| Failure::last("HF_ENDPOINT is not a URL; write it like https://huggingface.co");
        let mut url = Url::parse(self.hub()).map_err(wrong)?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "models"]).extend(id.split('/'));
            if let Some(revision) = revision {
                path.extend(["revision", revision]);
            }
        }
        url.set_query(Some("blobs=true"));
        Ok(url)
    }

    fn asked_of_hub(&self) -> Asked<'_> {
        Asked::Hub { token: self.token() }
    }
}

impl Answer {
    fn repository(self, asked: &str) -> Result<Repository, String> {
        let commit = self.sha.filter(|sha| !sha.is_empty()).ok_or("it does not say which commit it tells of")?;
        let licences = self.tags.iter().find_map(|tag| tag.strip_prefix("license:")).map(str::to_owned);
        let licence = match self.card.get("license_name").or_else(|| self.card.get("license")) {
            Some(Value::String(name)) => Some(name.clone()),
            Some(Value::Array(names)) => names.first().and_then(Value::as_str).map(str::to_owned),
            _ => licences,
        };
        let file = |sibling: Sibling| {
            let lfs = sibling.lfs.as_ref();
            let bytes = lfs.and_then(|lfs| lfs.size).or(sibling.size);
            let sha256 = sibling.lfs.and_then(|lfs| lfs.sha256).map(|digest| digest.to_ascii_lowercase());
            let is_digest = |digest: &String| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
            // A hub that names no sizes is of no use for a file whose size decides.
            Some(HubFile { path: sibling.rfilename, bytes: bytes?, sha256: sha256.filter(is_digest) })
        };
        Ok(Repository {
            id: self.id.or(self.model_id).unwrap_or_else(|| asked.to_owned()),
            commit,
            files: self.siblings.into_iter().filter_map(file).collect(),
            licence,
            is_gated: !matches!(self.gated, Value::Null | Value::Bool(false)),
            task: self.pipeline_tag,
        })
    }
}

/// A whole body, unless it is longer than that.
async fn read(mut response: Response, most: usize) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broke)? {
        if text.len() + chunk.len() > most {
            return Err(Failure::last(format!("it answers with more than {}", ByteSize(most as u64))));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

/// The beginning of a body, at most so many bytes.
async fn first(mut response: Response, most: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while bytes.len() < most
        && let Some(chunk) = response.chunk().await.map_err(broke)?
    {
        bytes.extend_from_slice(&chunk[..chunk.len().min(most - bytes.len())]);
    }
    Ok(bytes)
}
