//! What whoever watches a host is told: what came and left and why, who waits, which requests were answered.

use aihost_tests::server::{Server, Setup, aihost, client};
use aihost_tests::{Gate, eventually};
use futures_util::StreamExt;
use serde_json::{Value, json};

fn server(yaml: &str, plugins: &[&'static str]) -> Server {
    Server::start(&Setup { yaml: yaml.to_owned(), plugins: plugins.to_vec(), ..Setup::default() })
}

/// Two echo models of which one fits; the first parks where it is asked to leave.
const PAIR: &str = "devices: [{id: cpu, memory: 1GiB, max_loaded: 1}]\nmodels:\n  a: {type: text, plugin: aihost/echo, park: false}\n  b: {type: text, plugin: aihost/echo, park: false, options: {load_ms: 50}}\n";

async fn overview(server: &Server) -> Value {
    let (status, told) = server.get("/admin/overview").await;
    assert_eq!(status, 200, "{told}");
    told
}

fn names(swap: &Value) -> Vec<&str> {
    swap["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn each_swap_is_told_with_its_phases_and_why() {
    let server = server(PAIR, &["echo"]);
    server.chat("a", "hi").await;
    let asked = client().post(format!("{}/v1/chat/completions", server.base())).header("x-request-id", "mine");
    let body = aihost_tests::server::chat("b", "a secret");
    assert_eq!(asked.json(&body).send().await.unwrap().status(), 200);
    server.until("a", "state", json!("cold")).await;
    let told = overview(&server).await;
    let swaps = told["swaps"].as_array().unwrap();
    let of = |kind: &str, model: &str| {
        let found = swaps.iter().find(|swap| swap["kind"] == kind && swap["model"] == model);
        found.unwrap_or_else(|| panic!("no {kind} of {model}: {told}"))
    };
    let (first, left, second) = (of("load", "a"), of("unload", "a"), of("load", "b"));
    assert_eq!(
        (&first["cause"], &first["outcome"], &first["error"]),
        (&json!("request"), &json!("done"), &Value::Null)
    );
    assert_eq!(names(first), ["start", "load"]);
    assert_eq!((&left["cause"], &left["for"]), (&json!("memory"), &json!("b")));
    assert_eq!(names(left).last(), Some(&"stop"));
    assert_eq!((&second["requests"], &second["outcome"]), (&json!("mine"), &json!("done")));
    assert_eq!(names(second), ["start", "memory", "load"]);
    let load_ms = second["steps"].as_array().unwrap().last().unwrap()["ms"].as_u64().unwrap();
    assert!(load_ms >= 50, "{second}");
    assert!(!told.to_string().contains("a secret"), "{told}");
    let requests = told["requests"].as_array().unwrap();
    let mine = requests.iter().find(|request| request["id"] == "mine").unwrap();
    assert!(mine["swap_ms"].as_u64() >= Some(50) && mine["tokens_out"].as_u64() > Some(0), "{mine}");
}

#[tokio::test]
async fn a_load_that_fails_and_a_worker_that_dies_are_swaps_with_their_causes() {
    let yaml = "devices: [{id: cpu, memory: 1GiB}]\nmodels:\n  bad: {type: text, plugin: aihost/faulty, options: {fault: load_error}}\n  dies: {type: text, plugin: aihost/faulty, options: {fault: abort}}\n";
    let server = server(yaml, &["faulty"]);
    assert_ne!(server.chat("bad", "hi").await.0, 200);
    assert_ne!(server.chat("dies", "hi").await.0, 200);
    let told = eventually(async || {
        let told = overview(&server).await;
        let is_lost = told["swaps"].as_array().unwrap().iter().any(|swap| swap["kind"] == "lost");
        if is_lost { Ok(told) } else { Err(format!("no worker was lost: {told}")) }
    })
    .await;
    let swaps = told["swaps"].as_array().unwrap();
    let failed = swaps.iter().find(|swap| swap["model"] == "bad").unwrap();
    assert_eq!((&failed["kind"], &failed["outcome"]), (&json!("load"), &json!("failed")));
    assert!(failed["error"].as_str().is_some_and(|error| error.len() > 10), "{failed}");
    let lost = swaps.iter().find(|swap| swap["kind"] == "lost").unwrap();
    assert_eq!((&lost["model"], &lost["cause"]), (&json!("dies"), &json!("failed")));
    assert!(lost["error"].as_str().is_some_and(|error| error.contains("`dies`")), "{lost}");
}

#[tokio::test]
async fn the_memory_of_swaps_and_requests_is_bounded() {
    let server = server(PAIR, &["echo"]);
    for _ in 0..40 {
        assert_eq!(server.post("/models/load", &json!({"model": "a"})).await.0, 200);
        assert_eq!(server.post("/models/unload", &json!({"model": "a"})).await.0, 200);
    }
    server.chat("a", "hi").await;
    for _ in 0..220 {
        server.chat("a", "hi").await;
    }
    let told = overview(&server).await;
    assert_eq!(told["swaps"].as_array().unwrap().len(), 64);
    assert_eq!(told["requests"].as_array().unwrap().len(), 200);
}

#[tokio::test]
async fn who_waits_is_named_and_how_far_a_load_is_is_told() {
    let gate = Gate::closed();
    let yaml = format!(
        "devices: [{{id: cpu, memory: 1GiB}}]\nmodels:\n  a: {{type: text, plugin: aihost/echo, options: {{load_gate: {}}}}}\n",
        gate.path().display()
    );
    let server = server(&yaml, &["echo"]);
    let ((status, _), ()) = tokio::join!(server.chat("a", "hi"), async {
        server.until("a", "state", json!("loading")).await;
        let told = overview(&server).await;
        let waiting = &told["waiting"][0];
        assert_eq!((&waiting["model"], &waiting["awaits"]), (&json!("a"), &json!("load")));
        assert!(waiting["request"].as_str().unwrap().starts_with("req_"), "{told}");
        let swap = told["swaps"].as_array().unwrap().last().unwrap();
        assert_eq!((&swap["outcome"], names(swap).last()), (&json!("underway"), Some(&"load")));
        assert!(told["models"][0]["waits_ms"].is_u64() && told["models"][0]["since_ms"].is_u64(), "{told}");
        gate.open();
    });
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_pinned_model_stays_whatever_others_need_and_a_reload_says_what_holds() {
    let server = server(PAIR, &["echo"]);
    server.chat("a", "hi").await;
    assert_eq!(server.post("/models/pin", &json!({"model": "a"})).await.0, 200);
    server.until("a", "pinned", json!(true)).await;
    let (status, refused) = server.chat("b", "hi").await;
    assert_ne!(status, 200, "{refused}");
    assert_eq!((server.status("a", "state").await, server.status("a", "loads").await), (json!("hot"), json!(1)));
    assert_eq!(server.post("/models/pin", &json!({"model": "a", "pinned": false})).await.0, 200);
    // A model whose load failed rests for a moment.
    eventually(async || match server.chat("b", "hi").await {
        (200, _) => Ok(()),
        (status, body) => Err(format!("{status}: {body}")),
    })
    .await;
    server.until("a", "state", json!("cold")).await;
}

/// The next event of a feed that says something of this kind.
async fn next(
    feed: &mut (impl StreamExt<Item = reqwest::Result<bytes::Bytes>> + Unpin),
    rest: &mut String,
    key: &str,
) -> Value {
    loop {
        while let Some((event, behind)) = rest.split_once("\n\n").map(|(a, b)| (a.to_owned(), b.to_owned())) {
            *rest = behind;
            let data: Value = serde_json::from_str(event.split_once("\ndata: ").unwrap().1).unwrap();
            if data.get(key).is_some_and(|part| !part.as_array().is_some_and(Vec::is_empty)) {
                return data[key].clone();
            }
        }
        *rest += std::str::from_utf8(&feed.next().await.expect("a feed that goes on").unwrap()).unwrap();
    }
}

#[tokio::test]
async fn the_feed_follows_a_model_through_its_states_and_ends_with_the_host() {
    let mut server = server(PAIR, &["echo"]);
    let response = client().get(format!("{}/admin/events", server.base())).send().await.unwrap();
    let (mut feed, mut rest) = (response.bytes_stream(), String::new());
    assert_eq!(next(&mut feed, &mut rest, "models").await.as_array().unwrap().len(), 2);
    assert_eq!(server.post("/models/load", &json!({"model": "b"})).await.0, 200);
    loop {
        let models = next(&mut feed, &mut rest, "models").await;
        let changed = models.as_array().unwrap();
        assert_eq!((changed.len(), &changed[0]["id"]), (1, &json!("b")), "only what changed is told");
        if changed[0]["state"] == "hot" {
            break;
        }
    }
    server.signal(rustix::process::Signal::TERM);
    while let Some(Ok(_)) = feed.next().await {}
    server.wait();
}

#[tokio::test]
async fn top_prints_one_screen_where_no_terminal_is_and_says_so_where_no_server_is() {
    let server = server(PAIR, &["echo"]);
    server.chat("a", "hi").await;
    let base = server.base().to_owned();
    let top = async |more: &[&str]| {
        let arguments: Vec<String> = ["top", "--url", &base].iter().chain(more).map(ToString::to_string).collect();
        let run = move || aihost(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    let (code, text, said) = top(&[]).await;
    assert_eq!(code, 0, "{said}");
    for fact in ["models 2, loaded 1", "cpu", "MODEL", "hot", "SWAP", "start", "TOKENS/S", "req_"] {
        assert!(text.contains(fact), "{fact} is not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let (_, text, _) = top(&["--once", "--filter", "b cold"]).await;
    assert!(
        text.lines().any(|line| line.starts_with("b ")) && !text.lines().any(|line| line.starts_with("a ")),
        "{text}"
    );
    drop(server);
    let (code, _, said) = top(&["--once"]).await;
    assert_eq!(code, 4, "{said}");
}
