//! A large file in several ranges at once, where its server gives ranges of this very file. What is whole from the beginning
//! is noted as it grows, so that whoever goes on later, in one piece or in several, begins behind that; the little that came
//! ahead of it is fetched again.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{FuturesUnordered, StreamExt};
use reqwest::header::{ACCEPT_RANGES, IF_RANGE, RANGE};
use reqwest::{Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::fs::OpenOptions;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::origin::{Origin, strong_tag};
use super::{Received, Report, Request, TRIES, answer, next_wait};
use crate::store::client::broke;
use crate::store::digest::{feed, hex};
use crate::store::failure::{Failure, Kind};

/// How a large file is divided.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Ranges {
    /// Ranges that are fetched at once.
    pub(in crate::store) at_once: usize,
    /// Bytes of each.
    pub(in crate::store) bytes: u64,
}

/// Ranges that may be whole or under way beyond the one that the beginning ends with, for each that is fetched at once: what
/// is fetched again after a stop is bounded by it.
const AHEAD: usize = 2;

/// A file that is fetched so.
pub(super) struct Plan {
    ranges: Ranges,
    /// The server's name for this very content.
    etag: String,
    /// Bytes that are here.
    have: u64,
    /// Bytes in all.
    total: u64,
}

/// Whether the rest of a file is worth it, and its server can.
pub(super) fn plan(ranges: Option<Ranges>, response: &Response, have: u64, total: Option<u64>) -> Option<Plan> {
    let (ranges, total) = (ranges?, total?);
    let gives_ranges = response.status() == StatusCode::PARTIAL_CONTENT
        || answer::header(response, &ACCEPT_RANGES).is_some_and(|unit| unit.eq_ignore_ascii_case("bytes"));
    let is_large = total.saturating_sub(have) >= ranges.bytes.saturating_mul(2);
    let etag = strong_tag(response)?.to_owned();
    (ranges.at_once > 1 && is_large && gives_ranges).then_some(Plan { ranges, etag, have, total })
}

impl Plan {
    /// Where a range begins and ends in the file.
    fn bounds(&self, index: usize) -> (u64, u64) {
        let from = self.have + index as u64 * self.ranges.bytes;
        (from, self.total.min(from + self.ranges.bytes))
    }

    fn count(&self) -> usize {
        (self.total - self.have).div_ceil(self.ranges.bytes) as usize
    }
}

/// Fetches the rest of a file, whose first answer is its first range. `hasher` was fed what is here, and the part ends there.
pub(super) async fn body(
    request: &Request<'_>,
    response: Response,
    plan: &Plan,
    hasher: Sha256,
    report: Report<'_>,
) -> Result<Received, Failure> {
    let disk = |e: io::Error| Failure::last(format!("{}: {e}", request.part.display()));
    let fetched = AtomicU64::new(plan.have);
    let progress = |bytes: u64| report(fetched.fetch_add(bytes, Ordering::Relaxed) + bytes, Some(plan.total));
    let stop = CancellationToken::new();
    let lane = Lane { request, plan, progress: &progress, stop: &stop };
    let range = |index: usize, first: Option<Response>| async move { lane.fetch(index, first).await.map(|()| index) };
    let count = plan.count();
    // From here on the part has holes.
    Origin::note_whole(request, &plan.etag, plan.total, plan.have);
    let mut running: FuturesUnordered<_> = [range(0, Some(response))].into_iter().collect();
    let mut begun = 1;
    let mut done = BTreeSet::new();
    // Ranges from the beginning that are whole, and how many of them are hashed.
    let (mut whole, mut hashed) = (0, 0);
    let mut hashing = Hashing::Idle(hasher);
    while hashed < count {
        while begun < count && running.len() < plan.ranges.at_once && begun < whole + plan.ranges.at_once * AHEAD {
            running.push(range(begun, None));
            begun += 1;
        }
        if let Hashing::Idle(hasher) = hashing {
            hashing = match hashed < whole {
                true => Hashing::Busy(hash(request, hasher, plan.bounds(hashed))),
                false => Hashing::Idle(hasher),
            };
        }
        tokio::select! {
            Some(ended) = running.next() => {
                match ended {
                    Ok(index) => done.insert(index),
                    Err(failure) => {
                        // No write may come later than whoever goes on with the part.
                        stop.cancel();
                        while running.next().await.is_some() {}
                        return Err(failure);
                    }
                };
                let before = whole;
                while done.remove(&whole) {
                    whole += 1;
                }
                if whole > before {
                    Origin::note_whole(request, &plan.etag, plan.total, plan.bounds(whole - 1).1);
                }
            }
            ended = hashing.ended() => {
                hashing = Hashing::Idle(ended.map_err(disk)?);
                hashed += 1;
            }
        }
    }
    let Hashing::Idle(hasher) = hashing else { return Err(Failure::last("it was not hashed to its end")) };
    Ok(Received { digest: hex(&hasher.finalize()), bytes: plan.total })
}

