//! `up`, `status`, `restart` and `down`: a host in the background, and one that follows another without refusing anybody.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aihost_tests::server::{Setup, aihost, alive, chat, client, prepare};
use aihost_tests::{binary, wait_for};
use serde_json::{Value, json};

/// The longest that a request may take while one process follows another.
const WAIT_LIMIT: Duration = Duration::from_secs(5);

/// A folder with a models.yaml whose host is ended with this, whatever a test has come to.
struct Home {
    folder: tempfile::TempDir,
    config: PathBuf,
}

impl Home {
    fn new(models: &str) -> Self {
        let setup = Setup { yaml: format!("models:\n{models}"), plugins: vec!["echo"], ..Setup::default() };
        let (folder, config) = prepare(&setup);
        Self { folder, config }
    }

    fn echo() -> Self {
        Self::new("  a: {type: text, plugin: aihost/echo}\n")
    }

    fn run(&self, words: &[&str]) -> (i32, String, String) {
        aihost(&[words, &["--config", self.config.to_str().unwrap()]].concat(), &[])
    }

    /// What worked says on stdout.
    fn good(&self, words: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(words);
        assert_eq!(code, 0, "{words:?}: {stdout}{stderr}{}", self.log());
        stdout
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.good(&["status", "--json"])).unwrap()
    }

    fn pid(&self) -> i64 {
        self.status()["pid"].as_i64().unwrap()
    }

    fn base(&self) -> String {
        format!("http://{}", self.status()["address"].as_str().unwrap())
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.state().join("serve.log")).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.run(&["down", "--now"]);
    }
}

