//! Runs a plugin in a unit test: no `.so`, no host process, no GPU.
//!
//! [`MockHost`] drives the same ABI objects the host drives, so panics, stops and JSON behave as in production.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RArc, ROption, RSlice, RStr, RVec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, ErrorKind, Result, glue};
use crate::Plugin;
use crate::abi::{
    RawCallbackBox, RawContext, RawContext_TO, RawError, RawExtensionArc, RawFlow, RawHost, RawHost_TO, RawModelBox,
    RawRequest, RawSink, RawSink_TO, event_kind, extension_id,
};
use crate::task::{
    AudioBlock, AudioFinish, AudioRequest, CustomFinish, CustomHead, CustomRequest, EmbeddingBlock, EmbeddingFinish,
    EmbeddingForm, EmbeddingRequest, ImageBlock, ImageFinish, ImageHeader, ImageRequest, LoadRequest, MemoryPlan,
    MemoryUsage, Metric, PrepareRequest, RequestInfo, TextEvent, TextFinish, TextRequest, UpstreamAddress,
};

/// A loaded plugin under test. Requests may be made from several threads at once.
///
/// ```
/// use aihost_plugin_api::{Plugin, Result, TextRequest, testing::MockHost};
///
/// /// What `generate` says when its client leaves after the first token.
/// fn first_token<P: Plugin>(options: serde_json::Value) -> Result<String> {
///     let mut host = MockHost::new::<P>(options, &[])?;
///     host.load()?;
///     host.cancel_after(1);
///     Ok(host.generate(&TextRequest::ask("Hello there"))?.text)
/// }
/// ```
#[derive(Debug)]
pub struct MockHost {
    model: ModelHandle,
    load: LoadRequest,
    journal: Arc<Journal>,
}

struct ModelHandle(RawModelBox);

impl std::fmt::Debug for ModelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModelHandle")
    }
}

/// What outlives a call.
#[derive(Debug, Default)]
struct Journal {
    client: Mutex<Client>,
    progress: Mutex<u64>,
    logs: Mutex<Vec<String>>,
}

/// How the clients of later requests behave.
#[derive(Clone, Debug, Default)]
struct Client {
    /// The call is cancelled from its start.
    is_gone: bool,
    /// The push after which the sink answers Stop.
    stop_after: Option<usize>,
    /// The push after which the call is cancelled.
    cancel_after: Option<usize>,
    /// The push that is answered Pause, and how often the sink says so when it is asked again.
    pause: Option<(usize, usize)>,
    info: RequestInfo,
}

/// Kind and bytes of an event.
type PushedEvent = (u32, Vec<u8>);

/// One call of the plugin.
struct Call {
    client: Client,
    journal: Arc<Journal>,
    state: Mutex<CallState>,
    ended: Condvar,
}

#[derive(Default)]
struct CallState {
    is_cancelled: bool,
    on_cancel: Option<RawCallbackBox>,
    events: Vec<PushedEvent>,
    /// How often Pause is still to be said.
    pauses: usize,
    end: Option<Result<Vec<u8>>>,
    /// No sink is left that could say an end.
    is_dropped: bool,
}

/// What a text request gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TextAnswer {
    /// The text of all events, joined.
    pub text: String,
    /// The text events in the order they were pushed.
    pub events: Vec<TextEvent>,
    /// Reason and usage.
    pub finish: TextFinish,
}

/// What an audio request gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AudioAnswer {
    /// All samples, interleaved.
    pub samples: Vec<f32>,
    /// The blocks as they came.
    pub blocks: Vec<AudioBlock>,
    /// Reason, format and counts.
    pub finish: AudioFinish,
}

/// What an image request gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImageAnswer {
    /// The images in the order they came, previews first; each whole, 3 bytes for each pixel.
    pub images: Vec<ImageBlock>,
    /// Reason, seed and size.
    pub finish: ImageFinish,
}

/// What an embedding request gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EmbeddingAnswer {
    /// The vectors in the order they came; none where documents were scored.
    pub vectors: Vec<Vec<f32>>,
    /// The scores in the order they came; none where texts were embedded.
    pub scores: Vec<f32>,
    /// Reason and tokens.
    pub finish: EmbeddingFinish,
}

/// What a custom request gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CustomAnswer {
    /// Status, media type and headers.
    pub head: CustomHead,
    /// The whole body.
    pub body: Vec<u8>,
    /// Reason and size.
    pub finish: CustomFinish,
}

