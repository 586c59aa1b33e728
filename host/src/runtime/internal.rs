//! What comes back to the loop from the tasks it started.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::access::AccessEntry;
use super::api::Changes;
use super::prepared::{Configuring, Prepared};
use super::relay::Lost;
use crate::domain::{Failure, InstanceId, ModelId, RequestId};
use crate::worker::Started;

/// An event of the host's own.
pub(super) enum Internal {
    /// A step of an instance is over.
    Stepped(InstanceId, Stepped),
    /// A lease is over; with what its request needs to be tried again, if its worker died before the client saw anything.
    Ended(RequestId, Option<Lost>),
    /// The client of a waiting request left.
    Left(RequestId),
    /// What an instance says of its health.
    Health(InstanceId, Health),
    /// The folders of plugins were looked at for someone.
    Looked(oneshot::Sender<Arc<Changes>>),
    /// They were looked at for an instance that is to start.
    LookedToStart(InstanceId),
    /// All that it starts by is in force.
    BringUp(InstanceId),
    /// A new configuration can be put in force.
    Prepared(Box<Prepared>, Configuring),
    /// A model is to be loaded before anyone asks for it.
    Preload(ModelId, oneshot::Sender<Result<(), Failure>>),
}

/// What a plugin says of its health, and who failed before.
pub(super) struct Health {
    pub(super) said: Result<(), Failure>,
    pub(super) after: Option<AccessEntry>,
}

/// What a step of an instance came to.
pub(super) enum Stepped {
    Started(Started),
    /// Bytes on the device by the plugin's own account.
    Loaded(Result<u64, Failure>),
    Parked(Result<u64, Failure>),
    Unparked(Result<(), Failure>),
}

/// Posts to the loop; it is gone only when the host is.
pub(super) async fn post(events: &mpsc::Sender<Internal>, event: Internal) {
    let _over = events.send(event).await.is_err();
}
