//! What the scheduler wants done, effect by effect. Each takes its time in a task of its own and comes back as an event.

use std::sync::Arc;
use std::time::Duration;

use aihost_plugin_api::task::{AudioRequest, LoadRequest, Sampling, TextInput, TextRequest};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::api::Answer;
use super::lease::{Ended, LeaseTerms, carry};
use super::meter::Metered;
use super::run::{Client, Internal, Loop, Pending, Stepped, finish, last_word, post, send};
use super::workspace::{Part, Workspace};
use crate::config::ModelConfig;
use crate::domain::{DeviceId, Failure, FailureKind, InstanceId, Kind, ModelId, RequestId};
use crate::scheduler::Effect;
use crate::worker::awake::{Instant, timeout};
use crate::worker::{Instance, ModelLog, Output, OutputLimits, StartSpec};
use crate::{device, store};

/// Outputs that may wait for one client.
const OUTPUTS_MAX: usize = 64;
/// From spawn to plan.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// From being asked to release to being killed.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// The same while the host shuts down: supervisors of whole containers wait 10 s, and what is not given back dies with its process.
const LAST_STOP_GRACE: Duration = Duration::from_secs(5);
/// Said to a request that found no room beside others of its model for as long as it may run.
const NO_ROOM: &str = "other requests of this model held the memory that this one needs for too long; send it again";

impl Loop {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        tracing::debug!(?effect, "scheduler");
        match effect {
            Effect::Start { instance, model, device } => self.start(instance, &model, &device),
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
                if let Some(Pending::Load { reply, .. }) = self.pending.remove(&request) {
                    send(reply, Ok(()));
                }
            }
            Effect::Refuse(request, failure) => self.refuse(request, failure),
            Effect::Stop(instance, _) => {
                self.moves_memory(instance);
                let grace = if self.state.is_shutting_down() { LAST_STOP_GRACE } else { STOP_GRACE };
                self.stop(instance, grace);
            }
            Effect::Cut(instance) => self.stop(instance, Duration::ZERO),
            // Rounded up: a timer that is a little early would find nothing due.
            Effect::Wake(at) => self.wake = Some(self.begun + Duration::from_millis(at.0.saturating_add(1))),
        }
    }

    fn start(&mut self, id: InstanceId, model: &ModelId, device: &DeviceId) {
        let log = self.log(model);
        let spec = self
            .config
            .models
            .get(model)
            .ok_or_else(|| Failure::new(FailureKind::UnknownModel, format!("there is no model `{model}`")));
        let spec = spec.and_then(|model| self.start_spec(id, model, device, log));
        self.busy.insert(id);
        let (placement, events, exits) = (Arc::clone(&self.placement), self.events.clone(), self.exits.clone());
        tokio::spawn(async move {
            let started = match spec {
                Ok(spec) => placement.start(spec, exits).await,
                Err(failure) => Err(failure),
            };
            post(&events, Internal::Stepped(id, Stepped::Started(started))).await;
        });
    }

    fn start_spec(
        &self,
        instance: InstanceId,
        model: &ModelConfig,
        device: &DeviceId,
        log: Arc<ModelLog>,
    ) -> Result<StartSpec, Failure> {
        let plugin = self
            .registry
            .find(&model.plugin, model.plugin_version.as_ref())
            .map_err(|e| Failure::new(FailureKind::NotUsable, e.to_string()))?;
        if !plugin.manifest.kinds.iter().any(|kind| kind == model.kind.name()) {
            let message = format!(
                "plugin `{}` serves {}, but `{}` is declared `type: {}`",
                model.plugin,
                plugin.manifest.kinds.join(", "),
                model.id,
                model.kind.name()
            );
            return Err(Failure::new(FailureKind::NotUsable, message));
        }
        if !plugin.manifest.devices.iter().any(|kind| kind == device.kind()) {
            let message = format!(
                "plugin `{}` runs on {}, not on {device}; choose other `devices:` for `{}`",
                model.plugin,
                plugin.manifest.devices.join(", "),
                model.id
            );
            return Err(Failure::new(FailureKind::NotUsable, message));
        }
        let load = LoadRequest {
            files: store::locate(model)?,
            device: device.0.clone(),
            threads: device::cpu_threads(),
            granted: 0,
        };
        Ok(StartSpec {
            instance,
            model: model.id.clone(),
            plugin,
            options: model.options.clone(),
            load,
            own_folder: Some(self.config.paths.state.join("plugin-data").join(model.plugin.replace('/', "_"))),
            start_timeout: START_TIMEOUT,
            log,
            silence: self.config.limits.worker_silence,
            output_limits: OutputLimits {
                first: self.config.limits.first_output_timeout,
                stall: self.config.limits.output_stall_timeout,
            },
        })
    }

    fn load(&mut self, id: InstanceId, granted: u64) {
        let Some(instance) = self.instances.get(&id).cloned() else { return };
        let model = self.state.instances().get(&id).and_then(|known| self.config.models.get(&known.model));
        let deadline = model.map_or(START_TIMEOUT, |model| model.load_timeout);
        self.busy.insert(id);
        instance.allow(self.allowance(id, granted));
        let events = self.events.clone();
        let canary = self.canary(id);
        tokio::spawn(async move {
            let loaded = async {
                let held = instance.load(granted, deadline).await?.used;
                if let Some((request, task)) = canary {
                    sing(&*instance, request, task, deadline).await?;
                }
                Ok(held)
            };
            let loaded = loaded.await;
            post(&events, Internal::Stepped(id, Stepped::Loaded(loaded))).await;
        });
    }

    /// A first request of the host's own, for a model whose last worker died and that nobody waits for: else the first
    /// client would find out whether it works.
    fn canary(&mut self, id: InstanceId) -> Option<(RequestId, Bytes)> {
        let model = &self.state.instances().get(&id)?.model;
        let awaited =
            self.pending.values().any(|known| matches!(known, Pending::Serve { job, .. } if job.model == *model));
        let kind = self.config.models.get(model)?.kind;
        let due = self.died.remove(model) && !awaited;
        let task = canary_task(kind).filter(|_| due)?;
        Some((self.next_request(), task))
    }

    fn park(&mut self, id: InstanceId) {
        let (Some(instance), Some(known)) = (self.instances.get(&id).cloned(), self.state.instances().get(&id)) else {
            return;
        };
        tracing::info!(model = %known.model, instance = id.0, "parking");
        let Some(check) = self.release_check(id) else { return };
        self.busy.insert(id);
        let (placement, events) = (Arc::clone(&self.placement), self.events.clone());
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
        let Some(instance) = self.instances.get(&id).cloned() else { return };
        if let Some(known) = self.state.instances().get(&id) {
            instance.allow(self.allowance(id, known.granted));
        }
        self.busy.insert(id);
        let events = self.events.clone();
        tokio::spawn(async move {
            let hot = instance.unpark().await.map(|_| ());
            post(&events, Internal::Stepped(id, Stepped::Unparked(hot))).await;
        });
    }

    fn grant(&mut self, request: RequestId, id: InstanceId) {
        let events = self.events.clone();
        let (Some(Pending::Serve { job, client }), Some(instance)) =
            (self.pending.remove(&request), self.instances.get(&id).cloned())
        else {
            // The client left in this very moment, or the worker died: the lease ends at once.
            tokio::spawn(async move { post(&events, Internal::Ended(request, Ended::Answered)).await });
            return;
        };
        let (begun, patience) = (Instant::now(), self.config.limits.request_timeout);
        let mut terms = LeaseTerms {
            request_timeout: self.config.limits.request_timeout,
            stall_timeout: self.config.limits.stream_stall_timeout,
            delivery: job.delivery,
        };
        let workspace = self.workspace(id, &job.model);
        let task = job.task.clone();
        let meter = self.observer.meter(request);
        self.leased.insert(request, (job, id));
        let client = match client {
            Client::New(grant) => {
                let (client, output) = mpsc::channel(OUTPUTS_MAX);
                send(grant, Ok(Answer { request, output }));
                client
            }
            Client::Granted(client, watch) => {
                drop(watch);
                client
            }
        };
        tokio::spawn(async move {
            let affords = async {
                tokio::select! {
                    part = timeout(patience, afford(&*instance, &task, workspace)) => {
                        part.unwrap_or_else(|| Err(Failure::new(FailureKind::Busy, NO_ROOM)))
                    }
                    () = client.closed() => Err(Failure::new(FailureKind::Cancelled, "the client left")),
                }
            };
            let ended = match affords.await {
                Ok(_part) => {
                    terms.request_timeout = terms.request_timeout.saturating_sub(begun.elapsed());
                    let outputs = Metered::new(instance.generate(request, task), meter);
                    carry(request, instance, outputs, client, terms).await
                }
                Err(failure) if failure.kind == FailureKind::WorkerDied => Ended::Lost(client, failure),
                Err(failure) => {
                    meter.into_iter().for_each(|meter| meter.refused(failure.kind));
                    finish(client, failure);
                    Ended::Answered
                }
            };
            if let Err(unheard) = events.send(Internal::Ended(request, ended)).await {
                last_word(unheard.0);
            }
        });
    }

    fn refuse(&mut self, request: RequestId, failure: Failure) {
        match self.pending.remove(&request) {
            Some(Pending::Load { model, reply }) => {
                tracing::warn!(%model, "load failed: {failure}");
                send(reply, Err(failure));
            }
            Some(Pending::Serve { client: Client::New(grant), .. }) => send(grant, Err(failure)),
            Some(Pending::Serve { client: Client::Granted(client, _), .. }) => finish(client, failure),
            None => {}
        }
    }

    fn stop(&self, id: InstanceId, grace: Duration) {
        // Without a handle the worker is still starting: it goes when its start returns and finds nobody waiting for it.
        if let Some(instance) = self.instances.get(&id).cloned() {
            tokio::spawn(async move { instance.stop(grace).await });
        }
    }
}

