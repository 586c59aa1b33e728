//! What the loop knows of its models, for those who look. Nothing here loads, wakes or keeps anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::api::ModelStatus;
use super::observe::Look;
use super::run::{Loop, send};
use super::survey::{DeviceStatus, look_at_devices, measure_devices};
use crate::config::{Config, ModelConfig, Refusal};
use crate::domain::{Failure, FailureKind, InstanceId, ModelId, ModelState};
use crate::scheduler;
use crate::telemetry::{PluginSeries, Scrape};
use crate::worker;

impl Loop {
    /// Tells every model's status. The loop says what it knows of those that are not simply cold; a line for each of all the
    /// others is written elsewhere.
    pub(super) fn tell_status(&self, reply: oneshot::Sender<Vec<ModelStatus>>) {
        let touched: BTreeSet<&ModelId> = self.state.touched().chain(self.records.models()).collect();
        let known = touched.into_iter().filter_map(|model| self.config.models.get(model));
        let known: BTreeMap<ModelId, ModelStatus> =
            known.map(|model| (model.id.clone(), self.model_status(model))).collect();
        let config = Arc::clone(&self.config);
        spawn_blocking(move || send(reply, with_all(known, &config)));
    }

    pub(super) fn model_status(&self, model: &ModelConfig) -> ModelStatus {
        let (state, failure) = self.state.model_state(&model.id);
        let instances = self.state.instances_of(&model.id);
        let first = instances.first();
        let handle = |id: &InstanceId| self.residents.handle(*id);
        let handles: Vec<&Arc<dyn worker::InstanceHandle>> =
            instances.iter().filter_map(|(id, _)| handle(id)).collect();
        let first_handle = first.and_then(|(id, _)| handle(id));
        let is_idle = |known: &scheduler::Instance| known.state == ModelState::Hot && known.leases.is_empty();
        let prepared = self.files_progress(&model.id);
        let active: usize = instances.iter().map(|(_, known)| known.leases.len()).sum();
        // It is looked for at each request, and the failure of none is kept.
        let no_plugin = instances.is_empty().then(|| self.usable_plugin(model).err()).flatten();
        let no_plugin = no_plugin.map(|why| (why.to_string(), said_to_clients(why))).unzip();
        ModelStatus {
            state,
            device: first.map(|(_, known)| known.device.to_string()),
            memory: instances.iter().map(|(_, known)| known.reserved.saturating_add(known.held)).sum(),
            measured: handles.iter().filter_map(|handle| handle.usage()).reduce(u64::saturating_add),
            replicas: u32::try_from(instances.len()).unwrap_or(u32::MAX),
            active: u32::try_from(active).unwrap_or(u32::MAX),
            queued: u32::try_from(self.state.queued(&model.id)).unwrap_or(u32::MAX),
            progress: prepared.map(|(_, progress)| progress).or_else(|| self.loading_progress(&model.id)),
            step: prepared.map(|(step, _)| step),
            loads: self.records.loads(&model.id),
            wakes: self.records.wakes(&model.id),
            left_ms: self.state.left_ms(self.clock.now(), &model.id),
            since_ms: first.map(|(_, known)| self.clock.now().since(known.since)),
            waits_ms: self.state.oldest_wait_ms(self.clock.now(), &model.id),
            quarantined: self.state.is_quarantined(&model.id),
            idle_ms: first.filter(|(_, known)| is_idle(known)).map(|(_, known)| self.clock.now().since(known.used)),
            pid: first_handle.and_then(|handle| handle.pid()),
            error: failure.as_ref().map(Failure::to_string).or_else(|| refused(model)).or(no_plugin.0),
            client_error: failure.map(said_to_clients).or_else(|| unusable(model)).or(no_plugin.1),
            note: first.and_then(|(id, _)| notes([self.plugin_note(model, *id), self.files_note(*id)])),
            ..cold(model)
        }
    }

    /// Thousandths of a model's weights that are there, of the instance that is furthest on its way.
    pub(super) fn loading_progress(&self, model: &ModelId) -> Option<u32> {
        let (id, instance) = self.state.instance_of(model)?;
        let is_coming = matches!(instance.state, ModelState::Loading | ModelState::Unparking);
        self.residents.handle(id).filter(|_| is_coming)?.progress()
    }

