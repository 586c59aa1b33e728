//! The two traits an author implements, and the kinds of task they can be implemented for.

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use super::audio_output::AudioOutput;
use super::context::{Context, LoadContext, PrepareContext};
use super::custom_output::CustomOutput;
use super::embedding_output::EmbeddingOutput;
use super::image_output::ImageOutput;
use super::job::Job;
use super::outlet::Outlet;
use super::text_output::TextOutput;
use super::{Error, ErrorKind, Result};
use crate::task::{
    AudioFinish, AudioRequest, CustomFinish, CustomRequest, EmbeddingFinish, EmbeddingRequest, ImageFinish,
    ImageRequest, LoadRequest, MemoryPlan, MemoryUsage, Metric, Request, TextFinish, TextInput, TextRequest, Token,
    UpstreamAddress,
};

/// A plugin: how to plan and load a model. One value exists per instance, built from the entry's `options:`.
///
/// ```
/// use aihost_plugin_api::{Context, Engine, FinishReason, LoadContext, LoadRequest, MemoryPlan, Plugin, Result, Text, TextOutput, TextRequest};
///
/// #[derive(Default, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(deny_unknown_fields, default)]
/// struct Options { reply: String }
///
/// struct Parrot { reply: String }
///
/// impl Plugin for Parrot {
///     type Options = Options;
///     type Engine = Self;
///     fn new(options: Options) -> Result<Self> { Ok(Self { reply: options.reply }) }
///     fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> { Ok(MemoryPlan::default()) }
///     fn load(&self, _load: &LoadRequest, _ctx: &LoadContext) -> Result<Self> { Ok(Self { reply: self.reply.clone() }) }
/// }
///
/// impl Engine for Parrot {
///     type Task = Text;
///     fn generate(&self, _request: TextRequest, out: &TextOutput, _ctx: &Context) -> Result<FinishReason> {
///         for word in self.reply.split_inclusive(' ') { out.token(word.as_bytes())?; }
///         Ok(FinishReason::Stop)
///     }
/// }
///
/// aihost_plugin_api::export_plugin! { plugin: Parrot, id: "example/parrot", devices: ["cpu"] }
/// # fn main() {}
/// ```
pub trait Plugin: Sized + Send + Sync + 'static {
    /// The entry's `options:`; checked against its JSON Schema. Use `deny_unknown_fields`.
    type Options: DeserializeOwned + JsonSchema;
    /// A loaded model.
    type Engine: Engine;

    /// Checks the options. No device is touched.
    fn new(options: Self::Options) -> Result<Self>;

    /// What loading will need, from file headers and options alone: nothing is allocated.
    fn plan(&self, load: &LoadRequest) -> Result<MemoryPlan>;

    /// Makes what a load needs beside the model's files, such as an environment of another language's packages. Called by
    /// `aihost models pull`, in a worker of its own, before anything is loaded, and only if the manifest says `prepares: true`.
    /// Blocks, for hours if need be; the worker may be killed at any moment, and what was left half made must do no harm. Every
    /// line that it and what it starts print is shown to whoever waits.
    ///
    /// # Errors
    /// Whatever kept it from that, with what to do.
    fn prepare(&self, _load: &LoadRequest, _ctx: &PrepareContext) -> Result<()> {
        Ok(())
    }

    /// Loads the model within `load.granted` bytes, reporting progress. Blocks.
    fn load(&self, load: &LoadRequest, ctx: &LoadContext) -> Result<Self::Engine>;
}

