//! The scheduler against chance: 150,000 seeded events in a world that answers late, in any order, and fails. A seed that
//! fails is printed by the assertion.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::tests::policy;
use super::{Again, DevicePolicy, Effect, Event, Keep, Mapped, Policy, State, Want};
use crate::domain::{Device, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState, RequestId};

/// Devices by name, budget and most instances.
const DEVICES: [(Device, u64, u64); 2] = [(Device::Cpu, 250, 2), (Device::Cuda(0), 150, 1)];

/// A world that answers effects late, in any order, with crashes, cancels, unloads and failed loads.
struct World {
    state: State,
    rng: u64,
    now: u64,
    pending: Vec<Event>,
    open: BTreeMap<RequestId, Answer>,
    leased: BTreeMap<RequestId, InstanceId>,
    next: u64,
    /// Instances of entries that changed since.
    stale: BTreeSet<InstanceId>,
    /// Requests whose workers died.
    again: BTreeMap<RequestId, Again>,
    /// Those that were granted, and until when nobody else may be beside them.
    on_trial: BTreeMap<RequestId, Millis>,
    /// Who was quarantined when that was last said to have changed.
    remembered: BTreeSet<ModelId>,
    /// How often each kind of effect was asked for: a world in which something never happens proves nothing of it.
    seen: BTreeMap<&'static str, u64>,
}

fn kind(effect: &Effect) -> &'static str {
    match effect {
        Effect::Start { .. } => "start",
        Effect::Load { .. } => "load",
        Effect::Park(..) => "park",
        Effect::Unpark(_) => "unpark",
        Effect::Grant(..) => "grant",
        Effect::Ready(_) => "ready",
        Effect::Refuse(..) => "refuse",
        Effect::Stop(..) => "stop",
        Effect::Kill(_) => "kill",
        Effect::RememberQuarantine => "remember",
        Effect::SetTimer(_) => "set timer",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Waiting,
    Granted,
}

impl World {
    fn draw(&mut self, below: u64) -> u64 {
        // SplitMix64 (Steele et al. 2014): small, seeded, the same everywhere.
        self.rng = self.rng.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }

    fn feed(&mut self, event: Event) {
        if let Event::Done(id) = &event {
            self.leased.remove(id);
            self.open.remove(id);
        }
        if let Event::Exited(id, _) = &event {
            let lost: Vec<RequestId> =
                self.leased.iter().filter(|(_, on)| *on == id).map(|(request, _)| *request).collect();
            self.pending.extend(lost.into_iter().map(Event::Done));
        }
        for effect in self.state.step(Millis(self.now), event) {
            self.carry_out(effect);
        }
        self.check();
    }

    fn carry_out(&mut self, effect: Effect) {
        *self.seen.entry(kind(&effect)).or_default() += 1;
        match effect {
            Effect::Start { instance, model, .. } => {
                let required = 60 + 20 * (model.as_str().len() as u64);
                let event = if self.draw(12) == 0 {
                    Event::Failed(instance, Failure::new(FailureKind::NotUsable, "start"))
                } else {
                    // Two of the models are one file.
                    let mapped = Mapped { files: u64::from(model.as_str().len() == 1), bytes: required / 2 };
                    Event::Planned { instance, required, preferred: required + 30, mapped }
                };
                self.pending.push(event);
            }
            Effect::Load { instance, granted } => {
                assert!(granted > 0);
                let event = if self.draw(12) == 0 {
                    Event::Failed(instance, Failure::new(FailureKind::OutOfMemory, "load"))
                } else {
                    Event::Loaded(instance)
                };
                self.pending.push(event);
            }
            Effect::Grant(id, instance) => {
                assert_eq!(
                    self.open.insert(id, Answer::Granted),
                    Some(Answer::Waiting),
                    "granted twice or after a refusal"
                );
                assert!(!self.stale.contains(&instance), "granted on an instance of an entry that is no more");
                self.check_trial(id, instance);
                self.leased.insert(id, instance);
                self.pending.push(Event::Done(id));
            }
            Effect::Ready(id) | Effect::Refuse(id, _) => {
                assert_eq!(self.open.remove(&id), Some(Answer::Waiting), "answered twice");
            }
            Effect::Park(instance, _) => {
                assert!(!self.leased.values().any(|on| *on == instance), "parked under a lease");
                let held = self.state.instances()[&instance].required / 2;
                let event = if self.draw(12) == 0 {
                    Event::Failed(instance, Failure::new(FailureKind::NotUsable, "park"))
                } else {
                    Event::Parked { instance, held }
                };
                self.pending.push(event);
            }
            Effect::Unpark(instance) => {
                let event = if self.draw(12) == 0 {
                    Event::Failed(instance, Failure::new(FailureKind::NotUsable, "wake"))
                } else {
                    Event::Unparked(instance)
                };
                self.pending.push(event);
            }
            Effect::Kill(instance) => {
                self.pending.push(Event::Exited(instance, Failure::new(FailureKind::WorkerDied, "cut")));
            }
            Effect::Stop(instance, _) => {
                assert!(!self.leased.values().any(|on| *on == instance), "stopped under a lease");
                self.pending.push(Event::Exited(instance, Failure::new(FailureKind::WorkerDied, "asked")));
            }
            Effect::RememberQuarantine => {
                let now: BTreeSet<ModelId> = self.state.quarantined().map(|(model, _)| model.clone()).collect();
                self.remembered = now;
            }
            Effect::SetTimer(at) => assert!(at > Millis(self.now)),
        }
    }

