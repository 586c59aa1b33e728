//! What a client reads when something went wrong. The only place that turns a failure into a status code, and that cuts
//! what others wrote.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::bucket::RateLeft;
use super::content_coding::TAKEN;
use super::redact::for_clients;
use crate::config::Scope;
use crate::domain::{ByteSize, Failure, FailureDetails, FailureKind, printable, shown, steers};
use crate::jobs::StoreError;
use crate::store::ArtifactError;

/// Seconds after which a client of a full queue should try again.
const RETRY_QUEUE_S: u32 = 2;
/// Seconds after which a client of a loading model should try again. OpenAI's clients give up above 120.
const RETRY_LOADING_S: u32 = 10;
/// Most seconds after which a plugin may have clients try again. OpenAI's clients give up above 120.
const RETRY_MAX_S: u32 = 3600;
/// Seconds after which a client should try again whose body or connection found no room.
const RETRY_ROOM_S: u32 = 2;
/// Bytes that a message may take in an error's JSON: all of it stays below 1 KiB, whatever a client or a plugin wrote.
const MESSAGE_BYTES: usize = 700;
/// Bytes that a field's path may take in an error's JSON.
const PARAM_BYTES: usize = 128;
/// What clients look for to tell an overflow from other bad requests: LangChain for its code, LiteLLM for either of the others.
const OVERFLOW_CODE: &str = "context_length_exceeded";
const OVERFLOW_PHRASE: &str = "exceeds the available context size";
const CONTEXT_PHRASE: &str = "maximum context length is";

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const RATE_LIMIT: &str = "rate_limit_error";

/// A refusal in OpenAI's envelope.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<Cow<'static, str>>,
    param: Option<Box<str>>,
    message: Box<str>,
    retry_after_s: Option<u32>,
    retry: Retry,
    more: Option<Box<More>>,
    rate: Option<Box<RateLeft>>,
    /// The message as operators read it, where clients read another.
    whole: Option<Box<str>>,
}

/// Why a request was not served, on its way from where the answer is made to where the line is.
#[derive(Clone, Debug)]
pub(super) struct Cause {
    pub(super) code: Cow<'static, str>,
    pub(super) message: String,
    /// The message as clients read it.
    pub(super) shown: String,
}

/// Whether the client's library should try again by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// As it sees fit.
    Unsaid,
    /// It cannot heal by waiting.
    Never,
}

/// What programs are told beside a code.
#[derive(Clone, Debug)]
enum More {
    /// How far the load is that is waited for.
    Loading(Value),
    Overflow(Overflow),
}

/// How much too long a prompt is, as llama.cpp says it.
#[derive(Clone, Copy, Debug, Serialize)]
struct Overflow {
    /// Where it was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    n_prompt_tokens: Option<u32>,
    n_ctx: u32,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: EnvelopeError<'a>,
}

