//! `/metrics`: what it says is what happened, and asking changes nothing.

use aihost_tests::server::{Server, Setup, chat};
use aihost_tests::{Gate, eventually};
use serde_json::json;

async fn scrape(server: &Server) -> String {
    let (status, body) = server.get("/metrics").await;
    assert_eq!(status, 200);
    body.as_str().map(str::to_owned).unwrap_or_default()
}

/// The value of a series, or of several together: 0 if there is none.
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let is_meant = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')) && labels.iter().all(|l| line.contains(l))
    };
    text.lines().filter(is_meant).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Waits until a series has this value: what follows a reply (an exit, the end of a lease) is counted a moment later.
async fn until(server: &Server, name: &str, labels: &[&str], wanted: f64) -> String {
    eventually(async || {
        let text = scrape(server).await;
        let now = value(&text, name, labels);
        if now == wanted { Ok(text) } else { Err(format!("{name} {labels:?} is {now}, not {wanted}:\n{text}")) }
    })
    .await
}

fn echo(options: &str) -> String {
    format!("type: text\n    plugin: aihost/echo\n    park: false\n    {options}\n")
}

fn start(yaml: String) -> Server {
    Server::start(&Setup { yaml, plugins: vec!["echo", "faulty"], ..Setup::default() })
}

#[tokio::test]
async fn swaps_and_requests_are_counted_as_they_happen() {
    let model = echo("options: {memory: 600000000}");
    let server = start(format!("devices: [{{id: cpu, memory: 1GiB}}]\nmodels:\n  a:\n    {model}  b:\n    {model}"));
    for model in ["a", "b", "a"] {
        assert_eq!(server.chat(model, "one two three").await.0, 200);
    }
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    let text = until(&server, "aihost_worker_exits_total", &["reason=\"asked\""], 3.0).await;
    for (name, labels, wanted) in [
        ("aihost_requests_total", ["model=\"a\"", "outcome=\"ok\""], 2.0),
        ("aihost_requests_total", ["model=\"b\"", "outcome=\"ok\""], 1.0),
        ("aihost_tokens_total", ["model=\"a\"", "direction=\"out\""], 6.0),
        ("aihost_tokens_total", ["model=\"b\"", "direction=\"in\""], 3.0),
        ("aihost_swaps_total", ["model=\"a\"", "kind=\"cold_load\""], 2.0),
        ("aihost_swaps_total", ["model=\"a\"", "kind=\"stop\""], 2.0),
        ("aihost_swaps_total", ["model=\"b\"", "kind=\"stop\""], 1.0),
        ("aihost_evictions_total", ["model=\"a\"", "reason=\"memory\""], 1.0),
        ("aihost_evictions_total", ["model=\"a\"", "reason=\"asked\""], 1.0),
        ("aihost_evictions_total", ["model=\"b\"", "reason=\"memory\""], 1.0),
        ("aihost_evictions_total", ["", "reason=\"idle\""], 0.0),
        ("aihost_swap_phase_seconds_count", ["model=\"a\"", "phase=\"start\""], 2.0),
        ("aihost_swap_phase_seconds_count", ["model=\"a\"", "phase=\"memory\""], 1.0),
        ("aihost_swap_phase_seconds_count", ["model=\"a\"", "phase=\"load\""], 2.0),
        ("aihost_swap_phase_seconds_count", ["model=\"a\"", "phase=\"stop\""], 2.0),
        ("aihost_request_queue_seconds_count", ["model=\"a\"", ""], 2.0),
        ("aihost_request_first_output_seconds_count", ["model=\"a\"", ""], 2.0),
        ("aihost_request_duration_seconds_count", ["model=\"a\"", ""], 2.0),
        ("aihost_device_budget_bytes", ["device=\"cpu\"", ""], 1_073_741_824.0),
        ("aihost_memory_reserved_bytes", ["", ""], 0.0),
        ("aihost_requests_lost_total", ["", ""], 0.0),
        ("aihost_load_failures_total", ["", ""], 0.0),
    ] {
        assert_eq!(value(&text, name, &labels), wanted, "{name} {labels:?}\n{text}");
    }
}

