//! An engine that serves: started, waited for, asked how it is, and ended with all that came of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use aihost_plugin_api::{Error, ErrorKind, LoadContext, Result, Upstream, UpstreamAddress};

use super::environment::Environment;
use super::health::{self, Health};
use super::known::{Canary, Known};
use super::launch::Launch;
use super::options::{FreeCall, Options};
use super::port::Listener;
use super::process::{End, Process};
use super::slots::Slots;
use super::tail;

/// Between two questions to an engine that starts.
const POLL: Duration = Duration::from_millis(50);
/// How long an engine that starts may take to answer one.
const START_LIMIT: Duration = Duration::from_secs(2);
/// How long one that serves may take: it may be busy.
const SERVE_LIMIT: Duration = Duration::from_secs(20);
/// How long one may take for the token by which it shows that it computes.
const CANARY_LIMIT: Duration = Duration::from_secs(60);
/// How long an engine may start without a word: many are ready by then.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// How often it is said that an engine still starts, if nothing is new.
const TELL_INTERVAL: Duration = Duration::from_secs(10);
/// Lines of an engine's standard error in a sentence on its end.
const TOLD_LINES: usize = 10;
/// Bytes of them.
const TOLD_BYTES: usize = 560;

/// A running engine. Dropping it ends it.
#[derive(Debug)]
pub struct Engine {
    process: Process,
    port: u16,
    health: String,
    prefix: String,
    free: Option<FreeCall>,
    stop_timeout: Duration,
    known: Option<&'static Known>,
    kept: Kept,
}

/// What an engine has on disk.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Not swept while it is in use.
    #[expect(dead_code, reason = "it is held")]
    pub(crate) environment: Option<Environment>,
    /// What it has read, while it is away.
    pub(crate) slots: Option<Slots>,
}

impl Engine {
    /// Starts an engine and waits until its health is good.
    pub(crate) fn start(launch: &Launch, options: &Options, kept: Kept, ctx: &LoadContext) -> Result<Self> {
        tracing::info!("starting on port {}: {}", launch.port, launch.shown());
        let process = Process::start(&mut launch.command(), launch.port).map_err(|e| {
            let why = format!("{} cannot be started: {e}", launch.program().display());
            Error::new(ErrorKind::Unsupported, why)
        })?;
        let engine = Self {
            process,
            port: launch.port,
            health: options.health.clone(),
            prefix: options.prefix.clone(),
            free: options.free.clone(),
            stop_timeout: options.stop_timeout(),
            known: options.engine.known(),
            kept,
        };
        engine.await_health(ctx)?;
        engine.compute()?;
        if let Some(slots) = &engine.kept.slots {
            slots.restore(engine.address());
        }
        engine.process.serve()?;
        Ok(engine)
    }

    /// What is said of a start that goes on is what its host quotes when it gives up: the last answer, whenever that is another.
    fn await_health(&self, ctx: &LoadContext) -> Result<()> {
        let begun = Instant::now();
        let mut told: Option<(Instant, Health)> = None;
        loop {
            if let Some(end) = self.process.end() {
                return Err(self.ended(end));
            }
            ctx.check()?;
            let health = health::ask(self.address(), &self.health, START_LIMIT);
            match &health {
                Health::Good => return self.check_listener(),
                Health::Strange(_) => {
                    let why = format!("the engine's {} {}; see `health` and `port`", self.health, health.told());
                    return Err(Error::new(ErrorKind::Unsupported, why));
                }
                Health::Bad(_) | Health::Silent(_) => {
                    let is_news = |(at, last): &(Instant, Health)| at.elapsed() >= TELL_INTERVAL || *last != health;
                    if begun.elapsed() >= TELL_AFTER && told.as_ref().is_none_or(is_news) {
                        let seconds = begun.elapsed().as_secs();
                        tracing::info!("still starting after {seconds} s: its {} {}", self.health, health.told());
                        told = Some((Instant::now(), health));
                    }
                }
            }
            self.process.wait(POLL);
        }
    }

    /// Whether it is the engine that answers, and not someone who held the port before.
    fn check_listener(&self) -> Result<()> {
        match self.process.listener() {
            Listener::Own | Listener::Unknown => Ok(()),
            Listener::Other(who) => {
                let who = who.unwrap_or_else(|| "another process".to_owned());
                let why = format!(
                    "port {} is answered by {who}, which is not the engine that was started; give the entry another `port:`",
                    self.port
                );
                Err(Error::new(ErrorKind::Unsupported, why))
            }
        }
    }

    /// Whether one that is known by name computes, whatever its health says.
    fn compute(&self) -> Result<()> {
        let Some(known) = self.known else { return Ok(()) };
        let Canary { path, body } = known.canary;
        match health::post(self.address(), path, body, CANARY_LIMIT) {
            Health::Good => Ok(()),
            bad => Err(Error::internal(format!(
                "the engine's {} is good, and it computes nothing: its {path} {}",
                self.health,
                bad.told()
            ))),
        }
    }

    fn ended(&self, end: End) -> Error {
        let lines = self.process.last_lines();
        let explained = self.known.and_then(|known| known.explain(&lines));
        let said = match tail::last(&lines, TOLD_LINES, TOLD_BYTES) {
            said if said.is_empty() => "it said nothing on its standard error".to_owned(),
            said => format!("it said last: {said}"),
        };
        match explained {
            Some((kind, advice)) => {
                Error::new(kind, format!("the engine {} before it was ready: {advice}; {said}", end.told()))
            }
            None => Error::internal(format!("the engine {} before it was ready; {said}", end.told())),
        }
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

impl aihost_plugin_api::Engine for Engine {
    type Task = Upstream;

    fn health(&self) -> Result<()> {
        match health::ask(self.address(), &self.health, SERVE_LIMIT) {
            // One whose device is lost may answer this all the same.
            Health::Good => self.compute(),
            bad => Err(Error::internal(format!("the engine's {} {}", self.health, bad.told()))),
        }
    }

    fn park(&self) -> Result<()> {
        let Some(FreeCall { path, body }) = &self.free else {
            return Err(Error::new(ErrorKind::Unsupported, "no `free` says how this engine gives its memory back"));
        };
        match health::post(self.address(), path, &body.to_string(), SERVE_LIMIT) {
            Health::Good => Ok(()),
            bad => Err(Error::internal(format!("the engine's {path} {}", bad.told()))),
        }
    }

    /// It takes its memory again by itself, for whoever asks it.
    fn unpark(&self, _ctx: &LoadContext) -> Result<()> {
        self.health()
    }

    fn upstream(&self) -> Result<UpstreamAddress> {
        Ok(UpstreamAddress::on_port(self.port).below(&self.prefix))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(slots) = self.kept.slots.as_ref().filter(|_| self.process.end().is_none()) {
            slots.keep(self.address());
        }
        self.process.stop(self.stop_timeout);
    }
}
