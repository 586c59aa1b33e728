//! The scheduler against everything: every order of events of a small world, explored to the end.
//!
//! Two models of which one parks, one place, three requests, at most one crash, one failure of a load, park or wake, one
//! cancel and one unload; effects are answered in any order. From every state reached, a fair world must be able to answer everyone.
//!
//! In another world one model serves two at once and its workers die, twice; whoever was on them is tried again. In a third
//! one model can never fit, the other is quarantined and parked by its operator.
//!
//! In every state of every world, what is explained of a request for each model is what a request then meets.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Checker, Model, Property};

use super::{
    Again, DevicePolicy, Effect, Event, Explanation, Keep, Mapped, ModelPolicy, Outcome, Policy, State, Staying, Want,
};
use crate::domain::{Device, EvictionCause, Failure, FailureKind, InstanceId, Millis, ModelId, ModelState, RequestId};

const TICK_MS: u64 = 1_000;
const TICKS: u64 = 2;

/// Under which a request is tried again whose worker died: above all that are sent.
const AGAIN_FROM: u64 = 1_000;

/// A world in which a waiter's patience lasts this long.
struct World {
    patience_ms: u64,
    requests: u64,
    about: About,
}

/// What happens in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum About {
    Swaps,
    Deaths,
    Refusals,
}

/// What a request would meet if nothing happened but what it brings about itself: its model's worker plans, loads and wakes,
/// and whoever is made to leave for it does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Met {
    outcome: Outcome,
    leaves: BTreeSet<(InstanceId, &'static str)>,
}

