//! What the head of an answer means: the file, the rest of it, or a refusal that says what to do.

use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};

use super::origin::Origin;
use super::{Asked, Request, discard};
use crate::store::failure::{Failure, Kind};
use crate::store::packages::{self, has_credentials};

/// By which the hub says what is wrong.
const HUB_ERROR: HeaderName = HeaderName::from_static("x-error-code");
/// What it says of a repository whose terms are to be accepted.
const GATED: &str = "GatedRepo";

/// An answer whose body was not read.
#[derive(Debug)]
pub(in crate::store) enum Answer {
    /// Its body goes on behind the `have` bytes that are here.
    Coming {
        response: Response,
        have: u64,
        /// Where the body ends, if that was said.
        until: Option<u64>,
        /// Bytes in all, if that was said.
        total: Option<u64>,
    },
    /// All its bytes are here.
    Here(u64),
}

/// Reads the head. Of what is here, what the server cannot go on from is forgotten.
pub(super) fn read(
    request: &Request<'_>,
    response: Response,
    resume: Option<(u64, Origin)>,
) -> Result<Answer, Failure> {
    let status = response.status();
    match (status, resume) {
        (StatusCode::RANGE_NOT_SATISFIABLE, Some((have, _))) => {
            if total_of(&response) == Some(have) {
                return Ok(Answer::Here(have));
            }
            discard_piece(request);
            Err(Failure::passing("the server no longer knows the part that is here"))
        }
        (StatusCode::PARTIAL_CONTENT, Some((have, origin))) => match rest(&response, have, origin.total) {
            Some((until, total)) => Ok(Answer::Coming { response, have, until: Some(until), total }),
            None => {
                discard_piece(request);
                Err(Failure::passing("it answered with another part of the file than was asked for"))
            }
        },
        (StatusCode::PARTIAL_CONTENT, None) => {
            Err(Failure::last("it answers with a part of the file, though all was asked for"))
        }
        (status, _) if status.is_success() => {
            no_page(request, &response)?;
            let total = response.content_length();
            Ok(Answer::Coming { response, have: 0, until: total, total })
        }
        _ => Err(refusal(request.asked, &request.url, &response)),
    }
}

/// Where the rest ends and how much it is in all, if it is what was asked for: begins where we stand, and belongs to a file
/// of the size that was announced.
pub(super) fn rest(response: &Response, have: u64, announced: Option<u64>) -> Option<(u64, Option<u64>)> {
    let (range, total) = header(response, &CONTENT_RANGE)?.strip_prefix("bytes")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let until = last.checked_add(1)?;
    let total = match total.trim() {
        "*" => announced,
        number => Some(number.parse().ok()?),
    };
    let fits = first == have
        && first <= last
        && total.is_none_or(|total| until <= total)
        && (announced.is_none() || announced == total)
        && response.content_length().is_none_or(|length| length == until - first);
    fits.then_some((until, total))
}

/// The size in a refused range's `bytes */SIZE`.
fn total_of(response: &Response) -> Option<u64> {
    header(response, &CONTENT_RANGE)?.rsplit_once('/')?.1.trim().parse().ok()
}

/// A login page, or a body that was compressed on the way, is not the file.
fn no_page(request: &Request<'_>, response: &Response) -> Result<(), Failure> {
    if let Some(encoding) = header(response, &CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        return Err(Failure::last(format!("it sends the file compressed ({encoding}), though that was not asked for")));
    }
    let wanted = [".html", ".htm"].iter().any(|ending| request.url.path().ends_with(ending));
    match is_page(response) && !wanted {
        true => Err(Failure::last("it answers with a web page instead of the file; does it ask for a login?")),
        false => Ok(()),
    }
}

/// Whether it is a page for people.
pub(in crate::store) fn is_page(response: &Response) -> bool {
    header(response, &CONTENT_TYPE).is_some_and(|kind| kind.trim().to_ascii_lowercase().starts_with("text/html"))
}

/// A header as text.
pub(in crate::store) fn header<'a>(response: &'a Response, name: &HeaderName) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Of a part that has other pieces in front, only this one goes.
fn discard_piece(request: &Request<'_>) {
    if request.start == 0 {
        return discard(&request.part);
    }
    Origin::forget(&request.part);
}

/// Why a server does not give what it was asked for, and what to do.
pub(in crate::store) fn refusal(asked: Asked<'_>, url: &Url, response: &Response) -> Failure {
    let status = response.status();
    let wait = header(response, &RETRY_AFTER).and_then(|value| value.parse().ok()).map(Duration::from_secs);
    let failure = match (asked, status) {
        (Asked::Index, StatusCode::NOT_FOUND | StatusCode::GONE) => {
            Failure::last(format!("{status}: the index names the wheel, and its server does not have it"))
        }
        (Asked::Index, status) => packages::refusal(status, has_credentials(url)),
        (Asked::Hub { token }, status) if header(response, &HUB_ERROR) == Some(GATED) => {
            Failure::last(format!("{status}: {}", gated(url, token.is_some())))
        }
        (asked, status) => Failure { sentence: sentence(asked, status, url), kind: kind(status) },
    };
    match failure.kind {
        Kind::Passing(_) => Failure { kind: Kind::Passing(wait), ..failure },
        _ => failure,
    }
}

/// What to do about a repository whose terms are to be accepted.
fn gated(url: &Url, has_token: bool) -> String {
    let path = url.path().trim_start_matches("/api/models/").trim_start_matches('/');
    let page: Vec<&str> = path.split('/').take(2).collect();
    let hub = url.origin().ascii_serialization();
    let token = match has_token {
        true => "with the account of HF_TOKEN, and see that the token may read gated repositories",
        false => "and set HF_TOKEN to a token of the account that did",
    };
    format!("the repository is gated: accept its terms at {hub}/{} {token}", page.join("/"))
}

fn kind(status: StatusCode) -> Kind {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Kind::Passing(None),
        status if status.is_server_error() => Kind::Passing(None),
        _ => Kind::Final,
    }
}

fn sentence(asked: Asked<'_>, status: StatusCode, url: &Url) -> String {
    let hint = match (asked, status) {
        (Asked::Hub { token: Some(_) }, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            "HF_TOKEN does not give access to it"
        }
        (Asked::Hub { token: None }, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            "it is gated, private or not there; set HF_TOKEN to a token that has access"
        }
        (Asked::Hub { .. }, StatusCode::NOT_FOUND) => "the repository has no such file at that revision",
        (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if has_credentials(url) => {
            "it does not accept the user and password of the URL"
        }
        (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            "it asks for credentials; write them into the URL, https://USER:PASSWORD@HOST/..."
        }
        (_, StatusCode::NOT_FOUND | StatusCode::GONE) => "the server has no such file",
        (_, StatusCode::PROXY_AUTHENTICATION_REQUIRED) => packages::PROXY_CREDENTIALS,
        _ => return status.to_string(),
    };
    format!("{status}: {hint}")
}
