//! Runs a plugin in a unit test: no `.so`, no host process, no GPU.
//!
//! [`MockHost`] drives the same ABI objects the host drives, so panics, stops and JSON behave as in production.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RArc, ROption, RSlice, RStr};

use super::{Error, Result, glue};
use crate::Plugin;
use crate::abi::{RawContext, RawContext_TO, RawFlow, RawHost, RawHost_TO, RawModelBox, RawSink, RawSink_TO};
use crate::task::{AudioBlock, AudioFinish, AudioRequest, ImageBlock, ImageFinish, ImageHeader, ImageRequest};
use crate::task::{LoadRequest, MemoryPlan, MemoryUsage, TextEvent, TextFinish, TextRequest};

/// A loaded plugin under test.
#[derive(Debug)]
pub struct MockHost {
    model: ModelHandle,
    load: LoadRequest,
    recorder: Arc<Recorder>,
}

struct ModelHandle(RawModelBox);

impl std::fmt::Debug for ModelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ModelHandle")
    }
}

#[derive(Debug, Default)]
struct Recorder {
    cancelled: AtomicBool,
    progress: AtomicU64,
    /// The push after which the sink answers Stop; `usize::MAX` for never.
    stop_after: AtomicUsize,
    events: Mutex<Vec<(u32, Vec<u8>)>>,
    logs: Mutex<Vec<String>>,
}

/// What a text request gave.
#[derive(Clone, Debug)]
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
pub struct ImageAnswer {
    /// The images in the order they came, previews first; each whole, 3 bytes for each pixel.
    pub images: Vec<ImageBlock>,
    /// Reason, seed and size.
    pub finish: ImageFinish,
}

impl MockHost {
    /// Instantiates `P` with `options` (JSON) for these files; nothing is loaded yet.
    pub fn new<P: Plugin>(options: serde_json::Value, files: &[(&str, PathBuf)]) -> Result<Self> {
        let recorder = Arc::new(Recorder { stop_after: AtomicUsize::new(usize::MAX), ..Recorder::default() });
        let host = RawHost_TO::from_ptr(RArc::new(RecorderHandle(Arc::clone(&recorder))), TD_Opaque);
        let options = serde_json::to_vec(&options).map_err(Error::internal)?;
        let model = glue::instantiate::<P>(host, options.as_slice().into()).into_result()?;
        let files = files.iter().map(|(role, path)| ((*role).to_owned(), path.clone())).collect();
        let load = LoadRequest { files, device: "cpu".to_owned(), threads: 1, granted: 0 };
        Ok(Self { model: ModelHandle(model), load, recorder })
    }

    /// The plugin's memory plan, bytes.
    pub fn plan(&self) -> Result<MemoryPlan> {
        let json = serde_json::to_vec(&self.load).map_err(Error::internal)?;
        let plan = self.model.0.plan(json.as_slice().into()).into_result()?;
        serde_json::from_slice(&plan).map_err(Error::internal)
    }

    /// Plans, grants what is preferred and what requests take, loads.
    pub fn load(&mut self) -> Result<()> {
        let plan = self.plan()?;
        self.load_within(plan.preferred.saturating_add(plan.workspace_max))
    }

    /// Loads with so many bytes granted, requests' included.
    pub fn load_within(&mut self, granted: u64) -> Result<()> {
        self.load.granted = granted;
        let json = serde_json::to_vec(&self.load).map_err(Error::internal)?;
        self.model.0.load(json.as_slice().into(), self.context()).into_result().map_err(Error::from)
    }

    /// Serves one text request to its end.
    pub fn generate(&self, request: &TextRequest) -> Result<TextAnswer> {
        let json = serde_json::to_vec(request).map_err(Error::internal)?;
        self.lock_events().clear();
        let sink = RawSink_TO::from_ptr(RArc::new(RecorderHandle(Arc::clone(&self.recorder))), TD_Opaque);
        let summary = self.model.0.generate(json.as_slice().into(), sink, self.context()).into_result()?;
        let events: Vec<TextEvent> =
            self.lock_events().iter().filter_map(|(_, json)| serde_json::from_slice(json).ok()).collect();
        let text = events
            .iter()
            .map(|event| if let TextEvent::Text { text, .. } = event { text.as_str() } else { "" })
            .collect();
        Ok(TextAnswer { text, events, finish: serde_json::from_slice(&summary).map_err(Error::internal)? })
    }

