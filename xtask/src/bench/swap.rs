//! `bench swap`: what a swap adds to the first token, beside llama.cpp's router in the same run.
//!
//! Two copies of one model file, one place. Each alternation asks the model that is not loaded (swap), then the same
//! one again (resident). Overhead = median first token after a swap - median first token when resident.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::{Value, json};

use super::client;
use super::server::{Server, free_address};
use super::statistics::Readings;
use crate::error::{Doing, Error, Result};
use crate::workspace::{PluginPackage, Profile, Workspace};
use crate::{shell, stage, table, test};

/// The bar: at most this share of the router's overhead.
const BAR: f64 = 0.5;
const MODELS: [&str; 2] = ["a", "b"];
/// Who serves them.
const PLUGIN: &str = "candle-llm";

/// How much, and beside what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds; the arms take turns, A B B A.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Swaps per arm in each round.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    alternations: u32,
    /// llama.cpp's llama-server, measured as the other arm.
    #[arg(long, value_name = "PATH")]
    peer: Option<PathBuf>,
    /// Unload models instead of parking them: what a swap costs the first time.
    #[arg(long)]
    cold: bool,
    /// Build optimised.
    #[arg(long)]
    release: bool,
}

/// One side of the comparison.
#[derive(Debug)]
struct Arm {
    name: &'static str,
    version: String,
    server: Server,
    /// The model that is loaded, as an index into [`MODELS`].
    loaded: usize,
    asked: u32,
    swap: Readings,
    resident: Readings,
}

