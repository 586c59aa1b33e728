//! `aihost check`: is models.yaml right, and where does each request go?

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::failure::CliError;
use super::table::Column;
use super::vet::{self, Asking, Vet, Wrong, wrong_kind};
use super::{CommandContext, out};
use crate::config::{Choice, Config, ConfigError, DeviceConfig, ModelConfig, Paths, REMOTE};
use crate::domain::ByteSize;
use crate::plugin::Registry;
use crate::store::{Digests, Presence, presence};
use crate::{http, runtime};

const DEVICES: [Column; 4] = [
    Column::whole("DEVICE"),
    Column::words("BUDGET"),
    Column::whole("FREE").dispensable(1),
    Column::whole("MAX LOADED").dispensable(2),
];
const ROUTES: [Column; 2] = [Column::whole("ENDPOINT"), Column::words("MODEL")];
const MODELS: [Column; 5] = [
    Column::whole("MODEL"),
    Column::whole("TYPE").dispensable(2),
    Column::words("ALIASES").dispensable(1),
    Column::words("PLUGIN"),
    Column::whole("FILES"),
];

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print JSON.
    #[arg(long, conflicts_with = "schema")]
    json: bool,
    /// Print the JSON Schema of models.yaml and check nothing.
    #[arg(long)]
    schema: bool,
}

/// Everything `check` finds.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    file: Option<String>,
    listen: String,
    routes: Vec<CheckedRoute>,
    /// What is valid, but can hardly be meant.
    pub(super) warnings: Vec<String>,
    pub(super) devices: Vec<CheckedDevice>,
    pub(super) models: Vec<CheckedModel>,
    /// Plugin files that cannot be used, with libraries that are missing among the reasons.
    pub(super) unusable_plugins: Vec<String>,
}

/// A device that models may use.
#[derive(Debug, Serialize)]
pub(super) struct CheckedDevice {
    pub(super) id: String,
    /// Bytes that models may hold; `None` if it is not here.
    pub(super) budget: Option<u64>,
    /// Bytes that are free now; `None` where that cannot be told.
    free: Option<u64>,
    max_loaded: Option<u32>,
}

/// Where a request goes that names no model.
#[derive(Debug, Serialize)]
struct CheckedRoute {
    endpoint: String,
    /// The model that answers; `None` if the request must name one of several.
    model: Option<String>,
    candidates: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct CheckedModel {
    pub(super) name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    aliases: Vec<String>,
    plugin: String,
    /// Which plugin file serves it.
    plugin_version: Option<String>,
    /// What was chosen to serve it and why, where its entry leaves that to the host, or what is missing to choose.
    choice: Option<String>,
    pub(super) files: &'static str,
    pub(super) problems: Vec<String>,
}

pub(super) fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    if arguments.schema {
        return out::json(&crate::config::json_schema());
    }
    let config = context.load()?;
    let (report, wrong) = survey(&config);
    match arguments.json {
        true => out::json(&report)?,
        false => print(&report, &wrong)?,
    }
    if !wrong.is_empty() {
        let more = wrong.values().map(|error| error.more).sum();
        let problems = wrong.into_values().flat_map(|error| error.problems).collect();
        let file = Some(vet::file_of(&config).to_owned());
        return Err(CliError::Config(ConfigError { file, problems, more }));
    }
    match report.models.iter().map(|model| model.problems.len()).sum::<usize>() {
        0 => Ok(()),
        1 => Err(CliError::failed("models.yaml is valid, but one thing is missing (see above)")),
        count => Err(CliError::failed(format!("models.yaml is valid, but {count} things are missing (see above)"))),
    }
}

