//! The end of a host, however it comes: bounded, and nothing lives on.

use std::time::{Duration, Instant};

use aihost_tests::server::{Server, Setup, alive, chat};
use rustix::process::Signal;
use serde_json::json;

/// An idle host ends within this.
const IDLE_END: Duration = Duration::from_secs(5);
/// Nothing of a killed host lives longer.
const AFTER_KILL: Duration = Duration::from_secs(2);

fn server(options: &str, more: &str) -> Server {
    let entry = |name: &str, plugin: &str, options: &str| {
        format!("  {name}:\n    type: text\n    plugin: {plugin}\n    options: {options}\n")
    };
    let models = [
        entry("a", "aihost/echo", options),
        entry("b", "aihost/echo", "{load_ms: 600000}"),
        entry("c", "aihost/faulty", "{fault: hang_generate}"),
    ];
    let yaml = format!("{more}models:\n{}", models.concat());
    Server::start(&Setup { yaml, plugins: vec!["echo", "faulty"], ..Setup::default() })
}

async fn worker(server: &Server, model: &str) -> i64 {
    server.status(model, "pid").await.as_i64().expect("a worker")
}

/// Ends it with SIGTERM and says how long that took.
fn terminate(server: &mut Server) -> Duration {
    let begun = Instant::now();
    server.signal(Signal::TERM);
    assert!(server.wait().success(), "{}", server.log());
    begun.elapsed()
}

#[tokio::test]
async fn an_idle_host_ends_quickly_though_clients_hold_connections() {
    let mut server = server("{}", "");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    // Kept alive by the client's pool, and one that has sent half a request.
    assert!(client.get(format!("{}/health", server.base())).send().await.unwrap().status().is_success());
    let mut half = std::net::TcpStream::connect(server.base().trim_start_matches("http://")).unwrap();
    std::io::Write::write_all(&mut half, b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-le")
        .unwrap();
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let worker = worker(&server, "a").await;
    let took = terminate(&mut server);
    assert!(took < IDLE_END, "{took:?}");
    assert!(!alive(worker));
}

#[tokio::test]
async fn a_host_that_loads_ends_and_says_so_to_the_waiter() {
    let mut server = server("{}", "");
    let base = server.base().to_owned();
    let waiting = tokio::spawn(async move {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.post(format!("{base}/v1/chat/completions")).json(&chat("b", "hi")).send().await;
        answer.expect("an answer").status().as_u16()
    });
    server.until("b", "state", json!("loading")).await;
    let worker = worker(&server, "b").await;
    let took = terminate(&mut server);
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(waiting.await.unwrap(), 503);
    assert!(!alive(worker));
}

#[tokio::test]
async fn a_host_that_unloads_ends() {
    let mut server = server("{latency_ms: 10, tokens: 100}", "");
    let mut stream = server.stream(&chat("a", "word")).await;
    let worker = worker(&server, "a").await;
    let (base, client) = (server.base().to_owned(), reqwest::Client::builder().no_proxy().build().unwrap());
    let unload = client.post(format!("{base}/models/unload")).json(&json!({"model": "a"})).send();
    let unload = tokio::spawn(unload);
    server.until("a", "state", json!("draining")).await;
    server.signal(Signal::TERM);
    let mut body = Vec::new();
    while let Some(chunk) = stream.chunk().await.expect("the stream ends well") {
        body.extend_from_slice(&chunk);
    }
    assert!(body.ends_with(b"data: [DONE]\n\n") && !String::from_utf8_lossy(&body).contains("\"error\""));
    assert!(unload.await.unwrap().is_ok_and(|answer| answer.status().is_success()));
    assert!(server.wait().success());
    assert!(!alive(worker));
}

#[tokio::test]
async fn the_deadline_cuts_with_a_framed_error() {
    let mut server = server("{latency_ms: 20, tokens: 100000}", "limits: {drain_timeout: 1s}\n");
    let stream = server.stream(&chat("a", "word")).await;
    let worker = worker(&server, "a").await;
    let begun = Instant::now();
    server.signal(Signal::TERM);
    let body = stream.text().await.expect("the stream is framed to its end");
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(body.ends_with("data: [DONE]\n\n") && body.contains("\"error\""), "{body}");
    assert!(server.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(!alive(worker));
}

#[tokio::test]
async fn a_second_sigterm_cuts() {
    let mut server = server("{latency_ms: 20, tokens: 100000}", "limits: {drain_timeout: 600s}\n");
    let mut stream = server.stream(&chat("a", "word")).await;
    let worker = worker(&server, "a").await;
    server.signal(Signal::TERM);
    let mut log = String::new();
    let begun = Instant::now();
    while !log.contains("a second signal stops at once") {
        assert!(begun.elapsed() < aihost_tests::PATIENCE, "nothing was said of the end: {log}");
        log += &server.log();
        assert!(stream.chunk().await.expect("it drains").is_some());
    }
    let begun = Instant::now();
    server.signal(Signal::TERM);
    assert!(!server.wait().success());
    assert!(begun.elapsed() < IDLE_END, "{:?}", begun.elapsed());
    gone_soon(&[worker], begun).await;
}

#[tokio::test]
async fn nothing_outlives_a_killed_host_by_two_seconds() {
    let mut server = server("{latency_ms: 20, tokens: 100000}", "devices: [{id: cpu, memory: 1GiB}]\n");
    // One that streams, one that hangs and heeds nothing, one that loads.
    let _stream = server.stream(&chat("a", "word")).await;
    let (base, client) = (server.base().to_owned(), reqwest::Client::builder().no_proxy().build().unwrap());
    let asked = ["b", "c"]
        .map(|model| tokio::spawn(client.post(format!("{base}/v1/chat/completions")).json(&chat(model, "hi")).send()));
    server.until("c", "active", json!(1)).await;
    server.until("b", "state", json!("loading")).await;
    let mut workers = Vec::new();
    for model in ["a", "b", "c"] {
        workers.push(worker(&server, model).await);
    }
    server.signal(Signal::KILL);
    let begun = Instant::now();
    server.wait();
    gone_soon(&workers, begun).await;
    for request in asked {
        assert!(request.await.unwrap().is_err(), "an answer from a killed host");
    }
}

/// In a session of its own it is in no group and dies with no parent.
#[tokio::test]
async fn what_a_plugin_set_free_ends_with_its_worker_and_with_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let entry = |name: &str| {
        let file = folder.path().join(name).display().to_string();
        let child = format!("exec setsid -f sh -c 'echo $$ > {file}.new; mv {file}.new {file}; exec sleep 1000'");
        format!("  {name}:\n    type: text\n    plugin: aihost/faulty\n    options: {{child: \"{child}\"}}\n")
    };
    let yaml = format!("devices: [{{id: cpu, memory: 1GiB}}]\nmodels:\n{}{}", entry("a"), entry("b"));
    let mut server = Server::start(&Setup { yaml, plugins: vec!["faulty"], ..Setup::default() });
    let mut free = Vec::new();
    for name in ["a", "b"] {
        assert_eq!(server.chat(name, "hi").await.0, 200);
        let read = || std::fs::read_to_string(folder.path().join(name)).ok();
        let pid: i64 = aihost_tests::wait_for("a free process", read).await.trim().parse().unwrap();
        assert!(alive(pid));
        free.push(pid);
    }
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    gone_soon(&free[..1], Instant::now()).await;
    assert!(alive(free[1]), "another worker's");
    server.signal(Signal::KILL);
    let begun = Instant::now();
    server.wait();
    gone_soon(&free[1..], begun).await;
}

#[tokio::test]
async fn the_first_process_of_a_container_adopts_passes_signals_on_and_ends_as_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid").display().to_string();
    let child = format!("exec setsid -f sh -c 'echo $$ > {file}.new; mv {file}.new {file}; exec sleep 2'");
    let yaml =
        format!("models:\n  a:\n    type: text\n    plugin: aihost/faulty\n    options: {{child: \"{child}\"}}\n");
    let start = || {
        let before = Some("set -- reap \"$@\"");
        Server::start(&Setup { yaml: yaml.clone(), plugins: vec!["faulty"], before, ..Setup::default() })
    };
    let mut server = start();
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let orphan = aihost_tests::wait_for("an orphan", || std::fs::read_to_string(folder.path().join("pid")).ok()).await;
    let status = format!("/proc/{}/status", orphan.trim());
    let parent = format!("PPid:\t{}\n", server.pid());
    let adopted = || std::fs::read_to_string(&status).unwrap().contains(&parent).then_some(());
    aihost_tests::wait_for("its adoption", adopted).await;
    // Not even a zombie is left.
    aihost_tests::wait_for("its end", || (!std::path::Path::new(&status).exists()).then_some(())).await;
    terminate(&mut server);

    let mut server = start();
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let all = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let host: i32 = all.collect::<String>().split_whitespace().next().expect("the host").parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(host).unwrap(), Signal::KILL).unwrap();
    assert_eq!(server.wait().code(), Some(128 + 9));
}

