//! The text of a first models.yaml, from what this machine has. It writes nothing and looks nowhere itself.

use crate::domain::{ByteSize, Device};
use crate::plugin::PluginFile;

/// The plugin whose models make a useful start, and which a release carries.
pub(super) const FIRST_PLUGIN: &str = "candle-llm";
/// The model that its starter names.
pub(super) const FIRST_MODEL: &str = "smollm2";

/// What an entry looks like that a plugin of ours serves, by the plugin's id.
const STARTERS: [(&str, &str); 3] = [
    (FIRST_PLUGIN, include_str!("starters/candle-llm.yaml")),
    ("musicgen", include_str!("starters/musicgen.yaml")),
    ("flux", include_str!("starters/flux.yaml")),
];
/// What one looks like for a plugin of somebody else.
const OTHER: &str = include_str!("starters/other.yaml");

const HEAD: &str = "\
# Models, how they are loaded, and where the host listens. `aihost check` says whether it is right and how requests are routed.
# Sizes are written like 20GiB, durations like 60s, 5m or forever; paths are relative to this file.

# On another address than loopback the host asks for API keys: `api_keys: env:AIHOST_API_KEYS`.
listen: 127.0.0.1:9000
";

/// What `aihost init` found.
pub(super) struct Machine<'a> {
    /// Devices with the bytes that models may take of them, `None` where they cannot be measured; the CPU last.
    pub(super) devices: Vec<(Device, Option<ByteSize>)>,
    /// Plugins that this host can open.
    pub(super) plugins: Vec<&'a PluginFile>,
}

impl Machine<'_> {
    /// Whether the first model can be served as soon as its file is here: its plugin is, or there is none at all yet.
    pub(super) fn starts_with_first_model(&self) -> bool {
        self.plugins.is_empty() || self.plugins.iter().any(|plugin| plugin.manifest.id == FIRST_PLUGIN)
    }

    /// The text of a models.yaml for this machine.
    pub(super) fn models_yaml(&self) -> String {
        let entries = self.entries();
        let active = if self.starts_with_first_model() { "models:" } else { "models: {}   # in place of {}:" };
        format!("{HEAD}\n{}devices: auto\n\n{active}\n{}", self.devices(), entries.join("\n"))
    }

    fn devices(&self) -> String {
        let mut text = String::from("# `auto` is what the machine has. Seen when this file was written:\n");
        for (id, budget) in &self.devices {
            let room = budget.map_or_else(|| "not measured".to_owned(), |bytes| format!("{bytes} for models"));
            let kind = id.kind();
            let runs: Vec<&str> = (self.plugins.iter())
                .filter(|plugin| plugin.runs_on(kind))
                .map(|plugin| plugin.manifest.id.as_str())
                .collect();
            let used = match (self.plugins.is_empty(), runs.is_empty()) {
                (true, _) => String::new(),
                (false, true) => "; no plugin here runs on it".to_owned(),
                (false, false) => format!("; runs {}", runs.join(", ")),
            };
            text += &format!("#   {id}: {room}{used}\n");
        }
        text + "# `max_loaded: 1` on a device, [{id: cpu, max_loaded: 1}], swaps on every change of model.\n"
    }

    /// One text for each plugin, those that are served at once first; where no plugin is found, what a release carries.
    fn entries(&self) -> Vec<String> {
        if self.plugins.is_empty() {
            return STARTERS.iter().map(|(_, text)| (*text).to_owned()).collect();
        }
        let starter = |id: &str| STARTERS.iter().find(|(plugin, _)| *plugin == id).map(|(_, text)| (*text).to_owned());
        let known = STARTERS.iter().filter(|(id, _)| self.plugins.iter().any(|plugin| plugin.manifest.id == *id));
        let others =
            self.plugins.iter().filter(|plugin| starter(&plugin.manifest.id).is_none()).map(|plugin| other(plugin));
        known.map(|(_, text)| (*text).to_owned()).chain(others).collect()
    }
}

