//! An engine's process and all that comes of it. This process adopts what loses its parent, so that what forks away stays a
//! descendant: seen, waited for, ended. One of these at a time in a process: a worker holds one engine.
//!
//! When an engine that serves ends unasked, this process ends in the same way, so that its host tells the reason as it tells
//! that of any worker.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use aihost_plugin_api::{Error, Result};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpgrp, getpid, kill_process, set_child_subreaper, wait};

use super::port::{self, Listener};
use super::tail::Tail;
use super::tree::{self, Living};

/// Between two looks at what is being ended.
const END_POLL: Duration = Duration::from_millis(20);
/// How long killed processes may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// How long the line that tells of an engine's end may be on its way.
const LAST_LINE_WAIT: Duration = Duration::from_millis(50);
/// How long the last words of a process that has ended may take to come through its pipe.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(300);
/// Between two looks for what has left this process's group.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The exit code that a host takes for a lost connection; an engine's own is told as 1.
const LOST_CONNECTION_CODE: i32 = 86;
/// Added to a signal's number where a process cannot end by it.
const SIGNAL_CODES: i32 = 128;
/// Kills, once its input ends, the processes that were named in its last line.
const GUARD: &str =
    "trap '' TERM HUP INT; while read -r line; do left=$line; done; for pid in $left; do kill -9 \"$pid\"; done";

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exited(i32),
    /// By a signal.
    Killed(i32),
}

/// Where an engine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Serving,
    Stopping,
}

/// A running engine. It is stopped by [`stop`](Self::stop), and not by being dropped.
#[derive(Debug)]
pub(crate) struct Process {
    shared: Arc<Shared>,
    tail: Tail,
}

#[derive(Debug)]
struct Shared {
    port: u16,
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug)]
struct State {
    /// The process whose end is the engine's.
    main: Pid,
    phase: Phase,
    end: Option<End>,
    guard: Option<Guard>,
}

impl Process {
    /// Starts it. Its standard output is this process's own, its standard error is followed.
    pub(crate) fn start(command: &mut Command, port: u16) -> io::Result<Self> {
        set_child_subreaper(Some(getpid()))?;
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let tail = child.stderr.take().map_or_else(|| Ok(Tail::default()), Tail::follow)?;
        // It is waited for below, with everything else that this process adopts.
        let main = Pid::from_child(&child);
        let state = Mutex::new(State { main, phase: Phase::Starting, end: None, guard: None });
        let shared = Arc::new(Shared { port, state, news: Condvar::new() });
        let (reaping, told) = (Arc::clone(&shared), tail.clone());
        thread::Builder::new().name("engine-reaper".to_owned()).spawn(move || reaping.reap(&told))?;
        let looking = Arc::clone(&shared);
        thread::Builder::new().name("engine-watch".to_owned()).spawn(move || looking.watch_strays())?;
        Ok(Self { shared, tail })
    }

    /// How it ended; nothing while it runs.
    pub(crate) fn end(&self) -> Option<End> {
        self.shared.lock().end
    }

    /// Waits so long, or until it ends.
    pub(crate) fn wait(&self, long: Duration) {
        let waited = self.shared.news.wait_timeout_while(self.shared.lock(), long, |state| state.end.is_none());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Who listens on its port.
    pub(crate) fn listener(&self) -> Listener {
        let tree = self.shared.tree();
        port::listener(self.shared.port, &tree)
    }

    /// From now on its end is this process's.
    ///
    /// # Errors
    /// It has ended already.
    pub(crate) fn serve(&self) -> Result<()> {
        let mut state = self.shared.lock();
        match state.end {
            None => state.phase = Phase::Serving,
            Some(end) => return Err(Error::internal(format!("the engine {} just as it was ready", end.told()))),
        }
        Ok(())
    }

    /// The last lines that it wrote on its standard error.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        self.tail.lines(LAST_WORDS_WAIT)
    }

    /// The same of one that goes on.
    pub(crate) fn newest_lines(&self) -> Vec<String> {
        self.tail.now()
    }

    /// Whether it was ready once, and goes on.
    pub(crate) fn is_serving(&self) -> bool {
        self.end().is_none() && self.shared.lock().phase == Phase::Serving
    }

    /// Ends it and all that came of it: SIGTERM, and after so long SIGKILL. Returns when nothing is left, or cannot be ended.
    pub(crate) fn stop(&self, grace: Duration) {
        let main = {
            let mut state = self.shared.lock();
            state.phase = Phase::Stopping;
            state.end.is_none().then_some(state.main)
        };
        if let Some(main) = main {
            // It may be gone by now.
            let _ = kill_process(main, Signal::TERM);
        }
        let until = Instant::now() + grace;
        let mut is_orphaned = false;
        loop {
            let left = self.shared.tree();
            if left.is_empty() || Instant::now() >= until {
                break;
            }
            if self.end().is_some() && !is_orphaned {
                // Nobody else tells them.
                is_orphaned = true;
                tree::signal(&left, Signal::TERM);
            }
            thread::sleep(END_POLL);
        }
        self.shared.kill();
        self.shared.lock().guard = None;
    }
}

