//! Hot, parked, cold: who parks for whom, that memory really comes back, and what an operator may ask for.

use aihost_tests::server::{Server, Setup, aihost, alive, chat, text};
use aihost_tests::{Gate, model_file};
use serde_json::{Value, json};

/// What a leak must exceed to be one.
const LEAK: u64 = 300 << 20;

fn serve(devices: &str, models: &[(&str, &str)]) -> Server {
    let models: String =
        models.iter().map(|(name, entry)| format!("  {name}: {{type: text, plugin: aihost/{entry}}}\n")).collect();
    let yaml = format!("devices: [{{id: cpu, {devices}}}]\nmodels:\n{models}");
    Server::start(&Setup { yaml, plugins: vec!["echo", "faulty"], ..Setup::default() })
}

/// Two echo models with memory of their own, of which one may be hot.
fn pair() -> Server {
    let echo = "echo, options: {memory: 67108864, allocate: true}";
    serve("memory: 1GiB, max_loaded: 1", &[("a", echo), ("b", echo)])
}

#[tokio::test]
async fn a_swap_parks_one_and_wakes_the_other() {
    let server = pair();
    for model in ["a", "b", "a", "b", "a"] {
        let (status, body) = server.chat(model, "one two three").await;
        assert_eq!((status, text(&body)), (200, "one two three"));
        assert_eq!(body["model"], model);
    }
    for (model, state, wakes) in [("a", "hot", 2), ("b", "parked", 1)] {
        server.until(model, "state", json!(state)).await;
        assert_eq!(
            (server.status(model, "loads").await, server.status(model, "wakes").await),
            (json!(1), json!(wakes))
        );
    }
    let measured = |value: Value| value.as_u64().expect("a live worker is measured");
    assert!(measured(server.status("a", "measured").await) > 60 << 20);
    assert!(measured(server.status("b", "measured").await) < 30 << 20);
}

#[tokio::test]
async fn an_operator_parks_and_looking_wakes_nobody() {
    let server = pair();
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let pid = server.status("a", "pid").await;
    let (code, _, stderr) = aihost(&["models", "park", "a", "--url", server.base()], &[]);
    assert_eq!(code, 0, "{stderr}");
    for path in ["/admin/status", "/models", "/v1/models", "/health", "/admin/plan?model=a", "/logs/a"] {
        assert_eq!(server.get(path).await.0, 200, "{path}");
    }
    assert_eq!(server.get("/models").await.1["data"][0]["status"]["value"], "sleeping");
    assert_eq!(server.status("a", "state").await, "parked");
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert_eq!((server.status("a", "pid").await, server.status("a", "loads").await), (pid, json!(1)));

    // Nothing to park, and nobody of that name.
    assert_eq!(server.post("/models/park", &json!({"model": "b"})).await.0, 400);
    assert_eq!(server.post("/models/park", &json!({"model": "c"})).await.0, 404);
}

#[tokio::test]
async fn an_idle_model_parks_on_time_and_a_request_may_say_otherwise() {
    let server = serve("memory: 1GiB", &[("a", "echo, keep_alive: 100ms"), ("b", "echo, keep_alive: 0s, park: false")]);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    server.until("a", "state", json!("parked")).await;
    assert_eq!(server.chat("b", "hi").await.0, 200);
    server.until("b", "state", json!("cold")).await;
}

#[tokio::test]
async fn memory_that_does_not_come_back_ends_the_worker() {
    let leaky = format!("echo, options: {{memory: {LEAK}, allocate: true, leak_on_park: true}}");
    let server = serve("memory: 2GiB", &[("a", &leaky)]);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let pid = server.status("a", "pid").await.as_i64().expect("a pid");
    let (status, body) = server.post("/models/park", &json!({"model": "a"})).await;
    assert_eq!(status, 500, "{body}");
    server.until("a", "state", json!("cold")).await;
    assert!(!alive(pid));
    // It serves on, from a fresh worker, and is not parked again.
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert_eq!(server.post("/models/park", &json!({"model": "a"})).await.0, 400);
    assert_eq!(server.status("a", "state").await, "hot");
}

#[tokio::test]
async fn a_park_or_wake_that_goes_wrong_costs_one_worker_and_no_request() {
    for fault in ["park_error", "panic_in_park", "abort_in_park", "unpark_error", "panic_in_unpark", "abort_in_unpark"]
    {
        let faulty = format!("faulty, options: {{fault: {fault}}}");
        let server = serve("memory: 1GiB, max_loaded: 1", &[("a", &faulty), ("b", "echo")]);
        for model in ["a", "b", "a"] {
            let (status, body) = server.chat(model, "hi").await;
            assert_eq!(status, 200, "{fault} {model}: {body}");
        }
        assert_eq!(server.status("a", "loads").await, 2, "{fault}");
    }
}