fn other(plugin: &PluginFile) -> String {
    let id = &plugin.manifest.id;
    let name = id.rsplit('/').next().unwrap_or(id);
    let kind = plugin.manifest.kinds.first().map_or("text", String::as_str);
    OTHER.replace("{id}", id).replace("{name}", name).replace("{kind}", kind)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Env, Selection, parse};

    fn plugin(id: &str, kind: &str, devices: &str) -> PluginFile {
        let json = format!(r#"{{"id":"{id}","version":"1.0.0","kinds":["{kind}"],"devices":{devices}}}"#);
        let manifest = aihost_plugin_api::abi::Manifest::parse(json.as_bytes()).unwrap();
        PluginFile {
            manifest,
            source: "a".into(),
            copy: Default::default(),
            sha256: String::new(),
            library_folders: Vec::new(),
        }
    }

    fn written(devices: &[(&str, u64)], plugins: &[PluginFile]) -> String {
        let devices = devices.iter().map(|(id, bytes)| (id.parse().unwrap(), Some(ByteSize(*bytes)))).collect();
        Machine { devices, plugins: plugins.iter().collect() }.models_yaml()
    }

    fn models(text: &str) -> Vec<String> {
        let config = parse(text, Path::new("/here/models.yaml"), &Selection::default(), &Env::default());
        config.unwrap_or_else(|error| panic!("{error}\n{text}")).models.into_keys().map(|id| id.to_string()).collect()
    }

    /// The text with its examples in force: each follows a comment without words.
    fn uncommented(text: &str) -> String {
        let mut example = false;
        let mut line = |line: &str| {
            example = line.starts_with("  #") && (example || line == "  #");
            match line.strip_prefix("  # ").filter(|_| example) {
                Some(entry) => format!("  {entry}\n"),
                None => format!("{}\n", line.replace("{}   #", "#")),
            }
        };
        text.lines().map(&mut line).collect()
    }

    #[test]
    fn a_machine_without_plugins_starts_with_what_a_release_serves() {
        let text = written(&[("cpu", 8 << 30)], &[]);
        assert_eq!(models(&text), ["smollm2"]);
        assert!(text.contains("devices: auto") && text.contains("cpu: 8.0 GiB for models\n"), "{text}");
    }

    #[test]
    fn a_card_is_named_with_what_runs_on_it() {
        let plugins = [plugin("candle-llm", "text", r#"["cpu"]"#), plugin("flux", "image", r#"["cpu","cuda"]"#)];
        let text = written(&[("cuda:0", 76 << 30), ("cpu", 8 << 30)], &plugins);
        assert!(text.contains("cuda:0: 76.0 GiB for models; runs flux\n"), "{text}");
        assert!(!text.contains("600MiB") && !text.contains("musicgen"), "{text}");
        let text = written(&[("cuda:0", 76 << 30)], &plugins[..1]);
        assert!(text.contains("cuda:0: 76.0 GiB for models; no plugin here runs on it\n"), "{text}");
    }

    #[test]
    fn a_plugin_of_somebody_else_gets_an_example_and_nothing_that_it_does_not_serve() {
        let text = written(&[("cpu", 1 << 30)], &[plugin("acme/parrot", "text", r#"["cpu"]"#)]);
        assert_eq!(models(&text), [""; 0]);
        assert!(text.contains("plugin: acme/parrot") && !text.contains("smollm2"), "{text}");
        assert_eq!(models(&uncommented(&text)), ["parrot"]);
    }

    #[test]
    fn every_example_is_valid_once_it_is_in_force() {
        assert_eq!(models(&uncommented(&written(&[("cpu", 1 << 30)], &[]))), ["flux", "music", "smollm2"]);
    }

    #[test]
    fn the_first_model_is_the_one_of_the_repository() {
        let theirs = include_str!("../../../../models.yaml");
        for line in STARTERS[0]
            .1
            .lines()
            .filter(|line| line.contains("sha256:") || line.contains("{hf:") || line.contains("{pip:"))
        {
            assert!(theirs.contains(line.trim()), "{line}");
        }
        assert!(STARTERS[0].1.contains(&format!("  {FIRST_MODEL}:\n")));
    }
}
