//! A host on a small machine before one with the models, as VPS and pod: two machines that are two network namespaces, with a
//! wire between them that can be cut. `cargo xtask ci --full` runs it in a namespace of its own, which is the VPS here.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aihost_tests::server::{Server, Setup, client, prepare};
use aihost_tests::{PATIENCE, binary, eventually, wait_for};
use serde_json::{Value, json};
use tokio::time::timeout;

/// Between the two: the VPS is the first of this network, the pod the second.
const VPS: &str = "10.77.0.1/30";
const POD: &str = "10.77.0.2/30";
const POD_LISTENS: &str = "10.77.0.2:9000";
const KEY: &str = "a-key-of-the-pod-0";
/// How long a request may take over a wire that was cut: 10 s of silence, and some on a busy machine.
const CUT_LIMIT: Duration = Duration::from_secs(20);
/// How long one may take to a machine that says that nobody is there.
const AT_ONCE: Duration = Duration::from_secs(3);

fn run(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// The pod's machine: a process that holds its namespace.
struct Machine(Process);

impl Machine {
    /// Makes it, with a wire to it.
    async fn new() -> Self {
        let links = Command::new("ip").args(["-o", "link"]).output().expect("ip runs").stdout;
        let links = String::from_utf8_lossy(&links).into_owned();
        assert!(
            !links.contains("link/ether"),
            "run this in a namespace of its own, as `cargo xtask ci --full` does: {links}"
        );
        run("ip link set lo up");
        let holder = Command::new("unshare").args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).spawn();
        let machine = Self(Process(holder.expect("unshare runs")));
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let of = format!("/proc/{}/ns/net", machine.pid());
        wait_for("its namespace", || std::fs::read_link(&of).ok().filter(|found| *found != own)).await;
        run(&format!("ip link add vps type veth peer name pod netns {}", machine.pid()));
        run(&format!("ip addr add {VPS} dev vps"));
        run("ip link set vps up");
        machine.run(&format!("ip addr add {POD} dev pod"));
        machine.run("ip link set lo up");
        machine.run("ip link set pod up");
        machine
    }

    fn pid(&self) -> u32 {
        self.0.0.id()
    }

    fn inside(&self, line: &str) -> String {
        format!("nsenter --net=/proc/{}/ns/net {line}", self.pid())
    }

    fn run(&self, line: &str) {
        run(&self.inside(line));
    }
}

async fn ask(front: &Server, words: usize, streams: bool) -> reqwest::Response {
    let chat =
        json!({"model": "far", "messages": [{"role": "user", "content": "word ".repeat(words)}], "stream": streams});
    client().post(format!("{}/v1/chat/completions", front.base())).json(&chat).send().await.unwrap()
}

/// The status of a short request, which takes no longer.
async fn status(front: &Server, limit: Duration) -> u16 {
    let asking = async {
        let answer = ask(front, 1, false).await;
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let (status, said) = timeout(limit, asking).await.expect("an answer in time");
    assert!(status != 502 || said.contains("engine_unreachable"), "{said}");
    status
}

/// A stream that has begun and goes on for minutes.
async fn long_stream(front: &Server) -> reqwest::Response {
    let mut answer = ask(front, 5000, true).await;
    assert_eq!(answer.status(), 200);
    answer.chunk().await.unwrap().expect("a piece");
    answer
}

/// A stream ends, not in good order and no later.
async fn breaks(mut answer: reqwest::Response, limit: Duration) {
    let reading = async {
        let mut said = Vec::new();
        while let Ok(Some(piece)) = answer.chunk().await {
            said.extend_from_slice(&piece);
        }
        String::from_utf8_lossy(&said).into_owned()
    };
    let said = timeout(limit, reading).await.expect("an end in time");
    assert!(!said.contains("[DONE]"), "it looks whole");
}

#[tokio::test]
#[ignore = "needs a network namespace of its own; `cargo xtask ci --full` runs it"]
async fn a_host_before_another_serves_it_and_tells_when_it_is_gone() {
    let machine = Machine::new().await;
    let yaml = format!(
        "listen: {POD_LISTENS}\napi_keys: [{KEY}]\nmodels:\n  talk: {{type: text, plugin: aihost/echo, options: {{latency_ms: 20}}}}\n"
    );
    let (folder, config) = prepare(&Setup { yaml, plugins: vec!["echo"], ..Setup::default() });
    let start = || {
        let line = machine.inside(&binary().display().to_string());
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).args(["serve", "--config"]).arg(&config).stdin(Stdio::null());
        Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the pod starts"))
    };
    let pod = start();
    let front = Server::start(&Setup {
        yaml: format!(
            "models:\n  far: {{type: text, url: 'http://{POD_LISTENS}', engine_model: talk, api_key: 'env:POD_KEY'}}\n"
        ),
        env: vec![("POD_KEY".to_owned(), KEY.to_owned())],
        ..Setup::default()
    });
    let is_served = async || {
        eventually(async || match status(&front, PATIENCE).await {
            200 => Ok(()),
            other => Err(format!("{other}")),
        })
        .await;
    };
    is_served().await;
    let whole: Value = ask(&front, 3, false).await.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], "word word word ", "{whole}");
    let streamed = ask(&front, 3, true).await.text().await.unwrap();
    assert!(streamed.contains("[DONE]") && streamed.matches("\"word \"").count() == 3, "{streamed}");

    // The wire is cut: a connection that is there falls silent, and there is no new one.
    let stream = long_stream(&front).await;
    machine.run("ip link set pod down");
    let ((), code) = tokio::join!(breaks(stream, CUT_LIMIT), status(&front, CUT_LIMIT));
    assert_eq!(code, 502);
    assert_eq!(status(&front, CUT_LIMIT).await, 502);
    machine.run("ip link set pod up");
    is_served().await;

    // Its end is told by its machine.
    let stream = long_stream(&front).await;
    drop(pod);
    let ((), code) = tokio::join!(breaks(stream, AT_ONCE), status(&front, AT_ONCE));
    assert_eq!(code, 502);
    let _pod = start();
    is_served().await;
    drop(folder);
}
