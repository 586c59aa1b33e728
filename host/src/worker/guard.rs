//! `aihost guard`: a process beside the host that ends what workers leave behind.
//!
//! A worker dies with the host, and its process group with it; a process that its plugin started and that made a session of
//! its own escapes both. All of them inherit one variable, by which the guard finds them in /proc: those of one worker when
//! that is gone, those of all when the pipe from the host closes, which even SIGKILL cannot keep it from. A guard that was
//! stopped goes on when its host has something to say, and when that ends; for one that was killed the next host's stands in.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, kill_process, set_parent_process_death_signal, test_kill_process};

use super::limits::WORKER_VARIABLE;
use super::proc::{Living, carries, living, variable};

/// Marks that are kept for a guard that does not take them now. Those before them are ended with the host.
const MARKS_UNSAID_MAX: usize = 1024;

/// How a guard is called.
const NAME: [&str; 2] = ["aihost", "guard"];
/// Between two looks for what is left.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Looks after which something that cannot be killed is given up.
const LOOKS_MAX: u32 = 250;

/// The host's hold on its guard. Dropping it ends all that workers left behind.
#[derive(Debug)]
pub(super) struct Guard {
    host: String,
    workers: u64,
    /// The program that it is run from, once it was asked for.
    executable: Option<PathBuf>,
    process: Option<Child>,
    /// Marks that could not be said.
    unsaid: VecDeque<String>,
}

impl Guard {
    pub(super) fn new() -> Self {
        // Never the same twice on a machine: the number of a process comes again, but not at the same time.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            host: format!("{}-{}", std::process::id(), now.as_nanos()),
            workers: 0,
            executable: None,
            process: None,
            unsaid: VecDeque::new(),
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
        self.executable = Some(executable.to_owned());
        self.tell();
    }

    /// The worker with this mark is gone; what it left behind goes too.
    pub(super) fn gone(&mut self, mark: String) {
        if self.unsaid.len() == MARKS_UNSAID_MAX {
            self.unsaid.pop_front();
        }
        self.unsaid.push_back(mark);
        self.tell();
    }

    /// Says what is unsaid, to a guard that lives and goes on. Waits for nobody.
    fn tell(&mut self) {
        if !self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None))) {
            self.process = self.start();
        }
        if self.say().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            // It died just now.
            self.process = self.start();
            // Whatever is unsaid then is said with the next mark.
            let _ = self.say();
        }
    }

    /// # Errors
    /// It is dead, or has not read for so long that its pipe is full.
    fn say(&mut self) -> io::Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        // Whoever stopped it may have meant the host with all its processes, which goes on.
        let _ = kill_process(Pid::from_child(process), Signal::CONT);
        let Some(pipe) = &mut process.stdin else { return Ok(()) };
        while let Some(mark) = self.unsaid.front() {
            // Short enough to be written whole or not at all.
            pipe.write_all(format!("{mark}\n").as_bytes())?;
            self.unsaid.pop_front();
        }
        Ok(())
    }

    fn start(&self) -> Option<Child> {
        let mut command = Command::new(self.executable.as_ref()?);
        command.arg0(NAME[0]).arg(NAME[1]).arg(format!("{}.", self.host)).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = command.spawn().and_then(|process| {
            if let Some(pipe) = &process.stdin {
                fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
            }
            Ok(process)
        });
        started.inspect_err(|e| tracing::warn!("the guard of workers cannot be started: {e}")).ok()
    }
}

/// Runs the hidden subcommand `aihost guard`: `host` begins the marks of all of a host's workers.
pub fn guard_main(host: &str) -> ExitCode {
    // Out of reach of the terminal's signals; it leads no group, so this cannot fail.
    let _ = rustix::process::setsid();
    // Whoever stops it does not keep it from the end of its host.
    let _ = set_parent_process_death_signal(Some(Signal::CONT));
    end_orphans();
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

/// Ends what hosts left behind that are gone, and has their guards go on: one was stopped, or killed with its host.
fn end_orphans() {
    let mut left = BTreeSet::new();
    for Living { pid, .. } in living().filter(|process| process.pid != getpid() && is_of_this_space(process.pid)) {
        match guarded_by(pid) {
            Some(host) if is_gone(&host) => _ = kill_process(pid, Signal::CONT),
            Some(_) => {}
            None => left.extend(host_of(pid).filter(|host| is_gone(host))),
        }
    }
    left.iter().for_each(|host| end_all(host));
}

/// Whether no process has a host's number any more. The kernel is asked, and not /proc, which may hide a process.
fn is_gone(host: &str) -> bool {
    let pid = host.split('-').next().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
    pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

/// Whether a process is numbered as this one is: a mark from elsewhere names a host that has another number here.
fn is_of_this_space(pid: Pid) -> bool {
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    space("self").is_some_and(|own| space(&pid.as_raw_pid().to_string()) == Some(own))
}

/// How the marks begin of whom a process guards, if it is a guard.
fn guarded_by(pid: Pid) -> Option<String> {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).ok()?;
    let mut words = line.split(|byte| *byte == 0).map(|word| str::from_utf8(word).ok());
    let is_guard = NAME.iter().all(|name| words.next() == Some(Some(name)));
    words.next().flatten().filter(|_| is_guard).map(str::to_owned)
}

/// How the marks of a host begin, for one of its workers and what came of it.
fn host_of(pid: Pid) -> Option<String> {
    let variable = String::from_utf8(variable(pid, format!("{WORKER_VARIABLE}=").as_bytes())?).ok()?;
    let (host, _) = variable.split_once('=')?.1.split_once('.')?;
    Some(format!("{host}."))
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
