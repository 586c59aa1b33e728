//! A server under measure: started on a free port, ended when dropped.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::client;
use crate::error::{Doing, Error, Result};
use crate::shell;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

/// An address nobody listens on now.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").doing("find a free port")?;
    listener.local_addr().doing("find a free port")
}

impl Server {
    /// Starts it with its output in `log`, and waits until /health answers 200.
    pub(crate) fn start(command: &mut Command, address: SocketAddr, log: &Path) -> Result<Self> {
        Self::start_with(command, address, log, "/health")
    }

    /// The same for one that is asked elsewhere whether it is there.
    pub(crate) fn start_with(command: &mut Command, address: SocketAddr, log: &Path, ready: &str) -> Result<Self> {
        let file = File::create(log).doing(format_args!("create {}", log.display()))?;
        let copy = file.try_clone().doing("share the log file")?;
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(file).stderr(copy).spawn();
        let mut server = Self { child: child.doing(format_args!("start {name}"))?, address };
        let start = Instant::now();
        while !client::get(address, ready).is_ok_and(|answer| answer.status == 200) {
            if let Some(status) = server.child.try_wait().doing("watch a server")? {
                return Err(Error(format!("{name} ended ({status}); its log is {}", log.display())));
            }
            if start.elapsed() > START_LIMIT {
                return Err(Error(format!("{name} does not answer; its log is {}", log.display())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end and waits.
    pub(crate) fn end(mut self, limit: Duration) -> Result<ExitStatus> {
        shell::terminate(self.child.id())?;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().doing("watch a server")? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                return Err(Error(format!("the server does not end within {} s", limit.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = shell::terminate(self.child.id());
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > STOP_LIMIT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