/// What there is to say of a configuration, with which options are wrong.
pub(super) fn survey(config: &Config) -> (Report, Wrong) {
    let scanned = Registry::scan(&config.paths.plugin_folders(), &config.paths.state, config.paths.sharing);
    let registry = Arc::new(scanned.clone().unwrap_or_default());
    let vet = Vet::new(Arc::clone(&registry), config);
    let (faults, silent) = vet.options(config, Asking::Plugins);
    let wrong = faults.placed(&vet::text_of(config), vet::file_of(config));
    let warnings = config.warnings().into_iter().chain(crate::device::complaints()).chain(silent);
    let warnings = warnings.chain(super::plugins::cautions(&registry)).chain(crate::store::too_small(config));
    let report = Report {
        file: config.file.as_ref().map(|file| file.display().to_string()),
        listen: config.addresses().map(|address| address.to_string()).collect::<Vec<_>>().join(", "),
        routes: routes(config),
        warnings: warnings.collect(),
        devices: config.devices.iter().map(device).collect(),
        models: config.models.values().map(|model| examine(model, &scanned, &config.paths, &wrong)).collect(),
        unusable_plugins: registry.rejected.iter().map(|rejected| rejected.reason.clone()).collect(),
    };
    (report, wrong)
}

fn device(device: &DeviceConfig) -> CheckedDevice {
    CheckedDevice {
        id: device.id.to_string(),
        budget: crate::device::measured_budget(device.id).map(|measured| device.memory.map_or(measured, |size| size.0)),
        free: crate::device::measured_free(device.id),
        max_loaded: device.max_loaded,
    }
}

/// By the router's own table: what no path of it answers is not among them.
fn routes(config: &Config) -> Vec<CheckedRoute> {
    let mut by_endpoint: BTreeMap<&str, Vec<&ModelConfig>> = BTreeMap::new();
    for model in config.models.values() {
        if let Some(endpoint) =
            model.endpoint.as_deref().filter(|path| model.http.has_endpoint || http::is_served(path, model.kind))
        {
            by_endpoint.entry(endpoint).or_default().push(model);
        }
    }
    let route = |(endpoint, models): (&str, Vec<&ModelConfig>)| {
        let chosen = match models.as_slice() {
            [only] => Some(*only),
            several => several.iter().find(|model| model.default).copied(),
        };
        CheckedRoute {
            endpoint: endpoint.to_owned(),
            model: chosen.map(|model| model.id.to_string()),
            candidates: models.iter().map(|model| model.id.to_string()).collect(),
        }
    };
    by_endpoint.into_iter().map(route).collect()
}

fn examine(
    model: &ModelConfig,
    registry: &Result<Registry, crate::plugin::RegistryError>,
    paths: &Paths,
    wrong: &Wrong,
) -> CheckedModel {
    let digests = Digests::of(&paths.state);
    let mut problems = Vec::new();
    let mut plugin_version = None;
    let plugin = registry.as_ref().map_err(Clone::clone);
    let plugin = plugin.and_then(|all| all.find(&model.plugin, model.plugin_version.as_ref()));
    match &plugin {
        _ if model.unchosen().is_some() => {}
        Ok(plugin) => match wrong_kind(model, plugin) {
            Some(why) => problems.push(why),
            None => plugin_version = Some(plugin.manifest.version.clone()),
        },
        Err(_) if model.http.remote.is_some() => {}
        Err(error) => problems.push(error.to_string()),
    }
    let located = match &plugin {
        Ok(plugin) => runtime::locate_for(plugin, model, &paths.state),
        Err(_) => crate::store::locate(model, &digests),
    };
    let is_absent = model.files.values().any(|file| presence(file, &digests) == Presence::Absent);
    let files = match &located {
        _ if model.files.is_empty() => "none needed",
        Ok(_) => "present",
        Err(_) if is_absent => "missing",
        Err(_) => "not usable",
    };
    problems.extend(match &model.choice {
        Some(Choice::Open(why)) => Some(why.clone()),
        _ => located.err().map(|failure| failure.message),
    });
    problems.extend(wrong.get(&model.id).into_iter().flat_map(ConfigError::lines));
    problems.extend(model.files.values().filter_map(|file| paths.sharing.check_file(&file.path).err()));
    CheckedModel {
        name: model.id.to_string(),
        kind: model.kind.name(),
        aliases: model.aliases.clone(),
        plugin: model.plugin.clone(),
        plugin_version,
        choice: model.choice.as_ref().map(|choice| match choice {
            Choice::Open(why) | Choice::Failed { why, .. } | Choice::Made(why) => why.clone(),
        }),
        files,
        problems,
    }
}

