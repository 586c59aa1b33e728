//! What plugin authors use: the traits, the export macro, and everything they need not write themselves.
//!
//! This room must not know the host: only [`crate::abi`] and [`crate::task`].

mod answer;
mod audio_output;
mod context;
mod custom_output;
mod embedding_output;
mod error;
mod export;
#[doc(hidden)]
pub mod glue;
#[cfg(feature = "grammar")]
mod grammar;
mod image_output;
mod job;
mod logging;
mod logits;
#[doc(hidden)]
pub mod manifest;
mod outlet;
mod plugin;
mod stop;
pub mod testing;
mod text_output;
mod utf8;

pub use answer::{AnswerStart, AnswerSyntax};
pub use audio_output::AudioOutput;
pub use context::{Context, Flow, LoadContext, PrepareContext};
pub use custom_output::CustomOutput;
pub use embedding_output::EmbeddingOutput;
pub use error::{Error, ErrorDetails, ErrorKind, Result};
#[cfg(feature = "grammar")]
pub use grammar::{Grammar, GrammarToken, GrammarVocabulary};
pub use image_output::ImageOutput;
pub use job::{Job, Reply};
pub use logits::LogitsProcessor;
pub use plugin::{Audio, Custom, Embedding, Engine, Image, Plugin, Task, Text, Upstream};
pub use stop::StopMatcher;
pub use text_output::TextOutput;
pub use utf8::Utf8Assembler;
