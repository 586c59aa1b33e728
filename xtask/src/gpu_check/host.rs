//! Parts over a real host: two flux models and a text model on the CPU that swap on one card; what its figures say; a worker
//! whose context of the card is spoilt. In a rehearsal flux runs on the CPU, and the card is one on paper.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Run;
use super::report::Verdict;
use crate::bench::client;
use crate::bench::server::{Server, free_address};
use crate::error::{Doing, Error, Result};
use crate::shell;

/// Times that the two models take turns.
const TURNS: usize = 6;
/// How long the host may take to see what changed.
const SEEN: Duration = Duration::from_secs(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(50);
/// Bytes of the card on paper, and those that are not free where nobody uses it.
const PAPER: u64 = 80 << 30;
const OWN_SHARE: u64 = 1 << 30;
/// Share of a card's memory that is its budget, in percent.
const BUDGET_PERCENT: u64 = 95;
/// Share of a card that another process takes, in percent.
const OTHERS_PERCENT: u64 = 80;

/// A host with its folder.
struct Host {
    server: Server,
    folder: PathBuf,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Two flux models, one text model, and what the host says of the card and of others on it.
pub(super) fn swaps(run: &mut Run<'_>) -> Result {
    let total = total(run)?;
    let host = start(run, total)?;
    let address = host.server.address;
    let mut seconds = Vec::new();
    for turn in 0..TURNS {
        let model = ["flux-a", "flux-b"][turn % 2];
        let begun = Instant::now();
        let answer = image(address, model)?;
        seconds.push(begun.elapsed().as_secs_f64());
        if answer.status != 200 {
            return run.report.say(&format!("an image of {model}"), &answer.body.into(), Verdict::Wrong);
        }
        let spoken = chat(address, "talk", "still here")?;
        if spoken.status != 200 {
            return run.report.say("the text model on the CPU", &spoken.body.into(), Verdict::Wrong);
        }
    }
    run.report.say("images of two models that take turns", &json!({"seconds": seconds}), Verdict::Right)?;
    let states = states(address)?;
    let of = |model: &str| states.iter().find(|state| state["id"] == model).cloned().unwrap_or_default();
    let left = of("flux-a")["state"].clone();
    let right = of("flux-b")["state"] == "hot" && of("talk")["state"] == "hot" && left != "hot";
    run.report.say(
        "one of them is on the card at a time",
        &json!({"flux-a": left, "flux-b": "hot"}),
        Verdict::of(right),
    )?;

    let ps =
        run.kit.command(&run.kit.host).args(["ps", "--json", "--config"]).arg(host.folder.join("models.yaml")).output();
    let ps = ps.doing("run `aihost ps`")?;
    let listed = String::from_utf8_lossy(&ps.stdout);
    let right = ps.status.success() && ["flux-a", "flux-b", "talk"].iter().all(|model| listed.contains(model));
    run.report.say("`aihost ps`", &json!({"exit": ps.status.code(), "bytes": listed.len()}), Verdict::of(right))?;

    let metrics = client::get(address, "/metrics")?.body;
    let budget = gauge(&metrics, &format!("aihost_device_budget_bytes{{device=\"{}\"}}", card(run)));
    let wanted = total / 100 * BUDGET_PERCENT;
    // nvidia-smi rounds to mebibytes.
    let right = budget.is_some_and(|budget| budget.abs_diff(wanted) < 4 << 20);
    run.report.say(
        "its budget in /metrics is the card's",
        &json!({"found": budget, "wanted": wanted}),
        Verdict::of(right),
    )?;
    others(run, &host, total)
}

/// Another process holds most of the card: the host sees it, and sees it leave.
fn others(run: &mut Run<'_>, host: &Host, total: u64) -> Result {
    let address = host.server.address;
    // Whoever holds the card of ours leaves first.
    for model in ["flux-a", "flux-b"] {
        client::post(address, "/models/unload", &json!({"model": model}))?;
    }
    let other = Other::hold(run, host, total / 100 * OTHERS_PERCENT)?;
    let answer = chat(address, "large", "is there room")?;
    let text = answer.body.clone();
    let right = answer.status == 503 && text.contains("where only");
    run.report.say("a model that no longer fits beside another process", &text.into(), Verdict::of(right))?;
    other.leave(run, host)?;
    let begun = Instant::now();
    let last = loop {
        let answer = chat(address, "large", "is there room now")?;
        if answer.status == 200 || begun.elapsed() > SEEN || Instant::now() > run.deadline {
            break answer;
        }
        std::thread::sleep(POLL);
    };
    run.report.say("the same when it has left", &json!({"status": last.status}), Verdict::of(last.status == 200))
}

/// A worker spoils its context of the card: its request fails, the worker is replaced, and the next request is served, as are
/// the models beside it.
pub(super) fn poison(run: &mut Run<'_>) -> Result {
    let total = total(run)?;
    let host = start(run, total)?;
    let address = host.server.address;
    fs::write(host.folder.join("spoilt"), b"").doing("close a gate")?;
    let before = chat(address, "poison", "before")?;
    run.report.say("a request before", &json!({"status": before.status}), Verdict::of(before.status == 200))?;
    let worker = pid(address, "poison")?;
    image(address, "flux-a")?;
    fs::remove_file(host.folder.join("spoilt")).doing("open a gate")?;
    let spoilt = chat(address, "poison", "now")?;
    // A request in one piece is tried again on a fresh worker, where the fault does not come back.
    run.report.say(
        "the request that a kernel out of bounds ends",
        &json!({"status": spoilt.status, "body": spoilt.body}),
        Verdict::Figure,
    )?;
    let after = chat(address, "poison", "after")?;
    run.report.say("the next request", &json!({"status": after.status}), Verdict::of(after.status == 200))?;
    let fresh = pid(address, "poison")?;
    let happened = host.folder.join("spoilt").exists();
    run.report.say(
        "its worker was replaced",
        &json!({"before": worker, "after": fresh}),
        Verdict::of(happened && worker != fresh),
    )?;
    let beside = image(address, "flux-a")?;
    run.report.say("flux beside it", &json!({"status": beside.status}), Verdict::of(beside.status == 200))
}

/// Bytes of the card.
fn total(run: &Run<'_>) -> Result<u64> {
    if run.is_rehearsal() {
        return Ok(PAPER);
    }
    let number = run.device.trim_start_matches("cuda:");
    let query = ["--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", number];
    let said = shell::probe("nvidia-smi", &query);
    let mib: Option<u64> = said.and_then(|said| said.trim().parse().ok());
    mib.map(|mib| mib << 20).ok_or_else(|| Error(format!("nvidia-smi does not say how much memory {} has", run.device)))
}

/// The card by its name in models.yaml: of cards on paper there is one.
fn card<'a>(run: &Run<'a>) -> &'a str {
    if run.is_rehearsal() { "cuda:0" } else { run.device }
}

