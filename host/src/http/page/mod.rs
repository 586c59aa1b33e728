//! The page that people leave open: its files, the feed that it reads, and what the host remembers for it. Everything here looks
//! and nothing decides; what the page does it does by the routes that everybody has.

mod assets;
mod feed;
mod history;
mod message;
mod options;
mod pulse;

pub(super) use assets::{asset, root};
pub(super) use feed::{events, overview};
pub(super) use history::remember_devices;
pub(super) use options::options;

use std::sync::Arc;

use history::DeviceHistory;
use pulse::Pulse;

/// What the page's routes share.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// What devices held over the last hour.
    history: DeviceHistory,
    /// The looks at the host that all who watch share.
    pulse: Arc<Pulse>,
}