#[derive(Serialize)]
struct EnvelopeError<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    loading: Option<&'a Value>,
    #[serde(flatten)]
    overflow: Option<Overflow>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into().into(),
            retry_after_s: None,
            retry: Retry::Unsaid,
            more: None,
            rate: None,
            whole: None,
        }
    }

    /// What the log says of it, together with its code.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What people read.
    pub(super) fn message(&self) -> Cow<'_, str> {
        plain(&self.message, MESSAGE_BYTES)
    }

    /// The field that is to blame.
    pub(super) fn param_name(&self) -> Option<Cow<'_, str>> {
        self.param.as_deref().map(|param| plain(param, PARAM_BYTES))
    }

    /// What programs tell it by.
    pub(super) fn code_name(&self) -> Cow<'static, str> {
        self.code.clone().unwrap_or(Cow::Borrowed(self.kind))
    }

    fn code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.code = Some(code.into());
        self
    }

    fn retry_after_s(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    fn never_retry(mut self) -> Self {
        self.retry = Retry::Never;
        self
    }

    /// What whoever runs the host reads of it.
    fn in_whole(mut self, message: impl Into<Box<str>>) -> Self {
        self.whole = Some(message.into());
        self
    }

    /// The field that is to blame, by its path.
    pub(super) fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into().into());
        self
    }

    /// What is left of a key's rate.
    pub(super) fn with_rate(self, rate: Option<RateLeft>) -> Self {
        Self { rate: rate.map(Box::new).or(self.rate), ..self }
    }

    /// How far the load is that the client is waiting for.
    pub(super) fn loading(mut self, loading: Value) -> Self {
        self.more = Some(Box::new(More::Loading(loading)));
        self
    }

    /// The body is not what this endpoint reads at all.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// A field has a wrong value.
    pub(super) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::malformed(message).param(param).code("invalid_value")
    }

    /// A field has a wrong type.
    pub(super) fn wrong_type(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::malformed(message).param(param).code("invalid_type")
    }

    /// A field is not there.
    pub(super) fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        Self::malformed(format!("`{param}` is required")).param(param).code("missing_required_parameter")
    }

    /// No model was named and none follows from the endpoint.
    pub(super) fn missing_model(hint: &str) -> Self {
        let message = format!("`model` is required here; {hint}");
        Self::malformed(message).param("model").code("missing_required_parameter")
    }

    /// A field asks for what this host cannot do.
    pub(super) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::malformed(message).param(param).code("unsupported_parameter")
    }

    /// The endpoint is OpenAI's, but nothing here answers it.
    pub(super) fn unserved(message: impl Into<String>) -> Self {
        Self::malformed(message).code("unsupported_endpoint")
    }

    /// The body is larger than its route takes.
    pub(super) fn too_large(limit: ByteSize) -> Self {
        let message = format!(
            "the body is larger than {limit}, the most that this endpoint reads (`limits: body_limit:`); send less"
        );
        let shown = format!("the body is larger than {limit}, the most that this endpoint reads; send less");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, shown).code("request_too_large").in_whole(message)
    }

    /// The body is packed in a way that nobody here knows.
    pub(super) fn encoded(coding: &str) -> Self {
        let coding = shown(coding);
        let message = format!("the body's Content-Encoding is `{coding}`; this host takes {TAKEN}, or none");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, message).code("unsupported_encoding")
    }

    /// All bodies together are as large as they may be.
    pub(super) fn no_room_for_body() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            SERVER,
            "this host holds as many bytes of requests as it may; try again in a moment",
        )
        .code("overloaded")
        .retry_after_s(RETRY_ROOM_S)
        .in_whole("all bodies together are as large as they may be (`limits: bodies:`)")
    }

    /// There are as many connections as there may be, and none that waits for its client.
    pub(super) fn no_room_for_connection(limit: &str) -> Self {
        let message = "there are as many connections as there may be; try again in a moment";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message)
            .code("overloaded")
            .retry_after_s(RETRY_ROOM_S)
            .in_whole(format!("there are as many connections as there may be (`limits: {limit}:`)"))
    }

    /// As many follow logs as may.
    pub(super) fn too_many_followers(most: usize) -> Self {
        let message = format!("{most} readers follow logs, as many as may; end one, or read the log without `follow`");
        Self::new(StatusCode::TOO_MANY_REQUESTS, SERVER, message).code("too_many_followers")
    }

    /// As many watch the host as may.
    pub(super) fn too_many_watchers(most: usize) -> Self {
        let message = format!("{most} readers watch this host, as many as may; close a page, or read /admin/overview");
        Self::new(StatusCode::TOO_MANY_REQUESTS, SERVER, message).code("too_many_watchers")
    }

    /// No such file belongs to the page.
    pub(super) fn no_such_file(name: &str) -> Self {
        let message = format!("the page has no file `{name}`; open / in a browser");
        Self::new(StatusCode::NOT_FOUND, INVALID, message).code("not_found")
    }

    /// The next piece of the body did not come.
    pub(super) fn stalled(limit: Duration) -> Self {
        let message = format!("nothing more of the body came for {} s", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, message).code("request_timeout")
    }

    /// The body comes, but so slowly that it would be held for too long.
    pub(super) fn too_slow(elapsed: Duration) -> Self {
        let message =
            format!("after {} s the body is not whole; send it faster, or in smaller requests", elapsed.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, message).code("request_timeout")
    }

    /// The head did not come in time.
    pub(super) fn head_stalled(limit: Duration) -> Self {
        let message = format!("the request's head was not whole after {} s", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, message).code("request_timeout")
    }

    /// A head that is no HTTP, by the status that says in which way.
    pub(super) fn bad_head(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
        let message = match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                "the request's head is too large; send fewer or shorter headers"
            }
            StatusCode::URI_TOO_LONG => "the request's path is too long",
            StatusCode::HTTP_VERSION_NOT_SUPPORTED => "this port speaks HTTP/1.1; HTTP/2 needs a proxy before it",
            _ => "this is no HTTP/1.1 request",
        };
        Self::new(status, INVALID, message).code("bad_head")
    }

    /// An `Expect` header that asks for what nobody here knows.
    pub(super) fn unmet() -> Self {
        let message = "the Expect header asks for what this host does not know; it knows `100-continue`";
        Self::new(StatusCode::EXPECTATION_FAILED, INVALID, message).code("unknown_expectation")
    }

    /// No key, or one that is not accepted.
    pub(super) fn bad_key() -> Self {
        let message =
            "no valid API key; send `Authorization: Bearer KEY` with one that whoever runs this host gave you";
        Self::new(StatusCode::UNAUTHORIZED, INVALID, message)
            .code("invalid_api_key")
            .in_whole("no key that is one of the `api_keys` of models.yaml")
    }

    /// A key that is accepted, and that this route is not open to.
    pub(super) fn missing_scope(scope: Scope) -> Self {
        let message = format!(
            "this API key may not do that: its scope lacks `{}`; ask whoever runs this host for one that may",
            scope.name()
        );
        Self::new(StatusCode::FORBIDDEN, INVALID, message).code("missing_scope")
    }

    /// More requests in their time than a key may send.
    pub(super) fn too_often(wait: Duration, left: RateLeft) -> Self {
        let message = format!("this API key has sent as many requests as it may; {left}");
        let wait_s = u32::try_from(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).unwrap_or(u32::MAX);
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, RATE_LIMIT, message);
        Self { rate: Some(Box::new(left)), ..error.code("rate_limit_exceeded").retry_after_s(wait_s) }
    }

    /// More requests at once than a key may have.
    pub(super) fn too_many_at_once(most: Option<u32>) -> Self {
        let most = most.unwrap_or_default();
        let message = format!("this API key has {most} requests under way, as many as it may; wait for one to end");
        Self::new(StatusCode::TOO_MANY_REQUESTS, RATE_LIMIT, message)
            .code("rate_limit_exceeded")
            .retry_after_s(RETRY_QUEUE_S)
    }

    /// A browser page of another site, or a name that does not belong to this machine.
    pub(super) fn foreign(header: &str) -> Self {
        let message = format!("the {header} header names another site, and this host serves its own machine alone");
        let whole = format!("{message}; set `api_keys` in models.yaml to serve beyond it");
        Self::new(StatusCode::FORBIDDEN, INVALID, message).code("foreign_origin").in_whole(whole)
    }

    /// No such path.
    pub(super) fn unknown_path(method: &str, path: &str) -> Self {
        let message = format!("there is no endpoint {method} {path}");
        Self::new(StatusCode::NOT_FOUND, INVALID, message).code("unknown_url")
    }

    /// No such response, or it is no longer kept.
    pub(super) fn unknown_response(id: &str) -> Self {
        let message = format!(
            "the response `{}` is not kept here; responses are kept for an hour, unless `store` is false: send the whole conversation as `input`",
            crate::domain::shown(id)
        );
        Self::malformed(message).param("previous_response_id").code("previous_response_not_found")
    }

    /// The same, asked for by itself.
    pub(super) fn no_response(id: &str) -> Self {
        let refused = Self { status: StatusCode::NOT_FOUND, ..Self::unknown_response(id) };
        refused.param("response_id").code("response_not_found")
    }

    /// A job whose key is gone.
    pub(super) fn owner_gone() -> Self {
        let message =
            "the API key that this job came with is no key of this host any more; send it anew with one that is";
        Self::new(StatusCode::UNAUTHORIZED, INVALID, message).code("invalid_api_key")
    }

    /// No such job, or it is somebody else's.
    pub(super) fn unknown_job(id: &str) -> Self {
        let message = format!(
            "there is no job `{}`; what is known of a job is kept for a while after its answer is gone",
            shown(id)
        );
        Self::new(StatusCode::NOT_FOUND, INVALID, message).param("id").code("job_not_found")
    }

    /// A job that may be done still, or is not any more, and so has no answer or no end.
    pub(super) fn job_is(status: &str, instead: &str) -> Self {
        let message = format!("the job is {status}; {instead}");
        Self::new(StatusCode::CONFLICT, INVALID, message).param("id").code("job_conflict")
    }

    /// A job whose answer is kept no longer.
    pub(super) fn job_expired() -> Self {
        let message = "the answer of this job is no longer kept; send the job anew, and fetch its answer sooner";
        Self::new(StatusCode::GONE, INVALID, message).param("id").code("job_expired").never_retry()
    }

    /// No such file, or it is no longer kept.
    pub(super) fn unknown_artifact(name: &str) -> Self {
        let message = format!("there is no file `{name}`; files are kept for a while, then they are gone");
        Self::new(StatusCode::NOT_FOUND, INVALID, message).code("artifact_not_found")
    }

    /// What should not happen.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, message).code("internal_error")
    }

    /// The path is there, for other methods.
    pub(super) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not answer {method}; see the Allow header");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, message).code("method_not_allowed")
    }

    /// The host cannot take requests yet, or no more.
    pub(super) fn not_ready(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message).code("not_ready").retry_after_s(RETRY_QUEUE_S)
    }

    /// What an engine refuses, in its own words as far as they can be read.
    pub(super) fn of_engine(status: StatusCode, retry_after_s: Option<u32>, said: &[u8]) -> Self {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => RATE_LIMIT,
            status if status.is_client_error() => INVALID,
            _ => SERVER,
        };
        // An answer that is no refusal is none either.
        let is_refusal = status.is_client_error() || status.is_server_error();
        let status = if is_refusal { status } else { StatusCode::BAD_GATEWAY };
        let json: Value = serde_json::from_slice(said).unwrap_or_default();
        let error = &json["error"];
        let words = [&error["message"], error, &json["detail"], &json["message"]];
        let message = words.into_iter().find_map(Value::as_str).map_or_else(
            || format!("the engine answered with status {}: {}", status.as_u16(), String::from_utf8_lossy(said)),
            str::to_owned,
        );
        let refused = Self { retry_after_s, ..Self::new(status, kind, message) };
        let refused = match error["code"].as_str() {
            Some(code) => refused.code(code.to_owned()),
            None => refused,
        };
        match error["param"].as_str() {
            Some(param) => refused.param(param),
            None => refused,
        }
    }

    /// As what broke an answer that has begun.
    pub(super) fn into_failure(self) -> Failure {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => FailureKind::Busy,
            status if status.is_client_error() => FailureKind::InvalidRequest,
            _ => FailureKind::Unreachable,
        };
        Failure::new(kind, self.message)
    }

    /// The same of a body that was made from another: its paths are those of the other.
    pub(super) fn renamed(mut self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let Some(param) = self.param.as_deref() else { return self };
        let Some(theirs) = rename(param) else { return self };
        let quoted = |path: &str| format!("`{path}`");
        self.message = self.message.replace(&quoted(param), &quoted(&theirs)).into();
        self.param = Some(theirs.into());
        self
    }

    /// The envelope as JSON, for a body or a stream's last event.
    pub(super) fn json(&self) -> Vec<u8> {
        let (message, param) = (self.message(), self.param_name());
        let inner = EnvelopeError {
            message: &message,
            r#type: self.kind,
            param: param.as_deref(),
            code: self.code.as_deref(),
            loading: match self.more.as_deref() {
                Some(More::Loading(loading)) => Some(loading),
                _ => None,
            },
            overflow: match self.more.as_deref() {
                Some(More::Overflow(overflow)) => Some(*overflow),
                _ => None,
            },
        };
        super::wire::json(&Envelope { error: inner })
    }
}

