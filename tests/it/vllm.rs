//! Engine processes that the plugin `vllm` supervises: each way to go wrong is one sentence and costs one worker, and nothing of
//! it is left behind, no process and no port.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aihost::domain::{Failure, RequestId};
use aihost::worker::{Ask, AskBody, ExitReason, HttpAsk, HttpOutput, InstanceHandle, Output};
use aihost_tests::{PATIENCE, stand_in, wait_for};
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::HeaderMap;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::bench::{self, Bench, LOAD_DEADLINE, Limits};

/// How long a load may take that is not to succeed.
const SHORT_DEADLINE: Duration = Duration::from_secs(2);
/// The same for one whose health takes as long as it is waited for.
const SILENT_DEADLINE: Duration = Duration::from_secs(4);
/// How long an orderly stop may take.
const STOP_GRACE: Duration = Duration::from_secs(30);

/// A stand-in as an engine: told apart from those of all other tests by a word of its own.
struct Engine {
    bench: Bench,
    word: String,
}

impl Engine {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let bench = Bench::with(&["vllm", "echo"], Limits::default());
        Self { bench, word: format!("--word-{}-{number}-", std::process::id()) }
    }

    fn options(&self, arguments: &str) -> Value {
        let words = ["--port", "{port}", &self.word];
        let program = stand_in().display().to_string();
        let command: Vec<&str> =
            [program.as_str()].into_iter().chain(words).chain(arguments.split_whitespace()).collect();
        json!({"command": command, "stop_timeout": 2})
    }

    async fn start(&self, options: Value) -> Arc<dyn InstanceHandle> {
        self.bench.start("vllm", options).await.unwrap()
    }

    async fn loaded(&self, arguments: &str) -> Arc<dyn InstanceHandle> {
        self.bench.loaded("vllm", self.options(arguments)).await
    }

    /// Why it cannot be loaded; nothing is left of it then.
    async fn refused(&self, options: Value, deadline: Duration) -> Failure {
        let instance = self.start(options).await;
        let failure = instance.load(1 << 30, deadline).await.expect_err("it was loaded");
        assert!(!failure.message.contains('\n') && failure.message.len() <= 900, "{failure}");
        instance.stop(STOP_GRACE).await;
        self.nothing_is_left().await;
        failure
    }

    /// The processes that carry its word.
    fn processes(&self) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let carries = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&self.word)
        };
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(carries).filter_map(Pid::from_raw).collect()
    }

    async fn nothing_is_left(&self) {
        wait_for("its processes' end", || self.processes().is_empty().then_some(())).await;
    }

    async fn running(&self) -> Pid {
        wait_for("its process", || self.processes().first().copied()).await
    }
}

/// Asks an engine; its status and body, or why there is no answer.
async fn ask(instance: &Arc<dyn InstanceHandle>, target: &str) -> Result<(u16, String), Failure> {
    let (method, target, headers) = (Method::POST, target.to_owned(), HeaderMap::new());
    let body = AskBody::Whole(Bytes::new());
    let ask = HttpAsk { method, target, headers, body, time_limit: PATIENCE };
    let (_cancel, cancelled) = oneshot::channel();
    let mut outputs = instance.generate(RequestId(1), Ask::Http(Arc::new(ask)), cancelled);
    let (mut status, mut body) = (0, Vec::new());
    loop {
        match outputs.recv().await.expect("an end") {
            Output::Http(HttpOutput::Head(head)) => status = head.status.as_u16(),
            Output::Http(HttpOutput::Unsent(failure)) => return Err(failure),
            Output::Bytes(piece) => body.extend_from_slice(&piece),
            Output::Progress { .. } | Output::Event(_) | Output::Http(_) => {}
            Output::Done(end) => {
                end?;
                return Ok((status, String::from_utf8(body).unwrap()));
            }
        }
    }
}

async fn about(instance: &Arc<dyn InstanceHandle>) -> Value {
    serde_json::from_str(&ask(instance, "/about").await.unwrap().1).unwrap()
}

