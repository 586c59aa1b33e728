//! Fixture plugin `aihost/origin`, of kind `upstream`: an HTTP server on a port of its own. `/echo` gives back what it was sent,
//! `/count` counts until it is left, `/half` breaks off, `/close` ends the server.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use aihost_plugin_api::{
    Engine, Error, LoadContext, LoadRequest, MemoryPlan, Metric, Plugin, Result, Upstream, UpstreamAddress,
};

/// What it says of where it answers.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// An address instead of its own.
    says: Option<String>,
}

/// The plugin.
#[derive(Debug)]
pub struct Plan(Options);

/// The server.
#[derive(Debug)]
pub struct Origin {
    address: UpstreamAddress,
    state: Arc<ServerState>,
}

#[derive(Debug, Default)]
struct ServerState {
    is_closed: AtomicBool,
    /// Clients that are being counted for.
    counting: AtomicU32,
}

impl Plugin for Plan {
    type Options = Options;
    type Engine = Origin;

    fn new(options: Options) -> Result<Self> {
        Ok(Self(options))
    }

    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan::default())
    }

    fn load(&self, _load: &LoadRequest, _ctx: &LoadContext) -> Result<Origin> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(Error::internal)?;
        let own = listener.local_addr().map_err(Error::internal)?;
        let address = match &self.0.says {
            Some(said) => said.parse().map_err(Error::internal)?,
            None => own,
        };
        let state = Arc::<ServerState>::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(std::result::Result::ok) {
                let state = Arc::clone(&shared);
                if state.is_closed.load(Ordering::Acquire) {
                    return;
                }
                std::thread::spawn(move || serve(client, &state));
            }
        });
        Ok(Origin { address: UpstreamAddress::at(address).below("/base").header("x-engine-key", "of its own"), state })
    }
}

impl Engine for Origin {
    type Task = Upstream;

    fn upstream(&self) -> Result<UpstreamAddress> {
        Ok(self.address.clone())
    }

    fn health(&self) -> Result<()> {
        if self.state.is_closed.load(Ordering::Acquire) { Err(Error::internal("the server has ended")) } else { Ok(()) }
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![Metric::gauge(
            "counting",
            "Clients that are counted for.",
            self.state.counting.load(Ordering::Acquire).into(),
        )]
    }
}

/// Answers one request; what fails ends its connection.
fn serve(client: TcpStream, state: &ServerState) {
    let _ended = answer(client, state).is_ok();
}

fn answer(mut client: TcpStream, state: &ServerState) -> std::io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if line.trim().is_empty() {
            break;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body)?;
    let target = head.split(' ').nth(1).unwrap_or_default();
    match target.strip_prefix("/base").unwrap_or(target) {
        "/echo" => {
            let length = head.len() + body.len();
            write!(
                client,
                "HTTP/1.1 201 Created\r\nContent-Type: x/y\r\nX-Mine: 7\r\nServer: origin\r\nContent-Length: {length}\r\n\r\n{head}"
            )?;
            client.write_all(&body)
        }
        "/count" => {
            state.counting.fetch_add(1, Ordering::AcqRel);
            let counted = count(&mut client);
            state.counting.fetch_sub(1, Ordering::AcqRel);
            counted
        }
        "/half" => write!(client, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
        "/close" => {
            state.is_closed.store(true, Ordering::Release);
            Ok(())
        }
        _ => write!(client, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    }
}

fn count(client: &mut TcpStream) -> std::io::Result<()> {
    write!(client, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")?;
    for number in 0u64.. {
        write!(client, "data: {number}\n\n")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

aihost_plugin_api::export_plugin! {
    plugin: Plan,
    id: "aihost/origin",
    devices: ["cpu"],
    max_concurrency: 4,
    permissions: ["network"],
}
