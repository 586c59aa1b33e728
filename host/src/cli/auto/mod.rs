//! `plugin: auto`: what serves a model of texts, by what its files say of themselves and by which engines are on this machine. The
//! one place that decides it; `migrate` asks here too. Nothing is started, and of files only what stands before weights is read.

pub(super) mod folder;
pub(super) mod gguf;
mod options;
pub(super) mod weights;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;

use self::folder::Folder;
pub(super) use self::options::braced;
use self::weights::{CacheBits, Runner, Task, Weights};
use crate::config::{Choice, Config, Env, ModelConfig, Paths};
use crate::store::{self, Digests};

/// The role of a model's only file, or of its weights.
const MODEL: &str = "model";
/// Our own plugin of texts, and the one that starts engines.
const CANDLE_LLM: &str = "candle-llm";
const STARTER: &str = "vllm";

/// An engine that the plugin `vllm` knows by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    LlamaServer,
    Vllm,
}

impl Engine {
    /// In `options: engine`, and of its program.
    fn name(self) -> &'static str {
        match self {
            Self::LlamaServer => "llama-server",
            Self::Vllm => "vllm",
        }
    }

    /// In sentences.
    fn told(self) -> &'static str {
        match self {
            Self::LlamaServer => "llama.cpp's server",
            Self::Vllm => "vLLM",
        }
    }

    /// What to do where it is not here.
    fn advice(self) -> &'static str {
        match self {
            Self::LlamaServer => "install llama.cpp, or say by `options: {binary: ...}` where its server is",
            Self::Vllm => {
                "name its package by `options: {requirements: [vllm==...]}`, say by `options: {binary: ...}` where it is, or use a GGUF file of the model"
            }
        }
    }
}

/// What serves a model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chosen {
    /// Nothing is our own plugin.
    engine: Option<Engine>,
    /// Why it is no other, as a sentence without its end.
    why: String,
}

impl Chosen {
    fn told(&self) -> String {
        format!("`plugin: auto` is {} here: {}", self.engine.map_or(CANDLE_LLM, Engine::told), self.why)
    }
}

/// What a model is made of.
#[derive(Debug)]
enum Files {
    /// A GGUF file, or all parts of one.
    Gguf(Weights),
    /// A folder of Hugging Face's form, or the files of one.
    Folder(Folder),
}

/// What was seen in GGUF files, so that nothing is read again while it is what it was.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<BTreeMap<PathBuf, (Stamps, Weights)>>);

/// Bytes and time of each part of a file.
type Stamps = Vec<(u64, SystemTime)>;

/// Chooses for every entry of which that is open. It reads files.
pub(super) fn choose_all(config: &mut Config, env: &Env, looks: &Looks) {
    let Config { models, paths, .. } = config;
    for model in models.values_mut().filter(|model| matches!(model.choice, Some(Choice::Open(_)))) {
        choose(model, paths, env, looks);
    }
}

/// Chooses for an entry of which that is open.
pub(super) fn choose(model: &mut ModelConfig, paths: &Paths, env: &Env, looks: &Looks) {
    let made = made(model, paths, env, looks);
    model.choice = Some(made.unwrap_or_else(|not_made| not_made));
}

fn made(model: &mut ModelConfig, paths: &Paths, env: &Env, looks: &Looks) -> Result<Choice, Choice> {
    let failed = |key: &'static str| move |why: String| Choice::Failed { key, why };
    let located = store::locate(model, &Digests::of(&paths.state)).map_err(|failure| open(&failure.message))?;
    let files = Files::look(&located, looks)?;
    let is_here = |engine: Engine| options::say_where(&model.options) || env.has_program(engine.name());
    let chosen = match &files {
        Files::Gguf(weights) => of_weights(weights, is_here),
        Files::Folder(folder) => of_folder(folder, is_here),
    };
    let chosen = chosen.map_err(failed("plugin"))?;
    let weights = match files {
        Files::Gguf(weights) if chosen.engine.is_some() => Some(weights),
        _ => None,
    };
    let usual = weights.as_ref().map(Weights::usual_context);
    let translated = options::translate(&chosen, &model.options, usual).map_err(failed("options"))?;
    if let (Some(weights), None) = (weights, model.memory) {
        model.memory = weights.memory(translated.tokens, CacheBits::default(), 0).map(|(size, _)| size);
    }
    model.plugin = if chosen.engine.is_some() { STARTER } else { CANDLE_LLM }.to_owned();
    model.options = translated.options;
    Ok(Choice::Made(chosen.told()))
}

