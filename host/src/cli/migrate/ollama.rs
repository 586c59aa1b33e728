//! Ollama's store: a manifest for each name and tag, whose layers are blobs named by their digest. Read where it lies; nothing is
//! copied, and Ollama may go on using it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::local::{self, Local};
use super::plan::Plan;
use crate::config::Env;
use crate::domain::excerpt;

/// The registry and the namespace that names leave out.
const REGISTRY: &str = "registry.ollama.ai";
const LIBRARY: &str = "library";
/// The tag that a name without one means.
const LATEST: &str = "latest";
/// How the types of layers begin.
const LAYER: &str = "application/vnd.ollama.image.";
/// Bytes of a manifest, or of a blob that is a text, that are read.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// Bytes of a system prompt that a comment repeats.
const SHOWN_BYTES: usize = 400;
/// Most manifests of Ollama's that are read.
const MANIFESTS_MAX: usize = 10_000;

/// What Ollama calls a parameter, and llama.cpp's server an argument.
const PARAMETERS: [(&str, &str); 14] = [
    ("main_gpu", "--main-gpu"),
    ("num_gpu", "--gpu-layers"),
    ("num_batch", "--batch-size"),
    ("num_keep", "--keep"),
    ("temperature", "--temp"),
    ("top_k", "--top-k"),
    ("top_p", "--top-p"),
    ("min_p", "--min-p"),
    ("typical_p", "--typical"),
    ("repeat_penalty", "--repeat-penalty"),
    ("repeat_last_n", "--repeat-last-n"),
    ("presence_penalty", "--presence-penalty"),
    ("frequency_penalty", "--frequency-penalty"),
    ("seed", "--seed"),
];

/// A manifest.
#[derive(Debug, Default, Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

/// A layer of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Layer {
    #[serde(rename = "mediaType", default)]
    media_type: String,
    #[serde(default)]
    digest: String,
}

/// Where Ollama keeps its store, where it is not told otherwise.
pub(super) fn usual_places(env: &Env) -> Vec<PathBuf> {
    let named = env.named("OLLAMA_MODELS").map(PathBuf::from);
    let home = env.named("HOME").map(|home| Path::new(home).join(".ollama/models"));
    let service = PathBuf::from("/usr/share/ollama/.ollama/models");
    named.into_iter().chain(home).chain([service]).collect()
}

/// The store in a folder, or in its folder `models`.
pub(super) fn find(folder: &Path) -> Option<PathBuf> {
    let candidates = [folder.to_path_buf(), folder.join("models")];
    candidates.into_iter().find(|store| store.join("manifests").is_dir() && store.join("blobs").is_dir())
}

/// Reads a store.
pub(super) fn read(store: &Path) -> Plan {
    let mut plan = Plan::default();
    let mut manifests = Vec::new();
    collect(&store.join("manifests"), &mut Vec::new(), &mut manifests);
    manifests.sort();
    if manifests.len() >= MANIFESTS_MAX {
        plan.notes.push(format!("there are more names in the store than the {MANIFESTS_MAX} that are read"));
    }
    // Names of the same layers are one model.
    let mut models: Vec<(Vec<Layer>, Vec<String>)> = Vec::new();
    let mut places: BTreeMap<Vec<Layer>, usize> = BTreeMap::new();
    for (name, path) in manifests {
        let read = text(&path).and_then(|text| serde_json::from_str::<Manifest>(&text).map_err(|e| e.to_string()));
        match read {
            Err(why) => plan.notes.push(format!("{name} is left out: its manifest {} is none ({why})", path.display())),
            Ok(manifest) if manifest.layers.is_empty() => models.push((Vec::new(), vec![name])),
            Ok(manifest) => {
                let place = *places.entry(manifest.layers.clone()).or_insert(models.len());
                match models.get_mut(place) {
                    Some((_, names)) => names.push(name),
                    None => models.push((manifest.layers, vec![name])),
                }
            }
        }
    }
    let mut common = Common::default();
    for (layers, names) in models {
        Model { store, layers, names }.add_to(&mut plan, &mut common);
    }
    if common.has_templates {
        plan.notes
            .push("templates of Ollama are not carried over: the chat template in a model's file is used".to_owned());
    }
    if common.has_licences {
        plan.notes.push("licences stay in Ollama's store: `ollama show --license NAME` prints one".to_owned());
    }
    plan
}

/// Every manifest with the name that it is known by.
fn collect(folder: &Path, above: &mut Vec<String>, found: &mut Vec<(String, PathBuf)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if found.len() >= MANIFESTS_MAX || name.starts_with('.') {
            continue;
        }
        above.push(name);
        // Registry, namespace, name and tag lead to a manifest.
        if above.len() < 4 && entry.path().is_dir() {
            collect(&entry.path(), above, found);
        } else if let [registry, namespace, model, tag] = above.as_slice() {
            let before = match (registry.as_str(), namespace.as_str()) {
                (REGISTRY, LIBRARY) => String::new(),
                (REGISTRY, namespace) => format!("{namespace}/"),
                (registry, namespace) => format!("{registry}/{namespace}/"),
            };
            found.push((format!("{before}{model}:{tag}"), entry.path()));
        }
        above.pop();
    }
}

