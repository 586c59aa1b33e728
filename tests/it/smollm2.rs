//! The main job with a real model: SmolLM2-135M-Instruct through candle-llm, from YAML to a streamed answer.

use aihost_tests::model_file;
use aihost_tests::server::{Server, Setup, aihost, chat, text};
use serde_json::json;

const QUESTION: &str = "Who wrote Romeo and Juliet?";

fn server() -> Server {
    let file = model_file();
    let entry = |name: &str, context: u32| {
        format!(
            "  {name}:\n    type: text\n    plugin: candle-llm\n    source: {{path: {}}}\n    options: {{context: {context}}}\n",
            file.display()
        )
    };
    let yaml = format!(
        "devices: [{{id: cpu, memory: 4GiB, max_loaded: 1}}]\nmodels:\n{}{}",
        entry("one", 512),
        entry("two", 256)
    );
    Server::start(&Setup { yaml, plugins: vec!["candle_llm"], ..Setup::default() })
}

#[tokio::test]
async fn answers_swaps_streams_and_refuses_what_is_too_long() {
    let server = server();
    let mut ask = chat("one", QUESTION);
    ask["max_tokens"] = json!(40);
    let (status, whole) = server.post("/v1/chat/completions", &ask).await;
    assert_eq!(status, 200, "{whole}");
    assert!(text(&whole).contains("Shakespeare"), "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 40);
    let usage = &whole["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap_or(0) + usage["completion_tokens"].as_u64().unwrap_or(0))
    );

    ask["model"] = json!("two");
    // The other model swaps in; greedy text is the same, streamed.
    let body = server.stream(&ask).await.text().await.expect("a stream");
    let mut streamed = String::new();
    for data in body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).filter(|data| *data != "[DONE]") {
        let chunk: serde_json::Value = serde_json::from_str(data).expect("JSON");
        streamed += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(streamed, text(&whole));
    assert!(body.ends_with("data: [DONE]\n\n"));
    server.until("one", "state", json!("parked")).await;

    // Completions, and stop strings across token borders.
    let body = json!({"model": "two", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0});
    let (status, plain) = server.post("/v1/completions", &body).await;
    assert_eq!(status, 200, "{plain}");
    let plain = plain["choices"][0]["text"].as_str().expect("text").to_owned();
    assert!(plain.contains("Paris"), "{plain}");
    let mut stopped = body.clone();
    stopped["stop"] = json!(["ari"]);
    let (_, stopped) = server.post("/v1/completions", &stopped).await;
    assert_eq!(stopped["choices"][0]["text"].as_str(), plain.split("ari").next());
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");

    // The same seed gives the same text.
    let mut seeded = chat("two", "Tell me a story");
    (seeded["temperature"], seeded["seed"], seeded["max_tokens"]) = (json!(1.0), json!(-7), json!(16));
    let (first, second) =
        (server.post("/v1/chat/completions", &seeded).await, server.post("/v1/chat/completions", &seeded).await);
    assert_eq!(text(&first.1), text(&second.1));

    let (status, error) = server.chat("two", &"word ".repeat(400)).await;
    assert_eq!(status, 400, "{error}");
    assert_eq!(error["error"]["code"], "context_length_exceeded");
    ask["max_tokens"] = json!(2);
    assert_eq!(server.post("/v1/chat/completions", &ask).await.0, 200);
    assert_eq!((server.status("one", "loads").await, server.status("two", "loads").await), (json!(1), json!(1)));

    // The command line, against the same server.
    let config = server.folder().join("models.yaml").display().to_string();
    let (code, stdout, stderr) = aihost(
        &[
            "run",
            "two",
            QUESTION,
            "--temperature",
            "0",
            "--max-tokens",
            "24",
            "--config",
            &config,
            "--url",
            server.base(),
        ],
        &[],
    );
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("Shakespeare"), "{stdout}");
    let (code, stdout, stderr) = aihost(&["ps", "--json", "--config", &config, "--url", server.base()], &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("\"hot\""), "{stdout}");
}

