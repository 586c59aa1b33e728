//! The worker's side: `aihost worker`. One process, one plugin, one instance; threads, no async runtime.
//!
//! It takes its socket from standard input, dies with the host, and ends as soon as the socket closes, whatever the
//! plugin is doing. It knows nothing of models, leases or HTTP.

mod objects;
mod outbox;
mod serve;
mod sys;

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

use super::limits::{HEARTBEAT_INTERVAL, PARENT_VARIABLE};
use super::protocol::{Assembler, CHUNK_BYTES, Decoder, Hello, LogRecord, ToHost, ToWorker};
use outbox::Outbox;
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
    Ok(UnixStream::from(socket))
}

fn run(socket: Arc<UnixStream>) -> ExitCode {
    // A defect in this process must end it: the host tells a dead worker from a live one, not from a half-dead one.
    std::panic::set_hook(Box::new(|info| {
        let _ = writeln!(io::stderr(), "the worker itself panicked: {info}");
        std::process::abort();
    }));
    let outbox = Arc::new(Outbox::default());
    outbox.send(&ToHost::Hello(Hello::own()));
    let (queue, writer) = (Arc::clone(&outbox), Arc::clone(&socket));
    let beats = Arc::clone(&outbox);
    let spawned =
        thread::Builder::new().name("socket-writer".into()).spawn(move || queue.write_to(&writer)).and_then(|_| {
            thread::Builder::new().name("heartbeat".into()).spawn(move || {
                loop {
                    beats.heartbeat();
                    thread::sleep(HEARTBEAT_INTERVAL);
                }
            })
        });
    if let Err(why) = spawned.map_err(|e| e.to_string()).and_then(|_| read(&socket, &outbox)) {
        let _ = writeln!(io::stderr(), "aihost worker: {why}");
        return ExitCode::from(2);
    }
    // The host closed the socket. Exit handlers of the plugin's libraries may hang, so none is run.
    let _ = kill_process(getpid(), Signal::KILL);
    ExitCode::SUCCESS
}

/// Takes the host's messages until the socket closes.
fn read(mut socket: &UnixStream, outbox: &Arc<Outbox>) -> Result<(), String> {
    let mut server = Server::new(Arc::clone(outbox)).map_err(|e| e.to_string())?;
    let (mut decoder, mut assembler) = (Decoder::default(), Assembler::default());
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = match socket.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Ok(()),
            Ok(read) => read,
        };
        decoder.push(&buffer[..read]);
        while let Some(frame) = decoder.next().map_err(|e| e.to_string())? {
            if let Some(frame) = assembler.push(frame).map_err(|e| e.to_string())? {
                server.take(ToWorker::decode(frame).map_err(|e| e.to_string())?)?;
            }
        }
    }
}

/// A log record of the worker itself.
fn record(level: u32, message: &str) -> LogRecord {
    let target = "aihost::worker".to_owned();
    LogRecord { level, target, message: message.to_owned(), fields: serde_json::Value::Null, request: 0 }
}