impl Shared {
    /// Waits for every child and for what is adopted, until there is none.
    fn reap(&self, tail: &Tail) {
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    if let Some(end) = self.ended(pid, status) {
                        self.end_alike(pid, end, tail);
                    }
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    /// Takes a process's end. If that is the end of an engine that should serve, how.
    fn ended(&self, pid: Pid, status: WaitStatus) -> Option<End> {
        let end = End::of(status)?;
        if self.lock().main != pid {
            return None;
        }
        let heir = (end == End::Exited(0)).then(|| self.heir()).flatten();
        let mut state = self.lock();
        match heir {
            Some(heir) => {
                tracing::info!("the engine's first process is done, and {} goes on as it", heir.as_raw_pid());
                state.main = heir;
                None
            }
            None => {
                state.end = Some(end);
                self.news.notify_all();
                (state.phase == Phase::Serving).then_some(end)
            }
        }
    }

    /// Who goes on for a process that left in good order: the oldest that is left while it starts, and later only if it
    /// answers.
    fn heir(&self) -> Option<Pid> {
        let left = self.tree();
        let phase = self.lock().phase;
        let answers = || port::listener(self.port, &left) == Listener::Own;
        let goes_on = match phase {
            Phase::Starting => true,
            Phase::Serving => answers(),
            Phase::Stopping => false,
        };
        left.iter().filter(|_| goes_on).min_by_key(|process| process.begun).map(|process| process.pid)
    }

    /// Ends this process as its engine ended.
    fn end_alike(&self, pid: Pid, end: End, tail: &Tail) -> ! {
        // What it said last comes before what is said of it.
        let _ = tail.lines(LAST_WORDS_WAIT);
        self.kill();
        let line =
            format!("the engine (process {}) {} unasked, and its worker with it\n", pid.as_raw_pid(), end.told());
        // Straight to where the host looks for last words, and last: what this process's own reader takes a moment before the
        // end goes with it.
        let _ = io::stderr().write_all(line.as_bytes());
        // What the reader did take is on its way to the host.
        thread::sleep(LAST_LINE_WAIT);
        match end {
            End::Exited(LOST_CONNECTION_CODE) => std::process::exit(1),
            End::Exited(code) => std::process::exit(code),
            End::Killed(number) => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    // The runtime's own handler takes the first of some.
                    for _ in 0..2 {
                        let _ = kill_process(getpid(), signal);
                        thread::sleep(END_POLL);
                    }
                }
                std::process::exit(SIGNAL_CODES + number)
            }
        }
    }

    /// Kills everything that is left.
    fn kill(&self) {
        let until = Instant::now() + KILL_WAIT;
        loop {
            let left = self.tree();
            if left.is_empty() || Instant::now() >= until {
                return;
            }
            tree::signal(&left, Signal::KILL);
            thread::sleep(END_POLL);
        }
    }

    /// Everything that came of this process, its guard apart.
    fn tree(&self) -> Vec<Living> {
        let guard = self.lock().guard.as_ref().map(Guard::pid);
        tree::descendants(getpid(), guard.as_slice())
    }

    /// Names to a guard what has left this process's group, which its host kills with it, for as long as there is an engine.
    fn watch_strays(&self) {
        let own = getpgrp().as_raw_pid();
        let runs = |state: &mut State| state.end.is_none() && state.phase != Phase::Stopping;
        loop {
            let waited = self.news.wait_timeout_while(self.lock(), LOOK_INTERVAL, runs);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !runs(&mut state) {
                return;
            }
            drop(state);
            let strays: Vec<Living> = self.tree().into_iter().filter(|process| process.group != own).collect();
            let mut state = self.lock();
            if runs(&mut state)
                && let Err(why) = Guard::tell(&mut state.guard, &strays)
            {
                tracing::warn!("what the engine starts outside its group has no guard: {why}");
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl End {
    fn of(status: WaitStatus) -> Option<Self> {
        status.exit_status().map(Self::Exited).or_else(|| status.terminating_signal().map(Self::Killed))
    }

    /// As a part of a sentence: "the engine ...".
    pub(crate) fn told(self) -> String {
        match self {
            Self::Exited(code) => format!("exited with code {code}"),
            Self::Killed(signal) => format!("was ended by signal {signal}"),
        }
    }
}

/// A process beside this one, out of its group and without its environment, that outlives it for a moment: it kills the strays
/// that it was told of last. Without it they would live on when this process is killed, if they threw their environment away.
#[derive(Debug)]
struct Guard {
    process: Child,
    input: ChildStdin,
    told: String,
}

impl Guard {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Tells it who there is, starting it for the first.
    fn tell(guard: &mut Option<Self>, strays: &[Living]) -> io::Result<()> {
        let line = strays.iter().map(|stray| stray.pid.as_raw_pid().to_string()).collect::<Vec<_>>().join(" ");
        if guard.is_none() && line.is_empty() {
            return Ok(());
        }
        let told = match guard {
            Some(guard) => guard,
            None => guard.insert(Self::start()?),
        };
        if told.told != line {
            writeln!(told.input, "{line}")?;
            told.told = line;
        }
        Ok(())
    }

    fn start() -> io::Result<Self> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GUARD]).env_clear().process_group(0);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let input = process.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { process, input, told: String::new() })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // What is left by now was ended. Its input closes, and it ends; the reaper waits for it.
        let _ = writeln!(self.input);
    }
}
