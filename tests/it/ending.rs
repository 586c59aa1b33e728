//! The end of a host, however it comes: bounded, and nothing lives on.

use aihost_tests::server::{DRAINS, Server, Setup, alive, chat, client};
use aihost_tests::{Gate, PATIENCE, eventually, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::time::timeout;

/// Longer than any test waits: a host that ends all the same did not wait for its drain to be over.
const NO_END: &str = "limits: {drain_timeout: 1h}\n";
/// Answers nobody hears the end of.
const ENDLESS: &str = "{latency_ms: 20, tokens: 1000000}";

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

/// Ends it with SIGTERM.
fn terminate(server: &mut Server) {
    server.signal(Signal::TERM);
    assert!(server.wait().success());
}

#[tokio::test]
async fn an_idle_host_ends_though_clients_hold_connections() {
    let mut server = server("{}", NO_END);
    let client = client();
    // Kept alive by the client's pool, and one that has sent half a request.
    assert!(client.get(format!("{}/health", server.base())).send().await.unwrap().status().is_success());
    let mut half = std::net::TcpStream::connect(server.base().trim_start_matches("http://")).unwrap();
    std::io::Write::write_all(&mut half, b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-le")
        .unwrap();
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let worker = worker(&server, "a").await;
    terminate(&mut server);
    assert!(!alive(worker));
}

#[tokio::test]
async fn a_host_that_loads_ends_and_says_so_to_the_waiter() {
    let mut server = server("{}", NO_END);
    let base = server.base().to_owned();
    let waiting = tokio::spawn(async move {
        let client = client();
        let answer = client.post(format!("{base}/v1/chat/completions")).json(&chat("b", "hi")).send().await;
        answer.expect("an answer").status().as_u16()
    });
    server.until("b", "state", json!("loading")).await;
    let worker = worker(&server, "b").await;
    terminate(&mut server);
    assert_eq!(waiting.await.unwrap(), 503);
    assert!(!alive(worker));
}

#[tokio::test]
async fn a_host_whose_worker_heeds_nothing_ends() {
    for fault in ["hang_plan", "hang_load", "hang_generate", "hang_park", "hang_unpark"] {
        let yaml =
            format!("models:\n  bad:\n    type: text\n    plugin: aihost/faulty\n    options: {{fault: {fault}}}\n");
        let yaml = format!("{NO_END}{yaml}");
        let mut server = Server::start(&Setup { yaml, plugins: vec!["faulty"], ..Setup::default() });
        let (base, client) = (server.base().to_owned(), client());
        let ask =
            |path: &str, body: serde_json::Value| tokio::spawn(client.post(format!("{base}{path}")).json(&body).send());
        let bad = json!({"model": "bad"});
        let state = match fault {
            "hang_plan" => "starting",
            "hang_load" => "loading",
            "hang_park" => "parking",
            "hang_unpark" => "unparking",
            _ => "hot",
        };
        if fault.ends_with("park") {
            assert_eq!(server.post("/models/load", &bad).await.0, 200);
        }
        if fault == "hang_unpark" {
            assert_eq!(server.post("/models/park", &bad).await.0, 200);
        }
        let path = if fault == "hang_park" { "/models/park" } else { "/v1/chat/completions" };
        let asked = ask(path, if fault == "hang_park" { bad } else { chat("bad", "hi") });
        server.until("bad", "state", json!(state)).await;
        if fault == "hang_generate" {
            server.until("bad", "active", json!(1)).await;
        }
        let worker = server.status("bad", "pid").await.as_i64();
        // Its client is gone: there is nothing to wait for but the worker.
        asked.abort();
        assert!(asked.await.is_err());
        terminate(&mut server);
        wait_for("the end of its worker", || (!worker.is_some_and(alive)).then_some(())).await;
    }
}

#[tokio::test]
async fn a_host_that_unloads_ends() {
    let gate = Gate::closed();
    let mut server = server(&format!("{{tokens: 100, answer_gate: {}}}", gate.path().display()), NO_END);
    let mut stream = server.stream(&chat("a", "word")).await;
    let worker = worker(&server, "a").await;
    let (base, client) = (server.base().to_owned(), client());
    let unload = client.post(format!("{base}/models/unload")).json(&json!({"model": "a"})).send();
    let unload = tokio::spawn(unload);
    server.until("a", "state", json!("draining")).await;
    server.signal(Signal::TERM);
    server.logged(DRAINS).await;
    gate.open();
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
    let mut server = server(ENDLESS, "limits: {drain_timeout: 1s}\n");
    let stream = server.stream(&chat("a", "word")).await;
    let worker = worker(&server, "a").await;
    server.signal(Signal::TERM);
    let body = timeout(PATIENCE, stream.text()).await.expect("an end").expect("the stream is framed to its end");
    assert!(body.ends_with("data: [DONE]\n\n") && body.contains("\"error\""), "{body}");
    assert!(server.wait().success());
    assert!(!alive(worker));
}

#[tokio::test]
async fn a_host_that_drains_says_for_what_it_waits() {
    let mut server = server(ENDLESS, NO_END);
    let _stream = server.stream(&chat("a", "word")).await;
    server.signal(Signal::TERM);
    let log = server.logged("waiting for").await;
    assert!(log.contains("waiting for a request of a; what runs in 35"), "{log}");
    server.signal(Signal::TERM);
    assert!(!server.wait().success());
}

#[tokio::test]
async fn a_second_sigterm_cuts() {
    let mut server = server(ENDLESS, NO_END);
    let mut stream = server.stream(&chat("a", "word")).await;
    let worker = worker(&server, "a").await;
    server.signal(Signal::TERM);
    server.logged(DRAINS).await;
    assert!(stream.chunk().await.expect("it drains").is_some());
    server.signal(Signal::TERM);
    assert!(!server.wait().success());
    gone(&[worker]).await;
}

#[tokio::test]
async fn nothing_outlives_a_killed_host() {
    let mut server = server(ENDLESS, "devices: [{id: cpu, memory: 1GiB}]\n");
    // One that streams, one that hangs and heeds nothing, one that loads.
    let _stream = server.stream(&chat("a", "word")).await;
    let (base, client) = (server.base().to_owned(), client());
    let asked = ["b", "c"]
        .map(|model| tokio::spawn(client.post(format!("{base}/v1/chat/completions")).json(&chat(model, "hi")).send()));
    server.until("c", "active", json!(1)).await;
    server.until("b", "state", json!("loading")).await;
    let mut workers = Vec::new();
    for model in ["a", "b", "c"] {
        workers.push(worker(&server, model).await);
    }
    server.signal(Signal::KILL);
    server.wait();
    gone(&workers).await;
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
        let pid: i64 = wait_for("a free process", read).await.trim().parse().unwrap();
        assert!(alive(pid));
        free.push(pid);
    }
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    gone(&free[..1]).await;
    assert!(alive(free[1]), "another worker's");
    server.signal(Signal::KILL);
    server.wait();
    gone(&free[1..]).await;
}

/// A host with a loaded model whose plugin has set a process free, that process, and the host's guard.
async fn with_a_free_process(name: &str, folder: &std::path::Path) -> (Server, i64, Pid) {
    let file = folder.join(name).display().to_string();
    let child = format!("exec setsid -f sh -c 'echo $$ > {file}.new; mv {file}.new {file}; exec sleep 1000'");
    let yaml =
        format!("models:\n  a:\n    type: text\n    plugin: aihost/faulty\n    options: {{child: \"{child}\"}}\n");
    let server = Server::start(&Setup { yaml, plugins: vec!["faulty"], ..Setup::default() });
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let free = wait_for("a free process", || std::fs::read_to_string(folder.join(name)).ok()).await;
    let guard = guard_of(&server);
    (server, free.trim().parse().unwrap(), guard)
}

fn guard_of(server: &Server) -> Pid {
    let beginning = format!("aihost\0guard\0{}-", server.pid());
    let all =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_guard = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(beginning.as_bytes()))
    };
    Pid::from_raw(all.into_iter().find(is_guard).expect("a guard")).unwrap()
}

