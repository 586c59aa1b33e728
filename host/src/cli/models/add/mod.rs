//! `aihost models add`: an entry for a repository of the hub, a file or folder of this machine, or a URL. What serves it and in which
//! quantisation is chosen by what fits; sizes, memory and licence are told before any weight is fetched. The file keeps all that it
//! says, and what is written has passed the host's own reader.

mod here;
mod layout;
mod machine;
mod quantisation;
mod repository;
mod wanted;

#[cfg(test)]
mod tests;

use std::path::Path;

use serde_yaml::Value;

use self::machine::Machine;
use self::wanted::Wanted;
use super::write;
use crate::cli::auto::gguf::{self, Header};
use crate::cli::auto::weights::{CacheBits, Weights};
use crate::cli::failure::CliError;
use crate::cli::migrate::local::Local;
use crate::cli::migrate::plan::Entry;
use crate::cli::migrate::{walk, yaml};
use crate::cli::{CommandContext, out};
use crate::config::{Config, Location, shown_url};
use crate::domain::ByteSize;
use crate::store::{Digests, Puller};

/// Bytes of a GGUF file that are asked for, one after the other until its header is among them.
const HEADERS: [usize; 4] = [1 << 20, 8 << 20, 32 << 20, 128 << 20];

#[derive(Debug, clap::Args)]
pub(in crate::cli::models) struct Arguments {
    /// A repository of the hub, with a quantisation, a revision (`@v1`) or a file (`/x.gguf`) if one is meant; a GGUF file or a folder
    /// on this machine; or the URL of a GGUF file.
    #[arg(value_name = "hf:ORG/REPO[:QUANT]|PATH|URL")]
    from: String,
    /// What it is called. Default: as its repository or file is, in small letters.
    #[arg(long)]
    name: Option<String>,
    /// Print the entry and what is known of it, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What was found out of a model.
#[derive(Debug)]
struct Found {
    entry: Entry,
    /// The plugin that serves it, and the engine if that starts one.
    served_by: (String, Option<String>),
    /// Where it comes from, as it is shown.
    from: String,
    /// How many files of it there are, and their bytes, if they are known.
    files: usize,
    bytes: Option<u64>,
    /// What it takes while it is served, and how that was come by.
    memory: Option<(ByteSize, String)>,
    licence: Option<String>,
    /// What else is to be told.
    notes: Vec<String>,
    /// Whether there is something to fetch.
    is_fetched: bool,
}

/// What a run says and where.
#[derive(Debug, Default)]
struct Told {
    /// For stdout.
    text: String,
    /// For stderr, a line each.
    notes: Vec<String>,
}

pub(super) async fn run(context: &CommandContext, arguments: Arguments) -> Result<(), CliError> {
    let told = add(context, &arguments).await?;
    told.notes.iter().for_each(|note| out::note(note));
    out::text(&told.text)
}

async fn add(context: &CommandContext, arguments: &Arguments) -> Result<Told, CliError> {
    let target = write::Target::find(context)?;
    let puller = Puller::from_env(&context.env, Digests::of(&target.config.paths.state)).map_err(CliError::failed)?;
    let mut found = look(context, arguments, &puller, &target.config).await?;
    if let Some(name) = &arguments.name {
        found.entry.name.clone_from(name);
    }
    let name = found.entry.name.clone();
    refuse_taken(&target.config, &name)?;
    let machine = Machine::of(&target.config, &context.env);
    let mut told = Told { notes: plan(&found, &machine), ..Told::default() };
    let entry = found.entry.text();
    let change = target.with(&name, &entry)?;
    if arguments.dry_run {
        told.text = entry;
        return Ok(told);
    }
    change.write()?;
    told.text = format!("{}\n", target.file.display());
    told.notes.push(match found.is_fetched {
        true => format!("next: aihost {}models pull {name}", option_for(context, &target.file)),
        false => format!("next: aihost {}check", option_for(context, &target.file)),
    });
    Ok(told)
}

async fn look(
    context: &CommandContext,
    arguments: &Arguments,
    puller: &Puller,
    config: &Config,
) -> Result<Found, CliError> {
    match Wanted::parse(&arguments.from, &context.env)? {
        Wanted::Here(path) => here::find(&path),
        Wanted::Url(url) => of_url(puller, url).await,
        Wanted::Hub(hub) => repository::find(puller, &hub, &Machine::of(config, &context.env)).await,
    }
}

/// A GGUF file behind a URL.
async fn of_url(puller: &Puller, url: String) -> Result<Found, CliError> {
    let shown = shown_url(&url);
    let name = Path::new(&shown).file_name().unwrap_or_default().to_owned();
    if !walk::is_gguf(Path::new(&name)) {
        return Err(CliError::failed(format!("{shown} is not the address of a GGUF file"))
            .hint("of other files the entry is written by hand: see ADDING_MODELS"));
    }
    let location = Location::Url(url.clone());
    let (header, bytes) = header(puller, &location).await?;
    let weights = Weights { bytes, header: Ok(header) };
    let fetched = ("source", yaml::mapping([("url", yaml::text(url))]));
    let local = Local {
        name: usual_name(&walk::stem(Path::new(&name))),
        fetched: Some(fetched),
        path: name.into(),
        ..Local::default()
    };
    let mut found = of_weights(local, &weights, shown)?;
    found.is_fetched = true;
    found.notes.push(
        "nobody says the digest of its file: `sha256:` of the entry can be filled in once it was fetched".to_owned(),
    );
    Ok(found)
}

/// The header of a GGUF file that is not here, and the file's bytes.
async fn header(puller: &Puller, location: &Location) -> Result<(Header, Option<u64>), CliError> {
    for most in HEADERS {
        let beginning = puller.beginning(location, most).await.map_err(CliError::failed)?;
        let is_cut = beginning.bytes.len() == most && Some(most as u64) != beginning.total;
        match gguf::parse(beginning.bytes.as_slice()) {
            Ok(header) => return Ok((header, beginning.total)),
            Err(why) if why == gguf::CUT && is_cut => {}
            Err(why) => return Err(CliError::failed(format!("{location} {why}")).hint("name another file")),
        }
    }
    Err(CliError::failed(format!("{location} has a header of more than 128 MiB, which no model has")))
}

/// What is known of a GGUF model, wherever it is.
fn of_weights(local: Local, weights: &Weights, from: String) -> Result<Found, CliError> {
    if let Err(why) = &weights.header {
        return Err(CliError::failed(format!("{from} {why}")).hint("fetch it again, or name another file"));
    }
    let task = weights.task().map_err(|what| CliError::failed(format!("{from} is {what}")))?;
    let memory = weights.memory(Some(weights.usual_context()), CacheBits::default(), 0);
    let entry = local.entry(weights, task);
    let served_by = served_by(&entry);
    let (bytes, licence) = (weights.bytes, licence_of(weights));
    Ok(Found { entry, served_by, from, files: 1, bytes, memory, licence, notes: Vec::new(), is_fetched: false })
}

fn licence_of(weights: &Weights) -> Option<String> {
    weights.header.as_ref().ok()?.text("general.license").map(str::to_owned)
}

/// The plugin of an entry, and the engine that it starts.
fn served_by(entry: &Entry) -> (String, Option<String>) {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let engine = entry.value("options").and_then(|options| options.get("engine")).and_then(text);
    let command = || entry.has("command").then(|| "llama-server".to_owned());
    let plugin = entry.value("plugin").and_then(text).unwrap_or_else(|| "vllm".to_owned());
    (plugin, engine.or_else(command))
}

/// What is told before anything is written or fetched.
fn plan(found: &Found, machine: &Machine) -> Vec<String> {
    let (plugin, engine) = &found.served_by;
    let by =
        engine.as_ref().map_or_else(|| plugin.clone(), |engine| format!("{engine}, started by the plugin {plugin}"));
    let size = found.bytes.map_or_else(|| "not known".to_owned(), |bytes| ByteSize(bytes).to_string());
    let files = if found.files == 1 { "1 file".to_owned() } else { format!("{} files", found.files) };
    let mut told = vec![
        format!("model: {}, from {}", found.entry.name, found.from),
        format!("size: {size} in {files}"),
        format!("licence: {}", found.licence.as_deref().unwrap_or("not said")),
        format!("served by: {by}"),
    ];
    match &found.memory {
        None => told.push("memory: not known before it is loaded".to_owned()),
        Some((memory, how)) => {
            let how = how.split(". ").next().unwrap_or(how).trim_start_matches("An estimate: ");
            told.push(format!("memory: about {memory}: {how}"));
            let fits = |(_, room): &(_, ByteSize)| room.0 >= memory.0;
            match machine.devices_of(plugin).max_by_key(|(_, room)| room.0) {
                Some(largest) if !fits(&largest) => told.push(format!(
                    "warning: it does not fit: {} may give {}; take a smaller quantisation, or more memory",
                    largest.0, largest.1
                )),
                Some(_) => {}
                None => told.push(format!("warning: no device here is one that the plugin {plugin} runs on")),
            }
        }
    }
    told.extend(found.notes.iter().map(|note| format!("note: {note}")));
    told.extend(machine.lacks(plugin, engine.as_deref()).map(|lack| format!("note: {lack}")));
    told
}

fn refuse_taken(config: &Config, name: &str) -> Result<(), CliError> {
    let Some(other) = config.models.values().find(|model| model.is_called(name)) else { return Ok(()) };
    let message = match other.id.as_str() == name {
        true => format!("models.yaml has a model `{name}` already"),
        false => format!("`{name}` is an alias of `{}` in models.yaml", other.id),
    };
    Err(CliError::failed(message).hint("name this one with `--name NAME`"))
}

/// A name as requests usually have it: in small letters, without what says its format.
fn usual_name(name: &str) -> String {
    let lower = name.to_lowercase();
    let lower = lower.strip_suffix("-gguf").unwrap_or(&lower);
    lower.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
}

/// `--config FILE ` where commands would not find the file by themselves.
fn option_for(context: &CommandContext, file: &Path) -> String {
    let found = crate::config::find_file(None, &context.env);
    let same = found.is_ok_and(|found| found.canonicalize().ok() == file.canonicalize().ok());
    if same { String::new() } else { format!("--config {} ", file.display()) }
}

/// Whether the host's own reader takes an entry alone; what is wrong with it.
#[cfg(test)]
fn check(entry: &str) -> usize {
    let text = format!("models:\n{entry}");
    let env = crate::config::Env::with("/", []);
    let config = crate::config::parse(&text, Path::new("/m.yaml"), &crate::config::Selection::default(), &env);
    config.unwrap_or_else(|error| panic!("{error}\n{text}")).models.len()
}
