//! What the scheduler wants done, effect by effect. Each takes its time in a task of its own and comes back as an event.

use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::task::{AudioRequest, EmbeddingRequest, LoadRequest, Sampling, TextRequest};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::api::OutputMode;
use super::clocks::{LeaseTerms, OutputLimits};
use super::files::locate_for;
use super::internal::{Internal, Stepped, post};
use super::relay::{Decision, Lease};
use super::requests::Pending;
use super::run::{Loop, send};
use crate::config::{ModelConfig, Refusal};
use crate::device;
use crate::domain::{Device, Failure, FailureKind, InstanceId, Kind, ModelId, ModelState, RequestId};
use crate::plugin::PluginFile;
use crate::scheduler::Effect;
use crate::store::{CacheLease, Verification};
use crate::worker::awake::timeout;
use crate::worker::{InstanceHandle, ModelLog, Output, StartSpec, Task};

/// From spawn to plan.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// From being asked to release to being killed.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// The same while the host shuts down: supervisors of whole containers wait 10 s, and what is not given back dies with its process.
const LAST_STOP_GRACE: Duration = Duration::from_secs(5);

impl Loop {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        tracing::debug!(?effect, "scheduler");
        match effect {
            Effect::Start { instance, model, .. } => self.start(instance, &model),
            Effect::Load { instance, granted } => {
                self.moves_memory(instance);
                self.load(instance, granted);
            }
            Effect::Park(instance, _) => self.park(instance),
            Effect::Unpark(instance) => {
                self.moves_memory(instance);
                self.unpark(instance);
            }
            Effect::Grant(request, instance) => self.grant(request, instance),
            Effect::Ready(request) => {
                if let Some(Pending::Load { reply, .. }) = self.requests.take_pending(request) {
                    send(reply, Ok(()));
                }
            }
            Effect::Refuse(request, failure) => self.refuse(request, failure),
            Effect::Stop(instance, _) => {
                self.moves_memory(instance);
                let grace = if self.state.is_shutting_down() { LAST_STOP_GRACE } else { STOP_GRACE };
                self.stop(instance, grace);
            }
            Effect::Kill(instance) => self.stop(instance, Duration::ZERO),
            Effect::RememberQuarantine => self.remember_quarantine(),
            Effect::SetTimer(at) => self.clock.wake_at(at),
        }
    }

    pub(super) fn start(&mut self, id: InstanceId, model: &ModelId) {
        self.residents.begin_step(id);
        self.residents.is_checked(id, Arc::default());
        if self.config.models.get(model).is_some_and(|entry| entry.http.remote.is_some()) {
            self.reach(id, model);
        } else if !self.look_before_start(id, model) {
            self.bring_up(id);
        }
    }

    /// A model that others run comes up.
    fn reach(&mut self, id: InstanceId, model: &ModelId) {
        let entry = self.config.models.get(model);
        let usable = entry.map(|entry| self.usable_plugin(entry)).transpose().map(drop);
        let remote = entry.and_then(|entry| entry.http.remote.clone());
        let gone = || Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`"));
        let remote = usable.and_then(|()| remote.ok_or_else(gone));
        let (placement, events, exits) =
            (Arc::clone(&self.backends.placement), self.senders.events.clone(), self.senders.exits.clone());
        tokio::spawn(async move {
            let started = match remote {
                Ok(remote) => placement.reach(id, remote, exits).await,
                Err(failure) => Err(failure),
            };
            post(&events, Internal::Stepped(id, Stepped::Started(started))).await;
        });
    }

    /// Its worker comes up, by what is in force now.
    pub(super) fn bring_up(&mut self, id: InstanceId) {
        // It may have been asked to go while its files were looked at.
        let known = self.state.instances().get(&id).filter(|known| known.state == ModelState::Starting);
        let known = known.map(|known| (known.model.clone(), known.device));
        let spec = known.ok_or_else(|| Failure::new(FailureKind::Cancelled, "nobody wants it any more"));
        let log = spec.as_ref().ok().map(|(model, _)| self.records.log(model)).unwrap_or_default();
        let spec = spec.and_then(|(model, device)| {
            let entry = self.config.models.get(&model);
            let entry =
                entry.ok_or_else(|| Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`")))?;
            Ok((self.start_spec(id, entry, device, log)?, entry.clone()))
        });
        if let Ok((spec, _)) = &spec {
            self.residents.is_made_of(id, Arc::clone(&spec.plugin));
        }
        let check = self.residents.check_of(id);
        let lease = CacheLease::default();
        self.residents.holds(id, lease.clone());
        let files = self.backends.files.clone();
        let (placement, events, exits) =
            (Arc::clone(&self.backends.placement), self.senders.events.clone(), self.senders.exits.clone());
        tokio::spawn(async move {
            let started = match spec {
                Ok((spec, entry)) => match files.make_ready(&entry, spec, check, lease).await {
                    Ok(spec) => placement.start(spec, exits).await,
                    Err(failure) => Err(failure),
                },
                Err(failure) => Err(failure),
            };
            post(&events, Internal::Stepped(id, Stepped::Started(started))).await;
        });
    }

    fn start_spec(
        &self,
        instance: InstanceId,
        model: &ModelConfig,
        device: Device,
        log: Arc<ModelLog>,
    ) -> Result<StartSpec, Failure> {
        let no_plugin = || Failure::new(FailureKind::NoPlugin, format!("`{}` names no plugin", model.id));
        let plugin = self.usable_plugin(model)?.ok_or_else(no_plugin)?;
        if !plugin.runs_on(device.kind()) {
            let message = format!(
                "plugin `{}` runs on {}, not on {device}; choose other `devices:` for `{}`",
                model.plugin,
                plugin.manifest.devices.join(", "),
                model.id
            );
            return Err(Failure::new(FailureKind::NotUsable, message));
        }
        let files = locate_for(&plugin, model, &self.config.paths.state)?;
        let load = LoadRequest::new(device.to_string(), files)
            .threads(device::cpu_threads())
            .device_memory(device::measured(device).map_or(0, |memory| memory.total))
            .name(model.engine_name());
        Ok(StartSpec {
            instance,
            model: model.id.clone(),
            plugin,
            options: model.options.clone(),
            load,
            copied_from: Vec::new(),
            own_folder: Some(self.config.paths.plugin_folder(&model.plugin)),
            start_timeout: START_TIMEOUT,
            log,
            silence: self.config.limits.worker_silence,
            busy: model.http.busy.clone(),
        })
    }

    /// The plugin that an entry names, if its entry can be loaded at all; nothing if others run it.
    pub(super) fn usable_plugin(&self, model: &ModelConfig) -> Result<Option<Arc<PluginFile>>, Failure> {
        if let Some(Refusal::Entry(why)) = &model.refusal {
            return Err(Failure::new(FailureKind::NotUsable, why.clone()));
        }
        if let Some(why) = model.unchosen() {
            return Err(Failure::new(FailureKind::NotPulled, why));
        }
        if model.http.remote.is_some() {
            return Ok(None);
        }
        let plugin = self
            .plugins
            .registry()
            .find(&model.plugin, model.plugin_version.as_ref())
            .map_err(|e| Failure::new(FailureKind::NoPlugin, e.to_string()))?;
        if !plugin.serves(model.kind) {
            let message = format!(
                "plugin `{}` serves {}, but `{}` is declared `type: {}`",
                model.plugin,
                plugin.manifest.kinds.join(", "),
                model.id,
                model.kind.name()
            );
            return Err(Failure::new(FailureKind::NotUsable, message));
        }
        Ok(Some(plugin))
    }

    fn load(&mut self, id: InstanceId, granted: u64) {
        let Some(instance) = self.residents.handle(id).cloned() else { return };
        let model = self.state.instances().get(&id).and_then(|known| self.config.models.get(&known.model));
        let deadline = model.map_or(START_TIMEOUT, |model| model.load_timeout);
        self.residents.begin_step(id);
        instance.allow(self.allowance(id, granted));
        let events = self.senders.events.clone();
        let canary = self.canary(id);
        tokio::spawn(async move {
            let loaded = async {
                let held = instance.load(granted, deadline).await?.used;
                if let Some((request, task)) = canary {
                    run_canary(&*instance, request, task, deadline).await?;
                }
                Ok(held)
            };
            let loaded = loaded.await;
            post(&events, Internal::Stepped(id, Stepped::Loaded(loaded))).await;
        });
    }

    /// A first request of the host's own, for a model whose last worker died and that nobody waits for: else the first
    /// client would find out whether it works.
    fn canary(&mut self, id: InstanceId) -> Option<(RequestId, Task)> {
        let model = &self.state.instances().get(&id)?.model;
        let entry = self.config.models.get(model)?;
        // Of an engine that answers HTTP itself, what is asked for a kind depends on the engine.
        let speaks_tasks = self.residents.plugin(id).is_some_and(|plugin| !plugin.answers_http());
        let kind = entry.kind;
        let due = self.records.take_died(model) && !self.requests.awaits(model);
        let task = canary_task(kind).filter(|_| due && speaks_tasks)?;
        Some((self.requests.ids.next(), task))
    }

    fn park(&mut self, id: InstanceId) {
        let Some(instance) = self.residents.handle(id).cloned() else { return };
        let Some(check) = self.release_check(id) else { return };
        self.residents.begin_step(id);
        let (placement, events) = (Arc::clone(&self.backends.placement), self.senders.events.clone());
        tokio::spawn(async move {
            let parked = async {
                let stays = instance.park().await?.used;
                check.wait(&*placement, &*instance, stays).await
            };
            let parked = parked.await;
            post(&events, Internal::Stepped(id, Stepped::Parked(parked))).await;
        });
    }

    fn unpark(&mut self, id: InstanceId) {
        let Some(instance) = self.residents.handle(id).cloned() else { return };
        if let Some(known) = self.state.instances().get(&id) {
            instance.allow(self.allowance(id, known.granted));
        }
        self.residents.begin_step(id);
        let events = self.senders.events.clone();
        tokio::spawn(async move {
            let hot = instance.unpark().await.map(|_| ());
            post(&events, Internal::Stepped(id, Stepped::Unparked(hot))).await;
        });
    }

    fn grant(&mut self, request: RequestId, id: InstanceId) {
        let (Some(Pending::Serve { job, decide }), Some(instance)) =
            (self.requests.take_pending(request), self.residents.handle(id).cloned())
        else {
            // The client left in this very moment, or the worker died: the lease ends at once.
            return self.post(Internal::Ended(request, None));
        };
        let lease = Lease {
            request,
            instance,
            ask: job.ask(self.config.limits.request_timeout),
            terms: self.lease_terms(job.delivery),
            workspace: self.workspace(id, &job.model),
            // What only holds its model is no request of anybody's.
            meter: if job.is_hold() { None } else { self.observer.meter(request, job.access.clone()) },
        };
        job.access.begins();
        self.requests.lease(request, job, id, self.clock.now());
        if let Err(Decision::Granted(lease)) = decide.send(Decision::Granted(Box::new(lease))) {
            self.post(lease.unused());
        }
    }

    fn lease_terms(&self, delivery: OutputMode) -> LeaseTerms {
        let limits = &self.config.limits;
        LeaseTerms {
            request_timeout: limits.request_timeout,
            stall_timeout: limits.stream_stall_timeout,
            output: OutputLimits { first: limits.first_output_timeout, stall: limits.output_stall_timeout },
            delivery,
        }
    }

    /// Posts to the loop itself, which must not wait for its own inbox.
    fn post(&self, event: Internal) {
        let events = self.senders.events.clone();
        tokio::spawn(async move { post(&events, event).await });
    }

    pub(super) fn refuse(&mut self, request: RequestId, failure: Failure) {
        match self.requests.take_pending(request) {
            Some(Pending::Load { model, access, reply }) => {
                // Nobody reads the answer to a load of the host's own.
                if access.id().is_empty() && !access.facts().is_told && failure.kind != FailureKind::ShuttingDown {
                    tracing::warn!(%model, cause = failure.kind.name(), "not loaded at start: {failure}");
                }
                send(reply, Err(failure));
            }
            Some(Pending::Serve { decide, .. }) => send(decide, Decision::Refused(failure)),
            None => {}
        }
    }

    fn stop(&self, id: InstanceId, grace: Duration) {
        match self.residents.handle(id).cloned() {
            Some(instance) => drop(tokio::spawn(async move { instance.stop(grace).await })),
            // The worker is still starting: it goes when its start returns and finds nobody waiting for it, and does not
            // start at all if its files are still being copied or checked.
            None => self.residents.check(id).into_iter().for_each(Verification::stop),
        }
    }
}

