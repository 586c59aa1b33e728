//! Where the bytes of a part come from, noted beside it as `NAME.part.from`, so that a later try can go on. A URL may carry
//! a password, so its digest is noted in its stead.

use std::path::{Path, PathBuf};

use reqwest::Response;
use reqwest::header::ETAG;
use sha2::{Digest, Sha256};

use super::{Request, length, remove};
use crate::store::digest::{beside, hex};

/// A note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The digest of its URL.
    url: String,
    /// Where in the part it begins.
    start: u64,
    /// The server's name for this very content.
    pub(super) etag: String,
    /// Bytes in all, if the server said.
    pub(super) total: Option<u64>,
}

impl Origin {
    /// The bytes that are here of what is asked for, and the note that says whether the server still has the same file.
    pub(super) fn resumable(request: &Request<'_>) -> Option<(u64, Self)> {
        let text = std::fs::read_to_string(note_of(&request.part)).ok()?;
        let mut lines = text.lines();
        let url = lines.next()?.to_owned();
        let start = lines.next()?.parse().ok()?;
        let total = lines.next()?.parse().ok();
        let origin = Self { url, start, total, etag: lines.next()?.to_owned() };
        let have = length(&request.part).checked_sub(start)?;
        let same = origin.url == named(request) && origin.start == request.start;
        (same && have > 0 && total.is_none_or(|total| have <= total)).then_some((have, origin))
    }

    /// Notes where the part comes from. Without a strong tag it cannot be known later to be the same file.
    pub(super) fn note(request: &Request<'_>, response: &Response, total: Option<u64>, have: u64) {
        let etag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).filter(|tag| !tag.starts_with("W/"));
        let Some(etag) = etag else {
            if have == 0 {
                Self::forget(&request.part);
            }
            return;
        };
        let total = total.map(|total| total.to_string()).unwrap_or_default();
        let text = format!("{}\n{}\n{total}\n{etag}\n", named(request), request.start);
        if let Err(error) = std::fs::write(note_of(&request.part), text) {
            tracing::debug!(part = %request.part.display(), %error, "its origin could not be noted");
        }
    }

    /// Forgets it.
    pub(super) fn forget(part: &Path) {
        remove(&note_of(part));
    }
}

fn named(request: &Request<'_>) -> String {
    hex(&Sha256::digest(request.url.as_str()))
}

fn note_of(part: &Path) -> PathBuf {
    beside(part, ".from")
}
