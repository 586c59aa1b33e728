//! Workers within their grant: one thread looks at what each holds, tells once of one that passes its plan, and ends one that
//! passes its grant. It is also the pulse by which the host knows that it was awake ([`awake`]).

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::process::Pid;

use super::super::awake::{self, TICK};
use super::super::limits::{
    DRIVER_BYTES, FAMILY_LOOKS, LOOKS_PER_CENSUS, START_BYTES, TASK_COPIES, WORKER_VARIABLE, grant_margin,
};
use super::super::placement::{Allowance, ExitReason};
use super::super::proc::{Living, living, variable};
use super::instance::Supervised;
use crate::device;
use crate::domain::{ByteSize, Device};

/// What a worker may hold, and how it fared.
#[derive(Debug)]
pub(super) struct Watched {
    device: Device,
    /// What the worker and all that comes of it carry.
    mark: String,
    allowance: Allowance,
    told: bool,
    /// Looks in a row that found too much.
    beyond: u32,
    /// What it started and is still there.
    family: Vec<Pid>,
}

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Within,
    /// It holds more than its plugin said, for the first time.
    BeyondPlan,
    BeyondGrant,
}

/// All workers that are looked at.
#[derive(Debug, Default)]
struct Watch {
    workers: Mutex<Workers>,
    added: Condvar,
}

#[derive(Debug, Default)]
struct Workers {
    all: Vec<Weak<Supervised>>,
    has_thread: bool,
}

static WATCH: Watch =
    Watch { workers: Mutex::new(Workers { all: Vec::new(), has_thread: false }), added: Condvar::new() };

/// Looks at this worker from now on, for as long as it is there.
pub(super) fn add(worker: &Arc<Supervised>) {
    let mut workers = WATCH.lock();
    workers.all.push(Arc::downgrade(worker));
    if !workers.has_thread {
        let spawned = thread::Builder::new().name("worker-watch".into()).spawn(watch);
        workers.has_thread = spawned.is_ok();
        if let Err(e) = spawned {
            tracing::error!("no thread looks at what workers hold ({e}); it is tried again with the next one");
        }
    }
    WATCH.added.notify_one();
}

fn watch() {
    for look in 0_u32.. {
        let workers = WATCH.next();
        awake::tick();
        if look.is_multiple_of(LOOKS_PER_CENSUS) {
            record_families(&workers);
        }
        for worker in &workers {
            // A card answers slowly, and for all its processes at once.
            if worker.watched().device.is_host_memory() || look.is_multiple_of(LOOKS_PER_CENSUS) {
                worker.look();
            }
        }
        drop(workers);
        thread::sleep(TICK);
    }
}

