//! What a pull has before it, asked before its first byte: which files are not here, how large they are, and whether there is
//! room for all of them together.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures_util::stream::{self, StreamExt};
use reqwest::Url;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH};

use super::digest::{beside, on_disk};
use super::download::{header, refusal, with_token};
use super::failure::Failure;
use super::locate::{Presence, presence};
use super::packages::{self, Wheel};
use super::race;
use super::route::{Candidate, Route};
use super::{AlreadyHere, Puller};
use crate::config::{FileConfig, ModelConfig};
use crate::domain::{ByteSize, ModelId};

/// Files whose sizes are asked for at once.
const ASKED_AT_ONCE: usize = 8;

/// A file that is still to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The first model that wants it.
    pub model: ModelId,
    /// Its role there.
    pub role: String,
    /// Where it will lie.
    pub path: PathBuf,
    /// Its bytes, or why nobody says how many.
    pub bytes: Result<u64, String>,
    /// Bytes of it that are here from an earlier pull.
    pub begun: u64,
    /// The same file in the hub's cache or LM Studio's folder, which is used instead if its digest is right.
    pub kept: Option<PathBuf>,
}

impl Missing {
    /// Bytes that are to be fetched, as far as is known.
    pub fn rest(&self) -> u64 {
        match (&self.kept, &self.bytes) {
            (None, Ok(bytes)) => bytes.saturating_sub(self.begun),
            _ => 0,
        }
    }
}

impl Puller {
    /// What is to be fetched for these models, each file once.
    pub async fn survey(&self, models: &[&ModelConfig], here: AlreadyHere) -> Vec<Missing> {
        let mut seen = BTreeSet::new();
        let files = models.iter().flat_map(|model| model.files.iter().map(|(role, file)| (&model.id, role, file)));
        let missing = files.filter(|(_, _, file)| {
            let is_wanted =
                here == AlreadyHere::Replaced || !matches!(presence(file, &self.digests), Presence::Present(_));
            !file.sources.is_empty() && is_wanted && seen.insert(&file.path)
        });
        let missing: Vec<_> = missing.collect();
        let asked = missing.into_iter().map(|(model, role, file)| async move {
            let kept = match here {
                AlreadyHere::Kept => self.caches.candidates(file).into_iter().next().map(|kept| kept.path),
                AlreadyHere::Replaced => None,
            };
            let bytes = match &kept {
                Some(path) => std::fs::metadata(path).map(|found| found.len()).map_err(|error| error.to_string()),
                None if self.offline => Err("nobody is asked (offline)".to_owned()),
                None => self.size(file).await,
            };
            let part = std::fs::metadata(beside(&file.path, ".part"));
            let begun = part.map_or(0, |found| on_disk(&found));
            Missing { model: model.clone(), role: role.clone(), path: file.path.clone(), bytes, begun, kept }
        });
        // Boxed: the compiler does not see through the borrows of a stream of them.
        let asked: Vec<_> = asked.map(futures_util::FutureExt::boxed).collect();
        stream::iter(asked).buffered(ASKED_AT_ONCE).collect().await
    }

    /// The bytes of a file, by whichever of its mirrors says so first.
    async fn size(&self, file: &FileConfig) -> Result<u64, String> {
        let routes: Vec<Route<'_>> = file.sources.iter().flat_map(|source| self.places.routes(source)).collect();
        let contestants = routes.iter().map(|route| size_by(route)).collect();
        let outcome = race::staggered(contestants, self.patience.stagger).await;
        let why =
            || outcome.failed.iter().min_by_key(|(position, _)| *position).map(|(_, failure)| failure.sentence.clone());
        match outcome.won {
            Some((_, bytes)) => Ok(bytes),
            None => Err(why().unwrap_or_else(|| "nobody is there to be asked".to_owned())),
        }
    }
}

