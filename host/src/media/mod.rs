//! Image and audio files: what a plugin pushed becomes pixels or samples, and these become a file of a known kind.
//!
//! It knows the blocks that plugins push (`aihost_plugin_api::task`) and the host's words (`domain`); nothing of HTTP, of
//! where files are kept, or of who asked for them.

pub(crate) mod audio;
pub(crate) mod image;
