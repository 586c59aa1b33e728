//! `aihost plugins`: what lies in the plugins folder, how one is begun, and how one is tried. No plugin's code runs in this
//! process; a child asks one for its options.

mod new;
mod run;

use std::path::Path;
use std::sync::Arc;

use clap::Subcommand;
use serde_json::{Value, json};

use super::failure::CliError;
use super::table::Column;
use super::{CommandContext, heap, out, with_runtime};
use crate::config::{self, Paths, option_rows};
use crate::domain::{hex, nearest, printable};
use crate::plugin::{self, Described, PluginFile, Registry};
use crate::worker::{Schemas, is_confinement_available};

/// Columns that the longest name of a plugin's properties takes.
const NAME_COLUMNS: usize = 16;
const COLUMNS: [Column; 6] = [
    Column::whole("ID"),
    Column::whole("VERSION"),
    Column::words("KINDS").dispensable(1),
    Column::words("DEVICES").dispensable(2),
    Column::cut("FILE").dispensable(3),
    Column::words("STATUS"),
];
const OPTIONS: [Column; 4] =
    [Column::whole("OPTION"), Column::words("TAKES"), Column::whole("DEFAULT"), Column::words("MEANING")];

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List plugin files, usable or not.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the folder where plugin files are put.
    Path,
    /// Show what a plugin says of itself.
    Info {
        /// The id of an installed plugin.
        id: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Begin a plugin: a crate with the SDK beside it, which builds, passes its tests and is served.
    New(new::Arguments),
    /// Serve one plugin file alone, without a models.yaml, until Ctrl-C.
    Run(run::Arguments),
}

impl Arguments {
    /// Whether it starts workers, whose processes somebody must wait for.
    pub(super) fn serves(&self) -> bool {
        matches!(self.command, Command::Run(_))
    }
}

pub(super) fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    match &arguments.command {
        Command::New(arguments) => new::run(context, arguments),
        Command::Run(arguments) => {
            heap::give_back();
            heap::keep_small();
            with_runtime(run::run(context, arguments))
        }
        installed => look(context, installed),
    }
}

/// What is looked at in the plugins folder.
fn look(context: &CommandContext, command: &Command) -> Result<(), CliError> {
    let paths = match context.contact() {
        Ok(contact) => {
            if let Some(file) = contact.problem.as_ref().and_then(|problem| problem.file.as_ref()) {
                let file = file.display();
                out::note(&format!(
                    "note: {file} is wrong (`aihost check` says where); its folders are looked at all the same"
                ));
            }
            contact.paths
        }
        // Plugins can be looked at before there is a models.yaml.
        Err(CliError::Config(error)) if error.file.is_none() => config::default_folders(&context.env),
        Err(error) => return Err(error),
    };
    if matches!(command, Command::Path) {
        return out::line(&paths.plugins.display().to_string());
    }
    let registry = Registry::scan(&paths.plugin_folders(), &paths.state, paths.sharing)
        .map_err(|e| CliError::failed(e.to_string()))?;
    match command {
        Command::Path | Command::New(_) | Command::Run(_) => Ok(()),
        Command::List { json: true } => out::json(&list_json(&registry)),
        Command::List { json: false } => {
            if registry.plugins.is_empty() && registry.rejected.is_empty() {
                out::note(&format!(
                    "no plugins in {}; put the `.so` files of a release into {}",
                    registry.searched(),
                    paths.plugins.display()
                ));
            }
            list(&registry)?;
            cautions(&registry).iter().for_each(|why| out::note(&format!("warning: {why}")));
            Ok(())
        }
        Command::Info { id, json } => info(&registry, &paths, id, *json),
    }
}

fn list(registry: &Registry) -> Result<(), CliError> {
    let usable = registry.plugins.iter().map(|plugin| {
        let manifest = &plugin.manifest;
        let file = plugin.source.display().to_string();
        vec![
            manifest.id.clone(),
            manifest.version.clone(),
            manifest.kinds.join(","),
            manifest.devices.join(","),
            file,
            doubt_of(registry, plugin).map_or_else(|| "ok".to_owned(), |doubt| format!("ok, but {doubt}")),
        ]
    });
    let rejected = registry.rejected.iter().map(|rejected| {
        let dash = || "-".to_owned();
        let id = rejected.id.clone().unwrap_or_else(dash);
        vec![id, dash(), dash(), dash(), rejected.file.display().to_string(), rejected.reason.clone()]
    });
    out::table(&COLUMNS, usable.chain(rejected).collect())
}