/// They end within [`AFTER_KILL`] of `begun`.
async fn gone_soon(workers: &[i64], begun: Instant) {
    while workers.iter().any(|worker| alive(*worker)) {
        assert!(begun.elapsed() < AFTER_KILL, "alive after {AFTER_KILL:?}: {workers:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_requests_opened_is_closed() {
    let server = server("{latency_ms: 1, tokens: 5}", "");
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).map_or(0, Iterator::count);
    let round = async || {
        let bodies: Vec<_> = (0..8).map(|n| chat("a", &n.to_string())).collect();
        let streams = futures_util::future::join_all(bodies.iter().map(|body| server.stream(body))).await;
        // Half of them are read to the end, the others dropped.
        for stream in streams.into_iter().step_by(2) {
            stream.text().await.expect("a stream");
        }
        server.until("a", "active", json!(0)).await;
        assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    };
    round().await;
    let baseline = settled(&descriptors, usize::MAX).await;
    for _ in 0..5 {
        round().await;
    }
    let end = settled(&descriptors, baseline).await;
    assert!(end <= baseline, "{baseline} descriptors became {end}");
}

/// The count once it is at most `goal` and no longer changes, or after [`aihost_tests::PATIENCE`].
async fn settled(count: &impl Fn() -> usize, goal: usize) -> usize {
    let (begun, mut last, mut same) = (Instant::now(), count(), 0);
    while begun.elapsed() < aihost_tests::PATIENCE && (same < 20 || last > goal) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = count();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}