/// A request that follows its own consequences through a world.
struct Probe {
    state: State,
    now: Millis,
    model: ModelId,
    pending: BTreeSet<Answer>,
    leaves: BTreeSet<(InstanceId, &'static str)>,
    is_granted: bool,
    is_refused: bool,
    /// Bytes that its worker then said it needs.
    needs: Option<u64>,
    /// What whoever asks was told.
    refusal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Snapshot {
    about: About,
    state: State,
    now: u64,
    sent: u64,
    crashes_left: u8,
    failures_left: u8,
    cancels_left: u8,
    unloads_left: u8,
    quarantines_left: u8,
    parks_left: u8,
    /// Answers of the world that are under way.
    pending: BTreeSet<Answer>,
    /// Who waits, and for which model.
    waiting: BTreeMap<RequestId, &'static str>,
    leased: BTreeMap<RequestId, InstanceId>,
    /// When they were granted.
    since: BTreeMap<RequestId, u64>,
    /// Requests whose workers died, and will be tried again once that is known.
    lost: BTreeSet<RequestId>,
    /// Requests that are tried again.
    again: BTreeMap<RequestId, Again>,
    replays: u64,
    /// What was seen of trials.
    seen: BTreeSet<&'static str>,
    /// The first rule that was broken.
    broken: Option<&'static str>,
    /// Whether someone waited in vain for a slot.
    gave_up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Answer {
    Planned(InstanceId),
    Loaded(InstanceId),
    Parked(InstanceId),
    Unparked(InstanceId),
    Exited(InstanceId),
    Done(RequestId),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Action {
    Request(&'static str),
    Answer(Answer),
    Fail(InstanceId),
    Crash(InstanceId),
    Cancel(RequestId),
    Unload(&'static str),
    Quarantine(&'static str),
    Park(&'static str),
    Tick,
}

/// What the plugin of an instance plans. What is too large is so in the world that is about refusals.
fn planned(state: &State, about: About, instance: InstanceId) -> Event {
    let is_too_large = about == About::Refusals && state.instances()[&instance].model.as_str() == "b";
    let required = if is_too_large { 200 } else { 80 };
    Event::Planned { instance, required, preferred: required + 10, mapped: Mapped::default() }
}

fn failure() -> Failure {
    Failure::new(FailureKind::WorkerDied, "x")
}

impl Snapshot {
    fn start(&World { patience_ms, about, .. }: &World) -> Self {
        let (leases_max, crashes, others) = match about {
            About::Swaps => (1, 1, 1),
            About::Deaths => (2, 2, 0),
            About::Refusals => (1, 0, 1),
        };
        let of_operators = u8::from(about == About::Refusals);
        let device = Device::Cpu;
        let model = |parks| ModelPolicy {
            devices: vec![device],
            replicas: 1,
            leases_max,
            parks,
            pin: false,
            priority: 0,
            keep: Keep::Forever,
        };
        let policy = Policy {
            // One of the two parks, so that every swap is seen in both ways.
            models: [("a", true), ("b", false)].map(|(name, parks)| (ModelId::from(name), model(parks))).into(),
            devices: [(device, DevicePolicy { budget: 100, loaded_max: Some(1) })].into(),
            host_memory: device,
            queue_max: 10,
            max_wait_ms: TICK_MS,
            quantum_ms: 10,
            hold_ms: patience_ms,
            slot_wait_ms: patience_ms,
        };
        Self {
            about,
            state: State::new(policy),
            now: 1,
            sent: 0,
            crashes_left: crashes,
            failures_left: others,
            cancels_left: others,
            unloads_left: others,
            quarantines_left: of_operators,
            parks_left: of_operators,
            pending: BTreeSet::new(),
            waiting: BTreeMap::new(),
            leased: BTreeMap::new(),
            since: BTreeMap::new(),
            lost: BTreeSet::new(),
            again: BTreeMap::new(),
            replays: 0,
            seen: BTreeSet::new(),
            broken: None,
            gave_up: false,
        }
    }

    fn feed(&mut self, event: Event) {
        for effect in self.state.step(Millis(self.now), event) {
            match effect {
                Effect::Start { instance, .. } => _ = self.pending.insert(Answer::Planned(instance)),
                Effect::Load { instance, .. } => _ = self.pending.insert(Answer::Loaded(instance)),
                Effect::Park(instance, _) => {
                    self.rule(!self.leased.values().any(|on| *on == instance), "no eviction under a lease");
                    self.pending.insert(Answer::Parked(instance));
                }
                Effect::Unpark(instance) => _ = self.pending.insert(Answer::Unparked(instance)),
                Effect::Stop(instance, _) => {
                    self.rule(!self.leased.values().any(|on| *on == instance), "no eviction under a lease");
                    self.forget(instance);
                    self.pending.insert(Answer::Exited(instance));
                }
                Effect::Kill(_) => self.rule(false, "nobody asked for force"),
                Effect::Grant(request, instance) => {
                    let waited = self.waiting.remove(&request);
                    self.rule(waited.is_some(), "one answer per request");
                    let hot = self.state.instances().get(&instance).is_some_and(|known| known.state == ModelState::Hot);
                    self.rule(hot, "leases on hot instances only");
                    self.tried(request, instance);
                    self.leased.insert(request, instance);
                    self.since.insert(request, self.now);
                    self.pending.insert(Answer::Done(request));
                }
                Effect::Ready(request) => {
                    let waited = self.waiting.remove(&request);
                    self.rule(waited.is_some(), "one answer per request");
                }
                Effect::Refuse(request, failure) => {
                    let waited = self.waiting.remove(&request);
                    self.rule(waited.is_some(), "one answer per request");
                    self.refused(waited.unwrap_or_default(), failure.kind);
                }
                Effect::RememberQuarantine | Effect::SetTimer(_) => {}
            }
        }
        let reserved: u64 = self.state.instances().values().map(|instance| instance.reserved + instance.held).sum();
        self.rule(reserved <= 100, "the budget holds");
    }

    /// Who is told of loading waited for a load, who is told of others waited for a slot.
    fn refused(&mut self, model: &str, kind: FailureKind) {
        let states = self.state.instances_of(&model.into()).into_iter().map(|(_, known)| known.state);
        let states: Vec<ModelState> = states.collect();
        let hot = states.contains(&ModelState::Hot);
        self.rule(kind != FailureKind::StillLoading || !hot, "nobody is told that a hot model loads");
        // It may leave in the same moment.
        let was_hot = hot
            || states.iter().any(|s| matches!(s, ModelState::Draining | ModelState::Parking | ModelState::Stopping));
        self.rule(kind != FailureKind::Busy || was_hot, "nobody is told that a model is busy which is not loaded");
        self.gave_up |= kind == FailureKind::Busy;
    }

    fn rule(&mut self, holds: bool, name: &'static str) {
        if !holds && self.broken.is_none() {
            self.broken = Some(name);
        }
    }

    /// Nobody begins beside one that is on trial but others on trial, and no more of them than there may be.
    fn tried(&mut self, request: RequestId, instance: InstanceId) {
        let beside = self.leased.iter().filter(|(_, on)| **on == instance).map(|(other, _)| *other);
        let beside: Vec<RequestId> = beside.collect();
        let policy = self.state.policy();
        let (leases_max, unproven) = (policy.models[&ModelId::from("a")].leases_max, |other: &RequestId| {
            let until = self.again.get(other).map(|again| self.since[other] + again.trial_ms(policy));
            until.is_some_and(|until| self.now < until)
        });
        if let Some(again) = self.again.get(&request) {
            let holds =
                beside.len() < again.room(leases_max) && beside.iter().all(|other| self.again.contains_key(other));
            self.seen.insert(if beside.is_empty() { "alone" } else { "together" });
            self.rule(holds, "a trial has no company but its own");
        } else {
            let holds = !beside.iter().any(unproven);
            if !beside.is_empty() && beside.iter().all(|other| self.again.contains_key(other)) {
                self.seen.insert("past its point");
            }
            self.rule(holds, "nobody begins beside a trial");
        }
    }

    /// Its worker died under it: it is tried again.
    fn replay(&mut self, request: RequestId) {
        let ran_ms = self.now - self.since[&request];
        let before = self.again.get(&request).copied().unwrap_or(Again { deaths: 0, ran_ms });
        let again = Again { deaths: before.deaths + 1, ran_ms: before.ran_ms.min(ran_ms) };
        self.replays += 1;
        let id = RequestId(AGAIN_FROM + self.replays);
        self.waiting.insert(id, "a");
        self.again.insert(id, again);
        self.feed(Event::Request { id, model: "a".into(), want: Want::Again(again), keep: None });
    }

    fn forget(&mut self, instance: InstanceId) {
        self.pending.retain(|answer| match answer {
            Answer::Planned(id) | Answer::Loaded(id) | Answer::Parked(id) | Answer::Unparked(id) => *id != instance,
            Answer::Exited(_) | Answer::Done(_) => true,
        });
    }

    fn answer(&mut self, answer: Answer) {
        self.pending.remove(&answer);
        match answer {
            Answer::Planned(instance) => self.feed(planned(&self.state, self.about, instance)),
            Answer::Loaded(instance) => self.feed(Event::Loaded(instance)),
            Answer::Parked(instance) => self.feed(Event::Parked { instance, held: 10 }),
            Answer::Unparked(instance) => self.feed(Event::Unparked(instance)),
            Answer::Exited(instance) => self.feed(Event::Exited(instance, failure())),
            Answer::Done(request) => {
                self.leased.remove(&request);
                self.feed(Event::Done(request));
                if self.lost.remove(&request) {
                    self.replay(request);
                }
                self.since.remove(&request);
                self.again.remove(&request);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Request(model) => {
                self.sent += 1;
                let id = RequestId(self.sent);
                self.waiting.insert(id, model);
                self.feed(Event::Request { id, model: model.into(), want: Want::Serve, keep: None });
            }
            Action::Answer(answer) => self.answer(answer),
            Action::Fail(instance) => {
                self.failures_left -= 1;
                self.forget(instance);
                self.feed(Event::Failed(instance, Failure::new(FailureKind::NotUsable, "x")));
            }
            Action::Crash(instance) => {
                self.crashes_left -= 1;
                self.forget(instance);
                self.pending.remove(&Answer::Exited(instance));
                if self.about == About::Deaths {
                    self.lost.extend(self.leased.iter().filter(|(_, on)| **on == instance).map(|(id, _)| *id));
                }
                self.feed(Event::Exited(instance, failure()));
            }
            Action::Cancel(id) => {
                self.cancels_left -= 1;
                self.waiting.remove(&id);
                self.feed(Event::Cancel(id));
            }
            Action::Unload(model) => {
                self.unloads_left -= 1;
                self.feed(Event::Unload { model: model.into(), cut_after_ms: None });
            }
            Action::Quarantine(model) => {
                self.quarantines_left -= 1;
                self.feed(Event::Quarantine(model.into(), failure()));
            }
            Action::Park(model) => {
                self.parks_left -= 1;
                self.feed(Event::Park(model.into()));
            }
            Action::Tick => {
                self.now += TICK_MS;
                self.feed(Event::Timer);
            }
        }
    }

    /// Whether a world that answers everything and lets time pass leaves nobody waiting.
    fn can_finish(&self) -> bool {
        let mut world = self.clone();
        for _ in 0..60 {
            match world.pending.first().copied() {
                Some(answer) => world.answer(answer),
                None if world.waiting.is_empty() => return world.broken.is_none(),
                None => world.act(Action::Tick),
            }
        }
        false
    }

    /// Whether a request for each model meets what is explained of it; else what is said and what is so.
    fn explained(&self) -> Result<(), String> {
        for name in ["a", "b"] {
            let model = ModelId::from(name);
            let said = self.state.explain(Millis(self.now), &model, None, None);
            let leaves = said.leaves.iter().map(|leaving| (leaving.instance, leaving.how)).collect();
            let said_met = Met { outcome: said.outcome, leaves };
            let mut probe = Probe::new(self, model.clone());
            let met = probe.run(self);
            self.told_rightly(&said, &probe)?;
            // Of what was never planned nobody can know how it comes up, but that it is neither served nor refused at once.
            let is_unknown = said_met.outcome == Outcome::Unknown
                && self.state.history.get(&model).is_none_or(|known| known.need.bytes == 0)
                && !matches!(met.outcome, Outcome::Hot | Outcome::Refused if self.about != About::Refusals);
            let busy = self.state.instance_of(&model).filter(|_| said.closed.is_none()).map(|(_, known)| known);
            let leases_max = self.state.policy().models[&model].leases_max;
            let is_full = busy.is_none_or(|known| known.state != ModelState::Hot || known.leases.len() >= leases_max);
            if said.outcome == Outcome::Waits && !is_full {
                return Err(format!("of `{name}`: {} has slots free and says no reason", said.message));
            }
            if said_met != met && !is_unknown {
                return Err(format!("of `{name}`: said {said:?}, but {met:?}"));
            }
        }
        Ok(())
    }
}

impl Snapshot {
    /// Whether the facts that a sentence is made of are so: where the model stands, what it needs, what those who leave hold,
    /// that whoever is in the way has a reason to be, and why a request is refused.
    fn told_rightly(&self, said: &Explanation, met: &Probe) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("of `{}`: {what}: {said:?}", said.model));
        if said.state != self.state.model_state(&said.model).0 {
            return wrong("it stands elsewhere");
        }
        if met.needs.is_some_and(|needs| said.needs.is_some_and(|told| told != needs)) {
            return wrong("it needs something else");
        }
        let is_refused = said.outcome == Outcome::Refused;
        if is_refused && met.refusal.as_ref().is_some_and(|refusal| !said.message.contains(refusal)) {
            return wrong("it is refused for another reason");
        }
        let held = |id: InstanceId| self.state.instances().get(&id).map(|known| known.reserved.max(known.held));
        if said.leaves.iter().any(|leaving| held(leaving.instance) != Some(leaving.memory)) {
            return wrong("who leaves holds something else");
        }
        let is_in_the_way = |staying: &Staying| {
            let Some(known) = self.state.instances().get(&staying.instance) else { return false };
            let serves = !known.leases.is_empty() || self.state.queued(&known.model) > 0;
            let is_pinned = self.state.policy().models.get(&known.model).is_some_and(|policy| policy.pin);
            serves || is_pinned || !matches!(known.state, ModelState::Hot | ModelState::Parked)
        };
        if said.in_the_way().any(|staying| !is_in_the_way(staying)) {
            return wrong("who is in the way is not");
        }
        Ok(())
    }
}

impl Probe {
    const ASKED: RequestId = RequestId(u64::MAX - 1);

    fn new(world: &Snapshot, model: ModelId) -> Self {
        Self {
            state: world.state.clone(),
            now: Millis(world.now),
            model,
            pending: world.pending.clone(),
            leaves: BTreeSet::new(),
            is_granted: false,
            is_refused: false,
            needs: None,
            refusal: None,
        }
    }

    fn run(&mut self, world: &Snapshot) -> Met {
        use ModelState::{Loading, Starting, Unparking};
        let before = self.state.model_state(&self.model).0;
        self.feed(Event::Timer);
        // What was due anyway is no doing of this request.
        self.leaves.clear();
        let (id, model) = (Self::ASKED, self.model.clone());
        self.feed(Event::Request { id, model, want: Want::Serve, keep: None });
        let mut is_hot = false;
        let is_served_at_once = self.is_granted;
        while !self.is_granted && !self.is_refused && !is_hot {
            let Some(answer) = self.pending.iter().copied().find(|answer| self.follows(*answer)) else { break };
            self.pending.remove(&answer);
            is_hot = matches!(answer, Answer::Loaded(_) | Answer::Unparked(_));
            self.feed(match answer {
                Answer::Planned(instance) => planned(&self.state, world.about, instance),
                Answer::Loaded(instance) => Event::Loaded(instance),
                Answer::Parked(instance) => Event::Parked { instance, held: 10 },
                Answer::Unparked(instance) => Event::Unparked(instance),
                Answer::Exited(instance) => Event::Exited(instance, failure()),
                Answer::Done(request) => Event::Done(request),
            });
        }
        let outcome = match before {
            _ if self.is_refused => Outcome::Refused,
            _ if is_served_at_once => Outcome::Hot,
            _ if !self.leaves.is_empty() => Outcome::Evicts,
            _ if !is_hot => Outcome::Waits,
            Starting | Loading | Unparking => Outcome::Coming,
            _ => Outcome::Fits,
        };
        Met { outcome, leaves: self.leaves.clone() }
    }

    /// Whether an answer is one that the request brings about.
    fn follows(&self, answer: Answer) -> bool {
        match answer {
            Answer::Planned(id) | Answer::Loaded(id) | Answer::Unparked(id) => {
                self.state.instances().get(&id).is_some_and(|known| known.model == self.model)
            }
            Answer::Parked(id) | Answer::Exited(id) => self.leaves.iter().any(|(leaving, _)| *leaving == id),
            Answer::Done(_) => false,
        }
    }

    fn feed(&mut self, event: Event) {
        if let Event::Planned { instance, required, .. } = &event
            && self.state.instances().get(instance).is_some_and(|known| known.model == self.model)
        {
            self.needs = Some(*required);
        }
        for effect in self.state.step(self.now, event) {
            match effect {
                Effect::Start { instance, .. } => _ = self.pending.insert(Answer::Planned(instance)),
                Effect::Load { instance, .. } => _ = self.pending.insert(Answer::Loaded(instance)),
                Effect::Unpark(instance) => _ = self.pending.insert(Answer::Unparked(instance)),
                Effect::Park(instance, cause) => {
                    self.pending.insert(Answer::Parked(instance));
                    self.leaves.extend((cause == EvictionCause::Memory).then_some((instance, "park")));
                }
                Effect::Stop(instance, cause) => {
                    self.pending.insert(Answer::Exited(instance));
                    self.leaves.extend((cause == EvictionCause::Memory).then_some((instance, "stop")));
                }
                Effect::Grant(Self::ASKED, _) => self.is_granted = true,
                Effect::Refuse(Self::ASKED, failure) => {
                    self.is_refused = true;
                    self.refusal = Some(failure.message);
                }
                _ => {}
            }
        }
    }
}

impl Model for World {
    type State = Snapshot;
    type Action = Action;

    fn init_states(&self) -> Vec<Snapshot> {
        vec![Snapshot::start(self)]
    }

    fn actions(&self, world: &Snapshot, actions: &mut Vec<Action>) {
        if world.sent < self.requests {
            actions.push(Action::Request("a"));
            if self.about != About::Deaths {
                actions.push(Action::Request("b"));
            }
        }
        actions.extend(world.pending.iter().map(|answer| Action::Answer(*answer)));
        if world.failures_left > 0 {
            actions.extend(world.pending.iter().filter_map(|answer| match answer {
                Answer::Planned(id) | Answer::Loaded(id) | Answer::Parked(id) | Answer::Unparked(id) => {
                    Some(Action::Fail(*id))
                }
                Answer::Exited(_) | Answer::Done(_) => None,
            }));
        }
        if world.crashes_left > 0 {
            actions.extend(world.state.instances().keys().map(|id| Action::Crash(*id)));
        }
        if world.cancels_left > 0 {
            actions.extend(world.waiting.keys().map(|id| Action::Cancel(*id)));
        }
        if world.unloads_left > 0 && !world.state.instances().is_empty() {
            actions.extend([Action::Unload("a"), Action::Unload("b")]);
        }
        if world.quarantines_left > 0 {
            actions.push(Action::Quarantine("a"));
        }
        if world.parks_left > 0 && world.state.instances().values().any(|known| known.state == ModelState::Hot) {
            actions.push(Action::Park("a"));
        }
        if world.now < 1 + TICKS * TICK_MS {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, world: &Snapshot, action: Action) -> Option<Snapshot> {
        let mut next = world.clone();
        next.act(action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always = [
            Property::always("no rule is broken", |_, world: &Snapshot| world.broken.is_none()),
            Property::always("everyone can still be answered", |_, world: &Snapshot| world.can_finish()),
            Property::always("what is explained is what is met", |_, world: &Snapshot| world.explained().is_ok()),
        ];
        // Without these the exploration would prove nothing.
        if self.about == About::Deaths {
            let seen = [
                Property::sometimes("one is tried alone", |_, world: &Snapshot| world.seen.contains("alone")),
                Property::sometimes("two are tried together", |_, world: &Snapshot| world.seen.contains("together")),
                Property::sometimes("others follow it", |_, world: &Snapshot| world.seen.contains("past its point")),
            ];
            return always.into_iter().chain(seen).collect();
        }
        if self.about == About::Refusals {
            let refused = Property::sometimes("one is quarantined and the other too large", |_, world: &Snapshot| {
                let is_too_large = |failure: &Failure| failure.kind == FailureKind::OutOfMemory;
                world.state.is_quarantined(&"a".into())
                    && world.state.model_state(&"b".into()).1.as_ref().is_some_and(is_too_large)
            });
            return always.into_iter().chain([refused]).collect();
        }
        if self.patience_ms <= TICK_MS * TICKS {
            let gave_up = Property::sometimes("someone waits in vain for a slot", |_, world: &Snapshot| world.gave_up);
            return always.into_iter().chain([gave_up]).collect();
        }
        let sometimes = [
            Property::sometimes("a swap happens", |_, world: &Snapshot| {
                world.state.instances().keys().any(|id| id.0 >= 2)
            }),
            Property::sometimes("a parked model is woken", |_, world: &Snapshot| {
                world.state.instances().values().any(|known| known.state == ModelState::Unparking)
            }),
            Property::sometimes("all is served", |model: &Self, world: &Snapshot| {
                world.sent == model.requests && world.waiting.is_empty() && world.pending.is_empty()
            }),
        ];
        always.into_iter().chain(sometimes).collect()
    }
}

#[test]
fn every_order_of_events_is_safe_and_live() {
    explore(World { patience_ms: 1_000_000, requests: 3, about: About::Swaps });
}

#[test]
fn whoever_is_tried_again_is_answered_and_harms_no_other() {
    explore(World { patience_ms: 1_000_000, requests: 3, about: About::Deaths });
}

#[test]
fn whoever_is_refused_is_told_so_before() {
    explore(World { patience_ms: 1_000_000, requests: 2, about: About::Refusals });
}

#[test]
fn whoever_gives_up_is_told_what_it_waited_for() {
    explore(World { patience_ms: TICK_MS, requests: 2, about: About::Swaps });
}

fn explore(world: World) {
    let checker = world.checker().threads(2).spawn_bfs().join();
    eprintln!("{} states, {} unique", checker.state_count(), checker.unique_state_count());
    for (property, path) in checker.discoveries() {
        if let Err(lie) = path.last_state().explained() {
            eprintln!("{property}: {lie}");
        }
    }
    checker.assert_properties();
}