    /// What is done with a model's files before it starts, and thousandths of that, of the instance that is furthest on its way.
    pub(super) fn files_progress(&self, model: &ModelId) -> Option<(&'static str, u32)> {
        let (id, _) = self.state.instance_of(model)?;
        let check = self.residents.check(id)?;
        Some((check.step(), check.progress()?))
    }

    /// What is to be said of the files that an instance has open.
    pub(super) fn files_note(&self, id: InstanceId) -> Option<String> {
        self.residents.copies(id)?.note()
    }

    /// Tells everything that is measured. The text of it, and the zeros of all models that do nothing, are made elsewhere.
    pub(super) fn tell_metrics(&self, reply: oneshot::Sender<Scrape>) {
        let now = Look::at(&self.state, |id| self.residents.usage(*id));
        let devices = look_at_devices(&self.state, &self.residents);
        let (config, metrics) = (Arc::clone(&self.config), self.observer.metrics());
        let hot = self.state.instances().iter().filter(|(_, known)| known.state == ModelState::Hot);
        let asked = hot.filter_map(|(id, known)| Some((known.model.clone(), self.residents.handle(*id)?.metrics())));
        let asked: Vec<_> = asked.collect();
        tokio::spawn(async move {
            let counted = join_all(asked.into_iter().map(async |(model, counted)| (model, counted.await))).await;
            spawn_blocking(move || {
                let devices = measure_devices(devices);
                let mut plugins = PluginSeries::default();
                counted.into_iter().for_each(|(model, counted)| plugins.add(&model, counted));
                send(reply, Scrape::new(metrics, now.gauges(&config, &devices)).with_plugins(plugins));
            });
        });
    }

    /// Tells what there is to say of every device. They are measured elsewhere: one may take its time to answer.
    pub(super) fn tell_devices(&self, reply: oneshot::Sender<Vec<DeviceStatus>>) {
        let devices = look_at_devices(&self.state, &self.residents);
        spawn_blocking(move || send(reply, measure_devices(devices)));
    }
}

/// What there is to say, one thing behind the other.
fn notes(said: [Option<String>; 2]) -> Option<String> {
    said.into_iter().flatten().reduce(|all, next| format!("{all}; {next}"))
}

/// The status of every model of a configuration: what is known of some, and of the others that nobody wanted them yet.
pub(super) fn with_all(mut known: BTreeMap<ModelId, ModelStatus>, config: &Config) -> Vec<ModelStatus> {
    let status = |model: &ModelConfig| known.remove(&model.id).unwrap_or_else(|| cold(model));
    config.models.values().map(status).collect()
}

fn said_to_clients(failure: Failure) -> String {
    failure.client_message().to_owned()
}

/// Why it is not what models.yaml says of it.
fn refused(model: &ModelConfig) -> Option<String> {
    model.refusal.as_ref().map(ToString::to_string)
}

/// The same as clients read it; nothing of an entry that is refused while the one before serves on.
fn unusable(model: &ModelConfig) -> Option<String> {
    let why = match &model.refusal {
        Some(Refusal::Entry(why)) => Failure::new(FailureKind::NotUsable, why.clone()),
        Some(Refusal::Change(_)) | None => return None,
    };
    Some(why.client_message().to_owned())
}

/// The status of a model that nobody wanted yet.
fn cold(model: &ModelConfig) -> ModelStatus {
    ModelStatus {
        id: model.id.clone(),
        kind: model.kind,
        plugin: model.plugin.clone(),
        state: ModelState::Cold,
        device: None,
        memory: 0,
        measured: None,
        replicas: 0,
        active: 0,
        queued: 0,
        progress: None,
        step: None,
        loads: 0,
        wakes: 0,
        left_ms: None,
        since_ms: None,
        waits_ms: None,
        pinned: model.pin,
        quarantined: false,
        idle_ms: None,
        pid: None,
        error: refused(model),
        client_error: unusable(model),
        note: None,
        aliases: model.aliases.clone(),
    }
}
