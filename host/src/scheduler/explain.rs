//! What would happen if someone asked for a model now: the scheduler itself, run on a copy of the state.

use std::collections::VecDeque;
use std::fmt;

use super::effect::Effect;
use super::event::{Event, Want};
use super::memory::Holds;
use super::policy::{Mapped, Need};
use super::state::{Instance, State, Waiter};
use crate::domain::{ByteSize, Device, EvictionCause, Failure, InstanceId, Millis, ModelId, ModelState, RequestId};

/// The request that is rehearsed.
const ASKED: RequestId = RequestId(u64::MAX);
/// Why an instance stays that nobody wants gone.
const NOT_NEEDED: &str = "its memory is not needed";

/// A dry run of a request for one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The model that was asked for.
    pub model: ModelId,
    /// Where it stands.
    pub state: ModelState,
    /// What a request would meet.
    pub outcome: Outcome,
    /// The same in one sentence.
    pub message: String,
    /// The device it is on or would go to.
    pub device: Option<Device>,
    /// Bytes it needs there, if it was ever planned.
    pub needs: Option<u64>,
    /// Bytes free there now.
    pub free: Option<u64>,
    /// Bytes that instances may hold there together.
    pub budget: Option<u64>,
    /// Milliseconds it last took to become hot.
    pub takes_ms: Option<u64>,
    /// Thousandths of its weights that are there, while it is loading.
    pub progress: Option<u32>,
    /// Milliseconds it needs yet until it is hot, if it is on its way and has been hot before.
    pub left_ms: Option<u64>,
    /// Milliseconds since it came into its state, if it has an instance.
    pub since_ms: Option<u64>,
    /// What it does before it loads, if that takes time and `progress` is of that.
    pub step: Option<&'static str>,
    /// Why it lets nobody in though it is hot and has a slot free.
    pub closed: Option<String>,
    /// Requests waiting for it.
    pub queued: usize,
    /// Who would leave the device for it.
    pub leaves: Vec<Leaving>,
    /// Who would stay, and why.
    pub stays: Vec<Staying>,
}

/// What a request would meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It is hot, and has a slot free.
    Hot,
    /// It is on its way; nobody leaves.
    Coming,
    /// It would be brought up; nobody leaves.
    Fits,
    /// Others leave at once, then it is brought up.
    Evicts,
    /// It waits until others end what they do.
    Waits,
    /// It would be refused.
    Refused,
    /// It was never started, so nobody knows what it needs.
    Unknown,
}

/// Someone who would leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The model that the instance holds.
    pub model: ModelId,
    /// The number of the instance.
    pub instance: InstanceId,
    /// `park` or `stop`.
    pub how: &'static str,
    /// Bytes it holds on the device.
    pub memory: u64,
    /// Milliseconds since it was last used.
    pub idle_ms: u64,
    /// Milliseconds it last took to become hot: what bringing it back may cost.
    pub takes_ms: u64,
}

/// Someone who would stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staying {
    /// The model that the instance holds.
    pub model: ModelId,
    /// The number of the instance.
    pub instance: InstanceId,
    /// Bytes it holds on the device.
    pub memory: u64,
    /// The reason, as part of a sentence.
    pub reason: String,
}

impl State {
    /// Asks for a model on a copy of the state. `needs`: bytes it is known to need, if it has no instance. `progress`:
    /// thousandths of its weights that are there.
    pub fn explain(&self, now: Millis, model: &ModelId, needs: Option<u64>, progress: Option<u32>) -> Explanation {
        let stated = needs.map(|bytes| Need { bytes, mapped: Mapped::default() });
        let planned = self.history.get(model).map(|known| known.need);
        let own = self.instance_of(model).map(|(_, instance)| instance.needs());
        let needs = [own, planned].into_iter().flatten().find(|need| need.bytes > 0).or(stated);
        let (world, effects) = self.rehearse(now, model, needs);
        let device = world.instance_of(model).map(|(_, instance)| instance.device);
        let leaves = self.leaving(now, &effects);
        let refusal = effects.iter().find_map(|effect| match effect {
            Effect::Refuse(ASKED, failure) => Some(self.refused(now, model, failure)),
            _ => None,
        });
        let is_granted = effects.iter().any(|effect| matches!(effect, Effect::Grant(ASKED, _)));
        let (state, _) = self.model_state(model);
        let is_coming = |state| matches!(state, ModelState::Loading | ModelState::Unparking);
        let outcome = match world.instance_of(model).map(|(_, instance)| instance.state) {
            _ if refusal.is_some() => Outcome::Refused,
            _ if is_granted => Outcome::Hot,
            Some(to) if is_coming(to) && (is_coming(state) || state == ModelState::Starting) => Outcome::Coming,
            Some(to) if is_coming(to) => Outcome::Fits,
            Some(ModelState::Starting) | None if needs.is_none() => Outcome::Unknown,
            _ if !leaves.is_empty() => Outcome::Evicts,
            _ => Outcome::Waits,
        };
        let cost = self.history.get(model).map(|known| known.cost_ms).filter(|cost| *cost > 0);
        let mut explanation = Explanation {
            model: model.clone(),
            state,
            outcome,
            message: refusal.unwrap_or_default(),
            needs: needs.map(|need| need.bytes),
            free: device.map(|device| self.free(device, |_, _| Holds::All).bytes),
            budget: device.and_then(|device| Some(self.policy.devices.get(&device)?.budget)),
            takes_ms: cost,
            progress,
            left_ms: self.left_ms(now, model),
            since_ms: self.instance_of(model).map(|(_, instance)| now.since(instance.since)),
            step: None,
            closed: self.closed(model),
            queued: self.queued(model),
            stays: device.map(|device| self.staying(device, model, &leaves)).unwrap_or_default(),
            leaves,
            device,
        };
        if explanation.message.is_empty() {
            explanation.message = explanation.sentence();
        }
        explanation
    }