/// Waits until a process is gone.
async fn gone(pid: i64) {
    wait_for("a process that ends", || (!alive(pid)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_goes_up_once_says_what_it_does_and_goes_down() {
    let home = Home::echo();
    let (code, _, stderr) = home.run(&["status"]);
    assert!(code == 4 && stderr.contains("aihost up"), "{stderr}");
    let (code, _, stderr) = home.run(&["down"]);
    assert!(code == 0 && stderr.contains("nothing to end"), "{stderr}");
    let up = home.good(&["up"]);
    assert!(up.contains("1 model, none loaded") && up.lines().count() == 1, "{up}");
    let pid = home.pid();
    let (code, again, stderr) = home.run(&["up"]);
    assert!(code == 0 && again.contains(&format!("process {pid}")) && stderr.contains("up before"), "{again}{stderr}");
    let answer = client().post(format!("{}/v1/chat/completions", home.base())).json(&chat("a", "hello")).send().await;
    assert_eq!(answer.unwrap().status(), 200);
    assert!(home.good(&["status"]).contains("a loaded"));
    assert!(home.good(&["down"]).contains(&format!("process {pid} has ended")));
    assert!(!alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn down_says_for_what_it_waits() {
    let home = Home::new("  a: {type: text, plugin: aihost/echo, options: {latency_ms: 100, tokens: 15}}\n");
    home.good(&["up"]);
    let url = format!("{}/v1/chat/completions", home.base());
    let body = json!({"model": "a", "stream": true, "messages": [{"role": "user", "content": "on and on"}]});
    let mut stream = client().post(url).json(&body).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    let reader = tokio::spawn(async move {
        let mut text = Vec::new();
        while let Ok(Some(chunk)) = stream.chunk().await {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let (code, stdout, stderr) = tokio::task::block_in_place(|| home.run(&["down"]));
    assert!(code == 0 && stdout.contains("has ended"), "{stdout}{stderr}");
    assert!(stderr.contains("waiting for a request of a"), "{stderr}");
    assert!(reader.await.unwrap().contains("[DONE]"), "the stream was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_start_says_why_in_the_command() {
    let home = Home::echo();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, _, stderr) = home.run(&["up", "--listen", &taken.local_addr().unwrap().to_string()]);
    assert!(code == 1 && stderr.contains("is taken by another program") && stderr.contains("serve.log"), "{stderr}");
    let good = std::fs::read_to_string(&home.config).unwrap();
    std::fs::write(&home.config, good.replace("type: text", "type: txt")).unwrap();
    let (code, _, stderr) = home.run(&["up"]);
    assert!(code == 3 && stderr.contains("models.a.type"), "{stderr}");
    std::fs::write(&home.config, good).unwrap();
    // A host that was killed left its lock file, with its number in it.
    home.good(&["up"]);
    let pid = home.pid();
    Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    gone(pid).await;
    let (code, _, stderr) = home.run(&["status"]);
    assert_eq!(code, 4, "{stderr}");
    home.good(&["up"]);
    assert_ne!(home.pid(), pid);
}

/// Clients that each ask over new connections and over one that they keep, until they are told to stop: how many were answered, and
/// what else came.
fn clients(base: &str, count: usize) -> (Arc<AtomicBool>, Arc<AtomicUsize>, Vec<tokio::task::JoinHandle<Vec<String>>>) {
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let tasks = (0..count).map(|number| {
        let (stop, answered, url) = (Arc::clone(&stop), Arc::clone(&answered), format!("{base}/v1/chat/completions"));
        tokio::spawn(async move {
            let mut wrong = Vec::new();
            let keeps = number % 2 == 0;
            let mut client = client();
            while !stop.load(Ordering::Relaxed) {
                if !keeps {
                    client = aihost_tests::server::client();
                }
                let mut body = chat("a", "one two three");
                body["stream"] = (number % 3 == 0).into();
                let text = match client.post(&url).json(&body).timeout(WAIT_LIMIT).send().await {
                    Ok(response) if response.status() == 200 => response.text().await.map_err(|e| format!("{e:?}")),
                    Ok(response) => Err(format!("{} {:?}", response.status(), response.text().await)),
                    Err(error) => Err(format!("{error:?}")),
                };
                match text {
                    Ok(text) if text.contains("three") => drop(answered.fetch_add(1, Ordering::Relaxed)),
                    other => wrong.push(format!("{other:?}")),
                }
            }
            wrong
        })
    });
    let tasks = tasks.collect();
    (stop, answered, tasks)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_one_process_follows_another() {
    let home = Home::echo();
    home.good(&["up"]);
    let base = home.base();
    let (stop, answered, tasks) = clients(&base, 8);
    let mut pids = vec![home.pid()];
    for _ in 0..3 {
        tokio::task::block_in_place(|| home.good(&["restart"]));
        pids.push(home.pid());
        // Long enough that each of them has served.
        let enough = answered.load(Ordering::Relaxed) + 50;
        wait_for("answers", || (answered.load(Ordering::Relaxed) > enough).then_some(())).await;
        assert_eq!(home.base(), base);
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        assert_eq!(task.await.unwrap(), Vec::<String>::new(), "{}", home.log());
    }
    pids.dedup();
    assert_eq!(pids.len(), 4);
    for pid in &pids[..3] {
        gone(*pid).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_weights_are_opened_by_the_process_that_follows() {
    let disk = tempfile::tempdir().unwrap();
    let (file, cache) = (disk.path().join("x.gguf"), disk.path().join("cache"));
    std::fs::write(&file, "weights").unwrap();
    let home = Home::new(&format!(
        "  a: {{type: text, plugin: aihost/echo, source: {{path: {}}}, options: {{reads: model}}, preload: true}}\ncache_dir: {}\n",
        file.display(),
        cache.display()
    ));
    home.good(&["up"]);
    for _ in 0..3 {
        let url = format!("{}/v1/chat/completions", home.base());
        let answer = client().post(url).json(&chat("a", "hi")).send().await.unwrap().text().await.unwrap();
        assert!(answer.contains(cache.to_str().unwrap()) && answer.contains("x.gguf weights hi"), "{answer}");
        tokio::task::block_in_place(|| home.good(&["restart"]));
    }
    assert_eq!(home.log().matches("copying ").count(), 1, "{}", home.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_on_in_the_process_that_follows() {
    let home = Home::new("  a: {type: text, plugin: aihost/echo, options: {latency_ms: 20}}\n");
    home.good(&["up"]);
    let (base, client) = (home.base(), client());
    let mut ids = Vec::new();
    for number in 0..4 {
        let body = json!({"endpoint": "/v1/chat/completions", "body": chat("a", &format!("job {number} {}", "word ".repeat(40)))});
        let answer = client.post(format!("{base}/v1/jobs")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        ids.push(answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned());
    }
    tokio::task::block_in_place(|| home.good(&["restart"]));
    for (number, id) in ids.iter().enumerate() {
        let answer = loop {
            let answer = client.get(format!("{base}/v1/jobs/{id}/events")).send().await.unwrap();
            let told = answer.text().await.unwrap();
            if let Some(status) =
                ["completed", "failed"].iter().find(|status| told.contains(&format!("\"status\":\"{status}\"")))
            {
                assert_eq!(*status, "completed", "{told}{}", home.log());
                break client.get(format!("{base}/v1/jobs/{id}/result")).send().await.unwrap();
            }
        };
        let answer: Value = answer.json().await.unwrap();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(text.contains(&format!("job {number} ")), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_goes_on_whose_successor_cannot_start() {
    let home = Home::echo();
    home.good(&["up"]);
    let pid = home.pid();
    let good = std::fs::read_to_string(&home.config).unwrap();
    std::fs::write(&home.config, good.replace("models:", "mdels:")).unwrap();
    let (code, _, stderr) = home.run(&["restart"]);
    assert!(code == 3 && stderr.contains("mdels"), "{stderr}");
    std::fs::write(&home.config, &good).unwrap();
    // What only the new process finds out: it would have to listen on a port that is taken.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let both = good.replace("listen: 127.0.0.1:0", &format!("listen: [127.0.0.1:0, {}]", taken.local_addr().unwrap()));
    assert_ne!(both, good);
    std::fs::write(&home.config, &both).unwrap();
    for _ in 0..2 {
        let (code, _, stderr) = home.run(&["restart"]);
        assert!(code == 1 && stderr.contains(&format!("process {pid} goes on")), "{stderr}");
    }
    assert_eq!(home.pid(), pid);
    std::fs::write(&home.config, &good).unwrap();
    home.good(&["restart"]);
    assert_ne!(home.pid(), pid);
    let before = home.pid();
    home.good(&["restart", "--stop-first"]);
    assert_ne!(home.pid(), before);
}

/// What a host tells its supervisor, as it comes.
struct Supervisor {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Supervisor {
    fn new(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { socket, path }
    }

    /// Reads until all of these were said, in this order.
    fn hears(&self, words: &[&str]) {
        let mut heard = Vec::new();
        let mut words = words.iter().peekable();
        while let Some(word) = words.peek() {
            let mut message = [0; 4096];
            let length = self.socket.recv(&mut message).unwrap_or_else(|_| panic!("{word} was not said: {heard:?}"));
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            while words.peek().is_some_and(|word| message.lines().any(|line| line == **word)) {
                words.next();
            }
            heard.push(message);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_is_told_of_every_turn() {
    let home = Home::echo();
    let supervisor = Supervisor::new(home.folder.path());
    let mut serve = Command::new(binary());
    serve.args(["serve", "--config"]).arg(&home.config).env("NOTIFY_SOCKET", &supervisor.path);
    let mut serve = serve.env("WATCHDOG_USEC", "300000").stderr(std::process::Stdio::null()).spawn().unwrap();
    supervisor.hears(&["READY=1", &format!("MAINPID={}", serve.id()), "WATCHDOG=1", "WATCHDOG=1"]);
    home.good(&["restart"]);
    let pid = home.pid();
    assert_ne!(pid, i64::from(serve.id()));
    supervisor.hears(&["READY=1", &format!("MAINPID={pid}"), "WATCHDOG=1"]);
    assert!(serve.wait().unwrap().success());
    home.good(&["down"]);
    supervisor.hears(&["STOPPING=1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_address_of_a_list_is_served() {
    let home = Home::echo();
    let good = std::fs::read_to_string(&home.config).unwrap();
    let both = good.replace("listen: 127.0.0.1:0", "listen: [127.0.0.1:0, 127.0.0.2:0, '[::1]:0']");
    std::fs::write(&home.config, both).unwrap();
    home.good(&["up"]);
    let log = home.log();
    let bases: Vec<&str> =
        log.lines().filter_map(|line| line.split_once("listening on ")).map(|(_, base)| base).collect();
    assert_eq!(bases.len(), 3, "{log}");
    for base in bases {
        assert_eq!(client().get(format!("{base}/v1/models")).send().await.unwrap().status(), 200, "{base}");
    }
}