#[tokio::test]
async fn an_engine_is_told_what_it_needs_serves_and_ends_with_all_it_started() {
    let mut engine = Engine::new();
    let mut options = engine.options("--device {device} --memory {memory} --leak");
    options["env"] = json!({"MINE": "on {port}"});
    options["prefix"] = json!("/echo");
    options["working_dir"] = json!("/");
    let instance = engine.bench.loaded("vllm", options).await;
    let (status, head) = ask(&instance, "").await.unwrap();
    assert_eq!((status, head.split(' ').nth(1)), (201, Some("/echo")), "{head}");
    instance.health().await.unwrap();
    assert!(engine.bench.log.tail().iter().any(|line| line.contains("the stand-in listens on")), "its log");
    assert!(engine.processes().len() >= 2, "what it leaks");
    instance.stop(STOP_GRACE).await;
    assert_eq!(engine.bench.exit().await, ExitReason::Asked);
    engine.nothing_is_left().await;

    let instance = engine.loaded("{memory} {device}").await;
    let about = about(&instance).await;
    let words: Vec<&str> = about["arguments"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(words[1], about["env"]["PORT"].as_str().unwrap());
    assert_eq!(&words[3..], ["1073741824", "cpu"]);
}

#[tokio::test]
async fn what_goes_wrong_at_the_start_is_one_sentence_and_leaves_nothing() {
    let engine = Engine::new();
    let other = engine.bench.loaded("aihost/echo", json!({})).await;
    for (arguments, deadline, words) in [
        (
            "--exit 3",
            LOAD_DEADLINE,
            "the engine exited with code 3 before it was ready; it said last: the stand-in exits with 3",
        ),
        ("--exit 0", LOAD_DEADLINE, "the engine exited with code 0 before it was ready"),
        ("--die 9", LOAD_DEADLINE, "the engine was ended by signal 9 before it was ready"),
        ("--die 11", LOAD_DEADLINE, "the engine was ended by signal 11 before it was ready"),
        ("--chatty 60 --exit 4", LOAD_DEADLINE, "line 59 of a start that goes wrong | the stand-in exits with 4"),
        ("--endless-headers", LOAD_DEADLINE, "the engine's /health is no HTTP: the head of its answer is longer than"),
        ("--endless-lines", LOAD_DEADLINE, "the engine's /health is no HTTP"),
        ("--never-healthy --leak", SHORT_DEADLINE, "its /health answers 503; raise `startup_time`"),
        ("--silent --ignore-term", SILENT_DEADLINE, "its /health does not answer: no answer in 2 s; raise"),
        ("--deaf", SHORT_DEADLINE, "its /health does not answer: Connection refused"),
        ("--elsewhere", SHORT_DEADLINE, "its /health does not answer: Connection refused"),
    ] {
        let failure = engine.refused(engine.options(arguments), deadline).await;
        assert!(failure.message.contains(words), "{arguments}: {failure}");
        let is_given_up = failure.message.contains("did not finish its load: no progress for");
        assert_eq!(is_given_up, deadline < LOAD_DEADLINE, "{arguments}: {failure}");
        // Nobody else is harmed.
        assert_eq!(bench::collect(bench::ask(&other, 1, "still here", None)).await.0, "still here", "{arguments}");
    }
}

#[tokio::test]
async fn what_cannot_be_started_is_one_sentence() {
    let engine = Engine::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let mut at_held = engine.options("");
    at_held["port"] = json!(port);
    let own = format!("(process {})", std::process::id());
    let plain = tempfile::NamedTempFile::new().unwrap();
    for (options, words) in [
        (json!({"command": "no-such-program --port {port}"}), "there is no program `no-such-program`"),
        (json!({"command": [plain.path()]}), "is not executable"),
        (json!({"command": ["sh", "{model_path}"]}), "the model has no file `model`"),
        (at_held.clone(), format!("port {port} is held").as_str()),
    ] {
        let failure = engine.refused(options, LOAD_DEADLINE).await;
        assert!(failure.message.contains(words), "{failure}");
    }
    // Who holds it can be told of processes that have no more privileges than a worker.
    let failure = engine.refused(at_held, LOAD_DEADLINE).await;
    assert!(failure.message.contains(&own) || !failure.message.contains("held by"), "{failure}");
}

#[tokio::test]
async fn a_port_that_somebody_else_answers_is_not_taken_for_the_engines() {
    let engine = Engine::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut options = engine.options("--elsewhere");
    options["port"] = json!(port);
    let instance = engine.start(options).await;
    let loading = instance.load(1 << 30, LOAD_DEADLINE);
    engine.running().await;
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _asked = client.read(&mut [0; 1024]);
            let _answered = client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let failure = loading.await.unwrap_err();
    assert!(failure.message.contains(&format!("port {port} is answered by")), "{failure}");
    assert!(failure.message.contains("which is not the engine"), "{failure}");
    engine.nothing_is_left().await;
}

#[tokio::test]
async fn an_engine_that_ends_takes_its_worker_with_it_in_the_same_way() {
    for (target, wanted) in [
        ("/exit?code=3", ExitReason::Exited(3)),
        ("/exit?code=0", ExitReason::Exited(0)),
        // The code by which a worker says that it lost its host.
        ("/exit?code=86", ExitReason::Exited(1)),
        ("/die?signal=6", ExitReason::Aborted),
        ("/die?signal=11", ExitReason::Crashed(11)),
        ("/die?signal=9", ExitReason::Killed(9)),
        ("/die?signal=15", ExitReason::Killed(15)),
    ] {
        let mut engine = Engine::new();
        let instance = engine.loaded("--leak").await;
        // It may be gone before it has answered.
        let _answer = ask(&instance, target).await.is_ok();
        assert_eq!(engine.bench.exit().await, wanted, "{target}");
        assert!(
            engine.bench.log.tail().iter().any(|line| line.contains("unasked, and its worker with it")),
            "{target}"
        );
        engine.nothing_is_left().await;
        engine.bench.no_more_exits().await;
    }
}

#[tokio::test]
async fn an_engine_that_forks_away_is_still_its_own() {
    let mut engine = Engine::new();
    let instance = engine.loaded("--daemonise").await;
    let pid = about(&instance).await["pid"].as_i64().unwrap();
    assert_eq!(engine.processes().len(), 1, "only the last of three is left");
    instance.stop(STOP_GRACE).await;
    assert_eq!(engine.bench.exit().await, ExitReason::Asked);
    engine.nothing_is_left().await;
    assert!(!aihost_tests::server::alive(pid));

    let instance = engine.loaded("--daemonise").await;
    let pid = about(&instance).await["pid"].as_i64().unwrap();
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    assert_eq!(engine.bench.exit().await, ExitReason::Killed(9));
    engine.nothing_is_left().await;
}

#[tokio::test]
async fn what_ignores_sigterm_is_killed_after_its_grace() {
    let mut engine = Engine::new();
    let instance = engine.loaded("--ignore-term --leak --leak-bare").await;
    instance.stop(STOP_GRACE).await;
    assert_eq!(engine.bench.exit().await, ExitReason::Asked);
    engine.nothing_is_left().await;
}

#[tokio::test]
async fn an_engine_killed_while_it_starts_or_stops_is_noticed_at_once() {
    let mut engine = Engine::new();
    let instance = engine.start(engine.options("--never-healthy")).await;
    let loading = instance.load(1 << 30, PATIENCE);
    kill_process(engine.running().await, Signal::KILL).unwrap();
    let failure = loading.await.unwrap_err();
    assert!(failure.message.contains("the engine was ended by signal 9"), "{failure}");
    instance.stop(STOP_GRACE).await;
    assert_eq!(engine.bench.exit().await, ExitReason::Asked);

    let mut options = engine.options("--ignore-term");
    options["stop_timeout"] = json!(25);
    let instance = engine.bench.loaded("vllm", options).await;
    let pid = engine.running().await;
    let stopping = tokio::spawn(instance.stop(STOP_GRACE));
    kill_process(pid, Signal::KILL).unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(20), stopping).await;
    stopped.expect("it waits for who is gone").unwrap();
    engine.nothing_is_left().await;
}

