//! A repository of the hub: which of its models is meant or fits, and the entry that fetches it.

use futures_util::TryStreamExt;
use futures_util::stream::{self, StreamExt};
use serde_yaml::Value;

use super::machine::Machine;
use super::quantisation::{self, Variant};
use super::wanted::InHub;
use super::{Found, header, layout, of_weights, usual_name};
use crate::cli::auto::gguf::Header;
use crate::cli::auto::weights::{self, CacheBits, Runner, Weights};
use crate::cli::failure::CliError;
use crate::cli::migrate::local::Local;
use crate::cli::migrate::{walk, yaml};
use crate::config::Location;
use crate::domain::{ByteSize, Device, some_names};
use crate::store::{HubFile, Puller, Repository};

/// Bytes of a configuration of a repository that are read.
const CONFIG_BYTES_MAX: usize = 1 << 20;
/// Headers of a split model's parts that are asked for at once.
const HEADERS_AT_ONCE: usize = 4;
/// Most parts whose headers are asked for: later ones have more of the same.
const PARTS_LOOKED_AT: usize = 16;
/// Small files at the root of a repository that a model is served with, by their ends.
const BESIDE_WEIGHTS: [&str; 4] = [".json", ".jinja", ".model", ".txt"];
/// Those that are no part of a model.
const NO_PART: [&str; 3] = ["README", "LICENSE", "requirements"];

/// The model of a repository that was meant, or that fits best.
pub(super) async fn find(puller: &Puller, wanted: &InHub, machine: &Machine) -> Result<Found, CliError> {
    let repository = puller.repository(&wanted.repo, wanted.revision.as_deref()).await.map_err(CliError::failed)?;
    let variants = quantisation::variants(&repository.files);
    let is_gguf = !variants.is_empty() && wanted.file.as_ref().is_none_or(|file| file.ends_with(".gguf"));
    let mut found = match is_gguf {
        true => of_gguf(puller, &repository, &named(variants, wanted, &repository)?, machine, wanted).await?,
        false => of_layout(puller, &repository, wanted).await?,
    };
    found.licence = repository.licence.clone().or(found.licence);
    found.from = format!("hf {} at {}", repository.id, repository.commit.get(..12).unwrap_or(&repository.commit));
    if repository.is_gated {
        found.notes.push(format!(
            "{} is gated: `aihost models pull` needs HF_TOKEN, of an account that accepted its terms",
            repository.id
        ));
    }
    Ok(found)
}

/// The models that what was typed may mean.
fn named(variants: Vec<Variant>, wanted: &InHub, repository: &Repository) -> Result<Vec<Variant>, CliError> {
    let Some(word) = wanted.quantisation.as_ref().or(wanted.file.as_ref()) else { return Ok(variants) };
    let labels: Vec<String> = variants.iter().map(|variant| variant.label().to_owned()).collect();
    let meant: Vec<Variant> = variants.into_iter().filter(|variant| variant.is_called(word)).collect();
    match meant.as_slice() {
        [] => Err(CliError::failed(format!(
            "{} has no `{word}`; there are: {}",
            repository.id,
            some_names(labels.iter().map(String::as_str))
        ))
        .hint("name one of them behind a colon, or none, for the one that fits best")),
        [_] => Ok(meant),
        several => {
            let files: Vec<&str> = several.iter().filter_map(|one| Some(one.files.first()?.path.as_str())).collect();
            Err(CliError::failed(format!("{} has several models of `{word}`: {}", repository.id, some_names(files)))
                .hint(format!("name the file: hf:{}/FILE", repository.id)))
        }
    }
}

