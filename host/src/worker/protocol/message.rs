//! Messages each way, and their bytes. Control is JSON; events and answers are the plugin's own bytes.

use std::collections::BTreeMap;

use aihost_plugin_api::{ErrorDetails, LoadRequest, MemoryPlan, UpstreamAddress};
use bytes::{Buf, Bytes};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::confinement::Confinement;
use super::super::limits::{ERROR_BYTES, METRICS_BYTES, SUMMARY_BYTES};
use super::frame::{CHUNK_BYTES, Frame, MAX_MESSAGE_BYTES, Payload, ProtocolError};
use super::task::Task;
use crate::domain::excerpt;
use crate::plugin::CopyIdentity;

/// Raised when a message changes its meaning.
pub(crate) const PROTOCOL_VERSION: u32 = 2;

/// First message each way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub(crate) version: u32,
}

impl Hello {
    /// This build's.
    pub(crate) fn own() -> Self {
        Self { version: PROTOCOL_VERSION }
    }
}

/// What a worker is to open, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The private copy.
    pub(crate) plugin: std::path::PathBuf,
    /// What that must be when it is opened: what was hashed.
    pub(crate) identity: CopyIdentity,
    /// `options:`
    pub(crate) options: serde_json::Value,
    /// Files and device; nothing is granted yet.
    pub(crate) load: LoadRequest,
    /// From the manifest: most `generate` calls at once.
    pub(crate) max_concurrency: u32,
    /// What it may touch.
    pub(crate) confinement: Confinement,
}

/// Steps of a load or a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Loading {
    /// Done so far, in the plugin's own unit.
    pub(crate) done: u64,
    /// Of this many; 0 if unknown.
    pub(crate) total: u64,
}

/// An error of a plugin on its way to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PluginError {
    /// `aihost_plugin_api::ErrorKind::code`.
    pub(crate) kind: u32,
    /// A sentence.
    pub(crate) message: String,
    /// What else is known.
    #[serde(default)]
    pub(crate) details: ErrorDetails,
}

/// Most bytes of a field's or a code's name in an error.
const DETAIL_BYTES: usize = 256;

impl PluginError {
    /// A sentence that may be shown to anyone, whatever the plugin said.
    pub(crate) fn new(kind: u32, message: &str) -> Self {
        let message = match message.trim() {
            "" => "the plugin failed and did not say why".to_owned(),
            said => excerpt(said, ERROR_BYTES),
        };
        Self { kind, message, details: ErrorDetails::default() }
    }

    /// The same error with what else is known of it, cut to what may be shown.
    pub(crate) fn with_details(mut self, mut details: ErrorDetails) -> Self {
        for name in [&mut details.field, &mut details.code] {
            *name = name.take().map(|name| excerpt(&name, DETAIL_BYTES)).filter(|name| !name.is_empty());
        }
        self.details = details;
        self
    }
}

/// [`LogRecord::level`] of a line that was written to standard output or error; its target says which.
pub(crate) const OUTPUT_LEVEL: u32 = 0;

/// A log line of the plugin or its worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogRecord {
    /// 1 error to 5 trace, or [`OUTPUT_LEVEL`].
    pub(crate) level: u32,
    /// Path of the module that logged it.
    pub(crate) target: String,
    /// The text that was logged.
    pub(crate) message: String,
    /// Its fields as a JSON object; empty if there are none.
    #[serde(default)]
    pub(crate) fields: String,
    /// The request it belongs to; 0 for none.
    #[serde(default)]
    pub(crate) request: u64,
}

/// Host to worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToWorker {
    /// The first message: who speaks.
    Hello(Hello),
    /// Open, instantiate, plan. Answered by `Planned` or `Failed`.
    Start(Box<Start>),
    /// Load within this many bytes. Answered by `Stepped` or `Failed`, as are the other steps.
    Load(u64),
    /// Serve a request. Answered by `Events`, then `Done` or `Failed`.
    Generate(u64, Task),
    /// End a request soon; it still answers.
    Cancel(u64),
    /// The host has passed on this many bytes of a request's events.
    Credit(u64, u64),
    /// Release and exit.
    Shutdown,
    /// Give device memory back.
    Park,
    /// Undo `Park`.
    Unpark,
    /// Say whether the plugin can still serve.
    Health,
    /// Say what this task needs beyond the plan.
    Cost(Task),
    /// Say what the plugin counts. Answered by `Metrics`, if at all, whatever step is under way.
    Metrics,
    /// Make what a load needs beside the model's files; these variables say where things are fetched from. Answered by
    /// `Stepped` or `Failed`.
    Prepare(BTreeMap<String, String>),
}

