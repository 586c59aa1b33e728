//! The plugin interface of `aihost`: what a model plugin implements, and the stable ABI that carries it.
//!
//! A plugin is a `cdylib` that implements [`Plugin`] and [`Engine`] and names itself with [`export_plugin!`]:
//! no `unsafe`, no FFI. Panics, cancellation, logging, stop strings and UTF-8 assembly are the SDK's business.
//!
//! Every name has one public path: that at the root of this crate; [`testing`] is for an author's tests, [`abi`] for hosts.
//! This crate knows no HTTP, no scheduler and no engine.

#![warn(missing_docs)]

pub use aihost_plugin_abi as abi;

mod sdk;
/// By which a host names what crosses.
#[doc(hidden)]
pub mod task;

pub use sdk::{
    AnswerStart, AnswerSyntax, Audio, AudioOutput, Context, Custom, CustomOutput, Embedding, EmbeddingOutput, Engine,
    Error, ErrorDetails, ErrorKind, Flow, Image, ImageOutput, Job, LoadContext, LogitsProcessor, Plugin,
    PrepareContext, Reply, Result, StopMatcher, Task, Text, TextOutput, Upstream, Utf8Assembler, testing,
};
#[cfg(feature = "grammar")]
pub use sdk::{Grammar, GrammarToken, GrammarVocabulary};
pub use task::{
    AudioBlock, AudioFinish, AudioFormat, AudioHeader, AudioRequest, CustomFinish, CustomHead, CustomRequest,
    Description, EmbeddingBlock, EmbeddingFinish, EmbeddingForm, EmbeddingHeader, EmbeddingInput, EmbeddingRequest,
    FinishReason, ImageBlock, ImageFinish, ImageHeader, ImageRequest, LoadRequest, LogprobEntry, MemoryPlan,
    MemoryUsage, Message, Metric, MetricKind, ModelFacts, Request, RequestInfo, Sampling, TextEvent, TextFinish,
    TextFormat, TextInput, TextRequest, Token, TokenLogprob, ToolChoice, UpstreamAddress, Usage,
};

#[doc(hidden)]
pub mod private {
    //! Paths that [`export_plugin!`](crate::export_plugin) needs. Not an API.
    pub use abi_stable;
    pub use schemars;
    pub use serde_json;

    pub use crate::sdk::{glue, manifest};
}
