//! Every type that crosses between host and plugin. Frozen per ABI major; nothing here has behaviour.
//!
//! Layer 0 is the [`Descriptor`], constants in an ELF section that are read without running code. Layer 1 is the root
//! module and the objects behind it, through `abi_stable`. No enum, `bool` or generic crosses; numbers are newtypes for which unknown values are legal.

mod descriptor;
mod fingerprint;
mod interface;
pub(crate) mod rules;

pub use descriptor::{
    ABI_MAJOR, ABI_MINOR, Descriptor, DescriptorHeader, MAGIC, Manifest, ManifestError, SECTION, fixed,
};
pub use fingerprint::{FINGERPRINT, layout_text};
pub use interface::{
    RawContext, RawContext_TO, RawContextArc, RawError, RawErrorKind, RawFlow, RawHost, RawHost_TO, RawHostArc,
    RawModel, RawModel_TO, RawModelBox, RawSink, RawSink_TO, RawSinkArc, Root, Root_Ref, event_kind,
};