/// Says what is free of the card on paper.
fn write_card(folder: &Path, free: u64) -> Result {
    fs::write(folder.join("cards"), format!("{PAPER} {free}\n")).doing("write what a card on paper has")
}

fn start(run: &Run<'_>, total: u64) -> Result<Host> {
    let folder = std::env::temp_dir().join(format!("gpu-check-{}", std::process::id()));
    let plugins = folder.join("plugins");
    fs::create_dir_all(&plugins).doing("make a folder for a host")?;
    for name in ["flux", "echo", "faulty"] {
        let file = run.kit.plugin(name);
        fs::copy(&file, plugins.join(format!("{name}.so"))).doing(format_args!("copy {}", file.display()))?;
    }
    let address = free_address()?;
    fs::write(folder.join("models.yaml"), yaml(run, address, &folder, total)).doing("write models.yaml")?;
    let mut command = run.kit.command(&run.kit.host);
    command.args(["serve", "--log-format", "text", "--config"]).arg(folder.join("models.yaml"));
    if run.is_rehearsal() {
        std::os::unix::fs::symlink(&run.kit.nvml, folder.join("libnvidia-ml.so.1")).doing("put a card on paper")?;
        write_card(&folder, PAPER - OWN_SHARE)?;
        let libraries = format!("{}:{}", folder.display(), run.kit.libraries);
        command.env("LD_LIBRARY_PATH", libraries).env("NVIDIA_FIXTURE_CARDS", folder.join("cards"));
    }
    let server = Server::start(&mut command, address, &folder.join("log"))?;
    Ok(Host { server, folder })
}