async fn of_gguf(
    puller: &Puller,
    repository: &Repository,
    variants: &[Variant],
    machine: &Machine,
    wanted: &InHub,
) -> Result<Found, CliError> {
    let is_open = variants.len() > 1;
    // Which one is looked into first matters little: all have the same shape.
    let first =
        quantisation::best(variants, Device::Cpu, |_| true).ok_or_else(|| CliError::failed("there is no model"))?;
    let mut weights = look(puller, repository, first).await?;
    let mut chosen = first;
    if is_open {
        let best = fitting(variants, &weights, machine);
        chosen = best.ok_or_else(|| nothing_fits(repository, variants, &weights, machine))?;
        if chosen != first {
            weights = look(puller, repository, chosen).await?;
        }
    }
    let first_file = &chosen.files[0].path;
    let place = |file: &HubFile| location(repository, file);
    let fetched = match chosen.files.as_slice() {
        [only] => ("source", place(only)),
        parts => {
            let role = |number: usize| if number == 0 { "model".to_owned() } else { format!("part_{}", number + 1) };
            ("files", yaml::mapping(parts.iter().enumerate().map(|(number, file)| (role(number), place(file)))))
        }
    };
    let repo_name = repository.id.rsplit('/').next().unwrap_or(&repository.id);
    let name = match &wanted.file {
        Some(_) => walk::stem(first_file.as_ref()),
        None => repo_name.to_owned(),
    };
    let local = Local { name: usual_name(&name), path: first_file.into(), fetched: Some(fetched), ..Local::default() };
    let mut found = of_weights(local, &weights, format!("{}/{first_file}", repository.id))?;
    found.files = chosen.files.len();
    found.is_fetched = true;
    found.entry.remarks.insert(0, format!("{}, {}.", repository.id, chosen.label()));
    found.notes.push(format!("quantisation: {}{}", chosen.label(), if is_open { ", the best that fits" } else { "" }));
    if repository.files.iter().any(|file| file.path.to_ascii_lowercase().contains("mmproj")) {
        found.notes.push("its projector of pictures is left out: the entry serves text".to_owned());
    }
    Ok(found)
}

/// What stands before the weights of a model's parts.
async fn look(puller: &Puller, repository: &Repository, variant: &Variant) -> Result<Weights, CliError> {
    let headers = stream::iter(variant.files.iter().take(PARTS_LOOKED_AT)).map(|file| async move {
        let location = Location::HuggingFace {
            repo: repository.id.clone(),
            file: file.path.clone(),
            revision: repository.commit.clone(),
        };
        header(puller, &location).await.map(|(header, _)| header)
    });
    let mut headers: Vec<Header> = headers.buffered(HEADERS_AT_ONCE).try_collect().await?;
    let mut first = headers.remove(0);
    headers.into_iter().for_each(|header| first.tensor_types.extend(header.tensor_types));
    Ok(Weights { bytes: Some(variant.bytes()), header: Ok(first) })
}

/// What a model takes that has the same shape as one that was looked into.
fn taken(variant: &Variant, like: &Weights) -> Option<ByteSize> {
    let weights = Weights { bytes: Some(variant.bytes()), header: like.header.clone() };
    weights.memory(Some(weights.usual_context()), CacheBits::default(), 0).map(|(memory, _)| memory)
}

/// The best for the first device that one fits on.
fn fitting<'a>(variants: &'a [Variant], like: &Weights, machine: &Machine) -> Option<&'a Variant> {
    machine.devices_of(plugin(like)).find_map(|(device, room)| {
        let fits = |variant: &Variant| taken(variant, like).is_some_and(|bytes| bytes <= room);
        quantisation::best(variants, device, fits)
    })
}

fn plugin(weights: &Weights) -> &'static str {
    match weights::runner(weights) {
        Runner::CandleLlm => "candle-llm",
        Runner::LlamaServer(_) => "vllm",
    }
}

fn nothing_fits(repository: &Repository, variants: &[Variant], like: &Weights, machine: &Machine) -> CliError {
    let smallest = variants.iter().min_by_key(|variant| variant.bytes());
    let (label, bytes) = smallest.map_or(("", None), |variant| (variant.label(), taken(variant, like)));
    let bytes = bytes.unwrap_or(ByteSize(0));
    let largest = machine.devices_of(plugin(like)).max_by_key(|(_, room)| *room);
    let room = largest
        .map_or_else(|| "no device here serves it".to_owned(), |(device, room)| format!("{device} may give {room}"));
    CliError::failed(format!(
        "nothing of {} fits: the smallest, {label}, takes about {bytes}, and {room}",
        repository.id
    ))
    .hint(format!(
        "name a quantisation to have its entry all the same, hf:{}:{label}, or give the device more `memory:`",
        repository.id
    ))
}

