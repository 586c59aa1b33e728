//! What became of each model that came or left: the phases of its way, how long each took, and why. Derived from the state
//! after each step and from what the log is told, for whoever looks at a host. It decides nothing.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::access::{AccessEntry, ids_of};
use super::run::Loop;
use super::swap_log::{InstanceSight, SeenInstance};
use super::telling::Failed;
use super::watched::{Swap, SwapKind, SwapOutcome};
use crate::domain::{EvictionCause, InstanceId, ModelId, ModelState};
use crate::scheduler::Instance;
use crate::store;

impl Loop {
    /// Notes what became of each instance since the last look. `failed`: what the event that was taken says of one.
    pub(super) fn note_swaps(&mut self, failed: &Failed) {
        // Most steps move nobody.
        let is_as_before = |(id, known): (&InstanceId, &Instance)| {
            let step = self.step_of(known);
            self.swaps.seen.get(id).is_some_and(|seen| seen.state == known.state && seen.step == step)
        };
        let instances = self.state.instances();
        if instances.len() == self.swaps.seen.len() && instances.iter().all(is_as_before) {
            return;
        }
        let sights: BTreeMap<InstanceId, InstanceSight> = instances
            .iter()
            .map(|(id, known)| {
                let (model, device, state) = (known.model.clone(), known.device, known.state);
                (*id, InstanceSight { model, device, state, step: self.step_of(known) })
            })
            .collect();
        let gone: Vec<InstanceId> = self.swaps.seen.keys().filter(|id| !sights.contains_key(id)).copied().collect();
        for id in gone {
            self.is_gone(id, failed);
        }
        for (id, sight) in &sights {
            self.is_seen(*id, sight, failed);
        }
    }

    fn step_of(&self, known: &Instance) -> &'static str {
        let files = || self.files_progress(&known.model).map(|(step, _)| step);
        match known.state {
            ModelState::Starting => files().map_or(step_of(known.state), step_of_files),
            state => step_of(state),
        }
    }

    fn is_seen(&mut self, id: InstanceId, sight: &InstanceSight, failed: &Failed) {
        let now = Instant::now();
        let before = self.swaps.seen.remove(&id);
        let mut swap = match before {
            Some(seen) if seen.state == sight.state && seen.step == sight.step => {
                self.swaps.seen.insert(id, seen);
                return;
            }
            Some(seen) => {
                let mut swap = seen.swap;
                if let Some(swap) = &mut swap {
                    swap.add(seen.step, now.saturating_duration_since(seen.since));
                }
                self.turned(id, (seen.state, sight), swap, failed)
            }
            None => Some(self.comes(SwapKind::Load, sight)),
        };
        if let Some(swap) = &mut swap
            && let Some(leaving) = &self.records.told.of(id).leaving
            && !swap.is_coming()
        {
            swap.cause = leaving.cause.name();
            swap.whom.clone_from(&leaving.whom);
        }
        let InstanceSight { device, state, step, .. } = *sight;
        let model = sight.model.clone();
        self.swaps.seen.insert(id, SeenInstance { model, device, state, step, since: now, swap });
    }

    /// What is under way with an instance that came from one state into another.
    fn turned(
        &mut self,
        id: InstanceId,
        (was, sight): (ModelState, &InstanceSight),
        mut swap: Option<Swap>,
        failed: &Failed,
    ) -> Option<Swap> {
        use ModelState::{Draining, Hot, Parked, Parking, Stopping, Unparking};
        match sight.state {
            Hot | Parked => {
                self.swaps.end(swap, SwapOutcome::Done);
                None
            }
            Unparking => {
                self.swaps.end(swap, SwapOutcome::Done);
                Some(self.comes(SwapKind::Wake, sight))
            }
            Draining | Parking | Stopping => {
                let kind = if sight.state == Parking { SwapKind::Park } else { SwapKind::Unload };
                match &mut swap {
                    // It goes on, and it is known by now how it ends.
                    Some(swap) if !swap.is_coming() && was == Draining => swap.kind = kind,
                    Some(swap) if swap.is_coming() || was == Parking => {
                        return self.broken(id, swap.clone(), failed);
                    }
                    Some(_) => {}
                    None => {
                        let cause = match failed {
                            Some((known, _)) if *known == id => EvictionCause::Failed.name(),
                            _ => EvictionCause::Asked.name(),
                        };
                        return Some(self.swaps.begin(kind, sight, cause));
                    }
                }
                swap
            }
            _ => swap,
        }
    }

    /// What did not come to its end: it failed, or nobody wants it any more. Nothing more is told of the instance.
    fn broken(&mut self, id: InstanceId, mut swap: Swap, failed: &Failed) -> Option<Swap> {
        swap.failure = self.why(id, &swap.model, failed);
        let outcome = if swap.failure.is_some() { SwapOutcome::Failed } else { SwapOutcome::Dropped };
        self.swaps.end(Some(swap), outcome);
        None
    }

    fn is_gone(&mut self, id: InstanceId, failed: &Failed) {
        let Some(SeenInstance { model, device, state, step, since, swap }) = self.swaps.seen.remove(&id) else {
            return;
        };
        let Some(mut swap) = swap else {
            if let (ModelState::Hot | ModelState::Parked, Some((known, failure))) = (state, failed)
                && *known == id
            {
                let sight = InstanceSight { model, device, state, step };
                let mut lost = self.swaps.begin(SwapKind::Lost, &sight, EvictionCause::Failed.name());
                lost.failure = Some(failure.message.clone());
                self.swaps.end(Some(lost), SwapOutcome::Failed);
            }
            return;
        };
        swap.add(step, since.elapsed());
        if swap.is_coming() {
            self.broken(id, swap, failed);
            return;
        }
        let outcome = if state == ModelState::Stopping { SwapOutcome::Done } else { SwapOutcome::Failed };
        if outcome == SwapOutcome::Failed {
            swap.failure = self.why(id, &swap.model, failed);
        }
        self.swaps.end(Some(swap), outcome);
    }

    fn why(&self, id: InstanceId, model: &ModelId, failed: &Failed) -> Option<String> {
        match failed {
            Some((known, failure)) if *known == id => Some(failure.message.clone()),
            _ => self.state.model_state(model).1.map(|failure| failure.message),
        }
    }

    /// A model begins to come, for whoever waits for it.
    fn comes(&mut self, kind: SwapKind, sight: &InstanceSight) -> Swap {
        let waiting: Vec<AccessEntry> = self.requests.waiting_for(&sight.model);
        let cause = if self.requests.awaits(&sight.model) {
            "request"
        } else if waiting.iter().any(|access| !access.id().is_empty()) {
            "operator"
        } else if waiting.is_empty() {
            "replica"
        } else {
            "preload"
        };
        let requests = ids_of(&waiting);
        Swap { requests, ..self.swaps.begin(kind, sight, cause) }
    }
}

/// What is done with the files of a model, as phases are called.
fn step_of_files(step: &str) -> &'static str {
    if step == store::COPYING { "copy" } else { "verify" }
}

/// What an instance does in this state.
fn step_of(state: ModelState) -> &'static str {
    match state {
        ModelState::Starting => "start",
        ModelState::Waiting => "memory",
        ModelState::Loading => "load",
        ModelState::Unparking => "wake",
        ModelState::Draining => "drain",
        ModelState::Parking => "park",
        ModelState::Stopping => "stop",
        ModelState::Cold | ModelState::Hot | ModelState::Parked | ModelState::Failed => "",
    }
}
