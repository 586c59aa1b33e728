//! An engine that serves: started, waited for, asked how it is, and ended with all that came of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aihost_plugin_api::{Error, ErrorKind, LoadContext, Result, Upstream, UpstreamAddress};
use serde_json::Value;

use super::call::{self, Answer};
use super::environment::Environment;
use super::kept::Kept;
use super::known::{Call, Canary, Known, Sleep, WHOLE};
use super::launch::Launch;
use super::options::{FreeCall, Options};
use super::port::Listener;
use super::process::{End, Process};
use super::tail;

/// Between two questions to an engine that starts.
const POLL: Duration = Duration::from_millis(50);
/// How long an engine that starts may take to answer one.
const START_LIMIT: Duration = Duration::from_secs(2);
/// How long one that serves may take: it may be busy.
const SERVE_LIMIT: Duration = Duration::from_secs(20);
/// How long one may take for the token by which it shows that it computes, when it has just started.
const CANARY_LIMIT: Duration = Duration::from_secs(60);
/// How long one may take for each step of waking; its host waits for 30 s.
const WAKE_LIMIT: Duration = Duration::from_secs(25);
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
    known: Option<KnownEngine>,
    /// Not swept while it is in use.
    #[expect(dead_code, reason = "it is held")]
    environment: Option<Environment>,
    /// What is kept of the model while it is unloaded.
    kept: Option<Kept>,
}

/// One that is known by name.
#[derive(Debug)]
struct KnownEngine {
    known: &'static Known,
    /// The model's, as it was told.
    name: String,
    keeps_slots: bool,
    /// How deep it sleeps, if it does.
    sleep: Option<u8>,
    /// What it first computed for its canary, and which that is; nothing if it takes none of them.
    first: OnceLock<Option<(Canary, Value)>>,
}

/// What an engine is held with.
#[derive(Debug)]
pub(crate) struct Holds {
    pub(crate) environment: Option<Environment>,
    pub(crate) kept: Option<Kept>,
}

impl Engine {
    /// Starts an engine and waits until its health is good.
    pub(crate) fn start(launch: &Launch, options: &Options, holds: Holds, ctx: &LoadContext) -> Result<Self> {
        tracing::info!("starting on port {}: {}", launch.port, launch.shown());
        let process = Process::start(&mut launch.command(), launch.port).map_err(|e| {
            let why = format!("{} cannot be started: {e}", launch.program().display());
            Error::new(ErrorKind::Unsupported, why)
        })?;
        let known = options.engine.known().map(|known| KnownEngine {
            known,
            name: launch.name.clone(),
            keeps_slots: known.keeps_slots() && options.keep_slots,
            sleep: options.sleep,
            first: OnceLock::new(),
        });
        let Holds { environment, kept } = holds;
        let engine = Self {
            process,
            port: launch.port,
            health: options.health.clone(),
            prefix: options.prefix.clone(),
            free: options.free.clone(),
            stop_timeout: options.stop_timeout(),
            known,
            environment,
            kept,
        };
        engine.await_health(ctx)?;
        if let Some(known) = &engine.known {
            known.compute(engine.address())?;
        }
        if let Some(kept) = engine.kept_slots() {
            kept.restore_slots(engine.address());
        }
        engine.process.serve()?;
        Ok(engine)
    }

