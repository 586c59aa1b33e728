//! `aihost models rm` and `aihost models prune`: files that are not wanted any more. What is loaded, shared or being fetched stays.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{known, write};
use crate::cli::auto::weights;
use crate::cli::client::{Server, ServerTarget};
use crate::cli::failure::CliError;
use crate::cli::{CommandContext, out};
use crate::config::{Config, ModelConfig};
use crate::domain::{ByteSize, some_names};
use crate::store;

/// States of a model that uses none of its files.
const UNLOADED: [&str; 3] = ["cold", "failed", "unloaded"];

#[derive(Debug, clap::Args)]
pub(super) struct Removed {
    /// Model or alias.
    name: String,
    /// Take its entry out of models.yaml as well. Files that other models have too are kept then.
    #[arg(long)]
    entry: bool,
    #[command(flatten)]
    target: ServerTarget,
}

#[derive(Debug, clap::Args)]
pub(super) struct Pruned {
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(context: &CommandContext, arguments: Removed) -> Result<(), CliError> {
    let target = write::Target::find(context)?;
    let config = &target.config;
    let model = known(config, &arguments.name)?;
    let name = model.id.as_str();
    let shared = shared(config, model);
    if let (Some((path, others)), false) = (shared.first(), arguments.entry) {
        return Err(CliError::failed(format!(
            "{} is a file of {} too, and is kept",
            path.display(),
            some_names(others.iter().copied())
        ))
        .hint(format!("`aihost models rm {name} --entry` takes the entry out and keeps such files")));
    }
    refuse_loaded(context, &arguments.target, model).await?;
    let change = match arguments.entry {
        true => Some(target.without(name)?),
        false => None,
    };
    let models = &config.paths.models;
    let own = own_files(config, model);
    let (mut freed, mut removed) = (0, 0);
    for path in own.iter().filter(|path| shared.iter().all(|(other, _)| other != *path)) {
        let is_here = path.symlink_metadata().is_ok();
        freed += store::remove_file(models, path).map_err(CliError::failed)?;
        if is_here {
            removed += 1;
            out::line(&path.display().to_string())?;
        }
    }
    if let Some(change) = change {
        change.write()?;
        out::note(&format!("{name}: its entry is taken out of {}", target.file.display()));
    }
    out::note(&format!("{name}: {} removed, {} given back", files(removed), ByteSize(freed)));
    for (path, others) in &shared {
        out::note(&format!("{} is kept, as a file of {}", path.display(), some_names(others.iter().copied())));
    }
    for file in model.files.values().filter(|file| !own.contains(&file.path)) {
        let why = if file.sources.is_empty() { "it was not fetched" } else { "it lies outside of `models_dir`" };
        out::note(&format!("{} is kept: {why}", file.path.display()));
    }
    Ok(())
}

pub(super) fn prune(context: &CommandContext, arguments: &Pruned) -> Result<(), CliError> {
    let config = context.load()?;
    let models = &config.paths.models;
    let (mut freed, mut failed) = (0, Vec::new());
    let strays = store::strays(models, &wanted(&config));
    for stray in &strays {
        let done = if arguments.dry_run { Ok(stray.bytes) } else { store::remove_stray(models, stray) };
        match done {
            Ok(bytes) => {
                freed += bytes;
                out::line(&stray.path.display().to_string())?;
            }
            Err(why) => failed.push(why),
        }
    }
    let would = if arguments.dry_run { "would be " } else { "" };
    out::note(&format!(
        "{} {would}removed from {}, {} given back",
        files(strays.len() - failed.len()),
        models.display(),
        ByteSize(freed)
    ));
    if failed.is_empty() { Ok(()) } else { Err(CliError::failed(failed.join("; "))) }
}

fn files(count: usize) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

/// The files of a model that lie in the folder of models and were fetched.
fn own_files(config: &Config, model: &ModelConfig) -> BTreeSet<PathBuf> {
    let files =
        model.files.values().filter(|file| !file.sources.is_empty() && file.path.starts_with(&config.paths.models));
    files.map(|file| file.path.clone()).collect()
}

/// Files of a model that are others' as well, and whose.
fn shared<'a>(config: &'a Config, model: &ModelConfig) -> Vec<(PathBuf, Vec<&'a str>)> {
    let others = |path: &Path| -> Vec<&'a str> {
        let others = config.models.values().filter(|other| other.id != model.id);
        others.filter(|other| files_of(other).contains(path)).map(|other| other.id.as_str()).collect()
    };
    let own = own_files(config, model).into_iter().map(|path| (others(&path), path));
    own.filter(|(others, _)| !others.is_empty()).map(|(others, path)| (path, others)).collect()
}

/// The files of a model, those among them that its first part stands for.
fn files_of(model: &ModelConfig) -> BTreeSet<PathBuf> {
    model.files.values().flat_map(|file| weights::parts(&file.path)).collect()
}

/// What stays: the files of all models, and what lies beside one of them that somebody put there.
fn wanted(config: &Config) -> BTreeSet<PathBuf> {
    let mut wanted: BTreeSet<PathBuf> = config.models.values().flat_map(files_of).collect();
    for file in config.models.values().flat_map(|model| model.files.values()).filter(|file| file.sources.is_empty()) {
        // A plugin may find more of its model there.
        let folder = if file.path.is_dir() { Some(file.path.as_path()) } else { file.path.parent() };
        wanted.extend(folder.filter(|folder| config.paths.models != *folder).map(Path::to_owned));
    }
    wanted
}

