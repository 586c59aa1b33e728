//! Plugin `vllm`: engine processes that speak HTTP themselves. It starts one, waits until its health is good, watches it, and
//! ends it with all that came of it; requests go to its port, and not through here. Some it knows by name ([`known`]).
//!
//! It knows no host and no kind of model: what is asked at the port is between the client and the engine.

#![forbid(unsafe_code)]

mod engine;
mod environment;
mod health;
mod installer;
mod known;
mod launch;
mod options;
mod port;
mod process;
mod slots;
mod tail;
mod template;
mod tree;
mod wheel;

use std::path::{Path, PathBuf};

use aihost_plugin_api::{Error, ErrorKind, LoadContext, LoadRequest, MemoryPlan, Plugin, PrepareContext, Result};

use engine::{Engine, Kept};
use environment::{Environments, Needs};
use launch::Launch;
use options::Options;
use slots::Slots;

/// Where the folder of a plugin's own is said.
const OWN_FOLDER_VARIABLE: &str = "XDG_CACHE_HOME";

/// An entry of models.yaml, checked.
#[derive(Debug)]
pub struct Supervisor {
    options: Options,
}

impl Plugin for Supervisor {
    type Options = Options;
    type Engine = Engine;

    fn new(options: Options) -> Result<Self> {
        options.check().map_err(|why| Error::new(ErrorKind::InvalidOptions, why))?;
        Ok(Self { options })
    }

    /// Nothing is known of another program's memory: the entry's `memory:` says, or the host has seen.
    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan::default())
    }

    fn prepare(&self, _load: &LoadRequest, ctx: &PrepareContext) -> Result<()> {
        match Needs::of(&self.options)? {
            Some(needs) => Environments::within(own_folder()?).make(&needs, ctx.environment()),
            None => Ok(()),
        }
    }

    fn load(&self, load: &LoadRequest, ctx: &LoadContext) -> Result<Engine> {
        launch::check(&self.options)?;
        let environment = match Needs::of(&self.options)? {
            Some(needs) => Some(Environments::within(own_folder()?).find(&needs)?),
            None => None,
        };
        let port = port::choose(self.options.port)?;
        let slots = self.slots(load);
        let folder = environment.as_ref().map(|made| made.folder());
        let launch = Launch::new(&self.options, load, folder, port, slots.as_ref().map(Slots::folder))?;
        Engine::start(&launch, &self.options, Kept { environment, slots }, ctx)
    }
}

impl Supervisor {
    /// Where an engine that can keeps what it has read. It is served without, if there is no such place.
    fn slots(&self, load: &LoadRequest) -> Option<Slots> {
        let known = self.options.engine.known().filter(|known| known.keeps_slots() && self.options.keep_slots)?;
        let program = Path::new(self.options.binary.as_deref().unwrap_or(known.name));
        let model = load.file("model").ok()?;
        let made = own_folder().map_err(|e| e.message().to_owned());
        let made = made.and_then(|own| Slots::of(&own, program, model, &self.options.args).map_err(|e| e.to_string()));
        made.inspect_err(|why| tracing::warn!("what it reads is not kept when it is unloaded: {why}")).ok()
    }
}

fn own_folder() -> Result<PathBuf> {
    std::env::var_os(OWN_FOLDER_VARIABLE)
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .ok_or_else(|| Error::internal("the host gave this plugin no folder to keep environments in"))
}

aihost_plugin_api::export_plugin! {
    plugin: Supervisor,
    id: "vllm",
    devices: ["cpu", "cuda"],
    max_concurrency: 256,
    parks: true,
    prepares: true,
    permissions: ["network", "subprocess", "files"],
}