impl Watch {
    /// The workers that are there; waits for the first.
    fn next(&self) -> Vec<Arc<Supervised>> {
        let mut workers = self.lock();
        loop {
            workers.all.retain(|worker| worker.strong_count() > 0);
            let there: Vec<Arc<Supervised>> = workers.all.iter().filter_map(Weak::upgrade).collect();
            if !there.is_empty() {
                return there;
            }
            awake::rest();
            self.added.wait(&mut workers);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock()
    }
}

/// Finds out now what a worker started.
pub(super) fn record_family(worker: &Arc<Supervised>) {
    record_families(std::slice::from_ref(worker));
}

/// Finds out what each worker started.
fn record_families(workers: &[Arc<Supervised>]) {
    let all: Vec<Living> = living().collect();
    // Each is looked into once, however many workers there are.
    let orphans = all.iter().filter(|process| process.parent == Some(Pid::INIT)).map(|process| process.pid);
    let marked = format!("{WORKER_VARIABLE}=");
    let marks: HashMap<Pid, Vec<u8>> =
        orphans.filter_map(|pid| Some((pid, variable(pid, marked.as_bytes())?))).collect();
    for worker in workers.iter().filter(|worker| worker.process.pid().is_some()) {
        let mark = format!("{marked}{}", worker.watched().mark);
        let is_marked = |orphan: Pid| marks.get(&orphan).is_some_and(|found| found.starts_with(mark.as_bytes()));
        let family = family(&all, worker.process.number(), is_marked);
        worker.watched().family = family;
    }
}

/// The members of a process's group, and what has come of them all. Of those whose parent is gone only a mark tells whose
/// they are.
fn family(all: &[Living], of: Pid, is_marked: impl Fn(Pid) -> bool) -> Vec<Pid> {
    let orphans = all.iter().filter(|process| process.parent == Some(Pid::INIT) && process.pid != of);
    let marked = orphans.map(|process| process.pid).filter(|pid| is_marked(*pid));
    let mut found: Vec<Pid> = [of].into_iter().chain(marked).collect();
    loop {
        let is_new = |process: &&Living| {
            let comes_of = [process.parent, process.group].iter().flatten().any(|pid| found.contains(pid));
            comes_of && !found.contains(&process.pid)
        };
        let more: Vec<Pid> = all.iter().filter(is_new).map(|process| process.pid).collect();
        if more.is_empty() {
            found.retain(|pid| *pid != of);
            return found;
        }
        found.extend(more);
    }
}

impl Supervised {
    /// Bytes of host memory that it and what it started hold, as far as that is known; pages that they share count for each.
    pub(super) fn usage(&self) -> Option<u64> {
        let own = self.process.charged()?;
        let family = self.watched().family.clone();
        let rest = family.iter().filter_map(|pid| device::charged_to(pid.as_raw_pid().unsigned_abs()));
        Some(rest.fold(own, u64::saturating_add))
    }

    /// Measures it and draws the consequence: if it is ended, why.
    pub(super) fn look(&self) -> Option<ExitReason> {
        let (device, family) = {
            let watched = self.watched();
            (watched.device, watched.family.clone())
        };
        // Once it is reaped its number may be someone else's.
        let own = self.process.pid()?;
        let bytes = |pid| device::held_by(device, pid);
        let of_its_own = bytes(own)?;
        let family: Vec<u32> = family.iter().map(|pid| pid.as_raw_pid().unsigned_abs()).collect();
        let rest = family.iter().filter_map(|pid| bytes(*pid)).fold(0, u64::saturating_add);
        let tasks = self.task_bytes.load(Ordering::Relaxed).saturating_mul(TASK_COPIES);
        let mut held = of_its_own.saturating_add(rest);
        let mapped = self.watched().allowance.mapped;
        if rest > 0 && device.is_host_memory() && held.saturating_add(mapped) > self.watched().most() {
            // They may share pages, which are counted for each of them above.
            let shares = family.iter().filter_map(|pid| device::share_of(*pid));
            held = device::share_of(own).map_or(held, |own| shares.fold(own, u64::saturating_add));
        }
        let (verdict, held, allowance) = {
            let mut watched = self.watched();
            let held = held.saturating_add(watched.allowance.mapped).saturating_sub(tasks);
            (watched.judge(held, rest == 0), held, watched.allowance)
        };
        match verdict {
            Verdict::Within => {}
            Verdict::BeyondPlan => tracing::info!(
                target: "worker",
                model = %self.model,
                planned = allowance.planned,
                measured = held,
                "it holds {} where its plugin planned {}; {} are granted, and much more ends it",
                ByteSize(held),
                ByteSize(allowance.planned),
                ByteSize(allowance.granted)
            ),
            Verdict::BeyondGrant => {
                let reason = ExitReason::BeyondGrant { held, granted: allowance.granted };
                self.process.kill(reason.clone());
                return Some(reason);
            }
        }
        None
    }
}

impl Watched {
    pub(super) fn new(device: Device, mark: String) -> Self {
        let allowance = Allowance { planned: START_BYTES, granted: START_BYTES, mapped: 0 };
        Self { device, mark, allowance, told: false, beyond: 0, family: Vec::new() }
    }

    /// What it may hold from now on.
    pub(super) fn allow(&mut self, allowance: Allowance) {
        self.allowance = allowance;
        self.beyond = 0;
    }

    /// The most that does not end it.
    fn most(&self) -> u64 {
        self.allowance.most().saturating_add(self.driver())
    }

