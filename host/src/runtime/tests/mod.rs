//! The runtime over workers that exist on paper, in paused time: exact, quick, and every effect can be made to fail.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that panics has failed, which is what it is for")]

mod fake;
mod faults;
mod health;
mod limits;
mod plans;
mod reconfigure;
mod replays;
mod storm;
mod told;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::abi::Manifest;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::{AccessEntry, Class, Handle, OutputMode, Runtime, Submission};
use crate::config::{self, Env, Selection};
use crate::domain::{Failure, Kind};
use crate::plugin::{PluginFile, Registry};
use crate::worker::Output;
use fake::{TOKENS, World};

/// Longer than anything may take that is not lost. Paused time costs nothing.
const EVER: Duration = Duration::from_secs(3 * 3600);

/// A runtime over a fake world.
struct Host {
    runtime: Runtime,
    world: World,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// Every token, all from the model that was asked.
    Whole,
    /// Refused, or failed before it had sent anything.
    Refused(Failure),
    /// Failed after this many tokens.
    Broken(Failure, u32),
    /// A rule of the runtime was broken: which.
    Wrong(&'static str),
}

/// An answer, when the request was granted, and when it was over.
#[derive(Clone, Debug)]
struct Told {
    answer: Answer,
    granted: Instant,
}

impl Host {
    /// `models` use the plugins `fake`, `parker` which also parks, and `carded` which runs on cards alone; all serve `leases_max` requests at once.
    fn start(world: World, leases_max: u32, yaml: &str) -> Self {
        let plugin = |id: &str| {
            let (parks, device) = (id == "parker", if id == "carded" { "cuda" } else { "cpu" });
            let manifest = format!(
                r#"{{"id":"{id}","version":"1.0.0","kinds":["text","audio"],"devices":["{device}"],"max_concurrency":{leases_max},"parks":{parks}}}"#
            );
            Arc::new(PluginFile {
                manifest: Manifest::parse(manifest.as_bytes()).unwrap(),
                source: "fake.so".into(),
                copy: Arc::default(),
                sha256: String::new(),
                library_folders: Vec::new(),
            })
        };
        // Of no folder, so that none is looked at.
        let registry = Registry { plugins: ["fake", "parker", "carded"].map(plugin).into(), ..Registry::default() };
        let env = Env::with("/here", [("HOME", "/home/me")]);
        let config = config::parse(yaml, Path::new("/here/models.yaml"), &Selection::default(), &env).unwrap();
        let runtime = super::start(Arc::new(config), Arc::new(registry), Arc::new(world.clone()));
        Self { runtime, world }
    }

    fn handle(&self) -> Handle {
        self.runtime.handle()
    }

    /// A client that reads everything.
    fn ask(&self, model: &'static str) -> JoinHandle<Told> {
        self.ask_as(model, Class::Interactive, OutputMode::Streamed)
    }

    fn ask_as(&self, model: &'static str, class: Class, delivery: OutputMode) -> JoinHandle<Told> {
        let task = format!("{{\"model\":\"{model}\",\"number\":{}}}", fake::unique());
        let kind = self.handle().config().models.get(model).map_or(Kind::Text, |entry| entry.kind);
        let submission = Submission {
            model: model.into(),
            kind,
            ask: Bytes::from(task).into(),
            class,
            delivery,
            keep_alive: None,
            access: AccessEntry::default(),
        };
        tokio::spawn(told(self.handle(), model, submission))
    }
}

async fn told(handle: Handle, model: &'static str, submission: Submission) -> Told {
    let Ok(submitted) = timeout(EVER, handle.submit(submission)).await else {
        return Told { answer: Answer::Wrong("neither granted nor refused"), granted: Instant::now() };
    };
    let granted = Instant::now();
    let answer = match submitted {
        Ok(answer) => {
            timeout(EVER, read(model, answer.output)).await.unwrap_or(Answer::Wrong("granted and never ended"))
        }
        Err(failure) => Answer::Refused(failure),
    };
    Told { answer, granted }
}

async fn read(model: &str, mut output: tokio::sync::mpsc::Receiver<Output>) -> Answer {
    let mut tokens = 0;
    let end = loop {
        match output.recv().await {
            None => return Answer::Wrong("the answer has no end"),
            Some(Output::Event(name)) if name == model.as_bytes() => tokens += 1,
            Some(Output::Event(_) | Output::Bytes(_) | Output::Http(_)) => {
                return Answer::Wrong("another model's answer");
            }
            Some(Output::Progress { .. }) => {}
            Some(Output::Done(end)) => break end,
        }
    };
    // Nobody holds on to the other end: a client that waits for it would wait for ever.
    if output.recv().await.is_some() {
        return Answer::Wrong("the answer goes on after its end");
    }
    match end {
        Ok(_) if tokens == TOKENS => Answer::Whole,
        Ok(_) => Answer::Wrong("an answer that lacks something counts as whole"),
        Err(failure) if tokens == 0 => Answer::Refused(failure),
        Err(failure) => Answer::Broken(failure, tokens),
    }
}

/// Runs a test in paused time, in a tokio runtime of its own, so that nothing is left over from the one before.
fn paused<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test)
}
