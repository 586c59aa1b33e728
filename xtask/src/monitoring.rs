//! `monitoring`: the alert rules and the dashboard of docs/monitoring, by Prometheus itself: the rules and their tests by promtool, each
//! query of the dashboard against a Prometheus that scraped a host.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::client;
use crate::bench::server::{Server, free_address};
use crate::error::{Doing, Error, Result};
use crate::shell;
use crate::stage;
use crate::system;
use crate::workspace::{Profile, Workspace, root};

/// Where the rules and the dashboard lie.
const FOLDER: &str = "docs/monitoring";
/// What checks rules, and what they are rules of.
const PROGRAMS: [&str; 2] = ["promtool", "prometheus"];
/// How often the host is scraped, and for how long before it is asked.
const SCRAPED_EVERY: &str = "500ms";
const SCRAPED_FOR: Duration = Duration::from_secs(8);
/// What the dashboard's variables stand for here.
const VARIABLES: [(&str, &str); 4] =
    [("$__rate_interval", "5s"), ("$instance", ".*"), ("$model", ".*"), ("$device", ".*")];
/// Checks all of it, or fails with what is missing.
pub(crate) fn run() -> Result {
    match obstacle() {
        Some(why) => Err(Error(why)),
        None => check(),
    }
}

/// The same. Says why where it cannot run.
pub(crate) fn run_where_it_can() -> Result<Option<String>> {
    match obstacle() {
        Some(why) => Ok(Some(why)),
        None => check().map(|()| None),
    }
}

/// What is missing here, after an attempt to install it.
fn obstacle() -> Option<String> {
    let missing = || PROGRAMS.into_iter().find(|program| shell::probe(program, &["--version"]).is_none());
    if missing().is_some() {
        system::install("prometheus");
    }
    missing().map(|program| format!("there is no {program}; install Prometheus (apt-get install prometheus)"))
}

fn check() -> Result {
    let folder = root().join(FOLDER);
    let promtool = |arguments: &[&str]| shell::run(Command::new("promtool").args(arguments).current_dir(&folder));
    promtool(&["check", "rules", "alerts.yaml"])?;
    promtool(&["test", "rules", "alerts_test.yaml"])?;
    rules_are_told()?;
    let queries = queries(&folder.join("grafana.json"))?;
    let scratch = std::env::temp_dir().join(format!("aihost-monitoring-{}", std::process::id()));
    fs::create_dir_all(&scratch).doing(format_args!("create {}", scratch.display()))?;
    let result = against_a_host(&queries, &scratch);
    let _ = fs::remove_dir_all(&scratch);
    result
}

/// That METRICS tells of each rule, in its words.
fn rules_are_told() -> Result {
    let text = |name: &str| fs::read_to_string(root().join("docs").join(name)).doing(format_args!("read docs/{name}"));
    let (told, rules) = (text("METRICS.md")?, text("monitoring/alerts.yaml")?);
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    match names.into_iter().find(|name| !told.contains(&format!("`{name}`"))) {
        None => Ok(()),
        Some(name) => Err(Error(format!("docs/METRICS.md does not tell of the alert {name}"))),
    }
}

/// Every query of a dashboard, which asks Prometheus alone.
fn queries(path: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(path).doing(format_args!("read {}", path.display()))?;
    let dashboard: Value = serde_json::from_str(&text).doing("read the dashboard")?;
    let mut queries = BTreeSet::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            if target["datasource"]["type"] != "prometheus" {
                return Err(Error(format!("the panel {} asks another source", panel["title"])));
            }
            queries.extend(target["expr"].as_str().map(str::to_owned));
        }
    }
    if queries.is_empty() { Err(Error::new("the dashboard has no query")) } else { Ok(queries) }
}

fn against_a_host(queries: &BTreeSet<String>, scratch: &Path) -> Result {
    let workspace = Workspace::read()?;
    workspace.build_all(Profile::Dev)?;
    let (host, prometheus) = (free_address()?, free_address()?);
    let write = |name: &str, text: String| {
        let path = scratch.join(name);
        fs::write(&path, text).doing(format_args!("write {}", path.display())).map(|()| path)
    };
    let fixtures: Vec<_> = workspace.plugins().into_iter().filter(|plugin| plugin.fixture).collect();
    stage::plugins(&workspace, Profile::Dev, &fixtures, &scratch.join("plugins"))?;
    let models = write("models.yaml", models_yaml(host))?;
    let mut serve = workspace.aihost(Profile::Dev);
    serve.args(["serve", "--config"]).arg(&models).env("AIHOST_CONFIG", &models);
    let _server = Server::start(&mut serve, host, &scratch.join("host.log"))?;
    let config = json!({
        "global": {"scrape_interval": SCRAPED_EVERY, "scrape_timeout": SCRAPED_EVERY},
        "scrape_configs": [{"job_name": "aihost", "static_configs": [{"targets": [host.to_string()]}]}],
    });
    let config = write("prometheus.yaml", config.to_string())?;
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", scratch.join("data").display()));
    command.arg(format!("--web.listen-address={prometheus}"));
    let _prometheus = Server::start_with(&mut command, prometheus, &scratch.join("prometheus.log"), "/-/ready")?;
    let until = Instant::now() + SCRAPED_FOR;
    let mut turn = 0;
    while Instant::now() < until {
        // What fails is counted, too.
        let model = ["talker", "other", "broken", "absent"][turn % 4];
        client::post(
            host,
            "/v1/chat/completions",
            &json!({"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}),
        )?;
        turn += 1;
    }
    let mut wrong = Vec::new();
    for query in queries {
        let asked = VARIABLES.iter().fold(query.clone(), |text, (name, value)| text.replace(name, value));
        let url = format!("http://{prometheus}");
        let answer = shell::output(Command::new("promtool").args(["query", "instant", "--format=json", &url, &asked]));
        match answer {
            Ok(text) if text.trim() != "[]" => {}
            Ok(_) => wrong.push(format!("it gives nothing: {query}")),
            Err(error) => wrong.push(format!("{error}: {query}")),
        }
    }
    if wrong.is_empty() {
        println!("{} queries of the dashboard answered by Prometheus over {turn} requests", queries.len());
        return Ok(());
    }
    Err(Error(format!("{} of {} queries of the dashboard:\n{}", wrong.len(), queries.len(), wrong.join("\n"))))
}

/// A host with two models that leave for each other, and one that fails.
fn models_yaml(address: SocketAddr) -> String {
    format!(
        "listen: {address}
{}devices: [{{id: cpu, memory: 1GiB}}]
models:
  talker: {{type: text, plugin: aihost/echo, memory: 700MiB}}
  other: {{type: text, plugin: aihost/echo, memory: 700MiB}}
  broken: {{type: text, plugin: aihost/faulty, options: {{fault: load_error}}}}
",
        stage::FOLDERS_BESIDE
    )
}