    /// A copy of the state after someone asked for the model, and what it would have done.
    fn rehearse(&self, now: Millis, model: &ModelId, needs: Option<Need>) -> (Self, Vec<Effect>) {
        let mut world = self.clone();
        // What is due anyway is not this request's doing.
        world.step(now, Event::Timer);
        let asked = Event::Request { id: ASKED, model: model.clone(), want: Want::Serve, keep: None };
        let mut effects = world.step(now, asked);
        // A worker that comes up says what it needs, whether this request started it or another.
        let starting = world.instance_of(model).filter(|(_, instance)| instance.state == ModelState::Starting);
        if let (Some((instance, _)), Some(Need { bytes, mapped })) = (starting, needs) {
            effects.extend(world.step(now, Event::Planned { instance, required: bytes, preferred: bytes, mapped }));
        }
        (world, effects)
    }

    /// Why a model that is hot lets nobody in though it has a slot free.
    fn closed(&self, model: &ModelId) -> Option<String> {
        let (_, instance) = self.instance_of(model).filter(|(_, instance)| instance.state == ModelState::Hot)?;
        let is_due = |queue: &VecDeque<Waiter>| queue.front().is_some_and(|first| self.is_trial_due(instance, first));
        if instance.trial.is_some() || self.queues.get(model).is_some_and(is_due) {
            return Some("tries again what a worker died of, beside which nobody else begins".to_owned());
        }
        let leases_max = self.policy.models.get(model)?.leases_max;
        self.oldest_waiter_beside(instance).filter(|_| instance.leases.len() < leases_max)?;
        let first = self.waiting_on(instance.device).into_iter().next()?;
        let other = &self.instances.get(&first)?.model;
        Some(format!("leaves for `{other}`, which has waited for its memory"))
    }

    /// What a request is told that is refused, and when another one will not be.
    fn refused(&self, now: Millis, model: &ModelId, failure: &Failure) -> String {
        match self.cooldowns.get(model) {
            Some(cooldown) if !cooldown.is_quarantine() && cooldown.until > now => {
                let wait = Seconds(cooldown.until.since(now));
                format!("`{model}` failed, and is tried again in {wait}: {failure}")
            }
            _ => failure.message.clone(),
        }
    }

    fn leaving(&self, now: Millis, effects: &[Effect]) -> Vec<Leaving> {
        let leaving = effects.iter().filter_map(|effect| {
            let (id, how) = match effect {
                Effect::Park(id, EvictionCause::Memory) => (id, "park"),
                Effect::Stop(id, EvictionCause::Memory) => (id, "stop"),
                _ => return None,
            };
            let instance = self.instances.get(id)?;
            Some(Leaving {
                model: instance.model.clone(),
                instance: *id,
                how,
                memory: instance.reserved.max(instance.held),
                idle_ms: now.since(instance.used),
                takes_ms: self.history.get(&instance.model).map_or(0, |known| known.cost_ms),
            })
        });
        leaving.collect()
    }

    fn staying(&self, device: Device, model: &ModelId, leaves: &[Leaving]) -> Vec<Staying> {
        let others = self
            .on(device)
            .filter(|(id, instance)| instance.model != *model && !leaves.iter().any(|leaving| leaving.instance == *id));
        let staying = others.map(|(id, instance)| Staying {
            model: instance.model.clone(),
            instance: id,
            memory: instance.reserved.max(instance.held),
            reason: self.reason_to_stay(instance),
        });
        staying.collect()
    }

