//! Requests that are well-formed and meant badly: what each costs the host, in memory and time, and who else feels it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aihost_tests::server::{Server, Setup, aihost, client, prepare};
use aihost_tests::{eventually, wait_for};
use serde_json::{Value, json};

/// Bytes of a body of the matrix; what its endpoint takes, if that is less.
const BODY_BYTES: usize = 320 << 10;
/// What a request may cost the host's memory: so many times its body, and this.
const BODY_FACTOR: u64 = 8;
const EXTRA_BYTES: u64 = 1 << 20;
/// CPU time that a request may take, in a build that is hardly optimised.
const CPU_LIMIT: Duration = Duration::from_millis(1500);
/// What Linux counts a process's time in.
const TICK: Duration = Duration::from_millis(10);
/// Models that are too many to be listed for everyone.
const LISTED_MODELS: usize = 10_000;
/// What may stay of all of them.
const KEPT_BYTES: u64 = 32 << 20;

/// A host with a quick model for text, and names for the other kinds.
fn host(more: &str) -> Server {
    let mut yaml = format!("{more}devices: [{{id: cpu, memory: 1GiB}}]\nmodels:\n");
    // Says the same whatever it is asked, so that what is measured is the request.
    yaml += "  a: {type: text, plugin: aihost/faulty}\n";
    yaml += "  flux: {type: image, plugin: aihost/none}\n  music: {type: audio, plugin: aihost/none}\n";
    for number in 0..500 {
        yaml += &format!(
            "  model-{number:04}-of-very-many: {{type: text, plugin: aihost/none, aliases: [alias-{number:04}-of-very-many]}}\n"
        );
    }
    Server::start(&Setup { yaml, plugins: vec!["faulty"], ..Setup::default() })
}

/// A number of bytes in the host's own account of its memory.
fn memory(server: &Server, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

/// From now on the peak is counted anew.
fn forget_peak(server: &Server) {
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").unwrap();
}

/// CPU time of the host's process so far.
fn cpu(server: &Server) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
    ticks * TICK
}

/// Waits until the host holds little more than it did.
async fn settles(server: &Server, begin: u64) {
    eventually(async || {
        let now = memory(server, "VmRSS");
        let how = format!("it held {} KiB, and holds {} KiB", begin >> 10, now >> 10);
        if now > begin + KEPT_BYTES {
            return Err(how);
        }
        eprintln!("{how}");
        Ok(())
    })
    .await;
}

/// Makes a value of about so many bytes.
type Make = fn(usize) -> String;

/// What any field is filled with.
const WORST: &[(&str, Make)] = &[
    ("a text", |bytes| format!("\"{}\"", "a ".repeat(bytes / 2))),
    ("escapes", |bytes| format!("\"{}\"", "\\u0041".repeat(bytes / 6))),
    ("numbers", |bytes| many("0", bytes)),
    ("arrays", |bytes| many("[0]", bytes)),
    ("texts", |bytes| many("\"a\"", bytes)),
    ("depth", |bytes| "[".repeat(bytes / 2) + &"]".repeat(bytes / 2)),
    ("one key again and again", |bytes| format!("{{{}\"a\":0}}", "\"a\":0,".repeat(bytes / 6))),
    ("token ids as keys", |bytes| {
        format!("{{{}\"0\":0}}", (0..bytes / 8).map(|n| format!("\"{n}\":1,")).collect::<String>())
    }),
    ("a long number", |bytes| "1".repeat(bytes)),
];