/// Sets aside what a request needs; its plugin says what that is.
async fn afford(instance: &dyn Instance, task: &Bytes, workspace: Option<Workspace>) -> Result<Option<Part>, Failure> {
    let Some(workspace) = workspace else { return Ok(None) };
    let cost = instance.cost(task.clone()).await?;
    workspace.take(cost).await.map(Some)
}

/// A little of what a model makes: a token, a tenth of a second. A single step of a picture may take as long as a load, which
/// is too much to ask of a model that someone may want meanwhile.
fn canary_task(kind: Kind) -> Option<Bytes> {
    let prompt = "Hi".to_owned();
    let request = match kind {
        Kind::Text => serde_json::to_vec(&TextRequest {
            input: TextInput::Prompt { text: prompt },
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            stop: Vec::new(),
            max_tokens: Some(1),
            logprobs: None,
            echo: false,
            ignore_eos: false,
        }),
        Kind::Audio => {
            serde_json::to_vec(&AudioRequest { prompt, duration: 0.1, seed: Some(0), ..AudioRequest::default() })
        }
        _ => return None,
    };
    // Plain data, for which serialising cannot fail.
    request.ok().map(Bytes::from)
}

/// Runs a canary to its end.
async fn sing(instance: &dyn Instance, request: RequestId, task: Bytes, deadline: Duration) -> Result<(), Failure> {
    let mut outputs = instance.generate(request, task);
    let song = async {
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
    timeout(deadline, song).await.unwrap_or_else(|| Err(late()))
}
