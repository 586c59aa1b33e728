//! Python services and their environments: made by `aihost models pull`, shared, never found half made; and services that run
//! alone. With python3; those of `tests/seed` take FastAPI and uvicorn from the package registry.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use aihost_tests::server::{Server, Setup, aihost, client, prepare};
use aihost_tests::{binary, eventually, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A server of the standard library alone, as a package.
const OWN_SERVER: &str = "import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', '3'); self.end_headers(); self.wfile.write(b'own')
    do_POST = do_GET
http.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
";

/// Whether there is what these tests need. Without it they prove nothing, and say so.
fn has_python() -> bool {
    let found = Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    if !found {
        eprintln!("SKIPPED, NOTHING IS PROVEN: this machine has no python3");
    }
    found
}

/// A wheel that needs nothing.
fn wheel(folder: &Path, requires_python: &str) -> PathBuf {
    let info = "own_server-1.0.dist-info";
    let metadata =
        format!("Metadata-Version: 2.1\nName: own-server\nVersion: 1.0\nRequires-Python: {requires_python}\n");
    let files = [
        ("own_server.py".to_owned(), OWN_SERVER.to_owned()),
        (format!("{info}/METADATA"), metadata),
        (format!("{info}/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_owned()),
        (format!("{info}/RECORD"), format!("own_server.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")),
    ];
    let path = folder.join("own_server-1.0-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, text) in files {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap();
    path
}

fn entry(name: &str, options: &Value) -> String {
    format!(
        "  {name}: {{type: custom, plugin: vllm, endpoint: /v1/{name}, memory: 400MiB, startup_time: 60, options: {options}}}\n"
    )
}

/// `aihost models pull` without an index of packages.
fn pull(config: &Path, name: &str) -> (i32, String) {
    let config = config.display().to_string();
    let (code, _, err) = aihost(&["models", "pull", name, "--config", &config], &[("PIP_NO_INDEX", "1")]);
    (code, err)
}

fn venvs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("state/plugin-data/vllm/venvs")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("bin/python").is_file()).collect()
}

#[tokio::test]
async fn an_environment_is_made_once_and_models_that_need_the_same_share_it() {
    if !has_python() {
        return;
    }
    let packages = tempfile::tempdir().unwrap();
    let wheel = wheel(packages.path(), ">=3.9");
    let file = packages.path().join("requirements.txt");
    fs::write(&file, format!("# the same\n{}\n", wheel.display())).unwrap();
    let first = json!({"command": "python -m own_server", "requirements": [wheel], "health": "/"});
    let second = json!({"command": "python -m own_server", "requirements_file": file, "health": "/"});
    let yaml = format!("models:\n{}{}", entry("one", &first), entry("two", &second));
    let (folder, config) = prepare(&Setup { yaml, plugins: vec!["vllm"], ..Setup::default() });

    let server = Server::serving(folder);
    let (status, body) = server.post("/v1/one", &json!({})).await;
    assert_eq!(status, 500, "{body}");
    let log = server.logged("load failed").await;
    assert!(log.contains("`aihost models pull` of this model makes it"), "{log}");

    let (code, said) = pull(&config, "--all");
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("one: ") && said.contains("own_server-1.0-py3-none-any.whl"),
        "pip's lines are shown: {said}"
    );
    assert!(said.contains("two: ") && said.contains("its environment is there"), "{said}");
    assert_eq!(venvs(server.folder()).len(), 1);
    let lock = fs::read_to_string(venvs(server.folder())[0].join("lock.txt")).unwrap();
    assert!(lock.contains("own-server"), "{lock}");

    for name in ["one", "two"] {
        // The first has failed a moment ago, and waits for a while before it is tried again.
        let (_, loaded) = server.post("/models/load", &json!({"model": name})).await;
        server.until(name, "state", json!("hot")).await;
        let (status, body) = server.post(&format!("/v1/{name}"), &json!({})).await;
        assert_eq!((status, body), (200, json!("own")), "{name}: {loaded}");
    }
}

#[tokio::test]
async fn a_pull_that_is_killed_leaves_nothing_that_is_taken_for_whole() {
    if !has_python() {
        return;
    }
    let packages = tempfile::tempdir().unwrap();
    let options = json!({"command": "python -m own_server", "requirements": [wheel(packages.path(), ">=3.9")]});
    let yaml = format!("models:\n{}", entry("one", &options));
    let (folder, config) = prepare(&Setup { yaml, plugins: vec!["vllm"], ..Setup::default() });
    let mut command = Command::new(binary());
    command.args(["models", "pull", "one", "--config"]).arg(&config).env("PIP_NO_INDEX", "1");
    let mut pulling = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let places = folder.path().join("state/plugin-data/vllm/venvs");
    let half = wait_for("a begun environment", || {
        let entries = fs::read_dir(&places).ok()?.flatten();
        entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|kind| kind == "incomplete"))
    })
    .await;
    pulling.kill().and_then(|()| pulling.wait()).unwrap();
    assert!(half.exists(), "it was done before it was killed");
    // Nobody goes on with it.
    let shown = places.display().to_string();
    wait_for("the end of what made it", || (!mentioned(&shown)).then_some(())).await;

    let (code, said) = pull(&config, "one");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("making an environment") && !half.exists(), "{said}");
    assert_eq!(venvs(folder.path()).len(), 1);
    let (code, said) = pull(&config, "one");
    assert!(code == 0 && said.contains("its environment is there"), "{said}");
}

