//! What a models.yaml is to say, wherever it came from: names made usable and told apart, checked by the host's own reader, and
//! written with its comments. It knows no source.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_yaml::Value;

use super::yaml;
use crate::config::{self, ConfigError, Env, Selection};

/// Longest name that a migrated model gets, bytes.
const NAME_BYTES_MAX: usize = 128;
/// What stands for a key of an environment variable while the file is checked: its value is nobody's business here.
const STAND_IN: &str = "stands-in-for-a-key";

/// A models.yaml that is not written yet.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Where it came from, as the end of a sentence.
    pub(super) origin: String,
    /// What is not carried over of the whole, or not as it was.
    pub(super) notes: Vec<String>,
    /// Keys beside `models:`, in their order.
    pub(super) settings: Vec<(String, Value)>,
    /// The models, in their order.
    pub(super) entries: Vec<Entry>,
    /// Environment variables that it names as `env:NAME`.
    pub(super) variables: BTreeSet<String>,
}

/// An entry of `models:`.
#[derive(Debug, Default)]
pub(in crate::cli) struct Entry {
    /// As the source has it.
    pub(in crate::cli) name: String,
    /// Other names, as the source has them.
    pub(in crate::cli) aliases: Vec<String>,
    /// What is not carried over of it, or not as it was.
    pub(in crate::cli) notes: Vec<String>,
    /// What is good to know beside it, and no loss.
    pub(in crate::cli) remarks: Vec<String>,
    /// Its keys in their order, `aliases` not among them.
    settings: Vec<Setting>,
    /// Why the host takes no such entry.
    refusal: Option<String>,
}

/// A key of an entry.
#[derive(Debug)]
struct Setting {
    key: &'static str,
    value: Value,
    comment: Option<String>,
}

impl Entry {
    /// An entry without keys.
    pub(in crate::cli) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Adds a key, or replaces its value where it stands.
    pub(in crate::cli) fn set(&mut self, key: &'static str, value: Value) {
        match self.settings.iter_mut().find(|setting| setting.key == key) {
            Some(setting) => setting.value = value,
            None => self.settings.push(Setting { key, value, comment: None }),
        }
    }

    /// Adds a key with a comment above it.
    pub(in crate::cli) fn set_with(&mut self, key: &'static str, value: Value, comment: String) {
        self.settings.push(Setting { key, value, comment: Some(comment) });
    }

    /// Adds an option of its plugin.
    pub(in crate::cli) fn option(&mut self, name: &str, value: Value) {
        if !self.has("options") {
            self.set("options", yaml::mapping::<String>([]));
        }
        let options = self.settings.iter_mut().find(|setting| setting.key == "options");
        if let Some(Value::Mapping(options)) = options.map(|setting| &mut setting.value) {
            options.insert(yaml::text(name), value);
        }
    }

    /// Whether the key is there.
    pub(in crate::cli) fn has(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key)
    }

    /// The value of a key.
    pub(in crate::cli) fn value(&self, key: &str) -> Option<&Value> {
        self.settings.iter().find(|setting| setting.key == key).map(|setting| &setting.value)
    }

    /// Has it written as a comment.
    pub(in crate::cli) fn refuse(&mut self, why: String) {
        self.refusal = Some(why);
    }

    /// Says that something is not carried over, or not as it was.
    pub(in crate::cli) fn note(&mut self, sentence: impl Into<String>) {
        self.notes.push(sentence.into());
    }
}

impl Plan {
    /// Makes names usable and each of them one model's, and has every entry checked by the host's own reader: one that it
    /// refuses is written as a comment, with the reason.
    pub(super) fn settle(&mut self, file: &Path) {
        self.name_all();
        let env = self.checking_env();
        let (head, entries) = (self.head(), std::mem::take(&mut self.entries));
        if let Err(error) = check(&head, file, &env) {
            self.notes.push(format!("what stands beside `models:` is left out, because {}", told(&error)));
            self.settings.clear();
        }
        self.entries = entries;
        for entry in self.entries.iter_mut().filter(|entry| entry.refusal.is_none()) {
            let text = format!("models:\n{}", entry.text());
            entry.refusal = check(&text, file, &env).err().map(|error| told(&error));
        }
    }

