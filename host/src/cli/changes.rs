//! Word of changed files: whoever waits for one hears of it once it has been quiet, and looks now and then without any word, for
//! no watch sees everything. What changed, and what that means, is known by those who watch.

use std::time::Duration;

use notify::{Event, RecommendedWatcher};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// Files are written in several steps; they are looked at once it has been quiet this long.
const QUIET: Duration = Duration::from_millis(300);
/// What is never quiet is looked at this often.
const STORM: Duration = Duration::from_secs(3);
/// How often is looked without a word from the watch, which sees neither through links and mounts nor what others do on a network.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The other end of [`Changes`].
#[derive(Clone)]
pub(super) struct ChangeNoted(mpsc::Sender<()>);

/// Changes that were noted.
pub(super) struct Changes(mpsc::Receiver<()>);

/// Where changes are noted, and where they are heard of.
pub(super) fn changes() -> (ChangeNoted, Changes) {
    let (noted, changes) = mpsc::channel(1);
    (ChangeNoted(noted), Changes(changes))
}

/// When to look without a word.
pub(super) fn looks() -> Interval {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

impl ChangeNoted {
    pub(super) fn note(&self) {
        // Full means that a change is noted already.
        let _noted = self.0.try_send(()).is_ok();
    }

    /// A watch that notes these events.
    pub(super) fn watcher(
        &self,
        is_meant: impl Fn(&Event) -> bool + Send + 'static,
    ) -> notify::Result<RecommendedWatcher> {
        let noted = self.clone();
        notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_meant(&event)) {
                noted.note();
            }
        })
    }
}

impl Changes {
    /// The next change; nothing once nobody is left to note one.
    pub(super) async fn next(&mut self) -> Option<()> {
        self.0.recv().await
    }

    /// Waits until it has been quiet for a moment. What is written for ever is looked at all the same.
    pub(super) async fn quiet(&mut self) {
        let quiet = async { while timeout(QUIET, self.next()).await.is_ok_and(|change| change.is_some()) {} };
        let _storm = timeout(STORM, quiet).await;
    }
}
