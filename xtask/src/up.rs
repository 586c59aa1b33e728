//! `up`: from a clean clone to a host that answers, in one command. It builds what models.yaml names and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_yaml::Value;

use crate::bench::client;
use crate::error::{Doing, Error, Result};
use crate::workspace::{PluginPackage, Profile, Workspace, root};
use crate::{gpu, shell, stage};

/// How long a detached host may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How to serve.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Serve in the background; the process number and the log go to target/aihost.
    #[arg(long)]
    detach: bool,
    /// Where to listen.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Build optimised.
    #[arg(long)]
    release: bool,
}

/// Builds, fetches, serves.
pub(crate) fn run(options: &Options) -> Result {
    check_free(options.listen)?;
    if let Some(other) =
        std::env::var_os("AIHOST_CONFIG").filter(|other| Path::new(other) != root().join("models.yaml"))
    {
        eprintln!(
            "note: AIHOST_CONFIG names {}, which `aihost` commands read; `up` serves this repository's models.yaml, \
             and they see it once AIHOST_CONFIG is unset",
            other.display()
        );
    }
    let workspace = Workspace::read()?;
    let profile = Profile::of_flag(options.release);
    let plugins = named_plugins(&workspace)?;
    workspace.build_host(profile, &plugins)?;
    let plugins_dir = workspace.plugins_folder(profile)?;
    if let Some(notice) = gpu::notice(&workspace, &plugins_dir) {
        eprintln!("{notice}");
    }
    // What was built for CUDA, by `build-plugins --cuda`, serves the CPU too and stays.
    let plain: Vec<_> =
        plugins.into_iter().filter(|plugin| !gpu::is_cuda_plugin(&plugins_dir.join(plugin.file_name()))).collect();
    stage::plugins(&workspace, profile, &plain, &plugins_dir)?;
    shell::run(workspace.aihost(profile).args(["models", "pull", "--all"]))?;
    let mut serve = workspace.aihost(profile);
    serve.args(["serve", "--log-format", "text", "--listen", &options.listen.to_string()]);
    println!("{}", greeting(options.listen));
    if options.detach {
        detach(&mut serve, &workspace.staging(), options.listen)
    } else {
        // The host takes this process's place, so that Ctrl-C reaches it alone and it drains.
        Err(serve.exec()).doing("start aihost")
    }
}

/// The plugins of this repository that its models.yaml names. What else is wrong in that file, the host says.
fn named_plugins(workspace: &Workspace) -> Result<Vec<PluginPackage>> {
    let file = root().join("models.yaml");
    let text = fs::read_to_string(&file).doing(format_args!("read {}", file.display()))?;
    let ids = plugin_ids(&text).doing(format_args!("read {}", file.display()))?;
    Ok(workspace.plugins().into_iter().filter(|plugin| !plugin.fixture && ids.contains(&plugin.name())).collect())
}

/// Every value of a key `plugin`, without its range of versions.
fn plugin_ids(yaml: &str) -> std::result::Result<BTreeSet<String>, serde_yaml::Error> {
    fn collect(value: &Value, ids: &mut BTreeSet<String>) {
        match value {
            Value::Mapping(entries) => entries.iter().for_each(|(key, value)| match value {
                Value::String(id) if key == "plugin" => {
                    ids.insert(id.split('@').next().unwrap_or(id).trim().to_owned());
                }
                value => collect(value, ids),
            }),
            Value::Sequence(items) => items.iter().for_each(|item| collect(item, ids)),
            _ => {}
        }
    }
    let mut ids = BTreeSet::new();
    collect(&serde_yaml::from_str(yaml)?, &mut ids);
    Ok(ids)
}

/// Before the long build, and so that another server's /health is not taken for ours.
fn check_free(listen: SocketAddr) -> Result {
    TcpListener::bind(listen).map(drop).map_err(|error| {
        Error(format!("cannot listen on {listen}: {error}; stop what listens there, or add --listen ADDR"))
    })
}

fn greeting(listen: SocketAddr) -> String {
    let ask = |model: &str, question: &str| {
        format!(
            "  curl -s http://{listen}/v1/chat/completions -H 'content-type: application/json' \\\n    \
             -d '{{\"model\":\"{model}\",\"temperature\":0,\"max_tokens\":40,\"messages\":[{{\"role\":\"user\",\"content\":\"{question}\"}}]}}'"
        )
    };
    let embed = format!(
        "  curl -s http://{listen}/v1/embeddings -H 'content-type: application/json' \\\n    \
         -d '{{\"model\":\"minilm\",\"input\":[\"A cat sits outside\",\"The dog sleeps\"],\"dimensions\":8}}'"
    );
    format!(
        "\nOnce the host listens, ask it:\n{}\nand ask the other model, which takes the first one's place:\n{}\nand one that makes vectors:\n{embed}\n",
        ask("smollm2", "Who wrote Romeo and Juliet?"),
        ask("smollm2-b", "What is the capital of France?")
    )
}

fn detach(serve: &mut Command, folder: &Path, listen: SocketAddr) -> Result {
    let (log, pid_file) = (folder.join("serve.log"), folder.join("serve.pid"));
    let file = fs::File::create(&log).doing(format_args!("create {}", log.display()))?;
    let copy = file.try_clone().doing("share the log file")?;
    let mut child =
        serve.stdin(Stdio::null()).stdout(file).stderr(copy).process_group(0).spawn().doing("start aihost")?;
    fs::write(&pid_file, format!("{}\n", child.id())).doing(format_args!("write {}", pid_file.display()))?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().doing("watch aihost")? {
            let text = fs::read_to_string(&log).unwrap_or_default();
            return Err(Error(format!("aihost ended ({status}); its log:\n{}", text.trim_end())));
        }
        if client::get(listen, "/health").is_ok_and(|answer| answer.status == 200) {
            break;
        }
        if start.elapsed() > START_LIMIT {
            return Err(Error(format!("aihost does not answer at {listen}; its log is {}", log.display())));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    println!(
        "serving at http://{listen}, also to a browser; log: {}; stop it with: kill {}",
        log.display(),
        child.id()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_taken_port_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert!(super::check_free(address).unwrap_err().0.contains(&address.to_string()));
        drop(taken);
        assert!(super::check_free(address).is_ok());
    }

    #[test]
    fn the_plugins_that_are_built_are_those_that_entries_name() {
        let yaml = "models:\n  a: {plugin: flux}\n  b:\n    plugin: \"candle-llm@>=0.1\"\n  c: {plugin: acme/x}\n";
        let list = "models: [{name: a, plugin: flux}, {name: b, plugin: candle-llm}, {name: c, plugin: acme/x}]";
        for text in [yaml, list] {
            assert_eq!(
                super::plugin_ids(text).unwrap().into_iter().collect::<Vec<_>>(),
                ["acme/x", "candle-llm", "flux"]
            );
        }
    }

    #[test]
    fn the_greeting_names_both_models_and_the_port() {
        let text = super::greeting(([127, 0, 0, 1], 9001).into());
        for part in [
            "\"model\":\"smollm2\"",
            "\"model\":\"smollm2-b\"",
            "http://127.0.0.1:9001/v1/chat/completions",
            "http://127.0.0.1:9001/v1/embeddings",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
