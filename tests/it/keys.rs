//! API keys, from models.yaml to the log; and where commands send them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use aihost_tests::server::{Server, Setup, aihost, chat, client, prepare, text};
use aihost_tests::{binary, eventually};
use reqwest::StatusCode;
use serde_json::{Value, json};

const MODELS: &str = "models:\n  a: {type: text, plugin: aihost/echo, aliases: [other-a]}\n  slow: {type: text, plugin: aihost/echo, options: {latency_ms: 50}}\n";

const ANNA: &str = "the-key-of-anna-1";
const BEN: &str = "the-key-of-ben-12";

fn with_keys(keys: &str) -> Setup {
    Setup { yaml: format!("api_keys:\n{keys}{MODELS}"), plugins: vec!["echo"], ..Setup::default() }
}

async fn ask(server: &Server, key: &str, body: &Value) -> reqwest::Response {
    let url = format!("{}/v1/chat/completions", server.base());
    client().post(url).bearer_auth(key).json(body).send().await.expect("an answer")
}

async fn status(server: &Server, key: &str, body: &Value) -> StatusCode {
    let answer = ask(server, key, body).await;
    let status = answer.status();
    answer.bytes().await.expect("a body");
    status
}

fn streamed(model: &str, words: usize) -> Value {
    let mut body = chat(model, &"word ".repeat(words));
    body["stream"] = json!(true);
    body
}

#[tokio::test]
async fn a_plugin_learns_of_its_request_and_not_who_sent_it() {
    let yaml = format!(
        "api_keys:\n  - {{name: anna, key: {ANNA}}}\n  - {{name: ben, key: {BEN}, class: batch}}\n\
         limits: {{request_timeout: 77s}}\nmodels:\n  spy: {{type: text, plugin: aihost/spy}}\n"
    );
    let server = Server::start(&Setup { yaml, plugins: vec!["spy"], ..Setup::default() });
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let told = async |key: &str| {
        let url = format!("{}/v1/chat/completions", server.base());
        let request = client().post(url).bearer_auth(key).header("x-request-id", "mine-1").header("traceparent", trace);
        let answer: Value = request.json(&chat("spy", "request")).send().await.unwrap().json().await.unwrap();
        text(&answer).to_owned()
    };
    let (anna, again, ben) = (told(ANNA).await, told(ANNA).await, told(BEN).await);
    for said in ["id: \"mine-1\"", "class: \"interactive\"", "time_limit_ms: Some(77000)", trace] {
        assert!(anna.contains(said), "{anna}");
    }
    assert_eq!(anna, again, "one owner");
    assert!(ben.contains("class: \"batch\""), "{ben}");
    let owner = |said: &str| said.split("owner: ").nth(1).map(str::to_owned).unwrap();
    assert_ne!(owner(&anna), owner(&ben));
    assert!(!anna.contains("anna") && !anna.contains(ANNA) && owner(&anna).len() > 16, "{anna}");
}

