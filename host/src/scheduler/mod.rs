//! Who may use which device when: a pure state machine, one event in, a list of effects out.
//!
//! It knows no clock, no IO, no async, no logs and no plugins: time comes with the event, and everything it wants done is
//! on one list ([`Effect`]). The same events in the same order give the same effects, so every interleaving can be explored.
//!
//! [`State::step`] is the only way in. It applies the event, then schedules: what may be granted is granted, what is idle and
//! in the way is evicted, what fits is loaded.

mod admit;
#[cfg(test)]
mod chance;
mod effect;
mod event;
mod evict;
mod explain;
mod memory;
#[cfg(test)]
mod model_check;
mod policy;
mod queue;
mod state;
#[cfg(test)]
mod tests;
mod trial;

pub use effect::Effect;
pub use event::{Event, Want};
pub use explain::{Explanation, Leaving, Outcome, Staying};
pub use policy::{DevicePolicy, Keep, Mapped, ModelPolicy, Policy};
pub use state::{Instance, Phase, State};
pub use trial::Again;