/// Whether a process has this in its command line.
fn mentioned(words: &str) -> bool {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(words))
}

#[tokio::test]
async fn what_cannot_be_installed_is_one_sentence_of_the_installers_own() {
    if !has_python() {
        return;
    }
    let packages = tempfile::tempdir().unwrap();
    let newer = wheel(packages.path(), ">=99");
    for (name, options, words) in [
        ("newer", json!({"command": "x", "requirements": [newer]}), "requires a different Python"),
        (
            "none",
            json!({"command": "x", "requirements": ["no-such-package==9.9"]}),
            "No matching distribution found for no-such-package==9.9",
        ),
        ("wrong", json!({"command": "x", "requirements": ["==what=="]}), "Invalid requirement"),
        (
            "python",
            json!({"command": "x", "requirements": ["a"], "python": "python9"}),
            "there is no interpreter `python9`",
        ),
        (
            "file",
            json!({"command": "x", "requirements_file": "/nowhere/requirements.txt"}),
            "/nowhere/requirements.txt: cannot be read",
        ),
    ] {
        let yaml = format!("models:\n{}", entry(name, &options));
        let (folder, config) = prepare(&Setup { yaml, plugins: vec!["vllm"], ..Setup::default() });
        let (code, said) = pull(&config, name);
        assert_eq!(code, 1, "{said}");
        let told = said.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("{said}"));
        assert!(told.contains(words), "{told}");
        assert!(told.contains(name), "{told}");
        // What was begun is not taken for whole.
        let (code, again) = pull(&config, name);
        assert!(code == 1 && again.contains(words), "{again}");
        drop(folder);
    }
}