impl MockHost {
    /// Instantiates `P` with `options` (JSON) for these files; nothing is loaded yet.
    pub fn new<P: Plugin>(options: serde_json::Value, files: &[(&str, PathBuf)]) -> Result<Self> {
        let journal = Arc::<Journal>::default();
        let host = RawHost_TO::from_ptr(RArc::new(HostHandle(Arc::clone(&journal))), TD_Opaque);
        let options = serde_json::to_vec(&options).map_err(Error::internal)?;
        let model = glue::instantiate::<P>(host, options.as_slice().into()).into_result()?;
        let files = files.iter().map(|(role, path)| ((*role).to_owned(), path.clone())).collect();
        let load = LoadRequest::new("cpu", files);
        Ok(Self { model: ModelHandle(model), load, journal })
    }

    /// The plugin's memory plan, bytes.
    pub fn plan(&self) -> Result<MemoryPlan> {
        let json = serde_json::to_vec(&self.load).map_err(Error::internal)?;
        let plan = self.model.0.plan(json.as_slice().into()).into_result()?;
        serde_json::from_slice(&plan).map_err(Error::internal)
    }

    /// Has the plugin prepare the model, as `aihost models pull` does, with these variables.
    pub fn prepare(&self, environment: &[(&str, &str)]) -> Result<()> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = PrepareRequest { load: self.load.clone(), environment };
        self.ask(extension_id::PREPARE, &request)
    }

    /// Plans, grants what is preferred and what requests take, loads and warms up, as a host does. A plan that names other
    /// devices is refused.
    pub fn load(&mut self) -> Result<()> {
        let plan = self.plan()?;
        if let Some((other, bytes)) = plan.others.iter().find(|(_, bytes)| **bytes > 0) {
            let message = format!("the plan has {bytes} bytes on {other}, and a host gives an instance one device");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.load_within(plan.preferred.saturating_add(plan.workspace_max))
    }

    /// Loads with so many bytes granted, requests' included, and warms up.
    pub fn load_within(&mut self, granted: u64) -> Result<()> {
        self.load.granted = granted;
        let json = serde_json::to_vec(&self.load).map_err(Error::internal)?;
        self.model.0.load(json.as_slice().into(), self.call().context()).into_result()?;
        Ok(self.model.0.warmup(self.call().context()).into_result()?)
    }

    /// Serves one text request to its end.
    pub fn generate(&self, request: &TextRequest) -> Result<TextAnswer> {
        let (events, finish) = self.submit(request, &request.blocks)?;
        let events: Vec<TextEvent> = events.iter().filter_map(|(_, json)| serde_json::from_slice(json).ok()).collect();
        let text = events
            .iter()
            .map(|event| if let TextEvent::Text { text, .. } = event { text.as_str() } else { "" })
            .collect();
        Ok(TextAnswer { text, events, finish })
    }

    /// Serves one audio request to its end.
    pub fn generate_audio(&self, request: &AudioRequest) -> Result<AudioAnswer> {
        let (events, finish) = self.submit(request, &request.blocks)?;
        let blocks = events.iter().map(|(_, bytes)| AudioBlock::decode(bytes)).collect::<Result<Vec<_>>>()?;
        let samples = blocks.iter().flat_map(|block| block.samples.iter().copied()).collect();
        Ok(AudioAnswer { samples, blocks, finish })
    }

    /// What the engine says this audio request needs beyond the plan's `required`. Bytes.
    pub fn audio_cost(&self, request: &AudioRequest) -> Result<u64> {
        self.cost(request, &request.blocks)
    }

    /// Serves one image request to its end. Images that a client's leaving cut short are left out.
    pub fn generate_image(&self, request: &ImageRequest) -> Result<ImageAnswer> {
        let (events, finish) = self.submit(request, &request.blocks)?;
        let mut images: Vec<ImageBlock> = Vec::new();
        for (_, bytes) in &events {
            let block = ImageBlock::decode(bytes)?;
            match images.last_mut().filter(|last| last.header.index == block.header.index) {
                Some(last) => last.pixels.extend_from_slice(&block.pixels),
                None => images.push(block),
            }
        }
        let size = |header: &ImageHeader| header.width as usize * header.height as usize * ImageHeader::PIXEL_BYTES;
        images.retain(|image| image.pixels.len() == size(&image.header));
        Ok(ImageAnswer { images, finish })
    }

    /// What the engine says this image request needs beyond the plan's `required`. Bytes.
    pub fn image_cost(&self, request: &ImageRequest) -> Result<u64> {
        self.cost(request, &request.blocks)
    }

    /// Serves one embedding request to its end.
    pub fn embed(&self, request: &EmbeddingRequest) -> Result<EmbeddingAnswer> {
        let (events, finish) = self.submit(request, &request.blocks)?;
        let mut answer = EmbeddingAnswer { vectors: Vec::new(), scores: Vec::new(), finish };
        for (_, bytes) in &events {
            let EmbeddingBlock { header, values } = EmbeddingBlock::decode(bytes)?;
            match header.form {
                EmbeddingForm::Vector => answer.vectors.push(values),
                EmbeddingForm::Score => answer.scores.extend(values),
            }
        }
        Ok(answer)
    }

    /// What the engine says this embedding request needs beyond the plan's `required`. Bytes.
    pub fn embedding_cost(&self, request: &EmbeddingRequest) -> Result<u64> {
        self.cost(request, &request.blocks)
    }

    /// Serves one custom request to its end.
    pub fn call_custom(&self, request: &CustomRequest) -> Result<CustomAnswer> {
        let (events, finish) = self.submit(request, &request.blocks)?;
        let head = events.iter().find(|(kind, _)| *kind == event_kind::JSON);
        let head = head.ok_or_else(|| Error::internal("the answer was not begun"))?;
        let body = events.iter().filter(|(kind, _)| *kind == event_kind::RAW).flat_map(|(_, bytes)| bytes.clone());
        Ok(CustomAnswer { head: read(&head.1)?, body: body.collect(), finish })
    }

    /// The engine's own metrics.
    pub fn metrics(&self) -> Result<Vec<Metric>> {
        self.extension(extension_id::METRICS)
    }

    /// Where the engine answers HTTP itself.
    pub fn upstream(&self) -> Result<UpstreamAddress> {
        self.extension(extension_id::UPSTREAM)
    }

    fn extension<T: DeserializeOwned>(&self, id: &str) -> Result<T> {
        self.ask(id, &())
    }

    fn ask<T: DeserializeOwned>(&self, id: &str, input: &impl Serialize) -> Result<T> {
        let ROption::RSome(extension) = self.model.0.extension(id.into()) else {
            return Err(Error::new(ErrorKind::Unsupported, format!("the plugin has no `{id}`")));
        };
        let input = serde_json::to_vec(input).map_err(Error::internal)?;
        read(&extension.call(input.as_slice().into()).into_result()?)
    }

    /// Whether the engine can still serve, by its own account.
    pub fn health(&self) -> Result<()> {
        Ok(self.model.0.health().into_result()?)
    }

    /// Bytes the instance holds.
    pub fn usage(&self) -> Result<MemoryUsage> {
        serde_json::from_slice(&self.model.0.usage().into_result()?).map_err(Error::internal)
    }

    /// Parks the instance.
    pub fn park(&self) -> Result<()> {
        self.model.0.park().into_result().map_err(Error::from)
    }

    /// Wakes the instance.
    pub fn unpark(&self) -> Result<()> {
        self.model.0.unpark(self.call().context()).into_result().map_err(Error::from)
    }

    /// Drops the engine.
    pub fn release(&self) -> Result<()> {
        self.model.0.release().into_result().map_err(Error::from)
    }

    /// Every later call sees itself cancelled.
    pub fn cancel(&self) {
        self.client().is_gone = true;
    }

    /// Later calls are cancelled after their `pushes`-th push, as when a client leaves midway.
    pub fn cancel_after(&self, pushes: usize) {
        self.client().cancel_after = Some(pushes);
    }

    /// The sink of later calls answers Stop from the `pushes`-th push on.
    pub fn stop_after(&self, pushes: usize) {
        self.client().stop_after = Some(pushes);
    }

    /// The sink of later calls answers Pause to the `pushes`-th push, and to the next `times` questions whether to go on.
    pub fn pause_at(&self, pushes: usize, times: usize) {
        self.client().pause = Some((pushes, times));
    }

    /// What later calls are told of their request.
    pub fn say(&self, change: impl FnOnce(&mut RequestInfo)) {
        change(&mut self.client().info);
    }

    /// The largest progress reported.
    pub fn progress(&self) -> u64 {
        *lock(&self.journal.progress)
    }

    /// What the plugin logged.
    pub fn logs(&self) -> Vec<String> {
        lock(&self.journal.logs).clone()
    }

    fn client(&self) -> MutexGuard<'_, Client> {
        lock(&self.journal.client)
    }

    fn call(&self) -> CallHandle {
        let client = self.client().clone();
        let state = Mutex::new(CallState { is_cancelled: client.is_gone, ..CallState::default() });
        CallHandle(Arc::new(Call { client, journal: Arc::clone(&self.journal), state, ended: Condvar::new() }))
    }

    fn cost(&self, request: &impl Serialize, blocks: &[Vec<u8>]) -> Result<u64> {
        Ok(self.model.0.cost(raw(request, blocks)?).into_result()?)
    }

    fn submit<F: DeserializeOwned>(
        &self,
        request: &impl Serialize,
        blocks: &[Vec<u8>],
    ) -> Result<(Vec<PushedEvent>, F)> {
        let call = self.call();
        let sink = RawSink_TO::from_ptr(RArc::new(SinkHandle(Arc::clone(&call.0))), TD_Opaque);
        if let Err(error) = self.model.0.submit(raw(request, blocks)?, sink, call.context()).into_result() {
            call.0.end(Err(error.into()));
        }
        let ended = call.0.ended.wait_while(lock(&call.0.state), |state| state.end.is_none() && !state.is_dropped);
        let mut state = ended.unwrap_or_else(PoisonError::into_inner);
        let summary = state
            .end
            .take()
            .unwrap_or_else(|| Err(Error::internal("the plugin dropped the request without an answer")))?;
        Ok((std::mem::take(&mut state.events), read(&summary)?))
    }
}