fn print(report: &Report, wrong: &Wrong) -> Result<(), CliError> {
    let verdict = if wrong.is_empty() { "is valid; it" } else { "has wrong options (see below); it" };
    let file = report.file.as_deref().unwrap_or("models.yaml");
    out::line(&format!("{file} {verdict} listens on {}\n", report.listen))?;
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string());
    let devices = report.devices.iter().map(|device| {
        let budget = if device.budget.is_some() { bytes(device.budget) } else { "not on this machine".to_owned() };
        let most = device.max_loaded.map_or_else(|| "-".to_owned(), |most| most.to_string());
        vec![device.id.clone(), budget, bytes(device.free), most]
    });
    out::table(&DEVICES, devices.collect())?;
    out::line("")?;
    let routes = report.routes.iter().map(|route| {
        let model = match &route.model {
            Some(model) => model.clone(),
            None => format!("(the request names one of {})", route.candidates.join(", ")),
        };
        vec![route.endpoint.clone(), model]
    });
    out::table(&ROUTES, routes.collect())?;
    out::line("")?;
    let models = report.models.iter().map(|model| {
        let plugin = match &model.plugin_version {
            Some(version) => format!("{} {version}", model.plugin),
            None if model.plugin == REMOTE || model.choice.is_some() => model.plugin.clone(),
            None => format!("{} (not usable)", model.plugin),
        };
        vec![model.name.clone(), model.kind.to_owned(), model.aliases.join(", "), plugin, model.files.to_owned()]
    });
    out::table(&MODELS, models.collect())?;
    // What cannot be chosen is an error, or missing, and told as such.
    for model in report.models.iter().filter(|model| model.plugin_version.is_some()) {
        if let Some(choice) = &model.choice {
            out::note(&format!("models.{}: {choice}", model.name));
        }
    }
    for warning in &report.warnings {
        out::note(&format!("warning: {warning}"));
    }
    for reason in &report.unusable_plugins {
        out::note(&format!("warning: {reason}"));
    }
    // Wrong options are errors, and told as such.
    for model in report.models.iter() {
        let told: Vec<String> =
            wrong.iter().filter(|(id, _)| id.as_str() == model.name).flat_map(|(_, e)| e.lines()).collect();
        for problem in model.problems.iter().filter(|problem| !told.contains(problem)) {
            out::note(&format!("warning: models.{}: {problem}", model.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Env, Selection, parse};
    use crate::domain::Kind;

    #[test]
    fn only_paths_that_a_model_answers_at_are_routes() {
        let file = Path::new("/etc/aihost/models.yaml");
        let yaml = "models:\n  chat: {type: text, plugin: p}\n  other: {type: text, plugin: p}\n";
        let mut config = parse(yaml, file, &Selection::default(), &Env::default()).unwrap();
        let shown = |config: &Config| {
            let routes = routes(config).into_iter().map(|route| (route.endpoint, route.candidates));
            routes.collect::<Vec<_>>()
        };
        let chat = "/v1/chat/completions".to_owned();
        assert_eq!(shown(&config), [(chat.clone(), vec!["chat".to_owned(), "other".to_owned()])]);
        for (kind, endpoint) in [
            (Kind::Embedding, "/v1/audio/speech"),
            (Kind::Custom, "/health"),
            (Kind::Text, "/v1/audio/generations"),
            (Kind::Text, "/health"),
        ] {
            let other = config.models.get_mut("other").unwrap();
            (other.kind, other.endpoint) = (kind, Some(endpoint.to_owned()));
            assert_eq!(shown(&config), [(chat.clone(), vec!["chat".to_owned()])], "{endpoint}");
        }
        let other = config.models.get_mut("other").unwrap();
        (other.kind, other.endpoint) = (Kind::Custom, Some("/v1/other".to_owned()));
        assert_eq!(shown(&config)[1], ("/v1/other".to_owned(), vec!["other".to_owned()]));
    }
}