#[tokio::test]
async fn a_forced_unload_cuts_what_does_not_end() {
    let server = serve("memory: 1GiB", &[("a", "echo, options: {latency_ms: 20, tokens: 100000}")]);
    let stream = server.stream(&chat("a", "word")).await;
    server.until("a", "active", json!(1)).await;
    let (whole, streamed, unloaded) = tokio::join!(server.chat("a", "word"), stream.text(), async {
        server.until("a", "active", json!(2)).await;
        server.post("/models/unload", &json!({"model": "a", "force_after": 0.1})).await
    });
    assert_eq!(unloaded.0, 200, "{}", unloaded.1);
    // The one that had seen nothing gets a status, the stream a framed error.
    assert_eq!((whole.0, &whole.1["error"]["code"]), (503, &json!("shutting_down")), "{}", whole.1);
    assert!(streamed.expect("a whole body").contains("\"error\""));
    server.until("a", "state", json!("cold")).await;
    assert_eq!(server.post("/models/unload", &json!({"model": "a", "force_after": -1})).await.0, 400);
}

#[tokio::test]
async fn replicas_start_when_all_are_busy() {
    // `faulty` takes four requests at once, and they go on until the gate is open.
    let gate = Gate::closed();
    let faulty = format!("faulty, replicas: 2, options: {{fault: progress_only, gate: \"{}\"}}", gate.path().display());
    let server = serve("memory: 1GiB", &[("a", &faulty)]);
    let both = async {
        // One that still starts when nobody waits any more is stopped again.
        server.until("a", "loads", json!(2)).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all((0..6).map(|_| server.chat("a", "hi"))), both);
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert_eq!(server.status("a", "loads").await, 2);
}

#[tokio::test]
async fn why_says_who_would_leave() {
    let server = pair();
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert_eq!(server.chat("b", "hi").await.0, 200);
    server.until("a", "state", json!("parked")).await;
    let (status, plan) = server.get("/admin/plan?model=a").await;
    assert_eq!(
        (status, &plan["outcome"], &plan["leaves"][0]["how"]),
        (200, &json!("evicts"), &json!("park")),
        "{plan}"
    );
    let (code, stdout, stderr) = aihost(&["why", "a", "--url", server.base()], &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("`a` needs 64.0 MiB on cpu: `b` (park) would leave for it\n"), "{stdout}");
    assert_eq!(server.status("b", "state").await, "hot");
    assert_eq!(server.get("/admin/plan").await.0, 400);
    assert_eq!(server.get("/admin/plan?model=c").await.0, 404);
}

#[tokio::test]
async fn a_load_that_runs_out_of_memory_gets_the_room_of_the_idle() {
    let once = tempfile::tempdir().expect("a folder");
    let faulty = format!(
        "faulty, options: {{fault: load_out_of_memory, once_file: \"{}\"}}",
        once.path().join("once").display()
    );
    let server = serve("memory: 1GiB", &[("a", "echo"), ("b", &faulty)]);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let (status, body) = server.chat("b", "hi").await;
    assert_eq!(status, 200, "{body}");
    server.until("a", "state", json!("cold")).await;
}

#[tokio::test]
async fn a_real_model_is_woken_with_its_wits() {
    let file = model_file();
    let yaml = format!(
        "devices: [{{id: cpu, memory: 2GiB}}]\nmodels:\n  one:\n    type: text\n    plugin: candle-llm\n    source: {{path: {}}}\n    options: {{context: 512}}\n",
        file.display()
    );
    let server = Server::start(&Setup { yaml, plugins: vec!["candle_llm"], ..Setup::default() });
    let mut ask = chat("one", "Who wrote Romeo and Juliet?");
    ask["max_tokens"] = json!(30);
    let (status, before) = server.post("/v1/chat/completions", &ask).await;
    assert_eq!(status, 200, "{before}");
    let hot = server.status("one", "measured").await.as_u64().expect("measured");
    assert_eq!(server.post("/models/park", &json!({"model": "one"})).await.0, 200);
    let parked = server.status("one", "measured").await.as_u64().expect("measured");
    assert!(parked < hot, "{parked} of {hot} bytes are still held");
    let (status, after) = server.post("/v1/chat/completions", &ask).await;
    assert_eq!(status, 200, "{after}");
    assert_eq!(text(&before), text(&after));
    assert_eq!((server.status("one", "loads").await, server.status("one", "wakes").await), (json!(1), json!(1)));
}

#[tokio::test]
async fn memory_beyond_the_plan_is_set_aside_the_next_time() {
    // A plan of nothing, and half a second in which the process is seen to hold more.
    let server = serve("memory: 1GiB", &[("a", "echo, park: false, options: {latency_ms: 50, tokens: 20}")]);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    assert_eq!(server.status("a", "memory").await, 0);
    let measured = server.status("a", "measured").await.as_u64().expect("measured");
    assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let memory = server.status("a", "memory").await.as_u64().expect("a number");
    assert!(memory >= measured / 2 && memory > 1 << 20, "{memory} are set aside where {measured} were held");
}

#[tokio::test]
async fn a_model_whose_worker_died_sings_before_it_counts_as_loaded() {
    // `sick` dies of every request; nobody would know before the first client asked.
    let server = serve("memory: 1GiB", &[("well", "echo"), ("sick", "faulty, options: {fault: abort}")]);
    for (model, after) in [("well", 200), ("sick", 500)] {
        assert_eq!(server.post("/models/load", &json!({"model": model})).await.0, 200, "{model}");
        let pid = server.status(model, "pid").await.as_i64().expect("a pid");
        let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        server.until(model, "state", json!("cold")).await;
        let (status, body) = server.post("/models/load", &json!({"model": model})).await;
        assert_eq!(status, after, "{model}: {body}");
    }
    assert_eq!(server.chat("well", "hi").await.0, 200);
}
