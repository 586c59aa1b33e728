//! A host under test: a real `aihost serve` process on a free port, with its own folders, gone when dropped.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{PATIENCE, binary, fixture};

/// What a server says when it has begun to drain.
pub const DRAINS: &str = "a second signal stops at once";

/// What a server is started with.
#[derive(Debug, Default)]
pub struct Setup {
    /// `models:` and whatever else, as YAML below the harness's own keys.
    pub yaml: String,
    /// Fixture plugins (`echo`, `faulty`) and default ones (`candle_llm`) to put in its plugins folder.
    pub plugins: Vec<&'static str>,
    /// Environment of the server.
    pub env: Vec<(String, String)>,
    /// A line of shell that becomes the server: limits, say.
    pub before: Option<&'static str>,
}

impl Setup {
    /// The server logs how cancelled requests end, for [`Server::cancelled`].
    #[must_use]
    pub fn telling_of_cancels(mut self) -> Self {
        self.env.push(("AIHOST_LOG".to_owned(), "info,worker=debug".to_owned()));
        self
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    base: String,
    folder: tempfile::TempDir,
    /// What it said before it listened, and that it does.
    heard: Vec<String>,
    stderr: Receiver<String>,
}

/// A folder with plugins and a models.yaml, for a server or for a single command.
pub fn prepare(setup: &Setup) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plugins = folder.path().join("plugins");
    std::fs::create_dir_all(&plugins).expect("a plugins folder");
    for name in &setup.plugins {
        let file = fixture(name);
        std::fs::copy(&file, plugins.join(format!("{name}.so")))
            .unwrap_or_else(|e| panic!("copying {}: {e}", file.display()));
    }
    let mut yaml = String::new();
    for key in ["plugins", "models", "state"] {
        let _ = writeln!(yaml, "{key}_dir: {}", folder.path().join(key).display());
    }
    if !setup.yaml.contains("listen:") {
        yaml += "listen: 127.0.0.1:0\n";
    }
    yaml += &setup.yaml;
    let config = folder.path().join("models.yaml");
    std::fs::write(&config, yaml).expect("models.yaml written");
    (folder, config)
}

/// `aihost serve`, and the folder of its models.yaml.
fn serve(setup: &Setup) -> (Command, tempfile::TempDir) {
    let (folder, config) = prepare(setup);
    let mut command = match setup.before {
        None => Command::new(binary()),
        Some(line) => {
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("{line}; exec \"$0\" \"$@\"")]).arg(binary());
            shell
        }
    };
    command.args(["serve", "--log-format", "text", "--config"]).arg(&config).envs(setup.env.iter().cloned());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    (command, folder)
}

impl Server {
    /// Starts it with a stderr that nobody here reads, and waits until it listens.
    pub fn start_unheard(setup: &Setup, stderr: Stdio) -> Self {
        let (mut command, folder) = serve(setup);
        let child = command.stderr(stderr).spawn().expect("aihost starts");
        let mut server = Self { child, base: String::new(), folder, heard: Vec::new(), stderr: channel().1 };
        let begun = Instant::now();
        while server.base.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "the server does not listen");
            match listening(server.pid()) {
                Some(port) => server.base = format!("http://127.0.0.1:{port}"),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        server
    }

    /// Starts it and waits until it listens.
    pub fn start(setup: &Setup) -> Self {
        let (mut command, folder) = serve(setup);
        Self::of(&mut command, folder)
    }

    /// Starts it on a folder that [`prepare`] made.
    pub fn serving(folder: tempfile::TempDir) -> Self {
        let mut command = Command::new(binary());
        command.args(["serve", "--log-format", "text", "--config"]).arg(folder.path().join("models.yaml"));
        Self::of(&mut command, folder)
    }

