//! What was typed: the shape of models.yaml, key by key. Unknown keys are rejected; what values mean is `resolve`'s business.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor};

use super::api_key::Scope;
use super::raw_service::{RawBusy, RawRoutes};
use super::schema::{Count, Size, Span};

/// Reads the text of a models.yaml.
pub(super) fn parse(text: &str) -> Result<RawConfig, serde_yaml::Error> {
    serde_yaml::from_str::<Option<RawConfig>>(text).map(Option::unwrap_or_default)
}

/// models.yaml: which models there are, how they are loaded, and where the host listens.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "models.yaml", rename = "Config")]
pub(super) struct RawConfig {
    /// Version of the file's format: 1. May be absent.
    pub(super) version: Option<Text>,
    /// Address and port of the HTTP server, or several such. Default: 127.0.0.1:9000.
    pub(super) listen: Option<RawListen>,
    /// API keys that clients must send: texts, `env:NAME`, or mappings. Needed as soon as `listen` is not a loopback address.
    pub(super) api_keys: Option<OneOrMany<RawKey>>,
    /// Serve other machines without API keys. Default: false.
    pub(super) allow_unauthenticated: bool,
    /// Which web pages and apps may use this host, beside pages that are served from its own machine.
    pub(super) cors: Option<RawCors>,
    /// Use folders and files that other users own or may write, plugins and weights among them: for a volume that keeps no
    /// permissions. Default: false.
    pub(super) allow_shared_folders: bool,
    /// Values that other places repeat: `&name` here, `*name` there. Read for nothing else.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub(super) anchors: Option<IgnoredAny>,
    /// `auto`, or a list of devices with their budgets. `auto` is every graphics card, then the CPU. Default: auto.
    pub(super) devices: Option<OneOrMany<RawDevice>>,
    /// Folder of plugin files. Default: /workspace/plugins where writable, else in the user's data folder.
    pub(super) plugins_dir: Option<PathBuf>,
    /// Folder of weights. Default: /workspace/models where writable, else in the user's data folder.
    pub(super) models_dir: Option<PathBuf>,
    /// Folder of what the host remembers. Default: /workspace/state where writable, else in the user's data folder.
    pub(super) state_dir: Option<PathBuf>,
    /// Folder on a fast local disk for copies of weight files, where `models_dir` is slow: a file is copied when a model that
    /// uses it is first brought up, and opened from its copy. A folder of its own, outside the others; it may be deleted while
    /// no host runs. Takes effect at the next start. Default: none, files are opened where they lie.
    pub(super) cache_dir: Option<PathBuf>,
    /// Bytes that the copies in `cache_dir` may take together; those that were used longest ago make room. A twentieth of the
    /// disk stays free whatever it says. Takes effect at the next start. Default: what the disk has room for.
    #[schemars(with = "Option<Size>")]
    pub(super) cache_size: Option<Text>,
    /// Limits that protect the host and its clients.
    pub(super) limits: Option<RawLimits>,
    /// What holds for every model that does not say otherwise.
    pub(super) defaults: Option<RawDefaults>,
    /// Models by name, or a list of models that have a `name`.
    pub(super) models: Option<RawModels>,
}

/// Which web pages and apps may use this host, beside pages that are served from its own machine.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Cors")]
pub(super) struct RawCors {
    /// Their origins: https://chat.example.com, https://*.example.com, app://obsidian.md, vscode-webview://*; `"null"` for pages
    /// that have none, `"*"` for all. Without API keys, whoever is named here may do all that the host does. Default: those of
    /// apps and editors that have no site: app, capacitor, electron, file, ionic, tauri, vscode-file, vscode-webview.
    pub(super) origins: Option<OneOrMany<Text>>,
}