fn raw(request: &impl Serialize, blocks: &[Vec<u8>]) -> Result<RawRequest> {
    let header = serde_json::to_vec(request).map_err(Error::internal)?.into();
    Ok(RawRequest { header, blocks: blocks.iter().map(|block| RVec::from(block.clone())).collect() })
}

fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(Error::internal)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Call {
    fn end(&self, end: Result<Vec<u8>>) {
        let mut state = lock(&self.state);
        state.end.get_or_insert(end);
        state.on_cancel = None;
        self.ended.notify_all();
    }

    fn cancel(&self) {
        let callback = {
            let mut state = lock(&self.state);
            state.is_cancelled = true;
            state.on_cancel.take()
        };
        if let Some(callback) = callback {
            callback.call();
        }
    }
}

struct CallHandle(Arc<Call>);

impl CallHandle {
    fn context(&self) -> crate::abi::RawContextArc {
        RawContext_TO::from_ptr(RArc::new(Self(Arc::clone(&self.0))), TD_Opaque)
    }
}

/// The way in for one answer; dropped before its end, it fails it.
struct SinkHandle(Arc<Call>);

impl Drop for SinkHandle {
    fn drop(&mut self) {
        lock(&self.0.state).is_dropped = true;
        self.0.ended.notify_all();
    }
}

