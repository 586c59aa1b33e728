//! A worker's process: killing it, waiting for it, and telling why it went.

use std::fs;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, kill_process_group, waitid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;

use super::super::awake::Instant;
use super::super::limits::{EXIT_POLL, LOST_CONNECTION_CODE, PANICKED_CODE, TERMINATE_GRACE, TERMINATE_POLL};
use super::super::placement::ExitReason;
use super::super::proc::{Living, living};
use crate::device;

/// One worker process, alive or gone.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    state: Mutex<ProcessState>,
    gone: watch::Sender<Option<ExitReason>>,
    oom_kills_before: Option<u64>,
}

#[derive(Debug, Default)]
struct ProcessState {
    /// Its number may belong to someone else.
    reaped: bool,
    /// Why the host ended it; nothing while it has not.
    verdict: Option<ExitReason>,
    /// Whether it was asked to go.
    is_asked: bool,
    /// Until when the rest of its group may end by itself; nothing if it may not.
    group_until: Option<Instant>,
}

/// What a worker left.
#[derive(Debug, Default)]
pub(super) struct LastWords {
    /// It said that an allocation failed.
    pub(super) allocation_failed: bool,
    /// Why it could not give back what it held, once it was asked to.
    pub(super) release: Option<String>,
}

impl Process {
    pub(super) fn new(pid: Pid) -> Self {
        Self { pid, state: Mutex::default(), gone: watch::Sender::new(None), oom_kills_before: oom_kills() }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        (!self.lock().reaped).then(|| self.pid.as_raw_pid().unsigned_abs())
    }

    /// Its number, which may be someone else's once it is gone.
    pub(super) fn number(&self) -> Pid {
        self.pid
    }

    /// Bytes charged to it, while it lives.
    pub(super) fn charged(&self) -> Option<u64> {
        let bytes = device::charged_to(self.pid()?)?;
        // Once it is reaped, its number may be someone else's.
        self.pid().map(|_| bytes)
    }

    /// Kills the worker and everything in its process group. The first reason given is the one that is told.
    pub(super) fn kill(&self, reason: ExitReason) {
        let mut state = self.lock();
        if state.reaped {
            return;
        }
        state.verdict.get_or_insert(reason);
        self.kill_group();
    }

    /// Why the host ended it, or wants it to end; nothing while it does not.
    pub(super) fn verdict(&self) -> Option<ExitReason> {
        let state = self.lock();
        state.verdict.clone().or(state.is_asked.then_some(ExitReason::Asked))
    }

    /// Whether it is gone, or was ended for what it did.
    pub(super) fn is_lost(&self) -> bool {
        let state = self.lock();
        state.reaped || state.verdict.is_some()
    }

    /// Asks the worker and everything in its process group to end, the last time before they are killed, for this reason. What
    /// is left of the group when the worker is gone has [`TERMINATE_GRACE`] too.
    pub(super) fn terminate(&self, reason: ExitReason) {
        let mut state = self.lock();
        if !state.reaped {
            state.verdict.get_or_insert(reason);
            state.group_until = Some(Instant::now() + TERMINATE_GRACE);
            // Nothing left to signal is what is wanted.
            let _ = kill_process_group(self.pid, Signal::TERM);
        }
    }

    /// From now on it is to end, in good order.
    pub(super) fn expect_exit(&self) {
        let mut state = self.lock();
        state.is_asked |= state.verdict.is_none();
    }

    /// Whether it was asked to end before anything else ended it.
    pub(super) fn is_asked(&self) -> bool {
        self.lock().is_asked
    }

    /// Resolves when it is gone, with the reason.
    pub(super) async fn gone(&self) -> ExitReason {
        let mut gone = self.gone.subscribe();
        match gone.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(ExitReason::Asked),
            Err(_) => ExitReason::Asked,
        }
    }

    /// Waits for its end, kills what is left of its group, and reaps it. `last_words` reads what it said and printed last.
    pub(super) async fn watch(&self, last_words: impl AsyncFnOnce() -> LastWords) -> ExitReason {
        self.exited().await;
        self.group_left().await;
        // Its number is still its own until it is reaped, so the group cannot be someone else's.
        self.kill_group();
        let LastWords { allocation_failed, release } = last_words().await;
        let mut state = self.lock();
        let status = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED).ok().flatten();
        state.reaped = true;
        let by_memory = self.oom_kills_before.zip(oom_kills()).is_some_and(|(before, after)| after > before);
        let reason = state.verdict.clone().unwrap_or_else(|| {
            match (classify(status.as_ref(), allocation_failed, by_memory), release) {
                (ExitReason::Exited(0), Some(why)) if state.is_asked => ExitReason::Unreleased(why),
                (ExitReason::Exited(0), None) if state.is_asked => ExitReason::Asked,
                (other, _) => other,
            }
        });
        drop(state);
        self.gone.send_replace(Some(reason.clone()));
        reason
    }

    /// Resolves when nothing of the group is left but the worker, or its time is up.
    async fn group_left(&self) {
        let until = self.lock().group_until;
        while until.is_some_and(|until| Instant::now() < until) && self.has_group() {
            sleep(TERMINATE_POLL).await;
        }
    }

    /// Whether another process than the worker lives in its group. Asked of /proc: a signal to a group also reaches the
    /// worker's own remains.
    fn has_group(&self) -> bool {
        living().any(|process| is_member(process, self.pid))
    }

    /// Resolves when the process has ended; it is not reaped. The number is enough to wait for: it is this host's child, so
    /// nobody else has it before it is reaped. No descriptor is needed, nor a system call that older systems lack or
    /// containers forbid.
    async fn exited(&self) {
        // Before the first look, so that no end comes between the two.
        let mut ends = signal(SignalKind::child()).ok();
        while !self.has_ended() {
            let told = match &mut ends {
                Some(ends) => ends.recv().await.is_some(),
                None => false,
            };
            if !told {
                sleep(EXIT_POLL).await;
            }
        }
    }

    fn has_ended(&self) -> bool {
        match waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG) {
            Ok(status) => status.is_some(),
            // Somebody has reaped it who should not have: it is gone all the same.
            Err(Errno::CHILD) => true,
            Err(_) => !living().any(|process| process.pid == self.pid),
        }
    }

    fn kill_group(&self) {
        // Either may fail because nothing is left, which is what is wanted.
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = kill_process(self.pid, Signal::KILL);
    }

    fn lock(&self) -> MutexGuard<'_, ProcessState> {
        self.state.lock()
    }
}