/// A loaded model. Dropping it releases everything it holds.
pub trait Engine: Send + Sync + Sized + 'static {
    /// The kind of task that it serves.
    type Task: Task;

    /// Serves one request and blocks until that request is done. Called from up to `max_concurrency` threads at once.
    ///
    /// Poll `ctx.is_cancelled()` at least once per prefill chunk, token or step; `?` on an output call does it too.
    ///
    /// # Errors
    /// Whatever ends the request without its answer. An engine implements this or [`submit`](Self::submit).
    fn generate(
        &self,
        _request: <Self::Task as Task>::Request,
        _output: &<Self::Task as Task>::Output,
        _ctx: &Context,
    ) -> Result<<Self::Task as Task>::Finish> {
        Err(Error::new(ErrorKind::Unsupported, "this engine implements neither `generate` nor `submit`"))
    }

    /// Takes one request, and may return at once: its end is said to the job's reply, from any thread, so that an engine that
    /// batches needs no thread for each request. As it stands it calls [`generate`](Self::generate). Called from up to
    /// `max_concurrency` threads at once; no more requests than that are open at a time.
    fn submit(&self, job: Job<Self::Task>) {
        job.run(|request, output, ctx| self.generate(request, output, ctx));
    }

    /// The tokens of an input as the model reads it, whatever its template adds among them: for `/tokenize`, `/detokenize` and for
    /// whoever counts before they ask. Called beside requests.
    ///
    /// # Errors
    /// [`InvalidRequest`](ErrorKind::InvalidRequest), as it stands: this engine does not tell.
    fn tokens(&self, _input: &TextInput) -> Result<Vec<Token>> {
        Err(Error::new(ErrorKind::InvalidRequest, "this model's engine does not tell its tokens; ask another model"))
    }

    /// Bytes on the device that this request needs beyond the plan's `required`; reserved before `generate`.
    fn cost(&self, _request: &<Self::Task as Task>::Request) -> Result<u64> {
        Ok(0)
    }

    /// The first run of what is slow once (kernels, caches).
    fn warmup(&self, _ctx: &LoadContext) -> Result<()> {
        Ok(())
    }

    /// Bytes that it holds now.
    fn usage(&self) -> MemoryUsage {
        MemoryUsage::default()
    }

    /// Gives the device memory back and keeps what makes waking quick in host memory.
    fn park(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "this plugin cannot park"))
    }

    /// Brings the model back to the device after a [`park`](Self::park). Blocks, reporting progress.
    fn unpark(&self, _ctx: &LoadContext) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "this plugin cannot park"))
    }

    /// An error if it cannot serve any more: its worker is replaced for the next request. The host asks once a minute while nobody
    /// uses it, and after a request that failed by no fault of its client's; beside requests, and for at most 30 seconds.
    fn health(&self) -> Result<()> {
        Ok(())
    }

    /// Where it answers HTTP itself: for engines of the task [`Upstream`], asked after each load and each
    /// [`unpark`](Self::unpark). Requests go there until it parks or is dropped, at most `max_concurrency` at once; a client that
    /// leaves closes its connection.
    fn upstream(&self) -> Result<UpstreamAddress> {
        Err(Error::new(ErrorKind::Unsupported, "this engine does not implement `upstream`"))
    }

    /// Metrics of its own, which `GET /metrics` of the host shows. Called at each scrape, beside requests and whatever else; what
    /// takes longer than half a second is not shown. A test sees them by
    /// [`MockHost::metrics`](crate::testing::MockHost::metrics).
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }
}

/// A kind of task: what is asked, how the answer streams, and what is said at the end.
pub trait Task: 'static {
    /// The kind, as a manifest and models.yaml name it.
    const KIND: &'static str;
    /// The request, from JSON and blocks of bytes.
    type Request: Request;
    /// What the engine pushes its answer into.
    type Output: Send + Sync + 'static;
    /// What `generate` returns.
    type Finish;
    /// What the host is told at the end, as JSON.
    type Summary: Serialize;

    #[doc(hidden)]
    fn output(request: &Self::Request, outlet: Outlet) -> Self::Output;

    /// The input whose tokens are asked for, if that is all.
    #[doc(hidden)]
    fn tokenized(_request: &Self::Request) -> Option<&TextInput> {
        None
    }

    /// `result` is what the engine returned; a stop or a cancel is a normal end.
    #[doc(hidden)]
    fn finish(output: &Self::Output, result: Result<Self::Finish>) -> Result<Self::Summary>;
}

/// Text in, text out.
#[derive(Clone, Copy, Debug)]
pub struct Text;

impl Task for Text {
    const KIND: &'static str = "text";
    type Request = TextRequest;
    type Output = TextOutput;
    type Finish = crate::FinishReason;
    type Summary = TextFinish;

    fn output(request: &TextRequest, outlet: Outlet) -> TextOutput {
        TextOutput::new(request, outlet)
    }

    fn tokenized(request: &TextRequest) -> Option<&TextInput> {
        request.tokenize.then_some(&request.input)
    }