/// Worker to host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToHost {
    /// The first message: who speaks.
    Hello(Hello),
    /// What the instance plans to take.
    Planned(MemoryPlan),
    /// How far a request is, or with 0 the load.
    Progress(u64, Loading),
    /// A step is done. Its bytes: held on the device, by the plugin's account, after a load, an unpark or a park; what a task costs; else 0.
    Stepped(u64),
    /// Events of a request, packed by [`encode_event`].
    Events(u64, Bytes),
    /// A request's summary.
    Done(u64, Bytes),
    /// A request failed, or with 0 what was asked last.
    Failed(u64, PluginError),
    /// A log line.
    Log(LogRecord),
    /// Sent once a second by a worker that has nothing to say.
    Heartbeat,
    /// Where the engine answers HTTP itself: requests go there from now on, and not to the worker. Sent before the end of a load
    /// or an unpark.
    Upstream(UpstreamAddress),
    /// What the plugin counts, as it says it: a JSON list of the SDK's `Metric`.
    Metrics(Bytes),
}

impl ToWorker {
    /// Kind, request, payload.
    pub(crate) fn encode(&self) -> (u8, u64, Payload) {
        let (kind, request, payload) = match self {
            Self::Hello(hello) => (0, 0, json(hello)),
            Self::Start(start) => (1, 0, json(start)),
            Self::Load(granted) => (2, 0, Bytes::copy_from_slice(&granted.to_le_bytes())),
            Self::Generate(request, task) => return (3, *request, task.encode()),
            Self::Cancel(request) => (4, *request, Bytes::new()),
            Self::Credit(request, bytes) => (5, *request, Bytes::copy_from_slice(&bytes.to_le_bytes())),
            Self::Shutdown => (6, 0, Bytes::new()),
            Self::Park => (7, 0, Bytes::new()),
            Self::Unpark => (8, 0, Bytes::new()),
            Self::Health => (9, 0, Bytes::new()),
            Self::Cost(task) => return (10, 0, task.encode()),
            Self::Metrics => (11, 0, Bytes::new()),
            Self::Prepare(environment) => (12, 0, json(environment)),
        };
        (kind, request, payload.into())
    }

    /// The message of a whole frame.
    pub(crate) fn decode(frame: Frame) -> Result<Self, ProtocolError> {
        Ok(match frame.kind {
            0 => Self::Hello(parse(&frame)?),
            1 => Self::Start(parse(&frame)?),
            2 => Self::Load(number(&frame)?),
            3 => Self::Generate(frame.request, Task::decode(frame.kind, frame.payload)?),
            4 => Self::Cancel(frame.request),
            5 => Self::Credit(frame.request, number(&frame)?),
            6 => Self::Shutdown,
            7 => Self::Park,
            8 => Self::Unpark,
            9 => Self::Health,
            10 => Self::Cost(Task::decode(frame.kind, frame.payload)?),
            11 => Self::Metrics,
            12 => Self::Prepare(parse(&frame)?),
            kind => return Err(unknown(kind)),
        })
    }
}

impl ToHost {
    /// Kind, request, payload.
    pub(crate) fn encode(&self) -> (u8, u64, Bytes) {
        match self {
            Self::Hello(hello) => (0, 0, json(hello)),
            Self::Planned(plan) => (1, 0, json(plan)),
            Self::Progress(request, loading) => (2, *request, json(loading)),
            Self::Stepped(bytes) => (3, 0, Bytes::copy_from_slice(&bytes.to_le_bytes())),
            Self::Events(request, packed) => (4, *request, packed.clone()),
            Self::Done(request, summary) => (5, *request, summary.clone()),
            Self::Failed(request, error) => (6, *request, json(error)),
            Self::Log(record) => (7, record.request, json(record)),
            Self::Heartbeat => (8, 0, Bytes::new()),
            Self::Metrics(json) => (9, 0, json.clone()),
            Self::Upstream(address) => (10, 0, json(address)),
        }
    }