/// Limits that protect the host and its clients.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Limits")]
pub(super) struct RawLimits {
    /// Requests that may wait per model before more are refused with 429. Default: 128.
    #[schemars(with = "Option<Count>")]
    pub(super) queue: Option<Text>,
    /// How long a request waits for its model to be loaded, its answer's head withheld, before 503. The load goes on. Default: 90s.
    #[schemars(with = "Option<Span>")]
    pub(super) hold: Option<Text>,
    /// The longest a request may run once it is granted, and the longest it waits for a slot of a model that is loaded, before
    /// 429. Default: 600s.
    #[schemars(with = "Option<Span>")]
    pub(super) request_timeout: Option<Text>,
    /// How long a granted request may go without a first token, byte or progress report. Default: 300s.
    #[schemars(with = "Option<Span>")]
    pub(super) first_output_timeout: Option<Text>,
    /// How long a request may then go without another one; a client that does not read stops this clock. Default: 120s.
    #[schemars(with = "Option<Span>")]
    pub(super) output_stall_timeout: Option<Text>,
    /// How long a worker may be silent, which says that it is there every second, before it counts as stalled and is ended;
    /// at least 2s. Time in which the host itself was stopped is not counted. Default: 10s.
    #[schemars(with = "Option<Span>")]
    pub(super) worker_silence: Option<Text>,
    /// How long a stream may stand still because its client does not read. Default: 60s.
    #[schemars(with = "Option<Span>")]
    pub(super) stream_stall_timeout: Option<Text>,
    /// While an answer of server-sent events has nothing to say, its model's load included, a comment is sent this often, so that
    /// no proxy on the way gives up; a failure after the first one is an event, not a status. What an engine streams has them
    /// between its events. `forever` is never. Default: forever.
    #[schemars(with = "Option<Span>")]
    pub(super) sse_ping: Option<Text>,
    /// The longest `keep_alive` that a request may ask for; a longer one is cut to it. Default: forever.
    #[schemars(with = "Option<Span>")]
    pub(super) keep_alive: Option<Text>,
    /// The shortest: with one, no request unloads a model that others use. Default: 0.
    #[schemars(with = "Option<Span>")]
    pub(super) keep_alive_min: Option<Text>,
    /// How long a graceful stop waits for running requests. Default: 60s.
    #[schemars(with = "Option<Span>")]
    pub(super) drain_timeout: Option<Text>,
    /// Largest request body of any kind. Descriptions of pictures and sounds have at most 1MiB whatever it says, and commands
    /// 64KiB. Default: by endpoint, 4MiB for texts and 32MiB for files.
    #[schemars(with = "Option<Size>")]
    pub(super) body_limit: Option<Text>,
    /// Bytes of request bodies that the host holds together, from their arrival to the end of their answers; what does not
    /// fit is refused with 503. Default: by `body_limit`, 256MiB or twice that, whichever is more.
    #[schemars(with = "Option<Size>")]
    pub(super) bodies: Option<Text>,
    /// Connections at once. The longest silent ones make room for new ones. Takes effect at the next start. Default: by
    /// the system, 2048 or what its limit of open files leaves beside 256 for workers and files.
    #[schemars(with = "Option<Count>")]
    pub(super) connections: Option<Text>,
    /// Connections at once from one address (of IPv6: one /64). Behind a reverse proxy all come from one, so there it should
    /// be as many as `connections`. Takes effect at the next start. Default: by `connections`, half of them.
    #[schemars(with = "Option<Count>")]
    pub(super) connections_per_peer: Option<Text>,
    /// How long a file that an answer named by URL is kept. Default: 1h.
    #[schemars(with = "Option<Span>")]
    pub(super) artifact_ttl: Option<Text>,
    /// Bytes that such files may take together; the oldest make room. Default: 1GiB.
    #[schemars(with = "Option<Size>")]
    pub(super) artifact_bytes: Option<Text>,
    /// Jobs (`background: true`, `/v1/jobs`) that may wait or run before more are refused with 429. Default: 256.
    #[schemars(with = "Option<Count>")]
    pub(super) jobs: Option<Text>,
    /// Jobs that run at once, those of all models together. Default: 8.
    #[schemars(with = "Option<Count>")]
    pub(super) jobs_at_once: Option<Text>,
    /// How long the answer of a job is kept, and how long a job waits before it is given up. Default: 24h.
    #[schemars(with = "Option<Span>")]
    pub(super) job_ttl: Option<Text>,
    /// Bytes that the requests and answers of jobs may take together; the oldest answers make room. Default: 4GiB.
    #[schemars(with = "Option<Size>")]
    pub(super) job_bytes: Option<Text>,
}