    /// What is not its own doing.
    fn driver(&self) -> u64 {
        if self.device.is_host_memory() { 0 } else { DRIVER_BYTES }
    }

    fn judge(&mut self, held: u64, is_alone: bool) -> Verdict {
        self.beyond = if held > self.most() { self.beyond + 1 } else { 0 };
        if self.beyond >= if is_alone { 1 } else { FAMILY_LOOKS } {
            return Verdict::BeyondGrant;
        }
        // Half of what ends it: a process has its own needs beside its model's.
        let planned = self.allowance.planned;
        let tolerated = planned.saturating_add(grant_margin(planned) / 2).saturating_add(self.driver());
        if held > tolerated && !self.told {
            self.told = true;
            return Verdict::BeyondPlan;
        }
        Verdict::Within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn watched(device: &str, planned: u64, granted: u64) -> Watched {
        let mut watched = Watched::new(device.parse().unwrap(), String::new());
        watched.allow(Allowance { planned, granted, mapped: 0 });
        watched
    }

    #[test]
    fn one_that_passes_its_plan_is_told_of_once_and_one_that_passes_its_grant_is_ended() {
        use Verdict::{BeyondGrant, BeyondPlan, Within};
        for (planned, granted, looks) in [
            // The margin is 64 MiB, or a tenth.
            (100, 100, [(100, Within), (132, Within), (133, BeyondPlan), (164, Within), (165, BeyondGrant)]),
            (2000, 2000, [(2100, Within), (2101, BeyondPlan), (2102, Within), (2200, Within), (2201, BeyondGrant)]),
            // Granted more than was planned, since it was seen to hold more.
            (100, 1000, [(132, Within), (200, BeyondPlan), (1000, Within), (1100, Within), (1101, BeyondGrant)]),
            // Ended at once without a word before.
            (0, 0, [(0, Within), (30, Within), (65, BeyondGrant), (65, BeyondGrant), (0, Within)]),
        ] {
            let mut watched = watched("cpu", planned * MIB, granted * MIB);
            for (held, wanted) in looks {
                assert_eq!(watched.judge(held * MIB, true), wanted, "{held} of {planned} and {granted} MiB");
            }
        }
    }

    #[test]
    fn a_card_knows_what_a_driver_takes_and_a_process_that_is_being_started_is_not_counted_twice() {
        let mut card = watched("cuda:0", 1000 * MIB, 1000 * MIB);
        assert_eq!(card.judge(2000 * MIB, true), Verdict::Within);
        assert_eq!(card.judge(2125 * MIB, true), Verdict::BeyondGrant);
        let mut family = watched("cpu", 1000 * MIB, 1000 * MIB);
        for (held, wanted) in [
            (2000, Verdict::BeyondPlan),
            (1000, Verdict::Within),
            (2000, Verdict::Within),
            (2000, Verdict::BeyondGrant),
        ] {
            assert_eq!(family.judge(held * MIB, false), wanted, "{held} MiB");
        }
    }

    #[test]
    fn a_family_is_a_group_and_all_that_came_of_it() {
        let pid = |number| Pid::from_raw(number).unwrap();
        let process =
            |number, parent, group| Living { pid: pid(number), parent: Some(pid(parent)), group: Some(pid(group)) };
        let all = [
            process(10, 1, 10),
            process(11, 10, 10),
            // In a session of its own, and its child.
            process(12, 11, 12),
            process(13, 12, 12),
            // Its parent is gone, its group is not.
            process(14, 1, 10),
            process(20, 1, 20),
            process(21, 20, 20),
            // In a session of its own, and its parent is gone: only its mark tells.
            process(30, 1, 30),
            process(31, 30, 30),
        ];
        let marked = |orphan| orphan == pid(30);
        let mut found: Vec<i32> = family(&all, pid(10), marked).into_iter().map(|pid| pid.as_raw_pid()).collect();
        found.sort_unstable();
        assert_eq!(found, [11, 12, 13, 14, 30, 31]);
    }
}