/// As clients read it: without the folders of this machine, which the line of their request has.
impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let shown = failure.client_message();
        let shown = match failure.kind {
            // These two name routes, which look like paths.
            FailureKind::UnknownModel | FailureKind::WrongKind => Cow::Borrowed(shown),
            _ => for_clients(shown),
        };
        let whole = (*shown != failure.message).then(|| failure.message.clone().into());
        let message = shown.into_owned();
        Self { whole, ..Self::for_operator(Failure { message, ..failure }) }
    }
}

impl ApiError {
    /// As whoever runs the host reads it, with all that it says.
    pub(super) fn for_operator(failure: Failure) -> Self {
        let Failure { kind, mut message, details, .. } = failure;
        if kind == FailureKind::ContextLength {
            message = overflowing(message, details.as_ref().and_then(|details| details.context_tokens));
        }
        let new = |status, kind| Self::new(status, kind, message);
        let error = match kind {
            FailureKind::InvalidRequest => new(StatusCode::BAD_REQUEST, INVALID),
            FailureKind::ContextLength => new(StatusCode::BAD_REQUEST, INVALID).code(OVERFLOW_CODE),
            FailureKind::UnknownModel => new(StatusCode::NOT_FOUND, INVALID).param("model").code("model_not_found"),
            FailureKind::WrongKind => {
                new(StatusCode::BAD_REQUEST, INVALID).param("model").code("unsupported_endpoint_for_model")
            }
            FailureKind::QueueFull | FailureKind::Busy => {
                new(StatusCode::TOO_MANY_REQUESTS, RATE_LIMIT).code("rate_limit_exceeded").retry_after_s(RETRY_QUEUE_S)
            }
            FailureKind::StillLoading => new(StatusCode::SERVICE_UNAVAILABLE, SERVER)
                .param("model")
                .code("model_loading")
                .retry_after_s(RETRY_LOADING_S),
            FailureKind::OutOfMemory => {
                new(StatusCode::SERVICE_UNAVAILABLE, SERVER).param("model").code("insufficient_vram").never_retry()
            }
            FailureKind::NotUsable | FailureKind::NoPlugin => {
                new(StatusCode::INTERNAL_SERVER_ERROR, SERVER).param("model").code("model_not_usable").never_retry()
            }
            FailureKind::NotPulled => {
                new(StatusCode::SERVICE_UNAVAILABLE, SERVER).param("model").code("model_not_pulled").never_retry()
            }
            FailureKind::WorkerDied => new(StatusCode::INTERNAL_SERVER_ERROR, SERVER).code("worker_died"),
            FailureKind::Suspected => {
                new(StatusCode::INTERNAL_SERVER_ERROR, SERVER).code("request_suspected").never_retry()
            }
            FailureKind::Unreachable => new(StatusCode::BAD_GATEWAY, SERVER).code("engine_unreachable"),
            FailureKind::TimedOut => new(StatusCode::GATEWAY_TIMEOUT, SERVER).code("timed_out"),
            FailureKind::ShuttingDown => new(StatusCode::SERVICE_UNAVAILABLE, SERVER).code("shutting_down"),
            FailureKind::Cancelled => new(cancelled(), INVALID).code("cancelled"),
            FailureKind::Internal => new(StatusCode::INTERNAL_SERVER_ERROR, SERVER).code("internal_error"),
        };
        error.said(details.map(|details| *details).unwrap_or_default())
    }

