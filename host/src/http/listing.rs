//! Answers that name every model: each is made once for all who ask at about the same time, and off the runtime's threads.
//! Nothing of what they say.
//!
//! What somebody gets was begun after he asked. Where there are very many models it may be a second old, but never older than
//! the last command (a load, an unload, a park) that was answered before, nor of another configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

use super::app::App;
use super::blocking::run_long;
use super::caller::Caller;
use super::error::ApiError;
use crate::config::Config;
use crate::domain::{Failure, ModelId};

/// Models beyond which a listing is handed out again for [`SHARED_FOR`]: making it takes too long to be done for everyone.
const MANY_MODELS: usize = 256;
/// How long a listing of many models is handed out, and how long any is kept.
const SHARED_FOR: Duration = Duration::from_secs(1);
/// Texts of one listing that are there at once, kept or on their way to clients. Beyond them the last one is handed out again,
/// however old: somebody reads slowly.
const TEXTS_MAX: usize = 8;
/// Sets of models that a listing is kept for.
const VIEWS_MAX: usize = 64;
/// Listings that are written at once.
const WRITERS_MAX: usize = 2;

static WRITERS: Semaphore = Semaphore::const_new(WRITERS_MAX);

/// Every listing there is.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// `GET /metrics` in OpenMetrics text.
    pub(super) metrics: Listing,
    /// `GET /metrics` in Prometheus's own.
    pub(super) classic_metrics: Listing,
    /// `GET /admin/devices`.
    pub(super) devices: Listing,
    /// `GET /admin/status`.
    pub(super) status: Listing,
    /// `GET /models`.
    pub(super) router: Listing,
    /// `GET /v1/models`.
    pub(super) models: Listing,
    /// `GET /api/tags`.
    pub(super) tags: Listing,
    /// `GET /api/ps`.
    pub(super) loaded: Listing,
    /// `GET /running`.
    pub(super) running: Listing,
    /// Models that are still being preloaded, by name.
    pub(super) preloading: Listing,
    /// Commands that were answered.
    commands: AtomicU64,
}

impl Listings {
    /// A command has its outcome: whoever asks from now on sees it.
    pub(super) fn command_done(&self) {
        self.commands.fetch_add(1, Ordering::Release);
    }
}

/// One listing, as it was made last.
#[derive(Debug)]
pub(super) struct Listing {
    /// By the models that there are for whoever asks; none: all.
    views: parking_lot::Mutex<BTreeMap<Option<BTreeSet<ModelId>>, View>>,
    places: Arc<Semaphore>,
}

impl Default for Listing {
    fn default() -> Self {
        Self { views: Default::default(), places: Arc::new(Semaphore::new(TEXTS_MAX)) }
    }
}

/// What those get who see the same models.
type View = Arc<Mutex<Option<Made>>>;

#[derive(Debug)]
struct Made {
    begun: Instant,
    /// Commands that had been answered then.
    commands: u64,
    /// The configuration that was in force.
    config: Weak<Config>,
    /// For those who ask within [`SHARED_FOR`].
    kept: Option<Arc<Text>>,
    text: Weak<Text>,
}

/// A listing's bytes, and its place among those that are there.
#[derive(Debug)]
struct Text {
    bytes: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

/// One that is handed out.
struct HandedText(Arc<Text>);

impl AsRef<[u8]> for HandedText {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Made {
    fn text(&self) -> Option<Bytes> {
        let text = self.kept.clone().or_else(|| self.text.upgrade())?;
        Some(Bytes::from_owner(HandedText(text)))
    }

    fn is_good(&self, asked: Instant, commands: u64, config: &Arc<Config>) -> bool {
        let shared_for = if config.models.len() > MANY_MODELS { SHARED_FOR } else { Duration::ZERO };
        self.begun + shared_for >= asked && self.commands >= commands && self.config.as_ptr() == Arc::as_ptr(config)
    }
}

impl Listing {
    fn view(&self, caller: &Caller) -> View {
        let mut views = self.views.lock();
        if views.len() > VIEWS_MAX {
            // Those of keys that are gone. Whoever has one in his hands goes on with it.
            views.clear();
        }
        Arc::clone(views.entry(caller.narrowed().cloned()).or_default())
    }

    /// The listing. `look` asks for what it says, if it must be made; `write` writes that, on a thread of its own.
    pub(super) async fn get<T: Send + 'static>(
        &self,
        app: &App,
        caller: &Caller,
        look: impl Future<Output = Result<T, Failure>> + Send + 'static,
        write: impl FnOnce(T) -> Result<Vec<u8>, Failure> + Send + 'static,
    ) -> Result<Bytes, ApiError> {
        let asked = Instant::now();
        let commands = app.listings.commands.load(Ordering::Acquire);
        // Whoever comes while one is made waits for it here.
        let mut last = self.view(caller).lock_owned().await;
        let config = app.handle.config();
        if let Some(text) = last.as_ref().filter(|made| made.is_good(asked, commands, &config)).and_then(Made::text) {
            return Ok(text);
        }
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            // If all places are taken, the last one has one of them.
            Err(_) => {
                return last.as_ref().and_then(Made::text).ok_or_else(|| ApiError::internal("no listing is left"));
            }
        };
        let (begun, config) = (Instant::now(), Arc::downgrade(&config));
        let commands = app.listings.commands.load(Ordering::Acquire);
        // In a task of its own: a client that leaves does not have it begun anew for the next.
        let making = tokio::spawn(async move {
            let looked = look.await?;
            let bytes = run_long(&WRITERS, move || write(looked)).await??;
            let text = Arc::new(Text { bytes, _place: place });
            let made = Made { begun, commands, config, text: Arc::downgrade(&text), kept: Some(text) };
            let handed = made.text();
            *last = Some(made);
            forget_later(last);
            handed.ok_or_else(|| ApiError::internal("the listing was lost"))
        });
        making.await.unwrap_or_else(|error| Err(ApiError::internal(format!("the listing could not be made: {error}"))))
    }
}

/// Keeps what was made for those who ask soon, and no longer.
fn forget_later(last: OwnedMutexGuard<Option<Made>>) {
    let (begun, cell) = (last.as_ref().map(|made| made.begun), Arc::clone(OwnedMutexGuard::mutex(&last)));
    tokio::spawn(async move {
        sleep(SHARED_FOR).await;
        if let Some(made) = cell.lock().await.as_mut().filter(|made| Some(made.begun) == begun) {
            made.kept = None;
        }
    });
}
