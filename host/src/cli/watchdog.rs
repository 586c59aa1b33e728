//! The end that comes whatever hangs: once this process was asked to end, or its host broke, it is gone in a bounded time.
//!
//! It has a thread and a runtime of its own, so that it hears signals and sees time pass while every other thread waits
//! for a file system, a terminal or a device.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::failure::CliError;
use super::out;
use super::signals::Signals;
use crate::config::Config;
use crate::runtime::Handle;
use crate::telemetry;

/// What an end may take beyond `drain_timeout`: workers are killed and reaped, connections cut, the log written.
const END_MARGIN: Duration = Duration::from_secs(10);
/// What an end may take where there is no host yet, or none in this process.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);
/// What a process may take that was told twice, or whose host broke.
const AT_ONCE: Duration = Duration::from_secs(2);
/// What the last word and the exit handlers of the process may take.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// Watches until the process ends. Dropping it changes nothing.
#[derive(Debug)]
pub(super) struct Watchdog {
    host: Arc<OnceLock<Handle>>,
    broken: mpsc::Sender<()>,
}

/// Why an end is due, and how long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// By a first signal, in this time.
    Asked(Duration),
    /// By another one.
    AskedAgain,
    /// By a host that ended.
    Broken,
}

impl Watchdog {
    /// Heeds these signals from now on.
    pub(super) fn start(signals: fn() -> Result<Signals, CliError>) -> Result<Self, CliError> {
        let failed = |error| CliError::failed(format!("the watchdog cannot be started: {error}"));
        let host = Arc::<OnceLock<Handle>>::default();
        let (broken, reports) = mpsc::channel(1);
        let known = Arc::clone(&host);
        let limit = move || known.get().map_or(LEAVE_LIMIT, |host| end_limit(&host.config()));
        let (begun, begins) = std::sync::mpsc::sync_channel(1);
        let watch = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime.map_err(failed) {
                Ok(runtime) => runtime,
                Err(error) => return begun.send(Err(error)).unwrap_or_default(),
            };
            let order = runtime.block_on(async {
                let (heeds, mut signals) = match signals() {
                    Ok(signals) => (Ok(()), Some(signals)),
                    Err(error) => (Err(error), None),
                };
                begun.send(heeds).unwrap_or_default();
                let signals = signals.as_mut()?;
                Some(watch(async || signals.next().await, reports, limit).await)
            });
            order.into_iter().for_each(end);
        };
        thread::Builder::new().name("watchdog".into()).spawn(watch).map_err(failed)?;
        // At once, or never if the thread could not begin.
        begins.recv().unwrap_or_else(|_| Err(CliError::failed("the watchdog ended as it began")))?;
        Ok(Self { host, broken })
    }

    /// The process has a host now, whose requests may end first.
    pub(super) fn hosts(&self, handle: Handle) {
        // There is one host in a process's life.
        let _ = self.host.set(handle);
    }

    /// The host broke: what is left of the process has two seconds.
    pub(super) fn host_broke(&self) {
        // Full means it is said already.
        let _ = self.broken.try_send(());
    }
}

/// How long an end may take that a first signal asks a host for.
fn end_limit(config: &Config) -> Duration {
    config.limits.drain_timeout.saturating_add(END_MARGIN)
}

/// Resolves when the process should have ended and has not.
async fn watch(mut signal: impl AsyncFnMut(), mut broken: mpsc::Receiver<()>, limit: impl Fn() -> Duration) -> Order {
    let breaks = async {
        // A watchdog that nobody holds any more hears of nothing, and still heeds signals.
        if broken.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        sleep(AT_ONCE).await;
        Order::Broken
    };
    let asked = async {
        signal().await;
        let limit = limit();
        tokio::select! {
            () = sleep(limit) => Order::Asked(limit),
            () = async { signal().await; sleep(AT_ONCE).await } => Order::AskedAgain,
        }
    };
    tokio::select! {
        order = breaks => order,
        order = asked => order,
    }
}

impl Order {
    fn reason(self) -> String {
        match self {
            Self::Asked(limit) => format!(
                "stopped hard: something did not end within {} s of being asked to (a device, a file system, a worker that cannot be killed)",
                limit.as_secs()
            ),
            Self::AskedAgain => "stopped hard: a second signal asked for the end".to_owned(),
            Self::Broken => "stopped hard: the host had ended, and its process did not".to_owned(),
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::AskedAgain => CliError::Interrupted.code(),
            Self::Asked(_) | Self::Broken => CliError::failed("").code(),
        }
    }
}

/// Ends the process: with a word and by exit, and by SIGKILL if stderr or an exit handler hangs too. Workers end with it.
fn end(order: Order) {
    let exit = thread::Builder::new().name("exit".into()).spawn(move || {
        out::note(&order.reason());
        telemetry::flush();
        #[expect(clippy::exit, reason = "whatever would have to return first hangs")]
        std::process::exit(order.code().into());
    });
    if exit.is_ok() {
        thread::sleep(EXIT_LIMIT);
    }
    let _ = kill_process(getpid(), Signal::KILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(70);

    /// What the watchdog makes of so many signals and a break, with the time at which it does.
    async fn order(signals: usize, breaks: bool) -> (Order, Duration) {
        let (signal, mut signalled) = mpsc::channel(2);
        let (broken, reports) = mpsc::channel(1);
        for _ in 0..signals {
            signal.send(()).await.unwrap();
        }
        if breaks {
            broken.send(()).await.unwrap();
        }
        let begun = tokio::time::Instant::now();
        let next = async || signalled.recv().await.unwrap();
        (watch(next, reports, || LIMIT).await, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn every_end_comes_in_its_time() {
        let (asked, after) = order(1, false).await;
        assert_eq!((asked, asked.code(), after), (Order::Asked(LIMIT), 1, LIMIT));
        let (again, after) = order(2, false).await;
        assert_eq!((again, again.code(), after), (Order::AskedAgain, 130, AT_ONCE));
        let (broken, after) = order(0, true).await;
        assert_eq!((broken, broken.code(), after), (Order::Broken, 1, AT_ONCE));
    }
}