/// Nothing can be said yet.
fn open(missing: &str) -> Choice {
    Choice::Open(format!("`plugin: auto` is decided once its files are here; {missing}"))
}

/// What serves a GGUF file.
fn of_weights(weights: &Weights, is_here: impl Fn(Engine) -> bool) -> Result<Chosen, String> {
    match weights.task() {
        Err(what) => return Err(format!("`auto` finds nothing that serves its file, which is {what}")),
        Ok(Task::Text) => {}
        Ok(Task::Embedding) => return Err(format!("`auto` chooses for models that write, and its file {VECTORS}")),
        Ok(Task::Rerank) => return Err(format!("`auto` chooses for models that write, and its file {ORDER}")),
    }
    match weights::runner(weights) {
        Runner::CandleLlm => Ok(Chosen { engine: None, why: "it serves its file".to_owned() }),
        Runner::LlamaServer(why) => by_engine(Engine::LlamaServer, why, is_here),
    }
}

/// What serves a folder of Hugging Face's form.
fn of_folder(folder: &Folder, is_here: impl Fn(Engine) -> bool) -> Result<Chosen, String> {
    match folder.why_not_candle() {
        None => Ok(Chosen { engine: None, why: "it serves its files".to_owned() }),
        Some(why) => by_engine(Engine::Vllm, why, is_here),
    }
}

fn by_engine(engine: Engine, why: String, is_here: impl Fn(Engine) -> bool) -> Result<Chosen, String> {
    match is_here(engine) {
        true => Ok(Chosen { engine: Some(engine), why }),
        false => Err(format!(
            "`auto` finds nothing that serves its files: {why}, and there is no `{}` in the PATH of the host; {}",
            engine.name(),
            engine.advice()
        )),
    }
}

const VECTORS: &str =
    "makes vectors of texts: say `type: embedding` with a `command:` of llama.cpp's server and `--embedding`";
const ORDER: &str = "orders texts: say `type: embedding` with a `command:` of llama.cpp's server and `--reranking`";

impl Files {
    fn look(located: &BTreeMap<String, PathBuf>, looks: &Looks) -> Result<Self, Choice> {
        let key = if located.contains_key(MODEL) { "source" } else { "files" };
        let failed = |why: String| Choice::Failed { key, why };
        let mut paths = located.values();
        if let (Some(folder), None) = (paths.next().filter(|path| path.is_dir()), paths.next()) {
            let names = fs::read_dir(folder).into_iter().flatten().flatten();
            let names: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
            return Folder::look(names.iter()).map(Self::Folder).map_err(failed);
        }
        if let Some(model) = located.get(MODEL).filter(|path| gguf::is_one(path)) {
            let parts = weights::parts(model);
            let others = located.values().filter(|path| !parts.contains(path));
            if let Some(other) = others.clone().find(|path| gguf::is_one(path)) {
                let why =
                    format!("has another GGUF file, {}, and `auto` decides for one; name the plugin", other.display());
                return Err(failed(why));
            }
            return looks.of(model, &parts).map(Self::Gguf);
        }
        if located.values().any(|path| gguf::is_one(path)) {
            return Err(failed(format!(
                "has GGUF files, and none in the role `{MODEL}`; say which it is, or name the plugin"
            )));
        }
        Folder::look(located.values()).map(Self::Folder).map_err(failed)
    }
}

impl Looks {
    /// What stands before the weights of a file.
    fn of(&self, path: &Path, parts: &[PathBuf]) -> Result<Weights, Choice> {
        let mut stamps = Stamps::new();
        for part in parts {
            let found = fs::metadata(part).and_then(|found| Ok((found.len(), found.modified()?)));
            stamps.push(found.map_err(|error| open(&format!("its part {} cannot be read: {error}", part.display())))?);
        }
        let mut all = self.0.lock();
        if let Some((known, weights)) = all.get(path)
            && *known == stamps
        {
            return Ok(weights.clone());
        }
        let weights = Weights::look(path);
        if let Err(why) = &weights.header {
            return Err(Choice::Failed { key: "source", why: format!("names a file that {why}: {}", path.display()) });
        }
        all.insert(path.to_owned(), (stamps, weights.clone()));
        Ok(weights)
    }
}

