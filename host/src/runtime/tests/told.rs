//! Whatever fails, at whatever moment, is told once: with the model, the cause, and the id of who met it.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::sleep;
use tracing_subscriber::fmt::MakeWriter;

use super::super::AccessEntry;
use super::fake::{Faults, Order, World};
use super::{Answer, Class, Host, OutputMode, Submission, fake, paused, told};
use crate::domain::{Failure, FailureKind, Kind};

const YAML: &str = "devices: [{id: cpu, memory: 250MiB, max_loaded: 1}]
defaults: {quantum: 50ms}
models:
  a: {type: audio, plugin: parker, startup_time: 60}
  b: {type: audio, plugin: fake, startup_time: 60}
";
/// Bytes beside a loaded model, and what each request takes of them.
const WORKSPACE: (u64, u64) = (20 << 20, 1 << 20);

/// A fault that its client alone is told of: it asked for something wrong.
const CLIENTS_OWN: &str = "generate: the plugin refuses";

/// Faults that happen while nobody waits for anything.
const UNMET: [&str; 7] = [
    "loaded: it dies",
    "answered: it dies",
    "parked: it dies",
    "woken: it dies",
    "stop: it does not heed",
    "health: it dies",
    "health: it cannot serve",
];

/// What was logged.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn read(&self) -> Vec<Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// What a run came to.
struct Run {
    taken: Vec<&'static str>,
    /// Lines above INFO.
    loud: Vec<Value>,
    /// Requests whose own line would be loud, by id.
    loud_requests: Vec<String>,
}

/// One request, and whether its line would be loud by what `http` makes of its failure.
async fn ask(host: &Host, model: &'static str, id: &str) -> Option<String> {
    let access = AccessEntry::new(id);
    let submission = Submission {
        model: model.into(),
        kind: Kind::Audio,
        ask: Bytes::from(format!("{{\"number\":{}}}", fake::unique())).into(),
        class: Class::Interactive,
        keep_alive: None,
        delivery: OutputMode::Streamed,
        access: access.clone(),
    };
    let answer = told(host.handle(), model, submission).await.answer;
    // What the loop does at the end of a lease comes after its client's answer.
    sleep(Duration::from_millis(100)).await;
    match answer {
        Answer::Whole => None,
        Answer::Refused(failure) | Answer::Broken(failure, _) => loud(&access, &failure),
        Answer::Wrong(what) => panic!("{what}"),
    }
}

async fn control(asked: impl Future<Output = Result<(), Failure>>, access: &AccessEntry) -> Option<String> {
    let failure = asked.await.err()?;
    loud(access, &failure)
}

fn loud(access: &AccessEntry, failure: &Failure) -> Option<String> {
    use FailureKind::{Internal, NotUsable, Suspected, WorkerDied};
    let facts = access.facts();
    let is_500 = matches!(failure.kind, Internal | NotUsable | Suspected | WorkerDied);
    ((is_500 || facts.is_fault) && !facts.is_told).then(|| access.id().to_owned())
}

/// A comes, B takes its place, A wakes; then an operator parks and unloads it.
fn run(faults: Faults, order: Order) -> Run {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(lines.clone()).finish();
    let (workspace, cost) = WORKSPACE;
    let world = World::new(faults, order, 1 << 40).with_cost(workspace, cost);
    let loud_requests = tracing::subscriber::with_default(subscriber, || {
        paused(async {
            let host = Host::start(world.clone(), 2, YAML);
            let mut loud = Vec::new();
            for (model, id) in [("a", "id-1"), ("b", "id-2"), ("a", "id-3")] {
                loud.extend(ask(&host, model, id).await);
                // A model that failed is tried again later.
                sleep(Duration::from_secs(60)).await;
            }
            let access = AccessEntry::new("id-4");
            loud.extend(control(host.handle().load("a".into(), access.clone()), &access).await);
            let access = AccessEntry::new("id-5");
            loud.extend(control(host.handle().park("a".into(), access.clone()), &access).await);
            sleep(Duration::from_secs(60)).await;
            let access = AccessEntry::new("id-6");
            loud.extend(control(host.handle().unload("a".into(), None, access.clone()), &access).await);
            host.runtime.shutdown(Duration::from_secs(1)).await;
            loud
        })
    });
    let loud = lines.read().into_iter().filter(|line| matches!(line["level"].as_str(), Some("WARN" | "ERROR")));
    Run { taken: world.taken(), loud: loud.collect(), loud_requests }
}

#[test]
fn each_failure_is_one_line_with_its_model_its_cause_and_who_met_it() {
    let mut wrong = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for order in [Order::ExitFirst, Order::CallsFirst] {
        for n in 1.. {
            let Run { taken, loud, loud_requests } = run(Faults::Once(n), order);
            let Some(&way) = taken.first() else { break };
            seen.insert(way);
            let lines = loud.len() + loud_requests.len();
            let is_told = match loud.first() {
                _ if lines != usize::from(way != CLIENTS_OWN) => false,
                Some(line) => {
                    let names_model = line["model"] == "a" || line["model"] == "b";
                    let names_request = line["request_id"].as_str().is_some_and(|ids| ids.contains("id-"));
                    names_model && (names_request || UNMET.contains(&way))
                }
                None => true,
            };
            if !is_told {
                wrong.push(format!("{n}, {way}, {order:?}: {loud:#?}, and the requests {loud_requests:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    for way in ["park: it dies", "wake: it never ends", "cost: the plugin panics", "stop: the plugin cannot release"] {
        assert!(seen.contains(way), "{seen:?}");
    }
}
