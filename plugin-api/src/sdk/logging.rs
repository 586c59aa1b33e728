//! Forwards the plugin's `tracing` events to the host. A cdylib has its own copy of `tracing`, which the host's subscriber never sees.

use std::cell::Cell;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::abi::RawHostArc;

thread_local! {
    static REQUEST: Cell<u64> = const { Cell::new(0) };
}

/// Sets up the bridge once per plugin copy, panic messages included.
pub(crate) fn connect(host: RawHostArc) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Bridge { host });
        // In a test binary a subscriber may already stand; it is as good a place for the events.
        if tracing::subscriber::set_global_default(subscriber).is_ok() {
            std::panic::set_hook(Box::new(|info| {
                tracing::error!(backtrace = %std::backtrace::Backtrace::capture(), "panic: {info}");
            }));
        }
    });
}

/// Marks this thread's events as belonging to a request until dropped.
pub(crate) fn request(id: u64) -> RequestScope {
    RequestScope { before: REQUEST.replace(id) }
}

pub(crate) struct RequestScope {
    before: u64,
}

impl Drop for RequestScope {
    fn drop(&mut self) {
        REQUEST.set(self.before);
    }
}

struct Bridge {
    host: RawHostArc,
}

impl<S: Subscriber> Layer<S> for Bridge {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
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
        self.host.log(
            level,
            event.metadata().target().into(),
            fields.message.as_str().into(),
            json.as_slice().into(),
            REQUEST.get(),
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
