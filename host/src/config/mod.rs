//! models.yaml, parsed twice: what was typed, then what it means. A leaf: it knows `domain` and nothing else of the host.

mod api_key;
mod contact;
pub mod env;
mod error;
mod extent;
mod http;
mod locate;
mod options;
mod origin;
mod ownership;
mod paths;
mod raw;
mod raw_service;
mod resolve;
mod resolved;
mod schema;
mod source;
mod twice;
mod units;
mod warnings;

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use api_key::{ApiKey, Rate, Scope};
pub use contact::Contact;
pub use env::{Env, REAPED, TAKES_PLACE_OF};
pub use error::{ConfigError, Problem};
pub use http::{BusyProbe, HttpConfig, REMOTE, RemoteConfig, Secret};
pub use options::{EntryFaults, option_rows};
pub use origin::{Cors, OriginPattern};
pub use ownership::Sharing;
pub use resolved::{
    CacheConfig, Choice, Config, DeviceConfig, FileConfig, Limits, ModelConfig, Paths, Refusal, TEXT_BODY_BYTES,
};
pub use schema::json_schema;
pub use source::{Location, Part, Source, shown_url};
pub use units::{parse_duration, parse_size};

use crate::domain::ByteSize;

/// Bytes of a models.yaml; a hundred thousand entries fit.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// How long a pipe in place of the file is read.
const PIPE_LIMIT: Duration = Duration::from_secs(10);

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `--config`
    pub file: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
}

/// Finds models.yaml, reads it and checks it.
///
/// # Errors
/// There is none, it cannot be read, or something in it is wrong; every wrong thing is listed.
pub fn load(selection: &Selection, env: &Env) -> Result<Config, ConfigError> {
    let file = paths::config_file(selection.file.as_deref(), env)?;
    parse(&read_file(&file)?, &file, selection, env)
}

/// The text of a models.yaml.
///
/// # Errors
/// It cannot be read, is no text, or is far too large.
pub fn read_file(file: &Path) -> Result<String, ConfigError> {
    text_of(open_at_once(file).map(|file| Patient { file, until: Instant::now() + PIPE_LIMIT }), file)
}

/// The same while the host serves: what would have to be waited for is not there.
///
/// # Errors
/// As of [`read_file`].
pub fn read_again(file: &Path) -> Result<String, ConfigError> {
    text_of(open_at_once(file), file)
}

fn open_at_once(file: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(file)
}

/// A file that may be a pipe, as a shell makes for `--config <(...)`: waited for, but not for ever.
struct Patient {
    file: File,
    until: Instant,
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            let left = self.until.saturating_duration_since(Instant::now());
            let comes = [PollFd::new(&self.file, PollFlags::IN)];
            let told = poll(&mut comes.clone(), Timespec::try_from(left).ok().as_ref())?;
            if told == 0 {
                let message = format!("what writes into this pipe has not ended after {} s", PIPE_LIMIT.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
        }
    }
}

fn text_of(opened: io::Result<impl Read>, file: &Path) -> Result<String, ConfigError> {
    let unreadable = |e| ConfigError::unreadable(file, &e);
    let mut text = String::new();
    opened.map_err(unreadable)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::too_large(file, ByteSize(FILE_BYTES_MAX)));
    }
    Ok(text)
}

/// Checks the text of a models.yaml that lies (or would lie) at `file`.
///
/// # Errors
/// Everything that is wrong in it.
pub fn parse(text: &str, file: &Path, selection: &Selection, env: &Env) -> Result<Config, ConfigError> {
    let text = without_mark(text);
    if let Some(line) = extent::opens_too_much(text) {
        return Err(ConfigError::opens(file, line));
    }
    if extent::is_too_much(text) {
        return Err(ConfigError::repeats(file));
    }
    if let Some(problem) = twice::find(text) {
        return Err(ConfigError::one(Some(file), problem));
    }
    resolve::resolve(typed(text, file)?, resolve::Context { text, file, selection, env, running: None })
}

/// Checks the text of a models.yaml for a host that runs already: its port is open and its folders are in use, so that what
/// the text says of them is checked, and holds when the host is started anew.
///
/// # Errors
/// Everything that is wrong in it, by itself and for this host.
pub fn parse_for(
    running: &Config,
    text: &str,
    file: &Path,
    selection: &Selection,
    env: &Env,
) -> Result<Reloaded, ConfigError> {
    let alone = parse(text, file, selection, env)?;
    let text = without_mark(text);
    let context = resolve::Context { text, file, selection, env, running: Some(running) };
    let config = resolve::resolve(typed(text, file)?, context)?;
    let (was, is) = (&running.paths, &alone.paths);
    let folder = |paths: &Paths| paths.cache.as_ref().map(|cache| cache.folder.clone());
    let size = |paths: &Paths| paths.cache.as_ref().and_then(|cache| cache.size);
    let differing = [
        ("listen", !running.addresses().eq(alone.addresses())),
        ("plugins_dir", was.plugin_folders() != is.plugin_folders()),
        ("models_dir", was.models != is.models),
        ("state_dir", was.state != is.state),
        ("cache_dir", folder(was) != folder(is)),
        ("cache_size", size(was) != size(is)),
        ("allow_shared_folders", was.sharing != is.sharing),
    ];
    let waiting = differing.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect();
    Ok(Reloaded { config, waiting })
}

/// What a text means for a host that runs.
#[derive(Debug)]
pub struct Reloaded {
    /// With the port and the folders that are in use.
    pub config: Config,
    /// Keys whose new values wait for the next start.
    pub waiting: Vec<&'static str>,
}

/// The text behind a byte order mark, with which some editors begin a file.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn typed(text: &str, file: &Path) -> Result<raw::RawConfig, ConfigError> {
    raw::parse(text).map_err(|e| ConfigError::from_yaml(file, text, &e))
}

/// The models.yaml that commands use: the one named, else the first that is found.
///
/// # Errors
/// There is none.
pub fn find_file(named: Option<&Path>, env: &Env) -> Result<PathBuf, ConfigError> {
    paths::config_file(named, env)
}

/// The folders of a host that has no models.yaml (yet).
pub fn default_folders(env: &Env) -> Paths {
    paths::folders([None; 3], &env.current_dir(), env)
}

/// Where `aihost init` writes when no file is named.
pub fn default_file(env: &Env) -> PathBuf {
    env.current_dir().join(paths::FILE_NAME)
}
