//! Which connections there are, and who makes room for a new one. Nothing of bytes or requests.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::Request;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::socket::{ClientSocket, Phase};

/// How long a body may be on its way, or an answer not be read, before its connection may make room for another.
const SLOW_AFTER: Duration = Duration::from_secs(2);
/// Connections beyond the most there may be that have not ended yet though they were told to.
const ENDING_MAX: usize = 64;

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caps {
    /// From all addresses together.
    pub(super) all: usize,
    /// From one address.
    pub(super) per_peer: usize,
}

/// Who a connection comes from: an address, of IPv6 the /64 that one customer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Peer(IpAddr);

/// Why a connection is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There are too many in all, and all of them are being answered.
    All,
    /// There are too many from this address, and all of them are being answered.
    Peer,
}

/// The connections of a listener.
#[derive(Debug)]
pub(super) struct Connections {
    caps: Caps,
    table: Mutex<Table>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Table {
    by_peer: HashMap<Peer, BTreeMap<u64, Arc<ClientSocket>>>,
    /// Connections that may stay.
    staying: usize,
    /// Descriptors that are open, those among them that were told to end.
    open: usize,
    next: u64,
}

/// A connection's place; free once it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    connections: Arc<Connections>,
    peer: Peer,
    number: u64,
}

impl Peer {
    pub(super) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            address => address,
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(prefix) => write!(f, "{prefix}/64"),
        }
    }
}

/// Whose request it is; one that came by no connection is this machine's.
pub(super) fn peer_of<B>(request: &Request<B>) -> Peer {
    request.extensions().get().copied().unwrap_or(Peer(Ipv4Addr::LOCALHOST.into()))
}

impl Connections {
    pub(super) fn new(caps: Caps) -> Self {
        Self { caps, table: Mutex::default(), ended: Notify::new() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// Resolves when another descriptor may be opened: those who were told to end have done so.
    pub(super) async fn room(&self) {
        loop {
            let ended = self.ended.notified();
            if self.table().open < self.caps.all + ENDING_MAX {
                return;
            }
            ended.await;
        }
    }

    /// Takes a connection in. If there are too many, the one makes room that has waited longest for its client: of this
    /// address, if it is this one that has too many; else of the address that has most.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer, socket: &Arc<ClientSocket>) -> Result<ConnectionSlot, Refused> {
        let mut table = self.table();
        let own = table.by_peer.get(&peer).map_or(0, BTreeMap::len);
        if own >= self.caps.per_peer && !table.evict(peer) {
            return Err(Refused::Peer);
        }
        if table.staying >= self.caps.all {
            let mut peers: Vec<_> = table.by_peer.iter().map(|(peer, links)| (links.len(), *peer)).collect();
            peers.sort_unstable_by(|a, b| b.cmp(a));
            if !peers.into_iter().any(|(_, peer)| table.evict(peer)) {
                return Err(Refused::All);
            }
        }
        let number = table.next;
        table.next += 1;
        table.staying += 1;
        table.open += 1;
        table.by_peer.entry(peer).or_default().insert(number, Arc::clone(socket));
        Ok(ConnectionSlot { connections: Arc::clone(self), peer, number })
    }
}

impl Table {
    /// Tells the connection of this address to end that waits longest for its client, if there is one.
    fn evict(&mut self, peer: Peer) -> bool {
        let Some(links) = self.by_peer.get(&peer) else { return false };
        let waiting = links.iter().filter_map(|(number, socket)| Some((waits(socket)?, *number)));
        let Some((_, number)) = waiting.min() else { return false };
        if let Some(socket) = self.forget(peer, number) {
            socket.evict();
        }
        true
    }

    fn forget(&mut self, peer: Peer, number: u64) -> Option<Arc<ClientSocket>> {
        let links = self.by_peer.get_mut(&peer)?;
        let socket = links.remove(&number)?;
        if links.is_empty() {
            self.by_peer.remove(&peer);
        }
        self.staying -= 1;
        Some(socket)
    }
}

/// Whether a connection waits for its client, and since when: less is told to end earlier. None that is being answered does.
fn waits(socket: &ClientSocket) -> Option<(u8, Instant)> {
    let slow = |since: Instant| since.elapsed() >= SLOW_AFTER;
    let (phase, since) = socket.phase();
    match phase {
        Phase::Fresh | Phase::Idle | Phase::Head | Phase::Closing => Some((0, since)),
        Phase::Body => slow(since).then_some((1, since)),
        Phase::Switched => None,
        Phase::Answer => socket.stalled().filter(|since| slow(*since)).map(|since| (2, since)),
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        table.forget(self.peer, self.number);
        table.open -= 1;
        drop(table);
        self.connections.ended.notify_one();
    }
}
