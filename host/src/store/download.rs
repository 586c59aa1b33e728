//! One file over HTTP into a `.part`, going on where an earlier try ended.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{AUTHORIZATION, ETAG, IF_RANGE, RANGE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt;

use super::digest::{beside, feed, hex};

/// Tries without a single new byte before a mirror is given up.
const TRIES: u32 = 4;
/// The longest that a server can make us wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What to fetch.
pub(super) struct Request<'a> {
    pub(super) client: &'a Client,
    pub(super) url: &'a str,
    /// Sent as `Authorization: Bearer`.
    pub(super) token: Option<&'a str>,
    pub(super) part: &'a Path,
    /// The wait before the second try; it doubles.
    pub(super) backoff: Duration,
}

/// How one try failed.
enum Trouble {
    /// Trying again cannot help.
    Final(String),
    /// It may, after this long if the server said so.
    Passing(String, Option<Duration>),
}

/// Fetches into the part file; its digest. `progress` is told bytes done and the total, if known.
pub(super) async fn fetch(
    request: &Request<'_>,
    progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
) -> Result<String, String> {
    let mut tries = 0;
    let mut wait = request.backoff;
    loop {
        let before = length(request.part);
        match attempt(request, progress).await {
            Ok(digest) => return Ok(digest),
            Err(Trouble::Final(message)) => return Err(message),
            Err(Trouble::Passing(message, asked)) => {
                if length(request.part) > before {
                    tries = 0;
                    wait = request.backoff;
                }
                tries += 1;
                if tries >= TRIES {
                    return Err(format!("{message} ({TRIES} tries)"));
                }
                tracing::debug!(url = request.url, "{message}; trying again");
                tokio::time::sleep(asked.unwrap_or(wait).min(LONGEST_WAIT)).await;
                wait *= 2;
            }
        }
    }
}

/// Forgets what was fetched so far.
pub(super) fn discard(part: &Path) {
    for file in [part.to_owned(), note_of(part)] {
        if let Err(error) = std::fs::remove_file(&file)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(file = %file.display(), %error, "it could not be removed");
        }
    }
}

async fn attempt(
    request: &Request<'_>,
    progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
) -> Result<String, Trouble> {
    let resume = resumable(request);
    let mut builder = request.client.get(request.url);
    if let Some(token) = request.token {
        builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    if let Some((have, etag)) = &resume {
        builder = builder.header(RANGE, format!("bytes={have}-")).header(IF_RANGE, etag);
    }
    let response = builder.send().await.map_err(|e| Trouble::Passing(format!("no answer: {}", chain(&e)), None))?;
    let status = response.status();
    if status == StatusCode::RANGE_NOT_SATISFIABLE && resume.is_some() {
        discard(request.part);
        return Err(Trouble::Passing("the server no longer knows the part that is here".to_owned(), None));
    }
    if !status.is_success() {
        return Err(refusal(&response, request.token.is_some()));
    }
    let have = match resume {
        Some((have, _)) if status == StatusCode::PARTIAL_CONTENT => have,
        _ => 0,
    };
    receive(request, response, have, progress).await
}

/// The bytes that are here and the tag that says whether the server still has the same file.
fn resumable(request: &Request<'_>) -> Option<(u64, String)> {
    let have = length(request.part);
    let note = std::fs::read_to_string(note_of(request.part)).ok()?;
    let (url, etag) = note.trim_end().split_once('\n')?;
    (have > 0 && url == request.url).then(|| (have, etag.to_owned()))
}

async fn receive(
    request: &Request<'_>,
    response: Response,
    have: u64,
    progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
) -> Result<String, Trouble> {
    let disk = |e: io::Error| Trouble::Final(format!("{}: {e}", request.part.display()));
    let total = response.content_length().map(|rest| rest + have);
    enough_space(request.part, total.unwrap_or(0).saturating_sub(have)).map_err(Trouble::Final)?;
    let mut hasher = Sha256::new();
    let mut file = open_part(request.part, have, &mut hasher).await.map_err(disk)?;
    note_origin(request, &response, have);
    let mut done = have;
    let mut body = response.bytes_stream();
    progress(done, total);
    while let Some(chunk) = body.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                file.flush().await.map_err(disk)?;
                return Err(Trouble::Passing(format!("the connection broke: {}", chain(&error)), None));
            }
        };
        hasher.update(&chunk);
        file.write_all(&chunk).await.map_err(disk)?;
        done += chunk.len() as u64;
        progress(done, total);
    }
    file.flush().await.map_err(disk)?;
    file.sync_all().await.map_err(disk)?;
    match total {
        Some(total) if done != total => Err(Trouble::Passing(format!("it ended after {done} of {total} bytes"), None)),
        _ => Ok(hex(&hasher.finalize())),
    }
}

/// Opens the part to go on at `have`, having fed `hasher` what is there.
async fn open_part(part: &Path, have: u64, hasher: &mut Sha256) -> io::Result<File> {
    if have == 0 {
        return File::create(part).await;
    }
    let owned = part.to_owned();
    let mut moved = std::mem::take(hasher);
    let fed = tokio::task::spawn_blocking(move || {
        feed(std::fs::File::open(owned)?, &mut moved, |_| {})?;
        Ok::<_, io::Error>(moved)
    });
    *hasher = fed.await.map_err(io::Error::other)??;
    OpenOptions::new().append(true).open(part).await
}

/// Notes where the part comes from, so that a later try can go on. Without a strong tag it cannot be known to be the same file.
fn note_origin(request: &Request<'_>, response: &Response, have: u64) {
    let etag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).filter(|tag| !tag.starts_with("W/"));
    let note = note_of(request.part);
    match etag {
        Some(etag) => drop(std::fs::write(note, format!("{}\n{etag}\n", request.url))),
        None if have == 0 => drop(std::fs::remove_file(note)),
        None => {}
    }
}

fn refusal(response: &Response, with_token: bool) -> Trouble {
    let status = response.status();
    let asked = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if with_token => {
            Trouble::Final(format!("{status}: HF_TOKEN does not give access to it"))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Trouble::Final(format!("{status}: it may be gated; set HF_TOKEN to a token that has access"))
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Trouble::Passing(status.to_string(), asked),
        status if status.is_server_error() => Trouble::Passing(status.to_string(), asked),
        status => Trouble::Final(status.to_string()),
    }
}

/// Whether the file system of `file` has room for `bytes` more.
pub(super) fn enough_space(file: &Path, bytes: u64) -> Result<(), String> {
    let folder = file.parent().unwrap_or(file);
    let Ok(state) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = state.f_bavail.saturating_mul(state.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    let [bytes, free] = [bytes, free].map(crate::domain::ByteSize);
    Err(format!("{} needs {bytes} more, and its disk has {free} free", file.display()))
}

fn note_of(part: &Path) -> PathBuf {
    beside(part, ".from")
}

fn length(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