    fn finish(output: &TextOutput, result: Result<Self::Finish>) -> Result<TextFinish> {
        output.finish(result)
    }
}

/// A prompt in, audio out. The engine returns when the last sample is pushed.
///
/// ```standalone_crate
#[doc = include_str!("../../examples/audio.rs")]
/// # fn main() {}
/// ```
#[expect(clippy::test_attr_in_doctest, reason = "the example is a file of its own, and its test runs there")]
#[derive(Clone, Copy, Debug)]
pub struct Audio;

impl Task for Audio {
    const KIND: &'static str = "audio";
    type Request = AudioRequest;
    type Output = AudioOutput;
    type Finish = ();
    type Summary = AudioFinish;

    fn output(request: &AudioRequest, outlet: Outlet) -> AudioOutput {
        AudioOutput::new(request, outlet)
    }

    fn finish(output: &AudioOutput, result: Result<()>) -> Result<AudioFinish> {
        output.finish(result)
    }
}

/// A prompt in, an image out. The engine returns when the finished image is pushed.
///
/// ```standalone_crate
#[doc = include_str!("../../examples/image.rs")]
/// # fn main() {}
/// ```
#[expect(clippy::test_attr_in_doctest, reason = "the example is a file of its own, and its test runs there")]
#[derive(Clone, Copy, Debug)]
pub struct Image;

impl Task for Image {
    const KIND: &'static str = "image";
    type Request = ImageRequest;
    type Output = ImageOutput;
    type Finish = ();
    type Summary = ImageFinish;

    fn output(_request: &ImageRequest, outlet: Outlet) -> ImageOutput {
        ImageOutput::new(outlet)
    }

    fn finish(output: &ImageOutput, result: Result<()>) -> Result<ImageFinish> {
        output.finish(result)
    }
}

/// Texts in, a vector for each out; or a query and documents in, a score for each document out. The engine returns when the last
/// of them is pushed. One that does only the one or the other refuses the rest with
/// [`InvalidRequest`](crate::ErrorKind::InvalidRequest).
///
/// ```standalone_crate
#[doc = include_str!("../../examples/embedding.rs")]
/// # fn main() {}
/// ```
#[expect(clippy::test_attr_in_doctest, reason = "the example is a file of its own, and its test runs there")]
#[derive(Clone, Copy, Debug)]
pub struct Embedding;

impl Task for Embedding {
    const KIND: &'static str = "embedding";
    type Request = EmbeddingRequest;
    type Output = EmbeddingOutput;
    type Finish = ();
    type Summary = EmbeddingFinish;

    fn output(request: &EmbeddingRequest, outlet: Outlet) -> EmbeddingOutput {
        EmbeddingOutput::new(request, outlet)
    }

    fn finish(output: &EmbeddingOutput, result: Result<()>) -> Result<EmbeddingFinish> {
        output.finish(result)
    }
}

/// An HTTP request at the entry's `endpoint:` or below it in, any body out. The engine returns when the last byte is written.
#[derive(Clone, Copy, Debug)]
pub struct Custom;

impl Task for Custom {
    const KIND: &'static str = "custom";
    type Request = CustomRequest;
    type Output = CustomOutput;
    type Finish = ();
    type Summary = CustomFinish;

    fn output(_request: &CustomRequest, outlet: Outlet) -> CustomOutput {
        CustomOutput::new(outlet)
    }

    fn finish(output: &CustomOutput, result: Result<()>) -> Result<CustomFinish> {
        output.finish(result)
    }
}

/// An engine that answers HTTP itself, at the entry's `endpoint:` and below it; [`Engine::upstream`] says where. Mostly the engine
/// is a program that the plugin starts, for which its manifest asks for `permissions: ["network", "subprocess"]`.
#[derive(Clone, Copy, Debug)]
pub struct Upstream;

impl Task for Upstream {
    const KIND: &'static str = "upstream";
    type Request = CustomRequest;
    type Output = CustomOutput;
    type Finish = ();
    type Summary = CustomFinish;

    fn output(request: &CustomRequest, outlet: Outlet) -> CustomOutput {
        Custom::output(request, outlet)
    }

    fn finish(output: &CustomOutput, result: Result<()>) -> Result<CustomFinish> {
        Custom::finish(output, result)
    }
}
