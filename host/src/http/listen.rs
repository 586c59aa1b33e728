//! Taking connections in: how many there may be, and what is said to one too many.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access_log::AccessLog;
use super::auth::PROBES;
use super::connection::{SHORT_LINGER, Serving, bytes_of};
use super::connections::{Caps, Connections, Peer, Refused};
use super::error::ApiError;
use super::socket::ClientSocket;
use crate::config::Limits;
use crate::runtime::Handle;

/// Connections at once where nothing else is said: each may hold a head of 64 KiB.
const CONNECTIONS_DEFAULT: usize = 2048;
/// Descriptors that are kept from connections: for workers, files and what is being turned away.
const DESCRIPTORS_RESERVED: usize = 256;
/// Connections that are told at once that there is no room; one more is closed without a word.
const REFUSALS_MAX: usize = 32;
/// How long a probe's connection beyond the most of them may stay.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// How long connections that another process will not have may ask once more: longer than a client takes from its connection to
/// its request.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);
/// Pause after a connection that could not be taken in: most often there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a silent connection's other end may be silent before it is asked whether it is there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// How often it is then asked.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// How many times, before it counts as gone.
const KEEPALIVE_ASKS: u32 = 4;

/// Raises this process's limit of descriptors as far as it may go.
pub(crate) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays where it is; few connections can be served");
    }
}

/// How many connections there may be.
fn caps(limits: &Limits, descriptors: Option<u64>) -> Caps {
    let descriptors = descriptors.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let room = descriptors - DESCRIPTORS_RESERVED.min(descriptors / 2);
    let wanted = limits.connections.map_or(CONNECTIONS_DEFAULT.min(room), |wanted| wanted as usize);
    if wanted > room {
        tracing::warn!("`limits: connections:` says {wanted}, but the system's limit of open files leaves {room}");
    }
    let all = wanted.min(room).max(1);
    let per_peer = limits.connections_per_peer.map_or(all / 2, |wanted| wanted as usize);
    Caps { all, per_peer: per_peer.clamp(1, all) }
}

/// How a host leaves its sockets to another process: it takes no more connections in, and those that it has may ask once more.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    begun: CancellationToken,
    over: CancellationToken,
}

impl Leaving {
    /// Begins, and resolves once no connection is left, or none asks any more.
    pub async fn leave(&self) {
        self.begun.cancel();
        self.over.cancelled().await;
    }
}

/// Serves until `shutdown` resolves, then lets open requests end.
pub(super) async fn serve(
    listeners: Vec<TcpListener>,
    router: Router,
    (handle, log): (&Handle, Arc<AccessLog>),
    leaving: &Leaving,
    shutdown: impl Future<Output = ()>,
) {
    let stopping = CancellationToken::new();
    let caps = caps(&handle.config().limits, getrlimit(Resource::Nofile).current);
    let connections = Arc::new(Connections::new(caps));
    let serving = Serving::new(router, Arc::clone(&log), leaving.begun.clone(), stopping.clone());
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let tasks = TaskTracker::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let (stream, address) = tokio::select! {
            accepted = accept(&listeners, &connections) => accepted,
            () = leaving.begun.cancelled() => break,
            () = &mut shutdown => break,
        };
        let socket = Arc::new(ClientSocket::new(stream, address));
        match connections.admit(Peer::of(address), &socket) {
            Ok(place) => {
                let (serving, stall_timeout) = (serving.clone(), handle.config().limits.stream_stall_timeout);
                let counted = log.tally().connected();
                tasks.spawn(async move {
                    serving.serve(socket, stall_timeout).await;
                    drop(counted);
                    drop(place);
                });
            }
            Err(refused) => {
                let log = Arc::clone(&log);
                if let Ok(turn) = Arc::clone(&refusals).try_acquire_owned() {
                    let serving = serving.clone();
                    tasks.spawn(async move {
                        if socket.asks_for(&PROBES).await {
                            let probed = timeout(PROBE_LIMIT, serving.serve(socket, PROBE_LIMIT));
                            // Whoever has more to say has no place for it.
                            drop(probed.await);
                        } else {
                            let refusal = no_room(refused);
                            let id = log.turned_away(Peer::of(address), &refusal);
                            socket.close(&bytes_of(refusal, &id), SHORT_LINGER).await;
                        }
                        drop(turn);
                    });
                }
            }
        }
    }
    drop(listeners);
    tasks.close();
    if leaving.begun.is_cancelled() {
        tokio::select! {
            () = tasks.wait() => {}
            () = tokio::time::sleep(LEAVE_LIMIT) => {}
        }
        leaving.over.cancel();
        shutdown.await;
    }
    stopping.cancel();
    tasks.wait().await;
}

fn no_room(refused: Refused) -> ApiError {
    ApiError::no_room_for_connection(match refused {
        Refused::All => "connections",
        Refused::Peer => "connections_per_peer",
    })
}

async fn accept(listeners: &[TcpListener], connections: &Connections) -> (TcpStream, IpAddr) {
    loop {
        connections.room().await;
        match next(listeners).await {
            Ok((stream, peer)) => {
                if let Err(error) = prepare(&stream) {
                    tracing::debug!(%error, "a connection keeps the system's usual options; tokens may arrive in bursts");
                }
                return (stream, peer.ip());
            }
            // One that was gone before it was taken in says nothing of the next.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken in; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The next connection of any of them, none of which comes always first.
async fn next(listeners: &[TcpListener]) -> std::io::Result<(TcpStream, SocketAddr)> {
    if let [only] = listeners {
        return only.accept().await;
    }
    let mut waiting: FuturesUnordered<_> = listeners.iter().map(TcpListener::accept).collect();
    waiting.next().await.unwrap_or_else(|| Err(std::io::ErrorKind::NotConnected.into()))
}

/// Tokens leave as they are made, and a client whose machine is gone is noticed some day.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    rustix::net::sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    rustix::net::sockopt::set_tcp_keepcnt(stream, KEEPALIVE_ASKS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        let with = |keys: &str, descriptors| {
            let text = format!("limits: {{{keys}}}\nmodels: {{a: {{type: text, plugin: p}}}}");
            let file = std::path::Path::new("/m.yaml");
            let config = crate::config::parse(&text, file, &Default::default(), &Env::default()).expect("valid");
            let Caps { all, per_peer } = caps(&config.limits, descriptors);
            (all, per_peer)
        };
        assert_eq!(with("", None), (2048, 1024));
        assert_eq!(with("", Some(1024)), (768, 384));
        assert_eq!(with("", Some(100)), (50, 25));
        assert_eq!(with("connections: 10000", Some(20_000)), (10_000, 5000));
        assert_eq!(with("connections: 10000, connections_per_peer: 20000", Some(1024)), (768, 768));
        assert_eq!(with("connections: 1", None), (1, 1));
    }
}
