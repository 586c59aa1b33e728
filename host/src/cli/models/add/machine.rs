//! What this machine may give a model: its devices with their budgets, by configuration or measured, and which plugin runs on which.

use crate::config::{Config, Env};
use crate::device;
use crate::domain::{ByteSize, Device};
use crate::plugin::Registry;

/// The machine as far as it decides.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// Devices in order of preference, with the bytes that models may take.
    devices: Vec<(Device, ByteSize)>,
    registry: Registry,
    has_llama_server: bool,
    has_vllm: bool,
}

impl Machine {
    /// As it is configured, else as it is.
    pub(super) fn of(config: &Config, env: &Env) -> Self {
        let budget = |device: &crate::config::DeviceConfig| {
            device.memory.or_else(|| device::measured_budget(device.id).map(ByteSize)).map(|bytes| (device.id, bytes))
        };
        let paths = &config.paths;
        Self {
            devices: config.devices.iter().filter_map(budget).collect(),
            // A model can be added before there is a plugin that serves it.
            registry: Registry::scan(&paths.plugin_folders(), &paths.state, paths.sharing).unwrap_or_default(),
            has_llama_server: env.has_program("llama-server"),
            has_vllm: env.has_program("vllm"),
        }
    }

    /// The devices that a plugin runs on; all where it is not here to be asked.
    pub(super) fn devices_of(&self, plugin: &str) -> impl Iterator<Item = (Device, ByteSize)> {
        let found = self.registry.find(plugin, None).ok();
        self.devices
            .iter()
            .copied()
            .filter(move |(device, _)| found.as_ref().is_none_or(|plugin| plugin.runs_on(device.kind())))
    }

    /// What is still to be put here before a model is served by this plugin with this engine.
    pub(super) fn lacks(&self, plugin: &str, engine: Option<&str>) -> Option<String> {
        match engine {
            Some("llama-server") if !self.has_llama_server => Some(
                "there is no `llama-server` in the PATH: install llama.cpp, or say by `options: {binary: ...}` where its server is"
                    .to_owned(),
            ),
            Some("vllm") if !self.has_vllm => Some(
                "there is no `vllm` in the PATH: name its package by `options: {requirements: [vllm==...]}`, or say by `options: {binary: ...}` where it is"
                    .to_owned(),
            ),
            _ if self.registry.find(plugin, None).is_err() => {
                Some(format!("the plugin `{plugin}` is not here yet: `aihost plugins path` says where its file is put"))
            }
            _ => None,
        }
    }
}