/// The digest, which follows what is whole.
enum Hashing {
    Idle(Sha256),
    Busy(JoinHandle<io::Result<Sha256>>),
}

impl Hashing {
    /// When a range is hashed; never if none is.
    async fn ended(&mut self) -> io::Result<Sha256> {
        match self {
            Self::Idle(_) => std::future::pending().await,
            Self::Busy(work) => work.await.map_err(io::Error::other)?,
        }
    }
}

/// Feeds a range that is on the disk.
fn hash(request: &Request<'_>, mut hasher: Sha256, (from, to): (u64, u64)) -> JoinHandle<io::Result<Sha256>> {
    let (part, start) = (request.part.clone(), request.start);
    tokio::task::spawn_blocking(move || {
        use std::io::{Read, Seek};
        let mut file = std::fs::File::open(part)?;
        file.seek(io::SeekFrom::Start(start + from))?;
        match feed(file.take(to - from), &mut hasher, |_| {})? {
            all if all == to - from => Ok(hasher),
            _ => Err(io::Error::other("it became shorter while it was fetched")),
        }
    })
}

/// What ranges are fetched with.
#[derive(Clone, Copy)]
struct Lane<'a> {
    request: &'a Request<'a>,
    plan: &'a Plan,
    /// Told how many bytes more there are.
    progress: &'a (dyn Fn(u64) + Send + Sync),
    stop: &'a CancellationToken,
}

impl Lane<'_> {
    /// Fetches a range to its place, asking again for the rest of it as often as bytes come.
    async fn fetch(self, index: usize, mut first: Option<Response>) -> Result<(), Failure> {
        let (mut from, to) = self.plan.bounds(index);
        let (mut tries, mut wait) = (0, self.request.backoff);
        loop {
            let before = from;
            let response = match first.take() {
                Some(response) => Ok(response),
                None => self.stop.run_until_cancelled(self.ask(from, to)).await.unwrap_or_else(|| Err(stopped())),
            };
            let came = match response {
                Ok(response) => self.write(response, &mut from, to).await,
                Err(failure) => Err(failure),
            };
            let failure = match came {
                Ok(()) if from == to => return Ok(()),
                Ok(()) => Failure::passing(format!("a range of it ended {} bytes too early", to - from)),
                Err(failure) => failure,
            };
            if failure.kind == Kind::Final || self.stop.is_cancelled() {
                return Err(failure);
            }
            if from > before {
                (tries, wait) = (0, self.request.backoff);
            }
            tries += 1;
            if tries >= TRIES {
                return Err(failure);
            }
            let pause = tokio::time::sleep(next_wait(wait, [&failure]));
            self.stop.run_until_cancelled(pause).await;
            wait *= 2;
        }
    }

    /// Asks for a range of the very file that was begun.
    async fn ask(&self, from: u64, to: u64) -> Result<Response, Failure> {
        let request = self.request;
        let range = format!("bytes={from}-{}", to - 1);
        let builder = super::asking(request).header(RANGE, range).header(IF_RANGE, self.plan.etag.as_str());
        let response = request.http.head(&request.url, builder).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => match answer::rest(&response, from, Some(self.plan.total)) {
                Some((until, _)) if until <= to => Ok(response),
                _ => Err(Failure::last("it answered with another part of the file than was asked for")),
            },
            status if status.is_success() => Err(Failure::last("it gives no ranges of this file any more")),
            _ => Err(answer::refusal(request.asked, &request.url, &response)),
        }
    }

    /// Writes a body to its place, up to the end of its range. What is written has reached the file, however it ends.
    async fn write(&self, response: Response, from: &mut u64, to: u64) -> Result<(), Failure> {
        let disk = |e: io::Error| Failure::last(format!("{}: {e}", self.request.part.display()));
        let mut file = OpenOptions::new().write(true).open(&self.request.part).await.map_err(disk)?;
        file.seek(io::SeekFrom::Start(self.request.start + *from)).await.map_err(disk)?;
        let mut body = response.bytes_stream();
        let mut written = *from;
        let mut ended = Ok(());
        while written < to && ended.is_ok() {
            let chunk = match self.stop.run_until_cancelled(body.next()).await {
                Some(Some(Ok(chunk))) => chunk,
                Some(Some(Err(error))) => {
                    ended = Err(broke(error));
                    continue;
                }
                Some(None) => break,
                None => {
                    ended = Err(stopped());
                    continue;
                }
            };
            // The first answer is of all that follows; what is behind its range is others'.
            let taken = chunk.len().min(usize::try_from(to - written).unwrap_or(usize::MAX));
            match file.write_all(&chunk[..taken]).await {
                Ok(()) => {
                    written += taken as u64;
                    (self.progress)(taken as u64);
                }
                Err(error) => ended = Err(disk(error)),
            }
        }
        file.flush().await.map_err(disk)?;
        *from = written;
        ended
    }
}

fn stopped() -> Failure {
    Failure::passing("another range of it failed")
}
