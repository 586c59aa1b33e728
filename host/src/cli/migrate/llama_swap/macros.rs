//! What stands for something else in llama-swap's YAML: `${env.NAME}`, then macros, which may hold macros that were said before
//! them, those of a model before those of the file. `${PORT}` and `${PID}` stay: they are known when a process is started.

use std::collections::BTreeSet;

use serde_yaml::{Mapping, Value};

use crate::cli::migrate::yaml::plain_text;
use crate::config::Env;

/// How a variable of the environment begins.
const VARIABLE: &str = "${env.";
/// The macro that llama-swap itself has for each model.
const MODEL_ID: &str = "MODEL_ID";

/// Macros in the order in which they were said.
#[derive(Clone, Debug, Default)]
pub(super) struct Macros(Vec<(String, Value)>);

impl Macros {
    /// Those of the file.
    pub(super) fn of(typed: Option<Value>) -> Self {
        let pairs = match typed {
            Some(Value::Mapping(pairs)) => pairs,
            _ => Mapping::new(),
        };
        Self(pairs.into_iter().map(|(name, value)| (plain_text(&name), value)).collect())
    }

    /// Those that hold within a model: its own stand where the file's of that name stood.
    pub(super) fn for_model(&self, model: &str, own: Option<Value>) -> Self {
        let mut all = vec![(MODEL_ID.to_owned(), Value::from(model))];
        all.extend(self.0.iter().cloned());
        for (name, value) in Self::of(own).0 {
            match all.iter_mut().find(|(other, _)| *other == name) {
                Some(there) => there.1 = value,
                None => all.push((name, value)),
            }
        }
        Self(all)
    }

    /// The value with what macros stand for: the last one first, so that it may hold those before it.
    pub(super) fn expand(&self, value: Value) -> Value {
        self.0.iter().rev().fold(value, |value, (name, meant)| replace(value, &format!("${{{name}}}"), meant))
    }
}

/// One macro in all of a value. A text that is nothing else becomes what it stands for, of whatever type.
fn replace(value: Value, slug: &str, meant: &Value) -> Value {
    match value {
        Value::String(text) if text == slug => meant.clone(),
        Value::String(text) if text.contains(slug) => Value::String(text.replace(slug, &plain_text(meant))),
        Value::Sequence(items) => items.into_iter().map(|item| replace(item, slug, meant)).collect(),
        Value::Mapping(pairs) => Value::Mapping(
            pairs
                .into_iter()
                .map(|(key, value)| {
                    let key = match key {
                        Value::String(key) => Value::String(key.replace(slug, &plain_text(meant))),
                        other => other,
                    };
                    (key, replace(value, slug, meant))
                })
                .collect(),
        ),
        other => other,
    }
}

/// Puts the values of variables where they are named, and notes which were.
///
/// # Errors
/// One that is named is not set.
pub(super) fn expand_variables(value: &mut Value, env: &Env, used: &mut BTreeSet<String>) -> Result<(), String> {
    match value {
        Value::String(text) => *text = with_variables(text, env, used)?,
        Value::Sequence(items) => {
            for item in items {
                expand_variables(item, env, used)?;
            }
        }
        Value::Mapping(pairs) => {
            for (_, value) in pairs.iter_mut() {
                expand_variables(value, env, used)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn with_variables(text: &str, env: &Env, used: &mut BTreeSet<String>) -> Result<String, String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(VARIABLE) {
        let (before, slug) = rest.split_at(at);
        out += before;
        let Some(name) = variable(slug) else {
            out += VARIABLE;
            rest = &slug[VARIABLE.len()..];
            continue;
        };
        out += env.named(name).ok_or_else(|| name.to_owned())?;
        used.insert(name.to_owned());
        rest = &slug[VARIABLE.len() + name.len() + 1..];
    }
    Ok(out + rest)
}

/// The name of the variable with which a text begins.
fn variable(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix(VARIABLE)?.split_once('}')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then_some(name)
}

/// The name of the variable that a text is, and nothing else.
pub(super) fn only_variable(value: &Value) -> Option<String> {
    let text = value.as_str()?.trim();
    let name = variable(text)?;
    (text.len() == VARIABLE.len() + name.len() + 1).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn macros_hold_macros_and_keep_types() {
        let all = Macros::of(Some(yaml("{ctx: 4096, args: '--ctx-size ${ctx}', both: '${args} --port ${PORT}'}")));
        let model = all.for_model("m", Some(yaml("{ctx: 8192, temp: 0.7}")));
        let typed = yaml("{cmd: 'x ${both} -t ${temp}', ttl: '${ctx}', '${MODEL_ID}:high': [a, '${MODEL_ID}']}");
        assert_eq!(
            model.expand(typed),
            yaml("{cmd: 'x --ctx-size 8192 --port ${PORT} -t 0.7', ttl: 8192, 'm:high': [a, m]}")
        );
    }

    #[test]
    fn variables_are_written_out_or_missed_by_name() {
        let env = Env::with("/", [("HOME", "/h"), ("K", "v")]);
        let mut used = BTreeSet::new();
        let mut value = yaml("{a: ['${env.HOME}/m', '${env.K}${env.HOME}'], b: '${env.}${env.a-b}$'}");
        expand_variables(&mut value, &env, &mut used).unwrap();
        assert_eq!(value, yaml("{a: [/h/m, v/h], b: '${env.}${env.a-b}$'}"));
        assert_eq!(used.len(), 2);
        assert_eq!(expand_variables(&mut yaml("'${env.NONE}'"), &env, &mut used).unwrap_err(), "NONE");
        assert_eq!(only_variable(&yaml("'${env.K}'")).as_deref(), Some("K"));
        assert_eq!(only_variable(&yaml("'x${env.K}'")), None);
    }
}
