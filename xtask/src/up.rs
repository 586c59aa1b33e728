//! `up`: from a clean clone to a host that answers, in one command.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

use crate::bench::client;
use crate::error::{Doing, Error, Result};
use crate::workspace::{Profile, Workspace};
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
    let workspace = Workspace::read()?;
    let profile = Profile::of_flag(options.release);
    let plugins_dir = workspace.staging().join("plugins");
    if let Some(notice) = gpu::notice(&workspace, &plugins_dir) {
        eprintln!("{notice}");
    }
    workspace.build_all(profile)?;
    if !gpu::has_cuda_plugin(&plugins_dir) {
        let default: Vec<_> = workspace.plugins().into_iter().filter(|plugin| !plugin.fixture).collect();
        stage::plugins(&workspace, profile, &default, &plugins_dir)?;
    }
    shell::run(workspace.aihost(profile).args(["models", "pull", "--all"]))?;
    let mut serve = workspace.aihost(profile);
    serve.args(["serve", "--listen", &options.listen.to_string()]);
    println!("{}", greeting(options.listen));
    if options.detach {
        detach(&mut serve, &workspace.staging(), options.listen)
    } else {
        // The host takes this process's place, so that Ctrl-C reaches it alone and it drains.
        Err(serve.exec()).doing("start aihost")
    }
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
    format!(
        "\nOnce the host listens, ask it:\n{}\nand ask the other model, which takes the first one's place:\n{}\n",
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
    println!("serving at http://{listen}; log: {}; stop it with: kill {}", log.display(), child.id());
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
    fn the_greeting_names_both_models_and_the_port() {
        let text = super::greeting(([127, 0, 0, 1], 9001).into());
        for part in ["\"model\":\"smollm2\"", "\"model\":\"smollm2-b\"", "http://127.0.0.1:9001/v1/chat/completions"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