#[tokio::test]
async fn a_guard_that_was_stopped_does_its_work_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    for end in ["unload", "term", "kill"] {
        let (mut server, free, guard) = with_a_free_process(end, folder.path()).await;
        kill_process(guard, Signal::STOP).unwrap();
        match end {
            "unload" => assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200),
            "term" => terminate(&mut server),
            _ => {
                server.signal(Signal::KILL);
                server.wait();
            }
        }
        gone(&[free]).await;
        if end != "unload" {
            gone(&[guard.as_raw_pid().into()]).await;
        }
    }
}

#[tokio::test]
async fn for_a_guard_that_was_killed_another_stands_in() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ended, first, guard) = with_a_free_process("ended", folder.path()).await;
    kill_process(guard, Signal::KILL).unwrap();
    terminate(&mut ended);
    gone(&[first]).await;

    let (mut killed, second, guard) = with_a_free_process("killed", folder.path()).await;
    kill_process(guard, Signal::KILL).unwrap();
    killed.signal(Signal::KILL);
    killed.wait();
    // The next host's, whichever comes first.
    let (_next, third, _) = with_a_free_process("next", folder.path()).await;
    gone(&[second]).await;
    assert!(alive(third), "one whose host lives");
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
    let orphan = wait_for("an orphan", || std::fs::read_to_string(folder.path().join("pid")).ok()).await;
    let status = format!("/proc/{}/status", orphan.trim());
    let parent = format!("PPid:\t{}\n", server.pid());
    let adopted = || std::fs::read_to_string(&status).unwrap().contains(&parent).then_some(());
    wait_for("its adoption", adopted).await;
    // Not even a zombie is left.
    wait_for("its end", || (!std::path::Path::new(&status).exists()).then_some(())).await;
    terminate(&mut server);

    let mut server = start();
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let all = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let host: i32 = all.collect::<String>().split_whitespace().next().expect("the host").parse().unwrap();
    kill_process(Pid::from_raw(host).unwrap(), Signal::KILL).unwrap();
    assert_eq!(server.wait().code(), Some(128 + 9));
}

/// They end. How soon is counted by the soak, which has the machine to itself.
async fn gone(processes: &[i64]) {
    eventually(async || {
        let left: Vec<_> = processes.iter().filter(|process| alive(**process)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("alive of {processes:?}: {left:?}")) }
    })
    .await;
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
    let baseline = settled(&descriptors).await;
    for _ in 0..5 {
        round().await;
    }
    eventually(async || match descriptors() {
        end if end <= baseline => Ok(()),
        end => Err(format!("{baseline} descriptors became {end}")),
    })
    .await;
}

/// How often in a row a count must be the same to be taken for settled.
const SAME_COUNTS: u32 = 50;

/// The count once it no longer changes.
async fn settled(count: &impl Fn() -> usize) -> usize {
    let (mut last, mut same) = (count(), 0);
    eventually(async || {
        let now = count();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        if same >= SAME_COUNTS { Ok(now) } else { Err(format!("{now} descriptors, and not for long")) }
    })
    .await
}