/// A model of several files, by the names of those at the root of its repository.
async fn of_layout(puller: &Puller, repository: &Repository, wanted: &InHub) -> Result<Found, CliError> {
    if let Some(word) = wanted.quantisation.as_ref().or(wanted.file.as_ref()) {
        return Err(CliError::failed(format!("{} has no GGUF model `{word}`", repository.id)).hint(format!(
            "`hf:{}` is all of it; GGUF files of a model mostly have a repository of their own",
            repository.id
        )));
    }
    let files: Vec<&HubFile> = repository.files.iter().filter(|file| is_part(&file.path)).collect();
    let has = |name: &str| repository.files.iter().any(|file| file.path == name);
    // Where the weights are there in one file and in shards, one of the two is enough.
    let is_whole = has("model.safetensors");
    let files: Vec<&HubFile> = files
        .into_iter()
        .filter(|file| match is_shard(&file.path) || file.path == INDEX {
            true => !is_whole,
            false => !file.path.ends_with(".safetensors") || file.path == "model.safetensors",
        })
        .collect();
    let seen = layout::Seen {
        name: usual_name(repository.id.rsplit('/').next().unwrap_or(&repository.id)),
        from: repository.id.clone(),
        names: files.iter().map(|file| file.path.as_str()).collect(),
        config: text(puller, repository, "config.json").await?,
        pipeline: text(puller, repository, "model_index.json").await?,
        bytes: files.iter().filter(|file| file.path.ends_with(".safetensors")).map(|file| file.bytes).sum(),
        has_dense: repository.files.iter().any(|file| file.path.contains(DENSE_FOLDER)),
    };
    let by_role = files.iter().map(|file| (role(&file.path), location(repository, file)));
    let mut by_role: Vec<(String, Value)> = by_role.collect();
    // The weights first, as one writes them.
    by_role.sort_by_key(|(role, _)| (role != "model", !role.starts_with("shard_"), role != "config", role.clone()));
    let mut found = seen.of_files(yaml::mapping(by_role))?;
    found.entry.remarks.insert(0, format!("{}.", repository.id));
    Ok(found)
}

/// The index of sharded weights.
const INDEX: &str = "model.safetensors.index.json";

/// How sentence-transformers makes one vector of a text.
const POOLING: &str = "1_Pooling/config.json";
/// The end of the folders of layers behind that.
const DENSE_FOLDER: &str = "_Dense/";

fn is_part(path: &str) -> bool {
    if path == POOLING {
        return true;
    }
    let is_beside =
        BESIDE_WEIGHTS.iter().any(|end| path.ends_with(end)) && !NO_PART.iter().any(|name| path.starts_with(name));
    !path.contains('/')
        && (path.ends_with(".safetensors") || is_beside)
        && !path.contains("pytorch_model")
        && !path.starts_with("tf_")
}

fn is_shard(path: &str) -> bool {
    shard(path).is_some()
}

/// The number of a shard.
fn shard(path: &str) -> Option<&str> {
    path.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-").map(|(number, _)| number)
}

/// The role of a file in an entry: `model` of what is loaded first, else by its name.
fn role(path: &str) -> String {
    if let Some(number) = shard(path) {
        return format!("shard_{}", number.trim_start_matches('0'));
    }
    if path == "model.safetensors" || path == INDEX {
        return "model".to_owned();
    }
    if path == POOLING {
        return "pooling".to_owned();
    }
    let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
    let stem = if path == "tokenizer.model" { "tokenizer_model" } else { stem };
    stem.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

/// A small file of a repository, if it has it.
async fn text(puller: &Puller, repository: &Repository, name: &str) -> Result<Option<Vec<u8>>, CliError> {
    if repository.files.iter().all(|file| file.path != name) {
        return Ok(None);
    }
    let location = Location::HuggingFace {
        repo: repository.id.clone(),
        file: name.to_owned(),
        revision: repository.commit.clone(),
    };
    let beginning = puller.beginning(&location, CONFIG_BYTES_MAX).await.map_err(CliError::failed)?;
    Ok(Some(beginning.bytes))
}

/// Where a file is fetched, with its digest.
fn location(repository: &Repository, file: &HubFile) -> Value {
    let said = [("hf", &repository.id), ("file", &file.path), ("revision", &repository.commit)];
    let digest = file.sha256.iter().map(|digest| ("sha256", digest));
    yaml::mapping(said.into_iter().chain(digest).map(|(key, value)| (key, yaml::text(value.clone()))))
}