    /// What is said of a start that goes on is what its host quotes when it gives up: the last answer, whenever that is another.
    fn await_health(&self, ctx: &LoadContext) -> Result<()> {
        let begun = Instant::now();
        let mut told: Option<(Instant, Answer)> = None;
        let mut done = 0;
        loop {
            if let Some(end) = self.process.end() {
                return Err(self.ended(end));
            }
            ctx.check()?;
            self.tell_progress(&mut done, ctx);
            let health = call::ask(self.address(), &self.health, START_LIMIT);
            match &health {
                Answer::Good => return self.check_listener(),
                Answer::Strange(_) => {
                    let why = format!("the engine's {} {}; see `health` and `port`", self.health, health.told());
                    return Err(Error::new(ErrorKind::Unsupported, why));
                }
                Answer::Bad(_) | Answer::Silent(_) => {
                    let is_news = |(at, last): &(Instant, Answer)| at.elapsed() >= TELL_INTERVAL || *last != health;
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

    /// Tells how far a start is by what the engine says of it.
    fn tell_progress(&self, done: &mut u32, ctx: &LoadContext) {
        let Some(KnownEngine { known, .. }) = &self.known else { return };
        let lines = self.process.newest_lines();
        let seen = lines.iter().filter_map(|line| known.progress(line)).max();
        if let Some(seen) = seen.filter(|seen| seen > done) {
            *done = seen;
            ctx.progress(seen.into(), WHOLE.into());
        }
    }

    /// Where what its slots have read is kept, if that is.
    fn kept_slots(&self) -> Option<&Kept> {
        self.kept.as_ref().filter(|_| self.known.as_ref().is_some_and(|known| known.keeps_slots))
    }

    fn call(&self, call: &Call, limit: Duration) -> Result<()> {
        let Call { path, body } = call;
        match call::post(self.address(), path, body, limit) {
            Answer::Good => Ok(()),
            bad => Err(Error::internal(format!("the engine's {path} {}", bad.told()))),
        }
    }

    fn ended(&self, end: End) -> Error {
        let lines = self.process.last_lines();
        let explained = self.known.as_ref().and_then(|engine| engine.known.explain(&lines));
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
        match call::ask(self.address(), &self.health, SERVE_LIMIT) {
            // One whose device is lost may answer this all the same.
            Answer::Good => self.known.as_ref().map_or(Ok(()), |known| known.compute(self.address())),
            bad => Err(Error::internal(format!("the engine's {} {}", self.health, bad.told()))),
        }
    }

    fn park(&self) -> Result<()> {
        if let Some((sleep, level)) = self.known.as_ref().and_then(KnownEngine::sleep) {
            return self.call(&sleep.down[level], SERVE_LIMIT);
        }
        let Some(FreeCall { path, body }) = &self.free else {
            return Err(Error::new(ErrorKind::Unsupported, "no `free` says how this engine gives its memory back"));
        };
        match call::post(self.address(), path, &body.to_string(), SERVE_LIMIT) {
            Answer::Good => Ok(()),
            bad => Err(Error::internal(format!("the engine's {path} {}", bad.told()))),
        }
    }

    /// One without a way to sleep takes its memory again by itself, for whoever asks it.
    fn unpark(&self, _ctx: &LoadContext) -> Result<()> {
        let Some((known, (sleep, level))) = self.known.as_ref().and_then(|known| Some((known, known.sleep()?))) else {
            return self.health();
        };
        for step in sleep.up[level] {
            self.call(step, WAKE_LIMIT)?;
        }
        known.compute_as_before(self.address())
    }

    fn upstream(&self) -> Result<UpstreamAddress> {
        Ok(UpstreamAddress::on_port(self.port).below(&self.prefix))
    }
}

impl KnownEngine {
    /// How it sleeps, and where its level is in the lists.
    fn sleep(&self) -> Option<(&'static Sleep, usize)> {
        self.known.sleep.as_ref().zip(self.sleep.map(|level| usize::from(level) - 1))
    }

    /// Whether it computes, whatever its health says.
    fn compute(&self, address: SocketAddr) -> Result<()> {
        self.first_or(address).map(|_| ())
    }

    /// Whether it computes what it did when it was loaded: one that lost its weights answers as well.
    fn compute_as_before(&self, address: SocketAddr) -> Result<()> {
        let Some((canary, before)) = self.first.get().and_then(Option::as_ref) else { return Ok(()) };
        let now = self.ask(canary, address)?;
        if before.is_string() && now.as_ref().is_some_and(|now| now != before) {
            return Err(Error::internal(
                "the engine woke, and says something else than before it slept: its weights are not what they were",
            ));
        }
        Ok(())
    }

    fn first_or(&self, address: SocketAddr) -> Result<Option<Value>> {
        if let Some(known) = self.first.get() {
            return known.as_ref().map_or(Ok(None), |(canary, _)| self.ask(canary, address));
        }
        for canary in self.known.canaries {
            if let Some(said) = self.ask(canary, address)? {
                let _ = self.first.set(Some((*canary, said)));
                return Ok(None);
            }
        }
        tracing::warn!("it takes no request that would show that it computes; its health alone counts");
        let _ = self.first.set(None);
        Ok(None)
    }

    /// What it computes for a canary; nothing if it does not take it.
    fn ask(&self, canary: &Canary, address: SocketAddr) -> Result<Option<Value>> {
        let Canary { path, body, answer: at } = canary;
        let body = body.replace("{name}", &Value::from(self.name.as_str()).to_string());
        match call::post_for_json(address, path, &body, CANARY_LIMIT) {
            (Answer::Good, said) => match said.as_ref().and_then(|said| said.pointer(at)) {
                Some(computed) => Ok(Some(computed.clone())),
                None => Err(Error::internal(format!("the engine's {path} answers 200 without what was asked for"))),
            },
            (refused, _) if refused.is_refusal() => Ok(None),
            (bad, _) => Err(Error::internal(format!(
                "the engine's health is good, and it computes nothing: its {path} {}",
                bad.told()
            ))),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(kept) = self.kept_slots().filter(|_| self.process.is_serving()) {
            kept.keep_slots(self.address());
        }
        self.process.stop(self.stop_timeout);
    }
}
