//! From what was typed to what it means: every reference followed, every value checked, every wrong thing reported at once.

mod cache;
mod check;
mod cors;
mod devices;
mod endpoint;
mod files;
mod keys;
mod limits;
mod location;
mod models;
mod policy;
mod service;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use self::check::Checker;
pub(super) use self::policy::only_device;
use super::api_key::ApiKey;
use super::env::Env;
use super::error::ConfigError;
use super::locate::KeyPath;
use super::ownership::Sharing;
use super::raw::{RawConfig, RawListen, Text};
use super::resolved::{Config, Paths};
use super::{Selection, paths};

/// Addresses to listen on at most.
const LISTEN_MAX: usize = 8;
/// The original's port.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9000);

/// What a configuration is read against.
pub(super) struct Context<'a> {
    pub(super) text: &'a str,
    pub(super) file: &'a Path,
    pub(super) selection: &'a Selection,
    pub(super) env: &'a Env,
    /// The host that runs already, if it is for one.
    pub(super) running: Option<&'a Config>,
}

/// Checks everything and reports all problems together.
pub(super) fn resolve(raw: RawConfig, context: Context<'_>) -> Result<Config, ConfigError> {
    let root = KeyPath::root();
    let base = context.file.parent().unwrap_or_else(|| Path::new("/"));
    let mut check = Checker::default();
    version(&mut check, raw.version.as_ref());
    let paths = match context.running {
        Some(running) => running.paths.clone(),
        None => {
            let paths = folders(&raw, base, context.env);
            let cache = cache::resolve(&mut check, raw.cache_dir.as_deref(), raw.cache_size.as_ref(), base, &paths);
            Paths { cache, ..paths }
        }
    };
    let devices = devices::resolve(&mut check, raw.devices.as_ref(), context.env);
    let defaults = raw.defaults.unwrap_or_default();
    let limits = limits::resolve(&mut check, &raw.limits.unwrap_or_default(), &defaults);
    let cors = cors::resolve(&mut check, raw.cors.as_ref());
    let (listen, listen_also) = match context.running {
        // The ports that are open, whatever is typed.
        Some(running) => (running.listen, running.listen_also.clone()),
        None => listen(&mut check, raw.listen.as_ref(), context.selection),
    };
    // What is wrong with keys that are typed is said already.
    let has_keys = raw.api_keys.is_some();
    let had_keys = context.running.is_some_and(|running| !running.api_keys.is_empty());
    let open = std::iter::once(&listen).chain(&listen_also).find(|address| !address.ip().is_loopback());
    if let Some(open) = open.filter(|_| !has_keys && (had_keys || !raw.allow_unauthenticated)) {
        unguarded(&mut check, *open, context.running);
    }
    let models = match raw.models {
        Some(models) => models::resolve(
            &mut check,
            models,
            &models::Surroundings::new(&defaults, &devices, &paths, base, context.env),
        ),
        None => {
            check
                .fail(&root.key("models"), None, "is missing: there is nothing to serve")
                .hint("`aihost init` writes an example to start from");
            Default::default()
        }
    };
    let api_keys = keys::resolve(&mut check, raw.api_keys.as_ref(), Some(&models), context.env);
    match check.problems(context.text) {
        (problems, _) if problems.is_empty() => {
            let file = Some(context.file.to_owned());
            Ok(Config { file, listen, listen_also, api_keys, cors, devices, limits, paths, models })
        }
        (problems, more) => Err(ConfigError { file: Some(context.file.to_owned()), problems, more }),
    }
}

fn folders(raw: &RawConfig, base: &Path, env: &Env) -> Paths {
    let typed = [raw.plugins_dir.as_deref(), raw.models_dir.as_deref(), raw.state_dir.as_deref()];
    let sharing = if raw.allow_shared_folders { Sharing::Allowed } else { Sharing::Refused };
    Paths { sharing, ..paths::folders(typed, base, env) }
}

/// What is needed to reach a server, as far as it is right: where it listens, its keys, its folders.
pub(super) fn contact(raw: &RawConfig, context: &Context<'_>) -> (SocketAddr, Vec<Arc<ApiKey>>, Paths) {
    let mut check = Checker::default();
    let base = context.file.parent().unwrap_or_else(|| Path::new("/"));
    let paths = folders(raw, base, context.env);
    let (listen, _) = listen(&mut check, raw.listen.as_ref(), context.selection);
    (listen, keys::resolve(&mut check, raw.api_keys.as_ref(), None, context.env), paths)
}

/// A port that other machines reach, and no keys.
fn unguarded(check: &mut Checker, listen: SocketAddr, running: Option<&Config>) {
    let key = KeyPath::root();
    let open = || format!("is gone, and {listen} stays open to other machines until the host is started anew");
    match running {
        Some(running) if !running.api_keys.is_empty() => check
            .fail(&key.key("api_keys"), None, open())
            .hint("leave a key in until then: keys are never taken off a port that is open"),
        Some(_) => {
            check.fail(&key.key("allow_unauthenticated"), None, open()).hint("set `api_keys:`, or start the host anew")
        }
        None => check
            .fail(&key.key("listen"), Some(&listen.to_string()), "lets other machines in without an API key")
            .hint("set `api_keys:`, or listen on 127.0.0.1, or say `allow_unauthenticated: true`"),
    }
}

fn version(check: &mut Checker, typed: Option<&Text>) {
    if let Some(Text(version)) = typed.filter(|version| !matches!(version.0.as_str(), "1" | "1.0")) {
        check
            .fail(&KeyPath::root().key("version"), Some(version), "is not a format this host knows")
            .hint("it reads version 1");
    }
}

/// The first address, and those beside it.
fn listen(check: &mut Checker, typed: Option<&RawListen>, selection: &Selection) -> (SocketAddr, Vec<SocketAddr>) {
    let root = KeyPath::root().key("listen");
    let typed: Vec<&String> = match (&selection.listen, typed) {
        (Some(selected), _) => vec![selected],
        (None, Some(RawListen(typed))) => typed.iter().map(|text| &text.0).collect(),
        (None, None) => return (DEFAULT_LISTEN, Vec::new()),
    };
    if !(1..=LISTEN_MAX).contains(&typed.len()) {
        check
            .fail(&root, None, format!("is a list of no address, or of more than {LISTEN_MAX}"))
            .hint("write it like [127.0.0.1:9000, 100.64.0.1:9000]");
    }
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for typed in typed.into_iter().take(LISTEN_MAX) {
        match address(typed) {
            None => {
                check
                    .fail(&root, Some(typed), "is not an address and a port")
                    .hint("write it like 127.0.0.1:9000, or 0.0.0.0:9000 for every interface");
            }
            Some(address) if address.port() != 0 && addresses.contains(&address) => {
                check.fail(&root, Some(typed), "is there twice").hint("leave one of them out");
            }
            Some(address) => addresses.push(address),
        }
    }
    let mut addresses = addresses.into_iter();
    (addresses.next().unwrap_or(DEFAULT_LISTEN), addresses.collect())
}

fn address(typed: &str) -> Option<SocketAddr> {
    let text = typed.trim().replace("localhost:", "127.0.0.1:");
    let port_alone = text.parse().ok().map(|port| SocketAddr::new(DEFAULT_LISTEN.ip(), port));
    port_alone.or_else(|| text.parse().ok())
}
