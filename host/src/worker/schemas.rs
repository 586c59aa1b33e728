//! What options each plugin takes, by its own word. A plugin is asked once, in a child process that cannot cost more than a
//! few seconds and a sentence, and its answer is kept in the state folder under the digest of its file.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::confinement::Confinement;
use super::limits::PARENT_VARIABLE;
use super::supervisor::inherited;
use crate::config::Sharing;
use crate::domain::excerpt;
use crate::plugin::{CopyIdentity, PluginFile};

/// How long a plugin may take to be opened and to describe itself, one on a slow disk included.
const DESCRIBE_LIMIT: Duration = Duration::from_secs(10);
/// How often a child that closed its output is asked whether it has ended.
const EXIT_POLL: Duration = Duration::from_millis(5);
/// Largest description that is read, bytes. Real ones have a few KiB.
pub(super) const SCHEMA_BYTES_MAX: usize = 1 << 20;
/// Descriptions that are kept in the state folder; beyond that all are asked for anew.
const KEPT_MAX: usize = 256;
/// Bytes shown of why a plugin cannot be described.
const REASON_SHOWN_BYTES: usize = 400;

/// What the child is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DescribeOrder {
    pub(super) plugin: PathBuf,
    pub(super) identity: CopyIdentity,
    pub(super) confinement: Confinement,
}

/// A plugin's JSON Schema of its options, or why there is none.
pub type OptionsSchema = Result<Arc<Value>, String>;

/// The options of plugins. Everything here blocks.
#[derive(Debug)]
pub struct Schemas {
    executable: PathBuf,
    folder: PathBuf,
    sharing: Sharing,
    /// By the digest of the plugin's file. A plugin that cannot be described is not asked again by this process.
    known: Mutex<HashMap<String, OptionsSchema>>,
}

impl Schemas {
    /// Those that are kept in this state folder; others are asked of plugins by children of this program.
    pub fn new(executable: &Path, state: &Path, sharing: Sharing) -> Self {
        Self { executable: executable.into(), folder: state.join("schemas"), sharing, known: Mutex::default() }
    }

    /// What is known without asking.
    pub fn known(&self, plugin: &PluginFile) -> Option<OptionsSchema> {
        if let Some(known) = self.known.lock().get(plugin.copy.digest()) {
            return Some(known.clone());
        }
        let kept = self.kept(&self.file(plugin))?;
        self.known.lock().insert(plugin.copy.digest().to_owned(), Ok(Arc::clone(&kept)));
        Some(Ok(kept))
    }

    /// What the plugin says, which is asked if nobody has.
    pub fn get(&self, plugin: &PluginFile) -> OptionsSchema {
        if let Some(known) = self.known(plugin) {
            return known;
        }
        let schema = self.ask(plugin).map(Arc::new).map_err(|why| {
            let id = &plugin.manifest.id;
            excerpt(
                &format!("plugin `{id}` cannot say what options it takes, so they are not checked: {why}"),
                REASON_SHOWN_BYTES,
            )
        });
        if let Ok(schema) = &schema
            && let Err(error) = self.keep(&self.file(plugin), schema)
        {
            // The next process asks again.
            tracing::debug!(plugin = plugin.manifest.id, "the description of its options was not kept: {error}");
        }
        self.known.lock().insert(plugin.copy.digest().to_owned(), schema.clone());
        schema
    }

    fn file(&self, plugin: &PluginFile) -> PathBuf {
        self.folder.join(format!("{}.json", plugin.copy.digest()))
    }

    fn kept(&self, file: &Path) -> Option<Arc<Value>> {
        self.sharing.check_file(file).ok()?;
        let mut text = Vec::new();
        fs::File::open(file).ok()?.take(SCHEMA_BYTES_MAX as u64 + 1).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok().map(Arc::new)
    }

    fn keep(&self, file: &Path, schema: &Value) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        self.sharing.check(&self.folder).map_err(io::Error::other)?;
        let kept: Vec<PathBuf> = fs::read_dir(&self.folder)?.filter_map(|kept| Some(kept.ok()?.path())).collect();
        if kept.len() >= KEPT_MAX {
            kept.iter().try_for_each(fs::remove_file)?;
        }
        let fresh = self.folder.join(format!(".{}", std::process::id()));
        let mut options = fs::OpenOptions::new();
        let mut written = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        written.write_all(&serde_json::to_vec(schema)?)?;
        fs::rename(fresh, file)
    }

    fn ask(&self, plugin: &PluginFile) -> Result<Value, String> {
        let identity = plugin.copy.ready()?;
        let mut readable: BTreeSet<PathBuf> = plugin.library_folders.iter().cloned().collect();
        readable.insert(plugin.copy.readable().to_owned());
        // It needs none of what its manifest asks for, to say what it is.
        let confinement = Confinement { readable, ..Confinement::default() };
        let order = DescribeOrder { plugin: plugin.copy.path().to_owned(), identity, confinement };
        let order = serde_json::to_vec(&order).map_err(|e| e.to_string())?;
        let told = ask_child(&self.executable, &order, Instant::now() + DESCRIBE_LIMIT)?;
        let schema: Result<Value, String> =
            serde_json::from_slice(&told).map_err(|e| format!("what it says is not what this host reads ({e})"))?;
        match schema? {
            schema @ (Value::Object(_) | Value::Bool(_)) => Ok(schema),
            // What the SDK says of one whose own code panicked.
            Value::Null => Err("it gives no description; most likely its code panicked".to_owned()),
            _ => Err("its description is no JSON Schema".to_owned()),
        }
    }
}

