//! Which decoders are served, and what their files say of their shape: GGUF files by their metadata ([`gguf`]), folders of Hugging
//! Face's by their `config.json` ([`folder`]), each by the rows of [`family`] and with positions scaled ([`positions`]).

pub mod family;
pub mod folder;
pub mod gguf;
pub mod positions;
