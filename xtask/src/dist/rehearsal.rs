//! The first evening of an operator, by the commands of docs/DEPLOYMENT.md: from the archive to an answer and down again, in a folder of its own
//! and with nothing of this machine's in the way: no Rust, no Python environment, no network for the model, which is there already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bench::client;
use crate::bench::server::free_address;
use crate::error::{Doing, Error, Result};
use crate::workspace::{Workspace, root};
use crate::{shell, test};

/// Where the commands stand.
const PAGE: &str = "docs/DEPLOYMENT.md";
const HEADING: &str = "## From the archive";
/// From the first command to the first token.
const LIMIT: Duration = Duration::from_secs(60);
const MODEL: &str = "smollm2";

/// Follows the page with this archive.
pub(super) fn run(workspace: &Workspace, archive: &Path, out: &Path) -> Result {
    let home = out.join("rehearsal");
    if home.exists() {
        fs::remove_dir_all(&home).doing(format_args!("remove {}", home.display()))?;
    }
    let models = home.join("models");
    let model = test::small_model_by(workspace, &mut released(archive))?;
    let folder =
        model.parent().and_then(Path::file_name).ok_or_else(|| Error::new("the small model lies in no folder"))?;
    crate::stage::copy_whole(&model, &models.join(folder).join(model.file_name().unwrap_or_default()))?;
    crate::stage::copy_whole(archive, &home.join(archive.file_name().unwrap_or_default()))?;
    let operator = Operator { home, models };
    let (address, begun) = (free_address()?, Instant::now());
    for line in commands()? {
        operator.types(&line)?;
        if line == "aihost init" {
            // The port of the page may be somebody's here.
            operator.types(&format!("sed -i 's/^listen: .*/listen: {address}/' models.yaml"))?;
            operator.types(&format!("aihost models pull {MODEL}"))?;
        }
    }
    let task =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "stream": true, "max_tokens": 4});
    let answered = client::first_token_of(address, &task);
    let took = begun.elapsed();
    for line in ["aihost status", "aihost doctor", "aihost down"] {
        operator.types(line)?;
    }
    answered?;
    operator.types("aihost-*-x86_64-linux/install --prefix \"$HOME/.local\" --uninstall")?;
    if operator.home.join(".local/bin/aihost").exists() {
        return Err(Error::new("`install --uninstall` left the host where it was"));
    }
    eprintln!("from the first command to the first token: {:.1} s", took.as_secs_f64());
    if took > LIMIT { Err(Error(format!("that is more than {} s", LIMIT.as_secs()))) } else { Ok(()) }
}

/// The host of the archive, beside which it was packed: nothing else need be built.
fn released(archive: &Path) -> Command {
    let folder = archive.to_string_lossy().trim_end_matches(".tar.gz").to_owned();
    let mut aihost = Command::new(Path::new(&folder).join("bin/aihost"));
    aihost.current_dir(root()).env("AIHOST_CONFIG", root().join("models.yaml"));
    aihost
}

/// The page's commands, line by line.
fn commands() -> Result<Vec<String>> {
    let page = root().join(PAGE);
    let text = fs::read_to_string(&page).doing(format_args!("read {}", page.display()))?;
    let block = text.split_once(HEADING).and_then(|(_, behind)| behind.split_once("```sh\n")?.1.split_once("```"));
    let (block, _) = block.ok_or_else(|| Error(format!("{PAGE} has no commands under `{HEADING}`")))?;
    Ok(block.lines().map(str::to_owned).collect())
}

/// Somebody with a home of their own, and the programs that every system has.
struct Operator {
    home: PathBuf,
    models: PathBuf,
}

impl Operator {
    fn types(&self, line: &str) -> Result {
        let bin = self.home.join(".local/bin");
        let mut command = Command::new("sh");
        command.args(["-ec", line]).current_dir(&self.home).env_clear().env("HOME", &self.home);
        command.env("PATH", format!("{}:/usr/bin:/bin", bin.display())).env("AIHOST_MODELS_DIR", &self.models);
        command.env("AIHOST_STATE_DIR", self.home.join("state"));
        shell::run(&mut command)
    }
}
