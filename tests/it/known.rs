//! Engines that the plugin `vllm` knows by name, under a whole host and as stand-ins: they are told what they need, sleep and
//! keep what they read, and what they say of themselves is not believed.

use aihost_tests::server::{Server, Setup, client};
use aihost_tests::{eventually, stand_in};
use serde_json::{Value, json};

/// Room for one of two engines `a` and `b`, of which these options are `a`'s.
fn host(options: &str, arguments: &str) -> Server {
    host_of(options, arguments, "")
}

fn host_of(options: &str, arguments: &str, keys: &str) -> Server {
    let program = stand_in();
    let program = program.display();
    let arguments: Vec<String> = arguments.split_whitespace().map(|word| format!("\"{word}\"")).collect();
    let arguments = arguments.join(", ");
    let yaml = format!(
        "devices: [{{id: cpu, memory: 1GiB, max_loaded: 1}}]\ndefaults: {{max_wait: 50ms, quantum: 10ms}}\nmodels:\n  a: {{type: text, plugin: vllm, source: {{path: '{program}'}}, memory: 800MiB, options: {{{options}, binary: '{program}', args: [{arguments}], stop_timeout: 2}}{keys}}}\n  b: {{type: text, plugin: aihost/echo, park: false}}\n"
    );
    Server::start(&Setup { yaml, plugins: vec!["vllm", "echo"], ..Setup::default() })
}

