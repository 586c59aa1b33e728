//! What every endpoint shares: the way to the runtime, the kept files, the count of request bytes and of requests, the listings;
//! and the clock of replies. It knows no route and no shape on the wire.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::access_log::AccessLog;
use super::bodies::Bodies;
use super::conversations::Conversations;
use super::engine_routes::EngineRoutes;
use super::listing::Listings;
use super::page::Page;
use super::quota::Quotas;
use crate::jobs::Jobs;
use crate::runtime::Handle;
use crate::store::Artifacts;

/// What every endpoint may use. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct App {
    /// The way to the runtime and the configuration.
    pub(super) handle: Handle,
    /// When the host started, in seconds since 1970: `created` of every model.
    pub(super) started_s: u64,
    /// Files that answers name by URL.
    pub(super) artifacts: Arc<Artifacts>,
    /// The bytes of all requests.
    pub(super) bodies: Arc<Bodies>,
    /// What each key has used.
    pub(super) quotas: Arc<Quotas>,
    /// What became of each request.
    pub(super) access_log: Arc<AccessLog>,
    /// Answers that name every model.
    pub(super) listings: Arc<Listings>,
    /// Responses that may be gone on from.
    pub(super) conversations: Arc<Conversations>,
    /// Which routes engines lack.
    pub(super) engine_routes: Arc<EngineRoutes>,
    /// Requests that nobody waits for.
    pub(super) jobs: Jobs,
    /// What the page is told.
    pub(super) page: Arc<Page>,
}

impl App {
    /// Over this runtime, with the store of its state folder, and these jobs.
    pub(super) fn new(handle: Handle, jobs: Jobs) -> Self {
        let artifacts = Arc::new(Artifacts::new(handle.config().paths.state.join("artifacts")));
        Self {
            handle,
            started_s: unix_seconds(),
            artifacts,
            bodies: Arc::default(),
            quotas: Arc::default(),
            access_log: Arc::default(),
            listings: Arc::default(),
            conversations: Arc::default(),
            engine_routes: Arc::default(),
            jobs,
            page: Arc::default(),
        }
    }
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