#[tokio::test]
async fn parks_and_wakes_are_told_from_loads() {
    let model = "type: text\n    plugin: aihost/echo\n    options: {memory: 600000000}\n";
    let server = start(format!("devices: [{{id: cpu, memory: 1GiB}}]\nmodels:\n  a:\n    {model}  b:\n    {model}"));
    for model in ["a", "b", "a"] {
        assert_eq!(server.chat(model, "one two three").await.0, 200);
    }
    let text = scrape(&server).await;
    for (name, labels, wanted) in [
        ("aihost_swaps_total", ["model=\"a\"", "kind=\"cold_load\""], 1.0),
        ("aihost_swaps_total", ["model=\"a\"", "kind=\"park\""], 1.0),
        ("aihost_swaps_total", ["model=\"a\"", "kind=\"wake\""], 1.0),
        ("aihost_swaps_total", ["model=\"b\"", "kind=\"park\""], 1.0),
        ("aihost_evictions_total", ["model=\"a\"", "reason=\"memory\""], 1.0),
        ("aihost_swap_phase_seconds_count", ["model=\"a\"", "phase=\"unpark\""], 1.0),
        ("aihost_swap_phase_seconds_count", ["model=\"b\"", "phase=\"park\""], 1.0),
        ("aihost_instances", ["model=\"b\"", "state=\"parked\""], 1.0),
    ] {
        assert_eq!(value(&text, name, &labels), wanted, "{name} {labels:?}\n{text}");
    }
    assert!(value(&text, "aihost_memory_measured_bytes", &["device=\"cpu\""]) > 0.0, "{text}");
}

#[tokio::test]
async fn gauges_show_what_is_now() {
    let model = echo("options: {memory: 1000, latency_ms: 20, tokens: 100000}");
    let server = start(format!("devices: [{{id: cpu, memory: 1GiB}}]\nmodels:\n  a:\n    {model}"));
    let mut response = server.stream(&chat("a", "word")).await;
    assert!(response.chunk().await.is_ok_and(|chunk| chunk.is_some()));
    let text = scrape(&server).await;
    for (name, labels, wanted) in [
        ("aihost_leases", "model=\"a\"", 1.0),
        ("aihost_queue_length", "model=\"a\"", 0.0),
        ("aihost_instances", "state=\"hot\"", 1.0),
        ("aihost_memory_planned_bytes", "device=\"cpu\"", 1000.0),
        ("aihost_memory_reserved_bytes", "device=\"cpu\"", 1000.0),
    ] {
        assert_eq!(value(&text, name, &[labels]), wanted, "{name}\n{text}");
    }
    drop(response);
    let text = until(&server, "aihost_requests_total", &["outcome=\"cancelled\""], 1.0).await;
    assert_eq!(value(&text, "aihost_requests_total", &["outcome=\"ok\""]), 0.0);
    until(&server, "aihost_leases", &["model=\"a\""], 0.0).await;
}

#[tokio::test]
async fn a_scrape_neither_loads_nor_keeps_a_model() {
    let idle = echo("keep_alive: 300ms");
    let server = start(format!("models:\n  used:\n    {idle}  never:\n    {idle}"));
    assert_eq!(server.chat("used", "hi").await.0, 200);
    // Scraped far more often than keep_alive lasts, all the while.
    let text = until(&server, "aihost_evictions_total", &["model=\"used\"", "reason=\"idle\""], 1.0).await;
    assert_eq!(value(&text, "aihost_swaps_total", &["kind=\"cold_load\""]), 1.0, "{text}");
    for _ in 0..20 {
        scrape(&server).await;
    }
    until(&server, "aihost_instances", &[""], 0.0).await;
    assert_eq!(server.status("used", "loads").await, 1);
    assert_eq!(server.status("never", "loads").await, 0);
    assert_eq!(server.status("never", "state").await, "cold");
}