    /// The whole file.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let origin = format!("Written by `aihost migrate` from {}.", self.origin);
        yaml::comment(&mut out, 0, &format!("{origin} `aihost check` says whether it is right."));
        if !self.notes.is_empty() {
            yaml::comment(&mut out, 0, "");
            yaml::comment(&mut out, 0, "Not carried over, or not as it was:");
            self.notes.iter().for_each(|note| yaml::comment(&mut out, 0, &format!("- {note}")));
        }
        out.push('\n');
        for (key, value) in &self.settings {
            yaml::key(&mut out, 0, key, value);
        }
        if !self.settings.is_empty() {
            out.push('\n');
        }
        let is_empty = self.entries.iter().all(|entry| entry.refusal.is_some());
        out += if is_empty { "models: {}\n" } else { "models:\n" };
        let entries: Vec<String> = self.entries.iter().map(Entry::text).collect();
        out + &entries.join("\n")
    }

    /// Everything that is not carried over, or not as it was, a line each.
    pub(super) fn told(&self) -> Vec<String> {
        let entries = self.entries.iter().flat_map(|entry| {
            let refused = entry.refusal.iter().map(|why| format!("it is a comment, because {why}"));
            refused.chain(entry.notes.iter().cloned()).map(|note| format!("{}: {note}", entry.name))
        });
        self.notes.iter().cloned().chain(entries).collect()
    }

    /// Whether the host's own reader takes what is written.
    pub(super) fn check(&self, file: &Path) -> Result<(), ConfigError> {
        check(&self.text(), file, &self.checking_env())
    }

    /// How many models are in force.
    pub(super) fn models(&self) -> usize {
        self.entries.iter().filter(|entry| entry.refusal.is_none()).count()
    }

    /// An environment in which every key that the file names is there.
    fn checking_env(&self) -> Env {
        let values: Vec<(&String, String)> =
            self.variables.iter().map(|name| (name, format!("{STAND_IN}-{name}"))).collect();
        Env::with("/", values.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    /// The file without its models.
    fn head(&self) -> String {
        let mut out = String::from("models: {}\n");
        self.settings.iter().for_each(|(key, value)| yaml::key(&mut out, 0, key, value));
        out
    }

    fn name_all(&mut self) {
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
        for entry in &mut self.entries {
            let usable = usable(&entry.name);
            let free = free(&usable, numbers.entry(usable.clone()).or_insert(1), |name| owners.contains_key(name));
            if free != entry.name {
                let why = if free == usable { "is not usable as a model's name here" } else { "names two models" };
                entry.notes.insert(0, format!("`{}` {why}; it is `{free}`", entry.name));
            }
            owners.insert(free.clone(), free.clone());
            entry.name = free;
        }
        for entry in &mut self.entries {
            let mut kept = Vec::new();
            for alias in std::mem::take(&mut entry.aliases) {
                if usable(&alias) != alias {
                    entry.notes.push(format!("the alias `{alias}` is not usable as a model's name here, and left out"));
                    continue;
                }
                match owners.get(&alias) {
                    Some(owner) if *owner == entry.name => {}
                    Some(owner) => {
                        entry.notes.push(format!("the alias `{alias}` is left out: it is a name of `{owner}`"));
                    }
                    None => {
                        owners.insert(alias.clone(), entry.name.clone());
                        kept.push(alias);
                    }
                }
            }
            entry.aliases = kept;
        }
    }
}

impl Entry {
    /// The entry with what is said about it above it, as lines of `models:`.
    pub(in crate::cli) fn text(&self) -> String {
        let mut out = String::new();
        self.notes.iter().chain(&self.remarks).for_each(|words| yaml::comment(&mut out, 2, words));
        if let Some(why) = &self.refusal {
            yaml::comment(&mut out, 2, &format!("Left as a comment, because {why}"));
        }
        let mut body = String::new();
        yaml::key(&mut body, 2, &self.name, &Value::Null);
        let mut body = body.trim_end().trim_end_matches(" null").to_owned() + "\n";
        for (position, setting) in self.settings.iter().enumerate() {
            if let Some(comment) = &setting.comment {
                yaml::comment(&mut body, 4, comment);
            }
            yaml::key(&mut body, 4, setting.key, &setting.value);
            if position == 0 && !self.aliases.is_empty() {
                yaml::key(&mut body, 4, "aliases", &yaml::texts(self.aliases.iter().cloned()));
            }
        }
        match self.refusal {
            None => out + &body,
            Some(_) => body.lines().fold(out, |out, line| out + "  # " + line.get(2..).unwrap_or_default() + "\n"),
        }
    }
}

fn check(text: &str, file: &Path, env: &Env) -> Result<(), ConfigError> {
    config::parse(text, file, &Selection::default(), env).map(drop)
}

/// What is wrong, without the place in a file that is not there.
fn told(error: &ConfigError) -> String {
    let problems = error.problems.iter().map(|problem| problem.to_string().replace("\nhint: ", "; "));
    problems.collect::<Vec<_>>().join("; ")
}

/// The name with what the host takes in names.
pub(super) fn usable(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-:/@".contains(c) { c } else { '-' };
    let name: String = name.trim().chars().map(plain).take(NAME_BYTES_MAX).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

/// The name, or the first of its numbered ones that nobody has. `last`: the last number that was given.
fn free(name: &str, last: &mut usize, is_taken: impl Fn(&str) -> bool) -> String {
    let mut free = name.to_owned();
    while is_taken(&free) {
        *last += 1;
        let end = format!("-{last}");
        free = format!("{}{end}", name.get(..NAME_BYTES_MAX - end.len()).unwrap_or(name));
    }
    free
}

#[cfg(test)]
impl Plan {
    /// Changes every text in it: a test's folder has another name each time.
    pub(super) fn change(&mut self, change: impl Fn(&str) -> String) {
        let text = |text: &mut String| *text = change(text);
        text(&mut self.origin);
        self.notes.iter_mut().for_each(text);
        for entry in &mut self.entries {
            entry.notes.iter_mut().chain(&mut entry.remarks).chain(&mut entry.refusal).for_each(text);
            for setting in &mut entry.settings {
                setting.comment.iter_mut().for_each(text);
                change_value(&mut setting.value, &change);
            }
        }
    }
}

#[cfg(test)]
fn change_value(value: &mut Value, change: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Sequence(items) => items.iter_mut().for_each(|item| change_value(item, change)),
        Value::Mapping(pairs) => pairs.iter_mut().for_each(|(_, value)| change_value(value, change)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, aliases: &[&str]) -> Entry {
        let mut entry = Entry::named(name);
        entry.aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        entry.set("type", yaml::text("text"));
        entry.set("command", yaml::texts(["serve", "{port}"]));
        entry
    }

    fn settled(entries: Vec<Entry>) -> Plan {
        let mut plan = Plan { origin: "a test".into(), entries, ..Plan::default() };
        plan.settle(Path::new("/m.yaml"));
        plan.check(Path::new("/m.yaml")).unwrap_or_else(|error| panic!("{error}\n{}", plan.text()));
        plan
    }

    #[test]
    fn each_name_is_one_models_and_what_is_left_out_is_told() {
        let plan = settled(vec![entry("a b", &["x", "a b"]), entry("a-b", &["x", "y"]), entry("c", &["y", "c", "é"])]);
        let names: Vec<&str> = plan.entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a-b", "a-b-2", "c"]);
        assert_eq!(plan.told().len(), 6, "{:?}", plan.told());
    }

    #[test]
    fn an_entry_that_the_host_refuses_is_a_comment_with_the_reason() {
        let mut wrong = entry("wrong", &[]);
        wrong.set("health", yaml::text("no path"));
        let plan = settled(vec![wrong, entry("right", &[])]);
        assert_eq!(plan.models(), 1);
        assert!(plan.told()[0].contains("is not an HTTP path"), "{:?}", plan.told());
        assert!(plan.text().contains("  # wrong:\n  #   type: text\n"), "{}", plan.text());
    }

    #[test]
    fn keys_in_variables_need_no_variable_to_be_checked() {
        let mut plan = Plan { entries: vec![entry("a", &[])], ..Plan::default() };
        plan.settings.push(("api_keys".into(), yaml::texts(["env:KEY_1", "env:KEY_2"])));
        plan.variables.extend(["KEY_1".to_owned(), "KEY_2".to_owned()]);
        plan.settle(Path::new("/m.yaml"));
        assert!(plan.told().is_empty() && plan.text().contains("api_keys: [\"env:KEY_1\""), "{}", plan.text());
    }
}