const CONTINUE: RawFlow = RawFlow(0);
const PAUSE: RawFlow = RawFlow(1);
const STOP: RawFlow = RawFlow(2);

impl RawSink for SinkHandle {
    fn push(&self, kind: u32, payload: RSlice<'_, u8>) -> RawFlow {
        let client = &self.0.client;
        let pushed = {
            let mut state = lock(&self.0.state);
            if state.end.is_some() {
                return STOP;
            }
            state.events.push((kind, payload.as_slice().to_vec()));
            state.events.len()
        };
        if client.cancel_after == Some(pushed) {
            self.0.cancel();
        }
        match client.pause {
            _ if client.stop_after.is_some_and(|most| pushed >= most) => STOP,
            Some((at, times)) if at == pushed => {
                lock(&self.0.state).pauses = times;
                PAUSE
            }
            _ => CONTINUE,
        }
    }

    fn flow(&self) -> RawFlow {
        let mut state = lock(&self.0.state);
        match state.pauses.checked_sub(1) {
            Some(left) => {
                state.pauses = left;
                PAUSE
            }
            None => CONTINUE,
        }
    }

    fn finish(&self, summary: RSlice<'_, u8>) {
        self.0.end(Ok(summary.as_slice().to_vec()));
    }

    fn fail(&self, error: RawError) {
        self.0.end(Err(error.into()));
    }
}

impl RawContext for CallHandle {
    fn is_cancelled(&self) -> u8 {
        u8::from(lock(&self.0.state).is_cancelled)
    }

    fn progress(&self, done: u64, _total: u64) {
        let mut most = lock(&self.0.journal.progress);
        *most = done.max(*most);
    }

    fn request_id(&self) -> u64 {
        1
    }

    fn about(&self) -> RVec<u8> {
        serde_json::to_vec(&self.0.client.info).unwrap_or_default().into()
    }

    fn on_cancel(&self, callback: RawCallbackBox) {
        let mut state = lock(&self.0.state);
        if !state.is_cancelled {
            state.on_cancel = Some(callback);
            return;
        }
        drop(state);
        callback.call();
    }
}

struct HostHandle(Arc<Journal>);

impl RawHost for HostHandle {
    fn log(&self, level: u32, _target: RStr<'_>, message: RStr<'_>, _fields: RSlice<'_, u8>, _request: u64) {
        lock(&self.0.logs).push(format!("{level} {message}"));
    }

    fn about(&self) -> RVec<u8> {
        let about = BTreeMap::from([("features", super::manifest::FEATURES)]);
        serde_json::to_vec(&about).unwrap_or_default().into()
    }

    fn extension(&self, _id: RStr<'_>) -> ROption<RawExtensionArc> {
        ROption::RNone
    }
}