/// Runs the measure.
pub(crate) fn run(options: &Options) -> Result {
    let workspace = Workspace::read()?;
    let profile = Profile::of_flag(options.release);
    let plugins = workspace.build_to_measure(profile, PLUGIN)?;
    let model = test::small_model(&workspace, profile)?;
    let folder = workspace.staging().join("bench");
    for name in MODELS {
        stage::copy_whole(&model, &folder.join("models").join(format!("{name}.gguf")))?;
    }
    let mut arms = vec![aihost(&workspace, profile, &plugins, &folder, options.cold)?];
    if let Some(peer) = &options.peer {
        arms.push(router(peer, &folder)?);
    }
    for arm in &mut arms {
        arm.ask(0)?;
    }
    for round in 0..options.rounds {
        // A B, B A, A B, ...: drift of the machine falls on both arms alike.
        let mut order: Vec<usize> = (0..arms.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            arms[index].round(options.alternations)?;
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    report(options, &arms, &model, &folder)
}

impl Arm {
    fn new(name: &'static str, version: String, server: Server) -> Self {
        Self { name, version, server, loaded: 0, asked: 0, swap: Readings::default(), resident: Readings::default() }
    }

    fn round(&mut self, alternations: u32) -> Result {
        let before = self.loads()?;
        for _ in 0..alternations {
            let other = 1 - self.loaded;
            let seconds = self.ask(other)?;
            self.swap.0.push(seconds);
            let seconds = self.ask(other)?;
            self.resident.0.push(seconds);
        }
        match (before, self.loads()?) {
            (Some(before), Some(after)) => check_loads(before, after, alternations),
            _ => Ok(()),
        }
    }

    /// Seconds to the first token of a prompt that was never sent before.
    fn ask(&mut self, model: usize) -> Result<f64> {
        self.asked += 1;
        self.loaded = model;
        let prompt = format!("{} is a number. Say one word about it.", 1000 + self.asked);
        client::first_token(self.server.address, MODELS[model], &prompt)
    }

    /// Loads since its start, where it counts them.
    fn loads(&self) -> Result<Option<u64>> {
        if self.name != "aihost" {
            return Ok(None);
        }
        let answer = client::get(self.server.address, "/admin/status")?;
        let status: Value = serde_json::from_str(&answer.body).doing("read GET /admin/status")?;
        count_loads(&status).map(Some).ok_or_else(|| Error::new("GET /admin/status has no `loads`"))
    }

    fn overhead(&self) -> f64 {
        self.swap.median() - self.resident.median()
    }

    fn json(&self) -> Value {
        json!({
            "arm": self.name, "version": self.version, "after_swap": self.swap.json(),
            "resident": self.resident.json(), "overhead_s": self.overhead(),
        })
    }
}

/// Readings count only if every alternation was a swap, and nothing else was.
fn check_loads(before: u64, after: u64, alternations: u32) -> Result {
    if after.checked_sub(before) == Some(u64::from(alternations)) {
        return Ok(());
    }
    Err(Error(format!("the load counter went from {before} to {after} in {alternations} alternations")))
}

/// The sum of every `loads` and `wakes` in a status answer; `None` if it has no `loads`.
pub(super) fn count_loads(status: &Value) -> Option<u64> {
    let inner: Vec<&Value> = match status {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => {
            if let Some(loads) = fields.get("loads").and_then(Value::as_u64) {
                return Some(loads + fields.get("wakes").and_then(Value::as_u64).unwrap_or(0));
            }
            fields.values().collect()
        }
        _ => return None,
    };
    inner.into_iter().filter_map(count_loads).reduce(|sum, loads| sum + loads)
}

fn aihost(
    workspace: &Workspace,
    profile: Profile,
    plugins: &[PluginPackage],
    folder: &Path,
    cold: bool,
) -> Result<Arm> {
    let address = free_address()?;
    let config = folder.join("models.yaml");
    stage::plugins(workspace, profile, plugins, &folder.join("plugins"))?;
    fs::write(&config, models_yaml(address, cold)).doing("write the models.yaml of the measure")?;
    let mut command = workspace.aihost(profile);
    command.args(["serve", "--log-format", "text", "--config"]).arg(&config).env("AIHOST_CONFIG", &config);
    let server = Server::start(&mut command, address, &folder.join("aihost.log"))?;
    let version = shell::probe(&workspace.host(profile).to_string_lossy(), &["--version"]).unwrap_or_default();
    Ok(Arm::new("aihost", version, server))
}

fn models_yaml(listen: impl std::fmt::Display, cold: bool) -> String {
    let entry = |name: &str| {
        format!(
            "  {name}:\n    type: text\n    plugin: candle-llm\n    park: {}\n    source: {{path: models/{name}.gguf}}\n",
            !cold
        )
    };
    format!(
        "listen: {listen}\n{}devices: [{{id: cpu, max_loaded: 1}}]\nmodels:\n{}",
        stage::FOLDERS_BESIDE,
        MODELS.map(entry).concat()
    )
}

fn router(binary: &Path, folder: &Path) -> Result<Arm> {
    let address = free_address()?;
    let mut command = Command::new(binary);
    command.arg("--models-dir").arg(folder.join("models")).args(["--models-max", "1"]);
    command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
    let server = Server::start(&mut command, address, &folder.join("router.log"))?;
    let version = shell::probe(&binary.to_string_lossy(), &["--version"]).unwrap_or_default();
    let version = version.lines().find(|line| line.starts_with("version")).unwrap_or_default().to_owned();
    Ok(Arm::new("llama.cpp router", version, server))
}

fn report(options: &Options, arms: &[Arm], model: &Path, folder: &Path) -> Result {
    let digest = shell::probe("sha256sum", &[&model.to_string_lossy()]).unwrap_or_default();
    let digest = digest.split_whitespace().next().unwrap_or_default().to_owned();
    let ratio = arms.get(1).map(|peer| arms[0].overhead() / peer.overhead());
    let result = json!({
        "measure": "swap", "rounds": options.rounds, "alternations_per_round": options.alternations,
        "model_sha256": digest, "build": if options.release { "release" } else { "dev" },
        "arms": arms.iter().map(Arm::json).collect::<Vec<_>>(), "ratio": ratio, "bar": BAR,
    });
    let file = folder.join("swap.json");
    fs::write(&file, format!("{result:#}\n")).doing(format_args!("write {}", file.display()))?;
    println!("model sha256 {digest}; {} swaps per arm; {}", options.rounds * options.alternations, file.display());
    let mut rows =
        vec![table::row(["arm", "first token, resident", "first token, after a swap", "overhead", "version"])];
    for arm in arms {
        let overhead = format!("{:.3} s", arm.overhead());
        rows.push(vec![arm.name.to_owned(), arm.resident.text(), arm.swap.text(), overhead, arm.version.clone()]);
    }
    print!("{}", table::render(&rows));
    if let Some(ratio) = ratio {
        let word = if ratio <= BAR { "reached" } else { "not reached" };
        println!("overhead is {ratio:.2}x the router's; at most {BAR}x is the aim: {word}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{check_loads, count_loads, models_yaml};

    #[test]
    fn loads_are_summed_wherever_they_stand() {
        assert_eq!(count_loads(&json!([{"id": "a", "loads": 2}, {"id": "b", "loads": 2, "wakes": 1}])), Some(5));
        assert_eq!(count_loads(&json!({"models": [{"loads": 1}], "devices": [{}]})), Some(1));
        assert_eq!(count_loads(&json!({"error": {}})), None);
    }

    #[test]
    fn every_alternation_must_be_a_swap() {
        assert!(check_loads(1, 21, 20).is_ok());
        assert!(check_loads(1, 20, 20).is_err());
        assert!(check_loads(1, 22, 20).is_err());
        assert!(check_loads(5, 3, 2).is_err());
    }

    #[test]
    fn the_config_has_two_models_and_one_place() {
        let text = models_yaml("127.0.0.1:1", true);
        assert!(text.contains("max_loaded: 1") && text.contains("park: false"));
        assert!(text.contains("  a:\n") && text.contains("models/a.gguf") && text.contains("  b:\n"));
    }
}
