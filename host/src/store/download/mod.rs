//! One file over HTTP into a `.part`, or behind what is in it already, going on where an earlier try ended. It does not
//! know what the bytes are for, nor where else they could be had.

mod answer;
mod origin;
mod ranges;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, IF_RANGE, RANGE};
use reqwest::{RequestBuilder, Response, Url};
use sha2::{Digest, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

pub(super) use self::answer::{Answer, header, is_page, refusal};
use self::origin::Origin;
pub(super) use self::ranges::Ranges;
use super::client::{Http, broke};
use super::digest::{feed, hex};
use super::failure::{Failure, Kind};
use super::packages::has_credentials;

/// Tries without a single new byte before a mirror is given up.
pub(super) const TRIES: u32 = 4;
/// The longest that a server can make us wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Who is asked, which says what credentials there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked<'a> {
    /// Hugging Face, with the token if there is one.
    Hub { token: Option<&'a str> },
    /// A package index, or the server of its files.
    Index,
    /// Whoever serves a plain URL.
    Address,
}

/// What to fetch, and where to put it.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) http: &'a Http,
    pub(super) url: Url,
    pub(super) asked: Asked<'a>,
    pub(super) part: PathBuf,
    /// Where in the part it begins.
    pub(super) start: u64,
    /// How it is divided if it is large; nothing if it is to come in one piece.
    pub(super) ranges: Option<Ranges>,
    /// The wait before a second try; it doubles.
    pub(super) backoff: Duration,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) digest: String,
    pub(super) bytes: u64,
}

/// Who is told bytes done and the total, if known.
pub(super) type Report<'a> = &'a (dyn Fn(u64, Option<u64>) + Send + Sync);

/// Asks once, and waits for the head of the answer. Nothing that is here is touched, but for what turned out to be useless.
pub(super) async fn open(request: &Request<'_>) -> Result<Answer, Failure> {
    let resume = Origin::resumable(request);
    if let Some((have, Origin { total: Some(total), .. })) = &resume
        && have == total
    {
        return Ok(Answer::Here(*have));
    }
    let mut builder = asking(request);
    if let Some((have, origin)) = &resume {
        builder = builder.header(RANGE, format!("bytes={have}-")).header(IF_RANGE, &origin.etag);
    }
    let response = request.http.head(&request.url, builder).await?;
    answer::read(request, response, resume)
}

/// A request for all of the file, without a condition.
fn asking(request: &Request<'_>) -> RequestBuilder {
    // What is stored is what the digest is of, so it must not be compressed on the way.
    let builder = request.http.client.get(request.url.clone()).header(ACCEPT_ENCODING, "identity");
    with_token(builder, request.asked, &request.url)
}

/// The request with the hub's token, where that is for whom is asked.
pub(super) fn with_token(builder: RequestBuilder, asked: Asked<'_>, url: &Url) -> RequestBuilder {
    match asked {
        Asked::Hub { token: Some(token) } if !has_credentials(url) => {
            builder.header(AUTHORIZATION, format!("Bearer {token}"))
        }
        _ => builder,
    }
}

/// Takes in an answer, asking again for the rest as often as bytes come. The digest is that of the request's own bytes.
pub(super) async fn receive(request: &Request<'_>, answer: Answer, report: Report<'_>) -> Result<Received, Failure> {
    let mut tries = 0;
    let mut wait = request.backoff;
    let mut ranges = request.ranges;
    let mut answer = Ok(answer);
    loop {
        let before = length(&request.part);
        let failure = match answer {
            Ok(answer) => match body(request, answer, &mut ranges, report).await {
                Ok(received) => return Ok(received),
                Err(failure) => failure,
            },
            Err(failure) => failure,
        };
        if failure.kind == Kind::Final {
            return Err(failure);
        }
        if length(&request.part) > before {
            tries = 0;
            wait = request.backoff;
        }
        tries += 1;
        if tries >= TRIES {
            return Err(Failure { sentence: format!("{} ({TRIES} tries)", failure.sentence), ..failure });
        }
        tracing::debug!("{}; trying again", failure.sentence);
        tokio::time::sleep(next_wait(wait, [&failure])).await;
        wait *= 2;
        answer = open(request).await;
    }
}

/// Whether some of it is here that can be gone on with.
pub(super) fn has_begun(request: &Request<'_>) -> bool {
    Origin::resumable(request).is_some()
}

/// How long to wait before another try: as long as a server asked for, within reason, else `wait`.
pub(super) fn next_wait<'a>(wait: Duration, failures: impl IntoIterator<Item = &'a Failure>) -> Duration {
    let asked = failures.into_iter().filter_map(|failure| match failure.kind {
        Kind::Passing(asked) => asked,
        Kind::Final | Kind::Unreachable | Kind::Silent => None,
    });
    asked.max().unwrap_or(wait).min(LONGEST_WAIT)
}

