//! What the log says: one line for each thing that happens, with the model, the cause and the client's own request id.

use aihost_tests::server::{Server, Setup, chat, client, prepare};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A server that logs JSON. `bad` is the faulty plugin's, with these options.
fn server(options: &str, more: &str) -> Server {
    let yaml = format!(
        "{more}models:\n  good:\n    type: text\n    plugin: aihost/echo\n  bad:\n    type: text\n    plugin: aihost/faulty\n    startup_time: 2\n    options: {options}\n"
    );
    let setup = Setup { yaml, plugins: vec!["echo", "faulty"], ..Setup::default() };
    serving(&setup)
}

fn serving(setup: &Setup) -> Server {
    let (folder, config) = prepare(setup);
    let mut command = std::process::Command::new(aihost_tests::binary());
    command.args(["serve", "--log-format", "json", "--config"]).arg(config).envs(setup.env.iter().cloned());
    Server::of(&mut command, folder)
}

/// All lines up to the end of the server, each of which is an object.
fn to_the_end(mut server: Server) -> Vec<Value> {
    server.signal(Signal::TERM);
    assert!(server.wait().success());
    parsed(&server.rest())
}

fn parsed(log: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")));
    lines.inspect(|line: &Value| assert!(line["level"].is_string() && line["message"].is_string(), "{line}")).collect()
}

/// Lines above INFO, but for what the plugin itself says.
fn loud(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| line["level"] == "WARN" || line["level"] == "ERROR").collect()
}

