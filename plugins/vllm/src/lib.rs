//! Plugin `vllm`: engine processes that speak HTTP themselves. It starts one, waits until its health is good, watches it, and
//! ends it with all that came of it; requests go to its port, and not through here. Some it knows by name (`known`).
//!
//! It knows no host and no kind of model: what is asked at the port is between the client and the engine.

#![forbid(unsafe_code)]

mod call;
mod engine;
mod environment;
mod files;
mod installer;
mod kept;
mod known;
mod launch;
mod options;
mod port;
mod process;
mod tail;
mod template;
mod tree;
mod wheel;

use std::path::PathBuf;

use aihost_plugin_api::{Error, ErrorKind, LoadContext, LoadRequest, MemoryPlan, Plugin, PrepareContext, Result};

use engine::{Engine, Holds};
use environment::{Environments, Needs};
use kept::Kept;
use launch::Launch;
use options::Options;

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
        let kept = self.kept(load);
        let folder = environment.as_ref().map(|made| made.folder());
        let launch = Launch::new(&self.options, load, folder, port, kept.as_ref())?;
        Engine::start(&launch, &self.options, Holds { environment, kept }, ctx)
    }
}

impl Supervisor {
    /// What is kept of the model between two loads. It is served without, if there is no place for that.
    fn kept(&self, load: &LoadRequest) -> Option<Kept> {
        let options = &self.options;
        if options.engine.known().is_none() && load.files.len() < 2 && !options.names("{cache}") {
            return None;
        }
        let engine = options.engine.known().map_or("http", |known| known.name);
        let words = [options.binary.as_slice(), &options.args, &options.requirements].concat();
        let made = own_folder().map_err(|e| e.message().to_owned());
        let made = made.and_then(|own| Kept::of(&own, engine, load, &words).map_err(|e| e.to_string()));
        made.inspect_err(|why| tracing::warn!("nothing is kept of the model when it is unloaded: {why}")).ok()
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
