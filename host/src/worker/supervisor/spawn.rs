//! Starts worker processes, all from one thread that never ends.
//!
//! A worker asks to be killed when its parent goes (PDEATHSIG), and the kernel means the parent's *thread*: a worker
//! spawned from a pool thread would die with that thread.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use tokio::sync::oneshot;

use super::super::guard::Guard;
use super::super::limits::PARENT_VARIABLE;

/// Workers that may wait to be spawned; a spawn takes about a millisecond.
const MAX_WAITING_SPAWNS: usize = 64;
/// Variables a worker inherits; everything else may be a secret.
const INHERITED: [&str; 9] =
    ["PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "RUST_LOG", "RUST_BACKTRACE", "TMPDIR", "TZ", "USER"];
/// Beginnings of variables a worker inherits.
const INHERITED_PREFIXES: [&str; 3] = ["CUDA_", "NVIDIA_", "LC_"];

/// Variables that say where to write, and the folder below its own.
const OWN_FOLDERS: [(&str, &str); 3] = [("TMPDIR", ""), ("XDG_CACHE_HOME", ""), ("CUDA_CACHE_PATH", "cuda")];

/// What the spawning thread is asked to do.
enum SpawnCommand {
    Spawn(Box<Command>, PathBuf, oneshot::Sender<io::Result<(Child, String)>>),
    /// The process with this mark is gone.
    Gone(String),
}

/// A worker that was just started.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) child: Child,
    /// What the guard knows it by.
    pub(super) mark: String,
    /// The host's end of the socket.
    pub(super) socket: UnixStream,
}

/// Starts `executable worker` with a socket as its standard input. What it writes for itself goes to `own`, if it has that.
pub(super) async fn spawn(executable: &Path, own: Option<&Path>) -> io::Result<Spawned> {
    let (socket, theirs) = UnixStream::pair()?;
    let mut command = Command::new(executable);
    command
        .arg0("aihost")
        .arg("worker")
        .env_clear()
        .envs(inherited(std::env::vars_os()))
        // As the host counts cards.
        .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        .env(PARENT_VARIABLE, std::process::id().to_string())
        .envs(own.into_iter().flat_map(|own| OWN_FOLDERS.map(|(name, folder)| (name, own.join(folder)))))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let (reply, answer) = oneshot::channel();
    let job = SpawnCommand::Spawn(Box::new(command), executable.to_owned(), reply);
    spawner()?.try_send(job).map_err(|_| io::Error::other("too many workers are being started"))?;
    let (child, mark) = answer.await.map_err(|_| io::Error::other("the spawning thread is gone"))??;
    Ok(Spawned { child, mark, socket })
}

/// A worker is gone; whatever it left behind is ended soon.
pub(super) fn gone(mark: String) {
    // If the queue is full, the end of the host is soon enough.
    let _ = spawner().map(|jobs| jobs.try_send(SpawnCommand::Gone(mark)));
}

fn spawner() -> io::Result<&'static SyncSender<SpawnCommand>> {
    static SPAWNER: OnceLock<Result<SyncSender<SpawnCommand>, String>> = OnceLock::new();
    let started = SPAWNER.get_or_init(|| {
        let (jobs, queue) = sync_channel(MAX_WAITING_SPAWNS);
        thread::Builder::new().name("worker-spawner".into()).spawn(move || serve(&queue)).map_err(|e| e.to_string())?;
        Ok(jobs)
    });
    started.as_ref().map_err(|e| io::Error::other(e.as_str()))
}

fn serve(queue: &Receiver<SpawnCommand>) {
    let mut guard = Guard::new();
    for job in queue {
        match job {
            SpawnCommand::Gone(mark) => guard.gone(mark),
            SpawnCommand::Spawn(mut command, executable, reply) => {
                guard.watch(&executable);
                let mark = guard.mark(&mut command);
                if let Err(Ok((mut child, mark))) = reply.send(command.spawn().map(|child| (child, mark))) {
                    // Whoever asked has gone: nobody else knows of this process.
                    let _ = child.kill();
                    let _ = child.wait();
                    guard.gone(mark);
                }
            }
        }
    }
}

/// What a child may be told of this environment.
pub(in crate::worker) fn inherited(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    all.filter(|(name, _)| {
        name.to_str().is_some_and(|name| {
            INHERITED.contains(&name) || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_inherited() {
        let all = ["PATH", "HF_TOKEN", "AIHOST_API_KEY", "CUDA_VISIBLE_DEVICES", "AWS_SECRET", "LD_PRELOAD"];
        let all = all.map(|name| (OsString::from(name), OsString::from("x")));
        let kept: Vec<_> = inherited(all.into_iter()).map(|(name, _)| name).collect();
        assert_eq!(kept, ["PATH", "CUDA_VISIBLE_DEVICES"]);
    }
}
