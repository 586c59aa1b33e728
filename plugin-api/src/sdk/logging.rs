//! Forwards the plugin's `tracing` events to the host. A cdylib has its own copy of `tracing`, which the host's subscriber never sees.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, Once, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::abi::RawHostArc;

/// Most bytes of a message or of one field on their way to the host, which cuts further: what is larger, a tensor say, is not
/// even formatted to its end.
const VALUE_BYTES: usize = 4 << 10;

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
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = formatted(format_args!("{value:?}"));
        if field.name() == "message" {
            self.message = text;
        } else {
            self.rest.insert(field.name().to_owned(), text.into());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.rest.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.rest.insert(field.name().to_owned(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.rest.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.rest.insert(field.name().to_owned(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text = formatted(format_args!("{value}"));
        if field.name() == "message" {
            self.message = text;
        } else {
            self.rest.insert(field.name().to_owned(), text.into());
        }
    }
}

/// The beginning of a formatted text.
pub(super) fn formatted(text: fmt::Arguments<'_>) -> String {
    let mut cut = Truncated(String::new());
    // It fails where it is full.
    let _ = cut.write_fmt(text);
    cut.0
}

/// Takes text until it is full.
struct Truncated(String);

impl Write for Truncated {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = VALUE_BYTES.saturating_sub(self.0.len());
        let fits = &text[..text.floor_char_boundary(room)];
        self.0.push_str(fits);
        if fits.len() < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::{VALUE_BYTES, formatted};

    #[test]
    fn what_is_too_long_is_not_formatted_to_its_end() {
        assert_eq!(formatted(format_args!("{:?}", [1, 2])), "[1, 2]");
        assert_eq!(formatted(format_args!("{}", "é".repeat(VALUE_BYTES))).len(), VALUE_BYTES);
        // Endless, if it were not cut.
        struct Endless;
        impl std::fmt::Debug for Endless {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                loop {
                    f.write_str("0.5, ")?;
                }
            }
        }
        assert_eq!(formatted(format_args!("{Endless:?}")).len(), VALUE_BYTES);
    }
}
