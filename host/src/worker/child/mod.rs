//! The worker's side: `aihost worker`. One process, one plugin, one instance; threads, no async runtime.
//!
//! It takes its socket from standard input, gives up what its plugin does not need, dies with the host, and ends as soon as the socket closes, whatever the
//! plugin is doing. It knows nothing of models, leases or HTTP.

mod confine;
mod describe;
mod limit;
mod log;
mod objects;
mod outbox;
mod output;
mod serve;
mod sys;
mod threads;

pub use describe::describe_main;

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

use super::limits::{HEARTBEAT_INTERVAL, LOST_CONNECTION_CODE, PARENT_VARIABLE};
use super::protocol::{Assembler, CHUNK_BYTES, Decoder, Hello, ToHost, ToWorker};
use crate::device;
use log::Log;
use outbox::Outbox;
use output::Outputs;
use serve::Server;

/// Runs the hidden subcommand `aihost worker`.
pub fn worker_main() -> ExitCode {
    match adopt() {
        Ok(socket) => run(Arc::new(socket)),
        Err(why) => {
            let _ = writeln!(io::stderr(), "aihost worker: {why}; it is started by `aihost serve`, not by hand");
            ExitCode::from(2)
        }
    }
}

/// Ties this process to the host and takes the socket away from standard input, where plugin code could touch it.
fn adopt() -> Result<UnixStream, String> {
    let text = |what: &'static str| move |e: rustix::io::Errno| format!("{what}: {e}");
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(text("cannot tie itself to the host"))?;
    let parent = std::env::var(PARENT_VARIABLE).ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    if parent.is_none() || getppid() != parent {
        // The host may have died before the line above took effect.
        return Err("its parent is not the host".to_owned());
    }
    rustix::thread::set_no_new_privs(true).map_err(text("cannot give up new privileges"))?;
    let stdin = io::stdin();
    rustix::net::sockopt::socket_type(stdin.as_fd()).map_err(|_| "standard input is no socket".to_owned())?;
    let socket = rustix::io::fcntl_dupfd_cloexec(stdin.as_fd(), 3).map_err(text("cannot take its socket"))?;
    let null = std::fs::File::open("/dev/null").map_err(|e| format!("cannot open /dev/null: {e}"))?;
    rustix::stdio::dup2_stdin(&null).map_err(text("cannot replace standard input"))?;
    drop(null);
    // Whoever started the host may have had files open that are not meant for plugins.
    sys::close_all_but(&socket).map_err(text("cannot close what it inherited"))?;
    confine::drop_privileges();
    Ok(UnixStream::from(socket))
}

fn run(socket: Arc<UnixStream>) -> ExitCode {
    // A defect in this process must end it: the host tells a dead worker from a live one, not from a half-dead one.
    std::panic::set_hook(Box::new(|info| {
        let _ = writeln!(io::stderr(), "the worker itself panicked: {info}");
        std::process::abort();
    }));
    if let Err(why) = live(&socket) {
        let _ = writeln!(io::stderr(), "aihost worker: {why}");
        return ExitCode::from(2);
    }
    // The host closed the socket. Exit handlers of the plugin's libraries may hang, so none is run.
    let _ = kill_process(getpid(), Signal::KILL);
    ExitCode::SUCCESS
}

/// Learns what it is for, gives up what it does not need for that, and serves until the socket closes.
fn live(socket: &Arc<UnixStream>) -> Result<(), String> {
    let mut inbox = Inbox::new(socket);
    let mut first = Vec::new();
    // Threads keep what they had when they were started: there is none yet.
    while let Some(message) = inbox.next()? {
        if let ToWorker::Start(start) = &message {
            confine::confine(&start.confinement)?;
            first.push(message);
            let mut server = start_threads(socket)?;
            first.into_iter().try_for_each(|message| server.take(message))?;
            return serve(inbox, server);
        }
        first.push(message);
    }
    Ok(())
}

/// Starts the threads that have nothing to do with the plugin. They come before its own, however many of those compute.
fn start_threads(socket: &Arc<UnixStream>) -> Result<Server, String> {
    let outputs = Outputs::open()?;
    limit::expose_to_oom_killer();
    let outbox = Arc::new(Outbox::default());
    let log = Arc::new(Log::new(Arc::clone(&outbox)));
    outbox.send(&ToHost::Hello(Hello::own()));
    let (queue, writer) = (Arc::clone(&outbox), Arc::clone(socket));
    spawn("socket-writer", move || end_if_lost(&queue.write_to(&writer)))?;
    let printed = Arc::clone(&log);
    spawn("output", move || outputs.drain(&printed))?;
    let (beats, ticks) = (Arc::clone(&outbox), Arc::clone(&log));
    spawn("heartbeat", move || {
        loop {
            beats.heartbeat();
            ticks.tick();
            thread::sleep(HEARTBEAT_INTERVAL);
        }
    })?;
    Server::new(outbox, log).map_err(|e| e.to_string())
}

/// Ends the process if its socket is not one any more: the plugin has closed it, and there is no other way to say so than
/// by the code that it ends with.
fn end_if_lost(error: &io::Error) {
    if rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::BADF) {
        sys::leave(LOST_CONNECTION_CODE);
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let serve = move || {
        device::serve();
        body();
    };
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(serve);
    spawned.map(drop).map_err(|e| format!("no thread for its {name}: {e}"))
}

/// Takes the host's messages until the socket closes.
fn serve(mut inbox: Inbox<'_>, mut server: Server) -> Result<(), String> {
    device::serve();
    while let Some(message) = inbox.next()? {
        server.take(message)?;
    }
    Ok(())
}

/// What the host sends.
struct Inbox<'a> {
    socket: &'a UnixStream,
    decoder: Decoder,
    assembler: Assembler,
    buffer: Vec<u8>,
}

impl<'a> Inbox<'a> {
    fn new(socket: &'a UnixStream) -> Self {
        let (decoder, assembler) = (Decoder::default(), Assembler::default());
        Self { socket, decoder, assembler, buffer: vec![0; CHUNK_BYTES] }
    }

    /// The next message; nothing once the socket is closed.
    fn next(&mut self) -> Result<Option<ToWorker>, String> {
        loop {
            while let Some(frame) = self.decoder.next().map_err(|e| e.to_string())? {
                if let Some(frame) = self.assembler.push(frame).map_err(|e| e.to_string())? {
                    return ToWorker::decode(frame).map(Some).map_err(|e| e.to_string());
                }
            }
            match self.socket.read(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => self.decoder.push(&self.buffer[..read]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    end_if_lost(&e);
                    return Ok(None);
                }
            }
        }
    }
}
