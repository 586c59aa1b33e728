//! `aihost guard`: a process beside the host that ends what workers leave behind.
//!
//! A worker dies with the host, and its process group with it; a process that its plugin started and that made a session of
//! its own escapes both. All of them inherit one variable, by which the guard finds them in /proc: those of one worker when
//! that is gone, those of all when the pipe from the host closes, which even SIGKILL cannot keep it from.

use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, getpid, kill_process};

use super::limits::WORKER_VARIABLE;
use super::proc::{Living, carries, living};

/// Between two looks for what is left.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Looks after which something that cannot be killed is given up.
const LOOKS_MAX: u32 = 250;

/// The host's hold on its guard. Dropping it ends all that workers left behind.
#[derive(Debug)]
pub(super) struct Guard {
    host: String,
    workers: u64,
    process: Option<Child>,
    /// Marks that could not be said.
    unsaid: Vec<String>,
}

impl Guard {
    pub(super) fn new() -> Self {
        // Never the same twice on a machine: the number of a process comes again, but not at the same time.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            host: format!("{}-{}", std::process::id(), now.as_nanos()),
            workers: 0,
            process: None,
            unsaid: Vec::new(),
        }
    }

    /// Marks a command that is about to be spawned, so that the guard knows it and all that come of it. The mark is what
    /// [`gone`](Self::gone) takes.
    pub(super) fn mark(&mut self, command: &mut Command) -> String {
        self.workers += 1;
        let mark = format!("{}.{}.", self.host, self.workers);
        // Some programs set their title by writing over their environment; this tells the usual way of that not to.
        command.env(WORKER_VARIABLE, &mark).env("SPT_NOENV", "1");
        mark
    }

    /// Makes sure that the guard lives. Without one, only what makes a session of its own can outlive the host.
    pub(super) fn watch(&mut self, executable: &Path) {
        if self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None))) {
            return;
        }
        let mut command = Command::new(executable);
        command.arg0("aihost").arg("guard").arg(format!("{}.", self.host)).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process =
            command.spawn().inspect_err(|e| tracing::warn!("the guard of workers cannot be started: {e}")).ok();
        let unsaid = std::mem::take(&mut self.unsaid);
        unsaid.iter().for_each(|mark| self.gone(mark));
    }

    /// The worker with this mark is gone; what it left behind goes too.
    pub(super) fn gone(&mut self, mark: &str) {
        let pipe = self.process.as_mut().and_then(|process| process.stdin.as_mut());
        if !pipe.is_some_and(|pipe| writeln!(pipe, "{mark}").is_ok()) {
            // It died; the next one hears of it.
            self.unsaid.push(mark.to_owned());
        }
    }
}

/// Runs the hidden subcommand `aihost guard`: `host` begins the marks of all of a host's workers.
pub fn guard_main(host: &str) -> ExitCode {
    // Out of reach of the terminal's signals; it leads no group, so this cannot fail.
    let _ = rustix::process::setsid();
    for mark in io::stdin().lock().lines() {
        match mark {
            Ok(mark) if mark.starts_with(host) => end_all(&mark),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    end_all(host);
    ExitCode::SUCCESS
}

/// Kills whoever carries a mark that begins so, until nobody does.
fn end_all(mark: &str) {
    let wanted = format!("{WORKER_VARIABLE}={mark}");
    for _ in 0..LOOKS_MAX {
        let left = marked(wanted.as_bytes());
        if left.is_empty() {
            return;
        }
        for pid in left {
            // It may be gone by now.
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Processes with a variable that begins so, and what has come of them: their children, and the groups they lead. Processes
/// of other users cannot be looked into, nor killed.
fn marked(wanted: &[u8]) -> Vec<Pid> {
    let mut others: Vec<Living> = living().filter(|process| process.pid != getpid()).collect();
    let mut found: Vec<Pid> =
        others.extract_if(.., |process| carries(process.pid, wanted)).map(|process| process.pid).collect();
    loop {
        let comes_of =
            |process: &mut Living| [process.parent, process.group].iter().flatten().any(|pid| found.contains(pid));
        let more: Vec<Pid> = others.extract_if(.., comes_of).map(|process| process.pid).collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}
