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

/// Before the number of bytes that are whole from the beginning, where others behind them may not be.
const WHOLE: &str = "whole ";

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
        let have = match lines.next() {
            None => have,
            Some(line) => have.min(line.strip_prefix(WHOLE)?.parse().ok()?),
        };
        let same = origin.url == named(request) && origin.start == request.start;
        (same && have > 0 && total.is_none_or(|total| have <= total)).then_some((have, origin))
    }

    /// Notes where the part comes from. Without a strong tag it cannot be known later to be the same file.
    pub(super) fn note(request: &Request<'_>, response: &Response, total: Option<u64>, have: u64) {
        let Some(etag) = strong_tag(response) else {
            if have == 0 {
                Self::forget(&request.part);
            }
            return;
        };
        let total = total.map(|total| total.to_string()).unwrap_or_default();
        let text = format!("{}\n{}\n{total}\n{etag}\n", named(request), request.start);
        write(&request.part, &text);
    }

    /// Notes the same of a part that grows at several places, of which so many bytes are whole from the beginning.
    pub(super) fn note_whole(request: &Request<'_>, etag: &str, total: u64, whole: u64) {
        write(&request.part, &format!("{}\n{}\n{total}\n{etag}\n{WHOLE}{whole}\n", named(request), request.start));
    }

    /// Forgets it.
    pub(super) fn forget(part: &Path) {
        remove(&note_of(part));
    }
}

/// The server's name for this very content; nothing of one that may stand for another one.
pub(super) fn strong_tag(response: &Response) -> Option<&str> {
    response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).filter(|tag| !tag.starts_with("W/"))
}

/// Replaces the note at once: half a note would be none.
fn write(part: &Path, text: &str) {
    let note = note_of(part);
    let fresh = beside(&note, ".new");
    let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &note));
    if let Err(error) = written {
        // A note of what was here before would be wrong of what is here now.
        remove(&note);
        tracing::debug!(part = %part.display(), %error, "its origin could not be noted");
    }
}

fn named(request: &Request<'_>) -> String {
    hex(&Sha256::digest(request.url.as_str()))
}

fn note_of(part: &Path) -> PathBuf {
    beside(part, ".from")
}
