//! What a valid configuration says that its author can hardly mean.

use std::collections::BTreeMap;

use super::resolve::only_device;
use super::resolved::{Config, ModelConfig};
use crate::domain::{Device, some_names};

impl Config {
    /// Sentences for the operator, each with the key it is about.
    pub fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut preloaded: BTreeMap<Device, Vec<&ModelConfig>> = BTreeMap::new();
        for model in self.models.values().filter(|model| model.preload) {
            if let Some(device) = only_device(model, &self.devices) {
                preloaded.entry(device).or_default().push(model);
            }
        }
        for device in &self.devices {
            let preloaded = preloaded.remove(&device.id).unwrap_or_default();
            let bytes =
                preloaded.iter().filter_map(|model| model.memory).map(|size| size.0).fold(0, u64::saturating_add);
            let names = names(&preloaded);
            if let Some(most) = device.max_loaded.filter(|most| preloaded.len() > *most as usize) {
                found.push(format!(
                    "models: `preload: true` is said of {names}, but {} holds {most} at once (`max_loaded`): they evict one another at start",
                    device.id
                ));
            } else if let Some(budget) = device.memory.filter(|budget| bytes > budget.0) {
                found.push(format!(
                    "models: `preload: true` is said of {names}, but together they need more than the {budget} of {}: they evict one another at start",
                    device.id
                ));
            }
        }
        if self.api_keys.is_empty() && self.cors.allows_all() {
            found.push(
                "cors.origins: `*` without `api_keys`: every page that a browser here shows may use this host"
                    .to_owned(),
            );
        }
        let mut weak: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for key in &self.api_keys {
            if let Some(weakness) = key.weakness() {
                weak.entry(weakness).or_default().push(&key.name);
            }
        }
        found.extend(weak.into_iter().map(|(weakness, keys)| match keys.as_slice() {
            [name] => format!("api_keys: the key of `{name}` {weakness}"),
            several => {
                format!("api_keys: each of {} keys ({}) {weakness}", keys.len(), some_names(several.iter().copied()))
            }
        }));
        for model in self.models.values().filter(|model| model.preload && !model.pin) {
            if model.keep_alive.is_some_and(|keep| keep.is_zero()) {
                found.push(format!(
                    "models.{}: `preload: true` with `keep_alive: 0` loads it only to unload it",
                    model.id
                ));
            }
        }
        found
    }
}

fn names(models: &[&ModelConfig]) -> String {
    some_names(models.iter().map(|model| model.id.as_str()))
}
