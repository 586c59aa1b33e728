//! `aihost check`: is models.yaml right, and where does each request go?

use std::collections::BTreeMap;

use serde::Serialize;

use super::failure::CliError;
use super::{CommandContext, out};
use crate::config::{Config, ModelConfig, Paths};
use crate::http;
use crate::plugin::Registry;
use crate::store::{Digests, Presence, presence};

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
struct Report {
    file: Option<String>,
    listen: String,
    routes: Vec<CheckedRoute>,
    /// What is valid, but can hardly be meant.
    warnings: Vec<String>,
    models: Vec<CheckedModel>,
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
struct CheckedModel {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    aliases: Vec<String>,
    plugin: String,
    /// Which plugin file serves it.
    plugin_version: Option<String>,
    files: &'static str,
    problems: Vec<String>,
}

pub(super) fn run(context: &CommandContext, arguments: &Arguments) -> Result<(), CliError> {
    if arguments.schema {
        return out::json(&crate::config::json_schema());
    }
    let config = context.load()?;
    let registry = Registry::scan(&config.paths.plugin_folders(), &config.paths.state, config.paths.sharing);
    let report = Report {
        file: config.file.as_ref().map(|file| file.display().to_string()),
        listen: config.listen.to_string(),
        routes: routes(&config),
        warnings: config.warnings().into_iter().chain(crate::device::complaints()).collect(),
        models: config.models.values().map(|model| examine(model, &registry, &config.paths)).collect(),
    };
    match arguments.json {
        true => out::json(&report)?,
        false => print(&report)?,
    }
    match report.models.iter().map(|model| model.problems.len()).sum::<usize>() {
        0 => Ok(()),
        1 => Err(CliError::failed("models.yaml is valid, but one thing is missing (see above)")),
        count => Err(CliError::failed(format!("models.yaml is valid, but {count} things are missing (see above)"))),
    }
}

/// By the router's own table: what no path of it answers is not among them.
fn routes(config: &Config) -> Vec<CheckedRoute> {
    let mut by_endpoint: BTreeMap<&str, Vec<&ModelConfig>> = BTreeMap::new();
    for model in config.models.values() {
        if let Some(endpoint) = model.endpoint.as_deref().filter(|path| http::is_served(path, model.kind)) {
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
) -> CheckedModel {
    let digests = Digests::of(&paths.state);
    let mut problems = Vec::new();
    let mut plugin_version = None;
    match registry.as_ref().map_err(Clone::clone).and_then(|all| all.find(&model.plugin, model.plugin_version.as_ref()))
    {
        Ok(plugin) if !plugin.manifest.kinds.iter().any(|kind| kind == model.kind.name()) => {
            let kinds = plugin.manifest.kinds.join(", ");
            problems.push(format!("plugin `{}` serves {kinds}, not {}", model.plugin, model.kind.name()));
        }
        Ok(plugin) => plugin_version = Some(plugin.manifest.version.clone()),
        Err(error) => problems.push(error.to_string()),
    }
    let absent = model.files.values().any(|file| !matches!(presence(file, &digests), Presence::Present(_)));
    if let Err(failure) = crate::store::locate(model, &digests) {
        problems.push(failure.message);
    }
    problems.extend(model.files.values().filter_map(|file| paths.sharing.check_file(&file.path).err()));
    CheckedModel {
        name: model.id.to_string(),
        kind: model.kind.name(),
        aliases: model.aliases.clone(),
        plugin: model.plugin.clone(),
        plugin_version,
        files: if model.files.is_empty() {
            "none needed"
        } else if absent {
            "missing"
        } else {
            "present"
        },
        problems,
    }
}

fn print(report: &Report) -> Result<(), CliError> {
    out::line(&format!(
        "{} is valid; it listens on {}\n",
        report.file.as_deref().unwrap_or("models.yaml"),
        report.listen
    ))?;
    let routes = report.routes.iter().map(|route| {
        let model = match &route.model {
            Some(model) => model.clone(),
            None => format!("(the request names one of {})", route.candidates.join(", ")),
        };
        vec![route.endpoint.clone(), model]
    });
    out::table(&["ENDPOINT", "MODEL"], routes.collect())?;
    out::line("")?;
    let models = report.models.iter().map(|model| {
        let plugin = match &model.plugin_version {
            Some(version) => format!("{} {version}", model.plugin),
            None => format!("{} (not usable)", model.plugin),
        };
        vec![model.name.clone(), model.kind.to_owned(), model.aliases.join(", "), plugin, model.files.to_owned()]
    });
    out::table(&["MODEL", "TYPE", "ALIASES", "PLUGIN", "FILES"], models.collect())?;
    for warning in &report.warnings {
        out::note(&format!("warning: {warning}"));
    }
    for model in &report.models {
        for problem in &model.problems {
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
            (Kind::Embedding, "/v1/embeddings"),
            (Kind::Speech, "/v1/audio/speech"),
            (Kind::Transcription, "/v1/audio/transcriptions"),
            (Kind::Custom, "/v1/other/generate"),
            (Kind::Text, "/v1/audio/generations"),
            (Kind::Text, "/health"),
            (Kind::Image, "/v1/images/edits"),
        ] {
            let other = config.models.get_mut("other").unwrap();
            (other.kind, other.endpoint) = (kind, Some(endpoint.to_owned()));
            assert_eq!(shown(&config), [(chat.clone(), vec!["chat".to_owned()])], "{endpoint}");
        }
    }
}
