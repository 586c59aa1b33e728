//! Instances in child processes: the placement trait, the protocol, the supervisor and the child's side.
//!
//! The host's half is `supervisor`, the worker's is `child`; they share `protocol` and `limits` and nothing else.

mod ask;
pub mod awake;
mod child;
mod confinement;
mod guard;
mod limits;
mod log;
mod origin;
mod placement;
mod proc;
mod protocol;
mod quiet;
mod remote;
mod schemas;
mod supervisor;
mod throttle;
mod upstream;

pub use ask::{Ask, AskBody, BodyError, HttpAsk, HttpBody};
pub use child::{describe_main, worker_main};
pub use confinement::{is_confinement_available, protect_host};
pub use guard::guard_main;
pub use limits::WorkerLimits;
pub use log::{Followed, ModelLog};
pub use placement::{
    Allowance, CancelCause, EngineConnection, Exit, ExitReason, HttpHead, HttpOutput, InstanceHandle, Loaded, Output,
    Outputs, Placement, StartSpec, Started,
};
pub use proc::is_alive;
pub use protocol::Task;
#[doc(hidden)]
pub use protocol::read_back;
pub use remote::{HostPlacement, TlsSource};
pub use schemas::{OptionsSchema, Schemas};
pub use supervisor::WorkerPlacement;
