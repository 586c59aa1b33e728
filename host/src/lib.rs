//! `aihost`: serves many generative models from one GPU machine behind one OpenAI-compatible port.
//!
//! Rooms, in reading order. `main -> cli -> {http, runtime} -> {scheduler, worker, plugin, device, store, media, jobs} -> domain`;
//! `config` and `telemetry` are leaves, nobody imports `http`, `scheduler` imports `domain` alone.
//! docs/ARCHITECTURE.md has the map and its invariants; `cargo xtask tidy` keeps them.

pub mod domain;

pub mod config;
pub mod telemetry;

mod media;

pub mod device;
pub mod plugin;
pub mod store;
pub mod worker;

pub mod scheduler;

pub mod runtime;

pub mod jobs;

pub mod http;

pub mod cli;
