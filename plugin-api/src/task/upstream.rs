//! Kind `upstream`: an engine that speaks HTTP itself. The host asks it there; nothing of a request crosses the interface.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Where an engine answers HTTP/1.1. It crosses as JSON; members that a reader does not know are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UpstreamAddress {
    /// A port of this machine's loopback.
    pub address: SocketAddr,
    /// What stands before the path of each request: empty, or from `/` on.
    #[serde(default)]
    pub prefix: String,
    /// Headers that each request is sent with, such as a key of the engine's own.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

impl UpstreamAddress {
    /// An engine that answers on this port of 127.0.0.1.
    pub fn on_port(port: u16) -> Self {
        Self::at(([127, 0, 0, 1], port).into())
    }

    /// An engine that answers at this address.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, prefix: String::new(), headers: BTreeMap::new() }
    }

    /// The same below a path.
    #[must_use]
    pub fn below(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_ascii_lowercase(), value.to_owned());
        self
    }
}