    /// Serves one audio request to its end.
    pub fn generate_audio(&self, request: &AudioRequest) -> Result<AudioAnswer> {
        let json = serde_json::to_vec(request).map_err(Error::internal)?;
        self.lock_events().clear();
        let sink = RawSink_TO::from_ptr(RArc::new(RecorderHandle(Arc::clone(&self.recorder))), TD_Opaque);
        let summary = self.model.0.generate(json.as_slice().into(), sink, self.context()).into_result()?;
        let blocks =
            self.lock_events().iter().map(|(_, bytes)| AudioBlock::decode(bytes)).collect::<Result<Vec<_>>>()?;
        let samples = blocks.iter().flat_map(|block| block.samples.iter().copied()).collect();
        Ok(AudioAnswer { samples, blocks, finish: serde_json::from_slice(&summary).map_err(Error::internal)? })
    }

    /// What the engine says this audio request needs beyond the plan's `required`. Bytes.
    pub fn audio_cost(&self, request: &AudioRequest) -> Result<u64> {
        let json = serde_json::to_vec(request).map_err(Error::internal)?;
        self.model.0.cost(json.as_slice().into()).into_result().map_err(Error::from)
    }

    /// Serves one image request to its end. Images that a client's leaving cut short are left out.
    pub fn generate_image(&self, request: &ImageRequest) -> Result<ImageAnswer> {
        let json = serde_json::to_vec(request).map_err(Error::internal)?;
        self.lock_events().clear();
        let sink = RawSink_TO::from_ptr(RArc::new(RecorderHandle(Arc::clone(&self.recorder))), TD_Opaque);
        let summary = self.model.0.generate(json.as_slice().into(), sink, self.context()).into_result()?;
        let mut images: Vec<ImageBlock> = Vec::new();
        for (_, bytes) in self.lock_events().iter() {
            let block = ImageBlock::decode(bytes)?;
            match images.last_mut().filter(|last| last.header.index == block.header.index) {
                Some(last) => last.pixels.extend_from_slice(&block.pixels),
                None => images.push(block),
            }
        }
        let size = |header: &ImageHeader| header.width as usize * header.height as usize * ImageHeader::PIXEL_BYTES;
        images.retain(|image| image.pixels.len() == size(&image.header));
        Ok(ImageAnswer { images, finish: serde_json::from_slice(&summary).map_err(Error::internal)? })
    }

    /// What the engine says this image request needs beyond the plan's `required`. Bytes.
    pub fn image_cost(&self, request: &ImageRequest) -> Result<u64> {
        let json = serde_json::to_vec(request).map_err(Error::internal)?;
        self.model.0.cost(json.as_slice().into()).into_result().map_err(Error::from)
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
        self.model.0.unpark(self.context()).into_result().map_err(Error::from)
    }

    /// Drops the engine.
    pub fn release(&self) -> Result<()> {
        self.model.0.release().into_result().map_err(Error::from)
    }

    /// Every later call sees itself cancelled.
    pub fn cancel(&self) {
        self.recorder.cancelled.store(true, Ordering::Release);
    }

    /// The sink answers Stop from the `pushes`-th push on.
    pub fn stop_after(&self, pushes: usize) {
        self.recorder.stop_after.store(pushes, Ordering::Release);
    }

    /// The largest progress reported.
    pub fn progress(&self) -> u64 {
        self.recorder.progress.load(Ordering::Acquire)
    }

    /// What the plugin logged.
    pub fn logs(&self) -> Vec<String> {
        self.recorder.logs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn context(&self) -> crate::abi::RawContextArc {
        RawContext_TO::from_ptr(RArc::new(RecorderHandle(Arc::clone(&self.recorder))), TD_Opaque)
    }

    fn lock_events(&self) -> std::sync::MutexGuard<'_, Vec<(u32, Vec<u8>)>> {
        self.recorder.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct RecorderHandle(Arc<Recorder>);

impl RawSink for RecorderHandle {
    fn push(&self, kind: u32, payload: RSlice<'_, u8>) -> RawFlow {
        let mut events = self.0.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push((kind, payload.as_slice().to_vec()));
        RawFlow(if events.len() >= self.0.stop_after.load(Ordering::Acquire) { 2 } else { 0 })
    }

    fn flow(&self) -> RawFlow {
        RawFlow(0)
    }
}

impl RawContext for RecorderHandle {
    fn is_cancelled(&self) -> u8 {
        u8::from(self.0.cancelled.load(Ordering::Acquire))
    }

    fn progress(&self, done: u64, _total: u64) {
        self.0.progress.fetch_max(done, Ordering::AcqRel);
    }

    fn request_id(&self) -> u64 {
        1
    }
}

impl RawHost for RecorderHandle {
    fn log(&self, level: u32, _target: RStr<'_>, message: RStr<'_>, _fields: RSlice<'_, u8>, _request: u64) {
        self.0.logs.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{level} {message}"));
    }

    fn query(&self, _id: RStr<'_>) -> ROption<u64> {
        ROption::RNone
    }
}
