//! What whoever watches is told: everything at first, then what changed. It keeps what each of them has.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::caller::Caller;
use super::super::recent::RecentRequest;
use super::super::wire::{DeviceReply, JobReply, SwapReply, WaitingReply};
use super::pulse::Look;
use crate::domain::ModelId;
use crate::runtime::Swap;

/// A message of the feed: all of it in the first one, and later what changed.
#[derive(Serialize)]
pub(super) struct Message<'a> {
    /// Milliseconds since 1970, by the host's clock.
    pub(super) now_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<HostReply>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) models: Option<Vec<&'a RawValue>>,
    /// Models that are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gone: Option<Vec<ModelId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) devices: Option<Vec<DeviceReply>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) history: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) waiting: Option<Vec<WaitingReply<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) swaps: Option<Vec<SwapReply<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "all")]
    pub(super) requests: Option<Vec<Arc<RecentRequest>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) jobs: Option<&'a Vec<JobReply>>,
}

impl Message<'_> {
    /// Whether anything is new.
    pub(super) fn is_news(&self) -> bool {
        let Message { models, gone, devices, waiting, swaps, requests, jobs, .. } = self;
        let is_of_models = models.is_some() || gone.is_some() || waiting.is_some() || swaps.is_some();
        is_of_models || devices.is_some() || requests.is_some() || jobs.is_some()
    }
}

/// What is said of the host itself.
#[derive(Serialize)]
pub(super) struct HostReply {
    pub(super) version: &'static str,
    /// Seconds since 1970 when it began to serve.
    pub(super) started_s: u64,
}

/// What somebody who watches has.
pub(super) struct Known {
    caller: Caller,
    models: HashMap<ModelId, String>,
    waiting: Vec<(String, bool)>,
    swaps: HashMap<u64, (usize, &'static str)>,
    measured: u64,
    /// The last request.
    request: u64,
    /// The jobs, as they were told.
    jobs: Option<String>,
}

impl Known {
    /// Nothing yet.
    pub(super) fn of(caller: Caller) -> Self {
        Self {
            caller,
            models: HashMap::new(),
            waiting: Vec::new(),
            swaps: HashMap::new(),
            measured: 0,
            request: 0,
            jobs: None,
        }
    }

    /// The last request that it was told of.
    pub(super) fn request(&self) -> u64 {
        self.request
    }

    /// What is new in this look, which it has from now on.
    pub(super) fn news<'a>(
        &mut self,
        look: &'a Look,
        requests: Vec<Arc<RecentRequest>>,
        jobs: Option<&'a Vec<JobReply>>,
    ) -> Message<'a> {
        let caller = self.caller.clone();
        let sees = |model: &ModelId| caller.sees(model.as_str());
        self.request = requests.last().map_or(self.request, |last| last.number);
        let message = Message {
            now_ms: look.at_ms,
            host: None,
            models: self.models(look),
            gone: self.gone(look),
            devices: (self.measured != look.measured).then(|| look.devices.iter().map(DeviceReply::from).collect()),
            history: None,
            waiting: self.waiting(look),
            swaps: self.swaps(look),
            requests: some(requests.into_iter().filter(|request| match &request.model {
                Some(model) => sees(model),
                None => caller.sees_all(),
            })),
            jobs: self.jobs(jobs),
        };
        self.measured = look.measured;
        message
    }

    fn models<'a>(&mut self, look: &'a Look) -> Option<Vec<&'a RawValue>> {
        let mut news = Vec::new();
        for model in look.models.iter().filter(|model| self.caller.sees(model.id.as_str())) {
            match self.models.get_mut(&model.id) {
                Some(mark) if *mark == model.mark => continue,
                Some(mark) => mark.clone_from(&model.mark),
                None => _ = self.models.insert(model.id.clone(), model.mark.clone()),
            }
            news.push(&*model.told);
        }
        some(news)
    }

    fn gone(&mut self, look: &Look) -> Option<Vec<ModelId>> {
        let seen = look.models.iter().filter(|model| self.caller.sees(model.id.as_str())).count();
        if seen == self.models.len() {
            return None;
        }
        let is_there = |id: &ModelId| look.models.binary_search_by(|model| model.id.cmp(id)).is_ok();
        let gone: Vec<ModelId> = self.models.keys().filter(|id| !is_there(id)).cloned().collect();
        gone.iter().for_each(|id| _ = self.models.remove(id));
        some(gone)
    }

    fn waiting<'a>(&mut self, look: &'a Look) -> Option<Vec<WaitingReply<'a>>> {
        let seen = || look.overview.waiting.iter().filter(|one| self.caller.sees(one.model.as_str()));
        let now: Vec<(String, bool)> = seen().map(|one| (format!("{} {}", one.model, one.id), one.for_slot)).collect();
        if now == self.waiting {
            return None;
        }
        let told = seen().map(WaitingReply::from).collect();
        self.waiting = now;
        Some(told)
    }

    fn swaps<'a>(&mut self, look: &'a Look) -> Option<Vec<SwapReply<'a>>> {
        let caller = self.caller.clone();
        let sees = |model: &ModelId| caller.sees(model.as_str());
        let mark = |swap: &Swap| (swap.steps.len(), swap.outcome.name());
        let all = || look.overview.swaps.iter().filter(|swap| sees(&swap.model));
        let news: Vec<&Arc<Swap>> = all().filter(|swap| self.swaps.get(&swap.number) != Some(&mark(swap))).collect();
        self.swaps = all().map(|swap| (swap.number, mark(swap))).collect();
        some(news.into_iter().map(|swap| SwapReply::of(swap, sees)))
    }

    fn jobs<'a>(&mut self, jobs: Option<&'a Vec<JobReply>>) -> Option<&'a Vec<JobReply>> {
        let jobs = jobs?;
        let now = serde_json::to_string(jobs).ok();
        if now == self.jobs {
            return None;
        }
        self.jobs = now;
        Some(jobs)
    }
}

/// Serde knows nothing of what is shared.
fn all<S: serde::Serializer>(requests: &Option<Vec<Arc<RecentRequest>>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(requests.iter().flatten().map(|request| &**request))
}

fn some<T>(items: impl IntoIterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<T> = items.into_iter().collect();
    (!items.is_empty()).then_some(items)
}
