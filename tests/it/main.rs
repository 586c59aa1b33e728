//! The integration tests, one binary. Each module is one promise of the host.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that panics has failed, which is what it is for")]

mod apart;
/// Every API for every text model.
mod apis;
/// Music and other audio.
mod audio;
/// An author's first minutes.
mod author;
/// Workers without a host around them.
mod bench;
/// Copies of weights on a local disk.
mod cache;
/// What serves a model whose entry leaves that to the host.
mod choice;
/// Commands and slow servers.
mod client;
/// What a plugin can reach of the machine.
mod confinement;
/// Connections by the thousand, refusals, many choices.
mod connections;
/// The host as the first process of a namespace.
mod container;
mod custom;
/// Vectors of texts, and scores of documents.
mod embedding;
/// The end of a host.
mod ending;
mod engines;
/// A plugin that misbehaves costs one worker.
mod faults;
/// The first minutes: `init`, what it says next, and that every command sees the same folders.
mod front_door;
/// Graphics cards: found, filled, measured.
mod gpu;
/// Workers within their grant.
mod grant;
/// Many hands at once.
mod hammer;
/// What bad requests cost, and who else feels it.
mod hostile;
/// Images from YAML to a file.
mod image;
/// Bad input gets a clear error, and nothing else is harmed.
mod input;
/// Requests that nobody waits for.
mod jobs;
/// API keys: what they open, and where they are sent.
mod keys;
/// Engines that are known by name.
mod known;
/// A host in the background, and one that follows another.
mod life;
/// A log that cannot be written costs its lines.
mod log;
/// What `/metrics` says.
mod metrics;
/// What plugins say, and how much of it.
mod noise;
/// What an operator types when something is wrong.
mod operate;
/// Memory given back and taken again.
mod park;
/// A host that was stopped and goes on.
mod pause;
/// Plugins that are added, replaced and removed while the host serves.
mod plugins;
/// What is opened is what was hashed.
mod provenance;
/// Who waits for what.
mod queue;
/// Workers that die from outside.
mod recovery;
/// A changed models.yaml.
mod reload;
mod remote;
/// What commands show on terminals.
mod screens;
/// Python services and their environments.
mod services;
/// The main job with a real model.
mod smollm2;
/// Folders that fail a running host.
mod storage;
/// Who is loaded, who makes room, nobody is cut off.
mod swap;
/// Hot, parked, cold.
mod tiers;
/// What the log says, once.
mod told;
/// Workers and the protocol, without the host around them.
mod upstream;
/// Engine processes: started, watched, ended, whatever they do.
mod vllm;
/// What whoever watches a host is told.
mod watch;
mod worker;