async fn ask(server: &Server, model: &str) -> (u16, Value) {
    let (path, body) = match model {
        "b" => ("/v1/chat/completions", json!({"model": "b", "messages": [{"role": "user", "content": "x"}]})),
        _ => ("/v1/completions", json!({"model": model, "prompt": "1 2 3", "max_tokens": 1})),
    };
    let answer = client().post(format!("{}{path}", server.base())).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

async fn served(server: &Server, model: &str) -> Value {
    let (status, answer) = ask(server, model).await;
    assert_eq!(status, 200, "{model}: {answer}");
    answer
}

/// Why `a` is not there, once nothing of it is left.
async fn why(server: &Server) -> String {
    eventually(async || match server.status("a", "state").await {
        state if state == "failed" || state == "cold" => Ok(()),
        state => Err(state.to_string()),
    })
    .await;
    server.why("a").await
}

/// What `a`'s engine was asked for beside prompts, and how many prompts its slot has read.
async fn asked(server: &Server) -> (Vec<String>, u64) {
    let body = json!({"model": "a"});
    let answer = client().post(format!("{}/upstream/a/asked", server.base())).json(&body).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    let asked = answer["asked"].as_array().unwrap().iter().map(|path| path.as_str().unwrap().to_owned());
    (asked.collect(), answer["read"].as_u64().unwrap())
}

const OPEN: &str = ", upstream_routes: true";

#[tokio::test]
async fn an_engine_is_told_its_model_its_name_and_where_to_keep() {
    let server = host_of("engine: vllm", "--max-model-len 4096", ", upstream_routes: true, engine_model: org/m");
    assert_eq!(served(&server, "a").await["model"], "org/m");
    let about = client().get(format!("{}/upstream/a/about", server.base())).send().await.unwrap();
    let about: Value = about.json().await.unwrap();
    let words: Vec<&str> = about["arguments"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(words[0], "serve");
    assert_eq!(words[1], stand_in().to_str().unwrap(), "its file");
    assert_eq!(words[words.len() - 4..], ["--served-model-name", "org/m", "--max-model-len", "4096"]);
    let cache = about["env"]["VLLM_CACHE_ROOT"].as_str().unwrap();
    assert!(cache.contains("plugin-data/vllm/engines/"), "{cache}");
    assert_eq!(about["env"]["VLLM_CPU_KVCACHE_SPACE"], "1");
    assert!(about["env"]["VLLM_SERVER_DEV_MODE"].is_null(), "it does not sleep");
}

#[tokio::test]
async fn what_slots_have_read_outlives_a_swap() {
    let server = host_of("engine: llama-server", "", OPEN);
    for _ in 0..3 {
        served(&server, "a").await;
    }
    // The first prompt was the canary's.
    assert_eq!(asked(&server).await, (vec![], 4));
    for round in 1..=2 {
        served(&server, "b").await;
        served(&server, "a").await;
        let (asked, read) = asked(&server).await;
        assert_eq!(asked, ["/slots/0?action=restore"], "round {round}");
        assert_eq!(read, 4 + round, "what it had read is back");
    }
}

#[tokio::test]
async fn a_stream_whose_engine_is_killed_ends_with_an_event_that_says_so() {
    let server = host_of("engine: vllm", "", OPEN);
    let body = json!({"model": "a", "prompt": "1 2 3", "stream": true});
    let mut answer = client().post(format!("{}/v1/completions", server.base())).json(&body).send().await.unwrap();
    let begun = answer.chunk().await.unwrap().unwrap();
    assert!(begun.starts_with(b"data: {"), "{begun:?}");
    // Nobody waits for what it says to that.
    let _ = client().post(format!("{}/upstream/a/die", server.base())).send().await;
    let rest = answer.text().await.expect("an end in good order");
    let events: Vec<&str> = rest.trim_end().split("\n\n").collect();
    let [.., failure, "data: [DONE]"] = events[..] else { panic!("{rest}") };
    let failure: Value = serde_json::from_str(failure.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(failure["error"]["type"], "server_error", "{failure}");
    assert!(failure["error"]["message"].as_str().unwrap().contains(' '), "{failure}");
    served(&server, "a").await;
}

#[tokio::test]
async fn slots_are_not_kept_where_the_entry_says_so() {
    let server = host_of("engine: llama-server, keep_slots: false", "", OPEN);
    for _ in 0..2 {
        served(&server, "a").await;
        assert_eq!(asked(&server).await, (vec![], 2));
        served(&server, "b").await;
    }
}

#[tokio::test]
async fn an_engine_that_sleeps_is_parked_and_wakes_to_the_same() {
    for (options, down, up) in [
        ("engine: vllm, sleep: 1", "/sleep?level=1", vec!["/wake_up"]),
        (
            "engine: vllm, sleep: 2",
            "/sleep?level=2",
            vec!["/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"],
        ),
        ("engine: sglang, sleep: 1", "/release_memory_occupation", vec!["/resume_memory_occupation"]),
    ] {
        let server = host_of(options, "--weights 80", OPEN);
        served(&server, "a").await;
        let pid = server.status("a", "pid").await;
        for round in 1..=2 {
            served(&server, "b").await;
            assert_eq!(server.status("a", "state").await, json!("parked"), "{options}");
            served(&server, "a").await;
            assert_eq!(server.status("a", "wakes").await, json!(round));
        }
        assert_eq!(server.status("a", "pid").await, pid, "{options}: it is the same process");
        let all = [vec![down], up].concat();
        assert_eq!(asked(&server).await.0, [all.clone(), all].concat(), "{options}");
    }
}

#[tokio::test]
async fn an_engine_that_says_it_sleeps_and_keeps_its_memory_is_ended() {
    // More than the host overlooks.
    let server = host("engine: vllm, sleep: 1", "--weights 600 --keeps-memory");
    served(&server, "a").await;
    let pid = server.status("a", "pid").await;
    served(&server, "b").await;
    assert_eq!(server.status("a", "state").await, json!("cold"), "its memory did not come back");
    served(&server, "a").await;
    assert_ne!(server.status("a", "pid").await, pid);
}

#[tokio::test]
async fn an_engine_that_does_not_wake_or_wakes_to_something_else_is_started_anew() {
    for fault in ["--wake-fails", "--garbage-after-wake"] {
        let server = host("engine: vllm, sleep: 1", &format!("--weights 80 {fault}"));
        served(&server, "a").await;
        let pid = server.status("a", "pid").await;
        served(&server, "b").await;
        assert_eq!(server.status("a", "state").await, json!("parked"), "{fault}");
        // Whoever asked waits for a fresh one, and is served.
        served(&server, "a").await;
        assert_ne!(server.status("a", "pid").await, pid, "{fault}");
        served(&server, "b").await;
    }
}

#[tokio::test]
async fn a_device_that_is_lost_behind_a_good_health_costs_one_worker() {
    let server = host_of("engine: vllm", "", OPEN);
    served(&server, "a").await;
    let pid = server.status("a", "pid").await;
    client().post(format!("{}/upstream/a/break", server.base())).send().await.unwrap();
    assert_eq!(ask(&server, "a").await.0, 500);
    eventually(async || match server.status("a", "pid").await {
        now if now == pid => Err("it is still there".to_owned()),
        _ => Ok(()),
    })
    .await;
    served(&server, "a").await;
}

#[tokio::test]
async fn what_keeps_an_engine_from_starting_is_one_sentence_and_the_next_model_is_served() {
    for (options, arguments, status, words) in [
        ("engine: llama-server", "--says unknown_model_architecture:_'x' --exit 1", 500, "a newer llama.cpp may"),
        ("engine: llama-server", "--says cudaMalloc_failed:_out_of_memory --exit 1", 503, "a smaller `--ctx-size`"),
        ("engine: vllm", "--says torch.OutOfMemoryError:_CUDA_out_of_memory. --exit 1", 503, "`--max-model-len`"),
        ("engine: vllm", "--says vllm:_error:_unrecognized_arguments:_--x --exit 2", 500, "name another version"),
        ("engine: vllm", "--says Address_already_in_use --exit 1", 500, "ask again"),
        ("engine: vllm", "--else-500", 500, "computes nothing"),
        ("engine: sglang", "--die 9", 500, "was ended by signal 9"),
    ] {
        let server = host(options, arguments);
        let (said, answer) = ask(&server, "a").await;
        assert_eq!(said, status, "{options} {arguments}: {answer}");
        let why = why(&server).await;
        assert!(why.contains(words) && !why.contains('\n'), "{options} {arguments}: {why}");
        served(&server, "b").await;
    }
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_with_what_to_do() {
    let yaml = format!(
        "models:\n  a: {{type: text, plugin: vllm, source: {{path: '{}'}}, memory: 64MiB, options: {{engine: llama-server, binary: no-such-server}}}}\n  b: {{type: text, plugin: aihost/echo}}\n",
        stand_in().display()
    );
    let setup = Setup { yaml, plugins: vec!["vllm", "echo"], ..Setup::default() };
    let server = Server::start(&setup);
    assert_eq!(ask(&server, "a").await.0, 500);
    let why = why(&server).await;
    for words in ["no-such-server", "install llama.cpp", "`binary`"] {
        assert!(why.contains(words), "{why}");
    }
    served(&server, "b").await;
}