fn shown(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Asks the faulty model as a client does who has an id of its own.
async fn ask(server: &Server, id: &str, body: &Value) -> u16 {
    let request = client().post(format!("{}/v1/chat/completions", server.base())).header("x-request-id", id);
    let response = request.json(body).send().await.expect("an answer");
    assert_eq!(response.headers()["x-request-id"], id);
    let status = response.status().as_u16();
    let _body = response.bytes().await;
    status
}

/// What is wrong with the plugin, the status of the answer, and words of the cause.
struct Case {
    options: &'static str,
    status: u16,
    cause: &'static str,
}

/// Faults after which a fresh worker serves the request would make it two lines if they were not over with the first death.
const CASES: [Case; 16] = [
    Case { options: "fault: load_error", status: 500, cause: "the weights are damaged" },
    Case { options: "fault: load_out_of_memory", status: 503, cause: "no room" },
    Case { options: "fault: panic_in_new", status: 500, cause: "panic" },
    Case { options: "fault: panic_in_plan", status: 500, cause: "panic" },
    Case { options: "fault: panic_in_load", status: 500, cause: "panic" },
    Case { options: "fault: hang_load", status: 504, cause: "startup_time" },
    Case { options: "fault: none, plan: 1000000000000000", status: 503, cause: "needs" },
    Case { options: "fault: panic_in_generate", status: 500, cause: "panicked" },
    Case { options: "fault: abort, once_file: ONCE", status: 200, cause: "SIGABRT" },
    Case { options: "fault: segfault, once_file: ONCE", status: 200, cause: "signal 11" },
    Case { options: "fault: exit0, once_file: ONCE", status: 200, cause: "exited by itself" },
    Case { options: "fault: oom, once_file: ONCE", status: 200, cause: "memory" },
    Case { options: "fault: close_all, once_file: ONCE", status: 200, cause: "worker" },
    Case { options: "fault: huge_error, bytes: 100000", status: 500, cause: "eee" },
    Case { options: "fault: empty_error", status: 500, cause: "" },
    Case { options: "fault: hoard_at_once, bytes: 3000000000, once_file: ONCE", status: 200, cause: "memory" },
];

#[tokio::test]
async fn each_fault_is_one_line_with_model_cause_and_the_clients_id() {
    let mut wrong = Vec::new();
    for case in &CASES {
        let folder = tempfile::tempdir().expect("a folder");
        let once = folder.path().join("once").display().to_string();
        let options = format!("{{{}}}", case.options.replace("ONCE", &once));
        let server = server(&options, "");
        let status = ask(&server, "client-id.7", &chat("bad", "x y z")).await;
        let lines = to_the_end(server);
        let loud = loud(&lines);
        let is_told = |line: &Value| {
            let text = line.to_string();
            line["model"] == "bad" && line["request_id"] == "client-id.7" && text.contains(case.cause)
        };
        let access: Vec<&Value> =
            lines.iter().filter(|line| line["target"] == "access" && line["request_id"] == "client-id.7").collect();
        let is_right = status == case.status && loud.len() == 1 && is_told(loud[0]) && access.len() == 1;
        if !is_right || access[0]["status"] != status {
            wrong.push(format!("{} answered {status}:\n{}", case.options, shown(&lines)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is done with a model that serves well, and how that goes wrong.
struct Step {
    fault: &'static str,
    /// What the client with an id of its own does, in the end.
    then: Then,
    status: u16,
    cause: &'static str,
}

enum Then {
    /// It parks the model.
    Park,
    /// It asks for another model, for which this one parks.
    Swap,
    /// It asks for the model, which is parked.
    Wake,
    /// It unloads the model.
    Unload,
}

const STEPS: [Step; 12] = [
    Step { fault: "park_error", then: Then::Park, status: 500, cause: "an error of a step" },
    Step { fault: "panic_in_park", then: Then::Park, status: 500, cause: "a panic in a step" },
    Step { fault: "abort_in_park", then: Then::Park, status: 500, cause: "SIGABRT" },
    Step { fault: "park_error", then: Then::Swap, status: 200, cause: "an error of a step" },
    Step { fault: "panic_in_park", then: Then::Swap, status: 200, cause: "a panic in a step" },
    Step { fault: "abort_in_park", then: Then::Swap, status: 200, cause: "SIGABRT" },
    Step { fault: "unpark_error", then: Then::Wake, status: 200, cause: "an error of a step" },
    Step { fault: "panic_in_unpark", then: Then::Wake, status: 200, cause: "a panic in a step" },
    Step { fault: "abort_in_unpark", then: Then::Wake, status: 200, cause: "SIGABRT" },
    Step { fault: "panic_in_drop", then: Then::Unload, status: 200, cause: "a panic in drop" },
    Step { fault: "abort_in_drop", then: Then::Unload, status: 200, cause: "SIGABRT" },
    Step { fault: "hoard_slowly, bytes: 1000000000", then: Then::Wake, status: 200, cause: "granted" },
];

/// Has the step go wrong for the client with this id; the status of its answer.
async fn go_wrong(server: &Server, then: &Then, id: &str) -> u16 {
    let command = async |path: &str| {
        let request = client().post(format!("{}{path}", server.base())).header("x-request-id", id);
        request.json(&json!({"model": "bad"})).send().await.expect("an answer").status().as_u16()
    };
    match then {
        Then::Park => command("/models/park").await,
        Then::Unload => command("/models/unload").await,
        Then::Swap => ask(server, id, &chat("good", "x")).await,
        Then::Wake => {
            server.post("/models/park", &json!({"model": "bad"})).await;
            ask(server, id, &chat("bad", "x")).await
        }
    }
}

#[tokio::test]
async fn each_step_that_goes_wrong_is_one_line_with_model_cause_and_the_clients_id() {
    let mut wrong = Vec::new();
    for Step { fault, then, status: wanted, cause } in &STEPS {
        let folder = tempfile::tempdir().expect("a folder");
        let once = folder.path().join("once");
        // The step is the first to find that it is not there.
        std::fs::write(&once, "").expect("a file");
        let options = format!("{{fault: {fault}, once_file: {}}}", once.display());
        let server = server(&options, "devices: [{id: cpu, memory: 4GiB, max_loaded: 1}]\n");
        assert_eq!(server.chat("bad", "x").await.0, 200, "{fault}");
        std::fs::remove_file(&once).expect("removed");
        let status = go_wrong(&server, then, "client-id.8").await;
        let lines = to_the_end(server);
        let loud = loud(&lines);
        let is_told = |line: &Value| {
            line["model"] == "bad" && line["request_id"] == "client-id.8" && line.to_string().contains(cause)
        };
        if status != *wanted || loud.len() != 1 || !is_told(loud[0]) {
            wrong.push(format!("{fault} answered {status}:\n{}", shown(&lines)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn each_step_that_never_ends_is_one_line_with_the_clients_id() {
    let faults = [
        ("hang_park", Then::Park, "park"),
        ("hang_unpark", Then::Wake, "unpark"),
        ("hang_drop", Then::Unload, "release"),
    ];
    // Each takes as long as a step may take: side by side.
    let told = faults.map(|(fault, then, step)| async move {
        let folder = tempfile::tempdir().expect("a folder");
        let once = folder.path().join("once");
        std::fs::write(&once, "").expect("a file");
        let server = server(&format!("{{fault: {fault}, once_file: {}}}", once.display()), "");
        assert_eq!(server.chat("bad", "x").await.0, 200, "{fault}");
        std::fs::remove_file(&once).expect("removed");
        go_wrong(&server, &then, "client-id.9").await;
        let lines = to_the_end(server);
        let loud = loud(&lines);
        assert_eq!(loud.len(), 1, "{fault}: {}", shown(&lines));
        assert_eq!((&loud[0]["model"], &loud[0]["request_id"]), (&json!("bad"), &json!("client-id.9")), "{fault}");
        assert!(loud[0]["message"].as_str().is_some_and(|message| message.contains(step)), "{}", loud[0]);
    });
    futures_util::future::join_all(told).await;
}

#[tokio::test]
async fn a_request_that_kills_each_worker_is_named_by_each_death_and_has_one_line_of_its_own() {
    let server = server("{fault: segfault}", "");
    assert_eq!(ask(&server, "killer", &chat("bad", "x")).await, 500);
    let loads = server.status("bad", "loads").await.as_u64().expect("loads");
    let lines = to_the_end(server);
    let loud = loud(&lines);
    assert_eq!(loud.len() as u64, loads, "{}", shown(&lines));
    assert!(loads > 2);
    for line in &loud {
        assert_eq!((&line["model"], &line["request_id"]), (&json!("bad"), &json!("killer")), "{line}");
    }
    let own: Vec<&Value> =
        lines.iter().filter(|line| line["target"] == "access" && line["request_id"] == "killer").collect();
    assert_eq!(own.len(), 1, "{}", shown(&lines));
    assert_eq!((&own[0]["status"], &own[0]["code"]), (&json!(500), &json!("request_suspected")));
    assert!(own[0]["cause"].as_str().is_some_and(|cause| cause.contains("signal 11")), "{}", own[0]);
}

#[tokio::test]
async fn a_worker_that_dies_within_a_stream_is_one_line_with_the_clients_id() {
    for fault in ["panic_in_generate", "abort", "segfault", "exit0", "empty_error"] {
        let server = server(&format!("{{fault: {fault}, after_tokens: 2}}"), "");
        let mut body = chat("bad", "x");
        body["stream"] = json!(true);
        assert_eq!(ask(&server, "streamed-1", &body).await, 200, "{fault}");
        let lines = to_the_end(server);
        let loud = loud(&lines);
        assert_eq!(loud.len(), 1, "{fault}: {}", shown(&lines));
        assert_eq!((&loud[0]["model"], &loud[0]["request_id"]), (&json!("bad"), &json!("streamed-1")), "{fault}");
    }
}

/// What clients read nothing of.
const OPERATORS_WORDS: [&str; 7] = ["models.yaml", "aihost", "`memory", "`limits", "option", "colour", "/tmp"];

#[tokio::test]
async fn clients_are_sent_to_whoever_runs_the_host_who_is_told_all_of_it() {
    let entry =
        |name: &str, rest: &str| format!("  {name}: {{type: text, plugin: aihost/faulty, startup_time: 1, {rest}}}\n");
    let cases = [
        ("option", "options: {colour: red}", 500, "colour"),
        ("damaged", "options: {fault: load_error}", 500, "the weights are damaged"),
        ("absent", "files: {model: {url: \"http://127.0.0.1:9/x.gguf\"}}", 503, "aihost models pull absent"),
        ("missing", "files: {model: {path: /nowhere/x.gguf}}", 500, "/nowhere/x.gguf"),
        ("large", "options: {plan: 1000000000000000}", 503, "`memory:`"),
        ("slow", "options: {fault: hang_load}", 504, "startup_time"),
        ("hoarder", "options: {fault: hoard_at_once, bytes: 300000000}", 500, "`memory:`"),
        ("silent", "options: {fault: hang_generate}", 504, "first_output_timeout"),
    ];
    let models: String = cases.iter().map(|(name, rest, ..)| entry(name, rest)).collect();
    let yaml = format!("limits: {{first_output_timeout: 1s}}\nmodels:\n{models}");
    let server = serving(&Setup { yaml, plugins: vec!["faulty"], ..Setup::default() });
    for (name, _, wanted, _) in &cases {
        let (status, body) = server.chat(name, "x").await;
        let message = body["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert_eq!(status, *wanted, "{name}: {body}");
        assert!(!message.is_empty() && !OPERATORS_WORDS.iter().any(|word| message.contains(word)), "{name}: {message}");
    }
    let (_, listed) = server.get("/models").await;
    let errors: Vec<String> = listed["data"]
        .as_array()
        .expect("models")
        .iter()
        .filter_map(|model| model["status"]["error"].as_str().map(str::to_owned))
        .collect();
    assert!(errors.len() > 3, "{listed}");
    for error in errors {
        assert!(!OPERATORS_WORDS.iter().any(|word| error.contains(word)), "{error}");
    }
    let mut plans = String::new();
    for (name, ..) in &cases[..5] {
        plans += &server.why(name).await;
    }
    let log = shown(&to_the_end(server));
    for (name, _, _, words) in &cases {
        assert!(log.contains(words), "{name}, {words}: {log}");
    }
    // The second is tried again by now, and nobody knows yet what comes of it.
    for (name, _, _, words) in cases[..5].iter().filter(|(name, ..)| *name != "damaged") {
        assert!(plans.contains(words), "{name}, {words}: {plans}");
    }
}

#[tokio::test]
async fn each_request_has_one_line_whatever_it_was() {
    let limits = "limits: {body_limit: 1KiB}\n";
    let server = server("{fault: none}", limits);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let post = |path: &str, id: &str, body: String| {
        let request = client().post(format!("{}{path}", server.base())).header("x-request-id", id);
        request.header("content-type", "application/json").body(body)
    };
    let good = post("/v1/chat/completions", "served", chat("good", "one two").to_string());
    let good = good.header("traceparent", &parent).send().await.expect("an answer");
    assert_eq!((good.status().as_u16(), good.headers()["traceparent"].as_bytes()), (200, parent.as_bytes()));
    good.bytes().await.expect("a body");
    for (path, id, body, status) in [
        ("/v1/nowhere", "nowhere", String::new(), 404),
        ("/v1/models", "method", String::new(), 405),
        ("/v1/chat/completions", "large", "x".repeat(5000), 413),
        ("/v1/chat/completions", "json", "{".to_owned(), 400),
        ("/v1/chat/completions", "unknown", chat("nobody", "secret words").to_string(), 404),
    ] {
        let answer = post(path, id, body).header("traceparent", "00-no-trace-01").send().await.expect("an answer");
        assert!(answer.headers().get("traceparent").is_none());
        assert_eq!(answer.status().as_u16(), status, "{id}");
    }
    // Ids that cannot be taken over: too long, or with what is no part of one.
    for id in ["x".repeat(10_000), "two words".to_owned(), "\u{9b}31m".to_owned(), "a\tb".to_owned()] {
        let request = client().get(format!("{}/v1/models", server.base())).header("x-request-id", id.as_bytes());
        let answer = request.send().await.expect("an answer");
        assert!(answer.headers()["x-request-id"].to_str().is_ok_and(|id| id.starts_with("req_")));
    }
    let lines = to_the_end(server);
    let of = |id: &str| {
        let found: Vec<&Value> =
            lines.iter().filter(|line| line["target"] == "access" && line["request_id"] == id).collect();
        assert_eq!(found.len(), 1, "{id}: {}", shown(&lines));
        found[0]
    };
    let served = of("served");
    for field in ["queue_ms", "swap_ms", "first_token_ms", "tokens_in", "tokens_out", "duration_ms"] {
        assert!(served[field].is_u64(), "{field}: {served}");
    }
    let told = (&served["model"], &served["status"], &served["trace_id"], &served["key"], &served["message"]);
    let wanted = (json!("good"), json!(200), json!(trace), json!("-"), json!("POST /v1/chat/completions"));
    assert_eq!(told, (&wanted.0, &wanted.1, &wanted.2, &wanted.3, &wanted.4));
    for (id, status, code) in [
        ("nowhere", 404, "unknown_url"),
        ("method", 405, "method_not_allowed"),
        ("large", 413, "request_too_large"),
        ("json", 400, "invalid_request_error"),
        ("unknown", 404, "model_not_found"),
    ] {
        let line = of(id);
        assert_eq!((&line["status"], &line["code"]), (&json!(status), &json!(code)), "{line}");
        assert!(line.get("trace_id").is_none(), "{line}");
    }
    let own = lines.iter().filter(|line| line["request_id"].as_str().is_some_and(|id| id.starts_with("req_"))).count();
    assert_eq!(own, 4, "{}", shown(&lines));
    assert!(loud(&lines).is_empty() && !shown(&lines).contains("secret words"), "{}", shown(&lines));
}

#[tokio::test]
async fn a_client_that_leaves_is_a_line_of_its_own_status() {
    let server = server("{fault: hang_load}", "");
    let request = client().post(format!("{}/v1/chat/completions", server.base())).header("x-request-id", "gone");
    let request = tokio::spawn(request.json(&chat("bad", "x")).send());
    server.until("bad", "queued", json!(1)).await;
    request.abort();
    let log = server.logged("\"request_id\":\"gone\"").await;
    let line = log.lines().find(|line| line.contains("\"gone\"")).expect("it was just found");
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!((&line["status"], &line["model"], &line["level"]), (&json!(499), &json!("bad"), &json!("INFO")));
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted_and_not_written() {
    let server = server("{fault: none}", "");
    for _ in 0..300 {
        assert_eq!(server.get("/nowhere").await.0, 404);
    }
    let lines = to_the_end(server);
    let refused = lines.iter().filter(|line| line["status"] == 404).count();
    assert!((60..150).contains(&refused), "{refused} lines");
}

#[tokio::test]
async fn an_eviction_says_for_whom_and_a_reload_what_changed_in_one_line_each() {
    let yaml = "devices: [{id: cpu, memory: 2GiB, max_loaded: 1}]\nmodels:\n  a: {type: text, plugin: aihost/echo, options: {memory: 5000000}}\n  b: {type: text, plugin: aihost/echo}\n";
    let server = serving(&Setup { yaml: yaml.into(), plugins: vec!["echo"], ..Setup::default() });
    for model in ["a", "b"] {
        assert_eq!(server.chat(model, "hi").await.0, 200);
    }
    let file = server.folder().join("models.yaml");
    let text = std::fs::read_to_string(&file).expect("models.yaml");
    std::fs::write(&file, text.replace("  a: {", "  c: {")).expect("rewritten");
    server.until("c", "state", json!("cold")).await;
    let lines = to_the_end(server);
    let about = |words: &str| lines.iter().filter(|line| line["message"] == words).collect::<Vec<_>>();
    let unloaded = about("unloaded").into_iter().chain(about("parked")).find(|line| line["cause"] == "memory");
    let unloaded = unloaded.unwrap_or_else(|| panic!("{}", shown(&lines)));
    assert_eq!((&unloaded["for"], &unloaded["model"]), (&json!("b"), &json!("a")), "{unloaded}");
    assert!(unloaded["bytes"].as_u64() >= Some(5_000_000) && unloaded["ms"].is_u64(), "{unloaded}");
    let reloads: Vec<&Value> = lines.iter().filter(|line| line["message"] == "in force").collect();
    assert_eq!(reloads.len(), 1, "{}", shown(&lines));
    assert_eq!((&reloads[0]["added"], &reloads[0]["removed"]), (&json!("c"), &json!("a")));
}

#[tokio::test]
async fn every_line_is_json_from_the_first_to_a_second_signal() {
    let gate = aihost_tests::Gate::closed();
    let options = format!("{{fault: progress_only, gate: {}}}", gate.path().display());
    let mut server = server(&options, "");
    let request = client().post(format!("{}/v1/chat/completions", server.base())).json(&chat("bad", "x"));
    let request = tokio::spawn(request.send());
    server.until("bad", "active", json!(1)).await;
    server.signal(Signal::TERM);
    let begun = server.logged(aihost_tests::server::DRAINS).await;
    server.signal(Signal::TERM);
    assert!(!server.wait().success());
    let lines = parsed(&format!("{begun}{}", server.rest()));
    assert!(lines.len() > 2, "{}", shown(&lines));
    request.abort();
}

#[test]
fn what_ends_serve_before_it_begins_is_json_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("models.yaml");
    std::fs::write(&config, "models: [").expect("written");
    for more in [&["--config", config.to_str().expect("UTF-8")][..], &["--no-such-flag"], &["--listen"]] {
        let arguments: Vec<&str> = ["serve", "--log-format", "json"].iter().chain(more).copied().collect();
        let (code, _, stderr) = aihost_tests::server::aihost(&arguments, &[]);
        assert_ne!(code, 0);
        let lines = parsed(&stderr);
        assert!(lines.iter().any(|line| line["level"] == "ERROR"), "{stderr}");
    }
}

#[tokio::test]
async fn a_start_is_one_object_with_what_it_serves() {
    let yaml = "devices: [{id: cpu, memory: 2GiB}]\nmodels:\n  a: {type: text, plugin: aihost/echo}\n";
    let mut command_line = None;
    let setup = Setup { yaml: yaml.into(), plugins: vec!["echo"], ..Setup::default() };
    let server = serving(&setup);
    for line in parsed(&server.heard()) {
        if line["message"] == "aihost starts" {
            assert!(command_line.replace(line).is_none(), "said twice");
        }
    }
    let start = command_line.expect("a start");
    assert!(server.base().ends_with(start["address"].as_str().expect("an address")), "{start}");
    assert_eq!((&start["devices"], &start["models"]), (&json!("cpu 2.0 GiB"), &json!("a")), "{start}");
    assert!(start["plugins"].as_str().is_some_and(|plugins| plugins.starts_with("aihost/echo ")), "{start}");
    assert!(start["config"].as_str().is_some_and(|config| config.ends_with("models.yaml")), "{start}");
    assert!(start["version"].is_string());
}