#[tokio::test]
async fn dead_workers_replays_and_losses_are_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let once = folder.path().join("once");
    let faulty = |options: String| format!("type: text\n    plugin: aihost/faulty\n    options: {options}\n");
    let heals = faulty(format!("{{fault: segfault, once_file: {}}}", once.display()));
    let gate = Gate::closed();
    let cuts = faulty(format!("{{fault: abort, after_tokens: 2, gate: {}}}", gate.path().display()));
    let fails = faulty("{fault: load_error}".into());
    let server = start(format!("models:\n  heals:\n    {heals}  cuts:\n    {cuts}  fails:\n    {fails}"));
    assert_eq!(server.chat("heals", "x").await.0, 200);
    let mut stream = server.stream(&chat("cuts", "x")).await;
    assert!(stream.chunk().await.is_ok_and(|begin| begin.is_some()));
    gate.open();
    let body = stream.text().await.expect("a body");
    assert!(body.contains("error"), "{body}");
    assert_eq!(server.chat("fails", "x").await.0, 500);
    let text = until(&server, "aihost_worker_exits_total", &["reason=\"aborted\""], 1.0).await;
    for (name, labels, wanted) in [
        ("aihost_worker_exits_total", ["model=\"heals\"", "reason=\"crashed\""], 1.0),
        ("aihost_replays_total", ["model=\"heals\"", ""], 1.0),
        ("aihost_requests_total", ["model=\"heals\"", ""], 1.0),
        ("aihost_requests_total", ["model=\"heals\"", "outcome=\"ok\""], 1.0),
        ("aihost_requests_lost_total", ["model=\"heals\"", ""], 0.0),
        ("aihost_requests_total", ["model=\"cuts\"", "outcome=\"worker_died\""], 1.0),
        ("aihost_requests_lost_total", ["model=\"cuts\"", ""], 1.0),
        ("aihost_load_failures_total", ["model=\"fails\"", ""], 1.0),
        ("aihost_requests_lost_total", ["model=\"fails\"", ""], 0.0),
    ] {
        assert_eq!(value(&text, name, &labels), wanted, "{name} {labels:?}\n{text}");
    }
}

#[tokio::test]
async fn series_end_with_their_model_and_changed_ones_count_as_reloads() {
    let model = echo("options: {}");
    let server = start(format!("models:\n  a:\n    {model}  b:\n    {model}"));
    for model in ["a", "b"] {
        assert_eq!(server.chat(model, "hi").await.0, 200);
    }
    assert_eq!(server.chat("nobody", "hi").await.0, 404);
    let text = scrape(&server).await;
    assert!(text.contains("\"a\"") && !text.contains("nobody"), "{text}");
    let file = server.folder().join("models.yaml");
    let before = std::fs::read_to_string(&file).expect("models.yaml");
    let (kept, _) = before.split_once("  a:\n").expect("its models");
    let new = format!("{kept}  b:\n    {}", echo("options: {tokens: 2}"));
    std::fs::write(file.with_extension("new"), new)
        .and_then(|()| std::fs::rename(file.with_extension("new"), &file))
        .expect("rewritten");
    until(&server, "aihost_evictions_total", &["model=\"b\"", "reason=\"reload\""], 1.0).await;
    // Anew: that scrape may have begun before the change, and then has states from before it and counts from after it.
    let text = scrape(&server).await;
    assert!(!text.contains("\"a\""), "{text}");
}

#[tokio::test]
async fn the_host_itself_is_told_and_its_models_by_state() {
    let model = echo("options: {}");
    let broken = "type: text\n    plugin: aihost/echo\n    options: {memory: 9000000000000000}\n";
    let server = start(format!("models:\n  a:\n    {model}  b:\n    {model}  c:\n    {broken}"));
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert_ne!(server.chat("c", "hi").await.0, 200);
    assert_eq!(server.get("/nowhere").await.0, 404);
    let text = until(&server, "aihost_models", &["state=\"failed\""], 1.0).await;
    for (name, labels, wanted) in [
        ("aihost_models", ["state=\"hot\""], 1.0),
        ("aihost_models", ["state=\"cold\""], 1.0),
        ("aihost_models", ["state=\"quarantined\""], 0.0),
        ("aihost_models", [""], 3.0),
        ("aihost_build_info", [concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")], 1.0),
        ("aihost_http_refusals_total", ["status=\"404\""], 1.0),
        ("aihost_http_refusals_total", ["status=\"401\""], 0.0),
    ] {
        assert_eq!(value(&text, name, &labels), wanted, "{name} {labels:?}\n{text}");
    }
    let alone = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name} in\n{text}"))
    };
    assert!(alone("aihost_http_connections") >= 1.0);
    for name in ["resident_memory_bytes", "cpu_seconds_total", "open_fds", "max_fds", "start_time_seconds", "threads"] {
        assert!(alone(&format!("process_{name}")) > 0.0, "{name}");
    }
    // In seconds since 1970, and no longer ago than this product is old.
    assert!(alone("process_start_time_seconds") > 1.7e9, "{text}");
}