#[tokio::test]
async fn keys_change_while_their_streams_go_on() {
    let before = format!("  - {{name: anna, key: {ANNA}, concurrency: 1, models: [slow], scope: [use, operate]}}\n");
    let server = Server::start(&with_keys(&before));
    let stream = ask(&server, ANNA, &streamed("slow", 60)).await;
    assert_eq!(stream.status(), 200);
    // One at a time, and of one model only.
    assert_eq!(status(&server, ANNA, &chat("slow", "hi")).await, 429);
    let file = server.folder().join("models.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(&before, &format!("  - {{name: ben, key: {BEN}}}\n"))).unwrap();
    eventually(async || match status(&server, BEN, &chat("a", "hi")).await {
        StatusCode::OK => Ok(()),
        other => Err(format!("the new key is not in force: {other}")),
    })
    .await;
    assert_eq!(status(&server, ANNA, &chat("slow", "hi")).await, 401);
    let text = stream.text().await.expect("it goes on to its end");
    assert_eq!(text.matches("word").count(), 60);
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_place_is_free_again_when_an_answer_ends_or_its_client_leaves() {
    let server = Server::start(&with_keys(&format!("  - {{name: anna, key: {ANNA}, concurrency: 1}}\n")));
    let free = || async {
        eventually(async || match status(&server, ANNA, &chat("a", "hi")).await {
            StatusCode::OK => Ok(()),
            other => Err(format!("{other}")),
        })
        .await;
    };
    free().await;
    let stream = ask(&server, ANNA, &streamed("slow", 20)).await;
    assert_eq!(status(&server, ANNA, &chat("a", "hi")).await, 429);
    stream.text().await.expect("its end");
    free().await;
    let stream = ask(&server, ANNA, &streamed("slow", 10_000)).await;
    assert_eq!(status(&server, ANNA, &chat("a", "hi")).await, 429);
    drop(stream);
    free().await;
}

#[tokio::test]
async fn the_log_names_keys_and_never_shows_them() {
    let keys = format!("  - {{name: anna, key: {ANNA}, rate: 2/h, models: [a]}}\n  - {BEN}\n  - short\n");
    let server = Server::start(&with_keys(&keys));
    let get = |path: &str, key: &str| {
        let request = client().get(format!("{}{path}", server.base())).bearer_auth(key);
        async { request.send().await.expect("an answer").status().as_u16() }
    };
    assert_eq!(get("/v1/models", "a-key-that-was-guessed").await, 401);
    assert_eq!(get("/admin/status", ANNA).await, 403);
    for wanted in [200, 200, 429] {
        assert_eq!(get("/v1/models", ANNA).await, wanted);
    }
    assert_eq!(get("/admin/status", BEN).await, 200);
    let log = server.logged("rate_limit_exceeded").await;
    for line in ["invalid_api_key", "missing_scope", "rate_limit_exceeded"] {
        let line = log.lines().find(|found| found.contains(line)).unwrap_or_else(|| panic!("no {line}: {log}"));
        assert_eq!(line.contains("anna"), !line.contains("invalid_api_key"), "{line}");
        assert!(line.contains("127.0.0.1"), "{line}");
    }
    let config = server.folder().join("models.yaml").display().to_string();
    let (_, _, warned) = aihost(&["check", "--config", &config], &[]);
    assert!(warned.contains("the key of `key-3` is shorter than 16 characters"), "{warned}");
    for secret in [ANNA, BEN, "a-key-that-was-guessed"] {
        assert!(!log.contains(secret) && !warned.contains(secret), "{log}{warned}");
    }
}

/// The heads of requests.
type Heads = Mutex<Vec<String>>;
/// Of an environment.
type Variables<'a> = &'a [(&'a str, &'a str)];

/// A server that notes the heads of what it is sent, and answers each with this.
fn listener(answer: &'static str) -> (SocketAddr, Arc<Heads>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (address, heads) = (listener.local_addr().expect("an address"), Arc::new(Mutex::new(Vec::new())));
    let noted = Arc::clone(&heads);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            noted.lock().unwrap().push(String::from_utf8_lossy(&head).to_ascii_lowercase());
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    (address, heads)
}

const EMPTY_LIST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]";

#[test]
fn a_command_sends_a_key_only_to_the_server_that_it_belongs_to() {
    let (own, own_heads) = listener(EMPTY_LIST);
    let (other, other_heads) = listener(EMPTY_LIST);
    let yaml = format!("listen: {own}\napi_keys: [key-of-the-file-]\n{MODELS}");
    let (_folder, config) = prepare(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    let config = config.display().to_string();
    let port = own.port();
    let in_environment = &[("AIHOST_API_KEY", "key-of-the-environment"), ("OTHER", "key-of-a-variable")][..];
    let other_url = format!("http://{other}");
    let (own_url, own_name) = (format!("http://{own}/"), format!("http://localhost:{port}"));
    let no_secure = format!("http://user:pa55@{own}");
    let cases: [(&[&str], Variables<'_>, &Heads, Option<&str>); 9] = [
        (&[], &[], &own_heads, Some("key-of-the-file-")),
        (&[], in_environment, &own_heads, Some("key-of-the-environment")),
        (&["--url", &own_url], in_environment, &own_heads, Some("key-of-the-environment")),
        (&["--url", &own_name], &[], &own_heads, Some("key-of-the-file-")),
        (&["--url", &other_url], &[], &other_heads, None),
        (&["--url", &other_url], in_environment, &other_heads, None),
        (&["--url", &other_url, "--key", "named"], in_environment, &other_heads, Some("named")),
        (&["--url", &other_url, "--key", "env:OTHER"], in_environment, &other_heads, Some("key-of-a-variable")),
        (&["--key", "named"], in_environment, &own_heads, Some("named")),
    ];
    for (arguments, env, heads, wanted) in cases {
        for command in [&["ps"][..], &["models", "list"][..]] {
            let all: Vec<&str> = command.iter().chain(arguments).copied().chain(["--config", &config]).collect();
            let (code, _, stderr) = aihost(&all, env);
            assert_eq!(code, 0, "{all:?}: {stderr}");
            let head = heads.lock().unwrap().pop().unwrap_or_else(|| panic!("{all:?} asked another server"));
            let sent = head.lines().find_map(|line| line.strip_prefix("authorization: bearer "));
            assert_eq!(sent, wanted, "{all:?}");
        }
    }
    // What belongs to a URL itself is no key of ours, and is shown nowhere.
    let (_, _, stderr) = aihost(&["ps", "--url", &no_secure, "--config", &config], in_environment);
    let head = own_heads.lock().unwrap().pop().unwrap_or_default();
    assert!(!head.contains("key-of"), "{head}");
    assert!(!stderr.contains("pa55"), "{stderr}");
}

#[test]
fn a_redirect_takes_no_key_along() {
    let (elsewhere, heads) = listener(EMPTY_LIST);
    let redirect: &'static str = Box::leak(
        format!("HTTP/1.1 307 Go\r\nLocation: http://{elsewhere}/admin/status\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .into_boxed_str(),
    );
    let (first, _) = listener(redirect);
    let (code, _, stderr) = aihost(&["ps", "--url", &format!("http://{first}"), "--key", "named"], &[]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("sends elsewhere (307") && stderr.contains("hint: "), "{stderr}");
    assert!(heads.lock().unwrap().is_empty());
}

#[test]
fn passwords_in_a_servers_address_are_not_shown() {
    for (url, code) in [
        ("http://user:pa55@127.0.0.1:1", 4),
        ("http://user:pa55@127.0.0.1:1/?token=pa55", 4),
        ("http://user:pa55@host:port", 2),
        ("user:pa55@host", 2),
        ("ftp://user:pa55@127.0.0.1", 2),
    ] {
        for command in ["ps", "why a", "logs a", "models load a", "run a hi"] {
            let arguments: Vec<&str> = command.split(' ').chain(["--url", url]).collect();
            let (ended, stdout, stderr) = aihost(&arguments, &[]);
            assert!(!stdout.contains("pa55") && !stderr.contains("pa55"), "{arguments:?}: {stdout}{stderr}");
            assert!(ended == code || ended == 4, "{arguments:?}: {ended}: {stderr}");
        }
    }
}

#[tokio::test]
async fn commands_use_the_key_that_is_for_what_they_do() {
    let keys = format!("  - {{name: anna, key: {ANNA}}}\n  - {{name: ben, key: {BEN}, scope: operate}}\n");
    let setup = with_keys(&keys);
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let yaml = format!("listen: 127.0.0.1:{port}\n{}", setup.yaml);
    let server = Server::start(&Setup { yaml, ..setup });
    let config = server.folder().join("models.yaml").display().to_string();
    let run = |line: &'static str, env: Vec<(&'static str, &'static str)>| {
        let config = config.clone();
        let run = move || {
            let arguments: Vec<&str> = line.split(' ').chain(["--config", &config]).collect();
            aihost(&arguments, &env)
        };
        async { tokio::task::spawn_blocking(run).await.expect("it ran") }
    };
    for line in ["ps", "why a", "models load a", "logs a", "models unload a", "run other-a hi"] {
        let (code, stdout, stderr) = run(line, Vec::new()).await;
        assert_eq!(code, 0, "{line}: {stdout}{stderr}");
    }
    let (code, _, stderr) = run("ps", vec![("AIHOST_API_KEY", ANNA)]).await;
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("`operate`") && stderr.contains("--key"), "{stderr}");
    assert!(!stderr.contains(ANNA), "{stderr}");
}

#[test]
fn a_plugin_that_nothing_confines_is_said_to_be_unconfined() {
    let (_folder, config) = prepare(&Setup { yaml: MODELS.into(), plugins: vec!["echo"], ..Setup::default() });
    let config = config.display().to_string();
    let info = ["plugins", "info", "aihost/echo", "--config", &config];
    // 444 is `landlock_create_ruleset` everywhere; as on a kernel that does not know it.
    let denied = std::process::Command::new(aihost_tests::deny()).args(["444", "38"]).arg(binary()).args(info).output();
    let denied = String::from_utf8_lossy(&denied.expect("it runs").stdout).into_owned();
    let line = |text: &str| text.lines().find(|line| line.starts_with("confinement ")).map(str::to_owned);
    assert!(line(&denied).is_some_and(|line| line.ends_with(" unconfined")), "{denied}");
    let (code, stdout, stderr) = aihost(&info, &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(line(&stdout).is_some_and(|line| line.ends_with("confined")), "{stdout}");
}
