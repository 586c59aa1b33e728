//! The port that an engine is to answer on: which it is, whether it is free, and whose what answers there is.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use aihost_plugin_api::{Error, ErrorKind as Kind, Result};

use super::tree::{self, Living};

/// How long a port may still be held by what is just being ended.
const RELEASE_WAIT: Duration = Duration::from_secs(2);
/// Between two looks at that.
const RELEASE_POLL: Duration = Duration::from_millis(50);
/// Tables of TCP sockets.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// Addresses on which what is asked of 127.0.0.1 is heard, as the tables write them: that itself, all of IPv4, all of IPv6, and
/// both of IPv4 within IPv6.
const HEARD_ON: [&str; 5] = [
    "0100007F",
    "00000000",
    "00000000000000000000000000000000",
    "0000000000000000FFFF00000100007F",
    "0000000000000000FFFF000000000000",
];
/// The state of a socket that listens.
const LISTENS: &str = "0A";

/// Who listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// One of these processes.
    Own,
    /// Somebody else: who, if that can be told.
    Other(Option<String>),
    /// That cannot be told.
    Unknown,
}

/// The port that was asked for, once it is free, or one that is.
///
/// # Errors
/// It is held: by whom, if that can be told.
pub(crate) fn choose(wanted: Option<NonZeroU16>) -> Result<u16> {
    let Some(wanted) = wanted.map(NonZeroU16::get) else {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        return bound.map(|address| address.port()).map_err(|e| Error::internal(format!("there is no free port: {e}")));
    };
    let until = Instant::now() + RELEASE_WAIT;
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)) {
            Ok(_) => return Ok(wanted),
            Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < until => std::thread::sleep(RELEASE_POLL),
            Err(e) if e.kind() == ErrorKind::AddrInUse => return Err(held(wanted)),
            Err(e) => {
                let why = format!("port {wanted} of 127.0.0.1 cannot be listened on ({e}); choose another `port:`");
                return Err(Error::new(Kind::Unsupported, why));
            }
        }
    }
}

fn held(port: u16) -> Error {
    let inodes = listening(port);
    let has = |pid: &String| tree::sockets(pid).is_some_and(|sockets| !sockets.is_disjoint(&inodes));
    let holder = tree::everyone().into_iter().find(has).map(|pid| tree::named(&pid));
    let by = holder.map(|who| format!(" by {who}")).unwrap_or_default();
    let why = format!("port {port} is held{by}; end that, or give the entry another `port:`");
    Error::new(Kind::Unsupported, why)
}

/// Whether one of these processes listens on a port of 127.0.0.1, or somebody else.
pub(crate) fn listener(port: u16, own: &[Living]) -> Listener {
    let inodes = listening(port);
    if inodes.is_empty() {
        return Listener::Unknown;
    }
    let mut is_certain = true;
    for process in own {
        match tree::sockets(&process.pid.as_raw_pid().to_string()) {
            Some(sockets) if !sockets.is_disjoint(&inodes) => return Listener::Own,
            Some(_) => {}
            None => is_certain = false,
        }
    }
    if !is_certain {
        return Listener::Unknown;
    }
    let has = |pid: &String| tree::sockets(pid).is_some_and(|sockets| !sockets.is_disjoint(&inodes));
    Listener::Other(tree::everyone().into_iter().find(has).map(|pid| tree::named(&pid)))
}

/// The inodes of the sockets that hear what is asked of a port of 127.0.0.1.
fn listening(port: u16) -> BTreeSet<String> {
    let tables = TABLES.iter().filter_map(|table| fs::read_to_string(table).ok());
    tables.flat_map(|table| listening_in(&table, port)).collect()
}

/// Number, local address, remote one, state, four more, then the inode.
fn listening_in(table: &str, port: u16) -> Vec<String> {
    let port = format!("{port:04X}");
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, found) = fields.get(1)?.split_once(':')?;
        let hears = HEARD_ON.contains(&address) && found == port && *fields.get(3)? == LISTENS;
        hears.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    table.lines().filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_hears_the_port_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
            1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1\n\
            2: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 13 1\n\
            3: 0200000A:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 14 1\n\
            4: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 15 1\n\
            5: cut";
        assert_eq!(listening_in(table, 8080), ["11", "12"]);
    }

    #[test]
    fn a_port_that_is_held_is_said_to_be_and_by_whom() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let error = choose(NonZeroU16::new(port)).unwrap_err();
        let own = format!("(process {})", std::process::id());
        assert!(error.message().contains(&own) && error.message().contains("another `port:`"), "{error}");
        drop(holder);
        assert_eq!(choose(NonZeroU16::new(port)), Ok(port));
        assert_ne!(choose(None), Ok(0));
    }
}