#[tokio::test]
async fn a_load_that_is_given_up_ends_its_engine() {
    let mut engine = Engine::new();
    let instance = engine.start(engine.options("--never-healthy")).await;
    let loading = tokio::spawn(instance.load(1 << 30, PATIENCE));
    engine.running().await;
    instance.stop(STOP_GRACE).await;
    assert!(loading.await.unwrap().is_err());
    assert_eq!(engine.bench.exit().await, ExitReason::Asked);
    engine.nothing_is_left().await;
}

/// A child in a session of its own and without an environment has nothing by which anyone outside would know it.
#[tokio::test]
async fn nothing_outlives_a_worker_that_is_killed() {
    let mut engine = Engine::new();
    let instance = engine.loaded("--bare --leak --leak-bare").await;
    let pid = Pid::from_raw(instance.pid().unwrap().cast_signed()).unwrap();
    wait_for("a guard of its own", || guard_of(pid)).await;
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(engine.bench.exit().await, ExitReason::Killed(9));
    engine.nothing_is_left().await;
}

/// The shell beside a worker that kills what it was told of.
fn guard_of(worker: Pid) -> Option<PathBuf> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let is_guard = |folder: &PathBuf| {
        let line = std::fs::read(folder.join("cmdline")).unwrap_or_default();
        let stat = std::fs::read_to_string(folder.join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<i32>().ok());
        String::from_utf8_lossy(&line).contains("while read -r line") && parent == Some(worker.as_raw_pid())
    };
    entries.map(|entry| entry.path()).find(is_guard)
}

#[tokio::test]
async fn health_is_the_engines_own() {
    let engine = Engine::new();
    let instance = engine.loaded("--else-500").await;
    assert_eq!(ask(&instance, "/v1/anything").await.unwrap(), (500, "dead".to_owned()));
    instance.health().await.unwrap();
    let hung = engine.loaded("--else-hang").await;
    let asked = tokio::time::timeout(Duration::from_millis(300), ask(&hung, "/v1/anything")).await;
    assert!(asked.is_err(), "what hangs answered");
    hung.health().await.unwrap();
}
