//! `aihost template prepare`: a machine before it is saved as a template (an image) that others start from.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::failure::CliError;
use super::{CommandContext, out, vet};
use crate::config::{Config, Env};
use crate::domain::ByteSize;
use crate::runtime::running_host;

/// What a start of the template runs.
const START: &str = "aihost-start";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: TemplateCommand,
}

#[derive(Debug, Subcommand)]
enum TemplateCommand {
    /// Remove what must not be saved with this machine (keys, histories, state, logs, downloads that were not finished), say what
    /// stays, and write what a start of the template runs.
    Prepare {
        /// Say what would go, and remove nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Something that goes, or stays.
#[derive(Debug)]
struct Thing {
    path: PathBuf,
    why: &'static str,
}

pub(super) fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    let TemplateCommand::Prepare { dry_run } = arguments.command;
    prepare(context, dry_run, Path::new("/"))
}

/// The machine's own files lie below `root`.
fn prepare(context: &CommandContext, dry_run: bool, root: &Path) -> Result<(), CliError> {
    let config = context.load_listening(None)?;
    if let Some(host) = running_host(&config.paths.state, config.listen) {
        return Err(CliError::failed(format!("process {} serves, and would write its state again", host.pid))
            .hint("aihost down, and then this again"));
    }
    let typed = vet::typed_keys(&config);
    if !typed.is_empty() {
        return Err(CliError::failed(format!(
            "{} has keys typed into it: {}",
            vet::file_of(&config).display(),
            typed.join(", ")
        ))
        .hint("write `env:NAME` instead, and set NAME where the template is started; nothing was removed"));
    }
    let stays = staying(&config, &context.env);
    if let Some(inside) = stays.iter().find(|thing| thing.path.starts_with(&config.paths.state)) {
        let state = config.paths.state.display();
        return Err(CliError::failed(format!("{} lies in {state}, which must not be saved", inside.path.display()))
            .hint("give the host a `state_dir:` of its own; nothing was removed"));
    }
    let word = if dry_run { "would go" } else { "goes" };
    let mut failed = Vec::new();
    for Thing { path, why } in going(&config, &context.env, root) {
        out::line(&format!("{word}: {} ({}), {why}", path.display(), ByteSize(size(&path))))?;
        if !dry_run && let Err(error) = remove(&path) {
            failed.push(format!("{}: {error}", path.display()));
        }
    }
    for Thing { path, why } in stays {
        out::line(&format!("stays: {} ({}), {why}", path.display(), ByteSize(size(&path))))?;
    }
    if !failed.is_empty() {
        return Err(
            CliError::failed(format!("not removed: {}", failed.join("; "))).hint("do not save this machine yet")
        );
    }
    let start = start_file(&config);
    let text = start_text(&config, &context.env)?;
    if !dry_run {
        let written =
            fs::write(&start, &text).and_then(|()| fs::set_permissions(&start, fs::Permissions::from_mode(0o755)));
        written.map_err(|error| CliError::failed(format!("{} cannot be written: {error}", start.display())))?;
    }
    out::line(&format!("the template's start command: {}", start.display()))?;
    let named = config.file.iter().filter_map(|file| fs::read_to_string(file).ok()).flat_map(|text| variables(&text));
    let named: Vec<String> = named.collect();
    if !named.is_empty() {
        out::note(&format!("to be set where it is started: {}", named.join(", ")));
    }
    Ok(())
}

/// What is of this machine alone, or nobody else's business.
fn going(config: &Config, env: &Env, root: &Path) -> Vec<Thing> {
    let mut things = Vec::new();
    let mut add = |path: PathBuf, why| {
        if path.symlink_metadata().is_ok() {
            things.push(Thing { path, why });
        }
    };
    add(config.paths.state.clone(), "what a host has learned of this machine, its log and its jobs");
    let cache = config.paths.cache.as_ref();
    for copies in cache.map(|cache| crate::store::entries(&cache.folder)).unwrap_or_default() {
        add(copies, "copies of weights that lie elsewhere");
    }
    let Some(home) = env.named("HOME").map(PathBuf::from) else { return things };
    for name in [".bash_history", ".zsh_history", ".python_history", ".lesshst", ".viminfo", ".wget-hsts"] {
        add(home.join(name), "what was typed here");
    }
    for name in [
        ".cache/huggingface/token",
        ".cache/huggingface/stored_tokens",
        ".huggingface/token",
        ".netrc",
        ".git-credentials",
    ] {
        add(home.join(name), "a key of yours");
    }
    for name in [".ssh/authorized_keys", ".ssh/id_rsa", ".ssh/id_ed25519", ".ssh/id_ecdsa", ".ssh/known_hosts"] {
        add(home.join(name), "a key of yours, or who is let in by one");
    }
    for name in [".cache/pip", ".cache/uv"] {
        add(home.join(name), "packages that are fetched again when they are needed");
    }
    if let Some(config_home) = env.config_home() {
        add(config_home.join("aihost/aihost.env"), "keys of the service");
    }
    for file in ["etc/aihost/aihost.env", "var/lib/tailscale/tailscaled.state"] {
        add(root.join(file), "who this machine is to others");
    }
    let mut unfinished = Vec::new();
    find_unfinished(&config.paths.models, 0, &mut unfinished);
    unfinished.into_iter().for_each(|path| add(path, "a download that was not finished"));
    things
}

/// What makes the template worth saving.
fn staying(config: &Config, env: &Env) -> Vec<Thing> {
    let programs = env.executable().map(Path::to_owned);
    let things = [
        (programs, "the host"),
        (config.file.clone(), "which models there are"),
        (Some(config.paths.plugins.clone()), "plugins"),
        (config.paths.installed_plugins.clone(), "plugins"),
        (Some(config.paths.models.clone()), "models and environments"),
    ];
    let there = things.into_iter().filter_map(|(path, why)| Some(Thing { path: path?, why }));
    there.filter(|thing| thing.path.exists()).collect()
}

fn find_unfinished(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let (path, kind) = (entry.path(), entry.file_type());
        match kind {
            Ok(kind) if kind.is_dir() && depth < 8 => find_unfinished(&path, depth + 1, found),
            Ok(kind) if kind.is_file() && path.extension().is_some_and(|kind| kind == "part") => found.push(path),
            _ => {}
        }
    }
}

