//! `aihost service`: the host under systemd, of a user or of the machine.

mod unit;

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Subcommand;

use self::unit::{Manager, Unit};
use super::failure::CliError;
use super::{CommandContext, out};
use crate::config::Paths;
use crate::runtime::running_host;

/// What the unit is called.
const UNIT: &str = "aihost.service";
/// Where the machine's systemd looks for units of its administrator.
const SYSTEM_UNITS: &str = "/etc/systemd/system";
/// Where variables for the machine's unit stand.
const SYSTEM_ENVIRONMENT: &str = "/etc/aihost/aihost.env";
const SYSTEMCTL: &str = "systemctl";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: ServiceCommand,
}

#[derive(Debug, Subcommand)]
enum ServiceCommand {
    /// Write the unit, start it, and have it started whenever the machine (or the user's session) does.
    Install(Install),
    /// Stop it, and take the unit away. Models, state and models.yaml stay.
    Uninstall(Whose),
    /// Say whether there is a unit, and what systemd makes of it.
    Status(Whose),
}

#[derive(Debug, clap::Args)]
struct Install {
    #[command(flatten)]
    whose: Whose,
    /// Print the unit, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct Whose {
    /// That of the machine; root's choice. It runs as the owner of models.yaml, and writes only aihost's folders.
    #[arg(long, conflicts_with = "user")]
    system: bool,
    /// That of this user; the choice of everybody else.
    #[arg(long)]
    user: bool,
}

impl Whose {
    fn manager(&self) -> Manager {
        let is_root = rustix::process::geteuid().is_root();
        if self.system || is_root && !self.user { Manager::System } else { Manager::User }
    }
}

pub(super) fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    match &arguments.command {
        ServiceCommand::Install(install) => install_unit(context, install.whose.manager(), install.dry_run),
        ServiceCommand::Uninstall(whose) => uninstall(context, whose.manager()),
        ServiceCommand::Status(whose) => status(context, whose.manager()),
    }
}

/// What it writes.
fn folders(paths: &Paths) -> Vec<PathBuf> {
    let cache = paths.cache.as_ref().map(|cache| &cache.folder);
    [&paths.models, &paths.state, &paths.plugins].into_iter().chain(cache).cloned().collect()
}

fn install_unit(context: &CommandContext, manager: Manager, dry_run: bool) -> Result<(), CliError> {
    let config = context.load_listening(None)?;
    let file = config.file.clone().ok_or_else(|| CliError::failed("there is no models.yaml to serve"))?;
    let program = context.env.executable().ok_or_else(|| CliError::failed("where this program lies is not known"))?;
    let owner = file.metadata().map_err(|error| CliError::failed(format!("{}: {error}", file.display())))?.uid();
    let unit = Unit {
        manager,
        program: program.to_owned(),
        config: file.clone(),
        environment: environment(context, manager)?,
        user: owner,
        folders: folders(&config.paths),
        drain: config.limits.drain_timeout,
    };
    if dry_run {
        return out::line(unit.text().trim_end());
    }
    attended()?;
    if let Some(host) = running_host(&config.paths.state, config.listen).filter(|_| !is_active(manager)) {
        return Err(CliError::failed(format!("process {} serves already, on {}", host.pid, host.listen))
            .hint("aihost down, and then this again"));
    }
    // systemd makes none, and refuses a unit that may write what is not there.
    for folder in &unit.folders {
        std::fs::create_dir_all(folder).map_err(|error| CliError::failed(format!("{}: {error}", folder.display())))?;
    }
    let path = unit_file(context, manager)?;
    write(&path, &unit.text())?;
    out::line(&path.display().to_string())?;
    systemctl(manager, &["daemon-reload"])?;
    systemctl(manager, &["enable", UNIT])?;
    systemctl(manager, &["restart", UNIT])?;
    out::note(&format!("variables such as keys: {}, a line NAME=VALUE each", unit.environment.display()));
    let flag = flag(manager);
    out::note(&format!(
        "next: aihost status; systemctl{flag} reload {UNIT} reads models.yaml again; journalctl{flag} -u {UNIT} -f"
    ));
    if manager == Manager::User {
        out::note("it ends with your last session unless: loginctl enable-linger");
    }
    Ok(())
}