/// What holds for every model that does not say otherwise.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Defaults")]
pub(super) struct RawDefaults {
    /// How long a request may wait while another model serves its own queue. Default: 60s.
    #[schemars(with = "Option<Span>")]
    pub(super) max_wait: Option<Text>,
    /// The least time a loaded model serves its own queue before it yields, at most `max_wait`. Default: 5s.
    #[schemars(with = "Option<Span>")]
    pub(super) quantum: Option<Text>,
    /// Idle time after which a model is unloaded, or `forever`. Default: forever.
    #[schemars(with = "Option<Span>")]
    pub(super) keep_alive: Option<Text>,
    /// The load deadline. Default: 120s.
    #[schemars(with = "Option<Span>")]
    pub(super) startup_time: Option<Text>,
    /// Most tokens of a text's answer to a request that does not say how many; the context may end it before. Default: 1024.
    #[schemars(with = "Option<Count>")]
    pub(super) default_max_tokens: Option<Text>,
}

/// An API key and what holds for whoever sends it.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Key")]
pub(super) struct KeyKeys {
    /// What logs call whoever sends it. Default: that of its variable, or its place in the list.
    #[serde(default)]
    pub(super) name: Option<Text>,
    /// The key as a text, or `env:NAME`: the keys in an environment variable, between commas. They share what is said here.
    #[serde(deserialize_with = "present")]
    pub(super) key: Text,
    /// What it opens: `use` to ask models and list them, `operate` to load, park and unload them and to look into the host,
    /// `metrics` to scrape it. A key that is a text alone opens everything. Default: use.
    #[serde(default)]
    pub(super) scope: Option<OneOrMany<Text>>,
    /// The models that there are for it, by name or alias; it is told that there are no others. Default: all.
    #[serde(default)]
    pub(super) models: Option<OneOrMany<Text>>,
    /// How often it may ask, like 60/min, which is also its largest burst; 429 beyond it. Default: without end.
    #[serde(default)]
    pub(super) rate: Option<Text>,
    /// Most of its requests at once; 429 beyond it. Default: without end.
    #[serde(default)]
    #[schemars(with = "Option<Count>")]
    pub(super) concurrency: Option<Text>,
    /// `interactive`, or `batch`: its requests are served after all interactive ones, whatever they say. Default: interactive.
    #[serde(default)]
    pub(super) class: Option<Text>,
}

/// An API key: alone, or a mapping.
#[derive(Debug)]
pub(super) struct RawKey(pub(super) KeyKeys);

/// A device and what may be used of it.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Device")]
pub(super) struct DeviceKeys {
    /// `cpu` or `cuda:N`.
    #[serde(deserialize_with = "present")]
    pub(super) id: Text,
    /// Bytes that models may hold together, such as 76GiB. Default: what is measured at start.
    #[serde(default)]
    #[schemars(with = "Option<Size>")]
    pub(super) memory: Option<Text>,
    /// Most models at once; 1 swaps on every change of model. Default: as many as fit.
    #[serde(default)]
    #[schemars(with = "Option<Count>")]
    pub(super) max_loaded: Option<Text>,
}

/// A device: its id alone, or a mapping.
#[derive(Debug)]
pub(super) struct RawDevice(pub(super) DeviceKeys);

