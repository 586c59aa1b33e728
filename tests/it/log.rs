//! Whatever stderr is, the host serves: a log that cannot be written costs its lines and nothing else.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use aihost_tests::server::{Server, Setup, text};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A page: the least a pipe can hold. A host fills it within a few loads.
const PIPE_BYTES: usize = 4096;
/// Loads and unloads of one test; each says a few lines.
const ROUNDS: usize = 30;

fn setup() -> Setup {
    let yaml = "limits: {drain_timeout: 5s}\nmodels:\n  a: {type: text, plugin: aihost/echo}\n  b: {type: text, plugin: aihost/echo}\n";
    Setup { yaml: yaml.into(), plugins: vec!["echo"], ..Setup::default() }
}

/// A pipe of one page: who reads, and the stderr of a server.
fn pipe(flags: OFlags) -> (File, Stdio) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    fcntl_setpipe_size(&writer, PIPE_BYTES).expect("a small pipe");
    fcntl_setfl(&writer, flags).expect("a flag is set");
    (File::from(reader), Stdio::from(writer))
}

/// Everything that logs: loads, unloads, the death of a worker, a reload. Then the end.
async fn serves_to_the_end(server: &mut Server) {
    for round in 0..ROUNDS {
        let b = json!({"model": "b"});
        for path in ["/models/load", "/models/unload"] {
            assert_eq!(server.post(path, &b).await.0, 200, "{path}, round {round}");
        }
    }
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let worker = server.status("a", "pid").await.as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    kill_process(worker.expect("a worker"), Signal::KILL).expect("it lived");
    server.until("a", "pid", Value::Null).await;
    let (status, answer) = server.chat("a", "still there").await;
    assert_eq!((status, text(&answer)), (200, "still there"), "{answer}");
    let file = server.folder().join("models.yaml");
    let yaml = std::fs::read_to_string(&file).expect("models.yaml");
    std::fs::write(&file, yaml.replace("  b: {", "  c: {")).expect("rewritten");
    server.until("c", "state", json!("cold")).await;
    for probe in ["/livez", "/health", "/readyz", "/ping", "/metrics"] {
        assert_eq!(server.get(probe).await.0, 200, "{probe}");
    }
    server.signal(Signal::TERM);
    assert!(server.wait().success());
}

/// Lines that the host says it lost.
async fn lost(server: &Server) -> u64 {
    let (_, metrics) = server.get("/metrics").await;
    let line = metrics
        .as_str()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("aihost_log_lines_lost_total ")));
    line.and_then(|count| count.parse().ok()).expect("the count of lost lines")
}

#[tokio::test]
async fn a_full_disk_costs_lines() {
    let full = File::options().write(true).open("/dev/full").expect("a full device");
    let mut server = Server::start_unheard(&setup(), full.into());
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert!(lost(&server).await > 0);
    serves_to_the_end(&mut server).await;
}

#[tokio::test]
async fn a_reader_that_left_costs_lines() {
    let (reader, stderr) = pipe(OFlags::empty());
    let mut server = Server::start_unheard(&setup(), stderr);
    drop(reader);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert!(lost(&server).await > 0);
    serves_to_the_end(&mut server).await;
}

#[tokio::test]
async fn a_pipe_that_does_not_block_and_that_nobody_reads_costs_nothing_else() {
    let (_reader, stderr) = pipe(OFlags::NONBLOCK);
    serves_to_the_end(&mut Server::start_unheard(&setup(), stderr)).await;
}

#[tokio::test]
async fn a_pipe_that_blocks_and_that_nobody_reads_costs_nothing_else() {
    let (_reader, stderr) = pipe(OFlags::empty());
    serves_to_the_end(&mut Server::start_unheard(&setup(), stderr)).await;
}

#[tokio::test]
async fn whoever_reads_late_reads_it_all_and_in_order() {
    for flags in [OFlags::empty(), OFlags::NONBLOCK] {
        let (reader, stderr) = pipe(flags);
        let mut server = Server::start_unheard(&setup(), stderr);
        for n in 0..ROUNDS {
            assert_eq!(server.chat("a", &format!("word {n}")).await.0, 200);
            assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
        }
        assert_eq!(lost(&server).await, 0, "all of it waits");
        let lines =
            std::thread::spawn(move || BufReader::new(reader).lines().map_while(Result::ok).collect::<Vec<_>>());
        server.signal(Signal::TERM);
        assert!(server.wait().success());
        let lines = lines.join().expect("the reader ends with the pipe");
        let at = |what: &str| {
            lines.iter().enumerate().filter(|(_, line)| line.contains(what)).map(|(at, _)| at).collect::<Vec<_>>()
        };
        let (listening, loaded, stopping) = (at("listening on http://"), at(" loaded"), at("stopping: "));
        assert_eq!((listening.len(), loaded.len(), stopping.len()), (1, ROUNDS, 1), "{}", lines.join("\n"));
        assert!(listening[0] < loaded[0] && loaded[ROUNDS - 1] < stopping[0]);
    }
}

#[tokio::test]
async fn a_command_whose_reader_hangs_heeds_its_first_interrupt() {
    let yaml = "models:\n  a: {type: text, plugin: aihost/echo, options: {tokens: 1000000}}\n";
    let server = Server::start(&Setup { yaml: yaml.into(), plugins: vec!["echo"], ..Setup::default() });
    let (_reader, stdout) = pipe(OFlags::empty());
    let mut command = std::process::Command::new(aihost_tests::binary());
    command
        .args(["run", "a", "word", "--url", server.base()])
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("aihost runs");
    let pid = i32::try_from(child.id()).expect("a pid");
    // It sleeps in the kernel's write to the pipe.
    let waits = || std::fs::read_to_string(format!("/proc/{pid}/wchan")).ok().filter(|place| place.contains("pipe"));
    aihost_tests::wait_for("a full pipe", waits).await;
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::INT).expect("it lives");
    let status = aihost_tests::wait_for("its end", || child.try_wait().expect("waiting works")).await;
    assert!(!status.success());
}

#[tokio::test]
async fn a_command_whose_reader_left_says_nothing_and_does_not_panic() {
    let (folder, config) = aihost_tests::server::prepare(&setup());
    for arguments in [&["check"][..], &["models", "list"], &["plugins", "list"], &["check", "--schema"]] {
        let (reader, stdout) = pipe(OFlags::empty());
        drop(reader);
        let mut command = std::process::Command::new(aihost_tests::binary());
        command.args(arguments).arg("--config").arg(&config).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        let output = command.output().expect("aihost runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        assert_ne!(output.status.code(), Some(101), "{arguments:?}");
    }
    drop(folder);
}
