//! Another process takes a host's place while it runs: a newer program, say. It is started by the one before, which gives it the
//! sockets, and, once it is ready, the state folder. So no connection is refused; what the one before has begun, it ends.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::failure::CliError;
use crate::config::{Env, TAKES_PLACE_OF};

/// The new process has read its files and has sockets.
const READY: u8 = 1;
/// The state folder is the new one's.
const GO: u8 = 2;
/// How long a new process may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long the one before may take from then on.
const GO_LIMIT: Duration = Duration::from_secs(5);
/// Sockets that are given at most.
const SOCKETS_MAX: usize = 16;

/// A process that is ready to take this one's place.
#[derive(Debug)]
pub(super) struct Successor {
    child: Child,
    channel: tokio::net::UnixStream,
}

impl Successor {
    /// Starts this program anew, from its file as that is now, with the same arguments, and waits until it is ready. What goes
    /// wrong with it is one sentence.
    pub(super) async fn start(env: &Env, sockets: &[OwnedFd]) -> Result<Self, String> {
        if env.is_reaped() {
            return Err("it is the only child of a container's first process, which ends with it: stop the container \
                        and start it anew"
                .to_owned());
        }
        let failed = |error: io::Error| format!("the new process cannot be started: {error}");
        let program = program(env).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let child = Command::new(&program)
            .args(std::env::args_os().skip(1))
            .env(TAKES_PLACE_OF, std::process::id().to_string())
            // The number of the process that a watchdog watches is another from now on.
            .env_remove("WATCHDOG_PID")
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
        give(&ours, sockets).map_err(failed)?;
        let channel =
            ours.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(ours)).map_err(failed)?;
        let mut successor = Self { child, channel };
        match timeout(READY_LIMIT, successor.channel.read_u8()).await {
            Ok(Ok(READY)) => Ok(successor),
            Ok(_) => {
                Err(format!("the new process {} ended before it was ready; the log says why", successor.child.id()))
            }
            Err(_) => {
                // It must not take a place that is not given.
                let _ = successor.child.kill();
                Err(format!("the new process was not ready within {} s", READY_LIMIT.as_secs()))
            }
        }
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it begin.
    pub(super) async fn go(mut self) -> io::Result<()> {
        self.channel.write_u8(GO).await
    }
}

/// What a process has that takes another's place. One that does not has nothing, and needs nothing.
#[derive(Debug, Default)]
pub(super) struct Inheritance {
    channel: Option<UnixStream>,
    listeners: Vec<TcpListener>,
}

impl Inheritance {
    /// What this process was started with.
    pub(super) fn of_process(env: &Env) -> Result<Self, CliError> {
        if env.takes_place_of().is_none() {
            return Ok(Self::default());
        }
        let failed = |error: io::Error| {
            CliError::failed(format!("{TAKES_PLACE_OF} is set, and no sockets came over stdin: {error}"))
                .hint(format!("only a running host sets it: unset {TAKES_PLACE_OF}"))
        };
        let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        let nothing = std::fs::File::open("/dev/null").map_err(failed)?;
        let channel = UnixStream::from(stdin);
        channel.set_read_timeout(Some(GO_LIMIT)).map_err(failed)?;
        let sockets = given(&channel).map_err(failed)?;
        rustix::stdio::dup2_stdin(nothing).map_err(|error| failed(error.into()))?;
        Ok(Self { channel: Some(channel), listeners: sockets.into_iter().map(TcpListener::from).collect() })
    }

    /// The socket that listens there already.
    pub(super) fn listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        // A port that the system chooses is the one that it chose.
        let fits = |own: SocketAddr| own == address || address.port() == 0 && own.ip() == address.ip();
        let is_it = |listener: &TcpListener| listener.local_addr().is_ok_and(fits);
        let at = self.listeners.iter().position(is_it)?;
        Some(self.listeners.swap_remove(at))
    }

    /// Says that this process is ready, and waits until the one before leaves its place. What was not taken is closed.
    pub(super) async fn ready(self) -> Result<(), CliError> {
        let Some(mut channel) = self.channel else { return Ok(()) };
        let wait = move || {
            channel.write_all(&[READY])?;
            let mut word = [0];
            channel.read_exact(&mut word).map(|()| word[0])
        };
        match tokio::task::spawn_blocking(wait).await {
            Ok(Ok(GO)) => Ok(()),
            _ => Err(CliError::failed("the host before did not leave its place, and goes on")),
        }
    }
}

/// The file of this program as it is now: one that was replaced has the same name.
fn program(env: &Env) -> Option<PathBuf> {
    let own = env.executable()?;
    let name = own.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map_or(own, Path::new);
    name.is_file().then(|| name.to_owned())
}

fn give(channel: &UnixStream, sockets: &[OwnedFd]) -> io::Result<()> {
    let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    if !message.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::Error::other(format!("more than {SOCKETS_MAX} sockets")));
    }
    sendmsg(channel, &[IoSlice::new(&[GO])], &mut message, SendFlags::empty())?;
    Ok(())
}

fn given(channel: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0];
    let received = recvmsg(channel, &mut [IoSliceMut::new(&mut word)], &mut message, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rights = message.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    Ok(rights.flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_reach_another_process_and_listen_all_the_while() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listeners = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        give(&ours, &listeners.map(OwnedFd::from)).unwrap();
        let listeners = given(&theirs).unwrap().into_iter().map(TcpListener::from).collect();
        let mut inheritance = Inheritance { channel: None, listeners };
        assert!(inheritance.listener("127.0.0.1:1".parse().unwrap()).is_none());
        for address in addresses {
            let waiting = std::net::TcpStream::connect(address).unwrap();
            let listener = inheritance.listener(address).unwrap();
            assert_eq!(listener.accept().unwrap().1, waiting.local_addr().unwrap());
        }
        drop(ours);
        assert_eq!(given(&theirs).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn who_is_not_let_in_ends_and_who_needs_nothing_begins() {
        assert!(Inheritance::of_process(&Env::default()).unwrap().ready().await.is_ok());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ready = tokio::spawn(Inheritance { channel: Some(theirs), listeners: Vec::new() }.ready());
        drop(ours);
        let error = ready.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("goes on"), "{error}");
    }
}