/// A model.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Model")]
pub(super) struct RawModel {
    /// The model's name, where `models:` is a list.
    pub(super) name: Option<Text>,
    /// text, image, audio, embedding, speech, transcription or custom. Must be there.
    #[serde(rename = "type")]
    pub(super) kind: Option<Text>,
    /// Plugin id, optionally `@` and a semver range; or `auto`, for a text model: candle-llm where it serves the files, else an
    /// engine that does and is on this machine.
    pub(super) plugin: Option<Text>,
    /// The HTTP path it answers when a request names no model. Default: the one of its type.
    pub(super) endpoint: Option<Text>,
    /// Preferred among the models of one endpoint. Default: false.
    pub(super) default: bool,
    /// The load deadline, in seconds or with a unit. Default: that of `defaults`.
    #[schemars(with = "Option<Span>")]
    pub(super) startup_time: Option<Text>,
    /// Where the weights come from: one location, or mirrors of the same bytes, tried in order.
    pub(super) source: Option<OneOrMany<RawLocation>>,
    /// The files of a model of several parts, by role.
    #[schemars(with = "BTreeMap<String, OneOrMany<RawLocation>>")]
    pub(super) files: Option<BTreeMap<String, OneOrMany<RawLocation>>>,
    /// SHA-256 of the `source` file, in hexadecimal.
    pub(super) sha256: Option<Text>,
    /// The plugin's own options. Beside `plugin: auto`: those of candle-llm, or of the engine that is chosen.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub(super) options: Option<serde_json::Value>,
    /// Other names that requests may use.
    pub(super) aliases: Option<OneOrMany<Text>>,
    /// Idle time after which it is unloaded, or `forever`. Default: that of `defaults`.
    #[schemars(with = "Option<Span>")]
    pub(super) keep_alive: Option<Text>,
    /// Most tokens of an answer to a request that does not say how many. Default: that of `defaults`.
    #[schemars(with = "Option<Count>")]
    pub(super) default_max_tokens: Option<Text>,
    /// Never evicted for another model. Default: false.
    pub(super) pin: bool,
    /// Higher is evicted later. Default: 0.
    #[schemars(with = "Option<Count>")]
    pub(super) priority: Option<Text>,
    /// Most instances at once. More than the first are started when all are busy and memory is free, on the device with the
    /// fewest first. Default: 1.
    #[schemars(with = "Option<Count>")]
    pub(super) replicas: Option<Text>,
    /// Whether it may park, if its plugin can: give its device memory back and keep its worker. Default: true.
    pub(super) park: Option<bool>,
    /// Loaded at start. Default: false.
    pub(super) preload: bool,
    /// Bytes it may take on its device; overrides the plugin's plan.
    #[schemars(with = "Option<Size>")]
    pub(super) memory: Option<Text>,
    /// Devices it may use. Default: all of the kind that comes first in the list above among those its plugin supports.
    pub(super) devices: Option<OneOrMany<Text>>,
    /// A Python service to start, relative to models.yaml, to the folder above it, or to the working folder. Implies `plugin: vllm`.
    pub(super) service_script: Option<PathBuf>,
    /// A server to start: a text, or a list of its words. `{port}`, `{model_path}`, `{device}` and `{memory}` are filled in. Implies `plugin: vllm`.
    pub(super) command: Option<OneOrMany<Text>>,
    /// The port of the server that is started, which has no `replicas`. Default: one that is free.
    #[schemars(with = "Option<Count>")]
    pub(super) port: Option<Text>,
    /// The path at which it says that it is ready. Default: /health.
    pub(super) health: Option<Text>,
    /// Its environment, beside what it has anyway.
    pub(super) env: Option<BTreeMap<String, Text>>,
    /// What it needs of Python, as pip writes it. Default: a `requirements.txt` beside the script.
    pub(super) requirements: Option<OneOrMany<Text>>,
    /// Seconds from asking it to end to ending it, at most 25. Default: 10.
    #[schemars(with = "Option<Count>")]
    pub(super) stop_timeout: Option<Text>,
    /// Where a server that runs elsewhere answers: one address, or several that serve the same.
    pub(super) url: Option<OneOrMany<Text>>,
    /// The key that such a server asks for: a text, or `env:NAME`.
    pub(super) api_key: Option<Text>,
    /// Requests at once at each address. Default: 64.
    #[schemars(with = "Option<Count>")]
    pub(super) concurrency: Option<Text>,
    /// How often a request that had no answer is sent again, to another address if there is one. Default: 2.
    #[schemars(with = "Option<Count>")]
    pub(super) retries: Option<Text>,
    /// The name by which its engine knows the model, which requests are sent with. Default: the entry's name.
    pub(super) engine_model: Option<Text>,
    /// How an engine that answers before its work is done says that it works: comfyui, a1111, sd-server, or a mapping.
    pub(super) busy: Option<RawBusy>,
    /// Serve the engine's own paths below `/upstream/NAME`: `true`, or those that begin like one of a list. Default: false.
    pub(super) upstream_routes: Option<RawRoutes>,
}

