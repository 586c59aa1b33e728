//! Requests that nobody waits for outlive workers, hosts and their own clients, and are answered once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use aihost_tests::server::{Server, Setup, prepare};
use aihost_tests::{Gate, binary, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Kills of workers and hosts with every change, and where there is time.
const KILLS: usize = 20;
const MANY_KILLS: usize = 200;
/// Words of an answer that takes a while.
const WORDS: u32 = 40;
const OVER: [&str; 4] = ["completed", "failed", "cancelled", "expired"];

/// A host on a folder that stays when it ends.
fn serve(config: &Path) -> Server {
    let mut command = Command::new(binary());
    command.args(["serve", "--log-format", "text", "--config"]).arg(config);
    Server::of(&mut command, tempfile::tempdir().unwrap())
}

fn setup(more: &str, options: &str) -> Setup {
    let yaml = format!(
        "devices: [{{id: cpu, memory: 1GiB}}]\n{more}models:\n  a:\n    type: text\n    plugin: aihost/echo\n    options: {options}\n"
    );
    Setup { yaml, plugins: vec!["echo"], ..Setup::default() }
}

/// Asks for a chat as a job; its id.
async fn submit(server: &Server, prompt: &str) -> String {
    let body = json!({"model": "a", "messages": [{"role": "user", "content": prompt}]});
    let (status, job) = server.post("/v1/jobs", &json!({"endpoint": "/v1/chat/completions", "body": body})).await;
    assert_eq!(status, 202, "{job}");
    job["id"].as_str().unwrap().to_owned()
}

async fn job(server: &Server, id: &str) -> Value {
    let (status, job) = server.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!(status, 200, "{job}");
    job
}

fn is_over(job: &Value) -> bool {
    OVER.contains(&job["status"].as_str().unwrap())
}

/// A job, once it has this status.
async fn until(server: &Server, id: &str, status: &str) -> Value {
    eventually(async || {
        let job = job(server, id).await;
        assert!(job["status"] == status || !is_over(&job), "{job}");
        if job["status"] == status { Ok(job) } else { Err(format!("it is not {status}: {job}")) }
    })
    .await
}

async fn answer(server: &Server, id: &str) -> String {
    let (status, body) = server.get(&format!("/v1/jobs/{id}/result")).await;
    assert_eq!(status, 200, "{body}");
    aihost_tests::server::text(&body).to_owned()
}

fn kill(pid: i64) {
    // It may have ended by itself in this moment.
    let _gone = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL);
}

#[tokio::test]
async fn each_job_is_answered_once_however_often_workers_and_hosts_are_killed() {
    kill_through(KILLS).await;
}

#[tokio::test]
#[ignore = "takes minutes: a step of `cargo xtask ci --full`"]
async fn each_job_is_answered_once_through_two_hundred_kills() {
    kill_through(MANY_KILLS).await;
}

/// Asks for two jobs before each kill, of the worker and of the host in turn, each time at another moment.
async fn kill_through(kills: usize) {
    let (_folder, config) = prepare(&setup("", &format!("{{latency_ms: 2, tokens: {WORDS}}}")));
    let mut server = serve(&config);
    let mut prompts = BTreeMap::new();
    // What was once told of a job's end.
    let mut ends: BTreeMap<String, Value> = BTreeMap::new();
    for round in 0..kills {
        for number in 0..2 {
            let prompt = format!("r{round}n{number} ");
            prompts.insert(submit(&server, &prompt).await, prompt);
        }
        let newest = prompts.keys().next_back().unwrap().clone();
        // At once, while it runs, or when another has just ended.
        match round % 5 {
            0 => {}
            1 | 2 => {
                eventually(async || {
                    let job = job(&server, &newest).await;
                    if job["status"] == "queued" { Err(job.to_string()) } else { Ok(()) }
                })
                .await;
            }
            _ => {
                eventually(async || {
                    for id in prompts.keys().filter(|id| !ends.contains_key(*id)).take(1) {
                        let job = job(&server, id).await;
                        if !is_over(&job) {
                            return Err(job.to_string());
                        }
                    }
                    Ok(())
                })
                .await;
            }
        }
        for id in prompts.keys() {
            let job = job(&server, id).await;
            if let Some(end) = ends.get(id) {
                let what =
                    |job: &Value| json!([job["status"], job["completed_at"], job["error"], job["result"]["bytes"]]);
                assert_eq!(what(&job), what(end));
            } else if is_over(&job) {
                ends.insert(id.clone(), job);
            }
        }
        let worker = server.status("a", "pid").await.as_i64();
        match worker.filter(|_| round % 2 == 0) {
            Some(worker) => kill(worker),
            None => {
                kill(i64::from(server.pid()));
                server.wait();
                server = serve(&config);
            }
        }
    }
    let mut completed = 0;
    for (id, prompt) in &prompts {
        let end = eventually(async || {
            let job = job(&server, id).await;
            if is_over(&job) { Ok(job) } else { Err(job.to_string()) }
        })
        .await;
        assert!(end["attempts"].as_u64().unwrap() <= 2, "{end}");
        let file = config.parent().unwrap().join("state/jobs/answers").join(id);
        assert_eq!(file.is_file(), end["status"] == "completed", "{end}");
        if end["status"] == "completed" {
            completed += 1;
            assert!(answer(&server, id).await.starts_with(prompt.trim_end()), "{end}");
        } else {
            let code = end["error"]["code"].as_str().unwrap();
            assert!(["job_interrupted", "worker_died", "request_suspected"].contains(&code), "{end}");
        }
    }
    let (_, listed) = server.get("/v1/jobs?limit=100").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), prompts.len().min(100));
    assert!(completed > kills / 2, "{completed} of {} jobs have an answer", prompts.len());
}