    /// Most bytes of a message of this kind. Only what a plugin makes for its client may be large.
    pub(crate) fn size_max(kind: u8) -> usize {
        match kind {
            4 => MAX_MESSAGE_BYTES,
            5 => SUMMARY_BYTES,
            9 => METRICS_BYTES,
            _ => CHUNK_BYTES,
        }
    }

    /// The message of a whole frame.
    pub(crate) fn decode(frame: Frame) -> Result<Self, ProtocolError> {
        Ok(match frame.kind {
            0 => Self::Hello(parse(&frame)?),
            1 => Self::Planned(parse(&frame)?),
            2 => Self::Progress(frame.request, parse(&frame)?),
            3 => Self::Stepped(number(&frame)?),
            4 => Self::Events(frame.request, frame.payload),
            5 => Self::Done(frame.request, frame.payload),
            6 => {
                let PluginError { kind, message, details } = parse(&frame)?;
                Self::Failed(frame.request, PluginError::new(kind, &message).with_details(details))
            }
            7 => Self::Log(parse(&frame)?),
            8 => Self::Heartbeat,
            9 => Self::Metrics(frame.payload),
            10 => Self::Upstream(parse(&frame)?),
            kind => return Err(unknown(kind)),
        })
    }
}

/// One pushed event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// `aihost_plugin_api::abi::event_kind`.
    pub(crate) kind: u32,
    /// Bytes of the event, as the plugin made them.
    pub(crate) payload: Bytes,
}

/// Appends an event to those that share a frame: kind, length, bytes.
pub(crate) fn encode_event(out: &mut Vec<u8>, kind: u32, payload: &[u8]) {
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    out.extend_from_slice(payload);
}

/// The events of an `Events` message.
pub(crate) fn decode_events(mut packed: Bytes) -> Result<Vec<Event>, ProtocolError> {
    let bad = || ProtocolError::Message { kind: 4, detail: "its events are cut".to_owned() };
    let mut events = Vec::new();
    while packed.has_remaining() {
        let kind = packed.try_get_u32_le().map_err(|_| bad())?;
        let length = packed.try_get_u64_le().map_err(|_| bad())?;
        let length = usize::try_from(length).ok().filter(|length| *length <= packed.len()).ok_or_else(bad)?;
        events.push(Event { kind, payload: packed.split_to(length) });
    }
    Ok(events)
}

/// Every control message is plain data of strings and numbers, for which serialising cannot fail.
fn json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn parse<T: DeserializeOwned>(frame: &Frame) -> Result<T, ProtocolError> {
    serde_json::from_slice(&frame.payload)
        .map_err(|e| ProtocolError::Message { kind: frame.kind, detail: e.to_string() })
}

fn number(frame: &Frame) -> Result<u64, ProtocolError> {
    frame.payload.as_ref().try_into().map(u64::from_le_bytes).map_err(|_| ProtocolError::Message {
        kind: frame.kind,
        detail: format!("wanted a number of 8 bytes, found {}", frame.payload.len()),
    })
}