/// Refuses a model that a running server has loaded.
async fn refuse_loaded(context: &CommandContext, target: &ServerTarget, model: &ModelConfig) -> Result<(), CliError> {
    let server = Server::of(context, target)?;
    let running = match server.status().await {
        Ok(running) => running,
        // Nobody serves.
        Err(CliError::Unreachable { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let name = model.id.as_str();
    match running.iter().find(|listed| listed.id == name && !UNLOADED.contains(&listed.state.as_str())) {
        None => Ok(()),
        Some(listed) => {
            Err(CliError::failed(format!("{name} is {} on the running server, which uses its files", listed.state))
                .hint(format!("aihost models unload {name}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Env;
    use crate::store::tests::standin::Standin;

    /// A folder with a models.yaml, and its folders below.
    struct Here(tempfile::TempDir);

    impl Here {
        fn new(models: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let text = format!("listen: 127.0.0.1:9\nmodels_dir: m\nstate_dir: s\nplugins_dir: p\nmodels:\n{models}");
            fs::write(folder.path().join("models.yaml"), text).unwrap();
            Self(folder)
        }

        fn lay(&self, path: &str) -> PathBuf {
            let path = self.0.path().join("m").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "GGUF").unwrap();
            path
        }

        fn context(&self) -> CommandContext {
            CommandContext { env: Env::with(self.0.path(), []), config: None }
        }

        async fn remove(&self, name: &str, entry: bool) -> Result<(), CliError> {
            run(&self.context(), Removed { name: name.to_owned(), entry, target: ServerTarget::default() }).await
        }
    }

    const TWO: &str = "  a: {type: text, plugin: p, source: {hf: o/r, file: x.gguf}}\n  # of b\n  b: {type: text, plugin: p, files: {model: {hf: o/r, file: x.gguf}, more: {hf: o/r, file: y.gguf}}}\n";

    #[tokio::test]
    async fn what_another_model_has_too_is_refused_or_kept() {
        let here = Here::new(TWO);
        let (x, y) = (here.lay("hf/o/r/main/x.gguf"), here.lay("hf/o/r/main/y.gguf"));
        let told = format!("{:?}", here.remove("b", false).await.unwrap_err());
        assert!(told.contains("is a file of a too") && told.contains("--entry"), "{told}");
        assert!(x.exists() && y.exists());
        here.remove("b", true).await.unwrap();
        assert!(x.exists() && !y.exists());
        let text = fs::read_to_string(here.0.path().join("models.yaml")).unwrap();
        assert!(text.contains("  a: {") && !text.contains("  b:") && !text.contains("# of b"), "{text}");
        here.remove("a", false).await.unwrap();
        assert!(!x.exists() && here.0.path().join("m").exists());
    }

    #[tokio::test]
    async fn what_a_server_has_loaded_is_refused_and_what_it_only_lists_is_not() {
        let here = Here::new(TWO);
        let y = here.lay("hf/o/r/main/y.gguf");
        let server = Standin::start().await;
        let remove = async |state: &str| {
            let listed = format!(r#"[{{"id": "a", "state": "hot"}}, {{"id": "b", "state": "{state}"}}]"#);
            server.file("admin/status", listed.as_bytes());
            let target = ServerTarget { url: Some(server.base.clone()), key: None };
            run(&here.context(), Removed { name: "b".to_owned(), entry: true, target }).await
        };
        for state in ["hot", "loading", "parked"] {
            let told = format!("{:?}", remove(state).await.unwrap_err());
            assert!(told.contains(&format!("b is {state}")) && told.contains("aihost models unload b"), "{told}");
            assert!(y.exists());
        }
        remove("cold").await.unwrap();
        assert!(!y.exists());
    }

    #[tokio::test]
    async fn a_file_that_was_not_fetched_is_its_owners() {
        let here = Here::new("  a: {type: text, plugin: p, source: {path: m/own/x.gguf}}\n");
        let own = here.lay("own/x.gguf");
        here.remove("a", true).await.unwrap();
        assert!(own.exists());
    }

    #[test]
    fn what_a_model_may_need_is_not_pruned() {
        let models = "  a: {type: text, plugin: p, source: {path: m/hf/own/x-00001-of-00002.gguf}}\n  b: {type: text, plugin: p, source: {hf: o/r, file: y.gguf}}\n";
        let here = Here::new(models);
        let kept = [
            "hf/own/x-00001-of-00002.gguf",
            "hf/own/x-00002-of-00002.gguf",
            "hf/own/config.json",
            "hf/o/r/main/y.gguf",
        ];
        let kept = kept.map(|path| here.lay(path));
        let stray = here.lay("hf/o/r/v1/y.gguf");
        let by_hand = here.lay("by-hand/z.gguf");
        prune(&here.context(), &Pruned { dry_run: true }).unwrap();
        assert!(stray.exists());
        prune(&here.context(), &Pruned { dry_run: false }).unwrap();
        assert!(!stray.exists() && by_hand.exists() && kept.iter().all(|path| path.exists()));
    }
}
