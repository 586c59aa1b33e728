//! The signals that ask for an end, and those that do not.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::CliError;

/// Signals that would end a process which does not hear them, and mean nothing to a host: what tools of a terminal and timers send, and that
/// a file has reached its limit of size, after which a write fails as any other.
const HARMLESS: [i32; 8] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGXFSZ,
];

/// From now on the host outlives signals that do not ask for its end. What it starts has them as usual.
pub(super) fn outlive() -> Result<(), CliError> {
    let failed = |error| CliError::failed(format!("signals cannot be received: {error}"));
    // Heard once they are heard for ever.
    HARMLESS.iter().try_for_each(|number| signal(SignalKind::from_raw(*number)).map(drop)).map_err(failed)
}

/// Some signals, heard together.
#[derive(Debug)]
pub(super) struct Signals(Vec<Signal>);

impl Signals {
    /// What supervisors and terminals send to a server: SIGTERM and SIGINT.
    pub(super) fn of_server() -> Result<Self, CliError> {
        Self::of(&[SignalKind::terminate(), SignalKind::interrupt()])
    }

    /// The same, and what a terminal sends that closes, for a server that is to end with it.
    pub(super) fn of_server_or_terminal() -> Result<Self, CliError> {
        Self::of(&[SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()])
    }

    /// What a terminal sends that closes, and who wants a server to read its file again: SIGHUP.
    pub(super) fn of_terminal() -> Result<Self, CliError> {
        Self::of(&[SignalKind::hangup()])
    }

    /// What asks for another process in this one's place: SIGUSR2.
    pub(super) fn of_handover() -> Result<Self, CliError> {
        Self::of(&[SignalKind::user_defined2()])
    }

    /// What a terminal sends to a command: SIGINT.
    pub(super) fn of_command() -> Result<Self, CliError> {
        Self::of(&[SignalKind::interrupt()])
    }

    /// From now on these no longer end the process by themselves.
    pub(super) fn of(kinds: &[SignalKind]) -> Result<Self, CliError> {
        let failed = |error| CliError::failed(format!("signals cannot be received: {error}"));
        kinds.iter().map(|kind| signal(*kind)).collect::<Result<_, _>>().map(Self).map_err(failed)
    }

    /// Resolves with the next of them.
    pub(super) async fn next(&mut self) {
        let received = self.0.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures_util::future::select_all(received).await;
    }
}