/// On a device that takes one of the flux models at a time; `large` runs on the card by its plan alone.
fn yaml(run: &Run<'_>, address: SocketAddr, folder: &Path, total: u64) -> String {
    let (on, card) = (run.device, card(run));
    // One of the two at a time: by what they may take, or by number.
    let (cpu, one, memory) = match run.is_rehearsal() {
        true => (", memory: 1GiB", "", "    memory: 600MiB\n"),
        false => ("", ", max_loaded: 1", ""),
    };
    let model = run.kit.golden.join("dev").display().to_string();
    let flux = |name: &str| {
        format!(
            "  {name}:\n    type: image\n    plugin: flux\n    devices: [{on}]\n    files: {{model: {{path: {model}}}}}\n    options: {{max_pixels: 65536}}\n{memory}"
        )
    };
    let places = ["plugins", "models", "state"].map(|key| format!("{key}_dir: {}\n", folder.join(key).display()));
    format!(
        "listen: {address}\n{}devices: [{{id: {card}{one}}}, {{id: cpu{cpu}}}]\nmodels:\n{}{}  talk:\n    type: text\n    plugin: aihost/echo\n    devices: [cpu]\n  large:\n    type: text\n    plugin: aihost/echo\n    devices: [{card}]\n    park: false\n    keep_alive: 0s\n    options: {{memory: {}}}\n  poison:\n    type: text\n    plugin: aihost/faulty\n    devices: [cpu]\n    options: {{fault: poison, once_file: {}}}\n",
        places.concat(),
        flux("flux-a"),
        flux("flux-b"),
        total / 2,
        folder.join("spoilt").display(),
    )
}

fn image(address: SocketAddr, model: &str) -> Result<client::Answer> {
    let body = json!({"model": model, "prompt": "a fox", "size": "64x64", "response_format": "b64_json"});
    client::post(address, "/v1/images/generations", &body)
}

fn chat(address: SocketAddr, model: &str, text: &str) -> Result<client::Answer> {
    let body = json!({"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4});
    client::post(address, "/v1/chat/completions", &body)
}

fn states(address: SocketAddr) -> Result<Vec<Value>> {
    let answer = client::get(address, "/admin/status")?;
    serde_json::from_str(&answer.body).doing("read the host's status")
}

fn pid(address: SocketAddr, model: &str) -> Result<Value> {
    Ok(states(address)?
        .into_iter()
        .find(|state| state["id"] == model)
        .map(|mut state| state["pid"].take())
        .unwrap_or_default())
}

/// The value of a gauge of a page of metrics.
fn gauge(page: &str, name: &str) -> Option<u64> {
    let value = page.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse::<f64>().ok().map(|value| value as u64)
}

/// Memory of the card in other hands: a process that holds it, or a line of paper.
struct Other(Option<Child>);

impl Other {
    fn hold(run: &Run<'_>, host: &Host, bytes: u64) -> Result<Self> {
        if run.is_rehearsal() {
            write_card(&host.folder, PAPER - bytes)?;
            return Ok(Self(None));
        }
        let mut command = run.kit.command(&run.kit.program);
        command.args(["hold", run.device]).arg(&run.kit.golden).arg(bytes.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().doing("start another process")?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).doing("wait for another process")?;
        }
        Ok(Self(Some(child)))
    }

    fn leave(self, run: &Run<'_>, host: &Host) -> Result {
        if run.is_rehearsal() {
            write_card(&host.folder, PAPER - OWN_SHARE)?;
        }
        drop(self);
        Ok(())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::gauge;

    #[test]
    fn a_gauge_is_found_by_its_whole_name() {
        let page = "a_b{device=\"cuda:01\"} 7\na_b{device=\"cuda:0\"} 8.5e10\n";
        assert_eq!(gauge(page, "a_b{device=\"cuda:0\"}"), Some(85_000_000_000));
        assert_eq!(gauge(page, "a_b{device=\"cuda:1\"}"), None);
    }
}