/// What is told once for all models.
#[derive(Debug, Default)]
struct Common {
    has_templates: bool,
    has_licences: bool,
    is_owner_told: bool,
}

/// A model with all its names.
struct Model<'a> {
    store: &'a Path,
    layers: Vec<Layer>,
    names: Vec<String>,
}

impl Model<'_> {
    fn add_to(self, plan: &mut Plan, common: &mut Common) {
        let mut names = self.names.iter().flat_map(|name| match name.strip_suffix(&format!(":{LATEST}")) {
            Some(short) => vec![name.clone(), short.to_owned()],
            None => vec![name.clone()],
        });
        let name = names.next().unwrap_or_default();
        let mut local = Local { name, aliases: names.collect(), ..Local::default() };
        let weights: Vec<PathBuf> = self.blobs("model").collect();
        match weights.as_slice() {
            [only] => local.path = only.clone(),
            [] => {
                let why = "it has no weights in GGUF here (a model of Ollama's cloud, or of another format)";
                return plan.notes.push(format!("{} is left out: {why}", local.name));
            }
            _ => {
                let why = "its weights are several blobs, which are found by Ollama alone; fetch its split GGUF file";
                return plan.notes.push(format!("{} is left out: {why}", local.name));
            }
        }
        if !common.is_owner_told {
            common.is_owner_told = true;
            local::note_owner(plan, &local.path);
        }
        local.projector = self.blobs("projector").next();
        local.adapters = self.blobs("adapter").collect();
        local.draft = self.blobs("draft").next();
        // An older version called it a prompt.
        local.has_template = self.blobs("template").chain(self.blobs("prompt")).next().is_some();
        common.has_templates |= local.has_template;
        common.has_licences |= self.blobs("license").next().is_some();
        for (kind, what) in [("system", "system prompt is"), ("messages", "messages are")] {
            for blob in self.blobs(kind) {
                let shown = text(&blob).map(|text| excerpt(text.trim(), SHOWN_BYTES)).unwrap_or_default();
                local.notes.push(format!("its {what} not carried over, clients send them: {shown}"));
            }
        }
        for blob in self.blobs("params") {
            let read = text(&blob)
                .and_then(|text| serde_json::from_str::<Map<String, Value>>(&text).map_err(|e| e.to_string()));
            match read {
                Ok(parameters) => parameters.iter().for_each(|(name, value)| parameter(&mut local, name, value)),
                Err(why) => local.notes.push(format!("its parameters cannot be read ({why})")),
            }
        }
        for (kind, count) in self.others() {
            local.notes.push(format!("its layers of the kind `{kind}` ({count}) are not carried over"));
        }
        local.add_to(plan);
    }

    /// The files of its layers of a kind.
    fn blobs(&self, kind: &str) -> impl Iterator<Item = PathBuf> {
        let wanted = format!("{LAYER}{kind}");
        let blobs = self.store.join("blobs");
        let digests: Vec<String> =
            self.layers.iter().filter(|layer| layer.media_type == wanted).map(file_name).collect();
        digests.into_iter().map(move |name| blobs.join(name))
    }

    /// Kinds of layers that nothing is known of.
    fn others(&self) -> BTreeMap<&str, usize> {
        const KNOWN: [&str; 10] =
            ["model", "projector", "adapter", "draft", "template", "license", "system", "messages", "prompt", "params"];
        let mut others = BTreeMap::new();
        for layer in &self.layers {
            let kind = layer.media_type.strip_prefix(LAYER).unwrap_or(&layer.media_type);
            if !KNOWN.contains(&kind) {
                *others.entry(kind).or_default() += 1;
            }
        }
        others
    }
}

/// The name of a layer's file. A digest that is none leads nowhere else.
fn file_name(layer: &Layer) -> String {
    layer.digest.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// A parameter of a model.
fn parameter(local: &mut Local, name: &str, value: &Value) {
    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match (name, value.as_u64()) {
        ("num_ctx", Some(tokens)) => local.context = Some(tokens),
        ("num_thread", Some(threads)) => local.threads = Some(threads).filter(|threads| *threads > 0),
        ("num_predict", Some(tokens)) if tokens > 0 => local.keys.push(("default_max_tokens", tokens.into())),
        // Without end, which is what a context is.
        ("num_predict", _) => {}
        ("use_mmap", _) if value == &Value::Bool(false) => local.arguments.push("--no-mmap".to_owned()),
        ("use_mmap", _) => {}
        _ => match PARAMETERS.iter().find(|(parameter, _)| *parameter == name) {
            Some((_, flag)) if value.is_number() => local.arguments.extend([(*flag).to_owned(), shown]),
            _ => local.notes.push(format!("its parameter `{name}: {shown}` is not carried over: requests say it")),
        },
    }
}

fn text(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(TEXT_BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}