/// What an operator should know of a plugin that is usable.
fn doubt_of<'a>(registry: &'a Registry, plugin: &PluginFile) -> Option<&'a str> {
    registry.doubts.iter().find(|doubt| doubt.file == plugin.source).map(|doubt| doubt.reason.as_str())
}

fn list_json(registry: &Registry) -> Vec<Value> {
    let usable = registry.plugins.iter().map(|plugin| describe(registry, plugin));
    let rejected = registry
        .rejected
        .iter()
        .map(|rejected| json!({"id": rejected.id, "file": rejected.file, "status": rejected.reason, "usable": false}));
    usable.chain(rejected).collect()
}

fn describe(registry: &Registry, plugin: &PluginFile) -> Value {
    let mut value = serde_json::to_value(&plugin.manifest).unwrap_or_default();
    if let Value::Object(object) = &mut value {
        object.insert("file".to_owned(), json!(plugin.source));
        object.insert("sha256".to_owned(), json!(plugin.sha256));
        let beside: Vec<_> = plugin.copy.libraries().collect();
        if !beside.is_empty() {
            object.insert("beside".to_owned(), json!(beside));
        }
        object.insert("status".to_owned(), json!("ok"));
        object.insert("usable".to_owned(), json!(true));
        object.insert("confinement".to_owned(), json!(confinement()));
        object.extend(registry.described(plugin).map(built).into_iter().flatten());
    }
    value
}

/// How a file was built, as it says itself.
fn built(described: &Described) -> impl Iterator<Item = (String, Value)> {
    let (major, minor) = described.abi;
    let said = [
        ("abi", json!(format!("{major}.{minor}"))),
        ("layout", json!(hex(&described.fingerprint))),
        ("sdk", json!(described.sdk)),
        ("rustc", json!(described.rustc)),
        ("target", json!(described.target)),
        ("panic", json!(described.panic)),
        ("libraries", json!(described.linkage.needed)),
    ];
    said.into_iter().map(|(name, value)| (name.to_owned(), value))
}

/// What an operator should know of plugins that can be loaded.
pub(super) fn cautions(registry: &Registry) -> Vec<String> {
    let one = |plugin: &Arc<PluginFile>| {
        let why = plugin::caution(registry.described(plugin)?)?;
        Some(format!("plugin `{}` in {}: {why}", plugin.manifest.id, plugin.source.display()))
    };
    registry.plugins.iter().filter_map(one).collect()
}

/// Whether its workers are held to what its manifest asks for, which is up to the kernel.
fn confinement() -> &'static str {
    if is_confinement_available() { "confined" } else { "unconfined" }
}

fn info(registry: &Registry, paths: &Paths, id: &str, as_json: bool) -> Result<(), CliError> {
    let found: Vec<&Arc<PluginFile>> = registry.plugins.iter().filter(|plugin| plugin.manifest.id == id).collect();
    if found.is_empty() {
        if let Some(refused) = registry.rejected.iter().find(|refused| refused.id.as_deref() == Some(id)) {
            return Err(CliError::failed(format!("plugin `{id}` is not usable: {}", refused.reason)));
        }
        let error = CliError::failed(format!("there is no usable plugin `{id}`"));
        let ids = registry.plugins.iter().map(|plugin| plugin.manifest.id.as_str());
        return Err(match nearest(id, ids) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint("`aihost plugins list` shows what is there, and why a file is not usable"),
        });
    }
    let schemas = Schemas::new(Path::new("/proc/self/exe"), &paths.state, paths.sharing);
    if as_json {
        let with_options = |plugin: &&Arc<PluginFile>| {
            let mut value = describe(registry, plugin);
            value["options_schema"] = schemas.get(plugin).map_or(Value::Null, |schema| (*schema).clone());
            value
        };
        return out::json(&found.iter().map(with_options).collect::<Vec<_>>());
    }
    for (number, plugin) in found.into_iter().enumerate() {
        if number > 0 {
            out::line("")?;
        }
        for (name, value) in describe(registry, plugin).as_object().into_iter().flatten() {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
                other => other.to_string(),
            };
            out::named(NAME_COLUMNS, name, &printable(&text))?;
        }
        match schemas.get(plugin).map(|schema| option_rows(&schema)) {
            Ok(rows) if rows.is_empty() => {}
            Ok(rows) => {
                out::line("")?;
                out::table(&OPTIONS, rows.into_iter().map(Vec::from).collect())?;
            }
            Err(why) => out::note(&format!("note: {why}")),
        }
    }
    Ok(())
}