fn uninstall(context: &CommandContext, manager: Manager) -> Result<(), CliError> {
    let path = unit_file(context, manager)?;
    if !path.exists() {
        out::note(&format!("nothing to take away: there is no {}", path.display()));
        return Ok(());
    }
    attended()?;
    systemctl(manager, &["disable", "--now", UNIT])?;
    std::fs::remove_file(&path).map_err(|error| not_written(&path, &error))?;
    systemctl(manager, &["daemon-reload"])?;
    out::line(&format!("{} is gone", path.display()))
}

fn status(context: &CommandContext, manager: Manager) -> Result<(), CliError> {
    let path = unit_file(context, manager)?;
    if !path.exists() {
        return Err(CliError::failed(format!("there is no {}", path.display())).hint("aihost service install"));
    }
    attended()?;
    let word = |question: &str| {
        let output = Command::new(SYSTEMCTL).args(words(manager)).args([question, UNIT]).output();
        let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        said.ok().filter(|word| !word.is_empty()).unwrap_or_else(|| "unknown".to_owned())
    };
    out::line(&format!("{}: {}, {}", path.display(), word("is-active"), word("is-enabled")))
}

/// Whether systemd runs this machine at all.
fn attended() -> Result<(), CliError> {
    if sd_notify::booted().unwrap_or(false) {
        return Ok(());
    }
    Err(CliError::failed("this machine is not run by systemd (a container?)")
        .hint("`aihost up` serves in the background; in a container make `aihost serve` its command"))
}

fn is_active(manager: Manager) -> bool {
    let asked = Command::new(SYSTEMCTL).args(words(manager)).args(["is-active", "--quiet", UNIT]).status();
    asked.is_ok_and(|status| status.success())
}

fn systemctl(manager: Manager, arguments: &[&str]) -> Result<(), CliError> {
    let shown = format!("systemctl{} {}", flag(manager), arguments.join(" "));
    let ended = Command::new(SYSTEMCTL).args(words(manager)).args(arguments).stdin(Stdio::null()).status();
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => {
            Err(CliError::failed(format!("`{shown}` failed"))
                .hint(format!("journalctl{} -u {UNIT} -n 20", flag(manager))))
        }
        Err(error) => Err(CliError::failed(format!("`{shown}` cannot be run: {error}"))),
    }
}

fn words(manager: Manager) -> &'static [&'static str] {
    if manager == Manager::User { &["--user"] } else { &[] }
}

fn flag(manager: Manager) -> &'static str {
    if manager == Manager::User { " --user" } else { "" }
}

fn unit_file(context: &CommandContext, manager: Manager) -> Result<PathBuf, CliError> {
    Ok(match manager {
        Manager::System => Path::new(SYSTEM_UNITS).join(UNIT),
        Manager::User => user_folder(context)?.join("systemd/user").join(UNIT),
    })
}

fn environment(context: &CommandContext, manager: Manager) -> Result<PathBuf, CliError> {
    Ok(match manager {
        Manager::System => SYSTEM_ENVIRONMENT.into(),
        Manager::User => user_folder(context)?.join("aihost/aihost.env"),
    })
}

fn user_folder(context: &CommandContext) -> Result<PathBuf, CliError> {
    context
        .env
        .config_home()
        .ok_or_else(|| CliError::failed("neither XDG_CONFIG_HOME nor HOME says where a user's units lie"))
}

/// Whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), CliError> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&temporary, path)
    });
    written.map_err(|error| not_written(path, &error))
}

fn not_written(path: &Path, error: &io::Error) -> CliError {
    let failed = CliError::failed(format!("{} cannot be changed: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            failed.hint("for the machine's unit be root (sudo); `--user` is this user's own")
        }
        _ => failed,
    }
}