/// Bytes of a file, or of all files below a folder. Links count as nothing.
fn size(path: &Path) -> u64 {
    let Ok(found) = path.symlink_metadata() else { return 0 };
    if !found.is_dir() {
        return found.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| size(&entry.path())).fold(0, u64::saturating_add)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match path.symlink_metadata()?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

fn start_file(config: &Config) -> PathBuf {
    vet::file_of(config).with_file_name(START)
}

fn start_text(config: &Config, env: &Env) -> Result<String, CliError> {
    let program = env.executable().ok_or_else(|| CliError::failed("where this program lies is not known"))?;
    let quoted = |path: &Path| shlex::try_quote(&path.to_string_lossy()).map(|text| text.into_owned());
    let failed = |_| CliError::failed("a path with a NUL byte cannot be started");
    let mut text =
        String::from("#!/bin/sh\n# Serves the models of this machine; written by `aihost template prepare`.\n");
    let (program, file) = (quoted(program).map_err(failed)?, quoted(vet::file_of(config)).map_err(failed)?);
    let _ = writeln!(text, "exec {program} serve --config {file} \"$@\"");
    Ok(text)
}

/// Variables that models.yaml takes keys from.
fn variables(text: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let behind = text.split("env:").skip(1);
    let mut names: Vec<String> = behind
        .filter_map(|rest| rest.split(|c| !is_name(c)).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Selection;

    fn context(folder: &Path, keys: &str) -> CommandContext {
        let here = folder.display();
        let file = folder.join("models.yaml");
        let text = format!(
            "api_keys: [{keys}]\nmodels_dir: {here}/models\nplugins_dir: {here}/plugins\nstate_dir: {here}/state\nmodels: {{}}\n"
        );
        fs::write(&file, text).unwrap();
        let home = folder.join("home");
        let env = Env::with(folder, [("HOME", home.to_str().unwrap()), ("KEY", "a-long-key-of-a-variable")]);
        CommandContext { env: env.running("/opt/my aihost"), config: Some(file) }
    }

    #[test]
    fn what_must_not_be_saved_goes_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let going = [
            "state/facts.json",
            "state/serve.log",
            "home/.bash_history",
            "home/.ssh/id_ed25519",
            "models/a/b.gguf.part",
            "var/lib/tailscale/tailscaled.state",
        ];
        let staying = ["models/a/c.gguf", "plugins/libx.so", "models.yaml", "home/work.txt"];
        let context = context(folder.path(), "env:KEY");
        let prepare = |dry_run| prepare(&context, dry_run, folder.path());
        for path in going.iter().chain(&staying[..2]).chain(&staying[3..]) {
            fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            fs::write(at(path), "x").unwrap();
        }
        prepare(true).unwrap();
        assert!(going.iter().chain(&staying).all(|path| at(path).exists()) && !at(START).exists());
        prepare(false).unwrap();
        for path in going {
            assert!(!at(path).exists(), "{path}");
        }
        assert!(staying.iter().all(|path| at(path).exists()));
        let start = fs::read_to_string(at(START)).unwrap();
        assert!(start.contains("exec '/opt/my aihost' serve --config"), "{start}");
        assert_eq!(at(START).metadata().unwrap().permissions().mode() & 0o777, 0o755);
        prepare(false).unwrap();
        let nested = CommandContext {
            env: Env::with(
                folder.path(),
                [("AIHOST_STATE_DIR", folder.path().to_str().unwrap()), ("KEY", "a-long-key-of-a-variable")],
            ),
            config: context.config.clone(),
        };
        let error = super::prepare(&nested, false, folder.path()).unwrap_err();
        assert!(error.to_string().contains("which must not be saved"), "{error}");
        assert!(staying.iter().all(|path| at(path).exists()));
    }

    #[test]
    fn keys_that_are_typed_into_the_file_keep_everything_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let context = context(folder.path(), "a-long-key-in-the-file");
        fs::create_dir_all(folder.path().join("state")).unwrap();
        let error = prepare(&context, false, folder.path()).unwrap_err();
        assert!(error.to_string().contains("has keys typed into it"), "{error}");
        assert!(folder.path().join("state").exists());
        let config =
            crate::config::load(&Selection { file: context.config.clone(), listen: None }, &context.env).unwrap();
        assert_eq!(vet::typed_keys(&config).len(), 1);
    }

    #[test]
    fn variables_are_found_wherever_they_stand() {
        assert_eq!(variables("api_keys: [env:B, 'env:A_1']\nx: env:B # env:"), ["A_1", "B"]);
    }
}