/// Forgets what was fetched so far.
pub(super) fn discard(part: &Path) {
    remove(part);
    Origin::forget(part);
}

/// Forgets where what was fetched came from, so that nothing is fetched behind it.
pub(super) fn forget_origin(part: &Path) {
    Origin::forget(part);
}

/// Removes a file that may be there.
pub(super) fn remove(file: &Path) {
    if let Err(error) = std::fs::remove_file(file)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(file = %file.display(), %error, "it could not be removed");
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
    Err(format!("{} needs {bytes} more, and its disk has {free} free; make room, or set `models_dir`", file.display()))
}

/// Bytes of a file; none if it is not there.
pub(super) fn length(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

async fn body(
    request: &Request<'_>,
    answer: Answer,
    ranges: &mut Option<Ranges>,
    report: Report<'_>,
) -> Result<Received, Failure> {
    let disk = |e: io::Error| Failure::last(format!("{}: {e}", request.part.display()));
    let Answer::Coming { response, have, until, total } = answer else {
        let Answer::Here(bytes) = answer else { return Err(Failure::passing("nothing came")) };
        let hasher = hashed(request, bytes).await.map_err(disk)?;
        report(bytes, Some(bytes));
        return Ok(Received { digest: hex(&hasher.finalize()), bytes });
    };
    enough_space(&request.part, total.unwrap_or(0).saturating_sub(have)).map_err(Failure::last)?;
    let mut hasher = hashed(request, have).await.map_err(disk)?;
    let mut file = open_part(request, have).await.map_err(disk)?;
    Origin::note(request, &response, total, have);
    let mut done = have;
    report(done, total);
    if let Some(plan) = ranges::plan(*ranges, &response, have, total) {
        drop(file);
        let received = ranges::body(request, response, &plan, hasher, report).await;
        return match received {
            Ok(received) => {
                let file = OpenOptions::new().write(true).open(&request.part).await.map_err(disk)?;
                file.sync_all().await.map_err(disk)?;
                Ok(received)
            }
            Err(failure) => {
                // The rest comes in one piece, from a server that may not give several at once.
                *ranges = None;
                keep_beginning(request, have).await.map_err(disk)?;
                tracing::debug!("{}; it is fetched in one piece", failure.sentence);
                let kind = if failure.kind == Kind::Final { Kind::Passing(None) } else { failure.kind };
                Err(Failure { kind, ..failure })
            }
        };
    }
    let streamed = stream(response, until, &mut file, &mut hasher, &mut done, &|done| report(done, total)).await;
    file.flush().await.map_err(disk)?;
    file.sync_all().await.map_err(disk)?;
    match streamed {
        Ok(()) => {}
        Err(Broken::Disk(error)) => return Err(disk(error)),
        Err(Broken::Connection(failure)) => return Err(failure),
    }
    match total {
        Some(total) if done != total => Err(Failure::passing(format!("it ended after {done} of {total} bytes"))),
        _ => Ok(Received { digest: hex(&hasher.finalize()), bytes: done }),
    }
}

/// Which end broke.
enum Broken {
    Disk(io::Error),
    Connection(Failure),
}

/// Writes a body to the file. No more than was announced is taken.
async fn stream(
    response: Response,
    until: Option<u64>,
    file: &mut File,
    hasher: &mut Sha256,
    done: &mut u64,
    report: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), Broken> {
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Broken::Connection(broke(error)))?;
        let end = *done + chunk.len() as u64;
        if until.is_some_and(|until| end > until) {
            return Err(Broken::Connection(Failure::last("it sends more bytes than it announced")));
        }
        file.write_all(&chunk).await.map_err(Broken::Disk)?;
        hasher.update(&chunk);
        *done = end;
        report(end);
    }
    Ok(())
}

/// A hasher that was fed the first `have` bytes of what was asked for.
async fn hashed(request: &Request<'_>, have: u64) -> io::Result<Sha256> {
    if have == 0 {
        return Ok(Sha256::new());
    }
    let (part, start) = (request.part.clone(), request.start);
    let fed = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Seek};
        let mut file = std::fs::File::open(part)?;
        file.seek(io::SeekFrom::Start(start))?;
        let mut hasher = Sha256::new();
        feed(file.take(have), &mut hasher, |_| {})?;
        Ok(hasher)
    });
    fed.await.map_err(io::Error::other)?
}

/// Drops what lies behind what is whole from the beginning, of which `have` bytes were here before.
async fn keep_beginning(request: &Request<'_>, have: u64) -> io::Result<()> {
    let whole = Origin::resumable(request).map_or(have, |(whole, _)| whole);
    open_part(request, whole).await?.sync_all().await
}

/// Opens the part to go on `have` bytes behind the request's start; what lies behind that is dropped.
async fn open_part(request: &Request<'_>, have: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&request.part).await?;
    let end = request.start + have;
    file.set_len(end).await?;
    file.seek(io::SeekFrom::Start(end)).await?;
    Ok(file)
}