/// A child with all that it starts, ended whatever becomes of it.
struct Asked(Child);

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

fn ask_child(executable: &Path, order: &[u8], until: Instant) -> Result<Vec<u8>, String> {
    let spawned = Command::new(executable)
        .arg0("aihost")
        .arg("describe")
        .env_clear()
        .envs(inherited(std::env::vars_os()))
        .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        .env(PARENT_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    let mut asked = Asked(spawned.map_err(|e| format!("no process can be started for it: {e}"))?);
    if let Some(mut stdin) = asked.0.stdin.take()
        && let Err(e) = stdin.write_all(order)
    {
        return Err(format!("its process does not listen: {e}"));
    }
    let Some(mut stdout) = asked.0.stdout.take() else { return Err("its process has no output".to_owned()) };
    let mut said = Vec::new();
    loop {
        if let Some(whole) = whole(&said)? {
            return Ok(whole);
        }
        if !is_ready(&stdout, until).map_err(|e| e.to_string())? {
            return Err(format!("it says nothing within {} s", DESCRIBE_LIMIT.as_secs()));
        }
        let mut piece = [0; 1 << 14];
        match stdout.read(&mut piece) {
            Ok(0) => return Err(ending(&mut asked.0, until)),
            Ok(read) => said.extend_from_slice(&piece[..read]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.to_string()),
        }
    }
}

/// The answer behind its length, once all of it is there.
fn whole(said: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let Some((length, rest)) = said.split_first_chunk::<8>() else { return Ok(None) };
    let length = u64::from_le_bytes(*length);
    match usize::try_from(length) {
        Ok(length) if length <= SCHEMA_BYTES_MAX => Ok(rest.get(..length).map(<[u8]>::to_vec)),
        _ => Err(format!("its description has {length} bytes, of at most {SCHEMA_BYTES_MAX}")),
    }
}

fn is_ready(stdout: &impl std::os::fd::AsFd, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(stdout, PollFlags::IN)], Timespec::try_from(left).ok().as_ref()) {
            Ok(told) => return Ok(told > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// How a child ended that said nothing. One that closed its output and lives is not waited for long.
fn ending(child: &mut Child, until: Instant) -> String {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                return match (status.signal(), status.code()) {
                    (Some(signal), _) => format!("its process dies of it (signal {signal})"),
                    (None, code) => format!("its process ends without a word (code {})", code.unwrap_or_default()),
                };
            }
            Ok(None) if Instant::now() < until => std::thread::sleep(EXIT_POLL),
            _ => return format!("it says nothing within {} s", DESCRIBE_LIMIT.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What comes of a child that does this.
    fn of(script: &str, limit: Duration) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().unwrap();
        let child = folder.path().join("child");
        fs::write(&child, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&child, fs::Permissions::from_mode(0o700)).unwrap();
        ask_child(&child, b"{}", Instant::now() + limit)
    }

    #[test]
    fn a_plugin_that_is_asked_costs_no_more_than_a_sentence() {
        let long = Duration::from_secs(60);
        let answer = "cat >/dev/null; printf '\\002\\000\\000\\000\\000\\000\\000\\000{}'";
        assert_eq!(of(answer, long).unwrap(), b"{}");
        // Whatever else of it lives on, and holds its output.
        assert_eq!(of(&format!("sleep 600 & {answer}; sleep 600"), long).unwrap(), b"{}");
        for (script, limit, told) in [
            ("cat >/dev/null; kill -SEGV $$", long, "signal 11"),
            ("cat >/dev/null; kill -ABRT $$", long, "signal 6"),
            ("cat >/dev/null; exit 3", long, "code 3"),
            ("cat >/dev/null; sleep 600", Duration::from_millis(50), "says nothing"),
            ("cat >/dev/null; exec >&-; sleep 600", Duration::from_millis(50), "says nothing"),
            ("cat >/dev/null; yes", long, "bytes, of at most"),
            (
                "cat >/dev/null; printf '\\000\\000\\000\\004\\000\\000\\000\\000'; yes",
                long,
                "67108864 bytes, of at most",
            ),
        ] {
            let error = of(script, limit).unwrap_err();
            assert!(error.contains(told), "{script}: {error}");
        }
    }
}