#[cfg(test)]
mod tests {
    use super::gguf::tests::{SMOLLM, header_bytes};
    use super::*;
    use crate::config::{Selection, parse};

    const LLAMA_CONFIG: &str = r#"{"model_type": "llama", "hidden_act": "silu"}"#;

    /// A folder with files for a models.yaml beside them, and a PATH within.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, name: &str, content: impl AsRef<[u8]>) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn gguf(&self, name: &str, architecture: &str) {
            let mut pairs = SMOLLM;
            pairs[0].1 = architecture;
            self.file(name, header_bytes(&pairs, &[0, 2]));
        }

        fn program(&self, name: &str) {
            use std::os::unix::fs::PermissionsExt;
            self.file(&format!("bin/{name}"), "");
            fs::set_permissions(self.0.path().join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }

        /// The entry of this text, chosen for.
        fn choose(&self, entry: &str) -> ModelConfig {
            let root = self.0.path().to_str().unwrap();
            let path = format!("{root}/bin");
            let env =
                Env::with(root, [("PATH", path.as_str()), ("AIHOST_STATE_DIR", root), ("AIHOST_MODELS_DIR", root)]);
            let text = format!(
                "models:
  m: {{type: text, plugin: auto, {entry}}}
"
            );
            let mut config = parse(&text, &self.0.path().join("models.yaml"), &Selection::default(), &env)
                .unwrap_or_else(|error| panic!("{error}"));
            choose_all(&mut config, &env, &Looks::default());
            config.models.into_values().next().unwrap()
        }
    }

    fn told(model: &ModelConfig) -> String {
        match model.choice.as_ref().unwrap() {
            Choice::Open(why) => format!("open: {why}"),
            Choice::Failed { key, why } => format!("{key}: {why}"),
            Choice::Made(why) => why.clone(),
        }
    }

    #[test]
    fn a_gguf_file_is_our_own_plugins_where_it_serves_it() {
        let machine = Machine::new();
        machine.gguf("m.gguf", "llama");
        machine.program("llama-server");
        let model = machine.choose("source: {path: m.gguf}, options: {context: 512, threads: 2}");
        assert_eq!((model.plugin.as_str(), model.memory), ("candle-llm", None));
        assert_eq!(model.options, serde_json::json!({"context": 512, "threads": 2}));
        assert_eq!(told(&model), "`plugin: auto` is candle-llm here: it serves its file");
        let model = machine.choose("source: {path: m.gguf}, options: {args: ['--jinja']}");
        assert!(told(&model).starts_with("options: `args` is an option of engines, and"), "{}", told(&model));
    }

    #[test]
    fn another_one_is_llama_cpps_servers_where_there_is_one() {
        let machine = Machine::new();
        machine.gguf("m.gguf", "deepseek2");
        let missing = told(&machine.choose("source: {path: m.gguf}"));
        for words in ["plugin: ", "the architecture `deepseek2`", "no `llama-server` in the PATH", "install llama.cpp"]
        {
            assert!(missing.contains(words), "{missing}");
        }
        let named = machine.choose("source: {path: m.gguf}, options: {binary: /opt/llama/llama-server}");
        assert_eq!(named.options["binary"], "/opt/llama/llama-server");
        machine.program("llama-server");
        let model = machine.choose("source: {path: m.gguf}");
        assert_eq!(model.plugin, "vllm");
        assert_eq!(model.options, serde_json::json!({"engine": "llama-server", "args": ["--ctx-size", "8192"]}));
        assert!(model.memory.is_some_and(|size| size.0 > 1 << 30), "an estimate: {:?}", model.memory);
        assert!(told(&model).contains("is llama.cpp's server here: candle-llm does not serve"), "{}", told(&model));
        let model =
            machine.choose("source: {path: m.gguf}, memory: 3GiB, options: {context: 1000, args: ['-fa', 'on']}");
        assert_eq!(model.memory.map(|size| size.0), Some(3 << 30));
        assert_eq!(model.options["args"], serde_json::json!(["--ctx-size", "1000", "-fa", "on"]));
    }

    #[test]
    fn what_is_not_here_is_decided_later() {
        let machine = Machine::new();
        for (entry, words) in [
            ("source: {hf: org/repo, file: m.gguf}", "run `aihost models pull m`"),
            ("source: {path: m-00001-of-00002.gguf}", "put it there"),
            ("files: {model: {path: m-00001-of-00002.gguf}}", "put it there"),
        ] {
            let model = machine.choose(entry);
            let told = told(&model);
            assert_eq!(model.plugin, "auto");
            assert!(told.starts_with("open: `plugin: auto` is decided once its files are here; "), "{told}");
            assert!(told.contains(words), "{told}");
        }
        machine.gguf("m-00001-of-00002.gguf", "llama");
        let half = told(&machine.choose("source: {path: m-00001-of-00002.gguf}"));
        assert!(half.starts_with("open: ") && half.contains("m-00002-of-00002.gguf cannot be read"), "{half}");
        // Of what no plugin of ours reads there is one tensor, in the second part.
        machine.file("m-00002-of-00002.gguf", header_bytes(&SMOLLM, &[0, 16]));
        machine.program("llama-server");
        assert!(told(&machine.choose("source: {path: m-00001-of-00002.gguf}")).contains("ggml's type 16"));
    }

    #[test]
    fn a_folder_is_our_own_plugins_or_vllms() {
        let machine = Machine::new();
        let lay = |config: &str| {
            machine.file("f/config.json", config);
            machine.file("f/tokenizer.json", "{}");
            machine.file("f/model.safetensors", "x");
        };
        lay(LLAMA_CONFIG);
        assert_eq!(machine.choose("source: {path: f}").plugin, "candle-llm");
        let files = "files: {model: {path: f/model.safetensors}, config: {path: f/config.json}, tokenizer: {path: f/tokenizer.json}}";
        assert_eq!(machine.choose(files).plugin, "candle-llm");
        lay(r#"{"model_type": "deepseek2"}"#);
        let missing = told(&machine.choose("source: {path: f}"));
        assert!(missing.contains("no `vllm` in the PATH") && missing.contains("requirements"), "{missing}");
        let fetched = machine.choose("source: {path: f}, options: {requirements: ['vllm==0.32.0'], context: 4096}");
        assert_eq!(
            fetched.options,
            serde_json::json!({"engine": "vllm", "args": ["--max-model-len", "4096"], "requirements": ["vllm==0.32.0"]})
        );
        machine.program("vllm");
        assert_eq!(machine.choose(files).options["engine"], "vllm");
    }

    #[test]
    fn what_nobody_serves_is_told() {
        let machine = Machine::new();
        machine.program("llama-server");
        machine.gguf("clip.gguf", "clip");
        machine.gguf("vectors.gguf", "nomic-bert");
        machine.gguf("m.gguf", "llama");
        machine.file("damaged.gguf", &header_bytes(&SMOLLM, &[0])[..60]);
        machine.file("x.bin", "x");
        for (entry, words) in [
            ("source: {path: clip.gguf}", "plugin: `auto` finds nothing that serves its file, which is a projector"),
            ("source: {path: vectors.gguf}", "`type: embedding`"),
            ("source: {path: damaged.gguf}", "source: names a file that ends within its header"),
            ("source: {path: x.bin}", "source: is neither a GGUF file nor"),
            ("files: {model: {path: m.gguf}, mmproj: {path: clip.gguf}}", "source: has another GGUF file"),
            ("files: {weights: {path: m.gguf}}", "files: has GGUF files, and none in the role `model`"),
            (
                "source: {path: m.gguf}, options: {engine: llama-server}",
                "options: `engine` is what `plugin: auto` chooses",
            ),
        ] {
            let told = told(&machine.choose(entry));
            assert!(told.contains(words), "{entry}: {told}");
        }
    }

    #[test]
    fn a_file_is_read_again_only_when_it_is_another_one() {
        let machine = Machine::new();
        machine.gguf("m.gguf", "llama");
        let path = machine.0.path().join("m.gguf");
        let looks = Looks::default();
        let architecture = || {
            let weights = looks.of(&path, std::slice::from_ref(&path)).unwrap();
            weights.header.unwrap().architecture().to_owned()
        };
        assert_eq!(architecture(), "llama");
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        let same = fs::read(&path).unwrap();
        let other: Vec<u8> = same.iter().map(|byte| if *byte == b'a' { b'o' } else { *byte }).collect();
        fs::write(&path, other).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
        assert_eq!(architecture(), "llama", "it was not read");
        machine.gguf("m.gguf", "deepseek2");
        assert_eq!(architecture(), "deepseek2");
    }
}