/// Where a file comes from: exactly one of `hf`, `pip`, `url`, `path` and `parts`.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Location")]
pub(super) struct RawLocation {
    /// A Hugging Face repository: `org/name`.
    pub(super) hf: Option<Text>,
    /// A Python package that carries the file: `name==version`.
    pub(super) pip: Option<Text>,
    /// A plain URL.
    pub(super) url: Option<Text>,
    /// A file on this machine, relative to models.yaml. Beside mirrors: where they are put.
    pub(super) path: Option<PathBuf>,
    /// Pieces in other places, whose bytes one after the other are the file.
    pub(super) parts: Option<Vec<RawLocation>>,
    /// The file inside the repository or wheel, `a.zip!/b` if it is in a zip inside the wheel. Beside `parts`: the name of the whole.
    pub(super) file: Option<Text>,
    /// Branch, tag or commit of the repository. Default: main.
    pub(super) revision: Option<Text>,
    /// SHA-256 of the file, in hexadecimal.
    pub(super) sha256: Option<Text>,
}

/// A scalar as it was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text(pub(super) String);

/// One value, or a list of them.
#[derive(Debug)]
pub(super) struct OneOrMany<T> {
    pub(super) items: Vec<T>,
    /// Whether it was typed as a list.
    pub(super) list: bool,
}

/// Addresses to listen on; a port alone is one, too.
#[derive(Debug)]
pub(super) struct RawListen(pub(super) Vec<Text>);

/// Entries in the order they were typed; a name may occur twice.
#[derive(Debug, Default)]
pub(super) struct RawModels {
    pub(super) entries: Vec<(Option<String>, RawModel)>,
    /// Whether it was typed as a list.
    pub(super) list: bool,
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl<'de> Visitor<'de> for Scalar {
            type Value = Text;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a number")
            }
            fn visit_none<E: Error>(self) -> Result<Text, E> {
                Err(E::custom("nothing stands here, where a text or a number is expected"))
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Text, D::Error> {
                // As a text even where it looks like a number: `1.10` is not `1.1`.
                deserializer.deserialize_str(self)
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Text, E> {
                Ok(Text(value.to_owned()))
            }
        }
        deserializer.deserialize_option(Scalar)
    }
}

/// A value that must be there: one that is absent is not one that is empty.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
    Text::deserialize(deserializer)
}

/// Where a value may be of several shapes, the parser has made a number of what looks like one.
const QUOTES: &str =
    "a number stands here, of which only the value is known, not how it was written: put it into quotes";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = OneOrMany<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list of them")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(OneOrMany { items, list: true })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                one(T::deserialize(MapAccessDeserializer::new(map)))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
                one(T::deserialize(value.into_deserializer()))
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
                Err(E::custom(QUOTES))
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
                Err(E::custom(QUOTES))
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
                Err(E::custom(QUOTES))
            }
        }
        fn one<T, E>(item: Result<T, E>) -> Result<OneOrMany<T>, E> {
            item.map(|item| OneOrMany { items: vec![item], list: false })
        }
        deserializer.deserialize_any(Items(PhantomData))
    }
}

