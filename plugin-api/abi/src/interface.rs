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

/// An error on its way across.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct RawError {
    /// What the host acts on.
    pub kind: RawErrorKind,
    /// One sentence for people, UTF-8.
    pub message: RString,
    /// A JSON object of what else is known: `field`, `code`, `retry_after_ms`, `bytes_wanted`, `bytes_had`. Empty: nothing.
    /// Members that a reader does not know are ignored.
    pub details: RVec<u8>,
}

/// The number of an error kind; unknown numbers are internal errors. The SDK's `ErrorKind` has their meaning.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawErrorKind(pub u32);

/// What a push tells the plugin: 0 go on, 1 pause this sequence, 2 stop it. Unknown values mean stop.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFlow(pub u8);

/// What a request asks: a header that says what is meant, and the bytes that it speaks of.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, Default)]
pub struct RawRequest {
    /// JSON, of the task's request type.
    pub header: RVec<u8>,
    /// Pictures, masks, clips, a body: whatever the header refers to by number, from 0.
    pub blocks: RVec<RVec<u8>>,
}

/// Kinds of pushed events. A host passes over kinds that it does not know.
pub mod event_kind {
    /// JSON, of the task's event type.
    pub const JSON: u32 = 0;
    /// A 4-byte little-endian header length, a JSON header, raw bytes.
    pub const BYTES: u32 = 1;
    /// Raw bytes alone: more of a body.
    pub const RAW: u32 = 2;
}

/// Extensions: what later builds can do beyond these objects, found by id. A JSON document in and a JSON document out, both of
/// the shape that the id stands for; a new shape is a new id.
pub mod extension_id {
    /// Asked of a model: the metrics that it keeps, as a list of `{name, kind, help, value, labels}`. In: `null`.
    pub const METRICS: &str = "aihost.metrics/1";
    /// Asked of a model that is loaded or awake: where its engine answers HTTP, as `{address, prefix, headers}`. In: `null`. A model
    /// that has it is sent no requests.
    pub const UPSTREAM: &str = "aihost.upstream/1";
    /// Asked of a model that is not loaded, if its plugin's manifest says `prepares`: to make what loading needs beside the
    /// model's files. In: `{load, environment}`. Out: `null`. It may take hours.
    pub const PREPARE: &str = "aihost.prepare/1";
}

/// The plugin calls the host: where a request's answer goes. Any thread; never blocks. Once the request has ended, by
/// [`finish`](Self::finish) or [`fail`](Self::fail), every other call is without effect. Dropping the last handle before that
/// fails the request.
#[sabi_trait]
pub trait RawSink: Send + Sync + 'static {
    /// Takes one event of a kind of [`event_kind`].
    fn push(&self, kind: u32, payload: RSlice<'_, u8>) -> RawFlow;
    /// Whether to go on, without pushing.
    fn flow(&self) -> RawFlow;
    /// Ends the request with the task's summary, JSON.
    fn finish(&self, summary: RSlice<'_, u8>);
    /// Ends the request with an error.
    #[sabi(last_prefix_field)]
    fn fail(&self, error: RawError);
}

/// One side calls the other once, from any thread. It must not block.
#[sabi_trait]
pub trait RawCallback: Send + Sync + 'static {
    /// What was waited for has come.
    #[sabi(last_prefix_field)]
    fn call(&self);
}

/// An owned callback.
pub type RawCallbackBox = RawCallback_TO<RBox<()>>;

/// The plugin calls the host: one call's cancellation and progress, and what is known of its request. Any thread; never blocks.
#[sabi_trait]
pub trait RawContext: Send + Sync + 'static {
    /// 0 while the call should go on.
    fn is_cancelled(&self) -> u8;
    /// `total` 0 means unknown.
    fn progress(&self, done: u64, total: u64);
    /// The request this call serves, for logs; 0 outside requests.
    fn request_id(&self) -> u64;
    /// What is known of the request, as JSON: the SDK's `RequestInfo`. Empty outside requests.
    fn about(&self) -> RVec<u8>;
    /// Calls back once when the call is cancelled, on a thread of the host; at once if it is already. One for each call: another
    /// takes its place. It is dropped when the call ends.
    #[sabi(last_prefix_field)]
    fn on_cancel(&self, callback: RawCallbackBox);
}

/// Something that was found by its id, see [`extension_id`].
#[sabi_trait]
pub trait RawExtension: Send + Sync + 'static {
    /// What goes in and comes out is what the id stands for. Any thread; blocks.
    #[sabi(last_prefix_field)]
    fn call(&self, input: RSlice<'_, u8>) -> RResult<RVec<u8>, RawError>;
}

/// A shared extension.
pub type RawExtensionArc = RawExtension_TO<RArc<()>>;

/// The plugin calls the host: services for the plugin's whole life. Any thread; never blocks.
#[sabi_trait]
pub trait RawHost: Send + Sync + 'static {
    /// `level` 1 error to 5 trace; `fields` is a JSON object.
    fn log(&self, level: u32, target: RStr<'_>, message: RStr<'_>, fields: RSlice<'_, u8>, request: u64);
    /// What the host is and can, as JSON: `{"version": "...", "features": ["..."]}`.
    fn about(&self) -> RVec<u8>;
    /// Something that this host can do beyond these methods.
    #[sabi(last_prefix_field)]
    fn extension(&self, id: RStr<'_>) -> ROption<RawExtensionArc>;
}

/// The host calls the plugin: one instance. Calls block, each on a thread that the host owns: `submit` from up to
/// `max_concurrency` threads at once, and `cost`, `usage`, `health` and extensions beside them; the others one at a time, and
/// with no request in progress.
#[sabi_trait]
pub trait RawModel: Send + Sync + 'static {
    /// `LoadRequest` in, `MemoryPlan` out.
    fn plan(&self, load: RSlice<'_, u8>) -> RResult<RVec<u8>, RawError>;
    /// Loads the model: `LoadRequest` in.
    fn load(&self, load: RSlice<'_, u8>, ctx: RawContextArc) -> RResult<(), RawError>;
    /// Runs once what is slow the first time (kernels, caches).
    fn warmup(&self, ctx: RawContextArc) -> RResult<(), RawError>;
    /// Bytes a request will need on top.
    fn cost(&self, request: RawRequest) -> RResult<u64, RawError>;
    /// Serves one request: its end is said to the sink, before or after this returns. An error is the same as `fail`.
    fn submit(&self, request: RawRequest, sink: RawSinkArc, ctx: RawContextArc) -> RResult<(), RawError>;
    /// `MemoryUsage` out.
    fn usage(&self) -> RResult<RVec<u8>, RawError>;
    /// Gives the device memory back and keeps what makes waking quick.
    fn park(&self) -> RResult<(), RawError>;
    /// Brings the model back to the device after a park.
    fn unpark(&self, ctx: RawContextArc) -> RResult<(), RawError>;
    /// An error if the instance can no longer serve.
    fn health(&self) -> RResult<(), RawError>;
    /// Something that this instance can do beyond these methods.
    fn extension(&self, id: RStr<'_>) -> ROption<RawExtensionArc>;
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
    #[sabi(last_prefix_field)]
    pub instantiate: extern "C" fn(RawHostArc, RSlice<'_, u8>) -> RResult<RawModelBox, RawError>,
}

impl RootModule for Root_Ref {
    abi_stable::declare_root_module_statics! {Root_Ref}
    const BASE_NAME: &'static str = "aihost_plugin";
    const NAME: &'static str = "aihost_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