/// A copy of `tests/seed`, which the services may write into.
pub(super) fn seed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("seed");
    copy(&from, folder.path());
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test]
async fn services_on_the_base_class_serve_in_turn_and_each_alone() {
    if !has_python() {
        return;
    }
    let tree = seed();
    let mut yaml = "devices: [{id: cpu, memory: 2GiB, max_loaded: 1}]\nmodels:\n".to_owned();
    let services = [
        ("phrases", "/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hi"}]}), "choices"),
        ("swatch", "/v1/images/generations", json!({"prompt": "a red thing"}), "b64_json"),
        ("beep", "/v1/beep/generate", json!({"seconds": 0.01}), "WAVE"),
    ];
    for (name, prefix, _, _) in &services {
        let folder = tree.path().join("models").join(name);
        let options = json!({
            "service_script": folder.join("server.py"), "requirements_file": folder.join("requirements.txt"),
            "working_dir": tree.path().join("model-orchestrator"), "prefix": prefix,
        });
        yaml += &entry(name, &options);
    }
    let (folder, config) = prepare(&Setup { yaml, plugins: vec!["vllm"], ..Setup::default() });
    let config = config.display().to_string();
    let (code, _, said) = aihost(&["models", "pull", "--all", "--config", &config], &[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(venvs(folder.path()).len(), 1, "they need the same");
    let python = venvs(folder.path())[0].join("bin/python");

    let server = Server::serving(folder);
    for _ in 0..2 {
        for (name, _, body, words) in &services {
            let url = format!("{}/v1/{name}", server.base());
            let answer = client().post(url).json(body).send().await.unwrap();
            let (status, base) = (answer.status(), answer.headers().get("x-base").cloned());
            let said = String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned();
            assert!(status == 200 && said.contains(words), "{name}: {status} {said}");
            // A `core/` beside the service comes before the one that is installed.
            assert_eq!(base.map(|base| base == "beside the service"), (*name == "beep").then_some(true), "{name}");
        }
    }
    let (_, log) = server.get("/logs/phrases").await;
    assert!(log.to_string().contains("phrases is ready"), "{log}");

    for (name, _, _, _) in &services {
        alone(&python, &tree.path().join("models").join(name).join("server.py")).await;
    }
    misfortunes(&python, tree.path()).await;
}

/// A service without a host.
struct Service {
    process: Child,
    port: u16,
}

impl Service {
    fn start(python: &Path, script: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::at(port, python, script)
    }

    fn at(port: u16, python: &Path, script: &Path) -> Self {
        let mut command = Command::new(python);
        command.arg(script).env("PORT", port.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
        Self { process: command.stderr(Stdio::piped()).spawn().unwrap(), port }
    }

    async fn health(&self) -> Result<(u16, String), String> {
        let url = format!("http://127.0.0.1:{}/health", self.port);
        let answer = client().get(url).send().await.map_err(|error| error.to_string())?;
        Ok((answer.status().as_u16(), answer.text().await.map_err(|error| error.to_string())?))
    }

    async fn until(&self, status: u16) -> String {
        eventually(async || match self.health().await? {
            (found, body) if found == status => Ok(body),
            other => Err(format!("its health is {other:?}, not {status}")),
        })
        .await
    }

    /// Its exit code, and what it said.
    fn end(self) -> (Option<i32>, String) {
        let output = self.process.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn terminate(&self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
    }
}

async fn alone(python: &Path, script: &Path) {
    let service = Service::start(python, script);
    service.until(200).await;
    service.terminate();
    let (code, said) = service.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("is ready") && said.contains("has ended"), "{said}");
}

/// Services that cannot, or must wait.
async fn misfortunes(python: &Path, folder: &Path) {
    let write = |name: &str, initialize: &str, route: &str| {
        let script = folder.join(name);
        let text = format!(
            "import asyncio\nfrom aihost_service import BaseService\n\nclass Service(BaseService):\n    async def initialize(self):\n        {initialize}\n\n    def create_app(self):\n        @self.app.get('/work')\n        async def work():\n            {route}\n\nService(name='{name}', port=1).run()\n"
        );
        fs::write(&script, text).unwrap();
        script
    };
    // 500 with the reason, then an exit that is no 0, and a line for each event.
    let service = Service::start(python, &write("failing", "raise ValueError('no weights')", "pass"));
    let body = service.until(500).await;
    assert!(body.contains("ValueError: no weights"), "{body}");
    let (code, said) = service.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.lines().all(|line| line.starts_with("20")), "a line that is no event of its own: {said}");
    assert!(said.contains("Traceback"), "{said}");

    // Not ready, it is 503 everywhere, and ends at once when it is told to.
    let service = Service::start(python, &write("waiting", "await asyncio.sleep(600)", "pass"));
    service.until(503).await;
    let work = client().get(format!("http://127.0.0.1:{}/work", service.port)).send().await.unwrap();
    assert_eq!(work.status(), 503);
    service.terminate();
    assert_eq!(service.end().0, Some(0));

    // What runs is finished.
    let asked = folder.join("asked");
    let route = format!("open('{}', 'w').close(); await asyncio.sleep(1); return 'done'", asked.display());
    let service = Service::start(python, &write("working", "pass", &route));
    service.until(200).await;
    let url = format!("http://127.0.0.1:{}/work", service.port);
    let working = tokio::spawn(async move { client().get(url).send().await?.text().await });
    wait_for("a request that runs", || asked.exists().then_some(())).await;
    service.terminate();
    assert_eq!(working.await.unwrap().unwrap(), "\"done\"");
    assert_eq!(service.end().0, Some(0));

    // A port that is taken.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let service = Service::at(held.local_addr().unwrap().port(), python, &folder.join("working"));
    let (code, said) = service.end();
    assert!(code == Some(1) && said.contains("address already in use"), "{code:?} {said}");
}