impl<'de> Deserialize<'de> for RawListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Addresses;
        impl<'de> Visitor<'de> for Addresses {
            type Value = RawListen;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address and a port, or a list of such")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawListen, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(RawListen(items))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<RawListen, E> {
                Ok(RawListen(vec![Text(value.to_owned())]))
            }
            fn visit_u64<E: Error>(self, port: u64) -> Result<RawListen, E> {
                Ok(RawListen(vec![Text(port.to_string())]))
            }
            fn visit_i64<E: Error>(self, port: i64) -> Result<RawListen, E> {
                Ok(RawListen(vec![Text(port.to_string())]))
            }
        }
        deserializer.deserialize_any(Addresses)
    }
}

impl<'de> Deserialize<'de> for RawDevice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Device;
        impl<'de> Visitor<'de> for Device {
            type Value = RawDevice;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto`, a device id, or a mapping with `id`, `memory`, `max_loaded`")
            }
            fn visit_str<E: Error>(self, id: &str) -> Result<RawDevice, E> {
                Ok(RawDevice(DeviceKeys { id: Text(id.to_owned()), ..DeviceKeys::default() }))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawDevice, A::Error> {
                DeviceKeys::deserialize(MapAccessDeserializer::new(map)).map(RawDevice)
            }
        }
        deserializer.deserialize_any(Device)
    }
}

impl<'de> Deserialize<'de> for RawKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl<'de> Visitor<'de> for Key {
            type Value = RawKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an API key in quotes, or a mapping with `key`")
            }
            fn visit_str<E: Error>(self, key: &str) -> Result<RawKey, E> {
                // Alone it is the operator's own.
                let scopes = Scope::NAMES.iter().map(|name| Text((*name).to_owned())).collect();
                let scope = Some(OneOrMany { items: scopes, list: true });
                Ok(RawKey(KeyKeys { key: Text(key.to_owned()), scope, ..KeyKeys::default() }))
            }
            fn visit_u64<E: Error>(self, _: u64) -> Result<RawKey, E> {
                Err(E::custom(QUOTES))
            }
            fn visit_i64<E: Error>(self, _: i64) -> Result<RawKey, E> {
                Err(E::custom(QUOTES))
            }
            fn visit_f64<E: Error>(self, _: f64) -> Result<RawKey, E> {
                Err(E::custom(QUOTES))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawKey, A::Error> {
                KeyKeys::deserialize(MapAccessDeserializer::new(map)).map(RawKey)
            }
        }
        deserializer.deserialize_any(Key)
    }
}

impl<'de> Deserialize<'de> for RawModels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawModels;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("models by name, or a list of models")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawModels, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(name), model)) = map.next_entry::<Text, Option<RawModel>>()? {
                    entries.push((Some(name), model.unwrap_or_default()));
                }
                Ok(RawModels { entries, list: false })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawModels, A::Error> {
                let mut entries = Vec::new();
                while let Some(model) = seq.next_element::<RawModel>()? {
                    entries.push((model.name.as_ref().map(|name| name.0.clone()), model));
                }
                Ok(RawModels { entries, list: true })
            }
            fn visit_unit<E: Error>(self) -> Result<RawModels, E> {
                Ok(RawModels::default())
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

impl JsonSchema for Text {
    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "number"]})
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [generator.subschema_for::<T>(), generator.subschema_for::<Vec<T>>()]})
    }
}

impl JsonSchema for RawListen {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Listen".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [generator.subschema_for::<Text>(), generator.subschema_for::<Vec<Text>>()]})
    }
}

impl JsonSchema for RawKey {
    fn schema_name() -> Cow<'static, str> {
        "ApiKey".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "string"}, generator.subschema_for::<KeyKeys>()]})
    }
}

impl JsonSchema for RawDevice {
    fn schema_name() -> Cow<'static, str> {
        "DeviceOrId".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "string"}, generator.subschema_for::<DeviceKeys>()]})
    }
}

impl JsonSchema for RawModels {
    fn schema_name() -> Cow<'static, str> {
        "Models".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            generator.subschema_for::<BTreeMap<String, RawModel>>(),
            generator.subschema_for::<Vec<RawModel>>(),
        ]})
    }
}