/// What arrays are filled with besides: as much as there can be of what they are for.
const WORST_OF_ARRAYS: &[(&str, &str, Make)] = &[
    ("messages", "messages", |bytes| many(r#"{"role":"user","content":""}"#, bytes)),
    ("content", "parts", |bytes| many(r#"{"type":"text","text":""}"#, bytes)),
    ("tool_calls", "calls", |bytes| many(r#"{"function":{"name":"f"}}"#, bytes)),
    ("tools", "tools", |bytes| numbered(|n| format!(r#"{{"type":"function","function":{{"name":"f{n}"}}}}"#), bytes)),
    ("functions", "functions", |bytes| numbered(|n| format!(r#"{{"name":"f{n}"}}"#), bytes)),
    ("tool_choice", "tools that are allowed", |bytes| {
        let tools = numbered(|n| format!(r#"{{"type":"function","name":"f{n}"}}"#), bytes);
        format!(r#"{{"type":"allowed_tools","mode":"auto","tools":{tools}}}"#)
    }),
    ("guided_json", "the text of a schema", |bytes| format!("\"{{\\\"enum\\\":{}}}\"", many("0", bytes))),
    ("parameters", "objects", |bytes| format!("{{\"a\":{}}}", many("{\"a\":0}", bytes))),
    ("stop", "an array of one text", |bytes| format!("[\"{}\"]", "a".repeat(bytes))),
    ("prompt", "an array of one text", |bytes| format!("[\"{}\"]", "a".repeat(bytes))),
    ("prompt", "control characters", |bytes| format!("\"{}\"", "\\u001b".repeat(bytes / 6))),
    ("content", "control characters", |bytes| format!("\"{}\"", "\\u001b".repeat(bytes / 6))),
    ("unheard_of", "objects", |bytes| many("{\"a\":0}", bytes)),
    ("unheard_of", "white space", |bytes| format!("[{}]", " ".repeat(bytes))),
];

fn many(item: &str, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + item.len() + 2);
    text.push('[');
    while text.len() + item.len() < bytes {
        text.push_str(item);
        text.push(',');
    }
    text + item + "]"
}

/// No two items are the same.
fn numbered(item: impl Fn(usize) -> String, bytes: usize) -> String {
    let count = bytes / item(bytes).len();
    format!("[{}]", (0..count).map(item).collect::<Vec<_>>().join(","))
}

/// A request that its endpoint takes, with one field put in by its path.
fn filled(path: &str, field: &str, value: &str) -> String {
    let is_call = field.contains("tool_calls") || field.contains("function_call");
    let role = if is_call { "assistant" } else { "user" };
    let mut body = match path {
        "/v1/audio/generations" | "/v1/audio/speech" => json!({"model": "music", "prompt": "rain"}),
        path if path.contains("/images/") => json!({"model": "flux", "prompt": "a fox"}),
        path if path.starts_with("/models/") => json!({"model": "flux"}),
        path if path.contains("/chat/") => json!({
            "model": "a", "max_tokens": 1, "n": 8, "seed": 1, "messages": [{"role": role, "content": "hi"}],
        }),
        _ => json!({"model": "a", "max_tokens": 1, "n": 8, "seed": 1, "prompt": "hi"}),
    };
    let mut at = &mut body;
    for part in field.split('.') {
        let (key, is_list) = part.strip_suffix("[]").map_or((part, false), |key| (key, true));
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[key];
        if is_list {
            if !at.is_array() {
                *at = json!([{"type": "function", "role": "user", "content": "x", "name": "f", "function": {"name": "f"}}]);
            }
            at = &mut at[0];
        }
    }
    *at = json!("@@");
    body.to_string().replacen("\"@@\"", value, 1)
}

/// Every endpoint, every field that it reads and one that it does not, filled with every bad thing.
#[tokio::test(flavor = "multi_thread")]
async fn no_field_of_any_request_costs_more_than_its_bytes() {
    let server = host("");
    let (code, table, errors) = aihost(&["generated-page", "requests"], &[]);
    assert_eq!(code, 0, "{errors}");
    let table: Value = serde_json::from_str(&table).unwrap();
    let client = client();
    // The model is loaded, and whatever is made once is made.
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let begin = memory(&server, "VmRSS");
    let (mut count, mut worst) = (0, (0.0, String::new()));
    for reading in table.as_array().unwrap() {
        let path = reading["path"].as_str().unwrap();
        let bytes = BODY_BYTES.min(reading["body_bytes_max"].as_u64().unwrap() as usize - 1024);
        // The same endpoint by another path is asked once.
        let is_alias = !path.starts_with("/v1/") && !path.starts_with("/models/");
        let fields = reading["fields"].as_array().unwrap().iter().filter(|_| !is_alias);
        for field in fields.filter_map(Value::as_str).chain(["unheard_of"]) {
            let key = field.rsplit('.').next().unwrap();
            let own = WORST_OF_ARRAYS.iter().filter(|(of, ..)| *of == key).map(|(_, what, make)| (what, make));
            for (what, make) in WORST.iter().map(|(what, make)| (what, make)).chain(own) {
                let body = filled(path, field, &make(bytes));
                let length = body.len() as u64;
                let before = memory(&server, "VmRSS");
                forget_peak(&server);
                let busy = cpu(&server);
                let sent = client.post(format!("{}{path}", server.base())).header("content-type", "application/json");
                let reply = sent.body(body).send().await.unwrap_or_else(|e| panic!("{path} {field} {what}: {e}"));
                let status = reply.status().as_u16();
                let text = reply.text().await.unwrap();
                let took = cpu(&server).saturating_sub(busy);
                let grown = memory(&server, "VmHWM").saturating_sub(before);
                assert!(grown <= BODY_FACTOR * length + EXTRA_BYTES, "{path} {field}, {what}: {grown} for {length}");
                assert!(took <= CPU_LIMIT, "{path} {field}, {what}: {took:?}");
                assert!(
                    status < 500 || text.contains("model_not_usable"),
                    "{path} {field}, {what}: {status} {text:.300}"
                );
                assert!(status == 200 || text.len() < 1024, "{path} {field}, {what}: {} bytes of error", text.len());
                let factor = grown.saturating_sub(EXTRA_BYTES) as f64 / length as f64;
                if factor > worst.0 {
                    worst = (factor, format!("{path} {field}, {what}: {status}"));
                }
                count += 1;
            }
        }
    }
    eprintln!("{count} requests; the dearest took {:.1} times its body: {}", worst.0, worst.1);
    settles(&server, begin).await;
}

/// The same for what a head can carry.
#[tokio::test(flavor = "multi_thread")]
async fn no_head_costs_more_than_its_bytes() {
    let server = host("");
    let client = client();
    let long = "q".repeat(60 << 10);
    let pairs = "a&".repeat(30 << 10);
    assert_eq!(server.get("/health").await.0, 200);
    for path in [
        format!("/v1/models/{long}"),
        format!("/logs/{long}"),
        format!("/logs/a?{pairs}"),
        format!("/admin/plan?model={long}"),
        format!("/admin/plan?{pairs}"),
        format!("/artifacts/{long}"),
        format!("/{long}"),
        format!("/v1/models/{}", "%41".repeat(20 << 10)),
    ] {
        let before = memory(&server, "VmRSS");
        forget_peak(&server);
        let busy = cpu(&server);
        let reply = client.get(format!("{}{path}", server.base())).send().await.unwrap();
        let status = reply.status().as_u16();
        let text = reply.text().await.unwrap();
        assert!(status == 200 || text.len() < 1024, "{:.40}: {} bytes of error", path, text.len());
        assert!(cpu(&server).saturating_sub(busy) <= CPU_LIMIT, "{path:.40}");
        let grown = memory(&server, "VmHWM").saturating_sub(before);
        assert!(grown <= BODY_FACTOR * path.len() as u64 + EXTRA_BYTES, "{path:.40}: {grown}");
    }
}

/// The bodies that cost most, each as large as its endpoint takes.
fn costly() -> Vec<(&'static str, String)> {
    let most = (4 << 20) - 4096;
    let unread = |value: String| format!(r#"{{"model":"a","max_tokens":1,"prompt":"hi","x":{value}}}"#);
    let texts = vec!["a"; 1024];
    vec![
        ("/v1/completions", unread(many("[1]", most))),
        ("/v1/completions", unread(many("{\"a\":0}", most))),
        (
            "/v1/completions",
            json!({"model": "a", "max_tokens": 1, "prompt": texts, "stop": ["z".repeat(most - 8192)]}).to_string(),
        ),
        ("/v1/completions", format!(r#"{{"model":"a","max_tokens":1,"prompt":{}}}"#, many("1", most))),
        (
            "/v1/chat/completions",
            format!(r#"{{"model":"a","max_tokens":1,"messages":{}}}"#, many(r#"{"role":"user","content":""}"#, most)),
        ),
        ("/v1/chat/completions", json!({"model": "q".repeat(most - 100), "messages": []}).to_string()),
        ("/v1/completions", json!({"model": "q".repeat(120), "prompt": "x"}).to_string()),
        ("/v1/chat/completions", json!({"model": "q".repeat(16 << 10), "messages": []}).to_string()),
    ]
}

/// Four clients send each of the worst bodies there are; a probe is asked one time after another all the while. What would
/// hold a thread that it needs makes it few.
#[tokio::test(flavor = "multi_thread")]
async fn others_are_served_while_the_worst_bodies_come() {
    let server = host("");
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let begin = memory(&server, "VmRSS");
    let costly = Arc::new(costly());
    let left = Arc::new(AtomicUsize::new(4 * costly.len()));
    for number in 0..4 {
        let (base, costly, left) = (server.base().to_owned(), Arc::clone(&costly), Arc::clone(&left));
        tokio::spawn(async move {
            let client = client();
            for turn in 0..costly.len() {
                let (path, body) = &costly[(number + turn) % costly.len()];
                let request = client.post(format!("{base}{path}")).header("content-type", "application/json");
                request.body(body.clone()).send().await.unwrap().bytes().await.unwrap();
                left.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
    let (client, mut probes) = (client(), 0);
    while left.load(Ordering::Relaxed) > 0 {
        assert_eq!(client.get(format!("{}/livez", server.base())).send().await.unwrap().status(), 200);
        probes += 1;
    }
    let bodies = 4 * costly.len();
    eprintln!("{bodies} bodies, {probes} probes");
    assert!(probes >= 5 * bodies, "{probes} probes beside {bodies} bodies");
    settles(&server, begin).await;
}

/// Who lists very many models, again and again and beside others, leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn listings_of_very_many_models_are_given_back() {
    let entries =
        (0..LISTED_MODELS).map(|number| format!("  model-{number:05}-of-very-many: {{type: text, plugin: p}}\n"));
    let server =
        Server::start(&Setup { yaml: format!("models:\n{}", entries.collect::<String>()), ..Setup::default() });
    assert_eq!(server.get("/health").await.0, 200);
    let begin = memory(&server, "VmRSS");
    let mut clients = Vec::new();
    for path in ["/metrics", "/admin/status", "/models", "/v1/models"].repeat(4) {
        let (url, client) = (format!("{}{path}", server.base()), client());
        clients.push(tokio::spawn(async move {
            for _ in 0..3 {
                let reply = client.get(&url).send().await.unwrap();
                assert_eq!(reply.status(), 200);
                let text = reply.text().await.unwrap();
                assert!(text.contains("model-09999-of-very-many"), "{url}");
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    settles(&server, begin).await;
}

/// Bodies that do not end hold no more than all bodies may, and keep no short request out.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_end_are_bounded_together() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = host("limits: {bodies: 16MiB}\n");
    assert_eq!(server.chat("a", "hi").await.0, 200);
    let before = memory(&server, "VmRSS");
    let address = server.base().strip_prefix("http://").unwrap().to_owned();
    let refused = Arc::new(AtomicUsize::new(0));
    for _ in 0..20 {
        let (address, refused) = (address.clone(), Arc::clone(&refused));
        tokio::spawn(async move {
            let mut client = tokio::net::TcpStream::connect(&address).await.unwrap();
            let head = format!("POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: 4000000\r\n\r\n");
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(&vec![b' '; 3 << 20]).await.unwrap();
            let mut status = [0; 12];
            client.read_exact(&mut status).await.unwrap();
            refused.fetch_add(usize::from(&status == b"HTTP/1.1 503"), Ordering::Relaxed);
        });
    }
    // 14 MiB of the room are for what is longer than 64 KiB.
    wait_for("16 of 20 are refused", || (refused.load(Ordering::Relaxed) >= 16).then_some(())).await;
    assert_eq!(server.chat("a", "hi").await.0, 200, "a short request is kept out");
    let grown = memory(&server, "VmRSS").saturating_sub(before);
    assert!(grown <= (16 << 20) + KEPT_BYTES, "{grown}");
}

/// A folder whose `faulty` describes itself in this way, and its models.yaml: one entry of it, one of `echo` that is wrong.
fn described(fault: &str) -> (tempfile::TempDir, String) {
    let yaml = "models:\n  bad: {type: text, plugin: aihost/faulty, options: {colour: red}}\n  typo: {type: text, plugin: aihost/echo, options: {tokns: 1}}\n";
    let (folder, config) = prepare(&Setup { yaml: yaml.into(), plugins: vec!["echo", "faulty"], ..Setup::default() });
    let path = folder.path().join("plugins/faulty.so");
    let mut file = std::fs::read(&path).expect("the plugin");
    let mark = b"describe:nothing................";
    let at = file.windows(mark.len()).position(|bytes| bytes == mark).expect("the fault's name");
    let name = format!("describe:{fault}");
    file[at..at + mark.len()].fill(b'.');
    file[at..at + name.len()].copy_from_slice(name.as_bytes());
    std::fs::write(&path, file).expect("another plugin");
    (folder, config.display().to_string())
}

#[test]
fn a_plugin_that_cannot_say_what_it_takes_is_one_sentence_and_the_rest_is_checked() {
    for (fault, told) in [
        ("panic", "its code panicked"),
        ("abort", "signal 6"),
        ("exit", "code 0"),
        ("hang", "within 10 s"),
        ("garble", "of at most"),
        ("endless", "of at most"),
    ] {
        let (_folder, config) = described(fault);
        let (code, stdout, stderr) = aihost(&["check", "--json", "--config", &config], &[]);
        assert_eq!(code, 3, "{fault}: {stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{fault}: {e}: {stdout}"));
        let silent: Vec<&str> = report["warnings"]
            .as_array()
            .expect("warnings")
            .iter()
            .filter_map(Value::as_str)
            .filter(|warning| warning.contains("aihost/faulty"))
            .collect();
        assert!(silent.len() == 1 && silent[0].contains(told) && silent[0].len() < 450, "{fault}: {silent:?}");
        assert!(stderr.contains("models.typo.options.tokns") && !stderr.contains("colour"), "{fault}: {stderr}");
    }
    // What is printed is nobody's business, and what goes in circles ends.
    for fault in ["flood", "circle", "nothing"] {
        let (_folder, config) = described(fault);
        let (code, stdout, stderr) = aihost(&["check", "--json", "--config", &config], &[]);
        assert_eq!(code, 3, "{fault}: {stdout}{stderr}");
        assert!(stderr.contains("models.bad.options.colour: is not an option"), "{fault}: {stderr}");
    }
}