    /// Nobody begins beside one that is on trial but others on trial, and no more of them than there may be.
    fn check_trial(&mut self, id: RequestId, instance: InstanceId) {
        let beside: Vec<RequestId> =
            self.leased.iter().filter(|(_, on)| **on == instance).map(|(request, _)| *request).collect();
        let policy = self.state.policy();
        let leases_max =
            self.state.instances().get(&instance).map_or(0, |known| policy.models[&known.model].leases_max);
        if let Some(again) = self.again.get(&id) {
            assert!(beside.len() < again.room(leases_max), "{again:?} beside {beside:?}");
            assert!(beside.iter().all(|other| self.again.contains_key(other)), "a trial beside {beside:?}");
            self.on_trial.insert(id, Millis(self.now).after(again.trial_ms(policy)));
        } else {
            let company = beside.iter().filter_map(|other| self.on_trial.get(other)).max();
            assert!(company.is_none_or(|until| *until <= Millis(self.now)), "{id:?} beside a trial until {company:?}");
        }
    }

    fn check(&self) {
        assert!(
            self.state.quarantined().map(|(model, _)| model).eq(&self.remembered),
            "a quarantine nobody was told of"
        );
        let mut used: BTreeMap<Device, u64> = BTreeMap::new();
        let mut places: BTreeMap<Device, u64> = BTreeMap::new();
        let mut files: BTreeMap<(Device, u64), Vec<u64>> = BTreeMap::new();
        for instance in self.state.instances().values() {
            let device = instance.device;
            *used.entry(device).or_default() += instance.reserved;
            if instance.reserved > 0 {
                files.entry((device, instance.mapped.files)).or_default().push(instance.mapped.bytes);
            }
            *used.entry(Device::Cpu).or_default() += instance.held;
            *places.entry(device).or_default() += u64::from(instance.reserved > 0);
            assert!(instance.held == 0 || instance.leases.is_empty(), "a lease on what is parked: {instance:?}");
        }
        // A file that many map is in memory once.
        for ((device, _), bytes) in files {
            *used.entry(device).or_default() -= bytes.iter().sum::<u64>() - bytes.iter().max().unwrap();
        }
        for (device, budget, most) in DEVICES {
            let (bytes, count) = (used.get(&device).copied().unwrap_or(0), places.get(&device).copied().unwrap_or(0));
            assert!(bytes <= budget, "over the budget of {device}: {bytes}");
            assert!(count <= most, "too many on {device}: {count}");
        }
    }

    /// A policy by chance: what a person may write into models.yaml while the host runs.
    fn draw_policy(&mut self) -> Policy {
        let names: Vec<&str> = ["a", "bb", "ccc"].into_iter().filter(|_| self.draw(8) > 0).collect();
        let mut policy = policy(&names, 0, None);
        policy.hold_ms = 1_000_000_000;
        policy.slot_wait_ms = 1_000_000_000;
        policy.devices = DEVICES
            .iter()
            .map(|(device, budget, most)| {
                let loaded_max = Some(usize::try_from(*most).unwrap());
                (*device, DevicePolicy { budget: *budget, loaded_max })
            })
            .collect();
        for model in policy.models.values_mut() {
            let both = [Device::Cpu, Device::Cuda(0)];
            model.devices = match self.draw(3) {
                0 => both[..1].to_vec(),
                1 => both[1..].to_vec(),
                _ => both.to_vec(),
            };
            model.replicas = 1 + self.draw(3) as usize;
            model.leases_max = 1 + self.draw(2) as usize;
            model.parks = self.draw(2) == 0;
            model.pin = self.draw(10) == 0;
            model.keep = [Keep::Forever, Keep::For(0), Keep::For(500)][self.draw(3) as usize];
        }
        policy
    }

    /// Another policy comes in force.
    fn configure(&mut self) {
        let policy = self.draw_policy();
        let before = Arc::clone(self.state.policy());
        let gone = before.models.keys().filter(|model| !policy.models.contains_key(*model));
        self.feed(Event::Configure { anew: Arc::new(gone.cloned().collect()), policy: Arc::new(policy) });
    }

