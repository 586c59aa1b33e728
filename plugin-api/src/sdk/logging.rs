//! Forwards the plugin's `tracing` events to the host. A cdylib has its own copy of `tracing`, which the host's subscriber never sees.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, Once, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::abi::RawHostArc;

/// Where one instance's events go, and the request they belong to.
#[derive(Clone)]
struct Target {
    host: Arc<RawHostArc>,
    request: u64,
}

thread_local! {
    /// The call this thread is in.
    static CURRENT: RefCell<Option<Target>> = const { RefCell::new(None) };
}

/// For threads of the plugin's own, which are in no call: the instance made last.
static LAST: Mutex<Option<Target>> = Mutex::new(None);

/// Sets up the bridge once per plugin copy, panic messages included.
pub(crate) fn connect(host: RawHostArc) -> Arc<RawHostArc> {
    static ONCE: Once = Once::new();
    let host = Arc::new(host);
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Target { host: Arc::clone(&host), request: 0 });
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Bridge);
        // In a test binary a subscriber may already stand; it is as good a place for the events.
        if tracing::subscriber::set_global_default(subscriber).is_ok() {
            std::panic::set_hook(Box::new(|info| {
                tracing::error!(backtrace = %std::backtrace::Backtrace::capture(), "panic: {info}");
            }));
        }
    });
    host
}

/// Marks this thread's events as an instance's, and of one of its requests, until dropped.
pub(crate) fn enter(host: &Arc<RawHostArc>, request: u64) -> Scope {
    Scope { before: CURRENT.replace(Some(Target { host: Arc::clone(host), request })) }
}

pub(crate) struct Scope {
    before: Option<Target>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

struct Bridge;

impl<S: Subscriber> Layer<S> for Bridge {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let target =
            CURRENT.with_borrow(Clone::clone).or_else(|| LAST.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let Some(target) = target else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            Level::ERROR => 1,
            Level::WARN => 2,
            Level::INFO => 3,
            Level::DEBUG => 4,
            Level::TRACE => 5,
        };
        let json = serde_json::to_vec(&fields.rest).unwrap_or_default();
        target.host.log(
            level,
            event.metadata().target().into(),
            fields.message.as_str().into(),
            json.as_slice().into(),
            target.request,
        );
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.rest.insert(field.name().to_owned(), format!("{value:?}").into());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.rest.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.rest.insert(field.name().to_owned(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.rest.insert(field.name().to_owned(), value.into());
    }
}
