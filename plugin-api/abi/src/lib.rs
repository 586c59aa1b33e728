//! Every type that crosses between `aihost` and its plugins. Frozen per ABI major; nothing here has behaviour but the checks of
//! a manifest. Authors of plugins want `aihost-plugin-api`.
//!
//! Layer 0 is the [`Descriptor`], constants in an ELF section that are read without running code. Layer 1 is the root
//! module and the objects behind it, through `abi_stable`. No enum or `bool` of ours crosses; numbers are newtypes for which unknown values are legal.

#![warn(missing_docs)]

mod descriptor;
mod fingerprint;
mod interface;
pub mod rules;

pub use descriptor::{
    ABI_MAJOR, ABI_MINOR, Descriptor, DescriptorHeader, MAGIC, Manifest, ManifestError, SECTION, fixed,
};
pub use fingerprint::{FINGERPRINT, layout_text};
pub use interface::{
    RawCallback, RawCallback_TO, RawCallbackBox, RawContext, RawContext_TO, RawContextArc, RawError, RawErrorKind,
    RawExtension, RawExtension_TO, RawExtensionArc, RawFlow, RawHost, RawHost_TO, RawHostArc, RawModel, RawModel_TO,
    RawModelBox, RawRequest, RawSink, RawSink_TO, RawSinkArc, Root, Root_Ref, event_kind, extension_id,
};
