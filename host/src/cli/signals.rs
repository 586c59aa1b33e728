//! The signals that ask for an end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::CliError;

/// Some signals, heard together.
#[derive(Debug)]
pub(super) struct Signals(Vec<Signal>);

impl Signals {
    /// What supervisors and terminals send to a server: SIGTERM and SIGINT.
    pub(super) fn of_server() -> Result<Self, CliError> {
        Self::of(&[SignalKind::terminate(), SignalKind::interrupt()])
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