    fn reason_to_stay(&self, instance: &Instance) -> String {
        let pinned = self.policy.models.get(&instance.model).is_some_and(|policy| policy.pin);
        match instance.state {
            _ if pinned => "pinned".to_owned(),
            _ if instance.leases.len() == 1 => "serves a request, which ends first".to_owned(),
            _ if !instance.leases.is_empty() => format!("serves {} requests, which end first", instance.leases.len()),
            ModelState::Hot if self.queued(&instance.model) > 0 => "serves its own queue first".to_owned(),
            ModelState::Hot | ModelState::Parked => NOT_NEEDED.to_owned(),
            state => format!("is {}", state.name()),
        }
    }
}

/// A time as a sentence gives it.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            milliseconds @ 0..10_000 => write!(f, "{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
            milliseconds => write!(f, "{} s", milliseconds / 1000),
        }
    }
}

impl Explanation {
    /// The same of a model that does something else before it can begin, so far in thousandths.
    pub fn behind_step(self, step: &'static str, progress: u32) -> Self {
        let message = format!("`{}` is {step}{}, {} %; then: {}", self.model, self.age(), progress / 10, self.message);
        Self { message, step: Some(step), progress: Some(progress), ..self }
    }

    /// Those who stay and whose memory it would need.
    pub fn in_the_way(&self) -> impl Iterator<Item = &Staying> {
        self.stays.iter().filter(|staying| staying.reason != NOT_NEEDED)
    }

    /// How long it has done what it does.
    fn age(&self) -> String {
        self.since_ms.map_or_else(String::new, |since| format!(" for {}", Seconds(since)))
    }

    fn sentence(&self) -> String {
        let model = &self.model;
        let device = self.device.map_or_else(|| "no device".to_owned(), |device| device.to_string());
        let needs = self.needs.map_or_else(|| "an unknown amount".to_owned(), |bytes| ByteSize(bytes).to_string());
        let names = |names: &mut dyn Iterator<Item = String>| names.collect::<Vec<_>>().join(", ");
        match self.outcome {
            Outcome::Hot => format!("`{model}` is hot on {device}: a request is served at once"),
            Outcome::Coming => {
                let doing = match self.state {
                    ModelState::Unparking => "is being woken",
                    ModelState::Starting => "is starting",
                    _ => "is loading",
                };
                let age = self.age();
                let progress =
                    self.progress.map_or_else(String::new, |thousandths| format!(", {} %", thousandths / 10));
                let left = self.left_ms.map_or_else(String::new, |left| match left {
                    0 => ", longer than the last time by now".to_owned(),
                    left => format!(", about {} more", Seconds(left)),
                });
                format!("`{model}` {doing} on {device}{age}{progress}{left}")
            }
            Outcome::Fits if self.state == ModelState::Parked => {
                format!("`{model}` is parked and would be woken on {device}")
            }
            Outcome::Fits => format!("`{model}` needs {needs} on {device}, which is free: nobody leaves"),
            Outcome::Evicts => {
                let leaves = self.leaves.iter().map(|leaving| format!("`{}` ({})", leaving.model, leaving.how));
                format!("`{model}` needs {needs} on {device}: {} would leave for it", names(&mut leaves.into_iter()))
            }
            Outcome::Waits => {
                let stays = self.in_the_way().map(|staying| format!("`{}` {}", staying.model, staying.reason));
                let stays = names(&mut stays.into_iter());
                match self.state {
                    ModelState::Hot => {
                        let (why, queued) =
                            (self.closed.as_deref().unwrap_or("serves as many requests as it may"), self.queued);
                        format!("`{model}` is hot on {device} and {why}; a request would wait behind {queued} others")
                    }
                    ModelState::Draining | ModelState::Parking | ModelState::Stopping => {
                        format!(
                            "`{model}` is {} on {device}; a request would wait until that is done",
                            self.state.name()
                        )
                    }
                    _ if stays.is_empty() => {
                        format!("`{model}` needs {needs} on {device} and would wait for its memory")
                    }
                    _ => format!("`{model}` needs {needs} on {device} and would wait: {stays}"),
                }
            }
            Outcome::Unknown if self.state == ModelState::Starting => {
                format!(
                    "`{model}` is starting on {device}{}: what it needs is known once its plugin has said so",
                    self.age()
                )
            }
            Outcome::Unknown => format!(
                "`{model}` has not said here yet what it needs, so nobody knows; its next request asks its plugin"
            ),
            Outcome::Refused => self.message.clone(),
        }
    }
}