#[test]
fn the_sample_models_yaml_checks_out() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models.yaml");
    let (code, stdout, stderr) = aihost(&["check", "--json", "--config", &root.display().to_string()], &[]);
    assert!(stdout.contains("smollm2"), "code {code}: {stdout}{stderr}");
}

/// The most that a process ever had in memory, bytes.
fn peak(pid: &serde_json::Value) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a worker");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    kib.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[tokio::test]
async fn a_prompt_that_no_context_holds_costs_little_and_is_refused_with_the_numbers() {
    let yaml = format!(
        "devices: [{{id: cpu, memory: 4GiB}}]\nmodels:\n  one:\n    type: text\n    plugin: candle-llm\n    source: {{path: {}}}\n    options: {{context: 4096}}\n",
        model_file().display()
    );
    let server = Server::start(&Setup { yaml, plugins: vec!["candle_llm"], ..Setup::default() });
    assert_eq!(server.post("/models/load", &json!({"model": "one"})).await.0, 200);
    let worker = server.status("one", "pid").await;
    let before = peak(&worker);
    for part in ["1", "a", "a!", " ", "\n", "word ", "漢"] {
        // What may fit by its length is cut into tokens until it does not. Of blanks there are tokens of 64.
        for bytes in [15 << 17, 200 << 10].into_iter().filter(|bytes| *bytes > 1 << 20 || !part.trim().is_empty()) {
            let prompt = part.repeat(bytes / part.len());
            for (path, body) in [
                ("/v1/completions", json!({"model": "one", "prompt": prompt, "max_tokens": 1})),
                ("/v1/chat/completions", chat("one", &prompt)),
            ] {
                let (status, body) = server.post(path, &body).await;
                let (code, message) = (&body["error"]["code"], body["error"]["message"].as_str().unwrap_or_default());
                assert_eq!((status, code), (400, &json!("context_length_exceeded")), "{bytes} of {part:?}: {body}");
                assert!(message.contains("4096 tokens") && message.len() < 400, "{message}");
            }
        }
    }
    assert_eq!(server.status("one", "pid").await, worker, "{}", server.log());
    let grown = peak(&worker) - before;
    assert!(grown < 100 << 20, "{grown} bytes more than before");
}

#[tokio::test]
async fn a_template_that_takes_too_much_costs_its_worker_and_says_so() {
    let templates = [
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s|length }}",
        "{{ '{:>1000000000}'.format(1)|length }}",
        "{{ ['a']|batch(1000000000, 'x')|list|length }}",
    ];
    let entry = |(number, template): (usize, &&str)| {
        format!(
            "  bad{number}:\n    type: text\n    plugin: candle-llm\n    source: {{path: {}}}\n    options: {{context: 512, chat_template: \"{template}\"}}\n",
            model_file().display()
        )
    };
    let entries: String = templates.iter().enumerate().map(entry).collect();
    let yaml = format!(
        "devices: [{{id: cpu, memory: 4GiB}}]\nmodels:\n  good:\n    type: text\n    plugin: aihost/echo\n{entries}"
    );
    let server = Server::start(&Setup { yaml, plugins: vec!["candle_llm", "echo"], ..Setup::default() });
    assert_eq!(server.chat("good", "still here").await.0, 200);
    for number in 0..templates.len() {
        let model = format!("bad{number}");
        let (status, body) = server.chat(&model, "hi").await;
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(status >= 400 && message.contains("chat template"), "{model}: {status} {body}");
        // Completions need no template.
        let body = json!({"model": model, "prompt": "The capital of France is", "max_tokens": 1});
        assert_eq!(server.post("/v1/completions", &body).await.0, 200, "{model}");
    }
    let (status, body) = server.chat("good", "still here").await;
    assert_eq!((status, text(&body)), (200, "still here"));
}