    /// The same, with what a plugin said of it beside its sentence.
    fn said(mut self, details: FailureDetails) -> Self {
        self.param = details.field.map(Box::from).or(self.param);
        self.code = details.code.map(Cow::from).or(self.code);
        let overflow = |n_ctx| Overflow { n_prompt_tokens: details.prompt_tokens, n_ctx };
        self.more = details.context_tokens.map(overflow).map(More::Overflow).map(Box::new).or(self.more);
        let seconds = details.retry_after_ms.map(|ms| ms.div_ceil(1000).clamp(1, RETRY_MAX_S.into()) as u32);
        self.retry_after_s = seconds.or(self.retry_after_s);
        if seconds.is_some() {
            self.retry = Retry::Unsaid;
        }
        self
    }
}

impl From<ArtifactError> for ApiError {
    fn from(error: ArtifactError) -> Self {
        let message = "the answer was made but its file was not kept; ask for `b64_json` instead, or whoever runs this host for room";
        let whole = Some(error.to_string().into());
        let error = match error {
            ArtifactError::TooLarge { .. } | ArtifactError::Full(_) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, SERVER, message).code("storage_full").never_retry()
            }
            ArtifactError::Io(..) => Self::internal(message),
        };
        Self { whole, ..error }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let whole = Some(error.to_string().into());
        let error = match error {
            StoreError::Unknown => return Self::unknown_job(""),
            StoreError::OutOfTurn(_) => return Self::job_is("over", "what is over is not ended again"),
            StoreError::TooMany(most) => {
                let message =
                    format!("{most} jobs wait or run, as many as may; send it again in a while, or cancel one");
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, RATE_LIMIT, message);
                error.code("too_many_jobs").retry_after_s(RETRY_LOADING_S)
            }
            StoreError::NoRoom(_) | StoreError::Full(_) => {
                let message = "there is no room for another job; wait for its answer instead, or ask whoever runs this host for room";
                Self::new(StatusCode::INSUFFICIENT_STORAGE, SERVER, message).code("storage_full").never_retry()
            }
            StoreError::Unavailable(_) => {
                let message =
                    "jobs cannot be kept here now; wait for the answer instead, or ask whoever runs this host";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message).code("jobs_unavailable").never_retry()
            }
        };
        Self { whole, ..error }
    }
}

