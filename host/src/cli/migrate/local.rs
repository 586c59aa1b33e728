//! An entry for a file of weights that is on this machine already: what its source says of it becomes the options of whatever
//! serves it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_yaml::Value;

use super::plan::{Entry, Plan};
use super::yaml;
use crate::cli::auto::braced;
use crate::cli::auto::gguf::Header;
use crate::cli::auto::weights::{self, CacheBits, Runner, Task, Weights};

/// A model of a source that keeps files.
#[derive(Debug, Default)]
pub(in crate::cli) struct Local {
    /// Its name there.
    pub(in crate::cli) name: String,
    /// Its other names there.
    pub(in crate::cli) aliases: Vec<String>,
    /// Its weights; of a split model, the first part.
    pub(in crate::cli) path: PathBuf,
    /// The key and value that say where its weights are fetched; nothing where they lie at `path`.
    pub(in crate::cli) fetched: Option<(&'static str, Value)>,
    /// A projector of pictures.
    pub(in crate::cli) projector: Option<PathBuf>,
    /// A smaller model that drafts for it.
    pub(in crate::cli) draft: Option<PathBuf>,
    /// LoRA adapters.
    pub(in crate::cli) adapters: Vec<PathBuf>,
    /// Tokens of context, where it says how many.
    pub(in crate::cli) context: Option<u64>,
    /// Threads, where it says how many.
    pub(in crate::cli) threads: Option<u64>,
    /// What else llama.cpp's server would be told.
    pub(in crate::cli) arguments: Vec<String>,
    /// Keys of its entry that it has whatever serves it.
    pub(in crate::cli) keys: Vec<(&'static str, Value)>,
    /// Whether its source keeps a chat template for it, which is not carried over.
    pub(in crate::cli) has_template: bool,
    /// What is not carried over in any case.
    pub(in crate::cli) notes: Vec<String>,
}

impl Local {
    /// The entry; nothing of what is no model of its own, which is told at the head of the file.
    pub(super) fn add_to(self, plan: &mut Plan) {
        let weights = Weights::look(&self.path);
        let left_out = |why: String| format!("{}: {} is left out: it {why}", self.name, self.path.display());
        match (&weights.header, weights.task()) {
            (Err(why), _) => plan.notes.push(left_out(why.clone())),
            (_, Err(what)) => plan.notes.push(left_out(format!("is {what}"))),
            (Ok(_), Ok(task)) => plan.entries.push(self.entry(&weights, task)),
        }
    }

    /// The entry of a file that was looked at.
    pub(in crate::cli) fn entry(self, weights: &Weights, task: Task) -> Entry {
        let mut entry = Entry::named(self.name.clone());
        entry.aliases.clone_from(&self.aliases);
        entry.notes.clone_from(&self.notes);
        let needs_server = match () {
            () if self.projector.is_some() => Some("candle-llm reads no pictures".to_owned()),
            () if !self.adapters.is_empty() => Some("candle-llm takes no adapters".to_owned()),
            () if self.draft.is_some() => Some("candle-llm takes no drafts of another model".to_owned()),
            () => None,
        };
        let runner = match needs_server {
            Some(why) => Runner::LlamaServer(why),
            None => weights::runner(weights),
        };
        match (task, runner) {
            (Task::Text, Runner::CandleLlm) => self.candle(&mut entry),
            (Task::Text, Runner::LlamaServer(why)) => {
                entry.remarks.push(format!("By llama.cpp's server: {why}."));
                self.server(&mut entry, weights);
            }
            (Task::Embedding, _) => self.command(&mut entry, weights, "--embedding"),
            (Task::Rerank, _) => self.command(&mut entry, weights, "--reranking"),
        }
        for (key, value) in self.keys {
            entry.set(key, value);
        }
        let lacks = |header: &Header| header.text("tokenizer.chat_template").is_none();
        if self.has_template && task == Task::Text && weights.header.as_ref().is_ok_and(lacks) {
            entry.note(
                "its template is not carried over, and its file has none: requests with messages need one, in Jinja, by an option of its plugin",
            );
        }
        entry
    }

    /// By this host's own plugin.
    fn candle(&self, entry: &mut Entry) {
        entry.set("type", yaml::text("text"));
        entry.set("plugin", yaml::text("candle-llm"));
        self.locate(entry);
        for (name, number) in [("context", self.context), ("threads", self.threads)] {
            if let Some(number) = number {
                entry.option(name, Value::from(number));
            }
        }
        if !self.arguments.is_empty() {
            let left = self.arguments.join(" ");
            entry.note(format!(
                "`{left}` is not carried over: candle-llm has no defaults of its own; requests say them"
            ));
        }
    }

    /// By llama.cpp's server, as an engine that is known by name.
    fn server(&self, entry: &mut Entry, weights: &Weights) {
        entry.set("type", yaml::text("text"));
        entry.set("plugin", yaml::text("vllm"));
        self.locate(entry);
        self.estimate(entry, weights);
        entry.option("engine", yaml::text("llama-server"));
        entry.option("args", yaml::texts(self.server_arguments(weights)));
    }

    /// By llama.cpp's server, as a command: one that makes vectors refuses the completion by which a known one is tried.
    fn command(&self, entry: &mut Entry, weights: &Weights, flag: &str) {
        entry.set("type", yaml::text("embedding"));
        let mut words: Vec<String> =
            ["llama-server", "--model", "{model_path}", "--host", "127.0.0.1", "--port", "{port}", flag]
                .map(str::to_owned)
                .to_vec();
        words.extend(self.server_arguments(weights));
        entry.set("command", yaml::texts(words));
        self.locate(entry);
        self.estimate(entry, weights);
    }

    fn locate(&self, entry: &mut Entry) {
        let (key, value) = self.fetched.clone().unwrap_or_else(|| ("source", located(&self.path)));
        entry.set(key, value);
    }

    fn estimate(&self, entry: &mut Entry, weights: &Weights) {
        let others =
            self.projector.iter().chain(&self.draft).chain(&self.adapters).filter_map(|path| fs::metadata(path).ok());
        let others = others.map(|found| found.len()).sum();
        if let Some((memory, how)) = weights.memory(Some(self.served(weights)), CacheBits::default(), others) {
            entry.set_with("memory", yaml::size(memory), how);
        }
    }

    /// Tokens of context that it is served with.
    fn served(&self, weights: &Weights) -> u64 {
        self.context.filter(|tokens| *tokens > 0).unwrap_or_else(|| weights.usual_context())
    }

    fn server_arguments(&self, weights: &Weights) -> Vec<String> {
        let mut words = vec!["--ctx-size".to_owned(), self.served(weights).to_string()];
        let files = self.projector.iter().map(|path| ("--mmproj", path));
        let files = files.chain(self.draft.iter().map(|path| ("--model-draft", path)));
        for (flag, path) in files.chain(self.adapters.iter().map(|path| ("--lora", path))) {
            words.extend([flag.to_owned(), braced(&path.display().to_string())]);
        }
        if let Some(threads) = self.threads {
            words.extend(["--threads".to_owned(), threads.to_string()]);
        }
        words.extend(self.arguments.iter().map(|word| braced(word)));
        words
    }
}

/// Where a file of this machine is.
pub(in crate::cli) fn located(path: &Path) -> Value {
    yaml::mapping([("path", yaml::text(path.display().to_string()))])
}

/// Says of files that somebody else owns what their host will ask for.
pub(super) fn note_owner(plan: &mut Plan, path: &Path) {
    let us = rustix::process::geteuid().as_raw();
    if fs::metadata(path).is_ok_and(|found| found.uid() != us && found.uid() != 0) {
        plan.notes.push(format!(
            "{} belongs to another user: let the host run as that user, or say `allow_shared_folders: true`",
            path.display()
        ));
    }
}
