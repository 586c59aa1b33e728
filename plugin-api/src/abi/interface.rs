//! Layer 1: the root module of a plugin, and the four objects that host and plugin call each other through. Who calls is
//! named first; the other side implements the object.

#![allow(
    non_camel_case_types,
    non_local_definitions,
    unsafe_code,
    unused_lifetimes,
    missing_debug_implementations,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::mem_forget,
    reason = "abi_stable's derives generate this code; the hand-written part has no unsafe"
)]

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_trait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RArc, RBox, ROption, RResult, RSlice, RStr, RString, RVec};

/// An error on its way across. The number's meaning is [`crate::ErrorKind`]; unknown numbers are internal errors.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct RawError {
    /// See [`crate::ErrorKind::code`].
    pub kind: RawErrorKind,
    /// One sentence for people, UTF-8.
    pub message: RString,
}

/// The number of an error kind.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawErrorKind(pub u32);

/// What a push tells the plugin: 0 go on, 1 pause this sequence, 2 stop it. Unknown values mean stop.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFlow(pub u8);

/// Kinds of pushed events.
pub mod event_kind {
    /// JSON, of the task's event type.
    pub const JSON: u32 = 0;
    /// A 4-byte little-endian header length, a JSON header, raw bytes.
    pub const BYTES: u32 = 1;
}

/// The plugin calls the host: where a request's answer goes. Any thread; never blocks.
#[sabi_trait]
pub trait RawSink: Send + Sync + 'static {
    /// Takes one event of a kind of [`event_kind`].
    fn push(&self, kind: u32, payload: RSlice<'_, u8>) -> RawFlow;
    /// Whether to go on, without pushing.
    #[sabi(last_prefix_field)]
    fn flow(&self) -> RawFlow;
}

/// The plugin calls the host: one call's cancellation, progress and request id. Any thread; never blocks.
#[sabi_trait]
pub trait RawContext: Send + Sync + 'static {
    /// 0 while the call should go on.
    fn is_cancelled(&self) -> u8;
    /// `total` 0 means unknown.
    fn progress(&self, done: u64, total: u64);
    /// The request this call serves, for logs; 0 outside requests.
    #[sabi(last_prefix_field)]
    fn request_id(&self) -> u64;
}

/// The plugin calls the host: services for the plugin's whole life.
#[sabi_trait]
pub trait RawHost: Send + Sync + 'static {
    /// `level` 1 error to 5 trace; `fields` is a JSON object.
    fn log(&self, level: u32, target: RStr<'_>, message: RStr<'_>, fields: RSlice<'_, u8>, request: u64);
    /// A host ability by id; none is defined yet.
    #[sabi(last_prefix_field)]
    fn query(&self, id: RStr<'_>) -> ROption<u64>;
}

/// The host calls the plugin: one instance. Blocking calls; `generate` from up to `max_concurrency` threads, the others one at a time.
#[sabi_trait]
pub trait RawModel: Send + Sync + 'static {
    /// `LoadRequest` in, `MemoryPlan` out.
    fn plan(&self, load: RSlice<'_, u8>) -> RResult<RVec<u8>, RawError>;
    /// Loads the model: `LoadRequest` in.
    fn load(&self, load: RSlice<'_, u8>, ctx: RawContextArc) -> RResult<(), RawError>;
    /// Runs once what is slow the first time (kernels, caches).
    fn warmup(&self, ctx: RawContextArc) -> RResult<(), RawError>;
    /// Bytes a request will need on top.
    fn cost(&self, request: RSlice<'_, u8>) -> RResult<u64, RawError>;
    /// Serves one request; returns the task's summary.
    fn generate(&self, request: RSlice<'_, u8>, sink: RawSinkArc, ctx: RawContextArc) -> RResult<RVec<u8>, RawError>;
    /// `MemoryUsage` out.
    fn usage(&self) -> RResult<RVec<u8>, RawError>;
    /// Gives the device memory back and keeps what makes waking quick.
    fn park(&self) -> RResult<(), RawError>;
    /// Brings the model back to the device after a park.
    fn unpark(&self, ctx: RawContextArc) -> RResult<(), RawError>;
    /// An error if the instance can no longer serve.
    fn health(&self) -> RResult<(), RawError>;
    /// Drops the engine; the object remains and can load again.
    #[sabi(last_prefix_field)]
    fn release(&self) -> RResult<(), RawError>;
}

/// A shared sink.
pub type RawSinkArc = RawSink_TO<RArc<()>>;
/// A shared context.
pub type RawContextArc = RawContext_TO<RArc<()>>;
/// A shared host.
pub type RawHostArc = RawHost_TO<RArc<()>>;
/// An owned model.
pub type RawModelBox = RawModel_TO<RBox<()>>;

/// What a plugin file exports.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = Root_Ref)))]
#[sabi(missing_field(panic))]
pub struct Root {
    /// `Description` as JSON.
    pub describe: extern "C" fn() -> RVec<u8>,
    /// Builds an instance from its `options:` (JSON).
    pub instantiate: extern "C" fn(RawHostArc, RSlice<'_, u8>) -> RResult<RawModelBox, RawError>,
    /// A plugin ability by id; none is defined yet.
    #[sabi(last_prefix_field)]
    pub query: extern "C" fn(RStr<'_>) -> ROption<u64>,
}

impl RootModule for Root_Ref {
    abi_stable::declare_root_module_statics! {Root_Ref}
    const BASE_NAME: &'static str = "aihost_plugin";
    const NAME: &'static str = "aihost_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