/// The sentence of an overflow with all that clients look for, before what a plugin says of it: its end may be cut.
fn overflowing(message: String, context_tokens: Option<u32>) -> String {
    let mut before = String::new();
    if !message.contains(OVERFLOW_CODE) {
        before = format!("{OVERFLOW_CODE}: ");
    }
    if let Some(tokens) = context_tokens.filter(|_| !message.contains(CONTEXT_PHRASE)) {
        before += &format!("this model's {CONTEXT_PHRASE} {tokens} tokens: ");
    }
    if !message.contains(OVERFLOW_PHRASE) {
        before += &format!("the request {OVERFLOW_PHRASE}: ");
    }
    before + &message
}

/// 499, nginx's "client closed request": nobody is there to read it.
fn cancelled() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        let mut response = (self.status, [(header::CONTENT_TYPE, json)], self.json()).into_response();
        let (code, shown) = (self.code_name(), self.message().into_owned());
        let cause = Cause { code, message: self.whole.unwrap_or(self.message).into(), shown };
        response.extensions_mut().insert(cause);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(rate) = self.rate {
            rate.tell(headers);
        }
        if self.retry == Retry::Never {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(TAKEN));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Text that others may have written, as it may be printed, and its end left out if it would take more than so many bytes of
/// JSON.
fn plain(text: &str, bytes_max: usize) -> Cow<'_, str> {
    /// Bytes of JSON for each character; two where JSON puts a backslash before it.
    fn width(character: char) -> usize {
        match character {
            '"' | '\\' | '\t' => 2,
            other if steers(other) => 1 + other.escape_default().len(),
            other => other.len_utf8(),
        }
    }
    let mut left = bytes_max - '…'.len_utf8();
    let does_not_fit = |&(_, character): &(usize, char)| {
        let rest = left.checked_sub(width(character));
        left = rest.unwrap_or_default();
        rest.is_none()
    };
    match text.char_indices().find(does_not_fit) {
        None => printable(text),
        Some((end, _)) => format!("{}…", printable(&text[..end])).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_below_a_kibibyte_and_plain_whatever_it_repeats() {
        for text in ["x", "\"", "\\", "\u{1b}[31m", "\0", "\u{9b}", "ä", "🎉"] {
            let long = text.repeat(1 << 16);
            let error = ApiError::invalid(long.clone(), long)
                .loading(serde_json::json!({"state": "unparking", "progress": 1000}));
            let json = error.json();
            assert!(json.len() < 1024, "{text:?}: {}", json.len());
            let read: Value = serde_json::from_slice(&json).expect("JSON");
            let message = read["error"]["message"].as_str().expect("a message");
            assert!(message.ends_with('…') && !message.chars().any(char::is_control), "{message:?}");
            assert!(message.len() > MESSAGE_BYTES / 4, "{message:?}");
        }
        assert_eq!(plain("two\nlines", 100), "two\\nlines");
        assert!(matches!(plain("plain", 100), Cow::Borrowed("plain")));
    }
}
