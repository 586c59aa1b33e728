//! The one place that turns a plugin's error, or a worker's end, into the host's terms.

use aihost_plugin_api::ErrorKind;

use super::super::placement::ExitReason;
use super::super::protocol::PluginError;
use crate::domain::{ByteSize, Failure, FailureDetails, FailureKind, ModelId};

/// What a plugin's error means to the host.
pub(super) fn of_plugin(error: PluginError) -> Failure {
    let kind = match ErrorKind::from_code(error.kind) {
        ErrorKind::InvalidRequest => FailureKind::InvalidRequest,
        ErrorKind::ContextLength => FailureKind::ContextLength,
        ErrorKind::OutOfMemory => FailureKind::OutOfMemory,
        ErrorKind::InvalidOptions
        | ErrorKind::MissingFile
        | ErrorKind::CorruptFile
        | ErrorKind::Unsupported
        | ErrorKind::Device => FailureKind::NotUsable,
        ErrorKind::Stopped => FailureKind::Cancelled,
        _ => FailureKind::Internal,
    };
    let details = error.details;
    let known = FailureDetails {
        field: details.field,
        code: details.code,
        retry_after_ms: details.retry_after_ms,
        prompt_tokens: details.prompt_tokens,
        context_tokens: details.context_tokens,
    };
    let mut failure = Failure::new(kind, error.message);
    failure.details = (known != FailureDetails::default()).then(|| Box::new(known));
    if let (Some(wanted), Some(had)) = (details.bytes_wanted, details.bytes_had) {
        failure.message += &format!(" ({} wanted, {} there)", ByteSize(wanted), ByteSize(had));
    }
    failure
}

/// A failure of a step of an instance's life, whatever its plugin calls it: no client asked for it, so none is to blame, and none
/// has left.
pub(super) fn of_step(failure: Failure) -> Failure {
    match failure.kind {
        FailureKind::InvalidRequest | FailureKind::ContextLength => {
            Failure { kind: FailureKind::NotUsable, details: None, ..failure }
        }
        FailureKind::Cancelled => {
            let message =
                format!("the plugin gave up as if it had been stopped, which nobody asked for: {}", failure.message);
            Failure::new(FailureKind::Internal, message)
        }
        _ => failure,
    }
}

/// A failure of one request. What a plugin says of it is said to whoever asked, whatever its kind would mean of a load.
pub(super) fn of_request(failure: Failure) -> Failure {
    match failure.for_clients {
        None => Failure { for_clients: Some(failure.message.as_str().into()), ..failure },
        Some(_) => failure,
    }
}

/// Why the worker cannot be used after this error; nothing if it can.
pub(super) fn condemns(error: &PluginError) -> Option<ExitReason> {
    match ErrorKind::from_code(error.kind) {
        ErrorKind::Panicked => Some(ExitReason::Panicked),
        ErrorKind::Device => Some(ExitReason::Misbehaved(error.message.clone())),
        _ => None,
    }
}

/// What an open request is told when its worker is gone.
pub(super) fn of_exit(model: &ModelId, reason: &ExitReason) -> Failure {
    match reason {
        ExitReason::Asked => Failure::new(
            FailureKind::ShuttingDown,
            format!("model `{model}` was unloaded while it served this request"),
        ),
        ExitReason::BeyondGrant { .. } => {
            let message = format!("the worker of model `{model}` {reason}");
            let whole = format!("{message}; give its entry more `memory:`, or choose smaller options");
            Failure::new(FailureKind::WorkerDied, whole).for_clients(message)
        }
        reason => Failure::new(FailureKind::WorkerDied, format!("the worker of model `{model}` {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_meaning() {
        for (kind, wanted) in [
            (ErrorKind::Internal, FailureKind::Internal),
            (ErrorKind::InvalidRequest, FailureKind::InvalidRequest),
            (ErrorKind::ContextLength, FailureKind::ContextLength),
            (ErrorKind::InvalidOptions, FailureKind::NotUsable),
            (ErrorKind::MissingFile, FailureKind::NotUsable),
            (ErrorKind::CorruptFile, FailureKind::NotUsable),
            (ErrorKind::OutOfMemory, FailureKind::OutOfMemory),
            (ErrorKind::Unsupported, FailureKind::NotUsable),
            (ErrorKind::Stopped, FailureKind::Cancelled),
            (ErrorKind::Device, FailureKind::NotUsable),
            (ErrorKind::Panicked, FailureKind::Internal),
        ] {
            assert_eq!(of_plugin(PluginError::new(kind.code(), "why")), Failure::new(wanted, "why"));
        }
        assert_eq!(of_plugin(PluginError::new(999, "")).kind, FailureKind::Internal);
    }

    #[test]
    fn no_client_is_blamed_for_a_step() {
        for (kind, wanted) in [
            (FailureKind::InvalidRequest, FailureKind::NotUsable),
            (FailureKind::ContextLength, FailureKind::NotUsable),
            (FailureKind::Cancelled, FailureKind::Internal),
            (FailureKind::OutOfMemory, FailureKind::OutOfMemory),
        ] {
            let failure = of_step(Failure::new(kind, "why"));
            assert!(failure.kind == wanted && failure.message.ends_with("why"), "{failure:?}");
        }
    }
}