fn unknown(kind: u8) -> ProtocolError {
    ProtocolError::Message { kind, detail: "this build does not know it".to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame((kind, request, mut payload): (u8, u64, impl Buf)) -> Frame {
        let payload = payload.copy_to_bytes(payload.remaining());
        Frame { kind, request, more: false, payload }
    }

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from)
    }

    fn task() -> impl Strategy<Value = Task> {
        (bytes(), prop::collection::vec(bytes(), 0..3)).prop_map(|(header, blocks)| Task {
            header,
            blocks,
            ..Task::default()
        })
    }

    fn to_worker() -> impl Strategy<Value = ToWorker> {
        prop_oneof![
            any::<u32>().prop_map(|version| ToWorker::Hello(Hello { version })),
            (".*", any::<u64>(), 1u32..9).prop_map(|(text, granted, max_concurrency)| {
                let load = LoadRequest::default().device(text.clone()).granted(granted).threads(2);
                let options = serde_json::json!({ "a": text });
                ToWorker::Start(Box::new(Start {
                    plugin: "x".into(),
                    identity: CopyIdentity::default(),
                    options,
                    load,
                    max_concurrency,
                    confinement: Confinement::default(),
                }))
            }),
            any::<u64>().prop_map(ToWorker::Load),
            (any::<u64>(), task()).prop_map(|(r, task)| ToWorker::Generate(r, task)),
            any::<u64>().prop_map(ToWorker::Cancel),
            any::<(u64, u64)>().prop_map(|(r, n)| ToWorker::Credit(r, n)),
            Just(ToWorker::Shutdown),
            Just(ToWorker::Park),
            Just(ToWorker::Unpark),
            Just(ToWorker::Health),
            task().prop_map(ToWorker::Cost),
            Just(ToWorker::Metrics),
            prop::collection::btree_map("[A-Z_]{1,9}", ".*", 0..3).prop_map(ToWorker::Prepare),
        ]
    }

    fn to_host() -> impl Strategy<Value = ToHost> {
        prop_oneof![
            any::<(u64, u64)>()
                .prop_map(|(required, mapped)| ToHost::Planned(MemoryPlan::new(required).mapped(mapped))),
            any::<(u64, u64, u64)>().prop_map(|(r, done, total)| ToHost::Progress(r, Loading { done, total })),
            any::<u64>().prop_map(ToHost::Stepped),
            (any::<u64>(), bytes()).prop_map(|(r, b)| ToHost::Events(r, b)),
            (any::<u64>(), bytes()).prop_map(|(r, b)| ToHost::Done(r, b)),
            (any::<u64>(), any::<u32>(), ".*")
                .prop_map(|(r, kind, message)| ToHost::Failed(r, PluginError::new(kind, &message))),
            (0u32..6, ".*", any::<u64>()).prop_map(|(level, message, request)| {
                let fields = "{\"n\":1}".to_owned();
                ToHost::Log(LogRecord { level, target: "t".to_owned(), message, fields, request })
            }),
            Just(ToHost::Heartbeat),
            bytes().prop_map(ToHost::Metrics),
            any::<u16>()
                .prop_map(|port| ToHost::Upstream(UpstreamAddress::on_port(port).below("/v1").header("a", "b"))),
        ]
    }

    #[test]
    fn an_error_is_a_sentence_of_bounded_length() {
        for (said, wanted) in [
            ("", "the plugin failed and did not say why"),
            (" \n", "the plugin failed and did not say why"),
            ("no room\n", "no room"),
            ("a\nERROR b\u{1b}[0m", "a\\nERROR b\\u{1b}[0m"),
        ] {
            assert_eq!(PluginError::new(0, said).message, wanted);
        }
        let huge = "\u{1b}".repeat(64 << 20);
        assert!(PluginError::new(0, &huge).message.len() <= ERROR_BYTES);
        // One that a plugin sent around its worker is cut here.
        let payload =
            serde_json::to_vec(&PluginError { message: "x\n".repeat(9000), ..PluginError::new(3, "") }).unwrap();
        let Ok(ToHost::Failed(7, error)) = ToHost::decode(frame((6, 7, Bytes::from(payload)))) else {
            panic!("no error")
        };
        assert!(error.message.len() <= ERROR_BYTES && !error.message.contains('\n'));
    }

    proptest! {
        #[test]
        fn messages_read_back(down in to_worker(), up in to_host()) {
            prop_assert_eq!(ToWorker::decode(frame(down.encode())), Ok(down));
            prop_assert_eq!(ToHost::decode(frame(up.encode())), Ok(up));
        }

        #[test]
        fn events_read_back(events in prop::collection::vec((any::<u32>(), bytes()), 0..9), cut in 1usize..12) {
            let mut packed = Vec::new();
            for (kind, payload) in &events { encode_event(&mut packed, *kind, payload); }
            let events: Vec<Event> = events.into_iter().map(|(kind, payload)| Event { kind, payload }).collect();
            prop_assert_eq!(decode_events(packed.clone().into()), Ok(events.clone()));
            packed.truncate(packed.len().saturating_sub(cut));
            prop_assert_ne!(decode_events(packed.into()).unwrap_or_default(), if events.is_empty() { vec![Event { kind: 0, payload: Bytes::new() }] } else { events });
        }

        #[test]
        fn no_payload_upsets_either_end(kind in any::<u8>(), request in any::<u64>(), payload in bytes()) {
            let _ = ToWorker::decode(frame((kind, request, payload.clone())));
            let _ = ToHost::decode(frame((kind, request, payload.clone())));
            let _ = decode_events(payload);
        }
    }
}