    /// Starts a command that serves, and waits until it listens. The folder goes with the server.
    pub fn of(command: &mut Command, folder: tempfile::TempDir) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("aihost starts");
        let (lines, stderr) = channel();
        let pipe = child.stderr.take().expect("stderr is piped");
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        let mut seen = Vec::new();
        let begun = Instant::now();
        loop {
            match stderr.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
                Ok(line) => {
                    if let Some(at) = line.find("http://127.0.0.1:") {
                        let base = line[at..]
                            .split([' ', '/', '"'])
                            .filter(|part| !part.is_empty())
                            .nth(1)
                            .map(|host| format!("http://{host}"));
                        seen.push(line);
                        return Self { child, base: base.expect("an address"), folder, heard: seen, stderr };
                    }
                    seen.push(line);
                }
                Err(error) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!("the server did not listen ({error}):\n{}", seen.join("\n"));
                }
            }
        }
    }

    /// `http://127.0.0.1:PORT`
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Its temporary folder, with models.yaml, plugins, models and state.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid()).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("the server lives");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("waiting works") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it wrote to stderr since the last call.
    pub fn log(&self) -> String {
        self.stderr.try_iter().collect::<Vec<_>>().join("\n")
    }

    /// What it wrote until it listened.
    pub fn heard(&self) -> String {
        self.heard.join("\n")
    }

    /// What it wrote since the last call, to the end of its stderr, for a server that has ended.
    pub fn rest(&self) -> String {
        self.stderr.iter().collect::<Vec<_>>().join("\n")
    }

    /// Waits until it wrote these words to stderr; everything since the last call of this or of [`log`](Self::log).
    pub async fn logged(&self, words: &str) -> String {
        let mut log = String::new();
        crate::eventually(async || {
            for line in self.stderr.try_iter() {
                log += &line;
                log.push('\n');
            }
            if log.contains(words) { Ok(()) } else { Err(format!("nothing was said of `{words}`: {log}")) }
        })
        .await;
        log
    }

    /// Waits for the end of a request that was cancelled, and gives what its plugin said of it: the summary of its kind.
    pub async fn cancelled(&self) -> Value {
        const WORDS: &str = "a cancelled request ended: ";
        let log = self.logged(WORDS).await;
        let (_, rest) = log.split_once(WORDS).expect("they were just found");
        let mut values = serde_json::Deserializer::from_str(rest).into_iter();
        values.next().and_then(Result::ok).unwrap_or_else(|| panic!("no summary in {log}"))
    }

    /// POST of JSON: status and body.
    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = client().post(format!("{}{path}", self.base)).json(body).send().await.expect("an answer");
        let status = response.status().as_u16();
        let text = response.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// GET: status and body.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        let response = client().get(format!("{}{path}", self.base)).send().await.expect("an answer");
        let status = response.status().as_u16();
        let text = response.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// A chat of one user message, not streamed.
    pub async fn chat(&self, model: &str, prompt: &str) -> (u16, Value) {
        self.post("/v1/chat/completions", &chat(model, prompt)).await
    }

    /// A streamed chat that is being read.
    pub async fn stream(&self, body: &Value) -> reqwest::Response {
        let mut body = body.clone();
        body["stream"] = json!(true);
        client().post(format!("{}/v1/chat/completions", self.base)).json(&body).send().await.expect("an answer")
    }

    /// One field of a model's status.
    pub async fn status(&self, model: &str, field: &str) -> Value {
        let (_, list) = self.get("/admin/status").await;
        let entries = list.as_array().cloned().unwrap_or_default();
        entries.iter().find(|entry| entry["id"] == model).map_or(Value::Null, |entry| entry[field].clone())
    }

    /// What an operator is told of a request for this model.
    pub async fn why(&self, model: &str) -> String {
        let (_, plan) = self.get(&format!("/admin/plan?model={model}")).await;
        plan["message"].as_str().unwrap_or_else(|| panic!("no message in {plan}")).to_owned()
    }

    /// Waits until a field of a model's status has this value.
    pub async fn until(&self, model: &str, field: &str, value: Value) {
        crate::eventually(async || {
            let now = self.status(model, field).await;
            if now == value { Ok(()) } else { Err(format!("{model}.{field} is {now}, not {value}")) }
        })
        .await;
    }
}

impl Drop for Server {
    #[expect(clippy::print_stderr, reason = "a test that failed shows what its server said last")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server's last words:\n{}", self.log());
        }
    }
}

/// The body of a chat of one user message.
pub fn chat(model: &str, prompt: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0})
}

/// The text of a chat answer.
pub fn text(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("no text in {body}"))
}

/// A client that no test waits for without an end.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(4 * PATIENCE).build().expect("a client")
}

/// Runs one command of the binary: exit code, stdout, stderr.
pub fn aihost(args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let output =
        Command::new(binary()).args(args).envs(env.iter().copied()).stdin(Stdio::null()).output().expect("aihost runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// The port on which a process listens on 127.0.0.1, by what the kernel says of its sockets.
fn listening(pid: i32) -> Option<u16> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .ok()?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let sockets: Vec<String> = links.map(|link| link.display().to_string()).collect();
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        // Number, local address, remote one, state (0A listens), four more, then the socket's inode.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let port = local.strip_prefix("0100007F:").filter(|_| *state == "0A")?;
        let own = sockets.contains(&format!("socket:[{inode}]"));
        u16::from_str_radix(port, 16).ok().filter(|_| own)
    })
}

/// Whether a process exists and is no zombie.
pub fn alive(pid: i64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}