/// A little of what a model makes: a token, a tenth of a second. A single step of an image may take as long as a load, which
/// is too much to ask of a model that someone may want meanwhile.
fn canary_task(kind: Kind) -> Option<Task> {
    let prompt = "Hi".to_owned();
    let request = match kind {
        Kind::Text => serde_json::to_vec(
            &TextRequest::prompt(prompt).sampling(Sampling::default().temperature(0.0)).max_tokens(1),
        ),
        Kind::Audio => serde_json::to_vec(&AudioRequest::new(prompt).duration(0.1).seed(0)),
        // One that only scores refuses it, which tells as much.
        Kind::Embedding => serde_json::to_vec(&EmbeddingRequest::texts([prompt])),
        _ => return None,
    };
    // Plain data, for which serialising cannot fail.
    request.ok().map(|json| Bytes::from(json).into())
}

/// Runs a canary to its end.
async fn run_canary(
    instance: &dyn InstanceHandle,
    request: RequestId,
    task: Task,
    deadline: Duration,
) -> Result<(), Failure> {
    // Dropped at the deadline, which cancels.
    let (_cancel, cancelled) = oneshot::channel();
    let mut outputs = instance.generate(request, task.into(), cancelled);
    let canary = async {
        while let Some(output) = outputs.recv().await {
            if let Output::Done(done) = output {
                return match done {
                    // It lives, and would rather have been asked for something else.
                    Err(refused) if refused.kind == FailureKind::InvalidRequest => Ok(()),
                    done => done.map(|_| ()),
                };
            }
        }
        Err(Failure::new(FailureKind::WorkerDied, "the worker ended during its canary"))
    };
    let late = || Failure::new(FailureKind::TimedOut, format!("no canary within {} s of its load", deadline.as_secs()));
    timeout(deadline, canary).await.unwrap_or_else(|| Err(late()))
}
