//! An engine that speaks HTTP itself. Mostly it is a program that `load` starts and `Drop` ends.
#![forbid(unsafe_code)]

use aihost_plugin_api::{Engine, Error, LoadContext, LoadRequest, MemoryPlan, Plugin, Result};
use aihost_plugin_api::{Upstream, UpstreamAddress};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

/// What an entry of models.yaml may say under `options:`.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

struct Model;
struct Server(SocketAddr);

impl Plugin for Model {
    type Options = Options;
    type Engine = Server;
    fn new(_options: Options) -> Result<Self> {
        Ok(Self)
    }

    /// Bytes that the engine will take, as far as that is known.
    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan::default())
    }

    /// A program would be started here on a port that is free, and waited for until it answers.
    fn load(&self, _load: &LoadRequest, _ctx: &LoadContext) -> Result<Server> {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(Error::internal)?;
        let address = listener.local_addr().map_err(Error::internal)?;
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let _asked = client.read(&mut [0; 4096]);
                let _answered = client.write_all(b"HTTP/1.1 200 OK\r\n\r\nHello");
            }
        });
        Ok(Server(address))
    }
}

impl Engine for Server {
    type Task = Upstream;
    fn upstream(&self) -> Result<UpstreamAddress> {
        Ok(UpstreamAddress::at(self.0))
    }
}

aihost_plugin_api::export_plugin! { plugin: Model, id: "example/upstream", devices: ["cpu"], permissions: ["network"] }

#[test]
fn it_says_where_it_answers() {
    let options = serde_json::json!({});
    let mut host = aihost_plugin_api::testing::MockHost::new::<Model>(options, &[]).unwrap();
    host.load().unwrap();
    let mut client = std::net::TcpStream::connect(host.upstream().unwrap().address).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(std::io::read_to_string(client).unwrap().ends_with("Hello"));
}