/// The bytes of all pieces of a route; of a wheel, those of the wheel, which is fetched whole.
async fn size_by(route: &Route<'_>) -> Result<u64, Failure> {
    let mut total = 0_u64;
    for piece in &route.pieces {
        let mut answer = Err(Failure::last("nobody is there to be asked"));
        for candidate in &piece.candidates {
            answer = size_of(candidate).await;
            if answer.is_ok() {
                break;
            }
        }
        total = total.saturating_add(answer?);
    }
    Ok(total)
}

async fn size_of(candidate: &Candidate<'_>) -> Result<u64, Failure> {
    match candidate {
        Candidate::Unavailable(why) => Err(Failure::last(why.clone())),
        Candidate::Wheel { http, place, package, version, .. } => match packages::find(http, place, package, version)
            .await?
        {
            Wheel::Here(path) => Ok(super::download::length(&path)),
            Wheel::There { bytes, .. } => bytes.ok_or_else(|| Failure::last("its index does not say how large it is")),
        },
        Candidate::Direct { http, url, asked } => {
            let url = Url::parse(url).map_err(|error| Failure::last(format!("its address is not a URL: {error}")))?;
            let builder = http.client.head(url.clone()).header(ACCEPT_ENCODING, "identity");
            let response = http.head(&url, with_token(builder, *asked, &url)).await?;
            if !response.status().is_success() {
                return Err(refusal(*asked, &url, &response));
            }
            // What reqwest makes of it is the length of this answer's body, which has none.
            let length = header(&response, &CONTENT_LENGTH).and_then(|length| length.parse().ok());
            length.ok_or_else(|| Failure::last("its server does not say how large it is"))
        }
    }
}

/// Whether there is room for all of them.
///
/// # Errors
/// A sentence for each disk that has too little, with what to do.
pub fn enough_room(missing: &[Missing]) -> Result<(), String> {
    let mut disks: BTreeMap<u64, (PathBuf, u64, usize)> = BTreeMap::new();
    for file in missing {
        let Some(folder) = existing(&file.path) else { continue };
        let Ok(found) = std::fs::metadata(&folder) else { continue };
        let (_, bytes, count) = disks.entry(found.dev()).or_insert((folder, 0, 0));
        *bytes = bytes.saturating_add(file.rest());
        *count += usize::from(file.rest() > 0);
    }
    let short = disks.into_values().filter_map(|(folder, bytes, count)| {
        let state = rustix::fs::statvfs(&folder).ok()?;
        let free = state.f_bavail.saturating_mul(state.f_frsize);
        (bytes > free).then(|| {
            format!(
                "the {count} files to be fetched need {} more, and the disk of {} has {} free; make room (`aihost models prune`), or set `models_dir`",
                ByteSize(bytes),
                folder.display(),
                ByteSize(free)
            )
        })
    });
    match short.collect::<Vec<_>>() {
        short if short.is_empty() => Ok(()),
        short => Err(short.join("; ")),
    }
}

/// The nearest folder above a file that is there.
fn existing(file: &Path) -> Option<PathBuf> {
    file.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_counted_for_all_files_together() {
        let folder = tempfile::tempdir().unwrap();
        let free = rustix::fs::statvfs(folder.path()).map(|state| state.f_bavail * state.f_frsize).unwrap();
        let file = |name: &str, bytes: u64| Missing {
            model: ModelId::from("m"),
            role: "model".into(),
            path: folder.path().join("not/there").join(name),
            bytes: Ok(bytes),
            begun: 0,
            kept: None,
        };
        let most = free / 3 * 2;
        assert_eq!(enough_room(&[file("a", most)]), Ok(()));
        let told = enough_room(&[file("a", most), file("b", most)]).unwrap_err();
        assert!(told.starts_with("the 2 files") && told.contains("aihost models prune"), "{told}");
        let kept = Missing { kept: Some("/elsewhere".into()), ..file("b", most) };
        assert_eq!(enough_room(&[file("a", most), kept]), Ok(()), "a link takes no room");
        assert_eq!(enough_room(&[file("a", most), Missing { begun: most, ..file("b", most) }]), Ok(()));
        assert_eq!(enough_room(&[Missing { bytes: Err(String::new()), ..file("b", 0) }]), Ok(()));
    }
}