    fn step(&mut self) {
        // Now and then the machine sleeps for a day.
        self.now += if self.draw(500) == 0 { 86_400_000 } else { self.draw(200) };
        let model = ["a", "bb", "ccc"][self.draw(3) as usize];
        match self.draw(20) {
            0..6 => {
                self.next += 1;
                let id = RequestId(self.next);
                let again = Again { deaths: 1 + self.draw(5) as u32, ran_ms: self.draw(400) };
                let want = [Want::Serve, Want::ServeBatch, Want::Load, Want::Again(again), Want::Again(again)];
                let want = want[self.draw(5) as usize];
                if want == Want::Again(again) {
                    self.again.insert(id, again);
                }
                self.open.insert(id, Answer::Waiting);
                let keep = [None, None, Some(Keep::For(0)), Some(Keep::Forever)][self.draw(4) as usize];
                self.feed(Event::Request { id, model: model.into(), want, keep });
            }
            6 => {
                let waiting: Vec<RequestId> =
                    self.open.iter().filter(|(_, a)| **a == Answer::Waiting).map(|(id, _)| *id).collect();
                if !waiting.is_empty() {
                    let id = waiting[self.draw(waiting.len() as u64) as usize];
                    self.open.remove(&id);
                    self.feed(Event::Cancel(id));
                }
            }
            7 => {
                let event = match self.draw(4) {
                    0 => Event::Unload { model: model.into(), cut_after_ms: None },
                    1 => Event::Unload { model: model.into(), cut_after_ms: Some(self.draw(300)) },
                    2 => Event::Park(model.into()),
                    _ => Event::Measured(Device::Cpu, 100 + self.draw(200)),
                };
                self.feed(event);
            }
            11 if self.draw(10) == 0 => {
                let event = match self.draw(3) {
                    0 => {
                        let of_model = self.state.instances().iter().filter(|(_, known)| known.model.as_str() == model);
                        self.stale.extend(of_model.map(|(id, _)| *id));
                        let anew = Arc::new([model.into()].into());
                        Event::Configure { policy: Arc::clone(self.state.policy()), anew }
                    }
                    1 => Event::Quarantine(model.into(), Failure::new(FailureKind::Suspected, "harmful")),
                    _ => Event::Renew(Arc::new([model.into()].into())),
                };
                self.feed(event);
            }
            10 if self.draw(20) == 0 => {
                self.configure();
            }
            8 if self.draw(10) == 0 => {
                let alive: Vec<InstanceId> = self.state.instances().keys().copied().collect();
                if !alive.is_empty() {
                    let id = alive[self.draw(alive.len() as u64) as usize];
                    self.feed(Event::Exited(id, Failure::new(FailureKind::WorkerDied, "crash")));
                }
            }
            12 if self.draw(10) == 0 => {
                let hot = self.state.instances().iter().filter(|(_, known)| known.state == ModelState::Hot);
                let hot: Vec<InstanceId> = hot.map(|(id, _)| *id).collect();
                if !hot.is_empty() {
                    let id = hot[self.draw(hot.len() as u64) as usize];
                    self.feed(Event::Failed(id, Failure::new(FailureKind::Internal, "unhealthy")));
                }
            }
            9 => self.feed(Event::Timer),
            _ if !self.pending.is_empty() => {
                let at = self.draw(self.pending.len() as u64) as usize;
                let event = self.pending.swap_remove(at);
                self.feed(event);
            }
            _ => {}
        }
    }

    /// With every effect answered and time passing, nobody may wait for ever.
    fn drain(&mut self, seed: u64) {
        for _ in 0..10_000 {
            if self.open.is_empty() && self.pending.is_empty() {
                return;
            }
            self.now += 500;
            match self.pending.pop() {
                Some(event) => self.feed(event),
                None => self.feed(Event::Timer),
            }
        }
        panic!("seed {seed}: lost waiters {:?} in {:#?}", self.open, self.state);
    }
}

#[test]
fn chance_finds_no_lost_waiter_no_double_answer_no_eviction_under_lease() {
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..100 {
        let mut world = World {
            state: State::new(policy(&[], 0, None)),
            rng: seed,
            now: 1,
            pending: Vec::new(),
            open: BTreeMap::new(),
            leased: BTreeMap::new(),
            next: 0,
            stale: BTreeSet::new(),
            again: BTreeMap::new(),
            on_trial: BTreeMap::new(),
            remembered: BTreeSet::new(),
            seen: BTreeMap::new(),
        };
        let steps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.configure();
            (0..1_500).for_each(|_| world.step());
            world.drain(seed);
            world.feed(Event::Shutdown);
            world.drain(seed);
            assert!(world.state.is_over());
        }));
        assert!(steps.is_ok(), "seed {seed} failed, see the panic above");
        world.seen.into_iter().for_each(|(kind, count)| *seen.entry(kind).or_default() += count);
    }
    eprintln!("{seen:?}");
    assert_eq!(seen.len(), 11, "something never happened: {seen:?}");
}