#[tokio::test]
async fn a_host_that_drains_leaves_a_job_to_the_next_one() {
    let gate = Gate::closed();
    let options = format!("{{tokens: {WORDS}, answer_gate: {}}}", gate.path().display());
    let (_folder, config) = prepare(&setup("limits: {drain_timeout: 100ms}\n", &options));
    let mut server = serve(&config);
    let id = submit(&server, "word").await;
    until(&server, &id, "in_progress").await;
    server.until("a", "active", json!(1)).await;
    for _ in 0..3 {
        server.signal(Signal::TERM);
        assert!(server.wait().success());
        server = serve(&config);
        server.until("a", "active", json!(1)).await;
        assert_eq!(until(&server, &id, "in_progress").await["attempts"], 1, "stops are no crashes");
    }
    gate.open();
    let end = until(&server, &id, "completed").await;
    assert_eq!((&end["attempts"], &end["usage"]["completion_tokens"]), (&json!(1), &json!(WORDS)));
    assert_eq!(answer(&server, &id).await, "word".repeat(WORDS as usize));
}

#[tokio::test]
async fn a_job_that_is_cancelled_gives_its_place_back() {
    let gate = Gate::closed();
    let options = format!("{{tokens: {WORDS}, answer_gate: {}}}", gate.path().display());
    let server = Server::start(&setup("", &options));
    let id = submit(&server, "word").await;
    server.until("a", "active", json!(1)).await;
    let (status, job) = server.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await;
    assert_eq!((status, &job["status"]), (200, &json!("cancelled")));
    gate.open();
    server.until("a", "active", json!(0)).await;
    assert_eq!(server.get(&format!("/v1/jobs/{id}")).await.1["status"], "cancelled");
}

/// Images and music by the models that are in the repository, as their clients would have had them.
#[tokio::test]
async fn images_and_music_are_made_in_the_background_as_they_are_otherwise() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").canonicalize().unwrap();
    let entry = |name: &str, kind: &str, plugin: &str, folder: &str| {
        format!("  {name}: {{type: {kind}, plugin: {plugin}, source: {{path: {}}}}}\n", golden.join(folder).display())
    };
    let yaml = format!(
        "devices: [{{id: cpu, memory: 1GiB}}]\nmodels:\n{}{}",
        entry("fox", "image", "flux", "flux/dev"),
        entry("tune", "audio", "musicgen", "musicgen/mono")
    );
    let server = Server::start(&Setup { yaml, plugins: vec!["flux", "musicgen"], ..Setup::default() });
    let image = json!({"model": "fox", "prompt": "a red fox", "size": "48x32", "steps": 3, "seed": 7});
    let music = json!({"model": "tune", "prompt": "rain", "duration": 0.2, "temperature": 0});
    for (path, mut body, kind) in
        [("/v1/images/generations", image, "application/json"), ("/v1/audio/generations", music, "audio/wav")]
    {
        let bytes = async |response: reqwest::Response| {
            assert_eq!(response.headers()["content-type"], kind);
            response.bytes().await.unwrap()
        };
        let client = aihost_tests::server::client();
        let post = client.post(format!("{}{path}", server.base())).json(&body);
        let waited = bytes(post.send().await.unwrap()).await;
        body["background"] = json!(true);
        let (status, job) = server.post(path, &body).await;
        assert_eq!(status, 202, "{job}");
        let job = until(&server, job["id"].as_str().unwrap(), "completed").await;
        assert_eq!(job["progress"], 100);
        let url = job["result"]["url"].as_str().unwrap();
        assert!(url.starts_with(server.base()), "{url}");
        let made = bytes(client.get(url).send().await.unwrap()).await;
        let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).map(|json| json["data"].clone());
        match (read(&waited), read(&made)) {
            (Ok(waited), Ok(made)) => assert_eq!(waited, made),
            _ => assert!(waited == made && !made.is_empty()),
        }
    }
}