/// Why a process that nobody ended went.
fn classify(status: Option<&WaitIdStatus>, allocation_failed: bool, by_memory: bool) -> ExitReason {
    let exit = status.and_then(WaitIdStatus::exit_status);
    let signal = status.and_then(WaitIdStatus::terminating_signal);
    reason(exit, signal, allocation_failed, by_memory)
}

fn reason(exit: Option<i32>, signal: Option<i32>, allocation_failed: bool, by_memory: bool) -> ExitReason {
    match (exit, signal) {
        (Some(LOST_CONNECTION_CODE), _) => {
            ExitReason::Misbehaved("its plugin closed the connection to the host".to_owned())
        }
        (Some(PANICKED_CODE), _) => ExitReason::Panicked,
        (Some(code), _) => ExitReason::Exited(code),
        (_, Some(libc::SIGABRT)) if allocation_failed => ExitReason::OutOfMemory,
        (_, Some(libc::SIGABRT)) => ExitReason::Aborted,
        (_, Some(signal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE))) => ExitReason::Crashed(signal),
        (_, Some(libc::SIGKILL)) if by_memory => ExitReason::OutOfMemory,
        (_, Some(signal)) => ExitReason::Killed(signal),
        (None, None) => ExitReason::Killed(libc::SIGKILL),
    }
}

/// Whether a process is a member of a group, other than its leader.
fn is_member(process: Living, group: Pid) -> bool {
    process.pid != group && process.group == Some(group)
}

/// Processes the kernel has killed for memory, cgroup limits included.
fn oom_kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::time::Duration;

    use super::*;

    /// A process of this group; 0 makes it the leader of one of its own.
    fn sleeper(group: u32) -> Child {
        Command::new("sleep").arg("60").process_group(group.cast_signed()).spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().and_then(|()| child.wait()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_has_its_grace_and_not_longer_than_anyone_is_left() {
        let leader = sleeper(0);
        let member = sleeper(leader.id());
        let process = Process::new(Pid::from_child(&leader));
        // How long it takes, once it was asked to leave.
        let left = async |grace: Duration| {
            let begun = Instant::now();
            process.lock().group_until = Some(begun + grace);
            process.group_left().await;
            begun.elapsed()
        };
        assert_eq!(left(Duration::ZERO).await, Duration::ZERO, "no grace");
        assert_eq!(left(TERMINATE_GRACE).await, TERMINATE_GRACE, "a member lives");
        end(member);
        assert_eq!(left(TERMINATE_GRACE).await, Duration::ZERO, "nobody is left but the leader");
        end(leader);
    }

    #[test]
    fn members_of_a_group_are_told_from_their_leader_and_from_the_dead() {
        for (stat, lives) in [
            ("71 (a) ) b) S 1 70 70 0", true),
            ("70 (leader) S 1 70 70 0", false),
            ("71 (dead) Z 1 70 70 0", false),
            ("71 (other) S 70 71 70 0", false),
            ("", false),
        ] {
            let group = Pid::from_raw(70).unwrap();
            assert_eq!(Living::of(stat).is_some_and(|process| is_member(process, group)), lives, "{stat}");
        }
    }

    #[test]
    fn exits_are_told_apart() {
        for (exit, signal, allocation_failed, by_memory, wanted) in [
            (Some(0), None, false, false, ExitReason::Exited(0)),
            (None, Some(6), false, false, ExitReason::Aborted),
            (None, Some(6), true, false, ExitReason::OutOfMemory),
            (None, Some(11), true, true, ExitReason::Crashed(11)),
            (None, Some(9), false, false, ExitReason::Killed(9)),
            (None, Some(9), false, true, ExitReason::OutOfMemory),
            (None, Some(15), false, true, ExitReason::Killed(15)),
        ] {
            assert_eq!(reason(exit, signal, allocation_failed, by_memory), wanted);
        }
    }
}
